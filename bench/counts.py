"""Floating-point operations and bytes of each operator, as functions of a case's inputs.

One multiply-add is two operations. Bytes are the least that memory must see: every input read once, every output
written once. The work is that of the exact algorithm with the fewest operations (a matrix product on the cheaper side
of each Clebsch-Gordan contraction), so a kernel that does more work scores lower, not higher. A gradient of a
multilinear operator is the same contraction with another argument left open and counts as one forward each.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ace_fast.kernels.tensor_product.table import unpack

from . import vn_counts

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
    """For one row and each path: T_vik = sum_j C_ijk x2_vj, then x1, T and W contracted in the cheaper order."""
    total = 0
    for p in unpack(list(inputs["paths"])):
        ijk = inputs["cg_index"][p.start:p.stop]
        pairs = len({(int(i), int(k)) for i, _, k in ijk.tolist()})
        weights_first = 2 * p.U * p.V * p.W * p.d1 + 2 * p.V * p.W * pairs
        contract_first = 2 * p.U * p.V * pairs + 2 * p.U * p.V * p.W * p.d3
        total += 2 * len(ijk) * p.V + min(weights_first, contract_first)
    return total


def tensor_product(inputs: dict[str, Any]) -> int:
    """The product of every row and its bias."""
    bias = inputs.get("bias")
    return inputs["x1"].shape[0] * (product_row(inputs) + (0 if bias is None else bias.numel()))


def tensor_product_bwd(inputs: dict[str, Any]) -> int:
    """One forward for each gradient wanted of x1, x2 and weight, one addition a row for each bias."""
    z = inputs["x1"].shape[0]
    bias = sum(inputs["bias_slots"][1::2]) if inputs["needs"][3] else 0
    return z * (product_row(inputs) * sum(inputs["needs"][:3]) + bias)


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


def dual_update(inputs: dict[str, Any]) -> int:
    """A handful of operations a gate (gradient, primal, slack and dual step); it is launch that costs."""
    return 10 * max((x.numel() for x in tensors(inputs.values())), default=0)


FLOPS = {
    f.__name__: f
    for f in (
        segment_sum, segment_sum_bwd, tensor_product, tensor_product_bwd, gated_tensor_product,
        gated_tensor_product_bwd, relaxed_linear, relaxed_linear_bwd, dual_update,
    )
} | vn_counts.FLOPS

_PRODUCT = ("x1", "x2", "weight", "bias")
_VECTORS = ("p", "d", "mean", "var", "weight", "bias")
# what the `needs` of an operator's _bwd stand for
NEEDS = {
    "tensor_product": _PRODUCT, "gated_tensor_product": _PRODUCT, "relaxed_linear": ("x", "weight", "bias", "gamma"),
    "vn_linear": ("x", "weight", "dense", "bias", "gamma"), "vn_norm_stats": (), "vn_edge_stats": (),
    "vn_leaky_relu": _VECTORS, "vn_edge_conv": _VECTORS,
}


def forward(op: str, inputs: dict[str, Any], outputs) -> Count | None:
    """Counts of one call of `op`; None where nobody has counted it."""
    if op not in FLOPS:
        return None
    return Count(int(FLOPS[op](inputs)), nbytes([*inputs.values(), *tensors(outputs)]))


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
    first = next((inputs[n] for n in differentiable if isinstance(inputs.get(n), torch.Tensor)), None)
    return first.shape[0] if first is not None and first.dim() else 0
