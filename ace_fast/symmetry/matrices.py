"""Matrices and permutations that the groups are made of: random ones, generators of turns, those of irreps."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor


def random_o3(count: int, generator: torch.Generator | None = None, *, alternate: bool = False) -> Tensor:
    """[count, 3, 3] float64 orthogonal matrices of the CPU, Haar-distributed over O(3).

    With `alternate`, determinants are 1, -1, 1, ... instead of drawn: few matrices then hold turns and reflections
    alike.
    """
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64, generator=generator))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    return alternating(q) if alternate else q


def alternating(matrices: Tensor, first: int = 0) -> Tensor:
    """Orthogonal matrices [count, 3, 3], every second one negated where its determinant is not (-1)^(first + i)."""
    wanted = 1 - 2 * ((torch.arange(len(matrices)) + first) % 2)
    return matrices * (wanted * torch.linalg.det(matrices).round())[:, None, None]


def random_permutation(sizes: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """[N] int64: uniform permutations of the nodes within each graph, N the sum of `sizes`; graphs may be empty."""
    sizes = torch.as_tensor(sizes, dtype=torch.int64)
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)
    keys = torch.rand(len(owner), dtype=torch.float64, generator=generator)  # ties: none of 2^53 but by miracle
    order = keys.argsort(stable=True)
    return order[owner[order].argsort(stable=True)].argsort()


@functools.cache
def generators(l: int) -> Tensor:
    """[3, 2l + 1, 2l + 1] float64: the generators of turns about x, y and z in e3nn's basis.

    They are the one equivariant map 1 x l -> l, whose size the Casimir l (l + 1) gives; e3nn's own have the default
    dtype's digits, and here their sign.
    """
    if l == 0:
        return torch.zeros(3, 1, 1, dtype=torch.float64)
    found = o3.wigner_3j(1, l, l, dtype=torch.float64, device="cpu") * math.sqrt(l * (l + 1) * (2 * l + 1))
    return found * (found * o3.so3_generators(l).cpu()).sum().sign()


@functools.cache
def _points(l: int) -> tuple[Tensor, Tensor]:
    """Directions [n, 3] and the pseudo-inverse [2l + 1, n] of their spherical harmonics, float64."""
    with torch.device("cpu"):
        points = torch.randn(4 * l + 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(l))
        points = points / points.norm(dim=1, keepdim=True)
        return points, torch.linalg.pinv(o3.spherical_harmonics(l, points, False))


def wigner(irrep: o3.Irrep | str, matrix: Tensor) -> Tensor:
    r"""The matrices of an irrep for orthogonal matrices, differentiable, in their precision.

    .. math:: Y(R\,p) = D(R)\, Y(p)

    solved for D at fixed directions p (e3nn's `D_from_matrix` goes over angles, with six digits where the default
    dtype is float32).

    Args:
        irrep: e3nn's, "2e".
        matrix: [..., 3, 3], of O(3).

    Returns:
        [..., 2l + 1, 2l + 1], of `matrix`'s dtype and device.
    """
    irrep = o3.Irrep(irrep)
    if irrep == o3.Irrep("1o"):
        return matrix
    sign = torch.linalg.det(matrix.detach()).sign()[..., None, None]
    if irrep.l == 0:
        return sign if irrep.p == -1 else torch.ones_like(sign)
    points, inverse = (x.to(matrix) for x in _points(irrep.l))
    moved = o3.spherical_harmonics(irrep.l, points @ matrix.mT, False)  # [..., n, 2l + 1]
    found = (inverse @ moved).mT
    natural = (-1) ** irrep.l  # the parity that spherical harmonics have themselves
    return found if irrep.p == natural else sign * found
