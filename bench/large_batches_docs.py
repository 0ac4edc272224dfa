"""The table and the figure of bench/large_batches.py for docs/reproduction.md, functions of its rows alone."""

from collections.abc import Iterator, Sequence

from ace_fast.report import units
from ace_fast.report.chart import Lines, Series

from .large_batches import VERSIONS, WORKLOADS, total_gb
from .results import Row

TITLE = "Large batches: a training step, eager beside ours"
_NAMES = {"fast": "ours", "eager": "eager"}


def block(rows: Sequence[Row]) -> list[str]:
    """A line for each workload and batch, and below them the largest batches."""
    lines = ["| workload | batch | ours, samples/s | eager, samples/s | ours / eager | ours, GB | eager, GB |",
             "|---|---|---|---|---|---|---|"]
    for name, batch, made in _batches(rows):
        rates = [_rate(made.get(version)) for version in VERSIONS]
        ratio = units.ratio(rates[0] / rates[1]) if all(rates) else units.DASH
        memory = [units.digits(total_gb(made[v])) if v in made else units.DASH for v in VERSIONS]
        shown = [units.digits(rate) if rate else units.DASH for rate in rates]
        lines.append(f"| {name} | {batch} | " + " | ".join([*shown, ratio, *memory]) + " |")
    found = [row for row in rows if "limit_gb" in row]
    lines += ["", f"| workload | version | largest batch in {found[0]['limit_gb']:g} GB, by the line | measured, GB |",
              "|---|---|---|---|"] if found else []
    for row in found:
        name, measured = row["workload"], units.digits(total_gb(row)) if "peak_mb" in row else "not run"
        lines.append(f"| {name} | {_NAMES[row['version']]} | {row['batch']:,} {WORKLOADS[name].samples} | {measured} |")
    made = [row for row in rows if "device_name" in row]
    machines = ", ".join(dict.fromkeys(f"{row['threads']} thread of {row['device_name']}, torch {row['torch']}"
                                       for row in made))
    revisions = ", ".join(dict.fromkeys(row["revision"] for row in made))
    return [*lines, "", f"{machines}, revisions {revisions}: `python -m bench.large_batches`."]


def charts(rows: Sequence[Row]) -> list[Lines]:
    """Rate and memory against the batch."""
    return [Lines("Samples a second of processor time", "batch", "samples/s", _series(rows, _rate), log_x=True,
                  log_y=True),
            Lines("Memory of batch and step", "batch", "GB", _series(rows, total_gb), log_x=True, log_y=True)]


def _series(rows: Sequence[Row], value) -> list[Series]:
    """A curve for each workload and version."""
    found, colours = [], iter(("c0", "c1", "c2", "c3"))
    for workload in dict.fromkeys(row["workload"] for row in rows):
        for version in VERSIONS:
            points = [(float(batch), value(made[version])) for name, batch, made in _batches(rows)
                      if name == workload and version in made]
            found.append(Series(f"{workload} {_NAMES[version]}", points, next(colours), dash=version == "eager",
                                marks=True))
    return found


def _batches(rows: Sequence[Row]) -> Iterator[tuple[str, int, dict[str, Row]]]:
    """Workload, batch, and the rows of its versions, in order."""
    measured = [row for row in rows if "limit_gb" not in row]
    for name, batch in dict.fromkeys((row["workload"], row["batch"]) for row in measured):
        yield name, batch, {row["version"]: row for row in measured if (row["workload"], row["batch"]) == (name, batch)}


def _rate(row: Row | None) -> float | None:
    return row["batch"] / row["cpu_s"] if row else None
