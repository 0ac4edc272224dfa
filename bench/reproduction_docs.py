"""Tables and figures of docs/reproduction.md, made from the committed rows: `ace-fast report --readme` writes them.

The table and the figure of an experiment are functions here, of its rows alone.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from ace_fast.data.qm9_targets import TARGETS
from ace_fast.report import marked, svg, units
from ace_fast.report.chart import Lines, Series

from . import large_batches_docs
from .experiments import EXPERIMENTS
from .reproduction import Row, load

BEGIN, END = "<!-- measured: {} -->", "<!-- end of measured -->"
_MODELS = {"strict": "branches off", "relaxed": "with branches"}
_NONE: Mapping[tuple[str, str], float] = {}
_COLOURS = ("c0", "c1", "c2", "c3", "c4")


def spread(values: Sequence[float | None], factor: float = 1.0, count: int = 3) -> str:
    """Mean ± standard deviation over seeds; the value alone where there is one."""
    known = [factor * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return units.DASH
    mean = units.digits(statistics.fmean(known), count)
    return f"{mean} ± {units.digits(statistics.stdev(known), 2)}" if len(known) > 1 else mean


def versions(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Version -> its rows, in the order of the registry."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["version"], []).append(row)
    return found


def modes(rows: Sequence[Row]) -> list[str]:
    return [mode for mode in _MODELS if all(mode in row for row in rows)]


def _gates(rows: Sequence[Row]) -> str:
    """How many gates of all seeds got which verdict, and the largest ratio; of a decider without verdicts the ratio."""
    if not rows[0]["gates"]:
        return units.DASH
    verdicts = [verdict for row in rows for verdict in row["gates"].get("verdicts", ())]
    counts = [f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts)]
    ratios = [ratio for row in rows for ratio in row["gates"].get("ratios", ()) if ratio is not None]
    return ", ".join([*counts, f"r at most {units.digits(max(ratios), 2) if ratios else units.DASH}"])


def rows_of(name: str, results: Path) -> list[Row]:
    """What an experiment shows: its rows, and for the sample efficiency those of nbody, which are of 3000 samples."""
    rows = load(name, results)
    if name != "samples" or not rows:
        return rows
    seeds = {row["seed"] for row in rows}
    shared = [row | {"version": f"{row['version']}-3000", "settings": row["settings"] | {"train_samples": 3000}}
              for row in load("nbody", results) if row["version"] in ("strict", "ace") and row["seed"] in seeds]
    return sorted([*rows, *shared], key=lambda row: row["settings"]["train_samples"])


def deciders(rows: Sequence[Row], measure: str, factor: float,
             published: Mapping[tuple[str, str], float] = _NONE) -> list[str]:
    """One line for each version and model: test error, equivariance error, gates, best epoch, processor time.

    Args:
        measure: heading of the test errors.
        factor: that they are shown times.
        published: what the paper has for a version and model, in the unit shown.
    """
    lines = [f"| version | model | {measure} | paper | over strict | in the paper | equivariance error | gates of all "
             "seeds at the end | best epochs | CPU, minutes a run |", "|" + "---|" * 10]
    base = [row["strict"]["test"] for row in rows if row["version"] == "strict"]
    for name, members in versions(rows).items():
        for mode in modes(members):
            found = [row[mode] for row in members]
            if mode == "relaxed" and all(row["relaxed"] == row["strict"] for row in members):
                continue  # gates that a timetable has closed
            paper, theirs = published.get((name, mode)), published.get(("strict", "strict"))
            ours = statistics.fmean(one["test"] for one in found) / statistics.fmean(base) if base else None
            first = mode == "strict"
            lines.append(" | ".join([
                f"| {name}", _MODELS[mode] if len(modes(members)) > 1 else "no branches",
                spread([one["test"] for one in found], factor), units.DASH if paper is None else f"{paper:g}",
                units.DASH if ours is None else f"{ours:.2f}",
                units.DASH if paper is None or not theirs else f"{paper / theirs:.2f}",
                units.power(statistics.fmean(one["equivariance"] for one in found)), _gates(members) if first else "",
                ", ".join(str(one["epoch"]) for one in found),
                spread([row["cpu_seconds"] for row in members], 1 / 60, 2) if first else ""]) + " |")
    return lines


def nbody(rows: Sequence[Row]) -> list[str]:
    return deciders(rows, "test MSE, 10⁻³", 1e3,
                    {("strict", "strict"): 5.6, ("ace", "strict"): 3.8, ("ace-quick", "strict"): 3.8,
                     ("schedule", "strict"): 4.9})


def samples(rows: Sequence[Row]) -> list[str]:
    """Test error of both models at every number of trajectories."""
    lines = ["| trajectories | epochs | strict, test MSE, 10⁻³ | ACE, branches off | ACE, with branches | ACE, "
             "branches off, over strict |", "|---|---|---|---|---|---|"]
    found = versions(rows)
    for count in dict.fromkeys(row["settings"]["train_samples"] for row in rows):
        strict, ace = found.get(f"strict-{count}"), found.get(f"ace-{count}")
        if strict and ace:
            columns = [[row["strict"]["test"] for row in strict], *([row[mode]["test"] for row in ace]
                                                                    for mode in _MODELS)]
            ratio = statistics.fmean(columns[1]) / statistics.fmean(columns[0])
            shown = " | ".join(spread(values, 1e3) for values in columns)
            lines.append(f"| {count} | {strict[0]['epochs']} | {shown} | {ratio:.2f} |")
    return lines


def mocap(rows: Sequence[Row]) -> list[str]:
    return deciders(rows, "test F-MSE, 10⁻²", 1e2, {
        ("strict", "strict"): 35.3, ("equality", "relaxed"): 32.6, ("resilient", "relaxed"): 23.8})


def _curves(rows: Sequence[Row], key: str) -> list[Series]:
    """The mean over seeds of a number of every evaluation; dashed where it is the model with its branches."""
    found = []
    for colour, (name, members) in zip(_COLOURS, versions(rows).items(), strict=False):
        for mode in ("",) if key == "ratio" else modes(members):
            which = f"{key}_{mode}" if mode else key
            points = [(group[0]["epoch"], statistics.fmean(point[which] for point in group))
                      for group in zip(*(row["curve"] for row in members), strict=True) if which in group[0]]
            if points:
                found.append(Series(name, points, colour, dash=mode == "relaxed"))
    return found


def training(rows: Sequence[Row]) -> list[Lines]:
    """Validation error and branches over the epochs."""
    return [Lines("Validation error (dashed: with branches)", "epoch", "mean squared error", _curves(rows, "valid"),
                  log_y=True),
            Lines("Largest |gamma| ||f_neq|| / ||f_eq||", "epoch", "ratio", _curves(rows, "ratio"), log_y=True)]


def efficiency(rows: Sequence[Row]) -> list[Lines]:
    """Test error against the number of trajectories."""
    series = []
    for name, mode, colour in (("strict", "strict", "c0"), ("ace", "strict", "c1"), ("ace", "relaxed", "c1")):
        members = {k: v for k, v in versions(rows).items() if k.startswith(f"{name}-")}
        points = [(float(v[0]["settings"]["train_samples"]), statistics.fmean(row[mode]["test"] for row in v))
                  for v in members.values()]
        series.append(Series(name, points, colour, dash=mode == "relaxed", marks=True))
    return [Lines("Test error (dashed: with branches)", "training trajectories", "mean squared error", series,
                  log_x=True, log_y=True)]


def dropping(rows: Sequence[Row]) -> list[str]:
    """Accuracy with points dropped as in training, and of the best checkpoint at each share of dropped points."""
    shares = list(rows[0]["measured"]["dropped_strict"])
    lines = [*deciders(rows, "test accuracy, %", 100.0), "",
             f"| test accuracy, % | {' | '.join(f'{float(share):.0%} dropped' for share in shares)} |",
             "|---" * (1 + len(shares)) + "|"]
    for name, mode, found in _dropped(rows):
        shown = " | ".join(spread([100 * one[share] for one in found]) for share in shares)
        lines.append(f"| {name}, {_MODELS[mode]} | {shown} |")
    return lines


def _dropped(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[dict[str, float]]]]:
    """Version, model, and for each seed the accuracy by share of dropped points."""
    for name, members in versions(rows).items():
        for mode in modes(members):
            yield name, mode, [row["measured"][f"dropped_{mode}"] for row in members]


def dropped(rows: Sequence[Row]) -> list[Lines]:
    """Accuracy against the share of dropped points."""
    colours = dict(zip(versions(rows), _COLOURS, strict=False))
    series = [Series(name, [(float(share), statistics.fmean(one[share] for one in found)) for share in found[0]],
                     colours[name], dash=mode == "relaxed", marks=True) for name, mode, found in _dropped(rows)]
    return [Lines("Test accuracy (dashed: with branches)", "share of points dropped", "accuracy", series)]


def targets(rows: Sequence[Row]) -> list[str]:
    """One line for each target: the errors of the strict model and of both models with ACE, in the field's unit."""
    lines = ["| target | strict | ACE, branches off | ACE, with branches | ACE, off / strict | training mean | gates "
             "at the end | CPU, minutes: strict, ACE |", "|---" * 8 + "|"]
    found = versions(rows)
    for target in dict.fromkeys(row["settings"]["target"] for row in rows):
        strict, ace = found.get(f"strict-{target}"), found.get(f"ace-{target}")
        if strict and ace:
            columns = [[row["strict"]["test"] for row in strict], *([row[mode]["test"] for row in ace]
                                                                    for mode in _MODELS)]
            ratio = units.digits(statistics.fmean(columns[1]) / statistics.fmean(columns[0]), 2)
            cost = ", ".join(spread([row["cpu_seconds"] for row in own], 1 / 60, 2) for own in (strict, ace))
            lines.append(f"| {target}, {TARGETS[target].error_unit} | {' | '.join(map(spread, columns))} | {ratio} | "
                         f"{spread([strict[0]['baseline']])} | {_gates(ace)} | {cost} |")
    return lines


