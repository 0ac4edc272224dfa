"""steerable_message: the SEGNN message with its sum to the nodes, as one operator that stores nothing of edge size."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ...graph import Graph
from ..define import check_constant, check_segments, check_tensors, define, fail, mask, no_forward_mode, vjp
from ..segment_sum import triton_kernels as segment_kernels
from ..tensor_product import triton_kernels as product_kernels
from ..tensor_product.table import MODES, GateTable, Path, ProductTable, weight_numel
from . import cost, cuda_kernels, reference
from .reference import Arguments

_native = torch.ops.ace_fast_native
NAMES = ("h", "extra", "attr", "weight1", "bias1", "weight2", "bias2")  # what has a derivative

BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.steerable_message(*a),
        backward=lambda *a: _native.steerable_message_bwd(*a[:-1], mask(a[-1])),
    ),
    "cuda": cuda_kernels,
    "triton": reference.compose(segment_kernels, product_kernels),
}


def _check_product(op: str, n: int, weight: Tensor, bias: Tensor | None, tables, gate, dim1: int, dim2: int) -> int:
    """The n-th product takes [E, dim1] and [E, dim2]; returns the width of what its gate gives."""
    cg_index, cg_value, dims, paths, slots = tables
    if list(dims[:2]) != [dim1, dim2]:
        fail(op, f"dims{n}", f"{dim1} and {dim2} inputs", f"{dims[0]} and {dims[1]}", f"check table{n}")
    fields = len(Path._fields)
    if len(paths) % fields:
        fail(op, f"paths{n}", f"{fields} integers a path", len(paths))
    others = {MODES[mode] for mode in paths[fields - 1::fields]} - {"uvw"}
    if others or dims[3]:
        fail(op, f"table{n}", "of mode uvw in layout mul_ir", ", ".join([*others, *["layout ir_mul"] * dims[3]]),
             "use tensor_product for others")
    if weight.dim() != 1 or weight.shape[0] != weight_numel(paths):
        fail(op, f"weight{n}", f"[{weight_numel(paths)}]", list(weight.shape))
    if bias is not None and list(bias.shape) != [sum(slots[1::2])]:
        fail(op, f"bias{n}", f"[{sum(slots[1::2])}], one per even scalar", list(bias.shape))
    if cg_value.dtype != torch.float64 or cg_index.dtype != torch.int64 or cg_index.shape != (cg_value.shape[0], 3):
        fail(op, f"cg_value{n}", f"float64 [nnz] beside int64 cg_index{n} [nnz, 3]",
             f"{cg_value.dtype} {list(cg_value.shape)} beside {cg_index.dtype} {list(cg_index.shape)}")
    layout = gate[0]
    if not layout:
        return dims[2]
    scalars, gates, *gated = layout
    total = scalars + gates + sum(m * d for m, d in zip(gated[::2], gated[1::2], strict=True))
    if total != dims[2] or gates != sum(gated[::2]):
        fail(op, f"layout{n}", f"{dims[2]} numbers with one gate a gated irrep", f"{total} numbers, {gates} gates")
    return dims[2] - gates


def _check(op: str, a: Arguments) -> int:
    """Returns D_out."""
    check_tensors(op, a.h, **{name: getattr(a, name) for name in NAMES[1:]})
    edges = a.target_index.shape[0] if a.target_index.dim() else None
    if a.h.dim() != 2:
        fail(op, "h", "[N, D]", list(a.h.shape))
    for name, x in (("attr", a.attr), ("extra", a.extra)):
        if x is not None and (x.dim() != 2 or x.shape[0] != edges):
            fail(op, name, f"[{edges}, {name[0].upper() if name == 'attr' else 'X'}], a row per edge", list(x.shape))
    nodes, d = a.h.shape
    check_segments(op, "target", nodes, a.h.device, a.target_index, a.target_order, a.target_ptr)
    check_segments(op, "source", nodes, a.h.device, a.source_index, a.source_order, a.source_ptr)
    if a.source_index.shape[0] != edges:
        fail(op, "source_index", f"[{edges}] like target_index", list(a.source_index.shape))
    width = 2 * d + (0 if a.extra is None else a.extra.shape[1])
    message = _check_product(op, 1, a.weight1, a.bias1, a.tables(0), a.gate(0), width, a.attr.shape[1])
    if a.factor and cost.roles(a.paths1, d) is None:
        fail(op, "factor", "False where a channel of in1 lies across two of h_i, h_j and extra", True)
    return _check_product(op, 2, a.weight2, a.bias2, a.tables(1), a.gate(1), message, a.attr.shape[1])


def _check_bwd(op: str, g: Tensor, *arguments) -> Arguments:
    *arguments, needs = arguments
    a = Arguments(*arguments)
    width = _check(op, a)
    check_tensors(op, a.h, g=g)
    if list(g.shape) != [a.h.shape[0], width]:
        fail(op, "g", f"[{a.h.shape[0]}, {width}]", list(g.shape))
    if len(needs) != len(NAMES):
        fail(op, "needs", f"a bool for each of {', '.join(NAMES)}", list(needs))
    return a


def _forward(*args):
    *inputs, backend = args
    _check("steerable_message", Arguments(*inputs))
    return pick("steerable_message", BACKENDS, backend, args[0]).forward


def _forward_fake(*args):
    a = Arguments(*args[:-1])
    return a.h.new_empty(a.h.shape[0], _check("steerable_message", a))


def _backward(*args):
    *inputs, backend = args
    _check_bwd("steerable_message_bwd", *inputs)
    return pick("steerable_message", BACKENDS, backend, args[0]).backward


def _backward_fake(*args):
    a = _check_bwd("steerable_message_bwd", *args[:-1])
    biases = [a.h.new_empty(sum(slots[1::2])) for slots in (a.bias_slots1, a.bias_slots2)]
    extra = a.h.new_empty(a.attr.shape[0], 0) if a.extra is None else a.extra
    found = (a.h, extra, a.attr, a.weight1, biases[0], a.weight2, biases[1])
    return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(found, args[-2], strict=True))


def _setup(ctx, inputs, output):
    tensors = [x for x in inputs if x is None or isinstance(x, Tensor)]
    ctx.save_for_backward(*tensors)
    # what is no tensor, at its place
    ctx.static = [None if x is None or isinstance(x, Tensor) else (x,) for x in inputs]


def _arguments(ctx) -> list:
    """The inputs that `_setup` kept, in order."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if fixed is None else fixed[0] for fixed in ctx.static]


