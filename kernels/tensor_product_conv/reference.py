"""out[n] = sum over the edges e that end at n of the product of x1[source e], x2[e] and the weights of e."""

import torch
from torch import Tensor

from ..segment_sum import reference as segment_sum
from ..tensor_product import reference as tensor_product


def _edges(source: Tensor, sources: int, target: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """Source and target of each edge, both -1 (zero rows, left out of sums) where one of them is outside its range."""
    inside = (source >= 0) & (source < sources) & (target >= 0) & (target < targets)
    return torch.where(inside, source, -1), torch.where(inside, target, -1)


def forward(x1, x2, weight, source, source_order, source_ptr, target, target_order, target_ptr, cg_index, cg_value,
            dims, paths, atomic) -> Tensor:
    """x1 [N_src, dim1], x2 [E, dim2], weight [n] or [E, n] -> [N_dst, dim_out], N_dst = len(target_ptr) - 1."""
    source, target = _edges(source, x1.shape[0], target, target_ptr.shape[0] - 1)
    rows = segment_sum.backward(x1, source, source_order, source_ptr)
    products = tensor_product.forward(rows, x2, weight, None, cg_index, cg_value, dims, paths, [])
    return segment_sum.forward(products, target, target_order, target_ptr)


def backward(g, x1, x2, weight, source, source_order, source_ptr, target, target_order, target_ptr, cg_index, cg_value,
             dims, paths, atomic, needs) -> tuple[Tensor, Tensor, Tensor]:
    """g [N_dst, dim_out] -> gradients of (x1, x2, weight); those not in `needs` are empty [0]."""
    source, target = _edges(source, x1.shape[0], target, g.shape[0])
    rows = segment_sum.backward(x1, source, source_order, source_ptr)
    g_rows = segment_sum.backward(g, target, target_order, target_ptr)
    g_x1, g_x2, g_weight, _ = tensor_product.backward(
        g_rows, rows, x2, weight, cg_index, cg_value, dims, paths, [], [*needs, False])
    if needs[0]:
        g_x1 = segment_sum.forward(g_x1, source, source_order, source_ptr)
    return g_x1, g_x2, g_weight
