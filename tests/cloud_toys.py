"""A small classifier of point clouds with the interface of VN-DGCNN, small data, and the options of a tiny run."""

import contextlib

import numpy as np
import torch
from torch import nn

from ace_fast.data import PointClouds

TINY = {
    "train_per_class": 3, "test_per_class": 2, "num_points": 32, "n_knn": 8, "batch_size": 10, "epochs": 2,
    "eval_every": 1, "rotations": 2, "threads": 1,
}


class Small(nn.Module):
    """A classifier of distances from the origin, invariant under O(3), with one branch that sees coordinates."""

    def __init__(self, num_class=40, n_knn=20, pooling="mean", dropout=0.5, *, relaxed=False, legacy_view=False,
                 backend="auto"):
        super().__init__()
        self.relaxed = self.disable_equivariance = relaxed
        self.linear1, self.bn1, self.dropout = nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(dropout)
        self.linear2 = nn.Linear(16, num_class)
        self.gammas = nn.ParameterList([nn.Parameter(torch.ones(()))] if relaxed else [])
        self.lin_noneq = nn.Linear(3, 16) if relaxed else None
        self.ratios = None

    def get_gammas(self):
        return list(self.gammas)

    def set_equivariance(self, flag):
        self.disable_equivariance = flag

    @contextlib.contextmanager
    def probe(self):
        self.ratios = []
        yield self.ratios
        self.ratios = None

    def forward(self, x):
        size = x.norm(dim=1)  # [B, N]
        h = self.linear1(torch.stack([size, size.square()], 2)).relu().mean(1)
        if self.disable_equivariance:
            free = self.lin_noneq(x.transpose(1, 2)).relu().mean(1)
            if self.ratios is not None:
                self.ratios.append((self.gammas[0].abs() * free.norm() / h.norm()).detach())
            h = h + self.gammas[0] * free
        return self.linear2(self.dropout(self.bn1(h)))


def make(classes=3, count=6, points=32, source="zeros"):
    """Clouds whose class is their spread along the first axis."""
    drawn = torch.randn(classes * count, points, 3, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(classes).repeat(count)
    drawn[:, :, 0] *= 1.0 + labels[:, None]
    return PointClouds(drawn, labels, tuple("abcdef"[:classes]), source)


def write_shapes(path, count=6, split=(0, 0, 0, 0, 2, 2)):
    clouds = make(count=count)
    codes = np.repeat(np.array(split, dtype=np.uint8), 3)
    np.savez(path, points=clouds.points.numpy(), label=clouds.labels.numpy(), class_names=np.array(list("abc")),
             split=codes)
    return path
