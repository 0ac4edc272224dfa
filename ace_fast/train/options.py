"""What a setting is, the settings that all tasks share, and the checks of values; each task adds its own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from ..relaxation import RELAXATIONS
from ..relaxation.groups import GROUPS
from ..relaxation.penalty import BALANCES
from .relaxing import balances, check_relaxation

Config = dict[str, Any]


class Option(NamedTuple):
    group: str
    default: Any
    help: str
    choices: tuple[str, ...] | None = None
    least: float | None = None  # smallest value allowed
    most: float | None = None  # largest value allowed
    above: float | None = None  # the value must be larger


Options = dict[str, Option]

DEFAULT_PRESET = "demo"
SEED = 2**63 - 1  # the largest one that torch takes
COMPILERS = ("inductor", "aot_eager")
_STEPS = ("sgd", "adam")
_SCHEDULES = ("constant", "cosine", "multistep", "step")

# The defaults are those of N-body's preset "demo"; a task changes them with `changed`.
RELAXED = Option("model", True, "unconstrained branches gamma * f_neq beside the equivariant maps")

OPTIMISATION: Options = {
    "epochs": Option("optimisation", 60, "passes over the training data", least=1),
    "batch_size": Option("optimisation", 100, "samples per step", least=1),
    "lr": Option("optimisation", 3e-3, "step size of Adam on the weights", above=0),
    "lr_schedule": Option("optimisation", "cosine", "course of that step size (multistep: a tenth from 80 % of "
                          "the epochs on, a hundredth from 90 %; step: --decay-by every --decay-every epochs) over the "
                          "run", _SCHEDULES),
    "decay_every": Option("optimisation", 10, "epochs between two steps of --lr-schedule step", least=1),
    "decay_by": Option("optimisation", 0.5, "factor of each of them", above=0, most=1),
    "warmup": Option("optimisation", 0.0, "epochs in which that step size grows linearly to what it is then", least=0),
    "lr_scaling": Option("optimisation", "none", "how that step size grows with --batch-size over --lr-batch: like it, "
                         "or like its square root", ("none", "linear", "sqrt")),
    "lr_batch": Option("optimisation", 0, "batch size that --lr is meant for; 0: that of the preset", least=0),
    "weight_decay": Option("optimisation", 0.0, "L2 decay of the weights (the gammas have none)", least=0),
    "clip": Option("optimisation", 0.0, "largest norm of the weights' gradient; 0: any", least=0),
    "accumulate": Option("optimisation", 1, "parts that each process takes its share of a batch in, to save memory; "
                         "their gradients are summed", least=1),
    "ema": Option("optimisation", 0.0, "share of the old average in the moving average of the weights, which is then "
                  "what is measured and kept; 0: none", least=0, most=0.99999),
    "patience": Option("optimisation", 0, "evaluations without a better measure on validation data after which the run "
                       "ends; 0: never", least=0),
}

SYMMETRY: Options = {
    "mode": Option("symmetry", "equality", "constraint on the gammas: zero, or a slack", ("equality", "resilient")),
    "gamma_init": Option("symmetry", 1.0, "initial value of every gamma"),
    "gamma_optimizer": Option("symmetry", "sgd", "how the gammas are stepped", _STEPS),
    "gamma_lr": Option("symmetry", 5e-3, "step size of the gammas, eta_p", above=0),
    "dual_optimizer": Option("symmetry", "sgd", "how the multipliers are stepped", _STEPS),
    "dual_lr": Option("symmetry", 5e-3, "step size of the multipliers, eta_d", above=0),
    "augmentation": Option("symmetry", 1.0, "factor c of the quadratic term, which damps", least=0),
    "dual_eps": Option("symmetry", 1e-8, "eps of Adam on the multipliers", above=0),
    "bound": Option("symmetry", "spectral", "norm that bounds the branches", ("none", "spectral", "frobenius")),
    "bound_limit": Option("symmetry", 1.0, "largest value of that norm", above=0),
    "rho": Option("symmetry", 1.0, "cost of the slack in the resilient mode", above=0),
    "slack_lr": Option("symmetry", 0.0, "step size of the slacks; 0: that of the gammas", least=0),
    "epsilon": Option("symmetry", 0.0, "tolerance of the constraint |gamma| <= epsilon", least=0),
    "gamma_groups": Option("symmetry", "", "gammas with numbers of their own, by patterns of their names: "
                           "'layers.0.*: mode=resilient epsilon=0.1; layers.3.*: rho=2' (docs/relaxation.md)"),
    "dual_warmup": Option("symmetry", 0, "steps over which --dual-lr and --augmentation rise from 0", least=0),
    "snap": Option("symmetry", False, "switch branches off that stay without effect; the step then costs the strict "
                   "model's"),
    "tolerance": Option("symmetry", 1e-2, "below it |gamma| ||f_neq|| / ||f_eq|| is no effect", above=0),
    "gate_patience": Option("symmetry", 500, "steps that this must last, for --snap and for verdicts", least=1),
    "look_every": Option("symmetry", 20, "steps between two measurements of it with --snap", least=1),
    "repo_resilient": Option("symmetry", False, "the authors' SEGNN script's gradients in the resilient mode"),
    "repo_scale": Option("symmetry", False, "multipliers divided by their number in the gammas' gradients"),
    "repo_clamp": Option("symmetry", False, "multipliers kept >= 0 in the equality mode"),
    "relaxation": Option("symmetry", "ace", "who decides how much symmetry stays: multipliers (ace), a timetable and a "
                         "Lie-derivative penalty (schedule), priors (rpp), projections on groups (per), or turned data "
                         "(remul); --gamma-init is the gates' value, for schedule the largest", tuple(RELAXATIONS)),
    "lie": Option("symmetry", 0.01, "schedule: weight of the Lie-derivative penalty", least=0),
    "branch_init": Option("symmetry", 1e-3, "schedule, rpp: factor on the branches' last map at the start", above=0),
    "prior_branch": Option("symmetry", 1e-4, "rpp: precision of the branches' prior", least=0),
    "prior_equivariant": Option("symmetry", 1e-6, "rpp: precision of the other weights' prior", least=0),
    "groups": Option("symmetry", "O3,O2x,O2y,O2z", "per: the groups, among " + ", ".join(GROUPS)),
    "strength": Option("symmetry", 1e-3, "per: strength of every group at the start", least=0),
    "adjust": Option("symmetry", 0.25, "per: share of the steps after which the strengths are set; 0: never", least=0,
                     most=0.999),
    "beta": Option("symmetry", 1.0, "remul: weight of the loss on turned copies", above=0),
    "balance": Option("symmetry", "constant", "remul: whether GradNorm sets the weights of both losses", BALANCES),
}

RUN: Options = {
    "eval_every": Option("run", 5, "epochs from one evaluation to the next", least=1),
    "rotations": Option("run", 4, "random elements of O(3) that the equivariance error is measured on", least=1),
    "seed": Option("run", 42, "seed of the initial weights and of the order of the data", least=0, most=SEED),
    "dtype": Option("run", "float32", "floating-point type", ("float32", "float64")),
    "device": Option("run", "cpu", "where the tensors live: cpu, cuda, cuda:1 ..."),
    "backend": Option("run", "auto", "implementation of the operators", ("auto", "reference", "cpu", "triton", "cuda")),
    "threads": Option("run", 0, "threads of the CPU kernels; 0: as torch chooses", least=0, most=1024),
    "precision": Option("run", "full", "bfloat16: what torch's autocast runs in it, the operators in float32",
                        ("full", "bfloat16")),
    "compile": Option("run", "none", "backend of torch.compile that the model runs on", ("none", *COMPILERS)),
    "cuda_graphs": Option("run", False, "forward and backward replayed from a CUDA graph; batches of one shape"),
    "sync_batch_norm": Option("run", False, "batch norms take the statistics of all processes"),
    "nan": Option("run", "stop", "what a batch with a loss or gradient that is not finite does: stop the run, or be "
                  "left out", ("stop", "skip")),
    "checkpoint_every": Option("run", 0, "steps from one checkpoint to the next within an epoch; 0: at its end alone",
                               least=0),
    "keep": Option("run", 1, "training states kept, the latest ones", least=1),
    "tensorboard": Option("run", False, "the metrics for TensorBoard too, in the run folder's tensorboard/"),
    "wandb": Option("run", False, "the metrics for Weights & Biases too"),
}

# Run folders from before there were these settings had their defaults.
LATER = ("decay_every", "decay_by", "warmup", "lr_scaling", "lr_batch", "clip", "accumulate", "ema", "patience",
         "precision", "compile", "cuda_graphs", "sync_batch_norm", "nan", "checkpoint_every", "keep", "tensorboard",
         "wandb", "relaxation", "lie", "branch_init", "prior_branch", "prior_equivariant", "groups", "strength",
         "adjust", "beta", "balance", "gamma_groups", "dual_warmup", "snap", "tolerance", "gate_patience", "look_every",
         "model", "product", "shards")


def changed(options: Options, **defaults: Any) -> Options:
    """The same settings with other defaults."""
    return options | {name: options[name]._replace(default=value) for name, value in defaults.items()}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> None:
    """Adds settings to `parser`; only those given on the command line appear in its result."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, option in options.items():
        group = groups.setdefault(option.group, parser.add_argument_group(option.group))
        text = f"{option.help} (default: {option.default if option.default != '' else 'empty'})".replace("%", "%%")
        shared = {"dest": name, "default": argparse.SUPPRESS}
        if name == "relaxed":
            group.add_argument("--relaxed", action="store_true", help=text, **shared)
            group.add_argument("--strict", action="store_false", help="no such branches", **shared)
        elif isinstance(option.default, bool):
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=text, **shared)
        else:
            group.add_argument(flag(name), type=type(option.default), choices=option.choices, help=text,
                               metavar=None if option.choices else type(option.default).__name__.upper(), **shared)


