"""Operations of the vector-neuron operators on edges; see kernels/counts.py.

An edge costs what it costs to form it from its two nodes again: nothing of the size of the edges is read or written, so
forming is arithmetic, in the forward pass and in the backward pass.
"""

from typing import Any

from ..vn_linear.counts import DOT, MOMENTS, NORM, VECTORS, XYZ, activation, activation_bwd

EDGE_TENSORS = 12  # that the plain edge convolution holds at its height, gradients included


def _edges(inputs: dict[str, Any]) -> tuple[int, int]:
    """(edges, channels): all neighbours, or the selected one of each channel."""
    channels = inputs["p"].shape[3] // 2
    if inputs.get("selected") is not None:
        return inputs["neighbours"].shape[0] * inputs["neighbours"].shape[1], channels
    return inputs["neighbours"].numel(), channels


def vn_edge_stats(inputs: dict[str, Any]) -> int:
    """Every edge is a sum of two vectors, then as `vn_norm_stats`."""
    edges, channels = _edges(inputs)
    return edges * channels * (XYZ + NORM + MOMENTS)


def vn_edge_stats_bwd(inputs: dict[str, Any]) -> int:
    """As `vn_norm_stats_bwd`; each edge's gradient is added to its two nodes."""
    edges, channels = _edges(inputs)
    return edges * channels * (XYZ + NORM + 3 + 1 + XYZ + 2 * XYZ)


def _directions(inputs: dict[str, Any], edges: int, channels: int) -> int:
    shared = inputs["d"].shape[3] != inputs["p"].shape[3]
    selected = inputs.get("selected") is not None
    return edges * (1 if shared and not selected else channels)


def vn_edge_conv(inputs: dict[str, Any]) -> int:
    """Features and directions of every edge are sums, then as `vn_leaky_relu`, then the sum over neighbours."""
    edges, channels = _edges(inputs)
    count, directions = edges * channels, _directions(inputs, edges, channels)
    pooled = 0 if inputs.get("selected") is not None else count * XYZ
    return (count + directions) * XYZ + activation(count, directions, True) + pooled


def vn_edge_conv_bwd(inputs: dict[str, Any]) -> int:
    """The edges again, the chain rule, and both gradients added to both nodes."""
    edges, channels = _edges(inputs)
    count, directions = edges * channels, _directions(inputs, edges, channels)
    return 3 * (count + directions) * XYZ + activation_bwd(count, directions, True)


def vn_edge_select(inputs: dict[str, Any]) -> int:
    """The edge values o without pooling, the product U o, <o, U o> and a comparison."""
    edges, channels = _edges(inputs)
    count, directions = edges * channels, _directions(inputs, edges, channels)
    values = (count + directions) * XYZ + activation(count, directions, True)
    return values + count * (2 * XYZ * channels + DOT + 1)


def plain_bytes(inputs: dict[str, Any]) -> int:
    """What the plain reference of any of these operators needs in float64 for its edge tensors."""
    return EDGE_TENSORS * inputs["neighbours"].numel() * XYZ * (inputs["p"].shape[3] // 2) * 8


FLOPS = {f.__name__: f for f in (vn_edge_stats, vn_edge_stats_bwd, vn_edge_conv, vn_edge_conv_bwd, vn_edge_select)}
NEEDS = {"vn_edge_stats": (), "vn_edge_conv": VECTORS}
