"""segment_rank, which has no derivative, and rank_concat with its adjoint, linear in features and table."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import (
    check_constant,
    check_int64,
    check_ptr,
    check_tensors,
    define,
    fail,
    longest_segment,
    no_forward_mode,
)
from ..philox import seeds
from . import reference, triton_kernels

MAX_ROWS = 1 << 31
_OP, _CONCAT = "segment_rank", "rank_concat"
_native = torch.ops.ace_fast_native
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        forward=lambda score, ptr, seed, longest, tolerance: _native.segment_rank(score, ptr, seed, tolerance),
        concat=lambda x, table, rank, order, ptr: _native.rank_concat(x, table, rank),
        concat_backward=lambda *a: _native.rank_concat_bwd(*a),
    ),
    "triton": triton_kernels,
}


def _check(score: Tensor, ptr: Tensor, seed: Tensor, longest: int, tolerance: float) -> None:
    check_tensors(_OP, score)
    if score.dim() != 1:
        fail(_OP, "score", "[N]", list(score.shape), "one number for each node: score.squeeze(-1) of [N, 1]")
    if score.shape[0] >= MAX_ROWS:
        fail(_OP, "score", "of fewer than 2^31 nodes", score.shape[0], "take the graphs in parts")
    check_ptr(_OP, score.device, ptr)
    check_int64(_OP, score.device, "[K]", seed=seed)
    if not 0 <= longest <= score.shape[0]:
        fail(_OP, "longest", f"in 0..{score.shape[0]}, the nodes", longest, "it is the size of the largest segment")
    if not 0 <= tolerance < math.inf:
        fail(_OP, "tolerance", "0 or more, and finite", tolerance)


def _rank(*args):
    _check(*args[:-1])
    return pick(_OP, BACKENDS, args[-1], args[0]).forward


def _rank_fake(*args):
    _check(*args[:-1])
    shape = args[2].shape[0], args[0].shape[0]
    return tuple(args[0].new_empty(shape, dtype=torch.int64) for _ in range(2))


def _check_ranks(op: str, device: torch.device, rank: Tensor, order: Tensor, ptr: Tensor) -> None:
    check_int64(op, device, "[K, N]", rank=rank, order=order)
    check_ptr(op, device, ptr)
    if order.shape != rank.shape:
        fail(op, "order", f"{list(rank.shape)} like rank", list(order.shape))


def _check_concat(x: Tensor, table: Tensor, rank: Tensor, order: Tensor, ptr: Tensor) -> None:
    check_tensors(_CONCAT, x, table=table)
    if x.dim() != 2:
        fail(_CONCAT, "x", "[N, F]", list(x.shape))
    if table.dim() != 2:
        fail(_CONCAT, "table", "[T, C]", list(table.shape))
    _check_ranks(_CONCAT, x.device, rank, order, ptr)
    if rank.shape[1] != x.shape[0]:
        fail(_CONCAT, "rank", f"[K, {x.shape[0]}], a column for each row of x", list(rank.shape))


def _check_concat_bwd(g: Tensor, rank: Tensor, order: Tensor, ptr: Tensor, rows: int) -> None:
    op = "rank_concat_bwd"
    check_tensors(op, g)
    _check_ranks(op, g.device, rank, order, ptr)
    if g.dim() != 3 or g.shape[:2] != rank.shape:
        fail(op, "g", f"[{rank.shape[0]}, {rank.shape[1]}, C]", list(g.shape))
    if rows < 0:
        fail(op, "rows", "0 or more", rows)


def _concat(*args):
    _check_concat(*args[:-1])
    return pick(_CONCAT, BACKENDS, args[-1], args[0]).concat


def _concat_fake(x, table, rank, order, ptr, backend):
    _check_concat(x, table, rank, order, ptr)
    return x.new_empty(*rank.shape, x.shape[1] + table.shape[1])


def _concat_bwd(*args):
    _check_concat_bwd(*args[:-1])
    return pick("rank_concat_bwd", BACKENDS, args[-1], args[0]).concat_backward


def _concat_bwd_fake(g, rank, order, ptr, rows, backend):
    _check_concat_bwd(g, rank, order, ptr, rows)
    return g.new_empty(rows, g.shape[2])


def _concat_setup(ctx, inputs, output):
    x, table, *indices, ctx.backend = inputs
    ctx.save_for_backward(*indices)
    ctx.width, ctx.rows = x.shape[1], table.shape[0]


def _concat_rule(ctx, g):
    of_x, of_table = ctx.needs_input_grad[:2]
    g_table = None
    if of_table:
        g_table = rank_concat_bwd(g[..., ctx.width:], *ctx.saved_tensors, ctx.rows, ctx.backend)
    return g[..., : ctx.width].sum(0) if of_x else None, g_table, None, None, None, None


def _concat_bwd_setup(ctx, inputs, output):
    _, *indices, ctx.rows, ctx.backend = inputs
    ctx.save_for_backward(*indices)


def _concat_bwd_rule(ctx, g):
    rank, order, ptr = ctx.saved_tensors
    vectors = rank_concat_op(g.new_empty(rank.shape[1], 0), g, rank, order, ptr, ctx.backend)
    outside = (rank < 0) | (rank >= ctx.rows)  # NaN there, but they have no part in the sum
    return vectors.masked_fill(outside[..., None], 0), None, None, None, None, None


segment_rank_op = define(
    f"{_OP}(Tensor score, Tensor ptr, Tensor seed, int longest, float tolerance, str backend) -> (Tensor, Tensor)",
    _rank, _rank_fake)
_INDICES = "Tensor rank, Tensor order, Tensor ptr"
rank_concat_op = define(f"{_CONCAT}(Tensor x, Tensor table, {_INDICES}, str backend) -> Tensor", _concat, _concat_fake,
                        _concat_setup, _concat_rule)
rank_concat_bwd = define(f"rank_concat_bwd(Tensor g, {_INDICES}, int rows, str backend) -> Tensor", _concat_bwd,
                         _concat_bwd_fake, _concat_bwd_setup, _concat_bwd_rule)


def segment_rank(score: Tensor, ptr: Tensor, seed: int | Tensor, *, tolerance: float = 0.0, longest: int | None = None,
                 backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Each node's place among the scores of its segment, equal scores in random order.

    Scores in one segment are tied where they are equal, or follow each other in steps of at most the tolerance. Tied
    nodes are ordered by keys of 64 bits that Philox4x32-10 draws from (seed, row): every order is equally likely, and
    the same seed gives the same one on every backend and device.

    Args:
        score: [N] float32 or float64, lower first; the segments' nodes one after the other. It is detached.
        ptr: [B + 1] int64, segment b has the rows ptr[b] to ptr[b + 1] - 1. It is checked on the host, the only
            synchronisation, unless `longest` is given.
        seed: of the draw; int64 [K] for K draws of the same ties, which sort the scores once.
        tolerance: 0 or more, in the unit of the scores.
        longest: the size of the largest segment where it is known: then nothing is read from the device.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        rank int64 [K, N], 0 for the lowest of a segment (K = 1 for a number), and order int64 [K, N], the rows of each
        segment by rank: `rank[k, order[k, ptr[b] + r]] = r`. A NaN score comes last and has rank -1, which
        `rank_concat` turns into NaN: a network that diverged stays visible. No derivatives.

    Raises:
        ValueError: wrong shapes or dtypes, a tolerance that is negative, a ptr that does not fit the nodes, a backend
            that cannot run here.

    Source: tie-breaking of Lawrence et al., "Improving Equivariant Networks with Probabilistic Symmetry Breaking"
        (2025), Algorithm 1; keys of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).

    Example:
        >>> segment_rank(torch.tensor([3.0, 1, 2, 5]), torch.tensor([0, 3, 4]), seed=0)[0]
        tensor([[2, 0, 1, 0]])
    """
    for name, x in (("score", score), ("ptr", ptr)):
        if not isinstance(x, Tensor):
            fail(_OP, name, "a tensor", type(x).__name__, "use torch.as_tensor(...)")
    score = score.detach()
    if longest is None:
        longest = longest_segment(_OP, ptr, score.shape[0])
    return segment_rank_op(score, ptr, seeds(_OP, seed, score.device), longest, float(tolerance), backend)


def rank_concat(x: Tensor, table: Tensor, rank: Tensor, order: Tensor, ptr: Tensor, *,
                backend: str = "auto") -> Tensor:
    """The features of each node and the vector of its rank, `out[k, n] = [x[n], table[rank[k, n]]]`.

    Args:
        x: [N, F] float32 or float64; F may be 0.
        table: [T, C], the vector of each rank.
        rank, order: int64 [K, N] of `segment_rank` with this ptr; order serves the gradient, whose sums have its order.
        ptr: [B + 1] int64.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [K, N, F + C]. A rank outside of 0..T-1 gives NaN. Derivatives of any order in x and table, deterministic.

    Raises:
        ValueError: wrong shapes or dtypes, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Example:
        >>> ptr = torch.tensor([0, 2])
        >>> rank, order = segment_rank(torch.tensor([7.0, 5.0]), ptr, seed=0)
        >>> rank_concat(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), rank, order, ptr)
        tensor([[[0., 2.],
                 [0., 1.]]])
    """
    no_forward_mode(_CONCAT, x, table)
    check_constant(_CONCAT, rank=rank, order=order, ptr=ptr)
    return rank_concat_op(x, table, rank, order, ptr, backend)
