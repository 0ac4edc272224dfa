"""Vector-neuron layers with vnn's signatures, on the fused operators; features are [B, C, 3, ...], in memory rows."""

import torch
from torch import Tensor, nn

from .. import functional
from .vn_maps import (
    add_branch,
    add_gammas,
    apply_map,
    branches_on,
    dims_like,
    from_rows,
    gate_irreps,
    gate_maps,
    legacy_order,
    norm_vectors,
    to_rows,
    turn,
    unconstrained_maps,
)


class VNLinear(nn.Module):
    r"""Linear map of the channels of vector features, a drop-in for vnn's VNLinear.

    .. math:: y = W x + \gamma\, (D\, \mathrm{vec}(x) + b)

    Args:
        in_channels, out_channels: as in vnn; parameter `map_to_feat.weight` [O, C].
        relaxed: adds the unconstrained map `map_to_feat_nonequiv` (weight [3O, 3C], bias [3O]) and its gate
            `gammas.0`, as ACE does in its other layers.
        relaxation_init: the gate at the start.
        legacy_view: reads the unconstrained map of 4-d features in the ACE code's order, see docs/differences.md.
        backend: which implementation of the operators runs.

    Attributes:
        relaxed: False switches the branch off; a Python flag, gamma is never read.

    Raises:
        ValueError: features of another shape.

    Derivatives of any order. Source: Vector Neurons (Deng et al. 2021), ACE (Manolache et al. 2025).

    Example:
        >>> ace_fast.nn.VNLinear(21, 42)(torch.randn(8, 21, 3, 100)).shape
        torch.Size([8, 42, 3, 100])
    """

    def __init__(self, in_channels, out_channels, *, relaxed=False, relaxation_init=1.0, legacy_view=False,
                 backend="auto"):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.legacy_view, self.backend = legacy_view, backend
        self.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)
        if relaxed:
            add_branch(self, "feat", in_channels, out_channels)
        add_gammas(self, 1, relaxed, relaxation_init)

    def get_gammas(self) -> list[nn.Parameter]:
        return list(self.gammas)

    gate_irreps, gate_maps = gate_irreps, gate_maps

    def forward(self, x: Tensor, disable_equivariance: bool | None = None) -> Tensor:
        """x [B, C, 3, ...] -> [B, O, 3, ...].

        `disable_equivariance`: the branch on or off in this call; a layer without one ignores it, as ACE's does.
        """
        rows = to_rows("VNLinear", x, self.in_channels)
        on = branches_on(self, disable_equivariance if self.gammas else None)
        return from_rows(apply_map(self, "feat", rows.flatten(0, -3), on, legacy=legacy_order(self, rows)), rows)


class VNLeakyReLU(nn.Module):
    r"""Vector leaky ReLU along learned directions d = U x, a drop-in for vnn's VNLeakyReLU.

    .. math:: y = x \;\text{if}\; \langle x, d\rangle \ge 0, \;\text{else}\;
              x - (1 - \mathrm{slope}) \frac{\langle x, d\rangle}{|d|^2 + 10^{-6}} d

    Args:
        in_channels, share_nonlinearity, negative_slope: as in vnn; parameter `map_to_dir.weight` [C, C], or [1, C]
            where the channels share one direction.
        relaxed, relaxation_init, legacy_view, backend: as in `VNLinear`, for the directions.

    Raises:
        ValueError: features of another shape.

    Derivatives of any order. Source: Vector Neurons (Deng et al. 2021).

    Example:
        >>> ace_fast.nn.VNLeakyReLU(21)(torch.randn(8, 21, 3, 100)).shape
        torch.Size([8, 21, 3, 100])
    """

    def __init__(self, in_channels, share_nonlinearity=False, negative_slope=0.2, *, relaxed=False,
                 relaxation_init=1.0, legacy_view=False, backend="auto"):
        super().__init__()
        self.in_channels, self.negative_slope = in_channels, negative_slope
        self.legacy_view, self.backend = legacy_view, backend
        directions = 1 if share_nonlinearity else in_channels
        self.map_to_dir = nn.Linear(in_channels, directions, bias=False)
        if relaxed:
            add_branch(self, "dir", in_channels, directions)
        add_gammas(self, 1, relaxed, relaxation_init)

    def get_gammas(self) -> list[nn.Parameter]:
        return list(self.gammas)

    gate_irreps, gate_maps = gate_irreps, gate_maps

    def forward(self, x: Tensor, disable_equivariance: bool | None = None) -> Tensor:
        """x [B, C, 3, ...] -> the same shape."""
        rows = to_rows("VNLeakyReLU", x, self.in_channels)
        flat = rows.flatten(0, -3)  # [R, 3, C]
        d = apply_map(self, "dir", flat, branches_on(self, disable_equivariance), legacy=legacy_order(self, rows))
        return from_rows(functional.vn_leaky_relu(flat, d, slope=self.negative_slope, backend=self.backend), rows)


