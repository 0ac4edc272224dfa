"""sphere_activation: functions at points of the sphere between the two transforms; schema, checks, derivatives."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_tensors, define, fail, is_half, mask, no_forward_mode, vjp
from . import reference, triton_kernels
from .grid import SphereGrid, degree_of
from .reference import ACTIVATIONS

LAYOUTS = ("mul_ir", "ir_mul")
_native = torch.ops.ace_fast_native
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.sphere_activation(*a[:-1], ACTIVATIONS.index(a[-1])),
        backward=lambda *a: _native.sphere_activation_bwd(*a[:-2], ACTIVATIONS.index(a[-2]), mask(a[-1])),
        second=lambda *a: _native.sphere_activation_bwd_bwd(*a[:-2], ACTIVATIONS.index(a[-2]), mask(a[-1])),
    ),
    "triton": triton_kernels,
}


def _check_tables(op: str, x: Tensor, into: Tensor, back: Tensor, ring: int) -> None:
    for name, table in (("into", into), ("back", back)):
        if table.dtype != torch.float64 or table.device != x.device:
            fail(op, name, f"torch.float64 on {x.device}", f"{table.dtype} on {table.device}")
        if table.dim() != 2 or degree_of(table.shape[1]) < 0:
            fail(op, name, "[S, (L+1)^2]", list(table.shape))
    if into.shape[0] != back.shape[0]:
        fail(op, "back", f"[{into.shape[0]}, (L+1)^2] like into", list(back.shape))
    if ring < 0 or (ring and into.shape[0] % ring):
        fail(op, "ring", f"0 or a divisor of the {into.shape[0]} points", ring)


def _check(op, x, x2, gate, into, back, ring, ir_mul, act, backend, **others) -> int:
    """Returns C; `others` are (tensor, components)."""
    check_tensors(op, x, half=is_half(op, "x", x, backend), x2=x2, gate=gate,
                  **{name: t for name, (t, _) in others.items()})
    _check_tables(op, x, into, back, ring)
    d = into.shape[1]
    if x.dim() != 2 or x.shape[1] % d:
        fail(op, "x", f"[Z, {d} C] for degrees 0..{degree_of(d)}", list(x.shape),
             "every degree must have the same multiplicity")
    channels = x.shape[1] // d
    for name, (t, width) in {"x2": (x2, d), "gate": (gate, 1), **others}.items():
        if t is not None and (t.dim() != 2 or list(t.shape) != [x.shape[0], width * channels]):
            fail(op, name, [x.shape[0], width * channels], list(t.shape))
    if act not in ACTIVATIONS:
        fail(op, "act", f"one of {ACTIVATIONS}", repr(act))
    return channels


def _check_forward(*args) -> int:
    return _check("sphere_activation", *args)


def _check_backward(g, x, x2, gate, into, back, ring, ir_mul, act, needs, backend) -> None:
    op = "sphere_activation_bwd"
    _check(op, x, x2, gate, into, back, ring, ir_mul, act, backend, g=(g, back.shape[-1]))
    _check_needs(op, needs, ("x", "x2", "gate"), (True, x2 is not None, gate is not None))


def _check_second(c_x, c_x2, c_gate, g, x, x2, gate, into, back, ring, ir_mul, act, needs, backend) -> None:
    op, d = "sphere_activation_bwd_bwd", into.shape[-1]
    _check(op, x, x2, gate, into, back, ring, ir_mul, act, backend, g=(g, back.shape[-1]), c_x=(c_x, d),
           c_x2=(c_x2, d), c_gate=(c_gate, 1))
    for name, c, t in (("c_x2", c_x2, x2), ("c_gate", c_gate, gate)):
        if c is not None and t is None:
            fail(op, name, f"None where {name[2:]} is None", "a tensor")
    _check_needs(op, needs, ("g", "x", "x2", "gate"), (True, True, x2 is not None, gate is not None))


def _check_needs(op: str, needs, names: tuple[str, ...], given: tuple[bool, ...]) -> None:
    if len(needs) != len(names) or any(need and not there for need, there in zip(needs, given, strict=True)):
        fail(op, "needs", f"a bool for each of {', '.join(names)}, False where None", list(needs))


def _pick(op: str, backend: str, x: Tensor):
    return pick(op, BACKENDS, backend, x)


def _forward(*args):
    _check_forward(*args)
    return _pick("sphere_activation", args[-1], args[0]).forward


def _forward_fake(*args):
    channels = _check_forward(*args)
    return args[0].new_empty(args[0].shape[0], args[4].shape[1] * channels)


def _backward(*args):
    _check_backward(*args)
    return _pick("sphere_activation_bwd", args[-1], args[0]).backward


def _backward_fake(*args):
    _check_backward(*args)
    return _like(args[0], args[1:4], args[-2])


def _second(*args):
    _check_second(*args)
    return _pick("sphere_activation_bwd_bwd", args[-1], args[3]).second


def _second_fake(*args):
    _check_second(*args)
    return _like(args[3], args[3:7], args[-2])


def _like(g: Tensor, tensors, needs) -> tuple[Tensor, ...]:
    return tuple(g.new_empty(t.shape if need else (0,)) for t, need in zip(tensors, needs, strict=True))


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.ring, ctx.ir_mul, ctx.act, ctx.backend = inputs[5:]


def _forward_rule(ctx, g):
    needs, grads = list(ctx.needs_input_grad[:3]), [None] * 3
    if g is not None and any(needs):
        found = sphere_activation_bwd(g, *ctx.saved_tensors, ctx.ring, ctx.ir_mul, ctx.act, needs, ctx.backend)
        grads = [x if need else None for x, need in zip(found, needs, strict=True)]
    return *grads, *(None,) * 6


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6])
    ctx.ring, ctx.ir_mul, ctx.act, ctx.needs, ctx.backend = inputs[6:]


def _backward_rule(ctx, *cotangents):
    needs, grads = list(ctx.needs_input_grad[:4]), [None] * 4
    cotangents = [c if need else None for c, need in zip(cotangents, ctx.needs, strict=True)]
    if any(c is not None for c in cotangents) and any(needs):
        found = sphere_activation_bwd_bwd(*cotangents, *ctx.saved_tensors, ctx.ring, ctx.ir_mul, ctx.act, needs,
                                          ctx.backend)
        grads = [x if need else None for x, need in zip(found, needs, strict=True)]
    return *grads, *(None,) * 7


def _second_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:9])
    ctx.ring, ctx.ir_mul, ctx.act, ctx.needs, _ = inputs[9:]


def _second_rule(ctx, *cotangents):
    *leaves, into, back = ctx.saved_tensors
    function = lambda *t: reference.second(*t, into, back, ctx.ring, ctx.ir_mul, ctx.act, ctx.needs)  # noqa: E731
    return *vjp(function, leaves, list(cotangents)), *(None,) * 7


_FIELDS = "Tensor x, Tensor? x2, Tensor? gate, Tensor into, Tensor back, int ring, bool ir_mul, str act"
sphere_activation_op = define(
    f"sphere_activation({_FIELDS}, str backend) -> Tensor", _forward, _forward_fake, _setup, _forward_rule)
sphere_activation_bwd = define(
    f"sphere_activation_bwd(Tensor g, {_FIELDS}, bool[] needs, str backend) -> (Tensor, Tensor, Tensor)",
    _backward, _backward_fake, _backward_setup, _backward_rule)
sphere_activation_bwd_bwd = define(
    f"sphere_activation_bwd_bwd(Tensor? c_x, Tensor? c_x2, Tensor? c_gate, Tensor g, {_FIELDS}, bool[] needs, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)", _second, _second_fake, _second_setup, _second_rule)


def sphere_activation(x: Tensor, grid: SphereGrid, x2: Tensor | None = None, gate: Tensor | None = None, *,
                      act: str = "silu", layout: str = "mul_ir", backend: str = "auto") -> Tensor:
    r"""A function of fields at points of the sphere, from coefficients to coefficients; no value at a point is stored.

    .. math:: y_o = h \sum_s A_{so}\, f\Bigl(\sum_i B_{si} x_i\Bigr) \Bigl(\sum_i B_{si} x_{2,i}\Bigr)

    f alone is an S2 activation, f(x) x2 a gated one, x x2 h the SwiGLU-S2 of EquiformerV3 with h = sigmoid(s).

    Args:
        x: [Z, (L+1)^2 C], float32 or float64, bfloat16 on a GPU: degrees 0..L of `grid` with C channels each, e3nn's
            order of components.
        grid: the points, and the tables B (`into`) and A (`back`).
        x2: [Z, (L+1)^2 C], a second field; None stands for 1.
        gate: h [Z, C], one number a row and channel; None stands for 1.
        act: f, "none" (f(u) = u), "silu", "relu", "gelu" (with erf), "tanh", "sigmoid" or "softplus".
        layout: of rows, "mul_ir" (e3nn's, [C, 2l+1] for each degree) or "ir_mul" ([(L+1)^2, C]).
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [Z, (L_out+1)^2 C]. Equivariant as far as the grid integrates f; exactly for act "none" on
        `grids.exact(grids.product_degree((L, L), L_out))`.

    Raises:
        ValueError: no SphereGrid, wrong shapes (unequal multiplicities), dtypes, devices or options, a backend that
            cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in x, x2 and gate; the first and the second are fused, higher ones plain PyTorch. Sources:
    S2Activation of e3nn; EquiformerV3 (Liao et al. 2026), SwiGLU-S2.

    Example:
        >>> from ace_fast.kernels.sphere_product import grids
        >>> grid = ace_fast.functional.SphereGrid.of(grids.gauss(8, 16), lmax=3)
        >>> ace_fast.functional.sphere_activation(torch.randn(5, 16 * 8), grid, act="silu").shape
        torch.Size([5, 128])
    """
    op = "sphere_activation"
    if not isinstance(grid, SphereGrid):
        fail(op, "grid", "a SphereGrid", type(grid).__name__, "use SphereGrid.of(grids.gauss(rings, ring_size), lmax)")
    if layout not in LAYOUTS:
        fail(op, "layout", f"one of {LAYOUTS}", repr(layout))
    for name, t in (("x", x), ("x2", x2), ("gate", gate)):
        if not isinstance(t, Tensor) and (t is not None or name == "x"):
            fail(op, name, "a tensor", repr(t))
    no_forward_mode(op, x, x2, gate)
    into, back = grid.on(x.device)
    return sphere_activation_op(x, x2, gate, into, back, grid.ring, layout == "ir_mul", act, backend)
