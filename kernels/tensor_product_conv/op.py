"""tensor_product_conv: schema, checks, fakes and derivatives."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ...graph import Graph
from ..define import check_constant, check_tensors, define, fail, mask, no_forward_mode
from ..multilinear import second_derivative
from ..tensor_product.table import Path, ProductTable, weight_numel, with_weight
from ..triton_common import matmul_precision
from . import reference

_native, _cuda = torch.ops.ace_fast_native, torch.ops.ace_fast_cuda

BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(  # deterministic whether or not `atomic` allows less
        forward=lambda *a: _native.tensor_product_conv(*a[:-1]),
        backward=lambda *a: _native.tensor_product_conv_bwd(*a[:-2], mask(a[-1])),
    ),
    "cuda": SimpleNamespace(
        forward=lambda *a: _cuda.tensor_product_conv(*a, matmul_precision(a[0])),
        backward=lambda *a: _cuda.tensor_product_conv_bwd(*a[:-1], mask(a[-1]), matmul_precision(a[0])),
    ),
}


def _check_segments(op: str, x: Tensor, edges: int | None, **segments: tuple[Tensor, Tensor, Tensor]) -> None:
    """index and order [E], ptr [N + 1], all int64 on the device of x."""
    for name, (index, order, ptr) in segments.items():
        for part, t in (("", index), ("_order", order), ("_ptr", ptr)):
            if t.dtype != torch.int64 or t.dim() != 1 or t.device != x.device:
                fail(op, name + part, f"int64 [length] on {x.device}", f"{t.dtype} {list(t.shape)} on {t.device}")
        for part, t in (("", index), ("_order", order)):
            if t.shape[0] != edges:
                fail(op, name + part, f"[{edges}] like the rows of x2", list(t.shape))
        if ptr.shape[0] < 1:
            fail(op, f"{name}_ptr", "[N + 1]", list(ptr.shape))


def _check(op, x1, x2, weight, source, source_order, source_ptr, target, target_order, target_ptr, cg_index, cg_value,
           dims, paths) -> None:
    check_tensors(op, x1, x2=x2, weight=weight)
    if len(dims) != 4:
        fail(op, "dims", "dim1, dim2, dim_out and the layout", list(dims))
    if x2.dim() != 2 or x2.shape[1] != dims[1]:
        fail(op, "x2", f"[E, {dims[1]}]", list(x2.shape))
    edges = x2.shape[0]
    _check_segments(op, x1, edges, source=(source, source_order, source_ptr),
                    target=(target, target_order, target_ptr))
    if x1.dim() != 2 or x1.shape[0] != source_ptr.shape[0] - 1 or x1.shape[1] != dims[0]:
        fail(op, "x1", f"[{source_ptr.shape[0] - 1}, {dims[0]}], a row for each source", list(x1.shape))
    if len(paths) % len(Path._fields):
        fail(op, "paths", f"{len(Path._fields)} integers a path", len(paths))
    numel = weight_numel(paths)
    if weight.dim() not in (1, 2) or weight.shape[-1] != numel or weight.dim() == 2 and weight.shape[0] != edges:
        fail(op, "weight", f"[{numel}] or [{edges}, {numel}]", list(weight.shape))
    if cg_value.dtype != torch.float64 or cg_index.dtype != torch.int64 or cg_index.shape != (cg_value.shape[0], 3):
        fail(op, "cg_value", "float64 [nnz] beside int64 cg_index [nnz, 3]",
             f"{cg_value.dtype} {list(cg_value.shape)} beside {cg_index.dtype} {list(cg_index.shape)}")


def _check_bwd(op, g, *rest) -> None:
    *inputs, needs = rest
    _check(op, *inputs)
    targets, dim = inputs[8].shape[0] - 1, inputs[11][2]
    check_tensors(op, g, x1=inputs[0])
    if g.dim() != 2 or g.shape[0] != targets or g.shape[1] != dim:
        fail(op, "g", f"[{targets}, {dim}], a row for each target", list(g.shape))
    if len(needs) != 3:
        fail(op, "needs", "three bools (x1, x2, weight)", list(needs))


def _alerting(op: str, compute: Callable) -> Callable:
    """`compute`, with what torch's own operators without a deterministic implementation do at every call."""
    message = (f"{op}: atomic=True does not have a deterministic implementation, but "
               "'torch.use_deterministic_algorithms(True)' is set; leave atomic=False")

    def alerting(*inputs):
        if torch.are_deterministic_algorithms_enabled():
            if not torch.is_deterministic_algorithms_warn_only_enabled():
                raise RuntimeError(message)
            warnings.warn(message, stacklevel=3)
        return compute(*inputs)

    return alerting


def _forward(*args):
    *inputs, atomic, backend = args
    _check("tensor_product_conv", *inputs)
    compute = pick("tensor_product_conv", BACKENDS, backend, args[0], (args[2], args[11], args[12])).forward
    return _alerting("tensor_product_conv", compute) if atomic else compute


def _forward_fake(*args):
    _check("tensor_product_conv", *args[:13])
    return args[0].new_empty(args[8].shape[0] - 1, args[11][2])


def _backward(*args):
    *inputs, atomic, needs, backend = args
    _check_bwd("tensor_product_conv_bwd", *inputs, needs)
    compute = pick("tensor_product_conv_bwd", BACKENDS, backend, args[1], (args[3], args[12], args[13])).backward
    return _alerting("tensor_product_conv_bwd", compute) if atomic else compute


