"""segment_sum and its adjoint, the gather: one pair of operators that differentiates into itself at every order."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ...graph import Segments
from ..define import check_constant, check_tensors, define, fail, no_forward_mode
from . import reference, triton_kernels

_native, _cuda = torch.ops.ace_fast_native, torch.ops.ace_fast_cuda
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda *a: _native.segment_sum(*a),
        backward=lambda *a: _native.segment_sum_bwd(*a),
    ),
    "cuda": SimpleNamespace(
        forward=lambda *a: _cuda.segment_sum(*a),
        backward=lambda *a: _cuda.segment_sum_bwd(*a),
    ),
    "triton": triton_kernels,
}


def _check(op: str, x: Tensor, index: Tensor, order: Tensor, ptr: Tensor) -> None:
    check_tensors(op, x)
    if x.dim() != 2:
        fail(op, "the first argument", "[rows, C]", list(x.shape))
    for name, t in (("index", index), ("order", order), ("ptr", ptr)):
        if t.dtype != torch.int64 or t.dim() != 1 or t.device != x.device:
            fail(op, name, f"int64 [length] on {x.device}", f"{t.dtype} {list(t.shape)} on {t.device}")
    if ptr.shape[0] < 1:
        fail(op, "ptr", "[N + 1]", list(ptr.shape))
    if order.shape != index.shape:
        fail(op, "order", f"{list(index.shape)} like index", list(order.shape))


def _check_sum(x, index, order, ptr):
    _check("segment_sum", x, index, order, ptr)
    if x.shape[0] != index.shape[0]:
        fail("segment_sum", "x", f"[{index.shape[0]}, C] like index", list(x.shape))


def _check_gather(g, index, order, ptr):
    _check("segment_sum_bwd", g, index, order, ptr)
    if g.shape[0] != ptr.shape[0] - 1:
        fail("segment_sum_bwd", "g", f"[{ptr.shape[0] - 1}, C]", list(g.shape))


def _sum(x, index, order, ptr, backend):
    _check_sum(x, index, order, ptr)
    return pick("segment_sum", BACKENDS, backend, x).forward


def _sum_fake(x, index, order, ptr, backend):
    _check_sum(x, index, order, ptr)
    return x.new_empty(ptr.shape[0] - 1, x.shape[1])


def _gather(g, index, order, ptr, backend):
    _check_gather(g, index, order, ptr)
    return pick("segment_sum", BACKENDS, backend, g).backward


def _gather_fake(g, index, order, ptr, backend):
    _check_gather(g, index, order, ptr)
    return g.new_empty(index.shape[0], g.shape[1])


def _setup(ctx, inputs, output):
    _, index, order, ptr, ctx.backend = inputs
    ctx.save_for_backward(index, order, ptr)


def _sum_backward(ctx, g):
    return segment_sum_bwd(g, *ctx.saved_tensors, ctx.backend), None, None, None, None


def _gather_backward(ctx, g):
    return segment_sum_op(g, *ctx.saved_tensors, ctx.backend), None, None, None, None


_ARGUMENTS = "Tensor index, Tensor order, Tensor ptr, str backend) -> Tensor"
segment_sum_op = define(f"segment_sum(Tensor x, {_ARGUMENTS}", _sum, _sum_fake, _setup, _sum_backward)
segment_sum_bwd = define(f"segment_sum_bwd(Tensor g, {_ARGUMENTS}", _gather, _gather_fake, _setup, _gather_backward)


def _check_segments(op: str, segments: Segments) -> None:
    if not isinstance(segments, Segments):
        fail(op, "segments", "Segments (Graph.targets, Graph.sources)", type(segments).__name__,
               "use ace_fast.segments(index, n)")


def _as_rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(x.shape[0], math.prod(x.shape[1:]))


def segment_sum(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Sum of the rows of each segment, `out[n] = sum_{e: index[e] = n} x[e]`, in a fixed order.

    Args:
        x: [E, ...] float32 or float64.
        segments: which segment each row belongs to; `Graph.targets`, `Graph.sources` or `ace_fast.segments(...)`.
        backend: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        [N, ...]; segments without rows are zero. Deterministic; derivatives of any order in x.

    Raises:
        ValueError: a Tensor instead of Segments, wrong shapes or dtypes, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Example:
        >>> graph = ace_fast.Graph(torch.tensor([[0, 1], [1, 1]]), 2)
        >>> ace_fast.segment_sum(torch.ones(2, 3), graph.targets)[1]
        tensor([2., 2., 2.])
    """
    _check_segments("segment_sum", segments)
    no_forward_mode("segment_sum", x)
    check_constant("segment_sum", index=segments.index)
    out = segment_sum_op(_as_rows(x), *segments, backend)
    return out.reshape(out.shape[0], *x.shape[1:]) if x.dim() != 2 else out


def gather(g: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Rows of their segments, `out[e] = g[index[e]]`; its gradient is `segment_sum`, sorted and deterministic.

    Args:
        g: [N, ...] float32 or float64.
        segments: as in `segment_sum`.

    Returns:
        [E, ...]. Derivatives of any order in g. Raises as `segment_sum`.
    """
    _check_segments("gather", segments)
    no_forward_mode("gather", g)
    out = segment_sum_bwd(_as_rows(g), *segments, backend)
    return out.reshape(out.shape[0], *g.shape[1:]) if g.dim() != 2 else out
