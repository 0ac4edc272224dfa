"""vn_norm_stats and vn_leaky_relu in Triton: blocks of rows and channels; sums over rows in parts, in a fixed order."""

import torch
from torch import Tensor

from ..triton_common import INTERPRETED, AotCase, accumulator, cdiv, launch, tl, triton

EPS: tl.constexpr = tl.constexpr(1e-6)  # vnn's: added to norms and to squared norms of directions

# Device functions, also of vn_edge_conv. A vector is three tiles, one for each of x, y and z.


@triton.jit
def planes(x, b_row, width, o_c, mask, ACC: tl.constexpr):
    """Rows b_row and columns o_c of x [., 3, width] as three tiles; zeros where masked."""
    p_x = x + b_row * (3 * width) + o_c
    b_x = tl.load(p_x, mask=mask, other=0.0).to(ACC)
    b_y = tl.load(p_x + width, mask=mask, other=0.0).to(ACC)
    b_z = tl.load(p_x + 2 * width, mask=mask, other=0.0).to(ACC)
    return b_x, b_y, b_z


@triton.jit
def store_planes(x, b_row, width, o_c, mask, b_x, b_y, b_z):
    p_x = x + b_row * (3 * width) + o_c
    tl.store(p_x, b_x, mask=mask)
    tl.store(p_x + width, b_y, mask=mask)
    tl.store(p_x + 2 * width, b_z, mask=mask)


@triton.jit
def affine(mean, var, weight, bias, o_c, m_c, BN_EPS: tl.constexpr):
    """Batch norm of a norm r as (a, b): r -> a r + b; (0, 0) where masked."""
    b_a = tl.load(weight + o_c, mask=m_c, other=0.0) / tl.sqrt(tl.load(var + o_c, mask=m_c, other=1.0) + BN_EPS)
    return b_a, tl.load(bias + o_c, mask=m_c, other=0.0) - tl.load(mean + o_c, mask=m_c, other=0.0) * b_a


@triton.jit
def activate(px, py, pz, dx, dy, dz, s, SLOPE: tl.constexpr):
    """The vector leaky ReLU of s p along d."""
    qx, qy, qz = s * px, s * py, s * pz
    dot = qx * dx + qy * dy + qz * dz
    away = tl.where(dot >= 0, 0.0, (1.0 - SLOPE) * dot / (dx * dx + dy * dy + dz * dz + EPS))
    return qx - away * dx, qy - away * dy, qz - away * dz


@triton.jit
def activate_grad(gx, gy, gz, px, py, pz, dx, dy, dz, s, SLOPE: tl.constexpr):
    """Gradients of q = s p and of d, those of s left to `norm_grad`."""
    qx, qy, qz = s * px, s * py, s * pz
    dot = qx * dx + qy * dy + qz * dz
    square = dx * dx + dy * dy + dz * dz + EPS
    along = tl.where(dot >= 0, 0.0, (1.0 - SLOPE) * (gx * dx + gy * dy + gz * dz) / square)
    away = tl.where(dot >= 0, 0.0, (1.0 - SLOPE) * dot / square)
    both = 2.0 * along * dot / square
    return (gx - along * dx, gy - along * dy, gz - along * dz,
            both * dx - away * gx - along * qx, both * dy - away * gy - along * qy, both * dz - away * gz - along * qz)


@triton.jit
def norm_grad(gx, gy, gz, px, py, pz, n, a, b, mean):
    """From the gradient of (a + b / r) p, r = n + 1e-6: that of p, and the terms of those of a and b.

    As b = bias - mean a, the first term is (r - mean) times the second: so nothing large cancels after the sums.
    """
    r = n + EPS
    b_b = (gx * px + gy * py + gz * pz) / r
    s = a + b / r
    pull = tl.where(n == 0, 0.0, -b_b * b / (r * tl.where(n == 0, 1.0, n)))
    return s * gx + pull * px, s * gy + pull * py, s * gz + pull * pz, b_b * (r - mean), b_b


@triton.jit
def store_moments(parts, i_part, o_c, m_c, C, b_count, b_mean, b_m2):
    """Rows i_part of parts [P, 2, C]: mean and sum of squared deviations of lanes that saw b_count values each."""
    b_total = tl.maximum(tl.sum(b_count, 0), 1.0)[None, :]
    b_all = tl.sum(b_mean * b_count, 0)[None, :] / b_total
    b_off = b_mean - b_all
    b_square = tl.sum(b_m2 + b_count * b_off * b_off, 0)[None, :]
    tl.store(parts + i_part * 2 * C + o_c, b_all, mask=m_c)
    tl.store(parts + (i_part * 2 + 1) * C + o_c, b_square, mask=m_c)


