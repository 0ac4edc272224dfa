"""Edges between the atoms that are closer than a radius, for many molecules at once."""

from __future__ import annotations

import numpy as np

_PAIRS = 1 << 18  # pairs of atoms looked at together: arrays that stay in the cache


def radius_edges(
    pos: np.ndarray,  # [N, 3]
    offsets: np.ndarray,  # [G + 1]
    radius: float,
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of different atoms of one molecule whose distance is less than `radius`.

    Distances are computed in float64. Time and memory: n^2 pairs for a molecule of n atoms, memory in parts of 2^18.

    Args:
        pos: [N, 3] finite positions.
        offsets: [G + 1], molecule g owns the atoms offsets[g] .. offsets[g + 1] - 1.
        radius: in the unit of pos.

    Returns:
        edge_index [2, E] int64, row 0 source, row 1 target, numbered from 0 within each molecule, sorted by molecule,
        target and source; edge_offsets [G + 1] int64.

    Raises:
        ValueError: radius is not positive and finite.

    Example:
        >>> radius_edges(np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]), np.array([0, 3]), 1.5)[0]
        array([[1, 0],
               [0, 1]])
    """
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius_edges: radius must be positive and finite, got {radius}")
    pos, counts = np.asarray(pos, dtype=np.float64), np.diff(offsets)
    # Of each atom: the first atom of its molecule, and how many pairs it is the target of.
    first, pairs = np.repeat(offsets[:-1], counts), np.repeat(counts, counts)
    ends = np.cumsum(pairs)
    parts, start = [], 0
    while start < len(pos):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        parts.append(_close(pos, first, pairs, start, stop, radius))
        start = stop
    target, source = np.concatenate(parts, axis=1) if parts else np.zeros((2, 0), dtype=np.int64)
    found = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=len(pos)))])[offsets]
    return np.stack([source - first[target], target - first[target]]), found.astype(np.int64)


def _close(
    pos: np.ndarray, first: np.ndarray, pairs: np.ndarray, start: int, stop: int, radius: float
) -> np.ndarray:
    """[2, e] targets in start .. stop - 1 and sources, numbered over all atoms."""
    count = pairs[start:stop]
    target = np.repeat(np.arange(start, stop), count)
    begin = np.repeat(np.cumsum(count) - count, count)
    source = first[target] + np.arange(len(target)) - begin
    square = sum((pos[source, axis] - pos[target, axis]) ** 2 for axis in range(3))
    near = np.flatnonzero((square < radius * radius) & (source != target))
    return np.stack([target[near], source[near]])
