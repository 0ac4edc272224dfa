"""Curves over the epochs of a run, as charts of `ace_fast.report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..report.chart import PALETTE, Chart, Lines, Series
from ..report.diagnosis import gate_charts

Rows = list[dict[str, Any]]
MODES = (("strict", "c0"), ("relaxed", "c1"))


def measured(rows: Rows, key: str) -> list[tuple[float, float]]:
    """(epoch, value) of a key that only evaluation epochs have."""
    return [(row["epoch"], row[key]) for row in rows if isinstance(row.get(key), int | float)]


def curve(rows: Rows, key: str, name: str, colour: str = "c7", dash: bool = False) -> list[Series]:
    """The curve of a key, or nothing where it was never measured."""
    points = measured(rows, key)
    return [Series(name, points, colour, dash=dash)] if points else []


def splits(rows: Rows, what: str = "") -> list[Series]:
    """The task's measure on validation and test data, strict and relaxed; `what` names another one of its own."""
    return [series for mode, colour in MODES for split in ("valid", "test")
            for series in curve(rows, f"{split}_{what}{mode}", f"{split}, {mode}", colour, dash=split == "test")]


def training_loss(label: str, rows: Rows, log: bool = True) -> Lines:
    return Lines("Training loss", "epoch", label, curve(rows, "train_loss", "training"), log_y=log)


def errors(label: str, rows: Rows, baseline: str) -> Lines:
    """`splits`, and what is called `baseline`, where it was measured."""
    found = measured(rows, "baseline")
    return Lines("Error", "epoch", label, splits(rows), log_y=True, rules=[(baseline, found[-1][1])] if found else [])


def parity(title: str, unit: str, pairs: Mapping[str, Mapping[str, list[float]]]) -> Lines:
    """Predicted against true values, {mode: {"target": [...], "predicted": [...]}}, and the line where they agree."""
    targets = [x for pair in pairs.values() for x in pair["target"]]
    agree = [(x, x) for x in (min(targets), max(targets))] if targets else []
    series = [Series("exact", agree, "c7")]
    series += [Series(mode, list(zip(pairs[mode]["target"], pairs[mode]["predicted"], strict=True)), colour, line=False)
               for mode, colour in MODES if mode in pairs]
    return Lines(title, f"true ({unit})", f"predicted ({unit})", series)


def lines(title: str, rows: Rows, key: str) -> Lines:
    """One curve per entry of the lists under `key`, zero as a line."""
    count = max(len(row.get(key) or ()) for row in rows)
    series = [Series(str(i), [(row["epoch"], row[key][i]) for row in rows if len(row.get(key) or ()) > i],
                     f"c{i % PALETTE}", dash=i // PALETTE % 2 == 1) for i in range(count)]
    return Lines(title, "epoch", key.removesuffix("s"), series, rules=[("", 0.0)])


def equivariance(rows: Rows, label: str) -> Lines:
    """The error of both models, and the bound of theorem 4.2 where the run logged it."""
    series = [s for mode, colour in MODES for s in curve(rows, f"equivariance_{mode}", mode, colour)]
    series += curve(rows, "equivariance_bound", "bound (theorem 4.2)", "c7", dash=True)
    series += curve(rows, "equivariance_bound_by_gate", "bound, gate by gate", "c4", dash=True)
    return Lines("Equivariance error", "epoch", label, series, log_y=True)


def branches(rows: Rows) -> Lines:
    """What is left of the branches: the largest gamma, and the largest share of a branch in its layer."""
    series = []
    for key, name, colour in (("gammas", "|gamma|", "c2"), ("branch_ratios", "|gamma| ||f_neq|| / ||f_eq||", "c3")):
        points = [(row["epoch"], max(abs(x or 0.0) for x in row[key])) for row in rows if row.get(key)]
        series += [Series(name, points, colour)] if points else []
    return Lines("Branches", "epoch", "largest over the layers", series, log_y=True)


def gates(rows: Rows, diagnosis: Mapping[str, Any]) -> list[Chart]:
    """What the gates said at the last evaluation, and their ratios over the epochs."""
    history = [(row["epoch"], row["branch_ratios"]) for row in rows if row.get("branch_ratios")]
    return gate_charts(diagnosis, history, "epoch") if diagnosis else []


def throughput(rows: Rows, batch: int) -> Lines:
    """Samples trained on in a second, epoch by epoch, measuring left out."""
    steps = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *rows], rows, strict=False)]
    points = [(row["epoch"], batch * count / row["seconds"])
              for row, count in zip(rows, steps, strict=True) if row.get("seconds")]
    return Lines("Throughput", "epoch", "samples a second", [Series("training", points, "c2")])


def drawn(charts: Sequence[Lines]) -> list[Lines]:
    """The charts that have something to show."""
    return [chart for chart in charts if any(series.points for series in chart.series)]
