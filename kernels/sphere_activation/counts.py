"""Operations of sphere_activation and of its derivatives; see kernels/counts.py."""

from math import isqrt
from typing import Any

from ..counts import GELU, GELU_DERIVATIVE, SIGMOID, SILU, TANH

# f, then f' and f'' beside what f has computed
COSTS = {"none": (0, 0, 0), "silu": (SILU, 4, 5), "relu": (1, 1, 0), "gelu": (GELU, GELU_DERIVATIVE, 3),
         "tanh": (TANH, 2, 2), "sigmoid": (SIGMOID, 2, 3), "softplus": (5, SIGMOID, 2)}


def transform(table, ring: int) -> int:
    """One direction for a row and channel: over degrees, then over orders in pairs of azimuths; or densely if less."""
    points, d = table.shape
    dense = 2 * points * d
    if not ring:
        return dense
    return min(dense, points // ring * 2 * d + points * (2 * isqrt(d) - 1) + points)


def _sizes(inputs: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """Rows times channels, points, transforms of `into` and `back`, components of the result."""
    into, back, ring = inputs["into"], inputs["back"], inputs["ring"]
    elements = inputs["x"].numel() // into.shape[1]
    return elements, into.shape[0], transform(into, ring), transform(back, ring), back.shape[1]


def _present(inputs: dict[str, Any], name: str) -> bool:
    return inputs.get(name) is not None


def sphere_activation(inputs: dict[str, Any]) -> int:
    """Each field to the points, the function, back, and the gate on the coefficients."""
    elements, points, into, back, e = _sizes(inputs)
    two, gate = _present(inputs, "x2"), _present(inputs, "gate")
    return elements * ((1 + two) * into + back + points * (COSTS[inputs["act"]][0] + two) + e * gate)


def sphere_activation_bwd(inputs: dict[str, Any]) -> int:
    """Fields and g at the points, the function or its slope, one transform back a field, the gate on coefficients."""
    elements, points, into, back, _ = _sizes(inputs)
    two, gate, d = _present(inputs, "x2"), _present(inputs, "gate"), inputs["into"].shape[1]
    x, x2, g_gate = map(bool, inputs["needs"])
    f, slope, _ = COSTS[inputs["act"]]
    at_point = f * (x2 or g_gate or x) + x * (slope + 1 + two) + (x2 or g_gate) + g_gate * (1 + two)
    return elements * ((1 + two) * into + back + (x + x2) * into + points * at_point + d * gate * (x + x2))


def sphere_activation_bwd_bwd(inputs: dict[str, Any]) -> int:
    """Fields, g and cotangents at the points; t (3), h t + r f v (3), six more for x, four for x2, two for the gate."""
    elements, points, into, back, _ = _sizes(inputs)
    fields = 1 + sum(_present(inputs, name) for name in ("x2", "c_x", "c_x2"))
    g, x, x2, gate = map(bool, inputs["needs"])
    at_point = sum(COSTS[inputs["act"]]) + 3 + 3 * g + 6 * x + 4 * x2 + 2 * gate
    return elements * ((fields + x + x2) * into + (1 + g) * back + points * at_point)


FLOPS = {f.__name__: f for f in (sphere_activation, sphere_activation_bwd, sphere_activation_bwd_bwd)}
NEEDS = {"sphere_activation": ("x", "x2", "gate"), "sphere_activation_bwd": ("g", "x", "x2", "gate")}
