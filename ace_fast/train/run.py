"""The folder of a run: its settings, metrics and checkpoints, and the trained model that `load` gives back."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_tree, load_weights, save_tree, save_weights, write_atomic
from .options import OPTIONS, Config, make_config
from .predict import Predictor
from .task import check_device

FORMAT = 1  # of config.json and state.safetensors
# What a kill leaves of a file that write_atomic was writing.
_TEMPORARY = re.compile(r"\.(config\.json|metrics\.jsonl|report\.html|\w+\.safetensors)\.[0-9a-f]{32}")
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


class Run:
    """Reads and writes the files of one run folder.

    config.json, metrics.jsonl (one line per epoch), weights.safetensors (last), best.safetensors (best validation
    error of the strict model), state.safetensors (all that resuming needs), the plots and report.html.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.state_path = self.folder / "state.safetensors"

    def create(self, preset: str, config: Config) -> None:
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
        about = {"format": FORMAT, "preset": preset, "config": config, "versions": versions()}
        about |= {"device_name": device_name(config["device"]), "threads": torch.get_num_threads()}
        about["started"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_atomic(self.folder / "config.json", json.dumps(about, indent=2) + "\n")

    def begun(self) -> bool:
        """Whether the folder holds more than a config.json; what a kill left half-written is removed first."""
        for path in self.folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()
        return any(path.name != "config.json" for path in self.folder.iterdir())

    def about(self) -> dict[str, Any]:
        """config.json: preset, config, versions, device."""
        path = self.folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"run: {self.folder} must be a run folder, got one without config.json")
        try:
            about = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"run: {path} must be JSON, got text that does not parse ({error}); {_REPAIR}") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"run: {path} must be of format {FORMAT}, got another; train the run again")
        _check_about(about, path)
        return about

    def add_metrics(self, row: dict[str, Any]) -> None:
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

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

    def save(self, model: torch.nn.Module, state: dict[str, Any], best: bool) -> None:
        """Weights and training state; a kill between the files does no harm.

        Resuming reads the state alone. Killed before it is written, the run repeats the epoch and writes the best
        weights again; killed after it, `save_last` is what resuming does first.
        """
        if best:
            save_weights(self.folder / CHECKPOINTS["best"], model, {"epoch": state["epoch"], "step": state["step"]})
        save_tree(self.state_path, state)
        self.save_last(model, state["epoch"], state["step"])

    def save_last(self, model: torch.nn.Module, epoch: int, step: int) -> None:
        save_weights(self.folder / CHECKPOINTS["last"], model, {"epoch": epoch, "step": step})

    def load_state(self) -> dict[str, Any] | None:
        """All that resuming needs; None for a run that was stopped before its first checkpoint."""
        if not self.begun():
            return None
        if not self.state_path.exists():
            raise FileNotFoundError(
                f"train: {self.folder} must hold a checkpoint to resume, got none; start afresh with another --out"
            )
        return load_tree(self.state_path)

    def checkpoint(self, which: str) -> Path:
        """The file of checkpoint "best" or "last"; the last where no evaluation has chosen a best one yet."""
        if which not in CHECKPOINTS:
            raise ValueError(f"run: checkpoint must be one of {', '.join(CHECKPOINTS)}, got {which!r}")
        path = self.folder / CHECKPOINTS[which]
        return path if path.exists() else self.folder / CHECKPOINTS["last"]


def _check_about(about: dict[str, Any], path: Path) -> None:
    """Raises ValueError where config.json lacks something or a setting is of the wrong type or out of range."""
    kinds = {"preset": str, "config": dict, "versions": dict, "device_name": str, "threads": int}
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            got = type(about[name]).__name__ if name in about else "nothing"
            raise ValueError(f"run: {path} must hold {name!r} as {kind.__name__}, got {got}; {_REPAIR}")
    missing = [name for name in OPTIONS if name not in about["config"]]
    if missing:
        raise ValueError(f"run: {path} must hold every setting, got none for {', '.join(missing)}; {_REPAIR}")
    try:
        make_config(about["preset"], about["config"])
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
) -> Predictor:
    """The trained model of a run folder, ready to predict.

    Args:
        run: the folder.
        checkpoint: "best" (validation error of the strict model) or "last".
        relaxed: whether the branches are on; None: on where the run was trained with mode resilient, otherwise off.
        device, backend: other than the run was trained with.

    Raises:
        FileNotFoundError: not a run folder, or one without checkpoint.
        ValueError: the checkpoint is of another model or damaged, or the device or backend is not there.

    Example:
        >>> import ace_fast
        >>> model = ace_fast.load("runs/demo")  # doctest: +SKIP
        >>> model.predict(pos, vel, charges)  # doctest: +SKIP
    """
    found = Run(run)
    config = dict(found.about()["config"])
    config |= {name: value for name, value in (("device", device), ("backend", backend)) if value is not None}
    check_device(config)
    predictor = Predictor(config)
    header = load_weights(found.checkpoint(checkpoint), predictor.model)
    predictor.epoch = header.get("epoch")
    predictor.set_relaxed(config["relaxed"] and config["mode"] == "resilient" if relaxed is None else relaxed)
    return predictor
