"""Operations of the vector-neuron maps, norms and nonlinearities at the nodes; see kernels/counts.py."""

from typing import Any

VECTORS = ("p", "d", "mean", "var", "weight", "bias")  # what gradients of nonlinearities are asked for
NORM = 7  # of a vector: three squares, two sums, the root, epsilon
MOMENTS = 4  # of a norm: its sum, its deviation, the square, the sum of squares
SCALE = 5  # of a vector: a + b / norm and three products
DOT = 5
SQUARE = 6  # of a direction: dot product and epsilon
ALONG = 8  # quotient, slope and the multiple of the direction taken off
XYZ = 3


def _present(inputs: dict[str, Any], *names: str) -> bool:
    return any(inputs.get(name) is not None for name in names)


def _map(inputs: dict[str, Any]) -> tuple[int, int, int]:
    """(rows R, input channels C, output channels: O, or 2 O with `edge`)."""
    rows, _, inner = inputs["x"].shape
    return rows, inner, inputs["weight"].shape[0] * (2 if inputs["edge"] else 1)


def vn_linear(inputs: dict[str, Any]) -> int:
    """One product of 3C -> 3O a row where there is a dense map (W and gamma are folded into it), three of C -> O where
    there is none; bias and offset one addition an output; folding and splitting by part an operation an element."""
    rows, inner, outer = _map(inputs)
    dense = inputs["dense"]
    product = 2 * rows * inner * outer * (XYZ if dense is None else XYZ**2)
    vectors = rows * XYZ * outer * _present(inputs, "offset") + rows * XYZ * inputs["weight"].shape[0] * _present(
        inputs, "bias")
    fold = 0 if dense is None else dense.numel() * _present(inputs, "gamma") + XYZ * inputs["weight"].numel()
    split = (inputs["weight"] if dense is None else dense).numel() // 2 if inputs["edge"] else 0
    return product + vectors + fold + split


def vn_linear_bwd(inputs: dict[str, Any]) -> int:
    """A product for x and one for all matrices: dM gives dD = gamma dM, dW (the trace of its blocks) and d gamma."""
    rows, inner, outer = _map(inputs)
    dense, (x, weight, d, bias, gamma) = inputs["dense"], map(bool, inputs["needs"])
    one = 2 * rows * inner * outer
    flops = one * x * (XYZ if dense is None else XYZ**2)
    if d or gamma:
        flops += one * XYZ**2 + XYZ * inputs["weight"].numel() * weight
        flops += dense.numel() * (d and _present(inputs, "gamma")) + 2 * dense.numel() * gamma
    else:
        flops += one * XYZ * weight
    return flops + rows * XYZ * inputs["weight"].shape[0] * (bias or (gamma and _present(inputs, "bias")))


def _vectors(inputs: dict[str, Any]) -> int:
    return inputs["p"].numel() // XYZ


def vn_norm_stats(inputs: dict[str, Any]) -> int:
    """The norm of every vector, then mean and variance."""
    return _vectors(inputs) * (NORM + MOMENTS)


def vn_norm_stats_bwd(inputs: dict[str, Any]) -> int:
    """The norm again, its gradient (deviation, product, sum), and that gradient along the vector."""
    return _vectors(inputs) * (NORM + 3 + 1 + XYZ)


def activation(count: int, directions: int, norm: bool) -> int:
    """`count` vectors along `directions` directions (0: none)."""
    return count * (norm * (NORM + SCALE) + (DOT + ALONG if directions else 0)) + directions * SQUARE


def activation_bwd(count: int, directions: int, norm: bool) -> int:
    """The vectors again; then those of g: <g, d>, what is taken off, the three terms of the direction; and of the batch
    norm: <g, p>, its share of the norm's gradient, p's, and the sums of its two coefficients."""
    again = count * (norm * (NORM + SCALE) + (DOT if directions else 0)) + directions * SQUARE
    along = DOT + ALONG + 5 * XYZ + 4 if directions else 0
    return again + count * (along + norm * (DOT + 3 + 2 * XYZ + XYZ + 3))


def vn_leaky_relu(inputs: dict[str, Any]) -> int:
    """Batch norm of the norms and the projection along the directions, each where it is there."""
    d = inputs["d"]
    return activation(_vectors(inputs), 0 if d is None else d.numel() // XYZ, _present(inputs, "mean"))


def vn_leaky_relu_bwd(inputs: dict[str, Any]) -> int:
    """The same again and its chain rule."""
    d = inputs["d"]
    return activation_bwd(_vectors(inputs), 0 if d is None else d.numel() // XYZ, _present(inputs, "mean"))


FLOPS = {f.__name__: f for f in (vn_linear, vn_linear_bwd, vn_norm_stats, vn_norm_stats_bwd, vn_leaky_relu,
                                 vn_leaky_relu_bwd)}
NEEDS = {"vn_linear": ("x", "weight", "dense", "bias", "gamma"), "vn_norm_stats": (), "vn_leaky_relu": VECTORS}
