"""Training of any task in plain PyTorch: epochs, evaluations, checkpoints, interruption and resuming."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..relaxation import ACE
from . import loggers, options, processes, replay, report
from .checkpoint import all_finite, load_into, load_weights, save_weights
from .evaluate import Evaluator, followed, gammas_of, recalibrates
from .options import Config
from .processes import Processes
from .progress import EpochProgress
from .relaxing import depends_on_epochs, deployed, make_relaxation
from .run import Run, build, check_decider, check_device, use_threads, versions
from .schedule import course, step_size
from .setup import make_optimizer, prepared
from .steps import Average, Failure, Stepper
from .tasks import find, sharded

__all__ = ["course", "train"]

# what a resumed run may set anew
_FREE_ON_RESUME = ("epochs", "data", "shards", "threads", "patience", "nan", "checkpoint_every", "keep", "tensorboard",
                   "wandb")


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
            (under a constant lr_schedule), data, shards, threads, patience, nan, checkpoint_every, keep and loggers.
        quiet: no progress on stderr.
        given: settings over those of the preset, see `ace-fast train TASK --help`.

    Returns:
        The run, with `folder` and `metrics()`.

    Raises:
        ValueError: a task or setting is unknown or out of range, or differs from the run's own on resuming.
        FileExistsError: the folder exists and resume is False.
        FloatingPointError: the loss became NaN or infinite; the last good checkpoint and the batch stay.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step was finished and a checkpoint saved.

    Started by torchrun, its processes train together (docs/training.md).

    Example:
        >>> run = train("runs/short", epochs=2)  # doctest: +SKIP
    """
    given = {name: os.fspath(value) if name in ("data", "shards") else value for name, value in given.items()}
    with processes.joined() as group:
        # The folder comes before the data, so that one that cannot be used costs no time.
        run, about, state = group.from_first(lambda: _begin(group, out, preset, task, resume, given))
        config = processes.own_device(group, about["config"])
        with group.agreed():
            check_device(config)
            use_threads(config)
            training = _Training(run, about | {"config": config}, quiet or not group.first, group)
            if state:
                training.load(state)
        if not state:
            training.save(best=False)
        try:
            training.loop()
        except BaseException:
            with suppress(OSError):  # a full disk has been reported
                training.report()
            raise
        training.report()
    return run


