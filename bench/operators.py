"""Every room's large cases on every backend that is present, forward and forward + backward, each behind the gate."""

import functools
import importlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ace_fast import backend as backends_of
from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import Case, cast, generator
from ace_fast.kernels.vn_edge_conv import counts as edge_counts

from . import counts, gate, machine, memory, timing
from .roofline import Roofline

BUDGET_S = 3.0  # of timing for one job: the reference takes seconds on the largest
CPU_LIMIT = 4 * 2**30  # bytes that the plain reference may need where memory is not the accelerator's
DIRECTIONS = ("forward", "forward+backward")


class Job(NamedTuple):
    """One thing to be timed."""

    room: str
    case: Case
    backend: str
    direction: str
    device: str
    dtype: torch.dtype

    @property
    def op(self) -> str:
        return self.case.op.name

    def __repr__(self) -> str:
        return f"{self.op}-{self.case.name}-{self.backend}-{self.direction}-{self.device}"


class Ready(NamedTuple):
    """A job that may be timed, or the reason why not."""

    run: Callable[[], object]
    plain: Callable[[], object]  # the reference on the same tensors, without the operator
    count: counts.Count | None
    rows: int  # edges or nodes of the case
    first_ms: float  # the first call in this process, compilation included
    max_error: float  # against float64, relative to the size of each tensor
    error: str


@functools.cache
def reasons(device: str) -> dict[str, dict[str, str]]:
    """{room: {backend: why it does not run natively on `device`, or ""}}, the reference last."""
    found = {room: dict(sorted(known.items(), key=lambda b: b[0] == "reference"))
             for room, known in backends_of.available(device).items()}
    if device == "cpu":  # interpreted or emulated kernels run on CPU tensors for the tests; their time means nothing
        for known in found.values():
            known |= {name: f"it takes CUDA tensors, not {device}" for name in ("triton", "cuda") if name in known}
    return found


def missing(device: str) -> dict[str, str]:
    """{backend: why} of the backends that no room can run on `device`."""
    rooms = reasons(device).values()
    names = dict.fromkeys(name for known in rooms for name in known)
    return {name: why[0] for name in names if all(why := [known[name] for known in rooms if name in known])}


def jobs(device: str, dtype: torch.dtype, case: str | None = None, ops: Collection[str] | None = None,
         backend: str | None = None, size: str = "LARGE", quick: bool = False) -> Iterator[Job]:
    """All jobs, narrowed by the name of a case, operators (or rooms) and a backend.

    The first case of every operator comes first, then every second one: a run that is stopped has seen all operators.
    `quick` takes the first case of each, and its gradient with it. A backend that was asked for but cannot run here is
    among the jobs, for a row with its reason.
    """
    found, seen = [], Counter()
    for room in ROOMS:
        for c in getattr(importlib.import_module(f"ace_fast.kernels.{room}.cases"), size):
            seen[c.op] += 1
            if quick and case is None and (seen[c.op] > 1 or repr(c).split("-")[0].endswith("_bwd")):
                continue
            for b in [b for b, reason in reasons(device)[room].items() if b == backend or not (backend or reason)]:
                every = [Job(room, c, b, direction, device, dtype) for direction in DIRECTIONS]
                every = [job for job in every
                         if job.direction == "forward" or hasattr(torch.ops.ace_fast, f"{job.op}_bwd")]
                if case in (None, c.name) and (ops is None or room in ops or every[0].op in ops):
                    found += [(seen[c.op], job) for job in (every[-1:] if quick else every)]
    yield from (job for _, job in sorted(found, key=lambda pair: pair[0]))


def skipped(job: Job) -> str:
    """Why the case is not run, or "": the backend is missing or refuses it, or the edge tensors that plain PyTorch
    forms on the CPU would not fit beside other work."""
    if reason := reasons(job.device)[job.room].get(job.backend):
        return f"backend {job.backend} is not available: {reason}"
    if job.backend in job.case.refused_by:
        return f"backend {job.backend} does not take this case"
    if job.device != "cpu" or job.op not in edge_counts.FLOPS:
        return ""
    with FakeTensorMode():  # shapes alone: making the case forms edge tensors too
        needed = edge_counts.plain_bytes(job.case.inputs(generator()))
    if needed <= CPU_LIMIT:
        return ""
    return (f"not run on the CPU: the plain reference needs about {needed / 2**30:.0f} GiB for its edge tensors, "
            f"more than {CPU_LIMIT / 2**30:.0f}")


def call(function: Callable, inputs: dict[str, Any], names: tuple[str, ...], direction: str) -> Callable[[], object]:
    """Runs `function` once; with its gradients when the direction says so."""
    if direction == "forward":
        def run():
            with torch.no_grad():
                return function(**inputs)
        return run
    leaves = [inputs[n] for n in names if isinstance(inputs[n], torch.Tensor)]
    with torch.no_grad():
        shapes = function(**inputs)
    wanted = [o for o in counts.tensors(shapes) if o.is_floating_point()]
    cotangents = gate.cotangents(wanted)

    def run():
        outputs = [o for o in counts.tensors(function(**inputs)) if o.is_floating_point()]
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        ys, cs = zip(*pairs, strict=True)
        return torch.autograd.grad(ys, leaves, cs, allow_unused=True)

    return run


