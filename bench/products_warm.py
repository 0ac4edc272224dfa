"""Compiles beforehand, in parallel, what a run of the products on a GPU needs: `python -m bench.products_warm grid`.

Triton and torch.compile keep what they made on disk, and the run that times it (`--suite products`) finds it there: one
after the other the first calls of all cases take many minutes, on sixteen cores half a minute.
"""

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from . import captured, products, products_cases

TRIES, PAUSE_S = 10, 3.0  # where the other processes have the memory


def main(argv: list[str]) -> int:
    """Runs every version of the groups' cases once, in so many processes; the status is 1 where one ended badly."""
    parser = argparse.ArgumentParser("products_warm", description=__doc__)
    parser.add_argument("groups", nargs="+", help="groups, or cases with --here")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--here", action="store_true", help="these cases in this process")
    a = parser.parse_args(argv)
    if a.here:
        for name in a.groups:
            warm(products_cases.parse(name), a.device)
        return 0
    ours = [sys.executable, "-m", f"{__package__}.products_warm", "--device", a.device, "--here"]
    shares = shared([case for group in a.groups for case in products_cases.cases(group, device=a.device)], a.processes)
    threads = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*ours, *map(str, share)], env=threads) for share in shares]
    return int(any([process.wait() for process in running]))


def shared(cases: Sequence[products_cases.Case], processes: int) -> list[list[products_cases.Case]]:
    """The cases dealt out: e3nn under torch.compile takes longest and comes first, the largest in memory last."""
    order = sorted(cases, key=lambda case: (case.group == "grid", case.lmax * case.channels if case.group == "grid"
                                            else -case.lmax))
    return [share for n in range(processes) if (share := order[n::processes])]


def warm(case: products_cases.Case, device: str) -> None:
    """Every version of a case once; what fails is said and left to the run that times it."""
    start = time.monotonic()
    try:
        work = products.prepare(case, device, torch.float32, compiled=device != "cpu")
        for name, step in work.steps.items():
            patiently(step, f"{case} {name}")
    except Exception as error:
        print(f"{case}: {captured.said(error)}", flush=True)
    work = None
    free()
    print(f"{case}: {time.monotonic() - start:.1f} s", flush=True)


def patiently(step: Callable[[], object], name: str) -> None:
    """Calls it, again where memory is short at this moment."""
    for left in reversed(range(TRIES)):
        try:
            step()
            return free()
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError) or not left:
                print(f"{name}: {captured.said(error)}", flush=True)
                return
        free()
        time.sleep(PAUSE_S)


def free() -> None:
    """Hands memory back to the other processes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
