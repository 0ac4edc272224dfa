"""`ace-fast symmetry EXPERIMENT`: every method with every seed, a table, and the numbers as JSON."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...train.options import add_options, checked
from . import EXPERIMENTS


def add_experiments(commands: Any, parser_class: type) -> None:
    """Adds the command to the subparsers `commands`."""
    symmetry = commands.add_parser("symmetry", help="experiments on breaking symmetries")
    kinds = symmetry.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT", parser_class=parser_class)
    for name, module in EXPERIMENTS.items():
        parser = kinds.add_parser(name, help=module.HELP, description=module.DESCRIPTION)
        parser.add_argument("--methods", default=",".join(module.METHODS), metavar="NAMES",
                            help=f"with commas between (default: {','.join(module.METHODS)})")
        parser.add_argument("--seeds", type=int, default=1, metavar="INT", help="runs of each (default: 1)")
        parser.add_argument("--out", type=Path, help=f"JSON file of the results (default: runs/{name}.json)")
        parser.add_argument("--quiet", action="store_true", help="no progress")
        add_options(parser, module.OPTIONS)
        parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    module = EXPERIMENTS[arguments.experiment]
    given = {name: value for name, value in vars(arguments).items() if name in module.OPTIONS}
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    out = arguments.out or Path("runs") / f"{arguments.experiment}.json"
    rows = run_experiment(arguments.experiment, methods, arguments.seeds, out, arguments.quiet,
                          command=" ".join(["ace-fast", *arguments.argv]), **given)
    print("\n".join([*table(module, rows), f"results: {out}"]))


def run_experiment(name: str, methods: Sequence[str], seeds: int, out: Path, quiet: bool = True, command: str = "",
                   **given: Any) -> list[dict[str, Any]]:
    """Runs each method with seeds 0, 1, ...; the file is written after every run.

    Returns:
        A row for each run: method, seed and the module's measures.

    Raises:
        ValueError: an unknown experiment, method or setting, a value out of range, or a file that exists.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"symmetry: experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    module = EXPERIMENTS[name]
    wrong = [m for m in methods if m not in module.METHODS]
    if wrong or not methods:
        raise ValueError(f"symmetry: --methods must be among {', '.join(module.METHODS)}, got "
                         f"{', '.join(wrong) or 'none'}")
    if seeds < 1:
        raise ValueError(f"symmetry: --seeds must be 1 or more, got {seeds}")
    if out.exists():
        raise ValueError(f"symmetry: --out must be a new file, got {out}, which exists; remove it or name another one")
    unknown = [key for key in given if key not in module.OPTIONS]
    if unknown:
        raise ValueError(f"symmetry: options must be among {', '.join(module.OPTIONS)}, got {', '.join(unknown)}")
    config = {key: checked(key, option, given.get(key, option.default), "symmetry")
              for key, option in module.OPTIONS.items()}
    module.check(config)
    if config.get("threads"):
        torch.set_num_threads(config["threads"])
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for method in methods:
            show = _progress(f"{method}, seed {seed}", quiet)
            start = time.process_time()
            found = module.run(method, seed, config, show)
            rows.append({"method": method, "seed": seed} | found | {"seconds": time.process_time() - start})
            about = {"experiment": name, "command": command, "config": config, "rows": rows}
            out.write_text(json.dumps(about, indent=1) + "\n")
    return rows


def _progress(what: str, quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else print(f"{what}, {text}", file=sys.stderr)


def table(module: ModuleType, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table: a row for each method, mean and standard error over its seeds."""
    names = [name for name in module.MEASURES if name in rows[0]]
    headings = [module.MEASURES[name][0] for name in names]
    lines = [f"| method | {' | '.join(headings)} |", "|---" * (len(names) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for name in names:
            values = [row[name] for row in rows if row["method"] == method]
            style = module.MEASURES[name][1]
            mean = values[0] if len(set(values)) == 1 else statistics.fmean(values)
            text = format(mean, style)
            if len(set(values)) > 1 and name != "seconds":
                text += f" ± {format(statistics.stdev(values) / math.sqrt(len(values)), style)}"
            cells.append(text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines
