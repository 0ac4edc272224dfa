"""vn_linear, vn_norm_stats, vn_leaky_relu: vector-neuron layers on rows [R, 3, C]; C is contiguous."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_tensors, define, fail, is_half, no_forward_mode, vjp
from . import reference, triton_kernels

_native = torch.ops.ace_fast_native
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.vn_linear(*a),
        backward=lambda *a: _native.vn_linear_bwd(*a[:-1], *a[-1]),
        stats=lambda *a: _native.vn_norm_stats(*a),
        stats_backward=lambda *a: _native.vn_norm_stats_bwd(*a),
        leaky_relu=lambda *a: _native.vn_leaky_relu(*a),
        leaky_relu_backward=lambda *a: _native.vn_leaky_relu_bwd(*a[:-1], *a[-1]),
    ),
    "triton": triton_kernels,
}


def check_rows(op: str, backend: str, p: Tensor, dims: int, **others: Tensor | None) -> None:
    """`p` and `others` (None skipped) are [..., 3, *] in one dtype; bfloat16 where a GPU or the reference computes."""
    check_tensors(op, p, half=is_half(op, "the first argument", p, backend), **others)
    for name, t in {"the first argument": p, **others}.items():
        if t is not None and (t.dim() != dims or t.shape[-2] != 3):
            fail(op, name, "[R, 3, C]" if dims == 3 else "[B, N, 3, C]", list(t.shape))


def check_vectors(op: str, p: Tensor, channels: int, **vectors: Tensor | None) -> None:
    """Statistics and weights [C] in p's dtype, float32 beside bfloat16."""
    dtype = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
    for name, v in vectors.items():
        if v is not None and (v.dtype != dtype or v.device != p.device or v.dim() != 1 or v.shape[0] != channels):
            fail(op, name, f"{dtype} [{channels}] on {p.device}", f"{v.dtype} {list(v.shape)} on {v.device}")


def check_slope(op: str, eps: float, slope: float) -> None:
    if not eps >= 0:
        fail(op, "eps", "at least 0", eps)
    if not slope == slope:
        fail(op, "slope", "a number", slope)


def _check_linear(op, x, weight, dense, bias, gamma, edge, backend, **rows) -> None:
    check_rows(op, backend, x, 3, **rows)
    inner = (2 if edge else 1) * x.shape[2]
    shapes = {"weight": (weight, (weight.shape[0] if weight.dim() else 0, inner))}
    o = shapes["weight"][1][0]
    shapes |= {"dense": (dense, (3 * o, 3 * inner)), "bias": (bias, (3 * o,)), "gamma": (gamma, ())}
    for name, (t, shape) in shapes.items():
        if t is not None and (t.shape != shape or t.dtype != x.dtype or t.device != x.device):
            fail(op, name, f"{x.dtype} {list(shape)} on {x.device}", f"{t.dtype} {list(t.shape)} on {t.device}")
    if dense is None and (bias is not None or gamma is not None):
        fail(op, "bias and gamma", "None where dense is None", "tensors")
    for name, t in rows.items():
        if t is not None and t.shape[2] != (2 if edge else 1) * o:
            fail(op, name, f"[R, 3, {(2 if edge else 1) * o}]", list(t.shape))


def _check_forward(x, weight, dense, bias, gamma, offset, edge, backend) -> None:
    _check_linear("vn_linear", x, weight, dense, bias, gamma, edge, backend, offset=offset)
    if offset is not None and (x.shape[0] % offset.shape[0] if offset.shape[0] else x.shape[0]):
        fail("vn_linear", "offset", f"[G, 3, O] with G a divisor of the {x.shape[0]} rows", list(offset.shape))


def _check_backward(g, x, weight, dense, bias, gamma, edge, needs, backend) -> None:
    op = "vn_linear_bwd"
    _check_linear(op, x, weight, dense, bias, gamma, edge, backend, g=g)
    if g.shape[0] != x.shape[0]:
        fail(op, "g", f"[{x.shape[0]}, 3, O]", list(g.shape))
    given = [True, True, dense is not None, bias is not None, gamma is not None]
    if len(needs) != 5 or any(need and not there for need, there in zip(needs, given, strict=True)):
        fail(op, "needs", "five bools (x, weight, dense, bias, gamma), False where None", list(needs))


