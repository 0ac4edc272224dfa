"""Inputs of segment_sum and of its adjoint."""

import torch

from ...graph import segments
from ..cases import DECADES, Axis, Case
from . import reference
from .op import segment_sum_bwd, segment_sum_op


def _inputs(edges: int, nodes: int, channels: int, adjoint: bool, index=None):
    def make(g: torch.Generator) -> dict:
        drawn = torch.randint(0, max(nodes, 1), (edges,), generator=g)
        index_ = drawn if index is None else torch.as_tensor(index, dtype=torch.int64)
        s = segments(index_, nodes)
        x = torch.randn(nodes if adjoint else edges, channels, generator=g, dtype=torch.float64)
        return {"g" if adjoint else "x": x, "index": s.index, "order": s.order, "ptr": s.ptr}

    return make


def _pair(name: str, note: str, edges: int, nodes: int, channels: int, index=None) -> list[Case]:
    return [
        Case(name, segment_sum_op, reference.forward, _inputs(edges, nodes, channels, False, index), ("x",), note),
        Case(name, segment_sum_bwd, reference.backward, _inputs(edges, nodes, channels, True, index), ("g",), note),
    ]


SMALL = [
    *_pair("tiny", "two nodes, two edges", 2, 2, 2),
    *_pair("odd", "no size is a power of two", 67, 13, 37),
    *_pair("both_branches", "segments longer and shorter than a block of rows, several channel blocks", 301, 5, 131),
    *_pair("long_sum", "one node receives every edge", 1031, 1, 3, [0] * 1031),
    *_pair("empty", "no edges", 0, 4, 5, []),
    *_pair("isolated_node", "nodes 0 and 3 receive nothing", 3, 4, 6, [1, 2, 1]),
    *_pair("repeated_edge", "the same edge three times", 4, 3, 6, [2, 2, 2, 0]),
]
LARGE = [
    *_pair("nbody_100", "SEGNN N-body, 100 graphs: 2000 edges, 500 nodes, 128 channels", 2000, 500, 128),
    *_pair("nbody_1000", "SEGNN N-body, 1000 graphs", 20000, 5000, 128),
    *_pair("qm9_1024", "SEGNN QM9, 1024 molecules: 48k edges, 18.4k nodes, 162 channels", 48000, 18400, 162),
]

SCALING = [
    Axis("edges", DECADES, lambda n: _pair(
        f"edges_{n}", "four edges a node, sorted by it, 4 channels", n, n // 4, 4, torch.arange(n) // 4)[0]),
    Axis("channels", (16, 64, 256, 1024), lambda c: _pair(
        f"channels_{c}", "5000 nodes, four edges each", 20000, 5000, c, torch.arange(20000) // 4)[0]),
]
