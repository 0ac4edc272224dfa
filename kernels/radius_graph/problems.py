"""What may be wrong with the values given to radius_graph: each backend finds the first atom, here are the words."""

import torch
from torch import Tensor

from ..define import fail

REACH = 1023  # images in one direction that a key holds
VISITS = 1 << 30  # bins around an atom
FAR = 1 << 20  # cells from the origin: further out, wrapping loses the digits of a position
FLAT = 1e-6  # volume of a cell over the product of its edges, at least
NAMES = ("position", "order", "range", "cell", "reach", "far")  # in this order they are reported
_OP = "radius_graph"


def firsts(wrong: dict[str, Tensor]) -> Tensor:
    """int64 [6]: for each of NAMES the first atom at which wrong[name] bool [N] is set, or -1; stays on the device."""
    none = torch.full((), -1, dtype=torch.int64, device=wrong["position"].device)
    found = [torch.where(w.any(), w.to(torch.uint8).argmax(), none) if name in wrong and (w := wrong[name]).numel()
             else none for name in NAMES]
    return torch.stack(found)


def report(found: list[int], pos: Tensor, batch: Tensor, cell: Tensor | None, r: float) -> None:
    """Raises ValueError for the first problem that has an atom; `found` is what `firsts` gives, on the host."""
    for name, atom in zip(NAMES, found, strict=True):
        if atom < 0:
            continue
        graph = int(batch[atom])
        if name == "position":
            fail(_OP, "pos", "finite", f"{pos[atom].tolist()} at atom {atom}")
        if name == "order":
            fail(_OP, "batch", "sorted", f"{graph} after {int(batch[atom - 1])} at index {atom}",
                 "sort the atoms by graph")
        if name == "range":
            remedy = "" if cell is None else "give a cell for each graph, or one [3, 3] for all"
            cells = "" if cell is None else f", below {cell.shape[0]}, the number of cells"
            fail(_OP, "batch", f"0 or more{cells}", f"{graph} at index {atom}", remedy)
        rows = cell[0 if cell.shape[0] == 1 else graph].tolist()
        if name == "cell":
            fail(_OP, "cell", "of finite periodic vectors that are linearly independent", f"{rows} for graph {graph}",
                 "its rows are the vectors; directions without period are not looked at")
        if name == "reach":
            fail(_OP, "r", f"at most {REACH} times the height of a cell, for 2^30 images",
                 f"{r} for {rows} of graph {graph}", "repeat the cell, or take a smaller r")
        fail(_OP, "pos", "within a million cells of the origin", f"{pos[atom].tolist()} at atom {atom}",
             "wrap it into the cell")
