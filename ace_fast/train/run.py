"""The folder of a run: its settings, metrics and checkpoints, and the trained model that `load` gives back."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .checkpoint import load_tree, load_weights, save_tree, save_weights, write_atomic
from .options import Config, make_config, with_later
from .predict import PredictorBase
from .relaxing import keeps_branches, make_relaxation, switch_off_equal
from .tasks import TASKS, find

FORMAT = 1  # of config.json and state.safetensors
# What a kill leaves of a file that write_atomic was writing.
_TEMPORARY = re.compile(r"\.([\w-]+)\.(jsonl?|html|png|safetensors)\.[0-9a-f]{32}")
_REPAIR = "repair that file or train the run again"
CHECKPOINTS = {"best": "best.safetensors", "last": "weights.safetensors"}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on, and the git revision in a checkout."""
    import e3nn
    import numpy

    from .. import __version__

    found = {"ace_fast": __version__, "torch": torch.__version__, "e3nn": e3nn.__version__}
    found |= {"numpy": numpy.__version__, "python": platform.python_version(), "platform": platform.platform()}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and shutil.which("git"):
        asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
        if asked.returncode == 0:
            found["git"] = asked.stdout.strip()
    return found


def device_name(device: str) -> str:
    """The processor in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_device(config: Config) -> None:
    """Raises ValueError where torch does not have the device of a config, or no operator runs on it."""
    try:
        kind = torch.empty(0, device=config["device"]).device.type
        reason = "" if kind in ("cpu", "cuda") else f"the operators do not run on {kind} tensors"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise ValueError(
            f"run: --device must be cpu or a GPU that is present, got {config['device']!r} ({reason}); use --device "
            "cpu, with --backend auto for a run that names a backend of the GPU"
        )


def use_threads(config: Config) -> None:
    if config["threads"]:
        torch.set_num_threads(config["threads"])


def build(task: ModuleType, config: Config, facts: dict[str, Any]) -> nn.Module:
    """The model of a task with fresh weights drawn from torch's generator, in its dtype and on its device."""
    model = task.build_model(config, facts)
    with torch.no_grad():
        for gamma in model.get_gammas():
            gamma.fill_(config["gamma_init"])
    return model.to(config["device"], getattr(torch, config["dtype"]))


def check_decider(task: ModuleType, config: Config) -> None:
    """Raises ValueError, before there are data, where the model cannot take the decider or has no such gammas."""
    if config["relaxed"] and (config["gamma_groups"] or config["snap"] or config["relaxation"] != "ace"):
        with torch.random.fork_rng(devices=()):
            model = build(task, config | {"device": "cpu"}, task.any_facts(config))
            make_relaxation(model, config, config["epochs"])