class VNBatchNorm(nn.Module):
    r"""Batch norm of the norms of vector features, a drop-in for vnn's VNBatchNorm.

    .. math:: y = \frac{\mathrm{BN}(r)}{r}\, x, \qquad r = |x| + 10^{-6}

    The child `bn` is torch's own batch norm: momentum, affine, track_running_stats and the running statistics are its,
    and mean what they mean in torch; under activation checkpointing a batch counts once. Statistics are an operator of
    their own (`ace_fast.functional.vn_norm_stats`), so those of several devices can be combined between it and the
    normalisation; this layer takes each device's own.

    Args:
        num_features: channels C.
        dim: of the features: 3 or 4 ([B, C, 3] and [B, C, 3, N], a BatchNorm1d), or 5 (a BatchNorm2d).
        backend: which implementation of the operators runs.

    Raises:
        ValueError: another dim, features of another shape, one value per channel in training.

    Derivatives of any order. Source: Vector Neurons (Deng et al. 2021).

    Example:
        >>> ace_fast.nn.VNBatchNorm(21, 4)(torch.randn(8, 21, 3, 100)).shape
        torch.Size([8, 21, 3, 100])
    """

    def __init__(self, num_features, dim, *, backend="auto"):
        super().__init__()
        if dim not in (3, 4, 5):
            raise ValueError(f"VNBatchNorm: dim must be 3, 4 or 5, got {dim!r}; "
                             "it is that of the features [B, C, 3, ...]")
        self.dim, self.backend = dim, backend
        self.bn = (nn.BatchNorm2d if dim == 5 else nn.BatchNorm1d)(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, 3, ...] -> the same shape."""
        rows = to_rows("VNBatchNorm", x, self.bn.num_features, dims_like(self.dim))
        flat = rows.flatten(0, -3)  # [R, 3, C]
        y = functional.vn_leaky_relu(flat, None, *self.vectors(flat), eps=self.bn.eps, backend=self.backend)
        return from_rows(y, rows)

    def vectors(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Mean, variance, weight and bias [C] for the norms of rows [R, 3, C]."""
        return norm_vectors(self.bn, flat, flat.shape[0], lambda: functional.vn_norm_stats(flat, backend=self.backend))


