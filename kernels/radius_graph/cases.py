"""Inputs of radius_graph. Positions and cells are float32 numbers, so that every dtype has the same edges."""

import torch

from ..cases import Axis, Case
from . import reference
from .op import radius_graph_op

OPEN = (False, False, False)
SHEARED = [[3.0, 0, 0], [0.75, 2.5, 0], [-0.5, 0.625, 3.5]]


def _case(name: str, note: str, pos, r: float, sizes: list[int] | None = None, cell=None, pbc=None, loop: bool = False,
          most: int | None = None) -> Case:
    """`pos(generator)` gives [N, 3]; cell [3, 3] or [B, 3, 3] and pbc [B, 3] as lists."""
    def make(g: torch.Generator) -> dict:
        x = pos(g).float().double()
        graphs = torch.arange(len(sizes)) if sizes else torch.zeros(1, dtype=torch.int64)
        batch = graphs.repeat_interleave(torch.tensor(sizes or [len(x)]))
        cells = None if cell is None else torch.tensor(cell).view(-1, 3, 3).double()
        periodic = None if cell is None else torch.tensor(pbc or [[True] * 3] * len(cells))
        return {"pos": x, "batch": batch, "cell": cells, "pbc": periodic, "r": r, "loop": loop,
                "max_num_neighbors": most}

    return Case(name, radius_graph_op, reference.forward, make, (), note)


def _random(n: int, width: float):
    return lambda g: width * torch.rand(n, 3, generator=g, dtype=torch.float64)


def _grid(n: int, side: int = 2):
    """On a grid of eighths, so that distances tie."""
    return lambda g: torch.randint(0, 8 * side, (n, 3), generator=g).double() / 8


def _line(*places: float):
    return lambda g: torch.tensor([[x, 0.0, 0.0] for x in places], dtype=torch.float64)


SMALL = [
    _case("tiny", "two molecules of three atoms, all pairs", _random(6, 1.0), 10.0, [3, 3]),
    _case("odd", "cells of several kinds, a graph without atoms", _random(8, 4.0), 1.5, [3, 0, 5],
          [SHEARED, SHEARED, [[2.0, 0, 0], [0, 3, 1], [0, 0, 0]]],
          [[True, False, True], [True] * 3, [True, True, False]]),
    _case("both_branches", "many bins that wrap around, a graph of one bin", _random(40, 5.0), 1.6, [34, 6],
          cell=[[5.0, 0, 0], [1, 5, 0], [0, 0, 5]], pbc=[[True, False, False]]),
    _case("long_sum", "the cutoff is several cells: an atom and its images", _random(1, 1.0), 7.3,
          cell=[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]], pbc=[[True, False, False]]),
    _case("empty", "no atoms", _random(0, 1.0), 1.0),
    _case("isolated_node", "molecules of one atom, an atom too far from all, one at the cutoff",
          _line(0.0, 0.0, 1.0, 3.0, 9.0, 2.0), 2.0, [1, 4, 1]),
    _case("repeated_edge", "coincident atoms; several images of one atom", _line(0.25, 0.25, 0.75), 1.25,
          cell=[[1.0, 0, 0], [0, 8, 0], [0, 0, 8]], pbc=[[True, True, False]]),
    _case("loop", "an atom is its own neighbour", _grid(9), 1.0, [4, 5], loop=True),
    _case("capped", "ties at the cap go to the lower source", _grid(17, 1), 2.0, most=4),
    _case("capped_images", "ties at the cap between images", _line(0.0, 0.5), 1.75,
          cell=[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], pbc=[[True, True, False]], most=11, loop=True),
    _case("wrapped", "atoms many cells outside of their cell, no period in one direction",
          lambda g: 30 * torch.randn(7, 3, generator=g, dtype=torch.float64), 2.5, cell=SHEARED,
          pbc=[[True, False, True]]),
]


def _molecules(count: int) -> Case:
    """Of 3 to 29 atoms, 18 in the mean, at QM9's density: nearly all pairs are closer than 10 Å."""
    g = torch.Generator().manual_seed(count)
    sizes = (18 + 3 * torch.randn(count, generator=g)).round().clamp(3, 29).long().tolist()
    return _case(f"qm9_{count}", f"{count} molecules like QM9's, 10 Å", _random(sum(sizes), 5.5), 10.0, sizes)


def _crystal(atoms: int) -> Case:
    """As dense as a solid, 0.1 atoms an Å^3."""
    side = (10 * atoms) ** (1 / 3)
    cell = [[side, 0.0, 0.0], [0.1 * side, side, 0.0], [0.0, 0.2 * side, side]]
    return _case(f"periodic_{atoms}", f"{atoms} atoms in a periodic cell, 5 Å", _random(atoms, side), 5.0, cell=cell)


LARGE = [_molecules(256), _crystal(10_000), _molecules(4096), _crystal(100_000)]
# 52 neighbours an atom: 5e4 to 1e7 edges
SCALING = [Axis("points", (1_000, 10_000, 50_000, 200_000), _crystal)]
