"""spline_conv in Triton: a program takes a node and walks its edges, or a knot and the edges of its intervals."""

from ..triton_common import tl, triton


@triton.jit
def geometry(pos, i_n, b_m, m_e):
    """The distance between node i_n and nodes b_m, and the components of their difference (node - other)."""
    b_x = tl.load(pos + 3 * i_n) - tl.load(pos + 3 * b_m, mask=m_e, other=0.0)
    b_y = tl.load(pos + 3 * i_n + 1) - tl.load(pos + 3 * b_m + 1, mask=m_e, other=0.0)
    b_z = tl.load(pos + 3 * i_n + 2) - tl.load(pos + 3 * b_m + 2, mask=m_e, other=0.0)
    return tl.sqrt(b_x * b_x + b_y * b_y + b_z * b_z), b_x, b_y, b_z


@triton.jit
def along(move, i_n, b_m, m_e, b_d, b_x, b_y, b_z):
    """How fast the distances change where the nodes move along `move`, and the moves' components."""
    u_x = tl.load(move + 3 * i_n) - tl.load(move + 3 * b_m, mask=m_e, other=0.0)
    u_y = tl.load(move + 3 * i_n + 1) - tl.load(move + 3 * b_m + 1, mask=m_e, other=0.0)
    u_z = tl.load(move + 3 * i_n + 2) - tl.load(move + 3 * b_m + 2, mask=m_e, other=0.0)
    return (u_x * b_x + u_y * b_y + u_z * b_z) / tl.where(b_d == 0, 1.0, b_d), u_x, u_y, u_z


@triton.jit
def _taps(b_d, KNOTS, STEP: tl.constexpr, ORDER: tl.constexpr):
    """The knot before b_d and the weights of both knots' values and slopes in the spline's derivative of ORDER."""
    b_x = b_d / STEP
    b_k = tl.minimum(tl.where(b_x > 0, b_x, 0.0).to(tl.int32), KNOTS - 2)
    s = b_x - b_k
    u = 1.0 - s
    if ORDER == 0:
        return b_k, (1.0 + 2.0 * s) * u * u, s * u * u * STEP, s * s * (3.0 - 2.0 * s), -s * s * u * STEP
    elif ORDER == 1:
        return b_k, -6.0 * s * u / STEP, u * (1.0 - 3.0 * s), 6.0 * s * u / STEP, s * (3.0 * s - 2.0)
    else:
        b_w = (12.0 * s - 6.0) / (STEP * STEP)
        return b_k, b_w, (6.0 * s - 4.0) / STEP, -b_w, (6.0 * s - 2.0) / STEP


@triton.jit
def cut(b_d, CUTOFF: tl.constexpr, ORDER: tl.constexpr):
    """The cutoff function's derivative of ORDER."""
    W: tl.constexpr = 3.141592653589793 / CUTOFF
    if ORDER == 0:
        return 0.5 * (tl.cos(b_d * W) + 1.0)
    elif ORDER == 1:
        return -0.5 * W * tl.sin(b_d * W)
    else:
        return -0.5 * W * W * tl.cos(b_d * W)


@triton.jit
def _spline(table, b_k, w0, w1, w2, w3, o_c, C, m):
    """[BE, BC] of the splines: rows 2 k to 2 k + 3 of table [2 KNOTS, C], weighted."""
    p = table + (2 * b_k.to(tl.int64) * C)[:, None] + o_c[None, :]
    b_s = w0[:, None] * tl.load(p, mask=m, other=0.0) + w1[:, None] * tl.load(p + C, mask=m, other=0.0)
    return b_s + (w2[:, None] * tl.load(p + 2 * C, mask=m, other=0.0)
                  + w3[:, None] * tl.load(p + 3 * C, mask=m, other=0.0))


@triton.jit
def spline_conv_fwd_kernel(
    x, v, pos, move, table, neighbour, ptr, y, N, E, C, KNOTS, blocks_c,
    STEP: tl.constexpr, CUTOFF: tl.constexpr, SUM: tl.constexpr, CHANGE: tl.constexpr, BE: tl.constexpr,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [N, C]: the sum over a node's edges of W x_j (SUM) and of W' v_j (CHANGE), W' the change along move."""
    i_n = tl.program_id(0).to(tl.int64) // blocks_c
    o_c = tl.program_id(0).to(tl.int64) % blocks_c * BC + tl.arange(0, BC)
    m_c = o_c < C
    start, stop = tl.maximum(tl.load(ptr + i_n), 0), tl.minimum(tl.load(ptr + i_n + 1), E)
    b_y = tl.zeros([BC], dtype=ACC)
    for i_e in range(start, stop, BE):
        o_e = i_e + tl.arange(0, BE)
        b_j = tl.load(neighbour + o_e, mask=o_e < stop, other=-1)
        m_e = (b_j >= 0) & (b_j < N)
        b_d, b_u, b_v, b_w = geometry(pos, i_n, b_j, m_e)
        m = (m_e & ~(b_d >= CUTOFF))[:, None] & m_c[None, :]  # NaN stays
        b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 0)
        b_s, b_c = _spline(table, b_k, w0, w1, w2, w3, o_c, C, m), cut(b_d, CUTOFF, 0)
        if SUM:
            b_x = tl.load(x + b_j[:, None] * C + o_c[None, :], mask=m, other=0.0)
            b_y += tl.sum(tl.where(m, b_c[:, None] * b_s * b_x, 0.0), 0)
        if CHANGE:
            b_t, u_x, u_y, u_z = along(move, i_n, b_j, m_e, b_d, b_u, b_v, b_w)
            b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 1)
            b_r = b_c[:, None] * _spline(table, b_k, w0, w1, w2, w3, o_c, C, m) + cut(b_d, CUTOFF, 1)[:, None] * b_s
            b_x = tl.load(v + b_j[:, None] * C + o_c[None, :], mask=m, other=0.0)
            b_y += tl.sum(tl.where(m, b_t[:, None] * b_r * b_x, 0.0), 0)
    tl.store(y + i_n * C + o_c, b_y, mask=m_c)


