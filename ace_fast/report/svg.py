"""Charts as SVG text: no script, no random ids, the same text for the same numbers.

Colours and fonts come from style.css by class, so that one drawing serves light, dark and print; `standalone` adds the
few rules that a picture in a README needs. Every mark says its number to a screen reader (aria-label) and shows it to
a pointer or the arrow keys (page.js).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from . import units
from .chart import Bar, Bars, Chart, Dots, Lines, Row, Scale, Series, scale, thin

WIDTH = 360  # units; a card is 300 to 460 pixels wide, so text stays readable on a phone
BARS = 260  # of a chart of bars: two of them stand side by side
_BAR, _ROW = 38, 34  # heights of a bar and of a row of dots
_LETTER = 6.4  # width of an average letter in units
FITS = int(BARS / _LETTER)  # letters of a note that a chart of bars shows
_MARKED = 40  # points up to which every one of a curve is drawn as a mark
_STOPS = 24  # marks of longer curves, invisible until the keyboard or the pointer is there
SHAPES = ("circle", "square", "diamond", "triangle")


def draw(chart: Chart) -> str:
    """The chart without its title, which belongs to the page around it."""
    if isinstance(chart, Bars):
        return _svg(chart.title, _BAR * len(chart.bars) + 2, _bars(chart), BARS)
    if isinstance(chart, Dots):
        return _svg(chart.title, _ROW * len(chart.rows) + 40, _dots(chart))
    return _svg(chart.title, 250, _lines(chart))


def standalone(title: str, height: float, inside: str, width: float = 2 * WIDTH) -> str:
    """A whole file with the palette in it, light and dark."""
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    palette = re.search(r"/\* palette \*/(.*?)/\* end \*/", style, re.DOTALL).group(1)
    marks = re.search(r"/\* marks \*/(.*?)/\* end \*/", style, re.DOTALL).group(1)
    rules = "\n".join(line.strip() for line in (palette + marks).splitlines() if line.strip())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" role="img">\n'
        f"<title>{escape(title)}</title>\n<style>\n{rules}\n</style>\n{inside}\n</svg>\n"
    )


def figure(title: str, charts: Sequence[Lines]) -> str:
    """Charts of curves in two columns as a file of its own, with their titles and the names of their colours."""
    wide, high, edge = WIDTH + 36, 250 + 62, 18
    parts = []
    for number, chart in enumerate(charts):
        x, y = edge + wide * (number % 2), high * (number // 2)
        parts.append(text(x, y + 24, chart.title, "strong"))
        at = float(x)
        for name, colour in dict.fromkeys((series.name, series.colour) for series in chart.series):
            parts += [rect(at, y + 36, 10, 10, f"fill {colour}"), text(at + 15, y + 45, name, "soft")]
            at += 30 + _LETTER * len(name)
        place = f'<svg x="{x}" y="{y + 56}" width="{WIDTH}" height="250" '
        parts.append(draw(chart).replace("<svg ", place, 1))
    width, height = wide * min(2, len(charts)) + edge, high * math.ceil(len(charts) / 2) + 10
    parts.insert(0, rect(0, 0, width, height, "card"))  # a page may be light where the reader's system is dark
    return standalone(title, height, "\n".join(parts), width)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "") -> str:
    """A line of text at its baseline; `kind` is a class, `anchor` middle or end."""
    found = f' class="{kind}"' if kind else ""
    found += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_n(x)}" y="{_n(y)}"{found}>{escape(words)}</text>'


def rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="2"/>'


def _svg(title: str, height: float, inside: list[str], width: float = WIDTH) -> str:
    body = "\n".join(inside)
    return f'<svg viewBox="0 0 {width} {_n(height)}" role="group" aria-label="{escape(title)}">\n{body}\n</svg>'


def _n(value: float) -> str:
    """A coordinate with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _cut(words: str, room: float) -> str:
    """The words, or as many as fit into `room` units."""
    most = max(4, int(room / _LETTER))
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def _linked(href: str, label: str, inside: str, kind: str = "mark") -> str:
    said = f'class="{kind}" aria-label="{escape(label)}"'
    return f'<a href="{escape(href)}" {said}>{inside}</a>' if href else f'<g {said} role="img">{inside}</g>'


