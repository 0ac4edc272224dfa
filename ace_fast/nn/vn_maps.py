"""What the vector-neuron layers share: shapes, maps with their branches, and the batch norm's vectors."""

import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from .affine_chain import group_of, statistics_of_all
from .gates import Seen, add_gates

_SHAPES = {3: "[B, {}, 3]", 4: "[B, {}, 3, N]", 5: "[B, {}, 3, N, K]"}


def to_rows(name: str, x: Tensor, channels: int, dims: tuple[int, ...] = (3, 4, 5), argument: str = "x") -> Tensor:
    """vnn's [B, C, 3, ...] as rows [B, ..., 3, C], a view; contiguous where x comes out of one of our layers."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name}: {argument} must be a tensor {_SHAPES[dims[0]].format(channels)}, "
                         f"got {type(x).__name__}")
    if x.dim() not in dims or x.shape[1] != channels or x.shape[2] != 3:
        expected = " or ".join(_SHAPES[d].format(channels) for d in dims)
        raise ValueError(f"{name}: {argument} must be {expected}, got {list(x.shape)}")
    return x.permute(0, *range(3, x.dim()), 2, 1)


def from_rows(y: Tensor, like: Tensor | None = None) -> Tensor:
    """Rows [B, ..., 3, C] as vnn's [B, C, 3, ...], a view; `like`: the rows before they were flattened to [R, 3, C]."""
    y = y if like is None else y.reshape(*like.shape[:-1], y.shape[-1])
    n = y.dim()
    return y.permute(0, n - 1, n - 2, *range(1, n - 2))


def add_branch(layer: nn.Module, part: str, in_channels: int, out_channels: int) -> None:
    """ACE's unconstrained map beside `map_to_<part>`, under ACE's name."""
    layer.add_module(f"map_to_{part}_nonequiv", nn.Linear(3 * in_channels, 3 * out_channels))


def add_gammas(layer: nn.Module, count: int, relaxed: bool, init: float) -> None:
    """The gates and the switch `relaxed`."""
    if relaxed:
        layer.gammas = nn.ParameterList([nn.Parameter(torch.tensor(float(init))) for _ in range(count)])
    else:
        layer.gammas = []
    layer.relaxed = bool(relaxed)
    add_gates(layer, len(layer.gammas))


def branches_on(layer: nn.Module, disable_equivariance: bool | None) -> bool:
    """Whether the branches count: the call's flag, or the layer's; a Python value, gamma is never read."""
    if isinstance(disable_equivariance, Tensor):
        raise ValueError(f"{type(layer).__name__}: disable_equivariance must be a bool, got a tensor; "
                         "pass a mean part by name, mean=...")
    on = layer.relaxed if disable_equivariance is None else bool(disable_equivariance)
    if on and not layer.gammas:
        raise ValueError(f"{type(layer).__name__}: relaxed must be False for a layer without branches, got True; "
                         "build it with relaxed=True")
    return on


def legacy_order(layer: nn.Module, rows: Tensor) -> torch.Size | None:
    """B and N where the branches of these rows [B, N, 3, C] are read in the ACE code's order."""
    return rows.shape[:2] if layer.legacy_view and rows.dim() == 4 else None


