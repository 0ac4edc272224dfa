"""What a product at points reads: matrices to the points of a grid for its result and for every input, float64.

`PointTable` holds them in one of four forms (FORMS), `sphere_table` makes those of products on the sphere.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..constant import Constant, plainly
from ..define import fail, integer
from . import grids

FORMS = ("dense", "mirrored", "separable", "sparse")
MOST = 6  # different inputs of a product, those of its derivatives included
MIRRORS = 8  # images of a point under x -> -x, y -> -y, z -> -z
THETA, PHI = 4, 3  # how the derivatives change the parities of a component; see `parities`
SPARSE_TO = 12  # degree that the grid of a product of two integrates, to which its few terms cost less than a grid
UNROLLED_TO = 5  # degree of two fields and of their product to which its terms are unrolled when compiled (gaunt.h)
SEPARABLE_FROM = 33  # from which two small steps along theta and phi cost less than one large
GPU_SEPARABLE = range(6, 10)  # degrees of two fields and their product for which a GPU takes two steps


class Slot(NamedTuple):
    """The result (slot 0) or an input of a product; `_fields` integers each in the flat `slots`.

    Attributes:
        degree: L; (L + 1)^2 components.
        power: how often the input is a factor; 1 for the result.
        offset: of its matrix in the flat table.
        parts: 1, or that of the grid: a matrix for each part.
        twist: what is added (xor) to the parities of its components, three bits a part.
    """

    degree: int
    power: int
    offset: int
    parts: int
    twist: int

    @property
    def dim(self) -> int:
        """Components of degrees 0..L."""
        return (self.degree + 1) ** 2


class Points(NamedTuple):
    """The flat `grid`: at what points, and how the matrices M are kept; `parts` sets of points lie one after the other.

    Attributes:
        form: 0 dense: M [parts, S, d] with S = rings * ring_size. 1 mirrored: M of the octant x, y, z >= 0 alone,
            the other seven follow by the parities of the components. 2 separable: the octant's M in two factors,
            legendre [parts, rings, d] and then fourier [parts, ring_size, 2L+1]. 3 sparse: a "point" is a term of the
            product, and M has one value a row: their components [S] and then the values [S].
        rings, ring_size: counts of points, of the octant where it is mirrored.
        parts: sets of points; the result sums over them.
    """

    form: int
    rings: int
    ring_size: int
    parts: int

    @property
    def size(self) -> int:
        """Points that are kept, of one part."""
        return self.rings * self.ring_size

    @property
    def images(self) -> int:
        """Points for each that is kept."""
        return MIRRORS if self.form in (1, 2) else 1

    def numel(self, slot: Slot) -> int:
        """Length of a slot's matrix in the flat table."""
        if self.form == 3:
            return 2 * self.size
        if self.form == 2:
            return slot.parts * (self.rings * slot.dim + self.ring_size * (2 * slot.degree + 1))
        return slot.parts * self.size * slot.dim


def unpack(slots: Sequence[int]) -> tuple[Slot, ...]:
    """The flat integers that the operator takes, as Slots."""
    return _unpack(tuple(slots))


@cache
def _unpack(slots: tuple[int, ...]) -> tuple[Slot, ...]:
    n = len(Slot._fields)
    return tuple(Slot(*slots[i:i + n]) for i in range(0, len(slots), n))


@cache
def parities(degree: int) -> tuple[int, ...]:
    """Of every component, a bit for each mirror under which it is odd: 1 x -> -x, 2 z -> -z, 4 y -> -y.

    These turn phi into -phi, pi - phi, and theta into pi - theta.
    """
    found = []
    for n in range(degree + 1):
        for m in range(-n, n + 1):
            sine = m < 0
            found.append(sine + 2 * (m % 2 ^ sine) + 4 * ((n + m) % 2))
    return tuple(found)


