"""vn_edge_stats, vn_edge_conv, vn_edge_select: vector-neuron edge convolution from node products, no edge tensor."""

from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import define, fail, no_forward_mode, vjp
from ..vn_linear.op import check_rows, check_slope, check_vectors, gradients_like, stats_like
from . import reference, triton_kernels

_native = torch.ops.ace_fast_native
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(
        stats=lambda *a: _native.vn_edge_stats(*a),
        stats_backward=lambda *a: _native.vn_edge_stats_bwd(*a),
        forward=lambda *a: _native.vn_edge_conv(*a),
        backward=lambda *a: _native.vn_edge_conv_bwd(*a[:-1], *a[-1]),
        select=lambda *a: _native.vn_edge_select(*a),
    ),
    "triton": triton_kernels,
}


def _check_edges(op, p, neighbours, backend, **rows) -> None:
    check_rows(op, backend, p, 4, **rows)
    if p.shape[3] % 2:
        fail(op, "p", "[B, N, 3, 2C]", list(p.shape), "make it with vn_linear(..., edge=True)")
    shape = list(p.shape[:2])
    if neighbours.dtype != torch.int64 or neighbours.device != p.device or neighbours.dim() != 3 or (
            list(neighbours.shape[:2]) != shape):
        fail(op, "neighbours", f"int64 {shape + ['K']} on {p.device}".replace("'", ""),
             f"{neighbours.dtype} {list(neighbours.shape)} on {neighbours.device}")
    for name, t in rows.items():
        if t is not None and list(t.shape[:2]) != shape:
            fail(op, name, f"[{p.shape[0]}, {p.shape[1]}, 3, C]", list(t.shape))


def _check_stats_bwd(g_mean, g_var, p, neighbours, mean, backend) -> None:
    _check_edges("vn_edge_stats_bwd", p, neighbours, backend)
    check_vectors("vn_edge_stats_bwd", p, p.shape[3] // 2, g_mean=g_mean, g_var=g_var, mean=mean)


def _stats(p, neighbours, backend):
    _check_edges("vn_edge_stats", p, neighbours, backend)
    return pick("vn_edge_stats", BACKENDS, backend, p).stats


def _stats_fake(p, neighbours, backend):
    _check_edges("vn_edge_stats", p, neighbours, backend)
    return stats_like(p, p.shape[3] // 2)


def _stats_bwd(*args):
    _check_stats_bwd(*args)
    return pick("vn_edge_stats_bwd", BACKENDS, args[-1], args[2]).stats_backward


def _stats_bwd_fake(*args):
    _check_stats_bwd(*args)
    return args[2].new_empty(args[2].shape)


def _stats_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1], output[0])
    ctx.backend = inputs[2]


def _stats_rule(ctx, g_mean, g_var):
    p, neighbours, mean = ctx.saved_tensors
    return vn_edge_stats_bwd(g_mean, g_var, p, neighbours, mean, ctx.backend), None, None


def _stats_bwd_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])


def _stats_bwd_rule(ctx, g):
    g_mean, g_var, p, neighbours, mean = ctx.saved_tensors
    function = lambda g_mean, g_var, p, mean: reference.stats_backward(g_mean, g_var, p, neighbours, mean)  # noqa: E731
    *found, d_mean = vjp(function, [g_mean, g_var, p, mean], [g])
    return *found, None, d_mean, None


vn_edge_stats_op = define(
    "vn_edge_stats(Tensor p, Tensor neighbours, str backend) -> (Tensor, Tensor)",
    _stats, _stats_fake, _stats_setup, _stats_rule,
)
vn_edge_stats_bwd = define(
    "vn_edge_stats_bwd(Tensor g_mean, Tensor g_var, Tensor p, Tensor neighbours, Tensor mean, str backend) -> Tensor",
    _stats_bwd, _stats_bwd_fake, _stats_bwd_setup, _stats_bwd_rule,
)


