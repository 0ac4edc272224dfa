"""EGNO's layers along time with the original's signatures, on the fused operators."""

import torch
from torch import Tensor, nn

from .. import functional


class SpectralConv1d(nn.Module):
    r"""Convolution of features along time by M Fourier modes, a drop-in for EGNO's SpectralConv1d.

    .. math:: y = \mathrm{irfft}(\hat y), \quad \hat y_m = \mathrm{rfft}(x)_m W_m \; (m < M)

    Args:
        in_ch, out_ch, modes1: as in the original; parameter `weights1` [in_ch, out_ch, modes1, 2] holds real and
            imaginary parts, drawn in the original's order.
        backend: which implementation of the operator runs.

    Raises:
        ValueError: fewer time steps than the modes need (T // 2 + 1 >= modes1), features of another width or dtype.

    The original casts its input to float32; this one computes in the dtype of its parameters. Derivatives of any
    order. Source: EGNO (Xu et al. 2024), equation 9.

    Example:
        >>> ace_fast.nn.SpectralConv1d(16, 8, 2)(torch.randn(5, 31, 16)).shape
        torch.Size([5, 31, 8])
    """

    def __init__(self, in_ch, out_ch, modes1, *, backend="auto"):
        super().__init__()
        self.in_ch, self.out_ch, self.modes1, self.backend = in_ch, out_ch, modes1, backend
        self.weights1 = nn.Parameter(self._scale() * torch.rand(in_ch, out_ch, modes1, 2))

    def _scale(self) -> float:
        return 1 / (self.in_ch * self.out_ch)

    def extra_repr(self) -> str:
        return f"{self.in_ch}, {self.out_ch}, modes1={self.modes1}"

    def forward(self, x: Tensor) -> Tensor:
        """x [T, N, in_ch] -> [T, N, out_ch]; any dimensions between time and channels."""
        return functional.spectral_conv(x, self.weights1, backend=self.backend)


class SpectralConv1d_x(SpectralConv1d):
    r"""Convolution of vectors along time, a drop-in for EGNO's SpectralConv1d_x: x [T, N, 3, C] -> [T, N, 3, out_ch].

    As `SpectralConv1d`, with the original's scale of the parameters at the start; the channels are pairs of vectors
    (centred position, velocity), and every component is treated alike, so the layer commutes with rotations.
    """

    def _scale(self) -> float:
        return 0.1


class _TimeLayer(nn.Module):
    """x + act(t_conv(x)) in one call."""

    slope = 1.0
    conv = SpectralConv1d

    def __init__(self, in_ch, out_ch, modes, act=None, with_nin=False, *, backend="auto"):
        super().__init__()
        if in_ch != out_ch:
            raise ValueError(f"{type(self).__name__}: out_ch must be in_ch = {in_ch}, got {out_ch}; the input is added "
                             "to the result")
        self.with_nin, self.backend = with_nin, backend
        self.t_conv = self.conv(in_ch, out_ch, modes, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, N, C] (vectors: [T, N, 3, C]) -> the same shape."""
        return functional.time_conv(x, self.t_conv.weights1, self.slope, backend=self.backend)


class TimeConv(_TimeLayer):
    r"""EGNO's layer over time for features: x + LeakyReLU(SpectralConv1d(x)), one call.

    Args:
        in_ch, out_ch, modes: as in the original; parameter `t_conv.weights1`.
        act, with_nin: accepted and without effect, as in the original, whose activation is always LeakyReLU(0.01).
        backend: which implementation of the operator runs.

    Raises:
        ValueError: out_ch is not in_ch; as `SpectralConv1d`.

    Derivatives of any order. Source: EGNO (Xu et al. 2024), section 4.

    Example:
        >>> ace_fast.nn.TimeConv(16, 16, 2, torch.nn.SiLU())(torch.randn(5, 31, 16)).shape
        torch.Size([5, 31, 16])
    """

    slope = 0.01


class TimeConv_x(_TimeLayer):
    r"""EGNO's layer over time for vectors: x + SpectralConv1d_x(x), x [T, N, 3, C].

    Arguments and errors as `TimeConv`. The channels are usually the pair (position minus its mean, velocity); the layer
    commutes with rotations, and with translations where the position is centred. Derivatives of any order.

    Example:
        >>> ace_fast.nn.TimeConv_x(2, 2, 2, torch.nn.SiLU())(torch.randn(5, 31, 3, 2)).shape
        torch.Size([5, 31, 3, 2])
    """

    conv = SpectralConv1d_x
