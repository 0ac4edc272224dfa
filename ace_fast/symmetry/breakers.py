"""The parts of SymPE, one for each kind of group: each draws an element and turns its own vector by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..kernels.define import longest_segment
from .groups import Element, Group
from .layouts import Layout, act, check, image
from .layouts import layout as layout_of
from .refinement import GraphSymmetries

_NEAR = 1e-6  # what a random vector changes by, at least, where it has no symmetry left


def uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """float64 in [0, 1) on `device`; drawn on the generator's own."""
    own = device if generator is None else generator.device
    return torch.rand(*shape, dtype=torch.float64, generator=generator, device=own).to(device)


def seeds(draws: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """[draws] int64 on `device`, of Philox's keys; drawn on the generator's own."""
    own = device if generator is None else generator.device
    return torch.randint(-(2**63), 2**63 - 1, (draws,), generator=generator, device=own).to(device)


class Permutations(nn.Module):
    """S_n: v is a table [T, C] with a row for each place; a node takes the row of its rank."""

    def __init__(self, rows: int, channels: int, tolerance: float) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.v = nn.Parameter(torch.randn(rows, channels))

    def forward(self, x: Tensor, predicted: Tensor | GraphSymmetries, ptr: Tensor | None, draws: int,
                longest: int | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """x [N, F], scores [N] or [N, 1] or symmetries -> [draws, N, F + C], ranks [draws, N]."""
        if ptr is None:
            ptr, longest = torch.arange(2, device=x.device) * x.shape[0], x.shape[0]
        elif longest is None:
            longest = longest_segment("SymPE", ptr, x.shape[0])
        if longest > len(self.v):
            raise ValueError(f"SymPE: representation must have a row for each of {longest} nodes, those of the largest "
                             f"graph, got {len(self.v)}; take a larger table")
        if isinstance(predicted, GraphSymmetries):
            if predicted.ptr is not ptr and not torch.equal(predicted.ptr, ptr):
                raise ValueError("SymPE: ptr must be that of the GraphSymmetries, got another one")
            rank, order = predicted.ranks(draws, generator)
        else:
            rank, order = functional.segment_rank(self._scores(predicted, x), ptr, seeds(draws, generator, x.device),
                                                  tolerance=self.tolerance, longest=longest)
        return functional.rank_concat(x, self.v, rank, order, ptr), rank

    def _scores(self, predicted: Tensor, x: Tensor) -> Tensor:
        if not isinstance(predicted, Tensor) or tuple(predicted.shape) not in ((len(x),), (len(x), 1)):
            got = list(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
            raise ValueError(f"SymPE: canonicalizer must give scores [{len(x)}] or [{len(x)}, 1], one for each node, "
                             f"got {got}")
        return predicted.reshape(-1)


class Rotations(nn.Module):
    """SO(3) and O(3): v are irreps [D], turned by the frame of predicted vectors."""

    def __init__(self, group: Group, irreps: o3.Irreps, tolerance: float) -> None:
        super().__init__()
        self.improper, self.tolerance = group.rotations == "O(3)", tolerance
        self.vectors = 3 if self.improper else 2
        self.v = nn.Parameter(torch.randn(irreps.dim))
        self.register_buffer("channels", functional.frame_channels(irreps), persistent=False)

    def forward(self, x: Tensor, predicted: Tensor, ptr: Tensor | None, draws: int,
                longest: int | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """x [N, F], vectors [B, n, 3] -> [draws, N, F + D], frames [draws, B, 3, 3]."""
        if ptr is None:
            ptr = torch.arange(len(x) + 1, device=x.device)
        if not isinstance(predicted, Tensor) or predicted.dim() != 3 or predicted.shape[2] != 3 \
                or len(predicted) != len(ptr) - 1 or predicted.shape[1] < self.vectors:
            got = list(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
            raise ValueError(f"SymPE: canonicalizer must give {self.vectors} vectors [{len(ptr) - 1}, "
                             f"{self.vectors}, 3] or more for each set, got {got}")
        return functional.frame_concat(x, self.v, predicted, ptr, self.channels, seeds(draws, generator, x.device),
                                       improper=self.improper, tolerance=self.tolerance, validate=longest is None)


class Finite(nn.Module):
    """A finite group: v is turned by the element of the largest activation, equals in random order.

    v is an image [C, H, H] or numbers of each element [C, |G|], which elements move, or irreps [D], which they turn.
    On images, p4 and p4m have a cell for each pixel too: element (h, p) turns by h about pixel 0, then takes it to p.
    """

    def __init__(self, group: Group, v: Tensor, own: Layout | None, tolerance: float, soft: bool) -> None:
        super().__init__()
        self.group, self.tolerance, self.soft = group, tolerance, soft
        self.v = nn.Parameter(v)
        self.order = len(group.table)
        self.side = v.shape[-1] if group.cells else 1
        self.register_buffer("source", None if v.dim() == 1 else self._sources(), persistent=False)
        self.register_buffer("matrix", self._matrices(own) if v.dim() == 1 else None, persistent=False)

    def _sources(self) -> Tensor:
        """[order, P] int64: what comes to each of the P pixels, or elements, of a channel of v."""
        if self.v.dim() == 2:
            return self.group.table.argsort(1)
        places = torch.arange(self.v[0].numel()).view(1, *self.v.shape[1:])
        elements = self.element(torch.arange(self.order) * self.side**2)
        return act(self.group, elements, places.expand(self.order, -1, -1), image()).flatten(1)

    def _matrices(self, own: Layout) -> Tensor:
        """[order, D, D] float64, those of the irreps."""
        one = torch.eye(len(self.v), dtype=torch.float64).expand(self.order, -1, -1)
        return act(self.group, self.group.elements(), one, own).mT

    def element(self, chosen: Tensor) -> Element:
        """The elements that activations [M], by their numbers in 0..|G| - 1, stand for."""
        number, pixel = (chosen // self.side**2).cpu(), (chosen % self.side**2).cpu()
        matrix = None if self.group.matrices is None else self.group.matrices[number]
        cell = None
        if self.group.cells:
            middle = torch.full((2,), (self.side - 1) / 2, dtype=torch.float64)
            moved = (matrix[:, :2, :2] @ middle - middle).round().long()  # images turn about their middle
            cell = (torch.stack([pixel // self.side, pixel % self.side], 1) + moved) % self.side
        return Element(matrix, number=number, cell=cell)

    def turned(self) -> Tensor:
        """v under every element of the table: [order, *v.shape]."""
        if self.matrix is not None:
            return self.matrix.to(self.v) @ self.v
        return self.v.flatten(1)[:, self.source].transpose(0, 1).unflatten(2, self.v.shape[1:])

    def forward(self, x: Tensor, predicted: Tensor, ptr: Tensor | None, draws: int,
                longest: int | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """x [B, F, ...] or with ptr [N, F], activations [B, |G|] -> [draws, B, F + C, ...], the chosen [draws, B]."""
        a = self._activations(predicted, len(x) if ptr is None else len(ptr) - 1)
        best = a.amax(1, keepdim=True)
        keys = uniform((draws, *a.shape), generator, x.device)
        chosen = torch.where(a >= best - self.tolerance, keys, -1.0).argmax(2)  # [draws, B]
        turned = self.turned()
        v = turned[chosen // self.side**2]  # [draws, B, ...]
        if self.group.cells:
            v = self._rolled(v, chosen % self.side**2)
        if self.soft:
            mean = self._mean(torch.softmax(a, 1), turned)
            v = v + (mean - mean.detach())
        v = v.masked_fill(best.isnan().view(-1, *[1] * (v.dim() - 2)), torch.nan)  # what diverged stays visible
        if ptr is not None:
            v = v.repeat_interleave(ptr.diff(), 1, output_size=len(x))
        if tuple(v.shape[3:]) != tuple(x.shape[2:]):
            raise ValueError(f"SymPE: x must be [B, F{''.join(f', {n}' for n in v.shape[3:])}] beside representation "
                             f"{list(self.v.shape)}, got {list(x.shape)}")
        return torch.cat([x.expand(draws, *x.shape), v], 2), chosen

    def _activations(self, predicted: Tensor, samples: int) -> Tensor:
        count = self.order * self.side**2
        found = list(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
        if not isinstance(predicted, Tensor) or predicted.dim() < 2 or len(predicted) != samples \
                or math.prod(predicted.shape[1:]) != count:
            shape = f", {self.order}, {self.side}, {self.side}" if self.group.cells else f", {count}"
            raise ValueError(f"SymPE: canonicalizer must give activations [{samples}{shape}], one for each element of "
                             f"{self.group.name}, got {found}")
        return predicted.flatten(1)

    def _rolled(self, v: Tensor, pixel: Tensor) -> Tensor:
        """Images [draws, B, C, H, H], pixel 0 taken to pixel [draws, B]."""
        across = torch.arange(self.side, device=v.device)
        down = (across - pixel[..., None] // self.side) % self.side  # [draws, B, H]
        right = (across - pixel[..., None] % self.side) % self.side
        return v.take_along_dim(down[:, :, None, :, None], 3).take_along_dim(right[:, :, None, None, :], 4)

    def _mean(self, p: Tensor, turned: Tensor) -> Tensor:
        """p [B, |G|] -> the mean of v over the elements with these weights: what the gradient of the choice is of."""
        if not self.group.cells:
            return torch.tensordot(p, turned, 1)
        sides = self.side, self.side
        spectrum = torch.einsum("bhrk,hcrk->bcrk", torch.fft.rfft2(p.view(len(p), self.order, *sides)),
                                torch.fft.rfft2(turned))
        return torch.fft.irfft2(spectrum, s=sides)


def rotations_are_free(irreps: o3.Irreps, improper: bool) -> bool:
    """Whether only the identity leaves random irreps as they are.

    A subgroup that leaves some has an element of prime order: a turn, or of O(3) a mirror or the inversion. Random
    irreps escape a class of them where the dimensions that its elements change exceed those of the class.
    """
    parts = [(ir.l, ir.p, mul) for mul, ir in irreps]
    most = max((l for l, _, _ in parts), default=0)
    turns = [n for n in range(2, 2 * most + 2) if all(n % d for d in range(2, n))] or [2]
    changed = [sum(mul * 2 * (l - l // n) for l, _, mul in parts) if n > 2
               else sum(mul * (l + l % 2) for l, _, mul in parts) for n in turns]
    classes = [(count, 2) for count in changed]
    if improper:
        classes.append((sum(mul * (l + (p != (-1) ** l)) for l, p, mul in parts), 2))  # mirrors
        classes.append((sum(mul * (2 * l + 1) for l, p, mul in parts if p < 0), 0))  # the inversion
    return all(count > size for count, size in classes)


def finite_is_free(part: Finite) -> bool:
    """Whether every element but the identity changes a random v."""
    if part.group.cells:
        return part.side > 2  # of two pixels, a roll is a mirror
    turned = part.turned().detach()
    return bool(((turned[1:] - turned[0]).flatten(1).abs().amax(1) > _NEAR).all())


def make(group: Group, representation, tie: str, tolerance: float) -> nn.Module:
    """The part for a group that is no product.

    Raises:
        ValueError: a group that has none, a representation that it cannot act on or not freely.
    """
    if group.translations and not group.rotations:
        raise ValueError(f"SymPE: group must have rotations, permutations or a table, got {group.name}; subtract the "
                         "centre, and translations are gone")
    if tie == "straight_through" and group.table is None:
        raise ValueError(f"SymPE: tie must be 'uniform' under {group.name}, got 'straight_through': its softmax is "
                         "over the elements of a finite group")
    if group.nodes is not None:
        return Permutations(*_numbers(group, representation, 2, "(most nodes of a graph, channels)"), tolerance)
    if group.table is not None:
        part = Finite(group, *_finite(group, representation), tolerance, tie == "straight_through")
        if not finite_is_free(part):
            raise ValueError(f"SymPE: representation must be changed by every element of {group.name} but the "
                             f"identity, got {representation}, which is not; take other irreps or a larger image")
        return part
    irreps = _irreps(group, representation)
    if not rotations_are_free(irreps, group.rotations == "O(3)"):
        raise ValueError(f"SymPE: representation must be changed by every element of {group.rotations} but the "
                         f"identity, got {irreps}, which is not; take 2x1o for SO(3), 3x1o or 2x1o + 1x0o for O(3), or "
                         "more")
    return Rotations(group, irreps, tolerance)


def _numbers(group: Group, representation, count: int, meaning: str) -> tuple[int, ...]:
    ok = isinstance(representation, tuple | list) and len(representation) == count
    if not ok or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in representation):
        raise ValueError(f"SymPE: representation must be {meaning} under {group.name}, got {representation!r}")
    return tuple(representation)


def _irreps(group: Group, representation) -> o3.Irreps:
    try:
        return o3.Irreps(representation)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"SymPE: representation must be irreps under {group.name}, such as '4x0e + 4x1o', got "
                         f"{representation!r}") from error


def _finite(group: Group, representation) -> tuple[Tensor, Layout | None]:
    """v and, of irreps, how it transforms."""
    if isinstance(representation, tuple | list) or group.cells:
        channels, h, w = _numbers(group, representation, 3, "an image (channels, pixels, pixels)")
        if h != w:
            raise ValueError(f"SymPE: representation must be a square image under {group.name}, got {representation!r}")
        check(group, image(), "SymPE: representation")
        return torch.randn(channels, h, w), None
    if isinstance(representation, int) and not isinstance(representation, bool) and representation > 0:
        return torch.randn(representation, len(group.table)), None
    irreps = _irreps(group, representation)
    own = layout_of(irreps)
    check(group, own, "SymPE: representation")
    return torch.randn(irreps.dim), own