def _by_batch(rows: Sequence[Row]) -> dict[int, dict[str, list[Row]]]:
    """Batch -> how the step size is scaled -> the rows."""
    found: dict[int, dict[str, list[Row]]] = {}
    for row in rows:
        own = row["settings"]
        found.setdefault(own["batch_size"], {}).setdefault(own["lr_scaling"], []).append(row)
    return dict(sorted(found.items()))


def batches(rows: Sequence[Row], measure: str, factor: float) -> list[str]:
    """One line for each batch: steps and test error, with the step size scaled and as it is."""
    lines = [f"| batch | steps | {measure}, step size scaled | as it is | CPU, minutes a run |", "|---" * 5 + "|"]
    for batch, found in _by_batch(rows).items():
        shown = [spread([row["strict"]["test"] for row in found.get(how, ())], factor) for how in ("sqrt", "none")]
        every = [row for own in found.values() for row in own]
        cost = spread([statistics.fmean(row["cpu_seconds"] for row in every)], 1 / 60, 2)
        lines.append(f"| {batch} | {every[0]['steps']} | {' | '.join(shown)} | {cost} |")
    return lines


def batches_qm9(rows: Sequence[Row]) -> list[str]:
    return batches(rows, "test MAE, meV", 1.0)


def batches_shapes(rows: Sequence[Row]) -> list[str]:
    return batches(rows, "test accuracy, %", 100.0)


