"""frames in Triton: a lane for every set; a tuple holds the components of a vector. frame_concat: triton_concat.py."""

import torch
from torch import Tensor

from ..triton_common import AotCase, accumulator, cdiv, launch, tl, triton
from . import triton_concat
from . import triton_turn as turn
from .triton_concat import concat, concat_backward

__all__ = ["AOT", "concat", "concat_backward", "forward"]
SETS = 32  # whose axes a program finds, a lane each
TILE, POINTS, WARPS = 8, 32, 2  # sets and points of the tile of moments
SWEEPS: tl.constexpr = tl.constexpr(6)  # of three rotations; see axes.h


@triton.jit
def _annihilate(pp, qq, pq, rp, rq, p, q):
    """The rotation of axes p and q that makes pq zero, as (pp, qq, rp, rq, p, q) after it."""
    b_d = qq - pp
    b_h = tl.abs(b_d) + tl.sqrt(b_d * b_d + 4.0 * pq * pq)
    b_t = 2.0 * pq / tl.where(b_h == 0, 1.0, b_h)
    b_t = tl.where(b_d < 0, -b_t, b_t)
    b_c = 1.0 / tl.sqrt(b_t * b_t + 1.0)
    b_s = b_t * b_c
    new_p = (b_c * p[0] - b_s * q[0], b_c * p[1] - b_s * q[1], b_c * p[2] - b_s * q[2])
    new_q = (b_s * p[0] + b_c * q[0], b_s * p[1] + b_c * q[1], b_s * p[2] + b_c * q[2])
    return pp - b_t * pq, qq + b_t * pq, b_c * rp - b_s * rq, b_s * rp + b_c * rq, new_p, new_q


@triton.jit
def _order(a, b, of_a, of_b):
    m_b = b < a
    low = (tl.where(m_b, of_b[0], of_a[0]), tl.where(m_b, of_b[1], of_a[1]), tl.where(m_b, of_b[2], of_a[2]))
    high = (tl.where(m_b, of_a[0], of_b[0]), tl.where(m_b, of_a[1], of_b[1]), tl.where(m_b, of_a[2], of_b[2]))
    return tl.where(m_b, b, a), tl.where(m_b, a, b), low, high


@triton.jit
def _positive(v):
    """v or -v: the largest component is positive, of equal ones the first decides."""
    b_x, b_y, b_z = tl.abs(v[0]), tl.abs(v[1]), tl.abs(v[2])
    b_later = tl.where(b_y >= b_z, v[1], v[2])
    m_turn = tl.where(b_x >= tl.maximum(b_y, b_z), v[0], b_later) < 0
    return turn.where(m_turn, (-v[0], -v[1], -v[2]), v)


@triton.jit
def _principal(s):
    """Values, ascending, and their axes of the symmetric matrix xx, xy, xz, yy, yz, zz."""
    b_scale = tl.maximum(tl.maximum(tl.abs(s[0]), tl.abs(s[3])), tl.abs(s[5]))
    b_scale = tl.maximum(b_scale, tl.maximum(tl.maximum(tl.abs(s[1]), tl.abs(s[2])), tl.abs(s[4])))
    b_scale = tl.where(b_scale == 0, 1.0, b_scale)
    xx, xy, xz = s[0] / b_scale, s[1] / b_scale, s[2] / b_scale
    yy, yz, zz = s[3] / b_scale, s[4] / b_scale, s[5] / b_scale
    b_zero = xx * 0
    b_one = b_zero + 1.0
    a, b, c = (b_one, b_zero, b_zero), (b_zero, b_one, b_zero), (b_zero, b_zero, b_one)
    for _ in range(0, SWEEPS):
        xx, yy, xz, yz, a, b = _annihilate(xx, yy, xy, xz, yz, a, b)
        xx, zz, xy, yz, a, c = _annihilate(xx, zz, xz, b_zero, yz, a, c)
        yy, zz, xy, xz, b, c = _annihilate(yy, zz, yz, xy, b_zero, b, c)
        yz = b_zero
    xx, yy, zz = xx * b_scale, yy * b_scale, zz * b_scale
    xx, yy, a, b = _order(xx, yy, a, b)
    yy, zz, b, c = _order(yy, zz, b, c)
    xx, yy, a, b = _order(xx, yy, a, b)
    a, b = _positive(a), _positive(b)
    return (xx, yy, zz), a, b, turn.cross(a, b)


