"""Radial bases with their slopes, and filter networks of them as tables of cubic Hermite splines."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("gaussian", "expnorm", "bessel")
ACTIVATIONS = ("shifted_softplus", "silu")


class RadialBasis(NamedTuple):
    """Functions b_k of a distance d; centres p_k and scales q_k may be trained.

    - "gaussian": exp(q_k (d - p_k)^2)
    - "expnorm": exp(q_k (exp(-alpha d) - p_k)^2)
    - "bessel": q_k sin(p_k d) / d
    """

    kind: str
    centre: Tensor  # p [G]: Å; of expnorm a number, of bessel 1/Å
    scale: Tensor  # q [G]: 1/Å^2; of expnorm a number, of bessel Å^(1/2)
    alpha: float = 0.0  # 1/Å, of expnorm alone


def gaussian_basis(stop: float, count: int, start: float = 0.0, **options) -> RadialBasis:
    """Gaussians at equal steps whose width is the step: SchNet's and PyG's GaussianSmearing.

    Args:
        stop: centre of the last in Å; start: of the first; count: at least 2.
        options: dtype and device.
    """
    if count < 2 or not stop > start:
        raise ValueError(f"gaussian_basis: count must be at least 2 and stop above start, got {count}, {start}..{stop}")
    centre = torch.linspace(start, stop, count, **options)
    return RadialBasis("gaussian", centre, torch.full_like(centre, -0.5 / ((stop - start) / (count - 1)) ** 2))


def bessel_basis(cutoff: float, count: int, **options) -> RadialBasis:
    """sqrt(2 / cutoff) sin(n pi d / cutoff) / d for n = 1..count (DimeNet, Gasteiger et al. 2020)."""
    _check(count, cutoff, "bessel_basis")
    centre = torch.arange(1, count + 1, **({"dtype": torch.get_default_dtype()} | options)) * (math.pi / cutoff)
    return RadialBasis("bessel", centre, torch.full_like(centre, math.sqrt(2 / cutoff)))


def expnorm_basis(cutoff: float, count: int, **options) -> RadialBasis:
    """exp(-beta (exp(-alpha d) - mu_k)^2), alpha 5 / cutoff (PhysNet, Unke and Meuwly 2019, as in TorchMD-Net)."""
    _check(count, cutoff, "expnorm_basis")
    first = math.exp(-cutoff)
    centre = torch.linspace(first, 1, count, **options)
    return RadialBasis("expnorm", centre, torch.full_like(centre, -((2 / count * (1 - first)) ** -2)), 5 / cutoff)


def _check(count: int, cutoff: float, name: str) -> None:
    if count < 1 or not cutoff > 0:
        raise ValueError(f"{name}: count must be at least 1 and cutoff above 0, got {count} and {cutoff}")


def _sinc(z: Tensor) -> tuple[Tensor, Tensor]:
    """f = sin(z) / z and f' / z; series below 1, so that they are right, and differentiable, at 0."""
    w, small = z * z, z.abs() < 1
    safe = torch.where(small, 1.0, z)
    near, slope, term = torch.ones_like(z), torch.zeros_like(z), 1.0
    power = torch.ones_like(z)
    for k in range(1, 10):
        term /= -2 * k * (2 * k + 1)
        slope = slope + (2 * k * term) * power
        power = power * w
        near = near + term * power
    far = torch.sin(safe) / safe
    return torch.where(small, near, far), torch.where(small, slope, (torch.cos(safe) - far) / safe**2)


