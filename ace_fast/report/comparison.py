"""Runs beside each other: who decided how much symmetry, and what came of it, over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from . import page, units
from .chart import PALETTE, Bar, Bars, Chart, Lines, Series
from .page import Cell

Entry = Mapping[str, Any]

# key of an entry -> (heading, how its value is shown)
NUMBERS: dict[str, tuple[str, Callable[[float], str]]] = {
    "test": ("test", units.digits),
    "equivariance": ("equivariance error", units.power),
    "epoch": ("best epoch", lambda epoch: f"{epoch:.0f}"),
    "ms": ("a training step", units.time),
}


def write(title: str, entries: Sequence[Entry], drawn: Sequence[Chart], lead: str = "", foot: str = "",
          made: Iterable[tuple[str, object]] = ()) -> str:
    """The page of a comparison.

    Args:
        title: the heading.
        entries: one for each run, with "group" (what is compared, in words), "seed", "run" (its name), and where they
            are known "test", "equivariance", "epoch" (that these are of), "ms" (milliseconds of a training step),
            "valid" ([(epoch, value)]) and "href" (the run's own page).
        drawn: their `charts`.
        lead: a sentence below the heading (HTML).
        foot: the last line (HTML).
        made: (what, value) of how the numbers came about.
    """
    names = groups(entries)
    kinds = escape(", ".join(names))
    said = f"{len(entries)} runs of {len(names)} kinds: {kinds}. Bars are means over the seeds. {lead}"
    sections = [
        page.Section("compared", "Compared", "Whiskers reach from the smallest to the largest seed.",
                     page.cards(page.card(chart) for chart in drawn)),
        page.Section("runs", "Runs", "", _table(entries)),
        page.Section("made", "Made with", "", page.pairs(made, small=True) if made else ""),
    ]
    return page.page(title, said, sections, _tiles(names), foot=foot)


def groups(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Group -> its entries, in the order of the first of each."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry["group"], []).append(entry)
    return found


def charts(entries: Sequence[Entry], log: bool = False) -> list[Chart]:
    """Test measure, equivariance error and time of every group, one against the other, and the way there.

    `log`: whether the measure is an error, that a logarithmic axis suits.
    """
    names = groups(entries)
    found: list[Chart] = [_bars(title, names, key) for key, title in (
        ("test", "Test"), ("equivariance", "Equivariance error"), ("ms", "Time of a training step"))]
    found = [chart for chart in found if any(bar.value is not None for bar in chart.bars)]
    scattered = [Series(name, [(entry["equivariance"], entry["test"]) for entry in members if _both(entry)],
                        f"c{i % PALETTE}", line=False) for i, (name, members) in enumerate(names.items())]
    if any(series.points for series in scattered):
        found.append(Lines("Test against symmetry", "equivariance error", "test", scattered, log_x=True))
    curves = [Series(name, entry["valid"], f"c{i % PALETTE}") for i, (name, members) in enumerate(names.items())
              for entry in members if entry.get("valid")]
    return [*found, *([Lines("Validation", "epoch", "validation", curves, log_y=log)] if curves else [])]


def _both(entry: Entry) -> bool:
    return entry.get("test") is not None and entry.get("equivariance") is not None


def _values(members: Sequence[Entry], key: str) -> list[float]:
    return [entry[key] for entry in members if entry.get(key) is not None]


def _bars(title: str, names: Mapping[str, Sequence[Entry]], key: str) -> Bars:
    bars = []
    for number, (name, members) in enumerate(names.items()):
        found, show, colour = _values(members, key), NUMBERS[key][1], f"c{number % PALETTE}"
        if not found:
            bars.append(Bar(name, None, units.DASH, colour, note="not measured", state="missing"))
            continue
        note = f"{len(found)} runs, {show(min(found))} to {show(max(found))}" if len(found) > 1 else ""
        ends = (min(found), max(found)) if len(found) > 1 else (None, None)
        bars.append(Bar(name, statistics.mean(found), show(statistics.mean(found)), colour, *ends, note))
    return Bars(title, bars)


def _tiles(names: Mapping[str, Sequence[Entry]]) -> str:
    """The test measure of every group as a number."""
    items = []
    for name, members in names.items():
        if found := _values(members, "test"):
            spread = f"± {units.digits(statistics.stdev(found), 2)} over {len(found)} seeds" if len(found) > 1 else ""
            errors = _values(members, "equivariance")
            below = [f"equivariance error {units.power(statistics.mean(errors))}"] if errors else []
            items.append(page.tile(name, units.digits(statistics.mean(found)), [*filter(None, [spread]), *below]))
    return f'<ul class="tiles">{"".join(items)}</ul>' if items else ""


def _table(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        name = escape(str(entry["run"]))
        name = f'<a href="{escape(entry["href"])}">{name}</a>' if entry.get("href") else name
        cells = [Cell(name, html=True), Cell(entry["group"]), Cell(str(entry["seed"]), float(entry["seed"]))]
        for key, (_, show) in NUMBERS.items():
            value = entry.get(key)
            cells.append(Cell(units.DASH if value is None else show(value), value))
        lines.append(("", cells))
    headings = ["run", "kind", "seed", *(heading for heading, _ in NUMBERS.values())]
    return page.table(headings, lines, "All runs", left=2)
