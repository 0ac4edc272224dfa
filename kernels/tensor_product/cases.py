"""Inputs of the tensor product, its gate and their gradients."""

from collections.abc import Callable

import torch
from e3nn import o3
from e3nn.math import normalize2mom

from ..cases import DECADES, Axis, Case
from . import reference
from .epilogue import gate_bwd, gate_op, norm_activation_bwd, norm_activation_op
from .op import (
    gated_tensor_product_bwd,
    gated_tensor_product_op,
    normed_tensor_product_bwd,
    normed_tensor_product_op,
    tensor_product_bwd,
    tensor_product_bwd_bwd,
    tensor_product_op,
)
from .table import ACTIVATIONS, MODES, GateTable, Path, ProductTable, unpack

ALL = (True, True, True, True)
# backends that take shared "uvw" weights in mul_ir only
GENERAL = ("triton",)


def table(in1: str, in2: str, out: str, bias: bool = True, layout: str = "mul_ir") -> ProductTable:
    """All allowed paths, scaled as the SEGNN code scales them."""
    a, b, c = o3.Irreps(in1), o3.Irreps(in2), o3.Irreps(out)
    instructions = [
        (i, j, k, "uvw", True, ir_out.dim**0.5)
        for i, (_, ir_1) in enumerate(a)
        for j, (_, ir_2) in enumerate(b)
        for k, (_, ir_out) in enumerate(c)
        if ir_out in ir_1 * ir_2
    ]
    return ProductTable(a, b, c, instructions, bias, layout)


# what each mode can connect: equal multiplicities where it asks for them, the output multiplicity it makes
MODE_IRREPS = {
    "uvw": ("5x0e+3x1o", "2x0e+1x1o", "4x0e+3x1o+2x1e"), "uvu": ("5x0e+3x1o", "2x0e+3x1o", "5x0e+3x1o+5x1o+3x1e"),
    "uvv": ("2x0e+3x1o", "5x0e+3x1o", "5x0e+3x1o+5x1o+3x1e"), "uuw": ("4x0e+3x1o", "4x0e+3x1o", "5x0e+2x1e"),
    "uuu": ("4x0e+3x1o", "4x0e+3x1o", "4x0e+3x1e+3x2e"), "uvuv": ("3x0e+2x1o", "2x0e+4x1o", "6x0e+12x1o+8x1e"),
    "uvu<v": ("4x0e+5x1o", "4x0e+5x1o", "6x0e+10x1e"), "u<vw": ("4x0e+5x1o", "4x0e+5x1o", "3x0e+2x1e"),
}


