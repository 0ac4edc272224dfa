"""Result files as rows that a page can use: read, made unique, given a device and a command.

The rows are bench/results.py's: one dict for each operator, workload or protocol measured on one device.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# in the order in which they are shown: key of a row -> (name, colour)
VERSIONS = {
    "eager": ("eager", "eager"), "compiled": ("torch.compile", "compiled"),
    "cuequivariance": ("cuequivariance", "cuequivariance"),
    "openequivariance": ("openequivariance", "openequivariance"), "torch_scatter": ("torch-scatter", "other"),
    "fast": ("ace_fast", "ours"), "graph": ("ace_fast in a CUDA graph", "graph"),
}
# versions of ours that explain others; tables show them, bars do not
EXTRAS = ("fast_plain_adam", "strict", "branches_off", "end_to_end", "prepare")
RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"  # of a checkout


def load(paths: Iterable[Path]) -> list[Row]:
    """The rows of JSON files and of folders of them, in order; the last of several measurements of one thing stays.

    Raises:
        ValueError: a path is not there, a file holds no results, or there is no row in any of them.
    """
    from ..bench import results

    paths, found = list(paths), []
    for path in paths:
        if not path.exists():
            raise ValueError(f"report: results must be files or folders that exist, got {path}")
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"report: {path} must be a run or hold .json files of results, got a folder without; "
                             "write one with python -m bench --json FILE")
        for file in files:
            found += [_checked(row, file, results.kind(row)) for row in results.load(file)]
    if not found:
        places = ", ".join(map(str, paths))
        raise ValueError(f"report: results must hold at least one row, got none in {places}; "
                         "measure some with python -m bench --json FILE")
    return _latest(found)


def committed() -> list[Path]:
    """The folder of committed results of a checkout.

    Raises:
        ValueError: this is an installation, which has none.
    """
    if not RESULTS.is_dir():
        raise ValueError("report: results must be named where there is no checkout, got none; "
                         "measure some with ace-fast bench --json FILE")
    return [RESULTS]


def _checked(row: Row, file: Path, kind: str) -> Row:
    """The row with numbers that are none taken out: JSON of other tools may hold NaN, or text."""
    missing = [key for key in (kind, "case", "device") if not isinstance(row.get(key), str)]
    if missing:
        raise ValueError(f"report: {file} must hold rows with {kind}, case and device as text, got one without "
                         f"{', '.join(missing)}; write it with python -m bench --json FILE")
    return {key: value for key, value in row.items() if _sound(key, value)} | {"file": file.name}


def _sound(key: str, value: object) -> bool:
    measured = key in ("ms", "speedup", "noise", "flops", "bytes") or key.endswith(("_ms", "_mb", "_gflops", "_error"))
    if not measured or value is None:
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and (value >= 0 if key.endswith(("_ms", "_mb")) or key == "ms" else True)


_THING = ("suite", "workload", "protocol", "op", "axis", "size", "case", "backend", "direction", "dtype")


def identity(row: Row) -> tuple[object, ...]:
    """What was measured and where: two rows with the same identity are measurements of the same thing."""
    return (device(row), *(row.get(name) for name in _THING))


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Every thing once, as measured last (by `datetime`, else by place); projections of what was measured go."""
    ordered = sorted(rows, key=lambda row: str(row.get("datetime") or ""))
    unique = {identity(row): row for row in ordered}
    measured = {key for key, row in unique.items() if not row.get("projected")}
    return [row for row in rows if unique[identity(row)] is row
            and not (row.get("projected") and identity(row | {"projected": False}) in measured)]


def _plain_name(row: Row) -> str:
    return re.sub(r"\s*\((R|TM|C|projection)\)", "", str(row.get("device_name") or row["device"]), flags=re.IGNORECASE)


def device(row: Row) -> str:
    """The device in words: what the selector offers."""
    name = _plain_name(row)
    if row.get("projected"):
        return f"{name} (projection)"
    return f"{name}, {row['threads']} threads" if row["device"] == "cpu" and row.get("threads") else name


def devices(rows: Sequence[Row]) -> dict[str, str]:
    """Name -> key of the selector: the device with most workloads first, projections last."""
    seen: dict[str, list[Row]] = {}
    for row in rows:
        seen.setdefault(device(row), []).append(row)

    def order(name: str) -> tuple[object, ...]:
        members = seen[name]
        workloads = {row["workload"] for row in members if "workload" in row}
        return any(row.get("projected") for row in members), -len(workloads), -len(members), name

    return {name: slug(name) for name in sorted(seen, key=order)}


def dtype_suffix(row: Row) -> str:
    """", float64" where the dtype is not the usual one."""
    return "" if row.get("dtype", "float32") == "float32" else f", {row['dtype']}"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def versions(row: Row) -> list[str]:
    """The versions side by side in a row, known ones in the order of VERSIONS, without the extras."""
    from ..bench import results

    found = [v for v in results.versions(row) if v not in EXTRAS]
    return sorted(found, key=lambda v: list(VERSIONS).index(v) if v in VERSIONS else len(VERSIONS))


def name_of(version: str) -> str:
    return VERSIONS[version][0] if version in VERSIONS else version.replace("_", " ")


def colour_of(version: str) -> str:
    return VERSIONS[version][1] if version in VERSIONS else "other"


def command(row: Row) -> str:
    """The command that measures this row again; for a projection, the one that computes it."""
    if row.get("command"):
        return str(row["command"])
    if row.get("projected"):
        return "python -m bench.projection"
    parts = ["python", "-m", "bench"]
    if row.get("suite") == "scaling":
        parts += ["--scaling", row["axis"], "--op", row["op"], "--backend", row.get("backend", "reference")]
    elif row.get("suite") == "roofline":
        parts += ["--roofline"]
    elif "workload" in row:
        parts += ["--workload", row["workload"], "--case", row["case"]]
    elif "protocol" in row:
        parts += ["--protocol", row["protocol"], "--case", row["case"], "--direction", row.get("direction", "forward")]
    else:
        parts += ["--op", row["op"], "--case", row["case"], "--backend", row.get("backend", "reference"), "--direction",
                  row.get("direction", "forward")]
    parts += ["--device", row["device"]]
    named = row.get("dtype", "float32") != "float32" and row.get("suite") != "roofline"  # which measures every dtype
    parts += ["--dtype", row["dtype"]] if named else []
    parts += ["--no-compile"] if "--no-compile" in str(row.get("compiled_reason")) else []
    return shlex.join(map(str, parts))


def anchor(row: Row) -> str:
    """The id of the row's command on the page."""
    said = f"{device(row)} {command(row)}"
    return f"run-{hashlib.sha1(said.encode()).hexdigest()[:10]}"
