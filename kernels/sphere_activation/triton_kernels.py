"""sphere_activation in Triton: blocks of elements (a row and channel each) against tables of points, no value stored.

A program holds the coefficients of a block of elements and walks the points in blocks: two products of matrices around
the function. Elements are the rows of every tile, as in sphere_product.
"""

import torch
from torch import Tensor

from ..sphere_product.blocks import width
from ..sphere_product.triton_kernels import WIDE, columns_of, has_wide_mma, places
from ..triton_common import (
    SPLIT,
    AotCase,
    accumulator,
    allow_tf32,
    cdiv,
    dot,
    gelu_erf,
    launch,
    sigmoid,
    softplus,
    tl,
    triton,
)
from .reference import ACTIVATIONS

_NONE, _SILU, _RELU, _GELU, _TANH, _SIGMOID, _SOFTPLUS = map(tl.constexpr, range(len(ACTIVATIONS)))


@triton.jit
def tanh(x):
    # in exp of a negative number; near zero the difference would cancel, there the series takes over
    b_e = tl.exp(-2.0 * tl.abs(x))
    b_far = (1.0 - b_e) / (1.0 + b_e)
    b_s = x * x
    b_near = tl.abs(x) * (1.0 - b_s * (1.0 / 3.0 - b_s * (2.0 / 15.0 - b_s * (17.0 / 315.0 - b_s * (62.0 / 2835.0)))))
    b_abs = tl.where(tl.abs(x) < 0.03, b_near, b_far)
    return tl.where(x < 0, -b_abs, b_abs)


@triton.jit
def activation(u, ACT: tl.constexpr):
    """f(u)."""
    if ACT == _SILU:
        return u * sigmoid(u)
    elif ACT == _RELU:
        return tl.maximum(u, 0.0)
    elif ACT == _GELU:
        return gelu_erf(u)
    elif ACT == _TANH:
        return tanh(u)
    elif ACT == _SIGMOID:
        return sigmoid(u)
    elif ACT == _SOFTPLUS:
        return tl.where(u > 20.0, u, softplus(u))  # as PyTorch has it
    else:
        return u


@triton.jit
def derivatives(u, ACT: tl.constexpr):
    """f'(u) and f''(u)."""
    if ACT == _RELU:
        return tl.where(u > 0, 1.0, 0.0).to(u.dtype), u * 0.0
    elif ACT == _GELU:
        b_density = 0.3989422804014327 * tl.exp(-0.5 * u * u)
        b_normal = 0.5 * (1.0 + tl.math.erf(u * 0.7071067811865476))
        return b_normal + u * b_density, b_density * (2.0 - u * u)
    elif ACT == _TANH:
        b_t = tanh(u)
        return 1.0 - b_t * b_t, -2.0 * b_t * (1.0 - b_t * b_t)
    elif ACT == _NONE:
        return u * 0.0 + 1.0, u * 0.0
    else:
        b_s = sigmoid(u)
        b_slope = b_s * (1.0 - b_s)
        if ACT == _SIGMOID:
            return b_slope, b_slope * (1.0 - 2.0 * b_s)
        elif ACT == _SOFTPLUS:
            return tl.where(u > 20.0, 1.0, b_s), tl.where(u > 20.0, 0.0, b_slope)
        else:
            return b_s + u * b_slope, b_slope * (2.0 + u * (1.0 - 2.0 * b_s))


@triton.jit
def _rows(i_z, o_z, o_c, m_n, C, o_i, D: tl.constexpr, IR_MUL: tl.constexpr):
    """Offsets [elements, components] of components o_i in rows of D C, and the mask."""
    return i_z * D * C + places(o_i, o_z, o_c, C, D, IR_MUL), m_n[:, None] & (o_i < D)[None, :]


@triton.jit
def _table(table, o_s, o_i, S: tl.constexpr, D: tl.constexpr):
    """A block [points, components] of a table [S, D]."""
    return tl.load(table + o_s[:, None] * D + o_i[None, :], mask=(o_s < S)[:, None] & (o_i < D)[None, :], other=0.0)


