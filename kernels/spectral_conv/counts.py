"""Operations of the convolutions along time and of their gradients; see kernels/counts.py."""

from typing import Any

from . import table


def spectral_conv(inputs: dict[str, Any]) -> int:
    """Rows along time and real products of channels of every node, three or four a mode, whichever is fewer."""
    (times, nodes, i), (_, o, modes, _) = inputs["x"].shape, inputs["weight"].shape
    return nodes * min(table.flops(times, modes, i, o, three) for three in (True, False))


def spectral_conv_bwd(inputs: dict[str, Any]) -> int:
    """One forward for each gradient wanted."""
    return spectral_conv(inputs) * sum(inputs["needs"])


def time_conv(inputs: dict[str, Any]) -> int:
    """The convolution; comparison, product and sum of each element."""
    return spectral_conv(inputs) + 3 * inputs["x"].numel()


def time_conv_bwd(inputs: dict[str, Any]) -> int:
    """The convolution's gradients; the slope of each element, and g added to the gradient of x."""
    return spectral_conv_bwd(inputs) + inputs["x"].numel() * (1 + inputs["needs"][0])


FLOPS = {f.__name__: f for f in (spectral_conv, spectral_conv_bwd, time_conv, time_conv_bwd)}
NEEDS = {"spectral_conv": ("x", "weight"), "time_conv": ("x", "weight")}