@triton.jit
def _open(values, a, b, c, o_s, seed, b_same):
    """Axes whose values differ by at most b_same as a random basis of what they span."""
    b_low = values[1] - values[0] <= b_same
    b_high = values[2] - values[1] <= b_same
    words = turn.words(seed, o_s, 0)
    p, q, r, _ = turn.random_axes(words, values[0].dtype)
    b_all = b_low & b_high
    b_angle = turn.uniform(words[0], values[0].dtype) * turn.TURN
    b_cos, b_sin = tl.cos(b_angle), tl.sin(b_angle)
    # columns of the turn among the three axes: a random one, about the third, about the first, or none
    b_c1, b_s1 = tl.where(b_low, b_cos, 1.0), tl.where(b_low, b_sin, 0.0)
    b_c2, b_s2 = tl.where(b_high & (b_low == 0), b_cos, 1.0), tl.where(b_high & (b_low == 0), b_sin, 0.0)
    p = (tl.where(b_all, p[0], b_c1), tl.where(b_all, p[1], b_s1), tl.where(b_all, p[2], 0.0))
    q = (tl.where(b_all, q[0], -b_s1), tl.where(b_all, q[1], b_c1 * b_c2), tl.where(b_all, q[2], b_s2))
    r = (tl.where(b_all, r[0], 0.0), tl.where(b_all, r[1], -b_s2), tl.where(b_all, r[2], b_c2))
    return turn.combine(p, a, b, c), turn.combine(q, a, b, c), turn.combine(r, a, b, c)


