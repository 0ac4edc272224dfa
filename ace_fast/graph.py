"""A validated graph with both sorted edge orders, built once and shared by all layers."""

import functools
import operator
from typing import NamedTuple

import torch
from torch import Tensor

from .adjacency import Adjacency, adjacency, symmetric_adjacency


class Segments(NamedTuple):
    """Which row belongs to which segment, and the rows of each segment one after the other."""

    index: Tensor  # [E] int64, the segment of each row
    order: Tensor  # [E] int64, the rows sorted by segment (stable)
    ptr: Tensor  # [N + 1] int64, segment n holds order[ptr[n]:ptr[n + 1]]


def segments(index: Tensor, num_segments: int) -> Segments:
    """Sorts `index` [E] int64, the segment of each row, into Segments.

    Raises:
        ValueError: wrong shape or dtype, or an index outside 0..num_segments-1 (a host synchronisation).
    """
    check_index("segments", "index", index, 1, "[E]")
    num_segments = _count("segments", "num_segments", num_segments)
    check_range("segments", "index", index, num_segments, "check num_segments")
    return sorted_segments(index, num_segments)


def sorted_segments(index: Tensor, num_segments: int) -> Segments:
    """`segments` of an index that is known to be right."""
    index = trainable(index).contiguous()
    with torch.inference_mode(False):
        order = torch.argsort(index, stable=True)
        ptr = torch.zeros(num_segments + 1, dtype=torch.int64, device=index.device)
        ptr[1:] = torch.cumsum(torch.bincount(index, minlength=num_segments), 0)
    return Segments(index, order, ptr)


def trainable(index: Tensor) -> Tensor:
    """`index`, or its copy where it was made under torch.inference_mode: such tensors cannot be saved for backward."""
    if not index.is_inference():
        return index
    with torch.inference_mode(False):
        return index.clone(memory_format=torch.contiguous_format)


def check_index(op: str, name: str, index: Tensor, dim: int, shape: str) -> None:
    """A Tensor of the right shape and of dtype int64."""
    if not isinstance(index, Tensor):
        raise ValueError(f"{op}: {name} must be an int64 tensor {shape}, got {type(index).__name__}; "
                         "use torch.as_tensor(...)")
    if index.dim() != dim or dim == 2 and index.shape[0] != 2:
        raise ValueError(f"{op}: {name} must be {shape}, got {list(index.shape)}")
    if index.dtype != torch.int64:
        raise ValueError(f"{op}: {name} must be int64, got {index.dtype}; use {name}.long()")


def check_range(op: str, name: str, index: Tensor, count: int | None, remedy: str) -> int:
    """All of `index` in 0..count-1, read from the device once; returns largest + 1 (0 for an empty index)."""
    if index.numel() == 0:
        return 0
    low, high = torch.stack(torch.aminmax(index)).tolist()
    if low < 0 or count is not None and high >= count:
        allowed = "not be negative" if count is None else f"lie in 0..{count - 1}"
        raise ValueError(f"{op}: {name} must {allowed}, got {low if low < 0 else high}; {remedy}")
    return high + 1