def _check_conv(op, p, d, neighbours, mean, var, weight, bias, selected, eps, slope, backend, g=None) -> None:
    _check_edges(op, p, neighbours, backend, d=d, g=g)
    C = p.shape[3] // 2
    if d.shape[3] not in (2 * C, 2):
        fail(op, "d", f"[{p.shape[0]}, {p.shape[1]}, 3, {2 * C} or 2]", list(d.shape))
    if g is not None and g.shape[3] != C:
        fail(op, "g", f"[{p.shape[0]}, {p.shape[1]}, 3, {C}]", list(g.shape))
    check_vectors(op, p, C, mean=mean, var=var, weight=weight, bias=bias)
    if selected is not None and (selected.dtype != torch.int64 or selected.device != p.device
                                 or list(selected.shape) != [*p.shape[:2], C]):
        fail(op, "selected", f"int64 [{p.shape[0]}, {p.shape[1]}, {C}] on {p.device}",
             f"{selected.dtype} {list(selected.shape)} on {selected.device}", "make it with vn_edge_select")
    check_slope(op, eps, slope)


def _conv(*args):
    _check_conv("vn_edge_conv", *args)
    return pick("vn_edge_conv", BACKENDS, args[-1], args[0]).forward


def _conv_fake(*args):
    _check_conv("vn_edge_conv", *args)
    p = args[0]
    return p.new_empty(*p.shape[:3], p.shape[3] // 2)


def _check_conv_bwd(g, *args) -> None:
    *inputs, needs, backend = args
    _check_conv("vn_edge_conv_bwd", *inputs, backend, g=g)
    if len(needs) != 6:
        fail("vn_edge_conv_bwd", "needs", "six bools (p, d, mean, var, weight, bias)", list(needs))


def _differentiable(inputs) -> tuple[Tensor, ...]:
    """p, d, mean, var, weight, bias out of the arguments from p on."""
    return *inputs[:2], *inputs[3:7]


def _conv_bwd(*args):
    _check_conv_bwd(*args)
    return pick("vn_edge_conv_bwd", BACKENDS, args[-1], args[0]).backward


def _conv_bwd_fake(*args):
    _check_conv_bwd(*args)
    return gradients_like(_differentiable(args[1:]), args[-2], args[0])


def _conv_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:8])
    ctx.constants, ctx.backend = inputs[8:10], inputs[10]


def _conv_rule(ctx, g):
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3, 4, 5, 6)]
    found = vn_edge_conv_bwd(g, *ctx.saved_tensors, *ctx.constants, needs, ctx.backend)
    p, d, *rest = (x if need else None for x, need in zip(found, needs, strict=True))
    return p, d, None, *rest, None, None, None, None


def _conv_bwd_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:9])
    ctx.constants = inputs[9:12]


def _conv_bwd_rule(ctx, *cotangents):
    g, p, d, neighbours, *vectors, selected = ctx.saved_tensors

    def function(g, p, d, *vectors):
        return reference.backward(g, p, d, neighbours, *vectors, selected, *ctx.constants)

    g, p, d, *vectors = vjp(function, [g, p, d, *vectors], list(cotangents))
    return g, p, d, None, *vectors, None, None, None, None, None


_INPUTS = "Tensor p, Tensor d, Tensor neighbours, Tensor mean, Tensor var, Tensor weight, Tensor bias"
vn_edge_conv_op = define(
    f"vn_edge_conv({_INPUTS}, Tensor? selected, float eps, float slope, str backend) -> Tensor",
    _conv, _conv_fake, _conv_setup, _conv_rule,
)
vn_edge_conv_bwd = define(
    f"vn_edge_conv_bwd(Tensor g, {_INPUTS}, Tensor? selected, float eps, float slope, bool[] needs, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _conv_bwd, _conv_bwd_fake, _conv_bwd_setup, _conv_bwd_rule,
)


def _check_select(p, d, neighbours, mean, var, weight, bias, pool_weight, eps, slope, backend) -> None:
    op, C = "vn_edge_select", p.shape[-1] // 2
    _check_conv(op, p, d, neighbours, mean, var, weight, bias, None, eps, slope, backend)
    if pool_weight.shape != (C, C) or pool_weight.dtype != mean.dtype or pool_weight.device != p.device:
        fail(op, "pool_weight", f"{mean.dtype} [{C}, {C}] on {p.device}",
             f"{pool_weight.dtype} {list(pool_weight.shape)} on {pool_weight.device}")
    if not neighbours.shape[2]:
        fail(op, "neighbours", "at least one neighbour a node", list(neighbours.shape))


def _select(*args):
    _check_select(*args)
    return pick("vn_edge_select", BACKENDS, args[-1], args[0]).select