def apply_map(layer: nn.Module, part: str, x: Tensor, on: bool, *, mean: Tensor | None = None,
              legacy: torch.Size | None = None, neighbours: Tensor | None = None) -> Tensor:
    """`map_to_<part>` with its branch: x [R, 3, C] -> [R, 3, O]; [R, 3, 2O] where there are neighbours.

    All maps of one layer take the same flat rows: their gradients then meet at this tensor and add up in place, which
    autograd does not do where each comes through a view of its own.

    Args:
        mean: [B, 3, C'], for C' more channels that are the same at all points of a cloud: their part of the map, with
            the bias, is taken once a cloud.
        legacy: see `legacy_order`.
    """
    weight, edge = getattr(layer, f"map_to_{part}").weight, neighbours is not None
    gate = -1 if part == "dir" else 0
    branch = getattr(layer, f"map_to_{part}_nonequiv", None) if on and not layer.snapped[gate] else None
    dense = bias = gamma = None
    if branch is not None:
        dense, bias, gamma = branch.weight, branch.bias, layer.gammas[gate]
        if layer._record is not None:
            layer._record(_seen(layer, gate % len(layer.gammas), weight, branch, x, mean, legacy, neighbours))
        if legacy is not None:
            y = _split_map(x, weight, mean, layer.backend).unflatten(0, legacy)
            return (y + gamma * _legacy(x, dense, bias, mean, legacy)).flatten(0, 1)
    if edge:
        return functional.vn_linear(x, weight, dense, bias, gamma, edge=True, backend=layer.backend)
    return _split_map(x, weight, mean, layer.backend, dense, bias, gamma)


def _split_map(x, weight, mean, backend, dense=None, bias=None, gamma=None) -> Tensor:
    """The map of [x ; mean] without the concatenation; of x where mean is None."""
    if mean is None:
        return functional.vn_linear(x, weight, dense, bias, gamma, backend=backend)
    c = x.shape[-1]
    # split, not two slices: its gradient is one concatenation, not a sum of two padded copies
    own, shared = weight.split([c, mean.shape[-1]], 1)
    own_dense, shared_dense = (None, None) if dense is None else dense.split([3 * c, 3 * mean.shape[-1]], 1)
    offset = functional.vn_linear(mean, shared, shared_dense, bias, gamma, backend=backend)  # [B, 3, O]
    return functional.vn_linear(x, own, own_dense, None, gamma, offset, backend=backend)


