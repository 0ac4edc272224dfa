"""Workload `vn_linear`: VN-DGCNN's layers at the nodes, relaxed, in training mode; cases IN_OUT_BxN.

169 -> 341 has one direction for all channels (conv5); 682 -> 341 maps [x ; mean x] of 341 channels (std_feature.vn1),
concatenated in eager, while ace_fast.nn.VNLinearLeakyReLU takes the mean's part once a cloud; 341 -> 170 is plain
(std_feature.vn2).
"""

import torch
from torch import Tensor

from ace_fast.nn import VNLinearLeakyReLU

from . import eager_vn, layers
from .layers import TIMING, judge, variant  # noqa: F401  a workload's names

_LAYERS = ("682_341", "169_341", "341_170")
_DIRECTIONS = ("_forward", "")
CASES = tuple(f"{layer}_8x300{direction}" for layer in _LAYERS for direction in _DIRECTIONS)
GPU_CASES = tuple(f"{layer}_{size}{direction}" for size in ("32x1024", "32x300") for layer in _LAYERS
                  for direction in _DIRECTIONS)
QUICK = "169_341_2x100"
EXTRAS, GPU_EXTRAS = (), ()


class _Eager(eager_vn.VNLinearLeakyReLU):
    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        if self.map_to_feat.in_features != x.shape[1]:
            x = torch.cat([x, x.mean(-1, keepdim=True).expand(x.shape)], 1)
        return super().forward(x, True)

    def get_gammas(self) -> list[torch.nn.Parameter]:
        return list(self.gammas)


class _Fast(VNLinearLeakyReLU):
    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        return super().forward(x, mean=None if self.in_channels == x.shape[1] else x.mean(-1))


def _make(kind: str, spec: layers.Spec) -> torch.nn.Module:
    options = {"dim": 4, "share_nonlinearity": spec.inner == 169, "relaxed": True, "legacy_view": False}
    return (_Fast if kind == "fast" else _Eager)(spec.inner, spec.outer, **options)


def load(case: str, device: str, dtype: torch.dtype) -> layers.Data:
    """The case's layer and features, the same in every process."""
    spec = layers.parse("vn_linear", case, CASES[0])
    channels = spec.inner // 2 if spec.inner == 682 else spec.inner
    return layers.load(spec, _make, channels, False, device, dtype)
