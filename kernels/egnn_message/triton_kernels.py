"""egnn_message in Triton: products of the nodes once per node, products of the edges in tiles that form what they read.

The kernels are in triton_edges.py. Sums over edges walk the sorted lists or run in parts of a size that depends on the
shapes only, and the parts are added in their order: no atomics.
"""

import torch
from torch import Tensor

from ..segment_sum import triton_kernels as segments
from ..triton_common import INTERPRETED, AotCase, accumulator, allow_tf32, cdiv, launch, next_power_of_2
from .reference import Arguments, node_products
from .triton_edges import (
    egnn_message_bwd_kernel_coordinate,
    egnn_message_bwd_kernel_difference,
    egnn_message_bwd_kernel_first,
    egnn_message_bwd_kernel_message,
    egnn_message_bwd_kernel_weight,
    egnn_message_fwd_kernel_coordinate,
    egnn_message_fwd_kernel_message,
    egnn_message_fwd_kernel_sum,
)


def _tile(dtype: torch.dtype) -> tuple[int, int, int, dict]:
    """Edges and columns of a product's tile, depth of one step, and the launch's options."""
    if INTERPRETED:  # a step costs the same whatever its size
        return 128, 32, 64, {}
    return (32, 32, 16, {"num_warps": 4, "maxnreg": 255}) if dtype == torch.float64 else (64, 64, 16, {"num_warps": 8})