def _forward_rule(ctx, g):
    *arguments, backend = _arguments(ctx)
    needs = list(ctx.needs_input_grad[:len(NAMES)])
    found = steerable_message_bwd(g, *arguments, needs, backend)
    grads = (x if need else None for x, need in zip(found, needs, strict=True))
    return *grads, *(None,) * (len(arguments) + 1 - len(NAMES))


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    _setup(ctx, inputs, output)


def _backward_rule(ctx, *cotangents):
    g, *arguments, needs, _ = _arguments(ctx)
    fixed = arguments[len(NAMES):]

    def gradients(g, *leaves):
        return reference.backward(g, *leaves, *fixed, needs)

    found = vjp(gradients, [g, *arguments[:len(NAMES)]], list(cotangents))
    return *found, *(None,) * (len(fixed) + 2)


def _product_schema(n: int) -> str:
    return (f"Tensor cg_index{n}, Tensor cg_value{n}, int[] dims{n}, int[] paths{n}, int[] bias_slots{n}, "
            f"int[] layout{n}, float scalar_gain{n}, float gate_gain{n}")


_INPUTS = ("Tensor h, Tensor? extra, Tensor attr, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, "
           "Tensor source_index, Tensor source_order, Tensor source_ptr, "
           "Tensor target_index, Tensor target_order, Tensor target_ptr, "
           f"{_product_schema(1)}, {_product_schema(2)}, bool factor")
steerable_message_op = define(
    f"steerable_message({_INPUTS}, str backend) -> Tensor",
    _forward, _forward_fake, _setup, _forward_rule,
)
steerable_message_bwd = define(
    f"steerable_message_bwd(Tensor g, {_INPUTS}, bool[] needs, str backend)"
    f" -> ({', '.join(['Tensor'] * len(NAMES))})",
    _backward, _backward_fake, _backward_setup, _backward_rule,
)


