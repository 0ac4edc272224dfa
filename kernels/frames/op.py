"""frames, which has no derivative, and frame_concat: what a predicted frame turns, beside the features of its set."""

import math
from types import SimpleNamespace

import torch
from e3nn import o3
from torch import Tensor

from ...backend import pick
from ..define import (
    check_constant,
    check_int64,
    check_ptr,
    check_tensors,
    define,
    fail,
    longest_segment,
    mask,
    no_forward_mode,
    vjp,
)
from ..philox import seeds
from . import reference, triton_kernels

DEGREES = 3
_OP, _CONCAT = "frames", "frame_concat"
_native = torch.ops.ace_fast_native
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.frames(*a),
        concat=lambda *a: _native.frame_concat(*a),
        concat_backward=lambda *a: _native.frame_concat_bwd(*a[:-1], mask(a[-1])),
    ),
    "triton": triton_kernels,
}


def _check_tolerance(op: str, tolerance: float) -> None:
    if not 0 <= tolerance < 1:
        fail(op, "tolerance", "in [0, 1)", tolerance)


def _check(pos: Tensor, weight: Tensor | None, ptr: Tensor, seed: Tensor | None, centred: bool,
           tolerance: float) -> None:
    check_tensors(_OP, pos, weight=weight)
    if pos.dim() != 2 or pos.shape[1] != 3:
        fail(_OP, "pos", "[N, 3]", list(pos.shape))
    if weight is not None and list(weight.shape) != [pos.shape[0]]:
        fail(_OP, "weight", f"[{pos.shape[0]}], one for each row of pos", list(weight.shape))
    check_ptr(_OP, pos.device, ptr)
    if seed is not None:
        check_int64(_OP, pos.device, "[1]", seed=seed)
        if seed.shape[0] != 1:
            fail(_OP, "seed", "[1]", list(seed.shape))
    _check_tolerance(_OP, tolerance)


def _forward(*args):
    _check(*args[:-1])
    return pick(_OP, BACKENDS, args[-1], args[0]).forward


def _fake(*args):
    _check(*args[:-1])
    sets = args[2].shape[0] - 1
    return tuple(args[0].new_empty(shape) for shape in ((sets, 3), (sets, 3), (sets, 3, 3)))


def _check_frames(op: str, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor, seed: Tensor,
                  tolerance: float) -> None:
    check_ptr(op, v.device, ptr)
    check_int64(op, v.device, "[P, 3]", channels=channels)
    check_int64(op, v.device, "[K]", seed=seed)
    sets = ptr.shape[0] - 1
    if vectors.dim() != 3 or vectors.shape[0] != sets or vectors.shape[1] < 1 or vectors.shape[2] != 3:
        fail(op, "vectors", f"[{sets}, n, 3] with n at least 1, for each set of ptr", list(vectors.shape))
    if v.dim() != 2 or v.shape[0] != sets:
        fail(op, "v", f"[{sets}, D], a row for each set of ptr", list(v.shape))
    if channels.shape[1] != 3:
        fail(op, "channels", "[P, 3]", list(channels.shape), "take frame_channels(irreps)")
    _check_tolerance(op, tolerance)


def _check_concat(x: Tensor, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor, seed: Tensor, improper: bool,
                  tolerance: float) -> None:
    check_tensors(_CONCAT, x, v=v, vectors=vectors)
    if x.dim() != 2:
        fail(_CONCAT, "x", "[N, C]", list(x.shape))
    _check_frames(_CONCAT, v, vectors, ptr, channels, seed, tolerance)


def _check_concat_bwd(g: Tensor, g_frames: Tensor, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor,
                      seed: Tensor, improper: bool, tolerance: float, needs: list[bool]) -> None:
    op = "frame_concat_bwd"
    check_tensors(op, g, g_frames=g_frames, v=v, vectors=vectors)
    _check_frames(op, v, vectors, ptr, channels, seed, tolerance)
    draws, sets = seed.shape[0], ptr.shape[0] - 1
    if g.dim() != 3 or g.shape[0] != draws or g.shape[2] != v.shape[1]:
        fail(op, "g", f"[{draws}, N, {v.shape[1]}]", list(g.shape))
    if list(g_frames.shape) != [draws, sets, 3, 3]:
        fail(op, "g_frames", f"[{draws}, {sets}, 3, 3]", list(g_frames.shape))
    if len(needs) != 2:
        fail(op, "needs", "a bool for v and one for vectors", list(needs))


def _concat(*args):
    _check_concat(*args[:-1])
    return pick(_CONCAT, BACKENDS, args[-1], args[0]).concat


def _concat_fake(x, v, vectors, ptr, channels, seed, improper, tolerance, backend):
    _check_concat(x, v, vectors, ptr, channels, seed, improper, tolerance)
    draws = seed.shape[0]
    return (x.new_empty(draws, x.shape[0], x.shape[1] + v.shape[1]),
            x.new_empty(draws, ptr.shape[0] - 1, 3, 3))


def _concat_bwd(*args):
    _check_concat_bwd(*args[:-1])
    return pick("frame_concat_bwd", BACKENDS, args[-1], args[0]).concat_backward