@triton.jit
def vn_norm_stats_fwd_kernel(p, parts, R, C, part, blocks_c, BR: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):
    """parts [P, 2, C]: mean and sum of squared deviations of |p| + 1e-6 over `part` rows of p [R, 3, C]."""
    pid = tl.program_id(0).to(tl.int64)
    i_part = pid // blocks_c
    o_c = (pid % blocks_c * BC + tl.arange(0, BC))[None, :]
    m_c = o_c < C
    b_count = tl.full([BR, 1], 0.0, ACC)
    b_mean = tl.full([BR, BC], 0.0, ACC)
    b_m2 = b_mean
    for i_r in range(0, part, BR):
        o_r = (i_part * part + i_r + tl.arange(0, BR))[:, None]
        m_r = o_r < R
        b_x, b_y, b_z = planes(p, o_r, C, o_c, m_r & m_c, ACC)
        b_r = tl.sqrt(b_x * b_x + b_y * b_y + b_z * b_z) + EPS
        b_count += m_r.to(ACC)
        b_off = tl.where(m_r, b_r - b_mean, 0.0)
        b_mean += b_off / tl.maximum(b_count, 1.0)
        b_m2 += b_off * (b_r - b_mean)
    store_moments(parts, i_part, o_c, m_c, C, b_count, b_mean, b_m2)


@triton.jit
def vn_norm_stats_fwd_kernel_combine(parts, mean, var, P, C, part, total, BP: tl.constexpr, BC: tl.constexpr,
                                     ACC: tl.constexpr):
    """mean and var [C] from parts [P, 2, C] of `part` values each, the last of what is left of `total`."""
    o_c = (tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC))[None, :]
    m_c = o_c < C
    b_total = tl.maximum(tl.full([1, 1], 0.0, ACC) + total, 1.0)
    b_sum = tl.full([BP, BC], 0.0, ACC)
    for i_p in range(0, P, BP):
        o_p = i_p + tl.arange(0, BP).to(tl.int64)[:, None]
        b_count = tl.minimum(tl.maximum(total - o_p * part, 0), part).to(ACC)
        b_sum += b_count * tl.load(parts + o_p * 2 * C + o_c, mask=(o_p < P) & m_c, other=0.0)
    b_mean = tl.sum(b_sum, 0)[None, :] / b_total
    b_sum = tl.full([BP, BC], 0.0, ACC)
    for i_p in range(0, P, BP):
        o_p = i_p + tl.arange(0, BP).to(tl.int64)[:, None]
        m = (o_p < P) & m_c
        b_count = tl.minimum(tl.maximum(total - o_p * part, 0), part).to(ACC)
        b_off = tl.load(parts + o_p * 2 * C + o_c, mask=m, other=0.0) - b_mean
        b_sum += b_count * b_off * b_off + tl.load(parts + (o_p * 2 + 1) * C + o_c, mask=m, other=0.0)
    tl.store(mean + o_c, b_mean, mask=m_c)
    tl.store(var + o_c, tl.sum(b_sum, 0)[None, :] / b_total, mask=m_c)


