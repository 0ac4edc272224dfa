"""The metrics of a run for TensorBoard and Weights & Biases, beside metrics.jsonl, which is always written."""

from __future__ import annotations

import importlib
import numbers
from pathlib import Path
from types import ModuleType
from typing import Any

from .options import Config, flag

_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Loggers:
    """Those that a config asks for.

    Args:
        config, folder: of the run.
        name: the run's own, by which Weights & Biases finds it again.
        step: after which it goes on; what was logged of later ones, before a kill, is logged again.

    Raises:
        ValueError: one of them is not installed.
    """

    def __init__(self, config: Config, folder: Path, name: str, step: int) -> None:
        modules = {name: _imported(name) for name in _MODULES if config[name]}
        self._board = self._run = None
        if "tensorboard" in modules:
            self._board = modules["tensorboard"].SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if "wandb" in modules:
            self._run = modules["wandb"].init(project="ace_fast", name=folder.name, id=name, resume="allow",
                                              dir=str(folder), config=dict(config))

    def write(self, row: dict[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl; of a list each under its place."""
        found = flat(row)
        if self._board is not None:
            for name, value in found.items():
                self._board.add_scalar(name, value, row["step"])
            self._board.flush()
        if self._run is not None:
            self._run.log(found, step=row["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()


def check(config: Config) -> None:
    """Raises ValueError where a logger that the config asks for is not installed."""
    for name in _MODULES:
        if config[name]:
            _imported(name)


def flat(row: dict[str, Any]) -> dict[str, float]:
    """{"loss": 1.0, "gammas": [2.0, 3.0]} -> {"loss": 1.0, "gammas/0": 2.0, "gammas/1": 3.0}; text is left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        parts = {f"{name}/{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {name: value}
        found |= {key: float(x) for key, x in parts.items() if isinstance(x, numbers.Real)}
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise ValueError(f"train: {flag(name)} must be off where {name} is not installed, got it ({error}); install it "
                         f"with: pip install {name}") from error
