"""Products of other libraries, operators, roofline, measured scaling and errors on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import page, rows, units
from . import workloads as of_workloads
from .chart import Dots, Lines, Series
from .chart import Row as DotRow
from .rows import Row

DIRECTIONS = {"forward": "Forward", "forward+backward": "Forward and backward", "double_backward": "Double backward"}
_AXES = {"edges": "edges", "points": "points", "channels": "channels", "degree": "degree l", "batch": "batch"}
_MOST = 7  # curves in one chart


def is_scaling(row: Row) -> bool:
    return row.get("suite") == "scaling"


def operators(found: Iterable[Row]) -> list[Row]:
    """The rows of operators' cases, without what other suites measure."""
    return [row for row in found if "op" in row and not row.get("suite")]


def products(found: Sequence[Row], key: str) -> list[str]:
    """How much longer other libraries need for the same product, one chart a direction."""
    cards = []
    for direction, name in DIRECTIONS.items():
        members = [row for row in found if "protocol" in row and row.get("direction") == direction]
        if not members:
            continue
        seen = [v for v in rows.VERSIONS if v != "fast" and any(row.get(f"{v}_ms") for row in members)]
        legend = [(rows.name_of(v), rows.colour_of(v)) for v in seen]
        lines = [_product(row, seen) for row in members]
        cards.append(page.card(Dots(name, "time over ace_fast's (above 1: ace_fast is faster)", lines, legend), key,
                               _reasons(members)))
    return cards


def _product(row: Row, seen: Sequence[str]) -> DotRow:
    label = f"{row['protocol']} {row['case'].partition('@')[0]}"
    if row.get("error") or not row.get("fast_ms"):
        return DotRow(label, [], str(row.get("error") or row.get("fast_reason") or "not timed"), "error")
    marks = []
    for version in seen:
        if ratio := of_workloads.speedup(row, version):
            said = units.compared(ratio, row.get("noise"))
            words = f"{rows.name_of(version)} {units.time(row[f'{version}_ms'])}, ace_fast {units.time(row['fast_ms'])}"
            marks.append((ratio, f"{words}: {said}", rows.colour_of(version), f"#{rows.anchor(row)}"))
    return DotRow(label, marks, units.time(row["fast_ms"]))


def _reasons(members: Sequence[Row]) -> str:
    """Every missing version once, with its reason and the number of cases."""
    count: dict[tuple[str, str], int] = {}
    for row in members:
        for version in rows.versions(row):
            if not row.get(f"{version}_ms"):
                pair = rows.name_of(version), str(row.get(f"{version}_reason") or row.get("error") or "not measured")
                count[pair] = count.get(pair, 0) + 1
    items = (f"<li>{page.escape(name)}, {number} of {len(members)}: {page.escape(reason)}</li>"
             for (name, reason), number in count.items())
    return f'<ul class="why">{"".join(items)}</ul>' if count else ""


def products_table(found: Sequence[Row], keys: dict[str, str]) -> str:
    members = [row for row in found if "protocol" in row]
    if not members:
        return ""
    seen = [v for v in rows.VERSIONS if any(row.get(f"{v}_ms") for row in members)]
    headings = ["case", "direction", *(rows.name_of(v) for v in seen), "over eager", "noise", "roofline", "memory"]
    lines = []
    for row in members:
        ratio = of_workloads.speedup(row, "eager")
        name = f"{row['protocol']} {row['case']}{rows.dtype_suffix(row)}"
        cells = [of_workloads.link(row, name), page.Cell(row.get("direction", "forward").replace("_", " "))]
        cells += [page.Cell(units.time(row.get(f"{v}_ms")), row.get(f"{v}_ms")) for v in seen]
        cells.append(page.Cell(units.compared(ratio, row.get("noise")), ratio))
        lines.append((of_workloads.attributes(row, keys), [*cells, *_rates(row, "fast_mb")]))
    return page.table(headings, lines, "All products", left=2)


def _rates(row: Row, memory: str) -> list[page.Cell]:
    share = row.get("roofline_percent")
    return [page.Cell(units.percent(row.get("noise")), row.get("noise")),
            page.Cell(units.percent(None if share is None else share / 100), share),
            page.Cell(units.memory(row.get(memory)), row.get(memory))]


def operators_table(found: Sequence[Row], keys: dict[str, str]) -> str:
    """Every operator's cases; those without a time say why, projections how far they may be off."""
    members = operators(found)
    projected = any(row.get("projected") for row in members)
    headings = ["case", "backend", "direction", "time", "plain PyTorch", "speedup", "noise", "roofline", "memory",
                "GFLOP/s", "GB/s", *(["may be off by"] if projected else [])]
    lines = []
    for row in members:
        cells = [of_workloads.link(row, f"{row['op']} {row['case']}"), page.Cell(str(row.get("backend", ""))),
                 page.Cell(str(row.get("direction", ""))), *_operator(row)]
        if projected:
            cells += [page.Cell("")] * (len(headings) - 1 - len(cells)) + [_off(row)]
        lines.append((of_workloads.attributes(row, keys), cells))
    return page.table(headings, lines, "All operators", left=3) if lines else ""


