"""What may follow a product, as operators of their own: gate."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_tensors, define, fail, no_forward_mode, vjp
from . import reference, triton_kernels
from .table import LAYOUTS, GateTable

_native = torch.ops.ace_fast_native
GATE = "int[] layout, float scalar_gain, float gate_gain"


def _mul_ir_only(layout, scalar_gain, gate_gain, ir_mul) -> str:
    return "layout ir_mul" if ir_mul else ""


BACKENDS = {
    "reference": SimpleNamespace(gate=reference.gate, gate_backward=reference.gate_backward),
    "cpu": SimpleNamespace(gate=lambda *a: _native.gate(*a), gate_backward=lambda *a: _native.gate_bwd(*a)),
    "cuda": SimpleNamespace(refuses=lambda *a: "the gate alone; it comes with the product"),
    "triton": SimpleNamespace(gate=triton_kernels.gate, gate_backward=triton_kernels.gate_backward,
                              refuses=_mul_ir_only),
}


def check_gate(op: str, layout: list[int], dim: int | None = None) -> int:
    """The width of the gate's input, which must be `dim`."""
    scalars, gates, *gated = layout if len(layout) > 1 else (0, -1)
    total = scalars + gates + sum(m * d for m, d in zip(gated[::2], gated[1::2], strict=False))
    if len(gated) % 2 or gates != sum(gated[::2]) or min(layout, default=-1) < 0 or dim not in (None, total):
        fail(op, "layout", f"{'one number' if dim is None else f'{dim} numbers'} with one gate a gated irrep",
             f"{total} numbers, {gates} gates")
    return total


def _check(op, pre, layout) -> None:
    check_tensors(op, pre)
    dim = check_gate(op, layout)
    if pre.dim() != 2 or pre.shape[1] != dim:
        fail(op, "pre", f"[Z, {dim}]", list(pre.shape))


def _check_bwd(op, g, pre, layout) -> None:
    check_tensors(op, g, pre=pre)
    _check(op, pre, layout)
    if g.shape != (pre.shape[0], pre.shape[1] - layout[1]):
        fail(op, "g", f"[{pre.shape[0]}, {pre.shape[1] - layout[1]}]", list(g.shape))


def _gate(pre, *static):
    *static, backend = static
    _check("gate", pre, static[0])
    return pick("gate", BACKENDS, backend, pre, tuple(static)).gate(pre, *static)


def _gate_fake(pre, layout, scalar_gain, gate_gain, ir_mul, backend):
    _check("gate", pre, layout)
    return pre.new_empty(pre.shape[0], pre.shape[1] - layout[1])


def _gate_bwd(g, pre, *static):
    *static, backend = static
    _check_bwd("gate_bwd", g, pre, static[0])
    return pick("gate_bwd", BACKENDS, backend, pre, tuple(static)).gate_backward(g, pre, *static)


def _gate_bwd_fake(g, pre, layout, *rest):
    _check_bwd("gate_bwd", g, pre, layout)
    return pre.new_empty(pre.shape)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.static = inputs[1:]


def _rule(ctx, g):
    return gate_bwd(g, *ctx.saved_tensors, *ctx.static), *(None,) * 5


def _bwd_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.static = inputs[2:-1]


def _bwd_rule(ctx, gg):
    def gradient(g, pre):
        return reference.gate_backward(g, pre, *ctx.static)

    return *vjp(gradient, list(ctx.saved_tensors), [gg]), *(None,) * 5


gate_op = define(f"gate(Tensor pre, {GATE}, bool ir_mul, str backend) -> Tensor", _gate, _gate_fake, _setup, _rule,
                 batched=(0,))
gate_bwd = define(f"gate_bwd(Tensor g, Tensor pre, {GATE}, bool ir_mul, str backend) -> Tensor", _gate_bwd,
                  _gate_bwd_fake, _bwd_setup, _bwd_rule, batched=(0, 1))


def gate(pre: Tensor, table: GateTable, *, layout: str = "mul_ir", backend: str = "auto") -> Tensor:
    r"""e3nn's Gate with SiLU scalars and sigmoid gates.

    .. math:: y = [c_1\,\mathrm{SiLU}(s),\ c_2\,\sigma(t)\,v]

    Args:
        pre: [..., scalars s + gates t + gated irreps v], float32 or float64.
        table: multiplicities and e3nn's second-moment constants; see `GateTable`.
        layout: of the gated irreps, "mul_ir" or "ir_mul".
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [..., scalars + gated irreps].

    Raises:
        ValueError: wrong shapes, dtypes or layout, or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order. Source: Weiler et al. 2018, gated nonlinearity; e3nn.nn.Gate.
    """
    no_forward_mode("gate", pre)
    if layout not in LAYOUTS:
        fail("gate", "layout", f"one of {LAYOUTS}", repr(layout))
    if pre.dim() == 0:
        fail("gate", "pre", "[..., dim]", list(pre.shape))
    out = gate_op(pre.reshape(-1, pre.shape[-1]), *table, bool(LAYOUTS.index(layout)), backend)
    return out.reshape(*pre.shape[:-1], out.shape[1])
