"""What a FlatDataset demands of its arrays, and the conversion of what is given to tensors and integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .batching import FlatDataset

_RESERVED = ("batch", "edge_index", "graph", "names", "num_graphs", "num_nodes", "ptr", "segments", "structure_key",
             "symmetric", "to")
_INDEX = (torch.uint8, torch.int16, torch.int32, torch.int64)  # those that torch indexes and adds
_TOGETHER = 2**22  # pairs of nodes that are looked at together
_LARGEST = 4096  # nodes of the largest graph that is looked at


def as_tensor(who: str, name: str, x: Any) -> Tensor:
    """A tensor as it is, a numpy array of numbers as a tensor; long doubles become float64."""
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, np.ndarray):
        raise ValueError(f"{who}: {name} must be a tensor or a numpy array, got {type(x).__name__}; pass torch.tensor")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{who}: {name} must be numbers, got {x.dtype}")
    wide = x.dtype.kind == "f" and x.dtype.itemsize > 8
    # A copy in the machine's byte order and without negative strides, neither of which torch takes.
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(x, dtype=np.float64 if wide else x.dtype.newbyteorder("="), order="C"))


def as_integer(who: str, name: str, x: Any, least: int) -> int:
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise ValueError(f"{who}: {name} must be an integer, got {x!r}")
    if x < least:
        raise ValueError(f"{who}: {name} must be at least {least}, got {x}")
    return int(x)


def _parts(data: FlatDataset) -> tuple[tuple[str, dict[str, Tensor], Tensor | None, int], ...]:
    return (
        ("node", data.node, data.node_offsets, int(data.node_offsets[-1])),
        ("edge", data.edge, data.edge_offsets, data.edge_index.shape[1]),
        ("graph", data.graph, None, len(data)),
    )


def check_names(data: FlatDataset) -> None:
    names = [*data.node, *data.edge, *data.graph]
    for name in names:
        if name in _RESERVED or not name.isidentifier() or names.count(name) > 1:
            raise ValueError(
                "FlatDataset: array names must be identifiers, each used once, and none of "
                f"{', '.join(_RESERVED)}, got {name!r}"
            )


def check_shapes(data: FlatDataset) -> None:
    index = data.edge_index
    if index.ndim != 2 or index.shape[0] != 2 or index.dtype not in _INDEX:
        raise ValueError(
            f"FlatDataset: edge_index must be int64 [2, E] (or uint8, int16, int32), got {index.dtype} "
            f"{list(index.shape)}"
        )
    for name, offsets in (("node_offsets", data.node_offsets), ("edge_offsets", data.edge_offsets)):
        if offsets.ndim != 1 or offsets.numel() == 0 or offsets.dtype != torch.int64:
            raise ValueError(f"FlatDataset: {name} must be int64 [G + 1], got {offsets.dtype} {list(offsets.shape)}")
        backwards = (offsets.diff() < 0).nonzero()
        if int(offsets[0]) != 0 or len(backwards):
            bad = f"a decrease at graph {int(backwards[0])}" if len(backwards) else f"{int(offsets[0])} at first"
            raise ValueError(f"FlatDataset: {name} must start at 0 and never decrease, got {bad}")
    if data.edge_offsets.numel() != data.node_offsets.numel():
        raise ValueError(
            f"FlatDataset: edge_offsets must have {data.node_offsets.numel()} entries as node_offsets has, "
            f"got {data.edge_offsets.numel()}"
        )
    if int(data.edge_offsets[-1]) != index.shape[1]:
        raise ValueError(
            f"FlatDataset: edge_offsets must end at the {index.shape[1]} edges, got {int(data.edge_offsets[-1])}"
        )
    for kind, arrays, _, rows in _parts(data):
        for name, array in arrays.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise ValueError(
                    f"FlatDataset: {kind} array {name!r} must have {rows} rows, got {list(array.shape)}; "
                    f"the offsets say how many {kind}s there are"
                )


def check_edges(data: FlatDataset) -> None:
    owner = torch.arange(len(data), device=data.edge_index.device).repeat_interleave(data.edge_offsets.diff())
    counts = data.node_offsets.diff()
    outside = ((data.edge_index < 0) | (data.edge_index >= counts[owner])).any(0)
    if bool(outside.any()):
        graph = int(owner[outside.nonzero()[0, 0]])
        raise ValueError(
            f"FlatDataset: edge_index must stay within its graph, got an edge that leaves graph {graph}, which has "
            f"{int(counts[graph])} nodes; number the nodes of each graph from 0"
        )


def check_finite(data: FlatDataset) -> None:
    for kind, arrays, offsets, _ in _parts(data):
        for name, array in arrays.items():
            if not array.is_floating_point() or bool(torch.isfinite(array).all()):
                continue
            row = (~torch.isfinite(array)).reshape(array.shape[0], -1).any(1).nonzero()[0]
            graph = int(row) if offsets is None else int(torch.searchsorted(offsets, row, right=True)) - 1
            raise ValueError(
                f"FlatDataset: {kind} array {name!r} must be finite, got NaN or infinity first in graph {graph}; "
                "repair that graph or leave it out"
            )


def symmetric_edges(data: FlatDataset) -> bool:
    """Whether the edges of each graph are sorted by target, then source, each with its reverse and none twice.

    Looks at one number for each pair of nodes, graphs with few together. Of a graph with more than 4096 nodes it says
    no.
    """
    counts, start, graphs = data.node_offsets.diff(), 0, len(data)
    if graphs and int(counts.max()) > _LARGEST:
        return False
    ends = torch.cat([counts.new_zeros(1), (counts * counts).cumsum(0)])  # of the pairs of each graph
    while start < graphs:
        stop = int(torch.searchsorted(ends, ends[start] + _TOGETHER, right=True)) - 1
        stop = min(max(stop, start + 1), graphs)
        if not _symmetric(data, start, stop, counts[start:stop], ends[start : stop + 1] - ends[start]):
            return False
        start = stop
    return True


def _symmetric(data: FlatDataset, start: int, stop: int, counts: Tensor, ends: Tensor) -> bool:
    """`symmetric_edges` of the graphs start .. stop - 1, which have `counts` nodes and whose pairs end at `ends`."""
    edges = data.edge_offsets[start : stop + 1].diff()
    size, base = (x.int().repeat_interleave(edges) for x in (counts, ends[:-1]))
    source, target = data.edge_index[:, data.edge_offsets[start] : data.edge_offsets[stop]].int()
    pair = base + target * size + source
    if bool((pair[1:] <= pair[:-1]).any()):
        return False
    there = torch.zeros(int(ends[-1]), dtype=torch.bool, device=pair.device)
    there[pair] = True
    return bool(there.index_select(0, base + source * size + target).all())
