"""Many-body products: powers of a function on the sphere, as MACE's symmetric contraction with Gaunt products."""

from itertools import product
from math import comb, factorial, pi, prod

import numpy as np
import torch
from torch import Tensor, nn

from .. import functional
from ..kernels.constant import Constant, plainly
from .fields import Fields, Ir
from .tensor_product import check_columns, no_script

_HIGHEST = 6  # of orders; factors of the operator


class GauntManyBody(nn.Module):
    r"""Sum of the powers 1..nu of a field, each with weights of its degrees before and behind.

    .. math:: z_l = \sum_{n=1}^{\nu} \alpha_{nl} v_{nl} \int_{S^2} Y_l \Big(\sum_k w_{nk} Y_k \cdot x_k\Big)^n

    The features of body order nu + 1 of the atomic cluster expansion and MACE, as nu - 1 multiplications on an exact
    grid in place of a generalised Clebsch-Gordan contraction: no intermediate degree is cut off. Only even couplings.

    Args:
        irreps_in, irreps_out: of one multiplicity C, the same; each irrep once.
        correlation: nu, the highest power, 1 to 6.
        num_types: sets of weights; rows choose by `types` (of elements).
        layout: of inputs and result, "mul_ir" or "ir_mul".
        backend: which implementation of the operator runs.

    Attributes:
        weight: [num_types, nu (slots of in + slots of out) C], from 1.

    For normal inputs and weights of 1 every power has a mean square of 1 / nu.

    Raises:
        ValueError: multiplicities that differ, an output that no power reaches, correlation outside 1..6.

    Derivatives of any order. Source: Luo, Chen, Krishnapriyan 2024, section 3.3; Batatia et al. 2022 (MACE).

    Example:
        >>> many = ace_fast.nn.GauntManyBody("32x0e+32x1o+32x2e", "32x0e+32x1o", 3, num_types=4)
        >>> many(torch.randn(10, 288), torch.zeros(10, dtype=torch.int64)).shape
        torch.Size([10, 128])
    """

    def __init__(self, irreps_in, irreps_out, correlation, *, num_types=1, layout="mul_ir", backend="auto"):
        super().__init__()
        name = type(self).__name__
        if not 1 <= correlation <= _HIGHEST:
            raise ValueError(f"{name}: correlation must be from 1 to {_HIGHEST}, got {correlation}")
        if num_types < 1:
            raise ValueError(f"{name}: num_types must be at least 1, got {num_types}")
        one, out = self._fields = (Fields(name, "irreps_in", irreps_in, layout),
                                   Fields(name, "irreps_out", irreps_out, layout))
        if out.irs and one.channels != out.channels:
            raise ValueError(f"{name}: irreps_out must have the {one.channels} channels of irreps_in, got "
                             f"{out.irreps}; put an ace_fast.nn.Linear behind")
        self.irreps_in, self.irreps_out = one.irreps, out.irreps
        self.correlation, self.num_types, self.layout, self.backend = correlation, num_types, layout, backend
        self._check_reachable(name)
        self._counts = [f.channels * len(f.irs) for f in (one, out)]
        self.weight = nn.Parameter(torch.ones(num_types, correlation * sum(self._counts)))
        self._signs = _signs(one, out)
        with plainly():
            self._gains = [Constant(out.spread(self._gain(n).repeat_interleave(out.channels)))
                           for n in range(1, correlation + 1)]
        self._tables = [functional.sphere_table((one.lmax,), out.lmax, powers=(n,)) for n in range(1, correlation + 1)]

    def _check_reachable(self, name: str) -> None:
        """Couples the irreps of irreps_in nu times."""
        one, out = (f.irs for f in self._fields)
        found, last = set(one), set(one)
        for _ in range(self.correlation - 1):
            last = {Ir(n, a.p * b.p) for a, b in product(last, one) for n in range(abs(a.l - b.l), a.l + b.l + 1, 2)}
            found |= last
        if missing := [str(ir) for ir in out if ir not in found and self._fields[1].channels]:
            raise ValueError(f"{name}: every slot of irreps_out must be reachable from powers 1 to {self.correlation} "
                             f"of {self.irreps_in} by even couplings, got {missing[0]}; drop it")

    def _gain(self, n: int) -> Tensor:
        """Of every slot of the output, what makes the mean square of power n 1 / nu; 0 where the power has none.

        By Wick's theorem the n-th powers of two correlated normal variables have a mean product that is a polynomial of
        their covariance, which here is a function of the angle between two points alone.
        """
        one, out = (f.irs for f in self._fields)
        cosine, weights = np.polynomial.legendre.leggauss(n * self._fields[0].lmax + self._fields[1].lmax + 1)
        zonal = np.polynomial.legendre.legvander(cosine, max(f.lmax for f in self._fields))
        parts = {sign: sum((ir.dim / (4 * pi) * zonal[:, ir.l] for ir in one if ir.sign == sign), 0 * cosine)
                 for sign in (1, -1)}
        variance = sum(ir.dim / (4 * pi) for ir in one)
        moments = [_moment(n, parts[1] + sign * parts[-1], variance) for sign in (1, -1)]
        found = []
        for ir in out:
            value = moments[0] if len(self._signs) == 1 else (moments[0] + ir.sign * moments[1]) / 2
            square = 2 * pi * float((weights * zonal[:, ir.l] * value).sum())
            found.append((square * self.correlation) ** -0.5 if square > 1e-9 else 0.0)
        return torch.tensor(found, dtype=torch.float64, device="cpu")

    def __repr__(self) -> str:
        return (f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | powers to {self.correlation} | "
                f"{self.weight.numel()} weights)")

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, x: Tensor, types: Tensor | None = None) -> Tensor:
        """x [..., irreps_in.dim], types [...] int64 (None: all of type 0) -> [..., irreps_out.dim]."""
        name = type(self).__name__
        one, out = self._fields
        check_columns(name, x=(x, one.dim))
        lead = x.shape[:-1]
        if types is None and self.num_types > 1:
            raise ValueError(f"{name}: types must be int64 {list(lead)}, got None; there are {self.num_types}")
        if types is not None and (types.shape != lead or types.dtype != torch.int64):
            raise ValueError(f"{name}: types must be int64 {list(lead)}, got {types.dtype} {list(types.shape)}")
        x = x.reshape(prod(lead), x.shape[-1])
        weight = self.weight[0] if types is None else self.weight.index_select(0, types.reshape(-1))
        parts = weight.unflatten(-1, (self.correlation, sum(self._counts)))
        z = x.new_zeros(x.shape[0], out.dim)
        for n, (table, gain) in enumerate(zip(self._tables, self._gains, strict=True)):
            before, behind = (f.spread(part) for f, part in
                              zip((one, out), parts[..., n, :].split(self._counts, -1), strict=True))
            scaled = x * before
            found = [(functional.sphere_product(one.field(scaled, signs, one.lmax), table=table, layout=self.layout,
                                                backend=self.backend), back) for signs, back in self._signs]
            z = z + out.rows(found, x) * (behind * gain.on(x.device).to(x.dtype))
        return z.reshape(*lead, out.dim)


def _signs(one: Fields, out: Fields) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Of every power that runs, the factors of the slots of the input and of the output (fields.Term has the reason for
    two)."""
    irs = [*one.irs, *out.irs]
    distinct = all(len({ir.l for ir in f.irs}) == len(f.irs) for f in (one, out))
    if all(ir.sign == 1 for ir in irs) or distinct and all(ir.p == 1 for ir in irs):
        return [((1.0,) * len(one.irs), (1.0,) * len(out.irs))]
    return [((1.0,) * len(one.irs), (0.5,) * len(out.irs)),
            (tuple(float(ir.sign) for ir in one.irs), tuple(ir.sign / 2 for ir in out.irs))]


def _moment(n: int, covariance: np.ndarray, variance: float) -> np.ndarray:
    """The mean of a^n b^n for normal a, b of a variance and a covariance."""
    pairings = [factorial(n - k) // (2 ** ((n - k) // 2) * factorial((n - k) // 2)) if (n - k) % 2 == 0 else 0
                for k in range(n + 1)]
    return sum(factorial(k) * (comb(n, k) * pairings[k]) ** 2 * variance ** (n - k) * covariance**k
               for k in range(n + 1))
