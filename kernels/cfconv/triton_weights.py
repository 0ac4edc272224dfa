"""The gradients of cfconv's parameters: a kernel for each weight with its bias, and one for the basis.

A program sums a block of a weight over `part` edges; the parts are added afterwards, in order. What goes into a product
is formed again for every block: with the sums of all parameters in one program nothing fits into registers.
"""

from ..triton_common import dot, tl, triton
from .triton_edges import along, cut, geometry, message, outside
from .triton_network import active, first_layer, radial, tile


@triton.jit
def _edges(target, neighbour, pos, move, o_e, N, E, CUTOFF: tl.constexpr, SECOND: tl.constexpr):
    """Ends of edges o_e [BE], which of them count, distances, their rates along move, the cutoff and its slope."""
    b_i = tl.load(target + o_e, mask=o_e < E, other=-1)
    b_j = tl.load(neighbour + o_e, mask=o_e < E, other=-1)
    m_e = (b_i >= 0) & (b_i < N) & (b_j >= 0) & (b_j < N)
    b_d, b_x, b_y, b_z = geometry(pos, b_i, b_j, m_e)
    m_in = m_e & ~outside(b_d, CUTOFF)
    b_t = b_d
    if SECOND:
        b_t, u_x, u_y, u_z = along(move, b_i, b_j, m_e, b_d, b_x, b_y, b_z)
    b_c, b_c1, b_c2 = cut(b_d, m_in, CUTOFF)
    return b_i, b_j, m_in, b_d, b_t[:, None], b_c[:, None], b_c1[:, None]


@triton.jit
def _filter_gradients(x, g, c_x, b_i, b_j, o_f, F, m_in, b_t, b_c, b_c1, SECOND: tl.constexpr):
    """The gradients [BE, BF] of S and, with SECOND, of its change; else the first twice."""
    m = m_in[:, None] & (o_f < F)[None, :]
    b_m = message(x, g, b_i, b_j, o_f, F, m, True, False)
    b_gt = b_c * b_m
    b_gs = b_gt
    if SECOND:
        b_gs = b_c * message(c_x, g, b_i, b_j, o_f, F, m, True, False) + b_t * b_c1 * b_m
    return b_gs, b_gt


@triton.jit
def _hidden_gradients(x, g, c_x, weight1, bias1, weight2, centre, scale, b_i, b_j, m_in, b_d, b_t, b_c, b_c1, o_h, G, H,
                      F, KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, SECOND: tl.constexpr,
                      BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr,
                      TF32: tl.constexpr):
    """The gradients [BE, BH] of the first layer and, with SECOND, of its derivative in d; else the first twice."""
    b_q, b_qt = tl.zeros([BE, BH], dtype=ACC), tl.zeros([BE, BH], dtype=ACC)
    for i_f in range(0, F, BF):
        o_f = i_f + tl.arange(0, BF)
        b_gs, b_gt = _filter_gradients(x, g, c_x, b_i, b_j, o_f, F, m_in, b_t, b_c, b_c1, SECOND)
        b_w2 = tile(weight2, o_f, o_h, F, H)
        b_q = dot(b_gs, b_w2, b_q, TF32)
        if SECOND:
            b_qt = dot(b_gt, b_w2, b_qt, TF32)
    b_p, b_p1, b_p2 = first_layer(weight1, bias1, centre, scale, b_d, o_h, G, H, KIND, ALPHA, 1 if SECOND else 0, BE,
                                  BG, BH, ACC, TF32)
    b_a, b_a1, b_a2 = active(b_p, ACTIVATION)
    b_gp = b_a1 * b_q
    b_gp1 = b_gp
    if SECOND:
        b_qt *= b_t
        b_gp += b_a2 * b_p1 * b_qt
        b_gp1 = b_a1 * b_qt
    return b_gp, b_gp1


@triton.jit
def cfconv_bwd_kernel_weight2(
    x, g, c_x, pos, move, weight1, bias1, centre, scale, target, neighbour, g_weight2, g_bias2, N, E, G, H, F, part,
    blocks_h, KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr,
    SECOND: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr,
    TF32: tl.constexpr,
):  # fmt: skip
    """g_weight2 [parts, F, H] and g_bias2 [parts, F] of sum <W, m>, or with SECOND of sum <W, m_c> + <W_t, m>."""
    i_block, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_f = i_block // blocks_h * BF + tl.arange(0, BF)
    o_h = i_block % blocks_h * BH + tl.arange(0, BH)
    s_w2, s_b2 = tl.zeros([BF, BH], dtype=ACC), tl.zeros([BF], dtype=ACC)
    for i_e in range(i_s * part, tl.minimum(i_s * part + part, E), BE):
        b_i, b_j, m_in, b_d, b_t, b_c, b_c1 = _edges(target, neighbour, pos, move, i_e + tl.arange(0, BE), N, E, CUTOFF,
                                                     SECOND)
        b_p, b_p1, b_p2 = first_layer(weight1, bias1, centre, scale, b_d, o_h, G, H, KIND, ALPHA, 1 if SECOND else 0,
                                      BE, BG, BH, ACC, TF32)
        b_a, b_a1, b_a2 = active(b_p, ACTIVATION)
        b_gs, b_gt = _filter_gradients(x, g, c_x, b_i, b_j, o_f, F, m_in, b_t, b_c, b_c1, SECOND)
        s_w2 = dot(tl.trans(b_gs), b_a, s_w2, TF32)
        s_b2 += tl.sum(b_gs, 0)
        if SECOND:
            s_w2 = dot(tl.trans(b_gt), b_t * b_a1 * b_p1, s_w2, TF32)
    m_f = o_f < F
    tl.store(g_weight2 + (i_s * F + o_f[:, None]) * H + o_h[None, :], s_w2, mask=m_f[:, None] & (o_h < H)[None, :])
    if i_block % blocks_h == 0:
        tl.store(g_bias2 + i_s * F + o_f, s_b2, mask=m_f)


