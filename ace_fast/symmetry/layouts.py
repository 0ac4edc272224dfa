"""How arrays transform: what a group's elements do to irreps, vectors, positions, nodes and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from e3nn import o3
from torch import Tensor

from .groups import Element, Group, check_homomorphism
from .matrices import generators, wigner

KINDS = ("scalar", "irreps", "vector", "position", "index", "image", "matrices")
_VECTOR, _SCALAR = o3.Irrep("1o"), o3.Irrep("0e")
_WORDS = '"scalar", "vector", "position", "index", "image" or irreps such as "8x0e + 8x1o"'


@dataclass(frozen=True, eq=False)
class Layout:
    """How an array transforms; `layout`, `irreps`, `vectors`, `image` and `given` make them.

    Attributes:
        kind: "scalar", no change but the nodes' order; "irreps"; "vector" [..., 3, ...]; "position", which translations
            move too; "index", numbers of nodes; "image" [..., H, W]; "matrices", as a function of the element says.
        irreps: of the axis `dim`, for "irreps".
        order: "mul_ir", e3nn's, or "ir_mul".
        dim: the axis that turns act on.
        nodes: axes that run over the nodes, which permutations act on: (0,) where axis 0 holds those of all graphs, one
            after the other; (1,) or (1, 2) where axis 0 runs over graphs of equal size.
        regular: of images of D_4 or p4m, the axis of the group's elements.
        matrices: element -> [G, d, d], on blocks of d of the axis `dim`.
    """

    kind: str
    irreps: o3.Irreps | None = None
    order: str = "mul_ir"
    dim: int = -1
    nodes: tuple[int, ...] = ()
    regular: int | None = None
    matrices: Callable[[Element], Tensor] | None = None

    def __repr__(self) -> str:
        axes = {"dim": (self.dim, -1), "nodes": (self.nodes, ()), "order": (self.order, "mul_ir"),
                "regular": (self.regular, None)}
        more = "".join(f", {name}={value}" for name, (value, usual) in axes.items() if value != usual)
        return f"Layout({self.shown}{more})"

    @property
    def shown(self) -> str:
        """In a word, or its irreps."""
        return str(self.irreps) if self.kind == "irreps" else self.kind

    def over(self, *nodes: int) -> Layout:
        """The same with these axes running over the nodes."""
        return replace(self, nodes=nodes)


def layout(text: str | o3.Irreps | Layout) -> Layout:
    """A layout from a word or irreps (last axis, e3nn's order), or itself.

    Raises:
        ValueError: neither.

    Example:
        >>> layout("8x0e + 8x1o"), layout("position")
        (Layout(8x0e+8x1o), Layout(position))
    """
    if isinstance(text, Layout):
        return text
    if text in ("scalar", "vector", "position", "index", "image"):
        return Layout(text, dim=-1)
    try:
        return irreps(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"layout: a layout must be {_WORDS}, got {text!r}") from error


def irreps(of: str | o3.Irreps, order: str = "mul_ir", dim: int = -1) -> Layout:
    """Irreps along an axis, channel-major ("mul_ir", e3nn's) or component-major ("ir_mul")."""
    if order not in ("mul_ir", "ir_mul"):
        raise ValueError(f"irreps: order must be 'mul_ir' or 'ir_mul', got {order!r}")
    return Layout("irreps", o3.Irreps(of), order, dim)


def vectors(dim: int = -1, *, position: bool = False) -> Layout:
    """Vectors with x, y and z along an axis: [..., 3], or vector neurons [B, C, 3, N] with dim=2."""
    return Layout("position" if position else "vector", dim=dim)


def image(regular: int | None = None) -> Layout:
    """Square images [..., H, W]; of a group convolution with the axis of the group's elements."""
    return Layout("image", regular=regular)


def given(group: Group, matrices: Callable[[Element], Tensor], dim: int = -1) -> Layout:
    """What a function of the element says, checked to be a homomorphism.

    Args:
        group: whose elements it takes.
        matrices: `Element` of G -> [G, d, d].
        dim: the axis, of any multiple of d numbers: blocks of d turn alike.

    Raises:
        ValueError: it is none.
    """
    check_homomorphism(group, matrices)
    return Layout("matrices", dim=dim, matrices=matrices)


def check(group: Group, own: Layout, what: str = "layout") -> None:
    """Raises ValueError where a group cannot act on a layout."""
    space = group.rotations or group.translations or group.matrices is not None
    if own.kind in ("irreps", "vector", "position") and group.table is not None and not space:
        raise ValueError(f"{what}: {own} must be given by matrices under {group.name}, whose action on space is not "
                         "known, got none; use given(group, function)")
    if own.kind == "image":
        whole = group.matrices is not None and _on_pixels(group.matrices)
        if group.rotations or group.translations or group.matrices is not None and not whole:
            raise ValueError(f"{what}: an image must have a group of quarter turns, mirrors and rolls (C_1, C_2, C_4, "
                             f"D_1, D_2, D_4, p4, p4m), got {group.name}; its elements do not map pixels on pixels")
        if own.regular is not None and group.table is None:
            raise ValueError(f"{what}: an image with an axis of group elements must have a finite group, got "
                             f"{group.name}")


def _on_pixels(matrices: Tensor) -> bool:
    return bool((matrices[:, :2, :2] == matrices[:, :2, :2].round()).all() and (matrices[:, 2, :2] == 0).all())


def act(group: Group, element: Element, x: Tensor, own: Layout, owner: Tensor | None = None) -> Tensor:
    """x under the elements of a group.

    Args:
        group, element: G elements.
        x: of the layout.
        own: the layout.
        owner: [rows of axis 0] int64, which of the G elements each row takes; None: the only one, or row g the g-th.

    Returns:
        As x, its dtype and device; differentiable in x and in the element's parts.

    Raises:
        ValueError: the group cannot act on the layout, or shapes do not fit.

    Example:
        >>> g = group("SO(3)")
        >>> act(g, g.sample(), torch.randn(5, 3), layout("vector")).shape
        torch.Size([5, 3])
    """
    check(group, own)
    if own.kind == "index":
        return x if element.permutation is None else element.permutation.to(x.device)[x]
    if own.kind in ("irreps", "vector", "position", "matrices"):
        x = _turn(element, x, own, owner)
    elif own.kind == "image":
        x = _move_pixels(group, element, x, own, owner)
    return x if element.permutation is None else _permute(element.permutation.to(x.device), x, own)


def _rows(parts: Tensor, x: Tensor, owner: Tensor | None) -> Tensor:
    """A part of the element for every row of x: [1 or rows, ...], of x's dtype and device."""
    parts = parts.to(x)
    if len(parts) == 1:
        return parts
    if owner is not None:
        return parts[owner.to(x.device)]
    if len(parts) != len(x):
        raise ValueError(f"act: axis 0 must have {len(parts)} rows, one an element, got {list(x.shape)}; pass owner")
    return parts


def _turn(element: Element, x: Tensor, own: Layout, owner: Tensor | None) -> Tensor:
    if x.dim() == 1:
        return _turn(element, x[None], own, None)[0]
    x = x.movedim(own.dim, -1)
    if own.kind == "matrices":
        x = _mapped(x, own, lambda _: own.matrices(element), owner)
    elif element.matrix is not None:
        x = _mapped(x, own, lambda irrep: wigner(irrep, element.matrix), owner)
    if own.kind == "position" and element.shift is not None:
        shift = _rows(element.shift, x, owner)
        x = x + shift.reshape(len(shift), *[1] * (x.dim() - 2), 3)
    return x.movedim(-1, own.dim)


def _mapped(x: Tensor, own: Layout, matrix_of: Callable[[o3.Irrep], Tensor], owner: Tensor | None = None,
            still: Callable[[Tensor], Tensor] = lambda part: part) -> Tensor:
    """x [rows, ..., last] with each irrep of the last axis under its matrices [G, d, d]; 0e as `still` leaves them."""
    if own.kind == "matrices":
        return _under(matrix_of(_VECTOR), x, owner, "mul_ir")
    if own.kind != "irreps":
        if x.shape[-1] != 3:
            raise ValueError(f"act: axis {own.dim} must have 3 numbers for {own}, got {x.shape[-1]}")
        return _under(matrix_of(_VECTOR), x, owner, "mul_ir")
    if x.shape[-1] != own.irreps.dim:
        raise ValueError(f"act: axis {own.dim} must have {own.irreps.dim} numbers for {own}, got {x.shape[-1]}")
    parts = [still(x[..., place]) if ir == _SCALAR else _under(matrix_of(ir), x[..., place], owner, own.order)
             for (_, ir), place in zip(own.irreps, own.irreps.slices(), strict=True)]
    return torch.cat(parts, -1) if parts else x


def _under(matrix: Tensor, x: Tensor, owner: Tensor | None, order: str) -> Tensor:
    """x [rows, ..., mul d] with each of the mul blocks under [G, d, d]."""
    d = matrix.shape[-1]
    if x.shape[-1] % d:
        raise ValueError(f"act: the last axis must be a multiple of the matrices' {d}, got {x.shape[-1]}")
    matrix = _rows(matrix, x, owner)
    matrix = matrix.reshape(len(matrix), *[1] * (x.dim() - 2), d, d)
    if order == "mul_ir":
        return (x.unflatten(-1, (-1, d)) @ matrix.mT).flatten(-2)
    return (matrix @ x.unflatten(-1, (d, -1))).flatten(-2)


def _permute(permutation: Tensor, x: Tensor, own: Layout) -> Tensor:
    """x with node i's entries at permutation[i]."""
    for axis in own.nodes:
        axis, n = axis % x.dim(), x.shape[axis]
        if len(permutation) not in ((n,) if axis == 0 else (n, n * len(x))):
            raise ValueError(f"act: axis {axis} must run over the {len(permutation)} nodes, got {list(x.shape)}")
        if axis == 0:
            x = torch.empty_like(x).index_copy(0, permutation, x)
        elif n:
            back = (permutation.view(-1, n) % n).argsort(1)  # [B, n]; graphs of equal size begin at multiples of n
            x = _take(back, x, axis)
    return x


def _move_pixels(group: Group, element: Element, x: Tensor, own: Layout, owner: Tensor | None) -> Tensor:
    """Images turned about their middle, mirrored and rolled: pixel p of the result is that which p came from."""
    h, w = x.shape[-2:]
    turns = element.matrix is not None
    if turns and h != w:
        raise ValueError(f"act: an image must be square under {group.name}, got {h} x {w}")
    if own.regular is not None:
        places = group.table[element.number].argsort(1)  # [G, n]: what element h of the result was
        x = _take(_rows(places, x.new_empty(len(x), dtype=torch.int64), owner), x, own.regular)
    if not turns and element.cell is None:
        return x
    if element.cell is None:
        cell = torch.zeros(len(element.number), 2, dtype=torch.int64)
    else:
        cell = element.cell
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    grid = torch.stack([rows, columns], -1).reshape(-1, 2) - cell[:, None]  # [G, HW, 2], rolled back
    if turns:
        plane = element.matrix[:, :2, :2].round().long()
        twice = 2 * grid - (h - 1)  # from the middle, in halves of a pixel
        grid = (twice @ plane + (h - 1)) // 2  # rows times the matrix: its inverse on columns
    source = (grid[..., 0] % h) * w + grid[..., 1] % w  # [G, HW]
    return _take(_rows(source, x.new_empty(len(x), dtype=torch.int64), owner), x.flatten(-2), -1).unflatten(-1, (h, w))


def _take(index: Tensor, x: Tensor, axis: int) -> Tensor:
    """x [rows, ...] along an axis at index [1 or rows, n]."""
    axis %= x.dim()
    return x.take_along_dim(index.view(len(index), *[1] * (axis - 1), -1, *[1] * (x.dim() - axis - 1)), axis)


def directions(group: Group, x: Tensor, own: Layout) -> Tensor:
    """The derivative of x under each of `group.directions`, at the identity: [A, *x.shape].

    Raises:
        ValueError: as `act`.
    """
    check(group, own)
    found = [torch.zeros_like(x) for _ in group.directions]
    for name, one in zip(group.directions, found, strict=True):
        kind, axis = name.split()[0], "xyz".index(name[-1])
        if kind == "shift":
            if own.kind == "position":
                one.select(own.dim, axis).fill_(1.0)
        elif own.kind == "matrices":
            step = 1e-4  # central differences of the given function
            ahead, back = (own.matrices(group.near(name, sign * step)) for sign in (1, -1))
            one.copy_(_changed(x, own, lambda _, change=(ahead - back) / (2 * step): change))
        elif own.kind in ("irreps", "vector", "position"):
            one.copy_(_changed(x, own, lambda irrep, axis=axis: generators(irrep.l)[axis][None]))
    return torch.stack(found) if found else x.new_empty(0, *x.shape)


def _changed(x: Tensor, own: Layout, matrix_of: Callable[[o3.Irrep], Tensor]) -> Tensor:
    return _mapped(x.movedim(own.dim, -1), own, matrix_of, still=torch.zeros_like).movedim(-1, own.dim)
