"""The step size of the weights over a run: warm-up, its course, and how it grows with the batch."""

from __future__ import annotations

import math

from .options import Config

_MILESTONES = (0.8, 0.9)  # shares of the epochs after which "multistep" divides by 10
_POWERS = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}


def step_size(config: Config, step: int, steps: int) -> float:
    """In step number `step` (from 0), of `steps` an epoch; of nothing else, so that a resumed run has the same.

    .. math:: lr \\cdot (B / B_0)^p \\cdot \\min(1, (step + 1) / (warmup \\cdot steps)) \\cdot course(step)

    with p = 1 for linear scaling (Goyal et al. 2017, which also has the warm-up) and 1/2 for sqrt (Krizhevsky 2014).
    """
    size = config["lr"] * course(config["lr_schedule"], step, steps, config["epochs"], config["decay_every"],
                                 config["decay_by"])
    if config["lr_scaling"] != "none":
        size *= (config["batch_size"] / config["lr_batch"]) ** _POWERS[config["lr_scaling"]]
    warm = config["warmup"] * steps
    return size * min(1.0, (step + 1) / warm) if warm else size


def course(schedule: str, step: int, steps: int, epochs: int, every: int = 10, by: float = 0.5) -> float:
    """What a step size is multiplied by in step number `step`, of `steps` an epoch.

    "multistep" is torch's MultiStepLR with milestones at 80 % and 90 % of the epochs, rounded down; one at 0 is left
    out. "step" is its StepLR, times `by` every `every` epochs.
    """
    epoch = step // steps
    if schedule == "cosine":
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))
    if schedule == "multistep":
        return 0.1 ** sum(0 < int(share * epochs) <= epoch for share in _MILESTONES)
    if schedule == "step":
        return by ** (epoch // every)
    return 1.0
