"""The models that the N-body task trains; all read the graph that `nbody_graph` makes and say displacements."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...models.nbody import NBodyEGNN, NBodyGNN
from ...models.segnn import SEGNN
from ..options import Config, flag

INPUTS = "2x1o + 1x0e"  # position, velocity, speed
_CHANNELS = 8  # of the vectors that tell bodies apart


def _segnn(config: Config) -> SEGNN:
    half = config["hidden"] // 2
    attributes = " + ".join(f"1x{l}{'eo'[l % 2]}" for l in range(config["lmax_attr"] + 1))
    return SEGNN(
        INPUTS,
        f"{half}x0e + {half}x1o",
        "1x1o",  # the displacement
        attributes,
        attributes,
        config["layers"],
        norm=None if config["norm"] == "none" else config["norm"],
        task="node",
        additional_message_irreps="2x0e",  # distance, product of the charges
        relaxed=config["relaxed"],
        product=config["product"],
        backend=config["backend"],
    )


def _egnn(config: Config) -> NBodyEGNN:
    return NBodyEGNN(config["layers"], config["hidden"], backend=config["backend"])


def _egnn_sympe(config: Config) -> NBodyEGNN:
    return NBodyEGNN(config["layers"], config["hidden"], places=(config["bodies"], _CHANNELS),
                     backend=config["backend"])


def _gnn(config: Config) -> NBodyGNN:
    return NBodyGNN(config["layers"], config["hidden"], backend=config["backend"])


def _fa_gnn(config: Config) -> NBodyGNN:
    return NBodyGNN(config["layers"], config["hidden"], frames="E(3)", backend=config["backend"])


MODELS: dict[str, Callable[[Config], nn.Module]] = {"segnn": _segnn, "egnn": _egnn, "egnn-sympe": _egnn_sympe,
                                                  "gnn": _gnn, "fa-gnn": _fa_gnn}


def check_model(config: Config) -> None:
    """Raises ValueError where settings do not fit the model."""
    name = config["model"]
    if name == "segnn":
        if config["hidden"] % 2:
            raise ValueError(f"train: {flag('hidden')} must be even, got {config['hidden']}")
        return
    if config["relaxed"]:
        raise ValueError(f"train: --relaxed must be off with --model {name}, which has no branches, got it on; pass "
                         "--strict")
    for option, only in (("norm", "none"), ("product", "clebsch_gordan")):
        if config[option] != only:
            raise ValueError(f"train: {flag(option)} must be {only} with --model {name}, got {config[option]}")
