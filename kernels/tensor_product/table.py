"""From irreps and instructions to the integer and coefficient tables that the kernels read."""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from ..define import fail

# e3nn's connection modes: which pairs of channels (u, v) meet, and how the weights take them to output channels.
MODES = ("uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw")
LAYOUTS = ("mul_ir", "ir_mul")
ACTIVATIONS = ("silu", "sigmoid", "tanh", "relu")  # of norms


class Path(NamedTuple):
    """One instruction, irrep slices (offset, multiplicity, 2l+1) of in1, in2 and out, weights and coefficients."""

    o1: int
    U: int
    d1: int
    o2: int
    V: int
    d2: int
    o3: int
    W: int
    d3: int
    weight: int  # offset of its block in the flat weight, -1 where it has none
    start: int  # its non-zero coefficients are rows start..stop-1 of the table
    stop: int
    mode: int  # index into MODES


def weight_shape(p: Path) -> tuple[int, ...]:
    """Shape of a path's block of weights, e3nn's."""
    pairs = p.U * (p.U - 1) // 2
    return {"uvw": (p.U, p.V, p.W), "uvu": (p.U, p.V), "uvv": (p.U, p.V), "uuw": (p.U, p.W), "uuu": (p.U,),
            "uvuv": (p.U, p.V), "uvu<v": (pairs,), "u<vw": (pairs, p.W)}[MODES[p.mode]]


def weight_numel(paths: list[int]) -> int:
    """Length of the flat weight that these paths take: the end of the last block."""
    n = len(Path._fields)
    for start in range(len(paths) - n, -1, -n):
        if paths[start + 9] >= 0:
            return paths[start + 9] + math.prod(weight_shape(Path(*paths[start:start + n])))
    return 0


def with_weight(paths: list[int]) -> list[int]:
    """Those of the paths that have weights."""
    n = len(Path._fields)
    return [v for start in range(0, len(paths), n) if paths[start + 9] >= 0 for v in paths[start:start + n]]


def unpack(paths: list[int]) -> list[Path]:
    """The flat integers that the operator takes, as Paths."""
    n = len(Path._fields)
    return [Path(*paths[i:i + n]) for i in range(0, len(paths), n)]


def _check_mode(n: int, mode: str, has_weight: bool, u: int, v: int, w: int) -> None:
    """Multiplicities that the mode can connect."""
    op, pairs = "ProductTable", u * (u - 1) // 2
    if mode not in MODES:
        fail(op, f"the mode of instruction {n}", f"one of {MODES}", repr(mode))
    if mode[1] != "v" or "<" in mode:
        if u != v:
            fail(op, f"the multiplicities of instruction {n}", f"equal in in1 and in2 (mode {mode!r})", f"{u} and {v}")
    wanted = {"uvu": u, "uvv": v, "uuu": u, "uvuv": u * v, "uvu<v": pairs}.get(mode)
    if wanted is None and not has_weight:
        if mode != "uuw":
            fail(op, f"has_weight of instruction {n}", f"True (mode {mode!r})", False)
        wanted = 1
    if wanted is not None and w != wanted:
        fail(op, f"the output multiplicity of instruction {n}", f"{wanted} (mode {mode!r})", w)


def _check_instruction(n: int, instruction: tuple, irreps: tuple[o3.Irreps, ...]) -> None:
    """Slices that exist, and irreps whose product holds the output or coefficients of their dimensions."""
    op = "ProductTable"
    if len(instruction) != 6:
        fail(op, f"instruction {n}", "(i_in1, i_in2, i_out, mode, has_weight, scale)", instruction)
    for slot, index, of in zip(("in1", "in2", "out"), instruction[:3], irreps, strict=True):
        if not 0 <= index < len(of):
            fail(op, f"i_{slot} of instruction {n}", f"in 0..{len(of) - 1}", index, f"irreps_{slot} is {of}")
    a, b, c = (of[index].ir for of, index in zip(irreps, instruction[:3], strict=True))
    scale = instruction[5]
    if isinstance(scale, Tensor) and scale.shape != (a.dim, b.dim, c.dim):
        fail(op, f"the coefficients of instruction {n}", [a.dim, b.dim, c.dim], list(scale.shape))
    if not isinstance(scale, Tensor) and c not in a * b:
        fail(op, f"the output of instruction {n}", f"one of {list(map(str, a * b))}", c, f"{a} x {b} holds no {c}")