@triton.jit
def frames_moments_kernel(
    pos, weight, ptr, centroid, second, N, B, WEIGHTED: tl.constexpr, CENTRED: tl.constexpr, BS: tl.constexpr,
    BP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of pos [N, 3]: centroid [B, 3] and second moments [B, 6] of BS sets; BP points of each at a time."""
    o_s = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    m_s = o_s < B
    b_begin = tl.minimum(tl.maximum(tl.load(ptr + o_s, mask=m_s, other=0), 0), N)
    b_end = tl.minimum(tl.maximum(tl.load(ptr + o_s + 1, mask=m_s, other=0), b_begin), N)
    longest = tl.max(b_end - b_begin, 0)
    o_p = tl.arange(0, BP).to(tl.int64)[None, :] + b_begin[:, None]
    b_zero = tl.zeros([BS], dtype=ACC)
    b_w, b_x, b_y, b_z = b_zero, b_zero, b_zero, b_zero
    for i_p in range(0, longest, BP):
        m_p = o_p + i_p < b_end[:, None]
        w = _weight(weight, o_p + i_p, m_p, WEIGHTED, ACC)
        place = turn.load3(pos + 3 * (o_p + i_p), 1, m_p)
        b_w += tl.sum(w, 1)
        b_x += tl.sum(w * place[0], 1)
        b_y += tl.sum(w * place[1], 1)
        b_z += tl.sum(w * place[2], 1)
    b_w = tl.where(b_w == 0, 1.0, b_w)
    b_keep = 1.0 / b_w if CENTRED else b_zero
    b_x, b_y, b_z = b_x * b_keep, b_y * b_keep, b_z * b_keep
    xx, xy, xz, yy, yz, zz = b_zero, b_zero, b_zero, b_zero, b_zero, b_zero
    for i_p in range(0, longest, BP):
        m_p = o_p + i_p < b_end[:, None]
        w = _weight(weight, o_p + i_p, m_p, WEIGHTED, ACC)
        place = turn.load3(pos + 3 * (o_p + i_p), 1, m_p)
        x = tl.where(m_p, place[0] - b_x[:, None], 0.0)
        y = tl.where(m_p, place[1] - b_y[:, None], 0.0)
        z = tl.where(m_p, place[2] - b_z[:, None], 0.0)
        xx += tl.sum(w * x * x, 1)
        xy += tl.sum(w * x * y, 1)
        xz += tl.sum(w * x * z, 1)
        yy += tl.sum(w * y * y, 1)
        yz += tl.sum(w * y * z, 1)
        zz += tl.sum(w * z * z, 1)
    turn.store3(centroid + 3 * o_s, (b_x, b_y, b_z), 1, m_s)
    turn.store3(second + 6 * o_s, (xx / b_w, xy / b_w, xz / b_w), 1, m_s)
    turn.store3(second + 6 * o_s + 3, (yy / b_w, yz / b_w, zz / b_w), 1, m_s)


@triton.jit
def _weight(weight, o_p, m_p, WEIGHTED: tl.constexpr, ACC: tl.constexpr):
    if WEIGHTED:
        b_w = tl.load(weight + o_p, mask=m_p, other=0.0)
    else:
        b_w = m_p.to(ACC)
    return b_w


@triton.jit
def frames_fwd_kernel(
    ptr, centroid, second, seed, values, axes, N, B, TOLERANCE: tl.constexpr, SEEDED: tl.constexpr, EPS: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    """values [B, 3] and axes [B, 3, 3] of second moments [B, 6], a lane each."""
    o_s = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    m_s = o_s < B
    s, t = turn.load3(second + 6 * o_s, 1, m_s), turn.load3(second + 6 * o_s + 3, 1, m_s)
    b_size = tl.abs(s[0]) + tl.abs(s[1]) + tl.abs(s[2]) + tl.abs(t[0]) + tl.abs(t[1]) + tl.abs(t[2])
    b_nan = 0.0 * b_size
    value, a, b, c = _principal((s[0], s[1], s[2], t[0], t[1], t[2]))
    if SEEDED:
        b_n = tl.load(ptr + o_s + 1, mask=m_s, other=0) - tl.load(ptr + o_s, mask=m_s, other=0)
        b_part = EPS * (tl.minimum(tl.maximum(b_n, 0), N) + 16).to(b_size.dtype)
        at = turn.load3(centroid + 3 * o_s, 1, m_s)
        b_same = b_part * b_part * (at[0] * at[0] + at[1] * at[1] + at[2] * at[2])  # see axes.h
        a, b, c = _open(value, a, b, c, o_s, tl.load(seed), tl.maximum(TOLERANCE * value[2], b_same))
    turn.store3(values + 3 * o_s, (value[0] + b_nan, value[1] + b_nan, value[2] + b_nan), 1, m_s)
    turn.store3(axes + 9 * o_s, (a[0] + b_nan, a[1] + b_nan, a[2] + b_nan), 3, m_s)
    turn.store3(axes + 9 * o_s + 1, (b[0] + b_nan, b[1] + b_nan, b[2] + b_nan), 3, m_s)
    turn.store3(axes + 9 * o_s + 2, (c[0] + b_nan, c[1] + b_nan, c[2] + b_nan), 3, m_s)


def forward(pos: Tensor, weight: Tensor | None, ptr: Tensor, seed: Tensor | None, centred: bool,
            tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """As in the reference."""
    sets, acc = ptr.shape[0] - 1, accumulator(pos.dtype)
    centroid, second, values, axes = (pos.new_empty(sets, *shape) for shape in ((3,), (6,), (3,), (3, 3)))
    ptr = ptr.contiguous()
    launch(frames_moments_kernel, (cdiv(sets, TILE),), pos.contiguous(), pos if weight is None else weight.contiguous(),
           ptr, centroid, second, pos.shape[0], sets, WEIGHTED=weight is not None, CENTRED=centred,
           BS=TILE, BP=POINTS, ACC=acc, num_warps=WARPS, device=pos.device)
    launch(frames_fwd_kernel, (cdiv(sets, SETS),), ptr, centroid, second, ptr if seed is None else seed, values, axes,
           pos.shape[0], sets, TOLERANCE=tolerance, SEEDED=seed is not None, EPS=torch.finfo(pos.dtype).eps, BS=SETS,
           num_warps=1, device=pos.device)
    return centroid, values, axes


def _aot(kind: str, weighted: bool, seeded: bool) -> list[AotCase]:
    acc = tl.float64 if kind == "*fp64" else tl.float32
    floats = lambda *names: dict.fromkeys(names, kind)  # noqa: E731
    return [
        AotCase(frames_moments_kernel, floats("pos", "weight") | {"ptr": "*i64"} | floats("centroid", "second")
                | {"N": "i32", "B": "i32"},
                {"WEIGHTED": weighted, "CENTRED": True, "BS": TILE, "BP": POINTS, "ACC": acc}, num_warps=WARPS),
        AotCase(frames_fwd_kernel, {"ptr": "*i64"} | floats("centroid", "second") | {"seed": "*i64"}
                | floats("values", "axes") | {"N": "i32", "B": "i32"},
                {"TOLERANCE": 1e-6, "SEEDED": seeded, "EPS": 1e-7, "BS": SETS}, num_warps=1),
    ]


AOT = [*_aot("*fp32", True, True), _aot("*fp64", False, True)[1], *triton_concat.AOT]
