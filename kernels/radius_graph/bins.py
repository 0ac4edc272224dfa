"""Lattices, wrapped positions and bins of radius_graph in plain PyTorch, without synchronisation: for the GPU and the
reference."""

from typing import NamedTuple

import torch
from torch import Tensor

from .problems import FAR, FLAT, REACH, VISITS, firsts

PLAIN = 32  # atoms of a graph that are one bin
SLACK = 1 + 1e-5  # bins are thicker than r by what rounding may move an atom


class Bins(NamedTuple):
    """Candidates in the order of their bins; what belongs to targets is in the order of the atoms."""

    x: Tensor  # [3, N] float64, wrapped, sorted
    order: Tensor  # [N] int64, the atoms sorted by bin (stable)
    starts: Tensor  # [N + 1] int64, bin b holds the candidates starts[b] .. starts[b + 1] - 1
    first: Tensor  # [N] int64, the first atom of an atom's graph, and its graph's first bin
    low: Tensor  # [N, 3] the lowest bins that neighbours lie in; periodic directions count on beyond the cell
    high: Tensor  # [N, 3] the highest
    count: Tensor  # [N, 3] bins of an atom's graph
    wraps: Tensor  # [N, 3] whole cells taken off a position
    lattice: Tensor  # [B, 3, 3] float64, lattice vectors; unit vectors in directions without period
    graph: Tensor  # [N] which lattice is an atom's
    problems: Tensor  # [6], see problems.firsts


def bins(pos: Tensor, batch: Tensor, cell: Tensor | None, pbc: Tensor | None, r: float) -> Bins:
    """The bins of all graphs; with values that are wrong they mean nothing, but no index is out of range."""
    n, batch = pos.shape[0], batch.contiguous()
    wrong = {"position": ~pos.isfinite().all(1), "order": torch.zeros_like(batch, dtype=torch.bool)}
    wrong["order"][1:] = batch[1:] < batch[:-1]
    wrong["range"] = batch < 0
    x = torch.where(wrong["position"][:, None], 0.0, pos.double())
    first = torch.searchsorted(batch, batch).clamp(max=max(n - 1, 0))
    size = (torch.searchsorted(batch, batch, right=True) - first).clamp(min=1)
    if cell is None:
        lattice = torch.eye(3, dtype=torch.float64, device=pos.device)[None]
        graph, wraps, fraction = torch.zeros_like(batch), torch.zeros_like(x, dtype=torch.int64), x
        periodic, height = torch.zeros_like(x, dtype=torch.bool), torch.ones_like(x)
    else:
        many = cell.shape[0]
        wrong["range"] = wrong["range"] | (many > 1) & (batch >= many)
        graph = batch.clamp(0, max(many - 1, 0)) if many > 1 else torch.zeros_like(batch)
        lattice, flat = complete(cell.double(), pbc)
        inverse, heights = invert(lattice)
        periodic, height, wrong["cell"] = pbc[graph], heights[graph], flat[graph]
        whole = (x[:, :, None] * inverse[graph]).sum(1).floor().where(periodic, 0.0).nan_to_num()
        wrong["far"] = (whole.abs() > FAR).any(1)
        wraps = whole.clamp(-FAR, FAR).long()
        x = x - images(wraps, lattice[graph])
        fraction = (x[:, :, None] * inverse[graph]).sum(1).nan_to_num()
    count, scale, lowest = _divide(fraction, first, size, periodic, height, r)
    steps = (r * SLACK * count / height).nan_to_num(REACH + 1).ceil().clamp(0, REACH + 1).long()
    visits = torch.where(periodic, 2.0 * steps + 1, 3.0).prod(1)
    wrong["reach"] = (periodic & (steps > REACH * count)).any(1) | (visits > VISITS)
    reach = steps.masked_fill(wrong["reach"][:, None], 0)
    place = ((fraction - lowest) * scale).nan_to_num().floor().long().clamp(min=0).minimum(count - 1)
    number = first + (place[:, 0] * count[:, 1] + place[:, 1]) * count[:, 2] + place[:, 2]
    order = torch.argsort(number, stable=True)
    starts = torch.searchsorted(number[order], torch.arange(n + 1, device=pos.device))
    # without period nothing is beyond the first and the last bin, and r is within one
    low = torch.where(periodic, place - reach, (place - 1).clamp(min=0))
    high = torch.where(periodic, place + reach, (place + 1).minimum(count - 1))
    return Bins(x[order].t().contiguous(), order, starts, first, low, high, count, wraps, lattice, graph, firsts(wrong))


def images(number: Tensor, lattice: Tensor) -> Tensor:
    """[N, 3] translations: whole numbers [N, 3] of the lattice vectors [N, 3, 3], summed in a fixed order."""
    n = number.double()
    return (n[:, 2:] * lattice[:, 2] + n[:, 1:2] * lattice[:, 1]) + n[:, :1] * lattice[:, 0]


def complete(cell: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
    """Lattices [B, 3, 3] with unit vectors, orthogonal to all others, in place of those without period; and whether the
    periodic vectors are dependent or not finite, [B]."""
    rows = [torch.where(pbc[:, k : k + 1], cell[:, k], 0.0) for k in range(3)]
    axes = torch.eye(3, dtype=cell.dtype, device=cell.device)
    for k in range(3):
        a, b = rows[(k + 1) % 3], rows[(k + 2) % 3]
        alone = a + b  # of use where one of them, or both, are still missing
        across = torch.linalg.cross(alone, axes[alone.abs().argmin(1)])
        both = torch.linalg.cross(a, b)
        new = torch.where((both == 0).all(1, keepdim=True), across, both)
        new = torch.where((alone == 0).all(1, keepdim=True) & (both == 0).all(1, keepdim=True), axes[k], new)
        rows[k] = torch.where(pbc[:, k : k + 1], rows[k], torch.nn.functional.normalize(new, dim=1))
    lattice = torch.stack(rows, 1)
    volume = (lattice[:, 0] * torch.linalg.cross(lattice[:, 1], lattice[:, 2])).sum(1).abs()
    return lattice, ~(volume > FLAT * lattice.norm(dim=2).prod(1))


def invert(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Inverses [B, 3, 3], x @ inverse are fractions; and the heights of the cells over each pair of vectors, [B, 3]."""
    a, b, c = lattice.unbind(1)
    columns = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 2)
    volume = (a * columns[:, :, 0]).sum(1)[:, None, None]
    inverse = columns / volume
    return inverse, 1 / inverse.norm(dim=1)


def _divide(fraction: Tensor, first: Tensor, size: Tensor, periodic: Tensor, height: Tensor, r: float):
    """Of each atom's graph: the number of bins in the three directions, bins in a unit of `fraction`, and where the
    first begins: the cell, or what the atoms span."""
    n, slot = fraction.shape[0], first[:, None].expand(-1, 3)
    ends = [fraction.new_full((n, 3), sign * torch.inf).scatter_reduce(0, slot, fraction, f"a{name}")[first]
            for sign, name in ((1, "min"), (-1, "max"))]
    lowest = torch.where(periodic, 0.0, ends[0])
    span = torch.where(periodic, 1.0, ends[1] - ends[0])
    most = torch.where(size > PLAIN, size, 1)
    wanted = (span * height / (r * SLACK)).nan_to_num().clamp(1, 1 << 30).long()
    count = torch.empty_like(wanted)
    for k in range(3):
        count[:, k] = wanted[:, k].minimum(most)
        most = most // count[:, k]
    return count, torch.where(span > 0, count / span, 0.0), lowest
