"""frame_concat in Triton: frames of the sets, then rows and what stands beside them; in the gradient the other way."""

import torch
from torch import Tensor

from ..segment_sum import triton_kernels as segment_sum
from ..triton_common import AotCase, accumulator, cdiv, launch, next_power_of_2, tl, triton
from . import triton_turn as turn
from .reference import owners

SETS, ROWS, CHANNELS, LANES = 32, 32, 8, 128
ENOUGH: tl.constexpr = tl.constexpr(0.5)


@triton.jit
def _across(u, axis):
    """The part of u across the unit vector; twice is enough."""
    u = turn.plus(u, turn.times(-turn.dot(u, axis), axis))
    return turn.plus(u, turn.times(-turn.dot(u, axis), axis))


@triton.jit
def _length(u):
    return tl.sqrt(turn.dot(u, u))


@triton.jit
def _frame(p_u, n, seed, o_b, m_b, IMPROPER: tl.constexpr, TOLERANCE: tl.constexpr, ACC: tl.constexpr):
    """Gram-Schmidt of the n vectors at p_u and random axes: what was taken first and second, with its number (-1 where
    it was drawn), the three axes, the side of the third, and NaN where the vectors are not finite, else 0.

    Candidates are walked backwards, so that the first of those that do has the last word.
    """
    b_total, b_longest = tl.zeros_like(o_b).to(ACC), tl.zeros_like(o_b).to(ACC)
    for i_n in range(0, n):
        u = turn.load3(p_u + 3 * i_n, 1, m_b)
        b_total += turn.dot(u, u)
        b_longest = tl.maximum(b_longest, turn.dot(u, u))
    b_least = TOLERANCE * tl.maximum(tl.sqrt(b_longest), 1.0)
    h1, h2, h3, b_sign = turn.random_axes(turn.words(seed, o_b, 1), ACC)
    if IMPROPER:
        h3 = turn.times(b_sign, h3)
    a, b_first = h1, tl.full(o_b.shape, -1, tl.int32)
    for i_n in range(0, n):
        u = turn.load3(p_u + 3 * (n - 1 - i_n), 1, m_b)
        m_u = _length(u) > b_least
        a, b_first = turn.where(m_u, u, a), tl.where(m_u, n - 1 - i_n, b_first)
    one = turn.times(1.0 / _length(a), a)
    b = turn.where(_length(_across(h2, one)) > ENOUGH, h2, h3)
    b = turn.where(_length(_across(h1, one)) > ENOUGH, h1, b)
    b_second = tl.full(o_b.shape, -1, tl.int32)
    for i_n in range(0, n):
        u = turn.load3(p_u + 3 * (n - 1 - i_n), 1, m_b)
        m_u = _length(_across(u, one)) > b_least
        b, b_second = turn.where(m_u, u, b), tl.where(m_u, n - 1 - i_n, b_second)
    off = _across(b, one)
    two = turn.times(1.0 / _length(off), off)
    three = turn.cross(one, two)
    b_side = tl.full(o_b.shape, 1.0, ACC)
    if IMPROPER:
        b_off = tl.where(tl.abs(turn.dot(h2, three)) > ENOUGH, turn.dot(h2, three), turn.dot(h3, three))
        b_off = tl.where(tl.abs(turn.dot(h1, three)) > ENOUGH, turn.dot(h1, three), b_off)
        for i_n in range(0, n):
            b_u = turn.dot(turn.load3(p_u + 3 * (n - 1 - i_n), 1, m_b), three)
            b_off = tl.where(tl.abs(b_u) > b_least, b_u, b_off)
        b_side = tl.where(b_off < 0, -b_side, b_side)
    return a, b, b_first, b_second, one, two, turn.times(b_side, three), b_side, 0.0 * b_total


