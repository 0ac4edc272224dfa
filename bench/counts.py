"""Floating-point operations and bytes of each operator, as functions of a case's inputs.

One multiply-add is two operations. Bytes are the least that memory must see: every input read once, every output
written once. The work is that of the exact algorithm with the fewest operations (a matrix product on the cheaper side
of each Clebsch-Gordan contraction), so a kernel that does more work scores lower, not higher. A gradient of a
multilinear operator is the same contraction with another argument left open and counts as one forward each.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ace_fast.kernels.spectral_conv import table
from ace_fast.kernels.steerable_message import cost
from ace_fast.kernels.tensor_product.table import MODES, Path, unpack

from . import conv_counts, vn_counts

SILU = 5  # negation, exponential, sum, quotient, product
SIGMOID = 4
GELU = 5  # scaling, error function, sum, two products
GELU_DERIVATIVE = 9


class Count(NamedTuple):
    """Floating-point operations and bytes of one call."""

    flops: int
    bytes: int

    def __add__(self, other: "Count") -> "Count":
        return Count(self.flops + other.flops, self.bytes + other.bytes)


def tensors(values) -> list[Tensor]:
    """The tensors among an operator's arguments or results."""
    values = [values] if isinstance(values, Tensor) else values
    return [v for v in values if isinstance(v, Tensor)]


def nbytes(values) -> int:
    """Bytes of all tensors among `values`, each once."""
    return sum(x.numel() * x.element_size() for x in {id(x): x for x in tensors(values)}.values())


def segment_sum(inputs: dict[str, Any]) -> int:
    """One addition for each element of x [E, C]."""
    return inputs["x"].numel()


def segment_sum_bwd(inputs: dict[str, Any]) -> int:
    """The gather only moves."""
    return 0


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


def derivatives(wanted: int, direction: str) -> tuple[int, int, int, int]:
    """How often a step of a product runs over its terms, its three arguments, their first gradients and its output.

    Args:
        wanted: arguments whose first gradient a second derivative starts from; the last one is that of all three.
        direction: "forward", "forward+backward" or "double_backward".

    A gradient of the trilinear product is one product, that of a gradient is two: an argument's gradient depends on the
    two others. Each call reads its arguments and writes its results once.
    """
    return {"forward": (1, 1, 0, 1), "forward+backward": (4, 3, 0, 2),
            "double_backward": (1 + 3 * wanted, 4, 2, 3)}[direction]


def tensor_product(inputs: dict[str, Any]) -> int:
    """The product of every row and its bias."""
    bias = inputs.get("bias")
    return inputs["x1"].shape[0] * (product_row(inputs) + (0 if bias is None else bias.numel()))


def tensor_product_bwd(inputs: dict[str, Any]) -> int:
    """One forward for each gradient wanted of x1, x2 and weight, one addition a row for each bias."""
    z = inputs["x1"].shape[0]
    bias = sum(inputs["bias_slots"][1::2]) if inputs["needs"][3] else 0
    return z * (product_row(inputs) * sum(inputs["needs"][:3]) + bias)


def tensor_product_conv(inputs: dict[str, Any]) -> int:
    """The product of every edge, and its sum at the target."""
    return inputs["x2"].shape[0] * (product_row(inputs) + inputs["dims"][2])


def tensor_product_conv_bwd(inputs: dict[str, Any]) -> int:
    """One product an edge for each gradient wanted; those of x1 are summed at the sources."""
    edges, needs = inputs["x2"].shape[0], inputs["needs"]
    return edges * (product_row(inputs) * sum(needs) + inputs["dims"][0] * bool(needs[0]))


def gate_row(inputs: dict[str, Any]) -> int:
    """SiLU and gain on scalars, sigmoid and gain on gates, one product for each gated component."""
    scalars, gates, *gated = inputs["layout"]
    components = sum(m * d for m, d in zip(gated[::2], gated[1::2], strict=True))
    return scalars * (SILU + 1) + gates * (SIGMOID + 1) + components


def gated_tensor_product(inputs: dict[str, Any]) -> int:
    """The product and its gate."""
    return tensor_product(inputs) + inputs["x1"].shape[0] * gate_row(inputs)


def gated_tensor_product_bwd(inputs: dict[str, Any]) -> int:
    """The derivative of the gate is counted as two gates (values again, then the chain rule)."""
    return tensor_product_bwd(inputs) + 2 * inputs["x1"].shape[0] * gate_row(inputs)


def _message_parts(inputs: dict[str, Any]) -> tuple[int, int, int]:
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
    return sum(_message_parts(inputs))


def steerable_message_bwd(inputs: dict[str, Any]) -> int:
    """A forward, since nothing of it is kept; then one product for each gradient wanted, two gates."""
    first, second, rest = _message_parts(inputs)
    h, extra, attr, weight1, bias1, weight2, _ = inputs["needs"]
    inner = h or extra or attr or weight1 or bias1
    return (first + second + rest + second * (inner + attr + weight2) + first * ((h or extra) + attr + weight1)
            + 2 * rest)


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


def _egnn_parts(inputs: dict[str, Any]) -> tuple[int, int, int, int]:
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
    return sum(_egnn_parts(inputs))


