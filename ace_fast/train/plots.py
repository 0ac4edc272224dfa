"""Curves over the epochs of a run, on matplotlib figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
MODES = (("strict", "C0"), ("relaxed", "C1"))


def measured(rows: Rows, key: str) -> tuple[list[int], list[float]] | None:
    """Epochs and values of a key that only evaluation epochs have."""
    found = [(row["epoch"], row[key]) for row in rows if key in row]
    return ([epoch for epoch, _ in found], [value for _, value in found]) if found else None


def axes(figure: Figure, place: int, label: str, log: bool, across: str = "epoch") -> Any:
    found = figure.add_subplot(place)
    found.set_xlabel(across)
    found.set_ylabel(label)
    if log:
        found.set_yscale("log")
    found.grid(alpha=0.3)
    return found


def splits(into: Any, rows: Rows) -> None:
    """The task's measure on validation and test data, strict and relaxed."""
    for mode, colour in MODES:
        for split, line in (("valid", "-"), ("test", "--")):
            if found := measured(rows, f"{split}_{mode}"):
                into.plot(*found, color=colour, linestyle=line, label=f"{split}, {mode}")


def training_loss(figure: Figure, place: int, label: str, rows: Rows, log: bool = True) -> None:
    into = axes(figure, place, label, log)
    into.plot([row["epoch"] for row in rows], [row["train_loss"] for row in rows], color="0.3")


def errors(figure: Figure, place: int, label: str, rows: Rows, baseline: str) -> None:
    """`splits`, and what is called `baseline`, where it was measured."""
    into = axes(figure, place, label, True)
    splits(into, rows)
    if found := measured(rows, "baseline"):
        into.axhline(found[1][-1], color="0.3", linestyle=":", label=baseline)
        into.legend()


def lines(figure: Figure, rows: Rows, keys: list[str], label: str) -> None:
    """One curve per entry of the lists under `keys`."""
    for place, key in enumerate(keys):
        into = axes(figure, 100 + 10 * len(keys) + place + 1, label or key, False)
        for i in range(len(rows[0][key])):
            into.plot([row["epoch"] for row in rows], [row[key][i] for row in rows], label=str(i))
        into.axhline(0.0, color="0.3", linewidth=0.8)
        if rows[0][key]:
            into.legend(title=key, ncols=2, fontsize="small")


def equivariance(figure: Figure, rows: Rows, label: str) -> None:
    error = axes(figure, 121, label, True)
    gate = axes(figure, 122, "largest over the layers", True)
    for mode, colour in MODES:
        if found := measured(rows, f"equivariance_{mode}"):
            error.plot(*found, color=colour, label=mode)
    error.legend()
    for key, name in (("gammas", "|gamma|"), ("branch_ratios", "|gamma| ||f_neq|| / ||f_eq||")):
        found = [(row["epoch"], max(map(abs, row[key]))) for row in rows if row.get(key)]
        if found:
            gate.plot(*zip(*found, strict=True), label=name)
    if gate.lines:
        gate.legend()
