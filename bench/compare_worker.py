"""One process of `--compare`: makes the cases it is told to make from the ace_fast that it imports, and times them.

Cases come from the benchmarks inside that package (ace_fast.bench), so that a revision is measured with what it knew;
stopwatch and memory are this file's neighbours, the same for all revisions. It reads a JSON object a line and answers
with one: first what it imported, then for {"case": ..., "gate": ...} the sizes of the case or an `error`, for
{"calls": n} the milliseconds of n calls of the case made last, for {"memory": true} the peak of one call.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple, TextIO

import torch

import ace_fast
from ace_fast import kernels, native

from . import memory, timing

BLOCK = 2**30  # bytes of a block of a protocol's reference


class Absent(Exception):
    """The revision does not run this case here; the message says why."""


class Made(NamedTuple):
    """A case that may be timed."""

    run: Callable[[], object]
    sizes: dict[str, Any]  # what has to be the same in both revisions
    wall: bool  # launching counts


def _theirs(name: str) -> ModuleType:
    """A module of the revision's own benchmarks."""
    return importlib.import_module(f"ace_fast.bench.{name}")


def make(case: dict[str, Any], gate: bool) -> Made:
    """The case of a row (`workload`, `protocol` or `op`, `case`, ...), judged against its reference where `gate`.

    Raises:
        ValueError: it is wrong.
        Absent: this revision does not have it.
    """
    kind = next(k for k in ("workload", "protocol", "op") if k in case)
    made, error = {"workload": _workload, "protocol": _protocol, "op": _operator}[kind](case, gate)
    if error:
        raise ValueError(error)
    return made


def _workload(case: dict[str, Any], gate: bool) -> tuple[Made, str]:
    module = _theirs("workloads").find(case["workload"])
    data = module.load(case["case"], case["device"], getattr(torch, case["dtype"]))
    fast, error = module.variant("fast", data), ""
    if gate:
        error, _ = module.judge(data, module.variant("eager", data).check())("fast", fast.check())
    return Made(fast.step, dict(data.sizes), True), error


def _operator(case: dict[str, Any], gate: bool) -> tuple[Made, str]:
    operators = _theirs("operators")
    found = operators.jobs(case["device"], getattr(torch, case["dtype"]), case["case"], [case["op"]], case["backend"])
    job = next((job for job in found if (job.op, job.direction) == (case["op"], case["direction"])), None)
    if job is None:
        raise Absent("there is no such case")
    if reason := operators.skipped(job):
        raise Absent(reason)
    ready = operators.prepare(job)
    return Made(ready.run, {"rows": ready.rows}, False), ready.error


def _protocol(case: dict[str, Any], gate: bool) -> tuple[Made, str]:
    cases, versions = _theirs("protocol_cases"), _theirs("protocol_versions")
    direction, dtype = case["direction"], getattr(torch, case["dtype"])
    problem, rows = cases.find(case["protocol"], case["case"], case["device"])
    given = versions.load(problem, rows, case["device"], dtype)
    fast = versions.make("fast", problem, given)
    error = _judged(versions, problem, given, fast, direction) if gate else ""
    return Made(versions.step(fast, problem, fast.inputs(given), direction), {"rows": rows}, False), error


def _judged(versions: ModuleType, problem: Any, given: Any, fast: Any, direction: str) -> str:
    gate = _theirs("gate")
    gold, single = (versions.reference(problem, given, direction, dtype, BLOCK)
                    for dtype in (torch.float64, torch.float32))
    mine = versions.numbers(fast, problem, given, direction)
    return gate.verdict(mine, gold, gate.limits(gold, single, given.x1.dtype))[0]


class Server:
    """Answers what it is asked; an exception becomes an answer with its reason, so that the others go on."""

    def __init__(self) -> None:
        self._made: Made | None = None
        self._watch: timing.Stopwatch | None = None

    def about(self) -> dict[str, Any]:
        """What this process imported."""
        return {"package": os.path.dirname(ace_fast.__file__), "kernels": os.path.dirname(kernels.__file__),
                "native": native.load()}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if "case" in asked:
                return self._make(asked["case"], asked["gate"])
            if "calls" in asked:
                return {"ms": [self._watch.ms(self._made.run) for _ in range(asked["calls"])]}
            return dict(zip(("mb", "method"), memory.peak_mb(self._made.run, self._watch.device), strict=True))
        except Absent as absent:
            return {"skipped": str(absent)}
        except Exception as error:
            text = "".join(str(error).strip().splitlines()[:1])
            return {"error": text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"}

    def _make(self, case: dict[str, Any], gate: bool) -> dict[str, Any]:
        self._made = self._watch = None  # what was made before is released first
        self._made = make(case, gate)
        self._made.run()
        self._watch = timing.Stopwatch(case["device"], self._made.wall)
        return {"sizes": self._made.sizes}


def serve(lines: Iterable[str], out: TextIO) -> None:
    """Answers every line until there are no more."""
    server = Server()
    print(json.dumps(server.about()), file=out, flush=True)
    for line in lines:
        print(json.dumps(server.answer(json.loads(line))), file=out, flush=True)


def main() -> None:
    """Serves standard input; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[1]))
    serve(sys.stdin, out)


if __name__ == "__main__":
    main()
