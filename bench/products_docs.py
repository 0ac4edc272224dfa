"""The tables and figures of docs/products.md, made from the committed rows by `ace-fast report --readme`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ace_fast.report import marked, svg, units
from ace_fast.report.chart import Lines, Series

from . import products, products_kernels_docs

END = "<!-- end of measured -->"
MARKS = {"products": "<!-- measured: products -->", "products_grid": "<!-- measured: products, grid -->",
         "products_cp": "<!-- measured: products, factors -->", "products_forms": "<!-- measured: products, forms -->"}
FIGURES = {"products": Path("docs") / "products.svg", "products_forms": Path("docs") / "products-forms.svg"}
INEXACT = 1e-4  # equivariance error from which a product counts as approximate
NOTHING = "Nothing is measured yet."
_DRAWN = {"fast": "ours", "eager": "eager", "gaunt_grid": "c0", "gaunt_bracket": "c1", "gaunt_fourier": "c3",
          "tdn_exact": "c2"}

Row = dict[str, Any]


def of_suite(found: Sequence[Row], protocol: str = "products") -> dict[str, list[Row]]:
    """Device and dtype -> the rows of this suite, by channels and degree; wrong ones are left to the report."""
    devices: dict[str, list[Row]] = {}
    for row in sorted((row for row in found if row.get("protocol") == protocol and not row.get("error")),
                      key=lambda row: (row["channels"], row["degree"])):
        threads = ", one thread" if row["threads"] == 1 else f", {row['threads']} threads"
        on = threads if row["device"] == "cpu" else ""
        devices.setdefault(f"{row['device_name']}{on}; {row['dtype']}", []).append(row)
    return devices


def tables(found: Sequence[Row], protocol: str, block: Callable[[list[Row]], list[str]]) -> str:
    """A block of Markdown a device and dtype, below its name and what its numbers are."""
    parts = []
    for device, rows in of_suite(found, protocol).items():
        noise = units.percent(max(row["noise"] for row in rows))
        rounds = [row[key] for row in rows for key in row if key == "rounds" or key.endswith("_rounds")]
        slow = f" (slow versions: {min(rounds)} or more)" if min(rounds) < max(rounds) else ""
        parts += [f"{device}. Forward and backward, medians of {max(rounds)} rounds{slow}; ours timed twice differs by "
                  f"{noise} at most{_how(rows)}:", "", *block(rows), ""]
    return "\n".join(parts).strip() or NOTHING


def _how(rows: list[Row]) -> str:
    """What the times of a GPU are."""
    if rows[0]["device"] == "cpu":
        return ""
    calls = [f"L = {row['degree']}" for row in rows if "uncaptured" in row]
    but = f" (whole calls at {', '.join(calls)})" if calls else ""
    return f". Kernels alone, replayed as CUDA graphs from cold caches{but}"


def layers(rows: list[Row]) -> list[str]:
    """One line a product and degree, and below them what they say."""
    lines = ["| L, rows | product | time | over Clebsch-Gordan | memory | paths | independent maps | time a map | "
             "equivariance error |", "|---|---|---|---|---|---|---|---|---|"]
    lines += [_line(row, cells) for row in rows for cells in products.shown(row, lambda x: x)]
    return [*lines, "", *_findings(rows)]


def _line(row: Row, cells: list) -> str:
    _, name, ms, mb, ratio, paths, maps, error = cells
    return (f"| {row['degree']}, {row['rows']} | {name} | {units.time(ms)} | {ratio} | {units.memory(mb)} | {paths} | "
            f"{maps} | {units.time(ms / int(maps))} | {error} |")


def _findings(rows: list[Row]) -> list[str]:
    """Which product costs least where, and what the ways of one product cost."""
    def exact(row: Row, version: str) -> bool:
        return row[f"{version}_paths"] == row["fast_paths"] and row[f"{version}_equivariance_error"] < INEXACT

    errors = [row[f"tdn_{7 * row['degree']**2}_equivariance_error"] for row in rows
              if f"tdn_{7 * row['degree']**2}_ms" in row]
    found = [f"Fastest of all: {_cheapest(rows, lambda row, version: row[f'{version}_ms'])}.",
             "Fastest of the exact ones with every path: "
             f"{_cheapest(rows, lambda row, version: row[f'{version}_ms'], exact)}.",
             "Cheapest for an independent map: "
             f"{_cheapest(rows, lambda row, version: row[f'{version}_ms'] / row[f'{version}_maps'])}.",
             f"e3nn's Clebsch-Gordan product takes {_span(rows, 'eager', 'fast', 'ms')} times as long as ours and "
             f"{_span(rows, 'eager', 'fast', 'mb')} times the memory{_compiled(rows)}.",
             "By Fourier series a Gaunt product takes "
             f"{_span(rows, 'gaunt_fourier', 'gaunt_grid', 'ms')} times as long as on a grid and "
             f"{_span(rows, 'gaunt_fourier', 'gaunt_grid', 'mb')} times the memory."]
    if errors:
        found.append(f"Factors of rank 7 L² miss equivariance by {units.percent(min(errors))} to "
                     f"{units.percent(max(errors))}.")
    return [f"- {one}" for one in found]


def _cheapest(rows: list[Row], cost: Callable[[Row, str], float],
              counts: Callable[[Row, str], bool] = lambda row, version: True) -> str:
    """The product that costs least at every degree, in words; equal neighbours are joined."""
    runs: list[tuple[str, int, int]] = []
    for row in rows:
        best = min((v for v in products.timed(row) if counts(row, v)), key=lambda v: cost(row, v))
        name, degree = products.title(best), row["degree"]
        if runs and runs[-1][0] == name:
            runs[-1] = name, runs[-1][1], degree
        else:
            runs.append((name, degree, degree))
    return "; ".join(f"{name} at L = {first}" + (f" to {last}" if last > first else "") for name, first, last in runs)


def _compiled(rows: list[Row]) -> str:
    """What torch.compile makes of e3nn's product, where it was timed."""
    degrees = [row["degree"] for row in rows if f"{products.ECOMPILED}_ms" in row]
    if not degrees:
        return ""
    return (f"; under torch.compile, to L = {max(degrees)}, {_span(rows, products.ECOMPILED, 'fast', 'ms')} times as "
            "long")


def _span(rows: list[Row], more: str, less: str, key: str) -> str:
    """The smallest and largest ratio of two versions."""
    ratios = [row[f"{more}_{key}"] / row[f"{less}_{key}"] for row in rows
              if row.get(f"{more}_{key}") and row.get(f"{less}_{key}")]
    return f"{units.digits(min(ratios), 2)} to {units.digits(max(ratios), 2)}" if ratios else units.DASH


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
    """What docs/products.md and its figures must hold; nothing where there is no such page.

    Raises:
        ValueError: the page lacks the marks of a table.
    """
    page = root / "docs" / "products.md"
    if not page.exists():
        return {}
    text = page.read_text(encoding="utf-8")
    blocks = {"products": layers, "products_grid": products_kernels_docs.grid, "products_cp":
              products_kernels_docs.factors, "products_forms": products_kernels_docs.forms}
    for protocol, block in blocks.items():
        text = marked.replaced(text, MARKS[protocol], END, tables(found, protocol, block), page)
    made = {page: text}
    if of_suite(found):
        made[root / FIGURES["products"]] = figure(found)
    if members := max(of_suite(found, "products_forms").values(), key=len, default=[]):
        made[root / FIGURES["products_forms"]] = products_kernels_docs.figure(members)
    return made
