"""The tables of docs/products.md on the kernels of products, and where one form of them overtakes another."""

from typing import Any

from ace_fast.kernels.sphere_product.tables import FORMS
from ace_fast.report import svg, units
from ace_fast.report.chart import Lines, Series

from . import products, products_kernels

Row = dict[str, Any]

_OVERTAKES = (("mirrored", "dense"), ("separable", "dense"), ("separable", "mirrored"), ("mirrored", "sparse"))
_COLOURS = dict(zip(FORMS, ("eager", "c0", "ours", "c2"), strict=True))


def grid(rows: list[Row]) -> list[str]:
    """Channels, degree: the plain versions, ours, how many times as fast as the best plain one, and memory likewise."""
    versions = [v for v in ("eager", "eager_compiled", "einsum", "einsum_compiled", "fast", "triton")
                if any(f"{v}_ms" in row for row in rows)]
    called = any("fast_call" in row for row in rows)
    columns = ["channels", "L, rows", "points", *(products.title(v, "products_grid") for v in versions), "faster",
               "memory, plain", "memory, fused", "less", *["faster, with launches"] * called]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        plain = row[f"{_best_plain(row)}_mb"]
        cells = [str(row["channels"]), f"{row['degree']}, {row['rows']}", str(row["points"]),
                 *(units.time(row.get(f"{v}_ms")) for v in versions), units.compared(row["speedup"], row["noise"]),
                 units.memory(plain), units.memory(row["fast_mb"]), _times(plain, row["fast_mb"])]
        if called:
            cells.append(units.ratio(row[f"{_best_plain(row, 'call')}_call"] / row["fast_call"]))
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    plainly = "best plain" if any("compiled" in v for v in versions) else "better plain"
    for channels in dict.fromkeys(row["channels"] for row in rows):
        members = [row for row in rows if row["channels"] == channels]
        gains = {row["degree"]: row["speedup"] for row in members}
        least, most = min(gains, key=gains.get), max(gains, key=gains.get)
        smaller = [row[f"{_best_plain(row)}_mb"] / row["fast_mb"] for row in members if row["fast_mb"]]
        memory = f"; memory {units.ratio(min(smaller))} to {units.ratio(max(smaller))} less" if smaller else ""
        lines.append(f"- {channels} channel{'s' * (channels > 1)}: fused is {units.ratio(gains[least])} (L = {least}) "
                     f"to {units.ratio(gains[most])} (L = {most}) as fast as the {plainly} version{memory}.")
    return lines


def _best_plain(row: Row, key: str = "ms") -> str:
    """The fastest plain version."""
    return min((way for way in products_kernels.GRID_WAYS if f"{way}_{key}" in row),
               key=lambda way: row[f"{way}_{key}"])


def _times(more: float, less: float) -> str:
    return units.ratio(more / less) if less else units.DASH


def factors(rows: list[Row]) -> list[str]:
    """Degree: e3nn, factors of both kinds and our exact product, with how many times as fast as e3nn they are."""
    compiled = any("eager_compiled_ms" in row for row in rows)
    columns = ["L, rows", "rank", "e3nn, uuu", *["e3nn, compiled"] * compiled, "CP, rank 7 L²", "faster", "CP, exact",
               "faster", "Clebsch-Gordan", "faster", "memory, e3nn", "memory, CP"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        best = min(row[key] for key in ("eager_ms", "eager_compiled_ms") if key in row)
        cells = [f"{row['degree']}, {row['rows']}", str(row["rank"]), units.time(row["eager_ms"])]
        cells += [units.time(row.get("eager_compiled_ms"))] * compiled
        for version in ("fast", "tdn_exact", "clebsch_gordan"):
            ms = row.get(f"{version}_ms")
            cells += [units.time(ms), units.compared(best / ms, row["noise"]) if ms else units.DASH]
        lines.append("| " + " | ".join([*cells, units.memory(row["eager_mb"]), units.memory(row["fast_mb"])]) + " |")
    return lines


def forms(rows: list[Row]) -> list[str]:
    """Degree: nanoseconds and operations of a column in every form, the fastest and the fewest in bold; below, from
    where on one costs less than another."""
    lines = ["| L, rows | " + " | ".join(FORMS) + " | auto |", "|---|" + "---|" * (len(FORMS) + 1)]
    for row in rows:
        ms = {form: row[f"{form}_ms"] for form in FORMS if f"{form}_ms" in row}
        count = {form: row[f"{form}_flops"] for form in ms}
        cells = [f"{_best(_ns(row, form), ms[form] == min(ms.values()))}, "
                 f"{_best(count[form], count[form] == min(count.values()))}" if form in ms else units.DASH
                 for form in FORMS]
        lines.append(f"| {row['degree']}, {row['rows']} | " + " | ".join([*cells, _best(_ns(row, "fast"), False)])
                     + " |")
    lines += ["", f"Nanoseconds, operations of a row and channel ({rows[0]['channels']} channels).", ""]
    for new, old in _OVERTAKES:
        by = [_from(crossing(rows, new, old, key)) for key in ("flops", "ms")]
        lines.append(f"- The {new} form costs less than the {old} one {by[0]} by count, {by[1]} by time.")
    return lines


def _best(value: float, is_best: bool) -> str:
    return f"**{value:,.0f}**" if is_best else f"{value:,.0f}"


def _ns(row: Row, version: str) -> float:
    return 1e6 * row[f"{version}_ms"] / (row["rows"] * row["channels"])


def crossing(rows: list[Row], new: str, old: str, key: str) -> int | None:
    """The degree from which on one form costs no more than another in `key`, "ms" or "flops"; None where it never does
    or costs more at the highest degree that has both."""
    both = sorted(((row["degree"], row[f"{new}_{key}"] <= row[f"{old}_{key}"]) for row in rows
                   if f"{new}_{key}" in row and f"{old}_{key}" in row), reverse=True)
    found = None
    for degree, less in both:
        if not less:
            break
        found = degree
    return found


def _from(degree: int | None) -> str:
    return "nowhere" if degree is None else f"from L = {degree} on"


def figure(rows: list[Row]) -> str:
    """Time and operations of a column in every form along the degree."""
    charts = []
    for name, unit, value in (("Time of a row and channel", "ns, forward and backward", _ns),
                              ("Operations of a row and channel", "by count", lambda row, form: row[f"{form}_flops"])):
        series = [Series(form, [(row["degree"], value(row, form)) for row in rows if f"{form}_ms" in row],
                         _COLOURS[form], marks=True) for form in FORMS]
        charts.append(Lines(name, "degree L", unit, [one for one in series if one.points], log_y=True))
    return svg.figure("Forms of a product on a grid by degree", charts)
