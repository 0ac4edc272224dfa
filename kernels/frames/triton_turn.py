"""What the kernels of frames share: vectors as tuples, random axes, and features of degrees 0 to 3 turned by matrices.

A matrix is a tuple of nine, row by row; a symmetric one xx, xy, xz, yy, yz, zz; one of rank 3 its three slices. turn.h
says how degrees are tensors.
"""

from ..triton_common import tl, triton

HALF: tl.constexpr = tl.constexpr(0.70710678118654752440)  # square roots of 1/2, 1/6, 3/20, 4/15, 1/60, 1/10 and 2/5
SIXTH: tl.constexpr = tl.constexpr(0.40824829046386301637)
B3: tl.constexpr = tl.constexpr(0.38729833462074168852)
C3: tl.constexpr = tl.constexpr(0.51639777949432225157)
D3: tl.constexpr = tl.constexpr(0.12909944487358056284)
E3: tl.constexpr = tl.constexpr(0.31622776601683793320)
F3: tl.constexpr = tl.constexpr(0.63245553203367586640)
TURN: tl.constexpr = tl.constexpr(6.283185307179586)  # as a local variable it would be float32


@triton.jit
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@triton.jit
def times(s, a):
    return s * a[0], s * a[1], s * a[2]


@triton.jit
def plus(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def where(m, a, b):
    return tl.where(m, a[0], b[0]), tl.where(m, a[1], b[1]), tl.where(m, a[2], b[2])


@triton.jit
def combine(x, a, b, c):
    return plus(plus(times(x[0], a), times(x[1], b)), times(x[2], c))


@triton.jit
def load3(p, step, mask):
    b_x = tl.load(p, mask=mask, other=0.0)
    return b_x, tl.load(p + step, mask=mask, other=0.0), tl.load(p + 2 * step, mask=mask, other=0.0)


@triton.jit
def store3(p, v, step, mask):
    tl.store(p, v[0], mask=mask)
    tl.store(p + step, v[1], mask=mask)
    tl.store(p + 2 * step, v[2], mask=mask)


@triton.jit
def words(seed, row, STREAM: tl.constexpr):
    """Philox's four words of each row; see philox.py."""
    b_low, b_high = (row & 0xFFFFFFFF).to(tl.uint32), (row >> 32).to(tl.uint32)
    return tl.philox(seed, b_low, b_high, b_high * 0 + STREAM, b_high * 0)


@triton.jit
def uniform(word, ACC: tl.constexpr):
    return (word >> 8).to(ACC) * 5.9604644775390625e-08


@triton.jit
def random_axes(word, ACC: tl.constexpr):
    """Columns of a Haar-distributed rotation, and a random sign."""
    b_u, b_v, b_w = uniform(word[0], ACC), uniform(word[1], ACC) * TURN, uniform(word[2], ACC) * TURN
    b_a, b_b = tl.sqrt(1.0 - b_u), tl.sqrt(b_u)
    x, y, z, r = b_a * tl.sin(b_v), b_a * tl.cos(b_v), b_b * tl.sin(b_w), b_b * tl.cos(b_w)
    a = (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + z * r), 2.0 * (x * z - y * r))
    b = (2.0 * (x * y - z * r), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + x * r))
    c = (2.0 * (x * z + y * r), 2.0 * (y * z - x * r), 1.0 - 2.0 * (x * x + y * y))
    return a, b, c, 1.0 - 2.0 * (word[3] >> 31).to(ACC)


@triton.jit
def times_vector(r, v):
    return (r[0] * v[0] + r[1] * v[1] + r[2] * v[2], r[3] * v[0] + r[4] * v[1] + r[5] * v[2],
            r[6] * v[0] + r[7] * v[1] + r[8] * v[2])


@triton.jit
def half_turned(r, s):
    """R S, nine."""
    return (r[0] * s[0] + r[1] * s[1] + r[2] * s[2], r[0] * s[1] + r[1] * s[3] + r[2] * s[4],
            r[0] * s[2] + r[1] * s[4] + r[2] * s[5], r[3] * s[0] + r[4] * s[1] + r[5] * s[2],
            r[3] * s[1] + r[4] * s[3] + r[5] * s[4], r[3] * s[2] + r[4] * s[4] + r[5] * s[5],
            r[6] * s[0] + r[7] * s[1] + r[8] * s[2], r[6] * s[1] + r[7] * s[3] + r[8] * s[4],
            r[6] * s[2] + r[7] * s[4] + r[8] * s[5])


@triton.jit
def turned(r, s):
    """R S R^T, six."""
    w = half_turned(r, s)
    return (w[0] * r[0] + w[1] * r[1] + w[2] * r[2], w[0] * r[3] + w[1] * r[4] + w[2] * r[5],
            w[0] * r[6] + w[1] * r[7] + w[2] * r[8], w[3] * r[3] + w[4] * r[4] + w[5] * r[5],
            w[3] * r[6] + w[4] * r[7] + w[5] * r[8], w[6] * r[6] + w[7] * r[7] + w[8] * r[8])


