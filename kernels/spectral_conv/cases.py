"""Inputs of spectral_conv, time_conv and their gradients."""

import torch

from ..cases import DECADES, Axis, Case
from . import reference
from .op import spectral_conv_bwd, spectral_conv_op, time_conv_bwd, time_conv_op


def _inputs(sizes, needs=None, slope=None, steady=False):
    """`steady`: the convolution keeps its sign, + or - by channel, whatever the rounding.

    At a change of sign the gradient jumps: among the millions of values of a large case some would be rounded across.
    """

    def make(g: torch.Generator) -> dict:
        times, n, i, o, modes = sizes
        draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
        operands = {"x": draw(times, n, i), "weight": draw(i, o, modes, 2)}
        if steady:
            operands = {"x": 1 + 0.1 * operands["x"], "weight": 0.1 / i * operands["weight"]}
            operands["weight"][:, :, 0, 0] += (1 - 2 * (torch.arange(o) % 2)) / i
        activation = {} if slope is None else {"slope": slope}
        if needs is None:
            return operands | activation
        grad = {"g": draw(times, n, o)}
        if slope is not None:
            grad["positive"] = draw(times, n, o) > 0
        return grad | operands | activation | {"needs": needs}

    return make


def _pair(name: str, note: str, times, n, i, o, modes, needs=(True, True)) -> list[Case]:
    sizes, needs = (times, n, i, o, modes), list(needs)
    return [
        Case(name, spectral_conv_op, reference.forward, _inputs(sizes), ("x", "weight"), note),
        Case(name, spectral_conv_bwd, reference.backward, _inputs(sizes, needs), ("g", "x", "weight"), note),
    ]


def _time_pair(name: str, note: str, times, n, c, modes, needs=(True, True), slope=0.01, steady=False) -> list[Case]:
    sizes, needs = (times, n, c, c, modes), list(needs)
    forward, backward = _inputs(sizes, None, slope, steady), _inputs(sizes, needs, slope, steady)
    return [
        Case(name, time_conv_op, reference.time_forward, forward, ("x", "weight"), note),
        Case(name, time_conv_bwd, reference.time_backward, backward, ("g", "x", "weight"), note),
    ]


SMALL = [
    *_pair("tiny", "two nodes, mode 0 and T/2", 2, 2, 2, 1, 2),
    *_pair("odd", "no size is a power of two; three products a mode, columns beyond whole vectors", 5, 7, 17, 18, 2),
    *_pair("both_branches", "four products a mode: few channels; fewer channels out", 6, 11, 6, 3, 2),
    *_pair("both_branches_even", "all modes, even T, blocks of channels; only the weight needs a gradient",
           4, 6, 33, 34, 3, (False, True)),
    *_pair("both_branches_x", "only x needs a gradient, one step, blocks of channels", 1, 5, 5, 37, 1,
           (True, False)),
    *_pair("long_sum", "many nodes summed into the gradient of the weight, in several chunks", 2, 271, 3, 2, 1),
    *_pair("empty", "no nodes", 5, 0, 3, 4, 2),
    *_time_pair("tiny", "two nodes, one channel", 3, 2, 1, 2),
    *_time_pair("odd", "no size is a power of two", 5, 7, 17, 2),
    *_time_pair("both_branches", "no nonlinearity, pairs of vectors; only the weight needs a gradient", 4, 9, 2, 2,
                (False, True), 1.0),
    *_time_pair("empty", "no nodes", 5, 0, 3, 2),
]
LARGE = [
    case
    for batch in (12, 128)
    for case in (
        *_pair(f"mocap_{batch}", f"EGNO on MoCap, {batch} graphs of 31 joints: one layer's features",
               5, 31 * batch, 128, 128, 2),
        *_time_pair(f"mocap_{batch}", f"EGNO on MoCap, {batch} graphs: features, leaky ReLU and sum", 5, 31 * batch,
                    128, 2, steady=True),
        *_time_pair(f"mocap_{batch}_vectors", f"EGNO on MoCap, {batch} graphs: position and velocity", 5,
                    3 * 31 * batch, 2, 2, slope=1.0),
    )
] + _pair("modes_33", "all 33 modes of 64 time steps", 64, 372, 64, 64, 33)

SCALING = [
    Axis("points", DECADES[:4], lambda n: _pair(f"points_{n}", "5 steps, 2 modes, 8 channels", 5, n, 8, 8, 2)[0]),
    Axis("channels", (32, 64, 128, 256, 512), lambda c: _pair(
        f"channels_{c}", "5 steps, 2 modes, 200 nodes", 5, 200, c, c, 2)[0], 2),
    Axis("points", DECADES[:4], lambda n: _time_pair(
        f"points_{n}", "5 steps, 2 modes, 8 channels", 5, n, 8, 2, steady=True)[0]),
]
