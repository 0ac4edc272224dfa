"""The kernels of egnn_message: a program takes a block of edges; the first layer is formed from both ends' products."""

from ..triton_common import dot, silu, silu_grad, tl, triton


@triton.jit
def _ends(target, source, o_e, E, N):
    """Rows of both ends of edges o_e, and which of them exist."""
    b_i = tl.load(target + o_e, mask=o_e < E, other=-1)
    b_j = tl.load(source + o_e, mask=o_e < E, other=-1)
    return b_i, b_j, (b_i >= 0) & (b_i < N), (b_j >= 0) & (b_j < N)


@triton.jit
def _square(x, b_i, b_j, m_i, m_j, D, BE: tl.constexpr, ACC: tl.constexpr):
    """|x_i - x_j|^2 [BE]"""
    b_sum = tl.zeros([BE], dtype=ACC)
    for d in range(0, D):
        b_r = tl.load(x + b_i * D + d, mask=m_i, other=0.0) - tl.load(x + b_j * D + d, mask=m_j, other=0.0)
        b_sum += b_r * b_r
    return b_sum


@triton.jit
def _first(nodes, edge, weight1, b_square, o_e, b_i, b_j, m_e, m_i, m_j, o_h, H, A, K):
    """The first pre-activation [BE, BH]; its weights are columns of weight1 [H, K], the edge features' at the end."""
    m_h = o_h < H
    b_y = tl.load(nodes + b_i[:, None] * (2 * H) + o_h[None, :], mask=m_i[:, None] & m_h[None, :], other=0.0)
    b_y += tl.load(nodes + b_j[:, None] * (2 * H) + H + o_h[None, :], mask=m_j[:, None] & m_h[None, :], other=0.0)
    b_y += b_square[:, None] * tl.load(weight1 + o_h * K, mask=m_h, other=0.0)[None, :]
    for k in range(0, A):
        b_w = tl.load(weight1 + o_h * K + (K - A + k), mask=m_h, other=0.0)
        b_y += tl.load(edge + o_e * A + k, mask=m_e, other=0.0)[:, None] * b_w[None, :]
    return b_y


