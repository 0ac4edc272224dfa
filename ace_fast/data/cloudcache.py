"""The cache of prepared point clouds, which says which file each cloud came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .nbody import Progress
from .store import Store, Words

FORMAT = 1  # of the cache; it is written into the .json, so that a cache of another format is found and replaced
_SHOWN = 5  # failed files that an error lists
_WORDS = Words("modelnet", "the clouds", "prepared")

Piece = tuple[np.ndarray, np.ndarray]  # points [r, P, 3] float32 and labels [r] int64 of one file
Stamp = tuple[str, int, int]  # path within the source, size, time of the last change (ns)
_EMPTY: Piece = (np.empty((0, 0, 3), dtype=np.float32), np.empty(0, dtype=np.int64))


def prepare(
    folder: Path,
    name: str,
    about: dict[str, Any],
    files: Sequence[tuple[str, Path]],
    read: Callable[[Path], Piece],
    progress: Progress | None,
) -> Piece:
    """The clouds of all files, in order; read from the cache as far as it has them, else from the files.

    Args:
        folder, name: where the cache is, and what its file names begin with.
        about: all that a cloud depends on besides its file.
        files: (name within the source, path).
        read: prepares one file.
        progress: called with (files done, all).

    Raises:
        ValueError: some files could not be read; the others were prepared and kept.
        OSError: the folder cannot be written, before anything is prepared.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    store = Store(folder, f"{name}-{digest}", {"format": FORMAT, "settings": about}, _WORDS)
    stamps = [stamp(key, path) for key, path in files]
    have, arrays = store.read(["points"], _pieces) or ({}, _EMPTY)
    if list(have) == stamps:
        return arrays
    store.check_access()
    failures = []
    try:
        for done, (mark, (_, path)) in enumerate(zip(stamps, files, strict=True)):
            try:
                if mark not in have:
                    have[mark] = read(path)
            except (ValueError, OSError) as error:
                failures.append(error)
            if progress is not None:
                progress(done + 1, len(files))
    finally:
        # Also after Ctrl-C: what is done stays done.
        pieces = {mark: have[mark] for mark in stamps if mark in have}
        if pieces:
            points, labels, rows = _joined(pieces)
            saved = store.write({"points": points}, [labels], labels=labels.tolist(), files=rows)
            arrays = saved["points"], labels
    if failures:
        more = f"\n  and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        raise ValueError(
            f"modelnet: {len(failures)} of {len(files)} files cannot be used; repair or remove them and call again, "
            f"the {len(files) - len(failures)} others are prepared and kept in {folder}:"
            + "".join(f"\n  {error}" for error in failures[:_SHOWN])
            + more
        ) from failures[0]
    return arrays


def stamp(key: str, path: Path) -> Stamp:
    """What tells a changed file from the one that was read."""
    about = path.stat()
    return key, about.st_size, about.st_mtime_ns


def _pieces(found: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[tuple[dict[Stamp, Piece], Piece], list]:
    """What each file gave, in the order stored, and all of it; the labels begin the checksum."""
    points, labels = arrays["points"], np.asarray(found["labels"], dtype=np.int64)
    stamps = [(str(key), int(size), int(time)) for key, size, time, _ in found["files"]]
    rows = np.cumsum([0, *(int(count) for *_, count in found["files"])])
    P = found["settings"]["points"]
    if points.shape != (rows[-1], P, 3) or points.dtype != np.float32 or labels.shape != (rows[-1],):
        raise ValueError("the arrays have wrong shapes")
    bounds = zip(rows[:-1], rows[1:], strict=True)
    have = {mark: (points[a:b], labels[a:b]) for mark, (a, b) in zip(stamps, bounds, strict=True)}
    return (have, (points, labels)), [labels]


def _joined(pieces: dict[Stamp, Piece]) -> tuple[np.ndarray, np.ndarray, list]:
    """All points and labels, and what the .json says of each file."""
    points = np.concatenate([points for points, _ in pieces.values()])
    labels = np.concatenate([labels for _, labels in pieces.values()])
    return points, labels, [[*mark, len(labels)] for mark, (_, labels) in pieces.items()]
