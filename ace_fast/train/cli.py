"""The command `ace-fast`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ..symmetry.experiments.cli import add_experiments
from .options import DEFAULT_PRESET, RUN, add_options, make_config, of_group, presets_of
from .processes import Elsewhere
from .tasks import TASKS, nbody, sharded


class _Parser(argparse.ArgumentParser):
    """One error line instead of the usage; every subcommand takes --debug too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # Absent unless given: a subcommand would otherwise undo what stands before it.
        self.add_argument("--debug", action="store_true", default=argparse.SUPPRESS,
                          help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> _Parser:
    parser = _Parser(prog="ace-fast", description="Approximately equivariant networks on fast kernels.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser("train", help="train a model and leave a run folder")
    tasks = train.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=_Parser)
    for name, task in TASKS.items():
        _add_task(tasks.add_parser(name, help=task.HELP, description=_presets_text(task),
                                   formatter_class=argparse.RawDescriptionHelpFormatter), name, task)

    evaluate = commands.add_parser("evaluate", help="measure a trained run on validation and test data")
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    _add_checkpoint(evaluate)
    evaluate.add_argument("--json", type=Path, help="write the numbers to this file too")
    evaluate.add_argument("--data", help="where the data lie (the run's --data or --shards), if not where the run "
                                            "found them")
    evaluate.set_defaults(run=_evaluate)

    _add_prediction(commands.add_parser("predict",
                                        help="predict positions, classes, properties or forces with a trained run"))
    replay = commands.add_parser("replay", help="compute once more the batch that stopped a run, and see where")
    replay.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    _add_place(replay)
    replay.set_defaults(run=_replay)

    data = commands.add_parser("data", help="prepare and cache data sets")
    kinds = data.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=_Parser)
    for name, task in TASKS.items():
        kind = kinds.add_parser(name, help=task.DATA_HELP)
        add_options(kind, of_group(task.OPTIONS, "data"))
        if "shards" in task.OPTIONS:
            kind.add_argument("--shard-size", type=int, default=16_384, metavar="INT",
                              help="graphs in each of the --shards that are written (default: 16384)")
        kind.set_defaults(run=_data)

    compare = commands.add_parser("compare", help="train several deciders of symmetry, or models, and compare them")
    kinds = compare.add_subparsers(dest="task", required=True, metavar="TASK", parser_class=_Parser)
    for name, task in TASKS.items():
        _add_comparison(kinds.add_parser(name, help=task.HELP), name, task)

    demo = commands.add_parser("demo", help="data, training, evaluation and comparison in one go")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    add_options(demo, nbody.OPTIONS)
    demo.set_defaults(run=_demo, task="nbody")

    add_experiments(commands, _Parser)
    _add_report(commands.add_parser("report", help="a page and a picture of benchmark results, or of runs"))
    bench = commands.add_parser("bench", help="benchmarks against the eager reference; see ace-fast bench --help",
                                add_help=False)
    bench.set_defaults(run=_bench)
    info = commands.add_parser("info", help="operators, backends, versions, threads, native library")
    info.set_defaults(run=_info)
    return parser


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("input", type=Path, metavar="INPUT",
                         help="nbody: .npz with pos and vel [G, n, 3], charges [G, n]; or [N, 3], [N] and offsets "
                              "[G + 1]. modelnet: .npy with [N, 3] or [B, N, 3], .npz with points and, for [M, 3], "
                              "offsets [B + 1], or a mesh .off. qm9: .xyz, or .npz with z [N], pos [N, 3] and, for "
                              "several molecules, offsets [G + 1]. mocap: .npz with pos and vel [G, J, 3], or .amc "
                              "with its .asf beside it. md17: .xyz, or .npz with z [n] and pos [n, 3] "
                              "or [G, n, 3]")
    parser.add_argument("--output", type=Path,
                         help="file to write, for qm9 and md17 also a .csv (default: <INPUT>-predicted.npz)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    _add_checkpoint(parser)
    branches = parser.add_mutually_exclusive_group()
    branches.add_argument("--relaxed", action="store_true", default=None, help="with the branches on")
    branches.add_argument("--strict", action="store_false", dest="relaxed",
                          help="with the branches off (the default unless gammas are resilient, or with a --relaxation "
                               "that keeps them: rpp, per, remul)")
    parser.set_defaults(run=_predict)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULTS",
                        help="JSON files of the benchmarks and folders of them (default: the results committed in this "
                             "checkout); or a run folder; or several runs, or a folder of them, to compare")
    parser.add_argument("--out", type=Path, help="page to write, .html; the .png lies beside it (default: "
                                                 "ace-fast-report.html, or report.html in the folder of the runs)")
    parser.add_argument("--readme", action="store_true",
                        help="in a checkout: write the tables and figures of README.md and docs/reproduction.md from "
                             "bench/results")
    parser.set_defaults(run=_report)