class Run:
    """Reads and writes the files of one run folder.

    config.json, metrics.jsonl (one line per epoch), weights.safetensors (last), best.safetensors (best validation
    measure of the strict model), state.safetensors (all that resuming needs; with --keep also state-STEP.safetensors),
    diagnosis.json (what the gates said at the last evaluation), report.html and report.png. A batch that stopped the
    run is in diverged-RANK.safetensors. A task with curves adds evaluation.json (the best checkpoint measured at the
    end), and where the batch norms are recalibrated, strict.safetensors (that checkpoint with the statistics of the
    strict model).
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.state_path = self.folder / "state.safetensors"
        self.strict_path = self.folder / "strict.safetensors"
        self.evaluation_path = self.folder / "evaluation.json"
        self.diagnosis_path = self.folder / "diagnosis.json"

    def create(self, task: str, preset: str, config: Config) -> None:
        """Makes the folder and writes config.json; a folder that holds more than a config.json is left alone."""
        if self.folder.exists() and (not self.folder.is_dir() or self.begun()):
            raise FileExistsError(
                f"train: the run folder {self.folder} exists; continue it with --resume or pass another --out"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"train: the run folder {self.folder} cannot be made ({error.strerror}); pass --out a folder you may "
                "write to",
            ) from error
        about = {"format": FORMAT, "task": task, "preset": preset, "config": config, "versions": versions()}
        about |= {"device_name": device_name(config["device"]), "threads": torch.get_num_threads()}
        about["id"] = uuid.uuid4().hex
        about["started"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._write_about(about)

    def _write_about(self, about: dict[str, Any]) -> None:
        write_atomic(self.folder / "config.json", json.dumps(about, indent=2) + "\n")

    def keep_facts(self, facts: dict[str, Any]) -> None:
        """Adds what the task needs to know of its data to config.json; nothing is written where that is nothing."""
        about = self.about()
        if facts != about["facts"]:
            self._write_about(about | {"facts": facts})

    def begun(self) -> bool:
        """Whether the folder holds more than a config.json; what a kill left half-written is removed first."""
        for path in self.folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()
        return any(path.name != "config.json" for path in self.folder.iterdir())

    def about(self) -> dict[str, Any]:
        """config.json: task, preset, config, facts, versions, device, and an id that no other run has."""
        path = self.folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"run: {self.folder} must be a run folder, got one without config.json")
        try:
            about = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"run: {path} must be JSON, got text that does not parse ({error}); {_REPAIR}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"run: {path} must be of format {FORMAT}, got another; train the run again")
        # Folders from before there was a second task name none; before they had an id, their name was it.
        about = {"task": "nbody", "facts": {}, "id": self.folder.name} | about
        if about["task"] in TASKS and isinstance(about.get("config"), dict):
            about["config"] = with_later(find(about["task"]), about["config"])
        _check_about(about, path)
        return about

    def task(self) -> ModuleType:
        return find(self.about()["task"])

    def evaluation(self) -> dict[str, Any]:
        """What was measured of the best checkpoint at the end; empty where nothing was."""
        if not self.evaluation_path.exists():
            return {}
        try:
            return dict(json.loads(self.evaluation_path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"run: {self.evaluation_path} must be a JSON object, got something else ({error}); remove it and "
                "measure the run with ace-fast evaluate"
            ) from error

    def keep_evaluation(self, result: dict[str, Any]) -> None:
        write_atomic(self.evaluation_path, json.dumps(result, indent=2) + "\n")

    def diagnosis(self) -> dict[str, Any]:
        """What `ACE.diagnose` said at the last evaluation; empty where there was none."""
        return dict(json.loads(self.diagnosis_path.read_text())) if self.diagnosis_path.exists() else {}

    def keep_diagnosis(self, found: dict[str, Any]) -> None:
        write_atomic(self.diagnosis_path, json.dumps(found, indent=2) + "\n")

    def drop_evaluation(self) -> None:
        """Forgets what was measured of an earlier best checkpoint."""
        for path in (self.evaluation_path, self.strict_path):
            path.unlink(missing_ok=True)

    def add_metrics(self, row: dict[str, Any]) -> None:
        path = self.folder / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, f"train: {path} cannot be written ({error.strerror}); the last checkpoint is "
                          "whole: make room and go on with --resume") from error

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that a kill cut off is left out.

        Raises:
            ValueError: any other line is damaged.
        """
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        rows = [_row(line) for line in lines]
        damaged = [number for number, row in enumerate(rows[:-1], 1) if row is None]
        if damaged:
            raise ValueError(
                f"run: {path} must hold one epoch per line, got a damaged line {damaged[0]}; repair or remove that line"
            )
        return [row for row in rows if row is not None]

    def keep_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        write_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def save(self, model: torch.nn.Module, state: dict[str, Any], best: bool, keep: int = 1) -> None:
        """Weights and training state, of which the `keep` latest stay; a kill between the files does no harm.

        Resuming reads the state alone. Killed before it is written, the run repeats the epoch and writes the best
        weights again; killed after it, `save_last` is what resuming does first.
        """
        if best:
            save_weights(self.folder / CHECKPOINTS["best"], model, {"epoch": state["epoch"], "step": state["step"]})
        save_tree(self.state_path, state)
        self._keep_state(state["step"], keep)
        self.save_last(model, state["epoch"], state["step"])

    def _keep_state(self, step: int, keep: int) -> None:
        """A second name for the state just written, and away with the ones beyond `keep`."""
        if keep > 1:
            name = self.folder / f"state-{step:09d}.safetensors"
            name.unlink(missing_ok=True)
            os.link(self.state_path, name)
        for path in self.states()[keep if keep > 1 else 0:]:
            path.unlink()

    def states(self) -> list[Path]:
        """The training states kept beside state.safetensors, the latest first."""
        return sorted(self.folder.glob("state-*.safetensors"), reverse=True)

    def save_last(self, model: torch.nn.Module, epoch: int, step: int) -> None:
        save_weights(self.folder / CHECKPOINTS["last"], model, {"epoch": epoch, "step": step})

    def load_state(self) -> dict[str, Any] | None:
        """All that resuming needs; None for a run that was stopped before its first checkpoint."""
        if not self.begun():
            return None
        paths = [path for path in (self.state_path, *self.states()) if path.exists()]
        if not paths:
            raise FileNotFoundError(
                f"train: {self.folder} must hold a checkpoint to resume, got none; start afresh with another --out"
            )
        for path in paths[:-1]:
            try:
                return load_tree(path)
            except ValueError as error:
                warnings.warn(f"{error}; an earlier one is tried", stacklevel=2)
        return load_tree(paths[-1])

    def checkpoint(self, which: str) -> Path:
        """The file of checkpoint "best" or "last"; the last where no evaluation has chosen a best one yet."""
        if which not in CHECKPOINTS:
            raise ValueError(f"run: checkpoint must be one of {', '.join(CHECKPOINTS)}, got {which!r}")
        path = self.folder / CHECKPOINTS[which]
        return path if path.exists() else self.folder / CHECKPOINTS["last"]


