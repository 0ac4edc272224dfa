"""Runs a workload: gate, interleaved timing, memory in child processes, one row per case and device.

A workload is a module with CASES, GPU_CASES (run on a GPU besides), QUICK (a small case for a look on the CPU), EXTRAS
(more versions, timed beside the three; "end_to_end" is `fast` with the drawing of its batches, of `sizes["samples"]`
samples), GPU_EXTRAS (on a GPU besides; they may fail, with a reason), TIMING (options of timing.interleaved),
`load(case, device, dtype) -> data` with `sizes` and `prepare_ms`,
`variant("eager" | "compiled" | "fast" | extra, data)` with a `step` and a `check`, and `judge(data, eager's numbers)`,
the gate; `nbody_segnn` is the model.
"""

import argparse
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import gate, machine, memory, timing

WORKLOADS = ("modelnet_vndgcnn", "nbody_segnn", "qm9_segnn", "qm9_schnet", "md17_schnet", "mocap_egno",
             "knn", "vn_edge_conv", "vn_linear")
KEYS = ("workload", "case", "device", "eager_ms", "compiled_ms", "fast_ms", "speedup", "eager_mb", "fast_mb")


def find(name: str) -> ModuleType:
    """The workload's module."""
    if name not in WORKLOADS:
        raise ValueError(f"bench: workload must be one of {', '.join(WORKLOADS)}, got {name!r}")
    return importlib.import_module(f".{name}", __package__)


def cases(module: ModuleType, device: str, quick: bool = False) -> tuple[str, ...]:
    """The cases that run on `device` unless one is asked for; `quick`: one, on the CPU a small one."""
    if quick:
        return (module.QUICK,) if device == "cpu" else module.CASES[:1]
    return module.CASES + (module.GPU_CASES if device == "cuda" else ())


def run(workload: str, case: str, device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 15,
        compiled: bool = True, quick: bool = False) -> dict[str, Any]:
    """One row. A wrong fast version, or one that fails, gives a row with `error` and no times.

    `quick` takes one round for warm-up and measures memory in this process.
    """
    row: dict[str, Any] = dict.fromkeys(KEYS) | {"workload": workload, "case": case, "device": device}
    row |= {"dtype": str(dtype).removeprefix("torch.")}
    try:
        module = find(workload)
        data = module.load(case, device, dtype)
        row |= data.sizes | {"prepare_ms": data.prepare_ms}
        variants, first = _checked(module, data, device, compiled, row)
        row |= {f"{name}_calls": calls(variants[name].step) for name in ("fast", *module.EXTRAS)}
        _time(variants, first, device, repeats, module.TIMING | ({"burst": 1, "warmup": 1} if quick else {}), row)
        _memory(workload, case, device, dtype, variants, row, quick)
    except WrongError as error:
        return row | {"error": str(error)} | machine.describe(device)
    except Exception as error:
        row |= dict.fromkeys(KEYS[3:])
        return row | {"error": f"{type(error).__name__}: {error}"} | machine.describe(device)
    return row | machine.describe(device)


class WrongError(Exception):
    """A version that does not compute what the reference computes."""


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def calls(step: Callable[[], object]) -> int:
    """Operator calls of one step, views included."""
    with _Counter() as counter:
        step()
    return counter.count


def _checked(module: ModuleType, data, device: str, compiled: bool, row: dict) -> tuple[dict, dict]:
    """The variants that passed, and the milliseconds of their first call."""
    eager, numbers, first_ms = _made(module, "eager", data)
    judge = module.judge(data, numbers)
    variants, first = {"eager": eager}, {"eager": first_ms}
    _, row["eager_max_relative_error"] = judge("eager", numbers)
    optional = ("compiled", *module.GPU_EXTRAS)
    for name in ("fast", *module.EXTRAS, *(module.GPU_EXTRAS if device == "cuda" else ()), "compiled"):
        if name == "compiled" and not compiled:
            row["compiled_reason"] = "not asked for (--no-compile or --quick)"
            continue
        try:
            variants[name], numbers, first[name] = _made(module, name, data)
            error, row[f"{name}_max_relative_error"] = judge(name, numbers)
            if error:
                raise WrongError(f"{name} differs from the reference: {error}")
            if name in module.GPU_EXTRAS:
                variants[name].step()  # captures
        except Exception as e:
            variants.pop(name, None)
            if name not in optional:
                raise
            row[f"{name}_reason"] = f"{type(e).__name__}: {e}".strip().splitlines()[0]
    return variants, first


