"""Operations of the convolution and of its gradients; see kernels/counts.py."""

from typing import Any

from ..tensor_product.counts import product_row


def tensor_product_conv(inputs: dict[str, Any]) -> int:
    """The product of every edge, and its sum at the target."""
    return inputs["x2"].shape[0] * (product_row(inputs) + inputs["dims"][2])


def tensor_product_conv_bwd(inputs: dict[str, Any]) -> int:
    """One product an edge for each gradient wanted; those of x1 are summed at the sources."""
    edges, needs = inputs["x2"].shape[0], inputs["needs"]
    return edges * (product_row(inputs) * sum(needs) + inputs["dims"][0] * bool(needs[0]))


FLOPS = {f.__name__: f for f in (tensor_product_conv, tensor_product_conv_bwd)}
NEEDS = {"tensor_product_conv": ("x1", "x2", "weight")}
UNREAD = {"tensor_product_conv": ("source_order", "source_ptr", "target")}
