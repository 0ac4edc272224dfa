"""What was measured, as numbers, as a table and as a picture."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ..report.chart import Dots, Row
from ..report.units import DASH, power


def size(error: float) -> float:
    """What errors are ordered by: one that is no number is the largest."""
    return math.inf if math.isnan(error) else error


@dataclass
class Error:
    """The error of one output over the draws (or over the directions of a Lie derivative).

    Attributes:
        name: of the output or the layer.
        draws: relative, |f(g x) - g f(x)| / |f(x)|, one a draw.
        largest: the largest component of f(g x) - g f(x), one a draw.
    """

    name: str
    draws: list[float] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)

    def add(self, relative: float, absolute: float) -> None:
        """One more draw."""
        self.draws.append(relative)
        self.largest.append(absolute)

    @property
    def relative(self) -> float:
        """The mean over the draws."""
        return statistics.fmean(self.draws)

    @property
    def absolute(self) -> float:
        """The largest component over all draws."""
        return max(self.largest, key=size)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean over all elements lies with 95 % confidence (Student's t); None of one draw."""
        from scipy.special import stdtrit

        n = len(self.draws)
        if n < 2 or not math.isfinite(self.relative):
            return None
        half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(self.draws) / math.sqrt(n)
        return max(self.relative - half, 0.0), self.relative + half


@dataclass(frozen=True)
class Layer:
    """A layer's errors.

    Attributes:
        name: of the module, "#2" of its second call.
        layout: of the output that is compared.
        network: in the network, with what earlier layers bring along.
        own: of the layer alone, for inputs that were moved exactly; None where their layouts are not known, or of a Lie
            derivative.
    """

    name: str
    layout: str
    network: Error
    own: Error | None = None


@dataclass(frozen=True)
class Report:
    """The equivariance errors of a model; `print` shows a table.

    Attributes:
        group: its name.
        how: "draws", "lie" or "differences".
        outputs: of every output that was compared.
        layers: in the order of the model's modules.
        rounding: the relative change of the output where every number of the input changes in its last digit.
        exact: whether all elements of the group were taken.
    """

    group: str
    how: str
    outputs: Sequence[Error]
    layers: Sequence[Layer]
    rounding: float
    exact: bool = False

    @property
    def worst(self) -> Error:
        """The output with the largest error."""
        return max(self.outputs, key=lambda error: size(error.relative))

    @property
    def relative(self) -> float:
        """The mean relative error of the worst output."""
        return self.worst.relative

    @property
    def absolute(self) -> float:
        """The largest deviation of any component of any output in any draw."""
        return max((error.absolute for error in self.outputs), key=size)

    @property
    def culprits(self) -> list[Layer]:
        """Layers by what they add themselves, the largest first; those whose own error is not known last."""
        return sorted(self.layers, key=lambda layer: size(layer.own.relative) if layer.own else -1.0, reverse=True)

    def row(self) -> dict[str, Any]:
        """The numbers for a log: "equivariance", "equivariance_absolute", and each layer's as "equivariance/NAME"."""
        layers = {f"equivariance/{layer.name}": layer.network.relative for layer in self.layers}
        return {"equivariance": self.relative, "equivariance_absolute": self.absolute} | layers

    def __str__(self) -> str:
        lines = [self._headline(error) for error in self.outputs]
        lines.append(f"rounding of the input: {power(self.rounding)}")
        if self.layers:
            width = max(len(layer.name) for layer in self.layers)
            lines += ["", f"{'layer':{width}}  {'in the network':>14}  {'its own':>9}  layout"]
            lines += [f"{layer.name:{width}}  {power(layer.network.relative):>14}  "
                      f"{DASH if layer.own is None else power(layer.own.relative):>9}  {layer.layout}"
                      for layer in self.layers]
        return "\n".join(lines)

    def _headline(self, error: Error) -> str:
        of = {"draws": f"all {len(error.draws)} elements" if self.exact else f"{len(error.draws)} draws",
              "lie": "Lie derivative", "differences": "Lie derivative by differences"}[self.how]
        ends = None if self.exact or self.how != "draws" else error.interval
        sure = f" (95 %: {power(ends[0])} to {power(ends[1])})" if ends else ""
        return (f"{error.name} under {self.group}, {of}: relative error {power(error.relative)}{sure}, largest "
                f"component {power(error.absolute)}")

    def charts(self) -> list[Dots]:
        """Errors over rounding, output and layers, on a logarithmic axis; 1 is as good as the numbers are."""
        least = self.rounding or math.ulp(1.0)
        rows = [Row(error.name, [self._mark(error, least, "c0")]) for error in self.outputs]
        for layer in self.layers:
            marks = [self._mark(layer.network, least, "c0")]
            marks += [self._mark(layer.own, least, "c1")] if layer.own else []
            rows.append(Row(layer.name, marks))
        return [Dots(f"Error under {self.group} over rounding", "error over rounding", rows,
                     [("in the network", "c0"), ("its own", "c1")])]

    @staticmethod
    def _mark(error: Error, least: float, colour: str) -> tuple[float, str, str, str]:
        return max(error.relative / least, 1e-2), power(error.relative), colour, ""

    def plot(self, path: str | os.PathLike[str], title: str = "Equivariance error") -> list[Path]:
        """Draws the errors of output and layers.

        Args:
            path: .png, a picture; .html, a page, with the picture beside it.

        Returns:
            The files that were written.

        Raises:
            ValueError: another ending.
            OSError: it cannot be written.
        """
        from ..report import page, png, save

        path, charts = Path(path), self.charts()
        if path.suffix == ".png":
            path.write_bytes(png.picture(title, charts, self._headline(self.worst)))
            return [path]
        if path.suffix != ".html":
            raise ValueError(f"plot: path must end in .png or .html, got {path}")
        sections = [page.Section("errors", "Errors", "", page.cards(page.card(chart) for chart in charts))]
        lead = escape("; ".join(self._headline(error) for error in self.outputs))
        return save(path, page.page(title, lead, sections), title, charts)
