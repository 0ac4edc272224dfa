"""The one stopwatch: interleaved rounds, medians and quantiles, the first call apart.

On a shared machine speed drifts by several percent within minutes. Variants that are to be compared therefore run in
turn, round after round, so that the drift meets all of them alike, and one of them runs twice to show the noise.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SLOW_MS = 1000.0  # of a call that `shared` does not repeat before it counts


class Timing(NamedTuple):
    """Milliseconds of one variant over all rounds."""

    median: float
    q20: float
    q80: float
    rounds: int
    times: list[float]


def summary(ms: list[float]) -> Timing:
    """Median and quantiles of a list of times."""
    if len(ms) == 1:
        return Timing(ms[0], ms[0], ms[0], 1, ms)
    cuts = statistics.quantiles(ms, n=5, method="inclusive")
    return Timing(statistics.median(ms), cuts[0], cuts[3], len(ms), ms)


class Stopwatch:
    """Times single calls on one device.

    On a GPU: events around the call, after a write to a buffer twice the size of the L2 cache. `wall=True` waits for
    that write first, so that the time of launching counts (training steps); otherwise launches may hide behind it and
    the time is the kernel's (operators).
    """

    def __init__(self, device: str | torch.device, wall: bool = True):
        self.device, self.wall = torch.device(device), wall
        self._flush = None
        if self.device.type == "cuda":
            size = 2 * torch.cuda.get_device_properties(self.device).L2_cache_size
            self._flush = torch.empty(max(size, 2**20), dtype=torch.int8, device=self.device)

    def ms(self, function: Callable[[], object]) -> float:
        if self._flush is None:
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        if self.wall:
            torch.cuda.synchronize(self.device)
        before.record()
        function()
        after.record()
        torch.cuda.synchronize(self.device)
        return before.elapsed_time(after)


def interleaved(
    variants: dict[str, Callable[[], object]],
    device: str | torch.device = "cpu",
    repeats: int = 15,
    wall: bool = True,
    warmup: int = 3,
    budget_s: float = float("inf"),
    burst: int = 1,
) -> dict[str, Timing]:
    """Times the variants in turn for `repeats` rounds, after `warmup` rounds that do not count.

    Once `budget_s` is used up no further round begins, but one always counts. With `burst` > 1 a turn is that many
    calls, of which the first does not count: it finds the caches and the allocator as the variant before left them,
    and no training loop alternates between two models.
    """
    end = time.perf_counter() + budget_s
    watch = Stopwatch(device, wall)
    ms: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(warmup + repeats):
        late = time.perf_counter() > end
        if late and any(ms.values()):
            break
        if late and 0 < i < warmup:
            continue
        for name, function in variants.items():
            turn = [watch.ms(function) for _ in range(burst)]
            if i >= warmup:
                ms[name] += turn[1:] or turn
    return {name: summary(values) for name, values in ms.items()}


def shared(
    variants: dict[str, Callable[[], object]],
    device: str | torch.device = "cpu",
    repeats: int = 15,
    wall: bool = True,
    budget_s: float = 10.0,
    least: int = 3,
) -> dict[str, Timing]:
    """Times the variants in turn, each for an equal share of `budget_s`: where one needs a hundred times as long as
    another, the slow one takes part in few rounds, spread evenly among those of the fast one.

    The second of two calls that do not count says how long one takes, or the first where that is SLOW_MS or more. Then
    a variant is timed as often as fits its share, `repeats` times at most and `least` times at least.
    """
    watch, share = Stopwatch(device, wall), 1e3 * budget_s / max(1, len(variants))
    rounds = {}
    for name, function in variants.items():
        took = watch.ms(function)
        took = took if took >= SLOW_MS else watch.ms(function)
        rounds[name] = max(min(least, repeats), min(repeats, int(share / max(took, 1e-3)) - 2))
    most, ms = max(rounds.values(), default=0), {name: [] for name in variants}
    for i in range(most):
        for name, function in variants.items():
            if (i + 1) * rounds[name] // most > i * rounds[name] // most:
                ms[name].append(watch.ms(function))
    return {name: summary(values) for name, values in ms.items()}


def noise(first: Timing, again: Timing) -> float:
    """Relative difference of the medians of one version timed twice; nothing smaller is a finding."""
    return abs(first.median - again.median) / min(first.median, again.median)