def _count(op: str, name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{op}: {name} must be a whole number, 0 or more, got {value!r}; pass an int")
    return number


def _counts(num_nodes: int | tuple[int, int]) -> tuple[int, int]:
    """Numbers of sources and of targets."""
    if isinstance(num_nodes, tuple | list):
        if len(num_nodes) != 2:
            raise ValueError("Graph: num_nodes must be an int or a pair (num_sources, num_targets), "
                             f"got {len(num_nodes)} numbers")
        return _count("Graph", "num_nodes[0]", num_nodes[0]), _count("Graph", "num_nodes[1]", num_nodes[1])
    return (_count("Graph", "num_nodes", num_nodes),) * 2


def _check_rows(edge_index: Tensor, counts: tuple[int, int]) -> None:
    """Sources and targets each in their own range, read from the device once."""
    if edge_index.shape[1] == 0:
        return
    for row, low, high, count in zip((0, 1), *torch.stack(torch.aminmax(edge_index, dim=1)).tolist(), counts,
                                     strict=True):
        if low < 0 or high >= count:
            raise ValueError(f"Graph: edge_index[{row}] must lie in 0..{count - 1}, got {low if low < 0 else high}; "
                             "num_nodes is (num_sources, num_targets)")


class Graph:
    """Directed edges of a graph (or of a batch of graphs), sorted by target and by source.

    Args:
        edge_index: [2, E] int64; row 0 the sources j, row 1 the targets i (messages go j -> i).
        num_nodes: N, or a pair (num_sources, num_targets) where sources and targets are different nodes (bipartite).

    Attributes:
        edge_index: [2, E]; num_nodes as given; num_sources, num_targets, num_edges: int.
        sources, targets: `Segments` of the edges by their source and by their target.
        degree: [num_targets] float64, number of incoming edges.
        adjacency: `Adjacency`, neighbour lists both ways and whether they are the same.

    Raises:
        ValueError: wrong type, shape or dtype, or an index outside 0..N-1 (checked once).
    """

    def __init__(self, edge_index: Tensor, num_nodes: int | tuple[int, int]):
        check_index("Graph", "edge_index", edge_index, 2, "[2, E]")
        self.num_sources, self.num_targets = _counts(num_nodes)
        if isinstance(num_nodes, tuple | list):
            self.num_nodes = self.num_sources, self.num_targets
            _check_rows(edge_index, self.num_nodes)
        else:
            self.num_nodes = self.num_sources
            check_range("Graph", "edge_index", edge_index, self.num_nodes,
                        "check num_nodes and the offsets of batched graphs")
        self.edge_index = trainable(edge_index)
        self.num_edges = edge_index.shape[1]
        self.sources = sorted_segments(self.edge_index[0], self.num_sources)
        self.targets = sorted_segments(self.edge_index[1], self.num_targets)

    @property
    def degree(self) -> Tensor:
        return (self.targets.ptr[1:] - self.targets.ptr[:-1]).double()  # [num_targets]

    @functools.cached_property
    def adjacency(self) -> Adjacency:
        """Neighbour lists of a graph on one set of nodes; made, and its symmetry found, at the first use (reads)."""
        if isinstance(self.num_nodes, tuple):
            raise ValueError(f"Graph: adjacency must be asked of a graph on one set of nodes, got {self!r}")
        source, target = self.edge_index
        return adjacency(source[self.targets.order], self.targets.ptr, target[self.sources.order], self.sources.ptr)

    def __repr__(self) -> str:
        nodes = (f"{self.num_sources} sources, {self.num_targets} targets" if isinstance(self.num_nodes, tuple)
                 else f"{self.num_nodes} nodes")
        return f"Graph({nodes}, {self.num_edges} edges)"


class SymmetricGraph(Graph):
    """The `Graph(edge_index, N)` of edges that are known to be sorted by target, then source, each with its reverse and
    none twice: nothing is checked or sorted, and `sources` and `targets` are found at their first use.

    Args:
        edge_index: [2, E] int64. ptr: [N + 1] int64, node n receives the edges ptr[n] .. ptr[n + 1] - 1.
    """

    def __init__(self, edge_index: Tensor, ptr: Tensor):
        self.num_nodes = self.num_sources = self.num_targets = ptr.shape[0] - 1
        self.edge_index, self.num_edges = trainable(edge_index), edge_index.shape[1]
        self.adjacency = symmetric_adjacency(self.edge_index[0], trainable(ptr))

    @functools.cached_property
    def sources(self) -> Segments:
        return sorted_segments(self.edge_index[0], self.num_sources)

    @functools.cached_property
    def targets(self) -> Segments:
        return sorted_segments(self.edge_index[1], self.num_targets)
