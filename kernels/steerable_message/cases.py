"""Inputs of steerable_message and of its gradient."""

import torch
from e3nn import o3

from ...graph import Graph
from ..cases import DECADES, Axis, Case
from ..tensor_product.cases import degrees, gate_input, gate_table, table
from ..tensor_product.table import ProductTable, unpack
from . import cost, reference
from .op import NAMES, steerable_message_bwd, steerable_message_op

TRAINING = (True, False, False, True, True, True, True)  # positions are constant, and so are the attributes


def _edges(g: torch.Generator, nodes: int, edges: int, kind: str) -> torch.Tensor:
    """[2, E] sources and targets in no order: random, or as `kind` says."""
    if kind == "bodies":  # complete graphs of five nodes
        target, source = (~torch.eye(5, dtype=torch.bool)).nonzero().unbind(1)
        shift = 5 * torch.arange(nodes // 5)[:, None]
        return torch.stack([(source + shift).flatten(), (target + shift).flatten()])
    if kind == "molecules":  # chains with branches: neighbours in the list, most of them twice bound
        target = torch.arange(edges) * nodes // edges
        return torch.stack([(target + torch.randint(1, 9, (edges,), generator=g)) % nodes, target])
    if kind == "repeated":
        return torch.tensor([[1], [0]]).repeat(1, edges)
    if kind == "star":  # one node receives every edge, another sends every edge
        return torch.stack([torch.full((edges,), nodes - 1), torch.zeros(edges, dtype=torch.int64)])
    last = max(nodes - 2, 1) if kind == "isolated" else max(nodes, 1)  # isolated: the last two have no edges
    return torch.randint(0, last, (2, edges), generator=g)


def _fan_in(t: ProductTable) -> int:
    """Terms in the largest output, so that outputs of unit-normal inputs have about unit size."""
    fan = {}
    for p in unpack(t.paths):
        fan[p.o3] = fan.get(p.o3, 0) + p.U * p.V * p.d3
    return max(fan.values(), default=1) or 1


def _product(n: int, t: ProductTable, gate, cg) -> dict:
    layout, *gains = gate_table(gate) if gate else ((), 1.0, 1.0)
    values = (*cg, t.dims, t.paths, t.bias_slots, layout, *gains)
    names = ("cg_index", "cg_value", "dims", "paths", "bias_slots", "layout", "scalar_gain", "gate_gain")
    return {f"{name}{n}": list(v) if isinstance(v, tuple) else v for name, v in zip(names, values, strict=True)}


def _inputs(nodes, edges, hidden, attr, extra, kind, factor, gated, bias, out, needs):
    def make(g: torch.Generator) -> dict:
        normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        irreps, more = o3.Irreps(hidden), o3.Irreps(extra or "")
        in1 = str((irreps + irreps + more).simplify())
        t1 = table(in1, attr, gate_input(hidden) if gated else hidden)
        t2 = table(hidden, attr, gate_input(out) if gated else out)
        index = _edges(g, nodes, edges, kind)
        graph, e = Graph(index, nodes), index.shape[1]
        inputs = {"g": normal(nodes, o3.Irreps(out).dim)} if needs is not None else {}
        inputs |= {"h": normal(nodes, irreps.dim), "extra": normal(e, more.dim) if extra else None,
                   "attr": normal(e, o3.Irreps(attr).dim)}
        for n, t in ((1, t1), (2, t2)):
            inputs[f"weight{n}"] = normal(t.weight_numel) * _fan_in(t) ** -0.5
            inputs[f"bias{n}"] = normal(t.bias_numel) if bias else None
        for role, s in (("source", graph.sources), ("target", graph.targets)):
            inputs |= {f"{role}_{name}": x for name, x in s._asdict().items()}
        for n, t, gate in ((1, t1, hidden), (2, t2, out)):
            inputs |= _product(n, t, gate if gated else None, [x.clone() for x in t.on("cpu")])
        pays = cost.factor_pays(t1.paths, irreps.dim, nodes, e)
        inputs["factor"] = pays if factor == "auto" else factor
        return inputs if needs is None else inputs | {"needs": list(needs)}

    return make


def _forward(**inputs):
    return reference.forward(*inputs.values())


def _backward(**inputs):
    return reference.backward(*inputs.values())


def _cases(name: str, note: str, nodes: int, edges: int, hidden: str, attr: str, extra: str | None, *,
           kind: str = "random", factor: bool | str = False, gated: bool = True, bias: bool = True,
           out: str | None = None, needs: tuple[bool, ...] = (True,) * 7) -> list[Case]:
    """The message and its gradient; `out`: irreps of the second product, the first's where None."""
    if not (extra and bias):
        needs = tuple(need and (extra or n != "extra") and (bias or "bias" not in n)
                      for need, n in zip(needs, NAMES, strict=True))
    arguments = (nodes, edges, hidden, attr, extra, kind, factor, gated, bias, out or hidden)
    return [
        Case(name, steerable_message_op, _forward, _inputs(*arguments, None), NAMES, note),
        Case(name, steerable_message_bwd, _backward, _inputs(*arguments, tuple(map(bool, needs))), ("g", *NAMES), note),
    ]


def _both(name: str, note: str, *sizes, **options) -> list[Case]:
    """With the first weights per edge and per node."""
    return [*_cases(name, note, *sizes, **options),
            *_cases(f"{name}_factored", f"{note}; weights of the first product at the nodes", *sizes,
                    factor=True, **options)]


_VECTORS = "1x0e+1x1o"
SMALL = [
    *_both("tiny", "two nodes, two edges, one channel", 2, 2, "1x0e", "1x1o+1x0e", "1x0e"),
    *_both("odd", "no size is a power of two; several blocks of edges", 13, 67, "5x0e+3x1o", _VECTORS, "2x0e"),
    *_cases("both_branches", "2l+1 grows, falls and stays; V > 1; equal slices of h; bare products", 9, 53,
            "3x0e+2x1o+1x0e+1x2e", "1x0e+2x1o", "1x1o+1x0e", gated=False, factor=True),
    *_both("both_branches_gated", "l 2 through both gates, attributes to l 3", 11, 29, "3x0e+2x1o+2x2e",
           "1x0e+1x1o+1x2e+1x3o", "1x0e", out="2x0e+3x1o"),
    *_both("merged", "h_i, h_j and extra lie in one slice of the first product; a gate without gated part", 7, 31,
           "5x0e", "1x0e", "2x0e"),
    *_cases("many_channels", "more channels than one vector or tile; many nodes a tile", 70, 130, "35x0e+17x1o",
            _VECTORS, "1x0e", factor=True),
    *_cases("many_columns", "more columns of weights than a tile of a GPU block, more channels than its warps",
            5, 18, "100x0e", "2x0e", "1x0e"),
    *_cases("no_extra", "neither extra features nor biases; h, attr and weights ask", 8, 21, "2x0e+2x1o", _VECTORS,
            None, bias=False),
    *_both("training", "what training asks for: attributes and extra features are constant", 10, 57, "4x0e+3x1o",
           _VECTORS, "2x0e", needs=TRAINING),
    *_cases("weights_only", "nothing but the second weight asks", 6, 20, "2x0e+2x1o", _VECTORS, "1x0e", factor=True,
            needs=(False, False, False, False, False, True, False)),
    *_cases("high_degree", "9 components to 5 and back", 4, 7, "1x0e+1x4e", "1x2e+1x4e", None, gated=False, factor=True,
            out="1x2e"),
    *_both("long_sum", "one node receives every edge, one sends every edge", 3, 1031, "1x0e+1x1o", "1x1o", "1x0e",
           kind="star"),
    *_both("empty", "no edges: zeros, and zero gradients", 4, 0, "2x0e+1x1o", _VECTORS, "1x0e"),
    *_cases("no_nodes", "neither nodes nor edges", 0, 0, "2x0e+1x1o", _VECTORS, "1x0e"),
    *_cases("isolated_node", "the last two nodes have no edges", 9, 14, "2x0e+1x1o", _VECTORS, "1x0e", kind="isolated",
            factor=True),
    *_cases("repeated_edge", "the same edge again and again", 3, 5, "2x0e+1x1o", _VECTORS, "1x0e", kind="repeated",
            factor=True),
]
_QM9 = ("18x0e+18x1o+18x2e", "1x0e+1x1o+1x2e+1x3o", "1x0e")
LARGE = [
    *_cases("nbody_100", "SEGNN N-body, 100 graphs: 500 nodes, 2000 edges", 500, 2000, "32x0e+32x1o", _VECTORS, "2x0e",
            kind="bodies", factor="auto", needs=TRAINING),
    *_cases("nbody_1000", "SEGNN N-body, 1000 graphs", 5000, 20000, "32x0e+32x1o", _VECTORS, "2x0e", kind="bodies",
            factor="auto", needs=TRAINING),
    *_cases("qm9_128", "SEGNN QM9, 128 molecules", 2315, 6088, *_QM9, kind="molecules", factor="auto", needs=TRAINING),
    *_cases("qm9_1024", "SEGNN QM9, 1024 molecules", 18400, 48000, *_QM9, kind="molecules", factor="auto",
            needs=TRAINING),
]


def _growing(name: str, note: str, edges: int, hidden: str, attr: str = _VECTORS) -> Case:
    return _cases(name, note, edges // 4, edges, hidden, attr, "1x0e", kind="molecules", factor="auto")[0]


SCALING = [
    Axis("edges", DECADES, lambda n: _growing(f"edges_{n}", "four edges a node, 2x0e+2x1o", n, "2x0e+2x1o")),
    Axis("channels", (8, 16, 32, 64, 128), lambda c: _growing(
        f"channels_{c}", "1000 edges, scalars and vectors", 1000, f"{c}x0e+{c}x1o"), 2),
    Axis("degree", (1, 2, 3, 4), lambda l: _growing(
        f"degree_{l}", "1000 edges, 8 channels of every degree", 1000, degrees(l, 8), degrees(l)), None),
]