def _concat_bwd_fake(*args):
    _check_concat_bwd(*args[:-1])
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(args[2:4], args[-2], strict=True))


def _concat_setup(ctx, inputs, output):
    x, *tensors, ctx.improper, ctx.tolerance, ctx.backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.width = x.shape[1]


def _concat_rule(ctx, g, g_frames):
    needs = list(ctx.needs_input_grad[1:3])
    found = (None, None)
    if any(needs):
        found = frame_concat_bwd(g[..., ctx.width:], g_frames, *ctx.saved_tensors, ctx.improper, ctx.tolerance, needs,
                                 ctx.backend)
    g_x = g[..., :ctx.width].sum(0) if ctx.needs_input_grad[0] else None
    return g_x, *(t if need else None for t, need in zip(found, needs, strict=True)), *(None,) * 6


def _concat_bwd_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    *tensors, ctx.improper, ctx.tolerance, ctx.needs, _ = inputs
    ctx.save_for_backward(*tensors)


def _concat_bwd_rule(ctx, *cotangents):
    leaves, fixed = ctx.saved_tensors[:4], ctx.saved_tensors[4:]

    def gradients(*leaves):
        return reference.concat_backward(*leaves, *fixed, ctx.improper, ctx.tolerance, ctx.needs)

    return *vjp(gradients, list(leaves), list(cotangents)), *(None,) * 7


frames_op = define(
    f"{_OP}(Tensor pos, Tensor? weight, Tensor ptr, Tensor? seed, bool centred, float tolerance, str backend)"
    " -> (Tensor, Tensor, Tensor)", _forward, _fake)
_INPUTS = "Tensor v, Tensor vectors, Tensor ptr, Tensor channels, Tensor seed, bool improper, float tolerance"
frame_concat_op = define(f"{_CONCAT}(Tensor x, {_INPUTS}, str backend) -> (Tensor, Tensor)", _concat, _concat_fake,
                         _concat_setup, _concat_rule)
frame_concat_bwd = define(
    f"frame_concat_bwd(Tensor g, Tensor g_frames, {_INPUTS}, bool[] needs, str backend) -> (Tensor, Tensor)",
    _concat_bwd, _concat_bwd_fake, _concat_bwd_setup, _concat_bwd_rule)


