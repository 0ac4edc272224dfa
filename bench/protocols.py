"""Runs the peers' protocols: every version of a product behind the gate, timed in turn, one row per case and direction.

A version that is not installed, refuses the product or is wrong is in the row with its reason and without a time. One
that misses the gate's bound by less than LOOSE is timed and says so: several peers are less exact than their reference.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ace_fast.kernels.tensor_product import ProductTable
from ace_fast.kernels.tensor_product.counts import product_row

from . import counts, gate, machine, memory, timing
from . import protocol_cases as cases_of
from . import protocol_versions as versions_of
from .gate import Numbers
from .protocol_cases import BOTH, DOUBLE, FORWARD, PROTOCOLS, Problem
from .protocol_versions import Inputs, Version
from .roofline import Roofline

PLAIN = ("eager", "compiled", "torch_scatter")  # with edge tensors and outer products
LOOSE = 100  # times the gate's bound; the fast version has to keep the bound itself
BUDGET_S = {"cpu": 12.0, "cuda": 1.0}  # of timing for one row
BLOCK = {"cpu": 2**30, "cuda": 2**33}  # bytes of a block of the float64 reference
QUICK_ROWS = 64
CPU_LIMIT = 12 * 2**30  # bytes that e3nn's eager step may need where memory is not the accelerator's
SEEN = {FORWARD: ("output",), BOTH: ("output", "gradient of"), DOUBLE: ("output", "gradient of", "second gradient of")}


class Case(NamedTuple):
    """One product on one device, with what all directions share."""

    protocol: str
    name: str
    problem: Problem
    rows: int
    device: str
    dtype: torch.dtype
    directions: tuple[str, ...]
    compiled: bool

    @property
    def deepest(self) -> str:
        return max(self.directions, key=cases_of.ALL.index)


def jobs(protocols: list[str], device: str, dtype: torch.dtype, case: str | None = None, direction: str | None = None,
         compiled: bool = True, quick: bool = False) -> Iterator[Case]:
    """All cases, the first of every protocol first, so that a run that is stopped has seen all of them.

    `quick` takes the first case of each, on the CPU the product with the fewest paths, on a sixteenth of its
    rows and not more than QUICK_ROWS.
    """
    found = []
    for protocol in protocols:
        names = [case] if case else cases_of.cases(protocol, device)[:1 if quick else None]
        if quick and not case and device == "cpu":
            fewest = min(PROTOCOLS[protocol].problems, key=lambda problem: len(problem.instructions))
            names = [f"{fewest.name}@{min(QUICK_ROWS, PROTOCOLS[protocol].cpu_rows[0] // 16)}"]
        directions = tuple(d for d in PROTOCOLS[protocol].directions if direction in (None, d))
        for place, name in enumerate(names if directions else ()):
            problem, rows = cases_of.find(protocol, name, device)
            case_ = Case(protocol, f"{problem.name}@{rows}", problem, rows, device, dtype, directions, compiled)
            found.append((place, case_))
    yield from (case_ for _, case_ in sorted(found, key=lambda pair: pair[0]))


def measure(case: Case, roof: Roofline, repeats: int = 15, budget_s: float | None = None, quick: bool = False
            ) -> Iterator[dict[str, Any]]:
    """One row for each direction of the case; `error` where ace_fast is wrong or anything fails.

    `quick` measures memory and first calls in this process.
    """
    done: list[str] = []
    try:
        for row in _measure(case, roof, repeats, BUDGET_S[case.device] if budget_s is None else budget_s, quick):
            done.append(row["direction"])
            yield row
    except Exception as error:  # a row with the reason, never a missing row
        for direction in [d for d in case.directions if d not in done]:
            yield _named(case, direction) | {"error": _said(error)} | machine.describe(case.device)


def _measure(case: Case, roof: Roofline, repeats: int, budget_s: float, quick: bool) -> Iterator[dict[str, Any]]:
    names = versions_of.CONVOLUTION if case.problem.convolution else versions_of.PRODUCT
    given = versions_of.load(case.problem, case.rows, case.device, case.dtype)
    made, first, reasons = _made(case, given, [n for n in names if case.compiled or n != "compiled"])
    if not case.compiled:
        reasons["compiled"] = "not asked for (--no-compile or --quick)"
    found = verdicts(case, given, made)
    measured: dict[str, Any] = {}
    for direction in case.directions:
        row = _about(case, direction, given, names)
        row |= {f"{name}_reason": reason for name, reason in reasons.items()}
        steps = _right(case, given, made, {n: x[direction] for n, x in found.items()}, direction, row)
        if "fast" in steps:
            steps["again"] = steps["fast"]
        times = timing.interleaved(steps, case.device, repeats, wall=False, budget_s=budget_s) if steps else {}
        _enter(row, times, first, case, direction, roof)
        _memory(row, case, direction, steps, measured, quick)
        yield row | machine.describe(case.device)
        del steps
        gc.collect()


class Verdict(NamedTuple):
    """What became of one version in one direction."""

    error: str  # why it is wrong or could not run
    worst: float | None = None  # largest error relative to its tensor
    near: bool = False  # LOOSE would let it pass


def verdicts(case: Case, given: Inputs, made: dict[str, Version]) -> dict[str, dict[str, Verdict]]:
    """The numbers of every version against e3nn in float64, its limit from e3nn in float32; see bench/gate.py."""
    block, own = BLOCK[case.device], None
    gold = versions_of.reference(case.problem, given, case.deepest, torch.float64, block)
    if "eager" in made and case.dtype == torch.float32 and not _too_large(case, case.deepest):
        own = _numbers(case, given, made["eager"], case.deepest)
    single = own if isinstance(own, dict) else versions_of.reference(case.problem, given, case.deepest, torch.float32,
                                                                     block)
    limit = gate.limits(gold, single, case.dtype)
    del own, single
    found: dict[str, dict[str, Verdict]] = {}
    for name, version in made.items():
        found[name], mine = {}, None
        for direction in sorted(case.directions, key=cases_of.ALL.index, reverse=True):
            if not isinstance(mine, dict):  # the deepest that can be run has the numbers of the others too
                large = _too_large(case, direction) if name in PLAIN else ""
                mine = ValueError(large) if large else _numbers(case, given, version, direction)
            seen = {n: x for n, x in gold.items() if n.startswith(SEEN[direction])}
            found[name][direction] = _verdict(mine, seen, limit) if isinstance(mine, dict) else Verdict(_said(mine))
    return found


def _numbers(case: Case, given: Inputs, version: Version, direction: str) -> Numbers | Exception:
    try:
        return versions_of.numbers(version, case.problem, given, direction)
    except Exception as error:
        if case.device == "cuda":
            torch.cuda.empty_cache()  # where memory was short, the next version gets all that is left
        return error.with_traceback(None)  # whose frames hold tensors


def _verdict(mine: Numbers, gold: Numbers, limit: dict[str, float]) -> Verdict:
    error, worst = gate.verdict(mine, gold, limit)
    if not error:
        return Verdict("", worst)
    wide, worst = gate.verdict(mine, gold, {n: LOOSE * x for n, x in limit.items()})
    return Verdict(f"wrong: {error}", worst, not wide)


def _made(case: Case, given: Inputs, names: list[str]) -> tuple[dict[str, Version], dict[str, float], dict[str, str]]:
    """Versions, milliseconds of their construction and first call with gradients, and reasons of the others."""
    made, first, reasons = {}, {}, {}
    direction = case.directions[:2][-1]
    for name in names:
        start = time.perf_counter()
        try:
            version = versions_of.make(name, case.problem, given)
            if name not in PLAIN or not _too_large(case, direction):
                versions_of.step(version, case.problem, version.inputs(given), direction)()
            _wait(case.device)
        except Exception as error:  # a row with the reason, never a missing row
            reasons[name] = _said(error)
            continue
        made[name], first[name] = version, 1e3 * (time.perf_counter() - start)
    return made, first, reasons


def _said(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if isinstance(error, ValueError) and text else f"{type(error).__name__}: {''.join(text[:1])}")[:300]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _too_large(case: Case, direction: str) -> str:
    needed = versions_of.plain_bytes(case.problem, case.rows, case.dtype, direction)
    if case.device != "cpu" or needed <= CPU_LIMIT:
        return ""
    return f"not run on the CPU: it needs about {needed / 2**30:.0f} GiB, more than {CPU_LIMIT / 2**30:.0f}"


def _right(case: Case, given: Inputs, made: dict[str, Version], verdicts: dict[str, Verdict], direction: str,
           row: dict) -> dict:
    """The steps of the versions that passed the gate; reasons and errors go into the row."""
    steps = {}
    for name, version in made.items():
        verdict = verdicts[name]
        row |= {f"{name}_max_relative_error": verdict.worst} | ({f"{name}_method": version.method} if version.method
                                                               else {})
        if verdict.error and (name == "fast" or not verdict.near):
            row[f"{name}_reason"] = verdict.error
            continue
        if verdict.error:
            row[f"{name}_loose"] = verdict.error.removeprefix("wrong: ")
        step = versions_of.step(version, case.problem, version.inputs(given), direction)
        try:
            step()
        except Exception as error:
            row[f"{name}_reason"] = _said(error)
            continue
        steps[name] = step
    if "fast_reason" in row:
        row["error"] = f"fast: {row['fast_reason']}"
    return steps


def _named(case: Case, direction: str) -> dict[str, Any]:
    return {"protocol": case.protocol, "case": case.name, "direction": direction, "device": case.device,
            "dtype": row_dtype(case.dtype), "source": PROTOCOLS[case.protocol].source, "rows": case.rows,
            "fast_ms": None}


def _about(case: Case, direction: str, given: Inputs, names: tuple[str, ...]) -> dict[str, Any]:
    problem = case.problem
    count = _count(problem, given, direction)
    row = _named(case, direction) | {
        "nodes": given.x1.shape[0], "irreps": [str(i) for i in problem.irreps], "paths": len(problem.instructions),
        "mode": problem.instructions[0][3], "shared_weights": problem.shared, "weight_numel": given.weight.shape[-1],
        "flops": count.flops, "bytes": count.bytes, "speedup": None}
    return row | {f"{name}_ms": None for name in names}


def _count(problem: Problem, given: Inputs, direction: str) -> counts.Count:
    """Operations and bytes of the exact algorithm, see counts.derivatives; a convolution's sums are at its nodes."""
    table = ProductTable(*problem.irreps, [(*ins, 1.0) for ins in problem.instructions])
    a_row = product_row({"paths": table.paths, "cg_index": table.on(torch.device("cpu"))[0]})
    wanted = 2 if problem.shared else 3
    terms, arguments, gradients, outputs = counts.derivatives(wanted, direction)
    rows = given.x2.shape[0]
    flops = rows * terms * a_row
    if problem.convolution:
        flops += rows * (problem.irreps[2].dim + cases_of.ALL.index(direction) * problem.irreps[0].dim)
    leaves = given.leaves()
    bytes_ = arguments * counts.nbytes(leaves) + gradients * counts.nbytes(leaves[:wanted])
    bytes_ += outputs * counts.nbytes([given.cotangent])
    return counts.Count(flops, bytes_ + outputs * counts.nbytes([given.source, given.target]))