def _legacy(x: Tensor, dense: Tensor, bias: Tensor, mean: Tensor | None, shape: torch.Size) -> Tensor:
    """The original's unconstrained map in 4-d: [B, N, 3 O] read as if it were [B, O, 3, N], -> [B, N, 3, O]."""
    vec = x.transpose(1, 2).flatten(1).unflatten(0, shape)  # [B, N, 3 C], xyz of a channel side by side
    if mean is None:
        y = nn.functional.linear(vec, dense, bias)
    else:
        shared = nn.functional.linear(mean.transpose(1, 2).flatten(1), dense[:, vec.shape[2]:], bias)  # [B, 3 O]
        y = nn.functional.linear(vec, dense[:, :vec.shape[2]]) + shared[:, None]
    return y.reshape(shape[0], dense.shape[0] // 3, 3, shape[1]).permute(0, 3, 2, 1)


@torch.no_grad()
def _seen(layer, gate, weight, branch, x, mean, legacy, neighbours) -> Seen:
    """What is recorded of a branch; its input and its results are those at the nodes."""
    if mean is not None:
        x = torch.cat([x, mean.repeat_interleave(x.shape[0] // max(mean.shape[0], 1), 0)], -1)
    options = {"edge": neighbours is not None, "backend": layer.backend}

    def affine(x: Tensor) -> Tensor:
        if legacy is not None:
            return _legacy(x, branch.weight, branch.bias, None, legacy)
        return functional.vn_linear(x, torch.zeros_like(weight), branch.weight, branch.bias, **options)

    base = functional.vn_linear(x, weight, **options)
    return Seen(gate, layer.gammas[gate], x, base, lambda: affine(x), branch,
                lambda y: _size(y, neighbours, layer.backend), affine)


def gate_irreps(layer: nn.Module, gate: int) -> tuple[o3.Irreps, o3.Irreps]:
    """What the branch of a gate reads and returns: vectors."""
    linear = unconstrained_maps(layer)[gate]
    return tuple(o3.Irreps(f"{n // 3}x1o") for n in (linear.in_features, linear.out_features))


def gate_maps(layer: nn.Module, gate: int) -> list[nn.Module]:
    """The one linear map of a gate's branch."""
    return [unconstrained_maps(layer)[gate]]


def _size(y: Tensor, neighbours: Tensor | None, backend: str) -> Tensor:
    """Euclidean norm of y, or of the edge features that it stands for: from the mean and variance of their norms."""
    if neighbours is None:
        return y.norm()
    mean, var = functional.vn_edge_stats(y.unflatten(0, neighbours.shape[:2]), neighbours, backend=backend)
    return (neighbours.numel() * (var + (mean - 1e-6).square()).sum()).sqrt()


def norm_vectors(bn: nn.Module, p: Tensor, count: int, statistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, weight and bias [C] that the batch norm `bn` applies to the norms of p, as torch's would.

    In training (or without running statistics) mean and variance are `statistics()`, of `count` values a channel, and
    the running ones are updated; for a SyncBatchNorm they are those of all processes.
    """
    if bn.training or bn.running_mean is None:
        if count == 1:
            raise ValueError(f"VNBatchNorm: expected more than 1 value per channel when training, got {list(p.shape)} "
                             "(rows, xyz, channels); use a larger batch or .eval()")
        mean, var = statistics()
        if (group := group_of(bn)) is not None:
            mean, var, count = statistics_of_all(mean, var, count, group)
        if bn.training and bn.track_running_stats and bn.running_mean is not None:
            _update(bn, mean, var, count)
    else:
        mean, var = bn.running_mean, bn.running_var
    weight = torch.ones_like(mean) if bn.weight is None else bn.weight
    bias = torch.zeros_like(mean) if bn.bias is None else bn.bias
    vectors = mean, var, weight, bias
    return tuple(v.float() for v in vectors) if p.dtype == torch.bfloat16 else vectors


@torch.no_grad()
def _update(bn: nn.Module, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
    # inside a backward pass only activation checkpointing runs a forward, for the second time
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        return
    factor = bn.momentum or 0.0
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:
            factor = 1.0 / bn.num_batches_tracked.to(bn.running_mean.dtype)
    if isinstance(count, Tensor) or count > 1:
        bn.running_mean.lerp_(mean.to(bn.running_mean.dtype), factor)
        bn.running_var.lerp_((var * (count / (count - 1))).to(bn.running_var.dtype), factor)


def dims_like(dim: int) -> tuple[int, ...]:
    """The dimensions that torch's batch norm for `dim` takes: BatchNorm1d both of 3 and 4."""
    return (5,) if dim == 5 else (3, 4)


def unconstrained_maps(layer: nn.Module) -> list[nn.Linear]:
    """The layer's dense branches, features before directions."""
    names = ("map_to_feat_nonequiv", "map_to_dir_nonequiv")
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


def point_mean(rows: Tensor) -> Tensor:
    """[B, N, ...] -> [B, ...]: a scaled sum, whose gradient is a view; that of a mean is written out at every point."""
    return rows.sum(1) / rows.shape[1]


def at_neighbours(rows: Tensor, neighbours: Tensor) -> Tensor:
    """What lies at the neighbours, rows [B, N, ...] and neighbours [B, N, K] -> [B, N, K, ...]."""
    cloud = torch.arange(rows.shape[0], device=rows.device)[:, None, None] * rows.shape[1]
    found = rows.flatten(0, 1).index_select(0, (neighbours + cloud).flatten())
    return found.reshape(*neighbours.shape, *rows.shape[2:])


def turn(rows: Tensor, frame: Tensor) -> Tensor:
    """Vectors in coordinates of a frame: rows [B, ..., 3, C] or, the same at all points, [B, 3, C] -> [B, ..., 3, C].

    frame is [B, ..., 3 (xyz), 3 (vectors)].
    """
    axes = frame.transpose(-1, -2)
    if rows.dim() == frame.dim():
        return axes @ rows
    # one product a cloud; broadcasting would copy the rows to every point
    return (axes.flatten(1, -2) @ rows).reshape(*frame.shape[:-1], rows.shape[-1])
