"""Throughput and memory of a training step against the batch, eager beside ours, and the largest batch in 16 GB.

python -m bench.large_batches                       both workloads, 22 minutes of one core and up to 16 GB
python -m bench.large_batches qm9_schnet            SchNet on molecules of QM9, 128 to 32 768 a step
python -m bench.large_batches modelnet_vndgcnn      VN-DGCNN on clouds of 64 points, 32 to 2048 a step

The steps are those of `python -m bench`, which checks outputs and gradients of the same versions; here the first losses
of both must agree to 1 %. A batch of a version has a process of its own: it loads the batch and takes a step, whose
memory is measured, and more until `--seconds` are spent. Rates are samples a second of processor time, the medians of
these steps; a process on the other hyperthread of a core lowers them. Memory is all that the process holds beyond what
it held before the batch was loaded: batch, weights, optimiser, and the peak of a step. It is a line in the batch once
the arrays are so large that each is a mapping of its own (32 MB with glibc; below, the heap keeps some of what is
freed): where the line through the two largest batches meets `--limit-gb` is the largest batch, which is run too, at the
end. What needs more than the limit or than is free is not run, and the row says what the line says. Molecules beyond
those of the file are the same ones again. Rows go to bench/results/reproduction/large_batches.json,
`ace-fast report --readme` makes the table and the figure of docs/reproduction.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from . import machine, memory, modelnet_vndgcnn, molecules, qm9_schnet, reproduction
from .results import Row

VERSIONS = ("fast", "eager")
AGREE = 0.01  # relative difference of the first losses
MIB_OF_GB = 1e9 / memory.MIB
_ROOM = 1.5  # GB that stay free beside a step


class Workload(NamedTuple):
    """What is measured: a module of bench, the batches, and the samples' name."""

    module: Any
    batches: tuple[int, ...]
    samples: str


WORKLOADS = {
    "qm9_schnet": Workload(qm9_schnet, (128, 512, 2048, 8192, 32_768), "molecules"),
    "modelnet_vndgcnn": Workload(modelnet_vndgcnn, (32, 128, 256, 1024, 2048), "clouds"),
}


def load(name: str, batch: int) -> Any:
    """The batch and the weights of a workload."""
    if name == "modelnet_vndgcnn":
        return modelnet_vndgcnn.load(f"clouds{batch}x64", "cpu", torch.float32)
    file = molecules.find_file()
    most = len(molecules.read_npz(file)[0].ids) if file else batch
    found, source = molecules.load(min(batch, most))
    return qm9_schnet.data_for(found.take(np.arange(batch) % most), source, "table", "cpu", torch.float32)


def measure(name: str, batch: int, version: str, seconds: float, threads: int) -> Row:
    """The row of a batch: memory of the first step, processor time of all steps."""
    torch.set_num_threads(threads)
    before = memory.settled()
    step = WORKLOADS[name].module.variant(version, load(name, batch)).step
    held, losses, spent = memory.settled() - before, [], []

    def timed() -> None:
        began = time.process_time()
        losses.append(float(step()))
        spent.append(time.process_time() - began)

    peak, method = memory.peak_mb(timed)
    while sum(spent) < seconds:
        timed()
    return {"workload": name, "batch": batch, "version": version, "held_mb": held / memory.MIB, "peak_mb": peak,
            "memory_method": method, "loss": losses[0], "steps": len(spent), "cpu_s": statistics.median(spent),
            } | machine.describe("cpu")


def total_gb(row: Row) -> float:
    """What the step needs: the batch, weights, optimiser, and its peak."""
    return (row["held_mb"] + row["peak_mb"]) / MIB_OF_GB


def line(rows: Sequence[Row]) -> tuple[float, float]:
    """GB of no sample, and of each, through the two largest batches of one version that were run."""
    small, large = sorted(filter(was_run, rows), key=lambda row: row["batch"])[-2:]
    slope = (total_gb(large) - total_gb(small)) / (large["batch"] - small["batch"])
    return total_gb(large) - slope * large["batch"], slope


def was_run(row: Row) -> bool:
    """Whether a row has more than what the line says."""
    return "peak_mb" in row


def largest(rows: Sequence[Row], limit_gb: float) -> int:
    """The batch at which the line meets the limit, in two digits, rounded down."""
    base, slope = line(rows)
    most = int((limit_gb - base) / slope)
    place = 10 ** max(0, len(str(most)) - 2)
    return most // place * place


