"""The filter network of cfconv on a block of edges, and the kernels that give what belongs to nodes.

With hidden units A(d) = a(P(d)), P = weight1 b + bias1 and the message m of an edge, <S, m> = <A, q> + <bias2, m> with
q = weight2^T m: derivatives in d need P', P'' and one product with m, and nothing goes back through the network.
"""

from ..triton_common import dot, sigmoid, softplus, tl, triton
from .triton_edges import along, at_nodes, cut, deal, ends, finish, geometry, message, outside, pull, sin_cos, span


@triton.jit
def _waves(b_p, b_q, b_d):
    """q sin(p d) / d by f(z) = sin(z) / z: f and f' / z are series in z^2 where |z| < 1."""
    z = b_p * b_d
    w = z * z
    b_sin, b_cos = sin_cos(z)
    small = w < 1.0
    safe = tl.where(small, 1.0, z)
    near = 1.0 / 6227020800.0 - w * (1.0 / 1307674368000.0 - w * (1.0 / 355687428096000.0))
    near = 1.0 / 120.0 - w * (1.0 / 5040.0 - w * (1.0 / 362880.0 - w * (1.0 / 39916800.0 - w * near)))
    near = 1.0 - w * (1.0 / 6.0 - w * near)
    f = tl.where(small, near, b_sin / safe)
    near = 1.0 / 518918400.0 - w * (1.0 / 93405312000.0 - w * (1.0 / 22230464256000.0))
    near = 1.0 / 840.0 - w * (1.0 / 45360.0 - w * (1.0 / 3991680.0 - w * near))
    near = w * (1.0 / 30.0 - w * near) - 1.0 / 3.0
    f1 = tl.where(small, near, (b_cos - f) / (safe * safe))
    b_qp = b_q * b_p
    return (b_qp * f, b_qp * b_p * z * f1, -b_qp * b_p * b_p * (f + 2.0 * f1), b_q * b_cos, -b_qp * b_sin, b_p * f,
            b_p * b_p * z * f1)


@triton.jit
def _bells(b_p, b_q, b_u, b_u1, b_u2):
    """exp(q (u - p)^2) with u(d) and its derivatives."""
    v = b_u - b_p
    qv = b_q * v
    e = tl.exp(qv * v)
    slope, bend = 2.0 * qv * e, (2.0 * b_q + 4.0 * qv * qv) * e
    return (e, slope * b_u1, bend * b_u1 * b_u1 + slope * b_u2, -slope, -bend * b_u1, v * v * e,
            2.0 * v * (1.0 + v * qv) * e * b_u1)


@triton.jit
def radial(centre, scale, b_d, o_g, G, KIND: tl.constexpr, ALPHA: tl.constexpr):
    """[BE, BG] functions, their first and second derivatives in d, those of value and slope in centre and in scale."""
    b_p = tl.load(centre + o_g, mask=o_g < G, other=0.0)[None, :]
    b_q = tl.load(scale + o_g, mask=o_g < G, other=0.0)[None, :]
    b_d = b_d[:, None]
    if KIND == 2:
        return _waves(b_p, b_q, b_d)
    elif KIND == 1:
        b_u = tl.exp(-ALPHA * b_d)
        return _bells(b_p, b_q, b_u, -ALPHA * b_u, ALPHA * ALPHA * b_u)
    else:
        return _bells(b_p, b_q, b_d, 1.0, 0.0)


@triton.jit
def active(b_p, ACTIVATION: tl.constexpr):
    """Value, first and second derivative."""
    b_s = sigmoid(b_p)
    b_density = b_s * (1.0 - b_s)
    if ACTIVATION == 0:
        return softplus(b_p) - 0.6931471805599453, b_s, b_density
    else:
        return b_p * b_s, b_s + b_p * b_density, b_density * (2.0 + b_p * (1.0 - 2.0 * b_s))


@triton.jit
def tile(weight, o_row, o_column, ROWS, COLUMNS):
    """[len(o_row), len(o_column)] of weight [ROWS, COLUMNS]."""
    return tl.load(weight + o_row[:, None] * COLUMNS + o_column[None, :],
                   mask=(o_row < ROWS)[:, None] & (o_column < COLUMNS)[None, :], other=0.0)