def egnn_message_bwd(inputs: dict[str, Any]) -> int:
    """Two products for each product (as far as they are asked for), the derivative of each SiLU, the small maps twice.

    Whether pre-activations were kept is the kernel's affair: forming them again is not counted.
    """
    nodes, products, silus, rest = _egnn_parts(inputs)
    x, h, edge, weight1, bias1, weight2, bias2, weight3, *_ = inputs["needs"]
    first = x or h or edge or weight1 or bias1
    inner = first or weight2 or bias2
    hidden, message, coordinate = (inputs[f"weight{n}"].shape[0] for n in (1, 2, 3))
    third = products * coordinate // (hidden + coordinate)
    return (nodes * (h + weight1) + third * (inner + weight3) + (products - third) * (first + weight2) + 2 * silus
            + 2 * rest)


def dual_update(inputs: dict[str, Any]) -> int:
    """A handful of operations a gate (gradient, primal, slack and dual step); it is launch that costs."""
    return 10 * max((x.numel() for x in tensors(inputs.values())), default=0)


def radius_graph(inputs: dict[str, Any]) -> int:
    """Three differences, squares, their sum and a comparison, for all pairs of a molecule; in a crystal for the pairs
    that are closer than r at its mean density."""
    sizes = inputs["batch"].bincount().double()
    pairs = sizes.square()
    if inputs["cell"] is not None:
        inside = 4 / 3 * math.pi * inputs["r"] ** 3 / torch.linalg.det(inputs["cell"].double()).abs()
        pairs = pairs * (inside if len(inside) == 1 else inside[: len(sizes)])
    return int(9 * pairs.sum())


FLOPS = {
    f.__name__: f
    for f in (
        segment_sum, segment_sum_bwd, tensor_product, tensor_product_bwd, tensor_product_conv,
        tensor_product_conv_bwd, gated_tensor_product, gated_tensor_product_bwd, steerable_message,
        steerable_message_bwd, relaxed_linear, relaxed_linear_bwd, spectral_conv, spectral_conv_bwd, time_conv,
        time_conv_bwd, dual_update, radius_graph, egnn_message, egnn_message_bwd,
    )
} | vn_counts.FLOPS | conv_counts.FLOPS

_PRODUCT = ("x1", "x2", "weight", "bias")
_VECTORS = ("p", "d", "mean", "var", "weight", "bias")
# what the `needs` of an operator's _bwd stand for
NEEDS = {
    "tensor_product": _PRODUCT, "tensor_product_conv": _PRODUCT[:3], "gated_tensor_product": _PRODUCT,
    "steerable_message": ("h", "extra", "attr", "weight1", "bias1", "weight2", "bias2"),
    "egnn_message": ("x", "h", "edge", "weight1", "bias1", "weight2", "bias2", "weight3", "bias3", "weight4", "bias4"),
    "relaxed_linear": ("x", "weight", "bias", "gamma"),
    "spectral_conv": ("x", "weight"), "time_conv": ("x", "weight"),
    "vn_linear": ("x", "weight", "dense", "bias", "gamma"), "vn_norm_stats": (), "vn_edge_stats": (),
    "vn_leaky_relu": _VECTORS, "vn_edge_conv": _VECTORS,
} | conv_counts.NEEDS
# inputs that an operator hands to its gradient alone
UNREAD = {"tensor_product_conv": ("source_order", "source_ptr", "target")} | conv_counts.UNREAD


def forward(op: str, inputs: dict[str, Any], outputs) -> Count | None:
    """Counts of one call of `op`; None where nobody has counted it."""
    if op not in FLOPS:
        return None
    read = [x for name, x in inputs.items() if name not in UNREAD.get(op, ())]
    return Count(int(FLOPS[op](inputs)), nbytes([*read, *tensors(outputs)]))


def backward(op: str, inputs: dict[str, Any], outputs) -> Count | None:
    """Counts of the gradient of `op` with respect to the inputs that require one.

    Reads the inputs and the outputs' gradients, writes the gradients.
    """
    if op not in NEEDS and op not in ("segment_sum", "segment_sum_bwd"):
        return None
    wanted = [x for x in tensors(inputs.values()) if x.requires_grad]
    bytes_ = nbytes([*inputs.values(), *tensors(outputs)]) + nbytes(wanted)
    if op == "segment_sum":
        return Count(0, bytes_ - nbytes(wanted))  # x itself is not needed again
    if op == "segment_sum_bwd":
        return Count(tensors(outputs)[0].numel(), bytes_ - nbytes(wanted))
    needs = [isinstance(inputs.get(n), Tensor) and inputs[n].requires_grad for n in NEEDS[op]]
    return Count(int(FLOPS[f"{op}_bwd"](inputs | {"needs": needs})), bytes_)


def throughput(count: Count, ms: float) -> dict[str, float]:
    """GFLOP/s and GB/s at `ms` a call."""
    return {"gflops": count.flops / ms / 1e6, "gbs": count.bytes / ms / 1e6}


def rows(inputs: dict[str, Any], differentiable: tuple[str, ...]) -> int:
    """The leading size of the case (edges or nodes), for rows per second."""
    for name in ("source", "neighbour"):  # edges, not the nodes that the first argument has
        if name in inputs:
            return inputs[name].shape[0]
    first = next((inputs[n] for n in differentiable if isinstance(inputs.get(n), torch.Tensor)), None)
    return first.shape[0] if first is not None and first.dim() else 0