def _add_task(parser: argparse.ArgumentParser, name: str, task: ModuleType) -> None:
    parser.add_argument("--preset", choices=tuple(task.PRESETS), default=DEFAULT_PRESET,
                        help=f"settings to begin with (default: {DEFAULT_PRESET})")
    parser.add_argument("--out", type=Path, help=f"run folder (default: runs/{name}-<preset>-<time>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out with its own settings")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_options(parser, task.OPTIONS)
    parser.set_defaults(run=_train)


def _add_comparison(parser: argparse.ArgumentParser, name: str, task: ModuleType) -> None:
    known = ",".join((*task.RELAXATIONS, "strict"))
    parser.add_argument("--relaxation", dest="relaxations", metavar="NAMES",
                        help=f"deciders, with commas between; strict has no branches (default: {known})")
    if "model" in task.OPTIONS:
        names = ", ".join(task.OPTIONS["model"].choices)
        parser.add_argument("--model", dest="models", default="", metavar="NAMES",
                            help=f"models, with commas between ({names}), strict, or with a decider as in segnn-ace; "
                                 "or one model, whose deciders --relaxation names")
    parser.add_argument("--seeds", type=int, default=1, metavar="INT",
                        help="runs of each, seed after seed (default: 1)")
    parser.add_argument("--repeats", type=int, default=15, metavar="INT",
                        help="rounds in which the steps are timed in turn (default: 15)")
    parser.add_argument("--preset", choices=tuple(task.PRESETS), default=DEFAULT_PRESET,
                        help=f"settings to begin with (default: {DEFAULT_PRESET})")
    parser.add_argument("--out", type=Path, help=f"folder of the runs and of the result (default: runs/compare-{name})")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    own = ("relaxed", "relaxation", "model")
    add_options(parser, {key: o for key, o in task.OPTIONS.items() if key not in own})
    parser.set_defaults(run=_compare)


def _presets_text(task: ModuleType) -> str:
    lines = [f"{task.DESCRIPTION} Options go over the preset's settings; the defaults",
             f"below are those of the preset {DEFAULT_PRESET}."]
    for model in (None, *getattr(task, "MODEL_PRESETS", {})):
        lines += ["", f"presets with --model {model}:" if model else "presets:"]
        for name, text in task.PRESET_HELP.items():
            changed = {k: v for k, v in presets_of(task, model)[name].items() if v != task.OPTIONS[k].default}
            lines.append(f"  {name}: {text} ({', '.join(f'{k} {v}' for k, v in changed.items()) or 'the defaults'})")
    return "\n".join(lines)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: that of the run)")
    parser.add_argument("--backend", choices=RUN["backend"].choices,
                        help="implementation of the operators (default: that of the run)")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best",
                        help="best by the strict model on validation data, or last (default: best)")


def _given(arguments: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(arguments).items() if name in TASKS[arguments.task].OPTIONS}


def _train(arguments: argparse.Namespace) -> None:
    from . import processes
    from .loop import train
    from .report import show

    how = {"task": arguments.task, "resume": arguments.resume, "quiet": arguments.quiet}
    if arguments.resume and arguments.out is not None:
        _check_task(arguments.out, arguments.task)
    run = train(arguments.out, arguments.preset, **how, **_given(arguments))
    if processes.from_environment().first:
        show(run)


def _check_task(folder: Path, task: str) -> None:
    from .run import Run

    theirs = Run(folder).about()["task"]
    if theirs != task:
        raise ValueError(f"train: --out must be a run of {task}, got one of {theirs}; resume it with: ace-fast train "
                         f"{theirs} --resume --out {folder}")


def _replay(arguments: argparse.Namespace) -> None:
    from .replay import replay

    print("\n".join(replay(arguments.folder, device=arguments.device, backend=arguments.backend)))


def _evaluate(arguments: argparse.Namespace) -> None:
    from . import report
    from .evaluate import evaluate_run
    from .run import Run

    if arguments.json:
        _check_place(arguments.json)
    elsewhere = {"device": arguments.device, "backend": arguments.backend}
    result = evaluate_run(arguments.folder, arguments.checkpoint, arguments.data, **elsewhere)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    report.show(Run(arguments.folder), result)


