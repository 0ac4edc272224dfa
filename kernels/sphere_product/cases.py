"""Inputs of sphere_product and of its gradient."""

import torch

from ..cases import Axis, Case
from . import cuda_kernels, reference
from .op import sphere_product_bwd, sphere_product_op, weighted_sphere_product_bwd, weighted_sphere_product_op
from .tables import MOST, PointTable, sphere_table

INPUTS = tuple(f"x{n}" for n in range(1, MOST + 1))


def inputs_of(table: PointTable, shapes, ir_mul: bool, needs=None, weighted: bool = False):
    """`shapes`: (rows, channels) of every input; needs: of the gradient, None for the operator itself, the last of the
    weights where there are any."""
    flat, grid, slots = table.on("cpu")
    values = flat.tolist()  # a tensor of its own where the case is made, which may be without memory

    def make(g: torch.Generator) -> dict:
        draw = lambda rows, columns: torch.randn(rows, columns, generator=g, dtype=torch.float64)  # noqa: E731
        dims = [(degree + 1) ** 2 for degree in (table.lmax_out, *table.lmax_in)]
        xs = [draw(rows, channels * d) for (rows, channels), d in zip(shapes, dims[1:], strict=True)]
        found = dict(zip(INPUTS, [*xs, *[None] * (MOST - len(xs))], strict=True))
        channels = [c for _, c in shapes]
        out = max(channels) if min(channels) else 0
        if weighted:
            degrees = *table.lmax_in, table.lmax_out
            number = sum((degree + 1) * c for degree, c in zip(degrees, [*channels, out], strict=True))
            found["weights"] = torch.randn(number, generator=g, dtype=torch.float64)
        found |= {"table": torch.tensor(values, dtype=torch.float64), "grid": grid, "slots": slots, "ir_mul": ir_mul}
        if needs is None:
            return found
        of_inputs, of_weights = needs[:len(shapes)], needs[len(shapes):]
        g_z = draw(shapes[0][0], dims[0] * out)
        return {"g": g_z} | found | {"needs": [*of_inputs, *[False] * (MOST - len(of_inputs)), *of_weights]}

    return make


def pair(ops, name: str, note: str, table: PointTable, shapes, ir_mul: bool = False, needs=None,
         weighted: bool = False) -> list[Case]:
    """A product and its gradient."""
    given = *INPUTS[:len(shapes)], *["weights"] * weighted
    needs = [True] * len(given) if needs is None else needs
    forward, backward = ((reference.weighted_forward, reference.weighted_backward) if weighted else
                         (reference.forward, reference.backward))
    refused = cuda_kernels.refuses(torch.float32, *table.on("cpu")[1:]) != ""
    by = {"refused_by": ("cuda",) * refused, "no_float64": ("cuda",) * (not refused)}
    return [
        Case(name, ops[0], forward, inputs_of(table, shapes, ir_mul, None, weighted), given, note, **by),
        Case(name, ops[1], backward, inputs_of(table, shapes, ir_mul, needs, weighted), ("g", *given), note, **by),
    ]


def _pair(*args, **options) -> list[Case]:
    return pair((sphere_product_op, sphere_product_bwd), *args, **options)


def _weighted(*args, **options) -> list[Case]:
    return pair((weighted_sphere_product_op, weighted_sphere_product_bwd), *args, **options, weighted=True)


def _large(degree: int, channels: int, rows: int = 10_000, form: str = "auto") -> list[Case]:
    name = f"l{degree}_{channels}" + ("" if form == "auto" else f"_{form}")
    table = sphere_table((degree, degree), degree, form=form)
    return _pair(name, f"{rows} rows, degree {degree}, {channels} channels", table, [(rows, channels)] * 2)


