"""Reports to look at: benchmark results, training runs and comparisons as one family of pages.

A page is a single HTML file that loads nothing, readable on a phone, by keyboard and on paper, light and dark; beside
it lies a picture (PNG) of the same. `chart` says what is drawn, `svg` and `png` draw it, `page` has the text around
it, the other modules know the contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PAGE = "ace-fast-report.html"


def write(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """Writes the pages of run folders, or one page of all the results.

    Args:
        paths: run folders; or JSON files of `python -m bench` and folders of them; none: the results that are
            committed in this checkout.
        out: the page (.html; the picture lies beside it as .png). Default: RUN/report.html, or ace-fast-report.html.

    Returns:
        The files that were written.

    Raises:
        ValueError: a path is neither, holds no results or is damaged; runs mixed with results; `out` is no .html file.
        FileNotFoundError: a folder is not a run.
        OSError: a page cannot be written.
    """
    if out is not None and (out.suffix != ".html" or out.is_dir()):
        raise ValueError(f"report: --out must be a file that ends in .html, got {out}")
    runs = [path for path in paths if (path / "config.json").exists()]
    if not runs:
        return _benchmarks(list(paths), out or Path(PAGE))
    if len(runs) < len(paths):
        other = next(path for path in paths if path not in runs)
        raise ValueError(f"report: results must be runs alone or benchmarks alone, got the run {runs[0]} and {other}")
    if out is not None and len(runs) > 1:
        raise ValueError(f"report: --out must be left out with several runs, got {out}; each run keeps its own page")
    return [file for run in runs for file in _run(run, out)]


def _run(folder: Path, out: Path | None) -> list[Path]:
    from ..train import report
    from ..train.run import Run

    run = Run(folder)
    run.about()  # what is wrong with config.json is said first
    if not run.metrics():
        raise ValueError(f"report: {folder} must be a run with at least one epoch, got one without; train it on with "
                         f"ace-fast train ... --out {folder} --resume")
    return report.write(run, out=out)


def _benchmarks(paths: list[Path], out: Path) -> list[Path]:
    from ..train.checkpoint import write_atomic
    from . import benchmarks, png, rows

    found = rows.load(paths or rows.committed())
    picture = out.with_suffix(".png")
    write_atomic(picture, png.picture(*benchmarks.picture(found)), "report")
    write_atomic(out, benchmarks.write(found), "report")
    return [out, picture]
