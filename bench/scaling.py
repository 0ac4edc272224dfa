"""How time and memory of the operators grow with edges, points, channels and degree, beside what their algorithms say.

Each room names its axes (`SCALING` in its cases.py). The smallest case of an axis is compared with the reference in
float64, as everything that is timed; then all sizes are called in turn, round after round, and the exponent is the
slope of log time against log size over the largest sizes, where launches and Python no longer count. On the CPU it is
that of processor time (`cpu_ms`), which other processes lengthen less. Memory likewise; what it may grow as is the
argument, result or gradient that grows most. What grows faster than that by more than its scatter between rounds and
MARGIN has an `error`.
"""

import importlib
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch

from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import Axis, Case, cast, generator

from . import counts, machine, memory, operators, timing

AXES = ("edges", "points", "channels", "degree")
FITTED = 3  # largest sizes that an exponent is fitted to
MARGIN = 0.15  # of an exponent: a factor 2 over two decades, what leaving the caches costs
SMALLEST_MB = 1.0  # peaks below are pages and what the allocator keeps
ROUNDS = 7
BUDGET_S = 20.0  # of rounds for the curves of one axis


class Family(NamedTuple):
    """One axis of one operator on one backend: a curve for each direction."""

    room: str
    axis: Axis
    backend: str
    device: str
    dtype: torch.dtype

    @property
    def case(self) -> Case:
        return self.axis.case(self.axis.sizes[0])

    @property
    def op(self) -> str:
        return self.case.op.name

    @property
    def directions(self) -> tuple[str, ...]:
        return operators.DIRECTIONS if hasattr(torch.ops.ace_fast, f"{self.op}_bwd") else operators.DIRECTIONS[:1]

    def job(self, direction: str, case: Case | None = None) -> operators.Job:
        """The job of the smallest case, or of another."""
        return operators.Job(self.room, case or self.case, self.backend, direction, self.device, self.dtype)

    def __repr__(self) -> str:
        return f"{self.op}-{self.axis.name}-{self.backend}-{self.device}"


class Point(NamedTuple):
    """One size in one direction, ready to be timed."""

    size: int
    direction: str
    case: Case
    run: Callable[[], object]
    flops: int
    tensors: tuple[int, ...]  # bytes of each argument, output and gradient
    peak_mb: float
    memory_method: str


class Fit(NamedTuple):
    """A slope in logarithms and its standard deviation between rounds."""

    exponent: float
    error: float


def families(device: str, dtype: torch.dtype, ops: Collection[str] | None = None,
             axes: Collection[str] | None = None, backend: str | None = None) -> Iterator[Family]:
    """All axes of all rooms on the best backend present, or on `backend`, narrowed by operators (or rooms) and axes."""
    for room in ROOMS:
        present = [b for b, reason in operators.reasons(device)[room].items() if not reason]
        for axis in importlib.import_module(f"ace_fast.kernels.{room}.cases").SCALING:
            for name in [backend] if backend in present else [] if backend else present[:1]:
                family = Family(room, axis, name, device, dtype)
                if (ops is None or room in ops or family.op in ops) and (not axes or axis.name in axes):
                    yield family


def slope(sizes: list[int], values: list[float]) -> float:
    """The slope of log(values) against log(sizes) by least squares; values of 0 give 0."""
    if min(values) <= 0:
        return 0.0
    x, y = ([math.log(v) for v in vs] for vs in (sizes, values))
    return statistics.linear_regression(x, y).slope


def fit(sizes: list[int], rounds: list[list[float]]) -> Fit:
    """The slope of the medians over the FITTED largest sizes, and how it scatters; `rounds`: a list for each size."""
    large = rounds[-FITTED:]
    each = [slope(sizes[-FITTED:], list(turn)) for turn in zip(*large, strict=True)]
    exponent = slope(sizes[-FITTED:], [statistics.median(ms) for ms in large])
    return Fit(exponent, statistics.stdev(each) if len(each) > 1 else 0.0)


def points(family: Family) -> list[Point]:
    """Every size in every direction, with its memory; the tensors of all sizes are kept."""
    found = []
    for size in family.axis.sizes:
        case = family.axis.case(size)
        inputs = cast(case.inputs(generator()), case, family.dtype, family.device)
        mine = lambda case=case, **a: case.op(*a.values(), family.backend)  # noqa: E731
        tensors = tuple(counts.nbytes(x) for x in counts.tensors(inputs.values()))
        for direction in family.directions:
            run = operators.call(mine, inputs, case.differentiable, direction)
            tensors += tuple(counts.nbytes(x) for x in counts.tensors(run()))
            flops = _flops(family.op, inputs, direction)
            peak, method = memory.peak_mb(run, family.device)
            found.append(Point(size, direction, case, run, flops, tensors, peak, method))
    return found