def _made(module: ModuleType, name: str, data) -> tuple[Any, gate.Numbers, float]:
    """A variant, its numbers, and how long its first forward and backward took, construction included."""
    start = time.perf_counter()
    made = module.variant(name, data)
    numbers = made.check()
    return made, numbers, 1e3 * (time.perf_counter() - start)


def _time(variants: dict, first: dict, device: str, repeats: int, options: dict, row: dict) -> None:
    steps = {name: variant.step for name, variant in variants.items()}
    steps["again"] = variants["fast"].step
    times = timing.interleaved(steps, device, repeats, **options)
    for name, t in times.items():
        if name != "again":
            row |= {f"{name}_ms": t.median, f"{name}_q20_ms": t.q20, f"{name}_q80_ms": t.q80}
            row[f"{name}_first_ms"] = first[name]
    row["times_ms"] = times["fast"].times
    row["speedup"] = row["eager_ms"] / row["fast_ms"]
    if row["compiled_ms"] is not None:
        row["speedup_over_compiled"] = row["compiled_ms"] / row["fast_ms"]
    if "end_to_end" in times:
        row |= {"samples_per_s": 1e3 * row["samples"] / row["fast_ms"],
                "end_to_end_samples_per_s": 1e3 * row["samples"] / row["end_to_end_ms"],
                "end_to_end_share": row["fast_ms"] / row["end_to_end_ms"]}
    if "graph" in times:
        row["graph_speedup"] = row["eager_ms"] / row["graph_ms"]
    row |= {"noise": timing.noise(times["fast"], times["again"]), "rounds": times["fast"].rounds}


def _memory(workload: str, case: str, device: str, dtype: torch.dtype, variants: dict, row: dict, here: bool) -> None:
    for name in ("eager", "fast"):
        if device == "cuda" or here:
            row[f"{name}_mb"], row["memory_method"] = memory.peak_mb(variants[name].step, device)
        else:
            row[f"{name}_mb"], row["memory_method"] = _child(workload, name, case, device, dtype)
    gc.collect()


def _child(workload: str, name: str, case: str, device: str, dtype: torch.dtype) -> tuple[float, str]:
    """The peak of one step in a process of its own, in which no other version has left pages behind."""
    root = Path(sys.modules[__package__.split(".")[0]].__file__).parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", __name__, workload, name, case, device, str(dtype).removeprefix("torch."),
               str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    if done.returncode:
        raise RuntimeError(f"the memory measurement of {name} failed: {done.stderr.strip().splitlines()[-1:]}")
    mb, method = json.loads(done.stdout.strip().splitlines()[-1])
    return mb, method


def main(argv: list[str] | None = None) -> None:
    """The child's side: two steps to build what is built once, then the measured one."""
    parser = argparse.ArgumentParser(description="peak memory of one step")
    for argument in ("workload", "variant", "case", "device", "dtype"):
        parser.add_argument(argument)
    parser.add_argument("threads", type=int)
    a = parser.parse_args(argv)
    torch.set_num_threads(a.threads)
    module = find(a.workload)
    step = module.variant(a.variant, module.load(a.case, a.device, getattr(torch, a.dtype))).step
    for _ in range(2):
        step()
    print(json.dumps(memory.peak_mb(step, a.device)))


if __name__ == "__main__":
    main()
