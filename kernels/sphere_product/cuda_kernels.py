"""The CUDA backend: float32 and bfloat16 products on mirrored points, of two fields of a degree that are kept to it on
separable ones too; what inputs share is summed afterwards."""

import torch
from torch import Tensor

from ..define import mask
from .reference import channels_of, reduce
from .tables import FORMS, GPU_SEPARABLE, MOST, unpack

_cuda = torch.ops.ace_fast_cuda
MOST_DEGREE = 10
COMPONENTS = 700  # of all tensors together: what the shared memory of every GPU takes


def refuses(dtype: torch.dtype, grid, slots) -> str:
    """Why the kernels do not take such a product; empty where they do."""
    if dtype == torch.float64:
        return "its tensors are float64"
    form, slots = FORMS[grid[0]], unpack(slots)
    if form == "separable":
        equal = len(slots) == 3 and len({slot._replace(offset=0, twist=0) for slot in slots}) == 1
        if not equal or slots[0].degree not in GPU_SEPARABLE or slots[0].power != 1 or grid[3] != 1:
            return "its table is separable and no product of two fields of a degree of 6 to 9 kept to it"
    elif form != "mirrored":
        return f"its table is {form}, not mirrored"
    if max(slot.degree for slot in slots) > MOST_DEGREE:
        return f"its degrees are {[slot.degree for slot in slots]}, at most {MOST_DEGREE} are taken"
    if sum(slot.dim for slot in slots) > COMPONENTS:
        return f"its tensors have more than {COMPONENTS} components"
    return ""


def forward(*args) -> Tensor:
    """As in the reference."""
    xs, (table, grid, slots, ir_mul) = [x for x in args[:MOST] if x is not None], args[MOST:]
    return _cuda.point_product(None, xs, table, grid, slots, ir_mul, 1, channels_of(xs, unpack(slots)[1:]))[0]


def backward(g: Tensor, *args) -> tuple[Tensor, ...]:
    """As in the reference."""
    *args, needs = args
    xs, (table, grid, slots, ir_mul) = [x for x in args[:MOST] if x is not None], args[MOST:]
    read = unpack(slots)
    found = iter(_cuda.point_product(g, xs, table, grid, slots, ir_mul, mask(needs) << 1,
                                     g.shape[1] // read[0].dim))
    return tuple([reduce(next(found), xs[n].shape, read[n + 1].dim, ir_mul).contiguous() if need else g.new_empty(0)
                  for n, need in enumerate(needs)])