def _select_fake(*args):
    _check_select(*args)
    p = args[0]
    return p.new_empty(*p.shape[:2], p.shape[3] // 2, dtype=torch.int64)


vn_edge_select_op = define(
    f"vn_edge_select({_INPUTS}, Tensor pool_weight, float eps, float slope, str backend) -> Tensor",
    _select, _select_fake,
)


def vn_edge_stats(p: Tensor, neighbours: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Mean and biased variance, over all B N K edges, of the norms |p_j + q_i| + 1e-6.

    Args:
        p: [B, N, 3, 2C], from `vn_linear(..., edge=True)`: what a node gives as neighbour | as centre (q).
            float32 or float64, bfloat16 on a GPU.
        neighbours: int64 [B, N, K], indices in each cloud; one outside 0..N-1 is an edge of norm 0.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        mean [C], var [C]; zeros where there are no edges. Those of several devices combine with their counts.

    Raises:
        ValueError: wrong shapes or dtypes, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order, deterministic. Source: Vector Neurons (Deng et al. 2021), VNBatchNorm of edge features.

    Example:
        >>> mean, var = ace_fast.functional.vn_edge_stats(p, ace_fast.functional.knn(x, 20))  # doctest: +SKIP
    """
    no_forward_mode("vn_edge_stats", p)
    return vn_edge_stats_op(p, neighbours, backend)


def vn_edge_conv(p: Tensor, d: Tensor, neighbours: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor,
                 selected: Tensor | None = None, *, eps: float = 1e-5, slope: float = 0.2,
                 backend: str = "auto") -> Tensor:
    r"""Batch norm and vector leaky ReLU of every edge and the pooling over a node's edges; no edge tensor is stored.

    .. math:: y_i = \frac{1}{K} \sum_{j \in \mathcal{N}(i)}
              \mathrm{LeakyReLU}_{d_j + e_i}\big(\mathrm{BN}(p_j + q_i)\big)

    Args:
        p: features [B, N, 3, 2C], neighbour part p | centre part q. float32 or float64, bfloat16 on a GPU.
        d: directions [B, N, 3, 2C], or [B, N, 3, 2] shared by the channels, likewise.
        neighbours: int64 [B, N, K], indices in each cloud; one outside 0..N-1 adds nothing, the divisor stays K.
        mean, var, weight, bias: [C] of the batch norm of the norms; float32 beside bfloat16.
        selected: int64 [B, N, C], the neighbour (0..K-1) whose value each channel takes, see `vn_edge_select`;
            None: the mean.
        eps: added to the variance. slope: of the part against the direction.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        [B, N, 3, C].

    Raises:
        ValueError: wrong shapes, dtypes or devices, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order, deterministic; the first recompute the edges, the higher ones store them.
    Source: Vector Neurons (Deng et al. 2021), VN-DGCNN.

    Example:
        >>> edges = ace_fast.functional.knn(x, 20)  # doctest: +SKIP
        >>> y = ace_fast.functional.vn_edge_conv(p, d, edges, mean, var, weight, bias)  # doctest: +SKIP
    """
    op = "vn_edge_conv"
    no_forward_mode(op, p, d, mean, var, weight, bias)
    return vn_edge_conv_op(p, d, neighbours, mean, var, weight, bias, selected, eps, slope, backend)


def vn_edge_select(p: Tensor, d: Tensor, neighbours: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor,
                   pool_weight: Tensor, *, eps: float = 1e-5, slope: float = 0.2, backend: str = "auto") -> Tensor:
    """VNMaxPool's choice of a neighbour: per node and channel the edge of the largest <o, U o>, the first of equals.

    Args:
        p, d, neighbours, mean, var, weight, bias, eps, slope: as for `vn_edge_conv`, whose edge values o are.
        pool_weight: U [C, C], the direction map of the pooling.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        int64 [B, N, C] in 0..K-1; a choice has no derivative.

    Raises:
        ValueError: wrong shapes, dtypes or devices, no neighbours, a backend that cannot run here.

    Source: Vector Neurons (Deng et al. 2021), VNMaxPool.

    Example:
        >>> chosen = ace_fast.functional.vn_edge_select(p, d, edges, mean, var, weight, bias, u)  # doctest: +SKIP
    """
    constants = [t.detach() for t in (p, d, neighbours, mean, var, weight, bias, pool_weight)]
    return vn_edge_select_op(*constants, eps, slope, backend)
