"""Operations of a search of neighbours within a radius; see kernels/counts.py."""

import math
from typing import Any

import torch


def radius_graph(inputs: dict[str, Any]) -> int:
    """Three differences, squares, their sum and a comparison, for all pairs of a molecule; in a crystal for the pairs
    that are closer than r at its mean density."""
    sizes = inputs["batch"].bincount().double()
    pairs = sizes.square()
    if inputs["cell"] is not None:
        inside = 4 / 3 * math.pi * inputs["r"] ** 3 / torch.linalg.det(inputs["cell"].double()).abs()
        pairs = pairs * (inside if len(inside) == 1 else inside[: len(sizes)])
    return int(9 * pairs.sum())


FLOPS = {"radius_graph": radius_graph}
