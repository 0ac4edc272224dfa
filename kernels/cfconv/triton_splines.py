"""The kernels of spline_conv: filters are four rows of the table, the values and slopes of the knots around a distance.

Every derivative of c(d) S(d) is a sum of these rows with weights [BE] of its own, which are formed once an edge.
"""

from ..triton_common import tl, triton
from .triton_edges import along, at_nodes, cut, deal, ends, finish, geometry, message, outside, pull, span


@triton.jit
def _knot(b_d, KNOTS, STEP: tl.constexpr):
    """The knot before b_d, and where b_d lies between it (0) and the next (1)."""
    b_s = b_d / STEP
    b_k = tl.minimum(tl.where(b_s > 0, b_s, 0.0).to(tl.int32), KNOTS - 2)
    return b_k, b_s - b_k


@triton.jit
def _weights(b_s, STEP: tl.constexpr, ORDER: tl.constexpr):
    """Of both knots' values and slopes (value, slope, next value, next slope) in the spline's derivative of ORDER."""
    b_u = 1.0 - b_s
    if ORDER == 0:
        return ((1.0 + 2.0 * b_s) * b_u * b_u, b_s * b_u * b_u * STEP, b_s * b_s * (3.0 - 2.0 * b_s),
                -b_s * b_s * b_u * STEP)
    elif ORDER == 1:
        b_w = (6.0 / STEP) * b_s * b_u
        return -b_w, b_u * (1.0 - 3.0 * b_s), b_w, b_s * (3.0 * b_s - 2.0)
    else:
        b_w = (6.0 / (STEP * STEP)) * (2.0 * b_s - 1.0)
        return b_w, (2.0 / STEP) * (3.0 * b_s - 2.0), -b_w, (2.0 / STEP) * (3.0 * b_s - 1.0)


@triton.jit
def _filter_weights(b_d, b_s, m_in, STEP: tl.constexpr, CUTOFF: tl.constexpr, ORDER: tl.constexpr):
    """Of the same rows in the derivative of ORDER of c(d) S(d)."""
    p0, p1, p2, p3 = _weights(b_s, STEP, 0)
    b_c, b_c1, b_c2 = cut(b_d, m_in, CUTOFF)
    if ORDER == 0:
        return b_c * p0, b_c * p1, b_c * p2, b_c * p3
    elif ORDER == 1:
        q0, q1, q2, q3 = _weights(b_s, STEP, 1)
        return b_c * q0 + b_c1 * p0, b_c * q1 + b_c1 * p1, b_c * q2 + b_c1 * p2, b_c * q3 + b_c1 * p3
    else:
        q0, q1, q2, q3 = _weights(b_s, STEP, 1)
        r0, r1, r2, r3 = _weights(b_s, STEP, 2)
        b_c1 = 2.0 * b_c1
        return (b_c * r0 + b_c1 * q0 + b_c2 * p0, b_c * r1 + b_c1 * q1 + b_c2 * p1,
                b_c * r2 + b_c1 * q2 + b_c2 * p2, b_c * r3 + b_c1 * q3 + b_c2 * p3)


@triton.jit
def _mix(w0, w1, w2, w3, b_0, b_1, b_2, b_3):
    return (w0[:, None] * b_0 + w1[:, None] * b_1) + (w2[:, None] * b_2 + w3[:, None] * b_3)


@triton.jit
def _rows(table, b_k, o_c, C, m):
    """Rows 2 k to 2 k + 3 of table [2 KNOTS, C], each [BE, BC]."""
    p = table + (2 * b_k.to(tl.int64) * C)[:, None] + o_c[None, :]
    return (tl.load(p, mask=m, other=0.0), tl.load(p + C, mask=m, other=0.0), tl.load(p + 2 * C, mask=m, other=0.0),
            tl.load(p + 3 * C, mask=m, other=0.0))


