"""Deciders, or models, side by side on one task: error, equivariance error, time of a step; table, page and rows."""

from __future__ import annotations

import itertools
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from ..report import comparison, save, units
from . import loop, options
from .comparing import best_row, entry
from .demo import trained
from .options import Config
from .relaxing import ACE_ALONE, deployed, make_relaxation
from .run import Run, build, check_device, use_threads
from .tasks import find

STRICT = "strict"
_BATCHES = 8  # that the timed steps take in turn
_FOREVER = 10**9  # steps of the timetables while steps are timed


class Outcome(NamedTuple):
    """One decider or model: its best checkpoint, of each seed."""

    mode: str  # the model that it is about: "strict" or "relaxed"
    test: list[float]
    equivariance: list[float]
    epochs: list[int]


def deciders_of(task: str) -> dict[str, Config]:
    """Name -> settings: who decides, and no branches at all."""
    deciders = {name: {"relaxed": True, "relaxation": name} for name in find(task).RELAXATIONS}
    return deciders | {STRICT: {"relaxed": False}}


def models_of(task: str) -> dict[str, Config]:
    """Name -> settings of a task with several models: strict ("segnn"), or with a decider ("segnn-ace")."""
    found, models = find(task), {}
    known = found.OPTIONS["model"].choices if "model" in found.OPTIONS else ()
    for name in known:
        models[name] = {"model": name, "relaxed": False}
        if name in getattr(found, "BRANCHED", known):
            models |= {f"{name}-{decider}": {"model": name, "relaxed": True, "relaxation": decider}
                       for decider in found.RELAXATIONS}
    return models


def compare(task: str, out: Path, names: Sequence[str], *, models: bool = False,
            preset: str = options.DEFAULT_PRESET, seeds: int = 1, repeats: int = 15, quiet: bool = False,
            command: str = "", **given: Any) -> dict[str, Any]:
    """Trains a model with every decider, or every model, and every seed, times their steps, and writes what came out.

    Runs lie in `out`/NAME-SEED; finished ones are used again, others continued. Each is judged by the checkpoint that
    is best on validation data, of the model that the decider is about: strict, or with its branches.

    Args:
        task: "nbody", or another one.
        out: folder of the runs, compare.json (rows for `ace-fast report`), compare.html and compare.png.
        names: of `deciders_of(task)`, or with `models` of `models_of(task)`.
        seeds: runs of each, with the seeds `seed`, `seed` + 1, ...
        repeats: rounds of timing.
        command: that measures it again.
        given: settings over those of the preset; `mode` is ACE's alone.

    Returns:
        The row of compare.json.

    Raises:
        ValueError: an unknown or repeated name, or settings that do not fit; before any work.
        FileExistsError: `out` holds a run with other settings.
    """
    found = find(task)
    configs = _configs(task, names, models, preset, seeds, repeats, given)
    for config in itertools.chain(*configs.values()):
        check_device(config)
    out.mkdir(parents=True, exist_ok=True)
    outcomes = {name: _trained(task, preset, name, runs, out, quiet) for name, runs in configs.items()}
    first = {name: runs[0] for name, runs in configs.items()}
    timings, noise = _timed(found, first, repeats)
    row = _row(f"{task}_{'models' if models else 'relaxation'}", first, outcomes, timings, noise, command)
    from ..bench import results

    results.write(out / "compare.json", [row])
    title = f"{found.DATA_HELP[0].upper()}{found.DATA_HELP[1:]}: models" if models else f"{found.TITLE}: deciders"
    _draw(title, out, row, configs, timings, found.BEST is min, models)
    _show(title, out, outcomes, timings)
    return row


def _draw(title: str, out: Path, row: Mapping[str, Any], configs: Mapping[str, list[Config]],
          timings: Mapping[str, Any], log: bool, models: bool) -> None:
    """compare.html and compare.png: the runs' own numbers, the time of a step as timed in turn."""
    runs = [(name, Run(_folder(out, name, config))) for name, seeds in configs.items() for config in seeds]
    entries = [entry(run, out) | {"ms": timings[name].median} | ({"group": name} if models else {})
               for name, run in runs]
    drawn = comparison.charts(entries, log)
    made = {key: row[key] for key in ("epochs", "seeds", "case", "device_name", "threads", "torch", "revision")}
    lead = f"Steps were timed in turn on one machine; the noise of their times is {units.percent(row['noise'])}."
    foot = f"<code>{escape(row.get('command', ''))}</code>"
    save(out / "compare.html", comparison.write(title, entries, drawn, lead, foot, made.items()), title, drawn)


def _folder(out: Path, name: str, config: Config) -> Path:
    return out / f"{name}-{config['seed']}"


def _configs(task: str, names: Sequence[str], models: bool, preset: str, seeds: int, repeats: int,
             given: Mapping[str, Any]) -> dict[str, list[Config]]:
    """The settings of every run, all checked."""
    known = models_of(task) if models else deciders_of(task)
    if not names or any(name not in known for name in names) or len(set(names)) < len(names):
        raise ValueError(f"compare: {'--model' if models else '--relaxation'} must be different names among "
                         f"{', '.join(known) or 'none'}, got {', '.join(names) or 'none'}")
    for name, value in (("seeds", seeds), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"compare: --{name} must be at least 1, got {value}")
    first = given.get("seed", find(task).OPTIONS["seed"].default)
    configs: dict[str, list[Config]] = {}
    for name in names:
        decided = known[name].get("relaxation") == "ace"
        own = {key: value for key, value in given.items() if decided or key not in ACE_ALONE}
        own |= known[name]
        configs[name] = [options.make_config(find(task), preset, own | {"seed": first + i}) for i in range(seeds)]
    return configs


