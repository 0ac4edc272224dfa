"""spectral_conv in Triton: rows along time, products of channels with the weights' real matrices, back to time.

Three kernels: a small matrix along time (with the leaky ReLU or its slope and the sum with x), the products by terms,
and the gradient of the weight, summed over the nodes in parts of a size that depends on the shapes only.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton_common import (
    AotCase,
    accumulator,
    allow_tf32,
    cdiv,
    dot,
    launch,
    next_power_of_2,
    tl,
    triton,
)
from .table import algebra, three_products

COLUMNS = 256  # of a program along time


@triton.jit
def spectral_conv_kernel_time(
    f, x, base, positive, y, R, K, C,
    SLOPED: tl.constexpr, ACTIVATE: tl.constexpr, ADD: tl.constexpr, SLOPE: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [R, C] = act(f [R, K] x [K, C]) + base [R, C]; one program per [BR, BC].

    SLOPED: x times SLOPE where not `positive` [K, C]. ACTIVATE: leaky ReLU of the product; its sign goes to `positive`.
    """
    o_c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)
    o_r = tl.program_id(1).to(tl.int64) * BR + tl.arange(0, BR)
    m_c, m_r = o_c < C, o_r < R
    b_acc = tl.zeros([BR, BC], dtype=ACC)
    for i_k in range(0, K):
        o_x = tl.cast(i_k, tl.int64) * C + o_c
        b_x = tl.load(x + o_x, mask=m_c, other=0.0)
        if SLOPED:
            b_x = tl.where(tl.load(positive + o_x, mask=m_c, other=0) != 0, b_x, b_x * SLOPE)
        b_f = tl.load(f + o_r * K + i_k, mask=m_r, other=0.0)
        b_acc += b_f[:, None] * b_x[None, :]
    o_y = o_r[:, None] * C + o_c[None, :]
    m_y = m_r[:, None] & m_c[None, :]
    if ACTIVATE:
        b_positive = b_acc > 0
        tl.store(positive + o_y, b_positive.to(tl.uint8), mask=m_y)
        b_acc = tl.where(b_positive, b_acc, b_acc * SLOPE)
    if ADD:
        b_acc += tl.load(base + o_y, mask=m_y, other=0.0)
    tl.store(y + o_y, b_acc, mask=m_y)


