"""Inputs of the tensor product, its gate and their gradients."""

from collections.abc import Callable

import torch
from e3nn import o3
from e3nn.math import normalize2mom

from ..cases import Case
from . import reference
from .op import gated_tensor_product_bwd, gated_tensor_product_op, tensor_product_bwd, tensor_product_op
from .table import GateTable, Path, ProductTable, unpack

ALL = (True, True, True, True)


def table(in1: str, in2: str, out: str, bias: bool = True) -> ProductTable:
    """All allowed paths, scaled as the SEGNN code scales them."""
    a, b, c = o3.Irreps(in1), o3.Irreps(in2), o3.Irreps(out)
    instructions = [
        (i, j, k, ir_out.dim**0.5)
        for i, (_, ir_1) in enumerate(a)
        for j, (_, ir_2) in enumerate(b)
        for k, (_, ir_out) in enumerate(c)
        if ir_out in ir_1 * ir_2
    ]
    return ProductTable(a, b, c, instructions, bias)


def gate_table(irreps: str) -> GateTable:
    """The gate whose output has these irreps (the first slice are the scalars)."""
    scalars, *gated = o3.Irreps(irreps)
    layout = [scalars.mul, sum(mul for mul, _ in gated)] + [v for mul, ir in gated for v in (mul, ir.dim)]
    gains = [normalize2mom(f).cst for f in (torch.nn.functional.silu, torch.sigmoid)] if gated else [1.0, 1.0]
    return GateTable(tuple(layout), *map(float, gains))


def gate_input(irreps: str) -> str:
    """The irreps the gate takes: scalars, gates, gated."""
    scalars, *gated = o3.Irreps(irreps)
    return str((o3.Irreps([(scalars.mul + sum(mul for mul, _ in gated), "0e")]) + o3.Irreps(gated)).simplify())


def _fan_in(paths: list[Path]) -> int:
    """Terms in the largest output, so that outputs of unit-normal inputs have about unit size."""
    fan = {}
    for p in paths:
        fan[p.o3] = fan.get(p.o3, 0) + p.U * p.V * p.d3
    return max(fan.values(), default=1) or 1


def _arguments(z: int, t: ProductTable, gate: GateTable | None, bias: bool, needs, g: torch.Generator) -> dict:
    """All arguments of the four operators by name; each takes its own."""
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    x1, x2, weight = normal(z, t.dims[0]), normal(z, t.dims[1]), normal(t.weight_numel)
    cg_index, cg_value = t.on("cpu")
    found = {
        "g": normal(z, t.dims[2] - (gate.layout[1] if gate else 0)),
        "pre": normal(z, t.dims[2]),
        "x1": x1, "x2": x2, "weight": weight * _fan_in(unpack(t.paths)) ** -0.5,
        "bias": normal(t.bias_numel) if bias else None,
        "cg_index": cg_index.clone(), "cg_value": cg_value.clone(),
        "dims": list(t.dims), "paths": list(t.paths), "bias_slots": list(t.bias_slots),
    }
    if gate:
        found |= {"layout": list(gate.layout), "scalar_gain": gate.scalar_gain, "gate_gain": gate.gate_gain}
    return found | {"needs": list(needs)}


def _cases(name: str, note: str, z: int, in1: str, in2: str, out: str, *, gated: bool = False, slots: bool = True,
           bias: bool = True, needs: tuple[bool, ...] = ALL) -> list[Case]:
    """The product and its gradient; `slots`: the table has biases, `bias`: one is given; gated: `out` is the gate's."""
    if gated:
        op, forward = gated_tensor_product_op, reference.gated_forward
        adjoint, backward, unused = gated_tensor_product_bwd, reference.gated_backward, ("bias",)
    else:
        op, forward = tensor_product_op, reference.forward
        adjoint, backward, unused = tensor_product_bwd, reference.backward, ("bias", "pre")
    floats = [name for name in ("g", "pre", "x1", "x2", "weight") if name not in unused]

    def inputs(without: tuple[str, ...]) -> Callable[[torch.Generator], dict]:
        def make(g: torch.Generator) -> dict:
            t = table(in1, in2, gate_input(out) if gated else out, slots)
            found = _arguments(z, t, gate_table(out) if gated else None, bias and slots, needs, g)
            return {k: v for k, v in found.items() if k not in without}

        return make

    return [
        Case(name, op, forward, inputs(("g", "pre", "needs")), ("x1", "x2", "weight", "bias"), note),
        Case(name, adjoint, backward, inputs(unused), tuple(floats), note),
    ]


