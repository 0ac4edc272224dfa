"""Who decides how much symmetry a run keeps: its settings, checks before any time is spent, the decider itself."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn

from .. import relaxation
from ..kernels.dual_update import Rule
from ..kernels.dual_update.op import check_rule
from ..nn.gates import gated_layers
from ..relaxation.family import KEPT, TIMED
from ..relaxation.groups import check_groups
from ..relaxation.rules import Rules, fields, parse_groups

if TYPE_CHECKING:
    from .options import Config

# ACE's settings of the same name.
_ACE = ("dual_lr", "rho", "epsilon", "augmentation", "gamma_optimizer", "dual_optimizer", "dual_eps", "bound",
        "bound_limit", "repo_resilient", "repo_scale", "repo_clamp", "snap", "tolerance", "look_every", "backend")

ACE_ALONE = ("mode", "snap", "gamma_groups")  # refused beside other deciders and without branches


def check_relaxation(task: ModuleType, config: Config) -> None:
    """Raises ValueError where the decider cannot work on this task, or another setting contradicts it."""
    name = config["relaxation"]
    if config["snap"] and (not config["relaxed"] or name != "ace" or config.get("gammas") == "nn"):
        got = "--strict" if not config["relaxed"] else f"--relaxation {name}" if name != "ace" else "--gammas nn"
        raise ValueError(f"train: --snap must be off with {got}, got it on; it switches off branches whose gates ACE "
                         "steps")
    if config["gamma_groups"] and (not config["relaxed"] or name != "ace"):
        got = f"--relaxation {name}" if config["relaxed"] else "--strict"
        raise ValueError(f"train: --gamma-groups must be left out with {got}, got {config['gamma_groups']!r}; it gives "
                         "numbers to gammas that ACE steps")
    if not config["relaxed"]:
        for option, usual in (("relaxation", "ace"), ("mode", "equality")):
            if config[option] != usual:
                raise ValueError(f"train: --{option} must be left out with --strict, got {config[option]}; a strict "
                                 "model has no branches to decide on")
        return
    if name == "ace":
        _check_rules(config)
        return
    if config["mode"] != "equality":
        raise ValueError(f"train: --mode must be equality with --relaxation {name}, got {config['mode']}; only ace has "
                         "slacks")
    if config.get("gammas") == "nn":
        raise ValueError(f"train: --gammas must be numbers with --relaxation {name}, got nn; only ace constrains gates "
                         "that networks compute")
    if name not in task.RELAXATIONS:
        raise ValueError(f"train: --relaxation must be one of {', '.join(task.RELAXATIONS)} for "
                         f"{task.__name__.rpartition('.')[2]}, got {name}")
    if name == "schedule" and config["lie"] and config.get("legacy_view"):
        raise ValueError(f"train: --lie must be 0 with --legacy-view, got {config['lie']}; leave one of the two out")
    check_groups(groups_of(config), "train")


def _check_rules(config: Config) -> None:
    """Raises ValueError where a number of ACE's, or of a group of gammas, is out of range."""
    own = {key: config[key] for key in ("dual_lr", "rho", "epsilon", "augmentation", "dual_eps", "repo_resilient",
                                        "repo_scale", "repo_clamp")}
    rule = Rule(resilient=config["mode"] == "resilient", lr=config["gamma_lr"], slack_lr=config["slack_lr"], **own)
    check_rule(rule, "train")
    for pattern, given in parse_groups(config["gamma_groups"]).items():
        check_rule(rule._replace(**fields(pattern, given)), f"train: --gamma-groups {pattern!r}")


def groups_of(config: Config) -> tuple[str, ...]:
    return tuple(text.strip() for text in config["groups"].split(",") if text.strip())


def depends_on_epochs(config: Config) -> bool:
    """Whether the decider has a timetable."""
    return config["relaxed"] and config["relaxation"] in TIMED


def balances(config: Config) -> bool:
    """Whether the decider weighs two losses by their gradients, which must be those of a whole batch."""
    return config["relaxed"] and config["relaxation"] == "remul" and config["balance"] != "constant"


def deployed(config: Config) -> str:
    """The model that a run is about, whose validation measure chooses the best checkpoint: "strict" or "relaxed"."""
    return "relaxed" if config["relaxed"] and config["relaxation"] in KEPT else "strict"


def keeps_branches(config: Config) -> bool:
    """Whether the trained model has branches: those of a decider that keeps them, or of resilient gammas."""
    rules = [{"mode": config["mode"]}, *parse_groups(config["gamma_groups"]).values()]
    return config["relaxed"] and (deployed(config) == "relaxed" or any(r.get("mode") == "resilient" for r in rules))


def switch_off_equal(model: nn.Module, config: Config) -> None:
    """Switches off the branches whose gammas are constrained to zero, where `groups` has both kinds."""
    if not config["gamma_groups"]:
        return
    names = {id(p): name for name, p in model.named_parameters()}
    layers = gated_layers(model)
    gates = [(layer, [names[id(gamma)] for gamma in layer.get_gammas()]) for layer in layers]
    own = [name for _, found in gates for name in found]
    rules = Rules(Rule(resilient=config["mode"] == "resilient", epsilon=config["epsilon"]),
                  parse_groups(config["gamma_groups"]), own, 0)
    kept = {name: rules.may_return(i) for i, name in enumerate(own)}
    for layer, found in gates:
        layer.snapped = tuple(not kept[name] for name in found)


def make_relaxation(model: nn.Module, config: Config, steps: int) -> relaxation.Relaxation | None:
    """The decider of a config; None for a strict model.

    Args:
        steps: of the whole training.

    Raises:
        ValueError: the model cannot take it.
    """
    if not config["relaxed"]:
        return None
    name = config["relaxation"]
    gamma = config["gamma_init"]
    if name == "ace":
        options = {key: config[key] for key in _ACE}
        options |= {"mode": config["mode"], "lr": config["gamma_lr"], "slack_lr": config["slack_lr"] or None,
                    "groups": parse_groups(config["gamma_groups"]), "warmup": config["dual_warmup"],
                    "patience": config["gate_patience"]}
    elif name == "schedule":
        options = {"lie": config["lie"], "peak": gamma, "initial": config["branch_init"]}
    elif name == "rpp":
        options = {"branch": config["prior_branch"], "equivariant": config["prior_equivariant"],
                   "initial": config["branch_init"], "gamma": gamma}
    elif name == "per":
        options = {"groups": groups_of(config), "strength": config["strength"],
                   "adjust": config["adjust"], "gamma": gamma}
    else:
        options = {"beta": config["beta"], "balance": config["balance"], "gamma": gamma}
    return relaxation.make(name, model, steps=steps, **options)
