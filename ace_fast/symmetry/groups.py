"""Groups by name: their elements drawn, joined and inverted. How elements act on arrays stands in `layouts`."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .matrices import generators, random_o3, random_permutation

NAMES = ("SO(3)", "O(3)", "SE(3)", "E(3)", "T(3)", "S_n", "S_5", "C_4", "D_4", "p4", "p4m", "E(3) x S_n")
_LARGEST = 256  # order of a finite group that is written out
_NEAR = 1e-6  # below it two matrices are one


class Element(NamedTuple):
    """G elements of a group by their parts; what the group does not have is None.

    Attributes:
        matrix: [G, 3, 3] float64, orthogonal: what they do to directions in space.
        shift: [G, 3] float64, in the units of positions: x goes to matrix x + shift.
        permutation: [N] int64, of the nodes of all graphs, within each: node i goes to place permutation[i].
        number: [G] int64, which elements of a finite group these are.
        cell: [G, 2] int64, pixels that an image is rolled by, down and to the right.
    """

    matrix: Tensor | None = None
    shift: Tensor | None = None
    permutation: Tensor | None = None
    number: Tensor | None = None
    cell: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """A group; `group` makes them by name.

    Attributes:
        name: of the group.
        rotations: "SO(3)", "O(3)" or "".
        translations: whether it moves points in space.
        nodes: None without permutations; n of S_n; 0 of S_n whose n comes with the data.
        table: [n, n] int64 of a finite group: the number of the product of two elements; number 0 is the identity.
        matrices: [n, 3, 3] float64 of a finite group: its action on space, where it has one.
        cells: whether images are rolled.
        factors: of a `product`, from left to right; none of all others.
    """

    name: str
    rotations: str = ""
    translations: bool = False
    nodes: int | None = None
    table: Tensor | None = None
    matrices: Tensor | None = None
    cells: bool = False
    factors: tuple[Group, ...] = ()

    def __repr__(self) -> str:
        return f"Group({self.name})"

    @property
    def order(self) -> int | None:
        """The number of elements of a group with a table and nothing else; None of all others."""
        alone = not self.rotations and not self.translations and self.nodes is None and not self.cells
        return len(self.table) if self.table is not None and alone else None

    def sample(self, count: int = 1, generator: torch.Generator | None = None, *, sizes: Sequence[int] | None = None,
               side: int | None = None, reach: float = 1.0) -> Element:
        """`count` independent uniform elements.

        Args:
            count: G, one for each graph.
            generator: of the CPU; torch's own without.
            sizes: nodes of each of the G graphs, for permutations; S_5 knows them.
            side: of the images in pixels, for p4 and p4m.
            reach: standard deviation of each coordinate of a translation, which no draw is uniform in.

        Raises:
            ValueError: permutations without sizes, rolls without side, or sizes that do not fit.
        """
        if self.cells and not side:
            raise ValueError(f"{self.name}: side must be the images' pixels in a row, got {side}; pass side=")
        number = None if self.table is None else torch.randint(len(self.table), (count,), generator=generator)
        matrix = random_o3(count, generator) if self.rotations else None
        if self.rotations == "SO(3)":
            matrix = matrix * torch.linalg.det(matrix).round()[:, None, None]
        shift = cell = permutation = None
        if self.translations:
            shift = reach * torch.randn(count, 3, generator=generator, dtype=torch.float64)
        if self.nodes is not None:
            permutation = random_permutation(self._sizes(count, sizes), generator)
        if self.cells:
            cell = torch.randint(side, (count, 2), generator=generator)
        return Element(self._matrix(number, matrix), shift, permutation, number, cell)

    def identity(self, count: int = 1, *, sizes: Sequence[int] | None = None) -> Element:
        """`count` times the element that changes nothing; `sizes` as in `sample`."""
        number = None if self.table is None else torch.zeros(count, dtype=torch.int64)
        matrix = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1) if self.rotations else None
        shift = torch.zeros(count, 3, dtype=torch.float64) if self.translations else None
        permutation = None if self.nodes is None else torch.arange(sum(self._sizes(count, sizes)))
        cell = torch.zeros(count, 2, dtype=torch.int64) if self.cells else None
        return Element(self._matrix(number, matrix), shift, permutation, number, cell)

    def compose(self, a: Element, b: Element) -> Element:
        """The elements that do b, then a."""
        number = None if self.table is None else self.table[a.number, b.number]
        matrix = a.matrix @ b.matrix if self.rotations else None
        shift = a.shift + _turned(a.matrix, b.shift) if self.translations else None
        permutation = None if self.nodes is None else a.permutation[b.permutation]
        cell = a.cell + _turned(_plane(a.matrix), b.cell) if self.cells else None
        return Element(self._matrix(number, matrix), shift, permutation, number, cell)

    def inverse(self, a: Element) -> Element:
        """The elements that undo a."""
        number = None if self.table is None else (self.table[a.number] == 0).int().argmax(1)
        back = None if a.matrix is None else a.matrix.mT
        shift = -_turned(back, a.shift) if self.translations else None
        permutation = None if self.nodes is None else a.permutation.argsort()
        cell = -_turned(_plane(back), a.cell) if self.cells else None
        return Element(self._matrix(number, back), shift, permutation, number, cell)

    def elements(self) -> Element:
        """All elements of a finite group, the identity first.

        Raises:
            ValueError: the group has no table, or more than one.
        """
        if self.order is None:
            raise ValueError(f"{self.name}: the group must be finite with a table to be written out, got one without; "
                             "draw elements with sample")
        number = torch.arange(self.order)
        return Element(self._matrix(number, None), number=number)

    @property
    def directions(self) -> tuple[str, ...]:
        """Its one-parameter subgroups: turns about x, y and z, translations along them; none of finite groups."""
        turns = ("turn x", "turn y", "turn z") if self.rotations else ()
        return turns + (("shift x", "shift y", "shift z") if self.translations else ())

    def near(self, direction: str, step: float) -> Element:
        """The element `step` (radians, or units of positions) along one of `directions`; no permutation."""
        kind, axis = direction.split()
        found = replace(self, nodes=None).identity()
        if kind == "turn":
            return found._replace(matrix=torch.matrix_exp(step * generators(1)["xyz".index(axis)])[None])
        shift = torch.zeros(1, 3, dtype=torch.float64)
        shift[0, "xyz".index(axis)] = step
        return found._replace(shift=shift)

    def _matrix(self, number: Tensor | None, matrix: Tensor | None) -> Tensor | None:
        """The action on space: a finite group's own, without the rounding of a product."""
        return matrix if self.matrices is None else self.matrices[number]

    def _sizes(self, count: int, sizes: Sequence[int] | None) -> list[int]:
        found = [self.nodes] * count if sizes is None else [int(size) for size in sizes]
        if self.nodes == 0 and sizes is None or len(found) != count or self.nodes and set(found) - {self.nodes}:
            wanted = f"{self.nodes} nodes" if self.nodes else "the nodes"
            raise ValueError(f"{self.name}: sizes must be {wanted} of each of {count} graphs, got {sizes}")
        return found


