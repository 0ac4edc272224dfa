"""Inputs of tensor_product_conv and of its gradient."""

from collections.abc import Callable

import torch
from e3nn import o3

from ...graph import Graph
from ..cases import DECADES, Axis, Case
from ..tensor_product.cases import MODE_IRREPS, channel_table, degrees, mode_table, table
from ..tensor_product.table import ProductTable
from . import reference
from .op import tensor_product_conv_bwd, tensor_product_conv_op

NAMES = ("x1", "x2", "weight")


def uvu_instructions(in1: str, in2: str, out: str) -> tuple[o3.Irreps, list[tuple]]:
    """NequIP's and MACE's convolution: every path to an irrep of `out` with its own slice, sorted by irrep."""
    a, b, kept = o3.Irreps(in1), o3.Irreps(in2), {ir for _, ir in o3.Irreps(out)}
    made = [(i, j, ir, mul) for i, (mul, ir_1) in enumerate(a) for j, (_, ir_2) in enumerate(b)
            for ir in ir_1 * ir_2 if ir in kept]
    made.sort(key=lambda path: path[2])
    instructions = [(i, j, k, "uvu", True, ir.dim**0.5) for k, (i, j, ir, _) in enumerate(made)]
    return o3.Irreps([(mul, ir) for _, _, ir, mul in made]), instructions


def uvu_table(in1: str, in2: str, out: str, layout: str = "mul_ir") -> ProductTable:
    """`uvu_instructions` as a table."""
    slices, instructions = uvu_instructions(in1, in2, out)
    return ProductTable(in1, in2, slices, instructions, layout=layout)


def lattice(nodes: int, degree: int) -> torch.Tensor:
    """Edges of a ring where each node has `degree` neighbours, sorted by target, as neighbour lists come."""
    shift = torch.arange(1, degree + 1) - degree // 2
    shift = torch.where(shift <= 0, shift - 1, shift)
    target = torch.arange(nodes).repeat_interleave(degree)
    return torch.stack([(target + shift.repeat(nodes)) % nodes, target])


def _random(sources: int, targets: int, edges: int) -> Callable:
    def make(g: torch.Generator) -> torch.Tensor:
        return torch.stack([torch.randint(0, n, (edges,), generator=g) for n in (sources, targets)])

    return make


