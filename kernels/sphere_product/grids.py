"""Exact grids on the sphere and the tables that take coefficients to them and back, float64.

A field of degrees 0..L has d = (L+1)^2 coefficients in e3nn's order and is the function
`F(r) = sum x_lm Y_lm(r)` with e3nn's real spherical harmonics, normalization "integral" (orthonormal). Angles:
theta from the y axis (e3nn's beta), phi from z to x about it (e3nn's alpha), so that
`r = (sin theta sin phi, cos theta, sin theta cos phi)`.

Products of polynomials on the sphere are polynomials, so a grid that integrates degree `L1 + L2 + L3` exactly gives the
coefficients 0..L3 of a product of fields of degrees L1 and L2 exactly; likewise their Poisson bracket
`(d_theta F d_phi G - d_phi F d_theta G) / sin theta`, a polynomial of degree L1 + L2 - 1.
All tables are shared: do not write into them. None depends on the default dtype or device.
"""

from collections.abc import Sequence
from functools import cache
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..constant import plainly
from ..define import integer

KINDS = ("gauss", "lebedev", "auto")
DERIVATIVES = (None, "theta", "phi")
# Degrees that scipy's Lebedev rules integrate exactly; 13, 25 and 27 are left out: their negative weights lose digits.
LEBEDEV_DEGREES = (3, 5, 7, 9, 11, 15, 17, 19, 21, 23, 29, 31, 35, 41, 47, 53, 59, 65, 71, 77, 83, 89, 95, 101, 107,
                   113, 119, 125, 131)


class Grid(NamedTuple):
    """Points and weights of a quadrature of the sphere; compared and hashed by its counts.

    Attributes:
        kind: "gauss" (T Gauss-Legendre rings of A equally spaced points, ring by ring) or "lebedev".
        rings: T; 0 for Lebedev.
        ring_size: A; 0 for Lebedev.
        degree: polynomials to this degree are integrated exactly.
    """

    kind: str
    rings: int
    ring_size: int
    degree: int

    @property
    def size(self) -> int:
        """S, the number of points."""
        return self.rings * self.ring_size if self.kind == "gauss" else _lebedev(self.degree)[0].shape[0]


def gauss(rings: int, ring_size: int) -> Grid:
    """The grid of `rings` Gauss-Legendre circles of latitude with `ring_size` points each, exact or not for a product.

    Raises:
        ValueError: a count that is no integer or below 1.
    """
    rings, ring_size = integer("grid", "rings", rings, 1), integer("grid", "ring_size", ring_size, 1)
    return Grid("gauss", rings, ring_size, min(2 * rings, ring_size) - 1)


def given(who: str, grid: "Grid | str | tuple[int, int]") -> "Grid | str":
    """What a caller gave for a grid: a Grid, a kind, or (rings, points a ring), of which the Grid is returned.

    Raises:
        ValueError: none of these.
    """
    if isinstance(grid, Grid) or isinstance(grid, str) and grid in KINDS:
        return grid
    if not isinstance(grid, tuple | list) or len(grid) != 2:
        raise ValueError(f"{who}: grid must be one of {KINDS}, a Grid or (rings, points a ring), got {grid!r}")
    return gauss(*grid)


