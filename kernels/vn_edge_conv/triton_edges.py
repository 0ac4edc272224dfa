"""The kernels of vn_edge_conv: a program takes a block of nodes and of channels and walks their edges in registers."""

from ..triton_common import dot, tl, triton
from ..vn_linear.triton_norms import (
    EPS,
    activate,
    activate_grad,
    affine,
    norm_grad,
    planes,
    store_moments,
    store_planes,
)


@triton.jit
def _ends(p, d, b_row, C, o_c, m_row, m_c, PART: tl.constexpr, SHARED: tl.constexpr, ACC: tl.constexpr):
    """What rows give as neighbours (PART 0) or centres (PART 1): features, and directions (one column where SHARED)."""
    # The interpreter needs long for a call, so the planes are loaded here.
    m = m_row & m_c
    o_p = b_row * (6 * C) + (o_c + PART * C)
    px = tl.load(p + o_p, mask=m, other=0.0).to(ACC)
    py = tl.load(p + (o_p + 2 * C), mask=m, other=0.0).to(ACC)
    pz = tl.load(p + (o_p + 4 * C), mask=m, other=0.0).to(ACC)
    step = 2 * C
    if SHARED:
        m, o_p, step = m_row, b_row * 6 + PART, 2
    dx = tl.load(d + o_p, mask=m, other=0.0).to(ACC)
    dy = tl.load(d + (o_p + step), mask=m, other=0.0).to(ACC)
    dz = tl.load(d + (o_p + 2 * step), mask=m, other=0.0).to(ACC)
    return px, py, pz, dx, dy, dz


@triton.jit
def _other(edges, b_e, b_stop, b_first, N, K, REVERSE: tl.constexpr):
    """The other end of the edges at places b_e of a list, which of its centre's edges each is, and whether it exists.

    The list has the neighbour of each edge, or with REVERSE the edges sorted by neighbour.
    """
    m = b_e < b_stop
    if REVERSE:
        b_edge = tl.load(edges + b_e, mask=m, other=0)
        return (b_edge // K).to(tl.int64), b_edge % K, m
    b_j = tl.load(edges + b_e, mask=m, other=-1)
    return b_first + b_j, b_j, (b_j >= 0) & (b_j < N)


@triton.jit
def _edge_value(qx, qy, qz, ex, ey, ez, p, d, b_row, b_real, C, o_c, m_c, a, b, SLOPE: tl.constexpr,
                SHARED: tl.constexpr, ACC: tl.constexpr):
    """The value of the edges from rows b_row to the centres that give q and e; zero where there is no edge."""
    px, py, pz, dx, dy, dz = _ends(p, d, b_row, C, o_c, b_real, m_c, 0, SHARED, ACC)
    px, py, pz = px + qx, py + qy, pz + qz
    b_s = tl.where(b_real, a + b / (tl.sqrt(px * px + py * py + pz * pz) + EPS), 0.0)
    return activate(px, py, pz, dx + ex, dy + ey, dz + ez, b_s, SLOPE)


@triton.jit
def vn_edge_stats_fwd_kernel(p, neighbours, parts, M, N, K, C, blocks_c, BN: tl.constexpr, BC: tl.constexpr,
                             ACC: tl.constexpr):
    """parts [blocks of nodes, 2, C]: mean and sum of squared deviations of |p_j + q_i| + 1e-6 over a block's edges."""
    pid = tl.program_id(0).to(tl.int64)
    i_n = pid // blocks_c
    o_n = (i_n * BN + tl.arange(0, BN))[:, None]
    o_c = (pid % blocks_c * BC + tl.arange(0, BC))[None, :]
    m_n, m_c = o_n < M, o_c < C
    qx, qy, qz = planes(p, o_n, 2 * C, o_c + C, m_n & m_c, ACC)
    b_first, b_e = o_n // N * N, o_n * K
    b_stop = tl.where(m_n, b_e + K, b_e)
    b_mean, b_m2, b_count = tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC), tl.full([1, 1], 0.0, ACC)
    b_row, b_k, b_real = _other(neighbours, b_e, b_stop, b_first, N, K, False)
    for _ in range(0, K):
        # The next neighbour is asked for before this one's features are waited for.
        b_e += 1
        n_row, n_k, n_real = _other(neighbours, b_e, b_stop, b_first, N, K, False)
        px, py, pz = planes(p, b_row, 2 * C, o_c, b_real & m_c, ACC)
        px, py, pz = px + qx, py + qy, pz + qz
        b_r = tl.where(b_real, tl.sqrt(px * px + py * py + pz * pz) + EPS, 0.0)
        b_count += 1.0
        b_off = b_r - b_mean
        b_mean += b_off * (1.0 / b_count)
        b_m2 += b_off * (b_r - b_mean)
        b_row, b_real = n_row, n_real
    store_moments(parts, i_n, o_c, m_c, C, tl.where(m_n, b_count, 0.0), b_mean, b_m2)


