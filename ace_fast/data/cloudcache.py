"""The cache of prepared point clouds: a memory-mapped .npy, and a .json that says which file each cloud came from."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import cache
from .nbody import Progress

FORMAT = 1  # of the cache; it is written into the .json, so that a cache of another format is found and replaced
_SHOWN = 5  # failed files that an error lists

Piece = tuple[np.ndarray, np.ndarray]  # points [r, P, 3] float32 and labels [r] int64 of one file
Stamp = tuple[str, int, int]  # path within the source, size, time of the last change (ns)


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
    store = _Store(folder, f"{name}-{digest}", {"format": FORMAT, "settings": about})
    stamps = [_stamp(key, path) for key, path in files]
    have = store.read()
    if list(have) == stamps:
        return store.arrays
    store.check_access()
    failures = []
    try:
        for done, (stamp, (_, path)) in enumerate(zip(stamps, files, strict=True)):
            try:
                if stamp not in have:
                    have[stamp] = read(path)
            except (ValueError, OSError) as error:
                failures.append(error)
            if progress is not None:
                progress(done + 1, len(files))
    finally:
        # Also after Ctrl-C: what is done stays done.
        arrays = store.write({stamp: have[stamp] for stamp in stamps if stamp in have})
    if failures:
        more = f"\n  and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
        raise ValueError(
            f"modelnet: {len(failures)} of {len(files)} files cannot be used; repair or remove them and call again, "
            f"the {len(files) - len(failures)} others are prepared and kept in {folder}:"
            + "".join(f"\n  {error}" for error in failures[:_SHOWN])
            + more
        ) from failures[0]
    return arrays


def _stamp(key: str, path: Path) -> Stamp:
    about = path.stat()
    return key, about.st_size, about.st_mtime_ns


class _Store:
    """One cache: its .json, which is replaced atomically and names the .npy that belongs to it."""

    def __init__(self, folder: Path, stem: str, meta: dict[str, Any]) -> None:
        self.folder, self.stem, self.meta, self.path = folder, stem, meta, folder / f"{stem}.json"
        self.old = ""  # the .npy in use so far
        self.arrays: Piece = (np.empty((0, 0, 3), dtype=np.float32), np.empty(0, dtype=np.int64))

    def read(self) -> dict[Stamp, Piece]:
        """What each file gave, in the order stored; nothing where there is no cache or a bad one."""
        try:
            return self._read()
        except (FileNotFoundError, NotADirectoryError):
            if not self.path.exists():
                return {}
            reason = "has lost its .npy file"
        except PermissionError as error:
            raise cache.no_access(error, "read", self.path, "modelnet", "cache") from error
        except (*cache.DAMAGE, TypeError, AttributeError, OverflowError) as error:
            reason = cache.reason(error)
        warnings.warn(f"modelnet: {self.path} {reason}; the clouds are prepared anew and it is replaced", stacklevel=4)
        return {}

    def _read(self) -> dict[Stamp, Piece]:
        found = json.loads(self.path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"it must be an object, got {type(found).__name__}")
        if found.get("format") != FORMAT:
            raise cache.OtherData(f"is of another version (format {found.get('format')}, this is {FORMAT})")
        if found.get("settings") != self.meta["settings"]:
            raise cache.OtherData("holds data of other settings")
        name = found["points"]
        if not name.startswith(self.stem) or Path(name).name != name:
            raise ValueError(f"points must be a file {self.stem}-*.npy beside it, got {name!r}")
        # Copy on write: torch refuses read-only memory, and the file stays as it is.
        points = np.load(self.folder / name, mmap_mode="c", allow_pickle=False)
        labels = np.asarray(found["labels"], dtype=np.int64)
        stamps = [(str(key), int(size), int(time)) for key, size, time, _ in found["files"]]
        rows = np.cumsum([0, *(int(count) for *_, count in found["files"])])
        P = self.meta["settings"]["points"]
        if points.shape != (rows[-1], P, 3) or points.dtype != np.float32 or labels.shape != (rows[-1],):
            raise ValueError("the arrays have wrong shapes")
        if _checksum(points, labels) != found["crc32"]:
            raise ValueError("the checksum is wrong")
        self.old, self.arrays = name, (points, labels)
        bounds = zip(rows[:-1], rows[1:], strict=True)
        return {stamp: (points[a:b], labels[a:b]) for stamp, (a, b) in zip(stamps, bounds, strict=True)}

    def check_access(self) -> None:
        """Before the work, so that a folder without write permission costs no time."""
        probe = self.folder / f".{self.stem}.{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise cache.no_access(error, "written in", self.folder, "modelnet", "cache") from error

    def write(self, pieces: dict[Stamp, Piece]) -> Piece:
        """All pieces in one array and on disk; mapped from there, or in memory where they could not be saved."""
        if not pieces:
            return self.arrays
        points = np.concatenate([points for points, _ in pieces.values()])
        labels = np.concatenate([labels for _, labels in pieces.values()])
        crc = _checksum(points, labels)
        name = f"{self.stem}-{crc:08x}.npy"
        files = [[*stamp, len(labels)] for stamp, (_, labels) in pieces.items()]
        meta = {**self.meta, "points": name, "crc32": crc, "labels": labels.tolist(), "files": files}
        try:
            self._replace(self.folder / name, lambda file: np.save(file, points))
            self._replace(self.path, lambda file: file.write(json.dumps(meta).encode()))
            points = np.load(self.folder / name, mmap_mode="c")
            if self.old not in ("", name):
                (self.folder / self.old).unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(
                f"modelnet: the clouds could not be saved in {self.folder} ({error}) and will be prepared again next "
                "time; free some space there, pass cache=, or set ACE_FAST_DATA to another folder",
                stacklevel=4,
            )
        return points, labels

    def _replace(self, path: Path, fill: Callable[[Any], object]) -> None:
        temporary = self.folder / f".{path.name}.{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                fill(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _checksum(points: np.ndarray, labels: np.ndarray) -> int:
    return zlib.crc32(labels.tobytes(), zlib.crc32(np.ascontiguousarray(points).data))
