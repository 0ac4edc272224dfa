"""What a case is: named inputs of one operator, small for the tests, large for the benchmarks; and what an axis is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .calls import Operator


class Case(NamedTuple):
    """`inputs(generator)` gives the operator's arguments by name, in order, without `backend`, floats in float64.

    The tensors named in `differentiable` are cast to the tested dtype and differentiated; all else stays as it is.
    An operator without derivatives names none: then all its float tensors are cast.
    """

    name: str
    op: Operator  # e.g. segment_sum_op
    reference: Callable  # plain PyTorch, the same arguments without backend
    inputs: Callable[[torch.Generator], dict[str, Any]]
    differentiable: tuple[str, ...]
    note: str  # what this case exercises
    # argument -> scale of its gradient where max|gradient| says too little (scalars: sum of |terms|)
    scale: Callable[[dict[str, Tensor], list[Tensor]], dict[str, float]] | None = None
    refused_by: tuple[str, ...] = ()  # backends that do not take this case
    no_float64: tuple[str, ...] = ()  # backends that do not take it in float64

    def __repr__(self) -> str:
        return f"{self.op.name}-{self.name}"


class Axis(NamedTuple):
    """One size of an operator that grows while the others stay: `case(size)`, an operator that is no gradient.

    Time and memory are measured along it (bench/scaling.py), forward and backward, and compared with what the algorithm
    says: time grows as size^order for large sizes, with the counted operations where `order` is None.
    """

    name: str  # "edges", "points", "channels" or "degree"
    sizes: tuple[int, ...]
    case: Callable[[int], Case]
    order: float | None = 1.0


DECADES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cast(inputs: dict[str, Any], case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """The case's inputs on `device`, in `dtype` where they are differentiable, and requiring grad there."""
    names = case.differentiable or [n for n, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    out = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            value = value.to(device)
            if name in names:
                value = value.detach().to(dtype).requires_grad_(name in case.differentiable)
        out[name] = value
    return out
