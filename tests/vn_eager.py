"""vnn's part segmentation and PointNet in plain PyTorch, on the eager layers of the benchmarks."""

import torch
from torch import nn
from torch.nn import functional as F

from ace_fast.bench.eager_vn import (
    VNBatchNorm,
    VNLinear,
    VNLinearLeakyReLU,
    VNMaxPool,
    VNStdFeature,
    get_graph_feature,
    get_graph_feature_cross,
    mean_pool,
)


def _with_mean(x):
    return torch.cat([x, x.mean(-1, keepdim=True).expand(x.shape)], 1)


def _block(channels, bn):
    return nn.Sequential(nn.Conv1d(channels, bn.num_features, 1, bias=False), bn, nn.LeakyReLU(0.2))


class EagerPartSeg(nn.Module):
    def __init__(self, num_part, n_knn, pooling, **options):
        super().__init__()
        self.n_knn, self.on = n_knn, options["relaxed"]
        self.bn7, self.bn8, self.bn9, self.bn10 = (nn.BatchNorm1d(n) for n in (64, 256, 256, 128))
        widths = ((2, 21), (21, 21), (42, 21), (21, 21), (42, 21))
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = (VNLinearLeakyReLU(*w, **options) for w in widths)
        self.pool1, self.pool2, self.pool3 = (VNMaxPool(21) if pooling == "max" else mean_pool for _ in range(3))
        self.conv6 = VNLinearLeakyReLU(63, 341, dim=4, share_nonlinearity=True, **options)
        self.std_feature = VNStdFeature(682, dim=4, **options)
        self.conv8, self.conv7 = _block(2299, self.bn8), _block(16, self.bn7)
        self.conv9, self.conv10 = _block(256, self.bn9), _block(256, self.bn10)
        self.conv11 = nn.Conv1d(128, num_part, 1, bias=False)

    def forward(self, x, category):
        b, n, on = len(x), x.shape[2], self.on
        x = self.conv2(self.conv1(get_graph_feature(x.unsqueeze(1), self.n_knn), on), on)
        x1 = self.pool1(x)
        x2 = self.pool2(self.conv4(self.conv3(get_graph_feature(x1, self.n_knn), on), on))
        x3 = self.pool3(self.conv5(get_graph_feature(x2, self.n_knn), on))
        points = torch.cat([x1, x2, x3], 1)
        x, z = self.std_feature(_with_mean(self.conv6(points, on)), on)
        points = torch.einsum("bijm,bjkm->bikm", points, z).reshape(b, -1, n)
        x = x.reshape(b, -1, n).max(-1, keepdim=True)[0]
        x = torch.cat([x, self.conv7(category.view(b, -1, 1))], 1).repeat(1, 1, n)
        return self.conv11(self.conv10(self.conv9(self.conv8(torch.cat([x, points], 1)))))


class _Transform(nn.Module):
    def __init__(self, d, pooling, options):
        super().__init__()
        widths = ((d, 21, 4), (21, 42, 4), (42, 341, 4), (341, 170, 3), (170, 85, 3))
        maps = (VNLinearLeakyReLU(*w, negative_slope=0.0, **options) for w in widths)
        self.conv1, self.conv2, self.conv3, self.fc1, self.fc2 = maps
        self.pool = VNMaxPool(341) if pooling == "max" else mean_pool
        self.fc3 = VNLinear(85, d)

    def forward(self, x, on):
        x = self.pool(self.conv3(self.conv2(self.conv1(x, on), on), on))
        return self.fc3(self.fc2(self.fc1(x, on), on))


class _Encoder(nn.Module):
    def __init__(self, n_knn, pooling, transform, options):
        super().__init__()
        self.n_knn, slope = n_knn, {"negative_slope": 0.0}
        self.conv_pos = VNLinearLeakyReLU(3, 21, dim=5, **slope, **options)
        self.conv1 = VNLinearLeakyReLU(21, 21, dim=4, **slope, **options)
        self.conv2 = VNLinearLeakyReLU(42 if transform else 21, 42, dim=4, **slope, **options)
        self.conv3, self.bn3 = VNLinear(42, 341), VNBatchNorm(341, dim=4)
        self.std_feature = VNStdFeature(682, dim=4, **slope, **options)
        self.pool = VNMaxPool(21) if pooling == "max" else mean_pool
        self.fstn = _Transform(21, pooling, options) if transform else None

    def forward(self, x, on):
        b, n = len(x), x.shape[2]
        x = self.conv_pos(get_graph_feature_cross(x.unsqueeze(1), self.n_knn), on)
        x = self.conv1(self.pool(x), on)
        if self.fstn is not None:
            x = torch.cat([x, self.fstn(x, on).unsqueeze(-1).repeat(1, 1, 1, n)], 1)
        x = self.bn3(self.conv3(self.conv2(x, on)))
        x, _ = self.std_feature(_with_mean(x), on)
        return x.reshape(b, -1, n).max(-1)[0]


class EagerPointNet(nn.Module):
    def __init__(self, num_class, n_knn, pooling, *, feature_transform=True, **options):
        super().__init__()
        self.on = options["relaxed"]
        self.feat = _Encoder(n_knn, pooling, feature_transform, options)
        self.fc1, self.fc2, self.fc3 = nn.Linear(2046, 512), nn.Linear(512, 256), nn.Linear(256, num_class)
        self.bn1, self.bn2 = nn.BatchNorm1d(512), nn.BatchNorm1d(256)

    def forward(self, x):
        x = F.relu(self.bn1(self.fc1(self.feat(x, self.on))))
        return self.fc3(F.relu(self.bn2(self.fc2(x))))
