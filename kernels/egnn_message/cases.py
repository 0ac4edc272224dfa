"""Inputs of egnn_message and of its gradient."""

import torch

from ...graph import Graph
from ..cases import DECADES, Axis, Case
from . import reference
from .op import NAMES, egnn_message_bwd, egnn_message_op

TRAINING = (True, True, False, *(True,) * 8)  # edge features are constant
_SKELETON = 31  # joints: a chain with limbs; bones and pairs of bones, as many edges as MoCap's skeleton has


def _skeletons(nodes: int) -> torch.Tensor:
    """[2, E]: bones and pairs of bones, both directions, 130 edges for each 31 nodes, sorted by target."""
    parent = [max(0, n - 1 if n % 6 else n - 6) for n in range(_SKELETON)]
    bones = [(n, parent[n]) for n in range(1, _SKELETON)]
    hops = [(n, parent[parent[n]]) for n in range(2, _SKELETON) if parent[parent[n]] != parent[n]] + [
        (a, b) for a in range(1, _SKELETON) for b in range(a + 1, _SKELETON) if parent[a] == parent[b]]
    one = torch.tensor([*bones, *hops, (5, 11), (17, 23)]).t()
    one = torch.cat([one, one.flip(0)], 1)
    one = one[:, torch.argsort(one[1], stable=True)]
    shift = _SKELETON * torch.arange(nodes // _SKELETON)[None, :, None]
    return (one[:, None] + shift).flatten(1)


def _edges(g: torch.Generator, nodes: int, edges: int, kind: str) -> torch.Tensor:
    """[2, E] sources and targets in no order: random, or as `kind` says."""
    if kind == "skeletons":
        return _skeletons(nodes)
    if kind == "pair":  # there, back, and a loop
        return torch.tensor([[1, 0, 1], [0, 1, 1]])
    if kind == "repeated":
        return torch.tensor([[1], [0]]).repeat(1, edges)
    if kind == "star":  # one node receives every edge, another sends every edge
        return torch.stack([torch.full((edges,), nodes - 1), torch.zeros(edges, dtype=torch.int64)])
    last = max(nodes - 2, 1) if kind == "isolated" else max(nodes, 1)  # isolated: the last two have no edges
    return torch.randint(0, last, (2, edges), generator=g)


def _inputs(nodes, edges, widths, kind, mean, keep, bias, dim, needs):
    f, a, h, m, c = widths

    def make(g: torch.Generator) -> dict:
        normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        index = _edges(g, nodes, edges, kind)
        graph, e = Graph(index, nodes), index.shape[1]
        inputs = {"g_coordinates": normal(nodes, dim), "g_features": normal(nodes, m)} if needs is not None else {}
        x = normal(nodes, dim)
        if kind == "coincident":
            x = x[:1].expand(nodes, -1).clone()
        inputs |= {"x": x, "h": normal(nodes, f), "edge": normal(e, a) if a else None}
        for n, (out, width) in enumerate(((h, 1 + 2 * f + a), (m, h), (c, m), (1, c)), 1):
            inputs[f"weight{n}"] = normal(out, width) * width ** -0.5
            inputs[f"bias{n}"] = normal(out) if bias or n < 4 else None
        for role, s in (("source", graph.sources), ("target", graph.targets)):
            inputs |= {f"{role}_{name}": t for name, t in s._asdict().items()}
        inputs["mean"] = mean
        if needs is None:
            return inputs | {"keep": keep}
        return inputs | {"nodes": None, "pre2": None, "pre3": None, "needs": list(needs)}

    return make


def _forward(**inputs):
    return reference.forward(*inputs.values())


def _backward(**inputs):
    return reference.backward(*inputs.values())


def _cases(name: str, note: str, nodes: int, edges: int, widths: tuple[int, int, int, int, int], *,
           kind: str = "random", mean: bool = True, keep: bool = True, bias: bool = True, dim: int = 3,
           needs: tuple[bool, ...] = (True,) * 11) -> list[Case]:
    """The message and its gradient; `widths`: F, A, H, M, C."""
    needs = tuple(need and (bool(widths[1]) or n != "edge") and (bias or n != "bias4")
                  for need, n in zip(needs, NAMES, strict=True))
    arguments = (nodes, edges, widths, kind, mean, keep, bias, dim)
    grads = ("g_coordinates", "g_features")
    return [
        Case(name, egnn_message_op, _forward, _inputs(*arguments, None), NAMES, note),
        Case(name, egnn_message_bwd, _backward, _inputs(*arguments, needs), (*grads, *NAMES), note),
    ]


_ONLY = {n: tuple(name == n for name in NAMES) for n in NAMES}
_FORCES = tuple(n in ("x", "h") for n in NAMES)
SMALL = [
    *_cases("tiny", "two nodes, three edges, one of them a loop; pre-activations kept", 2, 3, (1, 1, 2, 1, 2),
            kind="pair", dim=2),
    *_cases("odd", "no size is a power of two; recomputed", 13, 67, (5, 3, 7, 11, 9), keep=False, mean=False),
    *_cases("both_branches", "kept and mean, several blocks of edges and panels of columns", 19, 151,
            (9, 2, 35, 50, 19)),
    *_cases("training", "what EGNO asks for: edge features are constant", 31, 130, (16, 2, 16, 16, 16),
            kind="skeletons", needs=TRAINING),
    *_cases("forces", "only positions and features ask; no edge features, no last bias", 8, 21, (4, 0, 8, 8, 8),
            bias=False, needs=_FORCES),
    *_cases("weight3_only", "nothing before the coordinate network asks", 6, 20, (3, 1, 4, 5, 6), keep=False,
            needs=_ONLY["weight3"]),
    *_cases("weight2_only", "nothing before the second layer asks", 6, 20, (3, 1, 4, 5, 6), keep=False,
            needs=_ONLY["weight2"]),
    *_cases("edge_only", "the edge features alone ask; a plane instead of space", 6, 20, (3, 4, 4, 5, 6), dim=2,
            needs=_ONLY["edge"]),
    *_cases("coincident", "all nodes at one place", 5, 14, (3, 1, 4, 4, 4), kind="coincident"),
    *_cases("long_sum", "one node receives every edge, one sends every edge", 3, 1031, (2, 1, 4, 4, 4), kind="star"),
    *_cases("empty", "no edges: zeros, and zero gradients", 4, 0, (3, 2, 4, 4, 4)),
    *_cases("no_nodes", "neither nodes nor edges", 0, 0, (3, 2, 4, 4, 4)),
    *_cases("isolated_node", "the last two nodes have no edges", 9, 14, (3, 1, 4, 4, 4), kind="isolated"),
    *_cases("repeated_edge", "the same edge again and again", 3, 5, (3, 1, 4, 4, 4), kind="repeated", keep=False),
]
_EGNO = (128, 2, 128, 128, 128)
LARGE = [
    *_cases("mocap_12", "EGNO, 12 samples of 5 frames: 1860 nodes, 7800 edges", 1860, 7800, _EGNO, kind="skeletons",
            needs=TRAINING),
    *_cases("mocap_12_recompute", "the same with nothing of edge size kept", 1860, 7800, _EGNO, kind="skeletons",
            keep=False, needs=TRAINING),
    *_cases("mocap_128", "EGNO, 128 samples", 19840, 83200, _EGNO, kind="skeletons", needs=TRAINING),
    *_cases("nbody_100", "EGNN N-body, 100 systems: 500 nodes, 2000 edges", 500, 2000, (64, 2, 64, 64, 64),
            mean=False, needs=TRAINING),
]


def _growing(name: str, note: str, edges: int, widths: tuple[int, int, int, int, int], kind: str) -> Case:
    nodes = _SKELETON * (edges // 130) if kind == "skeletons" else edges // 4
    return _cases(name, note, nodes, edges, widths, kind=kind, keep=False)[0]


SCALING = [
    Axis("edges", tuple(130 * n // 125 for n in DECADES), lambda n: _growing(
        f"edges_{n}", "skeletons, 4 channels", n, (4, 0, 4, 4, 4), "skeletons")),
    Axis("channels", (16, 32, 64, 128, 256), lambda c: _growing(
        f"channels_{c}", "skeletons, 1040 edges", 1040, (c, 2, c, c, c), "skeletons"), 2),
]
