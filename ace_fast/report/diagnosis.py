"""What `ACE.diagnose` found as charts, as a picture and as a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from . import page
from .chart import Bar, Bars, Chart, Lines, Series

Diagnosis = Mapping[str, Any]
VERDICTS = {"symmetric": "c2", "broken": "c3", "undecided": "c7"}
_RATIO = "|gamma| ||f_neq|| / ||f_eq||"
_ERRORS = (("error", "measured", "c1"), ("bound_by_gate", "bound, gate by gate", "c4"),
           ("bound", "bound (theorem 4.2)", "c7"), ("truncation", "truncation", "c0"))


def draw_diagnosis(found: Diagnosis | Sequence[Diagnosis], out: str | os.PathLike[str]) -> list[Path]:
    """Draws what the gates of a model say: ratios beside the tolerance, verdicts, equivariant shares, error and bounds.

    Args:
        found: what `ACE.diagnose` returned; or several of the same gates, one after another in training, whose ratios
            and errors are then drawn over the steps.
        out: a .png file; or a .html file, a page with the evidence of every verdict, beside which the .png lies.

    Returns:
        The files that were written.

    Raises:
        ValueError: no diagnosis, diagnoses of different gates, or another kind of file.
        OSError: a file cannot be written.

    Example:
        >>> draw_diagnosis(ace.diagnose(batch), "gates.png")  # doctest: +SKIP
    """
    from ..train.checkpoint import write_atomic
    from . import png, save

    several = [found] if isinstance(found, Mapping) else list(found)
    out, names = Path(out), [[gate["name"] for gate in one["gates"]] for one in several]
    if not several or any(other != names[0] for other in names):
        raise ValueError("draw_diagnosis: found must be one diagnosis, or several of the same gates, got "
                         + ("of different gates" if several else "none"))
    if out.suffix not in (".png", ".html"):
        raise ValueError(f"draw_diagnosis: out must be a .png or .html file, got {out}")
    charts = _charts(several)
    title = f"Gates at step {several[-1]['step']}"
    if out.suffix == ".html":
        return save(out, _page(several[-1], title, charts), title, charts)
    write_atomic(out, png.picture(title, charts), "draw_diagnosis")
    return [out]


def gate_charts(found: Diagnosis, history: Sequence[tuple[float, Sequence[float | None]]], x: str) -> list[Chart]:
    """The ratio of every gate with the tolerance, coloured by verdict, and the equivariant share of its branch.

    Args:
        found: the last diagnosis.
        history: (place on the axis, ratio of every gate), None where it was not measured.
        x: the axis.
    """
    gates = found["gates"]
    series = [Series(f"{gate['name']}: {gate['verdict']}", [(at, ratios[i]) for at, ratios in history if ratios[i]],
                     VERDICTS[gate["verdict"]], dash=gate["snapped"]) for i, gate in enumerate(gates)]
    curves = [Lines("Gates", x, _RATIO, series, log_y=True, rules=[("tolerance", found["tolerance"])])]
    shares = _bars(gates, "share", lambda share: f"{share:.0%}")
    return [*(c for c in curves if any(s.points for s in c.series)),
            Bars("Equivariant share of the branches", shares, top=1.0)]


def _charts(several: Sequence[Diagnosis]) -> list[Chart]:
    """Those of one diagnosis, and over the steps of several."""
    last = several[-1]
    history = [(one["step"], [gate["ratio"] for gate in one["gates"]]) for one in several]
    bars = _bars(last["gates"], "ratio", lambda ratio: f"{ratio:.1e}")
    errors = [Series(name, [(one["step"], one[key]) for one in several if one[key]], colour, marks=True)
              for key, name, colour in _ERRORS]
    drawn = [s for s in errors if s.points]
    return [Bars(f"{_RATIO}, tolerance {last['tolerance']:g}", bars),
            *gate_charts(last, history if len(several) > 1 else [], "step"),
            *([Lines("Relative error of the relaxed model", "step", "error", drawn, log_y=True)] if drawn else [])]


def _bars(gates: Sequence[Mapping[str, Any]], key: str, shown: Any) -> list[Bar]:
    """A number of every gate, coloured by verdict."""
    return [Bar(gate["name"], gate[key], "unknown" if gate[key] is None else shown(gate[key]),
                VERDICTS[gate["verdict"]], note=f"{gate['verdict']}: {gate['evidence']}",
                state="missing" if gate[key] is None else "ok") for gate in gates]


def _page(found: Diagnosis, title: str, charts: Sequence[Chart]) -> str:
    gates = found["gates"]
    counts = [(word, sum(gate["verdict"] == word for gate in gates)) for word in VERDICTS]
    lead = ", ".join(f"{count} {word}" for word, count in counts if count)
    sections = [
        page.Section("charts", "Charts", "", page.cards(page.card(chart) for chart in charts)),
        page.Section("gates", "Gates", "", page.pairs(
            (gate["name"], f"{gate['verdict']}: {gate['evidence']}") for gate in gates)),
    ]
    return page.page(title, escape(f"Verdicts of {len(gates)} gates: {lead}."), sections)
