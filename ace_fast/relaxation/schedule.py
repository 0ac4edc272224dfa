"""Relaxation on a timetable: the gate rises and falls, and a Lie-derivative penalty guards symmetry."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..nn.gates import Recorder, Seen, gated_layers
from .branches import find_branches, shrink
from .decider import Decider, undone
from .gammas import in_range
from .lie import lie_terms

TINY = 1e-30  # below it the root of the penalty has no gradient


class _Passes(Recorder):
    """Keeps what the layers saw in passes with gradients."""

    def __init__(self, layer: nn.Module, into: list[tuple[nn.Module, Seen]]):
        self._layer, self._into = layer, into

    def __call__(self, seen: Seen) -> None:
        if torch.is_grad_enabled():
            self._into.append((self._layer, seen))


class Schedule(Decider):
    r"""All gates follow a triangle in time, 0 to `peak` and back to 0, whatever the data say.

    .. math:: \gamma(t) = \mathrm{peak}\, \min(2t/T,\, 2 - 2t/T), \qquad
              \mathrm{penalty} = \mathrm{lie} \left( \sqrt{\textstyle\sum \|[n, A_a](x)\|^2} +
              \sqrt{\textstyle\sum \|n(x)\|^2} \right)

    The first sum goes over branches n, rows x and the three generators A_a of rotations, with the branch's derivative
    where it is not linear; the second keeps the branches small. At the end the strict model is what was trained.

    Args:
        model: relaxed.
        steps: T, the training steps that there will be.
        lie: weight of the penalty (the published 0.01 for N-body); 0: none, for branches of any kind.
        peak: the gates' value half way.
        initial: factor on the last map of every branch, where `lie` is not 0. Applied here: load a checkpoint
            afterwards. The published code draws its weights with standard deviation 1e-4.

    Attributes:
        kept: False, the trained model is the strict one.

    Raises:
        ValueError: no gammas, gates that networks compute, numbers out of range; with `lie`, branches without irreps,
            with fixed norms or in the ACE code's scrambled order.

    Source: Pertigkiozoglou et al. 2024, sections 4.1 and 4.2, and their code.
    """

    kept = False

    def __init__(self, model: nn.Module, steps: int, *, lie: float = 0.01, peak: float = 1.0, initial: float = 1e-3):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Schedule: steps must be the positive number of training steps, got {steps!r}")
        for name, value, least in (("lie", lie, 0), ("peak", peak, -math.inf), ("initial", initial, 0)):
            if not in_range(value, least):
                raise ValueError(f"Schedule: {name} must be finite{'' if least else ' and at least 0'}, got {value!r}")
        branches = find_branches(model, "Schedule", irreps=True) if lie else []
        if any(getattr(b.layer, "legacy_view", False) for b in branches):
            raise ValueError("Schedule: lie must be 0 for layers with legacy_view=True, whose branches mix xyz with "
                             f"points, got {lie}")
        super().__init__(model, 0.0)
        self.total, self.lie, self.peak = steps, lie, peak
        self._branches = {(b.layer, b.gate): b for b in branches}
        self._seen: list[tuple[nn.Module, Seen]] = []
        self._latest = torch.zeros(2, dtype=self._gammas[0].dtype, device=self._gammas[0].device)
        shrink(branches, initial)
        for layer in gated_layers(model) if lie else []:
            layer._record = _Passes(layer, self._seen)

    def penalty(self, loss: Tensor | None = None, turned: Callable[[], Tensor] | None = None) -> Tensor | float:
        """The Lie-derivative penalty of the passes with gradients since the last call; 0.0 where there was none."""
        if not self._seen:
            return 0.0
        terms = [lie_terms(seen, self._branches[layer, seen.gate].irreps) for layer, seen in self._seen]
        self._seen.clear()
        sizes, missing = (torch.stack(column).sum() for column in zip(*terms, strict=True))
        roots = torch.stack([missing, sizes]).clamp(min=TINY).sqrt()
        self._latest = roots.detach()
        return self.lie * roots.sum()

    def attempt(self) -> AbstractContextManager[None]:
        """What a failed pass recorded is not in the next penalty, and its graph is freed."""
        return undone(self._seen)

    def step(self) -> None:
        """Sets the gates for the next step."""
        super().step()
        t = min(self.steps, self.total) / self.total
        self._set(self.peak * min(2 * t, 2 - 2 * t))

    def metrics(self) -> dict[str, Tensor]:
        """gammas [n] and lie: the norms of Lie derivative and branches at the last penalty."""
        return super().metrics() | {"lie": self._latest.clone()}

    def release(self) -> None:
        for layer in {layer for layer, _ in self._branches}:
            layer._record = None
        super().release()

    def state_dict(self) -> dict:
        return super().state_dict() | {"total": self.total}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        t = min(self.steps, self.total) / self.total
        self._set(self.peak * min(2 * t, 2 - 2 * t))
