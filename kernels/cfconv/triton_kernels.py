"""cfconv and spline_conv in Triton; the kernels are in triton_splines.py, triton_network.py and triton_weights.py.

Of edges nothing is stored but their targets and the order of their knots. Sums over edges run in an order that depends
on the inputs alone: no atomics.
"""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from ..triton_common import INTERPRETED, AotCase, accumulator, allow_tf32, cdiv, launch, next_power_of_2
from .triton_network import cfconv_bwd_kernel_pos, cfconv_fwd_kernel
from .triton_splines import (
    spline_conv_bwd_kernel_knots,
    spline_conv_bwd_kernel_pos,
    spline_conv_bwd_kernel_table,
    spline_conv_fwd_kernel,
)
from .triton_weights import cfconv_bwd_kernel_basis, cfconv_bwd_kernel_weight1, cfconv_bwd_kernel_weight2

_PARAMETERS = ("weight1", "bias1", "weight2", "bias2", "centre", "scale")
_READ = ("weight1", "bias1", "weight2", "centre", "scale")
# kernel, the first of the two parameters whose gradients it gives, the parameters that it reads
_GRADIENTS = (
    (cfconv_bwd_kernel_weight1, 0, _READ),
    (cfconv_bwd_kernel_weight2, 2, ("weight1", "bias1", "centre", "scale")),
    (cfconv_bwd_kernel_basis, 4, _READ),
)


def _block(size: int, most: int) -> int:
    """A power of two from 16 to `most` for a dimension of `size`."""
    return min(most, max(16, next_power_of_2(size)))


def _spline_sizes(dtype: torch.dtype, channels: int) -> dict:
    """Edges and channels of a block."""
    wide = dtype == torch.float32
    return {"BE": 64 if INTERPRETED else 16, "BC": _block(channels, 64 if wide else 32), "ACC": accumulator(dtype),
            "num_warps": 4, "maxnreg": 255}


def _network_sizes(kernel, dtype: torch.dtype, count: int, hidden: int, channels: int) -> dict:
    """Edges of a block, and how many basis functions, hidden units and filters it takes at a time.

    What a product sums over is 16 long, since a thread reads its part of it at once; what a program writes is wide.
    """
    double = dtype == torch.float64
    most = {"BE": 16 if double else 32, "BG": 16, "BH": 16 if double else 32, "BF": 16, "BO": 16 if double else 64}
    if kernel is cfconv_fwd_kernel:
        most |= {"BH": 16, "BF": 32 if double else 64}
    if kernel is cfconv_bwd_kernel_weight2:
        most |= {"BE": 16, "BF": 16 if double else 64}
    if INTERPRETED:  # a step costs the same whatever its size
        most = dict.fromkeys(most, 64)
    sizes = {"BG": count, "BH": hidden, "BF": channels, "BO": count}
    found = {"BE": most["BE"]} | {name: _block(size, most[name]) for name, size in sizes.items()}
    if kernel is not cfconv_bwd_kernel_weight1:
        del found["BO"]
    return found | {"ACC": accumulator(dtype), "num_warps": 8, "num_stages": 1, "maxnreg": 255}


class _Edges:
    """x [N, F], pos [N, 3] and both lists of edges, dense."""

    def __init__(self, x, pos, neighbour, ptr, back, back_ptr, symmetric):
        self.x, self.pos, self.symmetric = x.contiguous(), pos.contiguous(), symmetric
        self.by_target = [neighbour.contiguous(), ptr.contiguous()]
        self.by_source = [back.contiguous(), back_ptr.contiguous()]
        (self.nodes, self.channels), self.edges = x.shape, neighbour.shape[0]
        # of a program: about 128 edges
        self.group = min(16, max(2, next_power_of_2(cdiv(64 * self.nodes, max(self.edges, 1)))))

    def target(self) -> Tensor:
        """[E]"""
        ptr = self.by_target[1]
        node = torch.arange(self.nodes, device=ptr.device)
        return torch.repeat_interleave(node, ptr[1:] - ptr[:-1], output_size=self.edges)

    def walks(self) -> list[tuple]:
        """The lists of edges that give a node all its edges, and which of TO and FROM they count as."""
        if self.symmetric:
            return [(self.by_target, True, True)]
        return [(self.by_target, True, False), (self.by_source, False, True)]

    def or_any(self, *tensors: Tensor | None) -> list[Tensor]:
        """An absent tensor is never read; x stands for it."""
        return [self.x if t is None else t for t in tensors]


