"""knn in Triton: a first pass bounds each query's k-th distance, a second collects what is within, k minima order it.

Both passes form the distances again from the features, so that nothing of size N x N exists.
"""

import torch
from torch import Tensor

from ..triton_common import AotCase, accumulator, cdiv, launch, tl, triton

BC = 128  # candidates of a tile of the first pass and places of a query's buffer
NONE = tl.constexpr(2147483647)  # the index of no candidate, behind all others


@triton.jit
def _distances(x, o_q, o_c, m_q, m_c, M, F, BQ: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):
    """[BQ, BC] between columns o_q and o_c of x [F, M]; by an explicit fma, so that both passes agree to the bit."""
    p_q, p_c = x + o_q, x + o_c
    b_d = tl.zeros([BQ, BC], dtype=ACC)
    for _ in tl.range(0, F, loop_unroll_factor=2):
        b_q = tl.load(p_q, mask=m_q, other=0.0).to(ACC)
        b_c = tl.load(p_c, mask=m_c, other=0.0).to(ACC)
        b_difference = b_q[:, None] - b_c[None, :]
        b_d = tl.fma(b_difference, b_difference, b_d)
        p_q += M
        p_c += M
    return tl.where(b_d == b_d, b_d, float("inf"))


@triton.jit
def _candidates(o_q, o_c, n, INCLUDE_SELF: tl.constexpr):
    m = (o_c < n)[None, :] & (o_q >= 0)[:, None]
    if not INCLUDE_SELF:
        m &= o_c[None, :] != o_q[:, None]
    return m


@triton.jit
def _within(b_d, o_c, b_last, b_last_i):
    return (b_d < b_last[:, None]) | ((b_d == b_last[:, None]) & (o_c[None, :] <= b_last_i[:, None]))


@triton.jit
def _order(p_d, p_i, b_n, b_last, b_last_i, p_y, m_q, K, CAP: tl.constexpr, FINAL: tl.constexpr):
    """The K first of the b_n collected candidates of each row: to y, or back to their buffer; and the K-th of them."""
    # The addresses depend on b_n, so that they are not computed ahead of the loop, where they would fill registers.
    o_s = tl.arange(0, CAP) + tl.minimum(tl.max(b_n, 0), 0)
    m_s = o_s[None, :] < b_n[:, None]
    tl.debug_barrier()  # they were stored by other threads
    b_d = tl.load(p_d[:, None] + o_s[None, :], mask=m_s, other=float("inf"))
    b_i = tl.load(p_i[:, None] + o_s[None, :], mask=m_s, other=NONE)
    tl.debug_barrier()
    for i_k in range(0, K):
        b_first = tl.min(b_d, 1)
        b_index = tl.min(tl.where(b_d == b_first[:, None], b_i, NONE), 1)
        m_first = b_i == b_index[:, None]
        b_d, b_i = tl.where(m_first, float("inf"), b_d), tl.where(m_first, NONE, b_i)
        if FINAL:
            tl.store(p_y + i_k, tl.where(b_index == NONE, 0, b_index).to(tl.int64), mask=m_q)
        else:
            tl.store(p_d + i_k, b_first, mask=i_k < b_n)
            tl.store(p_i + i_k, b_index, mask=i_k < b_n)
            m_last = (i_k == K - 1) & (b_n >= K)
            b_last = tl.where(m_last, b_first, b_last)
            b_last_i = tl.where(m_last, b_index, b_last_i)
    tl.debug_barrier()
    return b_last, b_last_i


