"""Floating-point operations and bytes of each operator, as functions of a case's inputs.

One multiply-add is two operations. Every room declares its operations in kernels/<room>/counts.py (see
kernels/counts.py); here they are found by the operator's name. Bytes are the least that memory must see: every input
read once, every output written once. The work is that of the exact algorithm with the fewest operations, so a kernel
that does more work scores lower, not higher.
"""

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ace_fast.kernels import ROOMS

_DECLARED = [importlib.import_module(f"ace_fast.kernels.{room}.counts") for room in ROOMS]
FLOPS = {op: flops for room in _DECLARED for op, flops in room.FLOPS.items()}
NEEDS = {op: names for room in _DECLARED for op, names in getattr(room, "NEEDS", {}).items()}
UNREAD = {op: names for room in _DECLARED for op, names in getattr(room, "UNREAD", {}).items()}


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
    asked = {"needs": needs, "given": inputs.get("needs")}  # the latter where `op` is a gradient itself
    return Count(int(FLOPS[f"{op}_bwd"](inputs | asked)), bytes_)


def rows(inputs: dict[str, Any], differentiable: tuple[str, ...]) -> int:
    """The leading size of the case (edges or nodes), for rows per second."""
    for name in ("source", "neighbour"):  # edges, not the nodes that the first argument has
        if name in inputs:
            return inputs[name].shape[0]
    first = next((inputs[n] for n in differentiable if isinstance(inputs.get(n), torch.Tensor)), None)
    return first.shape[0] if first is not None and first.dim() else 0