class _Splines(_Edges):
    """The arguments of spline_conv, and its kernels' sums."""

    def __init__(self, x, pos, table, neighbour, ptr, back, back_ptr, chunks, symmetric, cutoff):
        super().__init__(x, pos, neighbour, ptr, back, back_ptr, symmetric)
        self.table, self.knots = table.contiguous(), table.shape[0]
        self.constants = {"STEP": cutoff / (self.knots - 1), "CUTOFF": cutoff, "device": x.device}
        self.sizes = _spline_sizes(x.dtype, self.channels)
        self.blocks = cdiv(self.channels, self.sizes["BC"])

    def sums(self, x: Tensor | None, v: Tensor | None, move: Tensor | None, edges: list[Tensor]) -> Tensor:
        """[N, F]: of W x over the other ends of `edges`, plus W_t v."""
        y, (some_x, some_v, some_move) = self.x.new_empty(self.x.shape), self.or_any(x, v, move)
        launch(spline_conv_fwd_kernel, (cdiv(self.nodes, self.group) * self.blocks,), some_x, some_v, self.pos,
               some_move, self.table, *edges, y, self.nodes, self.edges, self.channels, self.knots, self.blocks,
               SUM=x is not None, CHANGE=v is not None, NB=self.group, **self.sizes, **self.constants)
        return y

    def positions(self, g: Tensor, c_x: Tensor | None, move: Tensor | None) -> Tensor:
        """[N, 3]"""
        found, absent = [], self.or_any(c_x, move)
        for edges, to, from_ in self.walks():
            found.append(self.pos.new_empty(self.pos.shape))
            launch(spline_conv_bwd_kernel_pos, (cdiv(self.nodes, self.group),), self.x, g, absent[0], self.pos,
                   absent[1], self.table, *edges, found[-1], self.nodes, self.edges, self.channels, self.knots, TO=to,
                   FROM=from_, SECOND=c_x is not None, NB=self.group, **self.sizes, **self.constants)
        return sum(found[1:], found[0])

    def knot_values(self, g: Tensor, c_x: Tensor | None, move: Tensor | None) -> Tensor:
        """The gradient of the table; edges are sorted by the knot before them, on the device."""
        target, neighbour, (some_c_x, some_move) = self.target(), self.by_target[0], self.or_any(c_x, move)
        knots = torch.empty(self.edges, dtype=torch.int32, device=g.device)
        launch(spline_conv_bwd_kernel_knots, (cdiv(self.edges, 256),), target, neighbour, self.pos, knots, self.nodes,
               self.edges, self.knots, BE=256, **self.constants)
        knots, order = torch.sort(knots, stable=True)
        start = torch.searchsorted(knots, torch.arange(self.knots, dtype=torch.int32, device=g.device))
        parts = min(8, cdiv(self.edges, 8 * self.knots))  # bonds of one length fill few intervals
        rows = g.new_empty(parts, self.knots - 1, 4, self.channels)
        launch(spline_conv_bwd_kernel_table, ((self.knots - 1) * self.blocks, parts), self.x, g, some_c_x, self.pos,
               some_move, target, neighbour, order, start, rows, self.channels, self.knots, self.blocks, parts,
               SECOND=c_x is not None, **self.sizes, **self.constants)
        rows = rows.sum(0)
        y = torch.zeros_like(self.table)
        y[:-1] = rows[:, :2]
        y[1:] += rows[:, 2:]
        return y