def _width(weight: Tensor, edge: bool) -> int:
    return weight.shape[0] * (2 if edge else 1)


def _forward(*args):
    _check_forward(*args)
    return pick("vn_linear", BACKENDS, args[-1], args[0]).forward


def _forward_fake(*args):
    _check_forward(*args)
    return args[0].new_empty(args[0].shape[0], 3, _width(args[1], args[6]))


def _backward(*args):
    _check_backward(*args)
    return pick("vn_linear", BACKENDS, args[-1], args[0]).backward


def _backward_fake(*args):
    _check_backward(*args)
    needs = args[-2]
    return tuple(t.new_empty(t.shape if need else (0,)) if t is not None else args[0].new_empty(0)
                 for t, need in zip(args[1:6], needs, strict=True))


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])
    ctx.edge, ctx.backend = inputs[6:]
    ctx.groups = None if inputs[5] is None else inputs[5].shape[0]


def _forward_rule(ctx, g):
    needs = list(ctx.needs_input_grad[:5])
    grads = [None] * 5
    if any(needs):
        found = vn_linear_bwd(g, *ctx.saved_tensors, ctx.edge, needs, ctx.backend)
        grads = [x if need else None for x, need in zip(found, needs, strict=True)]
    offset = None
    if ctx.needs_input_grad[5]:
        offset = g.reshape(ctx.groups, -1, *g.shape[1:]).sum(1) if ctx.groups else g.new_zeros(0, *g.shape[1:])
    return *grads, offset, None, None


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6])
    ctx.edge, ctx.needs, _ = inputs[6:]


def _backward_rule(ctx, *cotangents):
    function = lambda *tensors: reference.backward(*tensors, ctx.edge, ctx.needs)  # noqa: E731
    return *vjp(function, list(ctx.saved_tensors), list(cotangents)), None, None, None


_MAP = "Tensor x, Tensor weight, Tensor? dense, Tensor? bias, Tensor? gamma"
vn_linear_op = define(
    f"vn_linear({_MAP}, Tensor? offset, bool edge, str backend) -> Tensor",
    _forward, _forward_fake, _setup, _forward_rule,
)
vn_linear_bwd = define(
    f"vn_linear_bwd(Tensor g, {_MAP}, bool edge, bool[] needs, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward, _backward_fake, _backward_setup, _backward_rule,
)


def _check_stats_bwd(g_mean, g_var, p, mean, backend) -> None:
    check_rows("vn_norm_stats_bwd", backend, p, 3)
    check_vectors("vn_norm_stats_bwd", p, p.shape[2], g_mean=g_mean, g_var=g_var, mean=mean)


def _stats(p, backend):
    check_rows("vn_norm_stats", backend, p, 3)
    return pick("vn_norm_stats", BACKENDS, backend, p).stats


def _stats_fake(p, backend):
    check_rows("vn_norm_stats", backend, p, 3)
    return stats_like(p, p.shape[2])


def stats_like(p: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    dtype = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
    return p.new_empty(channels, dtype=dtype), p.new_empty(channels, dtype=dtype)


def _stats_bwd(*args):
    _check_stats_bwd(*args)
    return pick("vn_norm_stats_bwd", BACKENDS, args[-1], args[2]).stats_backward


def _stats_bwd_fake(*args):
    _check_stats_bwd(*args)
    return args[2].new_empty(args[2].shape)


def _stats_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output[0])
    ctx.backend = inputs[1]


def _stats_rule(ctx, g_mean, g_var):
    p, mean = ctx.saved_tensors
    return vn_norm_stats_bwd(g_mean, g_var, p, mean, ctx.backend), None


def _stats_bwd_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])


def _stats_bwd_rule(ctx, g):
    return *vjp(reference.stats_backward, list(ctx.saved_tensors), [g]), None


vn_norm_stats_op = define(
    "vn_norm_stats(Tensor p, str backend) -> (Tensor, Tensor)", _stats, _stats_fake, _stats_setup, _stats_rule
)
vn_norm_stats_bwd = define(
    "vn_norm_stats_bwd(Tensor g_mean, Tensor g_var, Tensor p, Tensor mean, str backend) -> Tensor",
    _stats_bwd, _stats_bwd_fake, _stats_bwd_setup, _stats_bwd_rule,
)