@triton.jit
def spread2(v):
    return (-SIXTH * v[2] - HALF * v[4], HALF * v[1], HALF * v[0], 2.0 * SIXTH * v[2], HALF * v[3],
            HALF * v[4] - SIXTH * v[2])


@triton.jit
def turned2(r, v):
    s = turned(r, spread2(v))
    return (2.0 * HALF * s[2], 2.0 * HALF * s[1], SIXTH * (2.0 * s[3] - s[0] - s[5]), 2.0 * HALF * s[4],
            HALF * (s[5] - s[0]))


@triton.jit
def spread3(v):
    xxy, xxz = -E3 * v[3] - SIXTH * v[5], -D3 * v[4] - 0.5 * v[6]
    xyz, xzz = SIXTH * v[1], 0.5 * v[0] - D3 * v[2]
    yyz, yzz = C3 * v[4], SIXTH * v[5] - E3 * v[3]
    x = (-0.5 * v[0] - B3 * v[2], xxy, xxz, C3 * v[2], xyz, xzz)
    return x, (xxy, C3 * v[2], xyz, F3 * v[3], yyz, yzz), (xxz, xyz, xzz, yyz, yzz, 0.5 * v[6] - B3 * v[4])


@triton.jit
def turned3(r, v):
    s = spread3(v)
    x, y, z = turned(r, s[0]), turned(r, s[1]), turned(r, s[2])
    xxx = r[0] * x[0] + r[1] * y[0] + r[2] * z[0]
    xxy = r[0] * x[1] + r[1] * y[1] + r[2] * z[1]
    xxz = r[0] * x[2] + r[1] * y[2] + r[2] * z[2]
    xyy = r[0] * x[3] + r[1] * y[3] + r[2] * z[3]
    xyz = r[0] * x[4] + r[1] * y[4] + r[2] * z[4]
    xzz = r[0] * x[5] + r[1] * y[5] + r[2] * z[5]
    yyy = r[3] * x[3] + r[4] * y[3] + r[5] * z[3]
    yyz = r[3] * x[4] + r[4] * y[4] + r[5] * z[4]
    yzz = r[3] * x[5] + r[4] * y[5] + r[5] * z[5]
    zzz = r[6] * x[5] + r[7] * y[5] + r[8] * z[5]
    return (1.5 * xzz - 0.5 * xxx, 6.0 * SIXTH * xyz, 3.0 * C3 * xyy - B3 * xxx - 3.0 * D3 * xzz,
            F3 * yyy - 3.0 * E3 * (xxy + yzz), 3.0 * C3 * yyz - 3.0 * D3 * xxz - B3 * zzz,
            3.0 * SIXTH * (yzz - xxy), 0.5 * zzz - 1.5 * xxz)


@triton.jit
def inner(s, t):
    return s[0] * t[0] + s[3] * t[3] + s[5] * t[5] + 2.0 * (s[1] * t[1] + s[2] * t[2] + s[4] * t[4])


@triton.jit
def outer(g, v):
    """The gradient of <g, R v>, nine."""
    return (g[0] * v[0], g[0] * v[1], g[0] * v[2], g[1] * v[0], g[1] * v[1], g[1] * v[2], g[2] * v[0], g[2] * v[1],
            g[2] * v[2])


@triton.jit
def outer2(r, g, v):
    """The gradient of <g, D(R) v> of degree 2."""
    w, t = half_turned(r, spread2(v)), spread2(g)
    return (2.0 * (t[0] * w[0] + t[1] * w[3] + t[2] * w[6]), 2.0 * (t[0] * w[1] + t[1] * w[4] + t[2] * w[7]),
            2.0 * (t[0] * w[2] + t[1] * w[5] + t[2] * w[8]), 2.0 * (t[1] * w[0] + t[3] * w[3] + t[4] * w[6]),
            2.0 * (t[1] * w[1] + t[3] * w[4] + t[4] * w[7]), 2.0 * (t[1] * w[2] + t[3] * w[5] + t[4] * w[8]),
            2.0 * (t[2] * w[0] + t[4] * w[3] + t[5] * w[6]), 2.0 * (t[2] * w[1] + t[4] * w[4] + t[5] * w[7]),
            2.0 * (t[2] * w[2] + t[4] * w[5] + t[5] * w[8]))


@triton.jit
def outer3(r, g, v):
    """The gradient of <g, D(R) v> of degree 3."""
    s, t = spread3(v), spread3(g)
    x, y, z = turned(r, s[0]), turned(r, s[1]), turned(r, s[2])
    return (3.0 * inner(t[0], x), 3.0 * inner(t[0], y), 3.0 * inner(t[0], z), 3.0 * inner(t[1], x),
            3.0 * inner(t[1], y), 3.0 * inner(t[1], z), 3.0 * inner(t[2], x), 3.0 * inner(t[2], y),
            3.0 * inner(t[2], z))
