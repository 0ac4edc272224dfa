"""Inputs of knn. Small cases lie on a grid of eighths, so that every dtype and backend finds the same distances."""

import torch

from ..cases import Axis, Case
from . import reference
from .op import knn_op


def _case(name: str, note: str, sizes: list[int], features: int, k: int, include_self: bool = True, grid: int = 8,
          random: bool = False, change=None) -> Case:
    def make(g: torch.Generator) -> dict:
        shape = (sum(sizes), features)
        x = (torch.randn(shape, generator=g, dtype=torch.float64) if random
             else torch.randint(-grid, grid + 1, shape, generator=g).double() / 8)
        if change is not None:
            change(x)
        ptr = torch.tensor([0, *sizes]).cumsum(0)
        return {"x": x, "ptr": ptr, "longest": max(sizes, default=0), "k": k, "include_self": include_self}

    return Case(name, knn_op, reference.forward, make, (), note)


def _duplicates(x: torch.Tensor) -> None:
    x[len(x) // 2:] = x[: len(x) - len(x) // 2].clone()


SMALL = [
    _case("tiny", "two clouds of three points", [3, 3], 2, 2),
    _case("odd", "no size is a power of two", [13, 13, 13], 5, 7),
    _case("both_branches", "several tiles of candidates and blocks of queries, most tiles beaten", [150], 3, 6,
          grid=64),
    _case("long_sum", "259 features", [35], 259, 5, grid=16),
    _case("empty", "no clouds", [], 3, 4),
    _case("duplicates", "every point twice", [90], 3, 7, change=_duplicates),
    _case("identical", "all points at one place: the lowest indices", [134, 5], 3, 5, change=lambda x: x.fill_(0.625)),
    _case("line", "distances of neighbouring points tie in pairs", [70], 1, 6,
          change=lambda x: x.copy_(torch.arange(70)[:, None])),
    _case("nearer_later", "the second tile is nearer to its points than all before", [257], 2, 5,
          change=lambda x: x[128:].add_(4)),
    _case("ragged", "clouds of 1 to 69 points, empty ones between", [9, 0, 69, 4, 0, 17], 4, 4),
    _case("without_self", "a point is no neighbour of its own", [45, 12], 3, 11, include_self=False),
    _case("without_self_all", "all the others", [20], 3, 19, include_self=False),
    _case("all_points", "k is the size of the cloud", [37], 3, 37),
    _case("one", "k is 1: the point itself or its first duplicate", [100], 2, 1),
]


def _cloud(name: str, note: str, clouds: int, points: int, features: int, k: int) -> Case:
    return _case(f"{name}_{clouds}x{points}_{features}", note, [points] * clouds, features, k, random=True)


LARGE = [
    *(_cloud("modelnet", f"the graphs of VN-DGCNN: {clouds} clouds of {points} points, k 20", clouds, points, f, 20)
      for clouds in (8, 32) for points in (300, 1024) for f in (3, 63, 126, 255)),
    _cloud("scan", "one large cloud, k 64", 1, 16384, 3, 64),
    _cloud("dgnn", "the first graph of dgNN's protocol, k 40", 64, 1024, 3, 40),
    _cloud("dgnn", "the later graphs of dgNN's protocol, k 40", 64, 1024, 64, 40),
]

SCALING = [
    Axis("points", (500, 1000, 2000, 4000, 8000, 16000),
         lambda n: _cloud("points", "one cloud, all its pairs", 1, n, 3, 20), 2),
    Axis("channels", (16, 64, 256, 1024), lambda c: _cloud("channels", "one cloud of 1000 points", 1, 1000, c, 20)),
]
