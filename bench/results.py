"""Run files: pytest-benchmark's JSON, with our flat rows as `extra_info`, and a CSV line for each version of each row.

A row is a dict of one level (docs/performance.md lists its keys): of an operator (`op`), a workload (`workload`) or a
protocol (`protocol`). Tables, reports and projections work on rows; what reads pytest-benchmark's files
(`pytest-benchmark compare FILE`) reads these too, with the time of our version.
"""

import csv
import json
import math
import re
import statistics
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Row = dict[str, Any]

VERSION = "5.3.1"  # of pytest-benchmark, whose format this is
KINDS = ("workload", "protocol", "op")
PARAMS = ("case", "backend", "direction", "device", "dtype")
COLUMNS = ("datetime", "revision", "device_name", "threads", "torch", "kind", "name", "case", "direction", "device",
           "dtype", "version", "median_ms", "q20_ms", "q80_ms", "rounds", "noise", "peak_mb", "first_ms",
           "max_relative_error", "flops", "bytes", "roofline_percent", "quick", "reason")
# rows of operators name no version: their keys without one are the backend's
_OPERATOR = {"median_ms": "ms", "q20_ms": "q20_ms", "q80_ms": "q80_ms", "peak_mb": "peak_mb",
             "first_ms": "first_call_ms", "max_relative_error": "max_relative_error"}
_VERSION = {"median_ms": "ms", "q20_ms": "q20_ms", "q80_ms": "q80_ms", "peak_mb": "mb", "first_ms": "first_ms",
            "max_relative_error": "max_relative_error", "reason": "reason"}
_OURS = ("rounds", "noise", "flops", "bytes", "roofline_percent")  # of our version alone


def kind(row: Row) -> str:
    """"workload", "protocol" or "op"."""
    return next((k for k in KINDS if k in row), "op")


def time_key(row: Row) -> str:
    """The key of the time of our version, ms."""
    return "ms" if kind(row) == "op" else "fast_ms"


def label(row: Row) -> str:
    """What was timed, in words: operator, workload or protocol, case, backend and direction."""
    return " ".join(str(row[k]) for k in (kind(row), "case", "backend", "direction") if row.get(k) is not None)


def load(path: str | Path) -> list[Row]:
    """The rows of a run file, of a file of `pytest bench/bench_operators.py`, or of a JSON list of rows.

    Raises:
        ValueError: the file is not there or is none of these.
    """
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"results: {path} must be a JSON file of benchmarks, got {error}") from None
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        return found
    if not isinstance(found, dict) or not isinstance(found.get("benchmarks"), list):
        raise ValueError(f"results: {path} must hold `benchmarks` or a list of rows, got "
                         f"{type(found).__name__}; write it with python -m bench --json FILE")
    return [_row(benchmark) for benchmark in found["benchmarks"]]


def _row(benchmark: dict[str, Any]) -> Row:
    row, stats = dict(benchmark["extra_info"]), benchmark.get("stats") or {}
    if kind(row) == "op" and "ms" not in row and stats.get("median"):
        row["ms"] = 1e3 * stats["median"]
    if stats.get("data"):
        row["times_ms"] = [1e3 * s for s in stats["data"]]
    return row


def write(path: str | Path, rows: list[Row], when: str | None = None, more: dict[str, Any] | None = None) -> None:
    """Writes a run file as a whole, so that a reader never sees half of it.

    Args:
        path: of the file; its folder must exist.
        rows: flat rows; `times_ms`, the single times of our version, becomes pytest-benchmark's `stats.data` (s).
        when: ISO time of the run; default: that of the first row that has one, else now.
        more: what else the file says about the run, beside its benchmarks.
    """
    path = Path(path)
    when = when or next((r["datetime"] for r in rows if r.get("datetime")), now())
    run = {"machine_info": _machine(rows), "commit_info": _commit(rows), "benchmarks": [_benchmark(r) for r in rows],
           "datetime": when, "version": VERSION} | (more or {})
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(_finite(run), indent=1, allow_nan=False) + "\n")
    part.replace(path)


def now() -> str:
    """This second, UTC."""
    return datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")


def _first(rows: Iterable[Row], key: str) -> Any:
    return next((row[key] for row in rows if row.get(key) is not None), None)


def _machine(rows: list[Row]) -> dict[str, Any]:
    names = ("platform", "python", "device_name", "cores", "threads", "cpu_capability", "torch", "cuda", "triton",
             "e3nn", "ace_fast")
    found = {name: _first(rows, name) for name in names}
    return found | {"python_version": found["python"], "cpu": {"brand_raw": found["device_name"]}}


def _commit(rows: list[Row]) -> dict[str, Any]:
    revision = _first(rows, "revision")
    return {"id": revision and revision.removesuffix("+"), "dirty": bool(revision and revision.endswith("+")),
            "project": "ace_fast"}


