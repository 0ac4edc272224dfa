"""What tasks on point clouds share: augmented batches, and accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...data import CloudBatcher, drop_points, rotate


class Clouds:
    """Batches (points [B, N, 3], labels [B]), each cloud rotated and thinned at random; resumed, the draws go on."""

    def __init__(self, batches: CloudBatcher, rotation: str, drop: float, dtype: torch.dtype, seed: int) -> None:
        self._batches, self._rotation, self._drop, self._dtype = batches, rotation, drop, dtype
        self._generator = torch.Generator(batches.clouds.points.device).manual_seed(seed)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for points, labels in self._batches:
            points = rotate(points.to(self._dtype), self._rotation, self._generator)
            if self._drop:
                points = drop_points(points, self._drop, generator=self._generator)
            yield points, labels

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
