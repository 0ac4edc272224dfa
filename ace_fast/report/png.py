"""Charts as one picture, drawn with matplotlib: what fits into a slide or a mail."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from .chart import PALETTE, Bars, Chart, Dots, Lines

# the light palette of style.css
COLOURS = {
    "ours": "#0069b4", "graph": "#00457a", "eager": "#a3a7ae", "compiled": "#dc8f00", "cuequivariance": "#a8528f",
    "openequivariance": "#00876c", "other": "#7a5fb5",
} | dict(zip((f"c{i}" for i in range(PALETTE)), ("#0069b4", "#d1620e", "#00876c", "#a8528f", "#8a6d00", "#4aa3d9",
                                                  "#7a5fb5", "#6b7079"), strict=True))
_SOFT, _INK, _BAD = "#5a5f68", "#1a1c20", "#b3261e"
_BARS = 4
_MARKERS = ("o", "s", "D", "^")


def picture(title: str, charts: Sequence[Chart], below: str = "") -> bytes:
    """The charts in a grid, as the bytes of a PNG file."""
    # Imported here: `import ace_fast` need not wait for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, max(1, len(charts)))
    rows = max(1, math.ceil(len(charts) / columns))
    height = 2.2 if all(isinstance(chart, Bars) for chart in charts) else 3.5
    height = max([height, *(1.2 + 0.13 * len(chart.rows) for chart in charts if isinstance(chart, Dots))])
    figure = Figure(figsize=(5.2 * columns, height * rows + 0.7), dpi=110, facecolor="white")
    wide, high = figure.get_size_inches()
    # fixed margins in inches: a layout that measures its texts takes most of the time
    figure.subplots_adjust(0.65 / wide, 0.65 / high, 1 - 0.2 / wide, 1 - 0.95 / high, 0.22, 0.5)
    figure.text(0.2 / wide, 1 - 0.2 / high, title, va="top", fontsize=15, fontweight="bold", color=_INK)
    figure.text(0.2 / wide, 0.1 / high, below, fontsize=9, color=_SOFT)
    for place, chart in enumerate(charts):
        draw(figure.add_subplot(rows, columns, place + 1), chart)
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def draw(axes: Any, chart: Chart) -> None:
    """One chart into matplotlib axes."""
    axes.set_title(chart.title, loc="left", fontsize=11, color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(which="both", colors=_SOFT, labelsize=8)
    {Bars: _bars, Lines: _lines, Dots: _dots}[type(chart)](axes, chart)


def _bars(axes: Any, chart: Bars) -> None:
    axes.set_axis_off()
    top = chart.top or max((bar.value or 0.0 for bar in chart.bars), default=0.0) or 1.0
    axes.set_xlim(0, top)
    for place, bar in enumerate(chart.bars):
        projected = bar.state == "projected"
        axes.barh(place, bar.value or 0.0, 0.4, facecolor="white" if projected else COLOURS[bar.colour],
                  edgecolor=COLOURS[bar.colour], linestyle="--" if projected else "-")
        note = (bar.note if len(bar.note) < 44 else bar.note[:43] + "…") or bar.shown
        missing = _BAD if bar.state == "error" else _SOFT
        axes.text(0, place - 0.3, bar.label, fontsize=8.5, color=_INK)
        axes.text(top, place - 0.3, bar.shown if bar.value is not None else note, ha="right", fontsize=8.5,
                  color=_INK if bar.value is not None else missing)
    axes.set_ylim(max(_BARS, len(chart.bars)) - 0.5, -0.6)  # few bars are no thicker than many


def _lines(axes: Any, chart: Lines) -> None:
    axes.set_xlabel(chart.x, fontsize=9, color=_SOFT)
    axes.set_ylabel(chart.y, fontsize=9, color=_SOFT)
    axes.grid(color="#e4e1db", linewidth=0.7)
    axes.set_axisbelow(True)
    for number, s in enumerate(chart.series):
        points = [p for p in s.points if all(map(math.isfinite, p))]
        points = [p for p in points if not (chart.log_x and p[0] <= 0 or chart.log_y and p[1] <= 0)]
        x, y = [p[0] for p in points], [p[1] for p in points]
        colour = COLOURS[s.colour]
        marker = "" if s.line and not s.marks and len(points) > 1 else _MARKERS[number % 4] if not s.line else "o"
        axes.plot(x, y, color=colour, linestyle=("--" if s.dash else "-") if s.line else "", marker=marker,
                  markersize=4, markerfacecolor=colour if s.fill else "white", linewidth=1.5,
                  label=s.name if s.name not in {line.get_label() for line in axes.get_lines()} else None)
    if chart.log_x and any(s.points for s in chart.series):
        axes.set_xscale("log")
    if chart.log_y and any(s.points for s in chart.series):
        axes.set_yscale("log")
    if chart.range_y:
        axes.set_ylim(*chart.range_y)
    for name, value in chart.rules:
        axes.axhline(value, color=_SOFT, linestyle=":", linewidth=1, label=name)
    if 1 < len(axes.get_legend_handles_labels()[1]) <= PALETTE:
        axes.legend(fontsize=7.5, frameon=False)


def _dots(axes: Any, chart: Dots) -> None:
    # room for the labels, 0.05 inches a letter, where they are longer than the margin
    box, wide = axes.get_position(), axes.figure.get_size_inches()[0]
    more = min(max(0.05 * max((len(row.label) for row in chart.rows), default=0) - 0.5, 0.0), 2.5) / wide
    axes.set_position([box.x0 + more, box.y0, box.width - more, box.height])
    for name, colour in chart.legend:
        axes.plot([], [], "o", color=COLOURS[colour], markersize=4, label=name)
    if chart.legend:
        axes.legend(fontsize=7.5, frameon=False)
    axes.set_xscale("log")
    axes.set_xlabel(chart.x, fontsize=9, color=_SOFT)
    axes.axvline(1.0, color=_SOFT, linewidth=1)
    for place, row in enumerate(chart.rows):
        for value, _, colour, _ in row.marks:
            axes.plot([value], [place], "o", color=COLOURS[colour], markersize=4)
    axes.set_yticks(range(len(chart.rows)), [row.label for row in chart.rows], fontsize=6.5)
    axes.invert_yaxis()
