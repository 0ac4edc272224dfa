"""What the measurements of all tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

SEED = 7  # of the rotations and of what else is drawn: the same in every run, so that curves can be compared


def random_o3(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[count, 3, 3] orthogonal matrices, Haar-distributed; every second one has determinant -1."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    wanted = 1.0 - 2.0 * (np.arange(count) % 2)
    return torch.from_numpy(q * (wanted * np.linalg.det(q))[:, None, None]).to(dtype)


@contextmanager
def evaluating(model: nn.Module, relaxed: bool) -> Iterator[None]:
    """Evaluation mode without gradients, branches on or off; as it was trained afterwards."""
    was = model.training
    model.eval()
    model.set_equivariance(relaxed)
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_equivariance(model.relaxed)
        model.train(was)