@triton.jit
def first_layer(weight1, bias1, centre, scale, b_d, o_h, G, H, KIND: tl.constexpr, ALPHA: tl.constexpr,
                ORDER: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr, ACC: tl.constexpr,
                TF32: tl.constexpr):
    """P [BE, BH] and its derivatives in d up to ORDER; those above are zero."""
    b_p, b_p1, b_p2 = (tl.zeros([BE, BH], dtype=ACC), tl.zeros([BE, BH], dtype=ACC), tl.zeros([BE, BH], dtype=ACC))
    for i_g in range(0, G, BG):
        o_g = i_g + tl.arange(0, BG)
        b_b, b_b1, b_b2, b_bp, b_b1p, b_bq, b_b1q = radial(centre, scale, b_d, o_g, G, KIND, ALPHA)
        b_w = tl.trans(tile(weight1, o_h, o_g, H, G))
        b_p = dot(b_b, b_w, b_p, TF32)
        if ORDER >= 1:
            b_p1 = dot(b_b1, b_w, b_p1, TF32)
        if ORDER >= 2:
            b_p2 = dot(b_b2, b_w, b_p2, TF32)
    return b_p + tl.load(bias1 + o_h, mask=o_h < H, other=0.0)[None, :], b_p1, b_p2


@triton.jit
def cfconv_fwd_kernel(
    x, v, pos, move, weight1, bias1, weight2, bias2, centre, scale, neighbour, ptr, y, N, E, G, H, F, blocks_f,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr,
    SUM: tl.constexpr, CHANGE: tl.constexpr, NB: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr,
    BF: tl.constexpr, ACC: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """y [N, F]: the sums over a node's edges of W x_j (SUM) and of W_t v_j (CHANGE), W_t the change of W along move."""
    pid = tl.program_id(0).to(tl.int64)
    i_n, o_f = pid // blocks_f * NB, pid % blocks_f * BF + tl.arange(0, BF)
    start, stop = span(ptr, i_n, N, E, NB)
    i_at, b_y = i_n, tl.zeros([BF], dtype=ACC)
    for i_e in range(start, stop, BE):
        b_i, b_j, m_e = ends(neighbour, ptr, i_e + tl.arange(0, BE), stop, i_n, N, NB)
        b_d, b_u, b_v, b_w = geometry(pos, b_i, b_j, m_e)
        b_s, b_s1 = tl.zeros([BE, BF], dtype=ACC), tl.zeros([BE, BF], dtype=ACC)
        for i_h in range(0, H, BH):
            o_h = i_h + tl.arange(0, BH)
            b_p, b_p1, b_p2 = first_layer(weight1, bias1, centre, scale, b_d, o_h, G, H, KIND, ALPHA,
                                          1 if CHANGE else 0, BE, BG, BH, ACC, TF32)
            b_a, b_a1, b_a2 = active(b_p, ACTIVATION)
            b_w2 = tl.trans(tile(weight2, o_f, o_h, F, H))
            b_s = dot(b_a, b_w2, b_s, TF32)
            if CHANGE:
                b_s1 = dot(b_a1 * b_p1, b_w2, b_s1, TF32)
        b_s += tl.load(bias2 + o_f, mask=o_f < F, other=0.0)[None, :]
        m_in = m_e & ~outside(b_d, CUTOFF)  # NaN stays
        m, p_j = m_in[:, None] & (o_f < F)[None, :], b_j[:, None] * F + o_f[None, :]
        b_c, b_c1, b_c2 = cut(b_d, m_in, CUTOFF)
        b_m = tl.zeros([BE, BF], dtype=ACC)
        if SUM:
            b_m += b_c[:, None] * b_s * tl.load(x + p_j, mask=m, other=0.0)
        if CHANGE:
            b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_u, b_v, b_w)
            b_r = (b_t * b_c)[:, None] * b_s1 + (b_t * b_c1)[:, None] * b_s
            b_m += b_r * tl.load(v + p_j, mask=m, other=0.0)
        i_at, b_y = deal(tl.where(m, b_m, 0.0), b_i, y, i_at, b_y, o_f, F)
    finish(y, i_at, tl.minimum(i_n + NB, N), b_y, o_f, F)


