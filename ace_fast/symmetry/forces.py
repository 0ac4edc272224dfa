"""Whether forces are the gradient of some energy: their curl and their work, by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .probing import absolute, relative, untouched
from .report import Error, Report

_TOGETHER = 4  # directions that are compared pairwise in a draw


def conservativity(forces: Callable[[Tensor], Tensor], pos: Tensor, *, energy: Callable[[Tensor], Tensor] | None = None,
                   graphs: Tensor | None = None, draws: int = 4, seed: int = 0, step: float | None = None,
                   module: nn.Module | None = None) -> Report:
    r"""How far forces are from being the gradient of an energy.

    The Jacobian of a gradient is symmetric. With random directions u_k, one set for each graph, and
    :math:`M_{kl} = u_k^T J u_l` from central differences of the forces along u_l, the curl is

    .. math:: \frac{\|M - M^T\|}{2 \|M\|}

    from 0 (conservative) to 1. With an energy, the work of the forces is compared with what the energy loses:

    .. math:: \frac{|F^T u + (E(x + h u) - E(x - h u)) / 2h|}{|F^T u|}

    over all directions and graphs. Gradients by autograd would not do: what was left out of the forces (the gradient of
    a cutoff) is left out of their derivatives, too.

    Args:
        forces: positions [N, 3] -> forces [N, 3].
        pos: [N, 3], where; in float64 the differences have ten digits, in float32 four.
        energy: positions [N, 3] -> energies, [G] or [G, 1]; the last graphs may be empty.
        graphs: [N] int64, the graph of each node, where there are several.
        draws: sets of four directions, eight passes each.
        seed: of the directions.
        step: h, of a direction of norm 1; None: eps^(1/3) times the spread of the positions.
        module: that the callables run, to be left as it was (`measure`).

    Returns:
        A `Report` with the outputs "curl" and, with an energy, "work"; `rounding` is the accuracy of the differences.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.

    Example:
        >>> x = torch.randn(5, 3, dtype=torch.float64)
        >>> conservativity(lambda x: -x, x, energy=lambda x: x.square().sum()[None] / 2).relative < 1e-8
        True
    """
    owner, least = _owner(pos, graphs, draws)
    pos, eps = pos.detach(), torch.finfo(pos.dtype).eps
    h = step or eps ** (1 / 3) * max(1e-3, float(pos.std()) if len(pos) else 0.0)
    generator, errors = torch.Generator().manual_seed(seed), [Error("curl")]
    errors += [Error("work")] if energy is not None else []
    with untouched([] if module is None else [module]):
        here = _forces(forces, pos)
        count = least if energy is None else len(_energies(energy, pos, least, least if graphs is None else None))
        for _ in range(draws):
            ways = _directions(pos, owner, count, generator)
            ends = [[pos + sign * h * way for sign in (1, -1)] for way in ways]
            change = torch.stack([_forces(forces, a) - _forces(forces, b) for a, b in ends]) / (2 * h)
            matrix = torch.stack([_by_graph(way * change, owner, count) for way in ways])  # [K, K, G]
            uneven = matrix - matrix.transpose(0, 1)
            errors[0].add(relative(uneven / 2, matrix), absolute(uneven))
            if energy is not None:
                values = torch.stack([_energies(energy, x, count, count) for two in ends for x in two])
                work = _by_graph(ways * here, owner, count)  # [K, G]
                missing = work + (values[::2] - values[1::2]) / (2 * h)
                errors[1].add(relative(missing, work), absolute(missing))
    return Report("displacements", "draws", errors, [], eps ** (2 / 3))


def _owner(pos: Tensor, graphs: Tensor | None, draws: int) -> tuple[Tensor, int]:
    """The graph [N] of each node, and how many graphs there are at least; what was given is checked."""
    if pos.dim() != 2 or pos.shape[1] != 3 or not pos.is_floating_point():
        raise ValueError(f"conservativity: pos must be [N, 3] floating-point, got {pos.dtype} {list(pos.shape)}")
    owner = torch.zeros(len(pos), dtype=torch.int64, device=pos.device) if graphs is None else graphs.to(pos.device)
    if owner.shape != pos.shape[:1]:
        raise ValueError(f"conservativity: graphs must be [{len(pos)}], got {list(owner.shape)}")
    if draws < 1:
        raise ValueError(f"conservativity: draws must be at least 1, got {draws}")
    return owner, 1 if graphs is None else int(owner.max()) + 1 if len(owner) else 0


def _directions(pos: Tensor, owner: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[K, N, 3] random, of norm 1 in each graph."""
    ways = torch.randn(_TOGETHER, *pos.shape, generator=generator, dtype=torch.float64).to(pos)
    return ways / _by_graph(ways.square(), owner, count).sqrt()[:, owner, None]


def _by_graph(x: Tensor, owner: Tensor, count: int) -> Tensor:
    """[K, G] sums of x [K, N, 3] over the nodes of each graph."""
    rows = x.sum(2)
    return rows.new_zeros(len(x), count).index_add(1, owner, rows)


def _forces(forces: Callable[[Tensor], Tensor], pos: Tensor) -> Tensor:
    found = forces(pos.clone()).detach()
    if found.shape != pos.shape:
        raise ValueError(f"conservativity: forces must be {list(pos.shape)} as pos is, got {list(found.shape)}")
    return _finite("forces", found)


def _energies(energy: Callable[[Tensor], Tensor], pos: Tensor, least: int, most: int | None) -> Tensor:
    """[G] float64, for a number of graphs within bounds."""
    found = energy(pos.clone()).detach()
    count = found.shape[:1].numel()
    if count != found.numel() or not least <= count <= (count if most is None else most):
        wanted = f"{least}" if most == least else f"{least} or more"
        raise ValueError(f"conservativity: energy must be [G] or [G, 1] for {wanted} graphs, got {list(found.shape)}; "
                         "pass graphs= where there are several")
    return _finite("energy", found.double().flatten())


def _finite(name: str, x: Tensor) -> Tensor:
    if not x.isfinite().all():
        raise ValueError(f"conservativity: {name} must be finite, got NaN or infinity; look at the positions")
    return x