@triton.jit
def egnn_message_fwd_kernel_message(
    nodes, x, edge, target, source, weight1, weight2, bias2, pre2, E, N, D, H, M, A, K, blocks_m,
    BE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """pre2 [E, M] = silu(first layer) weight2 [M, H]^T + bias2."""
    pid = tl.program_id(0).to(tl.int64)
    o_e, o_m = pid // blocks_m * BE + tl.arange(0, BE), pid % blocks_m * BM + tl.arange(0, BM)
    m_e, m_m = o_e < E, o_m < M
    b_i, b_j, m_i, m_j = _ends(target, source, o_e, E, N)
    b_square = _square(x, b_i, b_j, m_i, m_j, D, BE, ACC)
    b_acc = tl.zeros([BE, BM], dtype=ACC)
    for i_h in range(0, H, BK):
        o_h = i_h + tl.arange(0, BK)
        b_a = silu(_first(nodes, edge, weight1, b_square, o_e, b_i, b_j, m_e, m_i, m_j, o_h, H, A, K))
        b_w = tl.load(weight2 + o_m[None, :] * H + o_h[:, None], mask=m_m[None, :] & (o_h < H)[:, None], other=0.0)
        b_acc = dot(b_a, b_w, b_acc, ALLOW_TF32)
    b_acc += tl.load(bias2 + o_m, mask=m_m, other=0.0)[None, :]
    tl.store(pre2 + o_e[:, None] * M + o_m[None, :], b_acc, mask=m_e[:, None] & m_m[None, :])


@triton.jit
def egnn_message_fwd_kernel_coordinate(
    pre2, weight3, bias3, weight4, bias4, pre3, w, E, M, C,
    HAS_BIAS: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr,
    ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """pre3 [E, C] = silu(pre2) weight3 [C, M]^T + bias3, and w [E] = silu(pre3) weight4^T + bias4."""
    o_e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    m_e = o_e < E
    b_w = tl.zeros([BE], dtype=ACC)
    if HAS_BIAS:
        b_w += tl.load(bias4)
    for i_c in range(0, C, BC):
        o_c = i_c + tl.arange(0, BC)
        m_c = o_c < C
        b_acc = tl.zeros([BE, BC], dtype=ACC)
        for i_m in range(0, M, BK):
            o_m = i_m + tl.arange(0, BK)
            m_m = o_m < M
            b_a = silu(tl.load(pre2 + o_e[:, None] * M + o_m[None, :], mask=m_e[:, None] & m_m[None, :], other=0.0))
            b_3 = tl.load(weight3 + o_c[None, :] * M + o_m[:, None], mask=m_c[None, :] & m_m[:, None], other=0.0)
            b_acc = dot(b_a, b_3, b_acc, ALLOW_TF32)
        b_acc += tl.load(bias3 + o_c, mask=m_c, other=0.0)[None, :]
        tl.store(pre3 + o_e[:, None] * C + o_c[None, :], b_acc, mask=m_e[:, None] & m_c[None, :])
        b_w += tl.sum(silu(b_acc) * tl.load(weight4 + o_c, mask=m_c, other=0.0)[None, :], 1)
    tl.store(w + o_e, b_w, mask=m_e)


@triton.jit
def egnn_message_fwd_kernel_sum(
    x, source, order, ptr, pre2, w, coordinates, features, E, N, D, M, blocks_m,
    MEAN: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums over the edges of a node: features [N, M] of silu(pre2), coordinates [N, D] of (x_i - x_j) w."""
    pid = tl.program_id(0).to(tl.int64)
    i_n, i_m = pid // blocks_m, pid % blocks_m
    o_m, o_d = i_m * BM + tl.arange(0, BM), tl.arange(0, BD)
    m_m, m_d = o_m < M, o_d < D
    first, last = tl.load(ptr + i_n), tl.load(ptr + i_n + 1)
    start, stop = tl.maximum(first, 0), tl.minimum(last, E)
    b_x = tl.load(x + i_n * D + o_d, mask=m_d, other=0.0)
    b_sum, b_f = tl.zeros([BM], dtype=ACC), tl.zeros([BD], dtype=ACC)
    for i_e in range(start, stop, BE):
        o_e = i_e + tl.arange(0, BE)
        b_e = tl.load(order + o_e, mask=o_e < stop, other=-1)
        m_e = (b_e >= 0) & (b_e < E)
        b_y = tl.load(pre2 + b_e[:, None] * M + o_m[None, :], mask=m_e[:, None] & m_m[None, :], other=0.0)
        b_sum += tl.sum(silu(b_y), 0)
        b_j = tl.load(source + b_e, mask=m_e, other=-1)
        m_j = (b_j >= 0) & (b_j < N)
        b_r = b_x[None, :] - tl.load(x + b_j[:, None] * D + o_d[None, :], mask=m_j[:, None] & m_d[None, :], other=0.0)
        b_f += tl.sum(b_r * tl.load(w + b_e, mask=m_e, other=0.0)[:, None], 0)
    tl.store(features + i_n * M + o_m, b_sum, mask=m_m)
    if i_m == 0:
        if MEAN:
            b_f /= tl.maximum(last - first, 1).to(ACC)
        tl.store(coordinates + i_n * D + o_d, b_f, mask=m_d)


@triton.jit
def egnn_message_bwd_kernel_coordinate(
    g_coordinates, x, target, source, ptr, pre3, weight4, bias4, g_3, g_w, g_r, square, E, N, D, C,
    MEAN: tl.constexpr, HAS_BIAS: tl.constexpr, BE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g_3 [E, C], g_w [E], |r|^2 [E], and the coordinates' part of g_r [E, D]."""
    o_e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    m_e = o_e < E
    b_i, b_j, m_i, m_j = _ends(target, source, o_e, E, N)
    b_scale = tl.full([BE], 1.0, ACC)
    if MEAN:
        b_count = tl.load(ptr + b_i + 1, mask=m_i, other=1) - tl.load(ptr + b_i, mask=m_i, other=0)
        b_scale /= tl.maximum(b_count, 1).to(ACC)
    b_gw, b_square = tl.zeros([BE], dtype=ACC), tl.zeros([BE], dtype=ACC)
    for d in range(0, D):
        b_r = tl.load(x + b_i * D + d, mask=m_i, other=0.0) - tl.load(x + b_j * D + d, mask=m_j, other=0.0)
        b_gw += b_r * tl.load(g_coordinates + b_i * D + d, mask=m_i, other=0.0) * b_scale
        b_square += b_r * b_r
    b_w = tl.zeros([BE], dtype=ACC)
    if HAS_BIAS:
        b_w += tl.load(bias4)
    for i_c in range(0, C, BC):
        o_c = i_c + tl.arange(0, BC)
        m = m_e[:, None] & (o_c < C)[None, :]
        b_y = tl.load(pre3 + o_e[:, None] * C + o_c[None, :], mask=m, other=0.0)
        b_4 = tl.load(weight4 + o_c, mask=o_c < C, other=0.0)[None, :]
        b_w += tl.sum(silu(b_y) * b_4, 1)
        tl.store(g_3 + o_e[:, None] * C + o_c[None, :], b_gw[:, None] * b_4 * silu_grad(b_y), mask=m)
    tl.store(g_w + o_e, b_gw, mask=m_e)
    tl.store(square + o_e, b_square, mask=m_e)
    for d in range(0, D):
        b_g = tl.load(g_coordinates + b_i * D + d, mask=m_i, other=0.0) * b_scale
        tl.store(g_r + o_e * D + d, b_g * b_w, mask=m_e)


@triton.jit
def egnn_message_bwd_kernel_message(
    g_3, g_features, target, pre2, weight3, g_2, E, N, M, C, blocks_m,
    BE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """g_2 [E, M] = (g_3 [E, C] weight3 [C, M] + g_features at the target) silu'(pre2)."""
    pid = tl.program_id(0).to(tl.int64)
    o_e, o_m = pid // blocks_m * BE + tl.arange(0, BE), pid % blocks_m * BM + tl.arange(0, BM)
    m_e, m_m = o_e < E, o_m < M
    b_i = tl.load(target + o_e, mask=m_e, other=-1)
    m_i = (b_i >= 0) & (b_i < N)
    b_acc = tl.load(g_features + b_i[:, None] * M + o_m[None, :], mask=m_i[:, None] & m_m[None, :], other=0.0).to(ACC)
    for i_c in range(0, C, BK):
        o_c = i_c + tl.arange(0, BK)
        m_c = o_c < C
        b_g = tl.load(g_3 + o_e[:, None] * C + o_c[None, :], mask=m_e[:, None] & m_c[None, :], other=0.0)
        b_w = tl.load(weight3 + o_c[:, None] * M + o_m[None, :], mask=m_c[:, None] & m_m[None, :], other=0.0)
        b_acc = dot(b_g, b_w, b_acc, ALLOW_TF32)
    m = m_e[:, None] & m_m[None, :]
    b_acc *= silu_grad(tl.load(pre2 + o_e[:, None] * M + o_m[None, :], mask=m, other=0.0))
    tl.store(g_2 + o_e[:, None] * M + o_m[None, :], b_acc, mask=m)


@triton.jit
def egnn_message_bwd_kernel_first(
    g_2, nodes, square, edge, target, source, weight1, weight2, g_1, E, N, H, M, A, K, blocks_h,
    BE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """g_1 [E, H] = (g_2 [E, M] weight2 [M, H]) silu'(first layer)."""
    pid = tl.program_id(0).to(tl.int64)
    o_e, o_h = pid // blocks_h * BE + tl.arange(0, BE), pid % blocks_h * BM + tl.arange(0, BM)
    m_e, m_h = o_e < E, o_h < H
    b_i, b_j, m_i, m_j = _ends(target, source, o_e, E, N)
    b_acc = tl.zeros([BE, BM], dtype=ACC)
    for i_m in range(0, M, BK):
        o_m = i_m + tl.arange(0, BK)
        m_m = o_m < M
        b_g = tl.load(g_2 + o_e[:, None] * M + o_m[None, :], mask=m_e[:, None] & m_m[None, :], other=0.0)
        b_w = tl.load(weight2 + o_m[:, None] * H + o_h[None, :], mask=m_m[:, None] & m_h[None, :], other=0.0)
        b_acc = dot(b_g, b_w, b_acc, ALLOW_TF32)
    b_square = tl.load(square + o_e, mask=m_e, other=0.0)
    b_acc *= silu_grad(_first(nodes, edge, weight1, b_square, o_e, b_i, b_j, m_e, m_i, m_j, o_h, H, A, K))
    tl.store(g_1 + o_e[:, None] * H + o_h[None, :], b_acc, mask=m_e[:, None] & m_h[None, :])


@triton.jit
def egnn_message_bwd_kernel_difference(
    g_1, x, target, source, weight1, g_r, E, N, D, H, K, BE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g_r [E, D] += 2 <g_1, column of |r|^2> r."""
    o_e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    m_e = o_e < E
    b_i, b_j, m_i, m_j = _ends(target, source, o_e, E, N)
    b_s = tl.zeros([BE], dtype=ACC)
    for i_h in range(0, H, BC):
        o_h = i_h + tl.arange(0, BC)
        m_h = o_h < H
        b_g = tl.load(g_1 + o_e[:, None] * H + o_h[None, :], mask=m_e[:, None] & m_h[None, :], other=0.0)
        b_s += tl.sum(b_g * tl.load(weight1 + o_h * K, mask=m_h, other=0.0)[None, :], 1)
    for d in range(0, D):
        b_r = tl.load(x + b_i * D + d, mask=m_i, other=0.0) - tl.load(x + b_j * D + d, mask=m_j, other=0.0)
        p_r = g_r + o_e * D + d
        tl.store(p_r, tl.load(p_r, mask=m_e, other=0.0) + 2.0 * b_s * b_r, mask=m_e)


@triton.jit
def egnn_message_bwd_kernel_weight(
    g, y, nodes, square, edge, target, source, weight1, d_weight, d_bias, E, N, O, I, A, K, part_rows, blocks_i,
    FIRST: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """Part s of d_weight [S, O, I] = g [E, O]^T silu(y [E, I]), FIRST: y is the first layer, and of d_bias [S, O]."""
    i_block, i_s = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_i = i_block % blocks_i
    o_o = (i_block // blocks_i).to(tl.int64) * BM + tl.arange(0, BM)
    o_i = i_i.to(tl.int64) * BM + tl.arange(0, BM)
    m_o, m_w = o_o < O, o_i < I
    b_acc, b_sum = tl.zeros([BM, BM], dtype=ACC), tl.zeros([BM], dtype=ACC)
    for i_e in range(0, part_rows, BK):
        o_e = i_s * part_rows + i_e + tl.arange(0, BK)
        m_e = o_e < E
        b_g = tl.load(g + o_e[None, :] * O + o_o[:, None], mask=m_e[None, :] & m_o[:, None], other=0.0)
        b_sum += tl.sum(b_g, 1)
        if FIRST:
            b_i, b_j, m_i, m_j = _ends(target, source, o_e, E, N)
            b_square = tl.load(square + o_e, mask=m_e, other=0.0)
            b_y = _first(nodes, edge, weight1, b_square, o_e, b_i, b_j, m_e, m_i, m_j, o_i, I, A, K)
        else:
            b_y = tl.load(y + o_e[:, None] * I + o_i[None, :], mask=m_e[:, None] & m_w[None, :], other=0.0)
        b_acc = dot(b_g, silu(b_y), b_acc, ALLOW_TF32)
    tl.store(d_weight + (i_s * O + o_o[:, None]) * I + o_i[None, :], b_acc, mask=m_o[:, None] & m_w[None, :])
    if i_i == 0:
        tl.store(d_bias + i_s * O + o_o, b_sum, mask=m_o)
