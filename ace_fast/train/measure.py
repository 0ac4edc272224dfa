"""What the measurements of all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from ..data import Batch
from ..symmetry import Element, act, group, layout, measure, random_o3

SEED = 7  # of the rotations and of what else is drawn: the same in every run, so that curves can be compared
_O3 = group("O(3)")


def equivariance(said: Callable[..., Tensor], vectors: Any, draws: int, output: str, graphs: Tensor | str) -> float:
    """The mean relative error under O(3) of what a model says of vectors, always with the same draws.

    Args:
        said: vectors -> what the model says of them.
        vectors: its arguments, [..., 3] each.
        draws: elements of O(3), for each graph its own.
        output: "vector" or "scalar".
        graphs: of the nodes, or "samples" (`ace_fast.symmetry.measure`).
    """
    layouts = ["vector"] * (1 if isinstance(vectors, Tensor) else len(vectors))
    found = measure(said, vectors, "O(3)", layouts=layouts, output=output, draws=draws, seed=SEED, graphs=graphs)
    return found.relative


def rotations(count: int) -> Tensor:
    """[count, 3, 3] float64 elements of O(3), every second one with a reflection."""
    return random_o3(count, torch.Generator().manual_seed(SEED), alternate=True)


def turned(batch: Batch, node: Mapping[str, o3.Irreps | str], edge: Mapping[str, o3.Irreps | str]) -> Batch:
    """A batch of graphs, each turned by its own random element of O(3): node and edge arrays by their irreps."""
    first = getattr(batch, next(iter(node)))
    elements = Element(random_o3(batch.num_graphs).to(first))
    arrays = {name: getattr(batch, name) for name in batch.names}
    for irreps, index in ((node, batch.batch), (edge, batch.batch[batch.edge_index[1]])):
        arrays |= {name: act(_O3, elements, arrays[name], layout(own), index) for name, own in irreps.items()}
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
