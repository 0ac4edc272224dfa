"""segment_rank in Triton: short segments in one launch, all pairs of a segment in a block; longer ones by radix sorts.

rank_concat: one pass over the rows; its adjoint sums each rank's rows of a few segments, then those sums.
"""

import torch
from torch import Tensor

from ..triton_common import AotCase, accumulator, cdiv, launch, next_power_of_2, tl, triton
from . import reference

SHORT = 64  # nodes of a segment whose pairs a block holds
ROWS = 16  # of a program of rank_concat and of a tile of its adjoint
SEGMENTS = 256  # of a program of the adjoint
KEYS = 256  # drawn by a program


@triton.jit
def _draw(seed, b_row):
    """int64 from the first two words of Philox4x32-10, with the row's number as its counter."""
    b_low = b_row.to(tl.uint32)
    b_0, b_1, _, _ = tl.philox(seed, b_low, (b_row >> 32).to(tl.uint32), b_low * 0, b_low * 0)
    return (b_1.to(tl.int64) << 32) | b_0.to(tl.int64)


@triton.jit
def _before(b_s, b_t, b_i, b_j):
    """Whether score s of place i comes before score t of place j: NaN last, equals by place."""
    m_less = (b_s < b_t) | ((b_s == b_s) & (b_t != b_t))
    m_more = (b_t < b_s) | ((b_t == b_t) & (b_s != b_s))
    return m_less | ((m_more == 0) & (b_i < b_j))


@triton.jit
def segment_rank_short_kernel(score, ptr, seed, tolerance, rank, order, N, B, BN: tl.constexpr):
    """rank and order [K, N] of segments of at most BN nodes; a program per draw and segment."""
    i_p = tl.program_id(0).to(tl.int64)
    i_k, i_b = i_p // B, i_p % B
    start = tl.minimum(tl.maximum(tl.load(ptr + i_b), 0), N).to(tl.int64)
    n = tl.minimum(tl.maximum(tl.load(ptr + i_b + 1), start), N) - start
    o = tl.arange(0, BN)
    m = o < n
    b_s = tl.load(score + start + o, mask=m, other=0.0)
    b_below, b_above = b_s[:, None], b_s[None, :]  # pairs of k [BN, 1] and j [1, BN]
    m_pair = m[:, None] & m[None, :]
    m_before = m_pair & _before(b_below, b_above, o[:, None], o[None, :])
    m_finite = tl.abs(b_s) < float("inf")
    m_both = m_finite[:, None] & m_finite[None, :]
    # the interpreter warns of the difference of infinities
    b_gap = tl.where(m_both, b_above, 0.0) - tl.where(m_both, b_below, 0.0)
    m_near = m_both & (b_gap <= tl.load(tolerance))
    m_tied = m_near | (b_above == b_below) | ((b_above != b_above) & (b_below != b_below))
    # a head is tied with none before it; a node's group is the number of heads up to it
    b_head = (tl.max((m_before & m_tied).to(tl.int32), 0) == 0) & m
    b_first = tl.sum(tl.where(m_before, tl.trans(tl.broadcast_to(b_head[None, :], [BN, BN])).to(tl.int32), 0), 0)
    b_group = tl.where(m, b_first + b_head.to(tl.int32), -1)
    b_key = _draw(tl.load(seed + i_k), start + o)
    m_same = b_group[:, None] == b_group[None, :]
    m_first = (b_key[:, None] < b_key[None, :]) | ((b_key[:, None] == b_key[None, :]) & m_before)
    b_rank = tl.sum((m_pair & ((b_group[:, None] < b_group[None, :]) | (m_same & m_first))).to(tl.int32), 0)
    tl.store(rank + i_k * N + start + o, tl.where(b_s == b_s, b_rank, -1).to(tl.int64), mask=m)
    tl.store(order + i_k * N + start + b_rank, (start + o).to(tl.int64), mask=m)


