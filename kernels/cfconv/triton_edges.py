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
def outside(b_d, CUTOFF: tl.constexpr):
    """Whether a distance has reached the cutoff; Triton 3.6 rounds a plain number that is compared to float32."""
    return b_d >= tl.full(b_d.shape, CUTOFF, b_d.dtype)


@triton.jit
def _fma(a, C: tl.constexpr, b):
    """a C + b, rounded once; tl.fma of Triton 3.6 rounds a plain number to float32."""
    return tl.fma(a, tl.full(a.shape, C, a.dtype), b)


@triton.jit
def sin_cos(z):
    """Sine and cosine, off by a few eps of max(1, |z|), as z itself is.

    tl.sin in float64 calls a function where |z| is large, and what lives across a call is spilled.
    """
    b_k = tl.floor(z * 0.6366197723675814 + 0.5)  # quarter turns
    if z.dtype == tl.float64:
        r = _fma(b_k, -6.123233995736766e-17, _fma(b_k, -1.5707963267948966, z))
    else:
        r = _fma(b_k, 4.371139000186241e-08, _fma(b_k, -1.5707963705062866, z))
    w = r * r
    b_s = 1.0 / 6227020800.0 - w * (1.0 / 1307674368000.0)
    b_s = 1.0 / 120.0 - w * (1.0 / 5040.0 - w * (1.0 / 362880.0 - w * (1.0 / 39916800.0 - w * b_s)))
    b_s = r - r * w * (1.0 / 6.0 - w * b_s)
    b_c = 1.0 / 479001600.0 - w * (1.0 / 87178291200.0 - w * (1.0 / 20922789888000.0))
    b_c = 1.0 / 24.0 - w * (1.0 / 720.0 - w * (1.0 / 40320.0 - w * (1.0 / 3628800.0 - w * b_c)))
    b_c = 1.0 - w * (0.5 - w * b_c)
    b_q = b_k - 4.0 * tl.floor(b_k * 0.25)
    m_odd = (b_q == 1.0) | (b_q == 3.0)
    b_sin, b_cos = tl.where(m_odd, b_c, b_s), tl.where(m_odd, b_s, b_c)
    return tl.where(b_q >= 2.0, -b_sin, b_sin), tl.where((b_q == 1.0) | (b_q == 2.0), -b_cos, b_cos)


@triton.jit
def cut(b_d, m_in, CUTOFF: tl.constexpr):
    """The cutoff function and its first and second derivatives; zero where not m_in."""
    W: tl.constexpr = 3.141592653589793 / CUTOFF
    b_sin, b_cos = sin_cos(b_d * W)
    return (tl.where(m_in, 0.5 * (b_cos + 1.0), 0.0), tl.where(m_in, -0.5 * W * b_sin, 0.0),
            tl.where(m_in, -0.5 * W * W * b_cos, 0.0))


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
