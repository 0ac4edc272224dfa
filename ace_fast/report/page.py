"""One HTML file: text, tables and charts, its style and its script inside, and nothing fetched.

Charts are SVG drawn in Python and moved about by a hundred lines of script. A plotting library inside the page would
weigh 4 MB for each of these pages, draw text that shrinks on a phone, and leave tables, keyboard and print to us.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from . import svg
from .chart import Bars, Chart, Dots, Lines

# Nothing may be loaded, whatever text a result file brings along.
_TALL = 14  # rows above which a table scrolls by itself
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A heading, what is said below it, and HTML. `anchor` is where the contents lead."""

    anchor: str
    heading: str
    lead: str
    body: str


@dataclass(frozen=True)
class Cell:
    """A table's entry: what it shows, and the number it is sorted by."""

    shown: str
    value: float | None = None
    html: bool = False
    kind: str = ""


def page(title: str, lead: str, sections: Sequence[Section], top: str = "",
         devices: Sequence[tuple[str, str, str]] = (), foot: str = "") -> str:
    """The whole document.

    Args:
        title, lead: the heading and the paragraph below it (lead is HTML).
        sections: in order; those without a body are left out.
        top: HTML between the lead and the first section.
        devices: (key, name, group) of the device selector; parts of the page carry data-device="key".
        foot: HTML of the last line.
    """
    shown = [section for section in sections if section.body]
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.heading)}</a></li>' for s in shown)
    body = "\n".join(
        f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-h">\n<h2 id="{s.anchor}-h">{escape(s.heading)}</h2>\n'
        f"{f'<p>{s.lead}</p>' if s.lead else ''}\n{s.body}\n</section>"
        for s in shown
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>\n{_file("style.css")}</style>\n</head>\n<body>\n'
        '<a class="skip" href="#main">Skip to the results</a>\n'
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="lead">{lead}</p>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n</header>\n{_bar(devices)}\n'
        f'<main id="main" tabindex="-1">\n{top}\n{body}\n</main>\n<footer>{foot}</footer>\n'
        f'<div id="tip" role="status" hidden></div>\n<script>\n{_file("page.js")}</script>\n</body>\n</html>\n'
    )


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _bar(devices: Sequence[tuple[str, str, str]]) -> str:
    """The device selector, with a word before every further group, and the button of the theme."""
    chosen, before = "", ""
    for key, name, group in devices:
        chosen += f"<span>{escape(group)}</span>" if group != before else ""
        checked = "" if chosen else " checked"
        chosen += (f'<label class="choice"><input type="radio" name="device" value="{key}"{checked}>'
                   f'{escape(name.removesuffix(" (projection)"))}</label>')
        before = group
    field = f"<fieldset><legend>Device</legend>{chosen}</fieldset>" if len(devices) > 1 else ""
    return f'<div class="bar"><div>{field}<button class="theme" type="button" hidden>Theme: system</button></div></div>'


def table(headings: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], label: str, left: int = 1) -> str:
    """A sortable table; a row is (attributes, cells), the first cell its heading, the first `left` columns text."""
    tall = " tall" if len(rows) > _TALL else ""
    head = "".join(
        f'<th scope="col"{" class=l" if i < left else ""}><button type="button">{escape(name)}</button></th>'
        for i, name in enumerate(headings)
    )
    body = "\n".join(f"<tr{attributes}>{_cells(cells, left)}</tr>" for attributes, cells in rows)
    return (
        f'<div class="scroll{tall}" role="region" tabindex="0" aria-label="{escape(label)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _cells(cells: Sequence[Cell], left: int) -> str:
    found = []
    for i, cell in enumerate(cells):
        kind = " ".join(filter(None, (cell.kind, "l" if 0 < i < left else "")))
        attributes = f' class="{kind}"' if kind else ""
        attributes += f' data-value="{cell.value:.6g}"' if cell.value is not None else ""
        shown = cell.shown if cell.html else escape(cell.shown)
        found.append(f'<th scope="row"{attributes}>{shown}</th>' if not i else f"<td{attributes}>{shown}</td>")
    return "".join(found)


def pairs(values: Iterable[tuple[str, object]], small: bool = False) -> str:
    """A list of (what, value); what is empty is left out."""
    items = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(str(value))}</dd></div>"
                    for what, value in values if value not in ("", None))
    return f'<dl class="pairs{" small" if small else ""}">{items}</dl>'


def tile(what: str, big: str, below: Sequence[str]) -> str:
    """A number to be seen first, and the lines below it."""
    words = " words" if len(big) > 6 else ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in below)
    return f'<li class="tile"><h3>{escape(what)}</h3><p class="big{words}">{escape(big)}</p>{lines}</li>'


def card(chart: Chart, device: str = "", more: str = "") -> str:
    """A chart with its title and legend; `device` ties it to the selector."""
    tied = f' data-device="{device}"' if device else ""
    note = f"<small>{escape(chart.note)}</small>" if isinstance(chart, Lines) and chart.note else ""
    return (
        f'<figure class="card"{tied}><figcaption><h3>{escape(chart.title)}</h3></figcaption>\n{legend(chart)}'
        f"{svg.draw(chart)}\n{note}{more}</figure>"
    )


def legend(chart: Chart) -> str:
    """The names of the colours, where the marks do not carry them."""
    if isinstance(chart, Bars):
        return ""
    if isinstance(chart, Dots):
        entries = [(name, colour, "") for name, colour in chart.legend]
    else:
        entries = [(s.name, s.colour, f"stroke{' dashed' * s.dash}" if s.line else "") for s in chart.series if s.name]
    entries = list(dict.fromkeys(entries))  # curves of several seeds share a name
    if not entries:
        return ""
    items = "".join(f'<li><i class="{colour} {kind}"></i>{escape(name)}</li>' for name, colour, kind in entries)
    return f'<ul class="legend">{items}</ul>\n'


def cards(parts: Iterable[str], kind: str = "") -> str:
    """Cards side by side, as many as fit; `kind` "wide" for those that hold two charts."""
    found = "\n".join(parts)
    return f'<div class="cards {kind}">\n{found}\n</div>' if found else ""


def folded(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>"
