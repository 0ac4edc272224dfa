"""The CUDA backend: one kernel for a whole message where a block can hold it, the kernels of its parts where not."""

import functools

import torch
from torch import Tensor

from ..define import mask
from ..segment_sum.op import BACKENDS as SEGMENT_SUM
from ..tensor_product.op import BACKENDS as TENSOR_PRODUCT
from ..triton_common import matmul_precision
from . import reference
from .reference import Arguments

_cuda = torch.ops.ace_fast_cuda
_parts = reference.compose(SEGMENT_SUM["cuda"], TENSOR_PRODUCT["cuda"])


@functools.cache
def _fits(dtype: torch.dtype, device: torch.device, d: int, attributes: int, tables: tuple, backward: bool) -> bool:
    h = torch.empty(0, d, dtype=dtype, device=device)
    return _cuda.steerable_message_fits(h, attributes, *map(list, tables), backward)


def _whole(a: Arguments, backward: bool) -> bool:
    tables = (a.dims1, a.paths1, a.bias_slots1, a.layout1, a.dims2, a.paths2, a.bias_slots2, a.layout2)
    return _fits(a.h.dtype, a.h.device, a.h.shape[1], a.attr.shape[1], tuple(map(tuple, tables)), backward)


def forward(*arguments) -> Tensor:
    """As the reference."""
    a = Arguments(*arguments)
    return _cuda.steerable_message(*a, matmul_precision(a.h)) if _whole(a, False) else _parts.forward(*arguments)


def backward(g, *arguments) -> tuple[Tensor, ...]:
    """As the reference. The attributes' gradient, which training does not ask for, is left to the parts."""
    *inputs, needs = arguments
    a = Arguments(*inputs)
    if needs[2] or not _whole(a, True):
        return _parts.backward(g, *arguments)
    return _cuda.steerable_message_bwd(g, *a, mask(needs), matmul_precision(a.h))
