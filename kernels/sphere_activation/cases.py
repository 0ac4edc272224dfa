"""Inputs of sphere_activation and of its first and second derivative."""

import torch

from ..cases import Axis, Case
from ..sphere_product import grids
from . import reference
from .grid import SphereGrid
from .op import sphere_activation_bwd, sphere_activation_bwd_bwd, sphere_activation_op

FIELDS = ("x", "x2", "gate")
PRESENT = {"x2": "2", "gate": "g"}


def randn(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _inputs(rows: int, channels: int, grid: SphereGrid, act: str, ir_mul: bool, present: str, order: int, needs=None):
    """`present`: 2 the second field, g the gate; `order` of the derivative, 0 to 2."""
    tables = [table.numpy() for table in grid.on(torch.device("cpu"))]  # which become tensors of any kind

    def make(g: torch.Generator) -> dict:
        into, back = map(torch.tensor, tables)
        widths = {"x": into.shape[1], "x2": into.shape[1], "gate": 1}
        fields = {n: randn(g, rows, w * channels) if PRESENT.get(n, "") in present else None for n, w in widths.items()}
        inputs = fields | {"into": into, "back": back, "ring": grid.ring, "ir_mul": ir_mul, "act": act}
        if order:
            inputs = {"g": randn(g, rows, back.shape[1] * channels)} | inputs
        if order == 2:
            inputs = {f"c_{n}": None if t is None else randn(g, *t.shape) for n, t in fields.items()} | inputs
        asked = needs or [True, *(PRESENT[n] in present for n in ("x2", "gate"))]
        return inputs | ({} if not order else {"needs": asked if order == 1 else [True, *asked]})

    return make


def _case(name, note, rows, channels, grid, act="silu", ir_mul=False, present="", needs=None) -> list[Case]:
    make = lambda order: _inputs(rows, channels, grid, act, ir_mul, present, order, needs)  # noqa: E731
    second = tuple(f"c_{n}" for n in FIELDS)
    return [
        Case(name, sphere_activation_op, reference.forward, make(0), FIELDS, note),
        Case(name, sphere_activation_bwd, reference.backward, make(1), ("g", *FIELDS), note),
        Case(name, sphere_activation_bwd_bwd, reference.second, make(2), (*second, "g", *FIELDS), note),
    ]


def grid_of(rings: int, ring_size: int, lmax: int, lmax_out: int | None = None) -> SphereGrid:
    return SphereGrid.of(grids.gauss(rings, ring_size), lmax, lmax_out)


def points(degree: int, lmax: int) -> SphereGrid:
    """Lebedev's, which are no rings."""
    return SphereGrid.of(grids.exact(degree, "lebedev"), lmax)


SMALL = [
    *_case("tiny", "a gated field with everything present; an even number of azimuths", 2, 2, grid_of(2, 4, 1),
           present="2g"),
    *_case("odd", "no size is a power of two; more degrees out than in, an odd number of azimuths", 5, 3,
           grid_of(3, 5, 2, 3), "gelu", True),
    *_case("both_branches", "points without rings: the product with a gate", 3, 5, points(5, 1), "none", False, "2g"),
    *_case("both_branches_rows", "several blocks of rows, channels in whole vectors and a rest", 3, 37,
           grid_of(2, 3, 1), "tanh", True, "2"),
    *_case("both_branches_one", "one channel: rows are turned; degree 3 becomes degree 1", 61, 1, grid_of(4, 6, 3, 1),
           "softplus", False, "g"),
    *_case("both_branches_needs", "only the second field and the gate want gradients", 3, 2, grid_of(2, 3, 1),
           "sigmoid", False, "2g", [False, True, True]),
    *_case("both_branches_degree", "degree 0 alone", 4, 3, grid_of(1, 1, 0), "relu", True, "2"),
    *_case("long_sum", "many points", 3, 1, grid_of(16, 31, 1), "silu", False, "2g"),
    *_case("empty", "no rows", 0, 3, grid_of(2, 3, 1), present="2g"),
    *_case("no_channels", "no channels", 3, 0, grid_of(2, 3, 1)),
]


def _activation(lmax: int, rings: int, ring_size: int, rows: int, channels: int, ir_mul: bool = True) -> list[Case]:
    name = f"silu_l{lmax}_{rings}x{ring_size}_{rows}_{channels}"
    return _case(name, "an S2 activation", rows, channels, grid_of(rings, ring_size, lmax), "silu", ir_mul)[:2]


def _swiglu(lmax: int, rows: int, channels: int) -> list[Case]:
    grid = SphereGrid.of(grids.exact(grids.product_degree((lmax, lmax), lmax)), lmax)
    return _case(f"swiglu_l{lmax}_{rows}_{channels}", "EquiformerV3's, on the exact grid", rows, channels, grid, "none",
                 True, "2g")[:2]


LARGE = [
    *(case for lmax, rings, ring_size in ((1, 4, 5), (2, 6, 7), (3, 8, 9), (4, 12, 12), (6, 18, 18))
      for channels in (1, 64) for case in _activation(lmax, rings, ring_size, 10_000 // max(1, channels // 8), channels,
                                                      channels > 1)),
    *(case for lmax in (2, 4, 6) for case in _swiglu(lmax, 1250, 64)),
    *_activation(2, 6, 7, 100, 64),
]

SCALING = [
    Axis("points", (1_000, 10_000, 100_000), lambda n: _activation(2, 6, 7, n, 8)[0]),
    Axis("degree", (1, 2, 4, 6, 8), lambda n: _activation(n, 2 * n + 2, 2 * n + 3, 200, 8)[0], 3),
]
