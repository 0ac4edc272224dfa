"""Inputs of cfconv, of spline_conv and of their gradients."""

import torch

from ...graph import Graph
from ..cases import DECADES, Axis, Case
from . import reference
from .basis import KINDS, bessel_basis, expnorm_basis, gaussian_basis
from .op import (
    NETWORK,
    SPLINE,
    cfconv_bwd,
    cfconv_bwd_bwd,
    cfconv_op,
    spline_conv_bwd,
    spline_conv_bwd_bwd,
    spline_conv_op,
)

CUTOFF = 4.0
DENSITY = {"beads": 1 / 130, "atoms": 0.1}  # in a ball, 1/Å^3: one bead an amino acid, or all atoms
_CONV = (cfconv_op, cfconv_bwd, cfconv_bwd_bwd)
_SPLINE = (spline_conv_op, spline_conv_bwd, spline_conv_bwd_bwd)


def randn(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def molecules(count: int, atoms: int) -> torch.Tensor:
    """[2, E]: all ordered pairs of different atoms of each molecule."""
    i, j = torch.meshgrid(torch.arange(atoms), torch.arange(atoms), indexing="ij")
    one = torch.stack([j[i != j], i[i != j]])
    return (one[:, None] + torch.arange(count)[:, None] * atoms).flatten(1)


def _directed(nodes: int, edges: int, kind: str, g: torch.Generator) -> torch.Tensor:
    """[2, E] edges that do not come both ways."""
    found = torch.randint(0, max(nodes, 1), (2, edges), generator=g)
    if kind == "sink":
        found[1] = 0
    if kind == "isolated":  # nodes 0 and the last have no edges
        found = torch.randint(1, nodes - 1, (2, edges), generator=g)
    if kind == "repeated":
        found = found[:, :1].expand(2, edges)
    return found


def _positions(g: torch.Generator, nodes: int, kind: str) -> torch.Tensor:
    pos = 1.3 * randn(g, nodes, 3)
    if kind == "coincident":
        pos[1], pos[3] = pos[0], pos[2]
    if kind == "beyond":
        pos = pos + 10 * torch.arange(nodes, dtype=torch.float64)[:, None]
    return pos


def _balls(count: int, atoms: int, density: float, cutoff: float, g: torch.Generator):
    """Positions and edges within the cutoff of `count` balls of evenly spread atoms."""
    way = randn(g, count, atoms, 3)
    share = torch.rand(count, atoms, 1, generator=g, dtype=torch.float64)
    pos = way / way.norm(dim=2, keepdim=True) * (share * 3 * atoms / (4 * torch.pi * density)) ** (1 / 3)
    ball, i, j = ((torch.cdist(pos, pos) < cutoff) & ~torch.eye(atoms, dtype=torch.bool)).nonzero().unbind(1)
    return pos.flatten(0, 1), torch.stack([j, i]) + ball * atoms


def graph_inputs(sizes, kind: str, cutoff: float, g: torch.Generator) -> tuple[dict, dict]:
    """x and pos; the graph's lists. `sizes` = (molecules, atoms, F) or (0, nodes, F, edges) for directed edges."""
    count, atoms, channels, *edges = sizes
    nodes = atoms * max(count, 1)
    if kind in DENSITY:
        pos, edge_index = _balls(count, atoms, DENSITY[kind], cutoff, g)
        return {"x": randn(g, nodes, channels), "pos": pos}, Graph(edge_index, nodes).adjacency._asdict()
    edge_index = _directed(nodes, edges[0], kind, g) if edges else molecules(count, atoms)
    graph = Graph(edge_index, nodes)
    pos = _positions(g, nodes, kind)
    return {"x": randn(g, nodes, channels), "pos": pos}, graph.adjacency._asdict()


def _with_gradients(inputs: dict, order: int, g: torch.Generator) -> dict:
    """Of the operator (order 0), its gradient, the gradient of that."""
    if order == 0:
        return inputs
    x, pos = inputs["x"], inputs["pos"]
    leaves = len(SPLINE if "table" in inputs else NETWORK)
    front = {"g": randn(g, *x.shape)}
    if order == 2:
        front = {"c_x": randn(g, *x.shape), "c_pos": randn(g, *pos.shape)} | front
    return front | inputs | {"needs": [True] * (leaves + order - 1)}


def _network(sizes, kind, basis, hidden, count, activation, order, cutoff):
    def make(g: torch.Generator) -> dict:
        nodes, graph = graph_inputs(sizes, kind, cutoff, g)
        options = {"dtype": torch.float64}
        of = {"gaussian": gaussian_basis, "bessel": bessel_basis, "expnorm": expnorm_basis}[basis](cutoff, count,
                                                                                                   **options)
        F = sizes[2]
        inputs = nodes | {
            "weight1": randn(g, hidden, count) / count**0.5, "bias1": randn(g, hidden),
            "weight2": randn(g, F, hidden) / hidden**0.5, "bias2": 0.3 * randn(g, F),
            "centre": of.centre * (1 + 0.02 * randn(g, count)), "scale": of.scale * (1 + 0.02 * randn(g, count)),
        } | graph | {"basis": KINDS.index(basis), "activation": activation, "alpha": of.alpha, "cutoff": cutoff}
        return _with_gradients(inputs, order, g)

    return make


def _spline(sizes, kind, knots, order, cutoff):
    def make(g: torch.Generator) -> dict:
        nodes, graph = graph_inputs(sizes, kind, cutoff, g)
        slopes = (knots - 1) / cutoff
        table = torch.stack([randn(g, knots, sizes[2]), slopes * randn(g, knots, sizes[2])], 1)
        return _with_gradients(nodes | {"table": table} | graph | {"cutoff": cutoff}, order, g)

    return make


def _cases(name, note, sizes, kind="", basis="gaussian", hidden=9, count=7, activation=0, knots=6, orders=2,
           families="ns", cutoff=CUTOFF) -> list[Case]:
    """Of both families of filters, for `orders` of operator, gradient and the gradient of that."""
    found = []
    for order in range(orders):
        front = (("g",) if order else ()) if order < 2 else ("c_x", "c_pos", "g")
        plain = ("forward", "backward", "second")[order]
        named = lambda of, plain=plain: lambda **a: getattr(of, plain)(*a.values())  # noqa: E731
        if "n" in families:
            make = _network(sizes, kind, basis, hidden, count, activation, order, cutoff)
            found.append(Case(name, _CONV[order], named(reference.network), make, (*front, *NETWORK), note))
        if "s" in families:
            make = _spline(sizes, kind, knots, order, cutoff)
            found.append(Case(name, _SPLINE[order], named(reference.spline), make, (*front, *SPLINE), note))
    return found


SMALL = [
    *_cases("tiny", "one pair of nodes, one channel", (1, 2, 1), hidden=2, count=2, knots=2, orders=3),
    *_cases("odd", "directed edges, no size is a power of two", (0, 7, 19, 41), hidden=11, count=5),
    *_cases("both_branches", "pairs that stand for two edges, two blocks of them, the other activation",
            (1, 13, 17), basis="expnorm", hidden=16, count=6, activation=1, knots=9),
    *_cases("bessel", "sines; whole vectors of channels", (3, 4, 16), basis="bessel", hidden=5, families="n"),
    *_cases("long_sum", "one node receives every edge", (0, 15, 4, 151), "sink"),
    *_cases("isolated_node", "two nodes have no edge", (0, 7, 5, 9), "isolated"),
    *_cases("repeated_edge", "the same edge five times", (0, 5, 7, 5), "repeated"),
    *_cases("coincident", "nodes at the same place", (1, 5, 6), "coincident", basis="bessel"),
    *_cases("beyond", "all pairs are beyond the cutoff", (1, 4, 5), "beyond"),
    *_cases("empty", "no edges", (0, 3, 4, 0)),
    *_cases("empty_graph", "no nodes", (0, 0, 4, 0)),
]
_QM9 = {"basis": "gaussian", "count": 50, "knots": 1024, "cutoff": 10.0}
LARGE = [
    *_cases("qm9_256", "SchNet, 256 molecules of 18 atoms, 64 filters", (256, 18, 64), hidden=64, orders=1, **_QM9),
    *_cases("qm9_256_128", "SchNet with 128 filters", (256, 18, 128), hidden=128, orders=1, **_QM9),
    *_cases("qm9_100", "SchNet, 100 molecules; what a loss of forces differentiates too", (100, 18, 64), hidden=64,
            orders=3, **_QM9),
    *_cases("qm9_1024", "SchNet, 1024 molecules", (1024, 18, 64), hidden=64, orders=1, **_QM9),
    *_cases("flashschnet_16", "FlashSchNet's protein of 269 beads with its 55 edges each; 16 of its 128 replicas",
            (16, 269, 128), "beads", hidden=128, orders=1, **_QM9 | {"cutoff": 14.0}),
    *_cases("nnpops_1000", "NNPOps' width for one molecule, here of 1000 atoms", (1, 1000, 128), "atoms", hidden=128,
            orders=1, **_QM9),
]


def _growing(name: str, note: str, edges: int, channels: int, family: str) -> Case:
    return _cases(name, note, (edges // 90, 10, channels), hidden=channels, count=16, knots=64, orders=1,
                  families=family, basis="gaussian")[0]


_EDGES = tuple(90 * (n // 90) for n in DECADES)
SCALING = [
    Axis("edges", _EDGES, lambda n: _growing(f"edges_{n}", "molecules of ten atoms, 4 filters", n, 4, "n")),
    Axis("edges", _EDGES, lambda n: _growing(f"edges_{n}", "molecules of ten atoms, 4 filters", n, 4, "s")),
    Axis("channels", (16, 32, 64, 128, 256), lambda c: _growing(
        f"channels_{c}", "1800 edges, as many hidden units as filters", 1800, c, "n"), 2),
    Axis("channels", (16, 64, 256, 1024), lambda c: _growing(f"channels_{c}", "1800 edges", 1800, c, "s")),
]
