"""The part of a dense map that commutes with rotations: the projector on equivariant maps, in closed form."""

import torch
from e3nn import o3
from torch import Tensor

GROUPS = ("O3", "SO3")


def equivariant_part(matrix: Tensor, irreps_out: o3.Irreps, irreps_in: o3.Irreps, group: str = "O3") -> Tensor:
    r"""P(M), the equivariant map nearest to M in the Frobenius norm.

    .. math:: P(M) = \int \rho_{out}(g)^{-1} M \rho_{in}(g)\, dg, \qquad
              P(M)_{[w, u]} = \frac{\mathrm{tr}\, M_{[w, u]}}{2l + 1}\, I

    for the block of channel u of the input and w of the output where their irreps are the same, and 0 where they differ
    (Schur's lemma).

    Args:
        matrix: [O, I], features in e3nn's mul_ir layout.
        irreps_out, irreps_in: of dimensions O and I.
        group: "O3", or "SO3", to which parities mean nothing.

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
    if group not in GROUPS:
        raise ValueError(f"equivariant_part: group must be one of {list(GROUPS)}, got {group!r}")
    if matrix.dim() != 2 or tuple(matrix.shape) != (irreps_out.dim, irreps_in.dim):
        raise ValueError(f"equivariant_part: matrix must be [{irreps_out.dim}, {irreps_in.dim}] for {irreps_out} and "
                         f"{irreps_in}, got {list(matrix.shape)}")
    found = torch.zeros_like(matrix)
    for (w, out), rows in zip(irreps_out, irreps_out.slices(), strict=True):
        for (u, own), columns in zip(irreps_in, irreps_in.slices(), strict=True):
            if out.l != own.l or (group == "O3" and out.p != own.p):
                continue
            blocks = matrix[rows, columns].reshape(w, out.dim, u, out.dim)
            mean = blocks.diagonal(dim1=1, dim2=3).mean(-1)  # [w, u]
            one = torch.eye(out.dim, dtype=matrix.dtype, device=matrix.device)
            found[rows, columns] = torch.kron(mean, one)
    return found


def equivariant_share(matrix: Tensor, irreps_out: o3.Irreps, irreps_in: o3.Irreps, group: str = "O3") -> Tensor:
    r"""[] :math:`\|P(M)\|^2 / \|M\|^2`, from 0 (breaks the symmetry) to 1 (keeps it); NaN for a matrix of zeros."""
    part = equivariant_part(matrix, irreps_out, irreps_in, group)
    return part.square().sum() / matrix.square().sum()
