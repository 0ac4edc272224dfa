"""What may follow a product, e3nn's Gate and NormActivation: operators of their own, and fused with the product.

One description of each (`Epilogue`) makes both pairs of operators. The fused one returns the pre-activation too, which
its gradient needs; second derivatives go through the formula in PyTorch, for an epilogue is not linear.
"""

from collections.abc import Callable
from math import prod
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_tensors, define, fail, no_forward_mode, vjp
from . import reference, triton_kernels
from .table import ACTIVATIONS, LAYOUTS, GateTable, NormTable

_native, _cuda = torch.ops.ace_fast_native, torch.ops.ace_fast_cuda
SLICES = 64  # of a gate on CUDA, gated; epilogue.cuh, kSlices


class Epilogue(NamedTuple):
    """An elementwise map of the product, with `parameters` (tensors, or None) and `count` static arguments."""

    op: str
    fused: str  # the operator of product and epilogue
    method: str  # name of its implementation in a backend: <method>_forward, <method>_backward
    parameters: tuple[str, ...]
    static: str  # schema
    count: int
    check: Callable  # (op, static, parameters, dim or None) -> widths of input and output
    gradient: Callable  # (g, pre, *parameters, *static, ir_mul) -> gradients of pre and of the parameters

    def schema(self) -> str:
        return "".join(f"Tensor? {name}, " for name in self.parameters)


def _widths_gate(op, static, parameters, dim=None) -> tuple[int, int]:
    layout = static[0]
    scalars, gates, *gated = layout if len(layout) > 1 else (0, -1)
    total = scalars + gates + sum(m * d for m, d in zip(gated[::2], gated[1::2], strict=False))
    if len(gated) % 2 or gates != sum(gated[::2]) or min(layout, default=-1) < 0 or dim not in (None, total):
        fail(op, "layout", f"{'one number' if dim is None else f'{dim} numbers'} with one gate a gated irrep",
             f"{total} numbers, {gates} gates")
    return total, total - gates


def _widths_norm(op, static, parameters, dim=None) -> tuple[int, int]:
    layout, activation, epsilon = static
    total = sum(m * d for m, d in zip(layout[::2], layout[1::2], strict=False))
    if len(layout) % 2 or min(layout, default=0) < 0 or dim not in (None, total):
        fail(op, "layout", f"(multiplicity, 2l+1) of slices of {'some' if dim is None else dim} numbers", list(layout))
    if activation not in ACTIVATIONS:
        fail(op, "activation", f"one of {ACTIVATIONS}", repr(activation))
    if not epsilon > 0:
        fail(op, "epsilon", "positive", epsilon)
    bias, channels = parameters[0], sum(layout[::2])
    if bias is not None and list(bias.shape) != [channels]:
        fail(op, "norm_bias", f"[{channels}], one per channel", list(bias.shape))
    return total, total


def _gradient_gate(*args) -> tuple[Tensor]:
    return (reference.gate_backward(*args),)


GATE = Epilogue("gate", "gated_tensor_product", "gated", (), "int[] layout, float scalar_gain, float gate_gain", 3,
                _widths_gate, _gradient_gate)
NORM = Epilogue("norm_activation", "normed_tensor_product", "normed", ("norm_bias",),
                "int[] layout, str activation, float epsilon", 3, _widths_norm, reference.norm_activation_backward)


def code(activation: str) -> int:
    return ACTIVATIONS.index(activation)


def _mul_ir_only(*args) -> str:
    return "layout ir_mul" if args[-1] else ""


def _natively(library, **others) -> SimpleNamespace:
    """Gate and activation of norms of a library of compiled kernels."""
    return SimpleNamespace(
        gate=lambda *a: library.gate(*a), gate_backward=lambda *a: (library.gate_bwd(*a),),
        norm_activation=lambda pre, b, layout, act, *a: library.norm_activation(pre, b, layout, code(act), *a),
        norm_activation_backward=lambda g, pre, b, layout, act, *a: library.norm_activation_bwd(
            g, pre, b, layout, code(act), *a),
        **others)


