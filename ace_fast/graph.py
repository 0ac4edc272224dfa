"""A validated graph with both sorted edge orders, built once and shared by all layers."""

from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """Which row belongs to which segment, and the rows of each segment one after the other."""

    index: Tensor  # [E] int64, the segment of each row
    order: Tensor  # [E] int64, the rows sorted by segment (stable)
    ptr: Tensor  # [N + 1] int64, segment n holds order[ptr[n]:ptr[n + 1]]


def segments(index: Tensor, num_segments: int) -> Segments:
    """Sorts `index` [E] (values 0..num_segments-1, not checked) into Segments."""
    index = index.contiguous()
    order = torch.argsort(index, stable=True)
    ptr = torch.zeros(num_segments + 1, dtype=torch.int64, device=index.device)
    ptr[1:] = torch.cumsum(torch.bincount(index, minlength=num_segments), 0)
    return Segments(index, order, ptr)


class Graph:
    """Directed edges of a graph (or of a batch of graphs), sorted by target and by source.

    Args:
        edge_index: [2, E] int64; row 0 the sources j, row 1 the targets i (messages go j -> i).
        num_nodes: N.

    Attributes:
        edge_index: [2, E]; num_nodes, num_edges: int.
        sources, targets: `Segments` of the edges by their source and by their target.
        degree: [N] float64, number of incoming edges.

    Raises:
        ValueError: wrong shape or dtype, or an index outside 0..N-1 (the only synchronisation).
    """

    def __init__(self, edge_index: Tensor, num_nodes: int):
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"Graph: edge_index must be [2, E], got {list(edge_index.shape)}")
        if edge_index.dtype != torch.int64:
            raise ValueError(f"Graph: edge_index must be int64, got {edge_index.dtype}; use edge_index.long()")
        if edge_index.shape[1]:
            low, high = (int(v) for v in torch.aminmax(edge_index))
            if low < 0 or high >= num_nodes:
                raise ValueError(
                    f"Graph: edge_index must lie in 0..{num_nodes - 1}, got {low if low < 0 else high}; "
                    "check num_nodes and the offsets of batched graphs"
                )
        self.edge_index = edge_index
        self.num_nodes = num_nodes
        self.num_edges = edge_index.shape[1]
        self.sources = segments(edge_index[0], num_nodes)
        self.targets = segments(edge_index[1], num_nodes)

    @property
    def degree(self) -> Tensor:
        return (self.targets.ptr[1:] - self.targets.ptr[:-1]).double()  # [N]

    def __repr__(self) -> str:
        return f"Graph({self.num_nodes} nodes, {self.num_edges} edges)"
