"""One call on a machine with a GPU: build, all tests on the device, all workloads and operators, one folder of results.

The parts run one after the other, the most valuable first, each in a process with a time limit, and each leaves its
files even if another fails: its log (build.txt, tests.txt and so on) and its rows. results.json has everything in one
file, written anew after each part: the machine, what became of the parts, all rows, and the end of each log.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from . import machine

REQUIRED = "reference,cpu,triton,cuda"
BUDGET_S = 570
WORKERS = "8"  # test processes that share the GPU
LOG_LINES = 60


def main(folder: Path) -> int:
    """Runs everything into `folder`; the exit status is 1 where a part failed."""
    if not torch.cuda.is_available():
        return _refuse("a GPU, torch sees none; use --workload and --operators on the CPU")
    root = Path(__file__).resolve().parents[1]
    if not (root / "tests").is_dir():
        return _refuse(f"a checkout with its tests, {root} has none; run it in a clone of the repository")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python, started, found = sys.executable, time.monotonic(), {}
    # set, so that the tests' own defaults (interpreted, emulated) do not come in
    environment = os.environ | {"TRITON_INTERPRET": "0", "ACE_FAST_EMULATE": "0"}
    environment |= {"ACE_FAST_REQUIRE": REQUIRED, "OMP_NUM_THREADS": "2", "CUDAARCHS": "native"}
    bench = [python, "-m", __package__, "--device", "cuda"]
    tests = [python, "-m", "pytest", "-q", "-n", WORKERS, "-p", "no:benchmark"]
    parts = [
        ("build", [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(root)], 100),
        ("tests", [*tests, "tests"], 150),
        ("workloads", [*bench, "--workload", "all", "--no-compile", "--json", str(folder / "workloads.json")], 150),
        ("operators", [*bench, "--operators", "--json", str(folder / "operators.json")], 100),
        ("tests-aot", [*tests, "tests/aot"], 100),
        # last and the first cases only, because compiling takes minutes: it gets what is left
        ("compiled", [*bench, "--workload", "all", "--quick", "--repeats", "15", "--json",
                      str(folder / "compiled.json")], BUDGET_S),
    ]
    about = machine.describe("cuda")
    for name, command, limit in parts:
        left = BUDGET_S - (time.monotonic() - started)
        found[name] = run(command, folder / f"{name}.txt", min(limit, left), root, environment)
        print(f"{name}: {found[name]}", flush=True)
        (folder / "results.json").write_text(json.dumps(about | collect(folder, found), indent=1))
    return int(any(part["status"] for part in found.values()))


def collect(folder: Path, parts: dict[str, dict[str, object]]) -> dict[str, object]:
    """What the parts left behind: {"parts": ..., "rows": {part: rows}, "logs": {part: the end of its log}}."""
    rows, logs = {}, {}
    for name in parts:
        file, log = folder / f"{name}.json", folder / f"{name}.txt"
        if log.exists():
            logs[name] = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        if file.exists():
            rows[name] = json.loads(file.read_text())
    return {"parts": parts, "rows": rows, "logs": logs}


def _refuse(why: str) -> int:
    print(f"bench: --gpu-day needs {why}", file=sys.stderr)
    return 2


def run(command: list[str], log: Path, limit_s: float, cwd: Path, environment: dict[str, str]) -> dict[str, object]:
    """Runs one part with its output in `log`: {"status": exit status or reason, "seconds": ...}."""
    start = time.monotonic()
    status: object = f"not run: the {BUDGET_S} s are used up"
    if limit_s > 0:
        with log.open("w") as out:
            try:
                status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=environment,
                                        timeout=limit_s).returncode
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit_s:.0f} s"
            except OSError as error:
                status = f"could not start: {error}"
    return {"status": status, "seconds": round(time.monotonic() - start, 1)}
