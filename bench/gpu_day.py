"""One call on a machine with a GPU: build, tests on the device, one case of everything, then the cases in full.

The parts run one after the other, the most valuable first, each in a process with a time limit, and each counts even if
another fails. One folder has everything: results.json is a run file (bench/results.py), written anew every few seconds,
whose rows name their `part` and which says besides what became of the parts and how each log ends; logs.txt has the
whole logs, <device>.csv a line for each version of each row.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from . import machine, results

REQUIRED = "reference,cpu,triton,cuda"
BUDGET_S = 570
WORKERS = str(min(16, os.cpu_count() or 1))  # test processes that share the GPU
# Tests that run on the GPU, the most telling first. Those of the sanitizer are a part of their own.
ON_GPU = ("test_cuda", "test_cuda_graph", "test_gpu", "test_matmul_precision", "test_training_steps",
          "test_train_shards", "test_shards", "test_segment_sum", "test_equivalence")
CHOSEN = ("(test_equivalence and (cuda-cuda or cuda-triton or required)) or ((test_cuda or test_gpu or "
          "test_matmul_precision or test_segment_sum) and not sanitizer) or gpu or captured_training")
SPHERE = "(cuda-cuda or cuda-triton) and (sphere_product or cp_product)"
STEPS = ("nbody_segnn", "qm9_segnn", "qm9_schnet", "mocap_egno", "md17_schnet", "modelnet_vndgcnn")
LOG_LINES = 60
LOG_BYTES = 4 * 2**20  # of each log
GRACE_S = 10  # for a stopped part to say how far it came


class Part(NamedTuple):
    """What runs, and for how long at most."""

    command: list[str]
    limit_s: float


def parts(root: Path, folder: Path) -> dict[str, Part]:
    """All parts in the order in which they run; rows go to `folder`."""
    bench = [sys.executable, "-m", __package__, "--device", "cuda"]
    tests = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-n", WORKERS, "-p", "no:benchmark"]
    brief = ["--no-compile", "--repeats", "9"]
    rows = lambda name: ["--json", str(folder / f"{name}.json")]  # noqa: E731
    of = lambda name: str(root / "tests" / f"{name}.py")  # noqa: E731
    suite = [*bench, "--suite", "products", "--case"]
    warm = [sys.executable, "-m", f"{__package__}.products_warm"]
    products = ["tensor_product", "tensor_product_conv", "steerable_message"]
    return {
        "build": Part([sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(root)],
                      100),
        "tests": Part([*tests, *map(of, ON_GPU), "-k", CHOSEN], 140),
        "warm": Part([*warm, "grid", "cp", "layers"], 50),
        "grid": Part([*suite, "grid", *rows("grid")], 80),
        "layers": Part([*suite, "layers", *rows("layers")], 70),
        "cp": Part([*suite, "cp", *rows("cp")], 50),
        "suite": Part([*bench, "--quick", *rows("suite")], 80),
        "protocols": Part([*bench, *brief, "--protocol", "O1", "O2", "O8", "F1", *rows("protocols")], 80),
        "workloads": Part([*bench, *brief, "--workload", *STEPS, *rows("workloads")], 70),
        "operators": Part([*bench, "--op", *products, *rows("operators")], 50),
        # what is left of the time goes to what is asked for by name
        "tests-sphere": Part([*tests, of("test_equivalence"), "-k", SPHERE], 60),
        "sanitizer": Part([sys.executable, "-m", "pytest", "-q", "-n", "3", of("test_cuda"), "-k", "sanitizer"], 120),
        "tests-all": Part([*tests, "tests"], 300),
        "tests-aot": Part([*tests, "tests/aot"], 150),
        "clouds": Part([*bench, "--workload", "modelnet_vndgcnn", "knn", "vn_edge_conv", "vn_linear", "--no-compile",
                        *rows("clouds")], 120),
        "all-operators": Part([*bench, "--operators", *rows("all-operators")], 150),
        "float64": Part([*bench, *brief, "--protocol", "O1", "O2", "O8", "F1", "--dtype", "float64",
                         *rows("float64")], 150),
        "other-protocols": Part([*bench, *brief, "--protocol", "O3", "O5", "J1", *rows("other-protocols")], 120),
        "scaling": Part([*bench, "--roofline", "--scaling", *rows("scaling")], 240),
        "compiled": Part([*bench, "--workload", "all", "--protocol", "all", "--quick", "--compile", "--repeats",
                          "15", *rows("compiled")], BUDGET_S),
    }


DEFAULT = ("build", "tests", "warm", "grid", "layers", "cp", "suite")


def main(folder: Path, names: list[str] | None = None, budget_s: float = BUDGET_S) -> int:
    """Runs the parts `names` into `folder` in so many seconds; the exit status is 1 where one failed."""
    if not torch.cuda.is_available():
        return _refuse("a GPU, torch sees none; use --workload, --protocol and --operators on the CPU")
    root = Path(__file__).resolve().parents[1]
    if not (root / "tests").is_dir():
        return _refuse(f"a checkout with its tests, {root} has none; run it in a clone of the repository")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # TRITON_INTERPRET and ACE_FAST_EMULATE are set, so that the tests' own defaults do not come in
    environment = os.environ | {"TRITON_INTERPRET": "0", "ACE_FAST_EMULATE": "0", "ACE_FAST_REQUIRE": REQUIRED,
                                "OMP_NUM_THREADS": "2"}
    about, found, started = machine.describe("cuda"), {}, time.monotonic()
    with tempfile.TemporaryDirectory() as kept:
        every, work = parts(root, Path(kept)), Path(kept)
        for name in names or DEFAULT:
            limit = min(every[name].limit_s, budget_s - (time.monotonic() - started))
            found[name] = {"status": "running", "seconds": None}
            save = lambda: write(folder, about, found, work)  # noqa: E731, B023
            found[name] = run(every[name].command, work / f"{name}.txt", limit, root, environment, save)
            print(f"{name}: {found[name]}", flush=True)
            save()
        results.append(folder, rows_of(work, found))
    return int(any(part["status"] for part in found.values()))


def write(folder: Path, about: dict[str, object], found: dict[str, dict[str, object]], work: Path) -> None:
    """results.json and logs.txt of the parts so far; `work` has a .json and a .txt of each."""
    logs = {name: (work / f"{name}.txt").read_text(errors="replace") for name in found
            if (work / f"{name}.txt").exists()}
    ends = {name: log.splitlines()[-LOG_LINES:] for name, log in logs.items()}
    results.write(folder / "results.json", rows_of(work, found), more={"machine": about, "parts": found, "logs": ends})
    (folder / "logs.txt").write_text("\n".join(f"==== {name}\n{log[-LOG_BYTES:]}" for name, log in logs.items()))


def rows_of(work: Path, found: Iterable[str]) -> list[results.Row]:
    """The rows that the parts have left so far."""
    files = {name: work / f"{name}.json" for name in found}
    return [row | {"part": name} for name, file in files.items() if file.exists() for row in results.load(file)]


def _refuse(why: str) -> int:
    print(f"bench: --gpu-day needs {why}", file=sys.stderr)
    return 2


def run(command: list[str], log: Path, limit_s: float, cwd: Path, environment: dict[str, str],
        meanwhile: Callable[[], object] = lambda: None, every_s: float = 10.0) -> dict[str, object]:
    """Runs one part with its output in `log`: {"status": exit status or reason, "seconds": ...}."""
    start = time.monotonic()
    if limit_s <= 0:
        return {"status": "not run: the time is used up", "seconds": 0.0}
    seconds = lambda: round(time.monotonic() - start, 1)  # noqa: E731
    with log.open("w") as out:
        try:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=environment,
                                       start_new_session=True, preexec_fn=_interruptible)
        except OSError as error:
            return {"status": f"could not start: {error}", "seconds": seconds()}
        while process.poll() is None:
            left = limit_s - (time.monotonic() - start)
            if left <= 0:
                _stop(process)
                return {"status": f"stopped after {limit_s:.0f} s", "seconds": seconds()}
            try:
                process.wait(min(left, every_s))
            except subprocess.TimeoutExpired:
                meanwhile()
    return {"status": process.returncode, "seconds": seconds()}


def _interruptible() -> None:
    """A shell's background job ignores interrupts, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(process: subprocess.Popen) -> None:
    """Interrupts the part, so that pytest sums up what it has, then ends its whole group of processes."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