@triton.jit
def frame_turn_fwd_kernel(vectors, seed, frames, B, KB, n, IMPROPER: tl.constexpr, TOLERANCE: tl.constexpr,
                          BS: tl.constexpr, ACC: tl.constexpr):
    """frames [K, B, 3, 3] of vectors [B, n, 3] and seed [K], a lane each; NaN where the vectors are not finite."""
    o_f = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    m_f = o_f < KB
    o_b = o_f % B
    b_seed = tl.load(seed + o_f // B, mask=m_f, other=0)
    _, _, _, _, one, two, three, _, b_nan = _frame(vectors + 3 * n * o_b, n, b_seed, o_b, m_f, IMPROPER, TOLERANCE, ACC)
    turn.store3(frames + 9 * o_f, (one[0] + b_nan, one[1] + b_nan, one[2] + b_nan), 3, m_f)
    turn.store3(frames + 9 * o_f + 1, (two[0] + b_nan, two[1] + b_nan, two[2] + b_nan), 3, m_f)
    turn.store3(frames + 9 * o_f + 2, (three[0] + b_nan, three[1] + b_nan, three[2] + b_nan), 3, m_f)


@triton.jit
def _matrix(p, m):
    """The nine numbers at p, and on which side the third column is."""
    a, b, c = turn.load3(p, 1, m), turn.load3(p + 3, 1, m), turn.load3(p + 6, 1, m)
    b_det = turn.dot(turn.cross(a, b), c)
    r = (a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2])
    b_one = 1.0 + 0.0 * b_det
    return r, tl.where(b_det < 0, -b_one, b_one)


@triton.jit
def _components(p, b_l, m):
    """The 2l + 1 numbers at p, of seven."""
    b_0 = tl.load(p, mask=m, other=0.0)
    m_1, m_2, m_3 = m & (b_l > 0), m & (b_l > 1), m & (b_l > 2)
    return (b_0, tl.load(p + 1, mask=m_1, other=0.0), tl.load(p + 2, mask=m_1, other=0.0),
            tl.load(p + 3, mask=m_2, other=0.0), tl.load(p + 4, mask=m_2, other=0.0),
            tl.load(p + 5, mask=m_3, other=0.0), tl.load(p + 6, mask=m_3, other=0.0))


@triton.jit
def _turned(r, b_s, b_l, v):
    """D(R) v times b_s, of whatever degree each lane has."""
    one, two, three = turn.times_vector(r, v), turn.turned2(r, v), turn.turned3(r, v)
    b_0 = tl.where(b_l == 0, v[0], tl.where(b_l == 1, one[0], tl.where(b_l == 2, two[0], three[0])))
    b_1 = tl.where(b_l == 1, one[1], tl.where(b_l == 2, two[1], three[1]))
    b_2 = tl.where(b_l == 1, one[2], tl.where(b_l == 2, two[2], three[2]))
    b_3, b_4 = tl.where(b_l == 2, two[3], three[3]), tl.where(b_l == 2, two[4], three[4])
    return b_s * b_0, b_s * b_1, b_s * b_2, b_s * b_3, b_s * b_4, b_s * three[5], b_s * three[6]


@triton.jit
def _store(p, y, b_l, m):
    m_1, m_2, m_3 = m & (b_l > 0), m & (b_l > 1), m & (b_l > 2)
    tl.store(p, y[0], mask=m)
    tl.store(p + 1, y[1], mask=m_1)
    tl.store(p + 2, y[2], mask=m_1)
    tl.store(p + 3, y[3], mask=m_2)
    tl.store(p + 4, y[4], mask=m_2)
    tl.store(p + 5, y[5], mask=m_3)
    tl.store(p + 6, y[6], mask=m_3)


@triton.jit
def _channel(channels, o_p, P, D):
    """Offset, degree and parity of channels o_p, and which of them lie inside of a row."""
    m_p = o_p < P
    b_at = tl.load(channels + 3 * o_p, mask=m_p, other=0)
    b_l = tl.load(channels + 3 * o_p + 1, mask=m_p, other=0)
    b_flip = tl.load(channels + 3 * o_p + 2, mask=m_p, other=0)
    return b_at, b_l, b_flip, m_p & (b_l >= 0) & (b_l <= 3) & (b_at >= 0) & (b_at + 2 * b_l < D)


