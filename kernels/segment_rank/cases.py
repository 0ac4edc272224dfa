"""Inputs of segment_rank and of rank_concat with its adjoint; small scores lie on a grid, with ties in every dtype."""

import torch

from ..cases import DECADES, Axis, Case
from . import reference
from .op import rank_concat_bwd, rank_concat_op, segment_rank_op


def _ptr(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def _rank(name: str, note: str, sizes: list[int], draws: int = 1, grid: int = 2, tolerance: float = 0.0,
          random: bool = False, change=None) -> Case:
    def make(g: torch.Generator) -> dict:
        n = sum(sizes)
        score = (torch.randn(n, generator=g, dtype=torch.float64) if random
                 else torch.randint(-grid, grid + 1, (n,), generator=g).double() / 8)
        if change is not None:
            change(score)
        seed = torch.randint(-(2**62), 2**62, (draws,), generator=g)
        return {"score": score, "ptr": _ptr(sizes), "seed": seed, "longest": max(sizes, default=0),
                "tolerance": tolerance}

    return Case(name, segment_rank_op, reference.forward, make, (), note)


def _concat(name: str, note: str, sizes: list[int], features: int, channels: int, rows: int,
            draws: int = 1) -> list[Case]:
    def make(adjoint: bool):
        def inputs(g: torch.Generator) -> dict:
            ptr, n = _ptr(sizes), sum(sizes)
            score = torch.randint(0, 3, (n,), generator=g).double()
            rank, order = reference.forward(score, ptr, torch.arange(draws), max(sizes, default=0), 0.0)
            indices = {"rank": rank, "order": order, "ptr": ptr}
            if adjoint:
                return {"g": torch.randn(draws, n, channels, generator=g, dtype=torch.float64), **indices, "rows": rows}
            x, table = (torch.randn(size, generator=g, dtype=torch.float64)
                        for size in ((n, features), (rows, channels)))
            return {"x": x, "table": table, **indices}

        return inputs

    return [Case(name, rank_concat_op, reference.concat, make(False), ("x", "table"), note),
            Case(name, rank_concat_bwd, reference.concat_backward, make(True), ("g",), note)]


def _special(score: torch.Tensor) -> None:
    """Some of every kind of number that orders unlike its bits; tests/test_segment_rank.py has NaN too."""
    values = (torch.inf, -torch.inf, -0.0, 0.0, torch.inf, -torch.inf)
    score[:: 2][: len(values)] = torch.tensor(values, dtype=score.dtype)


SMALL = [
    _rank("tiny", "two segments, one of them tied", [2, 3], grid=1),
    _rank("odd", "no size is a power of two, three draws, an empty segment", [13, 0, 7, 1], 3),
    _rank("both_branches", "a short and a long segment", [5, 91], 2, grid=3),
    _rank("long_sum", "one long segment, all tied", [150], grid=0),
    _rank("empty", "no nodes", []),
    _rank("tolerance", "steps of an eighth are ties, of a quarter are none", [20, 9], 2, 4, 0.125),
    _rank("special", "infinities and zeros of both signs", [17, 40], grid=1, change=_special),
    _rank("special_long", "the same in a long segment", [70], grid=1, change=_special),
    _rank("distinct", "no ties", [33], change=lambda s: s.copy_(torch.arange(len(s)).flip(0))),
    *_concat("tiny", "two segments", [2, 1], 2, 3, 2),
    *_concat("odd", "no size is a power of two, two draws, ranks that nobody has", [5, 0, 11], 7, 13, 14, 2),
    *_concat("both_branches", "several blocks of channels", [9, 3], 3, 131, 9),
    *_concat("long_sum", "many segments, so that a rank's sum has two stages", [1, 2] * 150, 0, 3, 2),
    *_concat("empty", "no nodes", [], 4, 5, 3),
]
LARGE = [
    _rank("graphs_1000x20", "1000 graphs of 20 nodes, random scores", [20] * 1000, random=True),
    _rank("tied_1000x20", "the same, all tied", [20] * 1000, grid=0),
    _rank("nodes_1000000", "one segment, random scores", [1_000_000], random=True),
    _rank("tied_1000000", "one segment, all tied", [1_000_000], grid=0),
    *_concat("graphs_1000x20", "1000 graphs of 20 nodes, 64 features beside 16", [20] * 1000, 64, 16, 20),
]

SCALING = [
    Axis("points", DECADES[:-1], lambda n: _rank(f"points_{n}", "one segment, random scores", [n], random=True)),
    Axis("channels", (16, 64, 256, 1024), lambda c: _concat(
        f"channels_{c}", "1000 graphs of 20 nodes", [20] * 1000, 0, c, 20)[0]),
]