@triton.jit
def segment_rank_keys_kernel(seed, key, N, blocks, BN: tl.constexpr):
    """key [K, N]: what orders tied rows, BN of one draw a program."""
    i_p = tl.program_id(0).to(tl.int64)
    i_k = i_p // blocks
    o_n = i_p % blocks * BN + tl.arange(0, BN)
    tl.store(key + i_k * N + o_n, _draw(tl.load(seed + i_k), o_n), mask=o_n < N)


@triton.jit
def rank_concat_fwd_kernel(x, table, rank, y, R, N, F, T, C, blocks_c, BR: tl.constexpr, BC: tl.constexpr):
    """y [R, F + C], R = K N rows: column c is x [N, F] there, then table [T, C] at the row's rank, NaN outside."""
    o_r = tl.program_id(0).to(tl.int64) // blocks_c * BR + tl.arange(0, BR)
    o_c = tl.program_id(0).to(tl.int64) % blocks_c * BC + tl.arange(0, BC)
    m_r, width = o_r < R, F + C
    b_rank = tl.load(rank + o_r, mask=m_r, other=-1)
    m_rank = (b_rank >= 0) & (b_rank < T)
    m_x = m_r[:, None] & (o_c < F)[None, :]
    b_x = tl.load(x + (o_r % N)[:, None] * F + o_c[None, :], mask=m_x, other=0.0)
    m_v = (m_r & m_rank)[:, None] & ((o_c >= F) & (o_c < width))[None, :]
    b_v = tl.load(table + b_rank[:, None] * C + (o_c - F)[None, :], mask=m_v, other=float("nan"))
    tl.store(y + o_r[:, None] * width + o_c[None, :], tl.where((o_c < F)[None, :], b_x, b_v),
             mask=m_r[:, None] & (o_c < width)[None, :])


