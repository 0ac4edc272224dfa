"""relaxed_linear: the free branch's affine map with activation, gate gamma, base and residual in one kernel."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_tensors, define, fail, no_forward_mode, vjp
from . import reference, triton_kernels

_native = torch.ops.ace_fast_native
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.relaxed_linear(*a[:-1], a[-1] == "gelu"),
        backward=lambda *a: _native.relaxed_linear_bwd(*a[:-2], a[-2] == "gelu", *a[-1]),
    ),
    "triton": triton_kernels,
}


def _check(op, x, weight, bias, gamma, activation, **like_output) -> None:
    """Shapes, dtypes and devices; `like_output` are the tensors of the output's shape, None where absent."""
    check_tensors(op, x, weight=weight, bias=bias, gamma=gamma, **like_output)
    if x.dim() != 2:
        fail(op, "x", "[N, I]", list(x.shape), "flatten the leading dimensions")
    if weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        fail(op, "weight", f"[O, {x.shape[1]}]", list(weight.shape))
    n, o = x.shape[0], weight.shape[0]
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != o):
        fail(op, "bias", f"[{o}]", list(bias.shape))
    if gamma is not None:
        if gamma.dim() != 0:
            fail(op, "gamma", "a 0-dim tensor", list(gamma.shape), "pass gamma.reshape(())")
    for name, t in like_output.items():
        if t is not None and (t.dim() != 2 or t.shape[0] != n or t.shape[1] != o):
            fail(op, name, f"[{n}, {o}]", list(t.shape))
    if activation not in ("none", "gelu"):
        fail(op, "activation", "'none' or 'gelu'", repr(activation))


def _check_forward(x, weight, bias, gamma, base, residual, activation) -> None:
    _check("relaxed_linear", x, weight, bias, gamma, activation, base=base, residual=residual)


def _check_backward(g, x, weight, bias, gamma, activation, needs) -> None:
    op = "relaxed_linear_bwd"
    _check(op, x, weight, bias, gamma, activation, g=g)
    if len(needs) != 4:
        fail(op, "needs", "four bools: x, weight, bias, gamma", len(needs))
    for name, value, need in (("bias", bias, needs[2]), ("gamma", gamma, needs[3])):
        if value is None and need:
            fail(op, f"needs[{name}]", f"False where {name} is None", need)


def _forward(*args):
    *inputs, backend = args
    _check_forward(*inputs)
    return pick("relaxed_linear", BACKENDS, backend, args[0]).forward


def _forward_fake(*args):
    _check_forward(*args[:-1])
    return args[0].new_empty(args[0].shape[0], args[1].shape[0])


def _backward(*args):
    *inputs, backend = args
    _check_backward(*inputs)
    return pick("relaxed_linear", BACKENDS, backend, args[0]).backward


def _backward_fake(*args):
    _check_backward(*args[:-1])
    g, x, weight, _, _, _, needs, _ = args
    shapes = (x.shape, weight.shape, weight.shape[:1], ())
    return tuple(g.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.activation, ctx.backend = inputs[6:]


def _forward_rule(ctx, g):
    needs = list(ctx.needs_input_grad[:4])
    grads = [None] * 4
    if any(needs):
        found = relaxed_linear_bwd(g, *ctx.saved_tensors, ctx.activation, needs, ctx.backend)
        grads = [x if need else None for x, need in zip(found, needs, strict=True)]
    return *grads, *(g if need else None for need in ctx.needs_input_grad[4:6]), None, None


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.activation, ctx.needs, _ = inputs[5:]


def _backward_rule(ctx, *cotangents):
    function = lambda *tensors: reference.backward(*tensors, ctx.activation, ctx.needs)  # noqa: E731
    return *vjp(function, list(ctx.saved_tensors), list(cotangents)), None, None, None


_AFFINE = "Tensor x, Tensor weight, Tensor? bias, Tensor? gamma"
relaxed_linear_op = define(
    f"relaxed_linear({_AFFINE}, Tensor? base, Tensor? residual, str activation, str backend) -> Tensor",
    _forward, _forward_fake, _setup, _forward_rule,
)
relaxed_linear_bwd = define(
    f"relaxed_linear_bwd(Tensor g, {_AFFINE}, str activation, bool[] needs, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward, _backward_fake, _backward_setup, _backward_rule,
)


def relaxed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gamma: Tensor | None = None,
                   base: Tensor | None = None, residual: Tensor | None = None, *, activation: str = "none",
                   backend: str = "auto") -> Tensor:
    r"""Affine map of an activated input, gated by a scalar and added to other terms, in one kernel.

    .. math:: y = \mathrm{base} + \gamma\, (\mathrm{act}(x) W^T + b) + \mathrm{residual}

    The activation acts on the input, so the branch Linear-GELU-Linear-GELU-Linear is three calls.

    Args:
        x: [N, I], float32 or float64, any strides.
        weight: [O, I].
        bias: [O], or None.
        gamma: 0-dim tensor, never read on the host; None stands for 1.
        base: [N, O], the equivariant map's output, or None.
        residual: [N, O], or None.
        activation: "none" or "gelu" (exact, with erf).
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [N, O].

    Raises:
        ValueError: no tensors, wrong shapes, dtypes or devices, an unknown activation, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in all six tensors. Source: ACE (Manolache et al. 2025), equation 2, with the branches of
    its SEGNN.

    Example:
        >>> x, weight = torch.ones(2, 3), torch.ones(1, 3)
        >>> ace_fast.functional.relaxed_linear(x, weight, gamma=torch.tensor(0.5), base=torch.ones(2, 1)).flatten()
        tensor([2.5000, 2.5000])
    """
    given = {"x": x, "weight": weight, "bias": bias, "gamma": gamma, "base": base, "residual": residual}
    for name, t in given.items():
        if not isinstance(t, Tensor) and (t is not None or name in ("x", "weight")):
            fail("relaxed_linear", name, "a 0-dim tensor" if name == "gamma" else "a tensor", repr(t),
                   f"pass torch.tensor({t!r})" if name == "gamma" else "")
    no_forward_mode("relaxed_linear", *given.values())
    return relaxed_linear_op(x, weight, bias, gamma, base, residual, activation, backend)
