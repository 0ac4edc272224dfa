"""Gated branches: which gates are switched off, and who records what their branches do.

A gated layer has `get_gammas()`, `gate_irreps(gate)` where its branches have irreps, `snapped` (one flag a gate: its
branch is left out, whatever the layer's own switch says) and `_record`, called once a branch and pass while somebody
records; `add_gates` makes the last two.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Seen(NamedTuple):
    """A branch in one forward pass: base + gamma free."""

    gate: int  # place in the layer's get_gammas()
    gamma: Tensor  # [], or [N, 1] where a network computes it
    x: Tensor  # [N, ...] what the branch read
    base: Tensor  # [N, ...] f_eq(x)
    free: Callable[[], Tensor]  # f_neq(x) [N, ...], formed when asked for
    branch: nn.Module | None = None  # rows [N, I] -> [N, O], f_neq itself where it is a module
    size: Callable[[Tensor], Tensor] = Tensor.norm  # Euclidean norm of base and free, or of what they stand for
    affine: Callable[[Tensor], Tensor] | None = None  # f_neq as a function of x, where it is affine

    def ratio(self) -> Tensor:
        r"""[] :math:`\|\gamma f_{neq}(x)\| / \|f_{eq}(x)\|`."""
        free, gated = self.free(), self.gamma.dim() > 0
        own = self.size(self.gamma * free) if gated else self.gamma.abs() * self.size(free)
        return own / self.size(self.base)


class Recorder:
    """What a layer's `_record` is. Copies and pickles of the layer record nothing."""

    def __call__(self, seen: Seen) -> None:
        raise NotImplementedError

    def __reduce__(self):
        return _nobody, ()


class Collector(Recorder):
    """Appends what `value` makes of every branch to a list."""

    def __init__(self, into: list, value: Callable[[Seen], object]):
        self._into, self._value = into, value

    @torch.no_grad()
    def __call__(self, seen: Seen) -> None:
        self._into.append(self._value(seen))


def _nobody() -> None:
    return None


def add_gates(layer: nn.Module, count: int) -> None:
    """The flags of `count` gates, all on, and nobody who records."""
    layer.snapped = (False,) * count
    layer._record = None


def gated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of `model` with gates that are numbers and can be switched off one by one, in the model's order."""
    return [m for m in model.modules() if getattr(m, "snapped", ()) and m.get_gammas()]


@contextmanager
def recording(layers: Iterable[nn.Module], *records: Recorder) -> Iterator[None]:
    """Each layer has its record, or all the same one, while the context is open."""
    layers = list(layers)
    before = [layer._record for layer in layers]
    for layer, record in zip(layers, records * len(layers) if len(records) == 1 else records, strict=True):
        layer._record = record
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer._record = old