def _bars(chart: Bars) -> list[str]:
    values = [v for bar in chart.bars for v in (bar.value, bar.high) if v is not None]
    top = chart.top or max(values, default=1.0) or 1.0
    return [_bar(bar, i * _BAR, BARS / top) for i, bar in enumerate(chart.bars)]


def _bar(bar: Bar, y: float, per: float) -> str:
    inside = [rect(0, y, BARS, _BAR - 4, "hit")]
    if bar.value is None:
        inside += [text(0, y + 13, bar.label), text(BARS, y + 13, units.DASH, "value", "end"),
                   text(0, y + 28, _cut(bar.note, BARS), "bad" if bar.state == "error" else "why")]
    else:
        length = max(bar.value * per, 1.5)
        hollow = " hollow projected" if bar.state == "projected" else ""
        inside += [text(0, y + 13, bar.label), text(BARS, y + 13, bar.shown, "value", "end"),
                   rect(0, y + 19, BARS, 11, "track"), rect(0, y + 19, length, 11, f"fill {bar.colour}{hollow}")]
        if bar.low is not None and bar.high is not None:
            a, b, middle = bar.low * per, bar.high * per, y + 24.5
            inside.append(f'<path class="whisker" d="M{_n(a)} {_n(middle)}H{_n(b)}M{_n(a)} {_n(middle - 3)}v6'
                          f'M{_n(b)} {_n(middle - 3)}v6"/>')
    label = f"{bar.label}: {bar.shown if bar.value is not None else 'no value'}" + (f"; {bar.note}" if bar.note else "")
    return _linked(bar.href, label, "".join(inside))


def _dots(chart: Dots) -> list[str]:
    values = [value for row in chart.rows for value, *_ in row.marks]
    across, height = scale([*values, 1.0], log=True), _ROW * len(chart.rows)
    ticks = across.ticks(5)
    place = lambda value: 6 + (WIDTH - 12) * across(value)  # noqa: E731
    found = [f'<path class="grid" d="{"".join(f"M{_n(place(t))} 0V{height}" for t in ticks)}"/>',
             f'<path class="one" d="M{_n(place(1.0))} 0V{height}"/>']
    found += [text(place(t), height + 14, f"{t:g}", "tick", "middle") for t in ticks]
    found.append(text(WIDTH / 2, height + 32, chart.x, "axis", "middle"))
    return found + [_dot_row(row, i * _ROW, place) for i, row in enumerate(chart.rows)]


def _dot_row(row: Row, y: float, place) -> str:
    middle = y + 24
    kind = "halo bad" if row.state == "error" else "halo why"
    note = text(WIDTH, y + 12, _cut(row.note, 150), kind, "end") if row.note else ""
    inside = [text(0, y + 12, _cut(row.label, 200), "halo"), note]
    ends = [place(value) for value, *_ in row.marks]
    if len(ends) > 1:
        inside.append(f'<path class="span" d="M{_n(min(ends))} {_n(middle)}H{_n(max(ends))}"/>')
    for value, label, colour, href in row.marks:
        dot = f'<circle class="fill {colour}" cx="{_n(place(value))}" cy="{_n(middle)}" r="4.5"/>'
        inside.append(_linked(href, f"{row.label}, {label}", dot))
    return f"<g>{''.join(inside)}</g>"


_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 8, 24, 210  # of the plot in a chart of 360 x 250