def _too_many_slices(layout, *args) -> str:
    return f"more than {SLICES} gated slices" if len(layout) > 2 + 2 * SLICES else ""


BACKENDS = {
    "reference": SimpleNamespace(
        gate=reference.gate, gate_backward=_gradient_gate,
        norm_activation=reference.norm_activation, norm_activation_backward=reference.norm_activation_backward,
    ),
    "cpu": _natively(_native),
    "cuda": _natively(_cuda),
}
BACKENDS_GATE = BACKENDS | {
    "cuda": _natively(_cuda, refuses=_too_many_slices),
    "triton": SimpleNamespace(gate=triton_kernels.gate, gate_backward=lambda *a: (triton_kernels.gate_backward(*a),),
                              refuses=_mul_ir_only),
}
BACKENDS_NORM = BACKENDS | {
    "triton": SimpleNamespace(refuses=lambda *a: "the activation of norms alone; after a product it is PyTorch's"),
}


def _alone(e: Epilogue, backends: dict) -> tuple:
    """Registers `e.op`(pre, parameters, static, ir_mul) and its gradient."""
    n = len(e.parameters)

    def check(op, pre, parameters, static):
        check_tensors(op, pre, **dict(zip(e.parameters, parameters, strict=True)))
        dim, dim_out = e.check(op, static, parameters)
        if pre.dim() != 2 or pre.shape[1] != dim:
            fail(op, "pre", f"[Z, {dim}]", list(pre.shape))
        return dim_out

    def forward(pre, *args):
        *args, backend = args
        check(e.op, pre, args[:n], args[n:-1])
        return getattr(pick(e.op, backends, backend, pre, tuple(args)), e.op)

    def forward_fake(pre, *args):
        return pre.new_empty(pre.shape[0], check(e.op, pre, args[:n], args[n:-2]))

    def check_bwd(g, pre, *args):
        check_tensors(f"{e.op}_bwd", g, pre=pre)
        dim_out = check(f"{e.op}_bwd", pre, args[:n], args[n:-2])
        if g.shape != (pre.shape[0], dim_out):
            fail(f"{e.op}_bwd", "g", f"[{pre.shape[0]}, {dim_out}]", list(g.shape))

    def backward(g, pre, *args):
        check_bwd(g, pre, *args)
        *args, backend = args
        compute = getattr(pick(f"{e.op}_bwd", backends, backend, pre, tuple(args)), f"{e.op}_backward")
        return compute if n else lambda *arguments: compute(*arguments)[0]

    def backward_fake(g, pre, *args):
        check_bwd(g, pre, *args)
        found = tuple(pre.new_empty(0 if x is None else x.shape) for x in (pre, *args[:n]))
        return found[0] if n == 0 else found

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:1 + n])
        ctx.static = inputs[1 + n:]

    def rule(ctx, g):
        found = bwd(g, *ctx.saved_tensors, *ctx.static)
        found = (found,) if n == 0 else found
        return *(x if need else None for x, need in zip(found, ctx.needs_input_grad, strict=False)), *(None,) * (
            e.count + 2)

    def bwd_setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2 + n])
        ctx.static = inputs[2 + n:-1]

    def bwd_rule(ctx, *cotangents):
        found = vjp(lambda *x: e.gradient(*x, *ctx.static), list(ctx.saved_tensors), list(cotangents))
        return *found, *(None,) * (e.count + 2)

    static = f"{e.schema()}{e.static}, bool ir_mul, str backend"
    results = "Tensor" if n == 0 else "(Tensor, Tensor)"
    op = define(f"{e.op}(Tensor pre, {static}) -> Tensor", forward, forward_fake, setup, rule, batched=(0,))
    bwd = define(f"{e.op}_bwd(Tensor g, Tensor pre, {static}) -> {results}", backward, backward_fake, bwd_setup,
                 bwd_rule, batched=(0, 1) if n == 0 else ())
    return op, bwd


gate_op, gate_bwd = _alone(GATE, BACKENDS_GATE)
norm_activation_op, norm_activation_bwd = _alone(NORM, BACKENDS_NORM)


