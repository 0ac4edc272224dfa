"""How a batch is cut for several processes, and for gradients that are accumulated."""

from __future__ import annotations

from itertools import pairwise


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
    start, stop = _cut(count, world, least)[rank]
    if start == stop:
        return [(slice(0, min(least, count)), 0.0)]
    cuts = _cut(stop - start, accumulate, least)
    return [(slice(start + a, start + b), (b - a) / count) for a, b in cuts if b > a]


def _cut(count: int, parts: int, least: int) -> list[tuple[int, int]]:
    """`parts` ranges, the last ones empty where the others would get too short."""
    used = max(1, min(parts, count // least))
    return [*pairwise(count * i // used for i in range(used + 1)), *[(count, count)] * (parts - used)]