@triton.jit
def _at_points(b_x, b_table, ALLOW_TF32: tl.constexpr):
    """Values [elements, points] of coefficients."""
    return dot(b_x, tl.trans(b_table), tl.zeros([b_x.shape[0], b_table.shape[0]], dtype=b_x.dtype), ALLOW_TF32, SPLIT)


@triton.jit
def sphere_activation_fwd_kernel(
    x, x2, gate, into, back, y, elements, C,
    S: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ACT: tl.constexpr, HAS_X2: tl.constexpr, HAS_GATE: tl.constexpr,
    IR_MUL: tl.constexpr, IS_WIDE: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """y = gate A^T (f(B x) B x2); one program for BN elements."""
    i_z, o_z, o_c, m_n = columns_of(elements, C, BN, IS_WIDE)
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o_d, o_e = tl.arange(0, BD), tl.arange(0, BE)
    o_x, m_x = _rows(i_z, o_z, o_c, m_n, C, o_d, D, IR_MUL)
    b_x = tl.load(x + o_x, mask=m_x, other=0.0).to(ACC)
    if HAS_X2:
        b_x2 = tl.load(x2 + o_x, mask=m_x, other=0.0).to(ACC)
    b_y = tl.zeros([BN, BE], dtype=ACC)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)
        b_into = _table(into, o_s, o_d, S, D)
        b_f = activation(_at_points(b_x, b_into, ALLOW_TF32), ACT)
        if HAS_X2:
            b_f *= _at_points(b_x2, b_into, ALLOW_TF32)
        b_back = _table(back, o_s, o_e, S, E)
        b_y = dot(b_f, b_back, b_y, ALLOW_TF32, SPLIT)
    if HAS_GATE:
        b_y *= tl.load(gate + o_n, mask=m_n, other=0.0).to(ACC)[:, None]
    o_y, m_y = _rows(i_z, o_z, o_c, m_n, C, o_e, E, IR_MUL)
    tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


@triton.jit
def sphere_activation_bwd_kernel(
    g, x, x2, gate, into, back, g_x, g_x2, g_gate, elements, C,
    S: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ACT: tl.constexpr, HAS_X2: tl.constexpr, HAS_GATE: tl.constexpr,
    NEED_X: tl.constexpr, NEED_X2: tl.constexpr, NEED_GATE: tl.constexpr,
    IR_MUL: tl.constexpr, IS_WIDE: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """g_x = B^T (f' v w h), g_x2 = B^T (f w h), g_gate = sum f v w with w = A g; one program for BN elements."""
    i_z, o_z, o_c, m_n = columns_of(elements, C, BN, IS_WIDE)
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o_d, o_e = tl.arange(0, BD), tl.arange(0, BE)
    o_x, m_x = _rows(i_z, o_z, o_c, m_n, C, o_d, D, IR_MUL)
    o_g, m_g = _rows(i_z, o_z, o_c, m_n, C, o_e, E, IR_MUL)
    b_x, b_g = tl.load(x + o_x, mask=m_x, other=0.0).to(ACC), tl.load(g + o_g, mask=m_g, other=0.0).to(ACC)
    if HAS_X2:
        b_x2 = tl.load(x2 + o_x, mask=m_x, other=0.0).to(ACC)
    b_g_x, b_g_x2 = tl.zeros([BN, BD], dtype=ACC), tl.zeros([BN, BD], dtype=ACC)
    b_sum = tl.zeros([BN], dtype=ACC)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)
        b_into = _table(into, o_s, o_d, S, D)
        b_back = _table(back, o_s, o_e, S, E)
        b_u = _at_points(b_x, b_into, ALLOW_TF32)
        b_w = _at_points(b_g, b_back, ALLOW_TF32)
        if NEED_X2 or NEED_GATE:
            b_f = activation(b_u, ACT) * b_w
            if NEED_X2:
                b_g_x2 = dot(b_f, b_into, b_g_x2, ALLOW_TF32, SPLIT)
        if HAS_X2:
            b_v = _at_points(b_x2, b_into, ALLOW_TF32)
            b_w *= b_v
            if NEED_GATE:
                b_f *= b_v
        if NEED_GATE:
            b_sum += tl.sum(b_f, 1)
        if NEED_X:
            b_slope, _ = derivatives(b_u, ACT)
            b_g_x = dot(b_slope * b_w, b_into, b_g_x, ALLOW_TF32, SPLIT)
    if HAS_GATE:
        b_h = tl.load(gate + o_n, mask=m_n, other=0.0).to(ACC)[:, None]
        b_g_x *= b_h
        b_g_x2 *= b_h
    if NEED_X:
        tl.store(g_x + o_x, b_g_x.to(g_x.dtype.element_ty), mask=m_x)
    if NEED_X2:
        tl.store(g_x2 + o_x, b_g_x2.to(g_x2.dtype.element_ty), mask=m_x)
    if NEED_GATE:
        tl.store(g_gate + o_n, b_sum.to(g_gate.dtype.element_ty), mask=m_n)


