"""Reports to look at: benchmark results, training runs and comparisons as one family of pages.

A page is a single HTML file that loads nothing, readable on a phone, by keyboard and on paper, light and dark; beside
it lies a picture (PNG) of the same. `chart` says what is drawn, `svg` and `png` draw it, `page` has the text around
it, the other modules know the contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chart import Chart

PAGE = "ace-fast-report.html"


def write(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Writes the page of a run, of several runs beside each other, or of benchmark results.

    Args:
        paths: a run folder; several, or a folder of them, which are compared; or JSON files of `python -m bench` and
            folders of them; none: the results that are committed in this checkout.
        out: the page (.html; the picture lies beside it as .png). Default: RUN/report.html for a run,
            FOLDER/report.html for a folder of runs, else ace-fast-report.html.

    Returns:
        The files that were written.

    Raises:
        ValueError: a path is none of these, holds no results or is damaged; runs mixed with results or of several
            tasks; `out` is no .html file.
        OSError: a page cannot be written.
    """
    if out is not None and (out.suffix != ".html" or out.is_dir()):
        raise ValueError(f"report: --out must be a file that ends in .html, got {out}")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"report: --out must be in a folder that exists, got {out}; make {out.parent} first")
    found = [runs_in(path) for path in paths]
    if not any(found):
        return _benchmarks(list(paths), out or Path(PAGE))
    if not all(found):
        pairs = list(zip(paths, found, strict=True))
        run, other = (next(path for path, runs in pairs if bool(runs) is wanted) for wanted in (True, False))
        raise ValueError(f"report: results must be runs alone or benchmarks alone, got the run {run} and {other}")
    folders = [folder for group in found for folder in group]
    return _runs(folders, out or (paths[0] / "report.html" if len(paths) == 1 else Path(PAGE)))


def runs_in(path: Path) -> list[Path]:
    """The folder, where it is a run; the runs in it, where it holds some."""
    if (path / "config.json").exists():
        return [path]
    return sorted(file.parent for file in path.glob("*/config.json")) if path.is_dir() else []


def save(out: Path, content: str, title: str, charts: Sequence[Chart], below: str = "") -> list[Path]:
    """Writes a page, and its charts as the picture beside it; returns both files."""
    from ..train.checkpoint import write_atomic
    from . import png

    picture = out.with_suffix(".png")
    write_atomic(picture, png.picture(title, charts, below), "report")
    write_atomic(out, content, "report")
    return [out, picture]


def _runs(folders: list[Path], out: Path) -> list[Path]:
    from ..train import comparing, report
    from ..train.run import Run

    runs = [Run(folder) for folder in folders]
    for run in runs:
        run.about()  # what is wrong with config.json is said first
        if not run.metrics():
            raise ValueError(f"report: {run.folder} must be a run with at least one epoch, got one without; train it "
                             f"on with ace-fast train ... --out {run.folder} --resume")
    return report.write(runs[0], out=out) if len(runs) == 1 else comparing.write(runs, out)


def _benchmarks(paths: list[Path], out: Path) -> list[Path]:
    from . import benchmarks, rows

    found = rows.load(paths or rows.committed())
    return save(out, benchmarks.write(found), *benchmarks.picture(found))