def _flops(op: str, inputs: dict[str, Any], direction: str) -> int:
    forward = counts.forward(op, inputs, ()).flops
    return forward if direction == "forward" else forward + counts.backward(op, inputs, ()).flops


def measure(family: Family, repeats: int = ROUNDS, budget_s: float = BUDGET_S) -> list[dict[str, Any]]:
    """The rows of all sizes and directions; one row with `error` where the smallest case is wrong or one fails."""
    about = {"suite": "scaling", "axis": family.axis.name, "op": family.op, "backend": family.backend,
             "device": family.device, "dtype": str(family.dtype).removeprefix("torch.")}
    about |= {"threads": torch.get_num_threads(), "device_name": machine.device_name(family.device)}
    about["command"] = f"python -m bench --scaling {family.axis.name} --op {family.op} --device {family.device}"
    try:
        error = next(filter(None, (operators.prepare(family.job(d)).error for d in family.directions)), "")
        if not error:
            return rows(family, about, *_rounds(points(family), family.device, repeats, budget_s))
    except Exception as e:  # a row with the reason, never a missing row
        error = f"{type(e).__name__}: {e}"
    return [about | {"case": family.case.name, "size": family.axis.sizes[0], "direction": family.directions[-1],
                     "ms": None, "error": error}]


def _rounds(
    found: list[Point], device: str, repeats: int, budget_s: float
) -> tuple[list[Point], list[list[float]], list[list[float]]]:
    """Milliseconds of each point in each round, and of processor time; at least two rounds, further ones while
    `budget_s` lasts."""
    watch, end = timing.Stopwatch(device, wall=False), time.perf_counter() + budget_s
    ms: list[list[float]] = [[] for _ in found]
    cpu: list[list[float]] = [[] for _ in found]
    for i in range(max(2, repeats)):
        if i >= 2 and time.perf_counter() > end:
            break
        for i, point in enumerate(found):
            before = time.process_time()
            ms[i].append(watch.ms(point.run))
            cpu[i].append(1e3 * (time.process_time() - before))
    return found, ms, cpu


def rows(family: Family, about: dict[str, Any], found: list[Point], ms: list[list[float]],
         cpu: list[list[float]]) -> list[dict[str, Any]]:
    """A row a point; the exponents of its curve in each, `error` in the row of the largest size."""
    made, on_cpu = [], family.device == "cpu"
    for direction in family.directions:
        curve = [part for part in zip(found, ms, cpu, strict=True) if part[0].direction == direction]
        fitted = _exponents(family.axis, [point for point, *_ in curve], [part[2 if on_cpu else 1] for part in curve])
        for point, times, used in curve:
            timed = timing.summary(times)
            made.append(about | {
                "case": point.case.name, "note": point.case.note, "direction": direction, "size": point.size,
                "ms": timed.median, "q20_ms": timed.q20, "q80_ms": timed.q80, "rounds": timed.rounds,
                "cpu_ms": statistics.median(used) if on_cpu else None, "peak_mb": point.peak_mb,
                "memory_method": point.memory_method, "flops": point.flops, **fitted})
        error = too_fast(fitted)
        if error:
            made[-1]["error"] = error
    return made


def _exponents(axis: Axis, curve: list[Point], ms: list[list[float]]) -> dict[str, float | None]:
    sizes, large = [p.size for p in curve], curve[-FITTED:]
    time_ = fit(sizes, ms)
    of = lambda values: slope([p.size for p in large], values)  # noqa: E731
    peaks = [p.peak_mb for p in large]
    return {
        "exponent": time_.exponent, "exponent_error": time_.error,
        "expected_exponent": of([p.flops for p in large]) if axis.order is None else float(axis.order),
        "memory_exponent": of(peaks) if min(peaks) >= SMALLEST_MB else None,
        "expected_memory_exponent": max(map(of, zip(*(p.tensors for p in large), strict=True)), default=0.0),
    }


def too_fast(fitted: dict[str, float | None]) -> str:
    """What grows faster than it should, in words; "" where nothing does."""
    found = []
    if fitted["exponent"] - 2 * fitted["exponent_error"] > fitted["expected_exponent"] + MARGIN:
        found.append(f"time grows as size^{fitted['exponent']:.2f} (± {fitted['exponent_error']:.2f}), "
                     f"its algorithm as size^{fitted['expected_exponent']:.2f}")
    grown = fitted["memory_exponent"]
    if grown is not None and grown > fitted["expected_memory_exponent"] + MARGIN:
        found.append(f"memory grows as size^{grown:.2f}, its tensors at most as "
                     f"size^{fitted['expected_memory_exponent']:.2f}")
    return "; ".join(found)
