"""What the measurements of all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from ..data import Batch

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


def turn(x: Tensor, irreps: o3.Irreps | str, elements: Tensor, index: Tensor) -> Tensor:
    """Features x [N, irreps.dim], each row n turned by elements[index[n]] of O(3), [G, 3, 3]."""
    parts = []
    irreps = o3.Irreps(irreps)
    for (mul, ir), place in zip(irreps, irreps.slices(), strict=True):
        part = x[:, place]
        if ir == o3.Irrep("1o"):
            own = elements
        elif ir != o3.Irrep("0e"):
            own = ir.D_from_matrix(elements.cpu()).to(x)
        if ir != o3.Irrep("0e"):
            part = torch.einsum("nij,nuj->nui", own[index], part.unflatten(1, (mul, ir.dim))).flatten(1)
        parts.append(part)
    return torch.cat(parts, 1)


def turned(batch: Batch, node: Mapping[str, o3.Irreps | str], edge: Mapping[str, o3.Irreps | str]) -> Batch:
    """A batch of graphs, each turned by its own random element of O(3): node and edge arrays by their irreps."""
    first = getattr(batch, next(iter(node)))
    elements = draw_o3(batch.num_graphs, first.dtype).to(first.device)
    arrays = {name: getattr(batch, name) for name in batch.names}
    for irreps, index in ((node, batch.batch), (edge, batch.batch[batch.edge_index[1]])):
        arrays |= {name: turn(arrays[name], own, elements, index) for name, own in irreps.items()}
    return Batch(arrays, batch.edge_index, batch.batch, batch.ptr, batch.structure_key, batch.symmetric)


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