@triton.jit
def sphere_activation_bwd_bwd_kernel(
    c_x, c_x2, c_gate, g, x, x2, gate, into, back, g_g, g_x, g_x2, g_gate, elements, C,
    S: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ACT: tl.constexpr, HAS_X2: tl.constexpr, HAS_GATE: tl.constexpr,
    HAS_C_X: tl.constexpr, HAS_C_X2: tl.constexpr, HAS_C_GATE: tl.constexpr,
    NEED_G: tl.constexpr, NEED_X: tl.constexpr, NEED_X2: tl.constexpr, NEED_GATE: tl.constexpr,
    IR_MUL: tl.constexpr, IS_WIDE: tl.constexpr, BN: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BE: tl.constexpr,
    ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """Gradients of <c_x, g_x> + <c_x2, g_x2> + <c_gate, g_gate>, as in README.md; one program for BN elements."""
    i_z, o_z, o_c, m_n = columns_of(elements, C, BN, IS_WIDE)
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o_d, o_e = tl.arange(0, BD), tl.arange(0, BE)
    o_x, m_x = _rows(i_z, o_z, o_c, m_n, C, o_d, D, IR_MUL)
    o_g, m_g = _rows(i_z, o_z, o_c, m_n, C, o_e, E, IR_MUL)
    b_h, b_r = tl.full([BN, 1], 1.0, dtype=ACC), tl.zeros([BN, 1], dtype=ACC)
    if HAS_GATE:
        b_h = tl.load(gate + o_n, mask=m_n, other=0.0).to(ACC)[:, None]
    if HAS_C_GATE:
        b_r = tl.load(c_gate + o_n, mask=m_n, other=0.0).to(ACC)[:, None]
    b_g_g = tl.zeros([BN, BE], dtype=ACC)
    b_g_x, b_g_x2 = tl.zeros([BN, BD], dtype=ACC), tl.zeros([BN, BD], dtype=ACC)
    b_sum = tl.zeros([BN], dtype=ACC)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)
        b_into = _table(into, o_s, o_d, S, D)
        b_back = _table(back, o_s, o_e, S, E)
        b_zero = tl.zeros([BN, BS], dtype=ACC)
        b_u = _at_points(tl.load(x + o_x, mask=m_x, other=0.0).to(ACC), b_into, ALLOW_TF32)
        b_w = _at_points(tl.load(g + o_g, mask=m_g, other=0.0).to(ACC), b_back, ALLOW_TF32)
        b_v, b_p, b_q = b_zero + 1.0, b_zero, b_zero
        if HAS_X2:
            b_v = _at_points(tl.load(x2 + o_x, mask=m_x, other=0.0).to(ACC), b_into, ALLOW_TF32)
        if HAS_C_X:
            b_p = _at_points(tl.load(c_x + o_x, mask=m_x, other=0.0).to(ACC), b_into, ALLOW_TF32)
        if HAS_C_X2:
            b_q = _at_points(tl.load(c_x2 + o_x, mask=m_x, other=0.0).to(ACC), b_into, ALLOW_TF32)
        b_f = activation(b_u, ACT)
        b_slope, b_curve = derivatives(b_u, ACT)
        b_t = b_p * b_slope * b_v + b_q * b_f
        if NEED_G:
            b_g_g = dot(b_h * b_t + b_r * b_f * b_v, b_back, b_g_g, ALLOW_TF32, SPLIT)
        if NEED_X:
            b_more = b_h * (b_p * b_curve * b_v + b_q * b_slope) + b_r * b_slope * b_v
            b_g_x = dot(b_w * b_more, b_into, b_g_x, ALLOW_TF32, SPLIT)
        if NEED_X2:
            b_g_x2 = dot(b_w * (b_h * b_p * b_slope + b_r * b_f), b_into, b_g_x2, ALLOW_TF32, SPLIT)
        b_sum += tl.sum(b_w * b_t, 1)
    if NEED_G:
        tl.store(g_g + o_g, b_g_g.to(g_g.dtype.element_ty), mask=m_g)
    if NEED_X:
        tl.store(g_x + o_x, b_g_x.to(g_x.dtype.element_ty), mask=m_x)
    if NEED_X2:
        tl.store(g_x2 + o_x, b_g_x2.to(g_x2.dtype.element_ty), mask=m_x)
    if NEED_GATE:
        tl.store(g_gate + o_n, b_sum.to(g_gate.dtype.element_ty), mask=m_n)


