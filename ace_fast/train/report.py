"""Plots of a run and the one page that shows its result."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from .checkpoint import write_atomic
from .run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
_WIDTH = 140  # of the table where no terminal says


def write(run: Run, result: dict[str, Any] | None = None) -> None:
    """Writes the plots and report.html; `result` is what an evaluation or the demo adds to the page."""
    rows = run.metrics()
    if not rows:
        return
    _draw(run, "loss", lambda figure: _loss(figure, rows))
    names = ["loss"]
    if "gammas" in rows[0]:
        _draw(run, "gammas", lambda figure: _lines(figure, rows, ["gammas"], "gamma"))
        _draw(run, "multipliers", lambda figure: _lines(figure, rows, ["multipliers", "slacks"], ""))
        names += ["gammas", "multipliers"]
    if _measured(rows, "equivariance_strict"):
        _draw(run, "equivariance", lambda figure: _equivariance(figure, rows))
        names.append("equivariance")
    write_atomic(run.folder / "report.html", _page(run, rows, names, result or {}))


def _draw(run: Run, name: str, plot: Callable[[Figure], None]) -> None:
    # Imported here: `import ace_fast` need not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained", dpi=110)
    plot(figure)
    FigureCanvasAgg(figure)
    temporary = run.folder / f".{name}.png"
    figure.savefig(temporary, format="png")
    temporary.replace(run.folder / f"{name}.png")


def _measured(rows: Rows, key: str) -> tuple[list[int], list[float]] | None:
    """Epochs and values of a key that only evaluation epochs have."""
    found = [(row["epoch"], row[key]) for row in rows if key in row]
    return ([epoch for epoch, _ in found], [value for _, value in found]) if found else None


def _axes(figure: Figure, place: int, label: str, log: bool) -> Any:
    axes = figure.add_subplot(place)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    return axes


def _loss(figure: Figure, rows: Rows) -> None:
    axes = _axes(figure, 111, "mean squared error", True)
    axes.plot([row["epoch"] for row in rows], [row["train_loss"] for row in rows], label="training", color="0.6")
    for mode, colour in (("strict", "C0"), ("relaxed", "C1")):
        for split, line in (("valid", "-"), ("test", "--")):
            if found := _measured(rows, f"{split}_{mode}"):
                axes.plot(*found, color=colour, linestyle=line, label=f"{split}, {mode}")
    if found := _measured(rows, "baseline"):
        axes.axhline(found[1][-1], color="0.3", linestyle=":", label="x + v t")
    axes.legend()


def _lines(figure: Figure, rows: Rows, keys: list[str], label: str) -> None:
    for place, key in enumerate(keys):
        axes = _axes(figure, 100 + 10 * len(keys) + place + 1, label or key, False)
        for i in range(len(rows[0][key])):
            axes.plot([row["epoch"] for row in rows], [row[key][i] for row in rows], label=str(i))
        axes.axhline(0.0, color="0.3", linewidth=0.8)
        if rows[0][key]:
            axes.legend(title=key, ncols=2, fontsize="small")


def _equivariance(figure: Figure, rows: Rows) -> None:
    error = _axes(figure, 121, "||f(gx) - g f(x)|| / ||f(x)||", True)
    gate = _axes(figure, 122, "largest over the layers", True)
    for mode, colour in (("strict", "C0"), ("relaxed", "C1")):
        if found := _measured(rows, f"equivariance_{mode}"):
            error.plot(*found, color=colour, label=mode)
    error.legend()
    for key, label in (("gammas", "|gamma|"), ("branch_ratios", "|gamma| ||f_neq|| / ||f_eq||")):
        found = [(row["epoch"], max(map(abs, row[key]))) for row in rows if row.get(key)]
        if found:
            gate.plot(*zip(*found, strict=True), label=label)
    if gate.lines:
        gate.legend()


def summary(run: Run, rows: Rows, result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the result, as (what, value); shared by the page and the terminal."""
    about = run.about()
    latest = {key: row[key] for row in rows for key in row} | result
    lines = [("run", str(run.folder)), ("preset", about["preset"]), ("epochs", str(rows[-1]["epoch"]))]
    if "checkpoint" in latest:
        lines.append(("checkpoint", f"{latest['checkpoint']}, epoch {latest['epoch']}"))
    for mode in ("strict", "relaxed"):
        if f"test_{mode}" in latest:
            lines.append((f"test error, {mode} model", f"{latest[f'test_{mode}']:.5f}"))
    if "baseline" in latest:
        lines.append(("linear baseline x + v t", f"{latest['baseline']:.5f}"))
    if latest.get("gammas"):
        lines.append(("gammas", " ".join(f"{g:+.4f}" for g in latest["gammas"])))
    if latest.get("branch_ratios"):
        lines.append(("largest |gamma| ||f_neq|| / ||f_eq||", f"{max(latest['branch_ratios']):.2e}"))
    for mode in ("strict", "relaxed"):
        if f"equivariance_{mode}" in latest:
            lines.append((f"equivariance error, {mode}", f"{latest[f'equivariance_{mode}']:.2e}"))
    if "fast_ms" in latest:
        fast, eager = latest["fast_ms"], latest["eager_ms"]
        lines.append(("training step", f"{fast:.1f} ms, eager reference {eager:.1f} ms: ratio {eager / fast:.2f}"))
    return lines


def show(run: Run, result: dict[str, Any] | None = None) -> None:
    """Writes the report and prints its result on one screen."""
    try:
        write(run, result)
        place = str((run.folder / "report.html").resolve())
    except OSError as error:
        place = f"not written: {error.strerror}"  # the numbers are still worth showing
    rows = run.metrics()
    table = Table(show_header=False, title="ACE-SEGNN on charged N-body", title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for what, value in [*(summary(run, rows, result or {}) if rows else []), ("report", place)]:
        table.add_row(what, value)
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


def _page(run: Run, rows: Rows, names: list[str], result: dict[str, Any]) -> str:
    about = run.about()
    lines = [(html.escape(what), html.escape(value)) for what, value in summary(run, rows, result)]
    table = "".join(f"<tr><th>{what}</th><td>{value}</td></tr>" for what, value in lines)
    seconds = math.fsum(row["seconds"] for row in rows)
    made = {**about["versions"], "device": about["device_name"], "threads": about["threads"]}
    made["training"] = f"{seconds:.0f} s"
    images = "".join(
        f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,'
        f'{base64.b64encode((run.folder / f"{name}.png").read_bytes()).decode()}">'
        for name in names
    )
    rest = {"Settings": about["config"], "Made with": made}
    details = "".join(
        f"<h2>{title}</h2><p>{html.escape(', '.join(f'{k} {v}' for k, v in values.items() if v != ''))}</p>"
        for title, values in rest.items()
    )
    style = "body{font:16px sans-serif;max-width:62em;margin:2em auto}th{text-align:left}img{width:100%}"
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(run.folder.name)}</title><style>{style}</style>'
        f"<h1>ACE-SEGNN on charged N-body: {html.escape(run.folder.name)}</h1><table>{table}</table>{images}{details}\n"
    )
