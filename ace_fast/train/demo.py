"""The whole path in one go: data, training, evaluation, comparison with the eager reference, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from . import options, report
from .evaluate import evaluate_run
from .loop import train
from .run import Run
from .tasks import nbody


def demo(out: Path, **given: Any) -> dict[str, Any]:
    """Trains the default preset in `out`, or continues or re-uses the run there, measures it and shows the result.

    Raises:
        FileExistsError: `out` holds a run with other settings.
    """
    config = options.make_config(nbody, options.DEFAULT_PRESET, given)
    run = started(Run(out), config, "nbody", "demo")
    rows = run.metrics() if run else []
    if run and rows and rows[-1]["epoch"] == config["epochs"]:
        print(f"the finished run in {out} is used again; remove that folder to train afresh", file=sys.stderr)
    else:
        run = train(out, resume=run is not None, **({} if run else given))
    result = evaluate_run(out)
    result |= compare(config["device"])
    report.show(run, result)
    return result


def started(run: Run, config: options.Config, task: str, owner: str) -> Run | None:
    """The run, if one of this task with this config has begun in its folder.

    Raises:
        FileExistsError: the folder holds another run; `owner` is who asks.
    """
    if not run.state_path.exists():
        return None
    about = run.about()
    theirs = about["config"]
    if about["task"] != task:
        raise FileExistsError(
            f"{owner}: {run.folder} must hold a run of the task {task}, got one of {about['task']}; pass another --out "
            "or remove that folder"
        )
    differences = [f"{options.flag(name)} {theirs[name]}" for name in config if theirs[name] != config[name]]
    if differences:
        raise FileExistsError(
            f"{owner}: {run.folder} must hold a run with the settings asked for, got one with "
            f"{', '.join(differences)}; pass another --out or remove that folder"
        )
    return run


def trained(run: Run, config: options.Config, task: str, preset: str, owner: str, quiet: bool, label: str) -> bool:
    """Trains the run, or goes on with it; a finished one is used again. Returns whether it was trained.

    Raises:
        FileExistsError: as `started`.
    """
    began = started(run, config, task, owner)
    rows = run.metrics() if began else []
    if rows and rows[-1]["epoch"] == config["epochs"]:
        return False
    print(f"{label} ...", file=sys.stderr, flush=True)
    how = {"task": task, "quiet": quiet, "resume": began is not None}
    train(run.folder, preset, **how, **({} if began else config))
    return True


def compare(device: str, repeats: int = 15) -> dict[str, float]:
    """Milliseconds of one training step at batch 100, eager reference and ours in turn: medians."""
    from ..bench import nbody_segnn
    from ..bench.timing import interleaved

    print("comparing one training step with the eager reference ...", file=sys.stderr, flush=True)
    data = nbody_segnn.load("batch100", device, torch.float32)
    steps = {name: nbody_segnn.variant(name, data).step for name in ("eager", "fast")}
    timings = interleaved(steps, device, repeats, **nbody_segnn.TIMING)
    return {f"{name}_ms": timing.median for name, timing in timings.items()}