def _inputs(edges: Callable, sources: int, targets: int, make_table: Callable, shared: bool, needs=None) -> Callable:
    def make(g: torch.Generator) -> dict:
        normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        t = make_table()
        graph = Graph(edges(g), (sources, targets))
        e, per_node = graph.num_edges, max(1, graph.num_edges // max(1, targets))
        found = {
            "x1": normal(sources, t.dims[0]), "x2": normal(e, t.dims[1]),
            "weight": normal(*(() if shared else (e,)), t.weight_numel) * per_node**-0.5,
        }
        for name, segments in (("source", graph.sources), ("target", graph.targets)):
            found |= {name: segments.index.clone(), f"{name}_order": segments.order, f"{name}_ptr": segments.ptr}
        cg_index, cg_value = t.on("cpu")
        found |= {"cg_index": cg_index.clone(), "cg_value": cg_value.clone(), "dims": list(t.dims),
                  "paths": list(t.paths), "atomic": False}
        return found if needs is None else {"g": normal(targets, t.dims[2])} | found | {"needs": list(needs)}

    return make


def _cases(name: str, note: str, nodes: int | tuple[int, int], edges: Callable | list, make_table: Callable, *,
           shared: bool = False, needs: tuple[bool, ...] = (True, True, True)) -> list[Case]:
    """The convolution and its gradient; `edges` are [sources, targets] or made from a generator."""
    sources, targets = nodes if isinstance(nodes, tuple) else (nodes, nodes)
    make = edges if callable(edges) else lambda g: torch.tensor(edges, dtype=torch.int64).reshape(2, -1)
    arguments = (make, sources, targets, make_table, shared)
    return [
        Case(name, tensor_product_conv_op, reference.forward, _inputs(*arguments), NAMES, note),
        Case(name, tensor_product_conv_bwd, reference.backward, _inputs(*arguments, needs), ("g", *NAMES), note),
    ]


def _uvu(*irreps: str, layout: str = "mul_ir") -> Callable:
    return lambda: uvu_table(*irreps, layout=layout)


def _mode(*modes: str, weights: str = "all", layout: str = "mul_ir") -> Callable:
    return lambda: mode_table(modes, weights, layout)


_VECTORS = "1x0e+1x1o"
_WIDE = ("20x0e+17x1o", _VECTORS, "1x0e+1x1o+1x1e")
SMALL = [
    *_cases("tiny", "a scalar product, for the numerical derivatives; a target with two edges and one without", 3,
            [[0, 1, 2], [1, 1, 0]], _uvu("1x1o", "1x1o", "1x0e")),
    *_cases("odd", "no multiplicity is a power of two, edges beyond one block", 11, _random(11, 11, 67),
            _uvu("5x0e+3x1o", _VECTORS, "1x0e+1x1o+1x1e")),
    *_cases("both_branches", "channels beyond one vector, not whole vectors; several slices of in2", 7,
            _random(7, 7, 53), _uvu("20x0e+17x1o+9x2e", "1x0e+1x1o+1x2e", "1x0e+1x1o+1x1e+1x2e")),
    *_cases("wide", "whole vectors of channels, every degree up to 3 with every other", 5, _random(5, 5, 21),
            _uvu("32x0e+32x1o+32x2e+32x3o", "1x0e+1x1o+1x2e+1x3o", "1x0e+1x1o+1x2e+1x3o+1x1e+1x2o")),
    *_cases("wide_ir_mul", "the same with the channels of a component together", 5, _random(5, 5, 21),
            _uvu("32x0e+32x1o+16x2e", "1x0e+1x1o+1x2e", "1x0e+1x1o+1x2e+1x1e", layout="ir_mul")),
    *_cases("wide_shared", "whole vectors of channels, one weight for all edges", 6, _random(6, 6, 90),
            _uvu("32x0e+16x1o", _VECTORS, "1x0e+1x1o+1x1e"), shared=True),
    *_cases("long_sum", "one node receives every edge, sums over many blocks", 1,
            [[0] * 1031, [0] * 1031], _uvu("2x0e+1x1o", _VECTORS, "1x0e+1x1o")),
    *_cases("long_sum_wide", "the same in whole vectors of channels, from many sources", (3, 2),
            lambda g: torch.stack([torch.arange(701) % 3, (torch.arange(701) > 690).long()]), _uvu(*_WIDE)),
    *_cases("long_sum_shared", "gradients of shared weights over 1100 edges", 40, _random(40, 40, 1100),
            _uvu("3x0e+2x1o", _VECTORS, "1x0e+1x1o"), shared=True),
    *_cases("empty", "no edges: every sum is zero", 4, [[], []], _uvu(*_WIDE)),
    *_cases("empty_shared", "no edges: the gradient of the shared weights is zero", 4, [[], []],
            _mode("uvw"), shared=True),
    *_cases("no_nodes", "neither nodes nor edges", 0, [[], []], _uvu("3x0e", _VECTORS, "1x0e+1x1o")),
    *_cases("isolated_node", "nodes 0 and 3 receive nothing, 2 and 3 send nothing", 4, [[0, 1, 1], [1, 2, 1]],
            _uvu(*_WIDE)),
    *_cases("repeated_edge", "the same edge three times, self loops", 3, [[2, 2, 2, 0, 1, 1], [0, 0, 0, 0, 1, 1]],
            _uvu(*_WIDE)),
    *_cases("bipartite", "more sources than targets", (13, 4), _random(13, 4, 29), _uvu(*_WIDE)),
    *_cases("bipartite_back", "more targets than sources; x2 asks for no gradient", (3, 17), _random(3, 17, 29),
            _uvu("5x0e+3x1o", _VECTORS, "1x0e+1x1o"), needs=(True, False, True)),
    *_cases("only_x2", "only x2 asks", 5, _random(5, 5, 19), _uvu(*_WIDE), needs=(False, True, False)),
    *_cases("only_weight", "only the weights of every edge ask", 5, _random(5, 5, 19), _uvu(*_WIDE),
            needs=(False, False, True)),
    *_cases("high_degree", "l = 6, 5 and 8: beyond the unrolled degrees", 4, _random(4, 4, 9), lambda: ProductTable(
        "2x6e+18x5o", "1x3o", "2x5o+18x8e+2x8o", [(0, 0, 0, "uvu", True, 1.0), (1, 0, 1, "uvu", True, 2.0),
                                                   (0, 0, 2, "uvu", True, 0.5)])),
    *_cases("unrolled_and_not", "l = 2 and 2 to every degree, 4 beyond the unrolled ones", 4, _random(4, 4, 9),
            _uvu("20x2e", "1x2e", "1x0e+1x1e+1x2e+1x3e+1x4e")),
    *(case for mode in MODE_IRREPS for case in _cases(
        f"mode_{mode}", f"all paths {mode}, shared weights", 6, _random(6, 6, 19), _mode(mode), shared=True)),
    *(case for mode in MODE_IRREPS for case in _cases(
        f"mode_{mode}_per_edge", f"{mode}, weights of every edge", 6, _random(6, 6, 19), _mode(mode))),
    *_cases("mixed_modes", "all modes in one product, some paths without weights", 6, _random(6, 6, 50),
            _mode(*MODE_IRREPS, weights="some")),
    *_cases("mixed_modes_shared", "the same with shared weights in ir_mul", 6, _random(6, 6, 50),
            _mode(*MODE_IRREPS, weights="some", layout="ir_mul"), shared=True),
    *_cases("no_weights", "no path has weights", 5, _random(5, 5, 17),
            _mode("uvu", "uvv", "uuu", "uvuv", "uvu<v", weights="none")),
]

NEQUIP = {
    2: ("32x0e+32x0o+32x1e+32x1o+32x2e+32x2o", "1x0e+1x1o+1x2e", "1x0e+1x0o+1x1e+1x1o+1x2e+1x2o"),
    3: ("32x0e+32x0o+32x1e+32x1o+32x2e+32x2o+32x3e+32x3o", "1x0e+1x1o+1x2e+1x3o",
        "1x0e+1x0o+1x1e+1x1o+1x2e+1x2o+1x3e+1x3o"),
}
MACE = {
    "medium": ("128x0e+128x1o", "1x0e+1x1o+1x2e+1x3o", "1x0e+1x1o+1x2e"),
    "large": ("128x0e+128x1o+128x2e", "1x0e+1x1o+1x2e+1x3o", "1x0e+1x1o+1x2e+1x3o"),
}
SEGNN = ("32x0e+32x1o", _VECTORS, "64x0e+32x1o")
QM9 = ("18x0e+18x1o+18x2e", "1x0e+1x1o+1x2e+1x3o", "54x0e+18x1o+18x2e")


def _fully_connected(irreps: tuple[str, str, str]) -> Callable:
    return lambda: table(*irreps, bias=False)


_CROWDED = (256, lambda g: lattice(256, 64))  # 16 384 edges, 64 neighbours a node
LARGE = [
    *_cases("segnn_nbody_100", "SEGNN N-body's second message, shared uvw; positions constant", 500,
            lambda g: torch.stack([_random(500, 500, 2000)(g)[0], torch.arange(500).repeat_interleave(4)]),
            _fully_connected(SEGNN), shared=True, needs=(True, False, True)),
    *(case for l, irreps in NEQUIP.items() for case in _cases(
        f"nequip_32_{l}", f"NequIP, 32 channels, l <= {l}, both parities, layer 3; 64 neighbours", *_CROWDED,
        _uvu(*irreps))),
    *(case for size, irreps in MACE.items() for case in _cases(
        f"mace_{size}", f"MACE {size}, 128 channels; 64 neighbours", *_CROWDED, _uvu(*irreps))),
    *_cases("segnn_qm9_1024", "SEGNN QM9's second message, shared uvw; positions constant", 18400,
            _random(18400, 18400, 48000), _fully_connected(QM9), shared=True, needs=(True, False, True)),
]

SCALING = [
    Axis("edges", DECADES, lambda n: _cases(
        f"edges_{n}", "16 neighbours a node, 4x0e+4x1o, shared weights", n // 16, lambda g: lattice(n // 16, 16),
        _uvu("4x0e+4x1o", _VECTORS, "1x0e+1x1o"), shared=True)[0]),
    Axis("channels", (16, 64, 256, 1024), lambda c: _cases(
        f"channels_{c}", "256 nodes of 16 neighbours", 256, lambda g: lattice(256, 16),
        _uvu(f"{c}x0e+{c}x1o", _VECTORS, "1x0e+1x1o"))[0]),
    Axis("degree", (1, 2, 3, 4, 5, 6), lambda l: _cases(
        f"degree_{l}", "64 nodes of 16 neighbours, 16 channels, every path up to the degree", 64,
        lambda g: lattice(64, 16), lambda: channel_table(degrees(l, 16), degrees(l), l))[0], None),
]