@cache
def exact(degree: int, kind: str = "gauss") -> Grid:
    """The smallest grid that integrates polynomials of a degree exactly: Gauss has n // 2 + 1 rings of n + 1 points.

    Args:
        degree: n; of a product, `product_degree`.
        kind: "gauss" (separable), "lebedev" (two thirds of the points, not separable) or "auto", the fewer points.

    Raises:
        ValueError: an unknown kind, a negative degree, or one above Lebedev's highest, 131.
    """
    if kind not in KINDS:
        raise ValueError(f"grid: kind must be one of {KINDS}, got {kind!r}")
    if degree < 0:
        raise ValueError(f"grid: degree must be at least 0, got {degree}")
    rings = gauss(degree // 2 + 1, degree + 1)
    if kind == "gauss":
        return rings
    reached = next((n for n in LEBEDEV_DEGREES if n >= degree), None)
    if reached is None:
        if kind == "auto":
            return rings
        raise ValueError(f"grid: degree must be at most {LEBEDEV_DEGREES[-1]} for Lebedev's rules, got {degree}; take "
                         'kind="gauss"')
    points = Grid("lebedev", 0, 0, reached)
    return points if kind == "lebedev" or points.size < rings.size else rings


def product_degree(lmax_in: Sequence[int], lmax_out: int, bracket: bool = False) -> int:
    """The degree that a grid must integrate for a product of fields of degrees `lmax_in`, kept to lmax_out; for their
    bracket, a polynomial of one degree less."""
    return max(sum(lmax_in) + lmax_out - bracket, 0)


def check(grid: Grid, lmax_in: Sequence[int], lmax_out: int, bracket: bool = False) -> None:
    """Raises where a grid is too small for a product or a bracket, with the counts that are needed.

    Raises:
        ValueError: the grid does not integrate the product exactly.
    """
    degree = product_degree(lmax_in, lmax_out, bracket)
    if grid.degree < degree:
        need = exact(degree)
        has = f"{grid.rings} x {grid.ring_size}" if grid.kind == "gauss" else f"Lebedev's of degree {grid.degree}"
        what = f"a {'bracket' if bracket else 'product'} of degrees {' x '.join(map(str, lmax_in))}"
        raise ValueError(f"grid: {what} kept to {lmax_out} must have at least {need.rings} x {need.ring_size} points "
                         f"(rings x points a ring) or a Lebedev rule of degree {degree}, got {has}")


@cache
def _lebedev(degree: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.integrate import lebedev_rule  # a quarter of a second to import

    points, weights = lebedev_rule(degree)
    return np.ascontiguousarray(points.T), weights


@cache
def _rings(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the polar angles and weights (sum 2) of `count` Gauss-Legendre rings."""
    return np.polynomial.legendre.leggauss(count)


def _angles(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """cos theta [T] and phi [A] of a Gauss grid, [S] and [S] of Lebedev's points."""
    if grid.kind == "gauss":
        return _rings(grid.rings)[0], 2 * pi / grid.ring_size * np.arange(grid.ring_size)
    points = _lebedev(grid.degree)[0]
    return np.clip(points[:, 1], -1, 1), np.arctan2(points[:, 0], points[:, 2])


@cache
@plainly()
def weights(grid: Grid) -> Tensor:
    """Quadrature weights of the points, sum 4 pi, [S]."""
    if grid.kind == "gauss":
        return _tensor(np.repeat(_rings(grid.rings)[1] * (2 * pi / grid.ring_size), grid.ring_size))
    return _tensor(_lebedev(grid.degree)[1])


@cache
@plainly()
def points(grid: Grid) -> Tensor:
    """Unit vectors of the points, x y z, [S, 3]."""
    cosine, phi = _angles(grid)
    if grid.kind == "gauss":
        cosine, phi = np.repeat(cosine, grid.ring_size), np.tile(phi, grid.rings)
    sine = np.sqrt(1 - cosine**2)
    return _tensor(np.stack([sine * np.sin(phi), cosine, sine * np.cos(phi)], 1))


def orders(lmax: int) -> Tensor:
    """m + lmax of every component, the column of its Fourier factor, int64 [d]."""
    return torch.cat([torch.arange(-degree, degree + 1, device="cpu") for degree in range(lmax + 1)]) + lmax


@cache
@plainly()
def legendre(grid: Grid, lmax: int, derivative: str | None = None) -> Tensor:
    r"""The factor in theta of every component, [T, d] ([S, d] for Lebedev).

    `Y_lm(theta, phi) = legendre[theta, lm] fourier[phi, m]`; with derivative "theta" that of `dY/dtheta`, with "phi"
    that of `dY/dphi / sin theta`, finite at the poles.
    """
    _check_table(lmax, derivative)
    cosine = _angles(grid)[0]
    value, over_sine = associated(cosine, lmax)
    table = {None: value, "phi": over_sine}.get(derivative)
    if table is None:
        table = _slope(value, lmax)
    columns = [table[:, degree, abs(m)] for degree in range(lmax + 1) for m in range(-degree, degree + 1)]
    return _tensor(np.stack(columns, 1))


@cache
@plainly()
def fourier(grid: Grid, lmax: int, derivative: str | None = None) -> Tensor:
    """The factor in phi of the orders -lmax..lmax, [A, 2 lmax + 1] ([S, ...] for Lebedev); see `legendre`."""
    _check_table(lmax, derivative)
    return _tensor(_waves(_angles(grid)[1][:, None], lmax, derivative == "phi"))


def _waves(phi: np.ndarray, lmax: int, slope: bool = False) -> np.ndarray:
    """sqrt 2 sin(m phi), 1 and sqrt 2 cos(m phi) for the orders -lmax..lmax, or their derivatives; phi [A, 1]."""
    m = np.arange(1, lmax + 1)
    sine, cosine, one = np.sin(m * phi), np.cos(m * phi), np.ones_like(phi)
    if slope:
        sine, cosine, one = m * cosine, -m * sine, 0 * one
    return np.concatenate([sqrt(2) * sine[:, ::-1], one, sqrt(2) * cosine], 1)


@cache
@plainly()
def synthesis(grid: Grid, lmax: int, derivative: str | None = None) -> Tensor:
    """Values at the points from coefficients, [S, d]; of a derivative ("theta"; "phi": over sin theta) where named."""
    polar, around = legendre(grid, lmax, derivative), fourier(grid, lmax, derivative)[:, orders(lmax)]
    if grid.kind == "gauss":
        return (polar[:, None] * around).reshape(grid.size, -1)
    return polar * around


@plainly()
def rotation(matrix: Tensor, lmax: int) -> Tensor:
    """The representation D of a rotation or reflection on coefficients, Y(R r) = D Y(r), block-diagonal [d, d].

    Args:
        matrix: R, orthogonal, [3, 3].
    """
    grid = exact(2 * lmax)
    unit = points(grid) @ matrix.to("cpu", torch.float64).T
    polar, _ = associated(unit[:, 1].clamp(-1, 1).numpy(), lmax)
    phi, columns = torch.atan2(unit[:, 0], unit[:, 2]).numpy()[:, None], orders(lmax).numpy()
    degrees = np.repeat(np.arange(lmax + 1), 2 * np.arange(lmax + 1) + 1)
    turned = polar[:, degrees, np.abs(columns - lmax)] * _waves(phi, lmax)[:, columns]
    return (analysis(grid, lmax) @ torch.from_numpy(turned)).T.contiguous()


@cache
@plainly()
def analysis(grid: Grid, lmax: int) -> Tensor:
    """Coefficients from values at the points, weights included, [d, S]: exact to the degree of the grid less lmax."""
    return (synthesis(grid, lmax) * weights(grid)[:, None]).T.contiguous()


@cache
@plainly()
def analysis_factors(grid: Grid, lmax: int) -> tuple[Tensor, Tensor]:
    """(in theta [d, T], in phi [2 lmax + 1, A]) whose product is `analysis`; both weights included.

    Raises:
        ValueError: a Lebedev grid, which is no product of angles.
    """
    if grid.kind != "gauss":
        raise ValueError("grid: kind must be 'gauss' for the separable form, got 'lebedev'; use analysis")
    polar = legendre(grid, lmax) * _tensor(_rings(grid.rings)[1])[:, None]
    return polar.T.contiguous(), (fourier(grid, lmax) * (2 * pi / grid.ring_size)).T.contiguous()


def associated(cosine: np.ndarray, lmax: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal associated Legendre functions P [points, l, m] (positive, no Condon-Shortley phase), and m > 0 of
    them over sin theta; by the three-term recursion in l, stable to any degree."""
    sine = np.sqrt((1 - cosine) * (1 + cosine))
    value = np.zeros((cosine.shape[0], lmax + 1, lmax + 1))
    over_sine = np.zeros_like(value)
    for m in range(lmax + 1):
        for table, start in ((value, sine**m), (over_sine, sine ** (m - 1) if m else 0 * sine)):
            table[:, m, m] = start * sqrt(np.prod([(2 * k + 1) / (2 * k) for k in range(1, m + 1)]) / (4 * pi))
            for n in range(m + 1, lmax + 1):
                a, b = sqrt((4 * n * n - 1) / (n * n - m * m)), sqrt(((n - 1) ** 2 - m * m) / (4 * (n - 1) ** 2 - 1))
                table[:, n, m] = a * (cosine * table[:, n - 1, m] - b * table[:, n - 2, m])
    return value, over_sine


def _slope(value: np.ndarray, lmax: int) -> np.ndarray:
    """d/dtheta of P: half the difference of the neighbouring orders, which has no division by sin theta."""
    slope = np.zeros_like(value)
    for n in range(1, lmax + 1):
        slope[:, n, 0] = -sqrt(n * (n + 1)) * value[:, n, 1]
        for m in range(1, n + 1):
            lower = sqrt((n + m) * (n - m + 1)) * value[:, n, m - 1]
            upper = sqrt((n - m) * (n + m + 1)) * value[:, n, m + 1] if m < n else 0
            slope[:, n, m] = (lower - upper) / 2
    return slope


def _check_table(lmax: int, derivative: str | None) -> None:
    if lmax < 0:
        raise ValueError(f"grid: lmax must be at least 0, got {lmax}")
    if derivative not in DERIVATIVES:
        raise ValueError(f"grid: derivative must be one of {DERIVATIVES}, got {derivative!r}")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
