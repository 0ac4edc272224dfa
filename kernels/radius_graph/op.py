"""radius_graph: schema, checks and fake. How many edges there are depends on values; they have no derivative."""

import math
import numbers
from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_tensors, define, fail
from . import problems, reference, triton_kernels

_OP = "radius_graph"
_ATOMS = 1 << 30  # a source in its graph has 30 bits of an edge's key
_native = torch.ops.ace_fast_native


def _cpu(pos: Tensor, batch: Tensor, cell, pbc, r: float, loop: bool, most: int | None) -> tuple[Tensor, Tensor]:
    edge_index, shifts, found = _native.radius_graph(pos, batch, cell, pbc, r, loop, -1 if most is None else most)
    problems.report(found.tolist(), pos, batch, cell, r)
    return edge_index, shifts


BACKENDS = {"reference": reference, "cpu": SimpleNamespace(forward=_cpu), "triton": triton_kernels}


def _check_numbers(r: float, most: int | None) -> None:
    if not 0 < r < math.inf:
        fail(_OP, "r", "positive and finite", r)
    if most is not None and most < 1:
        fail(_OP, "max_num_neighbors", "1 or more, or None for all", most)


def _check(pos: Tensor, batch: Tensor, cell: Tensor | None, pbc: Tensor | None, r: float, most: int | None) -> None:
    if pos.dtype not in (torch.float32, torch.float64):
        fail(_OP, "pos", "float32 or float64", pos.dtype, "cast it with .float()")
    if pos.dim() != 2 or pos.shape[1] != 3:
        fail(_OP, "pos", "[N, 3]", list(pos.shape))
    if pos.shape[0] >= _ATOMS:
        fail(_OP, "pos", "of fewer than 2^30 atoms", pos.shape[0], "take the graphs in parts")
    if batch.dtype != torch.int64 or batch.dim() != 1 or batch.device != pos.device:
        fail(_OP, "batch", f"int64 [N] on {pos.device}", f"{batch.dtype} {list(batch.shape)} on {batch.device}")
    if batch.shape[0] != pos.shape[0]:
        fail(_OP, "batch", f"[{pos.shape[0]}] like the rows of pos", list(batch.shape))
    check_tensors(_OP, pos, cell=cell)
    if (cell is None) != (pbc is None):
        fail(_OP, "cell", "given together with pbc", "one of them", "leave both out for open systems")
    if cell is not None:
        if cell.dim() != 3 or cell.shape[1:] != (3, 3):
            fail(_OP, "cell", "[3, 3] or [B, 3, 3], rows are lattice vectors", list(cell.shape))
        if cell.shape[0] == 0 and pos.shape[0] != 0:
            fail(_OP, "cell", "[3, 3], or one for each graph", list(cell.shape))
        if pbc.dtype != torch.bool or pbc.device != pos.device or pbc.shape != cell.shape[:2]:
            fail(_OP, "pbc", f"bool [3] or [{cell.shape[0]}, 3] on {pos.device}",
                 f"{pbc.dtype} {list(pbc.shape)} on {pbc.device}")
    _check_numbers(r, most)


@torch._disable_dynamo  # what custom_op does: behind a break of the graph, dynamo would trace into the implementation
def _forward(pos, batch, cell, pbc, r, loop, most, backend):
    _check(pos, batch, cell, pbc, r, most)
    return torch._disable_dynamo(pick(_OP, BACKENDS, backend, pos).forward)


def _fake(pos, batch, cell, pbc, r, loop, most, backend):
    _check(pos, batch, cell, pbc, r, most)
    edges = torch.library.get_ctx().new_dynamic_size()
    rows = 0 if cell is None else edges
    return pos.new_empty((2, edges), dtype=torch.int64), pos.new_empty((rows, 3), dtype=torch.int32)


radius_graph_op = define(
    f"{_OP}(Tensor pos, Tensor batch, Tensor? cell, Tensor? pbc, float r, bool loop, int? max_num_neighbors, "
    "str backend) -> (Tensor, Tensor)", _forward, _fake, tags=(torch.Tag.dynamic_output_shape,))


def _batch_of(ptr: Tensor, rows: int, device: torch.device) -> Tensor:
    """[N] of the graphs that own the rows ptr[b] to ptr[b + 1] - 1; reads ptr from the device once."""
    if ptr.dtype != torch.int64 or ptr.dim() != 1 or ptr.shape[0] < 1 or ptr.device != device:
        fail(_OP, "ptr", f"int64 [B + 1] on {device}", f"{ptr.dtype} {list(ptr.shape)} on {ptr.device}",
             "no graphs are ptr = [0]")
    sizes = ptr.diff()
    first, last, least = torch.stack([ptr[0], ptr[-1], sizes.min() if len(sizes) else ptr[0]]).tolist()
    if first != 0 or last != rows:
        fail(_OP, "ptr", f"0 at its start and {rows}, the rows of pos, at its end", f"{first} and {last}",
             "ptr[b] is the first row of graph b")
    if least < 0:
        fail(_OP, "ptr", "in ascending order", f"a step of {least}", "sort the rows of pos by graph")
    return torch.repeat_interleave(sizes, output_size=rows)


