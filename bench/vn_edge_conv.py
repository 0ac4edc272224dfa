"""Workload `vn_edge_conv`: VN-DGCNN's edge convolutions on given neighbours, relaxed, in training mode.

A case IN_OUT_BxN has IN channels at the nodes, so 2 IN on an edge: 42_85_8x300 is the map 84 -> 85 of 8 clouds of 300
points, 20 neighbours. Eager gathers [x_j - x_i ; x_i], maps it (features, directions, both unconstrained branches),
normalises, takes the nonlinearity and then the mean over neighbours; fast is ace_fast.nn.VNEdgeConv. The widths of
dgNN's EdgeConv classifier, 64, 64, 128 and 256 numbers a point, are these layers' 21, 21, 42 and 85 vectors: its
protocol (64 clouds, 40 neighbours) is the case 42_85_64x1024_k40 here and 64x1024_3_k40 in `knn`, one layer and one
graph at a time; its seconds an epoch, data and classifier included, compare with neither.
"""

import torch
from torch import Tensor

from ace_fast.nn import VNEdgeConv

from . import eager_vn, layers
from .layers import TIMING, judge, variant  # noqa: F401  a workload's names

_LAYERS = ("42_85", "21_42", "21_21", "1_21")
_SIZES = ("8x300", "8x1024", "32x300", "32x1024")
_DIRECTIONS = ("_forward", "")
CASES = tuple(f"{layer}_8x300{direction}" for layer in _LAYERS for direction in _DIRECTIONS) + tuple(
    f"42_85_{size}{direction}" for size in ("8x1024", "32x300") for direction in _DIRECTIONS)
GPU_CASES = tuple(
    case for layer in _LAYERS for size in reversed(_SIZES) for direction in _DIRECTIONS
    if (case := f"{layer}_{size}{direction}") not in CASES
) + tuple(f"42_85_64x1024_k40{direction}" for direction in _DIRECTIONS)
QUICK = "42_85_2x100"
EXTRAS, GPU_EXTRAS = (), ()


class EagerEdgeConv(eager_vn.VNLinearLeakyReLU):
    """The original's three lines: graph features, layer, mean."""

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        features = eager_vn.get_graph_feature(x, neighbours.shape[2], neighbours)
        return eager_vn.mean_pool(super().forward(features, True))

    def get_gammas(self) -> list[torch.nn.Parameter]:
        return list(self.gammas)


def _make(kind: str, spec: layers.Spec) -> torch.nn.Module:
    if kind == "fast":
        return VNEdgeConv(spec.inner, spec.outer, spec.k, relaxed=True)
    return EagerEdgeConv(2 * spec.inner, spec.outer, relaxed=True)


def load(case: str, device: str, dtype: torch.dtype) -> layers.Data:
    """The case's layer, features and neighbours, the same in every process."""
    spec = layers.parse("vn_edge_conv", case, CASES[0])
    return layers.load(spec, _make, spec.inner, True, device, dtype)
