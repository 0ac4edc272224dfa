"""tensor_product, alone, gated and normed: schema, checks, fakes and derivatives."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_constant, check_tensors, define, fail, mask, no_forward_mode, vjp
from ..triton_common import matmul_precision
from . import reference, triton_kernels
from .epilogue import GATE, NORM, code, fuse
from .table import MODES, GateTable, NormTable, Path, ProductTable, weight_numel

_native, _cuda = torch.ops.ace_fast_native, torch.ops.ace_fast_cuda


def _fully_connected_only(weight: Tensor, dims: list[int], paths: list[int]) -> str:
    """Why a backend for products with shared "uvw" weights in mul_ir does not take these tables."""
    if weight.dim() != 1:
        return "weights of every row"
    if dims[3]:
        return "layout ir_mul"
    modes = {MODES[mode] for mode in paths[12::len(Path._fields)]} - {"uvw"}
    return f"mode {modes.pop()}" if modes else ""


def _normed(forward, backward) -> dict:
    """The normed product of Triton, which has no kernel for norms: the formula after its product."""

    def normed_forward(x1, x2, weight, bias, norm_bias, *rest):
        pre = forward(x1, x2, weight, bias, *rest[:5])
        return reference.norm_activation(pre, norm_bias, *rest[5:], rest[2][3]), pre

    def normed_backward(g, pre, x1, x2, weight, norm_bias, *rest):
        *rest, needs = rest
        g_pre, g_norm = reference.norm_activation_backward(g, pre, norm_bias, *rest[5:], rest[2][3])
        found = backward(g_pre, x1, x2, weight, *rest[:5], needs[:4])
        return *found, g_norm if needs[4] else g.new_empty(0)

    return {"normed_forward": normed_forward, "normed_backward": normed_backward}


def _natively(library, *options) -> dict:
    """The product, the gated and the normed one of a library of compiled kernels; options: made of the first tensor."""

    def call(name):
        return lambda *a: getattr(library, name)(*a, *(f(a[0]) for f in options))

    def call_bwd(name):
        return lambda *a: getattr(library, name)(*a[:-1], mask(a[-1]), *(f(a[0]) for f in options))

    normed, normed_bwd = call("normed_tensor_product"), call_bwd("normed_tensor_product_bwd")
    return {"forward": call("tensor_product"), "backward": call_bwd("tensor_product_bwd"),
            "gated_forward": call("gated_tensor_product"), "gated_backward": call_bwd("gated_tensor_product_bwd"),
            "normed_forward": lambda *a: normed(*a[:-2], code(a[-2]), a[-1]),
            "normed_backward": lambda *a: normed_bwd(*a[:-3], code(a[-3]), *a[-2:])}


BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        **_natively(_native), second=lambda *a: _native.tensor_product_bwd_bwd(*a[:-1], mask(a[-1])),
    ),
    "cuda": SimpleNamespace(**_natively(_cuda, matmul_precision)),
    "triton": SimpleNamespace(
        forward=triton_kernels.forward, backward=triton_kernels.backward, gated_forward=triton_kernels.gated_forward,
        gated_backward=triton_kernels.gated_backward, refuses=_fully_connected_only,
        **_normed(triton_kernels.forward, triton_kernels.backward),
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


def _forward(*args):
    *inputs, backend = args
    _check("tensor_product", *inputs)
    return _pick("tensor_product", backend, args[0], args[2], args[6], args[7]).forward


def _forward_fake(*args):
    _check("tensor_product", *args[:-1])
    return args[0].new_empty(args[0].shape[0], args[6][2])


def _check_bwd(op, g, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, name="g"):
    _check(op, x1, x2, weight, None, cg_index, cg_value, dims, paths, bias_slots)
    if g.dim() != 2 or g.shape[0] != x1.shape[0] or g.shape[1] != dims[2]:
        fail(op, name, f"[{x1.shape[0]}, {dims[2]}]", list(g.shape))


def _backward(*args):
    *inputs, backend = args
    _check_bwd("tensor_product_bwd", *inputs[:-1])
    return _pick("tensor_product_bwd", backend, args[0], args[3], args[6], args[7]).backward


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
    cotangents = [gg if given else None for gg, given in zip((gg_x1, gg_x2, gg_weight), ctx.given[:3], strict=True)]
    needs = list(ctx.needs_input_grad[:4])
    found = [None] * 4
    if any(needs) and any(c is not None for c in cotangents):
        found = tensor_product_bwd_bwd(g, x1, x2, weight, *cotangents, *cg, *ctx.static, needs, ctx.backend)
        found = list(_needed(needs, found))
    if gg_bias is not None and ctx.given[3] and needs[0]:
        dims, _, slots = ctx.static
        bias = reference.forward(x1, x2, weight, gg_bias, *cg, dims, [], slots)
        found[0] = bias if found[0] is None else found[0] + bias
    return *found, *(None,) * 7


def _check_bwd_bwd(op, g, x1, x2, weight, gg_x1, gg_x2, gg_weight, *tables):
    _check_bwd(op, g, x1, x2, weight, *tables)
    for name, gg, x in (("gg_x1", gg_x1, x1), ("gg_x2", gg_x2, x2), ("gg_weight", gg_weight, weight)):
        if gg is not None and gg.shape != x.shape:
            fail(op, name, list(x.shape), list(gg.shape))
    check_tensors(op, g, gg_x1=gg_x1, gg_x2=gg_x2, gg_weight=gg_weight)


def _backward_backward(*args):
    *inputs, backend = args
    _check_bwd_bwd("tensor_product_bwd_bwd", *inputs[:-1])
    chosen = _pick("tensor_product_bwd_bwd", backend, args[0], args[3], *args[9:11])
    if hasattr(chosen, "second"):
        return chosen.second
    return lambda *inputs: reference.second(*inputs, chosen.forward, chosen.backward)


def _backward_backward_fake(*args):
    _check_bwd_bwd("tensor_product_bwd_bwd", *args[:-2])
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(args[:4], args[12], strict=True))


def _bwd_bwd_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:9])
    ctx.static, ctx.given, ctx.backend = inputs[9:12], inputs[12], inputs[13]


def _bwd_bwd_rule(ctx, *cotangents):
    *inputs, cg_index, cg_value = ctx.saved_tensors

    def second(*x):
        return reference.second(*x, cg_index, cg_value, *ctx.static, ctx.given,
                                lambda *a: tensor_product_op(*a, ctx.backend),
                                lambda *a: tensor_product_bwd(*a, ctx.backend))

    return *vjp(second, inputs, list(cotangents)), *(None,) * 7


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


tensor_product_bwd_bwd = define(
    "tensor_product_bwd_bwd(Tensor g, Tensor x1, Tensor x2, Tensor weight, Tensor? gg_x1, Tensor? gg_x2,"
    f" Tensor? gg_weight, {_TABLES}, bool[] needs, str backend) -> {_FOUR}",
    _backward_backward, _backward_backward_fake, _bwd_bwd_setup, _bwd_bwd_rule,
)
_PRODUCT = SimpleNamespace(tables=_TABLES, check=_check, check_bwd=_check_bwd, gradients_fake=_gradients_fake,
                           pick=_pick, bwd=tensor_product_bwd)
gated_tensor_product_op, gated_tensor_product_bwd = fuse(GATE, _PRODUCT)
normed_tensor_product_op, normed_tensor_product_bwd = fuse(NORM, _PRODUCT)


def tensor_product(x1: Tensor, x2: Tensor, weight: Tensor, table: ProductTable, bias: Tensor | None = None, *,
                   gate: GateTable | None = None, norm: NormTable | None = None, norm_bias: Tensor | None = None,
                   backend: str = "auto") -> Tensor:
    r"""Clebsch-Gordan product in e3nn's connection modes, with optional bias and gate or activation of norms.

    .. math:: y^{w}_{k} = \sum_{paths} \sum_{uv,ij} W_{uvw} C_{ijk} x^{u}_{1,i} x^{v}_{2,j} (+ b)

    Args:
        x1: [Z, dim1], x2: [Z, dim2], irreps in the table's layout, float32 or float64.
        weight: [n], or [Z, n] with a row for each sample: the blocks of all paths one after the other (e3nn's order).
        table: what is multiplied with what; see `ProductTable`.
        bias: [b], one for each even scalar of the output, or None.
        gate: applies e3nn's Gate (SiLU on scalars, sigmoid gates) to the product in the same kernel.
        norm: applies e3nn's NormActivation to the product in the same kernel; see `norm_activation`.
        norm_bias: [channels], added to the norms, or None.
        backend: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        [Z, dim_out], with a gate [Z, dim_out - number of gates].

    Raises:
        ValueError: wrong shapes, dtypes or devices, a gate and a norm together, or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Float32 on a GPU obeys `torch.set_float32_matmul_precision` where weights are shared and paths "uvw". For the
    product and each gradient |error| <= (2 u + u^2) S beside float32's rounding, S being the sum of the absolute values
    of all terms: u = 2^-11 (TF32) for "high", u = 2^-8 (bfloat16; Triton keeps to TF32) for "medium". "highest", the
    default, has float32's accuracy.

    Derivatives of any order in x1, x2, weight and the biases. Source: SEGNN (Brandstetter et al. 2022), equation 8;
    e3nn's TensorProduct.
    """
    no_forward_mode("tensor_product", x1, x2, weight, bias, norm_bias)
    cg = table.on(x1.device)
    check_constant("tensor_product", cg_value=cg[1])
    tables = (*cg, table.dims, table.paths, table.bias_slots)
    if gate is not None and norm is not None or norm is None and norm_bias is not None:
        fail("tensor_product", "norm", "given with norm_bias and without gate",
             f"norm={norm} with norm_bias={norm_bias is not None} and gate={gate is not None}")
    if gate is not None:
        return gated_tensor_product_op(x1, x2, weight, bias, *tables, *gate, backend)[0]
    if norm is not None:
        return normed_tensor_product_op(x1, x2, weight, bias, norm_bias, *tables, *norm, backend)[0]
    return tensor_product_op(x1, x2, weight, bias, *tables, backend)
