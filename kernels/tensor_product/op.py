"""tensor_product and gated_tensor_product: schema, checks, fakes and derivatives."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_constant, check_tensors, define, fail, no_forward_mode, vjp
from ..multilinear import second_derivative
from ..triton_common import allow_tf32
from . import reference, triton_kernels
from .epilogue import GATE, check_gate
from .table import MODES, GateTable, Path, ProductTable, weight_numel, with_weight

_native, _cuda = torch.ops.ace_fast_native, torch.ops.ace_fast_cuda


def _mask(needs: list[bool]) -> int:
    return sum(need << i for i, need in enumerate(needs))


def _fully_connected_only(weight: Tensor, dims: list[int], paths: list[int]) -> str:
    """Why a backend for products with shared "uvw" weights in mul_ir does not take these tables."""
    if weight.dim() != 1:
        return "weights of every row"
    if dims[3]:
        return "layout ir_mul"
    modes = {MODES[mode] for mode in paths[12::len(Path._fields)]} - {"uvw"}
    return f"mode {modes.pop()}" if modes else ""


BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.tensor_product(*a),
        backward=lambda *a: _native.tensor_product_bwd(*a[:-1], _mask(a[-1])),
        gated_forward=lambda *a: _native.gated_tensor_product(*a),
        gated_backward=lambda *a: _native.gated_tensor_product_bwd(*a[:-1], _mask(a[-1])),
    ),
    "cuda": SimpleNamespace(
        forward=lambda *a: _cuda.tensor_product(*a, allow_tf32(a[0])),
        backward=lambda *a: _cuda.tensor_product_bwd(*a[:-1], _mask(a[-1]), allow_tf32(a[0])),
        gated_forward=lambda *a: _cuda.gated_tensor_product(*a, allow_tf32(a[0])),
        gated_backward=lambda *a: _cuda.gated_tensor_product_bwd(*a[:-1], _mask(a[-1]), allow_tf32(a[0])),
    ),
    "triton": SimpleNamespace(
        forward=triton_kernels.forward, backward=triton_kernels.backward, gated_forward=triton_kernels.gated_forward,
        gated_backward=triton_kernels.gated_backward, refuses=_fully_connected_only,
    ),
}


def _pick(op, backend, x1, weight, dims, paths):
    return pick(op, BACKENDS, backend, x1, (weight, dims, paths))


def _check(op, x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots) -> None:
    check_tensors(op, x1, x2=x2, weight=weight, bias=bias)
    z = x1.shape[0] if x1.dim() else None
    if len(dims) != 4:
        fail(op, "dims", "dim1, dim2, dim_out and the layout", list(dims))
    if x1.dim() != 2 or x1.shape[1] != dims[0]:
        fail(op, "x1", f"[Z, {dims[0]}]", list(x1.shape))
    if x2.dim() != 2 or x2.shape[1] != dims[1] or x2.shape[0] != z:
        fail(op, "x2", f"[{z}, {dims[1]}]", list(x2.shape))
    if len(paths) % len(Path._fields):
        fail(op, "paths", f"{len(Path._fields)} integers a path", len(paths))
    numel = weight_numel(paths)
    if weight.dim() not in (1, 2) or weight.shape[-1] != numel or weight.dim() == 2 and weight.shape[0] != z:
        fail(op, "weight", f"[{numel}] or [{z}, {numel}]", list(weight.shape))
    if bias is not None and list(bias.shape) != [sum(bias_slots[1::2])]:
        fail(op, "bias", f"[{sum(bias_slots[1::2])}], one per even scalar", list(bias.shape))
    if cg_value.dtype != torch.float64 or cg_index.dtype != torch.int64 or cg_index.shape != (cg_value.shape[0], 3):
        fail(op, "cg_value", "float64 [nnz] beside int64 cg_index [nnz, 3]",
               f"{cg_value.dtype} {list(cg_value.shape)} beside {cg_index.dtype} {list(cg_index.shape)}")


def _check_g(op, name, g, z, dim) -> None:
    if g.dim() != 2 or g.shape[0] != z or g.shape[1] != dim:
        fail(op, name, f"[{z}, {dim}]", list(g.shape))


def _forward(*args):
    *inputs, backend = args
    _check("tensor_product", *inputs)
    return _pick("tensor_product", backend, args[0], args[2], args[6], args[7]).forward(*inputs)


def _forward_fake(*args):
    _check("tensor_product", *args[:-1])
    return args[0].new_empty(args[0].shape[0], args[6][2])


def _check_bwd(op, g, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots):
    _check(op, x1, x2, weight, None, cg_index, cg_value, dims, paths, bias_slots)
    _check_g(op, "g", g, x1.shape[0], dims[2])


def _backward(*args):
    *inputs, backend = args
    _check_bwd("tensor_product_bwd", *inputs[:-1])
    return _pick("tensor_product_bwd", backend, args[0], args[3], args[6], args[7]).backward(*inputs)


def _gradients_fake(x1, x2, weight, bias_slots, needs):
    bias = x1.new_empty(sum(bias_slots[1::2]))
    found = (x1, x2, weight, bias)
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(found, needs, strict=True))


def _backward_fake(*args):
    _check_bwd("tensor_product_bwd", *args[:-2])
    return _gradients_fake(*args[1:4], args[8], args[9])


def _needed(needs, grads):
    return (x if need else None for x, need in zip(grads, needs, strict=True))


def _setup(ctx, inputs, output):
    x1, x2, weight, _, *tables = inputs
    ctx.save_for_backward(x1, x2, weight, *tables[:2])
    ctx.static = tables[2:-1]
    ctx.backend = inputs[-1]


def _forward_rule(ctx, g):
    needs = list(ctx.needs_input_grad[:4])
    grads = tensor_product_bwd(g, *ctx.saved_tensors, *ctx.static, needs, ctx.backend)
    return *_needed(needs, grads), *(None,) * 6


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6])
    ctx.static, ctx.given, ctx.backend = inputs[6:9], inputs[9], inputs[10]


def _backward_rule(ctx, gg_x1, gg_x2, gg_weight, gg_bias):
    g, x1, x2, weight, *cg = ctx.saved_tensors
    dims, paths, slots = ctx.static

    def tables(slot):  # what has no weight is constant in the weights
        return *cg, dims, with_weight(paths) if slot == 2 else paths, slots

    cotangents = [gg if given else None for gg, given in zip((gg_x1, gg_x2, gg_weight), ctx.given[:3], strict=True)]
    need_g = ctx.needs_input_grad[0]
    g_g, *sums = second_derivative(
        (x1, x2, weight), cotangents, ctx.needs_input_grad[:4],
        lambda slot, x: tensor_product_op(*x, None, *tables(slot), ctx.backend),
        lambda slot, x, wanted: tensor_product_bwd(g, *x, *tables(slot), [*wanted, False], ctx.backend)[:3],
    )
    if gg_bias is not None and ctx.given[3] and need_g:
        bias = reference.forward(x1, x2, weight, gg_bias, *cg, dims, [], slots)
        g_g = bias if g_g is None else g_g + bias
    return g_g, *sums, *(None,) * 7


_TABLES = "Tensor cg_index, Tensor cg_value, int[] dims, int[] paths, int[] bias_slots"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"
tensor_product_op = define(
    f"tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, {_TABLES}, str backend) -> Tensor",
    _forward, _forward_fake, _setup, _forward_rule, batched=(0, 1),
)
tensor_product_bwd = define(
    f"tensor_product_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, {_TABLES}, bool[] needs, str backend)"
    f" -> {_FOUR}",
    _backward, _backward_fake, _backward_setup, _backward_rule,
)


def _gated(*args):
    *inputs, backend = args
    _check("gated_tensor_product", *inputs[:9])
    check_gate("gated_tensor_product", inputs[9], inputs[6][2])
    return _pick("gated_tensor_product", backend, args[0], args[2], args[6], args[7]).gated_forward(*inputs)


def _gated_fake(*args):
    _check("gated_tensor_product", *args[:9])
    check_gate("gated_tensor_product", args[9], args[6][2])
    z, dim, gates = args[0].shape[0], args[6][2], args[9][1]
    return args[0].new_empty(z, dim - gates), args[0].new_empty(z, dim)


def _check_gated_bwd(g, pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, layout):
    _check_bwd("gated_tensor_product_bwd", pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots)
    check_gate("gated_tensor_product_bwd", layout, dims[2])
    _check_g("gated_tensor_product_bwd", "g", g, x1.shape[0], dims[2] - layout[1])


def _gated_backward(*args):
    *inputs, backend = args
    _check_gated_bwd(*inputs[:11])
    return _pick("gated_tensor_product_bwd", backend, args[0], args[4], args[7], args[8]).gated_backward(*inputs)


def _gated_backward_fake(*args):
    _check_gated_bwd(*args[:11])
    return _gradients_fake(*args[2:5], args[9], args[13])


def _gated_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    x1, x2, weight, _, *tables = inputs
    ctx.save_for_backward(output[1], x1, x2, weight, *tables[:2])
    ctx.static, ctx.gate, ctx.backend = tables[2:5], inputs[9:12], inputs[12]


def _gated_rule(ctx, g_out, g_pre):
    needs = list(ctx.needs_input_grad[:4])
    pre, *rest = ctx.saved_tensors
    if g_out is None and g_pre is None:
        return (None,) * 13
    if g_pre is None:
        grads = gated_tensor_product_bwd(g_out, pre, *rest, *ctx.static, *ctx.gate, needs, ctx.backend)
    else:
        if g_out is not None:
            g_pre = g_pre + reference.gate_backward(g_out, pre, *ctx.gate, ctx.static[0][3])
        grads = tensor_product_bwd(g_pre, *rest, *ctx.static, needs, ctx.backend)
    return *_needed(needs, grads), *(None,) * 9


def _gated_backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7])
    ctx.static, ctx.gate, ctx.needs, ctx.backend = inputs[7:10], inputs[10:13], inputs[13], inputs[14]


def _gated_backward_rule(ctx, *cotangents):
    *inputs, cg_index, cg_value = ctx.saved_tensors

    def gradients(g, pre, x1, x2, weight):
        g_pre = reference.gate_backward(g, pre, *ctx.gate, ctx.static[0][3])
        return tensor_product_bwd(g_pre, x1, x2, weight, cg_index, cg_value, *ctx.static, ctx.needs, ctx.backend)

    return *vjp(gradients, inputs, list(cotangents)), *(None,) * 10


gated_tensor_product_op = define(
    f"gated_tensor_product(Tensor x1, Tensor x2, Tensor weight, Tensor? bias, {_TABLES}, {GATE}, str backend)"
    " -> (Tensor, Tensor)",
    _gated, _gated_fake, _gated_setup, _gated_rule, batched=(0, 1),
)
gated_tensor_product_bwd = define(
    f"gated_tensor_product_bwd(Tensor g, Tensor pre, Tensor x1, Tensor x2, Tensor weight, {_TABLES}, {GATE},"
    f" bool[] needs, str backend) -> {_FOUR}",
    _gated_backward, _gated_backward_fake, _gated_backward_setup, _gated_backward_rule,
)


def tensor_product(x1: Tensor, x2: Tensor, weight: Tensor, table: ProductTable, bias: Tensor | None = None, *,
                   gate: GateTable | None = None, backend: str = "auto") -> Tensor:
    r"""Fully connected Clebsch-Gordan product with shared weights, optional bias and gate.

    .. math:: y^{w}_{k} = \sum_{paths} \sum_{uv,ij} W_{uvw} C_{ijk} x^{u}_{1,i} x^{v}_{2,j} (+ b)

    Args:
        x1: [Z, dim1], x2: [Z, dim2], irreps in e3nn's mul_ir layout, float32 or float64.
        weight: [n], the [U, V, W] blocks of all paths one after the other (e3nn's order).
        table: what is multiplied with what; see `ProductTable`.
        bias: [b], one for each even scalar of the output, or None.
        gate: applies e3nn's Gate (SiLU on scalars, sigmoid gates) to the product in the same kernel.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [Z, dim_out], with a gate [Z, dim_out - number of gates].

    Raises:
        ValueError: wrong shapes, dtypes or devices, or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in x1, x2, weight and bias. Source: SEGNN (Brandstetter et al. 2022), equation 8;
    e3nn's FullyConnectedTensorProduct.
    """
    no_forward_mode("tensor_product", x1, x2, weight, bias)
    cg = table.on(x1.device)
    check_constant("tensor_product", cg_value=cg[1])
    tables = (*cg, table.dims, table.paths, table.bias_slots)
    if gate is None:
        return tensor_product_op(x1, x2, weight, bias, *tables, backend)
    return gated_tensor_product_op(x1, x2, weight, bias, *tables, *gate, backend)[0]