def _begin(
    group: Processes, out: str | os.PathLike[str] | None, preset: str, task: str, resume: bool, given: Mapping[str, Any]
) -> tuple[Run, dict[str, Any], dict[str, Any] | None]:
    """The run, what its config.json says with the settings of now, and the state to go on from; all is checked."""
    again = processes.restarts()
    resume = resume or bool(out and again and (Path(out) / "config.json").exists())
    if resume:
        if out is None:
            raise ValueError("train: --resume needs the folder of the run: pass it as --out")
        run = Run(out)
        about, state = run.about(), run.load_state()
        run.metrics()  # damaged lines are found here, before anything is changed
        config = _resumed(about["task"], about["config"], given)
    else:
        config, state = options.make_config(find(task), preset, given), None
        run = Run(out or Path("runs") / f"{task}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    processes.check(group, config, out)
    loggers.check(config)
    check_device(config)
    if not resume:
        if again:
            raise FileNotFoundError(f"train: --out must be a folder that all machines share, got {out} without a run "
                                    f"at restart {again}; name such a folder, or start where the run lies")
        check_decider(find(task), config)
        if config.get("shards"):
            sharded.verify(find(task), config)
        use_threads(config)
        run.create(task, preset, config)
        about = run.about()
    return run, about | {"config": config}, state


def _resumed(task: str, config: Config, given: Mapping[str, Any]) -> Config:
    """The saved settings with what may be set anew; anything else must be as it was."""
    config = dict(config)
    asked = options.make_config(find(task), options.DEFAULT_PRESET, {**config, **given})
    for name in given:
        moved = name in _FREE_ON_RESUME and (name != "shards" or asked[name] and config[name])
        if asked[name] != config[name] and not moved:
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

    def __init__(self, run: Run, about: Mapping[str, Any], quiet: bool, group: Processes) -> None:
        self.run, self.quiet, self.group = run, quiet, group
        self.name, self.task, self.config = about["task"], find(about["task"]), about["config"]
        config = self.config
        with group.in_turn():
            wanted = ("valid", "test", "train") if group.first else ("train",)
            *others, data = (self.task.load(config, split, quiet) for split in wanted)
        # A resumed run keeps the facts it began with.
        facts = about["facts"] or self.task.facts(data)
        self.training = self.task.Training(config, facts, data)
        self.batches, least = self.training.batches, getattr(self.task, "LEAST", 1)
        self.batches.shard(group.rank, group.world, config["accumulate"], least)
        self.samples = len(data)
        if group.first:
            inputs = self.training.inputs() if recalibrates(config) else None
            self.evaluator = Evaluator(self.task, config, facts, *others, inputs)
            run.keep_facts(facts)
        torch.manual_seed(config["seed"])
        self.model = prepared(build(self.task, config, facts), config, group)
        if not group.first:
            torch.manual_seed((config["seed"] + group.rank) % options.SEED)  # dropout differs between processes
        self.relaxation = make_relaxation(self.model, config, config["epochs"] * len(self.batches))
        weights = self.relaxation.primal_parameters() if self.relaxation else list(self.model.parameters())
        self.optimizer = make_optimizer(weights, config)
        self.average = Average(self.model, config["ema"]) if config["ema"] else None
        self.stepper = Stepper(self.model, self.optimizer, self.relaxation, self.training, config, group,
                               self._diverged)
        self.id, self.log = about["id"], None
        self.versions = versions()
        self.step, self.epoch = 0, 0  # done so far
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=config["device"])  # of this epoch's steps so far
        self.seconds = 0.0  # spent on this epoch so far
        self.best = math.inf if self.task.BEST is min else -math.inf
        self.since = 0  # evaluations since the best one
        self.asked = False  # set by Ctrl-C

    @property
    def shown(self) -> torch.nn.Module:
        """What is measured and kept: the model, or the average of its weights."""
        return self.average.model if self.average else self.model

    def state(self) -> dict[str, Any]:
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "batcher": self.batches.state_dict(),
            "rng": self.group.gather(torch.get_rng_state()),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "skipped": self.stepper.skipped,
            "seconds": self.seconds,
            "best": self.best,
            "since": self.since,
            "versions": self.versions,
        }
        if self.average:
            state["average"] = {"model": dict(self.average.model.state_dict()), "steps": self.average.steps}
        if self.relaxation:
            state["relaxation"] = self.relaxation.state_dict()
        if torch.device(self.config["device"]).type == "cuda":
            state["cuda_rng"] = self.group.gather(torch.cuda.get_rng_state(self.config["device"]))
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        load_into(self.model, state["model"], self.run.state_path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batcher"])
        # A process that was not there keeps its seed.
        if (rng := self.group.own(state["rng"], torch.get_rng_state())) is not None:
            torch.set_rng_state(rng)
        if self.relaxation:
            self.relaxation.load_state_dict(state["relaxation"])
        if self.average:
            load_into(self.average.model, state["average"]["model"], self.run.state_path)
            self.average.steps = state["average"]["steps"]
        if "cuda_rng" in state:
            device = self.config["device"]
            if (rng := self.group.own(state["cuda_rng"], torch.cuda.get_rng_state(device))) is not None:
                torch.cuda.set_rng_state(rng, device)
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.since, self.stepper.skipped = state.get("since", 0), state.get("skipped", 0)
        self.loss_sum, self.seconds = state["loss_sum"].to(self.loss_sum.device), state["seconds"]
        if not self.group.first:
            return
        then, now = state.get("versions", {}), self.versions
        if changed := [name for name in ("ace_fast", "torch", "numpy") if then.get(name, now[name]) != now[name]]:
            was = ", ".join(f"{name} {then[name]}" for name in changed)
            warnings.warn(f"the run began with {was}; its numbers may differ in their last bits from here on",
                          stacklevel=3)
        self.run.save_last(self.shown, self.epoch, self.step)
        # A kill between the metrics and the checkpoint leaves lines that will be measured again.
        self.run.keep_metrics(row for row in self.run.metrics() if row["epoch"] <= self.epoch)
        replay.drop(self.run)

    def save(self, best: bool) -> None:
        self.stepper.finish()
        if not all_finite(self.model):
            raise FloatingPointError(self._divergence())
        state = self.state()
        if self.group.first:
            self.run.save(self.shown, state, best, self.config["keep"])

    def report(self) -> None:
        if self.group.first:
            report.write(self.run)
            if self.log:
                self.log.close()

    def loop(self) -> None:
        epochs = self.config["epochs"]
        self.group.share_weights(self.model)
        if self.group.first:
            self.log = loggers.Loggers(self.config, self.run.folder, self.id, self.step)
            if self.epoch < epochs:
                self.run.drop_evaluation()
        with _finish_step_on_interrupt(self), EpochProgress(
            self.epoch, epochs, len(self.batches), self.quiet, self.samples
        ) as shown:
            while self.epoch < epochs and not self._patience_is_over():
                self._train_epoch(shown)
                row = self._finish_epoch()
                shown.epoch(row)
                self._stop_if_asked()
        if self._patience_is_over() and not self.quiet:
            print(f"stopped after epoch {self.epoch}: nothing better on validation data in {self.since} evaluations",
                  file=sys.stderr, flush=True)
        if self.task.CURVES and self.group.first:
            self._measure_best()

    def _patience_is_over(self) -> bool:
        return 0 < self.config["patience"] <= self.since

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
            self.stepper.add(batch)
            if not self.batches.last:
                continue
            self._set_lr()
            self.loss_sum += self.stepper.apply(self.asked)
            if self.average:
                self.average.update(self.model)
            self.step += 1
            self.seconds = before + time.perf_counter() - start
            shown.step()
            if self.step % len(self.batches):
                self._stop_if_asked()
                self._save_within_an_epoch()
        self.stepper.finish()

    def _save_within_an_epoch(self) -> None:
        every = self.config["checkpoint_every"]
        if every and self.step % every == 0:
            self.save(best=False)

    def _finish_epoch(self) -> dict[str, Any]:
        """Measures, writes the metrics line and the checkpoint, and clears the sums of the epoch."""
        mean = float(self.loss_sum) / max(1, len(self.batches) - self.stepper.skipped)
        self.epoch += 1
        row: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "train_loss": mean}
        row["lr"] = step_size(self.config, self.step - 1, len(self.batches))
        if self.stepper.skipped:
            row["left_out"] = self.stepper.skipped
        if self.relaxation:
            row |= {name: value.tolist() for name, value in self.relaxation.metrics().items()}
        measured = self.epoch % self.config["eval_every"] == 0 or self.epoch == self.config["epochs"]
        if measured:
            row |= self.group.from_first(self._measured)
        row["seconds"] = round(self.seconds, 4)
        before, self.best = self.best, self.task.BEST(self.best, row.get(f"valid_{deployed(self.config)}", self.best))
        self.since = 0 if self.best != before else self.since + measured
        self.loss_sum.zero_()
        self.seconds, self.stepper.skipped = 0.0, 0
        self.group.check_alike(self.model, self.relaxation)
        if self.group.first:
            self.run.add_metrics(row)
            self.log.write(row)
        self.save(best=self.best != before)
        return row

    def _measured(self) -> dict[str, Any]:
        """What is measured at an evaluation, and what the gates say, which is written too."""
        row = self.evaluator.measure(self.shown)
        if not isinstance(self.relaxation, ACE):
            return row
        # The gates are those of training; an average has no ACE, and another error.
        found = self.evaluator.diagnose(self.relaxation, None if self.average else row.get("equivariance_relaxed"))
        self.run.keep_diagnosis(found)
        return row | followed(found)

    def _set_lr(self) -> None:
        lr = step_size(self.config, self.step, len(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if isinstance(self.relaxation, ACE) and self.config.get("gammas_follow"):
            step = lr / self.config["lr"]
            slack = self.config["slack_lr"] or self.config["gamma_lr"]
            rule = self.relaxation.rule
            self.relaxation.rule = rule._replace(lr=step * self.config["gamma_lr"], slack_lr=step * slack)

    def _stop_if_asked(self) -> None:
        # Of several processes all must stop after the same step, which the gradients' sum tells them.
        if not (self.stepper.stop or self.asked and self.group.world == 1):
            return
        if self.step % len(self.batches):
            self.save(best=False)
        again = f"ace-fast train {self.name} --resume --out {self.run.folder}"
        raise KeyboardInterrupt(f"stopped after {self.step} steps; continue with: {again}")

    def _diverged(self, failure: Failure) -> None:
        """Keeps the batch and stops."""
        with suppress(OSError):  # on a full disk the message is what counts
            replay.keep(self.run, failure, self.model, self.group.rank, self.epoch, self.step)
        raise FloatingPointError(self._divergence())

    def _divergence(self) -> str:
        return (
            f"train: the loss must stay finite, got NaN or infinity in epoch {self.epoch + 1}; the last good "
            f"checkpoint is kept in {self.run.folder}; see where it begins with: ace-fast replay {self.run.folder}; "
            "train again with a smaller --lr or with --bound spectral, or resume with --nan skip"
        )


@contextmanager
def _finish_step_on_interrupt(training: _Training) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the loop to stop after the step, the second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if training.asked:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is that of the last epoch")
        training.asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
