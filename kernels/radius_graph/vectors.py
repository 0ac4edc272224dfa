"""Edge vectors from positions, cells and shifts: plain PyTorch, so that forces and stresses follow by autograd."""

import torch
from torch import Tensor

from ...graph import Graph, check_index
from ..define import fail
from ..segment_sum import gather

_OP = "edge_vectors"


def edge_vectors(
    pos: Tensor, edges: Tensor | Graph, *, shifts: Tensor | None = None, cell: Tensor | None = None,
    batch: Tensor | None = None,
) -> Tensor:
    r"""Vectors from the targets of edges to the (images of the) sources.

    .. math:: v_e = x_j + S_e\,\mathrm{cell} - x_i

    Args:
        pos: [N, 3] float32 or float64.
        edges: edge_index [2, E] int64, row 0 sources j, row 1 targets i; or an ace_fast.Graph, whose gradients are
            summed in sorted order, in parallel and deterministically on every device.
        shifts: [E, 3] whole cells, what radius_graph returns; with cell.
        cell: [3, 3], or [B, 3, 3] with batch; rows are lattice vectors, dtype of pos.
        batch: [N] int64, the graph of each atom; with cells [B, 3, 3].

    Returns:
        [E, 3] in the dtype of pos. Derivatives of any order in pos and cell; `.norm(dim=-1)` are the distances (whose
        derivative at coincident atoms torch takes as zero).

    Raises:
        ValueError: wrong shapes or dtypes; shifts without cell or the reverse; cells [B, 3, 3] without batch.

    Source: the convention of ase.neighborlist (D of "ijS", i target, j source) and of SEGNN's relative positions.

    Example:
        >>> pos, cell = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), 3 * torch.eye(3)
        >>> edges, shifts = ace_fast.functional.radius_graph(pos, 2.5, cell=cell)
        >>> edge_vectors(pos, edges, shifts=shifts, cell=cell)
        tensor([[ 1.,  0.,  0.],
                [-2.,  0.,  0.],
                [ 2.,  0.,  0.],
                [-1.,  0.,  0.]])
    """
    if not isinstance(pos, Tensor) or pos.dim() != 2 or pos.shape[1] != 3:
        fail(_OP, "pos", "[N, 3]", list(pos.shape) if isinstance(pos, Tensor) else type(pos).__name__)
    if (shifts is None) != (cell is None):
        fail(_OP, "shifts", "given together with cell", "one of them", "leave both out for open systems")
    if isinstance(edges, Graph):
        index = edges.edge_index
        vectors = gather(pos, edges.sources) - gather(pos, edges.targets)
    else:
        check_index(_OP, "edges", edges, 2, "[2, E]")
        index = edges
        vectors = pos[index[0]] - pos[index[1]]
    if shifts is None:
        return vectors
    _check_cells(index, shifts, cell, batch)
    whole = shifts.to(cell.dtype)
    if cell.dim() == 2:
        return vectors + whole @ cell
    if cell.shape[0] == 1:
        return vectors + whole @ cell[0]
    return vectors + torch.einsum("ek,ekd->ed", whole, cell[batch[index[1]]])


def _check_cells(index: Tensor, shifts: Tensor, cell: Tensor, batch: Tensor | None) -> None:
    if shifts.shape != (index.shape[1], 3):
        fail(_OP, "shifts", f"[{index.shape[1]}, 3] like the edges", list(shifts.shape))
    if cell.dim() not in (2, 3) or cell.shape[-2:] != (3, 3):
        fail(_OP, "cell", "[3, 3] or [B, 3, 3], rows are lattice vectors", list(cell.shape))
    if cell.dim() == 3 and cell.shape[0] != 1 and batch is None:
        fail(_OP, "batch", "given with a cell for each graph", None, "it is [N] int64, the graph of each atom")
