"""What the terminal shows: tables of workloads and operators, and a line while something runs."""

import sys
from contextlib import AbstractContextManager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import products as of_products
from . import results
from .roofline import Roofline

# a pipe has no width of its own
_console = Console(width=None if sys.stdout.isatty() else 140)


def waiting(what: str) -> AbstractContextManager:
    """A spinner with the name of what is running."""
    return _console.status(what)


def heading(about: dict[str, Any]) -> None:
    """The line above the tables: where these numbers come from."""
    names = ("device_name", "threads", "torch", "triton", "e3nn", "revision")
    _console.print(", ".join(f"{n.removesuffix('_name')} {about[n]}" for n in names), highlight=False)


def number(x: float | None, digits: int = 3) -> str:
    """Three significant digits, or a dash."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if abs(x) >= 10**digits else f"{x:.{digits}g}"


def _asked(reason: str | None) -> bool:
    """Whether a reason is news: nobody has to be told of what was left out by an option."""
    return bool(reason) and not reason.startswith("not asked for")


def ratio(row: dict[str, Any]) -> str:
    """The row's speedup; what its noise does not tell from 1 is called neither faster nor slower."""
    speedup, noise = row.get("speedup"), row.get("noise")
    if speedup is None:
        return "-"
    return "within noise" if noise is not None and abs(speedup - 1) <= noise else f"{speedup:.2f}x"


def workloads(rows: list[dict[str, Any]]) -> None:
    """One line per case; reasons and errors below."""
    table = Table(title="Workloads", box=box.SIMPLE_HEAD)
    columns = ("case", "eager ms", "compiled ms", "fast ms", "20 to 80 %", "speedup", "noise", "eager MB", "fast MB")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    notes = []
    for row in rows:
        name = f"{row['workload']} {row['case']} ({row['device']}, {row['dtype']})"
        if row.get("error"):
            table.add_row(name, *["-"] * (len(columns) - 1), style="red")
            notes.append(f"{name}: {row['error']}")
            continue
        if _asked(row.get("compiled_reason")):
            notes.append(f"{name}: no compiled time: {row['compiled_reason']}")
        if "end_to_end_share" in row:
            notes.append(f"{name}: end to end {number(row['end_to_end_samples_per_s'])} samples/s, "
                         f"{100 * row['end_to_end_share']:.0f} % of the step's {number(row['samples_per_s'])}")
        table.add_row(
            name, *(number(row[f"{v}_ms"]) for v in ("eager", "compiled", "fast")),
            f"{number(row['fast_q20_ms'])} to {number(row['fast_q80_ms'])}", ratio(row),
            f"{100 * row['noise']:.1f} %", number(row["eager_mb"]), number(row["fast_mb"]),
        )
    _show(table, notes)


def operators(rows: list[dict[str, Any]], roof: Roofline, missing: dict[str, str] | None = None) -> None:
    """One line per operator, case, backend and direction; `missing`: backend -> why it is not here."""
    table = Table(title=f"Operators ({roof.dtype}; copy {roof.copy_gbs:.0f} GB/s, "
                        f"matrix product {roof.matmul_gflops:.0f} GFLOP/s)", box=box.SIMPLE_HEAD)
    columns = ("case", "ms", "torch ms", "speedup", "noise", "GFLOP/s", "GB/s", "roofline", "peak MB")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    notes = [f"backend {name} is not available: {reason}" for name, reason in (missing or {}).items()]
    for row in rows:
        both = row["direction"] != "forward"
        name = f"{row['op']} {row['case']} {row['backend']}{' +backward' if both else ''}"
        if row["ms"] is None:
            table.add_row(name, *["-"] * (len(columns) - 1), style="red" if "error" in row else "yellow")
            notes.append(f"{name}: {row.get('error') or row['skipped']}")
            continue
        percent = row.get("roofline_percent")
        table.add_row(
            name, number(row["ms"]), number(row["reference_ms"]), ratio(row),
            f"{100 * row['noise']:.1f} %", number(row["gflops"]), number(row["gbs"]),
            "-" if percent is None else f"{percent:.0f} %", number(row["peak_mb"]),
        )
    _show(table, notes)