@triton.jit
def _message(x, g, i_n, b_j, o_c, C, m, m_c, REVERSE: tl.constexpr):
    """[BE, BC] products x_j g_i of the edges j -> i of node i_n, or with REVERSE of its edges i_n -> j."""
    b_own = tl.load((x if REVERSE else g) + i_n * C + o_c, mask=m_c, other=0.0)
    return b_own[None, :] * tl.load((g if REVERSE else x) + b_j[:, None] * C + o_c[None, :], mask=m, other=0.0)


@triton.jit
def spline_conv_bwd_kernel_pos(
    x, g, c_x, pos, move, table, neighbour, ptr, back, back_ptr, y, N, E, C, KNOTS,
    STEP: tl.constexpr, CUTOFF: tl.constexpr, SECOND: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """y [N, 3]: the gradient of the positions, from a node's incoming and then its outgoing edges.

    Of sum <W, x_j g_i>, or with SECOND of sum <W, c_x_j g_i> + <W', x_j g_i> with W' the change of W along move.
    """
    i_n = tl.program_id(0).to(tl.int64)
    s_x, s_y, s_z = tl.zeros([BE], dtype=ACC), tl.zeros([BE], dtype=ACC), tl.zeros([BE], dtype=ACC)
    for reverse in tl.static_range(2):
        if reverse:
            p_edges, p_ptr = back, back_ptr
        else:
            p_edges, p_ptr = neighbour, ptr
        start, stop = tl.maximum(tl.load(p_ptr + i_n), 0), tl.minimum(tl.load(p_ptr + i_n + 1), E)
        for i_e in range(start, stop, BE):
            o_e = i_e + tl.arange(0, BE)
            b_j = tl.load(p_edges + o_e, mask=o_e < stop, other=-1)
            m_e = (b_j >= 0) & (b_j < N)
            b_d, b_x, b_y, b_z = geometry(pos, i_n, b_j, m_e)
            g_d, g_t = tl.zeros([BE], dtype=ACC), tl.zeros([BE], dtype=ACC)
            b_t, u_x, u_y, u_z = b_d, b_x, b_y, b_z
            if SECOND:
                b_t, u_x, u_y, u_z = along(move, i_n, b_j, m_e, b_d, b_x, b_y, b_z)
            for i_c in range(0, C, BC):
                o_c = i_c + tl.arange(0, BC)
                m_c = o_c < C
                m = m_e[:, None] & m_c[None, :]
                b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 0)
                b_s0 = _spline(table, b_k, w0, w1, w2, w3, o_c, C, m)
                b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 1)
                b_s1 = _spline(table, b_k, w0, w1, w2, w3, o_c, C, m)
                b_w1 = cut(b_d, CUTOFF, 0)[:, None] * b_s1 + cut(b_d, CUTOFF, 1)[:, None] * b_s0
                b_m = _message(x, g, i_n, b_j, o_c, C, m, m_c, reverse == 1)
                if SECOND:
                    b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 2)
                    b_w2 = cut(b_d, CUTOFF, 0)[:, None] * _spline(table, b_k, w0, w1, w2, w3, o_c, C, m)
                    b_w2 += 2.0 * cut(b_d, CUTOFF, 1)[:, None] * b_s1 + cut(b_d, CUTOFF, 2)[:, None] * b_s0
                    g_d += b_t * tl.sum(b_w2 * b_m, 1)
                    g_d += tl.sum(b_w1 * _message(c_x, g, i_n, b_j, o_c, C, m, m_c, reverse == 1), 1)
                    g_t += tl.sum(b_w1 * b_m, 1)
                else:
                    g_d += tl.sum(b_w1 * b_m, 1)
            b_in = m_e & (b_d != 0) & ~(b_d >= CUTOFF)
            b_inverse = 1.0 / tl.where(b_d == 0, 1.0, b_d)
            b_u, b_v, b_w = b_x * b_inverse, b_y * b_inverse, b_z * b_inverse
            g_x, g_y, g_z = g_d * b_u, g_d * b_v, g_d * b_w
            if SECOND:
                g_x += g_t * (u_x - b_t * b_u) * b_inverse
                g_y += g_t * (u_y - b_t * b_v) * b_inverse
                g_z += g_t * (u_z - b_t * b_w) * b_inverse
            s_x += tl.where(b_in, g_x, 0.0)
            s_y += tl.where(b_in, g_y, 0.0)
            s_z += tl.where(b_in, g_z, 0.0)
    tl.store(y + 3 * i_n, tl.sum(s_x, 0))
    tl.store(y + 3 * i_n + 1, tl.sum(s_y, 0))
    tl.store(y + 3 * i_n + 2, tl.sum(s_z, 0))


