"""`--compare REV`: the ace_fast here against that of another revision, in processes that take turns.

Three processes run each case: this revision (`here`), the other one (`there`) and this one `again`, in an order that
turns with each round. The ratio of a case is the median over the rounds of here / there. Its noise is the largest of:
by how much again / here, one program in two processes, is off 1; three times what the median case of the run is off;
twice the standard errors of both medians; FLOOR. What is beyond the noise is timed in two more sets of three new
processes, since memory is laid out anew in each, and is called slower or faster only where all three sets say so.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import machine, revisions, suite, tables
from .results import Row, label, time_key

SLOWER, FASTER, WITHIN = "slower", "faster", "within noise"
SETS = 3
FLOOR = 0.01
TURN_MS = 20.0  # a process runs at least this long before the next takes over
MOST_CALLS = 200
BUDGET_S = 20.0  # of timing for one case in one set
LEAST_ROUNDS = 5
SIDES = ("here", "there", "again")


class Measured(NamedTuple):
    """One case in one set of processes."""

    here: list[float]  # ms of a call, a number for each round
    there: list[float]
    again: list[float]
    here_mb: float | None
    there_mb: float | None

    def ratio(self) -> float:
        return statistics.median(self._ratios())

    def off(self) -> float:
        """By how much the same program in two processes differs."""
        return abs(statistics.median(self._null()) - 1)

    def noise(self, common: float) -> float:
        return max(self.off(), 2 * error(self._ratios()), 2 * error(self._null()), 3 * common, FLOOR)

    def _ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.here, self.there, strict=True)]

    def _null(self) -> list[float]:
        return [a / b for a, b in zip(self.again, self.here, strict=True)]


def error(values: list[float]) -> float:
    """The standard error of the median of `values`, from their median absolute deviation."""
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(x - middle) for x in values)
    return 1.2533 * spread / math.sqrt(len(values))


def verdict(found: list[Measured], common: float) -> tuple[str, float, float]:
    """(SLOWER, FASTER or WITHIN, here / there, noise) of one case from its sets; `common`: `off` of a usual case."""
    ratios, noise = [m.ratio() for m in found], max(m.noise(common) for m in found)
    called = SLOWER if min(ratios) > 1 + noise else FASTER if max(ratios) < 1 / (1 + noise) else WITHIN
    return called, statistics.median(ratios), noise


class Worker:
    """A process that makes cases and runs them (bench/compare_worker.py)."""

    def __init__(self, site: Path | None, threads: int):
        """`site`: the folder with the package, None for the one here."""
        paths = [*filter(None, [site and str(site), str(revisions.ROOT), os.environ.get("PYTHONPATH")])]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        # -P: the folder in which this is called holds an ace_fast too
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.compare_worker", str(threads)], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
        try:
            self._check(revisions.ROOT if site is None else (site / "ace_fast").resolve().parent)
        except ValueError:
            self.close()
            raise

    def _check(self, home: Path) -> None:
        """It must have imported what is in `home`."""
        about = self._read()
        for folder in (about["package"], about["kernels"]):
            if not Path(folder).resolve().is_relative_to(home):
                raise ValueError(f"--compare: a process must import ace_fast from {home}, got {folder}")

    def ask(self, **what: Any) -> dict[str, Any]:
        """Its answer.

        Raises:
            ValueError: it ended; the message has its last line.
        """
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is in its log
        return self._read()

    def alive(self) -> bool:
        return self._process.poll() is None

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._log.seek(0)
        raise ValueError(f"the process ended with {status}: {''.join(self._log.read().strip().splitlines()[-1:])}")

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


def cases(a: argparse.Namespace, device: str) -> Iterator[Row]:
    """What is compared, as the beginnings of rows."""
    about = {"device": device, "dtype": a.dtype}
    for kind in suite.kinds(a):
        if kind == "workloads":
            for name, case in suite.workload_cases(a, device):
                yield {"workload": name, "case": case} | about
        elif kind == "protocols":
            for job in suite.protocol_jobs(a, device):
                for direction in job.directions:
                    yield {"protocol": job.protocol, "case": job.name, "direction": direction} | about
        else:
            for job in suite.operator_jobs(a, device):
                yield {"op": job.op, "case": job.case.name, "backend": job.backend, "direction": job.direction} | about


def run(a: argparse.Namespace, device: str, rows: suite.Rows) -> None:
    """Compares what was asked for on one device, and shows it.

    Raises:
        ValueError: the other revision is unknown or does not build.
    """
    about = machine.describe(device)
    tables.heading(about)
    with tables.waiting(f"building {a.compare}"):
        site, sha = revisions.prepare(a.compare), revisions.resolve(a.compare)
    start = lambda side: Worker(site if side == "there" else None, torch.get_num_threads())  # noqa: E731
    for row in compare(list(cases(a, device)), start, suite.rounds(a)):
        rows.add(row | about | {"baseline_revision": sha[:12]})
    tables.compared(rows, a.compare)


def compare(wanted: list[Row], start: Callable[[str], Worker], rounds: int) -> list[Row]:
    """A row for each of `wanted`; `start(side)` starts the process of "here", "there" or "again"."""
    sets: list[list[Measured]] = [[] for _ in wanted]
    reasons: dict[int, dict[str, str]] = {}
    common = 0.0
    for number in range(SETS):
        todo = [i for i, found in enumerate(sets)
                if i not in reasons and (not number or verdict(found, common)[0] != WITHIN)]
        if todo:
            _one_set([(i, wanted[i]) for i in todo], sets, reasons, start, rounds)
        common = statistics.median([found[0].off() for found in sets if found] or [0.0])
    return [row | (reasons[i] if i in reasons else _row(row, sets[i], common)) for i, row in enumerate(wanted)]


def _one_set(todo: list[tuple[int, Row]], sets: list[list[Measured]], reasons: dict[int, dict[str, str]],
             start: Callable[[str], Worker], rounds: int) -> None:
    workers: dict[str, Worker] = {}
    try:
        for i, row in todo:
            for side in SIDES:  # also what a crash has ended
                if side not in workers or not workers[side].alive():
                    workers[side] = start(side)
            with tables.waiting(label(row)):
                found = measure(row, workers, rounds, gate=not sets[i])
            if isinstance(found, Measured):
                sets[i].append(found)
            else:
                reasons[i] = found
    finally:
        for worker in workers.values():
            worker.close()


def measure(row: Row, workers: dict[str, Worker], rounds: int, gate: bool) -> Measured | dict[str, str]:
    """One case in one set of processes, or {"error" or "skipped": why it has no times}."""
    try:
        sizes = {side: workers[side].ask(case=row, gate=gate and side != "again") for side in SIDES}
        if reason := sizes["here"].get("error") or sizes["again"].get("error"):
            return {"error": reason}
        if reason := sizes["here"].get("skipped"):
            return {"skipped": reason}
        if reason := sizes["there"].get("error") or sizes["there"].get("skipped"):
            return {"skipped": f"not measured there: {reason}"}
        here, there = (sizes[side]["sizes"] for side in ("here", "there"))
        if wrong := [k for k in here.keys() & there.keys() if here[k] != there[k]]:
            return {"skipped": f"not the same case there: {wrong[0]} is {there[wrong[0]]}, here {here[wrong[0]]}"}
        times = _times(workers, rounds)
        mb = {side: workers[side].ask(memory=True).get("mb") for side in ("here", "there")}
    except ValueError as problem:
        return {"error": str(problem)}
    return Measured(**times, here_mb=mb["here"], there_mb=mb["there"])


def _times(workers: dict[str, Worker], rounds: int) -> dict[str, list[float]]:
    """ms of a call of each process, a number for each round, in which each has a turn of at least TURN_MS.

    Raises:
        ValueError: a process failed or ended.
    """
    def turn(side: str, calls: int) -> float:
        # the first finds the caches as the process before left them
        found = workers[side].ask(calls=calls)
        if "error" in found:
            raise ValueError(f"{side}: {found['error']}")
        return statistics.median(found["ms"][1:])

    once = max(turn(side, 3) for side in SIDES)
    calls = 1 + min(MOST_CALLS, max(1, math.ceil(TURN_MS / max(once, 1e-6))))
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    end = time.perf_counter() + BUDGET_S
    for i in range(rounds):
        if i >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for j in range(len(SIDES)):
            side = SIDES[(i + j) % len(SIDES)]
            found[side].append(turn(side, calls))
    return found


def _row(row: Row, found: list[Measured], common: float) -> Row:
    called, ratio, noise = verdict(found, common)
    first = found[0]
    return {time_key(row): statistics.median(first.here), "baseline_ms": statistics.median(first.there),
            "times_ms": first.here, "rounds": len(first.here), "ratio": ratio, "noise": noise, "verdict": called,
            "sets": len(found), "here_mb": first.here_mb, "baseline_mb": first.there_mb}
