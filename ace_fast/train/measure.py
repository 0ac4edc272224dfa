"""What the measurements of all tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

SEED = 7  # of the rotations and of what else is drawn: the same in every run, so that curves can be compared


def random_o3(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[count, 3, 3] orthogonal matrices, Haar-distributed; every second one has determinant -1."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    wanted = 1.0 - 2.0 * (np.arange(count) % 2)
    return torch.from_numpy(q * (wanted * np.linalg.det(q))[:, None, None]).to(dtype)


def draw_o3(count: int, dtype: torch.dtype) -> Tensor:
    """[count, 3, 3] orthogonal matrices, Haar-distributed over O(3), from torch's generator of the CPU."""
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64))
    return (q * r.diagonal(dim1=1, dim2=2).sign()[:, None]).to(dtype)


def turn(x: Tensor, irreps: o3.Irreps | str, elements: Tensor) -> Tensor:
    """Features x [N, irreps.dim] turned by each row's own element of O(3), [N, 3, 3]."""
    parts = []
    irreps = o3.Irreps(irreps)
    for (mul, ir), place in zip(irreps, irreps.slices(), strict=True):
        part = x[:, place]
        if ir.l == 1:
            own = elements if ir.p < 0 else torch.linalg.det(elements)[:, None, None] * elements
            part = torch.einsum("nij,nuj->nui", own, part.unflatten(1, (mul, 3))).flatten(1)
        elif ir != o3.Irrep("0e"):
            own = ir.D_from_matrix(elements.cpu()).to(x)
            part = torch.einsum("nij,nuj->nui", own, part.unflatten(1, (mul, ir.dim))).flatten(1)
        parts.append(part)
    return torch.cat(parts, 1)


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