@triton.jit
def frame_concat_fwd_kernel(x, v, frames, owner, channels, y, N, B, C, D, P, blocks, BR: tl.constexpr, BC: tl.constexpr,
                            BP: tl.constexpr):
    """y [K, N, C + D]: BR rows of x [N, C] and, beside them, v [B, D] turned by frames [K, B, 3, 3] of their owner."""
    i_k = tl.program_id(0).to(tl.int64) // blocks
    o_r = (tl.program_id(0).to(tl.int64) % blocks * BR + tl.arange(0, BR))[:, None]
    m_r = o_r < N
    p_y = y + (i_k * N + o_r) * (C + D)
    for i_c in range(0, C, BC):
        o_c = i_c + tl.arange(0, BC)[None, :]
        m_c = m_r & (o_c < C)
        tl.store(p_y + o_c, tl.load(x + o_r * C + o_c, mask=m_c), mask=m_c)
    b_owner = tl.load(owner + o_r, mask=m_r, other=-1)
    m_o = (b_owner >= 0) & (b_owner < B)
    r, b_side = _matrix(frames + 9 * (i_k * B + b_owner), m_o)
    b_nan = tl.where(m_o, tl.zeros_like(b_side), float("nan"))
    for i_p in range(0, P, BP):
        b_at, b_l, b_flip, m_p = _channel(channels, i_p + tl.arange(0, BP)[None, :], P, D)
        b_v = _components(v + b_owner * D + b_at, b_l, m_o & m_p)
        b_y = _turned(r, tl.where(b_flip == 1, b_side, 1.0) + b_nan, b_l, b_v)
        _store(p_y + C + b_at, b_y, b_l, m_r & m_p)


@triton.jit
def frame_concat_bwd_kernel(sums, g_frames, v, frames, channels, g_v, g_turn, B, KB, D, P, BS: tl.constexpr,
                            BP: tl.constexpr):
    """From sums [K, B, D] of what stood beside the rows: g_v [K, B, D], and g_turn = g_frames + ... [K, B, 3, 3]."""
    o_f = (tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS))[:, None]
    m_f = o_f < KB
    r, b_side = _matrix(frames + 9 * o_f, m_f)
    back = (r[0], r[3], r[6], r[1], r[4], r[7], r[2], r[5], r[8])
    b_0 = tl.zeros([BS, BP], dtype=b_side.dtype)
    b_1, b_2, b_3, b_4, b_5, b_6, b_7, b_8 = b_0, b_0, b_0, b_0, b_0, b_0, b_0, b_0
    for i_p in range(0, P, BP):
        b_at, b_l, b_flip, m_p = _channel(channels, i_p + tl.arange(0, BP)[None, :], P, D)
        b_s = tl.where(b_flip == 1, b_side, 1.0)
        b_g = _components(sums + o_f * D + b_at, b_l, m_f & m_p)
        b_v = _components(v + o_f % B * D + b_at, b_l, m_f & m_p)
        _store(g_v + o_f * D + b_at, _turned(back, b_s, b_l, b_g), b_l, m_f & m_p)
        one, two, three = turn.outer(b_g, b_v), turn.outer2(r, b_g, b_v), turn.outer3(r, b_g, b_v)
        # each degree's is zero where the lane has another
        b_x = tl.where(b_l == 1, b_s, 0.0)
        b_y = tl.where(b_l == 2, b_s, 0.0)
        b_z = tl.where(b_l == 3, b_s, 0.0)
        b_0 += b_x * one[0] + b_y * two[0] + b_z * three[0]
        b_1 += b_x * one[1] + b_y * two[1] + b_z * three[1]
        b_2 += b_x * one[2] + b_y * two[2] + b_z * three[2]
        b_3 += b_x * one[3] + b_y * two[3] + b_z * three[3]
        b_4 += b_x * one[4] + b_y * two[4] + b_z * three[4]
        b_5 += b_x * one[5] + b_y * two[5] + b_z * three[5]
        b_6 += b_x * one[6] + b_y * two[6] + b_z * three[6]
        b_7 += b_x * one[7] + b_y * two[7] + b_z * three[7]
        b_8 += b_x * one[8] + b_y * two[8] + b_z * three[8]
    o_9 = 9 * (tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS))
    m_9 = o_9 < 9 * KB
    a = (tl.sum(b_0, 1), tl.sum(b_1, 1), tl.sum(b_2, 1))
    b = (tl.sum(b_3, 1), tl.sum(b_4, 1), tl.sum(b_5, 1))
    c = (tl.sum(b_6, 1), tl.sum(b_7, 1), tl.sum(b_8, 1))
    turn.store3(g_turn + o_9, turn.plus(a, turn.load3(g_frames + o_9, 1, m_9)), 1, m_9)
    turn.store3(g_turn + o_9 + 3, turn.plus(b, turn.load3(g_frames + o_9 + 3, 1, m_9)), 1, m_9)
    turn.store3(g_turn + o_9 + 6, turn.plus(c, turn.load3(g_frames + o_9 + 6, 1, m_9)), 1, m_9)


