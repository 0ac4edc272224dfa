"""The table and the figure of bench/large_batches.py for docs/reproduction.md, functions of its rows alone."""

from collections.abc import Iterator, Sequence

from ace_fast.report import units
from ace_fast.report.chart import Lines, Series

from .large_batches import VERSIONS, WORKLOADS, total_gb, was_run
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
        memory = [_gb(made.get(version), "needs {}") for version in VERSIONS]
        lines.append(f"| {name} | {batch} | " + " | ".join([*map(_shown, rates), ratio, *memory]) + " |")
    found = [row for row in rows if "limit_gb" in row]
    lines += ["", f"| workload | version | largest batch in {found[0]['limit_gb']:g} GB, by the line | GB, by the line "
              "| GB, measured | samples/s |", "|---|---|---|---|---|---|"] if found else []
    for row in found:
        cells = [row["workload"], _NAMES[row["version"]], f"{row['batch']:,} {WORKLOADS[row['workload']].samples}",
                 units.digits(row["predicted_gb"]), _gb(row, "not run"), _shown(_rate(row))]
        lines.append("| " + " | ".join(cells) + " |")
    made = [row for row in rows if was_run(row)]
    machines = ", ".join(dict.fromkeys(f"{row['threads']} thread of {row['device_name']}, torch {row['torch']}"
                                       for row in made))
    revisions = ", ".join(dict.fromkeys(row["revision"] for row in made))
    return [*lines, "", f"{machines}, revision {revisions}: `python -m bench.large_batches`."]


def _gb(row: Row | None, else_: str) -> str:
    """What a step took, or what is said of one that was not run."""
    if row is None:
        return units.DASH
    return units.digits(total_gb(row)) if was_run(row) else else_.format(units.digits(row["predicted_gb"]))


def _shown(rate: float | None) -> str:
    return units.digits(rate) if rate else units.DASH


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
                      if name == workload and version in made and was_run(made[version])]
            found.append(Series(f"{workload} {_NAMES[version]}", points, next(colours), dash=version == "eager",
                                marks=True))
    return found


def _batches(rows: Sequence[Row]) -> Iterator[tuple[str, int, dict[str, Row]]]:
    """Workload, batch, and the rows of its versions, in order."""
    measured = [row for row in rows if "limit_gb" not in row]
    for name, batch in dict.fromkeys((row["workload"], row["batch"]) for row in measured):
        yield name, batch, {row["version"]: row for row in measured if (row["workload"], row["batch"]) == (name, batch)}


def _rate(row: Row | None) -> float | None:
    return row["batch"] / row["cpu_s"] if row and row.get("cpu_s") else None
