"""The equivariance error while a model is trained: in a plain loop, or as Lightning's callback."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..report.chart import PALETTE, Lines, Series
from .measure import measure
from .report import Report


class Monitor:
    """Measures a model every so often on the same batch with the same draws, and keeps the numbers.

    Args:
        batch: that it is measured on.
        group: by its name, or itself.
        every: calls (validations, in Lightning) from one measurement to the next, the first one included.
        of: what of the module is measured, `lambda module: module.network`; None: the module itself.
        options: of `measure`.

    Attributes:
        history: a row a measurement: "step", "equivariance", "equivariance_absolute", "equivariance/LAYER".
        last: the last `Report`.

    Raises:
        ValueError: `every` below 1; later what `measure` raises.

    Example:
        >>> monitor = Monitor(batch, "O(3)", every=100)  # doctest: +SKIP
        >>> for step in range(1000):  # doctest: +SKIP
        ...     train_one_step(model)
        ...     monitor(model, step)
        >>> monitor.plot("equivariance.png")  # doctest: +SKIP

    With Lightning: `Trainer(callbacks=[monitor.lightning()])`.
    """

    def __init__(self, batch: Any, group: Any = "O(3)", *, every: int = 1,
                 of: Callable[[Any], nn.Module] | None = None, **options: Any) -> None:
        if every < 1:
            raise ValueError(f"Monitor: every must be at least 1, got {every}")
        self.batch, self.group, self.every, self.options = batch, group, every, options
        self._of, self._calls = of, 0
        self.history: list[dict[str, Any]] = []
        self.last: Report | None = None

    def __call__(self, model: Any, step: int | None = None) -> Report | None:
        """Measures where it is time to; the report then, else None. `step`: for the row, else the number of calls."""
        number, self._calls = self._calls, self._calls + 1
        if number % self.every:
            return None
        self.last = measure(model if self._of is None else self._of(model), self.batch, self.group, **self.options)
        self.history.append({"step": number if step is None else step} | self.last.row())
        return self.last

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Lightning's and Fabric's hook: measures, and logs the numbers through the module."""
        if getattr(trainer, "sanity_checking", False):
            return
        if self(module, getattr(trainer, "global_step", None)) is not None:
            module.log_dict({name: value for name, value in self.history[-1].items() if name != "step"})

    def lightning(self) -> Any:
        """A callback for Lightning's Trainer, which takes nothing but its own class; Lightning is imported here alone.

        Raises:
            ImportError: neither lightning nor pytorch_lightning is installed.
        """
        monitor = self

        class EquivarianceCallback(_callback_class()):
            def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                monitor.on_validation_epoch_end(trainer, pl_module)

        return EquivarianceCallback()

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws output and layers over the steps as a .png.

        Raises:
            ValueError: nothing was measured yet, or another ending.
        """
        from ..report import png

        path = Path(path)
        if not self.history or path.suffix != ".png":
            got = "no measurement" if not self.history else str(path)
            raise ValueError(f"plot: there must be a measurement and path must end in .png, got {got}")
        names = [name for name in self.history[0] if name not in ("step", "equivariance_absolute")]
        series = [Series(name.removeprefix("equivariance/"), [(row["step"], row[name]) for row in self.history
                                                              if name in row], f"c{i % PALETTE}", marks=True)
                  for i, name in enumerate(names)]
        chart = Lines(f"Equivariance error under {self.last.group}", "step", "relative error", series, log_y=True)
        path.write_bytes(png.picture("Equivariance error", [chart]))
        return path


def _callback_class() -> type:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    raise ImportError("Monitor: lightning must be installed for its callback, got neither lightning nor "
                      "pytorch_lightning; install one, or call the monitor in your loop")
