"""cfconv and spline_conv in Triton; the kernels are in triton_network.py and triton_splines.py.

Of edges nothing is stored but single numbers: the gradient of each distance, the knot that each is sorted by.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from ..segment_sum import triton_kernels as segments
from ..triton_common import INTERPRETED, AotCase, accumulator, allow_tf32, cdiv, launch, next_power_of_2, tl
from .triton_network import cfconv_bwd_kernel, cfconv_fwd_kernel
from .triton_splines import (
    spline_conv_bwd_kernel_knots,
    spline_conv_bwd_kernel_pos,
    spline_conv_bwd_kernel_table,
    spline_conv_fwd_kernel,
)

EDGES = 64 if INTERPRETED else 16  # that a program has under way
SPAN = 512  # edges whose gradients of the network one program sums


def _block(channels: int) -> tuple[int, int]:
    """Channels of a program, and programs to a row."""
    block = min(64, max(16, next_power_of_2(channels)))
    return block, cdiv(channels, block)


class _Edges:
    """x [N, F], pos [N, 3] and both lists of edges, dense."""

    def __init__(self, x, pos, neighbour, ptr, back, back_ptr):
        self.x, self.pos = x.contiguous(), pos.contiguous()
        self.by_target = [neighbour.contiguous(), ptr.contiguous()]
        self.by_source = [back.contiguous(), back_ptr.contiguous()]
        (self.nodes, self.channels), self.edges = x.shape, neighbour.shape[0]

    def target(self) -> Tensor:
        """[E]"""
        ptr = self.by_target[1]
        node = torch.arange(self.nodes, device=ptr.device)
        return torch.repeat_interleave(node, ptr[1:] - ptr[:-1], output_size=self.edges)

    def _or_any(self, x: Tensor | None) -> Tensor:
        """An absent tensor is never read; any pointer stands for it."""
        return self.x if x is None else x


class _Splines(_Edges):
    """The arguments of spline_conv, and its kernels' sums."""

    def __init__(self, x, pos, table, neighbour, ptr, back, back_ptr, chunks, symmetric, cutoff):
        super().__init__(x, pos, neighbour, ptr, back, back_ptr)
        self.table, self.knots = table.contiguous(), table.shape[0]
        self.constants = {"STEP": cutoff / (self.knots - 1), "CUTOFF": cutoff}
        self.block, self.blocks = _block(self.channels)
        self.sizes = {"BE": EDGES, "BC": self.block, "ACC": accumulator(x.dtype), "num_warps": 2}

    def sums(self, x: Tensor | None, v: Tensor | None, move: Tensor | None, edges: list[Tensor]) -> Tensor:
        """[N, C]: of W x over the other ends of `edges`, plus W' v."""
        y = self.x.new_empty(self.x.shape)
        launch(spline_conv_fwd_kernel, (self.nodes * self.blocks,), self._or_any(x), self._or_any(v), self.pos,
               self._or_any(move), self.table, *edges, y, self.nodes, self.edges, self.channels, self.knots,
               self.blocks, **self.constants, SUM=x is not None, CHANGE=v is not None, **self.sizes, device=y.device)
        return y

    def positions(self, g: Tensor, c_x: Tensor | None, move: Tensor | None) -> Tensor:
        y, second = self.pos.new_empty(self.pos.shape), c_x is not None
        launch(spline_conv_bwd_kernel_pos, (self.nodes,), self.x, g, self._or_any(c_x), self.pos, self._or_any(move),
               self.table, *self.by_target, *self.by_source, y, self.nodes, self.edges,
               self.channels, self.knots, **self.constants, SECOND=second, **self.sizes, device=y.device)
        return y

    def knot_values(self, g: Tensor, c_x: Tensor | None, move: Tensor | None) -> Tensor:
        """The gradient of the table; edges are sorted by the knot before them, on the device."""
        y, second = self.table.new_empty(self.table.shape), c_x is not None
        target, neighbour = self.target(), self.by_target[0]
        knots = torch.empty(self.edges, dtype=torch.int32, device=y.device)
        launch(spline_conv_bwd_kernel_knots, (cdiv(self.edges, 256),), target, neighbour, self.pos, knots, self.nodes,
               self.edges, self.knots, **self.constants, BE=256, device=y.device)
        knots, order = torch.sort(knots, stable=True)
        start = torch.searchsorted(knots, torch.arange(self.knots + 1, dtype=torch.int32, device=y.device))
        launch(spline_conv_bwd_kernel_table, (self.knots * self.blocks,), self.x, g, self._or_any(c_x), self.pos,
               self._or_any(move), target, neighbour, order, start, y, self.nodes, self.edges, self.channels,
               self.knots, self.blocks, **self.constants, SECOND=second, **self.sizes, device=y.device)
        return y