def _enter(row: dict, times: dict[str, timing.Timing], first: dict[str, float], case: Case, direction: str,
           roof: Roofline) -> None:
    for name, t in times.items():
        if name != "again":
            row |= {f"{name}_ms": t.median, f"{name}_q20_ms": t.q20, f"{name}_q80_ms": t.q80}
            row[f"{name}_first_ms"] = first[name]
    if "fast" not in times:
        return
    ms = times["fast"].median
    row |= {"noise": timing.noise(times["fast"], times["again"]), "rounds": times["fast"].rounds,
            "times_ms": times["fast"].times}
    row |= roof.achieved(row["flops"], row["bytes"], ms) | {"rows_per_s": 1e3 * case.rows / ms}
    row["speedup"] = row["eager_ms"] and row["eager_ms"] / ms
    others = {name: t.median for name, t in times.items() if name not in ("fast", "again", "eager")}
    row |= {f"speedup_over_{name}": other / ms for name, other in others.items()}


def _memory(row: dict, case: Case, direction: str, steps: dict, measured: dict[str, Any], here: bool) -> None:
    """Peaks of this direction; on the CPU each version's process measures all directions, and its first call, unless
    they are to be measured `here`."""
    for name in steps:
        if name in ("again", "compiled"):
            continue
        if case.device == "cuda" or here:
            row[f"{name}_mb"], row["memory_method"] = memory.peak_mb(steps[name], case.device)
            continue
        if name not in measured:
            measured[name] = _child(case, name)
        found = measured[name]
        row[f"{name}_mb"], row["memory_method"] = found["mb"].get(direction), found["method"]
        row[f"{name}_first_ms"] = found["first_ms"]


