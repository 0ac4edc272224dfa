"""Operations of EGNN's message and of its gradients; see kernels/counts.py."""

from typing import Any

from ..counts import SILU


def _parts(inputs: dict[str, Any]) -> tuple[int, int, int, int]:
    """Products of the nodes, of the edges, SiLUs and everything else of an EGNN message."""
    (nodes, dim), edges = inputs["x"].shape, inputs["target_index"].shape[0]
    hidden, message, coordinate = (inputs[f"weight{n}"].shape[0] for n in (1, 2, 3))
    features = 0 if inputs["edge"] is None else inputs["edge"].shape[1]
    products = 2 * edges * (hidden * message + message * coordinate)
    rest = 3 * dim + hidden * (1 + 2 * (1 + features)) + 2 * message + 3 * coordinate + 2 * dim
    return (4 * nodes * inputs["h"].shape[1] * hidden, products, SILU * edges * (hidden + message + coordinate),
            edges * rest)


def egnn_message(inputs: dict[str, Any]) -> int:
    """The first layer's products at the nodes, two products of every edge, three SiLUs, biases and both sums."""
    return sum(_parts(inputs))


def egnn_message_bwd(inputs: dict[str, Any]) -> int:
    """Two products for each product (as far as they are asked for), the derivative of each SiLU, the small maps twice.

    Whether pre-activations were kept is the kernel's affair: forming them again is not counted.
    """
    nodes, products, silus, rest = _parts(inputs)
    x, h, edge, weight1, bias1, weight2, bias2, weight3, *_ = inputs["needs"]
    first = x or h or edge or weight1 or bias1
    inner = first or weight2 or bias2
    hidden, message, coordinate = (inputs[f"weight{n}"].shape[0] for n in (1, 2, 3))
    third = products * coordinate // (hidden + coordinate)
    return (nodes * (h + weight1) + third * (inner + weight3) + (products - third) * (first + weight2) + 2 * silus
            + 2 * rest)


FLOPS = {f.__name__: f for f in (egnn_message, egnn_message_bwd)}
NEEDS = {"egnn_message": ("x", "h", "edge", "weight1", "bias1", "weight2", "bias2", "weight3", "bias3", "weight4",
                          "bias4")}