def _check_place(path: Path) -> None:
    """Raises ValueError, before the work, where the file cannot be written after it."""
    place = path if path.exists() else path.parent
    if path.is_dir() or path.parent.exists() and not path.parent.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"evaluate: --json must be a file in a folder that you may write to, got {path}")


def _predict(arguments: argparse.Namespace) -> None:
    from .predict import predict_file
    from .run import load

    output = arguments.output or arguments.input.parent / f"{arguments.input.stem}-predicted.npz"
    elsewhere = {"device": arguments.device, "backend": arguments.backend}
    predictor = load(arguments.folder, arguments.checkpoint, relaxed=arguments.relaxed, **elsewhere)
    answer = predict_file(predictor, arguments.input, output, arguments.overwrite)
    print("\n".join([*answer.lines, f"{answer.text} predicted: {output}"]))


def _data(arguments: argparse.Namespace) -> None:
    task, given = TASKS[arguments.task], _given(arguments)
    folder = given.pop("shards", "")
    config = make_config(task, DEFAULT_PRESET, task.for_data(given))
    if folder:
        for split, written in sharded.write(arguments.task, task, config, Path(folder), arguments.shard_size):
            print(f"{split}: {written}")
        return
    for split in ("train", "valid", "test"):
        print(f"{split}: {task.load(config, split, False)}")


def _compare(arguments: argparse.Namespace) -> None:
    from .compare import command_of, compare, deciders_of

    deciders, names = (_listed(getattr(arguments, key, None)) for key in ("relaxations", "models"))
    given = _given(arguments)
    models = bool(names) and arguments.relaxations is None
    if names and not models:
        if len(names) > 1:
            raise ValueError(f"compare: --model must be one model with --relaxation, got {', '.join(names)}; name "
                             "deciders with the models, as in segnn-ace, and leave --relaxation out")
        given["model"] = names[0]
    if not models:
        names = deciders if arguments.relaxations is not None else list(deciders_of(arguments.task))
    out = arguments.out or Path("runs") / f"compare-{arguments.task}"
    how = {name: getattr(arguments, name) for name in ("preset", "seeds", "repeats", "quiet")}
    compare(arguments.task, out, names, models=models, **how, command=command_of(arguments.argv), **given)


def _listed(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _demo(arguments: argparse.Namespace) -> None:
    from .demo import demo

    demo(arguments.out, **_given(arguments))


def _report(arguments: argparse.Namespace) -> None:
    from .. import report
    from ..report import readme, rows

    if not arguments.readme:
        files = report.write(arguments.results, arguments.out)
    elif arguments.results or arguments.out:
        raise ValueError("report: --readme must be used alone, got results or --out with it; it reads bench/results")
    else:
        files = readme.update(rows.RESULTS.parents[1])
    print("\n".join(f"report: {file.resolve()}" for file in files) or "report: README.md is up to date")


def _bench(arguments: argparse.Namespace) -> int | None:
    from ..bench.__main__ import main as bench

    return bench(arguments.rest)


def _info(arguments: argparse.Namespace) -> None:
    from ..__main__ import main as info

    info()


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 (training diverged), 2 (wrong input), 130 (Ctrl-C)."""
    parser = _parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(parser, argv)


def _run(parser: _Parser, argv: list[str]) -> int:
    # The benchmarks have a command line of their own.
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "bench":
        parser.error(_unknown(arguments, rest))
    after = argv[argv.index("bench") + 1 :] if arguments.command == "bench" else []
    arguments.argv = argv
    arguments.rest = [text for text in after if text != "--debug"]
    try:
        return int(arguments.run(arguments) or 0)
    except KeyboardInterrupt as interrupt:
        # An exception counts as true even where it says nothing.
        print(f"ace-fast: {str(interrupt) or 'stopped'}", file=sys.stderr)
        return 130
    except (FloatingPointError, ValueError, OSError) as error:
        if "debug" in arguments:
            raise
        return _failed(error, 1 if isinstance(error, FloatingPointError) else 2)


def _unknown(arguments: argparse.Namespace, rest: list[str]) -> str:
    if rest[0].partition("=")[0] == "--shards":
        known = ", ".join(name for name, task in TASKS.items() if "shards" in task.OPTIONS)
        return f"--shards must be left out with {arguments.task}, whose data are in memory, got it; {known} take it"
    return f"unknown arguments: {' '.join(rest)}"


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    print(f"ace-fast: {message}", file=sys.stderr)


def _failed(error: Exception, status: int) -> int:
    text = " ".join(str(error).split())
    # An OSError of our own has number and text as arguments; its str() would show the number.
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        text = str(error.args[1])
    if not isinstance(error.__cause__, Elsewhere):
        print(f"ace-fast: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