def _tile(dtype: torch.dtype, widest: int, order: int, is_hopper: bool) -> dict:
    """Elements and points of a block and the launch's options: fewer where coefficients or fields are many."""
    warps = 8 if order and widest > 32 else 4
    if dtype == torch.float64 or order == 2 or widest > 64 or order and widest == 64:
        elements, points = 16, 16
    elif is_hopper:
        elements, points = {16: (64, 32), 32: (64, 32 >> order), 64: (64, 16)}[widest]
    else:
        elements, points = {16: (64, 32 >> order), 32: (64 >> order, 16), 64: (32, 16)}[widest]
    return {"BN": elements, "BS": points, "num_warps": warps, "num_stages": 2, "maxnreg": 255}


def _launch(kernel, tensors, x, into, back, outputs, ir_mul, act, order, **flags) -> None:
    (rows, components), d, e = x.shape, into.shape[1], back.shape[1]
    channels = components // d
    tables = [t.to(torch.promote_types(x.dtype, torch.float32)).contiguous() for t in (into, back)]
    tile = _tile(x.dtype, width(max(d, e)), order, has_wide_mma(x.device))
    launch(kernel, (cdiv(rows * channels, tile["BN"]),), *tensors, *tables, *outputs, rows * channels, channels,
           S=into.shape[0], D=d, E=e, ACT=ACTIVATIONS.index(act), IR_MUL=ir_mul,
           IS_WIDE=channels * max(d, e) >= WIDE, BD=width(d), BE=width(e), ACC=accumulator(x.dtype),
           ALLOW_TF32=allow_tf32(x), device=x.device, **flags, **tile)


def _dense(x: Tensor, *others: Tensor | None) -> list[Tensor]:
    """Contiguous; an absent tensor is never read, any pointer stands for it."""
    return [(x if t is None else t).contiguous() for t in (x, *others)]


