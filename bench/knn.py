"""Workload `knn`: the k nearest neighbours in feature space, cases BxN_F with _kK for other than 20.

Eager is the original's: all inner products by one matrix product, squared distances [B, N, N] from them, topk. Which of
two points at nearly the same distance comes first is rounding, so the gate looks at the distances, in float64, of what
was found. 64x1024_3_k40 and 64x1024_63_k40 are the first and the later graphs of dgNN's EdgeConv protocol (features 3
and 64; vectors come in threes).
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor

from ace_fast import functional

from . import eager_vn, gate, steps
from .gate import Numbers
from .steps import Variant

CASES = ("8x1024_63", "8x300_3", "8x300_63", "8x300_126", "8x1024_3", "8x1024_126")
GPU_CASES = ("32x1024_63", "32x1024_3", "32x1024_126", "32x300_63", "64x1024_3_k40", "64x1024_63_k40")
QUICK = "2x256_63"
EXTRAS, GPU_EXTRAS = (), ()
TIMING = {"budget_s": 20.0}


class Data(NamedTuple):
    """Clouds of features."""

    x: Tensor  # [B, N, F]
    k: int
    sizes: dict[str, int]
    prepare_ms: float = 0.0


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """Random features, the same in every process."""
    found = re.fullmatch(r"(\d+)x(\d+)_(\d+)(?:_k(\d+))?", case)
    b, n, f, k = [int(number or 20) for number in found.groups()] if found else [0] * 4
    if min(b, n, f, k) < 1 or k > n:
        raise ValueError(f"knn: the case must be BxN_F[_kK] with K <= N, as in {CASES[0]}, got {case!r}")
    x = torch.randn(b, n, f, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return Data(x, k, {"clouds": b, "points": n, "features": f, "neighbours": k})


def variant(name: str, data: Data) -> Variant:
    """"eager", "compiled" or "fast"."""
    call = lambda: functional.knn(data.x, data.k)  # noqa: E731
    if name != "fast":
        columns = data.x.transpose(1, 2).contiguous()  # the original's layout [B, F, N]
        nearest = steps.compiled(eager_vn.nearest) if name == "compiled" else eager_vn.nearest
        call = lambda: nearest(columns, data.k)  # noqa: E731
    return Variant(call, lambda: {"distances": distances(data.x, call())})


def distances(x: Tensor, neighbours: Tensor) -> Tensor:
    """Squared distances of the points of x [B, N, F] to their neighbours [B, N, K], in float64, cloud by cloud."""
    return torch.stack([(cloud[near] - cloud[:, None]).square().sum(-1)
                        for cloud, near in zip(x.double(), neighbours, strict=True)])


def least(x: Tensor, k: int) -> Tensor:
    """The k least squared distances of every point, in ascending order, float64 [B, N, k]."""
    found = []
    for cloud in x.double():
        square = torch.cdist(cloud, cloud, compute_mode="donot_use_mm_for_euclid_dist").square()
        found.append(square.topk(k, largest=False)[0])
    return torch.stack(found)


def judge(data: Data, eager: Numbers) -> gate.Judge:
    """The least distances, by differences of coordinates in float64."""
    single = eager if data.x.dtype == torch.float32 else variant("eager", data._replace(x=data.x.float())).check()
    return gate.judge({"distances": least(data.x, data.k)}, single, data.x.dtype)
