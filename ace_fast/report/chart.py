"""Charts as data. `svg` draws them for pages, `png` with matplotlib; neither decides what is shown.

A colour is a name of the palette in style.css: "ours", "eager", "compiled", ..., or "c0" to "c7".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

PALETTE = 8  # c0 .. c7
_MOST = 240  # points of a curve that are drawn


@dataclass(frozen=True)
class Bar:
    """One bar: `value` sets its length, `shown` is the number with its unit.

    Attributes:
        low, high: quantiles, drawn as a whisker.
        note: why there is no value, or what to know of it.
        state: "ok", "missing", "error" or "projected".
        href: where a click leads.
    """

    label: str
    value: float | None
    shown: str
    colour: str = "c0"
    low: float | None = None
    high: float | None = None
    note: str = ""
    state: str = "ok"
    href: str = ""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from zero, label and number above each."""

    title: str
    bars: Sequence[Bar]
    top: float | None = None  # where the axis ends; None: at the largest value


@dataclass(frozen=True)
class Series:
    """One curve, or with `line=False` single marks; `names` and `links` belong to the points.

    Attributes:
        fill: marks filled, or hollow (projections).
        marks: whether every point of a curve shows.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "c0"
    line: bool = True
    dash: bool = False
    fill: bool = True
    marks: bool = False
    names: Sequence[str] = ()
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Lines:
    """Curves and marks on two axes; `rules` are horizontal lines (name, value)."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    rules: Sequence[tuple[str, float]] = ()
    note: str = ""
    range_y: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One line of `Dots`: marks (value, text, colour, href) on the shared axis."""

    label: str
    marks: Sequence[tuple[float, str, str, str]]
    note: str = ""
    state: str = "ok"


@dataclass(frozen=True)
class Dots:
    """Ratios of many cases on one logarithmic axis, with a line at 1."""

    title: str
    x: str
    rows: Sequence[Row]
    legend: Sequence[tuple[str, str]] = field(default=())  # (name, colour)


Chart = Bars | Lines | Dots


@dataclass(frozen=True)
class Scale:
    """Maps low .. high to 0 .. 1, linear or logarithmic, with ticks at round numbers."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        return _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)


def scale(values: Iterable[float], log: bool = False, margin: float = 0.04, least: float = 0.0) -> Scale:
    """The scale that holds the values, with a margin; a logarithmic one at least a factor `least` wide."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not found:
        return Scale(0.1 if log else 0.0, 1.0, log)
    low, high = min(found), max(found)
    if log:
        grow = max((high / low) ** margin, 1.05, math.sqrt(least / (high / low)) if least else 0.0)
        return Scale(low / grow, high * grow, True)
    room = margin * (high - low) or abs(high) * 0.1 or 1.0
    # a curve that is never negative begins at zero rather than below it
    return Scale(max(low - room, 0.0) if low >= 0 else low - room, high + room)


def _ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if m * step >= raw)
    first = math.ceil(low / step - 1e-9)
    # integers times the step, so that no rounding piles up: 0.3, not 0.30000000000000004
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in leading if low <= m * 10.0**d <= high]
        if len(found) <= most:
            break
    if len(found) > most:
        every = math.ceil(len(found) / most)
        found = found[::every]
    return found if len(found) > 1 else _ticks(low, high, most)


def thin(points: Sequence[tuple[float, float]], most: int = _MOST) -> list[tuple[float, float]]:
    """At most about `most` points of a long curve: first, last, and the extremes of every stretch between."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        kept |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]
