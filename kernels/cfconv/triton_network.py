"""The kernels of cfconv: the filter network on 16 edges at a time, from distances to messages and back."""

from ..triton_common import dot, sigmoid, softplus, tl, triton
from .triton_splines import along, cut, geometry


@triton.jit
def _waves(b_p, b_q, b_d):
    """q sin(p d) / d by f(z) = sin(z) / z: f and f' / z are series in z^2 where |z| < 1."""
    z = b_p * b_d
    w = z * z
    b_sin, b_cos = tl.sin(z), tl.cos(z)
    small = w < 1.0
    safe = tl.where(small, 1.0, z)
    near = 1.0 - w / 110.0 * (1.0 - w / 156.0 * (1.0 - w / 210.0 * (1.0 - w / 272.0 * (1.0 - w / 342.0))))
    near = 1.0 - w / 6.0 * (1.0 - w / 20.0 * (1.0 - w / 42.0 * (1.0 - w / 72.0 * near)))
    f = tl.where(small, near, b_sin / safe)
    near = 1.0 - w / 88.0 * (1.0 - w / 130.0 * (1.0 - w / 180.0 * (1.0 - w / 238.0 * (1.0 - w / 304.0))))
    near = -(1.0 - w / 10.0 * (1.0 - w / 28.0 * (1.0 - w / 54.0 * near))) / 3.0
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
def _basis(centre, scale, b_d, o_g, G, KIND: tl.constexpr, ALPHA: tl.constexpr):
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
def _active(x, ACTIVATION: tl.constexpr):
    """Value, first and second derivative."""
    b_s = sigmoid(x)
    b_density = b_s * (1.0 - b_s)
    if ACTIVATION == 0:
        return softplus(x) - 0.6931471805599453, b_s, b_density
    else:
        return x * b_s, b_s + x * b_density, b_density * (2.0 + x * (1.0 - 2.0 * b_s))


@triton.jit
def _turned(weight, o_in, o_out, N_IN, N_OUT):
    """[BLOCK_IN, BLOCK_OUT] of weight [N_OUT, N_IN]."""
    return tl.load(weight + o_out[None, :] * N_IN + o_in[:, None],
                   mask=(o_in < N_IN)[:, None] & (o_out < N_OUT)[None, :], other=0.0)


@triton.jit
def _network(weight1, bias1, weight2, bias2, b_b, b_b1, b_t, o_g, o_h, o_f, G, H, F, ACTIVATION: tl.constexpr,
             SECOND: tl.constexpr, BE: tl.constexpr, BH: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr,
             TF32: tl.constexpr):
    """Hidden layer, its derivative, filter; and with SECOND their changes where d changes at the rate b_t."""
    b_w1, b_w2 = _turned(weight1, o_g, o_h, G, H), _turned(weight2, o_h, o_f, H, F)
    b_pre = dot(b_b, b_w1, tl.zeros([BE, BH], dtype=ACC), TF32)
    b_h, b_h1, b_h2 = _active(b_pre + tl.load(bias1 + o_h, mask=o_h < H, other=0.0)[None, :], ACTIVATION)
    b_s = dot(b_h, b_w2, tl.zeros([BE, BF], dtype=ACC), TF32)
    b_s += tl.load(bias2 + o_f, mask=o_f < F, other=0.0)[None, :]
    b_hc, b_bend, b_sc = b_h, b_h1, b_s
    if SECOND:
        b_change = dot(b_b1 * b_t[:, None], b_w1, tl.zeros([BE, BH], dtype=ACC), TF32)
        b_hc, b_bend = b_h1 * b_change, b_h2 * b_change
        b_sc = dot(b_hc, b_w2, tl.zeros([BE, BF], dtype=ACC), TF32)
    return b_h, b_h1, b_s, b_hc, b_bend, b_sc