def _turned(matrix: Tensor | None, x: Tensor) -> Tensor:
    return x if matrix is None else (matrix.to(x.dtype) @ x[..., None])[..., 0]


def _plane(matrix: Tensor | None) -> Tensor | None:
    """[G, 2, 2] of [G, 3, 3]: what it does to rows and columns of pixels."""
    return None if matrix is None else matrix[:, :2, :2].round()


def finite(table: Tensor | Sequence[Sequence[int]], matrices: Tensor | None = None, name: str = "finite") -> Group:
    """A finite group from its multiplication table.

    Args:
        table: [n, n] integers, table[a][b] the number of the element that does b, then a; number 0 the identity.
        matrices: [n, 3, 3] orthogonal, the elements' action on space; None: they act through given matrices alone.
        name: for messages.

    Raises:
        ValueError: the axioms of a group do not hold, or the matrices are not a homomorphism.

    Example:
        >>> finite([[0, 1], [1, 0]], torch.stack([torch.eye(3), -torch.eye(3)]), "C_i").order
        2
    """
    table = torch.as_tensor(table)
    n = len(table) if table.dim() == 2 else 0
    if table.shape != (n, n) or not 0 < n <= _LARGEST or table.is_floating_point():
        raise ValueError(f"{name}: table must be [n, n] integers with n from 1 to {_LARGEST}, got {table.dtype} "
                         f"{list(table.shape)}")
    table, numbers = table.long(), torch.arange(n)
    wrong = None
    if table.min() < 0 or table.max() >= n:
        wrong = "products outside the group"
    elif not (table[0] == numbers).all() or not (table[:, 0] == numbers).all():
        wrong = "another identity than element 0"
    elif not (table.sort(0)[0] == numbers[:, None]).all() or not (table.sort(1)[0] == numbers).all():
        wrong = "an element without inverse"
    elif any(not torch.equal(table[table[a]], table[a][table]) for a in range(n)):
        wrong = "products that are not associative"
    if wrong:
        raise ValueError(f"{name}: table must be that of a group, got {wrong}")
    if matrices is not None:
        matrices = torch.as_tensor(matrices).double()
        if matrices.shape != (n, 3, 3) or not (matrices @ matrices.mT - torch.eye(3)).abs().max() < _NEAR:
            raise ValueError(f"{name}: matrices must be [{n}, 3, 3] orthogonal, got {list(matrices.shape)}")
    found = Group(name, table=table, matrices=matrices)
    if matrices is not None:
        check_homomorphism(found, lambda element: element.matrix, name="matrices")
    return found


