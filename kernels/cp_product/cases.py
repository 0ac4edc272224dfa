"""Inputs of cp_product and of its gradient."""

import torch

from ..cases import Axis, Case
from ..sphere_product.cases import pair
from .op import cp_product_bwd, cp_product_op
from .table import CPTable


def _table(degree: int, rank: int, weighted: bool = True):
    """Random factors: what they stand for is of no matter here."""
    g = torch.Generator().manual_seed(degree)
    draw = lambda: torch.randn((degree + 1) ** 2, rank, generator=g, dtype=torch.float64)  # noqa: E731
    return CPTable(draw(), draw(), draw()).points(weighted)


def _pair(*args, **options) -> list[Case]:
    return pair((cp_product_op, cp_product_bwd), *args, **options)


def _large(degree: int, rows: int) -> list[Case]:
    return _pair(f"l{degree}_64", f"{rows} rows, 64 channels, degree {degree}, rank 7 L^2, weights of every row",
                 _table(degree, 7 * degree**2), [(rows, 64)] * 3)


SMALL = [
    *_pair("tiny", "two rows, one channel, without weights", _table(1, 3, False), [(2, 1)] * 2),
    *_pair("odd", "lanes are rows, weights of every row", _table(2, 13), [(19, 3)] * 3),
    *_pair("both_branches", "lanes are channels, an edge's harmonics of one channel; two gradients", _table(2, 9),
           [(3, 19), (3, 1), (3, 19)], ir_mul=True, needs=[True, True, False]),
    *_pair("long_sum", "weights that all rows share: their gradients sum over them", _table(1, 5),
           [(53, 17), (53, 17), (1, 17)]),
    *_pair("empty", "no rows", _table(1, 2), [(0, 3), (0, 1), (1, 3)]),
]
LARGE = [*_large(3, 10_000), *_large(2, 10_000), *_large(1, 10_000), *_large(4, 2_500), *_large(6, 1_000)]

SCALING = [
    Axis("points", (100, 1_000, 10_000, 100_000), lambda n: _pair(
        f"points_{n}", "16 channels of degree 2, rank 28", _table(2, 28), [(n, 16)] * 3)[0]),
    Axis("degree", (1, 2, 3, 4, 6), lambda degree: _pair(
        f"degree_{degree}", "200 rows of 16 channels, rank 7 L^2", _table(degree, 7 * degree**2), [(200, 16)] * 3)[0],
         None),
]