@triton.jit
def frame_turn_bwd_kernel(g, vectors, seed, g_vectors, B, KB, n, IMPROPER: tl.constexpr, TOLERANCE: tl.constexpr,
                          BS: tl.constexpr, ACC: tl.constexpr):
    """g_vectors [K, B, n, 3] from g [K, B, 3, 3] of the frames; zero where the vectors are not finite."""
    o_f = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    m_f = o_f < KB
    o_b = o_f % B
    b_seed = tl.load(seed + o_f // B, mask=m_f, other=0)
    a, b, b_first, b_second, one, two, _, b_side, b_nan = _frame(vectors + 3 * n * o_b, n, b_seed, o_b, m_f, IMPROPER,
                                                                 TOLERANCE, ACC)
    g_three = turn.times(b_side, turn.load3(g + 9 * o_f + 2, 3, m_f))
    g_one = turn.plus(turn.load3(g + 9 * o_f, 3, m_f), turn.cross(two, g_three))
    g_off = turn.plus(turn.load3(g + 9 * o_f + 1, 3, m_f), turn.cross(g_three, one))
    g_off = turn.times(1.0 / _length(_across(b, one)), _across(g_off, two))
    g_one = turn.plus(g_one, turn.times(-turn.dot(b, one), g_off))
    g_one = turn.plus(g_one, turn.times(-turn.dot(g_off, one), b))
    g_a, g_b = turn.times(1.0 / _length(a), _across(g_one, one)), _across(g_off, one)
    nothing = (b_side * 0, b_side * 0, b_side * 0)
    b_first, b_second = tl.where(b_nan == 0, b_first, -1), tl.where(b_nan == 0, b_second, -1)
    for i_n in range(0, n):
        g_u = turn.plus(turn.where(b_first == i_n, g_a, nothing), turn.where(b_second == i_n, g_b, nothing))
        turn.store3(g_vectors + 3 * (o_f * n + i_n), g_u, 1, m_f)


def _turns(vectors: Tensor, seed: Tensor, improper: bool, tolerance: float) -> Tensor:
    (sets, n, _), draws = vectors.shape, seed.shape[0]
    frames = vectors.new_empty(draws, sets, 3, 3)
    launch(frame_turn_fwd_kernel, (cdiv(draws * sets, SETS),), vectors, seed, frames, sets, draws * sets, n,
           IMPROPER=improper, TOLERANCE=tolerance, BS=SETS, ACC=accumulator(vectors.dtype), num_warps=1,
           device=vectors.device)
    return frames


def _widths(channels: int, lanes: int) -> tuple[int, int]:
    """Channels of a tile and, of the lanes, what that leaves for rows or sets."""
    block = min(CHANNELS, next_power_of_2(channels))
    return block, lanes // block


def concat(x: Tensor, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor, seed: Tensor, improper: bool,
           tolerance: float) -> tuple[Tensor, Tensor]:
    """As in the reference."""
    x, v, seed = x.contiguous(), v.contiguous(), seed.contiguous()
    (rows, left), (sets, width), draws = x.shape, v.shape, seed.shape[0]
    frames = _turns(vectors.contiguous(), seed, improper, tolerance)
    owner, known = owners(ptr, rows)
    y = x.new_empty(draws, rows, left + width)
    block, height = _widths(channels.shape[0], LANES)
    blocks = cdiv(rows, height)
    launch(frame_concat_fwd_kernel, (draws * blocks,), x, v, frames, torch.where(known, owner, -1),
           channels.contiguous(), y, rows, sets, left, width, channels.shape[0], blocks, BR=height,
           BC=min(64, next_power_of_2(left)), BP=block, num_warps=LANES // 32, device=x.device)
    return y, frames


def concat_backward(g: Tensor, g_frames: Tensor, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor,
                    seed: Tensor, improper: bool, tolerance: float, needs: list[bool]) -> tuple[Tensor, Tensor]:
    """As in the reference."""
    v, vectors, seed = v.contiguous(), vectors.contiguous(), seed.contiguous()
    (draws, rows, width), sets = g.shape, v.shape[0]
    order, total = torch.arange(rows, device=g.device), draws * sets
    sums = torch.stack([segment_sum.forward(own, order, order, ptr) for own in g]) if draws else g[:, :0]
    frames = _turns(vectors, seed, improper, tolerance)
    g_v, g_turn = v.new_zeros(draws, sets, width), v.new_empty(draws, sets, 3, 3)
    block, height = _widths(channels.shape[0], LANES)
    launch(frame_concat_bwd_kernel, (cdiv(total, height),), sums.contiguous(), g_frames.contiguous(), v, frames,
           channels.contiguous(), g_v, g_turn, sets, total, width, channels.shape[0], BS=height, BP=block,
           num_warps=LANES // 32, maxnreg=255, device=g.device)
    found = [g_v.sum(0) if needs[0] else v.new_empty(0), v.new_empty(0)]
    if needs[1]:
        g_vectors = v.new_empty(draws, *vectors.shape)
        launch(frame_turn_bwd_kernel, (cdiv(total, SETS),), g_turn, vectors, seed, g_vectors, sets, total,
               vectors.shape[1], IMPROPER=improper, TOLERANCE=tolerance, BS=SETS, ACC=accumulator(v.dtype), num_warps=1,
               device=g.device)
        found[1] = g_vectors.sum(0)
    return tuple(found)


def _aot(kind: str, improper: bool, block: int) -> list[AotCase]:
    acc = tl.float64 if kind == "*fp64" else tl.float32
    static = {"IMPROPER": improper, "TOLERANCE": 1e-4, "BS": SETS, "ACC": acc}
    sizes = dict.fromkeys(("B", "KB", "n"), "i32")
    floats = lambda *names: dict.fromkeys(names, kind)  # noqa: E731
    return [
        AotCase(frame_turn_fwd_kernel, floats("vectors", "frames") | {"seed": "*i64"} | sizes, static, num_warps=1),
        AotCase(frame_turn_bwd_kernel, floats("g", "vectors", "g_vectors") | {"seed": "*i64"} | sizes, static,
                num_warps=1),
        AotCase(frame_concat_fwd_kernel, floats("x", "v", "frames", "y") | {"owner": "*i64", "channels": "*i64"}
                | dict.fromkeys(("N", "B", "C", "D", "P", "blocks"), "i32"),
                {"BR": LANES // block, "BC": 64, "BP": block}),
        AotCase(frame_concat_bwd_kernel, floats("sums", "g_frames", "v", "frames", "g_v", "g_turn")
                | {"channels": "*i64"} | dict.fromkeys(("B", "KB", "D", "P"), "i32"),
                {"BS": LANES // block, "BP": block}, maxnreg=255),
    ]


AOT = [*_aot("*fp32", True, 8), _aot("*fp64", False, 2)[3]]  # the last has the most registers