def presets_of(task: ModuleType, model: str | None) -> dict[str, Config]:
    """The presets of a task with one of its models; None: with its first one."""
    return getattr(task, "MODEL_PRESETS", {}).get(model, task.PRESETS)


def make_config(task: ModuleType, preset: str, given: Mapping[str, Any]) -> Config:
    """The defaults of a task, the preset over them, and `given` over both; all values checked.

    Raises:
        ValueError: an unknown preset or setting, or a value out of range.
    """
    if preset not in task.PRESETS:
        raise ValueError(f"train: preset must be one of {', '.join(task.PRESETS)}, got {preset!r}")
    unknown = [name for name in given if name not in task.OPTIONS]
    if unknown:
        raise ValueError(f"train: options must be among {', '.join(task.OPTIONS)}, got {', '.join(unknown)}")
    config = {name: option.default for name, option in task.OPTIONS.items()}
    config |= presets_of(task, given.get("model"))[preset] | dict(given)
    for name, option in task.OPTIONS.items():
        config[name] = checked(name, option, config[name])
    if config["lr_scaling"] != "none" and not config["lr_batch"]:
        config["lr_batch"] = presets_of(task, given.get("model"))[preset].get(
            "batch_size", task.OPTIONS["batch_size"].default)
    task.check(config)
    check_relaxation(task, config)
    _check_training(config)
    return config


