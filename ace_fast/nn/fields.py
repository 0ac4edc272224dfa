"""Irreps of equal multiplicity as functions on the sphere: where their components lie, which of them a product couples,
and the three tables of a product `z = A((B x) * (C y))` on a grid that is exact for it.

A component x_lm times Y_lm(r) has parity p under r -> -r. Irreps with p = (-1)^l (0e, 1o, 2e) are true fields, the
others (0o, 1e, 2o) pseudo fields, which change sign under a reflection in addition. The product of two fields couples
l1 + l2 + l3 even and is true where both are alike; their Poisson bracket couples l1 + l2 + l3 odd and is pseudo there.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from math import pi, sqrt
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from ..kernels.constant import plainly
from ..kernels.sphere_product import grids
from .tensor_product import check_options

KINDS = ("product", "bracket")


class Factors(NamedTuple):
    """Tables of `z = A((B x) * (C y))`, float64 on the CPU."""

    A: Tensor  # [d3, R]
    B: Tensor  # [R, d1]
    C: Tensor  # [R, d2]

    @property
    def rank(self) -> int:
        """R."""
        return self.A.shape[1]

    def tensor(self) -> Tensor:
        """The coefficients of the bilinear map, [d1, d2, d3]."""
        return torch.einsum("kr,ri,rj->ijk", *self)


class Ir(NamedTuple):
    """An irrep as plain integers: torch.compile cannot guard on e3nn's."""

    l: int
    p: int

    @property
    def dim(self) -> int:
        return 2 * self.l + 1

    @property
    def sign(self) -> int:
        """1 of true irreps, -1 of pseudo ones."""
        return self.p * (-1) ** self.l

    def __str__(self) -> str:
        return f"{self.l}{'e' if self.p == 1 else 'o'}"


