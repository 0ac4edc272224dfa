"""What the kernels of cfconv and spline_conv share: the edges of consecutive nodes, their distances, sums at the nodes.

A program takes NB consecutive nodes and walks all their edges in blocks of BE, which are full whatever the degrees.
"""

from ..triton_common import tl, triton


@triton.jit
def span(ptr, i_n, N, E, NB: tl.constexpr):
    """First edge, and last + 1, of the nodes i_n..i_n + NB."""
    return tl.maximum(tl.load(ptr + i_n), 0), tl.minimum(tl.load(ptr + tl.minimum(i_n + NB, N)), E)


@triton.jit
def ends(neighbour, ptr, o_e, stop, i_n, N, NB: tl.constexpr):
    """Which of the nodes i_n..i_n + NB each of edges o_e [BE] belongs to, its neighbour, and whether that is a node."""
    b_j = tl.load(neighbour + o_e, mask=o_e < stop, other=-1)
    b_ptr = tl.load(ptr + tl.minimum(i_n + 1 + tl.arange(0, NB), N))
    b_i = i_n + tl.sum((o_e[:, None] >= b_ptr[None, :]).to(tl.int32), 1)
    return tl.minimum(b_i, tl.minimum(i_n + NB, N) - 1), b_j, (b_j >= 0) & (b_j < N)


@triton.jit
def geometry(pos, b_i, b_j, m_e):
    """The distances between nodes b_i and b_j [BE], and the components of r_i - r_j."""
    b_x = tl.load(pos + 3 * b_i, mask=m_e, other=0.0) - tl.load(pos + 3 * b_j, mask=m_e, other=0.0)
    b_y = tl.load(pos + 3 * b_i + 1, mask=m_e, other=0.0) - tl.load(pos + 3 * b_j + 1, mask=m_e, other=0.0)
    b_z = tl.load(pos + 3 * b_i + 2, mask=m_e, other=0.0) - tl.load(pos + 3 * b_j + 2, mask=m_e, other=0.0)
    return tl.sqrt(b_x * b_x + b_y * b_y + b_z * b_z), b_x, b_y, b_z


@triton.jit
def along(move, b_i, b_j, m_e, b_d, b_x, b_y, b_z):
    """The rates at which the distances change where the nodes move along `move` [N, 3], and the moves' differences."""
    b_u, u_x, u_y, u_z = geometry(move, b_i, b_j, m_e)
    return (u_x * b_x + u_y * b_y + u_z * b_z) / tl.where(b_d == 0, 1.0, b_d), u_x, u_y, u_z


@triton.jit
def cut(b_d, m_in, CUTOFF: tl.constexpr, ORDER: tl.constexpr):
    """The cutoff function's derivative of ORDER; zero where not m_in."""
    W: tl.constexpr = 3.141592653589793 / CUTOFF
    if ORDER == 0:
        b_c = 0.5 * (tl.cos(b_d * W) + 1.0)
    elif ORDER == 1:
        b_c = -0.5 * W * tl.sin(b_d * W)
    else:
        b_c = -0.5 * W * W * tl.cos(b_d * W)
    return tl.where(m_in, b_c, 0.0)


@triton.jit
def message(x, g, b_i, b_j, o_c, C, m, TO: tl.constexpr, FROM: tl.constexpr):
    """[BE, BC]: x_j g_i of the edges j -> i (TO), x_i g_j of their reverses (FROM), or the sum of both."""
    p_i, p_j = b_i[:, None] * C + o_c[None, :], b_j[:, None] * C + o_c[None, :]
    if TO:
        b_m = tl.load(g + p_i, mask=m, other=0.0) * tl.load(x + p_j, mask=m, other=0.0)
        if FROM:
            b_m += tl.load(x + p_i, mask=m, other=0.0) * tl.load(g + p_j, mask=m, other=0.0)
    else:
        b_m = tl.load(x + p_i, mask=m, other=0.0) * tl.load(g + p_j, mask=m, other=0.0)
    return b_m


@triton.jit
def deal(b_m, b_i, y, i_at, b_y, o_c, C):
    """Adds rows b_m [BE, BC] of edges, sorted by their nodes b_i, to the sums y [N, C] of these nodes.

    b_y [BC] is the sum so far of node i_at, the first; returns the last node and its sum so far, and stores the others.
    """
    i_last = tl.max(b_i, 0)
    for i_n in range(i_at, i_last + 1):
        b_y += tl.sum(tl.where((b_i == i_n)[:, None], b_m, 0.0), 0)
        m_done = tl.zeros_like(o_c) + i_n < i_last
        tl.store(y + i_n * C + o_c, b_y, mask=(o_c < C) & m_done)
        b_y = tl.where(m_done, 0.0, b_y)
    return i_last, b_y


@triton.jit
def finish(y, i_at, i_stop, b_y, o_c, C):
    """Stores the sum of node i_at, and zeros for the nodes after it, which have no edges."""
    for i_n in range(i_at, i_stop):
        tl.store(y + i_n * C + o_c, b_y, mask=o_c < C)
        b_y = tl.zeros_like(b_y)


@triton.jit
def pull(b_gd, b_gt, b_t, b_d, b_x, b_y, b_z, u_x, u_y, u_z, SECOND: tl.constexpr):
    """The gradient of r_i - r_j by components, from those of its length and, with SECOND, of the rate of that."""
    b_inverse = tl.where(b_d == 0, 0.0, 1.0 / tl.where(b_d == 0, 1.0, b_d))
    b_x, b_y, b_z = b_x * b_inverse, b_y * b_inverse, b_z * b_inverse
    g_x, g_y, g_z = b_gd * b_x, b_gd * b_y, b_gd * b_z
    if SECOND:
        b_gt *= b_inverse
        g_x += b_gt * (u_x - b_t * b_x)
        g_y += b_gt * (u_y - b_t * b_y)
        g_z += b_gt * (u_z - b_t * b_z)
    return g_x, g_y, g_z


@triton.jit
def at_nodes(b_v, b_i, o_n):
    """[NB]: the sums of b_v [BE] at nodes o_n."""
    return tl.sum(tl.where(b_i[:, None] == o_n[None, :], b_v[:, None], 0.0), 0)
