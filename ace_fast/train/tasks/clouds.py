"""What tasks on point clouds share: augmented batches, and accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...data import CloudBatcher, drop_points, rotate
from ...data.shares import shares


class Clouds:
    """Batches (points [B, N, 3], labels [B]), each cloud rotated and thinned at random; resumed, the draws go on."""

    def __init__(self, batches: CloudBatcher, rotation: str, drop: float, dtype: torch.dtype, seed: int) -> None:
        self._batches, self._rotation, self._drop, self._dtype = batches, rotation, drop, dtype
        self._generator = torch.Generator(batches.clouds.points.device).manual_seed(seed)
        self.shard()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for points, labels in self._batches:
            points = rotate(points.to(self._dtype), self._rotation, self._generator)
            if self._drop:
                points = drop_points(points, self._drop, generator=self._generator)
            # Every process draws for all, so that their number changes nothing.
            parts = shares(len(labels), *self._shares)
            for number, (part, self.weight) in enumerate(parts, 1):
                self.last, self._own = number == len(parts), (points[part], labels[part])
                yield self._own

    def shard(self, rank: int = 0, world: int = 1, accumulate: int = 1, least: int = 1) -> None:
        """As that of `Batcher`."""
        self._shares = rank, world, accumulate, least
        self.weight, self.last = 1.0, True

    def split(self, count: int) -> Iterator[tuple[tuple[Tensor, Tensor], float]]:
        """As that of `Batcher`."""
        points, labels = self._own
        for part, share in shares(len(labels), 0, 1, count, self._shares[3]):
            yield (points[part], labels[part]), share * self.weight

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._batches.load_state_dict(state["batches"])
        self._generator.set_state(state["generator"].cpu())


def accuracies(found: Tensor, labels: Tensor, classes: int) -> tuple[float, float]:
    """Share of right answers [S] in all, and its mean over those of the K classes that occur in `labels` [S]."""
    count = torch.bincount(labels, minlength=classes).double()
    right = torch.bincount(labels[found == labels], minlength=classes).double()
    return float(right.sum() / count.sum()), float((right / count)[count > 0].mean())