def _lines(chart: Lines) -> list[str]:
    xs = [x for s in chart.series for x, _ in s.points]
    ys = [y for s in chart.series for _, y in s.points] + [y for _, y in chart.rules]
    across = scale(xs, chart.log_x, 0.02, least=2.0)
    up = Scale(*chart.range_y) if chart.range_y else scale(ys, chart.log_y, least=3.0)
    place_x = lambda x: _LEFT + (WIDTH - _LEFT - _RIGHT) * across(x)  # noqa: E731
    place_y = lambda y: _BOTTOM - (_BOTTOM - _TOP) * up(y)  # noqa: E731
    found = [text(0, 12, chart.y, "axis"), text(WIDTH - _RIGHT, 246, chart.x, "axis", "end")]
    found += _grid(across, up, place_x, place_y)
    for name, value in chart.rules:
        y = _n(place_y(value))
        found.append(f'<path class="rule" d="M{_LEFT} {y}H{WIDTH - _RIGHT}"/>')
        found.append(text(WIDTH - _RIGHT - 2, place_y(value) - 4, name, "halo why", "end"))
    shapes = sum(not s.line for s in chart.series) > 1
    for number, series in enumerate(chart.series):
        shape = SHAPES[number % len(SHAPES)] if shapes else "circle"
        found.append(_series(series, chart, place_x, place_y, shape))
    return found


def _grid(across: Scale, up: Scale, place_x, place_y) -> list[str]:
    rows, columns = up.ticks(5), across.ticks(6)
    path = "".join(f"M{_LEFT} {_n(place_y(t))}H{WIDTH - _RIGHT}" for t in rows)
    found = [f'<path class="grid" d="{path}"/>', f'<path class="base" d="M{_LEFT} {_BOTTOM}H{WIDTH - _RIGHT}"/>']
    found += [text(_LEFT - 6, place_y(t) + 4, tick(t), "tick", "end") for t in rows]
    return found + [text(place_x(t), _BOTTOM + 16, tick(t), "tick", "middle") for t in columns]


def tick(value: float) -> str:
    """A tick's number: 0.05, 200, 50k, 10⁻⁷."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        return units.power(value, 1).replace(f"1 {units.TIMES} ", "").replace(f" {units.TIMES} ", units.TIMES)
    if size >= 1e4:
        return f"{value / 1e6:g}M" if size >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:g}".replace("-", "−")


def _series(series: Series, chart: Lines, place_x, place_y, shape: str) -> str:
    """The curve, and its points as marks: all of a few, every so many of a long curve."""
    shown = [i for i, point in enumerate(series.points) if _drawable(chart, *point)]
    parts = []
    if series.line and len(shown) > 1:
        curve = thin([series.points[i] for i in shown])
        drawn = " ".join(f"{_n(place_x(x))},{_n(place_y(y))}" for x, y in curve)
        parts.append(f'<polyline class="line {series.colour}{" dash" * series.dash}" points="{drawn}"/>')
    stops = shown[:: -(-len(shown) // _STOPS)] if series.line and len(shown) > _MARKED else shown
    kind = "ghost" if series.line and not (series.marks or len(shown) == 1) else "fill"
    kind += f" {series.colour}" + ("" if series.fill else " hollow")
    for i in stops:
        x, y = series.points[i]
        name = series.names[i] if series.names else series.name
        label = f"{name}: {chart.x} {units.digits(x)}, {chart.y} {units.digits(y)}"
        href = series.links[i] if series.links else ""
        parts.append(_linked(href, label, _mark(shape, place_x(x), place_y(y), kind)))
    return f'<g class="marks" role="group" aria-label="{escape(series.name)}">{"".join(parts)}</g>'


def _drawable(chart: Lines, x: float, y: float) -> bool:
    """Whether the point is finite and has a logarithm where an axis needs one."""
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not chart.log_x) and (y > 0 or not chart.log_y)


def _mark(shape: str, x: float, y: float, kind: str) -> str:
    if shape == "circle":
        return f'<circle class="{kind}" cx="{_n(x)}" cy="{_n(y)}" r="3.6"/>'
    corners: dict[str, Sequence[tuple[float, float]]] = {
        "square": ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        "diamond": ((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
        "triangle": ((0, -4.4), (4.4, 3.6), (-4.4, 3.6)),
    }
    return f'<path class="{kind}" d="M{" ".join(f"{_n(x + a)},{_n(y + b)}" for a, b in corners[shape])}Z"/>'