def fuse(e: Epilogue, product: SimpleNamespace) -> tuple:
    """Registers `e.fused`: the product followed by `e`, (out, pre-activation), and the gradient of its first result.

    product: its `tables` (schema), `check`, `check_bwd`, `gradients_fake`, `pick` and `bwd` (the operator).
    """
    bwd = _fused_bwd(e, product)
    return _fused(e, product, bwd), bwd


def _fused(e: Epilogue, product: SimpleNamespace, bwd: Callable) -> Callable:
    n, name = len(e.parameters), e.fused
    first, last = 4 + n, 9 + n  # tables among the arguments; static arguments follow

    def check(op, inputs):
        parameters = inputs[4:first]
        product.check(op, *inputs[:4], *inputs[first:last])
        check_tensors(op, inputs[0], **dict(zip(e.parameters, parameters, strict=True)))
        return e.check(op, inputs[last:last + e.count], parameters, inputs[first + 2][2])[1]

    def forward(*args):
        *inputs, backend = args
        check(name, inputs)
        chosen = product.pick(name, backend, inputs[0], inputs[2], *inputs[first + 2:first + 4])
        return getattr(chosen, f"{e.method}_forward")

    def forward_fake(*args):
        x1, width = args[0], check(name, args)
        return x1.new_empty(x1.shape[0], width), x1.new_empty(x1.shape[0], args[first + 2][2])

    def setup(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *inputs[:3], *inputs[4:first + 2])
        ctx.static, ctx.epilogue, ctx.backend = inputs[first + 2:last], inputs[last:-1], inputs[-1]

    def rule(ctx, g_out, g_pre):
        needs = [*ctx.needs_input_grad[:4], *ctx.needs_input_grad[4:first]]
        pre, x1, x2, weight, *rest = ctx.saved_tensors
        parameters, cg, nothing = rest[:n], rest[n:], (None,) * (5 + e.count + 1)
        if g_out is None and g_pre is None:
            return *(None,) * first, *nothing
        if g_pre is None:
            grads = bwd(g_out, pre, x1, x2, weight, *parameters, *cg, *ctx.static, *ctx.epilogue, needs, ctx.backend)
        else:
            found = (None,) * n
            if g_out is not None:
                more, *found = e.gradient(g_out, pre, *parameters, *ctx.epilogue, ctx.static[0][3])
                g_pre = g_pre + more
            grads = (*product.bwd(g_pre, x1, x2, weight, *cg, *ctx.static, needs[:4], ctx.backend), *found)
        return *(x if need else None for x, need in zip(grads, needs, strict=True)), *nothing

    return define(f"{name}(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, {e.schema()}{product.tables}, "
                  f"{e.static}, str backend) -> (Tensor, Tensor)", forward, forward_fake, setup, rule, batched=(0, 1))


