"""Edges between the atoms that are closer than a radius, for the flat arrays of data sets."""

from __future__ import annotations

import numpy as np
import torch

from ..functional import radius_graph


def radius_edges(
    pos: np.ndarray,  # [N, 3]
    offsets: np.ndarray,  # [G + 1]
    radius: float,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of different atoms of one molecule whose distance is less than `radius`.

    Distances are computed in float64; `radius_graph` on arrays, numbered as data sets keep their edges.

    Args:
        pos: [N, 3] finite positions.
        offsets: [G + 1], molecule g owns the atoms offsets[g] .. offsets[g + 1] - 1.
        radius: in the unit of pos.
        most: edges to an atom, from the nearest ones; None for all.

    Returns:
        edge_index [2, E] int64, row 0 source, row 1 target, numbered from 0 within each molecule, sorted by molecule,
        target and source; edge_offsets [G + 1] int64.

    Raises:
        ValueError: radius is not positive and finite, a position is not finite, offsets do not fit the atoms, most is
            below 1.

    Example:
        >>> radius_edges(np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]), np.array([0, 3]), 1.5)[0]
        array([[1, 0],
               [0, 1]])
    """
    if not 0 < radius < float("inf"):
        raise ValueError(f"radius_edges: radius must be positive and finite, got {radius}")
    ptr = torch.from_numpy(np.array(offsets, dtype=np.int64))
    index = radius_graph(torch.from_numpy(np.array(pos, dtype=np.float64)), float(radius), ptr=ptr,
                         max_num_neighbors=most)
    ends = torch.searchsorted(index[1].contiguous(), ptr)
    index -= torch.repeat_interleave(ptr[:-1], ends.diff(), output_size=index.shape[1])
    return index.numpy(), ends.numpy()
