"""Throughput and memory of a training step against the batch, eager beside ours, and the largest batch in 16 GB.

python -m bench.large_batches                       both workloads, minutes of one core and up to 16 GB
python -m bench.large_batches qm9_schnet            SchNet on molecules of QM9, 128 to 8192 a step
python -m bench.large_batches modelnet_vndgcnn      VN-DGCNN on clouds of 64 points, 16 to 1024 a step

The steps are those of `python -m bench`, which checks outputs and gradients of the same versions; here the first losses
of both must agree to 1 %. A batch has a process of its own: it loads the batch, takes a step of each version whose
memory is measured, then `--rounds` of each, more where they are short. Rates are samples a second of processor time,
which other processes change little. Memory is all that the process holds beyond what it held before the batch was
loaded: batch, weights, optimiser, and the peak of a step. It is a line in the batch; where that meets `--limit-gb` is
the largest batch, which is run too where the machine has that much free. Molecules beyond those of the file are the
same ones again. Rows go to bench/results/reproduction/large_batches.json, `ace-fast report --readme` makes the table
and the figure of docs/reproduction.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from . import machine, memory, modelnet_vndgcnn, molecules, qm9_schnet, reproduction
from .results import Row

VERSIONS = ("fast", "eager")
AGREE = 0.01  # relative difference of the first losses
MIB_OF_GB = 1e9 / memory.MIB
SECONDS = 2.0  # for which short steps are repeated
_ROOM = 1.5  # GB that stay free beside a step


class Workload(NamedTuple):
    """What is measured: a module of bench, the batches, those that eager is run with too, and the samples' name."""

    module: Any
    batches: tuple[int, ...]
    eager: tuple[int, ...]
    samples: str


WORKLOADS = {
    "qm9_schnet": Workload(qm9_schnet, (128, 512, 2048, 8192), (128, 512), "molecules"),
    "modelnet_vndgcnn": Workload(modelnet_vndgcnn, (16, 32, 256, 1024), (16, 32), "clouds"),
}


def load(name: str, batch: int) -> Any:
    """The batch and the weights of a workload."""
    if name == "modelnet_vndgcnn":
        return modelnet_vndgcnn.load(f"clouds{batch}x64", "cpu", torch.float32)
    file = molecules.find_file()
    most = len(molecules.read_npz(file)[0].ids) if file else batch
    found, source = molecules.load(min(batch, most))
    return qm9_schnet.data_for(found.take(np.arange(batch) % most), source, "table", "cpu", torch.float32)


def measure(name: str, batch: int, versions: Sequence[str], rounds: int, threads: int) -> list[Row]:
    """A row for each version.

    Raises:
        ValueError: the versions' losses differ.
    """
    torch.set_num_threads(threads)
    before = memory.settled()
    data, losses, rows = load(name, batch), {}, []
    steps = {version: WORKLOADS[name].module.variant(version, data).step for version in versions}
    for version, step in steps.items():
        held = memory.settled() - before
        peak, method = memory.peak_mb(lambda step=step, version=version: losses.update({version: float(step())}))
        rows.append({"workload": name, "batch": batch, "version": version, "held_mb": held / memory.MIB,
                     "peak_mb": peak, "memory_method": method, "loss": losses[version], "rounds": rounds})
    first = losses[versions[0]]
    if not all(abs(loss - first) <= AGREE * abs(first) for loss in losses.values()):  # NaN fails too
        raise ValueError(f"large_batches: the losses of all versions must agree to 1 %, got {losses}")
    seconds = {version: _timed(step, rounds) for version, step in steps.items()}
    about = machine.describe("cpu")
    return [row | {"cpu_s": statistics.median(seconds[row["version"]]) if rounds else None} | about for row in rows]


def _timed(step: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of processor time of so many steps, and of more where they are short."""
    found: list[float] = []
    while len(found) < rounds or 0 < sum(found) < SECONDS:
        began = time.process_time()
        step()
        found.append(time.process_time() - began)
    return found


def total_gb(row: Row) -> float:
    """What the step needs: the batch, weights, optimiser, and its peak."""
    return (row["held_mb"] + row["peak_mb"]) / MIB_OF_GB


def line(rows: Sequence[Row]) -> tuple[float, float]:
    """GB of no sample, and of each, through the two largest batches of one version."""
    small, large = sorted(rows, key=lambda row: row["batch"])[-2:]
    slope = (total_gb(large) - total_gb(small)) / (large["batch"] - small["batch"])
    return total_gb(large) - slope * large["batch"], slope


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


def _child(job: dict[str, Any]) -> list[Row]:
    done = subprocess.run([sys.executable, "-m", "bench.large_batches", "--job", json.dumps(job)], capture_output=True,
                          text=True)
    if done.returncode:
        raise ValueError(f"large_batches: {job} must run, got {done.stderr.strip().splitlines()[-1:]}")
    rows = json.loads(done.stdout.strip().splitlines()[-1])
    for row in rows:
        rate = f"{row['batch'] / row['cpu_s']:9.1f} /s" if row["cpu_s"] else ""
        print(f"{row['workload']} {row['batch']:>7} {row['version']:6} {total_gb(row):7.3f} GB {rate}", flush=True)
    return rows


def run(name: str, a: argparse.Namespace) -> None:
    """Measures a workload and keeps its rows; those of the largest batches have `limit_gb`, and `predicted_gb`."""
    workload, job, rows = WORKLOADS[name], {"name": name, "threads": a.threads}, []
    for batch in a.batches or workload.batches:
        versions = [v for v in VERSIONS if v == "fast" or batch in (a.eager or workload.eager)]
        rows += _child(job | {"batch": batch, "versions": versions, "rounds": a.rounds})
        keep(rows, a.results)
    for version in VERSIONS:
        _largest(name, version, rows, a)


def _largest(name: str, version: str, rows: list[Row], a: argparse.Namespace) -> None:
    """Runs the largest batch; where it takes more than the limit, once more the one that the line is then at."""
    own = [row for row in rows if row["version"] == version]
    for _ in range(2):
        batch = largest(own, a.limit_gb)
        about = {"limit_gb": a.limit_gb, "predicted_gb": line(own)[0] + line(own)[1] * batch}
        if a.predict or free_gb() < a.limit_gb + _ROOM:
            print(f"{name} {batch:>7} {version:6} not run" + ("" if a.predict else f": {free_gb():.1f} GB are free"),
                  flush=True)
            rows.append(about | {"workload": name, "batch": batch, "version": version})
        else:
            job = {"name": name, "threads": a.threads, "batch": batch, "versions": [version], "rounds": 0}
            rows += [row | about for row in _child(job)]
        keep(rows, a.results)
        if "peak_mb" not in rows[-1] or total_gb(rows[-1]) <= a.limit_gb:
            return
        own.append(rows[-1])


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
    parser.add_argument("--eager", type=int, nargs="+", help="those of them that eager is measured with, two or more")
    parser.add_argument("--rounds", type=int, default=1, help="steps of each version that are timed (default: 1)")
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
        for name in a.names or WORKLOADS:
            if name not in WORKLOADS:
                raise ValueError(f"large_batches: WORKLOAD must be one of {', '.join(WORKLOADS)}, got {name!r}")
            run(name, a)
    except (ValueError, OSError) as error:
        print(f"ace-fast: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