@triton.jit
def cfconv_bwd_kernel_weight1(
    x, g, c_x, pos, move, weight1, bias1, weight2, centre, scale, target, neighbour, g_weight1, g_bias1, N, E, G, H, F,
    part, blocks_o, KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr,
    SECOND: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr, BF: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """g_weight1 [parts, H, G] and g_bias1 [parts, H] of the same."""
    i_block, i_s = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_h = i_block // blocks_o * BH + tl.arange(0, BH)
    o_g = i_block % blocks_o * BO + tl.arange(0, BO)
    s_w1, s_b1 = tl.zeros([BH, BO], dtype=ACC), tl.zeros([BH], dtype=ACC)
    for i_e in range(i_s * part, tl.minimum(i_s * part + part, E), BE):
        b_i, b_j, m_in, b_d, b_t, b_c, b_c1 = _edges(target, neighbour, pos, move, i_e + tl.arange(0, BE), N, E, CUTOFF,
                                                     SECOND)
        b_gp, b_gp1 = _hidden_gradients(x, g, c_x, weight1, bias1, weight2, centre, scale, b_i, b_j, m_in, b_d, b_t,
                                        b_c, b_c1, o_h, G, H, F, KIND, ACTIVATION, ALPHA, SECOND, BE, BG, BH, BF, ACC,
                                        TF32)
        b_b, b_b1, b_b2, b_bp, b_b1p, b_bq, b_b1q = radial(centre, scale, b_d, o_g, G, KIND, ALPHA)
        s_w1 = dot(tl.trans(b_gp), b_b, s_w1, TF32)
        s_b1 += tl.sum(b_gp, 0)
        if SECOND:
            s_w1 = dot(tl.trans(b_gp1), b_b1, s_w1, TF32)
    m_h = o_h < H
    tl.store(g_weight1 + (i_s * H + o_h[:, None]) * G + o_g[None, :], s_w1, mask=m_h[:, None] & (o_g < G)[None, :])
    if i_block % blocks_o == 0:
        tl.store(g_bias1 + i_s * H + o_h, s_b1, mask=m_h)


@triton.jit
def cfconv_bwd_kernel_basis(
    x, g, c_x, pos, move, weight1, bias1, weight2, centre, scale, target, neighbour, g_centre, g_scale, N, E, G, H, F,
    part, KIND: tl.constexpr, ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, CUTOFF: tl.constexpr,
    SECOND: tl.constexpr, BE: tl.constexpr, BG: tl.constexpr, BH: tl.constexpr, BF: tl.constexpr, ACC: tl.constexpr,
    TF32: tl.constexpr,
):  # fmt: skip
    """g_centre and g_scale [parts, G] of the same."""
    o_g, i_s = tl.program_id(0).to(tl.int64) * BG + tl.arange(0, BG), tl.program_id(1).to(tl.int64)
    s_p, s_q = tl.zeros([BG], dtype=ACC), tl.zeros([BG], dtype=ACC)
    for i_e in range(i_s * part, tl.minimum(i_s * part + part, E), BE):
        b_i, b_j, m_in, b_d, b_t, b_c, b_c1 = _edges(target, neighbour, pos, move, i_e + tl.arange(0, BE), N, E, CUTOFF,
                                                     SECOND)
        b_gb, b_gb1 = tl.zeros([BE, BG], dtype=ACC), tl.zeros([BE, BG], dtype=ACC)
        for i_h in range(0, H, BH):
            o_h = i_h + tl.arange(0, BH)
            b_gp, b_gp1 = _hidden_gradients(x, g, c_x, weight1, bias1, weight2, centre, scale, b_i, b_j, m_in, b_d, b_t,
                                            b_c, b_c1, o_h, G, H, F, KIND, ACTIVATION, ALPHA, SECOND, BE, BG, BH, BF,
                                            ACC, TF32)
            b_w1 = tile(weight1, o_h, o_g, H, G)
            b_gb = dot(b_gp, b_w1, b_gb, TF32)
            if SECOND:
                b_gb1 = dot(b_gp1, b_w1, b_gb1, TF32)
        b_b, b_b1, b_b2, b_bp, b_b1p, b_bq, b_b1q = radial(centre, scale, b_d, o_g, G, KIND, ALPHA)
        s_p += tl.sum(b_gb * b_bp, 0)
        s_q += tl.sum(b_gb * b_bq, 0)
        if SECOND:
            s_p += tl.sum(b_gb1 * b_b1p, 0)
            s_q += tl.sum(b_gb1 * b_b1q, 0)
    tl.store(g_centre + i_s * G + o_g, s_p, mask=o_g < G)
    tl.store(g_scale + i_s * G + o_g, s_q, mask=o_g < G)
