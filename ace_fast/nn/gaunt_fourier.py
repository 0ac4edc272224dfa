"""Products of functions on the sphere by their 2D Fourier series: the original way of the Gaunt tensor product.

A field of degree L continues to the torus, theta in 0..2 pi, as `sum_uv f_uv e^{i (u theta + v phi)}`, |u|, |v| <= L.
The product of two series is the convolution of their coefficients, here by FFT. Coefficients of order m belong to
v = m alone, so both conversions are one small matrix for every order, O(L^3); the transforms are O(L^2 log L).
"""

import numpy as np
import torch
from torch import Tensor

from ..kernels.constant import Constant, plainly
from ..kernels.sphere_product import grids
from ..kernels.sphere_product.reference import components, joined
from .tensor_product import widened


class Torus:
    """The product (or Poisson bracket) of two fields, kept to a degree; called with rows, returns rows.

    Args:
        degrees: L1, L2 of the inputs and L3 of the result.
        bracket: `(d_theta F d_phi G - d_phi F d_theta G) / sin theta` in place of `F G`.

    Attributes:
        size: points of the transforms, (2 (L1 + L2) + 1) x (L1 + L2 + L3 + 1).
    """

    def __init__(self, degrees: tuple[int, int, int], bracket: bool):
        one, two, out = self.degrees = degrees
        self.bracket, self.size = bracket, (2 * (one + two) + 1, one + two + out + 1)
        self._series = [_series(n) for n in (one, two)]
        self._columns = [_columns(n) for n in (one, two)]
        self._back = _projection(one + two, out, bracket)
        self._places = _places(out)

    def __call__(self, x: Tensor, y: Tensor, ir_mul: bool) -> Tensor:
        """x [Z, C d1], y [Z, C d2] (rows and channels broadcast) -> [Z, C d3]."""
        f, g = (self._coefficients(n, components(widened(value), (self.degrees[n] + 1) ** 2, ir_mul).transpose(1, 2))
                for n, value in enumerate((x, y)))
        if not self.bracket:
            values = self._values(f) * self._values(g)
        else:
            values = (self._values(_slope(f)) * self._values(_turn(g))
                      - self._values(_turn(f)) * self._values(_slope(g)))
        return joined(self._projected(values).transpose(1, 2), ir_mul).to(torch.promote_types(x.dtype, y.dtype))

    def _coefficients(self, n: int, x: Tensor) -> Tensor:
        """x [Z, C, d] -> f_uv [Z, C, 2L + 1, L + 1] of v >= 0, u in the order 0..L, -L..-1."""
        lmax = self.degrees[n]
        columns = self._columns[n].on(x.device)
        plus, minus = (x.index_select(2, c).unflatten(2, (lmax + 1, lmax + 1)) for c in columns)  # [Z, C, m, l]
        minus = torch.cat([torch.zeros_like(minus[:, :, :1]), minus[:, :, 1:]], 2)
        f = torch.complex(plus, -minus)
        return torch.einsum("zcml,mlu->zcum", f, self._series[n].on(x.device).to(f.dtype))

    def _values(self, f: Tensor) -> Tensor:
        """f_uv [Z, C, 2L + 1, L + 1] -> values on the torus [Z, C, *size]."""
        lmax = f.shape[-1] - 1
        gap = f.new_zeros(*f.shape[:2], self.size[0] - f.shape[2], lmax + 1)
        f = torch.cat([f[:, :, :lmax + 1], gap, f[:, :, lmax + 1:]], 2)
        return torch.fft.irfft2(f, s=self.size, norm="forward")

    def _projected(self, values: Tensor) -> Tensor:
        """Values on the torus -> coefficients [Z, C, d3]."""
        f = torch.fft.rfft2(values, norm="forward")[..., :self.degrees[2] + 1]
        z = torch.einsum("zcum,mul->zcml", f, self._back.on(values.device).to(f.dtype)).flatten(2)
        return torch.cat([z.real, -z.imag], 2).index_select(2, self._places.on(values.device))


def _slope(f: Tensor) -> Tensor:
    """i u f_uv: the derivative along theta."""
    lmax = f.shape[-1] - 1
    u = torch.cat([torch.arange(lmax + 1, device=f.device), torch.arange(-lmax, 0, device=f.device)])
    return 1j * u[:, None] * f


def _turn(f: Tensor) -> Tensor:
    """i v f_uv: the derivative along phi."""
    return 1j * torch.arange(f.shape[-1], device=f.device) * f


@plainly()
def _series(lmax: int) -> Constant:
    """Fourier coefficients in theta of P_lm, [m, l, u], u in the order 0..L, -L..-1; over sqrt 2 for m > 0, where a
    real wave is the half of two exponentials. Read from the whole circle, where P_lm continues as sin^m does."""
    theta = 2 * np.pi / (2 * lmax + 1) * np.arange(2 * lmax + 1)
    polar = grids.associated(np.cos(theta), lmax)[0] * np.sign(np.sin(theta))[:, None, None] ** np.arange(lmax + 1)
    series = np.fft.fft(polar, axis=0, norm="forward")  # [u, l, m]
    series[..., 1:] /= np.sqrt(2)
    return Constant(torch.from_numpy(series).permute(2, 1, 0).contiguous())


@plainly()
def _projection(degree: int, lmax: int, bracket: bool) -> Constant:
    """The integrals of e^{i u theta} P_lm sin theta (without sin theta for the bracket, which it divides by) over
    theta in 0..pi, [m, u, l], |u| <= degree, with the factors of the integrals over phi. Only what is even in u for
    even m and odd for odd m (bracket: the contrary) is exact, and only that meets coefficients other than 0."""
    cosine, weights = np.polynomial.legendre.leggauss((degree + lmax) // 2 + 1)
    if bracket:
        weights = weights / np.sqrt(1 - cosine**2)
    u = np.fft.fftfreq(2 * degree + 1, 1 / (2 * degree + 1))
    waves = np.exp(1j * u * np.arccos(cosine)[:, None])
    back = 2 * np.pi * np.einsum("t,tu,tlm->mul", weights, waves, grids.associated(cosine, lmax)[0])
    back[1:] *= np.sqrt(2)
    return Constant(torch.from_numpy(back))


@plainly()
def _columns(lmax: int) -> Constant:
    """The components (l, m) and (l, -m) of every m and l, [2, (L + 1)^2]; any where l < m, their coefficients are 0."""
    pairs = [(m, n) for m in range(lmax + 1) for n in range(lmax + 1)]
    return Constant(torch.tensor([[n * n + n + sign * m if n >= m else 0 for m, n in pairs] for sign in (1, -1)],
                                 device="cpu"))


@plainly()
def _places(lmax: int) -> Constant:
    """Where component (l, m) is among the real parts [m, l] and then the imaginary ones, [d]."""
    width = lmax + 1
    return Constant(torch.tensor([abs(m) * width + n + (m < 0) * width**2
                                  for n in range(width) for m in range(-n, n + 1)], device="cpu"))
