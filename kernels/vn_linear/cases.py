"""Inputs of vn_linear, vn_norm_stats, vn_leaky_relu and of their gradients."""

import torch

from ..cases import DECADES, Axis, Case, generator
from . import reference
from .op import (
    vn_leaky_relu_bwd,
    vn_leaky_relu_op,
    vn_linear_bwd,
    vn_linear_op,
    vn_norm_stats_bwd,
    vn_norm_stats_op,
)

LINEAR = ("x", "weight", "dense", "bias", "gamma")
RELU = ("p", "d", "mean", "var", "weight", "bias")


def randn(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _linear(sizes, present: str, edge: bool, needs=None):
    """`sizes` = (rows, C, O, groups); `present`: d dense, b bias, g gamma, o offset."""

    def make(g: torch.Generator) -> dict:
        r, c, o, groups = sizes
        inner = 2 * c if edge else c
        shapes = {"x": (r, 3, c), "weight": (o, inner), "dense": (3 * o, 3 * inner), "bias": (3 * o,), "gamma": (),
                  "offset": (groups, 3, 2 * o if edge else o)}
        full = {name: randn(g, *shape) for name, shape in shapes.items()}
        letters = {"dense": "d", "bias": "b", "gamma": "g", "offset": "o"}
        full = {k: v if letters.get(k, "") in present else None for k, v in full.items()}
        if needs is None:
            return full | {"edge": edge}
        del full["offset"]
        return {"g": randn(g, r, 3, 2 * o if edge else o)} | full | {"edge": edge, "needs": needs}

    return make


def _size(terms: torch.Tensor, inputs: dict) -> float:
    """The sum of the absolute values of the terms of <terms, D vec(x) + b>."""
    x, dense, bias = (None if inputs[n] is None else inputs[n].abs() for n in ("x", "dense", "bias"))
    if inputs["edge"]:  # absolute values add up where `columns` subtracts
        difference, centre = dense.chunk(2, 1)
        dense = torch.cat([difference, centre + 2 * difference], 1)
    nothing = torch.zeros_like(inputs["weight"])
    return (terms.abs() * reference.forward(x, nothing, dense, bias, None, None, inputs["edge"])).sum().item()


def _directions(inputs: dict, gold: dict, names: tuple[str, ...]) -> tuple[list, dict]:
    """The random directions that the comparison takes: of the (needed) outputs, then of the gradients."""
    g = generator(1)
    c = [randn(g, *v.shape) for n, v in gold.items() if n.startswith("output")]
    return c, {n: randn(g, *gold[f"gradient of {n}"].shape) for n in names if inputs[n] is not None}


def _along(terms: torch.Tensor, inputs: dict, d: dict, fixed: str = "") -> float:
    """`_size` with each factor but `fixed` replaced by its direction in turn."""
    return sum(_size(terms, inputs | {n: d[n]}) for n in ("x", "dense", "bias") if n in d and n != fixed)


def _scale(inputs: dict, gold: dict) -> dict[str, float]:
    """Gradients of gamma relative to their terms."""
    if inputs["gamma"] is None:
        return {}
    (c,), d = _directions(inputs, gold, (*LINEAR, "offset"))
    return {"gradient of gamma": _size(c, inputs), "dd gamma": _along(c, inputs, d)}


def _scale_bwd(inputs: dict, gold: dict) -> dict[str, float]:
    if inputs["gamma"] is None:
        return {}
    c, d = _directions(inputs, gold, ("g", *LINEAR))
    c = dict(zip([n for n, need in zip(LINEAR, inputs["needs"], strict=True) if need], c, strict=True))
    g, free = inputs["g"], [n for n in ("x", "dense", "bias") if n in c]
    found = {"gradient of gamma": sum(_size(g, inputs | {n: c[n]}) for n in free)}
    found["dd gamma"] = sum(
        _size(d["g"], inputs | {n: c[n]}) + _along(g, inputs | {n: c[n]}, d, fixed=n) for n in free)
    if inputs["needs"][4]:
        last = [n for n in gold if n.startswith("output")][-1]
        found |= {last: _size(g, inputs),
                  last.replace("output", "dd cotangent"): _size(d["g"], inputs) + _along(g, inputs, d)}
    return found


def _linear_pair(name, note, sizes, present="dbgo", edge=False, needs=None) -> list[Case]:
    needs = needs or [True, True, "d" in present, "b" in present, "g" in present]
    inputs = _linear(sizes, present, edge)
    return [
        Case(name, vn_linear_op, reference.forward, inputs, (*LINEAR, "offset"), note, _scale),
        Case(name, vn_linear_bwd, reference.backward, _linear(sizes, present, edge, needs), ("g", *LINEAR), note,
             _scale_bwd),
    ]


def _stats_pair(name, note, rows, channels, zero=False) -> list[Case]:
    def forward(g):
        return {"p": randn(g, rows, 3, channels) * (0 if zero else 1)}

    def backward(g):
        p = forward(g)["p"]
        g_mean, g_var = randn(g, channels), randn(g, channels)
        return {"g_mean": g_mean, "g_var": g_var, "p": p, "mean": reference.stats(p)[0]}

    return [
        Case(name, vn_norm_stats_op, reference.stats, forward, ("p",), note),
        Case(name, vn_norm_stats_bwd, reference.stats_backward, backward, ("g_mean", "g_var", "p", "mean"), note),
    ]


def apart(g: torch.Generator, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and directions whose scalar products keep their sign, + or - by channel, whatever the rounding.

    At a sign change the gradient jumps: among the millions of products of a large case some would be rounded across.
    """
    axis = torch.nn.functional.normalize(randn(g, 3, shape[-1]), dim=0)
    noise = lambda: 0.2 * (torch.rand(*shape, generator=g, dtype=torch.float64) - 0.5)  # noqa: E731
    sign = 1.0 - 2.0 * (torch.arange(shape[-1]) % 2)
    return axis + noise(), sign * axis + noise()


def vectors(g: torch.Generator, channels: int, mean: torch.Tensor, var: torch.Tensor, large: bool) -> dict:
    """The batch norm's arguments; in a large case the bias keeps the normalised norms positive (see `apart`)."""
    weight, bias = 1 + 0.1 * randn(g, channels), randn(g, channels)
    return {"mean": mean, "var": var, "weight": weight, "bias": 6 + 0.1 * bias if large else bias}


def _relu(rows, channels, shared, present: str, zero, large, needs=None):
    """`present`: d directions, n batch norm."""

    def make(g: torch.Generator) -> dict:
        p, d = apart(g, rows, 3, channels) if large else (randn(g, rows, 3, channels), randn(g, rows, 3, channels))
        p = p * (0 if zero else 1)
        norm = dict.fromkeys(("mean", "var", "weight", "bias"))
        if "n" in present:
            mean, var = reference.stats(p)
            norm = vectors(g, channels, mean, var + (1.0 if zero or not rows else 0.0), large)
        inputs = {"p": p, "d": (d[:, :, :1] if shared else d).contiguous() if "d" in present else None} | norm
        inputs |= {"eps": 1e-5, "slope": 0.2}
        return inputs if needs is None else {"g": randn(g, rows, 3, channels)} | inputs | {"needs": needs}

    return make


def _relu_pair(name, note, rows, channels, shared=False, present="dn", zero=False, large=False) -> list[Case]:
    needs = [True, "d" in present, *["n" in present] * 4]
    make = lambda needs=None: _relu(rows, channels, shared, present, zero, large, needs)  # noqa: E731
    return [
        Case(name, vn_leaky_relu_op, reference.leaky_relu, make(), RELU, note),
        Case(name, vn_leaky_relu_bwd, reference.leaky_relu_backward, make(needs), ("g", *RELU), note),
    ]


SMALL = [
    *_linear_pair("tiny", "two rows, everything present", (2, 2, 2, 1)),
    *_linear_pair("tiny_edge", "the two parts of an edge map", (2, 1, 2, 2), edge=True),
    *_linear_pair("odd", "no size is a power of two; several blocks", (35, 21, 43, 7)),
    *_linear_pair("both_branches", "strict: no dense map", (19, 5, 33, 1), ""),
    *_linear_pair("both_branches_edge", "edge map, dense without gamma and offset", (37, 7, 11, 1), "db", True),
    *_linear_pair("both_branches_gate", "gamma without bias; only x and gamma need gradients", (9, 16, 24, 3), "dgo",
                  False, [True, False, False, False, True]),
    *_linear_pair("long_sum", "many rows summed into the gradients of the weights", (1031, 2, 3, 1)),
    *_linear_pair("empty", "no rows", (0, 5, 3, 1)),
    *_stats_pair("tiny", "three rows", 3, 2),
    *_stats_pair("odd", "no size is a power of two", 37, 21),
    *_stats_pair("long_sum", "many rows in one sum", 4099, 3),
    *_stats_pair("zero_norm", "all vectors are zero", 9, 5, zero=True),
    *_stats_pair("empty", "no rows", 0, 5),
    *_relu_pair("tiny", "three rows", 3, 2),
    *_relu_pair("odd", "no size is a power of two", 37, 21),
    *_relu_pair("both_branches", "one direction for all channels", 19, 35, True),
    *_relu_pair("both_branches_plain", "no batch norm", 19, 18, False, "d"),
    *_relu_pair("both_branches_norm", "batch norm alone", 19, 18, False, "n"),
    *_relu_pair("long_sum", "many rows summed into the gradients of the batch norm", 2051, 3),
    *_relu_pair("zero_norm", "all features are zero", 9, 5, zero=True),
    *_relu_pair("empty", "no rows", 0, 5),
]
_NODES = ((8, 300), (32, 300), (32, 1024))
LARGE = [
    case
    for clouds, points in _NODES
    for c, o, edge in ((21, 42, True), (84, 85, True), (169, 341, False), (341, 341, False), (341, 170, False))
    for case in _linear_pair(f"modelnet_{clouds}x{points}_{c}_{o}", "VN-DGCNN's maps at the nodes",
                             (clouds * points, c, o, clouds), "dbg", edge)
] + [
    case
    for clouds, points in _NODES
    for channels, shared in ((341, True), (341, False), (170, False))
    for name in [f"modelnet_{clouds}x{points}_{channels}" + ("_shared" if shared else "")]
    for case in [
        *([] if shared else _stats_pair(name, "norms at VN-DGCNN's nodes", clouds * points, channels)),
        *_relu_pair(name, "VN-DGCNN's node layers", clouds * points, channels, shared, large=True),
    ]
]

SCALING = [
    Axis("points", DECADES[:3], lambda n: _linear_pair(
        f"points_{n}", "21 to 42 vectors, relaxed, as on edges", (n, 21, 42, 1), "dbg", True)[0]),
    Axis("channels", (16, 32, 64, 128, 256), lambda c: _linear_pair(
        f"channels_{c}", "300 rows, relaxed", (300, c, c, 1), "dbg")[0], 2),
    Axis("points", DECADES[:3], lambda n: _relu_pair(f"points_{n}", "21 vectors and directions", n, 21, large=True)[0]),
]
