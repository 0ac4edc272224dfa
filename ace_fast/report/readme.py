"""The table and the figure of the README, made from the committed results.

`ace-fast report --readme` writes both, and those of docs/reproduction.md; a test fails where they are older than the
results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import marked, rows, svg, units, workloads
from .rows import Row

BEGIN, END = "<!-- measured: ace-fast report --readme -->", "<!-- end of measured -->"
FIGURE = Path("docs") / "speed.svg"
_EDGE, _LEFT, _RIGHT, _LINE = 18, 205, 580, 30  # of the figure: margin, where bars begin and end, height of a line


def chosen(found: Sequence[Row]) -> dict[str, list[Row]]:
    """Device -> the first case of every training step that was measured there."""
    picked: dict[str, list[Row]] = {}
    for name in rows.devices(found):
        first: dict[str, Row] = {}
        for row in workloads.steps(found):
            if rows.device(row) == name and not row.get("projected") and not rows.dtype_suffix(row):
                first.setdefault(row["workload"], row)
        if first:
            picked[name] = list(first.values())
    return picked


def table(found: Sequence[Row]) -> str:
    """One line a training step and device, in Markdown."""
    lines = ["| one training step | device | eager | torch.compile | ace_fast | over eager | noise | memory, eager | "
             "memory, ace_fast |", "|---|---|---|---|---|---|---|---|---|"]
    for name, members in chosen(found).items():
        lines += [_line(name, row) for row in members]
    return "\n".join(lines)


def _line(name: str, row: Row) -> str:
    start = f"| {workloads.title(row)}, `{row['case']}` | {name} |"
    if row.get("error"):
        return f"{start} {' | '.join([units.DASH] * 7)} |"
    ours = workloads.best(row)
    times = [units.time(row.get(f"{version}_ms")) for version in ("eager", "compiled", ours)]
    times[2] += " in a CUDA graph" if ours == "graph" else ""
    said = units.compared(workloads.speedup(row, "eager", ours), row.get("noise"))
    memory = [units.memory(row.get(f"{version}_mb")) for version in ("eager", "fast")]
    cells = [*times, said, units.percent(row.get("noise")), *memory]
    return f"{start} {' | '.join(cells)} |"


def figure(found: Sequence[Row]) -> str:
    """Every step's time as a share of eager's: torch.compile and ours over the grey bar of eager."""
    title = "Time of one training step as a share of eager PyTorch's: shorter is faster"
    parts, y = [svg.text(_EDGE, 30, title, "strong"), *_legend()], 70.0
    for name, members in chosen(found).items():
        parts.append(svg.text(_EDGE, y + 10, name, "soft"))
        y += 22
        for row in members:
            parts += _bar(row, y)
            y += _LINE
        y += 14
    # with a background of its own: a page may be light where the reader's system is dark
    parts.insert(0, svg.rect(0, 0, 2 * svg.WIDTH, y, "card"))
    return svg.standalone("Training steps of ace_fast beside eager PyTorch and torch.compile", y, "\n".join(parts))


def _legend() -> list[str]:
    found = []
    for x, name, colour in ((0, "eager", "eager"), (70, "torch.compile", "compiled"), (190, "ace_fast", "ours")):
        found += [svg.rect(_EDGE + x, 42, 10, 10, f"fill {colour}"), svg.text(_EDGE + x + 16, 51, name, "soft")]
    return found


def _bar(row: Row, y: float) -> list[str]:
    found = [svg.text(_EDGE, y + 15, workloads.title(row)), svg.rect(_LEFT, y + 4, _RIGHT - _LEFT, 16, "fill eager")]
    ours = workloads.best(row)
    ratio = workloads.speedup(row, "eager", ours)
    if row.get("error") or ratio is None:
        return [*found[:1], svg.text(_LEFT, y + 15, "not timed", "bad")]
    wide = _RIGHT - _LEFT
    if row.get("compiled_ms"):
        found.append(svg.rect(_LEFT, y + 4, min(1.0, row["compiled_ms"] / row["eager_ms"]) * wide, 16, "fill compiled"))
    found.append(svg.rect(_LEFT, y + 4, min(1.0, 1 / ratio) * wide, 16, "fill ours"))
    times = f"{units.time(row['eager_ms'])} to {units.time(row[f'{ours}_ms'])}"
    return [*found, svg.text(_RIGHT + 12, y + 11, units.compared(ratio, row.get("noise")), "strong"),
            svg.text(_RIGHT + 12, y + 24, times, "why")]


def update(root: Path) -> list[Path]:
    """Writes the tables into README.md, docs/reproduction.md and docs/products.md, the figures into docs/; returns what
    changed.

    Raises:
        ValueError: there is no checkout at `root`, or a page has no place for its table.
    """
    return [_write(path, content) for path, content in stale(root).items()]


def stale(root: Path) -> dict[Path, str]:
    """What README, docs/reproduction.md, docs/products.md and their figures must hold, for those that do not."""
    from ..bench import products_docs, reproduction_docs

    readme, results = root / "README.md", root / "bench" / "results"
    if not readme.exists() or not results.is_dir():
        raise ValueError(f"report: --readme must be used in a checkout, got {root} without README.md and bench/results")
    found = rows.load([results])
    shown = marked.replaced(readme.read_text(encoding="utf-8"), BEGIN, END, table(found), readme)
    fresh = {readme: shown, root / FIGURE: figure(found)}
    fresh |= reproduction_docs.pages(root) | products_docs.pages(root, found)
    return {path: content for path, content in fresh.items()
            if not path.exists() or path.read_text(encoding="utf-8") != content}


def _write(path: Path, content: str) -> Path:
    from ..train.checkpoint import write_atomic

    write_atomic(path, content, "report")
    return path
