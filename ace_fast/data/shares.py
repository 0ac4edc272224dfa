"""How a batch is cut for several processes, and for gradients that are accumulated."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def shares(
    count: int, rank: int = 0, world: int = 1, accumulate: int = 1, least: int = 1
) -> list[tuple[slice, float]]:
    """The parts of a batch of `count` samples that process `rank` of `world` takes, with their shares of the whole.

    Parts are runs of nearly equal length with `least` samples or more, so that a short batch is cut less often. Where
    nothing is left for a process it takes the first samples at weight 0: it goes through the same motions.

    Example:
        >>> shares(7, rank=1, world=2, accumulate=2)
        [(slice(3, 5, None), 0.2857142857142857), (slice(5, 7, None), 0.2857142857142857)]
    """
    parts = _parts(*_cut(count, world, least)[rank], accumulate, least)
    if not parts:
        return [(slice(0, min(least, count)), 0.0)]
    return [(slice(start, stop), (stop - start) / count) for start, stop in parts]


def dealt(sizes: Tensor, world: int = 1, accumulate: int = 1, least: int = 1) -> Tensor:
    """[G] the order in which samples of `sizes` [G] (work, on the host) make all `shares` of a batch nearly equal work.

    By size they are dealt to the parts of all processes, back and forth; within a part their order stays. Samples of
    one size all stay where they are.

    Example:
        >>> dealt(torch.tensor([9, 8, 2, 1]), world=2)
        tensor([0, 3, 1, 2])
    """
    count = len(sizes)
    parts = [part for cut in _cut(count, world, least) for part in _parts(*cut, accumulate, least)]
    if len(parts) < 2 or bool((sizes == sizes[0]).all()):
        return torch.arange(count)
    length = torch.tensor([stop - start for start, stop in parts])
    part = torch.arange(len(parts)).expand(int(length.max()), -1).clone()  # [rounds, parts], whose turn it is
    part[1::2] = part[1::2].flip(1)
    part = part[torch.arange(len(part))[:, None] < length[part]]  # of the samples by size
    owner = torch.empty(count, dtype=torch.int64)
    owner[sizes.argsort(descending=True, stable=True)] = part
    return owner.argsort(stable=True)


def _parts(start: int, stop: int, accumulate: int, least: int) -> list[tuple[int, int]]:
    return [(start + a, start + b) for a, b in _cut(stop - start, accumulate, least) if b > a]


def _cut(count: int, parts: int, least: int) -> list[tuple[int, int]]:
    """`parts` ranges, the last ones empty where the others would get too short."""
    used = max(1, min(parts, count // least))
    return [*pairwise(count * i // used for i in range(used + 1)), *[(count, count)] * (parts - used)]