def against_batch(rows: Sequence[Row]) -> list[Lines]:
    """What is measured on test data against the batch."""
    series = []
    for how, name, colour in (("sqrt", "step size scaled", "c0"), ("none", "as it is", "c1")):
        points = [(float(batch), statistics.fmean(row["strict"]["test"] for row in found[how]))
                  for batch, found in _by_batch(rows).items() if how in found]
        series += [Series(name, points, colour, marks=True)] if points else []
    error = rows[0]["experiment"] == "batches_qm9"
    return [Lines("Test error" if error else "Test accuracy", "batch", "MAE, meV" if error else "accuracy", series,
                  log_x=True, log_y=error)]


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "nbody": nbody, "samples": samples, "mocap": mocap, "dropping": dropping,
    "dropping_solids": dropping, "schnet": targets, "segnn": targets,
    "batches_qm9": batches_qm9, "batches_shapes": batches_shapes}
FIGURES: dict[str, Callable[[Sequence[Row]], list[Lines]]] = {
    "nbody": training, "samples": efficiency, "mocap": training, "dropping": dropped,
    "dropping_solids": dropped, "batches_qm9": against_batch, "batches_shapes": against_batch}

MEASURED: dict[str, ModuleType] = {"large_batches": large_batches_docs}  # what is measured beside the experiments