@triton.jit
def vn_edge_stats_bwd_kernel(
    g_mean, g_var, p, edges, ptr, mean, g_p, M, N, K, C, blocks_c,
    REVERSE: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The centre part of g_p [M, 3, 2C] from the centres' edges, or with REVERSE the neighbour part from the others."""
    pid = tl.program_id(0).to(tl.int64)
    PART: tl.constexpr = 0 if REVERSE else 1
    o_n = (pid // blocks_c * BN + tl.arange(0, BN))[:, None]
    o_c = (pid % blocks_c * BC + tl.arange(0, BC))[None, :]
    m_n, m_c = o_n < M, o_c < C
    b_first = o_n // N * N
    if REVERSE:
        b_e, b_stop = tl.load(ptr + o_n, mask=m_n, other=0), tl.load(ptr + o_n + 1, mask=m_n, other=0)
        steps = tl.max(b_stop - b_e)
    else:
        b_e = o_n * K
        b_stop = tl.where(m_n, b_e + K, b_e)
        steps = K
    qx, qy, qz = planes(p, o_n, 2 * C, o_c + PART * C, m_n & m_c, ACC)
    b_edges = (tl.full([1, 1], 0.0, ACC) + M) * K
    b_shift = tl.load(mean + o_c, mask=m_c, other=0.0) - EPS
    b_one = tl.load(g_mean + o_c, mask=m_c, other=0.0) / b_edges
    b_two = 2.0 * tl.load(g_var + o_c, mask=m_c, other=0.0) / b_edges
    sx = tl.full([BN, BC], 0.0, ACC)
    sy, sz = sx, sx
    b_row, b_k, b_real = _other(edges, b_e, b_stop, b_first, N, K, REVERSE)
    for _ in range(0, steps):
        b_e += 1
        n_row, n_k, n_real = _other(edges, b_e, b_stop, b_first, N, K, REVERSE)
        px, py, pz = planes(p, b_row, 2 * C, o_c + (1 - PART) * C, b_real & m_c, ACC)
        px, py, pz = px + qx, py + qy, pz + qz
        b_n = tl.sqrt(px * px + py * py + pz * pz)
        b_g = tl.where(b_real & (b_n != 0), (b_one + b_two * (b_n - b_shift)) / tl.where(b_n == 0, 1.0, b_n), 0.0)
        sx, sy, sz = sx + b_g * px, sy + b_g * py, sz + b_g * pz
        b_row, b_real = n_row, n_real
    store_planes(g_p, o_n, 2 * C, o_c + PART * C, m_n & m_c, sx, sy, sz)


@triton.jit
def vn_edge_conv_fwd_kernel(
    p, d, neighbours, mean, var, weight, bias, selected, y, M, N, K, C, blocks_c,
    BN_EPS: tl.constexpr, SLOPE: tl.constexpr, SHARED: tl.constexpr, SELECTED: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [M, 3, C]: the mean over a node's edges, or with SELECTED the edge selected [M, C] of each channel."""
    pid = tl.program_id(0).to(tl.int64)
    o_n = (pid // blocks_c * BN + tl.arange(0, BN))[:, None]
    o_c = (pid % blocks_c * BC + tl.arange(0, BC))[None, :]
    m_n, m_c = o_n < M, o_c < C
    b_a, b_b = affine(mean, var, weight, bias, o_c, m_c, BN_EPS)
    qx, qy, qz, ex, ey, ez = _ends(p, d, o_n, C, o_c, m_n, m_c, 1, SHARED, ACC)
    b_first, b_e = o_n // N * N, o_n * K
    b_stop = tl.where(m_n, b_e + K, b_e)
    if SELECTED:
        b_k = tl.load(selected + o_n * C + o_c, mask=m_n & m_c, other=-1)
        b_e = tl.where((b_k >= 0) & (b_k < K), b_e + b_k, b_stop)
    b_row, b_k, b_real = _other(neighbours, b_e, b_stop, b_first, N, K, False)
    sx = tl.full([BN, BC], 0.0, ACC)
    sy, sz = sx, sx
    if SELECTED:
        sx, sy, sz = _edge_value(qx, qy, qz, ex, ey, ez, p, d, b_row, b_real, C, o_c, m_c, b_a, b_b, SLOPE, SHARED, ACC)
    else:
        for _ in range(0, K):
            b_e += 1
            n_row, n_k, n_real = _other(neighbours, b_e, b_stop, b_first, N, K, False)
            ox, oy, oz = _edge_value(qx, qy, qz, ex, ey, ez, p, d, b_row, b_real, C, o_c, m_c, b_a, b_b, SLOPE, SHARED,
                                     ACC)
            sx, sy, sz = sx + ox, sy + oy, sz + oz
            b_row, b_real = n_row, n_real
        sx, sy, sz = sx / K, sy / K, sz / K
    store_planes(y, o_n, C, o_c, m_n & m_c, sx, sy, sz)


@triton.jit
def vn_edge_conv_bwd_kernel(
    g, p, d, edges, ptr, mean, var, weight, bias, selected, g_p, g_d, sums, M, N, K, C, span, blocks_c,
    BN_EPS: tl.constexpr, SLOPE: tl.constexpr, REVERSE: tl.constexpr, SHARED: tl.constexpr, SELECTED: tl.constexpr,
    NEED_P: tl.constexpr, NEED_D: tl.constexpr, NEED_NORM: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The centre parts of g_p [M, 3, 2C] and g_d from the centres' edges, or with REVERSE the neighbour parts.

    From the centres also sums [blocks of nodes, 2, C] of the terms of a and b. SHARED: a program has all channels.
    """
    pid = tl.program_id(0).to(tl.int64)
    PART: tl.constexpr = 0 if REVERSE else 1
    i_n, first = pid // blocks_c, pid % blocks_c * span
    o_n = (i_n * BN + tl.arange(0, BN))[:, None]
    m_n = o_n < M
    b_first = o_n // N * N
    if REVERSE:
        b_start, b_stop = tl.load(ptr + o_n, mask=m_n, other=0), tl.load(ptr + o_n + 1, mask=m_n, other=0)
        steps = tl.max(b_stop - b_start)
    else:
        b_start = o_n * K
        b_stop = tl.where(m_n, b_start + K, b_start)
        steps = 1 if SELECTED else K
    tx, ty, tz = tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC)
    for i_c in range(first, tl.minimum(first + span, C), BC):
        o_c = (i_c + tl.arange(0, BC))[None, :]
        m_c = o_c < C
        m = m_n & m_c
        b_a, b_b = affine(mean, var, weight, bias, o_c, m_c, BN_EPS)
        b_mean = tl.load(mean + o_c, mask=m_c, other=0.0)
        qx, qy, qz, ex, ey, ez = _ends(p, d, o_n, C, o_c, m_n, m_c, PART, SHARED, ACC)
        gx, gy, gz = tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC)
        if not REVERSE:
            gx, gy, gz = planes(g, o_n, C, o_c, m, ACC)
        sx = tl.full([BN, BC], 0.0, ACC)
        sy, sz = sx, sx
        if not SHARED:
            tx, ty, tz = tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC)
        s_a, s_b = tl.full([BN, BC], 0.0, ACC), tl.full([BN, BC], 0.0, ACC)
        b_e = b_start
        if SELECTED and not REVERSE:
            b_chosen = tl.load(selected + o_n * C + o_c, mask=m, other=-1)
            b_e = tl.where((b_chosen >= 0) & (b_chosen < K), b_start + b_chosen, b_stop)
        b_row, b_k, b_real = _other(edges, b_e, b_stop, b_first, N, K, REVERSE)
        for _ in range(0, steps):
            b_e += 1
            n_row, n_k, n_real = _other(edges, b_e, b_stop, b_first, N, K, REVERSE)
            if REVERSE:
                m_g = b_real & m_c
                if SELECTED:
                    m_g = m_g & (tl.load(selected + b_row * C + o_c, mask=m_g, other=-1) == b_k)
                wx, wy, wz = planes(g, b_row, C, o_c, m_g, ACC)
            else:
                wx, wy, wz = tl.where(b_real, gx, 0.0), tl.where(b_real, gy, 0.0), tl.where(b_real, gz, 0.0)
            px, py, pz, dx, dy, dz = _ends(p, d, b_row, C, o_c, b_real, m_c, 1 - PART, SHARED, ACC)
            px, py, pz, dx, dy, dz = px + qx, py + qy, pz + qz, dx + ex, dy + ey, dz + ez
            b_n = tl.sqrt(px * px + py * py + pz * pz)
            b_s = b_a + b_b / (b_n + EPS)
            wx, wy, wz, hx, hy, hz = activate_grad(wx, wy, wz, px, py, pz, dx, dy, dz, b_s, SLOPE)
            tx, ty, tz = tx + hx, ty + hy, tz + hz
            wx, wy, wz, t_a, t_b = norm_grad(wx, wy, wz, px, py, pz, b_n, b_a, b_b, b_mean)
            sx, sy, sz = sx + wx, sy + wy, sz + wz
            s_a, s_b = s_a + t_a, s_b + t_b
            b_row, b_k, b_real = n_row, n_k, n_real
        if not SELECTED:
            sx, sy, sz, s_a, s_b = sx / K, sy / K, sz / K, s_a / K, s_b / K
        if NEED_P:
            store_planes(g_p, o_n, 2 * C, o_c + PART * C, m, sx, sy, sz)
        if NEED_D and not SHARED:
            if not SELECTED:
                tx, ty, tz = tx / K, ty / K, tz / K
            store_planes(g_d, o_n, 2 * C, o_c + PART * C, m, tx, ty, tz)
        if NEED_NORM:
            tl.store(sums + i_n * 2 * C + o_c, tl.sum(s_a, 0)[None, :], mask=m_c)
            tl.store(sums + (i_n * 2 + 1) * C + o_c, tl.sum(s_b, 0)[None, :], mask=m_c)
    if NEED_D and SHARED:
        if not SELECTED:
            tx, ty, tz = tx / K, ty / K, tz / K
        store_planes(g_d, o_n, 2, PART, m_n, tl.sum(tx, 1)[:, None], tl.sum(ty, 1)[:, None], tl.sum(tz, 1)[:, None])


@triton.jit
def vn_edge_select_kernel(
    p, d, neighbours, mean, var, weight, bias, pool_weight, selected, M, N, K, C, blocks_c,
    BN_EPS: tl.constexpr, SLOPE: tl.constexpr, SHARED: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
    BI: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """selected [M, C]: the neighbour of the largest <o, U o>, the first of equals; o is formed anew in blocks of BI."""
    pid = tl.program_id(0).to(tl.int64)
    o_n = (pid // blocks_c * BN + tl.arange(0, BN))[:, None]
    o_c = (pid % blocks_c * BC + tl.arange(0, BC))[None, :]
    m_n, m_c = o_n < M, o_c < C
    b_first, b_e = o_n // N * N, o_n * K
    b_stop = tl.where(m_n, b_e + K, b_e)
    b_a, b_b = affine(mean, var, weight, bias, o_c, m_c, BN_EPS)
    qx, qy, qz, ex, ey, ez = _ends(p, d, o_n, C, o_c, m_n, m_c, 1, SHARED, ACC)
    b_best = tl.full([BN, BC], float("-inf"), ACC)
    b_chosen = tl.full([BN, BC], 0, tl.int64)
    for i_k in range(0, K):
        b_row, b_k, b_real = _other(neighbours, b_e + i_k, b_stop, b_first, N, K, False)
        sx = tl.full([BN, BC], 0.0, ACC)
        sy, sz = sx, sx
        for i_i in range(0, C, BI):
            o_i = i_i + tl.arange(0, BI)[None, :]
            m_i = o_i < C
            u_a, u_b = affine(mean, var, weight, bias, o_i, m_i, BN_EPS)
            ux, uy, uz, vx, vy, vz = _ends(p, d, o_n, C, o_i, m_n, m_i, 1, SHARED, ACC)
            ux, uy, uz = _edge_value(ux, uy, uz, vx, vy, vz, p, d, b_row, b_real, C, o_i, m_i, u_a, u_b, SLOPE, SHARED,
                                     ACC)
            o_u = i_i + tl.arange(0, BI)[:, None]
            b_u = tl.load(pool_weight + o_c * C + o_u, mask=m_c & (o_u < C), other=0.0)
            sx, sy, sz = dot(ux, b_u, sx, ALLOW_TF32), dot(uy, b_u, sy, ALLOW_TF32), dot(uz, b_u, sz, ALLOW_TF32)
        ox, oy, oz = _edge_value(qx, qy, qz, ex, ey, ez, p, d, b_row, b_real, C, o_c, m_c, b_a, b_b, SLOPE, SHARED, ACC)
        b_score = ox * sx + oy * sy + oz * sz
        # A score that is no number comes first, as in torch.argmax.
        better = (b_score > b_best) | ((b_score != b_score) & (b_best == b_best))
        b_best = tl.where(b_real & better, b_score, b_best)
        b_chosen = tl.where(b_real & better, i_k, b_chosen)
    tl.store(selected + o_n * C + o_c, b_chosen, mask=m_n & m_c)


@triton.jit
def vn_edge_conv_bwd_kernel_keys(neighbours, keys, M, N, NK, BLOCK: tl.constexpr):
    """keys [M K]: the row of each edge's neighbour, M where there is none; NK = N K edges a cloud."""
    o_e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_e = o_e // NK * N < M
    b_j = tl.load(neighbours + o_e, mask=m_e, other=-1)
    tl.store(keys + o_e, tl.where((b_j >= 0) & (b_j < N), o_e // NK * N + b_j, M), mask=m_e)