def _benchmark(row: Row) -> dict[str, Any]:
    params = {k: row[k] for k in PARAMS if row.get(k) is not None}
    name = label(row)
    rest = " ".join(str(params[k]) for k in ("device", "dtype") if k in params)
    return {"group": f"{row.get(kind(row))} {row.get('case')}", "name": name, "fullname": f"{name} {rest}",
            "params": params, "param": rest, "extra_info": {k: v for k, v in row.items() if k != "times_ms"},
            "options": {}, "stats": stats(row)}


def stats(row: Row) -> dict[str, Any]:
    """pytest-benchmark's statistics of our version's times, seconds; what the row does not know is 0.

    A row without a time (wrong, refused, skipped) has 0 rounds.
    """
    median = (row.get(time_key(row)) or 0.0) / 1e3
    data = sorted(ms / 1e3 for ms in row.get("times_ms") or ([1e3 * median] if median else []))
    if not data:
        return dict.fromkeys(("min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "ops", "total", "rounds"),
                             0) | {"outliers": "0;0", "iterations": 1, "data": []}
    q1, _, q3 = statistics.quantiles(data, n=4, method="inclusive") if len(data) > 1 else data * 3
    mean, deviation = statistics.mean(data), statistics.stdev(data) if len(data) > 1 else 0.0
    far = sum(abs(x - mean) > deviation for x in data)
    beyond = sum(x < q1 - 1.5 * (q3 - q1) or x > q3 + 1.5 * (q3 - q1) for x in data)
    return {"min": data[0], "max": data[-1], "mean": mean, "stddev": deviation, "median": statistics.median(data),
            "iqr": q3 - q1, "q1": q1, "q3": q3, "outliers": f"{far};{beyond}", "ops": 1 / mean, "total": sum(data),
            "rounds": row.get("rounds") or len(data), "iterations": 1,
            "data": [ms / 1e3 for ms in row.get("times_ms") or ()]}


def _finite(x: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def versions(row: Row) -> list[str]:
    """The versions of a workload's or a protocol's row, timed or with a reason why not, in the order of its keys."""
    quantiles = ("_q20_ms", "_q80_ms", "_first_ms")
    timed = [k.removesuffix("_ms") for k in row if k.endswith("_ms") and not k.endswith((*quantiles, "prepare_ms"))]
    given = [k.removesuffix("_reason") for k in row if k.endswith("_reason")]
    return [v for v in dict.fromkeys((*timed, *given)) if v != "times"]


def lines(row: Row) -> list[dict[str, Any]]:
    """The CSV lines of a row, one for each version, with the keys COLUMNS."""
    shared = {k: row.get(k) for k in COLUMNS} | dict.fromkeys((*_OURS, "reason"))
    shared |= {"kind": kind(row), "name": row.get(kind(row))}
    ours = {k: row.get(k) for k in _OURS}
    wrong = row.get("error") or row.get("skipped")
    if shared["kind"] == "op":
        mine = {column: row.get(key) for column, key in _OPERATOR.items()}
        plain = {"version": "reference", "median_ms": row.get("reference_ms"), "max_relative_error": None}
        found = [shared | ours | mine | {"version": row.get("backend"), "reason": wrong}]
        return found + ([shared | plain] if row.get("reference_ms") is not None else [])
    found = []
    for version in versions(row):
        mine = {column: row.get(f"{version}_{key}") for column, key in _VERSION.items()}
        line = shared | mine | {"version": version} | (ours if version == "fast" else {})
        found.append(line | ({"reason": wrong} if version == "fast" and wrong else {}))
    return found


def slug(row: Row) -> str:
    """The name of the row's device in file names: `intel-xeon-processor-2-threads`, `nvidia-h200`."""
    words = re.sub(r"\((r|tm|c)\)", " ", str(row.get("device_name") or "unknown").lower())
    name = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    return f"{name}-{row['threads']}-threads" if row.get("device") == "cpu" and row.get("threads") else name


def append(folder: str | Path, rows: list[Row]) -> list[Path]:
    """Appends the lines of `rows` to <device>.csv in `folder`, with a header where the file is new; returns the files.

    Raises:
        ValueError: the file there has other columns.
    """
    files: dict[Path, list[Row]] = {}
    for row in rows:
        files.setdefault(Path(folder) / f"{slug(row)}.csv", []).extend(lines(row))
    for file, found in files.items():
        new = not file.exists() or not file.stat().st_size
        if not new:
            with file.open(newline="") as old:
                header = next(csv.reader(old), [])
            if header != list(COLUMNS):
                raise ValueError(f"results: {file} must have the columns {', '.join(COLUMNS)}, got "
                                 f"{', '.join(header)}; move it away")
        with file.open("a", newline="") as out:
            writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(found)
    return list(files)