@triton.jit
def _slopes(x, g, c_x, weight1, bias1, weight2, bias2, centre, scale, b_i, b_j, b_d, b_t, m_in, G, H, F,
            KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr, TO: tl.constexpr,
            FROM: tl.constexpr, SECOND: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr,
            BF: tl.constexpr, ACC: tl.constexpr, TF32: tl.constexpr):
    """Gradients of d and of its rate t [BE], of <W, m>, or with SECOND of <W, m_c> + t <W', m>."""
    b_c, b_c1, b_c2 = cut(b_d, m_in, CUTOFF)
    b_c, b_c1, b_c2, b_t = b_c[:, None], b_c1[:, None], b_c2[:, None], b_t[:, None]
    b_gd, b_gt = tl.zeros([BE], dtype=ACC), tl.zeros([BE], dtype=ACC)
    for i_h in range(0, H, BH):
        o_h = i_h + tl.arange(0, BH)
        b_q, b_qc = tl.zeros([BE, BH], dtype=ACC), tl.zeros([BE, BH], dtype=ACC)
        for i_f in range(0, F, BF):
            o_f = i_f + tl.arange(0, BF)
            m = m_in[:, None] & (o_f < F)[None, :]
            # bias2 is one more hidden unit, which is always 1: it counts once
            b_w = tl.load(bias2 + o_f, mask=(o_f < F) & (tl.zeros_like(o_f) + i_h == 0), other=0.0)[None, :]
            b_w2 = tile(weight2, o_f, o_h, F, H)
            b_m = message(x, g, b_i, b_j, o_f, F, m, TO, FROM)
            b_q = dot(b_m, b_w2, b_q, TF32)
            b_gt += tl.sum(b_c1 * b_w * b_m, 1)
            if SECOND:
                b_mc = message(c_x, g, b_i, b_j, o_f, F, m, TO, FROM)
                b_qc = dot(b_mc, b_w2, b_qc, TF32)
                b_gd += tl.sum(b_w * (b_c1 * b_mc + b_t * b_c2 * b_m), 1)
        b_p, b_p1, b_p2 = first_layer(weight1, bias1, centre, scale, b_d, o_h, G, H, KIND, ALPHA,
                                      2 if SECOND else 1, BE, BG, BH, ACC, TF32)
        b_a, b_a1, b_a2 = active(b_p, ACTIVATION)
        b_u = b_c1 * b_a + b_c * b_a1 * b_p1
        b_gt += tl.sum(b_u * b_q, 1)
        if SECOND:
            b_v = b_c2 * b_a + 2.0 * b_c1 * b_a1 * b_p1 + b_c * (b_a2 * b_p1 * b_p1 + b_a1 * b_p2)
            b_gd += tl.sum(b_u * b_qc + b_t * b_v * b_q, 1)
    if SECOND:
        return tl.where(m_in, b_gd, 0.0), tl.where(m_in, b_gt, 0.0)
    else:
        return tl.where(m_in, b_gt, 0.0), b_gd


@triton.jit
def cfconv_bwd_kernel_pos(
    x, g, c_x, pos, move, weight1, bias1, weight2, bias2, centre, scale, neighbour, ptr, y, N, E, G, H, F,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr, TO: tl.constexpr,
    FROM: tl.constexpr, SECOND: tl.constexpr, NB: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr,
    BF: tl.constexpr, ACC: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """y [N, 3]: the gradient of the positions from a node's edges, as `spline_conv_bwd_kernel_pos`."""
    i_n = tl.program_id(0).to(tl.int64) * NB
    o_n = i_n + tl.arange(0, NB)
    start, stop = span(ptr, i_n, N, E, NB)
    s_x, s_y, s_z = tl.zeros([NB], dtype=ACC), tl.zeros([NB], dtype=ACC), tl.zeros([NB], dtype=ACC)
    for i_e in range(start, stop, BE):
        b_i, b_j, m_e = ends(neighbour, ptr, i_e + tl.arange(0, BE), stop, i_n, N, NB)
        b_d, b_x, b_y, b_z = geometry(pos, b_i, b_j, m_e)
        b_t, u_x, u_y, u_z = b_d, b_x, b_y, b_z
        if SECOND:
            b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_x, b_y, b_z)
        b_gd, b_gt = _slopes(x, g, c_x, weight1, bias1, weight2, bias2, centre, scale, b_i, b_j, b_d, b_t,
                             m_e & ~outside(b_d, CUTOFF), G, H, F, KIND, ACTIVATION, ALPHA, CUTOFF, TO, FROM, SECOND,
                             BE, BG, BH, BF, ACC, TF32)
        g_x, g_y, g_z = pull(b_gd, b_gt, b_t, b_d, b_x, b_y, b_z, u_x, u_y, u_z, SECOND)
        s_x += at_nodes(g_x, b_i, o_n)
        s_y += at_nodes(g_y, b_i, o_n)
        s_z += at_nodes(g_z, b_i, o_n)
    tl.store(y + 3 * o_n, s_x, mask=o_n < N)
    tl.store(y + 3 * o_n + 1, s_y, mask=o_n < N)
    tl.store(y + 3 * o_n + 2, s_z, mask=o_n < N)