class VNLinearLeakyReLU(nn.Module):
    r"""Linear map, batch norm of the norms and vector leaky ReLU, a drop-in for vnn's and ACE's VNLinearLeakyReLU.

    .. math:: p = W x + \gamma_0 (A\, \mathrm{vec}(x) + a), \quad d = U x + \gamma_1 (C\, \mathrm{vec}(x) + c), \quad
              y = \mathrm{LeakyReLU}_d(\mathrm{BN}(p))

    Args:
        in_channels, out_channels, dim, share_nonlinearity, negative_slope: as in vnn; parameters `map_to_feat.weight`
            [O, C], `map_to_dir.weight` [O or 1, C], `batchnorm.bn.*`.
        relaxed: adds `map_to_feat_nonequiv`, `map_to_dir_nonequiv` and `gammas` (features, directions), ACE's names.
        relaxation_init: the gates at the start.
        legacy_view: reads the unconstrained maps of 4-d features in the ACE code's order, for its checkpoints.
        backend: which implementation of the operators runs.

    Attributes:
        relaxed: False switches the branches off; then exactly the calls of a strict layer are made.

    Raises:
        ValueError: features of another shape, one value per channel in training.

    Derivatives of any order. Source: Vector Neurons (Deng et al. 2021), ACE (Manolache et al. 2025).

    Example:
        >>> ace_fast.nn.VNLinearLeakyReLU(21, 42, dim=4, relaxed=True)(torch.randn(8, 21, 3, 100)).shape
        torch.Size([8, 42, 3, 100])
    """

    def __init__(self, in_channels, out_channels, dim=5, share_nonlinearity=False, negative_slope=0.2, *,
                 relaxed=False, relaxation_init=1.0, legacy_view=False, backend="auto"):
        super().__init__()
        self.in_channels, self.out_channels, self.dim = in_channels, out_channels, dim
        self.negative_slope, self.legacy_view, self.backend = negative_slope, legacy_view, backend
        add_maps(self, in_channels, out_channels, dim, share_nonlinearity, relaxed)
        add_gammas(self, 2, relaxed, relaxation_init)

    def get_gammas(self) -> list[nn.Parameter]:
        return list(self.gammas)

    gate_irreps, gate_maps = gate_irreps, gate_maps

    def get_nonequi_linear_layers(self) -> list[nn.Linear]:
        return unconstrained_maps(self)

    def forward(self, x: Tensor, disable_equivariance: bool | None = None, *, mean: Tensor | None = None) -> Tensor:
        """x [B, C, 3, ...] -> [B, O, 3, ...].

        Args:
            disable_equivariance: the branches on or off in this call (ACE's argument); None: as `relaxed` says.
            mean: [B, C', 3] of C' more input channels that all points of a cloud share: the layer maps [x ; mean], of
                in_channels = C + C' channels, without forming it.
        """
        on, dims, channels = branches_on(self, disable_equivariance), dims_like(self.dim), self.in_channels
        if mean is not None:
            channels = x.shape[1] if isinstance(x, Tensor) and x.dim() > 1 else channels
            mean = to_rows("VNLinearLeakyReLU", mean, self.in_channels - channels, (3,), "mean")
        rows = to_rows("VNLinearLeakyReLU", x, channels, dims)
        flat, legacy = rows.flatten(0, -3), legacy_order(self, rows)  # [R, 3, C]
        p, d = (apply_map(self, part, flat, on, mean=mean, legacy=legacy) for part in ("feat", "dir"))
        y = functional.vn_leaky_relu(p, d, *self.batchnorm.vectors(p), eps=self.batchnorm.bn.eps,
                                     slope=self.negative_slope, backend=self.backend)
        return from_rows(y, rows)


def add_maps(layer, in_channels, out_channels, dim, share_nonlinearity, relaxed) -> None:
    """Features, batch norm and directions, in the original's order so that a seed gives the same weights."""
    directions = 1 if share_nonlinearity else out_channels
    layer.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)
    layer.batchnorm = VNBatchNorm(out_channels, dim, backend=layer.backend)
    if relaxed:
        add_branch(layer, "feat", in_channels, out_channels)
    layer.map_to_dir = nn.Linear(in_channels, directions, bias=False)
    if relaxed:
        add_branch(layer, "dir", in_channels, directions)


class VNMaxPool(nn.Module):
    r"""Over the last dimension, per channel, the vector of the largest <x, U x>: a drop-in for vnn's VNMaxPool.

    Args:
        in_channels: C; parameter `map_to_dir.weight` [C, C].
        backend: which implementation of the operators runs.

    Raises:
        ValueError: features of another shape, nothing to choose from.

    Derivatives of any order in x; a choice has none in U. Of equal ones the first is taken.
    Source: Vector Neurons (Deng et al. 2021).

    Example:
        >>> ace_fast.nn.VNMaxPool(21)(torch.randn(8, 21, 3, 100, 20)).shape
        torch.Size([8, 21, 3, 100])
    """

    def __init__(self, in_channels, *, backend="auto"):
        super().__init__()
        self.in_channels, self.backend = in_channels, backend
        self.map_to_dir = nn.Linear(in_channels, in_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, 3, ..., K] -> [B, C, 3, ...]."""
        rows = to_rows("VNMaxPool", x, self.in_channels, (4, 5))  # [B, ..., K, 3, C]
        if not x.shape[-1]:
            raise ValueError(f"VNMaxPool: x must have at least one vector to choose from, got {list(x.shape)}")
        with torch.no_grad():
            d = functional.vn_linear(rows, self.map_to_dir.weight, backend=self.backend)
            best = (rows * d).sum(-2).argmax(-2)  # [B, ..., C]
        index = best[..., None, None, :].expand(*best.shape[:-1], 1, 3, -1)
        return from_rows(rows.gather(-3, index).squeeze(-3))


def mean_pool(x: Tensor, dim: int = -1, keepdim: bool = False) -> Tensor:
    """The mean over the last dimension, vnn's mean_pool."""
    return x.mean(dim=dim, keepdim=keepdim)


