"""How a run shows where it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def describe(row: dict[str, Any], brief: bool = False) -> str:
    """Loss, test measure and largest gamma of a metrics row, as far as they are known; brief for half a line."""
    parts = [f"loss {row['train_loss']:.5f}"] if "train_loss" in row else []
    if "test_strict" in row:
        parts.append(f"test {'' if brief else 'strict '}{row['test_strict']:.5f}")
    if "test_relaxed" in row and not brief:
        parts.append(f"relaxed {row['test_relaxed']:.5f}")
    if row.get("gammas"):
        parts.append(f"max|gamma| {max(map(abs, row['gammas'])):.3f}")
    return " ".join(parts) if brief else "  ".join(parts)


class EpochProgress:
    """Use as a context; `step` after every step, `epoch` after every epoch with its metrics."""

    def __init__(self, first: int, epochs: int, steps: int, quiet: bool = False, samples: int = 0) -> None:
        self.first, self.epochs, self.steps, self.quiet, self.samples = first, epochs, steps, quiet, samples
        self.start = time.monotonic()
        self.console = Console(stderr=True)
        self.every = max(1, epochs // 10)
        self.last: dict[str, Any] = {}
        self.bar = None
        if self.console.is_terminal and not quiet:
            columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(12), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=self.console)
            self.task = self.bar.add_task("train", total=epochs, completed=first, text="")

    def __enter__(self) -> EpochProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self) -> None:
        if self.bar is not None:
            self.bar.advance(self.task, 1 / self.steps)

    def epoch(self, row: dict[str, Any]) -> None:
        self.last |= row  # keeps the test measure of the latest evaluation on show
        done = row["epoch"]
        if self.bar is not None:
            text = " ".join([describe(self.last, brief=True), *self._pace(row, eta=False)])
            self.bar.update(self.task, completed=done, text=text)
        elif not self.quiet and (done % self.every == 0 or done == self.epochs):
            parts = [f"epoch {done}/{self.epochs}", describe(self.last), *self._pace(row)]
            print("  ".join(parts), file=sys.stderr, flush=True)

    def _pace(self, row: dict[str, Any], eta: bool = True) -> list[str]:
        """Samples a second in training, and the time left, evaluations included."""
        parts = [f"{self.samples / row['seconds']:.4g} samples/s"] if self.samples and row.get("seconds") else []
        done = row["epoch"]
        if eta and self.samples and self.first < done < self.epochs:
            left = (time.monotonic() - self.start) / (done - self.first) * (self.epochs - done)
            parts.append(f"eta {timedelta(seconds=round(left))}")
        return parts


def data_progress(split: str, quiet: bool = False, verb: str = "simulat", what: str = "trajectories"):
    """A callback for what prepares data, which says once that it does and shows a bar on a terminal."""
    console = Console(stderr=True)
    state: dict[str, Any] = {}

    def show(done: int, total: int) -> None:
        if quiet:
            return
        if not console.is_terminal:
            if done == total:
                print(f"{verb}ed {total} {split} {what}", file=sys.stderr, flush=True)
            return
        if not state:
            state["bar"] = Progress(TextColumn(f"{verb}ing {split}"), BarColumn(), MofNCompleteColumn(),
                                    console=console)
            state["bar"].start()
            state["task"] = state["bar"].add_task(split, total=total)
        state["bar"].update(state["task"], completed=done)
        if done == total:
            state["bar"].stop()

    return show
