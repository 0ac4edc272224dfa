"""The neighbours that a model chooses: recorded, or given to it.

A change of the last bit of a distance changes which of two nearly equally near points is a neighbour, and with it all
numbers behind, by jumps. Two models are therefore compared on the same neighbours, and the choice by itself.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .knn import distances, least


class Neighbours(TorchDispatchMode):
    """While open, `knn` of ace_fast and torch.topk (which eager models choose with) are seen, and overruled.

    Args:
        given: int64 [B, N, K] for each call in turn, to be returned; None leaves the choice and records it.

    Attributes:
        found: what each call returned, [B, N, K]. features: what ace_fast's searched, [B, N, F].
    """

    def __init__(self, clouds: int, given: Iterable[Tensor] | None = None):
        super().__init__()
        self._clouds, self._given = clouds, None if given is None else iter(given)
        self.found: list[Tensor] = []
        self.features: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        fast = function is torch.ops.ace_fast.knn.default
        if not fast and function is not torch.ops.aten.topk.default:
            return function(*args, **(kwargs or {}))
        result = None
        if self._given is None:
            result = function(*args, **(kwargs or {}))
            index = result if fast else result[1]
            self.found.append(index.unflatten(0, (self._clouds, -1)) if fast else index)
        else:
            self.found.append(next(self._given))
        if fast:
            self.features.append(args[0].detach().unflatten(0, (self._clouds, -1)))
        if result is not None:
            return result
        index = self.found[-1].to(args[0].device)
        return index.flatten(0, 1).clone() if fast else (args[0].gather(-1, index), index.clone())


def excess(seen: Neighbours) -> dict[str, Tensor]:
    """By how much the neighbours of each recorded call of `knn` are farther than the nearest, in units of the largest
    distance that it found: 0 where they are the nearest."""
    found = {}
    for i, (x, index) in enumerate(zip(seen.features, seen.found, strict=True)):
        mine, best = distances(x, index).sort(-1)[0], least(x, index.shape[2])
        found[f"excess of knn {i}"] = ((mine - best) / best.max().clamp(min=1e-300)).max()
    return found
