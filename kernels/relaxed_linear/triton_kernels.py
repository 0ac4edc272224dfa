"""relaxed_linear in Triton: tiled products with activation on the input and gate, bias, base, residual in the epilogue.

The gradient of the weight is summed over N in parts of a size that depends on the shapes only, and the parts are added
in their order: no atomics.
"""

import torch
from torch import Tensor

from ..triton_common import (
    AotCase,
    accumulator,
    allow_tf32,
    cdiv,
    dot,
    gelu_erf,
    gelu_erf_grad,
    launch,
    next_power_of_2,
    tl,
    triton,
)


@triton.jit
def relaxed_linear_fwd_kernel(
    x, weight, bias, gamma, base, residual, y, N, I, O,
    GELU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GAMMA: tl.constexpr, HAS_BASE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, ACC: tl.constexpr,
    ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """y [N, O] = base + gamma (act(x [N, I]) weight [O, I]^T + bias) + residual; one program per [BN, BO] of y."""
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o_o = tl.program_id(1).to(tl.int64) * BO + tl.arange(0, BO)
    m_n, m_o = o_n < N, o_o < O
    b_acc = tl.zeros([BN, BO], dtype=ACC)
    for i_i in range(0, I, BI):
        o_i = i_i + tl.arange(0, BI)
        m_i = o_i < I
        b_x = tl.load(x + o_n[:, None] * I + o_i[None, :], mask=m_n[:, None] & m_i[None, :], other=0.0)
        if GELU:
            b_x = gelu_erf(b_x)
        b_w = tl.load(weight + o_o[None, :] * I + o_i[:, None], mask=m_o[None, :] & m_i[:, None], other=0.0)
        b_acc = dot(b_x, b_w, b_acc, ALLOW_TF32)
    if HAS_BIAS:
        b_acc += tl.load(bias + o_o, mask=m_o, other=0.0)[None, :]
    if HAS_GAMMA:
        b_acc *= tl.load(gamma)
    o_y = o_n[:, None] * O + o_o[None, :]
    m_y = m_n[:, None] & m_o[None, :]
    if HAS_BASE:
        b_acc += tl.load(base + o_y, mask=m_y, other=0.0)
    if HAS_RESIDUAL:
        b_acc += tl.load(residual + o_y, mask=m_y, other=0.0)
    tl.store(y + o_y, b_acc, mask=m_y)


@triton.jit
def relaxed_linear_bwd_kernel_input(
    g, x, weight, gamma, g_x, N, I, O,
    GELU: tl.constexpr, HAS_GAMMA: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """g_x [N, I] = gamma (g [N, O] weight [O, I]) act'(x); one program per [BN, BI] of g_x."""
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o_i = tl.program_id(1).to(tl.int64) * BI + tl.arange(0, BI)
    m_n, m_i = o_n < N, o_i < I
    b_acc = tl.zeros([BN, BI], dtype=ACC)
    for i_o in range(0, O, BO):
        o_o = i_o + tl.arange(0, BO)
        m_o = o_o < O
        b_g = tl.load(g + o_n[:, None] * O + o_o[None, :], mask=m_n[:, None] & m_o[None, :], other=0.0)
        b_w = tl.load(weight + o_o.to(tl.int64)[:, None] * I + o_i[None, :], mask=m_o[:, None] & m_i[None, :],
                      other=0.0)
        b_acc = dot(b_g, b_w, b_acc, ALLOW_TF32)
    if HAS_GAMMA:
        b_acc *= tl.load(gamma)
    o_x = o_n[:, None] * I + o_i[None, :]
    m_x = m_n[:, None] & m_i[None, :]
    if GELU:
        b_acc *= gelu_erf_grad(tl.load(x + o_x, mask=m_x, other=0.0))
    tl.store(g_x + o_x, b_acc, mask=m_x)


@triton.jit
def relaxed_linear_bwd_kernel_parts(
    g, x, d_matrix, d_bias, N, I, O, part_rows, blocks_i,
    GELU: tl.constexpr, MATRIX: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, BN: tl.constexpr,
    ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """Part s of d_matrix [S, O, I] = g^T act(x) and of d_bias [S, O] = sum_n g; one program per part and [BO, BI]."""
    i_block, i_s = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_i = i_block % blocks_i
    o_o = (i_block // blocks_i).to(tl.int64) * BO + tl.arange(0, BO)
    o_i = i_i.to(tl.int64) * BI + tl.arange(0, BI)
    m_o, m_i = o_o < O, o_i < I
    b_acc = tl.zeros([BO, BI], dtype=ACC)
    b_sum = tl.zeros([BO], dtype=ACC)
    for i_n in range(0, part_rows, BN):
        o_n = i_s * part_rows + i_n + tl.arange(0, BN)
        m_n = o_n < N
        b_g = tl.load(g + o_n[None, :] * O + o_o[:, None], mask=m_n[None, :] & m_o[:, None], other=0.0)
        b_sum += tl.sum(b_g, 1)
        if MATRIX:
            b_x = tl.load(x + o_n[:, None] * I + o_i[None, :], mask=m_n[:, None] & m_i[None, :], other=0.0)
            if GELU:
                b_x = gelu_erf(b_x)
            b_acc = dot(b_g, b_x, b_acc, ALLOW_TF32)
    if MATRIX:
        tl.store(d_matrix + (i_s * O + o_o[:, None]) * I + o_i[None, :], b_acc, mask=m_o[:, None] & m_i[None, :])
    if i_i == 0:
        tl.store(d_bias + i_s * O + o_o, b_sum, mask=m_o)


@triton.jit
def relaxed_linear_bwd_kernel_reduce(
    d_matrix, d_bias, weight, bias, gamma, g_weight, g_bias, terms, S, I, O,
    NEED_WEIGHT: tl.constexpr, NEED_BIAS: tl.constexpr, NEED_GAMMA: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_GAMMA: tl.constexpr, BI: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Row o of the gradients: the parts added in order; terms [O] = <dM[o], W[o]> + db[o] b[o]. One program per row."""
    i_o = tl.program_id(0).to(tl.int64)
    b_gamma = 1.0
    if HAS_GAMMA:
        b_gamma = tl.load(gamma)
    b_dot = tl.zeros([BI], dtype=ACC)
    if NEED_WEIGHT or NEED_GAMMA:
        for i_i in range(0, I, BI):
            o_i = i_i + tl.arange(0, BI)
            m_i = o_i < I
            b_sum = tl.zeros([BI], dtype=ACC)
            for i_s in range(0, S):
                b_sum += tl.load(d_matrix + (i_s * O + i_o) * I + o_i, mask=m_i, other=0.0)
            if NEED_WEIGHT:
                tl.store(g_weight + i_o * I + o_i, b_sum * b_gamma, mask=m_i)
            if NEED_GAMMA:
                b_dot += b_sum * tl.load(weight + i_o * I + o_i, mask=m_i, other=0.0)
    b_term = tl.sum(b_dot, 0)
    if NEED_BIAS or (NEED_GAMMA and HAS_BIAS):
        b_bias = tl.zeros([1], dtype=ACC)
        for i_s in range(0, S):
            b_bias += tl.load(d_bias + i_s * O + i_o + tl.arange(0, 1))
        if NEED_BIAS:
            tl.store(g_bias + i_o + tl.arange(0, 1), b_bias * b_gamma)
        if HAS_BIAS:
            b_term += tl.sum(b_bias, 0) * tl.load(bias + i_o)
    if NEED_GAMMA:
        tl.store(terms + i_o, b_term)


def _tile(dtype: torch.dtype) -> tuple[int, int, dict]:
    """Edge of the square output tile, depth of one step of the product, and the launch's options."""
    return (32, 16, {"num_warps": 4, "maxnreg": 255}) if dtype == torch.float64 else (64, 32, {"num_warps": 8})


def forward(x, weight, bias, gamma, base, residual, activation) -> Tensor:
    """x [N, I], weight [O, I], bias [O], gamma [], base and residual [N, O] -> [N, O], as in the reference."""
    (n, i), o = x.shape, weight.shape[0]
    y = x.new_empty(n, o)
    edge, depth, options = _tile(x.dtype)
    given = [None if t is None else t.contiguous() for t in (bias, gamma, base, residual)]
    has = dict(zip(("HAS_BIAS", "HAS_GAMMA", "HAS_BASE", "HAS_RESIDUAL"), (t is not None for t in given), strict=True))
    # An absent tensor is never read; any pointer stands for it.
    launch(relaxed_linear_fwd_kernel, (cdiv(n, edge), cdiv(o, edge)), x.contiguous(), weight.contiguous(),
           *(x if t is None else t for t in given), y, n, i, o, GELU=activation == "gelu", **has, BN=edge, BO=edge,
           BI=depth, ACC=accumulator(x.dtype), ALLOW_TF32=allow_tf32(x), device=x.device, **options)
    return y


def backward(g, x, weight, bias, gamma, activation, needs) -> tuple[Tensor, ...]:
    """g [N, O] -> gradients of (x, weight, bias, gamma), as in the reference."""
    g, x, weight = g.contiguous(), x.contiguous(), weight.contiguous()
    shapes = (x.shape, weight.shape, weight.shape[:1], ())
    g_x, g_weight, g_bias, g_gamma = (g.new_empty(s if need else (0,)) for s, need in zip(shapes, needs, strict=True))
    (n, i), o = x.shape, weight.shape[0]
    edge, depth, options = _tile(x.dtype)
    common = {"GELU": activation == "gelu", "ACC": accumulator(x.dtype), "ALLOW_TF32": allow_tf32(x),
              "device": x.device, **options}
    scale = x if gamma is None else gamma
    if needs[0]:
        launch(relaxed_linear_bwd_kernel_input, (cdiv(n, edge), cdiv(i, edge)), g, x, weight, scale, g_x, n, i, o,
               HAS_GAMMA=gamma is not None, BN=edge, BI=edge, BO=depth, **common)
    if any(needs[1:]):
        matrix = needs[1] or needs[3]
        part_rows = max(128, next_power_of_2(cdiv(n, 32)))
        parts, blocks_i = cdiv(n, part_rows), cdiv(i, edge) if matrix else 1
        d_matrix = g.new_empty((parts, o, i) if matrix else 0)
        d_bias, terms = g.new_empty(parts, o), g.new_empty(o)
        launch(relaxed_linear_bwd_kernel_parts, (cdiv(o, edge) * blocks_i, parts), g, x, d_matrix, d_bias, n, i, o,
               part_rows, blocks_i, MATRIX=matrix, BO=edge, BI=edge, BN=16, **common)
        launch(relaxed_linear_bwd_kernel_reduce, (o,), d_matrix, d_bias, weight,
               x if bias is None else bias.contiguous(), scale, g_weight, g_bias, terms, parts, i, o,
               NEED_WEIGHT=needs[1], NEED_BIAS=needs[2], NEED_GAMMA=needs[3], HAS_BIAS=bias is not None,
               HAS_GAMMA=gamma is not None, BI=128, ACC=accumulator(x.dtype), device=x.device)
        if needs[3]:
            g_gamma = terms.sum()
    return g_x, g_weight, g_bias, g_gamma


def _aot(kernel, tensors: str, integers: str, tiled: bool = True, **constexprs) -> list[AotCase]:
    """The kernel in float32 and float64, with the tile's edge and depth where `constexprs` names them."""
    found = []
    for kind, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        edge, depth, options = _tile(dtype)
        sizes = {"edge": edge, "depth": depth}
        values = {k: sizes.get(v, v) if isinstance(v, str) else v for k, v in constexprs.items()}
        signature = dict.fromkeys(tensors.split(), kind) | dict.fromkeys(integers.split(), "i32")
        found.append(AotCase(kernel, signature, values | {"ACC": accumulator(dtype)}, **(options if tiled else {})))
    return found


AOT = [
    *_aot(relaxed_linear_fwd_kernel, "x weight bias gamma base residual y", "N I O", GELU=True, HAS_BIAS=True,
          HAS_GAMMA=True, HAS_BASE=True, HAS_RESIDUAL=True, BN="edge", BO="edge", BI="depth", ALLOW_TF32=False),
    *_aot(relaxed_linear_bwd_kernel_input, "g x weight gamma g_x", "N I O", GELU=True, HAS_GAMMA=True, BN="edge",
          BI="edge", BO="depth", ALLOW_TF32=False),
    *_aot(relaxed_linear_bwd_kernel_parts, "g x d_matrix d_bias", "N I O part_rows blocks_i", GELU=True, MATRIX=True,
          BO="edge", BI="edge", BN=16, ALLOW_TF32=False),
    *_aot(relaxed_linear_bwd_kernel_reduce, "d_matrix d_bias weight bias gamma g_weight g_bias terms", "S I O",
          tiled=False, NEED_WEIGHT=True, NEED_BIAS=True, NEED_GAMMA=True, HAS_BIAS=True, HAS_GAMMA=True, BI=128),
]
