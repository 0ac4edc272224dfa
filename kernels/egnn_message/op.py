"""egnn_message: the whole message of an EGNN layer, from positions and features to both sums, as one operator."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ...graph import Graph
from ..define import check_segments, check_tensors, define, fail, mask, no_forward_mode, vjp
from . import reference, triton_kernels
from .reference import Arguments

_native = torch.ops.ace_fast_native
# what has a derivative
NAMES = ("x", "h", "edge", "weight1", "bias1", "weight2", "bias2", "weight3", "bias3", "weight4", "bias4")

BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.egnn_message(*a),
        backward=lambda *a: _native.egnn_message_bwd(*a[:-1], mask(a[-1])),
    ),
    "triton": triton_kernels,
}


def _check(op: str, a: Arguments) -> None:
    check_tensors(op, a.x, **{name: getattr(a, name) for name in NAMES[1:]})
    if a.x.dim() != 2 or a.x.shape[1] < 1:
        fail(op, "x", "[N, D] with D at least 1", list(a.x.shape))
    nodes = a.x.shape[0]
    if a.h.dim() != 2 or a.h.shape[0] != nodes:
        fail(op, "h", f"[{nodes}, F], a row per row of x", list(a.h.shape))
    check_segments(op, "target", nodes, a.x.device, *a.targets)
    check_segments(op, "source", nodes, a.x.device, *a.sources)
    count = a.target_index.shape[0]
    if a.source_index.shape[0] != count:
        fail(op, "source_index", f"[{count}] like target_index", list(a.source_index.shape))
    if a.edge is not None and (a.edge.dim() != 2 or a.edge.shape[0] != count):
        fail(op, "edge", f"[{count}, A], a row per edge", list(a.edge.shape))
    width = 1 + 2 * a.h.shape[1] + (0 if a.edge is None else a.edge.shape[1])
    for n, what in ((1, "|r|^2, h_i, h_j and edge"), (2, "the first layer"), (3, "the message"),
                    (4, "the coordinate layer")):
        weight, bias = a[1 + 2 * n], a[2 + 2 * n]
        rows = "1" if n == 4 else "out"
        if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] < 1 or (n == 4 and weight.shape[0] != 1):
            fail(op, f"weight{n}", f"[{rows}, {width}], a column for each number of {what}", list(weight.shape))
        width = weight.shape[0]
        if bias is not None and list(bias.shape) != [width]:
            fail(op, f"bias{n}", f"[{width}]", list(bias.shape))


def _check_bwd(op: str, g_coordinates: Tensor, g_features: Tensor, *arguments) -> Arguments:
    *arguments, nodes, pre2, pre3, needs = arguments
    a = Arguments(*arguments)
    _check(op, a)
    count, hidden, width = a.target_index.shape[0], a.weight1.shape[0], a.weight2.shape[0]
    rows = a.x.shape[0]
    shapes = {"g_coordinates": (g_coordinates, [rows, a.x.shape[1]]), "g_features": (g_features, [rows, width]),
              "nodes": (nodes, [rows, 2 * hidden]), "pre2": (pre2, [count, width]),
              "pre3": (pre3, [count, a.weight3.shape[0]])}
    check_tensors(op, a.x, **{name: t for name, (t, _) in shapes.items()})
    for name, (t, shape) in shapes.items():
        if t is not None and list(t.shape) != shape:
            fail(op, name, str(shape), list(t.shape))
    if len({t is None for t in (nodes, pre2, pre3)}) > 1:
        fail(op, "nodes, pre2 and pre3", "given together or not at all", "some of them")
    if len(needs) != len(NAMES):
        fail(op, "needs", f"a bool for each of {', '.join(NAMES)}", list(needs))
    return a


def _forward(*args):
    *inputs, backend = args
    _check("egnn_message", Arguments(*inputs[:-1]))
    return pick("egnn_message", BACKENDS, backend, args[0]).forward


def _forward_fake(*args):
    *inputs, keep, _ = args
    a = Arguments(*inputs)
    _check("egnn_message", a)
    (rows, dim), edges, width = a.x.shape, a.target_index.shape[0], a.weight2.shape[0]
    kept = ((rows, 2 * a.weight1.shape[0]), (edges, width), (edges, a.weight3.shape[0]))
    return tuple(a.x.new_empty(shape) for shape in ((rows, dim), (rows, width), *(kept if keep else ((0,),) * 3)))


def _backward(*args):
    *inputs, backend = args
    _check_bwd("egnn_message_bwd", *inputs)
    return pick("egnn_message", BACKENDS, backend, args[0]).backward


def _backward_fake(*args):
    a = _check_bwd("egnn_message_bwd", *args[:-1])
    shapes = [x.shape for x in a[:2]] + [(a.target_index.shape[0], 0) if a.edge is None else a.edge.shape]
    shapes += [x.shape for x in a[3:10]] + [(1,)]
    return tuple(a.x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, args[-2], strict=True))


def _setup(ctx, inputs, output):
    *arguments, mean, keep, backend = inputs
    ctx.set_materialize_grads(False)  # what was kept has the size of the edges, and no gradient
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*arguments, *(output[2:] if keep else (None,) * 3))
    ctx.static = mean, backend


def _forward_rule(ctx, g_coordinates, g_features, *_):
    *arguments, nodes, pre2, pre3 = ctx.saved_tensors
    mean, backend = ctx.static
    x, width = arguments[0], arguments[5].shape[0]
    g_coordinates = torch.zeros_like(x) if g_coordinates is None else g_coordinates
    g_features = x.new_zeros(x.shape[0], width) if g_features is None else g_features
    needs = list(ctx.needs_input_grad[:len(NAMES)])
    found = egnn_message_bwd(g_coordinates, g_features, *arguments, mean, nodes, pre2, pre3, needs, backend)
    grads = (x if need else None for x, need in zip(found, needs, strict=True))
    return *grads, *(None,) * (len(arguments) + 3 - len(NAMES))


def _backward_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    *arguments, ctx.mean, _, _, _, ctx.needs, _ = inputs
    ctx.save_for_backward(*arguments)


def _backward_rule(ctx, *cotangents):
    # What was kept follows from the other arguments: the reference forms it again and differentiates through it.
    arguments, needs = ctx.saved_tensors, ctx.needs
    leaves, fixed = arguments[:2 + len(NAMES)], arguments[2 + len(NAMES):]

    def gradients(*leaves):
        return reference.backward(*leaves, *fixed, ctx.mean, None, None, None, needs)

    found = vjp(gradients, list(leaves), list(cotangents))
    return *found, *(None,) * (len(fixed) + 6)


_INPUTS = ("Tensor x, Tensor h, Tensor? edge, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, "
           "Tensor weight3, Tensor bias3, Tensor weight4, Tensor? bias4, "
           "Tensor source_index, Tensor source_order, Tensor source_ptr, "
           "Tensor target_index, Tensor target_order, Tensor target_ptr, bool mean")
egnn_message_op = define(
    f"egnn_message({_INPUTS}, bool keep, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward, _forward_fake, _setup, _forward_rule,
)
egnn_message_bwd = define(
    f"egnn_message_bwd(Tensor g_coordinates, Tensor g_features, {_INPUTS}, Tensor? nodes, Tensor? pre2, Tensor? pre3, "
    f"bool[] needs, str backend) -> ({', '.join(['Tensor'] * len(NAMES))})",
    _backward, _backward_fake, _backward_setup, _backward_rule,
)


def egnn_message(x: Tensor, h: Tensor, graph: Graph, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
                 weight3: Tensor, bias3: Tensor, weight4: Tensor, bias4: Tensor | None = None, *,
                 edge: Tensor | None = None, aggregation: str = "mean", clamp: float | None = 100.0,
                 recompute: bool = False, backend: str = "auto") -> tuple[Tensor, Tensor]:
    r"""The message of an EGNN layer: two networks on every edge, and their sums at the edges' targets.

    .. math::
        r_e &= x_i - x_j \qquad
        m_e = \phi(W_2\, \phi(W_1 [|r_e|^2, h_i, h_j, a_e] + b_1) + b_2) \qquad e = (j \to i),\ \phi = \mathrm{SiLU} \\
        X_i &= \mathrm{clamp}\Big(\mathop{\mathrm{mean}}_e\ r_e (W_4\, \phi(W_3 m_e + b_3) + b_4)\Big) \qquad
        M_i = \sum_e m_e

    Args:
        x: [N, D], positions, in any unit (the square of their differences enters the network), float32 or float64.
        h: [N, F], features of the nodes.
        graph: the `ace_fast.Graph` of the N nodes and E edges; sums are taken at its targets, which is row 0 of
            edge_index in the originals.
        weight1, bias1: [H, 1 + 2F + A], [H]; columns |r|^2, h_i, h_j, a_e, as the original concatenates them.
        weight2, bias2: [M, H], [M].
        weight3, bias3: [C, M], [C], the coordinate network's hidden layer.
        weight4, bias4: [1, C], and [1] or None.
        edge: a_e [E, A], or None.
        aggregation: of the coordinates, "mean" over the edges (EGNO) or "sum"; features are always summed.
        clamp: bound of each component of X after the aggregation, in the unit of x; None for no bound.
        recompute: False keeps the edges' pre-activations (E (M + C) numbers) and the nodes' products for the gradient;
            True forms them again, a third more work with nothing of edge size kept. The same numbers up to rounding.
        backend: "auto", "reference", "cpu" or "triton"; the last has edge tensors inside a call.

    Returns:
        X [N, D] and M [N, M]; zero for nodes where no edge ends. Deterministic.

    Raises:
        ValueError: wrong shapes, dtypes or devices, an unknown aggregation, a graph with other sources than targets,
            or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in x, h, edge, weights and biases, finite at coinciding nodes; those of second order and
    higher go through the reference and store the edges. Source: EGNN (Satorras et al. 2021), equations 3 to 5, with the
    mean and the clamp of EGNO (Xu et al. 2024).

    Example:
        >>> graph = ace_fast.Graph(torch.tensor([[0, 1, 2], [1, 1, 0]]), 3)
        >>> x, h = torch.randn(3, 3), torch.randn(3, 4)
        >>> weights = [torch.randn(*s) for s in ((8, 9), (8,), (5, 8), (5,), (6, 5), (6,), (1, 6))]
        >>> coordinates, features = ace_fast.functional.egnn_message(x, h, graph, *weights)
        >>> coordinates.shape, features.shape
        (torch.Size([3, 3]), torch.Size([3, 5]))
    """
    op = "egnn_message"
    if not isinstance(graph, Graph):
        fail(op, "graph", "an ace_fast.Graph", type(graph).__name__, "use ace_fast.Graph(edge_index, num_nodes)")
    if graph.num_sources != graph.num_targets:
        fail(op, "graph", "of one set of nodes", f"{graph.num_sources} sources and {graph.num_targets} targets")
    if aggregation not in ("mean", "sum"):
        fail(op, "aggregation", "'mean' or 'sum'", repr(aggregation))
    if clamp is not None and not clamp > 0:
        fail(op, "clamp", "positive or None", clamp)
    leaves = (x, h, edge, weight1, bias1, weight2, bias2, weight3, bias3, weight4, bias4)
    no_forward_mode(op, *leaves)
    keep = not recompute and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    coordinates, features, *_ = egnn_message_op(*leaves, *graph.sources, *graph.targets, aggregation == "mean", keep,
                                                backend)
    return coordinates if clamp is None else coordinates.clamp(-clamp, clamp), features