def generated(matrices: Tensor, name: str = "generated") -> Group:
    """The finite group of all products of some orthogonal matrices: cyclic, dihedral, any point group.

    Args:
        matrices: [m, 3, 3] orthogonal.
        name: for messages.

    Raises:
        ValueError: matrices that are not orthogonal, or more than 256 products.

    Example:
        >>> generated(-torch.eye(3)[None], "C_i").order
        2
    """
    matrices = torch.as_tensor(matrices).double()
    one = torch.eye(3, dtype=torch.float64)
    if matrices.dim() != 3 or matrices.shape[1:] != (3, 3) or not ((matrices @ matrices.mT - one).abs() < _NEAR).all():
        raise ValueError(f"{name}: matrices must be [m, 3, 3] orthogonal, got {list(matrices.shape)}")
    found = new = one[None]
    while len(new) and len(found) <= _LARGEST:
        tried = (new[:, None] @ matrices).flatten(0, 1)
        new = tried[:0]
        for matrix in tried:
            if not (_same(matrix, found).any() or _same(matrix, new).any()):
                new = torch.cat([new, matrix[None]])
        found = torch.cat([found, new])
    if len(found) > _LARGEST:
        raise ValueError(f"{name}: matrices must generate at most {_LARGEST} elements, got more; a turn by no whole "
                         "part of a circle never comes back")
    table = torch.stack([_same((a @ found)[:, None], found).int().argmax(1) for a in found])
    whole = found.round()
    return finite(table, torch.where((found - whole).abs() < _NEAR, whole, found), name)


def _same(a: Tensor, b: Tensor) -> Tensor:
    """Whether matrices [..., 3, 3] are the same but for rounding."""
    return ((a - b).abs() < _NEAR).flatten(-2).all(-1)


def check_homomorphism(group: Group, function: Callable[[Element], Tensor], *, name: str = "representation",
                       generator: torch.Generator | None = None, sizes: Sequence[int] | None = None,
                       side: int = 4, draws: int = 8) -> None:
    """Raises ValueError unless a function of elements is a representation: rho(e) = 1, rho(a b) = rho(a) rho(b).

    Args:
        group: whose elements these are.
        function: of G elements, to [G, d, d] matrices.
        name: of the function, for the message.
        generator, sizes, side: as `Group.sample`'s; by default seed 0, graphs of four nodes.
        draws: random pairs that are tried; of a finite group with at most 64 elements all pairs are.
    """
    if group.order is not None and group.order <= 64:
        a, b = (group.elements() for _ in range(2))
        pairs = torch.cartesian_prod(a.number, b.number).T
        a, b = (Element(group._matrix(n, None), number=n) for n in pairs)
    else:
        generator = generator or torch.Generator().manual_seed(0)
        if group.nodes == 0 and sizes is None:
            sizes = [4] * draws
        a, b = (group.sample(draws, generator, sizes=sizes, side=side) for _ in range(2))
    one = group.identity(sizes=None if group.nodes is None else [group.nodes or sizes[0]])
    found = {"a": function(a), "b": function(b), "ab": function(group.compose(a, b)), "e": function(one)}
    d = found["e"].shape[-1] if found["e"].dim() == 3 else 0
    if any(x.dim() != 3 or tuple(x.shape[1:]) != (d, d) for x in found.values()):
        raise ValueError(f"{name}: the representation must give [G, d, d] matrices for G elements, got "
                         f"{list(found['a'].shape)}")
    most = math.sqrt(torch.finfo(found["a"].dtype).eps) * d
    wrong = {"rho(e) - 1": found["e"] - torch.eye(d).to(found["e"]),
             "rho(a b) - rho(a) rho(b)": found["ab"] - found["a"] @ found["b"]}
    for what, difference in wrong.items():
        if not difference.abs().max() < most:
            raise ValueError(f"{name}: the representation must be a homomorphism of {group.name}, got {what} of size "
                             f"{difference.abs().max():.2g}; act on the left: rho(a b) does b, then a")