class _Network(_Edges):
    """The arguments of cfconv, and its kernels' sums."""

    def __init__(self, x, pos, weight1, bias1, weight2, bias2, centre, scale, neighbour, ptr, back, back_ptr, chunks,
                 symmetric, basis, activation, alpha, cutoff):
        super().__init__(x, pos, neighbour, ptr, back, back_ptr, symmetric)
        of = (weight1, bias1, weight2, bias2, centre, scale)
        self.of = {name: t.contiguous() for name, t in zip(_PARAMETERS, of, strict=True)}
        self.shape = [*reversed(weight1.shape), self.channels]  # G, H, F
        self.constants = {"KIND": basis, "ACTIVATION": activation, "ALPHA": alpha, "CUTOFF": cutoff, "device": x.device}
        self.constants["TF32"] = allow_tf32(x)

    def sums(self, x: Tensor | None, v: Tensor | None, move: Tensor | None, edges: list[Tensor]) -> Tensor:
        """[N, F]: of W x over the other ends of `edges`, plus W_t v."""
        y, (some_x, some_v, some_move) = self.x.new_empty(self.x.shape), self.or_any(x, v, move)
        sizes = _network_sizes(cfconv_fwd_kernel, y.dtype, *self.shape)
        blocks = cdiv(self.channels, sizes["BF"])
        launch(cfconv_fwd_kernel, (cdiv(self.nodes, self.group) * blocks,), some_x, some_v, self.pos, some_move,
               *self.of.values(), *edges, y, self.nodes, self.edges, *self.shape, blocks, SUM=x is not None,
               CHANGE=v is not None, NB=self.group, **sizes, **self.constants)
        return y

    def positions(self, g: Tensor, c_x: Tensor | None, move: Tensor | None) -> Tensor:
        """[N, 3]"""
        found, absent = [], self.or_any(c_x, move)
        sizes = _network_sizes(cfconv_bwd_kernel_pos, g.dtype, *self.shape)
        for edges, to, from_ in self.walks():
            found.append(self.pos.new_empty(self.pos.shape))
            launch(cfconv_bwd_kernel_pos, (cdiv(self.nodes, self.group),), self.x, g, absent[0], self.pos, absent[1],
                   *self.of.values(), *edges, found[-1], self.nodes, self.edges, *self.shape, TO=to, FROM=from_,
                   SECOND=c_x is not None, NB=self.group, **sizes, **self.constants)
        return sum(found[1:], found[0])

    def parameters(self, g: Tensor, c_x: Tensor | None, move: Tensor | None, needs: list[bool]) -> list[Tensor]:
        """The gradients of the parameters where needed: of a weight together with its bias, of centre with scale."""
        found = [g.new_empty(0) for _ in needs]
        if not any(needs):
            return found
        target, (some_c_x, some_move) = self.target(), self.or_any(c_x, move)
        part = max(128, next_power_of_2(cdiv(self.edges, 256)))  # edges of a program
        for kernel, first, read in _GRADIENTS:
            if not any(needs[first:first + 2]):
                continue
            names, sizes = _PARAMETERS[first:first + 2], _network_sizes(kernel, g.dtype, *self.shape)
            parts, blocks = cdiv(self.edges, part), self.blocks(kernel, sizes)
            sums = [g.new_empty(parts, *self.of[name].shape) for name in names]
            launch(kernel, (math.prod(blocks), parts), self.x, g, some_c_x, self.pos, some_move,
                   *(self.of[name] for name in read), target, self.by_target[0], *sums, self.nodes, self.edges,
                   *self.shape, part, *blocks[1:], SECOND=c_x is not None, **sizes, **self.constants)
            for n, s in enumerate(sums, first):
                found[n] = s.sum(0) if needs[n] else found[n]
        return found

    def blocks(self, kernel, sizes: dict) -> tuple[int, ...]:
        """Of each dimension of the gradient that `kernel` writes."""
        (count, hidden, channels), size = self.shape, sizes.get
        if kernel is cfconv_bwd_kernel_weight1:
            return cdiv(hidden, size("BH")), cdiv(count, size("BO"))
        if kernel is cfconv_bwd_kernel_weight2:
            return cdiv(channels, size("BF")), cdiv(hidden, size("BH"))
        return (cdiv(count, size("BG")),)


def _chosen(makers, needs, like: Tensor) -> list[Tensor]:
    return [make() if need else like.new_empty(0) for make, need in zip(makers, needs, strict=True)]


