"""VN-DGCNN with the unconstrained branches of ACE: classification and part segmentation of point clouds."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import VNEdgeConv, VNLinearLeakyReLU, VNMaxPool, VNStdFeature
from ..nn.vn_maps import from_rows, point_mean, turn
from .branches import Branched

_THIRD = 1024 // 3  # the original's widths are those of DGCNN, divided by the three components of a vector


def check_points(name: str, points: Tensor) -> None:
    if not isinstance(points, Tensor):
        raise ValueError(f"{name}: x must be a tensor [B, 3, N], got {type(points).__name__}")
    if points.dim() != 3 or points.shape[1] != 3 or not points.shape[2]:
        raise ValueError(f"{name}: x must be [B, 3, N] with at least one point, got {list(points.shape)}; "
                         "points [B, N, 3] take .transpose(1, 2)")


def to_feature_rows(x: Tensor) -> Tensor:
    """[B, C, 3, N] -> [B, N, 3, C]; the layers' results lie in memory like this."""
    return x.permute(0, 3, 2, 1)


def pooling_of(name: str, pooling: str) -> bool:
    """Whether the pools are VNMaxPool."""
    if pooling not in ("mean", "max"):
        raise ValueError(f"{name}: pooling must be 'mean' or 'max', got {pooling!r}")
    return pooling == "max"


def standard_parts(x: Tensor, std_feature: VNStdFeature) -> tuple[list[Tensor], Tensor, Tensor]:
    """The invariant features of x [B, C, 3, N] and of its mean, [B, N, 3, C] each, the frame [B, N, 3, 3], the mean.

    What vnn computes from cat(x, mean x), without the concatenation; the mean is [B, 3, C].
    """
    rows = to_feature_rows(x)
    mean = point_mean(rows)
    frame = std_feature.frame(x, mean=mean.transpose(1, 2))
    return [turn(rows, frame), turn(mean, frame)], frame, mean


def flat(parts: list[Tensor]) -> Tensor:
    """Pooled parts [B, 3, C] -> [B, 6 C], in vnn's order: channels, then components."""
    return torch.cat([part.transpose(1, 2).flatten(1) for part in parts], 1)