def mode_table(modes: tuple[str, ...], weights: str = "all", layout: str = "mul_ir") -> ProductTable:
    """Every allowed path of `modes` between their irreps; weights: "all", "none" (where the mode allows) or "some"."""
    in1, in2, out, instructions = o3.Irreps(""), o3.Irreps(""), o3.Irreps(""), []
    for mode in modes:
        a, b, c = (o3.Irreps(i) for i in MODE_IRREPS[mode])
        n1, n2, n3 = len(in1), len(in2), len(out)
        in1, in2, out = in1 + a, in2 + b, out + c
        for i, (u, ir_1) in enumerate(a):
            for j, (v, ir_2) in enumerate(b):
                for k, (w, ir_out) in enumerate(c):
                    made = {"uvu": u, "uvv": v, "uuu": u, "uvuv": u * v, "uvu<v": u * (u - 1) // 2}.get(mode, w)
                    if ir_out not in ir_1 * ir_2 or w != made or mode[1] != "v" and u != v or "<" in mode and u != v:
                        continue
                    needed = mode in ("uvw", "u<vw", "uuw")
                    weighted = needed or weights == "all" or weights == "some" and len(instructions) % 2 == 0
                    instructions.append((n1 + i, n2 + j, n3 + k, mode, weighted, ir_out.dim**0.5))
    return ProductTable(in1, in2, out, instructions, layout=layout)


def channel_table(in1: str, in2: str, most: int, mode: str = "uvu", layout: str = "mul_ir") -> ProductTable:
    """Every path up to degree `most`, each with its own slice of the output, as in the convolutions of MACE and NequIP.

    in2 has one channel of each irrep; mode "uvv" exchanges the two inputs.
    """
    a, b, out, instructions = o3.Irreps(in1), o3.Irreps(in2), [], []
    for i, (mul, ir_1) in enumerate(a):
        for j, (_, ir_2) in enumerate(b):
            for ir in ir_1 * ir_2:
                if ir.l <= most:
                    instructions.append((*((i, j) if mode == "uvu" else (j, i)), len(out), mode, True, ir.dim**0.5))
                    out.append((mul, ir))
    return ProductTable(*((a, b) if mode == "uvu" else (b, a)), o3.Irreps(out), instructions, layout=layout)


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


def _mode_cases(name: str, note: str, z: int, t: ProductTable, per_sample: bool = False,
                needs: tuple[bool, ...] = ALL) -> list[Case]:
    """The bare product of any table and its gradient, with shared weights or one row of them per sample."""

    def inputs(without: tuple[str, ...]) -> Callable[[torch.Generator], dict]:
        def make(g: torch.Generator) -> dict:
            found = _arguments(z, t, None, bool(t.bias_slots), needs, g)
            if per_sample:
                found["weight"] = torch.randn(z, t.weight_numel, generator=g, dtype=torch.float64)
            return {k: v for k, v in found.items() if k not in without}

        return make

    names, refused_by = ("x1", "x2", "weight"), _refused(t, per_sample)
    return [
        Case(name, tensor_product_op, reference.forward, inputs(("g", "pre", "needs")), (*names, "bias"), note,
             refused_by=refused_by),
        Case(name, tensor_product_bwd, reference.backward, inputs(("bias", "pre")), ("g", *names), note,
             refused_by=refused_by),
    ]


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


def _refused(t: ProductTable, per_sample: bool) -> tuple[str, ...]:
    general = per_sample or t.dims[3] or any(MODES[p.mode] != "uvw" for p in unpack(t.paths))
    return GENERAL if general else ()


def _second_case(name: str, note: str, z: int, t: ProductTable, per_sample: bool = False,
                 given: tuple[bool, ...] = ALL[:3], needs: tuple[bool, ...] = ALL) -> Case:
    """The second derivative of any product; given: which gradients have a cotangent."""
    names = ("x1", "x2", "weight")

    def inputs(g: torch.Generator) -> dict:
        found = _arguments(z, t, None, False, needs, g)
        if per_sample:
            found["weight"] = torch.randn(z, t.weight_numel, generator=g, dtype=torch.float64)
        found |= {f"gg_{n}": torch.randn(found[n].shape, generator=g, dtype=torch.float64) if has else None
                  for n, has in zip(names, given, strict=True)}
        return {n: found[n] for n in (*floats, "cg_index", "cg_value", "dims", "paths", "bias_slots", "needs")}

    floats = ("g", *names, *(f"gg_{n}" for n in names))
    return Case(name, tensor_product_bwd_bwd, reference.second, inputs, floats, note,
                refused_by=_refused(t, per_sample))


def _norm_cases(name: str, note: str, z: int, irreps: str, activation: str, ir_mul: bool = False,
                bias: bool = True) -> list[Case]:
    """The activation of norms alone; epsilon is such that some norms are clamped and none is close to zero."""
    slices = [(mul, ir.dim) for mul, ir in o3.Irreps(irreps)]
    dim, channels = sum(mul * d for mul, d in slices), sum(mul for mul, _ in slices)
    static = {"layout": [v for s in slices for v in s], "activation": activation, "epsilon": 0.5, "ir_mul": ir_mul}

    def inputs(g: torch.Generator, *names: str) -> dict:
        found = {n: torch.randn(z, dim, generator=g, dtype=torch.float64) for n in (*names, "pre")}
        return found | {"norm_bias": torch.randn(channels, generator=g, dtype=torch.float64) if bias else None} | static

    return [Case(name, norm_activation_op, reference.norm_activation, inputs, ("pre", "norm_bias"), note,
                 refused_by=("triton",)),
            Case(name, norm_activation_bwd, reference.norm_activation_backward, lambda g: inputs(g, "g"),
                 ("g", "pre", "norm_bias"), note, refused_by=("triton",))]


def _normed_cases(name: str, note: str, z: int, in1: str, in2: str, out: str, activation: str, norm_bias: bool = True,
                  layout: str = "mul_ir", needs: tuple[bool, ...] = (*ALL, True)) -> list[Case]:
    """The product with the activation of norms; biases of the product and of the norms where there are some."""
    a, b, c = (o3.Irreps(i) for i in (in1, in2, out))
    full = table(in1, in2, out)
    t = ProductTable(a, b, c, full.instructions, bias=True, layout=layout)
    slices = [(mul, ir.dim) for mul, ir in c]
    static = {"layout": [v for s in slices for v in s], "activation": activation, "epsilon": 0.5}
    order = ("x1", "x2", "weight", "bias", "norm_bias", "cg_index", "cg_value", "dims", "paths", "bias_slots")

    def found(g: torch.Generator) -> dict:
        given = _arguments(z, t, None, True, needs, g)
        channels = sum(mul for mul, _ in slices)
        return given | {"norm_bias": torch.randn(channels, generator=g, dtype=torch.float64) if norm_bias else None}

    def inputs(g: torch.Generator) -> dict:
        given = found(g)
        return {n: given[n] for n in order} | static

    def inputs_bwd(g: torch.Generator) -> dict:
        given = found(g)
        given["needs"][4] &= norm_bias
        return {n: given[n] for n in ("g", "pre", *order) if n != "bias"} | static | {"needs": given["needs"]}

    refused_by = GENERAL if layout == "ir_mul" else ()
    names = ("x1", "x2", "weight")
    return [Case(name, normed_tensor_product_op, reference.normed_forward, inputs, (*names, "bias", "norm_bias"), note,
                 refused_by=refused_by),
            Case(name, normed_tensor_product_bwd, reference.normed_backward, inputs_bwd,
                 ("g", "pre", *names, "norm_bias"), note, refused_by=refused_by)]


def _gate_cases(name: str, note: str, z: int, irreps: str, ir_mul: bool = False) -> list[Case]:
    """The gate alone, whose output has these irreps."""
    table, dim = gate_table(irreps), o3.Irreps(gate_input(irreps)).dim
    static = {"layout": list(table.layout), "scalar_gain": table.scalar_gain, "gate_gain": table.gate_gain,
              "ir_mul": ir_mul}

    def inputs(g: torch.Generator) -> dict:
        return {"pre": torch.randn(z, dim, generator=g, dtype=torch.float64)} | static

    def inputs_bwd(g: torch.Generator) -> dict:
        return {"g": torch.randn(z, dim - table.layout[1], generator=g, dtype=torch.float64)} | inputs(g)

    refused_by = ("triton",) if ir_mul else ()
    return [Case(name, gate_op, reference.gate, inputs, ("pre",), note, refused_by=refused_by),
            Case(name, gate_bwd, reference.gate_backward, inputs_bwd, ("g", "pre"), note, refused_by=refused_by)]


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
    *_gate_cases("tiny", "one scalar, one gated vector", 1, "1x0e+1x1o"),
    *_gate_cases("odd", "several gated slices, rows beyond one block", 53, "5x0e+3x1o+2x0o+1x2e"),
    *_gate_cases("ir_mul", "channels of a component together", 53, "5x0e+3x1o+2x0o+7x2e", True),
    *_gate_cases("no_scalars", "every scalar is a gate", 5, "0x0e+2x1o+1x0o"),
    *_gate_cases("empty", "no rows", 0, "2x0e+2x1o"),
    *_norm_cases("tiny", "one scalar, one vector", 1, "1x0e+1x1o", "silu"),
    *(case for activation in ACTIVATIONS for case in _norm_cases(
        f"odd_{activation}", "several slices, rows beyond one block", 53, "5x0e+3x1o+2x2e", activation)),
    *_norm_cases("ir_mul", "channels of a component together, no bias", 53, "5x0e+3x1o+7x2e", "tanh", True, False),
    *_norm_cases("long_sum", "gradients of the biases sum over 1100 rows", 1100, "3x0e+2x1o", "sigmoid"),
    *_norm_cases("wide", "70 slices, more than a launch takes; blocks that share out 150 and 129 channels", 37,
                 "150x1o+" + "+".join(["0x0e+1x1o"] * 34) + "+129x0e", "silu"),
    *_norm_cases("many_channels", "any degree, channels of a component together", 5, "40x2e+1x9o", "relu", True),
    *_norm_cases("empty", "no rows", 0, "2x0e+2x1o", "silu"),
    *_normed_cases("tiny", "a scalar and a vector, their norms", 1, "1x0e", _VECTORS, _VECTORS, "silu"),
    *_normed_cases("odd", "three slices, rows beyond one block", 53, "5x0e+3x1o", _VECTORS, "4x0e+3x1o+2x1e", "tanh"),
    *_normed_cases("no_norm_bias", "only x1 asks for a gradient", 7, "2x0e+1x1o", _VECTORS, "3x0e+2x1o", "sigmoid",
                   False, needs=(True, False, False, False, False)),
    *_normed_cases("ir_mul", "channels of a component together; only the biases ask", 19, "5x0e+3x1o", _VECTORS,
                   "4x0e+3x1o", "relu", layout="ir_mul", needs=(False, False, False, True, True)),
    *_normed_cases("empty", "no rows", 0, "2x0e+2x1o", _VECTORS, "2x0e+2x1o", "silu"),
    _second_case("tiny", "one path", 1, mode_table(("uvw",))),
    _second_case("odd", "shared weights, all cotangents", 53, mode_table(("uvw",))),
    _second_case("mixed_modes", "all modes, some paths without weights, weights of every row, in ir_mul", 19,
                 mode_table(tuple(MODE_IRREPS), "some", "ir_mul"), True),
    _second_case("no_cotangent_of_inputs", "only the weights' gradient has a cotangent; rows of weights", 7,
                 mode_table(("uvw", "uvu")), True, (False, False, True)),
    _second_case("no_cotangent_of_weights", "g and weight ask", 7, mode_table(("uvu", "u<vw")), False,
                 (True, True, False), (True, False, False, True)),
    _second_case("channels", "channels as lanes, weights of every row", 21, channel_table("20x0e+9x1o", "1x0e+1x1o", 2),
                 True),
    _second_case("channels_shared", "in2 has the channels; shared weights; only in1's gradient has a cotangent", 37,
                 channel_table("8x1o+20x3o", "1x0e+1x1o", 3, "uvv"), False, (True, False, False)),
    _second_case("channels_of_weights", "weights of every row, whose gradient alone has a cotangent", 5,
                 channel_table("16x1o", "1x1o", 2), True, (False, False, True)),
    _second_case("empty", "no rows", 0, mode_table(("uvw",))),
    *(case for mode in MODE_IRREPS for case in _mode_cases(
        f"mode_{mode}", f"all paths {mode}", 19, mode_table((mode,)))),
    *(case for mode in MODE_IRREPS for case in _mode_cases(
        f"mode_{mode}_per_sample", f"{mode}, weights of every row", 7, mode_table((mode,)), True)),
    *_mode_cases("mixed_modes", "all modes in one product, some paths without weights", 11,
                 mode_table(tuple(MODE_IRREPS), "some")),
    *_mode_cases("mixed_modes_per_sample", "the same with weights of every row, in ir_mul", 50,
                 mode_table(tuple(MODE_IRREPS), "some", "ir_mul"), True),
    *_mode_cases("no_weights", "no path has weights", 5, mode_table(("uvu", "uvv", "uuu", "uvuv", "uvu<v"), "none")),
    *_mode_cases("ir_mul", "channels of a component together; V > 1", 7, mode_table(("uvw", "uvu"), "all", "ir_mul")),
    *_mode_cases("channels", "one channel times many, no whole vectors of them; weights of every row", 53,
                 channel_table("20x0e+17x1o+9x2e", "1x0e+1x1o+1x2e", 2), True),
    *_mode_cases("channels_shared", "the same with shared weights, in ir_mul, beyond the unrolled degrees", 19,
                 channel_table("16x2e+9x4e", "1x1o+1x2e", 5, layout="ir_mul")),
    *_mode_cases("channels_exchanged", "uvv: the many channels are of in2", 19,
                 channel_table("8x1o+20x3o", "1x0e+1x1o", 3, "uvv"), True),
    *_mode_cases("channels_mixed", "either input as the single channel; slices that two paths or none reach; bias", 21,
                 ProductTable("16x0e+1x1o", "1x0e+16x1o", "16x0e+2x1e+16x1o+1x0e", [
                     (0, 0, 0, "uvu", True, 1.0), (1, 1, 0, "uvv", True, 2.0), (1, 1, 0, "uvuv", False, 0.5)], True)),
    *_mode_cases("uvu_empty", "no rows, weights of every row", 0, mode_table(("uvu",)), True),
    *_mode_cases("uvu_long_sum", "gradients of shared weights over 500 rows", 500, mode_table(("uvu",))),
    *_mode_cases("uuu_long_sum", "the same over 1100 rows, no whole number of stretches", 1100, mode_table(("uuu",))),
    *_mode_cases("uvu_channels", "one to five vectors of channels, 40 to 131; V > 1", 3, ProductTable(
        "40x1o+70x2e+131x0e", "2x1o", "40x1e+70x1o+131x1o", [(0, 0, 0, "uvu", True, 1.0), (1, 0, 1, "uvu", True, 1.0),
                                                             (2, 0, 2, "uvu", True, 1.0)])),
    *(case for mode in ("uvw", "uvu") for case in _mode_cases(
        f"{mode}_many_paths", "52 paths to two slices", 3, ProductTable(
            "2x0e+2x1o", "+".join(["1x0e+1x1o"] * 13), "2x0e+2x1o",
            [(i, j, (i + j) % 2, mode, True, 1.0) for i in range(2) for j in range(26)]))),
    *(case for name, per_sample in (("", False), ("_per_sample", True)) for case in _mode_cases(
        f"uuu_many_paths{name}", "76 paths, more than a launch takes; only the weights ask", 3, ProductTable(
            "2x0e+2x1o", "+".join(["2x0e+2x1o"] * 19), "2x0e+2x1o",
            [(i, j, (i + j) % 2, "uuu", True, 1.0) for i in range(2) for j in range(38)]), per_sample,
        (False, False, True, False))),
    *_mode_cases("x2_many_paths", "76 paths, more than a launch takes", 3, ProductTable(
        "2x0e+2x1o", "+".join(["1x0e+1x1o"] * 19), "2x0e+2x1o",
        [(i, j, (i + j) % 2, "uvw", True, 1.0) for i in range(2) for j in range(38)], layout="ir_mul")),
    *_mode_cases("x2_wide", "either input multiplied with weights beyond one tile; V > 1; only x2 asks", 18,
                 table("81x0e+75x1o", "2x1o", "77x0e+67x1o", layout="ir_mul"), needs=(False, True, False, False)),
    *_mode_cases("x2_narrow", "paths of single channels share a tile; a slice that no path reaches; only x2 asks", 37,
                 table("1x0e+1x1o+1x2e", "1x0e+1x1o+1x2e+1x6e", "9x0e+5x1o+3x1e+2x2e", False, "ir_mul"),
                 needs=(False, True, False, False)),
    *_mode_cases("x2_rows", "so many rows that a block has all slices of x2, in ir_mul; bias", 2061, ProductTable(
        "2x0e+1x1o", "1x0e+2x1o", "3x0e+1x1o", [
            (0, 0, 0, "uvw", True, 1.0), (0, 1, 1, "uvw", True, 0.5), (1, 0, 1, "uvw", True, 1.0),
            (1, 1, 0, "uvw", True, 2.0)], True, "ir_mul")),
    *_mode_cases("x2_rows_mixed", "the same beside a path of another kernel, which adds to x2", 2061, ProductTable(
        "2x0e+1x1o", "1x0e+2x1o", "3x0e+2x1o", [(1, 1, 0, "uvw", True, 2.0), (0, 1, 1, "uvv", True, 0.5)])),
    *_mode_cases("uvu_high_degree", "l = 6, 5 and 8: beyond the unrolled degrees", 3, ProductTable(
        "2x6e+3x5o", "1x3o", "2x5o+3x8e+2x8o", [(0, 0, 0, "uvu", True, 1.0), (1, 0, 1, "uvu", True, 2.0),
                                                 (0, 0, 2, "uvu", True, 0.5)]), True),
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


def degrees(most: int, channels: int = 1) -> str:
    """Irreps of every degree up to `most`, of the parity of the spherical harmonics."""
    return "+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(most + 1))


SCALING = [
    Axis("edges", DECADES, lambda n: _cases(f"edges_{n}", "2x0e+2x1o", n, "2x0e+2x1o", _VECTORS, "2x0e+2x1o")[0]),
    Axis("channels", (16, 32, 64, 128, 256), lambda c: _cases(
        f"channels_{c}", "1000 rows, scalars and vectors", 1000, f"{c}x0e+{c}x1o", _VECTORS, f"{c}x0e+{c}x1o")[0], 2),
    Axis("degree", (1, 2, 3, 4, 5, 6), lambda l: _mode_cases(
        f"degree_{l}", "1000 rows of 16 channels, every path up to the degree", 1000,
        channel_table(degrees(l, 16), degrees(l), l))[0], None),
]
