"""Operations of a search of the k nearest; see kernels/counts.py."""

from typing import Any


def knn(inputs: dict[str, Any]) -> int:
    """A scalar product, the two squared norms and a comparison for every pair in a cloud."""
    sizes = inputs["ptr"].diff()
    return int((sizes * sizes).sum()) * (2 * inputs["x"].shape[1] + 3)


FLOPS = {"knn": knn}
