"""The table of projections in docs/performance.md: python -m bench.projection writes it, a test asks whether it did."""

import re
from pathlib import Path
from typing import Any

from . import case_counts, projection, resources
from .devices import DEVICES, key

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
START, END = "<!-- projections: written by python -m bench.projection -->", "<!-- end of projections -->"
EXPLAINED = {
    "case": "another case of a room that was measured in the language",
    "room": "a room that was not measured in the language",
    "device": "a device that was not measured",
}


def _shown() -> list[case_counts.Call]:
    """Of every operator its largest case, with gradients where it has them."""
    largest: dict[str, case_counts.Call] = {}
    for call in projection.chosen(case_counts.load()[1]):
        before = largest.get(call.op)
        if before is None or (call.direction, projection.work(call)) > (before.direction, projection.work(before)):
            largest[call.op] = call
    return list(largest.values())


def _number(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.2g}" if ms < 10 else f"{ms:.3g}"


def _table(made: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    where = lambda r: (key(r["device_name"]), r["backend"], r["op"], r["case"], r["direction"])  # noqa: E731
    guessed = {where(row): f"~{_number(row['ms'])}" for row in made}
    times = guessed | {(m.device, m.language, m.call.op, m.call.case, m.call.direction): f"**{_number(m.ms)}**"
                       for m in projection.measurements(rows)}
    lines = [f"| operator | case | language | {' | '.join(DEVICES)} |", "|---|---|---|" + "---|" * len(DEVICES)]
    for call in _shown():
        for language in projection.languages(call.room):
            cells = (times[name, language, call.op, call.case, call.direction] for name in DEVICES)
            backward = " + backward" if call.direction != "forward" else ""
            lines.append(f"| `{call.op}`{backward} | {call.case} | {language} | {' | '.join(cells)} |")
    return lines


def block(made: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """What stands between the two marks."""
    found = projection.measurements(rows)
    said = projection.validation(found, projection.residency(resources.load()[1]))
    measured = ", ".join(sorted({m.device for m in found}))
    lines = [START, "", f"Measured so far: {measured} ({len(found)} times). Left out of calibration, then predicted,",
             ""]
    for name, error in said.items():
        lines.append(f"- {EXPLAINED[name]} ({error['n']:.0f} times): half within a factor {error['median']:.2g}, "
                     f"90 % within {error['q90']:.2g}, the worst {error['worst']:.2g};")
    if "device" not in said:
        lines.append("- a device that was not measured: not known before a second one is.")
    lines += ["", "Milliseconds a call, float32; **measured**, ~projected:", "", *_table(made, rows), "", END]
    return "\n".join(lines)


def page(text: str, made: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """The page with its block as it should be.

    Raises:
        ValueError: the marks are not on the page.
    """
    pattern = re.escape(START) + ".*?" + re.escape(END)
    if not re.search(pattern, text, re.S):
        raise ValueError(f"projection: {PAGE.name} must have the lines {START!r} and {END!r}, got neither")
    return re.sub(pattern, lambda _: block(made, rows), text, count=1, flags=re.S)


def write(made: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Writes the block into docs/performance.md."""
    PAGE.write_text(page(PAGE.read_text(), made, rows))
