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
        return self.case.op._schema.name.split("::")[1]

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


def backends(room: str, device: str) -> list[str]:
    """The backends of a room that run natively on `device`, the reference last."""
    # interpreted Triton runs on CPU tensors for the tests; its time means nothing
    found = [b for b, reason in backends_of.available(device)[room].items()
             if not reason and not (b == "triton" and device == "cpu")]
    return sorted(found, key=lambda b: b == "reference")


def jobs(device: str, dtype: torch.dtype, case: str | None = None, ops: Collection[str] | None = None,
         backend: str | None = None, size: str = "LARGE") -> Iterator[Job]:
    """All jobs, narrowed by the name of a case, operators (or rooms) and a backend.

    The first case of every operator comes first, then every second one: a run that is stopped has seen all operators.
    """
    found, seen = [], Counter()
    for room in ROOMS:
        for c in getattr(importlib.import_module(f"ace_fast.kernels.{room}.cases"), size):
            seen[c.op] += 1
            for b in backends(room, device):
                for direction in DIRECTIONS:
                    job = Job(room, c, b, direction, device, dtype)
                    chosen = ops is None or room in ops or job.op in ops
                    named = case in (None, c.name) and chosen and backend in (None, b)
                    if named and (direction == "forward" or hasattr(torch.ops.ace_fast, f"{job.op}_bwd")):
                        found.append((seen[c.op], job))
    yield from (job for _, job in sorted(found, key=lambda pair: pair[0]))


def skipped(job: Job) -> str:
    """Why the case is not run, or "": the backend refuses it, or the edge tensors that plain PyTorch forms on the CPU
    would not fit beside other work."""
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


def _call(function: Callable, inputs: dict[str, Any], names: tuple[str, ...], direction: str) -> Callable[[], object]:
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


def prepare(job: Job) -> Ready:
    """Builds the tensors, checks the backend on them, and counts."""
    case = job.case
    raw = _raw(case)
    inputs = cast(raw, case, job.dtype, job.device)
    mine = lambda **a: case.op(*a.values(), job.backend)  # noqa: E731
    plain = _call(case.reference, inputs, case.differentiable, job.direction)
    run, error, worst, first = plain, "", 0.0, 0.0
    try:
        start = time.perf_counter()
        found = gate.gradients(mine, inputs, case.differentiable)
        if job.device == "cuda":
            torch.cuda.synchronize()
        first = 1e3 * (time.perf_counter() - start)
        gold, single = (gate.gradients(case.reference, cast(raw, case, d, job.device), case.differentiable)
                        for d in (torch.float64, torch.float32))
        sizes = case.scale(raw, {k: v.cpu() for k, v in gold.items()}) if case.scale else {}
        error, worst = gate.verdict(found, gold, gate.limits(gold, single, job.dtype, sizes))
        run = _call(mine, inputs, case.differentiable, job.direction)
        run()
    except Exception as e:  # a row with the reason, never a missing row
        error = f"{type(e).__name__}: {e}"
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


def measure(job: Job, roofline: Roofline, repeats: int = 15) -> dict[str, Any]:
    """One row: the backend and the plain reference, interleaved; a wrong backend gives a row with `error`, no time, one
    that is too large for this device a row with `skipped`."""
    untimed = {"op": job.op, "case": job.case.name, "backend": job.backend, "direction": job.direction,
               "device": job.device, "dtype": str(job.dtype).removeprefix("torch."), "ms": None}
    reason = skipped(job)
    if reason:
        return untimed | {"skipped": reason}
    ready = prepare(job)
    if ready.error:
        return untimed | {"error": ready.error}
    variants = {"mine": ready.run, "reference": ready.plain, "again": ready.run}
    times = timing.interleaved(variants, job.device, repeats, wall=False, budget_s=BUDGET_S)
    ms = times["mine"].median
    return info(job, ready) | rates(ready, ms, roofline) | {
        "ms": ms, "q20_ms": times["mine"].q20, "q80_ms": times["mine"].q80,
        "reference_ms": times["reference"].median, "speedup": times["reference"].median / ms,
        "noise": timing.noise(times["mine"], times["again"]), "rounds": times["mine"].rounds,
        "threads": torch.get_num_threads(), "device_name": machine.device_name(job.device),
    }