@triton.jit
def spline_conv_bwd_kernel_knots(target, neighbour, pos, knots, N, E, KNOTS, STEP: tl.constexpr,
                                 CUTOFF: tl.constexpr, BE: tl.constexpr):
    """knots [E]: the knot before each edge's distance, KNOTS where the edge counts nothing."""
    o_e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    b_i = tl.load(target + o_e, mask=o_e < E, other=-1)
    b_j = tl.load(neighbour + o_e, mask=o_e < E, other=-1)
    m_e = (b_i >= 0) & (b_i < N) & (b_j >= 0) & (b_j < N)
    b_x = tl.load(pos + 3 * b_i, mask=m_e, other=0.0) - tl.load(pos + 3 * b_j, mask=m_e, other=0.0)
    b_y = tl.load(pos + 3 * b_i + 1, mask=m_e, other=0.0) - tl.load(pos + 3 * b_j + 1, mask=m_e, other=0.0)
    b_z = tl.load(pos + 3 * b_i + 2, mask=m_e, other=0.0) - tl.load(pos + 3 * b_j + 2, mask=m_e, other=0.0)
    b_d = tl.sqrt(b_x * b_x + b_y * b_y + b_z * b_z)
    b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 0)
    tl.store(knots + o_e, tl.where(m_e & ~(b_d >= CUTOFF), b_k, KNOTS), mask=o_e < E)


@triton.jit
def spline_conv_bwd_kernel_table(
    x, g, c_x, pos, move, target, neighbour, order, start, y, N, E, C, KNOTS, blocks_c,
    STEP: tl.constexpr, CUTOFF: tl.constexpr, SECOND: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """y [KNOTS, 2, C]: the gradient of a knot's value and slope, from the edges of the intervals on both sides."""
    i_k = tl.program_id(0).to(tl.int64) // blocks_c
    o_c = tl.program_id(0).to(tl.int64) % blocks_c * BC + tl.arange(0, BC)
    m_c = o_c < C
    b_value, b_slope = tl.zeros([BC], dtype=ACC), tl.zeros([BC], dtype=ACC)
    for after in tl.static_range(2):
        i_from = i_k - 1 + after
        first = tl.load(start + tl.maximum(i_from, 0))
        last = tl.load(start + i_from + 1)
        for i_e in range(first, tl.where(i_from < 0, first, last), BE):
            o_e = i_e + tl.arange(0, BE)
            m_e = o_e < last
            b_e = tl.load(order + o_e, mask=m_e, other=0)
            b_i = tl.load(target + b_e)
            b_j = tl.load(neighbour + b_e)
            m = m_e[:, None] & m_c[None, :]
            b_d, b_x, b_y, b_z = geometry(pos, b_i, b_j, m_e)
            b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 0)
            b_cut = cut(b_d, CUTOFF, 0)
            b_g = tl.load(g + b_i[:, None] * C + o_c[None, :], mask=m, other=0.0)
            b_m = b_g * tl.load(x + b_j[:, None] * C + o_c[None, :], mask=m, other=0.0)
            b_h, b_hs = (w0, w1) if after else (w2, w3)
            if SECOND:
                b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_x, b_y, b_z)
                b_k, w0, w1, w2, w3 = _taps(b_d, KNOTS, STEP, 1)
                b_r, b_rs = (w0, w1) if after else (w2, w3)
                b_first = cut(b_d, CUTOFF, 1)
                b_c = b_g * tl.load(c_x + b_j[:, None] * C + o_c[None, :], mask=m, other=0.0)
                b_v = (b_cut * b_h)[:, None] * b_c + (b_t * (b_cut * b_r + b_first * b_h))[:, None] * b_m
                b_w = (b_cut * b_hs)[:, None] * b_c + (b_t * (b_cut * b_rs + b_first * b_hs))[:, None] * b_m
            else:
                b_v, b_w = (b_cut * b_h)[:, None] * b_m, (b_cut * b_hs)[:, None] * b_m
            b_value += tl.sum(tl.where(m, b_v, 0.0), 0)
            b_slope += tl.sum(tl.where(m, b_w, 0.0), 0)
    tl.store(y + 2 * i_k * C + o_c, b_value, mask=m_c)
    tl.store(y + (2 * i_k + 1) * C + o_c, b_slope, mask=m_c)
