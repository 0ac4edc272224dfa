"""vn_linear in Triton: W (x) I3 + gamma D is folded and unfolded by one kernel each, products are torch.mm (cuBLAS).

The statistics and the leaky ReLU are in triton_norms.py.
"""

import torch
from torch import Tensor

from ..triton_common import INTERPRETED, AotCase, accumulator, cdiv, launch, tl, triton
from .triton_norms import AOT as NORMS
from .triton_norms import leaky_relu, leaky_relu_backward, stats, stats_backward

__all__ = ["AOT", "backward", "forward", "leaky_relu", "leaky_relu_backward", "stats", "stats_backward"]


@triton.jit
def vn_linear_fwd_kernel_fold(
    weight, dense, bias, gamma, matrix, row, C, O, stride_wo, stride_wc, stride_do, stride_dc, blocks_o,
    EDGE: tl.constexpr, HAS_DENSE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GAMMA: tl.constexpr,
    BI: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """matrix [3, C, 3, O'] = W (x) I3 + gamma D, or W^T [C, O'] alone; row [3, O'] = gamma b. O' is 2 O with EDGE."""
    pid = tl.program_id(0).to(tl.int64)
    i_i = pid // blocks_o
    o_i = (i_i * BI + tl.arange(0, BI))[:, None]
    o_o = (pid % blocks_o * BO + tl.arange(0, BO))[None, :]
    PARTS: tl.constexpr = 2 if EDGE else 1
    SIDE: tl.constexpr = 3 if HAS_DENSE else 1
    b_a, o_c = o_i // tl.maximum(C, 1), o_i % tl.maximum(C, 1)
    m = (o_i < SIDE * C) & (o_o < O)
    b_gamma = tl.full([1, 1], 1.0, ACC)
    if HAS_GAMMA:
        b_gamma *= tl.load(gamma).to(ACC)
    p_w = weight + o_o * stride_wo + o_c * stride_wc
    b_w = tl.load(p_w, mask=m, other=0.0).to(ACC)
    b_v = b_w
    if EDGE:
        b_v = tl.load(p_w + tl.cast(C, tl.int64) * stride_wc, mask=m, other=0.0).to(ACC) - b_w
    for b in tl.static_range(SIDE):
        p_d = dense + (3 * o_o + b) * stride_do + (3 * o_c + b_a) * stride_dc
        p_m = matrix + (o_i * SIDE + b) * (PARTS * O) + o_o
        b_m, b_n = tl.where(b_a == b, b_w, 0.0), tl.where(b_a == b, b_v, 0.0)
        if HAS_DENSE:
            b_d = b_gamma * tl.load(p_d, mask=m, other=0.0).to(ACC)
            b_m += b_d
            if EDGE:
                p_d += tl.cast(C, tl.int64) * 3 * stride_dc
                b_n += b_gamma * tl.load(p_d, mask=m, other=0.0).to(ACC) - b_d
        tl.store(p_m, b_m, mask=m)
        if EDGE:
            tl.store(p_m + O, b_n, mask=m)
        if HAS_BIAS:  # of an edge, so with its centre
            m_row = o_o < tl.where(i_i == 0, O, 0)
            b_row = b_gamma * tl.load(bias + 3 * o_o + b, mask=m_row, other=0.0).to(ACC)
            tl.store(row + (b + 1) * (PARTS * O) - O + o_o, b_row, mask=m_row)
            if EDGE:
                tl.store(row + b * (PARTS * O) + o_o, b_row * 0.0, mask=m_row)


@triton.jit
def vn_linear_bwd_kernel_unfold(
    matrix, row, dense, bias, gamma, g_weight, g_dense, g_bias, terms, C, O, stride_do, stride_dc, blocks_o,
    EDGE: tl.constexpr, MATRIX: tl.constexpr, FULL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_GAMMA: tl.constexpr,
    NEED_WEIGHT: tl.constexpr, NEED_DENSE: tl.constexpr, NEED_BIAS: tl.constexpr, NEED_GAMMA: tl.constexpr,
    BI: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The adjoint of the fold from matrix [3, C, 3, O'] (FULL) or [C, O'] and row [3, O']; terms [programs] of gamma's.

    With MATRIX false only the bias has a gradient.
    """
    pid = tl.program_id(0).to(tl.int64)
    i_i = pid // blocks_o
    o_i = (i_i * BI + tl.arange(0, BI))[:, None]
    o_o = (pid % blocks_o * BO + tl.arange(0, BO))[None, :]
    PARTS: tl.constexpr = 2 if EDGE else 1
    SIDE: tl.constexpr = 3 if FULL else 1
    b_a, o_c = o_i // tl.maximum(C, 1), o_i % tl.maximum(C, 1)
    m = (o_i < SIDE * C) & (o_o < O)
    b_gamma = tl.full([1, 1], 1.0, ACC)
    if HAS_GAMMA:
        b_gamma *= tl.load(gamma).to(ACC)
    b_term, b_line = tl.full([BI, BO], 0.0, ACC), tl.full([1, BO], 0.0, ACC)
    for b in tl.static_range(SIDE if MATRIX and (NEED_DENSE or NEED_GAMMA) else 0):
        p_m = matrix + (o_i * SIDE + b) * (PARTS * O) + o_o
        b_d = tl.load(p_m, mask=m, other=0.0).to(ACC)
        b_e = b_d
        if EDGE:
            b_e = tl.load(p_m + O, mask=m, other=0.0).to(ACC)
            b_d -= b_e
        if NEED_DENSE:
            p_d = g_dense + (3 * o_o + b) * (3 * PARTS * C) + 3 * o_c + b_a
            tl.store(p_d, b_gamma * b_d, mask=m)
            if EDGE:
                tl.store(p_d + 3 * C, b_gamma * b_e, mask=m)
        if NEED_GAMMA:
            p_d = dense + (3 * o_o + b) * stride_do + (3 * o_c + b_a) * stride_dc
            b_term += b_d * tl.load(p_d, mask=m, other=0.0).to(ACC)
            if EDGE:
                p_d += tl.cast(C, tl.int64) * 3 * stride_dc
                b_term += b_e * tl.load(p_d, mask=m, other=0.0).to(ACC)
    if MATRIX and NEED_WEIGHT:
        m_w = (o_i < C) & (o_o < O)
        b_w = tl.full([BI, BO], 0.0, ACC)
        b_v = b_w
        for b in tl.static_range(SIDE):  # the trace of the blocks
            p_m = matrix + ((o_i + b * C) * SIDE + b) * (PARTS * O) + o_o
            b_w += tl.load(p_m, mask=m_w, other=0.0).to(ACC)
            if EDGE:
                b_v += tl.load(p_m + O, mask=m_w, other=0.0).to(ACC)
        tl.store(g_weight + o_o * (PARTS * C) + o_i, b_w - b_v, mask=m_w)
        if EDGE:
            tl.store(g_weight + o_o * (PARTS * C) + C + o_i, b_v, mask=m_w)
    if NEED_BIAS or (NEED_GAMMA and HAS_BIAS):
        m_row = o_o < tl.where(i_i == 0, O, 0)
        for b in tl.static_range(3):
            b_b = tl.load(row + (b + 1) * (PARTS * O) - O + o_o, mask=m_row, other=0.0).to(ACC)
            if NEED_BIAS:
                tl.store(g_bias + 3 * o_o + b, b_gamma * b_b, mask=m_row)
            if NEED_GAMMA:
                b_line += b_b * tl.load(bias + 3 * o_o + b, mask=m_row, other=0.0).to(ACC)
    if NEED_GAMMA:
        tl.store(terms + pid, tl.sum(b_term) + tl.sum(b_line))


def _tile(dtype: torch.dtype) -> dict:
    """Rows and output channels of a block of the matrix, and its warps."""
    if INTERPRETED:
        return {"BI": 64, "BO": 64}
    found = {"BI": 16, "BO": 32, "num_warps": 4}
    return found | {"BO": 16, "maxnreg": 255} if dtype == torch.float64 else found


def _blocks(rows: int, o: int, tile: dict) -> tuple[int, int]:
    """Programs of a matrix kernel (those of the first row also have the bias), and how many blocks of channels."""
    blocks_o = cdiv(o, tile["BO"])
    return max(1, cdiv(rows, tile["BI"])) * blocks_o, blocks_o


def _strides(t: Tensor | None) -> tuple[int, int]:
    return (0, 0) if t is None else t.stride()


def _folded(x, weight, dense, bias, gamma, edge) -> tuple[Tensor, Tensor | None]:
    """The matrix [3C, 3O'] ([C, O'] without dense) that rows are multiplied with, and the row [3O'] to add, or None."""
    (c, o), side = (x.shape[2], weight.shape[0]), 1 if dense is None else 3
    if side == 1 and not edge:
        return weight.t(), None
    wide = side * o * (2 if edge else 1)
    matrix, row = x.new_empty(side * c, wide), None if bias is None else x.new_empty(wide)
    tile = _tile(x.dtype)
    programs, blocks_o = _blocks(side * c, o, tile)
    # An absent tensor is never read; any pointer stands for it.
    launch(vn_linear_fwd_kernel_fold, (programs,), weight, weight if dense is None else dense,
           weight if bias is None else bias.contiguous(), weight if gamma is None else gamma, matrix,
           matrix if row is None else row, c, o, *weight.stride(), *_strides(dense), blocks_o, EDGE=edge,
           HAS_DENSE=side == 3, HAS_BIAS=bias is not None, HAS_GAMMA=gamma is not None, **tile,
           ACC=accumulator(x.dtype), device=x.device)
    return matrix, row


def _flat(t: Tensor, full: bool) -> Tensor:
    """[R, 3, C] as the rows of a matrix: [R, 3C], or without the dense map [3R, C]."""
    return t.reshape(t.shape[0] * (1 if full else 3), t.shape[2] * (3 if full else 1))


def forward(x, weight, dense, bias, gamma, offset, edge) -> Tensor:
    """x [R, 3, C], weight, dense, bias, gamma, offset [G, 3, O'] -> [R, 3, O'], as in the reference."""
    matrix, row = _folded(x, weight, dense, bias, gamma, edge)
    rows = _flat(x, dense is not None)
    y = torch.mm(rows, matrix) if row is None else torch.addmm(row, rows, matrix)
    y = y.view(x.shape[0], 3, weight.shape[0] * (2 if edge else 1))
    if offset is not None and y.numel():
        y.view(offset.shape[0], -1, *y.shape[1:]).add_(offset[:, None])
    return y


def backward(g, x, weight, dense, bias, gamma, edge, needs) -> tuple[Tensor, ...]:
    """g [R, 3, O'] -> gradients of (x, weight, dense, bias, gamma), as in the reference."""
    g, x, found = g.contiguous(), x.contiguous(), [g.new_empty(0)] * 5
    if needs[0]:
        matrix = _folded(x, weight, dense, None, gamma, edge)[0]
        found[0] = torch.mm(_flat(g, dense is not None), matrix.t()).view(x.shape)
    full = needs[2] or needs[4]  # otherwise the weight's gradient needs a third of the product
    if needs[1] and not full and not edge:
        found[1] = torch.mm(_flat(g, False).t(), _flat(x, False))
        needs = [False, False, *needs[2:]]
    if any(needs[1:]):
        matrix = torch.mm(_flat(x, full).t(), _flat(g, full)) if full or needs[1] else None
        unfolded = _unfolded(g, matrix, weight, dense, bias, gamma, edge, needs)
        found[1:] = [t if need else old for t, need, old in zip(unfolded, needs[1:], found[1:], strict=True)]
    return tuple(found)


def _unfolded(g, matrix, weight, dense, bias, gamma, edge, needs) -> tuple[Tensor, ...]:
    """Gradients of (weight, dense, bias, gamma) from that of the matrix (None: only the bias has one)."""
    (o, c), acc = weight.shape, torch.float64 if g.dtype == torch.float64 else torch.float32
    c = c // 2 if edge else c
    shapes = (t.shape if need else 0 for t, need in zip((weight, dense, bias), needs[1:4], strict=True))
    g_weight, g_dense, g_bias = (g.new_empty(shape) for shape in shapes)
    row = g.flatten(1).sum(0, dtype=acc) if bias is not None and (needs[3] or needs[4]) else None
    full, tile = needs[2] or needs[4], _tile(g.dtype)
    programs, blocks_o = _blocks(3 * c if full else c, o, tile)
    terms = g.new_empty(programs if needs[4] else 0, dtype=acc)
    # An absent tensor is never read; any pointer stands for it.
    given = [g if t is None else t for t in (matrix, row, dense, None if bias is None else bias.contiguous(), gamma)]
    launch(vn_linear_bwd_kernel_unfold, (programs,), *given, g_weight, g_dense, g_bias, terms, c, o, *_strides(dense),
           blocks_o, EDGE=edge, MATRIX=matrix is not None, FULL=full, HAS_BIAS=bias is not None,
           HAS_GAMMA=gamma is not None, NEED_WEIGHT=needs[1], NEED_DENSE=needs[2], NEED_BIAS=needs[3],
           NEED_GAMMA=needs[4], **tile, ACC=accumulator(g.dtype), device=g.device)
    return g_weight, g_dense, g_bias, terms.sum().to(g.dtype)


def _aot(kernel, tensors: str, integers: str, **constexprs) -> list[AotCase]:
    """The kernel in float32 and float64, everything present, with and without the edge arrangement."""
    found = []
    for kind, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        signature = dict.fromkeys(tensors.split(), kind) | dict.fromkeys(integers.split(), "i32")
        tile = _tile(dtype)
        options = {name: tile.pop(name) for name in ("num_warps", "maxnreg") if name in tile}
        values = constexprs | tile | {"HAS_BIAS": True, "HAS_GAMMA": True, "ACC": accumulator(dtype)}
        found += [AotCase(kernel, signature, values | {"EDGE": edge}, **options) for edge in (False, True)]
    return found


AOT = [
    *_aot(vn_linear_fwd_kernel_fold, "weight dense bias gamma matrix row",
          "C O stride_wo stride_wc stride_do stride_dc blocks_o", HAS_DENSE=True),
    *_aot(vn_linear_bwd_kernel_unfold, "matrix row dense bias gamma g_weight g_dense g_bias terms",
          "C O stride_do stride_dc blocks_o", MATRIX=True, FULL=True, NEED_WEIGHT=True, NEED_DENSE=True,
          NEED_BIAS=True, NEED_GAMMA=True),
    *NORMS,
]
