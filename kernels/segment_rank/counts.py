"""Operations of ranks, and of the vectors beside features; see kernels/counts.py."""

import math
from typing import Any


def segment_rank(inputs: dict[str, Any]) -> int:
    """The comparisons of a sort, n log2 n in a segment of n nodes, and a difference and a comparison of neighbours."""
    sizes = inputs["ptr"].diff().tolist()
    return sum(n * (math.ceil(math.log2(n)) + 2) for n in sizes if n > 0)


def rank_concat(inputs: dict[str, Any]) -> int:
    """It only moves."""
    return 0


def rank_concat_bwd(inputs: dict[str, Any]) -> int:
    """One addition for each number of g [K, N, C], for rank_concat the part of the gradient that is the table's."""
    return inputs["rank"].numel() * (inputs["g"].shape[2] if "g" in inputs else inputs["table"].shape[1])


FLOPS = {f.__name__: f for f in (segment_rank, rank_concat, rank_concat_bwd)}
NEEDS = {"rank_concat": ("x", "table")}
UNREAD = {"rank_concat": ("order", "ptr")}