def _trained(task: str, preset: str, name: str, configs: list[Config], out: Path, quiet: bool) -> Outcome:
    """Runs, or goes on with, a decider's runs."""
    mode, best = deployed(configs[0]), []
    for config in configs:
        run = Run(_folder(out, name, config))
        trained(run, config, task, preset, "compare", quiet, f"{name}, seed {config['seed']}")
        best.append(best_row(find(task), run.metrics(), mode))
    numbers = {key: [row[f"{key}_{mode}"] for row in best] for key in ("test", "equivariance")}
    return Outcome(mode, **numbers, epochs=[row["epoch"] for row in best])


def _timed(task: Any, configs: Mapping[str, Config], repeats: int) -> tuple[dict[str, Any], float]:
    """Milliseconds of a training step of each, in turn, and the noise: one of them timed twice."""
    from ..bench import timing

    config = next(iter(configs.values()))
    use_threads(config)
    print("timing the steps in turn ...", file=sys.stderr, flush=True)
    data = task.load(config, "train")
    facts = task.facts(data)
    prepared = _prepared(task, configs, facts, data)
    trainings = {name: prepared[own.get("model")] for name, own in configs.items()}
    batches = {kind: list(itertools.islice(iter(training.batches), _BATCHES)) for kind, training in prepared.items()}
    steps = {name: _step(task, own, facts, trainings[name], batches[own.get("model")])
             for name, own in configs.items()}
    first = next(iter(steps))
    again = {"again": _step(task, configs[first], facts, trainings[first], batches[configs[first].get("model")])}
    found = timing.interleaved(steps | again, config["device"], repeats, burst=3)
    return found, timing.noise(found[first], found["again"])


def _prepared(task: Any, configs: Mapping[str, Config], facts: dict[str, Any], data: Any) -> dict[str | None, Any]:
    """Model -> its training with the data prepared, each once; None of a task that has one model."""
    first: dict[str | None, Config] = {}
    for config in configs.values():
        first.setdefault(config.get("model"), config)
    return {model: task.Training(config, facts, data) for model, config in first.items()}


def _step(task: Any, config: Config, facts: dict[str, Any], training: Any, batches: list[Any]) -> Callable[[], None]:
    """One training step: loss, penalty, gradients, optimiser, decider."""
    torch.manual_seed(config["seed"])
    model = build(task, config, facts).train()
    decider = make_relaxation(model, config, _FOREVER)
    weights = decider.primal_parameters() if decider else list(model.parameters())
    optimizer = loop.make_optimizer(weights, config)
    turn = itertools.cycle(batches)

    def step() -> None:
        batch = next(turn)
        loss = training.loss(model, batch)
        turned = lambda: training.loss(model, training.turned(batch))  # noqa: E731
        optimizer.zero_grad()
        (loss + (decider.penalty(loss, turned) if decider else 0.0)).backward()
        optimizer.step()
        if decider:
            decider.step()

    return step


def _row(workload: str, configs: Mapping[str, Config], outcomes: Mapping[str, Outcome], timings: Mapping[str, Any],
         noise: float, command: str) -> dict[str, Any]:
    """One flat row, the deciders or models as its versions."""
    from ..bench import machine

    config = next(iter(configs.values()))
    row: dict[str, Any] = {"workload": workload, "case": f"batch{config['batch_size']}",
                           "device": config["device"], "dtype": config["dtype"], "epochs": config["epochs"],
                           "seeds": len(next(iter(outcomes.values())).test), "noise": noise}
    for name, one in outcomes.items():
        timed = timings[name]
        row |= {f"{name}_ms": timed.median, f"{name}_q20_ms": timed.q20, f"{name}_q80_ms": timed.q80,
                "rounds": timed.rounds, f"{name}_model": one.mode}
        for key in ("test", "equivariance"):
            values = getattr(one, key)
            row |= {f"{name}_{key}": statistics.fmean(values), f"{name}_{key}_std": _spread(values)}
    row |= {"command": command} if command else {}
    return row | machine.describe(config["device"])


def _spread(values: list[float]) -> float:
    """The standard deviation over seeds; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _shown(values: list[float]) -> str:
    mean, spread = statistics.fmean(values), _spread(values)
    return units.digits(mean, 4) + (f" ± {units.digits(spread, 2)}" if len(values) > 1 else "")


def _table(outcomes: Mapping[str, Outcome], timings: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines."""
    base = timings.get(STRICT)
    headings = ["compared", "branches", "test", "equivariance error", "best epoch", "ms a step"]
    headings += ["over strict"] if base else []
    lines = []
    for name, one in outcomes.items():
        lines.append([name, "on" if one.mode == "relaxed" else "off", _shown(one.test), _shown(one.equivariance),
                      ", ".join(map(str, one.epochs)), f"{timings[name].median:.1f}",
                      *([f"{timings[name].median / base.median:.2f}"] if base else [])])
    return headings, lines


def _show(title: str, out: Path, outcomes: Mapping[str, Outcome], timings: Mapping[str, Any]) -> None:
    headings, lines = _table(outcomes, timings)
    table = Table(*headings, title=title, title_justify="left", caption=f"{out / 'compare.html'}, compare.json")
    for line in lines:
        table.add_row(*line)
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def command_of(argv: Sequence[str]) -> str:
    """The command line in words that a shell takes."""
    return shlex.join(["ace-fast", *argv])