def _check_about(about: dict[str, Any], path: Path) -> None:
    """Raises ValueError where config.json lacks something or a setting is of the wrong type or out of range."""
    kinds = {"task": str, "preset": str, "config": dict, "facts": dict, "versions": dict, "device_name": str,
             "threads": int, "id": str}
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            got = type(about[name]).__name__ if name in about else "nothing"
            raise ValueError(f"run: {path} must hold {name!r} as {kind.__name__}, got {got}; {_REPAIR}")
    try:
        task = find(about["task"])
    except ValueError as error:
        raise ValueError(f"run: {path} must name a task of this version ({error}); {_REPAIR}") from error
    missing = [name for name in task.OPTIONS if name not in about["config"]]
    if missing:
        raise ValueError(f"run: {path} must hold every setting, got none for {', '.join(missing)}; {_REPAIR}")
    try:
        make_config(task, about["preset"], about["config"])
    except ValueError as error:
        raise ValueError(f"run: {path} must hold settings in their range, got others ({error}); {_REPAIR}") from error


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for a damaged one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("epoch"), int) else None


def load(
    run: str | os.PathLike[str],
    checkpoint: str = "best",
    *,
    relaxed: bool | None = None,
    device: str | None = None,
    backend: str | None = None,
) -> PredictorBase:
    """The trained model of a run folder, ready to predict.

    Args:
        run: the folder.
        checkpoint: "best" (by the strict model on validation data) or "last".
        relaxed: whether the branches are on; None: those of resilient gammas are, and all where the run's decider
            keeps them (rpp, per, remul).
        device, backend: other than the run was trained with.

    Returns:
        The predictor of the run's task. Of a run that recalibrates, the best strict model comes with the statistics
        that were recomputed for it; its branches cannot be switched on, load it with relaxed=True for that.

    Raises:
        FileNotFoundError: not a run folder, or one without checkpoint.
        ValueError: the checkpoint is of another model or damaged, or the device or backend is not there.

    Example:
        >>> import ace_fast
        >>> model = ace_fast.load("runs/demo")  # doctest: +SKIP
        >>> model.predict(pos, vel, charges)  # doctest: +SKIP
    """
    found = Run(run)
    about = found.about()
    task, config = find(about["task"]), dict(about["config"])
    config |= {name: value for name, value in (("device", device), ("backend", backend)) if value is not None}
    check_device(config)
    chosen, relaxed = relaxed is None, keeps_branches(config) if relaxed is None else relaxed
    path = found.checkpoint(checkpoint)
    recalibrated = checkpoint == "best" and not relaxed and found.strict_path.exists()
    predictor = task.Predictor(config, about["facts"], build(task, config, about["facts"]))
    header = load_weights(found.strict_path if recalibrated else path, predictor.model)
    predictor.epoch = header.get("epoch")
    predictor.set_relaxed(relaxed)
    if chosen and relaxed:
        switch_off_equal(predictor.model, config)
    predictor.recalibrated = recalibrated
    return predictor
