"""Finished runs of one task as the entries of a comparison page."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import report
from ..report import comparison
from . import plots
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
    foot = "Drawn by <code>ace-fast report RUN RUN ...</code>."
    return report.save(out, comparison.write(title, entries, foot), title, comparison.charts(entries))


def entry(run: Run, beside: Path) -> dict[str, Any]:
    """What of a run is compared; `beside` is the folder of the page, for the link to the run's own."""
    config, rows = run.about()["config"], run.metrics()
    latest = {key: row[key] for row in rows for key in row} | run.evaluation()
    mode = model_of(config)
    found: dict[str, Any] = {"run": run.folder.name, "group": kind(config), "seed": config["seed"],
                             "measure": f"{mode} model", "valid": plots.measured(rows, f"valid_{mode}"),
                             "test": latest.get(f"test_{mode}"), "equivariance": latest.get(f"equivariance_{mode}"),
                             "ms": step_ms(rows)}
    page = run.folder / "report.html"
    return found | ({"href": os.path.relpath(page, beside)} if page.exists() else {})


def kind(config: dict[str, Any]) -> str:
    """Who decides how much symmetry stays, in a word or two."""
    if not config["relaxed"]:
        return "strict"
    name = config.get("relaxation", "ace")
    return f"{config['mode']} {name}" if config["mode"] != "equality" else name


def model_of(config: dict[str, Any]) -> str:
    """The model that a run is about: "strict", or "relaxed" where its branches stay on."""
    return "relaxed" if config["relaxed"] and config["mode"] == "resilient" else "strict"


def step_ms(rows: plots.Rows) -> float | None:
    """The median over the epochs of a training step's milliseconds."""
    before, found = 0, []
    for row in rows:
        if row.get("seconds") and row["step"] > before:
            found.append(1e3 * row["seconds"] / (row["step"] - before))
        before = row["step"]
    return statistics.median(found) if found else None
