"""Convolutions over p4 and p4m on periodic images: one filter, turned and mirrored by every element."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import group
from .layouts import Layout, image


class GroupConv2d(nn.Module):
    r"""Group convolution of images with an axis of group elements (regular fields) on a torus.

    .. math:: y_{o,g}(p) = b_o + \sum_{i,k,d} W_{oi,\, g^{-1}k}(g^{-1} d)\; x_{i,k}(p + d)

    computed as one conv2d whose filters are W moved by the 4 or 8 elements. With `banks` > 1 it is a relaxed group
    convolution: :math:`y = \sum_l \alpha_l(g, p)\, y^l` with weights of every element and pixel, which starts near
    equivariance and may leave it.

    Args:
        name: "p4" or "p4m".
        channels_in, channels_out: fields, of 4 or 8 images each.
        kernel: side of the filters, odd.
        banks: filters that are mixed; 1 for an equivariant layer.
        side: of the images in pixels, where banks > 1.

    Raises:
        ValueError: another group, a side that is even or missing; at a call, images of another shape.

    Source: Cohen and Welling, "Group Equivariant Convolutional Networks" (2016); relaxed: Wang et al., "Relaxed
        Octahedral Group Convolution for Learning Symmetry Breaking in 3D Physical Systems" (2023).

    Example:
        >>> GroupConv2d("p4m", 2, 3)(torch.randn(5, 2, 8, 6, 6)).shape
        torch.Size([5, 3, 8, 6, 6])
    """

    layout: Layout = image(regular=2)

    def __init__(self, name: str, channels_in: int, channels_out: int, kernel: int = 3, banks: int = 1,
                 side: int | None = None) -> None:
        super().__init__()
        if name not in ("p4", "p4m"):
            raise ValueError(f"GroupConv2d: name must be 'p4' or 'p4m', got {name!r}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"GroupConv2d: kernel must be odd, got {kernel}")
        if banks > 1 and side is None:
            raise ValueError("GroupConv2d: side must be the images' pixels in a row where banks are mixed, got None")
        self.group, self.kernel, self.channels_in = group(name), kernel, channels_in
        self.order = len(self.group.table)
        scale = 1 / math.sqrt(channels_in * self.order * kernel**2)
        shape = channels_out, channels_in, self.order * kernel**2
        self.weight = nn.Parameter(scale * (2 * torch.rand(banks, *shape) - 1))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.mix = None
        if banks > 1:
            self.mix = nn.Parameter(1 / banks + 0.1 * torch.randn(banks, 1, 1, self.order, side, side))
        self.register_buffer("source", self._sources(), persistent=False)

    def _sources(self) -> Tensor:
        """[order, order K K] int64: which element of W stands at (k, d) in the filter of element g."""
        reach = self.kernel // 2
        place = torch.arange(-reach, reach + 1)
        d = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1).reshape(-1, 2)  # [K K, 2] row, column
        plane = self.group.matrices[:, :2, :2].round().long()
        back = d @ plane + reach  # [order, K K, 2]: rows times the matrix are its inverse on columns
        pixel = back[..., 0] * self.kernel + back[..., 1]
        element = self.group.table.argsort(1)  # [g, k]: number of g^-1 k
        return (element[:, :, None] * self.kernel**2 + pixel[:, None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels_in, order, H, H] -> [B, channels_out, order, H, H]; H is `side` where banks are mixed."""
        side = "H" if self.mix is None else self.mix.shape[-1]
        if x.dim() != 5 or tuple(x.shape[1:3]) != (self.channels_in, self.order) or x.shape[3] != x.shape[4] \
                or side not in ("H", x.shape[3]):
            raise ValueError(f"GroupConv2d: x must be [B, {self.channels_in}, {self.order}, {side}, {side}], square as "
                             f"quarter turns have it, got {list(x.shape)}")
        reach = self.kernel // 2
        padded = F.pad(x.flatten(1, 2), (reach,) * 4, mode="circular")
        found = [self._conv(padded, weight) for weight in self.weight]
        y = found[0] if self.mix is None else sum(m * one for m, one in zip(self.mix, found, strict=True))
        return y + self.bias[:, None, None, None]

    def _conv(self, padded: Tensor, weight: Tensor) -> Tensor:
        filters = weight[:, :, self.source]  # [O, I, g, k K K]
        filters = filters.transpose(1, 2).reshape(-1, padded.shape[1], self.kernel, self.kernel)
        return F.conv2d(padded, filters).unflatten(1, (-1, self.order))

    def extra_repr(self) -> str:
        banks, channels_out = self.weight.shape[:2]
        return f"{self.group.name}, {self.channels_in}, {channels_out}, kernel={self.kernel}, banks={banks}"
