"""Trains the experiments of docs/reproduction.md, and leaves a row of JSON for every run.

python -m bench.reproduction                       the experiments, their runs, and which are finished
python -m bench.reproduction nbody                 an experiment
python -m bench.reproduction 'nbody/ace-*'         some of its runs, VERSION-SEED
python -m bench.reproduction mocap --data FOLDER   where its data file lies (default: $ACE_FAST_DATA, ~/.cache/ace_fast)

Finished runs are used again, others continued. A run's row replaces that of the same version and seed in the
experiment's file; `ace-fast report --readme` then writes the tables and figures of docs/reproduction.md. Costs are
processor time, which other processes on the machine hardly lengthen.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ace_fast.train.checkpoint import write_atomic
from ace_fast.train.comparing import best_row
from ace_fast.train.demo import trained
from ace_fast.train.options import DEFAULT_PRESET, Config, flag, make_config
from ace_fast.train.run import Run
from ace_fast.train.tasks import find

from .experiments import EXPERIMENTS, Experiment, Settings

Row = dict[str, Any]

_HERE = Path(__file__).resolve().parent
_CHECKOUT = (_HERE.parent / "pyproject.toml").exists()
RESULTS = (_HERE / "results" if _CHECKOUT else Path("bench-results")) / "reproduction"
_ABOUT = ("torch", "e3nn", "ace_fast")  # versions that a row names
_CURVE = ("epoch", "step", "train_loss", "valid_strict", "valid_relaxed", "gammas", "slacks")


class Job(NamedTuple):
    """One run of an experiment."""

    name: str
    version: str
    seed: int

    @property
    def experiment(self) -> Experiment:
        return EXPERIMENTS[self.name]

    @property
    def label(self) -> str:
        """What patterns are matched against, and the run's folder below that of all runs."""
        return f"{self.name}/{self.version}-{self.seed}"


def jobs(patterns: Sequence[str] = ("*",)) -> list[Job]:
    """The runs that names of experiments, or patterns of NAME/VERSION-SEED, choose.

    Raises:
        ValueError: a pattern that chooses none.
    """
    every = [Job(name, version, seed) for name, e in EXPERIMENTS.items() for version in e.versions for seed in e.seeds]
    chosen = {p: [job for job in every if job.name == p or fnmatchcase(job.label, p)] for p in patterns}
    if empty := [pattern for pattern, found in chosen.items() if not found]:
        raise ValueError(f"reproduction: an experiment must be one of {', '.join(EXPERIMENTS)}, or a pattern of "
                         f"NAME/VERSION-SEED such as '{every[0].label}', got {empty[0]!r}")
    return [job for job in every if any(job in found for found in chosen.values())]


def config_of(job: Job, data: Path | None) -> Config:
    """The run's whole config, checked.

    Args:
        data: the folder with the experiment's file; None: $ACE_FAST_DATA or ~/.cache/ace_fast.

    Raises:
        ValueError: the file is not there.
    """
    settings, experiment = job.experiment.settings(job.version, job.seed), job.experiment
    if experiment.data:
        folder = data or Path(os.environ.get("ACE_FAST_DATA") or Path.home() / ".cache" / "ace_fast")
        if not (folder / experiment.data).is_file():
            raise ValueError(f"reproduction: --data must be a folder with {experiment.data} for {job.name}, got "
                             f"{folder} without; docs/reproduction.md says where it comes from")
        settings = settings | {"data": str(folder / experiment.data)}
    return make_config(find(experiment.task), DEFAULT_PRESET, settings)


def command(experiment: Experiment, settings: Settings) -> str:
    """The `ace-fast train` of a run."""
    words = ["ace-fast", "train", experiment.task, *(["--data", experiment.data] if experiment.data else [])]
    for name, value in settings.items():
        if name == "relaxed":
            words.append("--relaxed" if value else "--strict")
        elif isinstance(value, bool):
            words.append(flag(name) if value else flag(f"no_{name}"))
        else:
            words += [flag(name), str(value)]
    return shlex.join(words)


def run(job: Job, runs: Path, data: Path | None, quiet: bool = False) -> Row:
    """Trains a run, or uses the finished one, and returns its row."""
    found, config = Run(runs / job.label), config_of(job, data)
    cost = runs / f"{job.label}.json"
    before = _cost(cost) if cost.exists() else None if found.state_path.exists() else 0.0
    began, was_trained = time.process_time(), True
    cost.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(cost, "null", "reproduction")  # stays where the process is killed: then nobody knows what it took
    try:
        was_trained = trained(found, config, job.experiment.task, DEFAULT_PRESET, "reproduction", quiet, job.label)
    finally:
        used = time.process_time() - began if was_trained else 0.0
        write_atomic(cost, json.dumps(None if before is None else round(before + used, 1)), "reproduction")
    return row(job, found, _cost(cost))


