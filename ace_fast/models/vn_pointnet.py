"""VN-PointNet with the unconstrained branches of ACE: classification of point clouds."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from ..nn import VNBatchNorm, VNLinear, VNLinearLeakyReLU, VNMaxPool, VNStdFeature
from ..nn.vn_maps import at_neighbours, from_rows
from .branches import Branched
from .vn_dgcnn import check_points, flat, pooling_of, standard_parts


def cross_edges(points: Tensor, k: int, backend: str) -> Tensor:
    """vnn's get_graph_feature_cross: x_j - x_i, x_i and their cross product for the k nearest, [B, 3, 3, N, K]."""
    x = points.transpose(1, 2).contiguous()  # [B, N, 3]
    other = at_neighbours(x, functional.knn(x, k, backend=backend))  # [B, N, K, 3]
    centre = x.unsqueeze(2).expand_as(other)
    return from_rows(torch.stack([other - centre, centre, torch.linalg.cross(other, centre)], -1))


class _FeatureTransform(nn.Module):
    """vnn's STNkd: one vector of every channel for the whole cloud, [B, d, 3, N] -> [B, d, 3]."""

    def __init__(self, d: int, largest: bool, options: dict):
        super().__init__()
        backend = options["backend"]
        self.conv1 = VNLinearLeakyReLU(d, 21, 4, negative_slope=0.0, **options)
        self.conv2 = VNLinearLeakyReLU(21, 42, 4, negative_slope=0.0, **options)
        self.conv3 = VNLinearLeakyReLU(42, 341, 4, negative_slope=0.0, **options)
        self.fc1 = VNLinearLeakyReLU(341, 170, 3, negative_slope=0.0, **options)
        self.fc2 = VNLinearLeakyReLU(170, 85, 3, negative_slope=0.0, **options)
        self.pool = VNMaxPool(341, backend=backend) if largest else None
        self.fc3 = VNLinear(85, d, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3(self.conv2(self.conv1(x)))
        x = x.mean(-1) if self.pool is None else self.pool(x)
        return self.fc3(self.fc2(self.fc1(x)))


class _Encoder(nn.Module):
    """vnn's PointNetEncoder up to the pooled invariant features, [B, 3, N] -> [B, 2046]."""

    def __init__(self, n_knn: int, largest: bool, feature_transform: bool, options: dict):
        super().__init__()
        backend = options["backend"]
        self.n_knn, self.backend = n_knn, backend
        self.conv_pos = VNLinearLeakyReLU(3, 21, 5, negative_slope=0.0, **options)
        self.conv1 = VNLinearLeakyReLU(21, 21, 4, negative_slope=0.0, **options)
        self.conv2 = VNLinearLeakyReLU(42 if feature_transform else 21, 42, 4, negative_slope=0.0, **options)
        self.conv3 = VNLinear(42, 341, backend=backend)
        self.bn3 = VNBatchNorm(341, 4, backend=backend)
        self.std_feature = VNStdFeature(682, 4, negative_slope=0.0, **options)
        self.pool = VNMaxPool(21, backend=backend) if largest else None
        self.fstn = _FeatureTransform(21, largest, options) if feature_transform else None

    def forward(self, points: Tensor) -> Tensor:
        x = self.conv_pos(cross_edges(points, self.n_knn, self.backend))  # [B, 21, 3, N, K]
        x = self.conv1(x.mean(-1) if self.pool is None else self.pool(x))
        x = self.conv2(x, mean=None if self.fstn is None else self.fstn(x))
        parts, _, _ = standard_parts(self.bn3(self.conv3(x)), self.std_feature)
        return flat([part.max(1)[0] for part in parts])


class VNPointNet(Branched):
    """VN-PointNet for classification: rotation-invariant logits, with ACE's unconstrained branches where `relaxed`.

    The network of the vnn repository with its feature transform (`feat.fstn`), parameter names and initial values
    included; vnn returns the log_softmax of these logits. Its edge feature holds a cross product, which no map of the
    nodes gives: the edges of the first layer are formed, at 3 and 21 channels. Equivariant under rotations, not under
    reflections.

    Args:
        num_class: logits a cloud.
        n_knn: neighbours of a point, itself included.
        pooling: "mean" or "max" (children feat.pool and feat.fstn.pool).
        dropout: before the last layer.
        feature_transform: with vnn's STNkd. Without it conv2 takes 21 channels (vnn's own code cannot run so).
        relaxed, relaxation_init, legacy_view, backend: as in `VNDGCNN`.

    Raises:
        ValueError: an unknown pooling, points of another shape, fewer points than neighbours.

    Source: Deng et al. 2021 (Vector Neurons), Manolache et al. 2025 (ACE).

    Example:
        >>> model = VNPointNet(num_class=10, n_knn=8)
        >>> model(torch.randn(4, 3, 128)).shape
        torch.Size([4, 10])
    """

    def __init__(self, num_class=40, n_knn=20, pooling="mean", dropout=0.4, *, feature_transform=True, relaxed=False,
                 relaxation_init=1.0, legacy_view=False, backend="auto"):
        super().__init__()
        self.relaxed, self.backend = relaxed, backend
        options = {"relaxed": relaxed, "relaxation_init": relaxation_init, "legacy_view": legacy_view,
                   "backend": backend}
        self.feat = _Encoder(n_knn, pooling_of("VNPointNet", pooling), feature_transform, options)
        self.fc1 = nn.Linear(6 * 341, 512)
        self.fc2 = nn.Linear(512, 256)
        self.fc3 = nn.Linear(256, num_class)
        self.dropout = nn.Dropout(dropout)
        self.bn1 = nn.BatchNorm1d(512)
        self.bn2 = nn.BatchNorm1d(256)

    def _layers(self) -> list[nn.Module]:
        feat = self.feat
        stn = [] if feat.fstn is None else [getattr(feat.fstn, n) for n in ("conv1", "conv2", "conv3", "fc1", "fc2")]
        return [feat.conv_pos, feat.conv1, *stn, feat.conv2, feat.std_feature.vn1, feat.std_feature.vn2]

    def forward(self, x: Tensor) -> Tensor:
        """Points [B, 3, N] -> logits [B, num_class]."""
        check_points("VNPointNet", x)
        x = F.relu(self.bn1(self.fc1(self.feat(x))))
        x = F.relu(self.bn2(self.dropout(self.fc2(x))))
        return self.fc3(x)
