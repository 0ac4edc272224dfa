"""Finished runs of one task as the entries of a comparison page."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import report
from ..report import comparison
from . import plots
from .relaxing import deployed
from .run import Run


def write(runs: Sequence[Run], out: Path) -> list[Path]:
    """Writes a page and a picture of the runs side by side, and returns both.

    Raises:
        ValueError: the runs are of several tasks.
        OSError: the page cannot be written.
    """
    tasks = dict.fromkeys(run.about()["task"] for run in runs)
    if len(tasks) > 1:
        raise ValueError(f"report: runs that are compared must be of one task, got {', '.join(tasks)}; report them "
                         "apart")
    entries = [entry(run, out.parent) for run in runs]
    title = f"{runs[0].task().TITLE}: {len(runs)} runs"
    drawn = comparison.charts(entries, runs[0].task().BEST is min)
    foot = "Drawn by <code>ace-fast report RUN RUN ...</code>."
    return report.save(out, comparison.write(title, entries, drawn, foot=foot), title, drawn)


def entry(run: Run, beside: Path) -> dict[str, Any]:
    """What of a run is compared, at its best epoch; `beside` is the folder of the page, for the link to the run's own.

    A run that was never measured has neither test measure nor equivariance error.
    """
    config, rows = run.about()["config"], run.metrics()
    mode = deployed(config)
    best = best_row(run.task(), rows, mode) or {}
    found: dict[str, Any] = {"run": run.folder.name, "group": kind(config), "seed": config["seed"],
                             "valid": plots.measured(rows, f"valid_{mode}"), "test": best.get(f"test_{mode}"),
                             "equivariance": best.get(f"equivariance_{mode}"), "epoch": best.get("epoch"),
                             "ms": step_ms(rows)}
    page = run.folder / "report.html"
    return found | ({"href": os.path.relpath(page, beside)} if page.exists() else {})


def best_row(task: ModuleType, rows: plots.Rows, mode: str) -> dict[str, Any] | None:
    """The epoch that is best on validation data, of the model that the run is about."""
    measured = [row for row in rows if f"valid_{mode}" in row]
    return task.BEST(measured, key=lambda row: row[f"valid_{mode}"]) if measured else None


def kind(config: dict[str, Any]) -> str:
    """Who decides how much symmetry stays, and which model the run is about."""
    if not config["relaxed"]:
        return "strict"
    name = config["relaxation"] if config["mode"] == "equality" else f"{config['mode']} {config['relaxation']}"
    return f"{name} ({deployed(config)} model)"


def step_ms(rows: plots.Rows) -> float | None:
    """The median over the epochs of a training step's milliseconds."""
    before, found = 0, []
    for row in rows:
        if row.get("seconds") and row["step"] > before:
            found.append(1e3 * row["seconds"] / (row["step"] - before))
        before = row["step"]
    return statistics.median(found) if found else None