def _operator(row: Row) -> list[page.Cell]:
    """The numbers of an operator's row, or why it has none."""
    if why := row.get("error") or row.get("skipped") or (None if row.get("ms") else "no time"):
        return [page.Cell(str(why), kind="long"), *[page.Cell("")] * 7]
    ratio = row["reference_ms"] / row["ms"] if row.get("reference_ms") else None
    return [page.Cell(units.time(row["ms"]), row["ms"]),
            page.Cell(units.time(row.get("reference_ms")), row.get("reference_ms")),
            page.Cell(units.compared(ratio, row.get("noise")), ratio), *_rates(row, "peak_mb"),
            *(page.Cell(units.count(row.get(k)), row.get(k)) for k in ("gflops", "gbs"))]


def _off(row: Row) -> page.Cell:
    """The factor by which a projection may miss, as the validation on measured devices says."""
    factor, most = row.get("error_factor"), row.get("error_factor_q90")
    if not factor:
        return page.Cell("")
    return page.Cell(f"factor {factor:.1f}" + (f", one in ten {most:.1f}" if most else ""), factor)


def roofline(found: Sequence[Row], key: str) -> list[str]:
    """Achieved against attainable, one chart a dtype."""
    cards = []
    measured = [_with_rates(row) for row in found if row.get("flops") and row.get("bytes") and not row.get("suite")]
    measured = [row for row in measured if row.get("gflops")]
    for dtype in dict.fromkeys(row.get("dtype", "float32") for row in measured):
        members = [row for row in measured if row.get("dtype", "float32") == dtype]
        groups: dict[str, list[Row]] = {}
        for row in members:
            groups.setdefault("products" if "protocol" in row else _room(row["op"]), []).append(row)
        series = [_roof_points(name, group, f"c{i % 8}") for i, (name, group) in enumerate(_largest(groups).items())]
        copy, peak = _roof(members)
        line = [_roof_line(members, copy, peak)] if copy and peak else []
        rates = f"{units.count(copy)} GB/s copied and {units.count(peak)} GFLOP/s"
        note = f"Every mark is one case; the line is what {rates} allow." if line else "Every mark is one case."
        title = f"Roofline, {dtype}" + (", projected" if all(row.get("projected") for row in members) else "")
        cards.append(page.card(Lines(title, "flops a byte", "GFLOP/s",
                                     [*line, *series], True, True, note=note), key))
    return cards


def _with_rates(row: Row) -> Row:
    """The row with GFLOP/s and GB/s from its counts where it has none, as projections."""
    if row.get("gflops") or not row.get("ms"):
        return row
    return row | {"gflops": row["flops"] / row["ms"] / 1e6, "gbs": row["bytes"] / row["ms"] / 1e6}


def _room(op: str) -> str:
    """The operator without its derivatives' endings."""
    while op.endswith("_bwd"):
        op = op.removesuffix("_bwd")
    return op