def frames(pos: Tensor, ptr: Tensor | None = None, *, weight: Tensor | None = None, seed: int | Tensor | None = None,
           centred: bool = True, tolerance: float | None = None, validate: bool = True,
           backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    r"""Centroid, principal moments and principal axes of each set of points.

    .. math:: c = \frac{\sum_n w_n x_n}{\sum_n w_n}, \qquad
              \frac{\sum_n w_n (x_n - c)(x_n - c)^T}{\sum_n w_n} = V \,\mathrm{diag}(\lambda)\, V^T

    by Jacobi's rotations, which are accurate where moments are close to each other or zero. Axes are the columns of V:
    the largest component of the first two is positive, the third makes them right-handed. Moments that are the same
    leave their axes open: with a seed, those are a uniformly random basis of what they span, so that the axes of turned
    points are distributed as the turned axes (points on a line: a random turn about it; one point: a random rotation).

    Args:
        pos: [N, 3] float32 or float64, the points of all sets one after the other. A constant: axes are not
            differentiated, as frame averaging has it.
        ptr: [B + 1] int64, set b has the rows ptr[b] to ptr[b + 1] - 1; None for one set.
        weight: w [N], not negative; None for ones.
        seed: of the random bases, drawn by Philox from (seed, set); int64 [1] on the device costs no copy. None: open
            axes are left to rounding.
        centred: False takes moments about the origin, and centroids are zero.
        tolerance: moments are the same whose difference is at most this part of the largest; the square root of the
            dtype's epsilon by default, beyond which axes would have half of its digits. Also those that rounding leaves
            of n coincident points, ((n + 16) eps |c|)^2 at most.
        validate: False leaves ptr unread by the host; the kernels never read outside of pos.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        centroid [B, 3], moments [B, 3] ascending (in the square of pos's unit), axes [B, 3, 3]. A set with a NaN or an
        infinity has NaN, the others do not feel it; sets without points have zeros, and axes as those of one point.

    Raises:
        ValueError: wrong shapes or dtypes, a tensor that requires grad, a tolerance outside of [0, 1), a ptr that does
            not fit, a backend that cannot run here.

    Source: the frames of Puny et al., "Frame Averaging for Invariant and Equivariant Network Design" (2022), section 3.

    Example:
        >>> centroid, moments, axes = frames(torch.tensor([[0.0, 0, 0], [2, 0, 0], [1, 0.5, 0]]))
        >>> moments
        tensor([[0.0000, 0.0556, 0.6667]])
    """
    for name, x in (("pos", pos), ("weight", weight)):
        if not isinstance(x, Tensor) and (x is not None or name == "pos"):
            fail(_OP, name, "a tensor", type(x).__name__, "use torch.as_tensor(...)")
    no_forward_mode(_OP, pos, weight)
    check_constant(_OP, pos=pos, weight=weight)
    if ptr is None:
        ptr = torch.arange(2, device=pos.device) * pos.shape[0]  # torch.tensor would wait for the device
    elif validate:
        longest_segment(_OP, ptr, pos.shape[0])
    if tolerance is None:
        tolerance = math.sqrt(torch.finfo(pos.dtype).eps) if pos.is_floating_point() else 0.0
    seed = None if seed is None else seeds(_OP, seed, pos.device)
    return frames_op(pos, weight, ptr, seed, centred, float(tolerance), backend)


def frame_channels(irreps: o3.Irreps | str) -> Tensor:
    """[P, 3] int64, for each channel its offset, its degree, and 1 where its parity is not (-1)^l; for `frame_concat`.

    Raises:
        ValueError: a degree above 3.

    Example:
        >>> frame_channels("1x0e + 2x1o + 1x1e")
        tensor([[0, 0, 0],
                [1, 1, 0],
                [4, 1, 0],
                [7, 1, 1]])
    """
    irreps = o3.Irreps(irreps)
    if any(ir.l > DEGREES for _, ir in irreps):
        fail(_CONCAT, "irreps", f"of degree {DEGREES} or less", str(irreps))
    rows, at = [], 0
    for mul, ir in irreps:
        rows += [(at + n * ir.dim, ir.l, int(ir.p != (-1) ** ir.l)) for n in range(mul)]
        at += mul * ir.dim
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def frame_concat(x: Tensor, v: Tensor, vectors: Tensor, ptr: Tensor, channels: Tensor, seed: int | Tensor, *,
                 improper: bool = False, tolerance: float = 1e-4, validate: bool = True,
                 backend: str = "auto") -> tuple[Tensor, Tensor]:
    r"""Turns v by a frame of each set's predicted vectors, and puts it beside the features of the set's rows.

    .. math:: R_b = \mathrm{GS}(u_{b1}, \ldots, u_{bn}, h_1, h_2, h_3), \qquad z_r = x_r \oplus D(R_b)\, v_b

    GS is Gram-Schmidt over the first independent ones among the predicted vectors u and, after them, the axes h of a
    random rotation (improper: of a random element of O(3)). Where the vectors leave nothing open, R is theirs; where
    they leave a turn about their only direction, a reflection at their plane, or everything, R is uniform among what is
    left. So R of turned vectors is distributed as the turned R, exactly. A vector is independent where its part across
    those before is longer than `tolerance` times the longest, or than `tolerance` if that is shorter than 1.

    Args:
        x: [N, C] float32 or float64; C may be 0.
        v: [D] or [B, D], irreps in e3nn's layout and basis.
        vectors: u [B, n, 3], polar vectors, n at least 1: two decide a rotation, three an element of O(3).
        ptr: [B + 1] int64, set b has the rows ptr[b] to ptr[b + 1] - 1 of x.
        channels: [P, 3] int64 of v's irreps, degrees 0 to 3: `frame_channels(irreps)`, on the device of x.
        seed: of the draw, by Philox from (seed, set); int64 [K] for K draws at a time.
        improper: whether R is in O(3), else right-handed.
        tolerance: in [0, 1), see above.
        validate: False leaves ptr and channels unread by the host; the kernels never read outside.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        z [K, N, C + D] and R [K, B, 3, 3], whose columns are the axes; K = 1 for a number. A set whose vectors are not
        finite has NaN. Derivatives of any order in x, v and vectors; where R was drawn, of what was not.

    Raises:
        ValueError: wrong shapes or dtypes, a ptr that does not fit, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Source: Lawrence et al., "Improving Equivariant Networks with Probabilistic Symmetry Breaking" (2025), Algorithm 1;
        Gram-Schmidt as in Kaba et al., "Equivariance with Learned Canonicalization Functions" (2023).

    Example:
        >>> u = torch.tensor([[[0.0, 2, 0], [0, 1, 1]]])
        >>> z, R = frame_concat(torch.ones(2, 1), torch.tensor([1.0, 0, 0]), u, torch.tensor([0, 2]),
        ...                     frame_channels("1o"), seed=0)
        >>> z
        tensor([[[1., 0., 1., 0.],
                 [1., 0., 1., 0.]]])
    """
    for name, t in (("x", x), ("v", v), ("vectors", vectors), ("ptr", ptr), ("channels", channels)):
        if not isinstance(t, Tensor):
            fail(_CONCAT, name, "a tensor", type(t).__name__, "use torch.as_tensor(...)")
    no_forward_mode(_CONCAT, x, v, vectors)
    if validate:
        longest_segment(_CONCAT, ptr, x.shape[0])
        width = int((2 * channels[:, 1] + 1).sum()) if channels.dim() == 2 and channels.shape[1] == 3 else v.shape[-1]
        if v.shape[-1] != width:
            fail(_CONCAT, "v", f"{width} numbers, those of channels", v.shape[-1], "take frame_channels of its irreps")
    if v.dim() == 1:
        v = v.expand(ptr.shape[0] - 1, -1)
    seed = seeds(_CONCAT, seed, x.device)
    return frame_concat_op(x, v, vectors, ptr, channels, seed, improper, float(tolerance), backend)