@triton.jit
def spline_conv_fwd_kernel(
    x, v, pos, move, table, neighbour, ptr, y, N, E, C, KNOTS, blocks_c,
    STEP: tl.constexpr, CUTOFF: tl.constexpr, SUM: tl.constexpr, CHANGE: tl.constexpr, NB: tl.constexpr,
    BE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [N, C]: the sums over a node's edges of W x_j (SUM) and of W_t v_j (CHANGE), W_t the change of W along move."""
    pid = tl.program_id(0).to(tl.int64)
    i_n, o_c = pid // blocks_c * NB, pid % blocks_c * BC + tl.arange(0, BC)
    start, stop = span(ptr, i_n, N, E, NB)
    i_at, b_y = i_n, tl.zeros([BC], dtype=ACC)
    for i_e in range(start, stop, BE):
        b_i, b_j, m_e = ends(neighbour, ptr, i_e + tl.arange(0, BE), stop, i_n, N, NB)
        b_d, b_u, b_v, b_w = geometry(pos, b_i, b_j, m_e)
        m_in = m_e & ~outside(b_d, CUTOFF)  # NaN stays
        m = m_in[:, None] & (o_c < C)[None, :]
        b_k, b_s = _knot(b_d, KNOTS, STEP)
        b_0, b_1, b_2, b_3 = _rows(table, b_k, o_c, C, m)
        p_j = b_j[:, None] * C + o_c[None, :]
        b_m = tl.zeros([BE, BC], dtype=ACC)
        if SUM:
            w0, w1, w2, w3 = _filter_weights(b_d, b_s, m_in, STEP, CUTOFF, 0)
            b_m += _mix(w0, w1, w2, w3, b_0, b_1, b_2, b_3) * tl.load(x + p_j, mask=m, other=0.0)
        if CHANGE:
            b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_u, b_v, b_w)
            w0, w1, w2, w3 = _filter_weights(b_d, b_s, m_in, STEP, CUTOFF, 1)
            b_m += _mix(w0, w1, w2, w3, b_0, b_1, b_2, b_3) * (b_t[:, None] * tl.load(v + p_j, mask=m, other=0.0))
        i_at, b_y = deal(tl.where(m, b_m, 0.0), b_i, y, i_at, b_y, o_c, C)
    finish(y, i_at, tl.minimum(i_n + NB, N), b_y, o_c, C)


