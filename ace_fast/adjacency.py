"""Neighbour lists of a graph by target and by source, whether they are the same, and how their work is shared out."""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 8192  # edges worth a chunk of their own
MOST_CHUNKS = 32


class Adjacency(NamedTuple):
    """What operators on pairs of nodes walk; `Graph.adjacency`."""

    neighbour: Tensor  # [E] int64, the source of each edge, edges sorted by target
    ptr: Tensor  # [N + 1] int64, node n receives edges ptr[n]..ptr[n + 1]
    back: Tensor  # [E] int64, the target of each edge, edges sorted by source
    back_ptr: Tensor  # [N + 1] int64
    chunks: Tensor  # [C, 4] int64: first node, last node + 1, and the nodes that their edges touch, first and last + 1
    symmetric: bool  # every edge j -> i comes with as many i -> j


@torch.compiler.disable  # the chunks are Python numbers
def adjacency(neighbour: Tensor, ptr: Tensor, back: Tensor, back_ptr: Tensor) -> Adjacency:
    """Adds the chunks and the symmetry to both lists, which are known to be right (reads from the device)."""
    with torch.inference_mode(False):
        symmetric = torch.equal(ptr, back_ptr) and (
            torch.equal(neighbour, back) or torch.equal(_keys(neighbour, ptr), _keys(back, back_ptr)))
        return Adjacency(neighbour, ptr, back, back_ptr, _chunks(neighbour, ptr), symmetric)


@torch.compiler.disable
def symmetric_adjacency(neighbour: Tensor, ptr: Tensor) -> Adjacency:
    """Of neighbour lists that are known to be the same both ways."""
    with torch.inference_mode(False):
        return Adjacency(neighbour, ptr, neighbour, ptr, _chunks(neighbour, ptr), True)


def _keys(neighbour: Tensor, ptr: Tensor) -> Tensor:
    """One number for each edge, in the order of targets and then of sources."""
    nodes = ptr.shape[0] - 1
    node = torch.repeat_interleave(torch.arange(nodes, device=ptr.device), ptr[1:] - ptr[:-1])
    return torch.sort(node * nodes + neighbour).values


def _chunks(neighbour: Tensor, ptr: Tensor) -> Tensor:
    """Consecutive nodes with about equal numbers of edges, so few chunks that together they touch at most 4 N nodes.

    Only the CPU's operators walk chunks: elsewhere all nodes are one, and nothing is read from the device.
    """
    nodes, edges = ptr.shape[0] - 1, neighbour.shape[0]
    if not nodes:
        return ptr.new_zeros(0, 4)
    if ptr.device.type != "cpu":
        return torch.tensor([[0, nodes, 0, nodes]], device=ptr.device)
    count = min(MOST_CHUNKS, 1 << max(0, (edges // CHUNK).bit_length() - 1))
    while True:
        first = torch.searchsorted(ptr, torch.arange(count) * edges // count).tolist()
        bounds = sorted({0, *(n for n in first if n < nodes), nodes})
        rows = [_chunk(neighbour, ptr, a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
        if count == 1 or sum(high - low for *_, low, high in rows) <= 4 * nodes:
            return torch.tensor(rows, device=ptr.device)
        count //= 2


def _chunk(neighbour: Tensor, ptr: Tensor, first: int, last: int) -> tuple[int, int, int, int]:
    of = neighbour[ptr[first]:ptr[last]]
    low, high = torch.stack(torch.aminmax(of)).tolist() if of.numel() else (first, first)
    return first, last, min(first, low), max(last, high + 1)