class _Network(_Edges):
    """The arguments of cfconv, and its kernels' sums."""

    def __init__(self, x, pos, weight1, bias1, weight2, bias2, centre, scale, neighbour, ptr, back, back_ptr, chunks,
                 symmetric, basis, activation, alpha, cutoff):
        super().__init__(x, pos, neighbour, ptr, back, back_ptr)
        self.of = [t.contiguous() for t in (weight1, bias1, weight2, bias2, centre, scale)]
        (hidden, count), channels = weight1.shape, x.shape[1]
        self.shape = [count, hidden, channels]
        self.constants = {"KIND": basis, "ACTIVATION": activation, "ALPHA": alpha, "CUTOFF": cutoff}
        blocks = (max(16, next_power_of_2(n)) for n in self.shape)
        self.sizes = {"BE": EDGES} | dict(zip(("BG", "BH", "BF"), blocks, strict=True)) | {
            "ACC": accumulator(x.dtype), "TF32": allow_tf32(x), "num_warps": 4}

    def sums(self, x: Tensor | None, v: Tensor | None, move: Tensor | None, edges: list[Tensor]) -> Tensor:
        """[N, F]: of W x over the other ends of `edges`, plus W' v."""
        y = self.x.new_empty(self.x.shape)
        launch(cfconv_fwd_kernel, (self.nodes,), self._or_any(x), self._or_any(v), self.pos, self._or_any(move),
               *self.of, *edges, y, self.nodes, self.edges, *self.shape, **self.constants, SUM=x is not None,
               CHANGE=v is not None, **self.sizes, device=y.device)
        return y

    def gradients(self, g: Tensor, c_x: Tensor | None, move: Tensor | None, needs: list[bool]) -> list[Tensor]:
        """Of pos and the parameters where needed."""
        second, programs, target = c_x is not None, cdiv(self.edges, SPAN), self.target()
        g_d, g_t = g.new_empty(2, self.edges)
        sums = [t.new_empty(programs if any(needs[1:]) else 0, *t.shape) for t in self.of]
        if any(needs):
            launch(cfconv_bwd_kernel, (programs,), self.x, g, self._or_any(c_x), self.pos, self._or_any(move), *self.of,
                   target, self.by_target[0], g_d, g_t, *sums, self.nodes, self.edges, *self.shape, SPAN,
                   **self.constants, SECOND=second, NEED_D=needs[0], NEED_WEIGHTS=any(needs[1:]), **self.sizes,
                   device=g.device)
        makers = [lambda: self._positions(target, g_d, g_t, move), *((lambda s=s: s.sum(0)) for s in sums)]
        return list(_chosen(makers, needs, g))

    def _positions(self, target: Tensor, g_d: Tensor, g_t: Tensor, move: Tensor | None) -> Tensor:
        """[N, 3] from the gradients of the edges' distances and of their changes along `move`."""
        neighbour = self.by_target[0].clamp(0, max(self.nodes - 1, 0))  # of what is outside g_d and g_t are zero
        difference = lambda t: t.index_select(0, target) - t.index_select(0, neighbour)  # noqa: E731
        r = difference(self.pos)
        d = r.norm(dim=1, keepdim=True)
        inverse = torch.where(d == 0, 0.0, 1 / d)
        of_edge = g_d[:, None] * (r * inverse)
        if move is not None:
            step, unit = difference(move), r * inverse
            of_edge = of_edge + g_t[:, None] * (step - (step * unit).sum(1, keepdim=True) * unit) * inverse
        by_source, order = torch.sort(neighbour, stable=True)
        start = torch.searchsorted(by_source, torch.arange(self.nodes + 1, device=order.device))
        place = torch.arange(self.edges, device=order.device)
        return (segments.forward(of_edge, target, place, self.by_target[1])
                - segments.forward(of_edge, neighbour, order, start))


def _chosen(makers, needs, like: Tensor) -> tuple[Tensor, ...]:
    return tuple(make() if need else like.new_empty(0) for make, need in zip(makers, needs, strict=True))


def spline_forward(*arguments) -> Tensor:
    """x [N, F], pos [N, 3], table [K, 2, F] -> [N, F], as in the reference."""
    a = _Splines(*arguments)
    return a.sums(a.x, None, None, a.by_target)


def spline_backward(g, *arguments) -> tuple[Tensor, ...]:
    """g [N, F] -> gradients of x, pos and table."""
    *arguments, needs = arguments
    a, g = _Splines(*arguments), g.contiguous()
    return _chosen((lambda: a.sums(g, None, None, a.by_source), lambda: a.positions(g, None, None),
                    lambda: a.knot_values(g, None, None)), needs, g)