@triton.jit
def spectral_conv_kernel_mix(
    rows, weight, terms, starts, sums, N, I, O, width, step_i, step_o, blocks_o,
    BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """sums [S, N, O]: sum s is that of its terms' rows [N, I] times real matrices [I, O] made of the weight's parts.

    One program per [BN, BO] of a sum. Element (i, o) of the weight lies at i step_i + o step_o in pairs of `width`.
    """
    i_s = tl.program_id(1).to(tl.int64)
    o_n = (tl.program_id(0) // blocks_o).to(tl.int64) * BN + tl.arange(0, BN)
    o_o = (tl.program_id(0) % blocks_o).to(tl.int64) * BO + tl.arange(0, BO)
    m_n, m_o = o_n < N, o_o < O
    b_acc = tl.zeros([BN, BO], dtype=ACC)
    for i_t in range(tl.load(starts + i_s), tl.load(starts + i_s + 1)):
        i_row = tl.load(terms + i_t * 5)
        p_weight = weight + 2 * tl.load(terms + i_t * 5 + 2)
        b_re, b_im = tl.load(terms + i_t * 5 + 3).to(ACC), tl.load(terms + i_t * 5 + 4).to(ACC)
        for i_i in range(0, I, BI):
            o_i = i_i + tl.arange(0, BI)
            m_i = o_i < I
            b_x = tl.load(rows + (i_row * N + o_n[:, None]) * I + o_i[None, :], mask=m_n[:, None] & m_i[None, :],
                          other=0.0)
            o_w = (o_i.to(tl.int64)[:, None] * step_i + o_o[None, :] * step_o) * width
            m_w = m_i[:, None] & m_o[None, :]
            b_w = b_re * tl.load(p_weight + o_w, mask=m_w, other=0.0)
            b_w += b_im * tl.load(p_weight + o_w + 1, mask=m_w, other=0.0)
            b_acc = dot(b_x, b_w, b_acc, ALLOW_TF32)
    tl.store(sums + (i_s * N + o_n[:, None]) * O + o_o[None, :], b_acc, mask=m_n[:, None] & m_o[None, :])


@triton.jit
def spectral_conv_bwd_kernel_weight(
    of_x, of_g, terms, starts, parts, N, I, O, M, part_rows, blocks_o,
    BI: tl.constexpr, BO: tl.constexpr, BN: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """Part s of the gradient of the weight, parts [S, I, O, M, 2]; one program per part, mode and [BI, BO]."""
    i_m, i_s = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_i = (tl.program_id(0) // blocks_o).to(tl.int64) * BI + tl.arange(0, BI)
    o_o = (tl.program_id(0) % blocks_o).to(tl.int64) * BO + tl.arange(0, BO)
    m_i, m_o = o_i < I, o_o < O
    b_re, b_im = tl.zeros([BI, BO], dtype=ACC), tl.zeros([BI, BO], dtype=ACC)
    for i_t in range(tl.load(starts + i_m), tl.load(starts + i_m + 1)):
        i_x, i_g = tl.load(terms + i_t * 5), tl.load(terms + i_t * 5 + 1)
        b_acc = tl.zeros([BI, BO], dtype=ACC)
        for i_n in range(0, tl.minimum(part_rows, N - i_s * part_rows), BN):
            o_n = i_s * part_rows + i_n + tl.arange(0, BN)
            m_n = o_n < N
            b_x = tl.load(of_x + (i_x * N + o_n[None, :]) * I + o_i[:, None], mask=m_n[None, :] & m_i[:, None],
                          other=0.0)
            b_g = tl.load(of_g + (i_g * N + o_n[:, None]) * O + o_o[None, :], mask=m_n[:, None] & m_o[None, :],
                          other=0.0)
            b_acc = dot(b_x, b_g, b_acc, ALLOW_TF32)
        b_re += b_acc * tl.load(terms + i_t * 5 + 3).to(ACC)
        b_im += b_acc * tl.load(terms + i_t * 5 + 4).to(ACC)
    o_w = (((i_s * I + o_i[:, None]) * O + o_o[None, :]) * M + i_m) * 2
    m_w = m_i[:, None] & m_o[None, :]
    tl.store(parts + o_w, b_re, mask=m_w)
    tl.store(parts + o_w + 1, b_im, mask=m_w)


class Plan(NamedTuple):
    """The algebra on a device: matrices along time and transposes; terms sorted by `key` with where each key starts."""

    analysis: Tensor  # [A, T]
    synthesis: Tensor  # [T, B]
    analysis_t: Tensor
    synthesis_t: Tensor
    by_sum: tuple[Tensor, Tensor]  # int64 [terms, 5], starts [B + 1]
    by_row: tuple[Tensor, Tensor]  # the way back: source and to exchanged, starts [A + 1]
    by_mode: tuple[Tensor, Tensor]  # starts [M + 1]


# It depends on these values only, so it is kept: making one copies it to the device, which waits.
@functools.cache
def _plan(times: int, modes: int, three: bool, dtype: torch.dtype, device: torch.device) -> Plan:
    found = algebra(times, modes, three)
    back = [(t.to, t.source, *t[2:]) for t in found.terms]

    def matrix(values) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device="cpu").to(device, dtype)

    def by(key: int, terms: list) -> tuple[Tensor, Tensor]:
        ordered = sorted(terms, key=lambda t: t[key])
        keys = [t[key] for t in ordered]
        starts = [sum(k < value for k in keys) for value in range(max(keys) + 2)]
        return tuple(torch.tensor(v, dtype=torch.int64, device="cpu").to(device) for v in (ordered, starts))

    with torch.inference_mode(False):  # kept for later calls, which may train
        matrices = [matrix(m) for m in (found.analysis, found.synthesis)]
        return Plan(*matrices, *(m.t().contiguous() for m in matrices), by(1, list(found.terms)), by(1, back),
                    by(2, list(found.terms)))


def _plan_of(x: Tensor, weight: Tensor) -> Plan:
    times, (i, o, modes, _) = x.shape[0], weight.shape
    return _plan(times, modes, three_products(times, modes, i, o), x.dtype, x.device)


def _tile(dtype: torch.dtype) -> dict:
    """Edges of the tile of a product, depth of its steps, warps."""
    return {"edge": 32 if dtype == torch.float64 else 64, "depth": 16, "warps": 8}


def _over_time(f: Tensor, x: Tensor, channels: int, slope: float = 1.0, sloped_by: Tensor | None = None,
               activate: bool = False, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """f [R, K] x [K, N, C] -> [R, N, C], with its signs where it is activated; see the kernel."""
    (rows, depth), n = f.shape, x.shape[1]
    y = x.new_empty(rows, n, channels)
    positive = sloped_by if sloped_by is not None else y.new_empty(y.shape if activate else 0, dtype=torch.bool)
    block = min(16, next_power_of_2(rows))
    columns = n * channels
    launch(spectral_conv_kernel_time, (cdiv(columns, COLUMNS), cdiv(rows, block)), f, x, y if base is None else base,
           positive.view(torch.uint8), y, rows, depth, columns, SLOPED=sloped_by is not None, ACTIVATE=activate,
           ADD=base is not None, SLOPE=slope, BR=block, BC=COLUMNS, ACC=accumulator(x.dtype), device=x.device)
    return y, positive


def _mix(rows: Tensor, weight: Tensor, terms: tuple[Tensor, Tensor], back: bool) -> Tensor:
    """rows [A, N, I] -> sums [B, N, O]; back: I and O of the weight change places."""
    i, o, modes, _ = weight.shape
    step_i, step_o = (1, o) if back else (o, 1)
    inner, outer = (o, i) if back else (i, o)
    n, count, t = rows.shape[1], terms[1].shape[0] - 1, _tile(rows.dtype)
    sums = rows.new_empty(count, n, outer)
    blocks = cdiv(outer, t["edge"])
    launch(spectral_conv_kernel_mix, (cdiv(n, t["edge"]) * blocks, count), rows, weight, *terms, sums, n, inner, outer,
           2 * modes, step_i, step_o, blocks, BN=t["edge"], BO=t["edge"], BI=t["depth"], ACC=accumulator(rows.dtype),
           ALLOW_TF32=allow_tf32(rows), device=rows.device, num_warps=t["warps"], maxnreg=255)
    return sums


def _weight_gradient(of_x: Tensor, of_g: Tensor, weight: Tensor, terms: tuple[Tensor, Tensor]) -> Tensor:
    """Rows of x [A, N, I] and of g [B, N, O] -> [I, O, M, 2]."""
    (i, o, modes, _), n, t = weight.shape, of_x.shape[1], _tile(of_x.dtype)
    part_rows = max(256, next_power_of_2(cdiv(n, 32)))
    count, blocks = max(1, cdiv(n, part_rows)), cdiv(o, t["edge"])
    parts = weight.new_empty(count, *weight.shape)
    launch(spectral_conv_bwd_kernel_weight, (cdiv(i, t["edge"]) * blocks, modes, count), of_x, of_g, *terms, parts, n,
           i, o, modes, part_rows, blocks, BI=t["edge"], BO=t["edge"], BN=t["depth"], ACC=accumulator(of_x.dtype),
           ALLOW_TF32=allow_tf32(of_x), device=of_x.device, num_warps=t["warps"], maxnreg=255)
    return parts[0] if count == 1 else parts.sum(0)


def _forward(x, weight, slope: float, activate: bool) -> tuple[Tensor, Tensor]:
    x, weight, plan = x.contiguous(), weight.contiguous(), _plan_of(x, weight)
    rows, _ = _over_time(plan.analysis, x, x.shape[2])
    sums = _mix(rows, weight, plan.by_sum, False)
    return _over_time(plan.synthesis, sums, weight.shape[1], slope, activate=activate, base=x if activate else None)


def _backward(g, positive, x, weight, slope: float, needs) -> tuple[Tensor, Tensor]:
    g, x, weight, plan = g.contiguous(), x.contiguous(), weight.contiguous(), _plan_of(x, weight)
    g_x, g_weight = g.new_empty(0), g.new_empty(0)
    of_g, _ = _over_time(plan.synthesis_t, g, weight.shape[1], slope, positive)
    if needs[0]:
        sums = _mix(of_g, weight, plan.by_row, True)
        g_x, _ = _over_time(plan.analysis_t, sums, x.shape[2], base=None if positive is None else g)
    if needs[1]:
        of_x, _ = _over_time(plan.analysis, x, x.shape[2])
        g_weight = _weight_gradient(of_x, of_g, weight, plan.by_mode)
    return g_x, g_weight


def forward(x, weight) -> Tensor:
    """x [T, N, I], weight [I, O, M, 2] -> [T, N, O], as in the reference."""
    return _forward(x, weight, 1.0, False)[0]


def backward(g, x, weight, needs) -> tuple[Tensor, Tensor]:
    """g [T, N, O] -> gradients of (x, weight), as in the reference."""
    return _backward(g, None, x, weight, 1.0, needs)


def time_forward(x, weight, slope) -> tuple[Tensor, Tensor]:
    """x [T, N, C], weight [C, C, M, 2] -> the result and where the convolution is positive, as in the reference."""
    return _forward(x, weight, slope, True)


def time_backward(g, positive, x, weight, slope, needs) -> tuple[Tensor, Tensor]:
    """g [T, N, C] -> gradients of (x, weight), as in the reference."""
    return _backward(g, positive.contiguous(), x, weight, slope, needs)


def _aot(dtype: torch.dtype) -> list[AotCase]:
    kind, acc, t = "*fp64" if dtype == torch.float64 else "*fp32", accumulator(dtype), _tile(dtype)
    product = {"BO": t["edge"], "ACC": acc, "ALLOW_TF32": False}
    options = {"num_warps": t["warps"], "maxnreg": 255}

    def signature(tensors: str, indices: str, integers: str) -> dict[str, str]:
        return (dict.fromkeys(tensors.split(), kind) | dict.fromkeys(indices.split(), "*i64")
                | dict.fromkeys(integers.split(), "i32"))

    found = [
        AotCase(spectral_conv_kernel_time, signature("f x base y", "", "R K C") | {"positive": "*u8"},
                {"SLOPED": sloped, "ACTIVATE": not sloped, "ADD": not sloped, "SLOPE": 0.01, "BR": rows, "BC": COLUMNS,
                 "ACC": acc})
        for sloped, rows in ((False, 8), (True, 16))
    ]
    mix = signature("rows weight sums", "terms starts", "N I O width step_i step_o blocks_o")
    weights = signature("of_x of_g parts", "terms starts", "N I O M part_rows blocks_o")
    found.append(AotCase(spectral_conv_kernel_mix, mix, product | {"BN": t["edge"], "BI": t["depth"]}, **options))
    found.append(AotCase(spectral_conv_bwd_kernel_weight, weights, product | {"BI": t["edge"], "BN": t["depth"]},
                         **options))
    return found


AOT = [*_aot(torch.float32), *_aot(torch.float64)]