def steerable_message(h: Tensor, attr: Tensor, graph: Graph, weight1: Tensor, table1: ProductTable, weight2: Tensor,
                      table2: ProductTable, *, extra: Tensor | None = None, bias1: Tensor | None = None,
                      bias2: Tensor | None = None, gate1: GateTable | None = None, gate2: GateTable | None = None,
                      factor: bool | str = "auto", backend: str = "auto") -> Tensor:
    r"""Two steerable products on every edge and the sum at its target; nothing of edge size is kept for the gradient.

    .. math:: M_i = \sum_{e = (j \to i)} G_2\big(T_2(G_1(T_1([h_i, h_j, x_e], a_e) + b_1), a_e) + b_2\big)

    Args:
        h: [N, D], irreps in e3nn's mul_ir layout, float32 or float64.
        attr: a_e [E, A], what steers both products.
        graph: the `ace_fast.Graph` of the N nodes and E edges.
        weight1, weight2: [n1], [n2], the [U, V, W] blocks of the products' paths one after the other.
        table1: of the first product, (h_i, h_j, x_e) with a_e, 2 D + X inputs; `ProductTable`.
        table2: of the second product, what the first gives with a_e.
        extra: x_e [E, X], or None.
        bias1, bias2: one for each even scalar of a product's output, or None.
        gate1, gate2: e3nn's Gate after each product, or None for the bare product.
        factor: True applies the first weights once per node instead of once per edge, False per edge, "auto" takes
            what counts fewer operations and bytes for these sizes. The same numbers up to rounding.
        backend: "auto", "reference", "cpu", "cuda" or "triton"; the last runs the kernels of the parts, with edge
            tensors inside a call, and so does "cuda" for messages that a block cannot hold.

    Returns:
        [N, D_out]; zero for nodes where no edge ends. Deterministic.

    Raises:
        ValueError: wrong shapes, dtypes or devices, or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Float32 on a GPU obeys `torch.set_float32_matmul_precision`: either product has the error bound of `tensor_product`.

    Derivatives of any order in h, extra, attr, weights and biases; the first recomputes the edges, the higher ones go
    through the reference and store them. Source: SEGNN (Brandstetter et al. 2022), equations 10 and 11.

    Example:
        >>> paths = [(0, 0, 0, "uvw", True, 1.0)]
        >>> table1 = ace_fast.functional.ProductTable("2x0e", "1x0e", "3x0e", paths)  # of h_i and h_j, 1x0e each
        >>> table2 = ace_fast.functional.ProductTable("3x0e", "1x0e", "1x0e", paths)
        >>> graph = ace_fast.Graph(torch.tensor([[0, 1, 2], [1, 1, 0]]), 3)
        >>> h, attr, w1, w2 = torch.randn(3, 1), torch.ones(3, 1), torch.randn(6), torch.randn(3)
        >>> ace_fast.functional.steerable_message(h, attr, graph, w1, table1, w2, table2).shape
        torch.Size([3, 1])
    """
    op = "steerable_message"
    if not isinstance(graph, Graph):
        fail(op, "graph", "an ace_fast.Graph", type(graph).__name__, "use ace_fast.Graph(edge_index, num_nodes)")
    no_forward_mode(op, h, extra, attr, weight1, bias1, weight2, bias2)
    cg1, cg2 = table1.on(h.device), table2.on(h.device)
    check_constant(op, cg_value1=cg1[1], cg_value2=cg2[1])
    if factor not in (True, False, "auto"):
        fail(op, "factor", "True, False or 'auto'", repr(factor))
    if factor == "auto":
        factor = h.dim() == 2 and cost.factor_pays(table1.paths, h.shape[1], graph.num_nodes, graph.num_edges)
    none = ((), 1.0, 1.0)
    first = (*cg1, table1.dims, table1.paths, table1.bias_slots, *(gate1 or none))
    second = (*cg2, table2.dims, table2.paths, table2.bias_slots, *(gate2 or none))
    return steerable_message_op(h, extra, attr, weight1, bias1, weight2, bias2, *graph.sources, *graph.targets, *first,
                                *second, bool(factor), backend)
