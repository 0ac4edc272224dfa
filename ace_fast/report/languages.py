"""Which GPU language every fused operator runs in, beside what the other one takes."""

from __future__ import annotations

from collections.abc import Sequence

from .. import backend
from . import page, rows, units
from . import workloads as of_workloads
from .page import Cell
from .rows import Row

_NAMES = {"cuda": "CUDA", "triton": "Triton"}


def table(found: Sequence[Row], keys: dict[str, str]) -> str:
    """The first case of every operator, device and direction in both languages; what `backend="auto"` takes, and why.

    Times are measurements where the rows are, projections where they are marked.
    """
    groups: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in found:
        if row.get("backend") in _NAMES and row.get("device") == "cuda" and not row.get("suite") and row.get("ms"):
            groups.setdefault((rows.device(row), row["op"], row["direction"], row["case"]), {})[row["backend"]] = row
    written: dict[object, set[str]] = {}
    first: dict[tuple[object, ...], dict[str, Row]] = {}
    for (where, op, direction, _), pair in groups.items():
        written.setdefault(op, set()).update(pair)
        # a case in both languages says more than one in one of them
        if len(pair) > len(first.get((where, op, direction), ())):
            first[where, op, direction] = pair
    lines = [_line(pair, written[op], keys) for (_, op, _), pair in first.items()]
    headings = ("operator and case", "direction", "auto takes", "why", "CUDA", "Triton")
    return page.table(headings, lines, "GPU languages", left=4) if lines else ""


def _line(pair: dict[str, Row], written: set[str], keys: dict[str, str]) -> tuple[str, list[Cell]]:
    row = next(iter(pair.values()))
    taken = next(name for name in backend.ORDER["cuda"] if name in written)
    cells = [of_workloads.link(row, f"{row['op']} {row['case']}"), Cell(row["direction"]), Cell(_NAMES[taken]),
             Cell(_why(pair, taken, written))]
    for name in _NAMES:
        ms = pair[name]["ms"] if name in pair else None
        cells.append(Cell(units.DASH if ms is None else units.time(ms), ms))
    return of_workloads.attributes(row, keys), cells


def _why(pair: dict[str, Row], taken: str, written: set[str]) -> str:
    """How much faster the language that is taken is here."""
    if len(written) < 2:
        return f"written in {_NAMES[taken]} alone"
    if len(pair) < 2:
        return "not both measured here"
    other = next(name for name in pair if name != taken)
    ratio = pair[other]["ms"] / pair[taken]["ms"]
    noise = max(row.get("noise") or row.get("error_factor", 1.0) - 1.0 for row in pair.values())
    if units.within_noise(ratio, noise):
        return "within the projection's error" if pair[taken].get("projected") else "within noise"
    return f"{units.ratio(ratio)} faster" if ratio > 1 else f"{units.ratio(1 / ratio)} slower here"
