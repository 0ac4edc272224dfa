"""radius_graph in plain PyTorch: every atom against the atoms of the bins around it, in parts."""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import problems
from .bins import Bins, bins, images

VISITS = 1 << 18  # bins looked at together
CANDIDATES = 1 << 20  # atoms looked at together, and those of one bin more
ZERO = 1 << 10  # what the image 0 is in a key
BITS = (22, 11, 0)  # where the images of the three directions lie in a key, below the source


def forward(
    pos: Tensor, batch: Tensor, cell: Tensor | None, pbc: Tensor | None, r: float, loop: bool,
    max_num_neighbors: int | None,
) -> tuple[Tensor, Tensor]:
    """pos [N, 3], batch [N], cell [B, 3, 3], pbc [B, 3] -> edge_index [2, E] int64, shifts [E or 0, 3] int32."""
    found = bins(pos, batch, cell, pbc, r)
    problems.report(found.problems.tolist(), pos, batch, cell, r)
    visits = (found.high - found.low + 1).prod(1)
    empty = torch.empty(0, dtype=torch.int64, device=pos.device)
    targets, keys = [empty], [empty]
    for start, stop in _parts(visits, VISITS):
        target, key, square = _edges(found, torch.arange(start, stop, device=pos.device), visits, r, loop)
        order = _sorted(target, key)
        target, key = target[order], key[order]
        if max_num_neighbors is not None:
            near = _nearest(target, square[order], max_num_neighbors)
            target, key = target[near], key[near]
        targets.append(target)
        keys.append(key)
    return _written(found, torch.cat(targets), torch.cat(keys), cell is not None)


def _parts(sizes: Tensor, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of indices whose sizes sum to `most`, or of one index where it is larger."""
    ends, start = sizes.cumsum(0), 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, before + most, right=True)))
        yield start, stop
        start = stop


def _expand(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Row i of `sizes` [n] repeated sizes[i] times: the rows, and the number of each among its own."""
    row = torch.repeat_interleave(sizes)
    return row, torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row]


def _edges(found: Bins, target: Tensor, visits: Tensor, r: float, loop: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, keys and squared distances of the edges into `target`, in no order."""
    row, place = _expand(visits[target])
    target = target[row]
    extent, count = (found.high - found.low + 1)[target], found.count[target]
    step = torch.stack([place // (extent[:, 1] * extent[:, 2]), place // extent[:, 2] % extent[:, 1],
                        place % extent[:, 2]], 1)
    where = found.low[target] + step
    image = torch.div(where, count, rounding_mode="floor")
    where = where - image * count
    number = found.first[target] + (where[:, 0] * count[:, 1] + where[:, 1]) * count[:, 2] + where[:, 2]
    begin, size = found.starts[number], found.starts[number + 1] - found.starts[number]
    home = torch.empty_like(found.order)
    home[found.order] = torch.arange(len(home), device=home.device)  # where an atom is among the candidates
    moved, still = images(image, found.lattice[found.graph[target]]), (image == 0).all(1)
    code = ((image + ZERO) << torch.tensor(BITS, device=image.device)).sum(1)
    parts = []
    for start, stop in _parts(size, CANDIDATES):
        visit, place = _expand(size[start:stop])
        visit = visit + start
        candidate, own = begin[visit] + place, home[target[visit]]
        # (x_j - x_i) + s: both directions of a pair are at the same distance to the bit
        x, y, z = ((found.x[k][candidate] - found.x[k][own]) + moved[visit, k] for k in range(3))
        square = x * x + y * y + z * z
        near = square < r * r
        if not loop:
            near &= ~(still[visit] & (candidate == own))
        near = near.nonzero()[:, 0]
        visit, candidate = visit[near], candidate[near]
        source = found.order[candidate] - found.first[target[visit]]
        parts.append((target[visit], (source << 33) + code[visit], square[near]))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _sorted(target: Tensor, key: Tensor) -> Tensor:
    """The order by target, then key."""
    order = key.argsort()
    return order[target[order].argsort(stable=True)]


def _nearest(target: Tensor, square: Tensor, most: int) -> Tensor:
    """Which of the edges, sorted by target and key, are among the `most` nearest of their target, ties by key."""
    order = square.argsort(stable=True)
    order = order[target[order].argsort(stable=True)]
    start = torch.searchsorted(target, target)  # target is sorted, so it is the same in both orders
    near = torch.empty_like(target, dtype=torch.bool)
    near[order] = torch.arange(len(target), device=target.device) - start < most
    return near


def _written(found: Bins, target: Tensor, key: Tensor, periodic: bool) -> tuple[Tensor, Tensor]:
    """edge_index [2, E] and shifts [E, 3] of sorted targets and keys."""
    source = found.first[target] + (key >> 33)
    edge_index = torch.stack([source, target])
    if not periodic:
        return edge_index, torch.empty(0, 3, dtype=torch.int32, device=key.device)
    image = (key[:, None] >> torch.tensor(BITS, device=key.device) & 2 * ZERO - 1) - ZERO
    return edge_index, (image - found.wraps[source] + found.wraps[target]).int()
