"""The edge convolution of VN-DGCNN as one layer: neighbours, edge features, map, norm, nonlinearity, pooling."""

from math import prod

import torch
from torch import Tensor, nn

from .. import functional
from .vector_neurons import VNMaxPool, add_maps
from .vn_maps import (
    add_gammas,
    apply_map,
    at_neighbours,
    branches_on,
    from_rows,
    gate_irreps,
    gate_maps,
    norm_vectors,
    to_rows,
    unconstrained_maps,
)


class VNEdgeConv(nn.Module):
    r"""VN-DGCNN's edge convolution: vnn's get_graph_feature, VNLinearLeakyReLU and pooling, without edge tensors.

    .. math:: y_i = \mathrm{pool}_{j \in \mathcal{N}(i)}\; \mathrm{LeakyReLU}_{d_{ij}}(\mathrm{BN}(p_{ij})), \quad
              p_{ij} = W [x_j - x_i ; x_i] + \gamma_0 (\ldots), \quad d_{ij} = U [x_j - x_i ; x_i] + \gamma_1 (\ldots)

    The maps are linear, so both are taken at the nodes, once instead of k times. Parameters are those of a
    `VNLinearLeakyReLU(2 in_channels, out_channels, dim=5)`, whose checkpoints load.

    Args:
        in_channels: of the points; the edge features have twice as many.
        out_channels: of the result.
        k: neighbours, nearest in the space of all 3 C features, the point itself included.
        pooling: "mean"; "max", with a child `pool`, a `VNMaxPool`; or None, which forms and returns the edges.
        share_nonlinearity: one direction for all channels.
        negative_slope: of the part against the direction.
        relaxed, relaxation_init: the unconstrained branches, as in `VNLinearLeakyReLU`.
        backend: which implementation of the operators runs.

    Attributes:
        relaxed: False switches the branches off; then exactly the calls of a strict layer are made.

    Raises:
        ValueError: features of another shape, k larger than the cloud, neighbours outside it (checked on the CPU).

    Derivatives of any order, none through the choice of neighbours. Source: Vector Neurons (Deng et al. 2021),
    ACE (Manolache et al. 2025).

    Example:
        >>> ace_fast.nn.VNEdgeConv(21, 42, k=20)(torch.randn(8, 21, 3, 300)).shape
        torch.Size([8, 42, 3, 300])
    """

    def __init__(self, in_channels, out_channels, k=20, *, pooling="mean", share_nonlinearity=False,
                 negative_slope=0.2, relaxed=False, relaxation_init=1.0, backend="auto"):
        super().__init__()
        if pooling not in ("mean", "max", None):
            raise ValueError(f"VNEdgeConv: pooling must be 'mean', 'max' or None, got {pooling!r}")
        self.in_channels, self.out_channels, self.k, self.pooling = in_channels, out_channels, k, pooling
        self.negative_slope, self.backend = negative_slope, backend
        add_maps(self, 2 * in_channels, out_channels, 5, share_nonlinearity, relaxed)
        add_gammas(self, 2, relaxed, relaxation_init)
        self.pool = VNMaxPool(out_channels, backend=backend) if pooling == "max" else None

    def get_gammas(self) -> list[nn.Parameter]:
        return list(self.gammas)

    gate_irreps, gate_maps = gate_irreps, gate_maps

    def get_nonequi_linear_layers(self) -> list[nn.Linear]:
        return unconstrained_maps(self)

    def forward(self, x: Tensor, neighbours: Tensor | None = None, disable_equivariance: bool | None = None, *,
                pool: VNMaxPool | None = None) -> Tensor:
        """x [B, C, 3, N] -> [B, O, 3, N], or [B, O, 3, N, K] without pooling.

        Args:
            neighbours: int64 [B, N, K], indices in each cloud; None: the k nearest.
            disable_equivariance: the branches on or off in this call; None: as `relaxed` says.
            pool: a VNMaxPool that pools in place of the layer's own.
        """
        rows = to_rows("VNEdgeConv", x, self.in_channels, (4,))  # [B, N, 3, C]
        given, neighbours = neighbours is not None, self._neighbours(rows, neighbours)
        on = branches_on(self, disable_equivariance)
        flat = rows.flatten(0, 1)
        p, d = (apply_map(self, part, flat, on, neighbours=neighbours).unflatten(0, rows.shape[:2])
                for part in ("feat", "dir"))  # [B, N, 3, 2O], the directions' O may be 1
        bn = self.batchnorm.bn
        vectors = norm_vectors(bn, p, prod(neighbours.shape),
                               lambda: functional.vn_edge_stats(p, neighbours, backend=self.backend))
        options = {"eps": bn.eps, "slope": self.negative_slope, "backend": self.backend}
        pool = self.pool if pool is None else pool
        if pool is None and self.pooling is None:
            # a neighbour outside the cloud gives zero, as where edges are pooled
            outside = (neighbours < 0) | (neighbours >= rows.shape[1]) if given else None
            inside = neighbours.masked_fill(outside, 0) if given else neighbours
            y = functional.vn_leaky_relu(_edges(p, inside), _edges(d, inside), *vectors, **options)
            return from_rows(y.masked_fill(outside[..., None, None], 0) if given else y)
        selected = None
        if pool is not None:
            weight = pool.map_to_dir.weight.to(vectors[0].dtype)
            selected = functional.vn_edge_select(p, d, neighbours, *vectors, weight, **options)
        return from_rows(functional.vn_edge_conv(p, d, neighbours, *vectors, selected, **options))

    def _neighbours(self, rows: Tensor, neighbours: Tensor | None) -> Tensor:
        """The given ones, checked, or the k nearest in feature space, int64 [B, N, K]."""
        points = rows.shape[1]
        if neighbours is None:
            if not 0 < self.k <= points:
                raise ValueError(f"VNEdgeConv: k must be in 1..{points}, the points of a cloud, got {self.k}; "
                                 "take a smaller k or larger clouds")
            return functional.knn(rows.flatten(2), self.k, backend=self.backend)
        shape = f"int64 [{rows.shape[0]}, {points}, K]"
        if not isinstance(neighbours, Tensor) or neighbours.dtype != torch.int64 or neighbours.dim() != 3 or (
                neighbours.shape[:2] != rows.shape[:2]):
            got = (f"{neighbours.dtype} {list(neighbours.shape)}" if isinstance(neighbours, Tensor)
                   else type(neighbours).__name__)
            raise ValueError(f"VNEdgeConv: neighbours must be {shape}, got {got}")
        # on a GPU reading them would wait for it; the kernels read nothing outside
        if neighbours.device.type == "cpu" and neighbours.numel() and not torch.compiler.is_compiling():
            low, high = (v.item() for v in neighbours.aminmax())
            if low < 0 or high >= points:
                raise ValueError(f"VNEdgeConv: neighbours must be in 0..{points - 1}, indices in each cloud, "
                                 f"got {low if low < 0 else high}; subtract the first index of each cloud")
        return neighbours


def _edges(p: Tensor, neighbours: Tensor) -> Tensor:
    """Node products [B, N, 3, 2C] (as neighbour | as centre) -> p_j + q_i [B, N, K, 3, C]."""
    first, centre = p.chunk(2, -1)
    return at_neighbours(first, neighbours) + centre.unsqueeze(2)