def _backward_fake(*args):
    _check_bwd("tensor_product_conv_bwd", *args[:14], args[15])
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(args[1:4], args[15], strict=True))


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:11])
    ctx.static, ctx.backend = inputs[11:14], inputs[14]


def _forward_rule(ctx, g):
    needs = list(ctx.needs_input_grad[:3])
    grads = tensor_product_conv_bwd(g, *ctx.saved_tensors, *ctx.static, needs, ctx.backend)
    return *(x if need else None for x, need in zip(grads, needs, strict=True)), *(None,) * 12


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:12])
    ctx.static, ctx.given, ctx.backend = inputs[12:15], inputs[15], inputs[16]


def _backward_rule(ctx, *cotangents):
    g, x1, x2, weight, *fixed = ctx.saved_tensors
    dims, paths, atomic = ctx.static

    def tables(slot):  # what has no weight is constant in the weights
        return *fixed, dims, with_weight(paths) if slot == 2 else paths, atomic

    sums = second_derivative(
        (x1, x2, weight), [c if given else None for c, given in zip(cotangents, ctx.given, strict=True)],
        ctx.needs_input_grad[:4],
        lambda slot, x: tensor_product_conv_op(*x, *tables(slot), ctx.backend),
        lambda slot, x, wanted: tensor_product_conv_bwd(g, *x, *tables(slot), wanted, ctx.backend),
    )
    return *sums, *(None,) * 13


_INPUTS = (
    "Tensor x1, Tensor x2, Tensor weight, Tensor source, Tensor source_order, Tensor source_ptr, Tensor target,"
    " Tensor target_order, Tensor target_ptr, Tensor cg_index, Tensor cg_value, int[] dims, int[] paths, bool atomic"
)
tensor_product_conv_op = define(
    f"tensor_product_conv({_INPUTS}, str backend) -> Tensor", _forward, _forward_fake, _setup, _forward_rule,
)
tensor_product_conv_bwd = define(
    f"tensor_product_conv_bwd(Tensor g, {_INPUTS}, bool[] needs, str backend) -> (Tensor, Tensor, Tensor)",
    _backward, _backward_fake, _backward_setup, _backward_rule,
)


def tensor_product_conv(x1: Tensor, x2: Tensor, weight: Tensor, graph: Graph, table: ProductTable, *,
                        atomic: bool = False, backend: str = "auto") -> Tensor:
    r"""Clebsch-Gordan product of every edge with its source node, summed at the target nodes; no edge tensor is stored.

    .. math:: y_n = \sum_{e:\, target(e) = n} TP(x_{1,\, source(e)},\, x_{2,e},\, w_e)

    Args:
        x1: [N_src, dim1], features of the source nodes; x2: [E, dim2], of the edges (spherical harmonics), float32 or
            float64, in the table's irreps and layout.
        weight: [E, n], a row for each edge, or [n] shared by all edges; the blocks of the paths one after the other.
        graph: the edges; sources and targets may be different nodes, `Graph(edge_index, (N_src, N_dst))`.
        table: what is multiplied with what, in which connection modes; see `ProductTable`.
        atomic: sums at the nodes in any order on a GPU, faster where few nodes have most edges; refused under
            torch.use_deterministic_algorithms(True).
        backend: "auto", "reference", "cpu" or "cuda".

    Returns:
        [N_dst, dim_out]; targets without edges are zero. Deterministic unless `atomic`.

    Raises:
        ValueError: wrong shapes, dtypes or devices, no Graph, a table with biases, a backend that cannot run here.
        RuntimeError: `atomic` while torch asks for deterministic algorithms.
        NotImplementedError: forward-mode derivatives.

    With shared weights of paths "uvw", float32 on a GPU obeys `torch.set_float32_matmul_precision` with the error
    bounds of `tensor_product`, sums over edges included.

    Derivatives of any order in x1, x2 and weight. Source: tensor field networks (Thomas et al. 2018), NequIP (Batzner
    et al. 2022), e3nn's TensorProduct on gathered rows followed by a sum.

    Example:
        >>> paths = [(0, 0, 0, "uvu", True, 1.0), (0, 1, 1, "uvu", True, 1.0)]
        >>> table = ace_fast.functional.ProductTable("8x0e", "1x0e+1x1o", "8x0e+8x1o", paths)
        >>> graph = ace_fast.Graph(torch.tensor([[0, 1, 2], [1, 1, 0]]), 3)
        >>> x1, x2, weight = torch.randn(3, 8), torch.randn(3, 4), torch.randn(3, table.weight_numel)
        >>> ace_fast.functional.tensor_product_conv(x1, x2, weight, graph, table).shape
        torch.Size([3, 32])
    """
    op = "tensor_product_conv"
    if not isinstance(graph, Graph):
        fail(op, "graph", "a Graph", type(graph).__name__, "use ace_fast.Graph(edge_index, num_nodes)")
    if table.bias_numel:
        fail(op, "table", "without biases", f"{table.bias_numel} biases", "add them after the sum")
    no_forward_mode(op, x1, x2, weight)
    cg = table.on(x1.device)
    check_constant(op, cg_value=cg[1])
    return tensor_product_conv_op(x1, x2, weight, *graph.sources, *graph.targets, *cg, table.dims, table.paths, atomic,
                                  backend)