def _warp(kind: int, alpha: float, d: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """[E, 1] of u(d), u' and u''."""
    if KINDS[kind] == "gaussian":
        return d[:, None], 1.0, 0.0
    u = torch.exp(-alpha * d)[:, None]
    return u, -alpha * u, alpha**2 * u


def _bell(power: Tensor) -> Tensor:
    """e^power, zero below 1e-26 (float64: 1e-260): products of subnormal numbers are very slow, and so is their exp."""
    least = -600.0 if power.dtype == torch.float64 else -60.0
    return torch.exp(power.clamp_min(least)).where(power > least, 0.0)


def radial(kind: int, alpha: float, centre: Tensor, scale: Tensor, d: Tensor) -> Tensor:
    """Values [E, G] of a basis at distances d [E]; `kind` counts KINDS."""
    if KINDS[kind] == "bessel":
        return scale * centre * _sinc(d[:, None] * centre)[0]
    return _bell(scale * (_warp(kind, alpha, d)[0] - centre).square())


def radial_slope(kind: int, alpha: float, centre: Tensor, scale: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Values and slopes [E, G]."""
    if KINDS[kind] == "bessel":
        z = d[:, None] * centre
        f, f1 = _sinc(z)
        return scale * centre * f, scale * centre**2 * z * f1
    u, u1, _ = _warp(kind, alpha, d)
    v = u - centre
    bell = _bell(scale * v * v)
    return bell, 2 * scale * v * bell * u1


def radial_derivatives(kind: int, alpha: float, centre: Tensor, scale: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """Second derivatives [E, G], then those of value and slope in centre, of value and slope in scale."""
    if KINDS[kind] == "bessel":
        z = d[:, None] * centre
        f, f1 = _sinc(z)
        both = scale * centre
        return (-both * centre**2 * (f + 2 * f1), scale * torch.cos(z), -both * torch.sin(z), centre * f,
                centre**2 * z * f1)
    u, u1, u2 = _warp(kind, alpha, d)
    v = u - centre
    bell, qv = _bell(scale * v * v), scale * v
    slope, bend = 2 * qv * bell, (2 * scale + 4 * qv * qv) * bell
    return bend * u1 * u1 + slope * u2, -slope, -bend * u1, v * v * bell, 2 * v * (1 + v * qv) * bell * u1


def activate(activation: int, x: Tensor) -> Tensor:
    """`activation` counts ACTIVATIONS."""
    if ACTIVATIONS[activation] == "silu":
        return torch.nn.functional.silu(x)
    # the threshold, above which torch takes x, is where float64 no longer sees a difference
    return torch.nn.functional.softplus(x, 1.0, 40.0) - math.log(2.0)


def activate_slopes(activation: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative."""
    sigmoid = torch.sigmoid(x)
    density = sigmoid * (1 - sigmoid)
    if ACTIVATIONS[activation] == "silu":
        return sigmoid + x * density, density * (2 + x * (1 - 2 * sigmoid))
    return sigmoid, density


def filter_table(basis: RadialBasis, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, activation: int,
                 cutoff: float, knots: int) -> Tensor:
    """[knots, 2, F]: values and slopes of the filter network at equal steps from 0 to the cutoff.

    Both go through the two products as rows of one matrix; plain PyTorch, so every derivative exists.
    """
    d = torch.linspace(0, cutoff, knots, dtype=weight1.dtype, device=weight1.device)
    value, slope = radial_slope(KINDS.index(basis.kind), basis.alpha, basis.centre, basis.scale, d)
    value, slope = (torch.cat([value, slope]) @ weight1.T).chunk(2)
    value = value + bias1
    rate, _ = activate_slopes(activation, value)
    value, slope = (torch.cat([activate(activation, value), rate * slope]) @ weight2.T).chunk(2)
    return torch.stack([value + bias2, slope], 1)


def spline_table(spline: Tensor, cutoff: float) -> Tensor:
    """[K, 2, F] of a spline [K, 2, F], or of knot values [K, F] with the slopes of central differences."""
    if spline.dim() != 2:
        return spline
    inner = (spline[2:] - spline[:-2]) / 2
    slope = torch.cat([spline[1:2] - spline[:1], inner, spline[-1:] - spline[-2:-1]]) * ((spline.shape[0] - 1) / cutoff)
    return torch.stack([spline, slope], 1)
