"""Products of functions on the sphere by their 2D Fourier series: the original way of the Gaunt tensor product.

A field of degree L continues to the torus, theta in 0..2 pi, as `sum_uv f_uv e^{i (u theta + v phi)}`, |u|, |v| <= L.
The product of two series is the convolution of their coefficients, here by FFT. Coefficients of order m belong to
v = m alone, so both conversions are one small matrix for every order, O(L^3); the transforms are O(L^2 log L).

Written for what torch's FFTs cost, which are half of a step and more: one dimension at a time (an `irfft2` of many
small series takes two to three times as long), along numbers that lie together, sizes of small primes, v >= 0 alone.
The matrices write the zeros between series and transform themselves.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..kernels.constant import Constant, plainly
from ..kernels.sphere_product import grids
from ..kernels.sphere_product.reference import components, joined
from .tensor_product import widened, without_autocast

_PRIMES = 2, 3, 5, 7  # of sizes that FFTs are fast for


class Torus:
    """The product (or Poisson bracket) of two fields, kept to a degree; called with rows, returns rows.

    Args:
        degrees: L1, L2 of the inputs and L3 of the result.
        bracket: `(d_theta F d_phi G - d_phi F d_theta G) / sin theta` in place of `F G`.

    Attributes:
        size: points of the transforms: the next sizes of small primes from 2 (L1 + L2) + 1 and from L1 + L2 + L3 + 1,
            the second one even.
    """

    def __init__(self, degrees: tuple[int, int, int], bracket: bool):
        one, two, out = self.degrees = degrees
        self.size = _fast(2 * (one + two) + 1, 1), _fast(one + two + out + 1, 2)
        self._components = [_components(n) for n in (one, two)]
        slopes = ("theta", "phi") if bracket else ("none",)
        self._series = [[_series(n, self.size[0], slope) for slope in slopes] for n in (one, two)]
        self._back = _projection(one + two, out, self.size[0], bracket)
        self._places = _places(out)

    def __call__(self, x: Tensor, y: Tensor, ir_mul: bool) -> Tensor:
        """x [Z, C d1], y [Z, C d2] (rows and channels broadcast) -> [Z, C d3]."""
        with without_autocast(x):
            a, b = (components(widened(value), (self.degrees[n] + 1) ** 2, ir_mul).transpose(1, 2)
                    for n, value in enumerate((x, y)))  # [Z, C, d]
            if a.numel() and b.numel():
                f, g = self._values(0, a), self._values(1, b)
                z = self._projected(f[0] * g[0] if len(f) == 1 else f[0] * g[1] - f[1] * g[0])
            else:  # torch has no FFT of nothing
                z = (a[..., :1] * b[..., :1]).expand(-1, -1, (self.degrees[2] + 1) ** 2)
            z = joined(z.transpose(1, 2), ir_mul)
        return z.to(torch.promote_types(x.dtype, y.dtype))

    def _values(self, n: int, x: Tensor) -> list[Tensor]:
        """x [Z, C, d] -> values on the torus, [Z, C, *size], of the field or of both its derivatives."""
        orders, (rows, channels) = self.degrees[n] + 1, x.shape[:2]
        x = x.index_select(2, self._components[n].on(x.device)).unflatten(2, (orders, 2 * orders))
        x = x.reshape(rows * channels, orders, 2 * orders).transpose(0, 1)
        found = []
        for series in self._series[n]:
            f = torch.bmm(x, series.on(x.device).to(x.dtype)).view(orders, rows, channels, self.size[0], 2)
            f = torch.fft.ifft(torch.view_as_complex(f), norm="forward")  # [m, Z, C, theta]
            found.append(torch.fft.irfft(f.permute(1, 2, 3, 0), n=self.size[1], norm="forward"))
        return found

    def _projected(self, values: Tensor) -> Tensor:
        """Values on the torus -> coefficients [Z, C, d3]."""
        orders, (rows, channels) = self.degrees[2] + 1, values.shape[:2]
        f = torch.fft.rfft(values, norm="forward")[..., :orders]
        f = torch.fft.fft(f, dim=2, norm="forward").permute(3, 0, 1, 2).reshape(orders, rows * channels, self.size[0])
        z = torch.bmm(torch.view_as_real(f).flatten(2), self._back.on(values.device).to(values.dtype))
        z = z.view(orders, rows, channels, 2 * orders).permute(1, 2, 0, 3).flatten(2)
        return z.index_select(2, self._places.on(values.device))


def _fast(least: int, of: int) -> int:
    """The smallest multiple of `of` from `least` on that has no prime above 7."""
    size = -(-least // of) * of
    rest = size
    for prime in _PRIMES:
        while rest % prime == 0:
            rest //= prime
    return size if rest == 1 else _fast(size + 1, of)


def _pairs(even: np.ndarray, odd: np.ndarray) -> Constant:
    """Complex matrices [m, i, j] of the first and of the second of every pair of numbers, as one of real numbers:
    [m, (i, 2), (j, 2)]."""
    table = np.ascontiguousarray(np.stack([even, odd], 2)).view(np.float64)
    return Constant(torch.from_numpy(table.reshape(len(table), 2 * table.shape[1], -1)))


def _spread(series: np.ndarray, size: int) -> np.ndarray:
    """Coefficients of u = 0..L, -L..-1 along the last axis as an FFT of `size` orders them: zeros between."""
    degree = series.shape[-1] // 2
    return np.insert(series, [degree + 1] * (size - 2 * degree - 1), 0, -1)


@plainly()
def _series(lmax: int, size: int, slope: Literal["none", "theta", "phi"]) -> Constant:
    """Fourier coefficients in theta of P_lm, from components (l, m), (l, -m) to complex numbers of u, [m, (l, 2), (u,
    2)]; over sqrt 2 for m > 0, where a real wave is the half of two exponentials. Read from the whole circle, where
    P_lm continues as sin^m does. Of a derivative i u or i m times as much."""
    theta = 2 * np.pi / (2 * lmax + 1) * np.arange(2 * lmax + 1)
    polar = grids.associated(np.cos(theta), lmax)[0] * np.sign(np.sin(theta))[:, None, None] ** np.arange(lmax + 1)
    series = np.fft.fft(polar, axis=0, norm="forward").transpose(2, 1, 0)  # [m, l, u]
    series[1:] /= np.sqrt(2)
    u, m = np.fft.fftfreq(2 * lmax + 1, 1 / (2 * lmax + 1)), np.arange(lmax + 1)[:, None, None]
    series = _spread(series * {"none": 1, "theta": 1j * u, "phi": 1j * m}[slope], size)
    return _pairs(series, -1j * series * (m > 0))


@plainly()
def _projection(degree: int, lmax: int, size: int, bracket: bool) -> Constant:
    """The integrals of e^{i u theta} P_lm sin theta (without sin theta for the bracket, which it divides by) over
    theta in 0..pi, from complex numbers of u, |u| <= degree, to components (l, m), (l, -m), [m, (u, 2), (l, 2)], with
    the factors of the integrals over phi. Only what is even in u for even m and odd for odd m (bracket: the contrary)
    is exact, and only that meets coefficients other than 0."""
    cosine, weights = np.polynomial.legendre.leggauss((degree + lmax) // 2 + 1)
    if bracket:
        weights = weights / np.sqrt(1 - cosine**2)
    u = np.fft.fftfreq(2 * degree + 1, 1 / (2 * degree + 1))
    waves = np.exp(1j * u * np.arccos(cosine)[:, None])
    back = 2 * np.pi * np.einsum("t,tu,tlm->mlu", weights, waves, grids.associated(cosine, lmax)[0])
    back[1:] *= np.sqrt(2)
    back = _spread(back, size).transpose(0, 2, 1)
    return _pairs(back.conj(), (1j * back).conj())


@plainly()
def _components(lmax: int) -> Constant:
    """The components (l, m) and (l, -m) of every m and l, in pairs; any where l < m, their coefficients are 0."""
    pairs = [(m, n, sign) for m in range(lmax + 1) for n in range(lmax + 1) for sign in (1, -1)]
    return Constant(torch.tensor([n * n + n + sign * m if n >= m else 0 for m, n, sign in pairs], device="cpu"))


@plainly()
def _places(lmax: int) -> Constant:
    """Where component (l, m) is among the pairs [m, (l, 2)], [d]."""
    return Constant(torch.tensor([2 * (abs(m) * (lmax + 1) + n) + (m < 0)
                                  for n in range(lmax + 1) for m in range(-n, n + 1)], device="cpu"))