def figure_path(root: Path, name: str) -> Path:
    return root / "docs" / f"reproduction-{name}.svg"


def drawing(title: str, name: str) -> str:
    """A figure on the page."""
    return f"![{title}]({figure_path(Path(), name).name})"


def block(name: str, rows: Sequence[Row]) -> str:
    """What stands between an experiment's marks: figure, table, commands, and what they ran on."""
    if not rows:
        return f"Not run yet: `python -m bench.reproduction {name}`."
    title = EXPERIMENTS[name].title
    drawn = [drawing(title, name), ""] if name in FIGURES else []
    commands = [members[0]["command"] for members in versions(rows).values()]
    return "\n".join([*drawn, *TABLES[name](rows), "", _made(name, rows), "",
                      *(f"    {command}" for command in commands)])


def _made(name: str, rows: Sequence[Row]) -> str:
    known = [row["cpu_seconds"] for row in rows if row["cpu_seconds"] is not None]
    machines = ", ".join(dict.fromkeys(f"{row['threads']} thread{'s' * (row['threads'] > 1)} of {row['device_name']}"
                                       for row in rows))
    revisions = ", ".join(dict.fromkeys(row["revision"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return (f"{len(rows)} runs, {named}: {sum(known) / 60:.0f} minutes of processor time on {machines}, revision "
            f"{revisions}. `python -m bench.reproduction {name}` trains all of them; each version's first run alone is")


def pages(root: Path) -> dict[Path, str]:
    """What docs/reproduction.md and its figures must hold; nothing where there is no such page.

    Raises:
        ValueError: the page lacks the marks of an experiment.
    """
    page = root / "docs" / "reproduction.md"
    if not page.exists():
        return {}
    text, made = page.read_text(encoding="utf-8"), {}
    for name, (title, shown, charts) in _blocks(root / "bench" / "results" / "reproduction").items():
        text = marked.replaced(text, BEGIN.format(name), END, shown, page)
        if charts:
            made[figure_path(root, name)] = svg.figure(title, charts)
    return made | {page: text}


def _blocks(results: Path) -> dict[str, tuple[str, str, list[Lines]]]:
    """Name -> title, what stands between its marks, and its charts: of the experiments, and of what else is measured.
    """
    found = {}
    for name, experiment in EXPERIMENTS.items():
        rows = rows_of(name, results)
        found[name] = experiment.title, block(name, rows), FIGURES[name](rows) if rows and name in FIGURES else []
    for name, of in MEASURED.items():
        rows = load(name, results)
        lines = [drawing(of.TITLE, name), "", *of.block(rows)] if rows else [f"Not run yet: `python -m bench.{name}`."]
        found[name] = of.TITLE, "\n".join(lines), of.charts(rows) if rows else []
    return found