def with_later(task: ModuleType, config: Mapping[str, Any]) -> Config:
    """The config of a run folder with the defaults of the settings that are younger than it."""
    return {name: task.OPTIONS[name].default for name in LATER if name in task.OPTIONS} | dict(config)


def _check_training(config: Config) -> None:
    """Raises ValueError where settings of the loop contradict each other."""
    cuda = config["device"].partition(":")[0] == "cuda"
    wrong = {
        "warmup": (config["warmup"] > config["epochs"], f"at most the {config['epochs']} epochs"),
        "precision": (config["precision"] != "full" and config["dtype"] == "float64", "full with --dtype float64"),
        "cuda_graphs": (config["cuda_graphs"] and not cuda, f"off with --device {config['device']}"),
        "compile": (config["compile"] != "none" and config["cuda_graphs"], "none with --cuda-graphs"),
        "accumulate": (config["batch_size"] % config["accumulate"] != 0,
                       f"a divisor of the {config['batch_size']} samples of a step"),
    }
    for name, (found, expected) in wrong.items():
        if found:
            raise ValueError(f"train: {flag(name)} must be {expected}, got {config[name]}; change one of the two")
    if config["sync_batch_norm"] and config.get("norm") == "batch":
        raise ValueError("train: --norm must be instance or none with --sync-batch-norm, got batch: e3nn's batch norm "
                         "takes the statistics of its own process")
    if config["cuda_graphs"] and config["snap"]:
        raise ValueError("train: --cuda-graphs must be off with --snap, which switches branches while a run trains, "
                         "got it; leave one of the two out")
    if config["relaxed"] and config["relaxation"] == "remul":
        if config["cuda_graphs"]:
            raise ValueError("train: --cuda-graphs must be off with --relaxation remul, which draws rotations on the "
                             "host, got it; leave one of the two out")
        if balances(config) and config["accumulate"] > 1:
            raise ValueError(f"train: --accumulate must be 1 with --balance {config['balance']}, which reads gradients "
                             f"of a whole batch, got {config['accumulate']}; leave one of the two out")
    if config.get("gammas") == "nn" and config["relaxed"] and config["cuda_graphs"]:
        raise ValueError("train: --cuda-graphs must be off where networks compute the gates, got --gammas nn; leave "
                         "one of the two out")


def of_group(options: Options, group: str) -> Options:
    return {name: option for name, option in options.items() if option.group == group}


def checked(name: str, option: Option, value: Any, owner: str = "train") -> Any:
    """The value of a setting, as a float where that is what it is.

    Raises:
        ValueError: another type or choice, or out of range.
    """
    kind = type(option.default)
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value, right = float(value), True
    if not right:
        raise ValueError(f"{owner}: {flag(name)} must be {kind.__name__}, got {value!r}")
    if option.choices and value not in option.choices:
        raise ValueError(f"{owner}: {flag(name)} must be one of {', '.join(option.choices)}, got {value!r}")
    if kind is float and not abs(value) < float("inf"):
        raise ValueError(f"{owner}: {flag(name)} must be finite, got {value}")
    if option.least is not None and value < option.least:
        raise ValueError(f"{owner}: {flag(name)} must be at least {option.least}, got {value}")
    if option.most is not None and value > option.most:
        raise ValueError(f"{owner}: {flag(name)} must be at most {option.most}, got {value}")
    if option.above is not None and value <= option.above:
        raise ValueError(f"{owner}: {flag(name)} must be more than {option.above}, got {value}")
    return value