class PointTable:
    r"""The matrices of z = M_0^T (prod_n (M_n x_n)^p_n), products at points between coefficients.

    Args:
        points: the form and the counts of points.
        factors: of the result and of each input: (degree, power, twist, matrix), the matrix flat or [parts, ...] as
            `Points.form` says; one that is given twice is kept once.
        gpu: the same product in the form that GPUs take, where this one is another.

    Raises:
        ValueError: a matrix whose length does not fit its degree and the points.

    Float64, made on the CPU, outside the buffers of modules: `.to(dtype)` does not touch it.
    """

    def __init__(self, points: Points, factors: Sequence[tuple[int, int, int, Tensor]],
                 gpu: "PointTable | None" = None):
        self.points, self._gpu = points, gpu
        offsets, kept, slots, length = {}, [], [], 0
        for n, (degree, power, twist, matrix) in enumerate(factors):
            one = points.numel(Slot(degree, power, 0, 1, twist))
            if matrix.numel() not in (one, points.parts * one) or degree < 0:
                fail("PointTable", f"matrix {n}", f"{one} values for each of {points.parts} parts", matrix.numel())
            if id(matrix) not in offsets:
                offsets[id(matrix)] = length
                kept.append(matrix.detach().to("cpu", torch.float64).flatten())
                length += matrix.numel()
            slots.append(Slot(degree, power, offsets[id(matrix)], matrix.numel() // one, twist))
        self.slots = tuple(slots)
        self._grid, self._flat = tuple(points), tuple(value for slot in slots for value in slot)
        from .blocks import with_blocks  # which reads tables

        with plainly():
            self._table = Constant(torch.cat(kept))
            if gpu is None:
                self._blocks = Constant(with_blocks(self._table.on("cpu"), self._grid, self._flat))

    @property
    def lmax_in(self) -> tuple[int, ...]:
        """Degrees of the inputs."""
        return tuple(s.degree for s in self.slots[1:])

    @property
    def lmax_out(self) -> int:
        return self.slots[0].degree

    def on(self, device: torch.device) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        """The flat table, moved once per device, with the integers `grid` and `slots` that say how to read it; for GPUs
        with whole blocks behind it (blocks.py)."""
        if str(device) != "cpu":
            return (self._blocks.on(device), self._grid, self._flat) if self._gpu is None else self._gpu.on(device)
        return self._table.on(device), self._grid, self._flat

    def __repr__(self) -> str:
        counts = " x ".join(map(str, self.points[1:3]))
        return f"PointTable({self.lmax_in} -> {self.lmax_out}, {FORMS[self.points.form]}, {counts} points)"


def _octant(degree: int) -> tuple[grids.Grid, Tensor, int]:
    """A grid for polynomials of a degree that is its own mirror image: rings, weights of the upper ones, points of a
    quadrant. Points lie half a step off the axes; those of the equator count twice with half their weight."""
    rings, around = degree // 2 + 1, -(-(degree + 1) // 4) * 4
    grid = grids.gauss(rings, 2 * around)  # every second point is half a step off
    weights = grids.weights(grid).view(rings, -1)[rings // 2:].sum(1) / around
    if rings % 2:
        weights[0] /= 2
    return grid, weights, around // 4


def _factors(degree: int, lmax: int, derivative: str | None, weighted: bool) -> tuple[Tensor, Tensor]:
    """legendre [rings of the octant, d] and fourier [points of a quadrant, 2 lmax + 1]."""
    grid, weights, quarter = _octant(degree)
    polar = grids.legendre(grid, lmax, derivative)[grid.rings // 2:]
    around = grids.fourier(grid, lmax, derivative)[1::2][:quarter]
    return polar * weights[:, None] if weighted else polar, around


def _matrix(form: str, degree: int, lmax: int, derivatives: Sequence[str | None], signs: Sequence[int],
            weighted: bool) -> Tensor:
    """A slot's matrix on the octant, flat, its parts one after the other."""
    pairs = [_factors(degree, lmax, derivative, weighted) for derivative in derivatives]
    pairs = [(sign * polar, around) for sign, (polar, around) in zip(signs, pairs, strict=True)]
    if form == "separable":
        return torch.cat([torch.cat([p.flatten() for p in column]) for column in zip(*pairs, strict=True)])
    columns = grids.orders(lmax)
    return torch.cat([(p[:, None] * a[:, columns]).flatten() for p, a in pairs])


def _check_table(lmax_in, powers, form, grid, bracket) -> None:
    op = "sphere_table"
    if not lmax_in:
        fail(op, "lmax_in", "the degrees of one input or more", lmax_in)
    if len(lmax_in) > MOST:
        fail(op, "lmax_in", f"at most {MOST} inputs", len(lmax_in), "give equal inputs once, with powers")
    if len(powers) != len(lmax_in):
        fail(op, "powers", f"one for each of {len(lmax_in)} inputs", powers)
    if form not in ("auto", *FORMS):
        fail(op, "form", f"'auto' or one of {FORMS}", repr(form))
    if grid != "gauss" and form not in ("auto", "dense"):
        fail(op, "form", "'dense' where a grid is given", repr(form), 'only grid="gauss" has mirrored points')
    if form == "sparse" and (len(lmax_in) != 2 or max(powers) > 1):
        fail(op, "form", "one for many inputs or powers", "'sparse'", "it lists the terms of a product of two")
    if bracket and (len(lmax_in) != 2 or max(powers) > 1):
        fail(op, "lmax_in", "two inputs of power 1 for the bracket", f"{len(lmax_in)} of powers {powers}")


def sphere_table(lmax_in: Sequence[int], lmax_out: int, *, powers: Sequence[int] | None = None,
                 grid: "grids.Grid | str | tuple[int, int]" = "gauss", form: str = "auto", bracket: bool = False
                 ) -> PointTable:
    """Tables of a product of fields on the sphere, kept to degree lmax_out.

    Args:
        lmax_in: the degree of each different input, one to six of them.
        lmax_out: the degree of the result.
        powers: how often each input is a factor; None for once.
        grid: "gauss" (a grid with mirror images, exact for the product), "lebedev" (fewest points), "auto" (fewer of
            Gauss-Legendre's and Lebedev's), a `grids.Grid`, or (rings, points a ring).
        form: "dense" (every point), "mirrored" (the points of an octant, an eighth of the products), "separable"
            (mirrored, in two steps along theta and phi), "sparse" (the terms of a product of two, without a grid), or
            "auto": what is fastest.
        bracket: the antisymmetric Poisson bracket of two fields, r . (grad F x grad G), in place of their product.

    Returns:
        A `PointTable`, made once for the same arguments.

    Raises:
        ValueError: a grid that is too small for the product (with the size that is needed), degrees or powers that are
            no integers, unknown names, no inputs.
    """
    op = "sphere_table"
    lmax_in, lmax_out = _integers(op, "lmax_in", lmax_in, 0), integer(op, "lmax_out", lmax_out)
    powers = (1,) * len(lmax_in) if powers is None else _integers(op, "powers", powers, 1)
    grid = grids.given(op, grid)
    _check_table(lmax_in, powers, form, grid, bracket)
    return _sphere_table(lmax_in, lmax_out, powers, grid, form, bool(bracket))


def _integers(op: str, argument: str, values, least: int) -> tuple[int, ...]:
    if not isinstance(values, Iterable):
        fail(op, argument, "a sequence, an integer for each input", repr(values))
    return tuple(integer(op, argument, value, least) for value in values)


@cache
@plainly()
def _sphere_table(lmax_in: tuple[int, ...], lmax_out: int, powers: tuple[int, ...], grid, form: str,
                  bracket: bool) -> PointTable:
    factors = [degree for degree, power in zip(lmax_in, powers, strict=True) for _ in range(power)]
    degree = grids.product_degree(factors, lmax_out, bracket)
    slots = _slots(lmax_in, powers, bracket)
    if form == "dense" or grid != "gauss":
        if isinstance(grid, grids.Grid):
            grids.check(grid, factors, lmax_out, bracket)
        else:
            grid = grids.exact(degree, grid)
        return _on_grid(grid, lmax_out, slots)
    equal = lmax_in == (lmax_out,) * 2 and powers == (1, 1) and not bracket
    on_gpu = "separable" if equal and lmax_out in GPU_SEPARABLE and form != "mirrored" else "mirrored"
    if form == "auto":
        form = "separable" if degree >= SEPARABLE_FROM else "mirrored"
        unrolled = {*lmax_in, lmax_out} == {lmax_out} and lmax_out <= UNROLLED_TO and not bracket
        if len(lmax_in) == 2 and max(powers) == 1 and (degree <= SPARSE_TO or unrolled):
            form = "sparse"
    if form == on_gpu:
        return _on_octant(form, degree, lmax_out, slots)
    gpu = _sphere_table(lmax_in, lmax_out, powers, "gauss", on_gpu, bracket)
    if form == "sparse":
        return _sparse(_sphere_table(lmax_in, lmax_out, powers, "gauss", "dense", bracket), gpu)
    return _on_octant(form, degree, lmax_out, slots, gpu)


def _on_grid(grid: grids.Grid, lmax_out: int, slots: list[tuple]) -> PointTable:
    """The dense form at every point of a grid."""
    points = Points(0, *((grid.rings, grid.ring_size) if grid.kind == "gauss" else (grid.size, 1)), len(slots[0][2]))
    kept, found = {}, [(lmax_out, 1, 0, grids.analysis(grid, lmax_out).T.contiguous())]
    for lmax, power, derivatives, signs in slots:
        key = lmax, derivatives
        if key not in kept:
            kept[key] = torch.cat([sign * grids.synthesis(grid, lmax, derivative)
                                   for sign, derivative in zip(signs, derivatives, strict=True)])
        found.append((lmax, power, 0, kept[key]))
    return PointTable(points, found)


def _on_octant(form: str, degree: int, lmax_out: int, slots: list[tuple], gpu: PointTable | None = None) -> PointTable:
    """The mirrored or the separable form on the grid that is exact to a degree."""
    octant, _, quarter = _octant(degree)
    points = Points(FORMS.index(form), octant.rings - octant.rings // 2, quarter, len(slots[0][2]))
    kept, found = {}, [(lmax_out, 1, 0, _matrix(form, degree, lmax_out, (None,), (1,), True))]
    for lmax, power, derivatives, signs in slots:
        key = lmax, derivatives
        if key not in kept:
            kept[key] = _matrix(form, degree, lmax, derivatives, signs, False)
        twists = [{None: 0, "theta": THETA, "phi": PHI}[derivative] for derivative in derivatives]
        found.append((lmax, power, sum(twist << 3 * k for k, twist in enumerate(twists)), kept[key]))
    return PointTable(points, found, gpu)


def _sparse(dense: PointTable, gpu: PointTable) -> PointTable:
    """The same product of two by its terms: sums over the points of three harmonics, most of which are zero."""
    flat, _, _ = dense.on("cpu")
    matrices = [flat[slot.offset:slot.offset + dense.points.numel(slot)].view(slot.parts, -1, slot.dim)
                for slot in dense.slots]
    terms = torch.einsum("psk,psi,psj->kij", *(m.expand(dense.points.parts, -1, -1) for m in matrices))
    at = (terms.abs() > 1e-12 * max(terms.abs().max().item(), 1e-300)).nonzero()
    if not len(at):  # the bracket with a constant: one term, of value 0
        at = at.new_zeros(1, 3)
    values = [terms[tuple(at.T)], *[torch.ones_like(terms[tuple(at.T)])] * 2]
    found = [(slot.degree, 1, 0, torch.cat([component.double(), value]))
             for slot, component, value in zip(dense.slots, at.T, values, strict=True)]
    return PointTable(Points(3, len(at), 1, 1), found, gpu)


def _slots(lmax_in, powers, bracket: bool) -> list[tuple]:
    """(degree, power, derivative of each part, sign of each part) of every input."""
    if bracket:  # d_theta F d_phi G - d_phi F d_theta G
        return [(lmax_in[0], 1, ("theta", "phi"), (1, 1)), (lmax_in[1], 1, ("phi", "theta"), (1, -1))]
    return [(lmax, power, (None,), (1,)) for lmax, power in zip(lmax_in, powers, strict=True)]
