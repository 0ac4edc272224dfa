"""Workloads on the page: training steps and layers, eager / compiled / peers / ours, memory beside time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape

from . import page, rows, svg, units
from .chart import Bar, Bars, Lines, Series
from .deciders import is_comparison
from .rows import Row

# name -> (title, what it is, what its samples are)
TITLES = {
    "nbody_segnn": ("SEGNN, N-body", "one training step of ACE-SEGNN on charged particles", "graphs"),
    "qm9_segnn": ("SEGNN, QM9", "one training step of ACE-SEGNN on molecules", "molecules"),
    "qm9_schnet": ("SchNet, QM9", "one training step of ACE-SchNet on molecules", "molecules"),
    "md17_schnet": ("SchNet, rMD17", "one training step of ACE-SchNet on energies and forces", "molecules"),
    "mocap_egno": ("EGNO, motion capture", "one training step of ACE-EGNO on human motion", "samples"),
    "modelnet_vndgcnn": ("VN-DGCNN, point clouds", "one training step of ACE-VN-DGCNN", "clouds"),
    "vn_edge_conv": ("Edge convolution", "one vector-neuron layer", "clouds"),
    "vn_linear": ("Vector-neuron linear", "one layer at the nodes", "clouds"),
    "knn": ("Nearest neighbours", "k nearest neighbours in feature space", "clouds"),
}
LAYERS = ("vn_edge_conv", "vn_linear", "knn")
_SIZES = ("graphs", "molecules", "samples", "clouds", "points", "nodes", "edges")


def title(row: Row) -> str:
    return TITLES.get(row["workload"], (row["workload"], "", ""))[0] + rows.dtype_suffix(row)


def of_kind(found: Sequence[Row], layers: bool) -> list[Row]:
    """The rows of training steps, or of layers, in the order of TITLES."""
    chosen = [row for row in found if "workload" in row and not row.get("suite") and not is_comparison(row)]
    chosen = [row for row in chosen if (row["workload"] in LAYERS) == layers]
    order = {name: number for number, name in enumerate(TITLES)}
    return sorted(chosen, key=lambda row: order.get(row["workload"], len(order)))


def steps(found: Sequence[Row]) -> list[Row]:
    """The rows of training steps."""
    return of_kind(found, layers=False)


def best(row: Row) -> str:
    """The fastest of our versions that was timed: "graph" or "fast"."""
    timed = [v for v in ("fast", "graph") if row.get(f"{v}_ms")]
    return min(timed, key=lambda v: row[f"{v}_ms"], default="fast")


def speedup(row: Row, over: str, of: str = "fast") -> float | None:
    """How many times faster `of` is than `over`."""
    if not row.get(f"{over}_ms") or not row.get(f"{of}_ms"):
        return None
    return row[f"{over}_ms"] / row[f"{of}_ms"]


def verdict(row: Row) -> str:
    """One sentence: how much faster than what, or that it is within the noise."""
    if row.get("error"):
        return f"Not timed: {row['error']}"
    ours, noise = best(row), row.get("noise")
    found = []
    for version in rows.versions(row):
        ratio = speedup(row, version, ours)
        if version in ("fast", "graph") or ratio is None:
            continue
        name = rows.name_of(version)
        if units.within_noise(ratio, noise):
            found.append(f"within noise of {name}")
        elif ratio > 1:
            found.append(f"{units.ratio(ratio)} faster than {name}")
        else:
            found.append(f"{units.ratio(1 / ratio)} slower than {name}")
    return ", ".join(found)


def time_bars(row: Row) -> Bars:
    """The times of all versions, ours last; a version without one with its reason."""
    return Bars("Time", [_bar(row, version, "ms") for version in rows.versions(row)])


def memory_bars(row: Row) -> Bars:
    """The peak memory of all versions that it was measured of."""
    names = [version for version in rows.versions(row) if row.get(f"{version}_mb") is not None]
    return Bars("Peak memory", [_bar(row, version, "mb") for version in names])


def _bar(row: Row, version: str, what: str) -> Bar:
    value = row.get(f"{version}_{what}")
    name, colour, href = rows.name_of(version), rows.colour_of(version), f"#{rows.anchor(row)}"
    if value is None:
        reason = str(row.get(f"{version}_reason") or row.get("error") or "not measured")
        state = "error" if row.get("error") and version == "fast" or reason.startswith("wrong") else "missing"
        return Bar(name, None, units.DASH, colour, note=_plain(reason), state=state, href=href)
    if what == "mb":
        return Bar(name, value, units.memory(value), colour, state=_state(row), href=href)
    low, high = row.get(f"{version}_q20_ms"), row.get(f"{version}_q80_ms")
    note = "" if low is None or high is None else f"20 to 80 % of steps: {units.time(low)} to {units.time(high)}"
    if loose := row.get(f"{version}_loose"):
        note = f"less exact: {loose}; {note}"
    return Bar(name, value, units.time(value), colour, low, high, note, _state(row), href)


def _state(row: Row) -> str:
    return "projected" if row.get("projected") else "ok"


def _plain(reason: str) -> str:
    """A reason without the name of the operator and the quotes of a Python message."""
    return re.sub(r"^tensor_product: backend '(\w+)' is not available: ", "", reason)


def card(row: Row, key: str) -> str:
    """One case: the verdict, time and memory, and why versions are missing."""
    failed = " failed" if row.get("error") else ""
    marked = ' <span class="badge">projection</span>' if row.get("projected") else ""
    times, memories = time_bars(row), memory_bars(row)
    memory = f"<div><h4>Peak memory</h4>{svg.draw(memories)}</div>" if memories.bars else ""
    reasons = "".join(f"<li>{escape(bar.label)}: {escape(bar.note)}</li>" for bar in times.bars
                      if bar.value is None and len(bar.note) > svg.FITS)  # the others stand in the chart
    noise = f"Noise {units.percent(row['noise'])} (the same version timed twice)" if "noise" in row else ""
    below = " · ".join(filter(None, (noise, throughput(row))))
    return (
        f'<figure class="card{failed}" data-device="{key}"><figcaption><h3>{escape(title(row))}, '
        f"<code>{escape(row['case'])}</code>{marked}</h3>"
        f'<p class="verdict{" wrong" if failed else ""}">{escape(verdict(row))}</p><small>{escape(sizes(row))}</small>'
        f'</figcaption>\n<div class="pair"><div><h4>Time</h4>{svg.draw(times)}</div>{memory}</div>\n'
        f"{f'<ul class=why>{reasons}</ul>' if reasons else ''}<small>{escape(below)}</small></figure>"
    )


def sizes(row: Row) -> str:
    known = [name for name in _SIZES if isinstance(row.get(name), int)]
    found = [f"{row[name]:,} {name}" for name in known if name != "samples" or "molecules" not in known]
    return ", ".join([*found, *(str(row[name]) for name in ("source",) if row.get(name))])


def samples(row: Row) -> tuple[int, str] | None:
    """How many graphs, molecules or clouds one step takes."""
    own = TITLES.get(row["workload"], ("", "", "samples"))[2]
    names = dict.fromkeys((own, "graphs", "molecules", "samples", "clouds"))
    return next(((row[name], name) for name in names if isinstance(row.get(name), int)), None)


def throughput(row: Row) -> str:
    """Samples a second of our fastest version."""
    found, ms = samples(row), row.get(f"{best(row)}_ms")
    return f"{units.count(1e3 * found[0] / ms)} {found[1]} a second" if found and ms else ""


def tiles(found: Sequence[Row], key: str) -> str:
    """The first case of every training step as a number."""
    first: dict[str, Row] = {}
    for row in steps(found):
        if not row.get("projected"):
            first.setdefault(title(row), row)
    items = [_tile(row) for row in first.values()]
    return f'<ul class="tiles" data-device="{key}">{"".join(items)}</ul>' if items else ""


def _tile(row: Row) -> str:
    ours = best(row)
    ratio = speedup(row, "eager", ours)
    if row.get("error") or ratio is None:
        return page.tile(title(row), "not timed", [str(row.get("error") or "no eager time")])
    lines = [f"{units.time(row['eager_ms'])} to {units.time(row[f'{ours}_ms'])}" + " (CUDA graph)" * (ours == "graph")]
    if row.get("eager_mb") and row.get("fast_mb"):
        lines.append(f"{units.memory(row['eager_mb'])} to {units.memory(row['fast_mb'])}")
    return page.tile(title(row), units.compared(ratio, row.get("noise")), lines)


def table(found: Sequence[Row], keys: dict[str, str], label: str) -> str:
    """Rows of workloads with their numbers."""
    if not found:
        return ""
    headings = ("case", "device", "eager", "torch.compile", "ace_fast", "over eager", "over compile", "noise",
                "memory, eager", "memory, ace_fast", "revision")
    return page.table(headings, [_line(row, keys) for row in found], label, left=2)


def _line(row: Row, keys: dict[str, str]) -> tuple[str, list[page.Cell]]:
    where = rows.device(row)
    cells = [link(row, f"{row['workload']} {row['case']}{rows.dtype_suffix(row)}"), page.Cell(where)]
    cells += [page.Cell(units.time(row.get(f"{v}_ms")), row.get(f"{v}_ms")) for v in ("eager", "compiled", "fast")]
    for over in ("eager", "compiled"):
        ratio = speedup(row, over)
        cells.append(page.Cell(units.compared(ratio, row.get("noise")), ratio))
    cells.append(page.Cell(units.percent(row.get("noise")), row.get("noise")))
    cells += [page.Cell(units.memory(row.get(f"{v}_mb")), row.get(f"{v}_mb")) for v in ("eager", "fast")]
    cells.append(page.Cell(str(row.get("revision") or units.DASH)))
    return attributes(row, keys), cells


def link(row: Row, words: str) -> page.Cell:
    """The first cell of a row, which leads to its command."""
    marked = ' <span class="badge">projection</span>' if row.get("projected") else ""
    return page.Cell(f'<a href="#{rows.anchor(row)}">{escape(words)}</a>{marked}', html=True)


def attributes(row: Row, keys: dict[str, str]) -> str:
    failed = ' class="failed"' if row.get("error") else ""
    return f' data-device="{keys[rows.device(row)]}"{failed}'


def scaling(found: Sequence[Row], key: str) -> list[str]:
    """Throughput against the batch, where a workload was timed at several."""
    groups: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for row in steps(found):
        match = re.fullmatch(r"batch(\d+)(.*)", row["case"])
        if match and not row.get("error") and row.get("dtype", "float32") == "float32":
            groups.setdefault((title(row), match[2].replace("_", " ")), []).append((int(match[1]), row))
    charts = []
    for (name, variant), members in groups.items():
        members.sort(key=lambda pair: pair[0])
        if len({batch for batch, _ in members}) > 1:
            unit = samples(members[0][1])
            charts += [_against_batch(f"{name}{variant}", f"{unit[1] if unit else 'samples'} a second", members, _rate),
                       _against_batch(f"{name}{variant}, memory", "peak memory (MiB)", members, _memory)]
    return [page.card(chart, key) for chart in charts if any(len(s.points) > 1 for s in chart.series)]


def _rate(row: Row, version: str, batch: int) -> float | None:
    return 1e3 * batch / row[f"{version}_ms"] if row.get(f"{version}_ms") else None


def _memory(row: Row, version: str, batch: int) -> float | None:
    return row.get(f"{version}_mb")


def _against_batch(title: str, y: str, members: Sequence[tuple[int, Row]],
                   value: Callable[[Row, str, int], float | None]) -> Lines:
    series = []
    for version in ("eager", "compiled", "fast", "graph"):
        found = [(float(batch), value(row, version, batch), f"#{rows.anchor(row)}") for batch, row in members]
        found = [point for point in found if point[1]]
        if found:
            series.append(Series(rows.name_of(version), [point[:2] for point in found], rows.colour_of(version),
                                 marks=True, links=[href for *_, href in found]))
    return Lines(title, "batch", y, series, log_x=True, log_y=True)