def _sum_sizes(width: int, dim: int) -> dict:
    """Edges, columns and coordinates of the sum at a node, and its warps."""
    block = min(128, max(32, next_power_of_2(width)))
    return {"BE": 64 if INTERPRETED else 8, "BM": block, "BD": next_power_of_2(dim), "num_warps": max(1, block // 64)}


class _Call:
    """One call: contiguous arguments and sizes; an absent tensor is never read, so x stands for it."""

    def __init__(self, a: Arguments):
        self.a = Arguments(*(t.contiguous() if isinstance(t, Tensor) else t for t in a))
        self.E, (self.N, self.D) = a.target_index.shape[0], a.x.shape
        self.K, self.H, self.M, self.C = a.weight1.shape[1], *(a[n].shape[0] for n in (3, 5, 7))
        self.A = 0 if a.edge is None else a.edge.shape[1]
        self.edge, self.bias4 = self.a.edge if self.A else self.a.x, self.a.x if a.bias4 is None else self.a.bias4
        self.rows, self.side, self.depth, self.options = _tile(a.x.dtype)
        self.has = {"HAS_BIAS": a.bias4 is not None}
        self.acc = {"ACC": accumulator(a.x.dtype), "device": a.x.device}
        self.product = {"BK": self.depth, "ALLOW_TF32": allow_tf32(a.x), **self.acc, **self.options}

    def activations(self) -> tuple[Tensor, ...]:
        """nodes [N, 2H], pre2 [E, M], pre3 [E, C] and w [E]"""
        a, new, rows = self.a, self.a.x.new_empty, cdiv(self.E, self.rows)
        nodes, pre2, pre3, w = node_products(a), new(self.E, self.M), new(self.E, self.C), new(self.E)
        blocks = cdiv(self.M, self.side)
        launch(egnn_message_fwd_kernel_message, (rows * blocks,), nodes, a.x, self.edge, a.target_index, a.source_index,
               a.weight1, a.weight2, a.bias2, pre2, self.E, self.N, self.D, self.H, self.M, self.A, self.K, blocks,
               BE=self.rows, BM=self.side, **self.product)
        launch(egnn_message_fwd_kernel_coordinate, (rows,), pre2, a.weight3, a.bias3, a.weight4, self.bias4, pre3, w,
               self.E, self.M, self.C, **self.has, BE=self.rows, BC=self.side, **self.product)
        return nodes, pre2, pre3, w

    def weight(self, g: Tensor, y: Tensor, width: int, nodes: Tensor, square: Tensor, first: bool = False):
        """The gradients of a weight [O, width] and its bias [O] from g [E, O] and what the weight multiplied."""
        a, out = self.a, g.shape[1]
        part_rows = max(256, next_power_of_2(cdiv(self.E, 32)))
        parts, blocks = cdiv(self.E, part_rows), cdiv(width, self.side)
        d_weight, d_bias = g.new_empty(parts, out, width), g.new_empty(parts, out)
        launch(egnn_message_bwd_kernel_weight, (cdiv(out, self.side) * blocks, parts), g, y, nodes, square, self.edge,
               a.target_index, a.source_index, a.weight1, d_weight, d_bias, self.E, self.N, out, width, self.A, self.K,
               part_rows, blocks, FIRST=first, BM=self.side, **self.product)
        return d_weight.sum(0), d_bias.sum(0)


def forward(*arguments) -> tuple[Tensor, ...]:
    """As the reference."""
    *arguments, keep = arguments
    call = _Call(Arguments(*arguments))
    a, kept = call.a, call.activations()
    coordinates, features = a.x.new_empty(call.N, call.D), a.x.new_empty(call.N, call.M)
    sizes = _sum_sizes(call.M, call.D)
    blocks = cdiv(call.M, sizes["BM"])
    launch(egnn_message_fwd_kernel_sum, (call.N * blocks,), a.x, a.source_index, a.target_order, a.target_ptr, kept[1],
           kept[3], coordinates, features, call.E, call.N, call.D, call.M, blocks, MEAN=a.mean, **sizes, **call.acc)
    return coordinates, features, *(kept[:3] if keep else (a.x.new_empty(0) for _ in range(3)))


def _node_gradients(a: Arguments, g_1: Tensor, square: Tensor, needs) -> list:
    """Of h, weight1 and bias1, from g_1 [E, H]: summed at both ends, then once per node."""
    width = a.h.shape[1]
    g_to, g_from = segments.forward(g_1, *a.targets), segments.forward(g_1, *a.sources)
    found = [None] * 3
    if needs[1]:
        found[0] = g_to @ a.weight1[:, 1:1 + width] + g_from @ a.weight1[:, 1 + width:1 + 2 * width]
    if needs[3]:
        ends = [g_1.t() @ square[:, None], g_to.t() @ a.h, g_from.t() @ a.h]
        found[1] = torch.cat(ends if a.edge is None else [*ends, g_1.t() @ a.edge], 1)
    if needs[4]:
        found[2] = g_to.sum(0)
    return found


def backward(g_coordinates, g_features, *arguments) -> tuple[Tensor, ...]:
    """As the reference; reads what was kept, or forms it again."""
    *arguments, nodes, pre2, pre3, needs = arguments
    call = _Call(Arguments(*arguments))
    a, E, N, rows = call.a, call.E, call.N, cdiv(call.E, call.rows)
    nodes, pre2, pre3 = call.activations()[:3] if nodes is None else (t.contiguous() for t in (nodes, pre2, pre3))
    new, found = a.x.new_empty, [None] * len(needs)
    g_3, g_w, g_r, square = new(E, call.C), new(E, 1), new(E, call.D), new(E)
    launch(egnn_message_bwd_kernel_coordinate, (rows,), g_coordinates.contiguous(), a.x, a.target_index, a.source_index,
           a.target_ptr, pre3, a.weight4, call.bias4, g_3, g_w, g_r, square, E, N, call.D, call.C, MEAN=a.mean,
           **call.has, BE=call.rows, BC=call.depth, **call.acc)
    if needs[9] or needs[10]:
        found[9:11] = call.weight(g_w, pre3, call.C, nodes, square)
    if needs[7] or needs[8]:
        found[7:9] = call.weight(g_3, pre2, call.M, nodes, square)
    first = any(needs[:5])
    if first or needs[5] or needs[6]:
        g_2, blocks = new(E, call.M), cdiv(call.M, call.side)
        launch(egnn_message_bwd_kernel_message, (rows * blocks,), g_3, g_features.contiguous(), a.target_index, pre2,
               a.weight3, g_2, E, N, call.M, call.C, blocks, BE=call.rows, BM=call.side, **call.product)
        if needs[5] or needs[6]:
            found[5:7] = call.weight(g_2, pre2, call.H, nodes, square, first=True)
    if first:
        g_1, blocks = new(E, call.H), cdiv(call.H, call.side)
        launch(egnn_message_bwd_kernel_first, (rows * blocks,), g_2, nodes, square, call.edge, a.target_index,
               a.source_index, a.weight1, a.weight2, g_1, E, N, call.H, call.M, call.A, call.K, blocks, BE=call.rows,
               BM=call.side, **call.product)
        if needs[1] or needs[3] or needs[4]:
            found[1], found[3], found[4] = _node_gradients(a, g_1, square, needs)
        if needs[2]:
            found[2] = g_1 @ a.weight1[:, call.K - call.A:]
        if needs[0]:
            launch(egnn_message_bwd_kernel_difference, (rows,), g_1, a.x, a.target_index, a.source_index, a.weight1,
                   g_r, E, N, call.D, call.H, call.K, BE=call.rows, BC=call.depth, **call.acc)
            found[0] = segments.forward(g_r, *a.targets) - segments.forward(g_r, *a.sources)
    return tuple(x if need else new(0) for x, need in zip(found, needs, strict=True))


def _aot(kernel, tensors: str, integers: str, indices: str = "", sizes: dict | None = None, **constexprs) -> list:
    """The kernel in float32 and float64; `sizes`: of blocks, "rows", "side" and "depth" are the tile's."""
    found = []
    for kind, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        rows, side, depth, options = _tile(dtype)
        named = {"rows": rows, "side": side, "depth": depth}
        values = {k: named.get(v, v) for k, v in (sizes or {}).items()}
        product = {"ALLOW_TF32": False} if "BK" in values else {}
        signature = dict.fromkeys(tensors.split(), kind) | dict.fromkeys(integers.split(), "i32")
        signature |= dict.fromkeys(indices.split(), "*i64")
        found.append(AotCase(kernel, signature, values | product | constexprs | {"ACC": accumulator(dtype)},
                             **(options if product else {})))
    return found


_ENDS, _PRODUCT, _ROWS = "target source", {"BE": "rows", "BM": "side", "BK": "depth"}, {"BE": "rows", "BC": "depth"}
AOT = [
    *_aot(egnn_message_fwd_kernel_message, "nodes x edge weight1 weight2 bias2 pre2", "E N D H M A K blocks_m", _ENDS,
          _PRODUCT),
    *_aot(egnn_message_fwd_kernel_coordinate, "pre2 weight3 bias3 weight4 bias4 pre3 w", "E M C",
          sizes={"BE": "rows", "BC": "side", "BK": "depth"}, HAS_BIAS=True),
    *_aot(egnn_message_fwd_kernel_sum, "x pre2 w coordinates features", "E N D M blocks_m", "source order ptr",
          {"BE": 8, "BM": 128, "BD": 4}, MEAN=True),
    *_aot(egnn_message_bwd_kernel_coordinate, "g_coordinates x pre3 weight4 bias4 g_3 g_w g_r square", "E N D C",
          f"{_ENDS} ptr", _ROWS, MEAN=True, HAS_BIAS=True),
    *_aot(egnn_message_bwd_kernel_message, "g_3 g_features pre2 weight3 g_2", "E N M C blocks_m", "target", _PRODUCT),
    *_aot(egnn_message_bwd_kernel_first, "g_2 nodes square edge weight1 weight2 g_1", "E N H M A K blocks_h", _ENDS,
          _PRODUCT),
    *_aot(egnn_message_bwd_kernel_difference, "g_1 x weight1 g_r", "E N D H K", _ENDS, _ROWS),
    *(case for first in (False, True) for case in _aot(
        egnn_message_bwd_kernel_weight, "g y nodes square edge weight1 d_weight d_bias",
        "E N O I A K part_rows blocks_i", _ENDS, {"BM": "side", "BK": "depth"}, FIRST=first)),
]