def free_gb() -> float:
    """Memory that processes may still take."""
    for words in Path("/proc/meminfo").read_text().splitlines():
        if words.startswith("MemAvailable:"):
            return int(words.split()[1]) * 1024 / 1e9
    raise OSError("/proc/meminfo has no MemAvailable")


def run(name: str, a: argparse.Namespace) -> list[Row]:
    """Measures the batches of a workload with each version, and keeps their rows.

    Raises:
        ValueError: the versions' losses differ.
    """
    rows: list[Row] = []
    for batch in a.batches or WORKLOADS[name].batches:
        for version in VERSIONS:
            rows.append(_row(name, batch, version, rows, a, a.limit_gb))
            keep(rows, a.results)
        losses = [row["loss"] for row in rows if row["batch"] == batch and was_run(row)]
        if not all(abs(loss - losses[0]) <= AGREE * abs(losses[0]) for loss in losses):  # NaN fails too
            raise ValueError(f"large_batches: the losses of all versions of {name} {batch} must agree to 1 %, got "
                             f"{losses}")
    return rows


def run_largest(name: str, rows: list[Row], a: argparse.Namespace) -> None:
    """Runs the largest batch of each version; where it takes more than the limit, once more where the line is then.

    Their rows have `limit_gb`.
    """
    for version in VERSIONS:
        for _ in range(2):
            batch = largest([row for row in rows if row["version"] == version], a.limit_gb)
            found = _row(name, batch, version, rows, a, 0.0 if a.predict else a.limit_gb)
            rows.append(found | {"limit_gb": a.limit_gb})
            keep(rows, a.results)
            if not was_run(found) or total_gb(found) <= a.limit_gb:
                break


def _row(name: str, batch: int, version: str, rows: Sequence[Row], a: argparse.Namespace, most_gb: float) -> Row:
    """Measures a batch in a process of its own, unless it takes more than `most_gb` by the line, or than is free."""
    own = [row for row in rows if row["version"] == version and was_run(row)]
    base, slope = line(own) if len(own) > 1 else (0.0, 0.0)
    predicted, free = base + slope * batch, free_gb()
    found: Row = {"workload": name, "batch": batch, "version": version}
    if len(own) > 1:
        found["predicted_gb"] = predicted
    if predicted > min(most_gb, free - _ROOM):
        says = f"not run: needs {predicted:.1f} GB, {free:.1f} GB are free"
    else:
        job = {"name": name, "batch": batch, "version": version, "seconds": a.seconds, "threads": a.threads}
        found |= _child(job)
        says = f"{total_gb(found):7.3f} GB {batch / found['cpu_s']:9.1f} /s, {found['steps']} steps"
    print(f"{name} {batch:>7} {version:6} {says}", flush=True)
    return found


def _child(job: dict[str, Any]) -> Row:
    done = subprocess.run([sys.executable, "-m", "bench.large_batches", "--job", json.dumps(job)], capture_output=True,
                          text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or f"exit status {done.returncode}"
        raise ValueError(f"large_batches: {job} must run, got {why}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep(rows: Sequence[Row], results: Path) -> None:
    """Writes the rows of a workload in place of its earlier ones."""
    others = [row for row in reproduction.load("large_batches", results) if row["workload"] != rows[0]["workload"]]
    reproduction.write("large_batches", [*others, *rows], results)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the workloads; returns the exit status, 2 for wrong input."""
    parser = argparse.ArgumentParser("large_batches", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--batches", type=int, nargs="+", help="two or more, in place of the workload's")
    parser.add_argument("--seconds", type=float, default=10.0, help="of processor time in which steps of a batch are "
                        "repeated; at least one is made (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--limit-gb", type=float, default=16.0, help="memory of the largest batch (default: 16)")
    parser.add_argument("--predict", action="store_true", help="do not run the largest batches")
    parser.add_argument("--results", type=Path, default=reproduction.RESULTS,
                        help=f"folder of the rows; default: {reproduction.RESULTS}")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.job:
        print(json.dumps(measure(**a.job)))
        return 0
    try:
        for name in a.names:
            if name not in WORKLOADS:
                raise ValueError(f"large_batches: WORKLOAD must be one of {', '.join(WORKLOADS)}, got {name!r}")
        if a.batches and len(set(a.batches)) < 2:
            raise ValueError(f"large_batches: --batches must be two or more, as a line goes through them, got "
                             f"{a.batches}")
        for name, rows in [(name, run(name, a)) for name in a.names or WORKLOADS]:
            run_largest(name, rows, a)
    except (ValueError, OSError) as error:
        print(f"ace-fast: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