class VNDGCNN(Branched):
    """VN-DGCNN for classification: rotation-invariant logits, with ACE's unconstrained branches where `relaxed`.

    Four edge convolutions on graphs of nearest features, a map of their results, features in a rotating frame, max and
    mean over the points, three linear layers. Names and initial values of the parameters are those of the original code
    (vnn and ACE): its checkpoints load by name.

    Args:
        num_class: logits a cloud.
        n_knn: neighbours of a point, itself included.
        pooling: over the neighbours, "mean" or "max" (children pool1 to pool4).
        dropout: between the linear layers.
        relaxed: adds two branches and two gammas to each of the seven vector-neuron layers.
        relaxation_init: the gammas at the start.
        legacy_view: the ACE code's order of the unconstrained maps in conv5 and std_feature, which mixes points and
            channels: for its checkpoints.
        backend: which implementation of the operators runs.

    Attributes:
        relaxed: whether the model has branches; `set_equivariance` switches them.

    Raises:
        ValueError: an unknown pooling, points of another shape, fewer points than neighbours, a batch of one cloud in
            training (batch norm).

    Source: Deng et al. 2021 (Vector Neurons), Manolache et al. 2025 (ACE).

    Example:
        >>> model = VNDGCNN(num_class=10, n_knn=8)
        >>> model(torch.randn(4, 3, 128)).shape
        torch.Size([4, 10])
    """

    def __init__(self, num_class=40, n_knn=20, pooling="mean", dropout=0.5, *, relaxed=False, relaxation_init=1.0,
                 legacy_view=False, backend="auto"):
        super().__init__()
        largest = pooling_of("VNDGCNN", pooling)
        self.relaxed, self.backend = relaxed, backend
        edge = {"relaxed": relaxed, "relaxation_init": relaxation_init, "backend": backend}
        node = edge | {"legacy_view": legacy_view}
        widths = (21, 21, 42, 85)
        self.conv1 = VNEdgeConv(1, 21, n_knn, **edge)
        self.conv2 = VNEdgeConv(21, 21, n_knn, **edge)
        self.conv3 = VNEdgeConv(21, 42, n_knn, **edge)
        self.conv4 = VNEdgeConv(42, 85, n_knn, **edge)
        self.conv5 = VNLinearLeakyReLU(sum(widths), _THIRD, 4, share_nonlinearity=True, **node)
        self.std_feature = VNStdFeature(2 * _THIRD, 4, **node)
        self.linear1 = nn.Linear(12 * _THIRD, 512)
        self.bn1 = nn.BatchNorm1d(512)
        self.dp1 = nn.Dropout(dropout)
        self.linear2 = nn.Linear(512, 256)
        self.bn2 = nn.BatchNorm1d(256)
        self.dp2 = nn.Dropout(dropout)
        self.linear3 = nn.Linear(256, num_class)
        pools = [VNMaxPool(width, backend=backend) if largest else None for width in widths]
        self.pool1, self.pool2, self.pool3, self.pool4 = pools

    def _layers(self) -> list[nn.Module]:
        std = self.std_feature
        return [self.conv1, self.conv2, self.conv3, self.conv4, self.conv5, std.vn1, std.vn2]

    def forward(self, x: Tensor) -> Tensor:
        """Points [B, 3, N] -> logits [B, num_class]."""
        check_points("VNDGCNN", x)
        x, found = x.unsqueeze(1), []  # [B, 1, 3, N]
        for conv, pool in ((self.conv1, self.pool1), (self.conv2, self.pool2), (self.conv3, self.pool3),
                           (self.conv4, self.pool4)):
            x = conv(x, pool=pool)
            found.append(to_feature_rows(x))
        x = self.conv5(from_rows(torch.cat(found, -1)))  # [B, 341, 3, N]
        parts, frame, mean = standard_parts(x, self.std_feature)
        # the mean over points of what all points share needs the frames' mean only
        means = [point_mean(parts[0]), turn(mean, point_mean(frame))]
        pooled = [flat([part.max(1)[0] for part in parts]), flat(means)]
        x = F.leaky_relu(self.bn1(self.linear1(torch.cat(pooled, 1))), 0.2)
        x = F.leaky_relu(self.bn2(self.linear2(self.dp1(x))), 0.2)
        return self.linear3(self.dp2(x))


def _conv_norm(channels: int, bn: nn.BatchNorm1d) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(channels, bn.num_features, 1, bias=False), bn, nn.LeakyReLU(0.2))


