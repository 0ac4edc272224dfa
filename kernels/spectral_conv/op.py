"""spectral_conv: a convolution along time by a few Fourier modes, in real arithmetic; time_conv: with its epilogue."""

import math

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_tensors, define, fail, no_forward_mode
from ..multilinear import second_derivative
from . import cpu, reference, triton_kernels
from .reference import scale

BACKENDS = {"reference": reference, "cpu": cpu, "triton": triton_kernels}


def _check(op: str, x: Tensor, weight: Tensor, g: Tensor | None = None) -> None:
    """Shapes, dtypes, devices and the number of modes; `g` has the shape of the output."""
    check_tensors(op, x, weight=weight, g=g)
    if x.dim() != 3 or x.shape[0] < 1:
        fail(op, "x", "[T, N, I] with at least one time step", list(x.shape))
    times, n, i = x.shape
    if weight.dim() != 4 or weight.shape[0] != i or weight.shape[2] < 1 or weight.shape[3] != 2:
        fail(op, "weight", f"[{i}, O, M, 2], real and imaginary part of at least one mode", list(weight.shape))
    if weight.shape[2] > times // 2 + 1:
        fail(op, "weight", f"of at most {times // 2 + 1} modes for T = {times} time steps", f"{weight.shape[2]} modes",
             "keep fewer modes or give more time steps")
    if g is not None and g.shape != (times, n, weight.shape[1]):
        fail(op, "g", f"[{times}, {n}, {weight.shape[1]}]", list(g.shape))


def _check_time(op: str, x: Tensor, weight: Tensor, slope: float, g: Tensor | None = None,
                positive: Tensor | None = None) -> None:
    _check(op, x, weight, g)
    if weight.shape[0] != weight.shape[1]:
        fail(op, "weight", f"[{x.shape[2]}, {x.shape[2]}, M, 2]", list(weight.shape), "x is added to the result")
    if not math.isfinite(slope):
        fail(op, "negative_slope", "finite", slope)
    if positive is not None and (positive.dtype != torch.bool or positive.shape != x.shape
                                 or positive.device != x.device):
        fail(op, "positive", f"torch.bool {list(x.shape)} on {x.device}",
             f"{positive.dtype} {list(positive.shape)} on {positive.device}")


def _check_needs(op: str, needs) -> None:
    if len(needs) != 2:
        fail(op, "needs", "two bools: x, weight", len(needs))


def _gradients_like(x: Tensor, weight: Tensor, needs) -> tuple[Tensor, Tensor]:
    return tuple(t.new_empty(t.shape if need else (0,)) for t, need in zip((x, weight), needs, strict=True))


def _forward(x, weight, backend):
    _check("spectral_conv", x, weight)
    return pick("spectral_conv", BACKENDS, backend, x).forward


def _forward_fake(x, weight, backend):
    _check("spectral_conv", x, weight)
    return x.new_empty(*x.shape[:2], weight.shape[1])


def _backward(g, x, weight, needs, backend):
    _check("spectral_conv_bwd", x, weight, g)
    _check_needs("spectral_conv_bwd", needs)
    return pick("spectral_conv_bwd", BACKENDS, backend, x).backward


def _backward_fake(g, x, weight, needs, backend):
    _check("spectral_conv_bwd", x, weight, g)
    _check_needs("spectral_conv_bwd", needs)
    return _gradients_like(x, weight, needs)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.backend = inputs[2]


def _forward_rule(ctx, g):
    needs = list(ctx.needs_input_grad[:2])
    grads = spectral_conv_bwd(g, *ctx.saved_tensors, needs, ctx.backend)
    return *(x if need else None for x, need in zip(grads, needs, strict=True)), None


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3])
    ctx.given, ctx.backend = inputs[3], inputs[4]


def _second(g, x, weight, cotangents, given, needs, backend) -> list[Tensor | None]:
    """Gradients of sum <cotangent, gradient> with respect to (g, x, weight), differentiable again."""
    return second_derivative(
        (x, weight), [c if need else None for c, need in zip(cotangents, given, strict=True)], needs,
        lambda slot, operands: spectral_conv_op(*operands, backend),
        lambda slot, operands, wanted: spectral_conv_bwd(g, *operands, wanted, backend),
    )


def _backward_rule(ctx, *cotangents):
    found = _second(*ctx.saved_tensors, cotangents, ctx.given, ctx.needs_input_grad[:3], ctx.backend)
    return *found, None, None


def _time(x, weight, slope, backend):
    _check_time("time_conv", x, weight, slope)
    return pick("time_conv", BACKENDS, backend, x).time_forward


def _time_fake(x, weight, slope, backend):
    _check_time("time_conv", x, weight, slope)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.bool)


def _time_backward(g, positive, x, weight, slope, needs, backend):
    _check_time("time_conv_bwd", x, weight, slope, g, positive)
    _check_needs("time_conv_bwd", needs)
    return pick("time_conv_bwd", BACKENDS, backend, x).time_backward


def _time_backward_fake(g, positive, x, weight, slope, needs, backend):
    _check_time("time_conv_bwd", x, weight, slope, g, positive)
    _check_needs("time_conv_bwd", needs)
    return _gradients_like(x, weight, needs)


def _time_setup(ctx, inputs, output):
    ctx.save_for_backward(output[1], *inputs[:2])
    ctx.slope, ctx.backend = inputs[2:]


