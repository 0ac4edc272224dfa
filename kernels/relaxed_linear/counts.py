"""Operations of the relaxed linear map and of its gradients; see kernels/counts.py."""

from typing import Any

from ..counts import GELU, GELU_DERIVATIVE


def _gelu(inputs: dict[str, Any]) -> bool:
    return inputs.get("activation", "none") == "gelu"


def relaxed_linear(inputs: dict[str, Any]) -> int:
    """The matrix product, its input's activation, and bias, gamma, base and residual at one operation an output."""
    (n, i), o = inputs["x"].shape, inputs["weight"].shape[0]
    terms = sum(inputs.get(name) is not None for name in ("bias", "gamma", "base", "residual"))
    return 2 * n * i * o + n * o * terms + (GELU * n * i if _gelu(inputs) else 0)


def relaxed_linear_bwd(inputs: dict[str, Any]) -> int:
    """A matrix product each for x and for weight (gamma shares the latter's), a column sum for the bias, the derivative
    of the activation; gamma itself is the dot product of two [O, I] matrices and scales one."""
    (n, i), o = inputs["x"].shape, inputs["weight"].shape[0]
    x, weight, bias, gamma = (bool(need) for need in inputs["needs"])
    flops = 2 * n * i * o * (x + (weight or gamma)) + n * o * (bias or gamma)
    flops += (2 * o * i + 2 * o) * gamma + o * i * (inputs.get("gamma") is not None)
    return flops + (GELU_DERIVATIVE * n * i if _gelu(inputs) else 0)


FLOPS = {f.__name__: f for f in (relaxed_linear, relaxed_linear_bwd)}
NEEDS = {"relaxed_linear": ("x", "weight", "bias", "gamma")}
