"""k nearest neighbours inside each cloud, in plain PyTorch: all distances of a few queries at a time, stable sort."""

import torch
from torch import Tensor

CHUNK = 1 << 22  # differences formed at a time


def forward(x: Tensor, ptr: Tensor, longest: int, k: int, include_self: bool) -> Tensor:
    """x [M, F], ptr [B + 1] -> [M, k] int64, indices inside the row's own cloud, nearest first, ties by lower index.

    NaN distances count as infinite; where a cloud has too few points, the index is 0.
    """
    m, f = x.shape
    x = x.float() if x.dtype == torch.bfloat16 else x
    if m == 0:
        return torch.empty(m, k, dtype=torch.int64, device=x.device)
    rows = torch.arange(m, device=x.device)
    cloud = torch.searchsorted(ptr[1:].contiguous(), rows, right=True)
    bounds = torch.nn.functional.pad(ptr, (0, 1), value=m).clamp(0, m)  # rows behind the last cloud: no neighbours
    start, stop = bounds[cloud], bounds[(cloud + 1).clamp(max=ptr.shape[0] - 1)]
    candidates = torch.arange(max(longest, k), device=x.device)
    step = max(1, CHUNK // (len(candidates) * f))
    found = []
    for q in rows.split(step):
        j = start[q, None] + candidates  # [Q, longest], global rows
        absent = (candidates >= longest) | (j >= stop[q, None]) | (q < start[q])[:, None]
        if not include_self:
            absent |= j == q[:, None]
        distance = (x[j.clamp(max=m - 1)] - x[q, None]).square().sum(-1)
        distance = distance.masked_fill(distance.isnan(), torch.inf)
        order = distance.argsort(dim=-1, stable=True)
        absent = absent.gather(1, order)
        order = order.masked_fill(absent, 0)
        # what is no candidate goes behind the infinite distances
        found.append(order.gather(1, absent.to(torch.uint8).argsort(dim=-1, stable=True)[:, :k]))
    return torch.cat(found)
