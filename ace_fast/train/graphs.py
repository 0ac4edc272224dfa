"""Forward and backward of batches of one shape as replays of a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Batch

_WARMUP = 3  # calls before a capture: first compilations and tables


class GraphedBackward:
    """`backward(batch, weight)` -> (loss, gradients), captured once for each shape of batch.

    Args:
        backward: what is captured; it reads nothing on the host.
        model: its buffers and torch's random numbers are as before after a capture.

    Raises:
        ValueError: batches whose edges differ from one to the next.
    """

    def __init__(self, backward: Callable[[Any, Tensor], tuple[Tensor, list[Tensor | None]]], model: nn.Module) -> None:
        self._backward, self._model = backward, model
        self._captured: dict[Any, tuple[Any, ...]] = {}

    def __call__(self, batch: Any, weight: float) -> tuple[Tensor, list[Tensor | None]]:
        key = key_of(batch)
        if key not in self._captured:
            self._captured[key] = self._capture(batch)
        graph, inputs, factor, loss, grads = self._captured[key]
        torch._foreach_copy_(inputs, tensors_of(batch))
        factor.fill_(weight)
        graph.replay()
        # Copies: the next replay writes into the same tensors.
        return loss.clone(), [None if g is None else g.clone() for g in grads]

    def _capture(self, batch: Any) -> tuple[Any, ...]:
        inputs = [x.clone() for x in tensors_of(batch)]
        fixed = with_tensors(batch, inputs)
        factor = torch.ones((), device=inputs[0].device)
        buffers, kept = list(self._model.buffers()), [x.clone() for x in self._model.buffers()]
        random = torch.cuda.get_rng_state(inputs[0].device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                self._backward(fixed, factor)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, grads = self._backward(fixed, factor)
        torch.cuda.set_rng_state(random, inputs[0].device)
        for x, before in zip(buffers, kept, strict=True):
            x.copy_(before)
        return graph, inputs, factor, loss, grads


def key_of(batch: Any) -> Any:
    """What two batches share if one can be copied into the other.

    Raises:
        ValueError: the graphs of the data set differ.
    """
    if isinstance(batch, Batch):
        if batch.structure_key is None:
            raise ValueError("train: --cuda-graphs must be off for data whose graphs differ, got batches of changing "
                             "size; leave it out")
        return batch.structure_key
    return tuple(tuple(x.shape) for x in batch)


def tensors_of(batch: Any) -> list[Tensor]:
    """The arrays of a Batch, or the tensors of a tuple."""
    return [getattr(batch, name) for name in batch.names] if isinstance(batch, Batch) else list(batch)


def with_tensors(batch: Any, tensors: list[Tensor]) -> Any:
    """The same batch with other arrays."""
    if not isinstance(batch, Batch):
        return tuple(tensors)
    found = copy.copy(batch)
    for name, x in zip(batch.names, tensors, strict=True):
        setattr(found, name, x)
    return found