def protocols(rows: list[dict[str, Any]], roof: Roofline) -> None:
    """One line per case and direction, a column per version; reasons below, each once for a case."""
    table = Table(title=f"Protocols ({roof.dtype}; copy {roof.copy_gbs:.0f} GB/s, "
                        f"matrix product {roof.matmul_gflops:.0f} GFLOP/s)", box=box.SIMPLE_HEAD)
    columns = ("case", "e3nn ms", "compiled", "cueq", "oeq", "ace_fast", "speedup", "noise", "roofline", "e3nn MB",
               "MB")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    brief = {"forward+backward": "+backward", "double_backward": "+double"}
    notes: dict[str, None] = {}
    for row in rows:
        case = f"{row['protocol']} {row['case']}"
        name = f"{case} {brief.get(row['direction'], '')}"
        shown = ("eager", "compiled", "cuequivariance", "openequivariance", "fast")
        times = [number(row.get(f"{v}_ms")) + ("*" if row.get(f"{v}_loose") else "") for v in shown]
        percent, noise = row.get("roofline_percent"), row.get("noise")
        table.add_row(
            name, *times, ratio(row),
            "-" if noise is None else f"{100 * noise:.1f} %", "-" if percent is None else f"{percent:.0f} %",
            number(row.get("eager_mb")), number(row.get("fast_mb")), style="red" if row.get("error") else None,
        )
        if row.get("error"):
            notes[f"{name}: {row['error']}"] = None
        reasons = {k.removesuffix("_reason"): v for k, v in row.items() if k.endswith("_reason") and _asked(v)}
        notes |= dict.fromkeys(f"{case}: no {v} time: {why}" for v, why in reasons.items())
        notes |= dict.fromkeys(f"{name}: * {k.removesuffix('_loose')} is less exact: {v}" for k, v in row.items()
                               if k.endswith("_loose"))
    _show(table, list(notes))


def products(rows: list[dict[str, Any]]) -> None:
    """One line per version of each case, fastest first; reasons and errors below."""
    table = Table(title="Products of irreps, forward and backward", box=box.SIMPLE_HEAD)
    columns = ("case", "product", "ms", "MB", "over ours", "paths", "maps", "equivariance")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i > 1 else "left", no_wrap=True)
    notes = []
    for row in rows:
        for line in of_products.shown(row, number):
            table.add_row(*line)
        case = of_products.name(row)
        notes += [f"{case}: {row['error']}"] if row.get("error") else []
        reasons = {k.removesuffix("_reason"): v for k, v in row.items() if k.endswith("_reason")}
        notes += [f"{case}: no {version}: {why}" for version, why in reasons.items()]
    _show(table, notes)


def compared(rows: list[dict[str, Any]], revision: str) -> None:
    """One line per case of --compare: times here and at `revision`, their ratio, and what it is called."""
    table = Table(title=f"Compared with {revision}", box=box.SIMPLE_HEAD)
    columns = ("case", "ms there", "ms here", "here / there", "noise", "sets", "verdict", "MB there", "MB here")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    notes = []
    for row in rows:
        name, verdict = results.label(row), row.get("verdict")
        if row.get("error") or row.get("skipped"):
            table.add_row(name, *["-"] * (len(columns) - 1), style="red" if row.get("error") else "yellow")
            notes.append(f"{name}: {row.get('error') or row['skipped']}")
            continue
        table.add_row(
            name, number(row["baseline_ms"]), number(row[results.time_key(row)]), f"{row['ratio']:.3f}",
            f"{100 * row['noise']:.1f} %", str(row["sets"]), verdict, number(row["baseline_mb"]),
            number(row["here_mb"]), style={"slower": "red", "faster": "green"}.get(verdict),
        )
    _show(table, notes)


def scaling(rows: list[dict[str, Any]]) -> None:
    """One line per curve: its largest size, and what it grows by beside what it should."""
    table = Table(title="Scaling: exponents over the largest sizes, and what the algorithm says", box=box.SIMPLE_HEAD)
    columns = ("operator", "along", "up to", "ms", "MB", "time", "algorithm", "memory", "tensors")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i > 1 else "left", no_wrap=not i)
    notes, curves = [], {}
    for row in rows:  # the largest size comes last
        curves[row["op"], row["axis"], row["direction"], row["backend"]] = row
    for row in curves.values():
        name = row["op"] + (" +backward" if row["direction"] != "forward" else "")
        if row.get("error"):
            notes.append(f"{name} along {row['axis']}: {row['error']}")
        time_ = "-" if row["ms"] is None else f"{row['exponent']:.2f} ± {row['exponent_error']:.2f}"
        table.add_row(name, row["axis"], f"{row['size']:,}", number(row["ms"]), number(row.get("peak_mb")), time_,
                      *(number(row.get(k)) for k in ("expected_exponent", "memory_exponent",
                                                     "expected_memory_exponent")),
                      style="red" if row.get("error") else None)
    _show(table, notes)


def machine_rates(rows: list[dict[str, Any]]) -> None:
    """The rates of bench/roofline.py, a line per dtype."""
    table = Table(title="This machine", box=box.SIMPLE_HEAD)
    for i, column in enumerate(("dtype", "copy GB/s", "multiply-add GFLOP/s", "product GFLOP/s")):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(row["case"], *(number(row[k]) for k in ("copy_gbs", "fma_gflops", "matmul_gflops")))
    _show(table, [])


def _show(table: Table, notes: list[str]) -> None:
    if table.row_count:
        _console.print(table)
    for note in notes:
        harmless = any(words in note for words in ("no compiled time", "not run on", "is less exact", "not installed",
                                                   "takes CUDA tensors", "end to end", "is not available"))
        _console.print(note, style="yellow" if harmless else "red", highlight=False, markup=False)