def forward(x, x2, gate, into, back, ring, ir_mul, act) -> Tensor:
    """x, x2 [Z, d C], gate [Z, C] -> [Z, e C], as in the reference."""
    y = x.new_empty(x.shape[0], x.shape[1] // into.shape[1] * back.shape[1])
    _launch(sphere_activation_fwd_kernel, _dense(x, x2, gate), x, into, back, [y], ir_mul, act, 0,
            HAS_X2=x2 is not None, HAS_GATE=gate is not None)
    return y


def _outputs(x, needs, *like) -> list[Tensor]:
    return [x.new_empty(t.shape if need else (0,)) for t, need in zip(like, needs, strict=True)]


def backward(g, x, x2, gate, into, back, ring, ir_mul, act, needs) -> tuple[Tensor, ...]:
    """g [Z, e C] -> gradients of (x, x2, gate), as in the reference."""
    found = _outputs(x, needs, x, x2, gate)
    x, g, *rest = _dense(x, g, x2, gate)
    _launch(sphere_activation_bwd_kernel, [g, x, *rest], x, into, back, found, ir_mul, act, 1, HAS_X2=x2 is not None,
            HAS_GATE=gate is not None, **dict(zip(("NEED_X", "NEED_X2", "NEED_GATE"), needs, strict=True)))
    return tuple(found)


def second(c_x, c_x2, c_gate, g, x, x2, gate, into, back, ring, ir_mul, act, needs) -> tuple[Tensor, ...]:
    """Gradients of <c, gradients> with respect to (g, x, x2, gate), as in the reference."""
    found = _outputs(x, needs, g, x, x2, gate)
    given = {"C_X": c_x, "C_X2": c_x2, "C_GATE": c_gate, "X2": x2, "GATE": gate}
    x, c_x, c_x2, c_gate, g, x2, gate = _dense(x, c_x, c_x2, c_gate, g, x2, gate)
    _launch(sphere_activation_bwd_bwd_kernel, [c_x, c_x2, c_gate, g, x, x2, gate], x, into, back, found, ir_mul, act, 2,
            **{f"HAS_{name}": t is not None for name, t in given.items()},
            **dict(zip(("NEED_G", "NEED_X", "NEED_X2", "NEED_GATE"), needs, strict=True)))
    return tuple(found)


def _aot(kernel, tensors: str, order: int, lmax: int, dtype=torch.float32, **flags) -> AotCase:
    """The kernel for degree lmax in and out, everything present, SiLU."""
    d = (lmax + 1) ** 2
    kind = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
    signature = dict.fromkeys(tensors.split(), kind) | {"elements": "i64", "C": "i32"}
    if dtype == torch.bfloat16:
        signature |= {"into": "*fp32", "back": "*fp32"}
    tile, hopper = (_tile(dtype, width(d), order, is_hopper) for is_hopper in (False, True))
    constants = {"S": 2 * d + 3, "D": d, "E": d, "ACT": ACTIVATIONS.index("silu"), "HAS_X2": True, "HAS_GATE": True,
                 **flags, "IR_MUL": True, "IS_WIDE": False, "BN": tile.pop("BN"), "BS": tile.pop("BS"),
                 "BD": width(d), "BE": width(d), "ACC": accumulator(dtype), "ALLOW_TF32": False}
    return AotCase(kernel, signature, constants, **tile, hopper=hopper)


_NEED = {"NEED_X": True, "NEED_X2": True, "NEED_GATE": True}
AOT = [
    _aot(sphere_activation_fwd_kernel, "x x2 gate into back y", 0, 1, torch.float64),
    _aot(sphere_activation_fwd_kernel, "x x2 gate into back y", 0, 6),
    _aot(sphere_activation_bwd_kernel, "g x x2 gate into back g_x g_x2 g_gate", 1, 3, **_NEED),
    _aot(sphere_activation_bwd_kernel, "g x x2 gate into back g_x g_x2 g_gate", 1, 6, **_NEED),
    _aot(sphere_activation_bwd_kernel, "g x x2 gate into back g_x g_x2 g_gate", 1, 4, torch.bfloat16, **_NEED),
    _aot(sphere_activation_bwd_bwd_kernel, "c_x c_x2 c_gate g x x2 gate into back g_g g_x g_x2 g_gate", 2, 1, **_NEED,
         NEED_G=True, HAS_C_X=True, HAS_C_X2=True, HAS_C_GATE=True),
]
