"""Operations of SEGNN's message and of its gradients; see kernels/counts.py."""

from typing import Any

from ..tensor_product.counts import gate_row, product_row
from . import cost


def _parts(inputs: dict[str, Any]) -> tuple[int, int, int]:
    """First product (weights where that is cheaper), second product, gates and the sum: of all edges and nodes."""
    nodes, edges = inputs["h"].shape[0], inputs["attr"].shape[0]
    one, two = ({name: inputs[f"{name}{n}"] for name in ("paths", "cg_index", "layout")} for n in (1, 2))
    first = edges * product_row(one)
    if cost.roles(list(inputs["paths1"]), inputs["h"].shape[1]) is not None:
        found = cost.factored(list(inputs["paths1"]), inputs["h"].shape[1])
        first = min(first, edges * found.edge_flops + nodes * found.node_flops)
    gates = sum(gate_row(x) for x in (one, two) if x["layout"])
    return first, edges * product_row(two), edges * (gates + inputs["dims1"][2] + 2 * inputs["dims2"][2])


def steerable_message(inputs: dict[str, Any]) -> int:
    """Both products of every edge, biases, gates and the sum."""
    return sum(_parts(inputs))


def steerable_message_bwd(inputs: dict[str, Any]) -> int:
    """A forward, since nothing of it is kept; then one product for each gradient wanted, two gates."""
    first, second, rest = _parts(inputs)
    h, extra, attr, weight1, bias1, weight2, _ = inputs["needs"]
    inner = h or extra or attr or weight1 or bias1
    return (first + second + rest + second * (inner + attr + weight2) + first * ((h or extra) + attr + weight1)
            + 2 * rest)


FLOPS = {f.__name__: f for f in (steerable_message, steerable_message_bwd)}
NEEDS = {"steerable_message": ("h", "extra", "attr", "weight1", "bias1", "weight2", "bias2")}
