"""The model of a run as it is trained, and its optimiser."""

from __future__ import annotations

import torch
from torch import nn

from ..nn.sync_norm import synchronise
from .options import Config
from .processes import Processes


def prepared(model: nn.Module, config: Config, group: Processes) -> nn.Module:
    """The model with what several processes and torch.compile need."""
    if config["sync_batch_norm"] and group.world > 1:
        model = synchronise(model)
    if config["compile"] != "none":
        model.compile(backend=config["compile"])
    return model


def make_optimizer(weights: list[nn.Parameter], config: Config) -> torch.optim.Optimizer:
    settings = {"lr": config["lr"], "weight_decay": config["weight_decay"], "fused": True}
    if config.get("optimizer", "adam") == "adam":
        return torch.optim.Adam(weights, **settings)
    return torch.optim.SGD(weights, momentum=config["momentum"], **settings)