def _largest(groups: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """At most _MOST groups, the small ones as one."""
    order = sorted(groups, key=lambda name: -len(groups[name]))
    kept = {name: groups[name] for name in order[: _MOST - 1]}
    rest = [row for name in order[_MOST - 1 :] for row in groups[name]]
    return kept | ({"others": rest} if rest else {})


def rates_table(found: Sequence[Row], keys: dict[str, str]) -> str:
    """What the machines were measured to do, dtype by dtype (`python -m bench --roofline`)."""
    members = [row for row in found if row.get("suite") == "roofline"]
    headings = ("dtype", "device", "copy", "multiply-adds", "matrix product")
    lines = []
    for row in members:
        rates = [page.Cell(units.DASH if row.get(name) is None else units.count(row[name], unit), row.get(name))
                 for name, unit in (("copy_gbs", "GB/s"), ("fma_gflops", "GFLOP/s"), ("matmul_gflops", "GFLOP/s"))]
        lines.append((of_workloads.attributes(row, keys),
                      [of_workloads.link(row, row["case"]), page.Cell(rows.device(row)), *rates]))
    return page.table(headings, lines, "Measured rates", left=2) if lines else ""


def _roof(members: Sequence[Row]) -> tuple[float, float]:
    """Copy GB/s and peak GFLOP/s: the rows' own, else what their percentages imply; 0 where neither is known.

    A percentage is the larger of both shares, so no row implies more than the rates, and the bound ones imply them.
    """
    def largest(own: str, achieved: str) -> float:
        given = [row[own] for row in members if row.get(own)]
        shares = [100 * row[achieved] / row["roofline_percent"] for row in members
                  if row.get("roofline_percent") and row.get(achieved)]
        return max(given or shares, default=0.0)

    return largest("copy_gbs", "gbs"), largest("peak_gflops", "gflops")


def _roof_line(members: Sequence[Row], copy: float, peak: float) -> Series:
    intensities = [row["flops"] / row["bytes"] for row in members]
    low, high, knee = min(intensities) / 1.5, max(intensities) * 1.5, peak / copy
    xs = sorted({low, high, *([knee] if low < knee < high else [])})
    return Series("attainable", [(x, min(peak, copy * x)) for x in xs], "eager")


def _roof_points(name: str, group: Sequence[Row], colour: str) -> Series:
    points = [(row["flops"] / row["bytes"], row["gflops"]) for row in group]
    names = [f"{row.get('op') or row.get('protocol')} {row['case']} {row.get('direction', '')}" for row in group]
    solid = not any(row.get("projected") for row in group)
    links = [f"#{rows.anchor(row)}" for row in group]
    return Series(name, points, colour, line=False, fill=solid, names=names, links=links)


def scaling(found: Sequence[Row], key: str) -> list[str]:
    """Measured curves of time and memory against one size, with the fitted exponent."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        if is_scaling(row) and isinstance(row.get("size"), int | float):
            groups.setdefault((str(row.get("axis")), str(row.get("quantity", ""))), []).append(row)
    cards = []
    for (axis, _), members in groups.items():
        for value, label, unit in (("ms", "time", "ms"), ("peak_mb", "memory", "MiB")):
            series = _curves([row for row in members if row.get(value)], value)
            cards += [page.card(Lines(f"{label.capitalize()} against {_AXES.get(axis, axis)}", _AXES.get(axis, axis),
                                      f"{label} ({unit})", series[i : i + _MOST], True, True), key)
                      for i in range(0, len(series), _MOST)]
    return cards


def _curves(members: Sequence[Row], value: str) -> list[Series]:
    groups: dict[str, list[Row]] = {}
    for row in members:
        groups.setdefault(" ".join(str(row[k]) for k in ("op", "workload", "backend", "direction") if row.get(k)),
                          []).append(row)
    found = []
    for number, (name, group) in enumerate(groups.items()):
        group.sort(key=lambda row: row["size"])
        points = [(row["size"], row[value]) for row in group]
        found.append(Series(f"{name}{_fitted(group[-1], value)}", points, f"c{number % 8}", marks=True,
                            links=[f"#{rows.anchor(row)}" for row in group]))
    return found


def _fitted(row: Row, value: str) -> str:
    """The exponent of a curve and the one that its algorithm has."""
    names = ("exponent", "expected_exponent") if value == "ms" else ("memory_exponent", "expected_memory_exponent")
    measured, expected = (row.get(name) for name in names)
    if measured is None:
        return ""
    return f": exponent {measured:.2f}" + (f", expected {expected:.2f}" if expected is not None else "")


_COMPARED = ("eager", "compiled", "cuequivariance", "openequivariance", "torch_scatter", "fast", "graph")


def _errors(row: Row) -> dict[str, float]:
    """Version -> largest relative error against float64."""
    if "op" in row:
        found = {"fast": row.get("max_relative_error")}
    else:
        found = {version: row.get(f"{version}_max_relative_error") for version in _COMPARED}
    return {version: value for version, value in found.items() if value is not None}


def exactness(found: Sequence[Row], key: str) -> list[str]:
    """Errors of every version against eager's on the same tensors."""
    pairs = [(row, _errors(row)) for row in found]
    pairs = [(row, errors) for row, errors in pairs if errors.get("eager")]
    if len(pairs) < 3:
        return []
    series = []
    for version in _COMPARED[1:]:
        members = [(row, errors) for row, errors in pairs if errors.get(version)]
        if members:
            series.append(Series(rows.name_of(version), [(e["eager"], e[version]) for _, e in members],
                                 rows.colour_of(version), line=False, names=[f"{rows.name_of(version)}, {_name(row)}"
                                                                             for row, _ in members],
                                 links=[f"#{rows.anchor(row)}" for row, _ in members]))
    ends = [f([errors["eager"] for _, errors in pairs]) for f in (min, max)]
    series.insert(0, Series("as exact as eager", [(x, x) for x in ends], "eager"))
    return [page.card(Lines("Errors beside eager's", "error of eager", "error", series, True, True), key)]


def _name(row: Row) -> str:
    return " ".join(str(row[k]) for k in ("workload", "protocol", "op", "case", "backend", "direction") if row.get(k))


def errors_table(found: Sequence[Row], keys: dict[str, str]) -> str:
    """The largest error of every version against float64, and of failing rows what failed."""
    pairs = [(row, _errors(row)) for row in found]
    pairs = [(row, errors) for row, errors in pairs if errors or row.get("error")]
    seen = [version for version in _COMPARED if any(version in errors for _, errors in pairs)]
    failed = any(row.get("error") for row, _ in pairs)
    lines = []
    for row, errors in pairs:
        cells = [of_workloads.link(row, _name(row)), page.Cell(str(row.get("dtype", "")))]
        cells += [page.Cell(units.power(errors[v]) if v in errors else units.DASH, errors.get(v)) for v in seen]
        cells += [page.Cell(str(row.get("error") or ""), kind="long wrong")] if failed else []
        lines.append((of_workloads.attributes(row, keys), cells))
    names = ["case", "dtype", *(rows.name_of(v) for v in seen), *(["what failed"] if failed else [])]
    return page.table(names, lines, "Errors against float64", left=2) if lines else ""
