"""What is measured of a model: the task's measure, strict and relaxed, its equivariance error, its branches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .. import relaxation
from .measure import evaluating
from .options import Config
from .run import Run, load, use_threads
from .tasks import find


class Evaluator:
    """Measures models on the validation and test data of a task.

    Args:
        task, config, facts: of the run.
        valid, test: the data.
        inputs: of the training data, for models whose batch norms are recalibrated.
    """

    def __init__(
        self, task: ModuleType, config: Config, facts: dict[str, Any], valid: Any, test: Any,
        inputs: Iterable[Tensor] | None = None,
    ) -> None:
        self.config, self._inputs = config, inputs
        self._evaluation = task.Evaluation(config, facts, valid, test)

    def modes(self) -> dict[str, bool]:
        """{"strict": False, "relaxed": True}, or the strict model alone where there are no branches."""
        return {"strict": False, "relaxed": True} if self.config["relaxed"] else {"strict": False}

    def measure(self, model: nn.Module, curves: bool = False) -> dict[str, Any]:
        """valid_, test_, equivariance_ and the task's own numbers, strict and relaxed, and branch_ratios."""
        found: dict[str, Any] = dict(self._evaluation.fixed)
        for mode, relaxed in self.modes().items():
            with nullcontext() if relaxed else self.recalibrated(model), evaluating(model, relaxed):
                numbers = self._evaluation.measure(model)
                numbers |= self._evaluation.curves(model) if curves else {}
            found |= {f"{name}_{mode}": value for name, value in numbers.items()}
        if self.config["relaxed"]:
            with evaluating(model, True), model.probe() as ratios:
                self._evaluation.probe(model)
            # |gamma| ||f_neq(x)|| / ||f_eq(x)|| of every relaxed map that is on, in the order of the gammas
            found["branch_ratios"] = torch.stack(ratios).tolist() if ratios else []
        return found

    def diagnose(self, ace: relaxation.ACE, error: float | None) -> dict[str, Any]:
        """`ACE.diagnose` on the graphs that the equivariance error, `error`, was measured on."""
        return ace.diagnose(lambda: self._evaluation.probe(ace.model), error=error)

    @contextmanager
    def recalibrated(self, model: nn.Module) -> Iterator[None]:
        """The batch norms with the statistics of the strict model; those of training afterwards.

        Nothing happens where the config does not ask for it, or where the model was trained without branches.
        """
        if not recalibrates(self.config):
            yield
            return
        before = {name: x.clone() for name, x in model.named_buffers()}
        try:
            relaxation.recalibrate(model, self._inputs)
            yield
        finally:
            with torch.no_grad():
                for name, x in model.named_buffers():
                    x.copy_(before[name])


def recalibrates(config: Config) -> bool:
    return bool(config.get("recalibrate")) and config["relaxed"]


def evaluate_run(
    folder: str | os.PathLike[str],
    checkpoint: str = "best",
    data: str | None = None,
    *,
    device: str | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Measures a checkpoint of a run folder on the whole validation and test data.

    Args:
        folder: the run.
        checkpoint: "best" or "last".
        data: where the data lie, if not where the run found them.
        device, backend: other than the run was trained with.

    Returns:
        The keys of `Evaluator.measure`, and gammas, checkpoint and epoch.
    """
    about = Run(folder).about()
    task, facts = find(about["task"]), about["facts"]
    # Trained branches are measured too: the weights must be those of training.
    predictor = load(folder, checkpoint, relaxed=about["config"]["relaxed"], device=device, backend=backend)
    config = predictor.config | ({} if data is None else {"shards" if predictor.config.get("shards") else "data": data})
    use_threads(config)
    valid, test = (task.load(config, split, False) for split in ("valid", "test"))
    inputs = task.Training(config, facts, task.load(config, "train", False)).inputs() if recalibrates(config) else None
    evaluator = Evaluator(task, config, facts, valid, test, inputs)
    found: dict[str, Any] = {"checkpoint": checkpoint, "epoch": predictor.epoch}
    return found | gammas_of(predictor.model) | evaluator.measure(predictor.model, task.CURVES)


def followed(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """What of a diagnosis is followed over the epochs, lists in the order of the gammas; see docs/relaxation.md."""
    gates = diagnosis["gates"]
    lists = {"branch_ratios": "ratio", "equivariant_shares": "share", "amplifications": "amplification",
             "snapped": "snapped", "verdicts": "verdict"}
    found = {name: [gate[key] for gate in gates] for name, key in lists.items()}
    return found | {"truncation": diagnosis["truncation"], "equivariance_bound": diagnosis["bound"],
                    "equivariance_bound_by_gate": diagnosis["bound_by_gate"]}


def gammas_of(model: nn.Module) -> dict[str, list[float]]:
    return {"gammas": [float(gamma.detach()) for gamma in model.get_gammas()]}