@triton.jit
def cfconv_fwd_kernel(
    x, v, pos, move, weight1, bias1, weight2, bias2, centre, scale, neighbour, ptr, y, N, E, G, H, F,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr,
    SUM: tl.constexpr, CHANGE: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr, BF: tl.constexpr,
    ACC: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """y [N, F]: the sum over a node's edges of W x_j (SUM) and of W' v_j (CHANGE), W' the change along move."""
    i_n = tl.program_id(0).to(tl.int64)
    o_g, o_h, o_f = tl.arange(0, BG), tl.arange(0, BH), tl.arange(0, BF)
    start, stop = tl.maximum(tl.load(ptr + i_n), 0), tl.minimum(tl.load(ptr + i_n + 1), E)
    b_y = tl.zeros([BF], dtype=ACC)
    for i_e in range(start, stop, BE):
        o_e = i_e + tl.arange(0, BE)
        b_j = tl.load(neighbour + o_e, mask=o_e < stop, other=-1)
        m_e = (b_j >= 0) & (b_j < N)
        b_d, b_u, b_v, b_w = geometry(pos, i_n, b_j, m_e)
        b_t = b_d
        if CHANGE:
            b_t, u_x, u_y, u_z = along(move, i_n, b_j, m_e, b_d, b_u, b_v, b_w)
        b_b, b_b1, b_b2, b_bp, b_b1p, b_bq, b_b1q = _basis(centre, scale, b_d, o_g, G, KIND, ALPHA)
        b_h, b_h1, b_s, b_hc, b_bend, b_sc = _network(weight1, bias1, weight2, bias2, b_b, b_b1, b_t, o_g, o_h, o_f, G,
                                                      H, F, ACTIVATION, CHANGE, BE, BH, BF, ACC, TF32)
        m = (m_e & ~(b_d >= CUTOFF))[:, None] & (o_f < F)[None, :]  # NaN stays
        p = b_j[:, None] * F + o_f[None, :]
        b_c = cut(b_d, CUTOFF, 0)[:, None]
        if SUM:
            b_y += tl.sum(tl.where(m, b_c * b_s * tl.load(x + p, mask=m, other=0.0), 0.0), 0)
        if CHANGE:
            b_r = b_c * b_sc + (b_t * cut(b_d, CUTOFF, 1))[:, None] * b_s
            b_y += tl.sum(tl.where(m, b_r * tl.load(v + p, mask=m, other=0.0), 0.0), 0)
    tl.store(y + i_n * F + o_f, b_y, mask=o_f < F)


@triton.jit
def cfconv_bwd_kernel(
    x, g, c_x, pos, move, weight1, bias1, weight2, bias2, centre, scale, target, neighbour, g_d, g_t, g_weight1,
    g_bias1, g_weight2, g_bias2, g_centre, g_scale, N, E, G, H, F, span,
    KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr,
    SECOND: tl.constexpr, NEED_D: tl.constexpr, NEED_WEIGHTS: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr,
    BH: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """g_d, g_t [E] and sums of the parameters' gradients over `span` edges, [programs, ...], of sum <W, x_j g_i>.

    With SECOND of sum <W, c_x_j g_i> + <W', x_j g_i> with W' the change of W along move, at the rate t of d.
    """
    i_p = tl.program_id(0).to(tl.int64)
    o_g, o_h, o_f = tl.arange(0, BG), tl.arange(0, BH), tl.arange(0, BF)
    s_w1, s_w2 = tl.zeros([BH, BG], dtype=ACC), tl.zeros([BF, BH], dtype=ACC)
    s_b1, s_b2 = tl.zeros([BH], dtype=ACC), tl.zeros([BF], dtype=ACC)
    s_p, s_q = tl.zeros([BG], dtype=ACC), tl.zeros([BG], dtype=ACC)
    for i_e in range(i_p * span, tl.minimum(i_p * span + span, E), BE):
        o_e = i_e + tl.arange(0, BE)
        b_j = tl.load(neighbour + o_e, mask=o_e < E, other=-1)
        m_e = (b_j >= 0) & (b_j < N)
        b_i = tl.load(target + o_e, mask=m_e, other=0)
        b_d, b_x, b_y, b_z = geometry(pos, b_i, b_j, m_e)
        b_t = b_d
        if SECOND:
            b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_x, b_y, b_z)
        b_b, b_b1, b_b2, b_bp, b_b1p, b_bq, b_b1q = _basis(centre, scale, b_d, o_g, G, KIND, ALPHA)
        b_h, b_h1, b_s, b_hc, b_bend, b_sc = _network(weight1, bias1, weight2, bias2, b_b, b_b1, b_t, o_g, o_h, o_f, G,
                                                      H, F, ACTIVATION, SECOND, BE, BH, BF, ACC, TF32)
        m_in = m_e & ~(b_d >= CUTOFF)
        m = m_in[:, None] & (o_f < F)[None, :]
        b_g = tl.load(g + b_i[:, None] * F + o_f[None, :], mask=m, other=0.0)
        p_j = b_j[:, None] * F + o_f[None, :]
        b_m = b_g * tl.load(x + p_j, mask=m, other=0.0)
        b_cut, b_slope = tl.where(m_in, cut(b_d, CUTOFF, 0), 0.0), tl.where(m_in, cut(b_d, CUTOFF, 1), 0.0)
        b_with = tl.sum(b_s * b_m, 1)
        b_gs, b_gc = b_cut[:, None] * b_m, b_cut[:, None] * b_m
        b_gd, b_gt = b_slope * b_with, b_slope * b_with
        if SECOND:
            b_mc = b_g * tl.load(c_x + p_j, mask=m, other=0.0)
            b_gs = b_cut[:, None] * b_mc + (b_t * b_slope)[:, None] * b_m
            b_gd = b_slope * tl.sum(b_s * b_mc + b_sc * b_m, 1)
            b_gd += b_t * tl.where(m_in, cut(b_d, CUTOFF, 2), 0.0) * b_with
        b_w2 = tl.trans(_turned(weight2, o_h, o_f, H, F))
        b_gh = dot(b_gs, b_w2, tl.zeros([BE, BH], dtype=ACC), TF32)
        b_gp = b_h1 * b_gh
        if SECOND:
            b_ghc = dot(b_gc, b_w2, tl.zeros([BE, BH], dtype=ACC), TF32)
            b_gp += b_bend * b_ghc
            b_gpc = b_h1 * b_ghc
        if NEED_WEIGHTS:
            s_w2 = dot(tl.trans(b_gs), b_h, s_w2, TF32)
            s_w1 = dot(tl.trans(b_gp), b_b, s_w1, TF32)
            s_b1 += tl.sum(b_gp, 0)
            s_b2 += tl.sum(b_gs, 0)
            if SECOND:
                s_w2 = dot(tl.trans(b_gc), b_hc, s_w2, TF32)
                s_w1 = dot(tl.trans(b_gpc), b_b1 * b_t[:, None], s_w1, TF32)
        b_w1 = tl.trans(_turned(weight1, o_g, o_h, G, H))
        b_gb = dot(b_gp, b_w1, tl.zeros([BE, BG], dtype=ACC), TF32)
        b_gd += tl.sum(b_gb * b_b1, 1)
        s_p += tl.sum(b_gb * b_bp, 0)
        s_q += tl.sum(b_gb * b_bq, 0)
        if SECOND:
            b_gbc = dot(b_gpc, b_w1, tl.zeros([BE, BG], dtype=ACC), TF32)
            b_gd += b_t * tl.sum(b_gbc * b_b2, 1)
            b_gt += tl.sum(b_gbc * b_b1, 1)
            s_p += tl.sum(b_t[:, None] * b_gbc * b_b1p, 0)
            s_q += tl.sum(b_t[:, None] * b_gbc * b_b1q, 0)
        if NEED_D:
            tl.store(g_d + o_e, b_gd, mask=o_e < E)
            if SECOND:
                tl.store(g_t + o_e, b_gt, mask=o_e < E)
    m_g, m_h, m_f = o_g < G, o_h < H, o_f < F
    if NEED_WEIGHTS:
        tl.store(g_weight1 + (i_p * H + o_h[:, None]) * G + o_g[None, :], s_w1, mask=m_h[:, None] & m_g[None, :])
        tl.store(g_weight2 + (i_p * F + o_f[:, None]) * H + o_h[None, :], s_w2, mask=m_f[:, None] & m_h[None, :])
        tl.store(g_bias1 + i_p * H + o_h, s_b1, mask=m_h)
        tl.store(g_bias2 + i_p * F + o_f, s_b2, mask=m_f)
        tl.store(g_centre + i_p * G + o_g, s_p, mask=m_g)
        tl.store(g_scale + i_p * G + o_g, s_q, mask=m_g)
