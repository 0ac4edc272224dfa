"""Training of any task in plain PyTorch: epochs, evaluations, checkpoints, interruption and resuming."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..relaxation import ACE
from . import options, report
from .checkpoint import all_finite, load_into, load_weights, save_weights
from .evaluate import Evaluator, followed, gammas_of, recalibrates
from .options import Config
from .progress import EpochProgress
from .relaxing import depends_on_epochs, deployed, make_relaxation
from .run import Run, build, check_device, use_threads
from .tasks import find

_MILESTONES = (0.8, 0.9)  # shares of the epochs after which "multistep" divides by 10
_FREE_ON_RESUME = ("epochs", "data", "threads")  # what a resumed run may set anew


def train(
    out: str | os.PathLike[str] | None = None,
    preset: str = "demo",
    *,
    task: str = "nbody",
    resume: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Run:
    """Trains the model of a task on its data and leaves a run folder.

    Args:
        out: the run folder; by default runs/<task>-<preset>-<time>.
        preset: "demo", "paper", "original_code" or another one of the task.
        task: "nbody" (SEGNN), "qm9" (SEGNN or SchNet), "modelnet" (VN-DGCNN), "mocap" (EGNO), or
            "md17" (SchNet).
        resume: continue the run in `out`; its own task and settings are used, and `given` may change only epochs
            (under a constant lr_schedule), data and threads.
        quiet: no progress on stderr.
        given: settings over those of the preset, see `ace-fast train TASK --help`.

    Returns:
        The run, with `folder` and `metrics()`.

    Raises:
        ValueError: a task or setting is unknown or out of range, or differs from the run's own on resuming.
        FileExistsError: the folder exists and resume is False.
        FloatingPointError: the loss became NaN or infinite; the last good checkpoint stays.
        KeyboardInterrupt: Ctrl-C; the step was finished and a checkpoint saved.

    Example:
        >>> run = train("runs/short", epochs=2)  # doctest: +SKIP
    """
    given = {name: os.fspath(value) if name == "data" else value for name, value in given.items()}
    if resume:
        if out is None:
            raise ValueError("train: --resume needs the folder of the run: pass it as --out")
        run = Run(out)
        about, state = run.about(), run.load_state()
        run.metrics()  # damaged lines are found here, before anything is changed
        task, config = about["task"], _resumed(about["task"], about["config"], given)
    else:
        config, state = options.make_config(find(task), preset, given), None
        run = Run(out or Path("runs") / f"{task}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    check_device(config)
    use_threads(config)
    # The folder comes before the data, so that one that cannot be used costs no time.
    if not resume:
        run.create(task, preset, config)
    training = _Training(run, config, quiet)
    if state:
        training.load(state)
    else:
        training.save(best=False)
    try:
        training.loop()
    finally:
        report.write(run)
    return run


def _resumed(task: str, config: Config, given: Mapping[str, Any]) -> Config:
    """The saved settings with what may be set anew; anything else must be as it was."""
    config = dict(config)
    asked = options.make_config(find(task), options.DEFAULT_PRESET, {**config, **given})
    for name in given:
        if asked[name] != config[name] and name not in _FREE_ON_RESUME:
            raise ValueError(
                f"train: {options.flag(name)} must be {config[name]} as in the run that is resumed, got {asked[name]}; "
                "leave it out or start another run with another --out"
            )
    timetables = [f"{config['lr_schedule']} schedule"] if config["lr_schedule"] != "constant" else []
    timetables += [f"relaxation {config['relaxation']}"] if depends_on_epochs(config) else []
    if asked["epochs"] != config["epochs"] and timetables:
        raise ValueError(
            f"train: --epochs must be {config['epochs']} as in the run that is resumed, got {asked['epochs']}: its "
            f"{timetables[0]} depends on them; start another run with another --out"
        )
    return asked


class _Training:
    """All that changes while a run trains."""

    def __init__(self, run: Run, config: Config, quiet: bool) -> None:
        about = run.about()
        self.run, self.config, self.quiet = run, config, quiet
        self.name, self.task = about["task"], find(about["task"])
        valid, test, data = (self.task.load(config, split, quiet) for split in ("valid", "test", "train"))
        # A resumed run keeps the facts it began with.
        facts = about["facts"] or self.task.facts(data)
        self.training = self.task.Training(config, facts, data)
        self.batches = self.training.batches
        inputs = self.training.inputs() if recalibrates(config) else None
        self.evaluator = Evaluator(self.task, config, facts, valid, test, inputs)
        run.keep_facts(facts)
        torch.manual_seed(config["seed"])
        self.model = build(self.task, config, facts)
        self.relaxation = make_relaxation(self.model, config, config["epochs"] * len(self.batches))
        weights = self.relaxation.primal_parameters() if self.relaxation else list(self.model.parameters())
        self.optimizer = make_optimizer(weights, config)
        self.step, self.epoch = 0, 0  # done so far
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=config["device"])  # of this epoch's steps so far
        self.seconds = 0.0  # spent on this epoch so far
        self.best = math.inf if self.task.BEST is min else -math.inf
        self.stop = False  # set by Ctrl-C

    def state(self) -> dict[str, Any]:
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "batcher": self.batches.state_dict(),
            "rng": torch.get_rng_state(),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "best": self.best,
        }
        if self.relaxation:
            state["relaxation"] = self.relaxation.state_dict()
        if torch.device(self.config["device"]).type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.config["device"])
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        load_into(self.model, state["model"], self.run.state_path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batcher"])
        torch.set_rng_state(state["rng"])
        if self.relaxation:
            self.relaxation.load_state_dict(state["relaxation"])
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.config["device"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.loss_sum, self.seconds = state["loss_sum"].to(self.loss_sum.device), state["seconds"]
        self.run.save_last(self.model, self.epoch, self.step)
        # A kill between the metrics and the checkpoint leaves lines that will be measured again.
        self.run.keep_metrics(row for row in self.run.metrics() if row["epoch"] <= self.epoch)

    def save(self, best: bool) -> None:
        if not all_finite(self.model):
            self._diverged()
        self.run.save(self.model, self.state(), best)

    def loop(self) -> None:
        epochs = self.config["epochs"]
        if self.epoch < epochs:
            self.run.drop_evaluation()
        with _finish_step_on_interrupt(self), EpochProgress(self.epoch, epochs, len(self.batches), self.quiet) as shown:
            while self.epoch < epochs:
                self._train_epoch(shown)
                row = self._finish_epoch()
                shown.epoch(row)
                self._stop_if_asked()
        if self.task.CURVES:
            self._measure_best()

    def _measure_best(self) -> None:
        """Measures the best checkpoint with all curves, and keeps its strict model where that is recalibrated."""
        header = load_weights(self.run.checkpoint("best"), self.model)
        found = {"checkpoint": "best", "epoch": header["epoch"]} | gammas_of(self.model)
        found |= self.evaluator.measure(self.model, curves=True)
        if recalibrates(self.config):
            with self.evaluator.recalibrated(self.model):
                save_weights(self.run.strict_path, self.model, header)
        self.run.keep_evaluation(found)

    def _train_epoch(self, shown: EpochProgress) -> None:
        start, before = time.perf_counter(), self.seconds
        self.model.train()
        for batch in self.batches:
            self._set_lr()
            loss = self.training.loss(self.model, batch)
            self.optimizer.zero_grad()
            (loss + self._penalty(loss, batch)).backward()
            if self.config.get("clip"):
                torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.config["clip"])
            self.optimizer.step()
            if self.relaxation:
                self.relaxation.step()
            self.loss_sum += loss.detach()
            self.step += 1
            self.seconds = before + time.perf_counter() - start
            shown.step()
            if self.step % len(self.batches):
                self._stop_if_asked()

    def _penalty(self, loss: torch.Tensor, batch: Any) -> torch.Tensor | float:
        """What the decider adds to the loss of a batch."""
        if self.relaxation is None:
            return 0.0
        return self.relaxation.penalty(loss, lambda: self.training.loss(self.model, self.training.turned(batch)))

    def _finish_epoch(self) -> dict[str, Any]:
        """Measures, writes the metrics line and the checkpoint, and clears the sums of the epoch."""
        mean = float(self.loss_sum) / len(self.batches)
        if not math.isfinite(mean):
            self._diverged()
        self.epoch += 1
        row: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "train_loss": mean}
        row["lr"] = self._lr(self.step - 1)
        if self.relaxation:
            row |= {name: value.tolist() for name, value in self.relaxation.metrics().items()}
        if self.epoch % self.config["eval_every"] == 0 or self.epoch == self.config["epochs"]:
            row |= self.evaluator.measure(self.model)
            row |= self._diagnose(self.relaxation, row) if isinstance(self.relaxation, ACE) else {}
        row["seconds"] = round(self.seconds, 4)
        before, self.best = self.best, self.task.BEST(self.best, row.get(f"valid_{deployed(self.config)}", self.best))
        self.loss_sum.zero_()
        self.seconds = 0.0
        self.run.add_metrics(row)
        self.save(best=self.best != before)
        return row

    def _diagnose(self, ace: ACE, row: Mapping[str, Any]) -> dict[str, Any]:
        """Writes what the gates say; returns what of it is followed over the epochs."""
        found = self.evaluator.diagnose(ace, row["equivariance_relaxed"])
        self.run.keep_diagnosis(found)
        return followed(found)

    def _lr(self, step: int) -> float:
        return self.config["lr"] * course(self.config["lr_schedule"], step, len(self.batches), self.config["epochs"])

    def _set_lr(self) -> None:
        lr = self._lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if isinstance(self.relaxation, ACE) and self.config.get("gammas_follow"):
            step = lr / self.config["lr"]
            slack = self.config["slack_lr"] or self.config["gamma_lr"]
            rule = self.relaxation.rule
            self.relaxation.rule = rule._replace(lr=step * self.config["gamma_lr"], slack_lr=step * slack)

    def _stop_if_asked(self) -> None:
        if not self.stop:
            return
        if self.step % len(self.batches):
            if not math.isfinite(float(self.loss_sum)):
                self._diverged()
            self.save(best=False)
        again = f"ace-fast train {self.name} --resume --out {self.run.folder}"
        raise KeyboardInterrupt(f"stopped after {self.step} steps; continue with: {again}")

    def _diverged(self) -> None:
        raise FloatingPointError(
            f"train: the loss must stay finite, got NaN or infinity in epoch {self.epoch + 1}; the last good "
            f"checkpoint is kept in {self.run.folder}; train again with a smaller --lr or with --bound spectral"
        )


def course(schedule: str, step: int, steps: int, epochs: int) -> float:
    """What a step size is multiplied by in step number `step`, of `steps` an epoch.

    It depends on nothing else, so that a resumed run has the same. "multistep" is torch's MultiStepLR with milestones
    at 80 % and 90 % of the epochs, rounded down; one at 0 is left out.
    """
    if schedule == "cosine":
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))
    if schedule == "multistep":
        epoch = step // steps
        return 0.1 ** sum(0 < int(share * epochs) <= epoch for share in _MILESTONES)
    return 1.0


def make_optimizer(weights: list[torch.nn.Parameter], config: Config) -> torch.optim.Optimizer:
    settings = {"lr": config["lr"], "weight_decay": config["weight_decay"], "fused": True}
    if config.get("optimizer", "adam") == "adam":
        return torch.optim.Adam(weights, **settings)
    return torch.optim.SGD(weights, momentum=config["momentum"], **settings)


@contextmanager
def _finish_step_on_interrupt(training: _Training) -> Iterator[None]:
    """The first Ctrl-C asks the loop to stop after the step, the second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if training.stop:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is that of the last epoch")
        training.stop = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