def product(one: Group, two: Group) -> Group:
    """The direct product: pairs of elements, each acting on its own.

    Of two finite groups, elements number n_two a + b; they act through given matrices alone, as nothing says how both
    would act on space.

    Raises:
        ValueError: both act on the same thing.
    """
    name = f"{one.name} x {two.name}"
    factors = (one.factors or (one,)) + (two.factors or (two,))
    if one.order is not None and two.order is not None:
        n, m = one.order, two.order
        table = (one.table[:, None, :, None] * m + two.table[None, :, None, :]).reshape(n * m, n * m)
        return replace(finite(table, name=name), factors=factors)
    parts = ("rotations", "translations", "nodes", "table", "matrices", "cells")
    empty = {"rotations": "", "translations": False, "nodes": None, "table": None, "matrices": None, "cells": False}
    mine, theirs = ({part for part in parts if getattr(g, part) != empty[part]} for g in (one, two))
    space = {"rotations", "translations", "matrices"}
    if mine & theirs or mine & space and theirs & space:
        both = "space" if mine & space and theirs & space else "nodes or images"
        raise ValueError(f"{name}: groups of a product must act on different things, as in E(3) x S_n, got two that "
                         f"act on {both}")
    return replace(one, name=name, factors=factors, **{part: getattr(two, part) for part in theirs})


def _turn_about_z(n: int) -> Tensor:
    return torch.matrix_exp(2 * math.pi / n * generators(1)[2])


_MIRROR = torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))  # holds x and z


@functools.cache
def group(name: str) -> Group:
    """A group by its name.

    Args:
        name: "SO(3)", "O(3)", "SE(3)", "E(3)"; "T(3)", translations; "S_n", permutations of the nodes of every graph,
            or "S_5" of five; "C_4", quarter turns about z, and "D_4", those with the mirrors that hold z (other numbers
            than 4 too); "p4" and "p4m", C_4 and D_4 with rolls of square periodic images; products such as
            "E(3) x S_n". Parentheses and underscores may be left out.

    Raises:
        ValueError: an unknown name, or a product of groups that act on the same thing.

    Example:
        >>> group("D_4").order, group("E(3) x S_n").directions[:3]
        (8, ('turn x', 'turn y', 'turn z'))
    """
    factors = [text.strip() for text in re.split(r"\s+[x*×]\s+", name)]
    if len(factors) > 1:
        return functools.reduce(product, [group(text) for text in factors])
    short = re.sub(r"[()_]", "", name.strip())
    if short in ("SO3", "O3", "SE3", "E3", "T3"):
        rotations = {"SO3": "SO(3)", "SE3": "SO(3)", "O3": "O(3)", "E3": "O(3)", "T3": ""}[short]
        return Group(f"{short[:-1]}(3)", rotations, translations="E" in short or short == "T3")
    if found := re.fullmatch(r"S(n|[1-9]\d*)", short):
        return Group(f"S_{found[1]}", nodes=0 if found[1] == "n" else int(found[1]))
    if short in ("p4", "p4m"):
        return replace(group("D_4" if short == "p4m" else "C_4"), name=short, cells=True)
    if (found := re.fullmatch(r"([CD])([1-9]\d*)", short)) and int(found[2]) <= _LARGEST // 2:
        turn = _turn_about_z(int(found[2]))
        matrices = torch.stack([turn, _MIRROR] if found[1] == "D" else [turn])
        return generated(matrices, f"{found[1]}_{found[2]}")
    raise ValueError(f"group: name must be one of {', '.join(NAMES)} or the like, got {name!r}")