@triton.jit
def vn_norm_stats_bwd_kernel(g_mean, g_var, p, mean, g_p, R, C, blocks_c, BR: tl.constexpr, BC: tl.constexpr,
                             ACC: tl.constexpr):
    """g_p [R, 3, C] from the gradients of mean and variance [C]."""
    pid = tl.program_id(0).to(tl.int64)
    o_r = (pid // blocks_c * BR + tl.arange(0, BR))[:, None]
    o_c = (pid % blocks_c * BC + tl.arange(0, BC))[None, :]
    m_c = o_c < C
    m = (o_r < R) & m_c
    b_x, b_y, b_z = planes(p, o_r, C, o_c, m, ACC)
    b_n = tl.sqrt(b_x * b_x + b_y * b_y + b_z * b_z)
    b_off = b_n + EPS - tl.load(mean + o_c, mask=m_c, other=0.0)
    b_g = tl.load(g_mean + o_c, mask=m_c, other=0.0) + 2.0 * tl.load(g_var + o_c, mask=m_c, other=0.0) * b_off
    b_g = tl.where(b_n == 0, 0.0, b_g / (tl.where(b_n == 0, 1.0, b_n) * R))
    store_planes(g_p, o_r, C, o_c, m, b_g * b_x, b_g * b_y, b_g * b_z)


@triton.jit
def vn_leaky_relu_fwd_kernel(
    p, d, mean, var, weight, bias, y, R, C, blocks_c,
    BN_EPS: tl.constexpr, SLOPE: tl.constexpr, HAS_D: tl.constexpr, SHARED: tl.constexpr, HAS_NORM: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [R, 3, C]: batch norm of the norms, then the leaky ReLU along d [R, 3, C], with SHARED [R, 3, 1]."""
    pid = tl.program_id(0).to(tl.int64)
    o_r = (pid // blocks_c * BR + tl.arange(0, BR))[:, None]
    o_c = (pid % blocks_c * BC + tl.arange(0, BC))[None, :]
    m_r, m_c = o_r < R, o_c < C
    b_x, b_y, b_z = planes(p, o_r, C, o_c, m_r & m_c, ACC)
    b_s = tl.full([1, 1], 1.0, ACC)
    if HAS_NORM:
        b_a, b_b = affine(mean, var, weight, bias, o_c, m_c, BN_EPS)
        b_s = b_a + b_b / (tl.sqrt(b_x * b_x + b_y * b_y + b_z * b_z) + EPS)
    if HAS_D:
        if SHARED:
            dx, dy, dz = planes(d, o_r, 1, 0, m_r, ACC)
        else:
            dx, dy, dz = planes(d, o_r, C, o_c, m_r & m_c, ACC)
        b_x, b_y, b_z = activate(b_x, b_y, b_z, dx, dy, dz, b_s, SLOPE)
    else:
        b_x, b_y, b_z = b_s * b_x, b_s * b_y, b_s * b_z
    store_planes(y, o_r, C, o_c, m_r & m_c, b_x, b_y, b_z)


@triton.jit
def vn_leaky_relu_bwd_kernel(
    g, p, d, mean, var, weight, bias, g_p, g_d, sums, R, C, span, blocks_c,
    BN_EPS: tl.constexpr, SLOPE: tl.constexpr, HAS_D: tl.constexpr, SHARED: tl.constexpr, HAS_NORM: tl.constexpr,
    NEED_P: tl.constexpr, NEED_D: tl.constexpr, NEED_NORM: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g_p, g_d, and sums [blocks of rows, 2, C] of the terms of a and b; SHARED: a program has a row's channels all."""
    pid = tl.program_id(0).to(tl.int64)
    i_r, first = pid // blocks_c, pid % blocks_c * span
    o_r = (i_r * BR + tl.arange(0, BR))[:, None]
    m_r = o_r < R
    sx = tl.full([BR, BC], 0.0, ACC)
    sy, sz = sx, sx
    for i_c in range(first, tl.minimum(first + span, C), BC):
        o_c = (i_c + tl.arange(0, BC))[None, :]
        m_c = o_c < C
        m = m_r & m_c
        gx, gy, gz = planes(g, o_r, C, o_c, m, ACC)
        px, py, pz = planes(p, o_r, C, o_c, m, ACC)
        b_s = tl.full([1, 1], 1.0, ACC)
        if HAS_NORM:
            b_a, b_b = affine(mean, var, weight, bias, o_c, m_c, BN_EPS)
            b_n = tl.sqrt(px * px + py * py + pz * pz)
            b_s = b_a + b_b / (b_n + EPS)
        if HAS_D:
            if SHARED:
                dx, dy, dz = planes(d, o_r, 1, 0, m_r, ACC)
            else:
                dx, dy, dz = planes(d, o_r, C, o_c, m, ACC)
            gx, gy, gz, hx, hy, hz = activate_grad(gx, gy, gz, px, py, pz, dx, dy, dz, b_s, SLOPE)
            if SHARED:
                sx, sy, sz = sx + hx, sy + hy, sz + hz
            elif NEED_D:
                store_planes(g_d, o_r, C, o_c, m, hx, hy, hz)
        if HAS_NORM:
            b_mean = tl.load(mean + o_c, mask=m_c, other=0.0)
            gx, gy, gz, t_a, t_b = norm_grad(gx, gy, gz, px, py, pz, b_n, b_a, b_b, b_mean)
            if NEED_NORM:
                tl.store(sums + i_r * 2 * C + o_c, tl.sum(t_a, 0)[None, :], mask=m_c)
                tl.store(sums + (i_r * 2 + 1) * C + o_c, tl.sum(t_b, 0)[None, :], mask=m_c)
        if NEED_P:
            store_planes(g_p, o_r, C, o_c, m, gx, gy, gz)
    if SHARED and NEED_D:
        store_planes(g_d, o_r, 1, 0, m_r, tl.sum(sx, 1)[:, None], tl.sum(sy, 1)[:, None], tl.sum(sz, 1)[:, None])


@triton.jit
def vn_leaky_relu_bwd_kernel_norm(sums, var, weight, g_mean, g_var, g_weight, g_bias, C, BN_EPS: tl.constexpr,
                                  BC: tl.constexpr):
    """Gradients of the batch norm's arguments [C] from the sums [2, C] of those of a and b."""
    o_c = tl.program_id(0).to(tl.int64) * BC + tl.arange(0, BC)
    m_c = o_c < C
    b_b = tl.load(sums + C + o_c, mask=m_c, other=0.0)
    b_inverse = 1.0 / tl.sqrt(tl.load(var + o_c, mask=m_c, other=1.0) + BN_EPS)
    b_scale = tl.load(sums + o_c, mask=m_c, other=0.0)
    b_a = tl.load(weight + o_c, mask=m_c, other=0.0) * b_inverse
    tl.store(g_mean + o_c, -b_a * b_b, mask=m_c)
    tl.store(g_var + o_c, -0.5 * b_a * b_inverse * b_inverse * b_scale, mask=m_c)
    tl.store(g_weight + o_c, b_inverse * b_scale, mask=m_c)
    tl.store(g_bias + o_c, b_b, mask=m_c)


def tile(dtype: torch.dtype, channels: int) -> dict:
    """Rows and channels of a block and its warps: 8 elements of each plane a thread (4 in float64)."""
    block = 16 if channels <= 16 else 32 if channels <= 32 else 64
    rows = (512 if dtype == torch.float64 else 1024) // block
    return {"BR": 4 * rows if INTERPRETED else rows, "BC": block, "num_warps": 4}


def _tile_backward(dtype: torch.dtype, channels: int) -> dict:
    """As `tile`, half as many elements a thread: the backward holds nine planes and their gradients."""
    found = tile(dtype, channels)
    return found | {"BR": found["BR"] // 2}


def parts_of(rows: int, block: int, most: int = 512) -> int:
    """Rows of one part of a sum: whole blocks, at most `most` parts."""
    return block * max(1, cdiv(rows, block * most))


def vectors_dtype(p: Tensor) -> torch.dtype:
    """Of statistics and weights beside p."""
    return torch.float32 if p.dtype == torch.bfloat16 else p.dtype


def combine(parts: Tensor, part: int, total: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] from parts [P, 2, C]."""
    count, _, c = parts.shape
    mean, var = parts.new_empty(c), parts.new_empty(c)
    launch(vn_norm_stats_fwd_kernel_combine, (cdiv(c, 8),), parts, mean, var, count, c, part, total, BP=256, BC=8,
           ACC=accumulator(parts.dtype), num_warps=4, device=parts.device)
    return mean, var


def norm_gradients(sums: Tensor, var, weight, eps: float) -> list[Tensor]:
    """Gradients of mean, var, weight, bias [C] from partial sums [P, 2, C] of those of a and b."""
    c = sums.shape[2]
    found = [sums.new_empty(c) for _ in range(4)]
    launch(vn_leaky_relu_bwd_kernel_norm, (cdiv(c, 128),), sums.sum(0), var.contiguous(), weight.contiguous(),
           *found, c, BN_EPS=eps, BC=128, num_warps=4, device=sums.device)
    return found


def stats(p) -> tuple[Tensor, Tensor]:
    """p [R, 3, C] -> mean [C], var [C], as in the reference."""
    r, _, c = p.shape
    sizes = tile(p.dtype, c)
    part, blocks = parts_of(r, sizes["BR"]), cdiv(c, sizes["BC"])
    parts = p.new_empty(cdiv(r, part), 2, c, dtype=vectors_dtype(p))
    launch(vn_norm_stats_fwd_kernel, (parts.shape[0] * blocks,), p.contiguous(), parts, r, c, part, blocks, **sizes,
           ACC=accumulator(p.dtype), device=p.device)
    return combine(parts, part, r)


def stats_backward(g_mean, g_var, p, mean) -> Tensor:
    """-> the gradient of p [R, 3, C], as in the reference."""
    r, _, c = p.shape
    g_p, sizes = p.new_empty(p.shape), tile(p.dtype, c)
    blocks = cdiv(c, sizes["BC"])
    launch(vn_norm_stats_bwd_kernel, (cdiv(r, sizes["BR"]) * blocks,), g_mean.contiguous(), g_var.contiguous(),
           p.contiguous(), mean.contiguous(), g_p, r, c, blocks, **sizes, ACC=accumulator(p.dtype), device=p.device)
    return g_p


def _given(p, *tensors) -> list[Tensor]:
    """Contiguous; an absent tensor is never read, any pointer stands for it."""
    return [p if t is None else t.contiguous() for t in tensors]


def leaky_relu(p, d, mean, var, weight, bias, eps, slope) -> Tensor:
    """p [R, 3, C], d [R, 3, C or 1] or None, mean, var, weight, bias [C] or None -> [R, 3, C], as in the reference."""
    r, _, c = p.shape
    y, sizes = p.new_empty(p.shape), tile(p.dtype, c)
    blocks = cdiv(c, sizes["BC"])
    launch(vn_leaky_relu_fwd_kernel, (cdiv(r, sizes["BR"]) * blocks,), p.contiguous(),
           *_given(p, d, mean, var, weight, bias), y, r, c, blocks, BN_EPS=eps, SLOPE=slope, HAS_D=d is not None,
           SHARED=d is not None and d.shape[2] != c, HAS_NORM=mean is not None, **sizes, ACC=accumulator(p.dtype),
           device=p.device)
    return y


def leaky_relu_backward(g, p, d, mean, var, weight, bias, eps, slope, needs) -> tuple[Tensor, ...]:
    """g [R, 3, C] -> gradients of (p, d, mean, var, weight, bias), as in the reference."""
    (r, _, c), norm = p.shape, any(needs[2:])
    shared = d is not None and d.shape[2] != c
    sizes = _tile_backward(p.dtype, c)
    rows, blocks = cdiv(r, sizes["BR"]), 1 if shared else cdiv(c, sizes["BC"])
    g_p, g_d = p.new_empty(p.shape if needs[0] else 0), p.new_empty(d.shape if needs[1] else 0)
    sums = p.new_empty((rows, 2, c) if norm else 0, dtype=vectors_dtype(p))
    launch(vn_leaky_relu_bwd_kernel, (rows * blocks,), g.contiguous(), p.contiguous(),
           *_given(p, d, mean, var, weight, bias), g_p, g_d, sums, r, c, c if shared else sizes["BC"], blocks,
           BN_EPS=eps, SLOPE=slope, HAS_D=d is not None, SHARED=shared, HAS_NORM=mean is not None, NEED_P=needs[0],
           NEED_D=needs[1], NEED_NORM=norm, **sizes, ACC=accumulator(p.dtype), device=p.device)
    found = norm_gradients(sums, var, weight, eps) if norm else [None] * 4
    return g_p, g_d, *(x if need else g.new_empty(0) for x, need in zip(found, needs[2:], strict=True))


def _aot(kernel, tensors: str, integers: str, sizes, **constexprs) -> list[AotCase]:
    """The kernel in float32 and float64 for many channels, its block from `sizes(dtype)`."""
    found = []
    for kind, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        values = dict(sizes(dtype))
        signature = dict.fromkeys(tensors.split(), kind) | dict.fromkeys(integers.split(), "i32")
        options = {"num_warps": values.pop("num_warps")}
        found.append(AotCase(kernel, signature, constexprs | values | {"ACC": accumulator(dtype)}, **options))
    return found


_VECTORS = "mean var weight bias"
_ALL = {"BN_EPS": 1e-5, "SLOPE": 0.2, "HAS_D": True, "HAS_NORM": True}
AOT = [
    *_aot(vn_norm_stats_fwd_kernel, "p parts", "R C part blocks_c", lambda t: tile(t, 341)),
    *_aot(vn_norm_stats_fwd_kernel_combine, "parts mean var", "P C part total",
          lambda t: {"BP": 256, "BC": 8, "num_warps": 4}),
    *_aot(vn_norm_stats_bwd_kernel, "g_mean g_var p mean g_p", "R C blocks_c", lambda t: tile(t, 341)),
    *(case for shared in (False, True) for case in (
        *_aot(vn_leaky_relu_fwd_kernel, f"p d {_VECTORS} y", "R C blocks_c", lambda t: tile(t, 341), SHARED=shared,
              **_ALL),
        *_aot(vn_leaky_relu_bwd_kernel, f"g p d {_VECTORS} g_p g_d sums", "R C span blocks_c",
              lambda t: _tile_backward(t, 341), SHARED=shared, NEED_P=True, NEED_D=True, NEED_NORM=True, **_ALL),
    )),
    AotCase(vn_leaky_relu_bwd_kernel_norm,
            dict.fromkeys("sums var weight g_mean g_var g_weight g_bias".split(), "*fp32") | {"C": "i32"},
            {"BN_EPS": 1e-5, "BC": 128}),
]