@triton.jit
def rank_concat_bwd_kernel(
    g, rank, order, ptr, y, K, N, C, B, T, blocks_c, stride_k, stride_n,
    SEGMENTS: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [parts, T, C]: the sum of the rows of g [K, N, C] with each rank, over SEGMENTS segments a program."""
    i_p = tl.program_id(0).to(tl.int64)
    o_c = i_p % blocks_c * BC + tl.arange(0, BC)
    i_t, i_part = i_p // blocks_c % T, i_p // blocks_c // T
    m_c, N64 = o_c < C, tl.full([], 1, tl.int64) * N
    b_sum = tl.zeros([BC], dtype=ACC)
    for i_k in range(0, K):
        for i_b in range(i_part * SEGMENTS, tl.minimum((i_part + 1) * SEGMENTS, B), BB):
            o_b = i_b + tl.arange(0, BB)
            m_b = o_b < B
            b_place = tl.maximum(tl.load(ptr + o_b, mask=m_b, other=0), 0) + i_t
            m_b &= b_place < tl.minimum(tl.load(ptr + o_b + 1, mask=m_b, other=0), N64)
            b_row = tl.load(order + i_k * N64 + b_place, mask=m_b, other=-1)
            m_b &= (b_row >= 0) & (b_row < N64)
            m_b &= tl.load(rank + i_k * N64 + b_row, mask=m_b, other=-1) == i_t
            b_g = tl.load(g + i_k * stride_k + b_row[:, None] * stride_n + o_c[None, :],
                          mask=m_b[:, None] & m_c[None, :], other=0.0)
            b_sum += tl.sum(b_g, 0)
    tl.store(y + (i_part * T + i_t) * C + o_c, b_sum, mask=m_c)


def _warps(nodes: int) -> int:
    return 1 if nodes <= 16 else nodes // 8


def _short(score: Tensor, ptr: Tensor, seed: Tensor, longest: int, tolerance: float) -> tuple[Tensor, Tensor]:
    n, draws, segments = score.shape[0], seed.shape[0], ptr.shape[0] - 1
    # rows of no segment
    rank = torch.full((draws, n), -1, dtype=torch.int64, device=score.device)
    order = torch.arange(n, device=score.device).repeat(draws, 1)
    block = max(16, next_power_of_2(longest))
    launch(segment_rank_short_kernel, (draws * segments,), score.contiguous(), ptr.contiguous(), seed.contiguous(),
           score.new_full((1,), tolerance), rank, order, n, segments, BN=block, num_warps=_warps(block),
           device=score.device)
    return rank, order


def forward(score: Tensor, ptr: Tensor, seed: Tensor, longest: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """score [N], ptr [B + 1], seed [K] -> rank and order [K, N], as in the reference."""
    if longest <= SHORT:
        return _short(score, ptr, seed, longest, tolerance)
    n, draws = score.shape[0], seed.shape[0]
    key = torch.empty(draws, n, dtype=torch.int64, device=score.device)
    blocks = cdiv(n, KEYS)
    launch(segment_rank_keys_kernel, (draws * blocks,), seed.contiguous(), key, n, blocks, BN=KEYS, num_warps=4,
           device=score.device)
    return reference.ranks(*reference.sorted_groups(score, ptr, tolerance), key, score.isnan())


def _channels(width: int) -> tuple[int, int]:
    """Columns of a program, and blocks of them in a row."""
    block = min(128, max(32, next_power_of_2(width)))
    return block, cdiv(width, block)


def concat(x: Tensor, table: Tensor, rank: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """x [N, F], table [T, C], rank [K, N] -> [K, N, F + C], as in the reference."""
    (n, f), (t, c), draws = x.shape, table.shape, rank.shape[0]
    y = x.new_empty(draws, n, f + c)
    block, blocks = _channels(f + c)
    launch(rank_concat_fwd_kernel, (cdiv(draws * n, ROWS) * blocks,), x.contiguous(), table.contiguous(),
           rank.contiguous(), y, draws * n, n, f, t, c, blocks, BR=ROWS, BC=block, num_warps=4, device=x.device)
    return y


def concat_backward(g: Tensor, rank: Tensor, order: Tensor, ptr: Tensor, rows: int) -> Tensor:
    """g [K, N, C], rank, order [K, N] -> [T, C], as in the reference."""
    draws, n, c = g.shape
    segments = ptr.shape[0] - 1
    g = g if g.stride(2) == 1 else g.contiguous()
    parts, (block, blocks) = cdiv(segments, SEGMENTS), _channels(c)
    y = g.new_empty(parts, rows, c)
    launch(rank_concat_bwd_kernel, (parts * rows * blocks,), g, rank.contiguous(), order.contiguous(),
           ptr.contiguous(), y, draws, n, c, segments, rows, blocks, g.stride(0), g.stride(1), SEGMENTS=SEGMENTS,
           BB=ROWS, BC=block, ACC=accumulator(g.dtype), num_warps=max(1, block // 32), maxnreg=255, device=g.device)
    return y.sum(0)


_PLACES = {"rank": "*i64", "order": "*i64"}
AOT = [
    *(AotCase(segment_rank_short_kernel,
              {"score": kind, "ptr": "*i64", "seed": "*i64", "tolerance": kind, **_PLACES, "N": "i32", "B": "i32"},
              {"BN": block}, num_warps=_warps(block))
      for kind, block in (("*fp32", 16), ("*fp64", SHORT))),
    AotCase(segment_rank_keys_kernel, {"seed": "*i64", "key": "*i64", "N": "i32", "blocks": "i32"}, {"BN": KEYS}),
    AotCase(rank_concat_fwd_kernel,
            {"x": "*fp32", "table": "*fp32", "rank": "*i64", "y": "*fp32"}
            | dict.fromkeys(("R", "N", "F", "T", "C", "blocks_c"), "i32"), {"BR": ROWS, "BC": 128}),
    AotCase(rank_concat_bwd_kernel,
            {"g": "*fp32", **_PLACES, "ptr": "*i64", "y": "*fp32"}
            | dict.fromkeys(("K", "N", "C", "B", "T", "blocks_c", "stride_k", "stride_n"), "i32"),
            {"SEGMENTS": SEGMENTS, "BB": ROWS, "BC": 128, "ACC": tl.float32}, num_warps=4, maxnreg=255),
]