_VECTORS = "1x0e+1x1o"
SMALL = [
    *_cases("tiny", "one path, a scalar product, for the numerical derivatives", 1, "1x1o", "1x1o", "1x0e"),
    *_cases("tiny", "one scalar, one gate, one gated vector", 1, "1x0e", _VECTORS, _VECTORS, gated=True),
    *_cases("odd", "no multiplicity is a power of two, rows beyond one block", 37, "5x0e+3x1o", _VECTORS, "7x0e+3x1o"),
    *_cases("odd", "gates 3 + 1, scalars 7", 37, "5x0e+3x1o", _VECTORS, "7x0e+3x1o+1x2e", gated=True),
    *_cases("parities", "0o and 1e beside 0e and 1o: odd scalars have no bias", 19, "2x0o+3x1o+1x1e", "1x0o+1x1e",
            "3x0e+1x0o+2x1o"),
    *_cases("both_branches", "2l+1 grows, falls and stays along paths; V > 1; equal slices of in1; nothing reaches 3o",
            19, "4x0e+4x1o+4x0e+4x1o+2x0e", "2x1o", "5x0e+3x1o+2x3o+1x1e"),
    *_cases("both_branches", "several gated slices, one of odd scalars; V > 1", 19, "4x0e+4x1o+1x1e", "2x1o",
            "5x0e+3x1o+2x0o+1x2e", gated=True),
    *_cases("unreached_bias", "biases where no path arrives, two even scalar slices", 5, "2x1o", "1x0e",
            "3x0e+2x1o+2x0e"),
    *_cases("many_channels", "more channels than one block on every side", 18, "70x0e+35x1o", _VECTORS, "67x0e+37x1o"),
    *_cases("high_degree", "l up to 6: 13 components to 9 and back", 3, "2x6e+1x2e", "1x2e", "1x4e"),
    *_cases("long_sum", "gradients of the weights sum over 1100 rows", 1100, "1x1o", _VECTORS, "2x0e+1x1o"),
    *_cases("long_sum", "the same through the gate", 1100, "1x0e", _VECTORS, "2x0e+1x1o", gated=True),
    *_cases("empty", "no rows: gradients of weight and bias are zero", 0, "3x0e+2x1o", _VECTORS, "2x0e+2x1o"),
    *_cases("empty", "no rows", 0, "3x0e+2x1o", _VECTORS, "2x0e+2x1o", gated=True),
    *_cases("no_path", "nothing but the bias", 3, "2x1o", "1x0e", "2x0e+1x2e"),
    *_cases("no_bias", "biases possible but not given; only x1 asks for a gradient", 7, "2x0e+1x1o", _VECTORS,
            "3x0e+2x1o", bias=False, needs=(True, False, False, False)),
    *_cases("no_bias", "no biases in the table; x2 and weight ask", 7, "2x0e+1x1o", _VECTORS, "3x0e+2x1o", gated=True,
            slots=False, needs=(False, True, True, False)),
    *_cases("scalars_only", "a gate without gated part: plain SiLU; weight and bias ask", 7, _VECTORS, _VECTORS, "6x0e",
            gated=True, needs=(False, False, True, True)),
    *_cases("no_scalars", "every scalar is a gate", 5, _VECTORS, _VECTORS, "0x0e+2x1o+1x0o", gated=True),
]


def _network(name: str, note: str, edges: int, nodes: int, hidden: str, attributes: str, extra: str) -> list[Case]:
    """The four products of one SEGNN layer; gradients as in training, where positions need none."""
    needs = (True, False, True, True)
    return [
        *_cases(f"{name}_message1", f"{note}, first message", edges, f"{hidden}+{hidden}+{extra}", attributes, hidden,
                gated=True, needs=needs),
        *_cases(f"{name}_message2", f"{note}, second message", edges, hidden, attributes, hidden, gated=True,
                needs=needs),
        *_cases(f"{name}_update1", f"{note}, first update", nodes, f"{hidden}+{hidden}", attributes, hidden, gated=True,
                needs=needs),
        *_cases(f"{name}_update2", f"{note}, second update", nodes, hidden, attributes, hidden, needs=needs),
    ]


LARGE = [
    *_network("nbody_100", "SEGNN N-body, 100 graphs", 2000, 500, "32x0e+32x1o", _VECTORS, "2x0e"),
    *_network("nbody_1000", "SEGNN N-body, 1000 graphs", 20000, 5000, "32x0e+32x1o", _VECTORS, "2x0e"),
    *_network("qm9_1024", "SEGNN QM9, 1024 molecules", 48000, 18400, "18x0e+18x1o+18x2e", "1x0e+1x1o+1x2e+1x3o",
              "1x0e"),
]
