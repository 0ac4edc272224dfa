"""From irreps and instructions to the integer and coefficient tables that the kernels read."""

from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor


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
    weight: int  # offset of the [U, V, W] block in the flat weight
    start: int  # its non-zero coefficients are rows start..stop-1 of the table
    stop: int


def unpack(paths: list[int]) -> list[Path]:
    """The flat integers that the operator takes, as Paths."""
    n = len(Path._fields)
    return [Path(*paths[i:i + n]) for i in range(0, len(paths), n)]


class ProductTable:
    """Tables of a fully connected ("uvw") tensor product with shared weights.

    Args:
        irreps_in1, irreps_in2, irreps_out: e3nn irreps.
        instructions: (i_in1, i_in2, i_out, scale): out[i_out] += scale * w3j(in1[i_in1], in2[i_in2]) . weight, each
            with its own [U, V, W] block of the flat weight, in this order; scale holds e3nn's path weight and any
            constant folded into it.
        bias: adds a bias to every even scalar of the output.

    The coefficients are float64 and live outside the module's buffers: `.to(dtype)`, meta-device construction and
    `to_empty` cannot touch them. `on(device)` returns them where they are needed, moved once per device.
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, instructions, bias: bool = False):
        in1, in2, out = (o3.Irreps(i) for i in (irreps_in1, irreps_in2, irreps_out))
        self.dims = (in1.dim, in2.dim, out.dim)
        slices = [i.slices() for i in (in1, in2, out)]
        paths, index, value, weight = [], [], [], 0
        for i1, i2, i3, scale in instructions:
            irreps = (in1[i1], in2[i2], out[i3])
            with torch.device("cpu"):
                w3j = o3.wigner_3j(*(ir.l for _, ir in irreps), dtype=torch.float64) * scale
                nonzero = w3j.abs() > 1e-14 * max(abs(scale), 1e-300)
                ijk = nonzero.nonzero()
            start = sum(len(v) for v in value)
            index.append(ijk)
            value.append(w3j[nonzero])
            blocks = [(s[i].start, mul, ir.dim) for s, i, (mul, ir) in zip(slices, (i1, i2, i3), irreps, strict=True)]
            paths += [*blocks[0], *blocks[1], *blocks[2], weight, start, start + len(ijk)]
            weight += irreps[0].mul * irreps[1].mul * irreps[2].mul
        with torch.device("cpu"):
            cpu_index = torch.cat([torch.zeros(0, 3, dtype=torch.int64), *index])
            cpu_value = torch.cat([torch.zeros(0, dtype=torch.float64), *value])
        self.paths = tuple(paths)
        self.weight_numel = weight
        slots = [(s.start, mul) for s, (mul, ir) in zip(slices[2], out, strict=True) if ir == o3.Irrep("0e") and mul]
        self.bias_slots = tuple(v for slot in slots for v in slot) if bias else ()
        self.bias_numel = sum(self.bias_slots[1::2])
        self._on = {"cpu": (cpu_index, cpu_value)}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Coefficient table on `device`: index [nnz, 3] int64 (i, j, k) and value [nnz] float64."""
        key = str(device)
        if key not in self._on:
            with torch.inference_mode(False):  # kept for later calls, which may train
                self._on[key] = tuple(t.to(device) for t in self._on["cpu"])
        return self._on[key]

    def __getstate__(self):
        return self.__dict__ | {"_on": {"cpu": self._on["cpu"]}}


class GateTable(NamedTuple):
    """Layout of e3nn's Gate with SiLU scalars and sigmoid gates: in = scalars, gates, gated; out = scalars, gated."""

    layout: tuple[int, ...]  # n_scalars, n_gates, then (multiplicity, 2l+1) of each gated slice
    scalar_gain: float  # e3nn's second-moment constants (1 where there is no gated part)
    gate_gain: float