@functools.lru_cache(maxsize=1)
def _raw(case: Case) -> dict[str, Any]:
    """The case's inputs, made once for both directions; nobody writes to them."""
    return case.inputs(generator())


@functools.lru_cache(maxsize=1)
def _gold(case: Case, device: str, dtype: torch.dtype) -> tuple[gate.Numbers, dict[str, float], dict[str, float]]:
    """The float64 numbers, the largest error of each in `dtype` and their sizes, made once for all backends and both
    directions."""
    raw = _raw(case)
    gold, single = (gate.gradients(case.reference, cast(raw, case, d, device), case.differentiable)
                    for d in (torch.float64, torch.float32))
    sizes = case.scale(raw, {k: v.cpu() for k, v in gold.items()}) if case.scale else {}
    return gold, gate.limits(gold, single, dtype, sizes), sizes


def prepare(job: Job) -> Ready:
    """Builds the tensors, checks the backend on them, and counts."""
    case = job.case
    inputs = cast(_raw(case), case, job.dtype, job.device)
    mine = lambda **a: case.op(*a.values(), job.backend)  # noqa: E731
    start = time.perf_counter()
    found = gate.gradients(mine, inputs, case.differentiable)
    if job.device == "cuda":
        torch.cuda.synchronize()
    first = 1e3 * (time.perf_counter() - start)
    gold, limit, sizes = _gold(case, job.device, job.dtype)
    error, worst = gate.verdict(found, gold, limit, sizes)
    run, plain = (call(f, inputs, case.differentiable, job.direction) for f in (mine, case.reference))
    run()
    return Ready(run, plain, None if error else _count(job, inputs, mine), counts.rows(inputs, case.differentiable),
                 first, worst, error)


def _count(job: Job, inputs: dict[str, Any], mine: Callable) -> counts.Count | None:
    with torch.no_grad():
        outputs = mine(**inputs)
    count = counts.forward(job.op, inputs, outputs)
    if count is None or job.direction == "forward":
        return count
    back = counts.backward(job.op, inputs, outputs)
    return back and count + back


def info(job: Job, ready: Ready) -> dict[str, Any]:
    """What a row and an extra_info say besides the time."""
    mb, method = memory.peak_mb(ready.run, job.device)
    return {
        "op": job.op, "case": job.case.name, "backend": job.backend, "direction": job.direction,
        "device": job.device, "dtype": str(job.dtype).removeprefix("torch."), "note": job.case.note,
        "flops": ready.count and ready.count.flops, "bytes": ready.count and ready.count.bytes,
        "first_call_ms": ready.first_ms, "max_relative_error": ready.max_error, "peak_mb": mb,
        "memory_method": method,
    }


def rates(ready: Ready, ms: float, roofline: Roofline) -> dict[str, float | None]:
    """Throughput at `ms` a call."""
    found: dict[str, float | None] = {"rows_per_s": 1e3 * ready.rows / ms}
    if ready.count is None:
        return found | {"gflops": None, "gbs": None, "roofline_percent": None}
    return found | roofline.achieved(*ready.count, ms)


def measure(job: Job, roofline: Roofline, repeats: int = 15, budget_s: float = BUDGET_S) -> dict[str, Any]:
    """One row: the backend and the plain reference, interleaved.

    A wrong or failing backend gives a row with `error` and no time, one that is missing or too large for this device a
    row with `skipped`.
    """
    row = {"op": job.op, "case": job.case.name, "backend": job.backend, "direction": job.direction,
           "device": job.device, "dtype": str(job.dtype).removeprefix("torch."), "ms": None}
    row |= machine.describe(job.device)
    try:
        if reason := skipped(job):
            return row | {"skipped": reason}
        ready = prepare(job)
        return row | ({"error": ready.error} if ready.error else _timed(job, ready, roofline, repeats, budget_s))
    except Exception as error:  # a row with the reason, never a missing row
        return row | {"error": f"{type(error).__name__}: {error}"}


def _timed(job: Job, ready: Ready, roofline: Roofline, repeats: int, budget_s: float) -> dict[str, Any]:
    variants = {"mine": ready.run, "reference": ready.plain, "again": ready.run}
    times = timing.interleaved(variants, job.device, repeats, wall=False, budget_s=budget_s)
    mine, plain = times["mine"], times["reference"]
    return info(job, ready) | rates(ready, mine.median, roofline) | {
        "ms": mine.median, "q20_ms": mine.q20, "q80_ms": mine.q80, "times_ms": mine.times,
        "reference_ms": plain.median, "speedup": plain.median / mine.median,
        "noise": timing.noise(mine, times["again"]), "rounds": mine.rounds,
    }
