"""The page of a run, its picture, and its result in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..report import page, save, units
from ..report.chart import Chart
from ..report.diagnosis import VERDICTS
from . import plots
from .plots import Rows
from .run import Run

_WIDTH = 140  # of the table where no terminal says


def write(run: Run, result: dict[str, Any] | None = None, out: Path | None = None) -> list[Path]:
    """Writes report.html and report.png, or `out` and its picture, and returns them; a run without an epoch has none.

    `result` is what an evaluation or the demo adds.
    """
    rows = run.metrics()
    if not rows:
        return []
    out = out or run.folder / "report.html"
    result = run.evaluation() | (result or {})
    charts = _charts(run, rows, result)
    title = f"{run.task().TITLE}: {run.folder.name}"
    return save(out, _page(run, rows, result, title, charts), title, charts)


def _charts(run: Run, rows: Rows, result: dict[str, Any]) -> list[Chart]:
    """The task's own charts, then what every run has."""
    task, found = run.task(), run.task().plots(rows, result)
    shared = [plots.lines("Gammas", rows, "gammas"), plots.lines("Multipliers", rows, "multipliers"),
              plots.lines("Slacks", rows, "slacks"), plots.equivariance(rows, task.EQUIVARIANCE), plots.branches(rows),
              plots.throughput(rows, run.about()["config"].get("batch_size", 1))]
    # slacks are zero unless the mode is resilient
    shared = [chart for chart in shared if chart.title != "Slacks" or any(any(row.get("slacks") or ()) for row in rows)]
    return [*found, *plots.drawn(shared), *plots.gates(rows, run.diagnosis())]


def summary(run: Run, rows: Rows, result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the result, as (what, value); shared by the page and the terminal."""
    about = run.about()
    latest = _latest(rows, result)
    lines = [("run", str(run.folder)), ("preset", about["preset"]), ("epochs", str(rows[-1]["epoch"]))]
    if "checkpoint" in latest:
        lines.append(("checkpoint", f"{latest['checkpoint']}, epoch {latest['epoch']}"))
    lines += run.task().summary(latest, about["facts"])
    if latest.get("gammas"):
        lines.append(("gammas", " ".join(f"{g:+.4f}" for g in latest["gammas"])))
    if latest.get("branch_ratios"):
        lines.append(("largest |gamma| ||f_neq|| / ||f_eq||", f"{max(x or 0 for x in latest['branch_ratios']):.2e}"))
    if latest.get("verdicts"):
        counts = [(word, latest["verdicts"].count(word)) for word in VERDICTS]
        off = sum(latest["snapped"])
        lines.append(("gates", ", ".join(f"{n} {word}" for word, n in counts if n) + f"; {off} switched off"))
    for mode in ("strict", "relaxed"):
        if f"equivariance_{mode}" in latest:
            lines.append((f"equivariance error, {mode}", f"{latest[f'equivariance_{mode}']:.2e}"))
    if latest.get("equivariance_bound"):
        lines.append(("bound on it, relaxed", f"{latest['equivariance_bound']:.2e}"))
    if "fast_ms" in latest:
        fast, eager = latest["fast_ms"], latest["eager_ms"]
        lines.append(("training step", f"{fast:.1f} ms, eager reference {eager:.1f} ms: ratio {eager / fast:.2f}"))
    return lines


def _latest(rows: Rows, result: dict[str, Any]) -> dict[str, Any]:
    """The last value of everything that was measured."""
    return {key: row[key] for row in rows for key in row} | result


def show(run: Run, result: dict[str, Any] | None = None) -> None:
    """Writes the report and prints its result on one screen."""
    try:
        write(run, result)
        place = str((run.folder / "report.html").resolve())
    except OSError as error:
        place = f"not written: {error.strerror}"  # the numbers are still worth showing
    rows = run.metrics()
    result = run.evaluation() | (result or {})
    table = Table(show_header=False, title=run.task().TITLE, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for what, value in [*(summary(run, rows, result) if rows else []), ("report", place)]:
        table.add_row(what, value)
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


def _page(run: Run, rows: Rows, result: dict[str, Any], title: str, charts: Sequence[Chart]) -> str:
    about = run.about()
    seconds = math.fsum(row.get("seconds", 0.0) for row in rows)
    made = {**about["versions"], "device": about["device_name"], "threads": about["threads"]}
    made["training"] = f"{seconds:.0f} s"
    sections = [
        page.Section("result", "Result", "", page.pairs(summary(run, rows, result))),
        page.Section("curves", "Curves", "Every chart is one stop of the Tab key; arrow keys read it point by point.",
                     page.cards(page.card(chart) for chart in charts)),
        page.Section("epochs", "Epochs", "", page.folded(f"All {len(rows)} epochs", _epochs(rows))),
        page.Section("settings", "Settings", "", page.pairs(about["config"].items(), small=True)),
        page.Section("made", "Made with", "", page.pairs(made.items(), small=True)),
    ]
    lead = f"{escape(about['preset'])} preset, {rows[-1]['epoch']} epochs on {escape(about['device_name'])}."
    return page.page(title, lead, sections, _tiles(rows, result), foot="Drawn by <code>ace-fast report RUN</code>.")


def _tiles(rows: Rows, result: dict[str, Any]) -> str:
    """What one looks for first: how far symmetric, how far free, how fast."""
    latest, items = _latest(rows, result), []
    for mode, words in (("strict", "branches off"), ("relaxed", "branches on")):
        if isinstance(latest.get(f"test_{mode}"), int | float):
            items.append(page.tile(f"Test, {mode} model", units.digits(latest[f"test_{mode}"]), [words]))
    if gammas := latest.get("gammas"):
        items.append(page.tile("Largest |gamma|", units.digits(max(map(abs, gammas))), [f"of {len(gammas)} gates"]))
    if "equivariance_strict" in latest:
        items.append(page.tile("Equivariance error", units.power(latest["equivariance_strict"]), ["strict model"]))
    if "fast_ms" in latest:
        items.append(page.tile("Against eager", units.ratio(latest["eager_ms"] / latest["fast_ms"]),
                               [f"{units.time(latest['eager_ms'])} to {units.time(latest['fast_ms'])} a step"]))
    return f'<ul class="tiles">{"".join(items)}</ul>' if items else ""


def _epochs(rows: Rows) -> str:
    """A table of every number that has one value an epoch."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row)
            if any(isinstance(row.get(key), int | float) and not isinstance(row.get(key), bool) for row in rows)]
    lines = [("", [page.Cell(units.DASH) if row.get(key) is None else page.Cell(units.digits(row[key], 4), row[key])
                   for key in keys]) for row in rows]
    return page.table([key.replace("_", " ") for key in keys], lines, "Epochs")
