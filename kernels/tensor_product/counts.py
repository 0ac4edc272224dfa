"""Operations of the products, of their gates and activations of norms, and of their gradients; see kernels/counts.py.

A gradient of a multilinear operator is the same contraction with another argument left open and counts as one forward.
"""

from typing import Any

from ..counts import SIGMOID, SILU, TANH
from .table import MODES, Path, unpack

ACTIVATION = {"silu": SILU, "sigmoid": SIGMOID, "tanh": TANH, "relu": 1}
_PRODUCT = ("x1", "x2", "weight", "bias")


def product_row(inputs: dict[str, Any]) -> int:
    """The paths of one row: T_vik = sum_j C_ijk x2_vj for each, then `path`."""
    total = 0
    for p in unpack(list(inputs["paths"])):
        ijk = inputs["cg_index"][p.start:p.stop].tolist()
        total += 2 * len(ijk) * p.V + path(p, len({(i, k) for i, _, k in ijk}))
    return total


def path(p: Path, pairs: int) -> int:
    """x1, T and the weights of one path, contracted in the cheapest order; `pairs` (i, k) have a coefficient.

    A weight that a channel pair has to itself is one product for each component, on the side with fewer of them.
    """
    mode, (U, V, W) = MODES[p.mode], (p.U, p.V, p.W)
    own = min(p.d1, p.d3) if p.weight >= 0 else 0
    chosen = U * (U - 1) // 2  # channels u < v
    if mode == "uvw":
        return min(2 * U * V * W * p.d1 + 2 * V * W * pairs, 2 * U * V * pairs + 2 * U * V * W * p.d3)
    if mode == "uvu":  # per pair of channels, or T summed over v first
        return min(U * V * (2 * pairs + own), (2 * U * V if own else V - 1) * pairs + 2 * U * pairs)
    if mode == "uvv":  # per pair of channels, or x1 summed over u first
        return min(U * V * (2 * pairs + own), (2 * U * V if own else U - 1) * p.d1 + 2 * V * pairs)
    if mode in ("uuw", "u<vw"):
        n = U if mode == "uuw" else chosen
        return 2 * n * pairs + (2 * n * W * p.d3 if own else 0)
    n = {"uuu": U, "uvuv": U * V, "uvu<v": chosen}[mode]
    return n * (2 * pairs + own)


def tensor_product(inputs: dict[str, Any]) -> int:
    """The product of every row and its bias."""
    bias = inputs.get("bias")
    return inputs["x1"].shape[0] * (product_row(inputs) + (0 if bias is None else bias.numel()))


def tensor_product_bwd(inputs: dict[str, Any]) -> int:
    """One forward for each gradient wanted of x1, x2 and weight, one addition a row for each bias."""
    z = inputs["x1"].shape[0]
    bias = sum(inputs["bias_slots"][1::2]) if inputs["needs"][3] else 0
    return z * (product_row(inputs) * sum(inputs["needs"][:3]) + bias)


def tensor_product_bwd_bwd(inputs: dict[str, Any]) -> int:
    """Of g one forward for each gradient that has a cotangent, of x1, x2 and weight one for each of the other two's.

    `given`, where the gradient is differentiated, says which gradients were asked for; the operator itself has gg_*.
    """
    given = inputs.get("given") or [inputs[f"gg_{name}"] is not None for name in _PRODUCT[:3]]
    g, *wanted = inputs["needs"]
    terms = g * sum(given[:3]) + sum(need * (sum(given[:3]) - own) for need, own in zip(wanted, given, strict=False))
    return inputs["x1"].shape[0] * product_row(inputs) * terms


def gate_row(inputs: dict[str, Any]) -> int:
    """SiLU and gain on scalars, sigmoid and gain on gates, one product for each gated component."""
    scalars, gates, *gated = inputs["layout"]
    components = sum(m * d for m, d in zip(gated[::2], gated[1::2], strict=True))
    return scalars * (SILU + 1) + gates * (SIGMOID + 1) + components


def gate(inputs: dict[str, Any]) -> int:
    """The gate of every row."""
    return inputs["pre"].shape[0] * gate_row(inputs)


def gate_bwd(inputs: dict[str, Any]) -> int:
    """The derivative of the gate is counted as two gates (values again, then the chain rule)."""
    return 2 * gate(inputs)


def gated_tensor_product(inputs: dict[str, Any]) -> int:
    """The product and its gate."""
    return tensor_product(inputs) + inputs["x1"].shape[0] * gate_row(inputs)


def gated_tensor_product_bwd(inputs: dict[str, Any]) -> int:
    """The product's gradients and two gates."""
    return tensor_product_bwd(inputs) + 2 * inputs["x1"].shape[0] * gate_row(inputs)


def norm_row(inputs: dict[str, Any]) -> int:
    """Of each channel the norm (2 d and a comparison), bias, nonlinearity, quotient, and a product each component."""
    layout, bias = inputs["layout"], inputs["norm_bias"] is not None
    once = 1 + bias + ACTIVATION[inputs["activation"]] + 1
    return sum(mul * (3 * d + once) for mul, d in zip(layout[::2], layout[1::2], strict=True))


def norm_activation(inputs: dict[str, Any]) -> int:
    """The activation of every row."""
    return inputs["pre"].shape[0] * norm_row(inputs)


def norm_activation_bwd(inputs: dict[str, Any]) -> int:
    """Counted as two activations, like the gate."""
    return 2 * norm_activation(inputs)


def normed_tensor_product(inputs: dict[str, Any]) -> int:
    """The product and its activation of norms."""
    return tensor_product(inputs) + inputs["x1"].shape[0] * norm_row(inputs)


def normed_tensor_product_bwd(inputs: dict[str, Any]) -> int:
    """The product's gradients and two activations."""
    return tensor_product_bwd(inputs) + 2 * inputs["x1"].shape[0] * norm_row(inputs)


FLOPS = {f.__name__: f for f in (
    tensor_product, tensor_product_bwd, tensor_product_bwd_bwd, gate, gate_bwd, gated_tensor_product,
    gated_tensor_product_bwd, norm_activation, norm_activation_bwd, normed_tensor_product, normed_tensor_product_bwd,
)}
NEEDS = {
    "tensor_product": _PRODUCT, "gated_tensor_product": _PRODUCT, "normed_tensor_product": (*_PRODUCT, "norm_bias"),
    "tensor_product_bwd": ("g", *_PRODUCT[:3]), "gate": ("pre",), "norm_activation": ("pre", "norm_bias"),
}