class VNStdFeature(nn.Module):
    r"""Features in a frame that turns with them: rotation invariant, a drop-in for vnn's VNStdFeature.

    .. math:: z = V\, \mathrm{vn}_2(\mathrm{vn}_1(x)) \in \mathbb{R}^{3 \times 3}, \qquad y = x z^T

    Args:
        in_channels, dim, normalize_frame, share_nonlinearity, negative_slope: as in vnn; children `vn1`, `vn2`
            (`VNLinearLeakyReLU`, to a half and a quarter of the channels) and `vn_lin`. With `normalize_frame` two
            vectors are orthonormalised (Gram-Schmidt) and their cross product is the third.
        relaxed, relaxation_init, legacy_view, backend: as in `VNLinearLeakyReLU`, for `vn1` and `vn2`.

    Raises:
        ValueError: features of another shape, one value per channel in training.

    Derivatives of any order. Source: Vector Neurons (Deng et al. 2021), section 3.5.

    Example:
        >>> std, frame = ace_fast.nn.VNStdFeature(42)(torch.randn(8, 42, 3, 100))
        >>> std.shape, frame.shape
        (torch.Size([8, 42, 3, 100]), torch.Size([8, 3, 3, 100]))
    """

    def __init__(self, in_channels, dim=4, normalize_frame=False, share_nonlinearity=False, negative_slope=0.2, *,
                 relaxed=False, relaxation_init=1.0, legacy_view=False, backend="auto"):
        super().__init__()
        self.in_channels, self.dim, self.normalize_frame, self.backend = in_channels, dim, normalize_frame, backend
        options = {"relaxed": relaxed, "relaxation_init": relaxation_init, "legacy_view": legacy_view,
                   "backend": backend}
        half, quarter = in_channels // 2, in_channels // 4
        self.vn1 = VNLinearLeakyReLU(in_channels, half, dim, share_nonlinearity, negative_slope, **options)
        self.vn2 = VNLinearLeakyReLU(half, quarter, dim, share_nonlinearity, negative_slope, **options)
        self.vn_lin = nn.Linear(quarter, 2 if normalize_frame else 3, bias=False)

    def get_gammas(self) -> list[nn.Parameter]:
        return self.vn1.get_gammas() + self.vn2.get_gammas()

    def get_nonequi_linear_layers(self) -> list[nn.Linear]:
        return self.vn1.get_nonequi_linear_layers() + self.vn2.get_nonequi_linear_layers()

    def forward(self, x: Tensor, disable_equivariance: bool | None = None, *,
                mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, C, 3, ...] -> the invariant features, x's shape, and the frame [B, 3 (xyz), 3 (vectors), ...].

        With `mean` [B, C', 3] it is x concatenated with C' more channels that all points of a cloud share (in_channels
        counts both): only the features returned are formed at full width.
        """
        frame = self.frame(x, disable_equivariance, mean=mean)
        std = turn(x.permute(0, *range(3, x.dim()), 2, 1), frame)
        if mean is not None:
            std = torch.cat([std, turn(mean.transpose(1, 2), frame)], -1)
        n = frame.dim()
        return from_rows(std), frame.permute(0, n - 2, n - 1, *range(1, n - 2))

    def frame(self, x: Tensor, disable_equivariance: bool | None = None, *, mean: Tensor | None = None) -> Tensor:
        """The frame of every point as rows [B, ..., 3 (xyz), 3 (vectors)]; see `forward`."""
        z = self.vn2(self.vn1(x, disable_equivariance, mean=mean), disable_equivariance)
        rows = z.permute(0, *range(3, z.dim()), 2, 1)
        z = functional.vn_linear(rows, self.vn_lin.weight, backend=self.backend)  # [B, ..., 3, 3 or 2]
        if not self.normalize_frame:
            return z
        # vector_norm: its gradient at zero is zero, that of a square root infinite
        first, second = z.unbind(-1)
        first = first / (torch.linalg.vector_norm(first, dim=-1, keepdim=True) + 1e-6)
        second = second - (second * first).sum(-1, keepdim=True) * first
        second = second / (torch.linalg.vector_norm(second, dim=-1, keepdim=True) + 1e-6)
        return torch.stack([first, second, torch.linalg.cross(first, second)], -1)