def _check_relu(op, p, d, mean, var, weight, bias, eps, slope, backend, g=None) -> None:
    check_rows(op, backend, p, 3, d=d, g=g)
    C = p.shape[2]
    if d is not None and (d.shape[0] != p.shape[0] or d.shape[2] not in (C, 1)):
        fail(op, "d", f"[{p.shape[0]}, 3, {C} or 1]", list(d.shape))
    if g is not None and g.shape != p.shape:
        fail(op, "g", list(p.shape), list(g.shape))
    if any((t is None) != (mean is None) for t in (var, weight, bias)):
        fail(op, "mean, var, weight and bias", "all tensors or all None", "some of each")
    check_vectors(op, p, C, mean=mean, var=var, weight=weight, bias=bias)
    check_slope(op, eps, slope)


def _relu(*args):
    _check_relu("vn_leaky_relu", *args)
    return pick("vn_leaky_relu", BACKENDS, args[-1], args[0]).leaky_relu


def _relu_fake(*args):
    _check_relu("vn_leaky_relu", *args)
    return args[0].new_empty(args[0].shape)


def _check_relu_bwd(g, *args) -> None:
    *inputs, needs, backend = args
    _check_relu("vn_leaky_relu_bwd", *inputs, backend, g=g)
    if len(needs) != 6 or any(need and t is None for need, t in zip(needs, inputs, strict=False)):
        fail("vn_leaky_relu_bwd", "needs", "six bools (p, d, mean, var, weight, bias), False where None", list(needs))


def _relu_bwd(*args):
    _check_relu_bwd(*args)
    return pick("vn_leaky_relu_bwd", BACKENDS, args[-1], args[0]).leaky_relu_backward


def _relu_bwd_fake(*args):
    _check_relu_bwd(*args)
    return gradients_like(args[1:7], args[-2], args[0])


def gradients_like(inputs, needs, g: Tensor) -> tuple[Tensor, ...]:
    """What a `_bwd` returns: a gradient like each input that is asked for, an empty tensor for the others."""
    return tuple(t.new_empty(t.shape) if need else g.new_empty(0) for t, need in zip(inputs, needs, strict=True))


def _relu_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.constants, ctx.backend = inputs[6:8], inputs[8]


def _relu_rule(ctx, g):
    needs = list(ctx.needs_input_grad[:6])
    found = vn_leaky_relu_bwd(g, *ctx.saved_tensors, *ctx.constants, needs, ctx.backend)
    return *(x if need else None for x, need in zip(found, needs, strict=True)), None, None, None


def _relu_bwd_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7])
    ctx.constants = inputs[7:10]


def _relu_bwd_rule(ctx, *cotangents):
    function = lambda *tensors: reference.leaky_relu_backward(*tensors, *ctx.constants)  # noqa: E731
    return *vjp(function, list(ctx.saved_tensors), list(cotangents)), None, None, None, None


_NORM = "Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, float eps, float slope"
vn_leaky_relu_op = define(
    f"vn_leaky_relu(Tensor p, Tensor? d, {_NORM}, str backend) -> Tensor", _relu, _relu_fake, _relu_setup, _relu_rule
)
vn_leaky_relu_bwd = define(
    f"vn_leaky_relu_bwd(Tensor g, Tensor p, Tensor? d, {_NORM}, bool[] needs, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _relu_bwd, _relu_bwd_fake, _relu_bwd_setup, _relu_bwd_rule,
)


def rows_of(op: str, name: str, x: Tensor) -> Tensor:
    """[..., 3, C] -> [R, 3, C]; the tensor itself where it is that, since gradients through views add out of place."""
    if not isinstance(x, Tensor) or x.dim() < 2:
        fail(op, name, "a tensor [..., 3, C]", list(x.shape) if isinstance(x, Tensor) else repr(x))
    return x if x.dim() == 3 else x.reshape(-1, *x.shape[-2:])


