"""vn_edge_conv in Triton: no edge tensor, no atomics; the kernels are in triton_edges.py.

The backward walks the edges from their centres and, over a reverse list, from their neighbours.
"""

import torch
from torch import Tensor

from ..triton_common import INTERPRETED, AotCase, accumulator, allow_tf32, cdiv, launch
from ..vn_linear.triton_norms import combine, norm_gradients, vectors_dtype
from .triton_edges import (
    vn_edge_conv_bwd_kernel,
    vn_edge_conv_bwd_kernel_keys,
    vn_edge_conv_fwd_kernel,
    vn_edge_select_kernel,
    vn_edge_stats_bwd_kernel,
    vn_edge_stats_fwd_kernel,
)


def _sizes(kind: str, dtype: torch.dtype) -> dict:
    """Nodes and channels of a block and its warps: 4 elements of a plane a thread forward, 1 or 2 backward.

    float64 takes half as many. The walk over incoming edges is as long as the largest degree, so few nodes a block.
    """
    nodes, warps = {"forward": (16, 4), "centre": (8, 8), "reverse": (8, 4), "select": (16, 8)}[kind]
    found = {"BN": nodes, "BC": 32, "num_warps": warps}
    if kind == "select":
        return found | {"BI": 16, "BC": 16 if dtype == torch.float64 else 32}
    if INTERPRETED:
        return found | {"BN": 64}
    return found | ({"BN": nodes // 2, "maxnreg": 255} if dtype == torch.float64 else {})


def _grid(nodes: int, channels: int, sizes: dict) -> tuple[int, int]:
    """Blocks of nodes and of channels; those of channels lie side by side, as a node's rows are then read together."""
    return cdiv(nodes, sizes["BN"]), cdiv(channels, sizes["BC"])


def _reverse(neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """The edges sorted by their neighbour's row, and where each row's begin [M + 1]; those without one come last."""
    B, N, K = neighbours.shape
    index = torch.int32 if B * N * max(K, 1) < 2**31 else torch.int64
    keys = neighbours.new_empty(B * N * K, dtype=index)
    launch(vn_edge_conv_bwd_kernel_keys, (cdiv(keys.numel(), 1024),), neighbours, keys, B * N, N, N * K, BLOCK=1024,
           device=keys.device)
    keys, order = torch.sort(keys, stable=True)
    return order.to(index), torch.searchsorted(keys, torch.arange(B * N + 1, dtype=index, device=keys.device))


def _shapes(p: Tensor, neighbours: Tensor) -> tuple[int, int, int, int]:
    """M = B N rows, N, K, C."""
    return p.shape[0] * p.shape[1], p.shape[1], neighbours.shape[2], p.shape[3] // 2


def stats(p, neighbours) -> tuple[Tensor, Tensor]:
    """p [B, N, 3, 2C], neighbours [B, N, K] -> mean [C], var [C], as in the reference."""
    m, n, k, c = _shapes(p, neighbours)
    sizes = _sizes("forward", p.dtype)
    rows, blocks = _grid(m, c, sizes)
    parts = p.new_empty(rows if k else 0, 2, c, dtype=vectors_dtype(p))
    launch(vn_edge_stats_fwd_kernel, (parts.shape[0] * blocks,), p.contiguous(), neighbours.contiguous(), parts, m, n,
           k, c, blocks, **sizes, ACC=accumulator(p.dtype), device=p.device)
    return combine(parts, sizes["BN"] * k, m * k)


def stats_backward(g_mean, g_var, p, neighbours, mean) -> Tensor:
    """-> the gradient of p [B, N, 3, 2C], as in the reference."""
    m, n, k, c = _shapes(p, neighbours)
    if not m * k:
        return torch.zeros_like(p, memory_format=torch.contiguous_format)
    neighbours, g_p = neighbours.contiguous(), p.new_empty(p.shape)
    order, ptr = _reverse(neighbours)
    tensors = [t.contiguous() for t in (g_mean, g_var, p)]
    for reverse in (False, True):
        sizes = _sizes("reverse" if reverse else "centre", p.dtype)
        rows, blocks = _grid(m, c, sizes)
        launch(vn_edge_stats_bwd_kernel, (rows * blocks,), *tensors, order if reverse else neighbours, ptr,
               mean.contiguous(), g_p, m, n, k, c, blocks, REVERSE=reverse, **sizes, ACC=accumulator(p.dtype),
               device=p.device)
    return g_p


def forward(p, d, neighbours, mean, var, weight, bias, selected, eps, slope) -> Tensor:
    """p [B, N, 3, 2C], d [B, N, 3, 2C or 2] -> [B, N, 3, C], as in the reference."""
    m, n, k, c = _shapes(p, neighbours)
    if not m * k:
        return p.new_zeros(*p.shape[:3], c)
    y, sizes = p.new_empty(*p.shape[:3], c), _sizes("forward", p.dtype)
    rows, blocks = _grid(m, c, sizes)
    tensors = [t.contiguous() for t in (p, d, neighbours, mean, var, weight, bias)]
    # An absent tensor is never read; any pointer stands for it.
    launch(vn_edge_conv_fwd_kernel, (rows * blocks,), *tensors,
           tensors[2] if selected is None else selected.contiguous(), y, m, n, k, c, blocks, BN_EPS=eps, SLOPE=slope,
           SHARED=d.shape[3] != 2 * c, SELECTED=selected is not None, **sizes, ACC=accumulator(p.dtype),
           device=p.device)
    return y


def backward(g, p, d, neighbours, mean, var, weight, bias, selected, eps, slope, needs) -> tuple[Tensor, ...]:
    """g [B, N, 3, C] -> gradients of (p, d, mean, var, weight, bias), as in the reference."""
    m, n, k, c = _shapes(p, neighbours)
    if not m * k:
        return tuple(g.new_zeros(t.shape if need else 0, dtype=t.dtype)
                     for t, need in zip((p, d, mean, var, weight, bias), needs, strict=True))
    shared, norm = d.shape[3] != 2 * c, any(needs[2:])
    g, p, d, neighbours, *vectors = (t.contiguous() for t in (g, p, d, neighbours, mean, var, weight, bias))
    g_p, g_d = p.new_empty(p.shape if needs[0] else 0), p.new_empty(d.shape if needs[1] else 0)
    order, ptr = _reverse(neighbours) if needs[0] or needs[1] else (neighbours, neighbours)
    chosen = neighbours if selected is None else selected.contiguous()
    sums = None
    for reverse in (False, True) if needs[0] or needs[1] else (False,):
        sizes = _sizes("reverse" if reverse else "centre", p.dtype)
        rows, blocks = _grid(m, c, sizes)
        sums = p.new_empty((rows, 2, c) if norm else 0, dtype=vectors_dtype(p)) if sums is None else sums
        launch(vn_edge_conv_bwd_kernel, (rows * (1 if shared else blocks),), g, p, d, order if reverse else neighbours,
               ptr, *vectors, chosen, g_p, g_d, sums, m, n, k, c, c if shared else sizes["BC"], 1 if shared else blocks,
               BN_EPS=eps, SLOPE=slope, REVERSE=reverse, SHARED=shared, SELECTED=selected is not None, NEED_P=needs[0],
               NEED_D=needs[1], NEED_NORM=norm and not reverse, **sizes, ACC=accumulator(p.dtype), device=p.device)
    found = norm_gradients(sums, vectors[1], vectors[2], eps) if norm else [None] * 4
    return g_p, g_d, *(x if need else g.new_empty(0) for x, need in zip(found, needs[2:], strict=True))


def select(p, d, neighbours, mean, var, weight, bias, pool_weight, eps, slope) -> Tensor:
    """-> the selected neighbour of each node and channel, int64 [B, N, C], as in the reference."""
    m, n, k, c = _shapes(p, neighbours)
    selected, sizes = neighbours.new_empty(*p.shape[:2], c), _sizes("select", p.dtype)
    rows, blocks = _grid(m, c, sizes)
    tensors = [t.contiguous() for t in (p, d, neighbours, mean, var, weight, bias, pool_weight)]
    launch(vn_edge_select_kernel, (rows * blocks,), *tensors, selected, m, n, k, c, blocks, BN_EPS=eps, SLOPE=slope,
           SHARED=d.shape[3] != 2 * c, **sizes, ACC=accumulator(p.dtype), ALLOW_TF32=allow_tf32(pool_weight),
           device=p.device)
    return selected


def _aot(kernel, kind: str, tensors: str, integers: str, indices: str = "neighbours", **constexprs) -> list[AotCase]:
    """The kernel in float32 and float64; the edges sorted by neighbour are int32, other indices int64."""
    found = []
    for type_, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        sizes = _sizes(kind, dtype)
        options = {name: sizes.pop(name) for name in ("num_warps", "maxnreg") if name in sizes}
        signature = dict.fromkeys(tensors.split(), type_) | dict.fromkeys(integers.split(), "i32")
        signature |= dict.fromkeys(indices.split(), "*i64") | ({"edges": "*i32"} if kind == "reverse" else {})
        found.append(AotCase(kernel, signature, constexprs | sizes | {"ACC": accumulator(dtype)}, **options))
    return found


_INPUTS, _INTEGERS = "p d mean var weight bias", "M N K C blocks_c"
_CONSTANTS = {"BN_EPS": 1e-5, "SLOPE": 0.2}
AOT = [
    *_aot(vn_edge_stats_fwd_kernel, "forward", "p parts", _INTEGERS),
    *(case for reverse in (False, True) for case in _aot(
        vn_edge_stats_bwd_kernel, "reverse" if reverse else "centre", "g_mean g_var p mean g_p", _INTEGERS,
        "edges ptr", REVERSE=reverse)),
    *(case for shared in (False, True) for case in (
        *(case for selected in (False, True) for case in _aot(
            vn_edge_conv_fwd_kernel, "forward", f"{_INPUTS} y", _INTEGERS, "neighbours selected", SHARED=shared,
            SELECTED=selected, **_CONSTANTS)),
        *(case for selected in (False, True) for reverse in (False, True) for case in _aot(
            vn_edge_conv_bwd_kernel, "reverse" if reverse else "centre", f"g {_INPUTS} g_p g_d sums",
            f"{_INTEGERS} span", "edges ptr selected", REVERSE=reverse, SHARED=shared, SELECTED=selected, NEED_P=True,
            NEED_D=True, NEED_NORM=not reverse, **_CONSTANTS)),
        *_aot(vn_edge_select_kernel, "select", f"{_INPUTS} pool_weight", _INTEGERS, "neighbours selected",
              SHARED=shared, ALLOW_TF32=False, **_CONSTANTS),
    )),
    AotCase(vn_edge_conv_bwd_kernel_keys, {"neighbours": "*i64", "keys": "*i32", "M": "i32", "N": "i32", "NK": "i32"},
            {"BLOCK": 1024}),
]
