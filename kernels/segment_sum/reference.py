"""out[n] = sum of the rows x[e] with index[e] = n; its adjoint is the gather g[index]."""

import torch
from torch import Tensor


def forward(x: Tensor, index: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """x [E, C], index [E] -> [N, C], N = len(ptr) - 1; rows with an index outside 0..N-1 are left out."""
    n = ptr.shape[0] - 1
    inside = (index >= 0) & (index < n)
    slot = torch.where(inside, index, n)
    return x.new_zeros(n + 1, x.shape[1]).index_add(0, slot, x)[:n].contiguous()


def backward(g: Tensor, index: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """g [N, C], index [E] -> [E, C]; rows with an index outside 0..N-1 are zero."""
    n = g.shape[0]
    inside = (index >= 0) & (index < n)
    padded = torch.cat([g, g.new_zeros(1, g.shape[1])])
    return padded.index_select(0, torch.where(inside, index, n))