class VNDGCNNPartSeg(Branched):
    """VN-DGCNN for part segmentation: logits of every point, with ACE's branches where `relaxed`.

    The network of the vnn repository, parameter names and initial values included. Its first two stages stack two maps
    before they pool, so there the edges are formed, at 21 channels.

    Args:
        num_part: logits a point.
        n_knn: neighbours of a point, itself included.
        pooling: over the neighbours, "mean" or "max" (children pool1 to pool3).
        dropout: between the last layers.
        num_category: length of the one-hot category of a cloud.
        relaxed, relaxation_init, backend: as in `VNDGCNN`; eight layers, sixteen gammas.
        legacy_view: as in `VNDGCNN`, in conv6 and std_feature.

    Raises:
        ValueError: an unknown pooling, points or categories of another shape, fewer points than neighbours.

    Source: Deng et al. 2021 (Vector Neurons), Manolache et al. 2025 (ACE).

    Example:
        >>> model = VNDGCNNPartSeg(num_part=50, n_knn=8)
        >>> model(torch.randn(4, 3, 128), torch.eye(16)[:4]).shape
        torch.Size([4, 50, 128])
    """

    def __init__(self, num_part=50, n_knn=40, pooling="mean", dropout=0.5, *, num_category=16, relaxed=False,
                 relaxation_init=1.0, legacy_view=False, backend="auto"):
        super().__init__()
        largest = pooling_of("VNDGCNNPartSeg", pooling)
        self.num_category, self.relaxed, self.backend = num_category, relaxed, backend
        edge = {"relaxed": relaxed, "relaxation_init": relaxation_init, "backend": backend}
        node = edge | {"legacy_view": legacy_view}
        self.bn7, self.bn8, self.bn9, self.bn10 = (nn.BatchNorm1d(width) for width in (64, 256, 256, 128))
        self.conv1 = VNEdgeConv(1, 21, n_knn, pooling=None, **edge)
        self.conv2 = VNLinearLeakyReLU(21, 21, 5, **node)
        self.conv3 = VNEdgeConv(21, 21, n_knn, pooling=None, **edge)
        self.conv4 = VNLinearLeakyReLU(21, 21, 5, **node)
        self.conv5 = VNEdgeConv(21, 21, n_knn, **edge)
        self.pool1, self.pool2, self.pool3 = (VNMaxPool(21, backend=backend) if largest else None for _ in range(3))
        self.conv6 = VNLinearLeakyReLU(63, _THIRD, 4, share_nonlinearity=True, **node)
        self.std_feature = VNStdFeature(2 * _THIRD, 4, **node)
        self.conv8 = _conv_norm(6 * _THIRD + 64 + 189, self.bn8)
        self.conv7 = _conv_norm(num_category, self.bn7)
        self.dp1 = nn.Dropout(dropout)
        self.conv9 = _conv_norm(256, self.bn9)
        self.dp2 = nn.Dropout(dropout)
        self.conv10 = _conv_norm(256, self.bn10)
        self.conv11 = nn.Conv1d(128, num_part, 1, bias=False)

    def _layers(self) -> list[nn.Module]:
        std = self.std_feature
        return [self.conv1, self.conv2, self.conv3, self.conv4, self.conv5, self.conv6, std.vn1, std.vn2]

    def forward(self, x: Tensor, one_hot: Tensor) -> Tensor:
        """Points [B, 3, N] and categories [B, num_category] (or [B, 1, num_category]) -> logits [B, num_part, N]."""
        check_points("VNDGCNNPartSeg", x)
        if one_hot.numel() != len(x) * self.num_category or len(one_hot) != len(x):
            raise ValueError(f"VNDGCNNPartSeg: one_hot must be [{len(x)}, {self.num_category}], "
                             f"got {list(one_hot.shape)}")
        x, found = x.unsqueeze(1), []
        for conv, second, pool in ((self.conv1, self.conv2, self.pool1), (self.conv3, self.conv4, self.pool2)):
            x = second(conv(x))  # [B, 21, 3, N, K]
            x = x.mean(-1) if pool is None else pool(x)
            found.append(to_feature_rows(x))
        found.append(to_feature_rows(self.conv5(x, pool=self.pool3)))
        points = torch.cat(found, -1)  # [B, N, 3, 63]
        parts, frame, _ = standard_parts(self.conv6(from_rows(points)), self.std_feature)
        own = turn(points, frame).permute(0, 3, 2, 1).flatten(1, 2)  # [B, 189, N], channels then components
        shared = torch.cat([flat([part.max(1)[0] for part in parts])[..., None],
                            self.conv7(one_hot.reshape(len(x), self.num_category, 1).to(x.dtype))], 1)  # [B, 2110, 1]
        # what all points share is multiplied once a cloud, not repeated
        of_shared, of_own = self.conv8[0].weight.split([shared.shape[1], own.shape[1]], 1)
        x = F.conv1d(own, of_own) + F.conv1d(shared, of_shared)
        x = self.conv9(self.dp1(self.conv8[2](self.conv8[1](x))))
        return self.conv11(self.conv10(self.dp2(x)))