@triton.jit
def spline_conv_bwd_kernel_pos(
    x, g, c_x, pos, move, table, neighbour, ptr, y, N, E, C, KNOTS,
    STEP: tl.constexpr, CUTOFF: tl.constexpr, TO: tl.constexpr, FROM: tl.constexpr, SECOND: tl.constexpr,
    NB: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y [N, 3]: the gradient of the positions from a node's edges, counted as `message` has it, of sum <W, m>.

    With SECOND of sum <W, m_c> + <W_t, m>; m_c is m with c_x for x, W_t the change of W along move.
    """
    i_n = tl.program_id(0).to(tl.int64) * NB
    o_n = i_n + tl.arange(0, NB)
    start, stop = span(ptr, i_n, N, E, NB)
    s_x, s_y, s_z = tl.zeros([NB], dtype=ACC), tl.zeros([NB], dtype=ACC), tl.zeros([NB], dtype=ACC)
    for i_e in range(start, stop, BE):
        b_i, b_j, m_e = ends(neighbour, ptr, i_e + tl.arange(0, BE), stop, i_n, N, NB)
        b_d, b_x, b_y, b_z = geometry(pos, b_i, b_j, m_e)
        m_in = m_e & ~outside(b_d, CUTOFF)
        b_k, b_s = _knot(b_d, KNOTS, STEP)
        v0, v1, v2, v3 = _filter_weights(b_d, b_s, m_in, STEP, CUTOFF, 1)
        b_t, u_x, u_y, u_z = b_d, b_x, b_y, b_z
        if SECOND:
            b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_x, b_y, b_z)
            w0, w1, w2, w3 = _filter_weights(b_d, b_s, m_in, STEP, CUTOFF, 2)
        b_gd, b_gt = tl.zeros([BE], dtype=ACC), tl.zeros([BE], dtype=ACC)
        for i_c in range(0, C, BC):
            o_c = i_c + tl.arange(0, BC)
            m = m_in[:, None] & (o_c < C)[None, :]
            b_0, b_1, b_2, b_3 = _rows(table, b_k, o_c, C, m)
            b_w1, b_m = _mix(v0, v1, v2, v3, b_0, b_1, b_2, b_3), message(x, g, b_i, b_j, o_c, C, m, TO, FROM)
            if SECOND:
                b_w2 = b_t[:, None] * _mix(w0, w1, w2, w3, b_0, b_1, b_2, b_3)
                b_gd += tl.sum(b_w1 * message(c_x, g, b_i, b_j, o_c, C, m, TO, FROM) + b_w2 * b_m, 1)
                b_gt += tl.sum(b_w1 * b_m, 1)
            else:
                b_gd += tl.sum(b_w1 * b_m, 1)
        b_gd, b_gt = tl.where(m_in, b_gd, 0.0), tl.where(m_in, b_gt, 0.0)
        g_x, g_y, g_z = pull(b_gd, b_gt, b_t, b_d, b_x, b_y, b_z, u_x, u_y, u_z, SECOND)
        s_x += at_nodes(g_x, b_i, o_n)
        s_y += at_nodes(g_y, b_i, o_n)
        s_z += at_nodes(g_z, b_i, o_n)
    tl.store(y + 3 * o_n, s_x, mask=o_n < N)
    tl.store(y + 3 * o_n + 1, s_y, mask=o_n < N)
    tl.store(y + 3 * o_n + 2, s_z, mask=o_n < N)


@triton.jit
def spline_conv_bwd_kernel_knots(target, neighbour, pos, knots, N, E, KNOTS, STEP: tl.constexpr,
                                 CUTOFF: tl.constexpr, BE: tl.constexpr):
    """knots [E]: the knot before each edge's distance, KNOTS where the edge counts nothing."""
    o_e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    b_i = tl.load(target + o_e, mask=o_e < E, other=-1)
    b_j = tl.load(neighbour + o_e, mask=o_e < E, other=-1)
    m_e = (b_i >= 0) & (b_i < N) & (b_j >= 0) & (b_j < N)
    b_d, b_x, b_y, b_z = geometry(pos, b_i, b_j, m_e)
    b_k, b_s = _knot(b_d, KNOTS, STEP)
    tl.store(knots + o_e, tl.where(m_e & ~outside(b_d, CUTOFF), b_k, KNOTS), mask=o_e < E)


@triton.jit
def spline_conv_bwd_kernel_table(
    x, g, c_x, pos, move, target, neighbour, order, start, y, C, KNOTS, blocks_c, parts,
    STEP: tl.constexpr, CUTOFF: tl.constexpr, SECOND: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """y [parts, KNOTS - 1, 4, C]: the gradient of the four rows around an interval from a part of its edges.

    The edges are sorted by intervals: order[start[k]..start[k + 1]] are those of interval k, blocks of which the parts
    take in turn. Of the same sums as in `spline_conv_bwd_kernel_pos`, TO.
    """
    pid, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_k, o_c = pid // blocks_c, pid % blocks_c * BC + tl.arange(0, BC)
    m_c = o_c < C
    s_0, s_1, s_2, s_3 = (tl.zeros([BC], dtype=ACC), tl.zeros([BC], dtype=ACC), tl.zeros([BC], dtype=ACC),
                          tl.zeros([BC], dtype=ACC))
    stop = tl.load(start + i_k + 1)
    for i_e in range(tl.load(start + i_k) + i_p * BE, stop, parts * BE):
        o_e = i_e + tl.arange(0, BE)
        m_e = o_e < stop
        b_e = tl.load(order + o_e, mask=m_e, other=0)
        b_i, b_j = tl.load(target + b_e), tl.load(neighbour + b_e)
        m = m_e[:, None] & m_c[None, :]
        b_d, b_x, b_y, b_z = geometry(pos, b_i, b_j, m_e)
        b_s = b_d / STEP - i_k
        w0, w1, w2, w3 = _filter_weights(b_d, b_s, m_e, STEP, CUTOFF, 0)
        b_m = message(x, g, b_i, b_j, o_c, C, m, True, False)
        if SECOND:
            b_c = message(c_x, g, b_i, b_j, o_c, C, m, True, False)
            b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_x, b_y, b_z)
            v0, v1, v2, v3 = _filter_weights(b_d, b_s, m_e, STEP, CUTOFF, 1)
            b_m *= b_t[:, None]
            s_0 += tl.sum(w0[:, None] * b_c + v0[:, None] * b_m, 0)
            s_1 += tl.sum(w1[:, None] * b_c + v1[:, None] * b_m, 0)
            s_2 += tl.sum(w2[:, None] * b_c + v2[:, None] * b_m, 0)
            s_3 += tl.sum(w3[:, None] * b_c + v3[:, None] * b_m, 0)
        else:
            s_0 += tl.sum(w0[:, None] * b_m, 0)
            s_1 += tl.sum(w1[:, None] * b_m, 0)
            s_2 += tl.sum(w2[:, None] * b_m, 0)
            s_3 += tl.sum(w3[:, None] * b_m, 0)
    p = y + (i_p * (KNOTS - 1) + i_k) * 4 * C + o_c
    tl.store(p, s_0, mask=m_c)
    tl.store(p + C, s_1, mask=m_c)
    tl.store(p + 2 * C, s_2, mask=m_c)
    tl.store(p + 3 * C, s_3, mask=m_c)
