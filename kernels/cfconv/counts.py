"""Operations of the continuous-filter convolutions and of their gradients; see kernels/counts.py.

Filters are counted once for each pair of nodes where the graph is symmetric, messages once for each edge.
"""

from typing import Any

DISTANCE = 9  # three differences, three squares, two sums, the root
CUTOFF = 4  # scaling, cosine, sum, product
BASIS = 5  # of a Gaussian: difference, square, product, exponential; and its slope's product
ACTIVATION = 6  # exponential, logarithm, three sums, product
TAPS = 20  # of a spline: place, fraction, four weights


def _sizes(inputs: dict[str, Any]) -> tuple[int, int, int]:
    """Pairs or edges whose filter is formed, edges, channels."""
    edges = inputs["neighbour"].shape[0]
    return edges // 2 if inputs["symmetric"] else edges, edges, inputs["x"].shape[1]


def _network(inputs: dict[str, Any]) -> int:
    """One filter: basis, two products with their biases, the activation."""
    hidden, count = inputs["weight1"].shape
    channels = inputs["x"].shape[1]
    return BASIS * count + 2 * count * hidden + ACTIVATION * hidden + 2 * hidden * channels + hidden + channels


def cfconv(inputs: dict[str, Any]) -> int:
    """Every pair's filter times its cutoff, two operations an edge and channel."""
    pairs, edges, channels = _sizes(inputs)
    return pairs * (DISTANCE + CUTOFF + _network(inputs) + channels) + 2 * edges * channels


def spline_conv(inputs: dict[str, Any]) -> int:
    """The same with four taps a channel in place of the network."""
    pairs, edges, channels = _sizes(inputs)
    return pairs * (DISTANCE + CUTOFF + TAPS + 8 * channels) + 2 * edges * channels


def _messages(inputs: dict[str, Any]) -> int:
    """x_j g_i and W g_i of every edge, and c m and <S, m> of every pair."""
    pairs, edges, channels = _sizes(inputs)
    return 4 * edges * channels + 3 * pairs * channels


def cfconv_bwd(inputs: dict[str, Any]) -> int:
    """The filters again; back through both products where any gradient but x's is wanted; the weights' two products."""
    pairs, _, channels = _sizes(inputs)
    hidden, count = inputs["weight1"].shape
    needs = inputs["needs"]
    flops = pairs * (DISTANCE + CUTOFF + _network(inputs) + channels) + _messages(inputs)
    if any(needs[1:]):
        flops += pairs * (2 * hidden * channels + hidden)
    if any(needs[2:6]):
        flops += pairs * (2 * hidden * channels + 2 * hidden * count + hidden + channels)
    if needs[1] or any(needs[6:]):
        flops += pairs * (2 * hidden * count + (BASIS + 2) * count)
    return flops


def spline_conv_bwd(inputs: dict[str, Any]) -> int:
    """The filters again, eight operations a channel for the table, and for the slope of the filter and its sum."""
    pairs, _, channels = _sizes(inputs)
    flops = pairs * (DISTANCE + CUTOFF + TAPS + 8 * channels) + _messages(inputs)
    return flops + pairs * channels * (8 * bool(inputs["needs"][2]) + 10 * bool(inputs["needs"][1]))


def cfconv_bwd_bwd(inputs: dict[str, Any]) -> int:
    """The gradient's work on two rows, the filters and their changes."""
    return 2 * cfconv_bwd(inputs | {"needs": inputs["needs"][1:]})


def spline_conv_bwd_bwd(inputs: dict[str, Any]) -> int:
    """The gradient's work on two rows, the filters and their changes."""
    return 2 * spline_conv_bwd(inputs | {"needs": inputs["needs"][1:]})


FLOPS = {f.__name__: f for f in (cfconv, cfconv_bwd, cfconv_bwd_bwd, spline_conv, spline_conv_bwd, spline_conv_bwd_bwd)}
_NETWORK = ("x", "pos", "weight1", "bias1", "weight2", "bias2", "centre", "scale")
_SPLINE = ("x", "pos", "table")
NEEDS = {"cfconv": _NETWORK, "spline_conv": _SPLINE, "cfconv_bwd": ("g", *_NETWORK), "spline_conv_bwd": ("g", *_SPLINE)}
UNREAD = {"cfconv": ("back", "back_ptr"), "spline_conv": ("back", "back_ptr")}
