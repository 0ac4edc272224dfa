"""Batch norms that take the statistics of all processes, on CPUs as on GPUs."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from .affine_chain import group_of, statistics_of_all, track


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm, which takes CPU tensors too; with a single process it is BatchNorm.

    Source: torch.nn.SyncBatchNorm, whose gradient (of the sum of all processes' losses), state and arguments it has.
    """

    def forward(self, input: Tensor) -> Tensor:
        """input [B, C, ...] -> the same shape; every process must call this."""
        group = group_of(self)
        if input.is_cuda or group is None:
            return super().forward(input)
        dims, shape = [0, *range(2, input.dim())], [1, -1] + [1] * (input.dim() - 2)
        count = prod(input.shape[d] for d in dims)
        var, mean = torch.var_mean(input, dims, correction=0)
        mean, var, count = statistics_of_all(mean, var, count, group)
        track(self, mean, var, count)
        out = (input - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


def synchronise(model: nn.Module) -> nn.Module:
    """The model with its torch batch norms replaced by `SyncBatchNorm`; parameters and names stay."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            # The same state; torch's conversion always makes its own class.
            module.__class__ = SyncBatchNorm
    return model