def spline_second(c_x, c_pos, g, *arguments) -> tuple[Tensor, ...]:
    """Cotangents of the gradients of x and pos -> gradients of g, x, pos and table."""
    *arguments, needs = arguments
    a, g, c_x, c_pos = _Splines(*arguments), g.contiguous(), c_x.contiguous(), c_pos.contiguous()
    return _chosen((lambda: a.sums(c_x, a.x, c_pos, a.by_target), lambda: a.sums(None, g, c_pos, a.by_source),
                    lambda: a.positions(g, c_x, c_pos), lambda: a.knot_values(g, c_x, c_pos)), needs, g)


def network_forward(*arguments) -> Tensor:
    """x [N, F], pos [N, 3], a filter network -> [N, F], as in the reference."""
    a = _Network(*arguments)
    return a.sums(a.x, None, None, a.by_target)


def network_backward(g, *arguments) -> tuple[Tensor, ...]:
    """g [N, F] -> gradients of x, pos and the parameters."""
    *arguments, needs = arguments
    a, g = _Network(*arguments), g.contiguous()
    return *_chosen([lambda: a.sums(g, None, None, a.by_source)], needs[:1], g), *a.gradients(g, None, None, needs[1:])


def network_second(c_x, c_pos, g, *arguments) -> tuple[Tensor, ...]:
    """Cotangents of the gradients of x and pos -> gradients of g, x, pos and the parameters."""
    *arguments, needs = arguments
    a, g, c_x, c_pos = _Network(*arguments), g.contiguous(), c_x.contiguous(), c_pos.contiguous()
    nodes = _chosen((lambda: a.sums(c_x, a.x, c_pos, a.by_target), lambda: a.sums(None, g, c_pos, a.by_source)),
                    needs[:2], g)
    return *nodes, *a.gradients(g, c_x, c_pos, needs[2:])


spline = SimpleNamespace(forward=spline_forward, backward=spline_backward, second=spline_second)
network = SimpleNamespace(forward=network_forward, backward=network_backward, second=network_second)


def _aot(kernel, tensors: str, integers: str, indices: str, **constexprs) -> list[AotCase]:
    found = []
    for kind, acc in (("*fp32", tl.float32), ("*fp64", tl.float64)):
        signature = dict.fromkeys(tensors.split(), kind) | dict.fromkeys(integers.split(), "i32")
        signature |= dict.fromkeys(indices.split(), "*i64") | ({"knots": "*i32"} if "knots" in kernel.arg_names else {})
        sizes = {"BE": 256} if "knots" in kernel.arg_names else {"BE": EDGES, "BC": 64, "ACC": acc}
        found.append(AotCase(kernel, signature, {"STEP": 10 / 1023, "CUTOFF": 10.0} | constexprs | sizes,
                             num_warps=4 if "knots" in kernel.arg_names else 2))
    return found


_NETWORK = "weight1 bias1 weight2 bias2 centre scale"
_GRADIENTS = " ".join(f"g_{name}" for name in _NETWORK.split())
AOT = [
    *(case for s, c in ((True, False), (True, True), (False, True)) for case in _aot(
        spline_conv_fwd_kernel, "x v pos move table y", "N E C KNOTS blocks_c", "neighbour ptr", SUM=s, CHANGE=c)),
    *(case for second in (False, True) for case in (
        *_aot(spline_conv_bwd_kernel_pos, "x g c_x pos move table y", "N E C KNOTS", "neighbour ptr back back_ptr",
              SECOND=second),
        *_aot(spline_conv_bwd_kernel_table, "x g c_x pos move y", "N E C KNOTS blocks_c",
              "target neighbour order start", SECOND=second),
    )),
    *_aot(spline_conv_bwd_kernel_knots, "pos", "N E KNOTS", "target neighbour"),
    *(AotCase(kernel, dict.fromkeys(tensors.split(), f"*{t}") | dict.fromkeys(("N", "E", "G", "H", "F"), "i32")
              | dict.fromkeys(indices.split(), "*i64") | ({"span": "i32"} if "span" in kernel.arg_names else {}),
              {"KIND": 0, "ACTIVATION": 0, "ALPHA": 0.0, "CUTOFF": 10.0, "BE": EDGES, "BG": 64, "BH": 64, "BF": 64,
               "ACC": acc, "TF32": False} | constexprs)
      for t, acc in (("fp32", tl.float32), ("fp64", tl.float64))
      for kernel, tensors, indices, constexprs in (
          (cfconv_fwd_kernel, f"x v pos move {_NETWORK} y", "neighbour ptr", {"SUM": True, "CHANGE": False}),
          (cfconv_bwd_kernel, f"x g c_x pos move {_NETWORK} g_d g_t {_GRADIENTS}", "target neighbour",
           {"SECOND": False, "NEED_D": True, "NEED_WEIGHTS": True}))),
]
