"""The plots of a run and the one page that shows its result."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from . import plots
from .checkpoint import write_atomic
from .plots import Rows
from .run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 140  # of the table where no terminal says


def write(run: Run, result: dict[str, Any] | None = None) -> None:
    """Writes the plots and report.html; `result` is what an evaluation or the demo adds to the page."""
    rows = run.metrics()
    if not rows:
        return
    task = run.task()
    result = run.evaluation() | (result or {})
    drawn = task.plots(rows, result)
    if "gammas" in rows[0]:
        drawn["gammas"] = lambda figure: plots.lines(figure, rows, ["gammas"], "gamma")
        drawn["multipliers"] = lambda figure: plots.lines(figure, rows, ["multipliers", "slacks"], "")
    if plots.measured(rows, "equivariance_strict"):
        drawn["equivariance"] = lambda figure: plots.equivariance(figure, rows, task.EQUIVARIANCE)
    for name, plot in drawn.items():
        _draw(run, name, plot)
    write_atomic(run.folder / "report.html", _page(run, rows, list(drawn), result))


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


def summary(run: Run, rows: Rows, result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of the result, as (what, value); shared by the page and the terminal."""
    about = run.about()
    latest = {key: row[key] for row in rows for key in row} | result
    lines = [("run", str(run.folder)), ("preset", about["preset"]), ("epochs", str(rows[-1]["epoch"]))]
    if "checkpoint" in latest:
        lines.append(("checkpoint", f"{latest['checkpoint']}, epoch {latest['epoch']}"))
    lines += run.task().summary(latest, about["facts"])
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
    result = run.evaluation() | (result or {})
    table = Table(show_header=False, title=run.task().TITLE, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for what, value in [*(summary(run, rows, result) if rows else []), ("report", place)]:
        table.add_row(what, value)
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


def _page(run: Run, rows: Rows, names: list[str], result: dict[str, Any]) -> str:
    about, title = run.about(), html.escape(run.task().TITLE)
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
        f"<h2>{heading}</h2><p>{html.escape(', '.join(f'{k} {v}' for k, v in values.items() if v != ''))}</p>"
        for heading, values in rest.items()
    )
    style = "body{font:16px sans-serif;max-width:62em;margin:2em auto}th{text-align:left}img{width:100%}"
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(run.folder.name)}</title><style>{style}</style>'
        f"<h1>{title}: {html.escape(run.folder.name)}</h1><table>{table}</table>{images}{details}\n"
    )
