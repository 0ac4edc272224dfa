"""Who decides how much symmetry stays (`ace-fast compare`): test measure, equivariance error and time, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import page, rows, svg, units
from .chart import PALETTE, Bar, Bars
from .rows import Row


def is_comparison(row: Row) -> bool:
    """Whether the versions of a workload's row are deciders, which have a test measure."""
    return "workload" in row and any(key.endswith("_test") for key in row)


def cards(found: Sequence[Row], key: str) -> list[str]:
    return [_card(row, key) for row in found if is_comparison(row)]


def _card(row: Row, key: str) -> str:
    names = [name.removesuffix("_test") for name in row if name.endswith("_test")]
    charts = (Bars("Test", [_bar(row, i, name, "test") for i, name in enumerate(names)]),
              Bars("Equivariance error", [_bar(row, i, name, "equivariance") for i, name in enumerate(names)]),
              Bars("Time of a training step", [_bar(row, i, name, "ms") for i, name in enumerate(names)]))
    drawn = "".join(f"<div><h4>{escape(chart.title)}</h4>{svg.draw(chart)}</div>" for chart in charts)
    known = {"epochs": row.get("epochs"), "seeds": row.get("seeds")}
    words = [f"{value} {name}" for name, value in known.items() if value]
    words += [f"noise of the time {units.percent(row['noise'])}"] if "noise" in row else []
    return (f'<figure class="card" data-device="{key}"><figcaption><h3>{escape(row["workload"])}, '
            f'<code>{escape(row["case"])}</code></h3><small>{escape(", ".join(words))}</small></figcaption>\n'
            f'<div class="pair">{drawn}</div></figure>')


def _bar(row: Row, number: int, name: str, what: str) -> Bar:
    show = {"test": lambda x: units.digits(x, 4), "equivariance": units.power, "ms": units.time}[what]
    value, spread, colour = row.get(f"{name}_{what}"), row.get(f"{name}_{what}_std"), f"c{number % PALETTE}"
    href = f"#{rows.anchor(row)}"
    if not isinstance(value, int | float):
        return Bar(name, None, units.DASH, colour, note="not measured", state="missing", href=href)
    ends = (max(value - spread, 0.0), value + spread) if spread else (None, None)
    if what == "ms":
        ends = row.get(f"{name}_q20_ms"), row.get(f"{name}_q80_ms")
    model = f"{row[f'{name}_model']} model" if f"{name}_model" in row else ""
    note = ", ".join(filter(None, (model, f"± {units.digits(spread, 2)} over the seeds" if spread else "")))
    return Bar(name, value, show(value), colour, *ends, note, href=href)


def section(every) -> str:
    """The cards of every device."""
    return page.cards(every(cards), "wide")