SMALL = [
    *_pair("tiny", "two rows, one channel, by terms", sphere_table((1, 1), 1), [(2, 1)] * 2),
    *_pair("odd", "lanes are rows: channels fill no vector, the last rows neither; mirrored",
           sphere_table((2, 3), 2, form="mirrored"), [(19, 3)] * 2),
    *_pair("both_branches", "lanes are channels; in two steps, one channel for all", sphere_table((3, 2), 4,
           form="separable"), [(3, 19), (3, 1)]),
    *_pair("powers", "a square times an input, one gradient", sphere_table((2, 1), 1, powers=(2, 1)), [(5, 2)] * 2,
           needs=[True, False]),
    *_pair("bracket", "two parts with derivatives, channels side by side", sphere_table((2, 2), 3, bracket=True,
           form="mirrored"), [(3, 17)] * 2, ir_mul=True),
    *_pair("bracket_separable", "derivatives in two steps; three inputs are more than the fast way takes",
           sphere_table((2, 2), 2, bracket=True, form="separable"), [(5, 1)] * 2),
    *_pair("weighted", "three inputs, the last a channel's weight for all rows", sphere_table((1, 2, 0), 2),
           [(4, 17), (4, 17), (1, 17)]),
    *_pair("dense", "points of Lebedev's grid, degrees that fill no block", sphere_table((4, 1), 2, grid="lebedev"),
           [(3, 20), (1, 20)]),
    *_pair("tiles", "rows and channels across tiles of columns, points in blocks that are not full",
           sphere_table((3, 4), 3, form="mirrored"), [(5, 29)] * 2),
    *_pair("tiles_ir_mul", "the same by components", sphere_table((1, 3), 4, form="mirrored"), [(5, 29)] * 2,
           ir_mul=True),
    *_pair("vectors", "rows in whole vectors, one of them for all", sphere_table((5, 4), 5, form="mirrored"),
           [(3, 64), (1, 64)]),
    *_pair("equal_degrees", "columns in registers, points shared by threads", sphere_table((6, 6), 6),
           [(7, 5)] * 2, ir_mul=True),
    *_pair("rings", "in two steps, columns in planes, one row for all", sphere_table((6, 6), 6, form="separable"),
           [(3, 12), (1, 12)], ir_mul=True),
    *_pair("planes", "channels side by side that fill no vector, one for all", sphere_table((3, 3), 3, form="mirrored"),
           [(3, 13), (3, 1)], ir_mul=True),
    *_pair("high_degree", "one channel, matrices that fill the memory of a block",
           sphere_table((10, 1), 9, form="mirrored"), [(3, 1)] * 2),
    *_pair("matrices_by_parts", "matrices that come a few points at a time",
           sphere_table((9, 8, 7), 10, form="mirrored"), [(2, 1)] * 3, needs=[False, True, False]),
    *_pair("long_sum", "a filter that all rows share: its gradient sums over them", sphere_table((1, 1), 2,
           form="mirrored"), [(271, 1), (1, 1)]),
    *_pair("empty", "no rows; a filter's gradient is zero", sphere_table((1, 1), 1), [(0, 3), (1, 1)]),
    *_weighted("tiny", "two rows, one channel, unrolled terms", sphere_table((1, 1), 1), [(2, 1)] * 2),
    *_weighted("odd", "lanes are rows, the last fill no vector; mirrored", sphere_table((2, 3), 2, form="mirrored"),
               [(19, 3)] * 2),
    *_weighted("both_branches", "lanes are channels; in two steps, one channel for all", sphere_table((3, 2), 4,
               form="separable"), [(3, 19), (3, 1)]),
    *_weighted("powers", "a square times an input", sphere_table((2, 1), 1, powers=(2, 1)), [(5, 2)] * 2),
    *_weighted("weights_alone", "no gradient of an input; terms of a list", sphere_table((1, 2), 2), [(3, 17)] * 2,
               ir_mul=True, needs=[False, False, True]),
    *_weighted("inputs_alone", "no gradient of the weights", sphere_table((2, 2), 2), [(3, 17)] * 2,
               needs=[True, False, False]),
    *_weighted("bracket", "two parts with derivatives, channels side by side", sphere_table((2, 2), 3, bracket=True,
               form="mirrored"), [(3, 17)] * 2, ir_mul=True),
    *_weighted("three", "three inputs, one of degree 0, one channel for all", sphere_table((1, 2, 0), 2, form="dense"),
               [(4, 5), (4, 1), (4, 5)]),
    *_weighted("long_sum", "a filter of one channel that all rows share", sphere_table((1, 1), 1), [(271, 2), (1, 1)]),
    *_weighted("empty", "no rows; the weights' gradient is zero", sphere_table((1, 1), 1), [(0, 3), (1, 1)]),
]
LARGE = [
    *(case for degree in (1, 2, 3, 4, 6) for case in _large(degree, 1)),
    *(case for degree in (1, 2, 3) for case in _large(degree, 64)),
    *(case for degree in (4, 6) for case in _large(degree, 64, 2_500)),
]

SCALING = [
    Axis("points", (1_000, 10_000, 100_000, 1_000_000), lambda n: _pair(
        f"points_{n}", "one channel of degree 2", sphere_table((2, 2), 2), [(n, 1)] * 2)[0]),
    Axis("channels", (16, 64, 256, 1024), lambda c: _pair(
        f"channels_{c}", "500 rows of degree 3", sphere_table((3, 3), 3), [(500, c)] * 2)[0]),
    Axis("degree", (1, 2, 3, 4, 6, 8, 10), lambda n: _pair(
        f"degree_{n}", "300 rows of 16 channels", sphere_table((n, n), n), [(300, 16)] * 2)[0], None),
]