def _child(case: Case, name: str) -> dict[str, Any]:
    """Peaks and first call of one version in a process of its own, in which no other has left pages behind."""
    root = Path(sys.modules[__package__.split(".")[0]].__file__).parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    directions = [d for d in case.directions if name == "fast" or not _too_large(case, d)]
    command = [sys.executable, "-m", __name__, case.protocol, case.name, name, case.device, row_dtype(case.dtype),
               str(torch.get_num_threads()), *directions]
    done = subprocess.run(command, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return {"mb": {}, "first_ms": None, "method": f"the measurement of {name} failed: {''.join(last)}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def row_dtype(dtype: torch.dtype) -> str:
    """float32 or float64, as rows and command lines say it."""
    return str(dtype).removeprefix("torch.")


def main(argv: list[str] | None = None) -> None:
    """The child's side: construction and first forward and backward, then a measured step in each direction."""
    parser = argparse.ArgumentParser(description="peak memory and first call of one version")
    for argument in ("protocol", "case", "version", "device", "dtype"):
        parser.add_argument(argument)
    parser.add_argument("threads", type=int)
    parser.add_argument("directions", nargs="+")
    a = parser.parse_args(argv)
    torch.set_num_threads(a.threads)
    problem, rows = cases_of.find(a.protocol, a.case, a.device)
    given = versions_of.load(problem, rows, a.device, getattr(torch, a.dtype))
    start = time.perf_counter()
    version = versions_of.make(a.version, problem, given)
    x = version.inputs(given)
    versions_of.step(version, problem, x, min(a.directions[-1], BOTH, key=cases_of.ALL.index))()
    first = 1e3 * (time.perf_counter() - start)
    found: dict[str, float] = {}
    for direction in a.directions:
        step = versions_of.step(version, problem, x, direction)
        for _ in range(2):
            step()
        found[direction], method = memory.peak_mb(step, a.device)
    print(json.dumps({"mb": found, "first_ms": first, "method": method}))


if __name__ == "__main__":
    main()
