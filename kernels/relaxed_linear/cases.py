"""Inputs of relaxed_linear and of its gradients."""

import torch

from ..cases import DECADES, Axis, Case, generator
from . import reference
from .op import relaxed_linear_bwd, relaxed_linear_op

NAMES = ("x", "weight", "bias", "gamma", "base", "residual")


def _inputs(sizes, activation: str, present: str, needs=None):
    """`present` has a letter for each optional argument that is given: b bias, g gamma, a base, r residual."""

    def make(g: torch.Generator) -> dict:
        n, i, o = sizes
        shapes = {"x": (n, i), "weight": (o, i), "bias": (o,), "gamma": (), "base": (n, o), "residual": (n, o)}
        given = dict(zip(("bias", "gamma", "base", "residual"), "bgar", strict=True))
        full = {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in shapes.items()}
        full = {k: v if given.get(k, "") in present else None for k, v in full.items()}
        if needs is None:
            return full | {"activation": activation}
        del full["base"], full["residual"]
        return {"g": torch.randn(n, o, generator=g, dtype=torch.float64)} | full | {
            "activation": activation, "needs": needs}

    return make


def _pieces(inputs: dict) -> dict:
    """Absolute values of the inputs, and of the activation and its first two derivatives at x."""
    x = inputs["x"].detach().clone().requires_grad_()
    slope = reference.act_grad(x, inputs["activation"])
    curve = torch.autograd.grad(slope.sum(), x)[0] if inputs["activation"] == "gelu" else torch.zeros_like(x)
    found = {n: v.abs() for n, v in inputs.items() if isinstance(v, torch.Tensor)}
    return found | {n: v.detach().abs() for n, v in
                    (("h", reference.act(x, inputs["activation"])), ("slope", slope), ("curve", curve))}


def _directions(inputs: dict, gold: dict, names: tuple[str, ...]) -> tuple[list, dict]:
    """Absolute values of the random directions that the comparison takes: of (needed) outputs, then of gradients."""
    g = generator(1)
    outputs = [v for n, v in gold.items() if n.startswith("output") and v.shape != (0,)]
    labels = [n for n in names if inputs[n] is not None]
    draw = lambda like: torch.randn(like.shape, generator=g, dtype=torch.float64).abs()  # noqa: E731
    return [draw(o) for o in outputs], {n: draw(gold[f"gradient of {n}"]) for n in labels}


def _weight_terms(c, h, weight, bias) -> torch.Tensor:
    total = (c * (h @ weight.t())).sum()
    return total if bias is None else total + (c * bias).sum()


def _scale(inputs: dict, gold: dict) -> dict[str, float]:
    """Gradients of gamma: the sum of the absolute values of their terms."""
    if inputs["gamma"] is None:
        return {}
    p = _pieces(inputs)
    bias = p.get("bias")
    (c,), d = _directions(inputs, gold, NAMES)
    second = ((d["x"] * p["slope"]) @ p["weight"].t() * c).sum() + _weight_terms(c, p["h"], d["weight"], d.get("bias"))
    return {"gradient of gamma": _weight_terms(c, p["h"], p["weight"], bias).item(), "dd gamma": second.item()}


def _scale_bwd(inputs: dict, gold: dict) -> dict[str, float]:
    if inputs["gamma"] is None:
        return {}
    p = _pieces(inputs)
    c, d = _directions(inputs, gold, ("g", "x", "weight", "bias", "gamma"))
    given = iter(c)
    c = [next(given) if need else None for need in inputs["needs"]]
    names = [n for n in ("g", "weight", "bias", "h", "slope") if n in p]
    leaves = {n: p[n].clone().requires_grad_() for n in names}
    step = d | {"h": p["slope"] * d["x"], "slope": p["curve"] * d["x"]}

    def along(total: torch.Tensor) -> float:
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return sum((g * step[n]).sum().item() for g, n in zip(grads, names, strict=True))

    g, weight, bias, h, slope = (leaves.get(n) for n in ("g", "weight", "bias", "h", "slope"))
    linear = g.sum() * 0  # what is proportional to gamma, without gamma
    for term, factor in (((g @ weight) * slope, c[0]), (g.t() @ h, c[1]), (g.sum(0), c[2])):
        if factor is not None:
            linear = linear + (term * factor).sum()
    found = {"gradient of gamma": linear.item(), "dd gamma": along(linear)}
    if c[3] is not None:
        plain = _weight_terms(g, h, weight, bias)
        last = [n for n in gold if n.startswith("output")][-1]
        found |= {last: plain.item(), last.replace("output", "dd cotangent"): along(plain)}
    return found


def _pair(name: str, note: str, sizes, activation: str = "gelu", present: str = "bgar", needs=None) -> list[Case]:
    """`sizes` = (N, I, O); `needs` of the gradients defaults to all that exist."""
    needs = needs or [True, True, "b" in present, "g" in present]
    return [
        Case(name, relaxed_linear_op, reference.forward, _inputs(sizes, activation, present), NAMES, note, _scale),
        Case(name, relaxed_linear_bwd, reference.backward, _inputs(sizes, activation, present, needs),
             ("g", "x", "weight", "bias", "gamma"), note, _scale_bwd),
    ]


SMALL = [
    *_pair("tiny", "two rows", (2, 2, 2)),
    *_pair("odd", "no size is a power of two; several blocks of rows and columns", (67, 37, 53)),
    *_pair("both_branches", "no activation, everything present, whole vectors", (35, 32, 16), "none"),
    *_pair("both_branches_bare", "no activation, nothing optional", (19, 5, 33), "none", ""),
    *_pair("both_branches_gelu", "GELU, only bias and residual", (70, 48, 16), "gelu", "br"),
    *_pair("both_branches_gate", "GELU, gamma and base without bias; only x and gamma need gradients", (9, 16, 24),
           "gelu", "ga", [True, False, False, True]),
    *_pair("both_branches_bias", "only the bias needs a gradient", (300, 7, 18), "none", "bg",
           [False, False, True, False]),
    *_pair("long_sum", "many rows summed into the gradients of weight, bias and gamma", (1031, 3, 5)),
    *_pair("empty", "no rows", (0, 5, 3)),
]
LARGE = [
    case
    for graphs in (100, 1000)
    for i, o in ((256, 256), (256, 128), (128, 128), (128, 256))
    for case in _pair(f"nbody_{graphs}_{i}_{o}", f"SEGNN N-body, {graphs} graphs", (5 * graphs, i, o), "gelu", "bgar")
] + [
    case
    for i, o in ((324, 324), (324, 162), (162, 162))
    for case in _pair(f"qm9_1024_{i}_{o}", "SEGNN QM9, 1024 molecules: 18.4k nodes", (18400, i, o), "gelu", "bgar")
]

SCALING = [
    Axis("points", DECADES[:4], lambda n: _pair(f"points_{n}", "32 to 32 channels", (n, 32, 32))[0]),
    Axis("channels", (64, 128, 256, 512, 1024), lambda c: _pair(f"channels_{c}", "1000 rows", (1000, c, c))[0], 2),
]