def _cost(path: Path) -> float | None:
    return json.loads(path.read_text())


def row(job: Job, found: Run, cpu_seconds: float | None) -> Row:
    """What is kept of a finished run.

    Its keys: `settings` over the task's defaults and the `command` that they make; `strict` and `relaxed`, all
    measures of the model without and with its branches at the epoch that is best on validation data for that model;
    `gates` at the end; `curve`, losses, gammas, slacks and the largest branch ratio of every evaluation; `measured`,
    numbers by name of the best checkpoint at the end, where the task has them (accuracy by share of points dropped);
    `cpu_seconds`, of training, evaluation and report together, null where a kill lost count.
    """
    about, rows, task = found.about(), found.metrics(), find(job.experiment.task)
    settings = job.experiment.settings(job.version, job.seed)
    made: Row = {"experiment": job.name, "version": job.version, "seed": job.seed, "settings": settings,
                 "command": command(job.experiment, settings), "epochs": rows[-1]["epoch"], "steps": rows[-1]["step"]}
    for mode in ("strict", "relaxed") if about["config"]["relaxed"] else ("strict",):
        best, end = best_row(task, rows, mode), f"_{mode}"
        made[mode] = {"epoch": best["epoch"]} | {
            key.removesuffix(end): value for key, value in best.items()
            if key.endswith(end) and isinstance(value, int | float)}
    kept = {"gammas": "gammas", "slacks": "slacks", "branch_ratios": "ratios", "verdicts": "verdicts"}
    made["gates"] = {name: rows[-1][key] for key, name in kept.items() if key in rows[-1]}
    made["baseline"] = rows[-1].get("baseline")
    made["curve"] = list(_curve(rows))
    made["measured"] = {key: value for key, value in found.evaluation().items() if isinstance(value, dict)
                        and all(isinstance(x, float) for x in value.values())}
    versions = about["versions"]
    return made | {"cpu_seconds": cpu_seconds, "device_name": about["device_name"], "threads": about["threads"],
                   "revision": versions.get("git", "")[:12], "started": about["started"]} | {
                   name: versions.get(name) for name in _ABOUT}


def _curve(rows: Sequence[Row]) -> Iterator[Row]:
    for one in rows:
        if "valid_strict" in one:
            point = {key: one[key] for key in _CURVE if key in one}
            ratios = [ratio for ratio in one.get("branch_ratios", ()) if ratio is not None]
            yield point | ({"ratio": max(ratios)} if ratios else {})


def load(name: str, results: Path = RESULTS) -> list[Row]:
    """The rows of an experiment; none where it has not been run.

    Raises:
        ValueError: the file is damaged.
    """
    path = results / f"{name}.json"
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"reproduction: {path} must be a list of rows in JSON, got text that does not parse "
                         f"({error}); run the experiment again in a folder without it") from error
    return found


def keep(new: Row, results: Path) -> None:
    """Writes a row into its experiment's file, in the order of the registry."""
    place = {(job.version, job.seed): i for i, job in enumerate(jobs([new["experiment"]]))}
    rows = {(row["version"], row["seed"]): row for row in [*load(new["experiment"], results), new]}
    ordered = [rows[key] for key in sorted(filter(place.__contains__, rows), key=place.__getitem__)]
    write(new["experiment"], ordered, results)


def write(name: str, rows: Sequence[Row], results: Path) -> None:
    """Writes the rows of an experiment, one a line, which git shows well."""
    results.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomic(results / f"{name}.json", f"[\n{lines}\n]\n", "reproduction")


def _listed(results: Path) -> str:
    lines = []
    for name, experiment in EXPERIMENTS.items():
        done = {(row["version"], row["seed"]) for row in load(name, results)}
        lines.append(f"{name}: {experiment.title}")
        lines += [f"  {job.label}{'  (has a row)' if (job.version, job.seed) in done else ''}" for job in jobs([name])]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is asked for; returns the exit status, 2 for wrong input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser("reproduction", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments, or patterns of NAME/VERSION-SEED")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the folder with the files that experiments need")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "reproduction",
                        help="folder of the run folders; default: runs/reproduction")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of the rows; default: {RESULTS}")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    a = parser.parse_args(argv)
    try:
        if not a.names:
            print(_listed(a.results))
            return 0
        chosen = jobs(a.names)
        for job in chosen:
            config_of(job, a.data)  # what is missing is said before any time is spent
        for job in chosen:
            keep(run(job, a.runs, a.data, a.quiet), a.results)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"ace-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"ace-fast: {interrupt}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