def _complete(family: type, parameters) -> SimpleNamespace:
    """The operator of a family of filters as in the reference; `parameters(call, g, c_x, move, needs)`: gradients."""

    def forward(*arguments) -> Tensor:
        a = family(*arguments)
        return a.sums(a.x, None, None, a.by_target)

    def backward(g, *arguments) -> tuple[Tensor, ...]:
        *arguments, needs = arguments
        a, g = family(*arguments), g.contiguous()
        found = _chosen((lambda: a.sums(g, None, None, a.by_source), lambda: a.positions(g, None, None)), needs[:2], g)
        return *found, *parameters(a, g, None, None, needs[2:])

    def second(c_x, c_pos, g, *arguments) -> tuple[Tensor, ...]:
        *arguments, needs = arguments
        a, g, c_x, c_pos = family(*arguments), g.contiguous(), c_x.contiguous(), c_pos.contiguous()
        found = _chosen((lambda: a.sums(c_x, a.x, c_pos, a.by_target), lambda: a.sums(None, g, c_pos, a.by_source),
                         lambda: a.positions(g, c_x, c_pos)), needs[:3], g)
        return *found, *parameters(a, g, c_x, c_pos, needs[3:])

    return SimpleNamespace(forward=forward, backward=backward, second=second)


spline = _complete(_Splines, lambda a, g, c_x, move, needs: _chosen([lambda: a.knot_values(g, c_x, move)], needs, g))
network = _complete(_Network, _Network.parameters)


def _aot(kernel, tensors: str, integers: str, indices: str, **constexprs) -> list[AotCase]:
    """The kernel in float32 and float64 for 50 basis functions, 64 hidden units and filters, 1024 knots."""
    found = []
    for kind, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        signature = dict.fromkeys(tensors.split(), kind) | dict.fromkeys(integers.split(), "i32")
        signature |= dict.fromkeys(indices.split(), "*i64")
        if "centre" in signature:
            sizes = _network_sizes(kernel, dtype, 50, 64, 64)
            sizes |= {"TF32": False, "KIND": 0, "ACTIVATION": 0, "ALPHA": 0.0}
        else:
            sizes = _spline_sizes(dtype, 64) | {"STEP": 10 / 1023}
        options = {name: sizes.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in sizes}
        found.append(AotCase(kernel, signature, {"CUTOFF": 10.0} | sizes | constexprs, **options))
    return found


_LISTS, _ENDS, _BOTH = "neighbour ptr", "target neighbour", {"TO": True, "FROM": True}
_ALL, _SECOND = "x g c_x pos move", {"SECOND": True}
_NETWORK = "weight1 bias1 weight2 bias2 centre scale"
AOT = [
    *_aot(spline_conv_fwd_kernel, "x v pos move table y", "N E C KNOTS blocks_c", _LISTS, SUM=True, CHANGE=True, NB=8),
    *_aot(spline_conv_bwd_kernel_pos, f"{_ALL} table y", "N E C KNOTS", _LISTS, NB=8, **_BOTH, **_SECOND),
    *_aot(spline_conv_bwd_kernel_table, f"{_ALL} y", "C KNOTS blocks_c parts", f"{_ENDS} order start", **_SECOND),
    *(AotCase(spline_conv_bwd_kernel_knots, {"pos": kind, "knots": "*i32"} | dict.fromkeys(_ENDS.split(), "*i64")
              | dict.fromkeys(("N", "E", "KNOTS"), "i32"), {"STEP": 10 / 1023, "CUTOFF": 10.0, "BE": 256})
      for kind in ("*fp32", "*fp64")),
    *_aot(cfconv_fwd_kernel, f"x v pos move {_NETWORK} y", "N E G H F blocks_f", _LISTS, SUM=True, CHANGE=True, NB=8),
    *_aot(cfconv_bwd_kernel_pos, f"{_ALL} {_NETWORK} y", "N E G H F", _LISTS, NB=8, **_BOTH, **_SECOND),
    *_aot(cfconv_bwd_kernel_weight1, f"{_ALL} weight1 bias1 weight2 centre scale g_weight1 g_bias1",
          "N E G H F part blocks_o", _ENDS, **_SECOND),
    *_aot(cfconv_bwd_kernel_weight2, f"{_ALL} weight1 bias1 centre scale g_weight2 g_bias2",
          "N E G H F part blocks_h", _ENDS, **_SECOND),
    *_aot(cfconv_bwd_kernel_basis, f"{_ALL} weight1 bias1 weight2 centre scale g_centre g_scale",
          "N E G H F part", _ENDS, **_SECOND),
]
