"""cfconv, spline_conv: continuous-filter convolutions, from positions to sums at the nodes, nothing kept of edges."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from ...backend import pick
from ...graph import Graph
from ..define import check_tensors, define, fail, mask, no_forward_mode, vjp
from . import reference, triton_kernels
from .basis import ACTIVATIONS, KINDS, RadialBasis, filter_table, spline_table

_native = torch.ops.ace_fast_native
NETWORK = ("x", "pos", "weight1", "bias1", "weight2", "bias2", "centre", "scale")  # what has a derivative
SPLINE = ("x", "pos", "table")


def _on_cpu(op: str, leaves: int) -> SimpleNamespace:
    """The compiled operators, which take the edges by target alone."""
    def forward(*a):
        return getattr(_native, op)(*a[:leaves + 2], *a[leaves + 4:])

    def backward(*a):
        return tuple(getattr(_native, f"{op}_bwd")(*a[:leaves + 3], *a[leaves + 5:-1], mask(a[-1])))

    def second(*a):
        return tuple(getattr(_native, f"{op}_bwd_bwd")(*a[:leaves + 5], *a[leaves + 7:-1], mask(a[-1])))

    return SimpleNamespace(forward=forward, backward=backward, second=second)


BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(network=_on_cpu("cfconv", len(NETWORK)), spline=_on_cpu("spline_conv", len(SPLINE))),
    "triton": triton_kernels,
}


class Call(NamedTuple):
    """An operator's arguments but `needs` and `backend`."""

    leaves: list[Tensor]  # x [N, F], pos [N, 3], the filter's parameters
    graph: list  # neighbour [E], ptr [N + 1], back [E], back_ptr [N + 1], chunks [C, 4], symmetric
    constants: list  # of the filter; the cutoff comes last


def _check(op: str, names: tuple[str, ...], call: Call, check_filter: Callable) -> None:
    x, pos = call.leaves[:2]
    check_tensors(op, x, **dict(zip(names[1:], call.leaves[1:], strict=True)))
    if x.dim() != 2:
        fail(op, "x", "[N, F]", list(x.shape))
    nodes, cutoff = x.shape[0], call.constants[-1]
    if list(pos.shape) != [nodes, 3]:
        fail(op, "pos", f"[{nodes}, 3], a row for each of x", list(pos.shape))
    neighbour, ptr, back, back_ptr, chunks, _ = call.graph
    for name, t, shape in (("neighbour", neighbour, None), ("ptr", ptr, [nodes + 1]), ("back", back, None),
                           ("back_ptr", back_ptr, [nodes + 1]), ("chunks", chunks, None)):
        if t.dtype != torch.int64 or t.device != x.device or t.dim() != (2 if name == "chunks" else 1):
            fail(op, name, f"int64 on {x.device}", f"{t.dtype} {list(t.shape)} on {t.device}",
                 "pass an ace_fast.Graph on this device")
        if shape is not None and list(t.shape) != shape:
            fail(op, name, f"{shape}, one more than the rows of x", list(t.shape), "build the graph for these nodes")
    if back.shape != neighbour.shape:
        fail(op, "back", f"{list(neighbour.shape)} like neighbour", list(back.shape))
    if chunks.shape[1] != 4:
        fail(op, "chunks", "[C, 4]", list(chunks.shape))
    if not (math.isfinite(cutoff) and cutoff > 0):
        fail(op, "cutoff", "a positive number of Å", cutoff)
    check_filter(op, x.shape[1], call)


def _check_network(op: str, channels: int, call: Call) -> None:
    weight1, bias1, weight2, bias2, centre, scale = call.leaves[2:]
    if weight1.dim() != 2:
        fail(op, "weight1", "[H, G]", list(weight1.shape))
    hidden, count = weight1.shape
    for name, t, shape in (("bias1", bias1, [hidden]), ("weight2", weight2, [channels, hidden]),
                           ("bias2", bias2, [channels]), ("centre", centre, [count]), ("scale", scale, [count])):
        if list(t.shape) != shape:
            fail(op, name, f"{shape} for x [N, {channels}] and weight1 [{hidden}, {count}]", list(t.shape))
    if call.constants[0] not in range(len(KINDS)):
        fail(op, "basis", f"0..{len(KINDS) - 1}", call.constants[0])
    if call.constants[1] not in range(len(ACTIVATIONS)):
        fail(op, "activation", f"0..{len(ACTIVATIONS) - 1}", call.constants[1])


