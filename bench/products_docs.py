"""The table and the figure of docs/products.md, made from the committed rows by `ace-fast report --readme`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ace_fast.report import marked, svg, units
from ace_fast.report.chart import Lines, Series

from . import products

BEGIN, END = "<!-- measured: products -->", "<!-- end of measured -->"
FIGURE = Path("docs") / "products.svg"
_DRAWN = {"fast": "ours", "eager": "eager", "gaunt_grid": "c0", "gaunt_bracket": "c1", "gaunt_fourier": "c3",
          "tdn_exact": "c2"}

Row = dict[str, Any]


def of_suite(found: Sequence[Row]) -> dict[str, list[Row]]:
    """Device, channels and dtype -> the rows of this suite, by degree; wrong ones are left to the report."""
    devices: dict[str, list[Row]] = {}
    for row in sorted((row for row in found if row.get("protocol") == "products" and not row.get("error")),
                      key=lambda row: row["degree"]):
        threads = "one thread" if row["threads"] == 1 else f"{row['threads']} threads"
        measured = f"{row['device_name']}, {threads}; {row['channels']} channels, {row['dtype']}"
        devices.setdefault(measured, []).append(row)
    return devices


def table(found: Sequence[Row]) -> str:
    """One line a product and degree, in Markdown, a table a device, number of channels and dtype."""
    parts = []
    for device, members in of_suite(found).items():
        parts += [f"{device}, forward and backward:", "",
                  "| L, rows | product | time | over Clebsch-Gordan | memory | paths | independent maps | time a map | "
                  "equivariance error |", "|---|---|---|---|---|---|---|---|---|"]
        for row in members:
            parts += [_line(row, cells) for cells in products.shown(row, lambda x: x)]
        parts.append("")
    return "\n".join(parts).strip() or "Nothing is measured yet."


def _line(row: Row, cells: list) -> str:
    _, name, ms, mb, ratio, paths, maps, error = cells
    return (f"| {row['degree']}, {row['rows']} | {name} | {units.time(ms)} | {ratio} | {units.memory(mb)} | {paths} | "
            f"{maps} | {units.time(ms / int(maps))} | {error} |")


def figure(found: Sequence[Row]) -> str:
    """Time of a row and channel, and of an independent map of it, along the degree, for the device with most rows."""
    members = max(of_suite(found).values(), key=len, default=[])
    charts = []
    for name, per in (("Time of a row and channel", lambda row, version: 1),
                      ("Time of an independent map", lambda row, version: row[f"{version}_maps"])):
        series = []
        for version, colour in _DRAWN.items():
            points = [(row["degree"], 1e3 * row[f"{version}_ms"] / (row["rows"] * row["channels"] * per(row, version)))
                      for row in members if f"{version}_ms" in row]
            if points:
                series.append(Series(products.title(version), points, colour, marks=True))
        charts.append(Lines(name, "degree L", "us, forward and backward", series, log_y=True))
    return svg.figure("Products of irreps by degree", charts)


def pages(root: Path, found: Sequence[Row]) -> dict[Path, str]:
    """What docs/products.md and its figure must hold; nothing where there is no such page.

    Raises:
        ValueError: the page lacks the marks of the table.
    """
    page = root / "docs" / "products.md"
    if not page.exists():
        return {}
    made = {page: marked.replaced(page.read_text(encoding="utf-8"), BEGIN, END, table(found), page)}
    return made | ({root / FIGURE: figure(found)} if of_suite(found) else {})
