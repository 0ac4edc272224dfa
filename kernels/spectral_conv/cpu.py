"""The C++ backend's calls: the algebra with fewest operations goes along as two matrices and a list of integers."""

import functools

import torch
from torch import Tensor

from .table import algebra, three_products

_native = torch.ops.ace_fast_native


@functools.cache
def _tables(times: int, modes: int, three: bool) -> tuple[Tensor, Tensor, list[int]]:
    """analysis [A, T], synthesis [T, B], and the terms one after the other."""
    found = algebra(times, modes, three)
    with torch.inference_mode(False):  # kept for later calls, which may train
        matrices = [torch.tensor(m, dtype=torch.float64, device="cpu") for m in (found.analysis, found.synthesis)]
    return *matrices, [value for term in found.terms for value in term]


def _plan(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    times, (i, o, modes, _) = x.shape[0], weight.shape
    return _tables(times, modes, three_products(times, modes, i, o))


def forward(x, weight) -> Tensor:
    """As the reference."""
    return _native.spectral_conv(x, weight, *_plan(x, weight))


def backward(g, x, weight, needs) -> tuple[Tensor, Tensor]:
    """As the reference."""
    return _native.spectral_conv_bwd(g, None, x, weight, *_plan(x, weight), 1.0, *needs)


def time_forward(x, weight, slope) -> tuple[Tensor, Tensor]:
    """As the reference."""
    return _native.time_conv(x, weight, *_plan(x, weight), slope)


def time_backward(g, positive, x, weight, slope, needs) -> tuple[Tensor, Tensor]:
    """As the reference."""
    return _native.spectral_conv_bwd(g, positive, x, weight, *_plan(x, weight), slope, *needs)