def _check_spline(op: str, channels: int, call: Call) -> None:
    table = call.leaves[2]
    if table.dim() != 3 or table.shape[0] < 2 or list(table.shape[1:]) != [2, channels]:
        fail(op, "table", f"[K, 2, {channels}] with at least two knots", list(table.shape))


class _Operator:
    """`op`, its gradient and the gradient of that, registered as `forward_op`, `backward_op` and `second_op`."""

    def __init__(self, op: str, family: str, names: tuple[str, ...], constants: str, check_filter: Callable):
        self.op, self.family, self.names, self.check_filter = op, family, names, check_filter
        self.count, self.plain = len(names), getattr(reference, family)
        inputs = (", ".join(f"Tensor {name}" for name in names) + ", Tensor neighbour, Tensor ptr, Tensor back, "
                  f"Tensor back_ptr, Tensor chunks, bool symmetric, {constants}")
        tensors = lambda count: f"({', '.join(['Tensor'] * count)})"  # noqa: E731
        self.forward_op = define(f"{op}({inputs}, str backend) -> Tensor", self.forward, self.forward_fake, self.setup,
                                 self.forward_rule)
        self.backward_op = define(
            f"{op}_bwd(Tensor g, {inputs}, bool[] needs, str backend) -> {tensors(self.count)}", self.backward,
            self.backward_fake, self.setup, self.backward_rule)
        self.second_op = define(
            f"{op}_bwd_bwd(Tensor c_x, Tensor c_pos, Tensor g, {inputs}, bool[] needs, str backend)"
            f" -> {tensors(self.count + 1)}", self.second, self.second_fake, self.setup, self.second_rule)

    def split(self, op: str, arguments) -> Call:
        n = self.count
        call = Call(list(arguments[:n]), list(arguments[n:n + reference.GRAPH]), list(arguments[n + reference.GRAPH:]))
        _check(op, self.names, call, self.check_filter)
        return call

    def check_gradient(self, op: str, like_x: dict[str, Tensor], arguments, needs, wanted: tuple[str, ...]) -> Call:
        call = self.split(op, arguments)
        check_tensors(op, call.leaves[0], **like_x)
        for name, t in like_x.items():
            shape = call.leaves[1 if name == "c_pos" else 0].shape
            if t.shape != shape:
                fail(op, name, list(shape), list(t.shape))
        if len(needs) != len(wanted):
            fail(op, "needs", f"a bool for each of {', '.join(wanted)}", list(needs))
        return call

    def check_backward(self, g, *arguments) -> Call:
        return self.check_gradient(f"{self.op}_bwd", {"g": g}, arguments[:-1], arguments[-1], self.names)

    def check_second(self, c_x, c_pos, g, *arguments) -> Call:
        return self.check_gradient(f"{self.op}_bwd_bwd", {"c_x": c_x, "c_pos": c_pos, "g": g}, arguments[:-1],
                                   arguments[-1], ("g", *self.names))

    def chosen(self, name: str, backend: str, x: Tensor):
        return getattr(pick(name, BACKENDS, backend, x), self.family)

    def forward(self, *arguments):
        *arguments, backend = arguments
        self.split(self.op, arguments)
        return self.chosen(self.op, backend, arguments[0]).forward

    def forward_fake(self, *arguments):
        return arguments[0].new_empty(self.split(self.op, arguments[:-1]).leaves[0].shape)

    def backward(self, *arguments):
        *arguments, backend = arguments
        self.check_backward(*arguments)
        return self.chosen(f"{self.op}_bwd", backend, arguments[0]).backward

    def backward_fake(self, *arguments):
        leaves = self.check_backward(*arguments[:-1]).leaves
        return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(leaves, arguments[-2], strict=True))

    def second(self, *arguments):
        *arguments, backend = arguments
        self.check_second(*arguments)
        return self.chosen(f"{self.op}_bwd_bwd", backend, arguments[0]).second

    def second_fake(self, *arguments):
        leaves = [arguments[2], *self.check_second(*arguments[:-1]).leaves]
        return tuple(x.new_empty(x.shape if need else (0,)) for x, need in zip(leaves, arguments[-2], strict=True))

    @staticmethod
    def setup(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.static = inputs[len(tensors):]

    def forward_rule(self, ctx, g):
        *static, backend = ctx.static
        needs = list(ctx.needs_input_grad[:self.count])
        found = (None,) * self.count
        if g is not None:
            found = self.backward_op(g, *ctx.saved_tensors, *static, needs, backend)
        return *(x if need else None for x, need in zip(found, needs, strict=True)), *(None,) * (5 + len(ctx.static))

    def backward_rule(self, ctx, c_x, c_pos, *c_parameters):
        n, (*static, needs, backend) = self.count, ctx.static
        saved, wanted = ctx.saved_tensors, list(ctx.needs_input_grad[:1 + n])
        found: list[Tensor | None] = [None] * (1 + n)
        if c_x is not None or c_pos is not None:
            c_x = torch.zeros_like(saved[1]) if c_x is None else c_x
            c_pos = torch.zeros_like(saved[2]) if c_pos is None else c_pos
            found = list(self.second_op(c_x, c_pos, *saved, *static, wanted, backend))
        if any(c is not None for c in c_parameters):
            fixed = (*saved[1 + n:], *static)
            other = vjp(lambda *leaves: self.plain.backward(*leaves, *fixed, needs), list(saved[:1 + n]),
                        [None, None, *c_parameters])
            found = [y if x is None or not want else x if y is None else x + y
                     for x, y, want in zip(found, other, wanted, strict=True)]
        found = [x if want else None for x, want in zip(found, wanted, strict=True)]
        return *found, *(None,) * (5 + len(ctx.static))

    def second_rule(self, ctx, *cotangents):
        *static, needs, _ = ctx.static
        n = 3 + self.count
        leaves, fixed = list(ctx.saved_tensors[:n]), (*ctx.saved_tensors[n:], *static)
        found = vjp(lambda *leaves: self.plain.second(*leaves, *fixed, needs), leaves, list(cotangents))
        return *found, *(None,) * (5 + len(ctx.static))


_network = _Operator("cfconv", "network", NETWORK, "int basis, int activation, float alpha, float cutoff",
                     _check_network)
cfconv_op, cfconv_bwd, cfconv_bwd_bwd = _network.forward_op, _network.backward_op, _network.second_op
_splines = _Operator("spline_conv", "spline", SPLINE, "float cutoff", _check_spline)
spline_conv_op, spline_conv_bwd, spline_conv_bwd_bwd = _splines.forward_op, _splines.backward_op, _splines.second_op


def cfconv(x: Tensor, pos: Tensor, graph: Graph, cutoff: float, basis: RadialBasis | None = None,
           weight1: Tensor | None = None, bias1: Tensor | None = None, weight2: Tensor | None = None,
           bias2: Tensor | None = None, *, activation: str = "shifted_softplus", filter: str = "exact",
           knots: int = 1024, spline: Tensor | None = None, backend: str = "auto") -> Tensor:
    r"""SchNet's continuous-filter convolution from positions on; nothing of the size of edges times channels exists.

    .. math:: y_i = \sum_{j \to i} c(d_{ij})\, S(d_{ij}) \odot x_j, \quad
              c(d) = \tfrac{1}{2} (\cos(\pi d / r_c) + 1) \text{ for } d < r_c, \text{ else } 0

    Args:
        x: [N, F], float32 or float64. pos: [N, 3] in Å.
        graph: the `ace_fast.Graph` of the N nodes; where every edge has its reverse, filters are formed once a pair.
        cutoff: r_c in Å.
        basis: b(d) [G], see `RadialBasis`; its centres and scales may require grad.
        weight1, bias1, weight2, bias2: [H, G], [H], [F, H], [F], S(d) = weight2 a(weight1 b(d) + bias1) + bias2;
            a bias of None is zero.
        activation: a, "shifted_softplus" (log(1 + e^x) - log 2) or "silu".
        filter: "exact": the network on every pair. "table": the network and its slope on `knots` distances from 0 to
            the cutoff, cubic Hermite interpolation between them, the cutoff function exact. With knots h apart S is off
            by at most h^4/384, S' by h^3/125 and S'' by h^2/12 of the largest fourth derivative; for Gaussians
            of width w the fourth derivatives of the basis are at most 3/w^4: at 20 knots a width or more (1024 for 50
            Gaussians) relative errors below 1e-6, 1e-5 and 2e-3. "spline": no network, S itself is `spline`.
        knots: of the table.
        spline: [K, 2, F], values and slopes (1/Å) at K equal steps from 0 to the cutoff, or values [K, F], whose slopes
            are central differences; trainable.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [N, F], zero where no edge ends. Deterministic. Coincident nodes have d = 0, and no derivatives in it.

    Raises:
        ValueError: wrong shapes, dtypes, devices or options, or a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in x, pos, the parameters and the spline; the first and those of a loss of forces recompute
    the filters, the others go through plain PyTorch. Sources: SchNet (Schütt et al. 2017), equations 2 and 3;
    PyTorch Geometric's CFConv; splines: Facet (Miklaucic et al. 2025).

    Example:
        >>> graph = ace_fast.Graph(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
        >>> basis = ace_fast.functional.gaussian_basis(10.0, 50)
        >>> x, pos = torch.randn(3, 64), torch.randn(3, 3)
        >>> w1, w2 = torch.randn(64, 50), torch.randn(64, 64)
        >>> ace_fast.functional.cfconv(x, pos, graph, 10.0, basis, w1, None, w2, filter="table").shape
        torch.Size([3, 64])
    """
    op = "cfconv"
    if not isinstance(graph, Graph):
        fail(op, "graph", "an ace_fast.Graph", type(graph).__name__, "use ace_fast.Graph(edge_index, num_nodes)")
    if filter not in ("exact", "table", "spline"):
        fail(op, "filter", "'exact', 'table' or 'spline'", repr(filter))
    if isinstance(graph.num_nodes, tuple):
        fail(op, "graph", "on one set of nodes", repr(graph))
    cutoff = float(cutoff)
    if filter == "spline":
        leaves = [x, pos, _spline(x, spline, cutoff)]
        no_forward_mode(op, x, pos, spline)
        return spline_conv_op(*leaves, *graph.adjacency, cutoff, backend)
    kind = _basis_kind(x, basis, weight1, weight2, activation, spline)
    bias1 = weight1.new_zeros(weight1.shape[:1]) if bias1 is None else bias1
    bias2 = weight2.new_zeros(weight2.shape[:1]) if bias2 is None else bias2
    network = (weight1, bias1, weight2, bias2, *basis[1:3])
    no_forward_mode(op, x, pos, *network)
    constants = (kind, ACTIVATIONS.index(activation), float(basis.alpha), cutoff)
    if filter == "exact":
        return cfconv_op(x, pos, *network, *graph.adjacency, *constants, backend)
    if not isinstance(knots, int) or knots < 2:
        fail(op, "knots", "a whole number, at least 2", repr(knots))
    if not (math.isfinite(cutoff) and cutoff > 0):
        fail(op, "cutoff", "a positive number of Å", cutoff)
    if x.dim() == 2:
        _check_network(op, x.shape[1], Call([x, pos, *network], [], list(constants)))
    table = filter_table(basis, *network[:4], constants[1], cutoff, knots)
    return spline_conv_op(x, pos, table, *graph.adjacency, cutoff, backend)


def _basis_kind(x: Tensor, basis: RadialBasis | None, weight1: Tensor | None, weight2: Tensor | None, activation: str,
                spline: Tensor | None) -> int:
    """Checks what the operator cannot; returns the number of the basis' kind."""
    if not isinstance(basis, RadialBasis) or basis.kind not in KINDS:
        fail("cfconv", "basis", f"a RadialBasis of kind {', '.join(KINDS)}",
             repr(basis.kind) if isinstance(basis, RadialBasis) else type(basis).__name__,
             "use gaussian_basis, bessel_basis or expnorm_basis, or filter='spline'")
    for name, t in (("weight1", weight1), ("weight2", weight2)):
        if not isinstance(t, Tensor):
            fail("cfconv", name, "a tensor", type(t).__name__, "give the filter network, or filter='spline'")
    if activation not in ACTIVATIONS:
        fail("cfconv", "activation", f"one of {', '.join(ACTIVATIONS)}", repr(activation))
    if spline is not None:
        fail("cfconv", "spline", "None where a network gives the filter", "a tensor", "use filter='spline'")
    return KINDS.index(basis.kind)


def _spline(x: Tensor, spline: Tensor | None, cutoff: float) -> Tensor:
    if not isinstance(spline, Tensor) or spline.dim() not in (2, 3) or spline.shape[0] < 2:
        got = list(spline.shape) if isinstance(spline, Tensor) else type(spline).__name__
        fail("cfconv", "spline", "[K, F] or [K, 2, F] with at least two knots", got)
    if not (math.isfinite(cutoff) and cutoff > 0):
        fail("cfconv", "cutoff", "a positive number of Å", cutoff)
    return spline_table(spline, cutoff)