def _time_rule(ctx, g, _):
    needs = list(ctx.needs_input_grad[:2])
    grads = time_conv_bwd(g, *ctx.saved_tensors, ctx.slope, needs, ctx.backend)
    return *(x if need else None for x, need in zip(grads, needs, strict=True)), None, None


def _time_backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])
    ctx.slope, ctx.given, ctx.backend = inputs[4:]


def _time_backward_rule(ctx, *cotangents):
    """time_conv_bwd is spectral_conv_bwd at D g, plus g; the slopes D are constant almost everywhere."""
    g, positive, x, weight = ctx.saved_tensors
    need_g, _, *needs = ctx.needs_input_grad[:4]
    sloped = scale(g, positive, ctx.slope)
    g_g, *found = _second(sloped, x, weight, cotangents, ctx.given, [need_g, *needs], ctx.backend)
    if g_g is not None:
        g_g = scale(g_g, positive, ctx.slope)
        if cotangents[0] is not None and ctx.given[0]:
            g_g = cotangents[0] + g_g
    return g_g, None, *found, None, None, None


spectral_conv_op = define("spectral_conv(Tensor x, Tensor weight, str backend) -> Tensor", _forward, _forward_fake,
                          _setup, _forward_rule)
spectral_conv_bwd = define(
    "spectral_conv_bwd(Tensor g, Tensor x, Tensor weight, bool[] needs, str backend) -> (Tensor, Tensor)",
    _backward, _backward_fake, _backward_setup, _backward_rule,
)
time_conv_op = define("time_conv(Tensor x, Tensor weight, float slope, str backend) -> (Tensor, Tensor)", _time,
                      _time_fake, _time_setup, _time_rule)
time_conv_bwd = define(
    "time_conv_bwd(Tensor g, Tensor positive, Tensor x, Tensor weight, float slope, bool[] needs, str backend)"
    " -> (Tensor, Tensor)",
    _time_backward, _time_backward_fake, _time_backward_setup, _time_backward_rule,
)


def _operands(op: str, x, weight) -> tuple[Tensor, Tensor]:
    """x as [T, N, I] and the weight as pairs of real numbers."""
    for name, t in (("x", x), ("weight", weight)):
        if not isinstance(t, Tensor):
            fail(op, name, "a tensor", type(t).__name__)
    if x.dim() < 2:
        fail(op, "x", "[T, ..., I]", list(x.shape))
    no_forward_mode(op, x, weight)
    if weight.is_complex():
        weight = torch.view_as_real(weight)
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]), weight


def spectral_conv(x: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    r"""Convolution along time by M Fourier modes, each with a complex matrix on the channels, in real arithmetic.

    .. math:: y = \mathrm{irfft}(\hat y), \quad \hat y_m = \mathrm{rfft}(x)_m W_m \; (m < M), \; 0 \text{ elsewhere}

    Transforms as torch.fft's along dimension 0: of mode 0, and of mode T/2 for even T, only the real part of W has an
    effect, and the gradient of its imaginary part is zero.

    Args:
        x: [T, ..., I], float32 or float64; T time steps, any dimensions between them and the channels: nodes, or nodes
            and xyz, where the map acts on each component alike and so commutes with rotations.
        weight: [I, O, M, 2] real and imaginary parts, or complex [I, O, M]; M <= T // 2 + 1.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [T, ..., O].

    Raises:
        ValueError: more modes than T // 2 + 1, wrong shapes, dtypes or devices, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in x and weight. Source: EGNO (Xu et al. 2024), equation 9; Fourier neural operators (Li
    et al. 2021).

    Example:
        >>> x, weight = torch.randn(5, 31, 8), torch.randn(8, 4, 2, dtype=torch.cfloat)
        >>> ace_fast.functional.spectral_conv(x, weight).shape
        torch.Size([5, 31, 4])
    """
    rows, weight = _operands("spectral_conv", x, weight)
    y = spectral_conv_op(rows, weight, backend)
    return y.reshape(*x.shape[:-1], y.shape[2])


def time_conv(x: Tensor, weight: Tensor, negative_slope: float = 0.01, *, backend: str = "auto") -> Tensor:
    r"""EGNO's layer over time: `spectral_conv`, leaky ReLU and the sum with its input in one call.

    .. math:: y = x + \mathrm{LeakyReLU}(\mathrm{spectral\_conv}(x, W))

    Args:
        x: [T, ..., C], float32 or float64.
        weight: [C, C, M, 2] real and imaginary parts, or complex [C, C, M]; M <= T // 2 + 1.
        negative_slope: of the leaky ReLU; 1 for none (a nonlinearity of components would turn vectors).
        backend: as in `spectral_conv`.

    Returns:
        [T, ..., C].

    Raises as `spectral_conv`, and for a slope that is not finite.

    Derivatives of any order in x and weight. Source: EGNO (Xu et al. 2024), section 4.

    Example:
        >>> x, weight = torch.randn(5, 31, 8), torch.randn(8, 8, 2, 2)
        >>> y = x + torch.nn.functional.leaky_relu(ace_fast.functional.spectral_conv(x, weight))
        >>> torch.allclose(ace_fast.functional.time_conv(x, weight), y, atol=1e-5)
        True
    """
    rows, weight = _operands("time_conv", x, weight)
    return time_conv_op(rows, weight, float(negative_slope), backend)[0].reshape(x.shape)