def _coefficients(ls: list[int], scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """Places [nnz, 3] and values [nnz] of the non-zero coefficients: scale * w3j, or a Tensor itself."""
    with torch.device("cpu"):
        c = scale.to("cpu", torch.float64) if isinstance(scale, Tensor) else (
            o3.wigner_3j(*ls, dtype=torch.float64) * scale)
        nonzero = c.abs() > 1e-14 * max(c.norm().item(), 1e-300)
        return nonzero.nonzero(), c[nonzero]


class ProductTable:
    """Tables of a tensor product: what is multiplied with what.

    Args:
        irreps_in1, irreps_in2, irreps_out: e3nn irreps.
        instructions: (i_in1, i_in2, i_out, mode, has_weight, scale): out[i_out] += scale * w3j(in1[i_in1], in2[i_in2])
            . weight in one of e3nn's connection modes (MODES), those with weights each with its own block of the flat
            weight, in this order; scale holds e3nn's path weight and any constant folded into it, or is a Tensor
            [2l1+1, 2l2+1, 2l3+1] that stands in place of scale * w3j.
        bias: adds a bias to every even scalar of the output.
        layout: of both inputs and the output, "mul_ir" (e3nn's: the components of a channel lie together) or "ir_mul"
            (the channels of a component lie together).

    Raises:
        ValueError: an unknown mode or layout, slices that do not exist, an output that the product of the irreps does
            not hold, coefficients of other dimensions, or multiplicities that do not fit the mode.

    The coefficients are float64 and live outside the module's buffers: `.to(dtype)`, meta-device construction and
    `to_empty` cannot touch them. `on(device)` returns them where they are needed, moved once per device.
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, instructions, bias: bool | Collection[int] = False,
                 layout: str = "mul_ir"):
        in1, in2, out = (o3.Irreps(i) for i in (irreps_in1, irreps_in2, irreps_out))
        if layout not in LAYOUTS:
            fail("ProductTable", "layout", f"one of {LAYOUTS}", repr(layout))
        self.irreps, self.instructions = (in1, in2, out), tuple(instructions)
        self.dims = (in1.dim, in2.dim, out.dim, LAYOUTS.index(layout))
        slices = [i.slices() for i in (in1, in2, out)]
        paths, index, value, weight = [], [], [], 0
        for n, instruction in enumerate(self.instructions):
            _check_instruction(n, instruction, self.irreps)
            i1, i2, i3, mode, has_weight, scale = instruction
            irreps = (in1[i1], in2[i2], out[i3])
            _check_mode(n, mode, has_weight, *(mul for mul, _ in irreps))
            with torch.inference_mode(False):  # kept for calls that may train
                ijk, coefficients = _coefficients([ir.l for _, ir in irreps], scale)
            start = sum(len(v) for v in value)
            index.append(ijk)
            value.append(coefficients)
            blocks = [(s[i].start, mul, ir.dim) for s, i, (mul, ir) in zip(slices, (i1, i2, i3), irreps, strict=True)]
            path = Path(*blocks[0], *blocks[1], *blocks[2], weight if has_weight else -1, start, start + len(ijk),
                        MODES.index(mode))
            paths += path
            weight += math.prod(weight_shape(path)) if has_weight else 0
        with torch.device("cpu"), torch.inference_mode(False):
            cpu_index = torch.cat([torch.zeros(0, 3, dtype=torch.int64), *index])
            cpu_value = torch.cat([torch.zeros(0, dtype=torch.float64), *value])
        self.paths = tuple(paths)
        self.weight_numel = weight
        biased = range(len(out)) if bias is True else bias or ()
        slots = [(s.start, mul) for n, (s, (mul, ir)) in enumerate(zip(slices[2], out, strict=True))
                 if n in biased and ir == o3.Irrep("0e") and mul]
        self.bias_slots = tuple(v for slot in slots for v in slot)
        self.bias_numel = sum(self.bias_slots[1::2])
        self._on = {"cpu": (cpu_index, cpu_value)}
        self._peers = {}  # adapters to other libraries, see ace_fast.nn.peers

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Coefficient table on `device`: index [nnz, 3] int64 (i, j, k) and value [nnz] float64."""
        key = str(device)
        if key not in self._on:
            with torch.inference_mode(False):  # kept for later calls, which may train
                self._on[key] = tuple(t.to(device) for t in self._on["cpu"])
        return self._on[key]

    def __getstate__(self):
        return self.__dict__ | {"_on": {"cpu": self._on["cpu"]}, "_peers": {}}


class GateTable(NamedTuple):
    """Layout of e3nn's Gate with SiLU scalars and sigmoid gates: in = scalars, gates, gated; out = scalars, gated."""

    layout: tuple[int, ...]  # n_scalars, n_gates, then (multiplicity, 2l+1) of each gated slice
    scalar_gain: float  # e3nn's second-moment constants (1 where there is no gated part)
    gate_gain: float


class NormTable(NamedTuple):
    """e3nn's NormActivation: `activation` of each channel's norm, clamped to `epsilon` from below."""

    layout: tuple[int, ...]  # (multiplicity, 2l+1) of each slice
    activation: str  # one of ACTIVATIONS
    epsilon: float = 1e-8
