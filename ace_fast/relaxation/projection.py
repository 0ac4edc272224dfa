"""Soft equivariance under several groups at once: each draws the branches to its own equivariant maps."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from .branches import find_branches
from .decider import Decider
from .gammas import in_range
from .groups import check_groups, projector

WINDOW = 50  # measurements, the last before the strengths are adjusted, whose smallest gaps count


class _Block(NamedTuple):
    """One pair of irreps in a map: rows and columns of the matrix, and I - P of each group."""

    rows: Tensor | None  # int64; None: all
    columns: Tensor | None
    dims: tuple[int, int, int, int]  # channels and components, out and in
    rest: Tensor  # [d, G d], d the numbers of a block of components


def _places(irreps: o3.Irreps) -> dict[o3.Irrep, Tensor | None]:
    """The features of each irrep, channel by channel; None where there is one irrep alone."""
    kinds = {ir for mul, ir in irreps if mul}
    if len(kinds) == 1:
        return {kinds.pop(): None}
    found: dict[o3.Irrep, list[Tensor]] = {}
    for (mul, ir), s in zip(irreps, irreps.slices(), strict=True):
        if mul:
            found.setdefault(ir, []).append(torch.arange(s.start, s.stop))
    return {ir: torch.cat(parts) for ir, parts in found.items()}


def _blocks(out: o3.Irreps, into: o3.Irreps, groups: tuple[str, ...]) -> list[_Block]:
    """Those pairs of irreps of a map that some group restricts."""
    found = []
    for to, rows in _places(out).items():
        for source, columns in _places(into).items():
            size = to.dim * source.dim
            rest = [torch.eye(size, dtype=torch.float64) - projector(to, source, group) for group in groups]
            if max(r.abs().max() for r in rest) > 1e-9:
                count = lambda irreps, ir: sum(mul for mul, own in irreps if own == ir)  # noqa: E731
                dims = (count(out, to), to.dim, count(into, source), source.dim)
                found.append(_Block(rows, columns, dims, torch.cat(rest, 1)))
    return found


def _gaps(matrix: Tensor, blocks: list[_Block], count: int) -> Tensor:
    """[G] of half |M - P_G M|^2 for a matrix [O, I]."""
    total = matrix.new_zeros(count)
    for rows, columns, (w, i, u, j), rest in blocks:
        part = matrix if rows is None else matrix.index_select(0, rows)
        part = part if columns is None else part.index_select(1, columns)
        part = part.reshape(w, i, u, j).transpose(1, 2).reshape(w * u, i * j)
        total = total + 0.5 * (part @ rest).view(w * u, count, i * j).square().sum((0, 2))
    return total


class SoftEquivariance(Decider):
    r"""Draws the branches' weights to the maps that commute with each of several groups, each with its own strength.

    .. math:: R = \sum_G \lambda_G \sum_{maps} \tfrac12 \|W - P_G W\|^2 + \tfrac12 \|b - P_G b\|^2
              \; + \; \tfrac{\mathrm{decay}}{2} \sum_{maps} \|W\|^2 + \|b\|^2

    P_G is the orthogonal projector on maps that commute with G, exact in closed form or by a finite mean. At the share
    `adjust` of the training, each strength is divided by (r_G / min r)^power, where r are the groups' gaps: the
    smallest of the last 50 steps; a symmetry that the data break, whose gap stays large, lets go, and the strengths say
    which one the data have. The branches belong to the trained model; the gammas stay at `gamma`.

    Args:
        model: relaxed, its branches with irreps.
        steps: the training steps that there will be.
        groups: "O3", "SO3", and rotations about an axis alone ("SO2x", "SO2y", "SO2z") or with the mirrors that hold
            it ("O2x", "O2y", "O2z"): the published set is O(3) and the three O(2).
        strength: lambda_G at the start, per unit of the loss.
        decay: weight of the branches' own squares.
        adjust: share of the steps after which the strengths are set (published: a quarter); 0 keeps them.
        power: published: 2, and 5 for motion forecasting.
        gamma: value of all gates.

    Attributes:
        kept: True, the branches are part of the trained model.

    Raises:
        ValueError: no gammas or branches, gates that networks compute, branches without irreps or with fixed norms,
            an unknown group, numbers out of range.

    Source: Kim et al. 2023 (PER), with the rule for the strengths from their code.
    """

    kept = True

    def __init__(self, model: nn.Module, steps: int, *, groups: Iterable[str] = ("O3", "O2x", "O2y", "O2z"),
                 strength: float = 1e-3, decay: float = 0.0, adjust: float = 0.25, power: float = 2.0,
                 gamma: float = 1.0):
        groups = tuple(groups)
        check_groups(groups, "SoftEquivariance")
        for name, value in (("strength", strength), ("decay", decay), ("power", power)):
            if not in_range(value, 0):
                raise ValueError(f"SoftEquivariance: {name} must be at least 0 and finite, got {value!r}")
        if not in_range(adjust, 0, below=1):
            raise ValueError(f"SoftEquivariance: adjust must be a share from 0 to less than 1, got {adjust!r}")
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"SoftEquivariance: steps must be the positive number of training steps, got {steps!r}")
        branches = find_branches(model, "SoftEquivariance", irreps=True)
        super().__init__(model, gamma)
        self.groups, self.decay, self.power, self.adjust_at = groups, decay, power, int(adjust * steps)
        self._maps = list({id(m): (m, *ends) for b in branches for m, *ends in b.steps()}.values())
        like = self._gammas[0].detach()
        self._blocks = [(_blocks(out, into, groups), _blocks(out, o3.Irreps("1x0e"), groups))
                        for _, into, out in self._maps]
        self._strengths, self._smallest = like.new_full((len(groups),), strength), like.new_full((len(groups),), 1e30)
        self._latest = like.new_zeros(len(groups))

    def penalty(self, loss: Tensor | None = None, turned: Callable[[], Tensor] | None = None) -> Tensor:
        """R, of the weights as they are."""
        gaps = self.gaps()
        self._latest = gaps.detach()
        found = (self._strengths * gaps).sum()
        if self.decay:
            own = [p for m, *_ in self._maps for p in m.parameters(recurse=False) if p.dim()]
            found = found + 0.5 * self.decay * torch.stack(torch._foreach_norm(own)).square().sum()
        return found

    def gaps(self) -> Tensor:
        """[G] of half the squared distance of all maps to those that commute with each group, differentiable."""
        self._follow()
        found = []
        for (linear, *_), (of_weight, of_bias) in zip(self._maps, self._blocks, strict=True):
            found.append(_gaps(linear.weight, of_weight, len(self.groups)))
            if linear.bias is not None and of_bias:
                found.append(_gaps(linear.bias[:, None], of_bias, len(self.groups)))
        return torch.stack(found).sum(0)

    @torch.no_grad()
    def step(self) -> None:
        """Takes the gaps of the last penalty into account; sets the strengths where their time has come."""
        super().step()
        if self.adjust_at - WINDOW < self.steps <= self.adjust_at:
            # as the code does: all of a step's gaps, where one of them is the smallest so far
            better = (self._latest < self._smallest).any()
            self._smallest = torch.where(better, self._latest, self._smallest)
        if self.steps == self.adjust_at:
            self._strengths = self._strengths / (self._smallest / self._smallest.min()) ** self.power

    def metrics(self) -> dict[str, Tensor]:
        """gammas [n]; strengths and gaps [G] in the order of `groups`."""
        return super().metrics() | {"strengths": self._strengths.clone(), "gaps": self._latest.clone()}

    def state_dict(self) -> dict:
        return super().state_dict() | {"groups": list(self.groups), "adjust_at": self.adjust_at,
                                       "strengths": self._strengths.clone(), "smallest": self._smallest.clone()}

    def _follow(self) -> None:
        """Tables and strengths are where the weights are."""
        weight = self._maps[0][0].weight
        if self._blocks and self._strengths.device == weight.device and self._strengths.dtype == weight.dtype and all(
                b.rest.dtype == weight.dtype and b.rest.device == weight.device for pair in self._blocks for p in pair
                for b in p):
            return
        to = lambda x: x if x is None else x.to(weight.device)  # noqa: E731
        move = lambda b: _Block(to(b.rows), to(b.columns), b.dims, b.rest.to(weight))  # noqa: E731
        self._blocks = [tuple([move(b) for b in part] for part in pair) for pair in self._blocks]
        self._strengths, self._smallest = self._strengths.to(weight), self._smallest.to(weight)