@triton.jit
def knn_fwd_kernel(
    x, ptr, distance, index, y, M, F, K, blocks,
    INCLUDE_SELF: tl.constexpr, STEP: tl.constexpr, BQ: tl.constexpr, BC: tl.constexpr, HALF: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """y [M, K] of x [F, M]; a program per cloud and BQ queries, with buffers distance and index [programs, BQ, BC]."""
    i_p = tl.program_id(0).to(tl.int64)
    i_b, i_q = i_p // blocks, (i_p % blocks).to(tl.int32) * BQ
    start = tl.minimum(tl.maximum(tl.load(ptr + i_b), 0), M).to(tl.int64)
    n = (tl.minimum(tl.maximum(tl.load(ptr + i_b + 1), start), M) - start).to(tl.int32)
    o_q = i_q + tl.arange(0, BQ)
    m_q = o_q < n
    if i_q < n:
        # The nearest in each of BC columns of every STEP-th tile: at least K candidates are within the K-th of them.
        b_d = tl.full([BQ, BC], float("inf"), dtype=ACC)
        for i_c in range(0, n, BC * STEP):
            o_c = i_c + tl.arange(0, BC)
            b_new = _distances(x, start + o_q, start + o_c, m_q, o_c < n, M, F, BQ, BC, ACC)
            b_d = tl.minimum(b_d, tl.where(_candidates(o_q, o_c, n, INCLUDE_SELF), b_new, float("inf")))
        b_last = tl.full([BQ], float("inf"), dtype=ACC)
        b_last_i = tl.full([BQ], NONE, dtype=tl.int32)
        for _ in range(0, K):
            b_last = tl.min(b_d, 1)
            b_d = tl.where(b_d == b_last[:, None], float("inf"), b_d)

        o_buffer = (i_p * BQ + tl.arange(0, BQ)) * BC
        p_d, p_i, p_y = distance + o_buffer, index + o_buffer, y + (start + o_q) * K
        b_n = tl.zeros([BQ], dtype=tl.int32)
        for i_c in range(0, n, HALF):
            o_c = i_c + tl.arange(0, HALF)
            b_new = _distances(x, start + o_q, start + o_c, m_q, o_c < n, M, F, BQ, HALF, ACC)
            m_new = _candidates(o_q, o_c, n, INCLUDE_SELF) & m_q[:, None]
            m_in = m_new & _within(b_new, o_c, b_last, b_last_i)
            if tl.max(b_n + tl.sum(m_in.to(tl.int32), 1), 0) > BC:
                b_last, b_last_i = _order(p_d, p_i, b_n, b_last, b_last_i, p_y, m_q, K, BC, False)
                b_n = tl.minimum(b_n, K)
                m_in = m_new & _within(b_new, o_c, b_last, b_last_i)
            b_place = b_n[:, None] + tl.cumsum(m_in.to(tl.int32), 1) - 1
            tl.store(p_d[:, None] + b_place, b_new, mask=m_in)
            tl.store(p_i[:, None] + b_place, tl.broadcast_to(o_c[None, :], [BQ, HALF]), mask=m_in)
            b_n += tl.sum(m_in.to(tl.int32), 1)
        _order(p_d, p_i, b_n, b_last, b_last_i, p_y, m_q, K, BC, True)


def _queries(dtype: torch.dtype) -> int:
    """Queries of a program. One warp each: then no sum or exchange of layout crosses warps."""
    return 4 if dtype == torch.float64 else 8


def _step(k: int, f: int) -> int:
    """How sparse the first pass may be: about STEP BC ln(BC / (BC - k)) candidates are collected, of BC places."""
    return 1 if k > 40 else 2 if k > 20 or f < 64 else 4


def forward(x: Tensor, ptr: Tensor, longest: int, k: int, include_self: bool) -> Tensor:
    """x [M, F], ptr [B + 1] -> [M, k], as in the reference."""
    m, f = x.shape
    edge, clouds = _queries(x.dtype), ptr.shape[0] - 1
    blocks = cdiv(longest, edge)
    y = torch.zeros(m, k, dtype=torch.int64, device=x.device)  # rows of no cloud
    rows = clouds * blocks * edge
    distance = x.new_empty(rows, BC, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    index = x.new_empty(rows, BC, dtype=torch.int32)
    launch(knn_fwd_kernel, (clouds * blocks,), x.t().contiguous(), ptr.contiguous(), distance, index, y, m, f, k,
           blocks, INCLUDE_SELF=include_self, STEP=_step(k, f), BQ=edge, BC=BC, HALF=BC // 2,
           ACC=accumulator(x.dtype), num_warps=1, device=x.device)
    return y


def _aot(dtype: torch.dtype, kind: str, k: int, f: int, include_self: bool) -> AotCase:
    return AotCase(
        knn_fwd_kernel,
        {"x": kind, "ptr": "*i64", "distance": "*fp64" if dtype == torch.float64 else "*fp32", "index": "*i32",
         "y": "*i64"} | dict.fromkeys(("M", "F", "K", "blocks"), "i32"),
        {"INCLUDE_SELF": include_self, "STEP": _step(k, f), "BQ": _queries(dtype), "BC": BC, "HALF": BC // 2,
         "ACC": accumulator(dtype)}, num_warps=1)


AOT = [
    *(_aot(torch.float32, "*fp32", k, f, k != 40) for k, f in ((20, 64), (40, 64), (64, 3))),
    _aot(torch.float64, "*fp64", 20, 64, True),
    _aot(torch.bfloat16, "*bf16", 20, 64, True),
]
