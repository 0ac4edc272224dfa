"""Projections of linear maps between irreps onto the maps that commute with a group."""

import functools
import math

import torch
from e3nn import o3
from torch import Tensor

from ..symmetry.matrices import generators

GROUPS = ("O3", "SO3", "O2x", "O2y", "O2z", "SO2x", "SO2y", "SO2z")


def check_groups(groups: tuple[str, ...], owner: str) -> None:
    """Raises ValueError unless these are different groups of GROUPS, one or more."""
    if not groups or any(g not in GROUPS for g in groups) or len(set(groups)) < len(groups):
        raise ValueError(f"{owner}: groups must be different ones of {', '.join(GROUPS)}, got "
                         f"{', '.join(map(str, groups)) or 'none'}")


def _about(irrep: o3.Irrep, axis: int, turns: int, mirrors: bool) -> Tensor:
    """[n, 2l + 1, 2l + 1]: an irrep's matrices of `turns` equal turns about an axis, then those times a mirror."""
    angles = torch.arange(turns, dtype=torch.float64) * (2 * math.pi / turns)
    found = torch.matrix_exp(angles[:, None, None] * generators(irrep.l)[axis])
    if not mirrors:
        return found
    # the mirror holds the axis: half a turn about a direction across it, and the inversion
    return torch.cat([found, found @ (irrep.p * torch.matrix_exp(math.pi * generators(irrep.l)[axis - 1]))])


@functools.cache
def projector(out: o3.Irrep, into: o3.Irrep, group: str) -> Tensor:
    r"""The orthogonal projector onto maps between two irreps that commute with a group.

    .. math:: P(M) = \int D_{out}(g)\, M\, D_{in}(g)^{-1}\, dg

    Args:
        out, into: of the map M [2 l_out + 1, 2 l_in + 1].
        group: "O3", "SO3", or turns about an axis: "SO2x", "SO2y", "SO2z"; with the mirrors that hold the axis, "O2x",
            "O2y", "O2z".

    Returns:
        [d, d] float64, d = (2 l_out + 1)(2 l_in + 1), for M flattened row by row. For O(3) and SO(3) that is the mean
        of the diagonal where the irreps are the same, zero elsewhere (Schur).

    Raises:
        ValueError: an unknown group.
    """
    if group not in GROUPS:
        raise ValueError(f"projector: group must be one of {', '.join(GROUPS)}, got {group!r}")
    size = out.dim * into.dim
    if group in ("O3", "SO3"):
        if out.l != into.l or group == "O3" and out.p != into.p:
            return torch.zeros(size, size, dtype=torch.float64)
        one = torch.eye(out.dim, dtype=torch.float64).flatten()
        return torch.outer(one, one) / out.dim
    # products of matrix elements are trigonometric polynomials of the angle, of degree l_out + l_in: exact
    turns = out.l + into.l + 1
    left, right = (_about(ir, "xyz".index(group[-1]), turns, group.startswith("O")) for ir in (out, into))
    return torch.einsum("gij,gkl->ikjl", left, right).reshape(size, size) / left.shape[0]


def equivariant_part(matrix: Tensor, irreps_out: o3.Irreps, irreps_in: o3.Irreps, group: str = "O3") -> Tensor:
    r"""P(M), the equivariant map nearest to M in the Frobenius norm: `projector` on every pair of irreps.

    Args:
        matrix: [O, I], features in e3nn's mul_ir layout.
        irreps_out, irreps_in: of dimensions O and I.
        group: one of GROUPS; to "SO3" and "SO2x" parities mean nothing.

    Returns:
        [O, I]. Linear in M, derivatives of any order.

    Raises:
        ValueError: a matrix of another shape, an unknown group.

    Source: methods of soft equivariance (Kim et al. 2023), for irreps.

    Example:
        >>> equivariant_part(torch.tensor([[1.0, 5, 0], [0, 2, 0], [0, 0, 3]]), "1x1o", "1x1o").diagonal()
        tensor([2., 2., 2.])
    """
    irreps_out, irreps_in = o3.Irreps(irreps_out), o3.Irreps(irreps_in)
    check_groups((group,), "equivariant_part")
    if matrix.dim() != 2 or tuple(matrix.shape) != (irreps_out.dim, irreps_in.dim):
        raise ValueError(f"equivariant_part: matrix must be [{irreps_out.dim}, {irreps_in.dim}] for {irreps_out} and "
                         f"{irreps_in}, got {list(matrix.shape)}")
    found = torch.zeros_like(matrix)
    for (w, out), rows in zip(irreps_out, irreps_out.slices(), strict=True):
        for (u, own), columns in zip(irreps_in, irreps_in.slices(), strict=True):
            blocks = matrix[rows, columns].reshape(w, out.dim, u, own.dim).transpose(1, 2)  # [w, u, out, in]
            kept = blocks.flatten(2) @ projector(out, own, group).to(matrix)
            found[rows, columns] = kept.view(w, u, out.dim, own.dim).transpose(1, 2).reshape(w * out.dim, u * own.dim)
    return found


def equivariant_share(matrix: Tensor, irreps_out: o3.Irreps, irreps_in: o3.Irreps, group: str = "O3") -> Tensor:
    r"""[] :math:`\|P(M)\|^2 / \|M\|^2`, from 0 (breaks the symmetry) to 1 (keeps it); NaN for a matrix of zeros."""
    part = equivariant_part(matrix, irreps_out, irreps_in, group)
    return part.square().sum() / matrix.square().sum()
