"""Inputs of vn_edge_stats, vn_edge_conv, vn_edge_select and of their gradients."""

import torch

from ..cases import Axis, Case
from ..vn_linear.cases import apart, randn, vectors
from . import reference
from .op import vn_edge_conv_bwd, vn_edge_conv_op, vn_edge_select_op, vn_edge_stats_bwd, vn_edge_stats_op

NAMES = ("p", "d", "mean", "var", "weight", "bias")


def _edges(g: torch.Generator, B: int, N: int, K: int, kind: str) -> torch.Tensor:
    """[B, N, K] neighbours: random, or as `kind` says."""
    if kind == "repeated":
        return torch.zeros(B, N, K, dtype=torch.int64)
    if kind == "isolated":  # the last nodes are nobody's neighbour
        return torch.randint(0, max(N - 2, 1), (B, N, K), generator=g)
    if kind == "outside":
        return torch.randint(-2, N + 3, (B, N, K), generator=g)
    if K <= N <= 400:  # distinct: scores of equal edges are equal only up to rounding in a matrix product
        return torch.rand(B, N, N, generator=g).argsort(-1)[..., :K].contiguous()
    return torch.randint(0, N, (B, N, K), generator=g) if N else torch.zeros(B, N, K, dtype=torch.int64)


def _inputs(sizes, kind, shared, pooled, needs=None):
    """`sizes` = (B, N, K, C); `pooled` is "mean", "max" (selected) or "select" (with a pooling weight)."""

    def make(g: torch.Generator) -> dict:
        B, N, K, C = sizes
        large = kind == "large"
        p, d = randn(g, B, N, 3, 2 * C), randn(g, B, N, 3, 2 * C)
        if large:  # both parts about the same axis, so that their sum keeps its sign too
            p, d = (x.repeat(1, 1, 1, 2) for x in apart(g, B, N, 3, C))
        p = p * (0 if kind == "zero" else 1)
        d = torch.cat([d[..., :1], d[..., C:C + 1]], -1) if shared else d
        neighbours = _edges(g, B, N, K, kind)
        mean, var = reference.stats(p, neighbours)
        inputs = {"p": p, "d": d.contiguous(), "neighbours": neighbours}
        inputs |= vectors(g, C, mean, var + (1.0 if kind == "zero" or not p.numel() else 0.0), large)
        if pooled == "select":
            inputs["pool_weight"] = randn(g, C, C)
        else:
            inputs["selected"] = torch.randint(0, K, (B, N, C), generator=g) if pooled == "max" else None
        inputs |= {"eps": 1e-5, "slope": 0.2}
        return inputs if needs is None else {"g": randn(g, B, N, 3, C)} | inputs | {"needs": needs}

    return make


def _stats(sizes, kind, backward: bool):
    def make(g: torch.Generator) -> dict:
        inputs = _inputs(sizes, kind, False, "mean")(g)
        p, neighbours, C = inputs["p"], inputs["neighbours"], sizes[3]
        if not backward:
            return {"p": p, "neighbours": neighbours}
        return {"g_mean": randn(g, C), "g_var": randn(g, C), "p": p, "neighbours": neighbours,
                "mean": inputs["mean"]}

    return make


def _cases(name, note, sizes, kind="random", shared=False, pooled="mean") -> list[Case]:
    needs = [True] * 6
    found = [
        Case(name, vn_edge_conv_op, reference.forward, _inputs(sizes, kind, shared, pooled), NAMES, note),
        Case(name, vn_edge_conv_bwd, reference.backward, _inputs(sizes, kind, shared, pooled, needs), ("g", *NAMES),
             note),
    ]
    if pooled == "max":
        found.append(Case(name, vn_edge_select_op, reference.select, _inputs(sizes, kind, shared, "select"), (), note))
    if pooled == "mean" and not shared:
        found += [
            Case(name, vn_edge_stats_op, reference.stats, _stats(sizes, kind, False), ("p",), note),
            Case(name, vn_edge_stats_bwd, reference.stats_backward, _stats(sizes, kind, True),
                 ("g_mean", "g_var", "p", "mean"), note),
        ]
    return found


SMALL = [
    *_cases("tiny", "one cloud of two points, one channel", (1, 2, 2, 1)),
    *_cases("odd", "no size is a power of two; several blocks", (3, 19, 7, 21)),
    *_cases("both_branches", "one direction for all channels", (2, 17, 5, 18), shared=True),
    *_cases("both_branches_max", "one selected neighbour a channel", (2, 11, 5, 19), pooled="max"),
    *_cases("both_branches_max_shared", "selected, one direction", (1, 9, 3, 5), shared=True, pooled="max"),
    *_cases("long_sum", "many edges into the statistics and into a node", (1, 67, 33, 3)),
    *_cases("repeated_edge", "all neighbours are node 0", (2, 6, 4, 5), "repeated"),
    *_cases("isolated_node", "two nodes are nobody's neighbour", (2, 9, 4, 3), "isolated"),
    *_cases("outside", "neighbours outside the cloud add nothing", (2, 9, 6, 5), "outside"),
    *_cases("zero_norm", "all features are zero: a cloud of identical points", (2, 7, 4, 5), "zero"),
    *_cases("empty", "no clouds", (0, 5, 3, 4)),
    *_cases("empty_cloud", "clouds without points", (2, 0, 3, 4)),
]
LARGE = [
    case
    for clouds, points in ((8, 300), (32, 300), (32, 1024))
    for channels in (21, 42, 85)
    for case in _cases(f"modelnet_{clouds}x{points}_{channels}", "VN-DGCNN's edge convolutions, k 20",
                       (clouds, points, 20, channels), "large")
] + _cases("modelnet_8x300_85_max", "max pooling", (8, 300, 20, 85), "large", pooled="max")


def _growing(name: str, note: str, clouds: int, neighbours: int, channels: int) -> Case:
    return _cases(name, note, (clouds, 300, neighbours, channels), "large")[0]


SCALING = [
    Axis("points", (300, 1200, 4800, 19200), lambda n: _growing(
        f"points_{n}", "clouds of 300 points, 20 neighbours, 16 vectors", n // 300, 20, 16)),
    Axis("edges", tuple(1200 * k for k in (5, 20, 80)), lambda n: _growing(
        f"edges_{n}", "4 clouds of 300 points, 16 vectors", 4, n // 1200, 16)),
    Axis("channels", (16, 32, 64, 128), lambda c: _growing(
        f"channels_{c}", "4 clouds of 300 points, 20 neighbours", 4, 20, c)),
]