def _lattice(pos: Tensor, cell, pbc) -> tuple[Tensor | None, Tensor | None]:
    """cell [B, 3, 3] and pbc bool [B, 3], or two None for open systems."""
    if cell is None:
        if pbc is not None:
            fail(_OP, "cell", "given where pbc is", None, "leave both out for open systems")
        return None, None
    if not isinstance(cell, Tensor):
        fail(_OP, "cell", "a tensor", type(cell).__name__, "use torch.as_tensor(...)")
    cell = cell.detach()
    cell = cell[None] if cell.dim() == 2 else cell
    if pbc is None:
        pbc = True
    pbc = torch.as_tensor(pbc, dtype=None if isinstance(pbc, Tensor) else torch.bool, device=pos.device)
    if pbc.dim() < 2 and pbc.shape in ((), (3,)):
        pbc = pbc.expand(cell.shape[0], 3)
    return cell, pbc


def radius_graph(
    pos: Tensor, r: float, *, batch: Tensor | None = None, ptr: Tensor | None = None, cell: Tensor | None = None,
    pbc: Tensor | bool | tuple[bool, bool, bool] | None = None, loop: bool = False,
    max_num_neighbors: int | None = None, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Edges between the atoms of each graph that are closer than `r`, across periodic boundaries too.

    .. math:: j \to i \text{ with shift } S: \quad |x_j + S\,\mathrm{cell} - x_i| < r

    How many there are depends on the values, so the call waits for the device once (twice where `ptr` is given), cannot
    be captured in a CUDA graph, and under torch.compile breaks the graph unless
    torch._dynamo.config.capture_dynamic_output_shape_ops is set. Distances are compared in float64.

    Args:
        pos: [N, 3] float32 or float64, finite, in any unit (Å); the atoms of all graphs one after the other. Periodic
            ones may lie outside of their cell.
        r: positive, in the unit of pos.
        batch: [N] int64 ascending, the graph of each atom; None for one graph.
        ptr: [B + 1] int64 in place of batch, graph b has the rows ptr[b] to ptr[b + 1] - 1.
        cell: [3, 3] for all graphs or [B, 3, 3], rows are lattice vectors, dtype of pos; None for open systems. It may
            be smaller than r. Rows of directions without period are not looked at.
        pbc: bool, which directions are periodic: one for all, [3] or [B, 3]; all where a cell is given.
        loop: whether an atom is a neighbour of itself (its images always are).
        max_num_neighbors: of each target the nearest, equal distances by source, then shift; None for all.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        edge_index [2, E] int64, row 0 source, row 1 target, sorted by target, then source, then shift. With a cell also
        shifts [E, 3] int32, see `edge_vectors`. Coincident atoms are neighbours at distance 0. No derivatives.

    Raises:
        ValueError: wrong shapes or dtypes; pos that is not finite (the first atom is named) or a million cells away
            from the origin; batch that is not sorted (the index is named); r that is not positive or above 1023 heights
            of a cell; a cell whose periodic vectors are not independent; a backend that cannot run here.

    Source: cell lists, Quentrec and Brot, J. Comput. Phys. 13, 430 (1973); conventions of torch_cluster's
        radius_graph and ase.neighborlist.neighbor_list.

    Example:
        >>> radius_graph(torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]]), 1.5)
        tensor([[1, 0],
                [0, 1]])
        >>> radius_graph(torch.zeros(1, 3), 1.1, cell=torch.eye(3), pbc=(True, False, False))[1]
        tensor([[-1,  0,  0],
                [ 1,  0,  0]], dtype=torch.int32)
    """
    for name, x in (("pos", pos), ("batch", batch), ("ptr", ptr)):
        if not isinstance(x, Tensor) and (x is not None or name == "pos"):
            fail(_OP, name, "a tensor", type(x).__name__, "use torch.as_tensor(...)")
    if isinstance(r, bool) or not isinstance(r, numbers.Real):
        fail(_OP, "r", "a number", repr(r), "pass a float")
    if max_num_neighbors is not None and (isinstance(max_num_neighbors, bool)
                                          or not hasattr(max_num_neighbors, "__index__")):
        fail(_OP, "max_num_neighbors", "a whole number, or None for all", repr(max_num_neighbors))
    pos = pos.detach()
    if pos.dim() != 2 or pos.shape[1] != 3:
        fail(_OP, "pos", "[N, 3]", list(pos.shape))
    if batch is not None and ptr is not None:
        fail(_OP, "batch", "left out where ptr is given", "both", "they say the same")
    if ptr is not None:
        batch = _batch_of(ptr, pos.shape[0], pos.device)
    elif batch is None:
        batch = pos.new_zeros(pos.shape[0], dtype=torch.int64)
    cell, pbc = _lattice(pos, cell, pbc)
    edge_index, shifts = radius_graph_op(pos, batch, cell, pbc, float(r), bool(loop), max_num_neighbors, backend)
    return edge_index if cell is None else (edge_index, shifts)
