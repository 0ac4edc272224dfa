"""Which branches still do something: their ratios are measured now and then, and those without effect switched off."""

import math
from collections import deque
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..nn.gates import Recorder, Seen, gated_layers, recording

NAN = float("nan")
FALLING = 0.9  # a ratio whose later mean is below this share of its earlier one is still on its way


class _Record(Recorder):
    """The ratios of a layer's branches, beside the places of their gates; with `layer`, of passes that train it."""

    def __init__(self, places: list[int], into: list[tuple[int, Tensor]], layer: nn.Module | None = None):
        self._places, self._into, self._layer = places, into, layer

    def __call__(self, seen: Seen) -> None:
        capturing = seen.x.is_cuda and torch.cuda.is_current_stream_capturing()
        if self._layer is not None and (capturing or not self._layer.training or not torch.is_grad_enabled()):
            return
        with torch.no_grad():
            self._into.append((self._places[seen.gate], seen.ratio()))


class _Ready(torch.autograd.Function):
    """The identity, with parameters in its graph that get no gradient: DistributedDataParallel waits for each."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g_x: Tensor) -> tuple[Tensor | None, ...]:
        return g_x, *[None] * ctx.count


class Watch:
    r"""Measures :math:`|\gamma| \|f_{neq}(x)\| / \|f_{eq}(x)\|` of every branch and switches branches off and on.

    Nothing is read on the host but when it looks, every `every` steps: then the ratios of that step's pass come over,
    the mean over processes where there are several, so that all decide alike.

    Args:
        model: whose layers have the gates (`nn.gates`).
        names, gates: the gammas, or the networks that compute them; places count these.
        tolerance: of the ratio. patience: steps that it has to stay below. every: steps between looks.
        switch: whether branches are switched.
        returns: place -> whether that branch may come back.

    Raises:
        ValueError: branches are to be switched that cannot be.
    """

    def __init__(self, model: nn.Module, names: list[str], gates: list, tolerance: float, patience: int, every: int,
                 switch: bool, returns: Callable[[int], bool]):
        place = {id(g): i for i, g in enumerate(gates)}
        self._model, self._handle = model, None
        self.layers, self.places = [], []
        for layer in _layers(model):
            places = [place.get(id(g)) for g in layer.get_gammas() or layer.get_gate_networks()]
            if None not in places:
                self.layers.append(layer)
                self.places.append(places)
        found = {i for places in self.places for i in places}
        missing = [name for i, name in enumerate(names) if i not in found or not isinstance(gates[i], nn.Parameter)]
        if switch and missing:
            raise ValueError("ACE: snap must be False where a gate cannot be switched off, got True with "
                             f"{missing[0]!r}; it must be a number, in a gated layer of ace_fast.nn or ace_fast.models")
        self.count, self.tolerance, self.patience, self.every = len(gates), tolerance, patience, every
        self.switch, self._returns, self.armed = switch, returns, False
        self.off, self.since = [False] * self.count, [0] * self.count  # since: the step of the last switch
        span = 2 * math.ceil(patience / every) + 2
        # (step, ratios, gradients at gamma = 0 of branches that are off)
        self.history: deque[tuple[int, list[float], list[float]]] = deque(maxlen=span)
        self.seen: list[tuple[int, Tensor]] = []  # ratios of the step that is measured, beside their gates
        self.set_off(self.off)  # whatever an earlier owner left

    def arm(self, step: int) -> None:
        """Before the pass of a step to be measured: layers record, and branches that may come back are on at zero."""
        off = [off and not self._returns(i) for i, off in enumerate(self.off)]
        if not self.switch or step % self.every or all(off):
            return
        self.armed = True
        self.set_off(off)
        for layer, places in zip(self.layers, self.places, strict=True):
            layer._record = _Record(places, self.seen, layer)

    def disarm(self) -> list[tuple[int, Tensor]]:
        """Nothing is recorded any more; returns what was."""
        if not getattr(self, "armed", False):
            return []
        for layer in self.layers:
            layer._record = None
        self.set_off(self.off)
        self.armed, seen, self.seen[:] = False, list(self.seen), []
        return seen

    def __del__(self) -> None:
        self.disarm()

    def asleep(self) -> bool:
        """Whether the coming step has nothing to do: every branch is off, and none is tried."""
        return all(self.off) and not self.armed

    def end(self, gradients: Tensor | None, multipliers: Tensor, step: int) -> list[int]:
        """After a measured step: reads what it gave, decides, and returns the places that were switched.

        Args:
            gradients, multipliers: [n] of the gates.
        """
        seen = self.disarm()
        nothing = torch.full_like(multipliers, NAN)
        return self.look(self._largest(seen, nothing), nothing if gradients is None else gradients, multipliers, step)

    def measure(self, run: Callable[[], object], like: Tensor) -> Tensor:
        """[n] the ratios in a pass of `run` without gradients, NaN of branches that are off."""
        seen: list[tuple[int, Tensor]] = []
        records = [_Record(places, seen) for places in self.places]
        with torch.no_grad(), recording(self.layers, *records):
            run()
        return self._largest(seen, torch.full_like(like, NAN))

    def look(self, ratios: Tensor, gradients: Tensor, multipliers: Tensor, step: int) -> list[int]:
        """Notes ratios and gradients [n], decides, and returns the places that were switched. Waits for the device."""
        table = torch.stack([ratios.to(multipliers), gradients.to(multipliers), multipliers])
        if dist.is_available() and dist.is_initialized() and (processes := dist.get_world_size()) > 1:
            dist.all_reduce(table)
            table /= processes
        ratios, gradients, prices = table.tolist()
        self.note(step, ratios, gradients)
        changed = [i for i in range(self.count) if self.switch and self._switches(i, prices[i])]
        for i in changed:
            self.off[i], self.since[i] = not self.off[i], step
        if changed:
            self.set_off(self.off)
        return changed

    def note(self, step: int, ratios: list[float], gradients: list[float]) -> None:
        """Keeps a measurement, of which verdicts are made; nothing is switched."""
        self.history.append((step, ratios, gradients))

    def _largest(self, seen: list[tuple[int, Tensor]], nothing: Tensor) -> Tensor:
        """[n] of each gate's ratios the largest, since one gate may belong to many branches."""
        found = list(nothing.unbind())
        for i, ratio in seen:
            # fmax: the first one replaces NaN; one that is NaN itself stays unseen
            found[i] = torch.fmax(found[i], ratio.to(nothing))
        return torch.stack(found) if found else nothing

    def _rows(self, i: int) -> list[tuple[int, float, float]]:
        """(step, ratio, gradient) since the gate was last switched."""
        return [(step, ratios[i], grads[i]) for step, ratios, grads in self.history if step > self.since[i] or
                not self.since[i]]

    def _switches(self, i: int, price: float) -> bool:
        if not self.off[i]:
            return self.span(i)[0] >= self.patience
        pulls = [(step, g) for step, _, g in self._rows(i) if math.isfinite(g)]
        if not self._returns(i) or not pulls or pulls[-1][0] - self.since[i] < self.patience:
            return False
        # at gamma = 0 the loss's pull must exceed the multiplier, and twice its own standard error
        values = [g for _, g in pulls]
        mean = math.fsum(values) / len(values)
        error = math.sqrt(math.fsum((g - mean) ** 2 for g in values)) / len(values)
        return abs(mean) > price + 2 * error

    def span(self, i: int) -> tuple[int, int]:
        """Steps over which the ratio has lately stayed below the tolerance, and above it; one of the two is 0."""
        low = high = 0
        rows = [(step, ratio) for step, ratio, _ in self._rows(i) if not math.isnan(ratio)]
        for step, ratio in reversed(rows):
            if (ratio < self.tolerance) != (rows[-1][1] < self.tolerance):
                break
            low, high = (rows[-1][0] - step, 0) if ratio < self.tolerance else (0, rows[-1][0] - step)
        return low, high

    def verdict(self, i: int) -> tuple[str, str]:
        """"symmetric", "broken" or "undecided", and the evidence in words."""
        if self.off[i]:
            return "symmetric", (f"switched off at step {self.since[i]}: the ratio had stayed below "
                                 f"{self.tolerance:g} for {self.patience} steps")
        rows = [(step, ratio) for step, ratio, _ in self._rows(i) if not math.isnan(ratio)]
        if not rows:
            return "undecided", "no ratio was measured"
        low, high = self.span(i)
        side, steps = ("below", low) if rows[-1][1] < self.tolerance else ("above", high)
        text = f"ratio {rows[-1][1]:.2e}, {side} {self.tolerance:g} for {steps} steps"
        if steps < self.patience:
            return "undecided", f"{text} of the {self.patience} that a verdict takes"
        if side == "below":
            return "symmetric", text
        window = [ratio for step, ratio in rows if rows[-1][0] - step <= max(self.patience, self.every)]
        half = len(window) // 2
        before, after = (math.fsum(part) / len(part) for part in (window[:half], window[-half:]))
        if after < FALLING * before:
            return "undecided", f"{text}, but falling: {before:.2e} to {after:.2e}"
        return "broken", f"{text}, and not falling: {before:.2e} to {after:.2e}"

    def state_dict(self) -> dict:
        """Switches and measurements."""
        rows = [[float(step), *ratios, *grads] for step, ratios, grads in self.history]
        return {"off": list(self.off), "since": list(self.since),
                "history": torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 1 + 2 * self.count)}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the state is of another number of gates; the layers' switches follow the state."""
        history, n = state["history"], self.count
        if len(state["off"]) != n or len(state["since"]) != n or history.shape[1:] != (1 + 2 * n,):
            raise ValueError(f"ACE: state watch must be of {n} gates, got {len(state['off'])}; make the ACE alike")
        self.off, self.since = list(state["off"]), list(state["since"])
        self.history.clear()
        self.history.extend((int(row[0]), row[1:1 + n], row[1 + n:]) for row in history.tolist())
        self.set_off(self.off)

    def set_off(self, off: list[bool]) -> None:
        """Switches the layers, `now` says how, and has every parameter take part where several processes train."""
        self.now = off
        for layer, places in zip(self.layers, self.places, strict=True):
            layer.snapped = tuple(off[i] for i in places)
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if any(off) and several and self._handle is None:
            self._handle = self._model.register_forward_hook(_take_part)
        elif self._handle is not None and not any(off):
            self._handle.remove()
            self._handle = None


def _layers(model: nn.Module) -> list[nn.Module]:
    """Those with gates that are numbers, or with networks that compute them."""
    with_networks = [m for m in model.modules() if hasattr(type(m), "get_gate_networks") and m.get_gate_networks()]
    return with_networks or gated_layers(model)


def _take_part(model: nn.Module, arguments, output):
    """A forward hook: the first output that has a gradient depends on every parameter, by nothing."""
    if not torch.is_grad_enabled():
        return output
    leaves, structure = tree_flatten(output)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            leaves[i] = _Ready.apply(leaf, *(p for p in model.parameters() if p.requires_grad))
            break
    return tree_unflatten(leaves, structure)