def vn_linear(x: Tensor, weight: Tensor, dense: Tensor | None = None, bias: Tensor | None = None,
              gamma: Tensor | None = None, offset: Tensor | None = None, *, edge: bool = False,
              backend: str = "auto") -> Tensor:
    r"""Vector-neuron linear map with its unconstrained branch, folded into one matrix.

    .. math:: y = W x + \gamma\, (D\, \mathrm{vec}(x) + b) + \mathrm{offset}, \qquad
              M = W \otimes I_3 + \gamma D

    Args:
        x: [..., 3, C], float32 or float64, bfloat16 on a GPU.
        weight: W [O, C]; with `edge` [O, 2C], a map of the edge feature [x_j - x_i ; x_i].
        dense: D [3O, 3C] ([3O, 6C] with `edge`) on vec(x), where x, y and z of a channel stand side by side; or None.
        bias: b [3O], or None. gamma: 0-dim tensor, never read on the host; None stands for 1.
        offset: [G, 3, O] added to each of G equal groups of successive rows, e.g. a map of each cloud's mean; or None.
        edge: gives the part that a node contributes as neighbour and the part as centre, [..., 3, 2O]: the map of the
            edge feature is part 1 of j plus part 2 of i.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [..., 3, O], or [..., 3, 2O] with `edge`.

    Raises:
        ValueError: wrong shapes, dtypes or devices, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in all six tensors. Source: Vector Neurons (Deng et al. 2021), ACE (Manolache et al. 2025).

    Example:
        >>> ace_fast.functional.vn_linear(torch.randn(8, 100, 3, 21), torch.randn(42, 21)).shape
        torch.Size([8, 100, 3, 42])
    """
    no_forward_mode("vn_linear", x, weight, dense, bias, gamma, offset)
    y = vn_linear_op(rows_of("vn_linear", "x", x), weight, dense, bias, gamma, offset, edge, backend)
    return y if x.dim() == 3 else y.reshape(*x.shape[:-2], 3, y.shape[2])


def vn_norm_stats(p: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the norms |p| + 1e-6 over all rows, for the batch norm of vector neurons.

    Args:
        p: [..., 3, C], float32 or float64, bfloat16 on a GPU.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        mean [C], var [C]; zeros where there are no rows. Those of several devices combine with their counts.

    Raises:
        ValueError: wrong shapes or dtypes, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order; at p = 0 that of the norm is 0. Source: Vector Neurons (Deng et al. 2021), VNBatchNorm.

    Example:
        >>> mean, var = ace_fast.functional.vn_norm_stats(torch.randn(8, 100, 3, 21))
    """
    no_forward_mode("vn_norm_stats", p)
    return vn_norm_stats_op(rows_of("vn_norm_stats", "p", p), backend)


def vn_leaky_relu(p: Tensor, d: Tensor | None, mean: Tensor | None = None, var: Tensor | None = None,
                  weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5, slope: float = 0.2,
                  backend: str = "auto") -> Tensor:
    r"""Batch norm of the norms, then the vector leaky ReLU along directions d.

    .. math:: q = \frac{\mathrm{BN}(r)}{r}\, p, \; r = |p| + 10^{-6}; \qquad
              y = q \;\text{if}\; \langle q, d\rangle \ge 0, \;\text{else}\;
              q - (1 - \mathrm{slope}) \frac{\langle q, d\rangle}{|d|^2 + 10^{-6}} d

    Args:
        p: features [..., 3, C], float32 or float64, bfloat16 on a GPU.
        d: directions [..., 3, C], shared by the channels [..., 3, 1], or None for no nonlinearity.
        mean, var, weight, bias: [C] of the batch norm, all None for none; float32 beside bfloat16.
        eps: added to the variance. slope: of the part against d.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [..., 3, C].

    Raises:
        ValueError: wrong shapes, dtypes or devices, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order. Source: Vector Neurons (Deng et al. 2021), VNBatchNorm and VNLeakyReLU.

    Example:
        >>> p, d = torch.randn(2, 8, 100, 3, 21)
        >>> ace_fast.functional.vn_leaky_relu(p, d).shape
        torch.Size([8, 100, 3, 21])
    """
    op = "vn_leaky_relu"
    no_forward_mode(op, p, d, mean, var, weight, bias)
    flat_d = None if d is None else rows_of(op, "d", d)
    y = vn_leaky_relu_op(rows_of(op, "p", p), flat_d, mean, var, weight, bias, eps, slope, backend)
    return y if p.dim() == 3 else y.reshape(p.shape)