def _fused_bwd(e: Epilogue, product: SimpleNamespace) -> Callable:
    n, name = len(e.parameters), f"{e.fused}_bwd"

    def check_bwd(g, pre, x1, x2, weight, *rest):
        tables, static = rest[n:n + 5], rest[n + 5:n + 5 + e.count]
        product.check_bwd(name, pre, x1, x2, weight, *tables, name="pre")
        check_tensors(name, g, pre=pre, **dict(zip(e.parameters, rest, strict=False)))
        width = e.check(name, static, rest[:n], tables[2][2])[1]
        if g.shape != (x1.shape[0], width):
            fail(name, "g", f"[{x1.shape[0]}, {width}]", list(g.shape))

    def backward(*args):
        *inputs, backend = args
        check_bwd(*inputs[:-1])
        at = 5 + n
        chosen = product.pick(name, backend, inputs[0], inputs[4], *inputs[at + 2:at + 4])
        return getattr(chosen, f"{e.method}_backward")

    def backward_fake(*args):
        check_bwd(*args[:-2])
        parameters, needs = args[5:5 + n], args[-2]
        found = product.gradients_fake(*args[2:5], args[9 + n], needs[:4])
        return *found, *(x.new_empty(x.shape) if need else args[0].new_empty(0)
                         for x, need in zip(parameters, needs[4:], strict=True))

    def setup(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:7 + n])
        ctx.static, ctx.epilogue = inputs[7 + n:10 + n], inputs[10 + n:10 + n + e.count]
        ctx.needs, ctx.backend = inputs[-2:]

    def rule(ctx, *cotangents):
        *inputs, cg_index, cg_value = ctx.saved_tensors

        def gradients(g, pre, x1, x2, weight, *parameters):
            g_pre, *found = e.gradient(g, pre, *parameters, *ctx.epilogue, ctx.static[0][3])
            grads = product.bwd(g_pre, x1, x2, weight, cg_index, cg_value, *ctx.static, ctx.needs[:4], ctx.backend)
            return *grads, *(x if need else g.new_empty(0) for x, need in zip(found, ctx.needs[4:], strict=True))

        return *vjp(gradients, inputs, list(cotangents)), *(None,) * (7 + e.count)

    results = ", ".join(["Tensor"] * (4 + n))
    return define(f"{name}(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, {e.schema()}{product.tables}, "
                  f"{e.static}, bool[] needs, str backend) -> ({results})", backward, backward_fake, setup, rule)


def _rows(op: str, pre: Tensor, layout: str) -> Tensor:
    """pre [..., dim] as [Z, dim]."""
    no_forward_mode(op, pre)
    if layout not in LAYOUTS:
        fail(op, "layout", f"one of {LAYOUTS}", repr(layout))
    if pre.dim() == 0:
        fail(op, "pre", "[..., dim]", list(pre.shape))
    return pre.reshape(prod(pre.shape[:-1]), pre.shape[-1])


def gate(pre: Tensor, table: GateTable, *, layout: str = "mul_ir", backend: str = "auto") -> Tensor:
    r"""e3nn's Gate with SiLU scalars and sigmoid gates.

    .. math:: y = [c_1\,\mathrm{SiLU}(s),\ c_2\,\sigma(t)\,v]

    Args:
        pre: [..., scalars s + gates t + gated irreps v], float32 or float64.
        table: multiplicities and e3nn's second-moment constants; see `GateTable`.
        layout: of the gated irreps, "mul_ir" or "ir_mul".
        backend: "auto", "reference", "cpu", "cuda" (up to 64 gated irreps) or "triton" (mul_ir).

    Returns:
        [..., scalars + gated irreps].

    Raises:
        ValueError: wrong shapes, dtypes or layout, or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order. Source: Weiler et al. 2018, gated nonlinearity; e3nn.nn.Gate.
    """
    out = gate_op(_rows("gate", pre, layout), *table, bool(LAYOUTS.index(layout)), backend)
    return out.reshape(*pre.shape[:-1], out.shape[1])


def norm_activation(pre: Tensor, table: NormTable, bias: Tensor | None = None, *, layout: str = "mul_ir",
                    backend: str = "auto") -> Tensor:
    r"""e3nn's NormActivation: each channel keeps its direction, and its norm goes through a nonlinearity.

    .. math:: y = f(n + b)\, x / n, \qquad n = \max(|x|, \varepsilon)

    Args:
        pre: [..., dim] irreps x, float32 or float64.
        table: their multiplicities, the nonlinearity f and epsilon; see `NormTable`.
        bias: [channels] b, or None.
        layout: of the irreps, "mul_ir" or "ir_mul".
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        [..., dim].

    Raises:
        ValueError: wrong shapes, dtypes, layout, nonlinearity or epsilon, or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in pre and bias; none reaches a norm below epsilon. Source: Thomas et al. 2018, tensor
    field networks, section 4.1.3; e3nn.nn.NormActivation.
    """
    rows = _rows("norm_activation", pre, layout)
    no_forward_mode("norm_activation", bias)
    return norm_activation_op(rows, bias, *table, bool(LAYOUTS.index(layout)), backend).reshape(pre.shape)