class Fields:
    """Irreps of one multiplicity, each at most once.

    Args:
        who, argument: for messages.
        irreps: e3nn irreps.
        layout: "mul_ir" or "ir_mul".

    Attributes:
        irreps, layout: as given.
        channels: the multiplicity C; 0 where there are no irreps.
        irs: the irreps without multiplicity, in order. starts: their first components. width: d, all components.
        dim: C d, of a row.
        lmax: the largest degree; 0 where there are no irreps.

    Raises:
        ValueError: different multiplicities, or an irrep twice.
    """

    def __init__(self, who: str, argument: str, irreps, layout: str = "mul_ir"):
        check_options(who, layout=layout)
        self.irreps, self.layout = o3.Irreps(irreps), layout
        counts = sorted({mul for mul, _ in self.irreps})
        if len(counts) > 1:
            raise ValueError(f"{who}: {argument} must have one multiplicity, got {self.irreps}; put an ace_fast.nn."
                             "Linear before or behind that makes them equal")
        self.channels = counts[0] if counts else 0
        self.irs = tuple(Ir(ir.l, ir.p) for _, ir in self.irreps)
        if len(set(self.irs)) < len(self.irs):
            raise ValueError(f"{who}: {argument} must hold each irrep once, got {self.irreps}; put an ace_fast.nn."
                             "Linear before or behind that joins them")
        ends = [0, *accumulate(ir.dim for ir in self.irs)]
        self.starts, self.width, self.dim = ends[:-1], ends[-1], self.channels * ends[-1]
        self.lmax = max((ir.l for ir in self.irs), default=0)

    def spread(self, weight: Tensor) -> Tensor:
        """A factor of every slot and channel, [..., slots C], as factors of every number of a row, [..., C d]."""
        inner = -1 if self.layout == "mul_ir" else -2
        parts = [part.unsqueeze(inner).expand(*part.shape[:-1], *shape).flatten(-2)
                 for part, shape in zip(weight.split(self.channels or 1, -1), self._shapes(), strict=False)]
        return torch.cat(parts, -1) if parts else weight

    def scaled(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Rows [Z, C d] times a factor of every slot and channel, [..., slots C]; as they are where None."""
        return x if weight is None else x * self.spread(weight)

    def _shapes(self) -> list[tuple[int, int]]:
        shapes = [(self.channels, ir.dim) for ir in self.irs]
        return shapes if self.layout == "mul_ir" else [shape[::-1] for shape in shapes]

    def whole(self, signs: tuple[float, ...], lmax: int) -> bool:
        """Whether the rows are one field of degrees 0..lmax as they lie."""
        return signs == (1.0,) * (lmax + 1) and all(ir.l == n for n, ir in enumerate(self.irs))

    def field(self, x: Tensor, signs: tuple[float, ...], lmax: int) -> Tensor:
        """The field [Z, C (lmax + 1)^2] that the slots of rows [Z, C d] are with their signs; missing degrees are 0."""
        if self.whole(signs, lmax):
            return x
        C, blocks = self.channels, [[] for _ in range(lmax + 1)]
        for ir, at, sign in zip(self.irs, self.starts, signs, strict=True):
            if sign:
                blocks[ir.l].append(_times(x[:, C * at:C * (at + ir.dim)], sign))
        return torch.cat([_sum(parts, x, C * (2 * n + 1)) for n, parts in enumerate(blocks)], 1)

    def rows(self, fields: Sequence[tuple[Tensor, tuple[float, ...]]], like: Tensor) -> Tensor:
        """The rows [Z, C d] whose slots are sums of blocks of fields [Z, C (lmax + 1)^2] with their signs; 0 where no
        field has any."""
        if self.irs and len(fields) == 1 and self.whole(fields[0][1], len(self.irs) - 1):
            return fields[0][0]
        C, slots = self.channels, []
        for n, ir in enumerate(self.irs):
            parts = [_times(z[:, C * ir.l**2:C * (ir.l + 1) ** 2], signs[n]) for z, signs in fields if signs[n]]
            slots.append(_sum(parts, like, C * ir.dim))
        return torch.cat(slots, 1) if slots else like.new_zeros(like.shape[0], 0)


def degrees_from_zero(who: str, argument: str, irreps, layout: str) -> Fields:
    """The fields of irreps of degrees 0..L in order.

    Raises:
        ValueError: degrees that are missing, twice or out of order, several multiplicities, no irreps.
    """
    field = Fields(who, argument, irreps, layout)
    if not field.irs or [ir.l for ir in field.irs] != list(range(len(field.irs))):
        raise ValueError(f"{who}: {argument} must have the degrees 0..L in order, each once, got {field.irreps}; put "
                         "an ace_fast.nn.Linear before that makes them so")
    return field


def present(signs: tuple[float, ...]) -> tuple[float, ...]:
    """1 for the slots that are part of a product."""
    return tuple(float(sign != 0) for sign in signs)


def _sum(parts: list[Tensor], like: Tensor, width: int) -> Tensor:
    return sum(parts[1:], parts[0]) if parts else like.new_zeros(like.shape[0], width)


def _times(x: Tensor, sign: float) -> Tensor:
    return x if sign == 1 else sign * x


class Term(NamedTuple):
    """One product of two fields: the factor of every slot of in1, in2 and out in it; 0 where it is no part of it."""

    kind: str
    signs: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def couples(kind: str, a: int, b: int, c: int) -> bool:
    """Whether product or bracket have the path of degrees a x b -> c."""
    odd = (a + b + c) % 2 == 1
    return abs(a - b) <= c <= a + b and odd == (kind == "bracket")


def paths(fields: tuple[Fields, Fields, Fields], kind: str) -> list[tuple[int, int, int]]:
    """All paths (slot of in1, of in2, of out) of one kind of product that the parities allow."""
    one, two, out = (f.irs for f in fields)
    return [(i, j, k) for i, a in enumerate(one) for j, b in enumerate(two) for k, c in enumerate(out)
            if couples(kind, a.l, b.l, c.l) and a.p * b.p == c.p]


def terms(fields: tuple[Fields, Fields, Fields], kind: str) -> list[Term]:
    """The fewest products of fields that make up one kind of product, at most two.

    Where no coupling breaks the parity (only true irreps, or no parity: 0e, 1e, 2e) all irreps are one field. Where
    true and pseudo irreps t, p meet in both inputs, (t1 + p1)(t2 + p2) and (t1 - p1)(t2 - p2) hold all four products:
    their half sum is t1 t2 + p1 p2, their half difference t1 p2 + p1 t2.
    """
    if not paths(fields, kind):
        return []
    if _one_field(fields, kind):
        return [Term(kind, tuple((1.0,) * len(f.irs) for f in fields))]
    signs = [[ir.sign for ir in f.irs] for f in fields]
    turn = -1 if kind == "bracket" else 1
    pairs = sorted({(signs[0][i], signs[1][j]) for i, j, _ in paths(fields, kind)}, reverse=True)
    if len(pairs) <= 2:
        wanted = [(s, t, s * t * turn) for s, t in pairs]
        return [Term(kind, tuple(tuple(float(x == y) for x in slots) for slots, y in zip(signs, want, strict=True)))
                for want in wanted]
    mirrored = [tuple(float(s) for s in slots) for slots in signs]
    half = tuple(s * turn / 2 for s in mirrored[2])
    whole = [tuple(abs(s) for s in slots) for slots in mirrored[:2]]
    return [Term(kind, (*whole, tuple(abs(s) for s in half))), Term(kind, (*mirrored[:2], half))]


def _one_field(fields: tuple[Fields, Fields, Fields], kind: str) -> bool:
    if any(len({ir.l for ir in f.irs}) < len(f.irs) for f in fields):
        return False
    one, two, out = (f.irs for f in fields)
    return all(a.p * b.p == c.p for a in one for b in two for c in out if couples(kind, a.l, b.l, c.l))


@cache
@plainly()
def path_norms(kind: str, lmax: int) -> Tensor:
    r"""Sum of squared coefficients of every path, :math:`\sum_m (\int Y_{l_3} Y_{l_1} Y_{l_2})^2` (bracket: divided by
    l1(l1+1) l2(l2+1), as the tables are), [lmax + 1, lmax + 1, lmax + 1].

    By symmetry the second factor may stay at m = 0, where the integral over phi is 2 pi and orders do not mix.
    """
    grid = grids.exact(3 * lmax)
    values, around = grids.legendre(grid, lmax), grids.legendre(grid, lmax, "phi")
    slopes, weights = grids.legendre(grid, lmax, "theta"), grids.analysis_factors(grid, lmax)[0]
    zonal = [n * n + n for n in range(lmax + 1)]  # component m = 0 of each degree
    norms = torch.zeros(lmax + 1, lmax + 1, lmax + 1, dtype=torch.float64, device="cpu")
    for m in range(lmax + 1):
        rows = [n * n + n + m for n in range(m, lmax + 1)]
        one, two = (values, values) if kind == "product" else (m * around, slopes)
        found = torch.einsum("kt,ti,tj->ijk", weights[rows], one[:, rows], two[:, zonal])
        norms[m:, :, m:] += (1 if m == 0 else 2) * (2 * pi * found).square()
    degrees = torch.arange(lmax + 1, dtype=torch.float64, device="cpu")
    norms *= (2 * degrees + 1)[:, None]
    if kind == "bracket":
        steep = (degrees * (degrees + 1)).clamp(min=1)
        norms /= steep[:, None, None] * steep[:, None]
    return norms


def variances(fields: tuple[Fields, Fields, Fields], kind: str) -> Tensor:
    """Of the components of every slot of the output, for normal inputs and no weights, [slots]."""
    one, two, out = (f.irs for f in fields)
    norms = path_norms(kind, max(f.lmax for f in fields))
    found = torch.zeros(len(out), dtype=torch.float64, device="cpu")
    for i, j, k in paths(fields, kind):
        found[k] += norms[one[i].l, two[j].l, out[k].l] / out[k].dim
    return found


def highest(fields: tuple[Fields, Fields, Fields], term: Term) -> tuple[int, int, int]:
    """The largest degrees of in1, in2 and out in a term."""
    return tuple(max(ir.l for ir, sign in zip(f.irs, signs, strict=True) if sign)
                 for f, signs in zip(fields, term.signs, strict=True))


def factors(fields: tuple[Fields, Fields, Fields], kind: str) -> Factors:
    """The exact tables of one kind of product of all fields, rank the points of its grids (twice that for brackets).

    Args:
        fields: of in1, in2 and out.
        kind: "product" or "bracket" (of the fields x_lm / sqrt(l(l+1)), so that its paths are of one size).
    """
    found = [_term_factors(fields, term) for term in terms(fields, kind)]
    if not found:
        return Factors(*(torch.zeros(shape, dtype=torch.float64, device="cpu")
                         for shape in ((fields[2].width, 0), (0, fields[0].width), (0, fields[1].width))))
    return Factors(*(torch.cat(tables, dim) for tables, dim in zip(zip(*found, strict=True), (1, 0, 0), strict=True)))


def _term_factors(fields: tuple[Fields, Fields, Fields], term: Term) -> Factors:
    one, two, out = highest(fields, term)
    bracket = term.kind == "bracket"
    grid = grids.exact(grids.product_degree((one, two), out, bracket), "auto")
    back = torch.cat([sign * grids.analysis(grid, ir.l)[ir.l**2:]
                      for ir, sign in zip(fields[2].irs, term.signs[2], strict=True)])
    if not bracket:
        return Factors(back, values(fields[0], term.signs[0], grid), values(fields[1], term.signs[1], grid))
    slopes = [[values(fields[n], term.signs[n], grid, name) for name in ("theta", "phi")] for n in (0, 1)]
    return Factors(torch.cat([back, -back], 1), torch.cat(slopes[0]), torch.cat(slopes[1][::-1]))


def values(field: Fields, signs: tuple[float, ...], grid: grids.Grid, derivative: str | None = None) -> Tensor:
    """The table of the values of one field at the points, [S, d]; derivatives are over sqrt(l(l+1))."""
    kind = "bracket" if derivative else "product"
    scales = degree_scales(field, kind)
    return torch.cat([sign * scale * grids.synthesis(grid, ir.l, derivative)[:, ir.l**2:]
                      for ir, sign, scale in zip(field.irs, signs, scales, strict=True)], 1)


def degree_scales(field: Fields, kind: str) -> list[float]:
    """Of every slot before a product: for brackets 1 / sqrt(l(l+1)), as derivatives grow with the degree."""
    return [1 / sqrt(max(1, ir.l * (ir.l + 1))) if kind == "bracket" else 1.0 for ir in field.irs]
