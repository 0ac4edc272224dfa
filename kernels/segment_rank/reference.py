"""Ranks inside each segment with random ties, and the vectors of the ranks beside features, in plain PyTorch."""

import torch
from torch import Tensor

from ..philox import philox


def keys(seed: Tensor, rows: int) -> Tensor:
    """seed [K] -> [K, rows] int64: what orders tied rows, the first two words of Philox."""
    low, high, *_ = philox(seed, rows)
    return high << 32 | low


def sorted_groups(score: Tensor, ptr: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """score [N], ptr [B + 1] -> the rows [N] by segment, then score (stable), where each one's segment begins, -1 for
    rows of none, and the number [N] of its group: of equal scores, and of scores in steps of at most the tolerance."""
    rows = torch.arange(score.shape[0], device=score.device)
    segment = torch.searchsorted(ptr[1:].contiguous(), rows, right=True).masked_fill(rows < ptr[0], -1)
    inside = (segment >= 0) & (segment < ptr.shape[0] - 1)
    start = torch.where(inside, ptr[segment.clamp(min=0)], -1)
    first = score.argsort(stable=True)  # NaN comes last
    first = first[segment[first].argsort(stable=True)]
    s, owner = score[first], segment[first]
    below, above = s[:-1], s[1:]
    tied = (above - below <= tolerance) | (above == below) | (above.isnan() & below.isnan())
    apart = torch.nn.functional.pad(~tied | (owner[1:] != owner[:-1]), (1, 0))[: len(first)]
    return first, start[first], apart.cumsum(0)


def ranks(first: Tensor, start: Tensor, group: Tensor, key: Tensor, unscored: Tensor) -> tuple[Tensor, Tensor]:
    """`sorted_groups`, key [K, N] and which rows [N] have no score -> rank [K, N] and order [K, N]."""
    place = torch.arange(first.shape[0], device=first.device)
    by_key = key[:, first].argsort(stable=True)
    order = first[by_key.gather(1, group[by_key].argsort(stable=True))]
    order = torch.where(start < 0, place, order)
    own = torch.where(start < 0, -1, place - start).masked_fill(unscored[first], -1)  # a group has one of each
    return torch.empty_like(order).scatter(1, order, own.expand_as(order)), order


def forward(score: Tensor, ptr: Tensor, seed: Tensor, longest: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """score [N], ptr [B + 1], seed [K] -> rank [K, N] in the row's own segment, and order [K, N]: the rows by rank.

    NaN comes last and has rank -1, as have rows of no segment.
    """
    return ranks(*sorted_groups(score, ptr, tolerance), keys(seed, score.shape[0]), score.isnan())


def concat(x: Tensor, table: Tensor, rank: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """x [N, F], table [T, C], rank [K, N] -> [K, N, F + C]: each row and its rank's vector; NaN for a rank outside."""
    outside = (rank < 0) | (rank >= table.shape[0])
    padded = torch.cat([table, table.new_full((1, table.shape[1]), torch.nan)])
    vectors = padded[torch.where(outside, table.shape[0], rank)]  # [K, N, C]
    return torch.cat([x.expand(rank.shape[0], *x.shape), vectors], 2)


def concat_backward(g: Tensor, rank: Tensor, order: Tensor, ptr: Tensor, rows: int) -> Tensor:
    """g [K, N, C], rank [K, N] -> [T, C], T = rows: the sum of g over what has each rank."""
    slot = torch.where((rank >= 0) & (rank < rows), rank, rows).flatten()
    return g.new_zeros(rows + 1, g.shape[2]).index_add(0, slot, g.flatten(0, 1))[:rows].contiguous()
