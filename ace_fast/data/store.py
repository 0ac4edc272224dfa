"""Prepared arrays on disk: memory-mapped .npy files, and a .json that names them and what they were made of."""

from __future__ import annotations

import json
import os
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import cache

T = TypeVar("T")


class Words(NamedTuple):
    """How messages speak of a store: whose it is, what it holds, what is done with that, the option of its folder."""

    who: str
    what: str
    done: str
    option: str = "cache"


class Store:
    """One cache: its .json, which is replaced atomically and names the .npy files that belong to it.

    Args:
        folder, stem: where it is, and what its file names begin with.
        meta: "format" and "settings": all that the arrays depend on; a file that says otherwise is replaced.
        words: for messages.
    """

    def __init__(self, folder: Path, stem: str, meta: Mapping[str, Any], words: Words) -> None:
        self.folder, self.stem, self.meta, self.words = folder, stem, dict(meta), words
        self.path = folder / f"{stem}.json"
        self._old: set[str] = set()  # the .npy files in use so far

    def read(self, names: Sequence[str], check: Callable[[dict[str, Any], dict[str, np.ndarray]], tuple[T, list]]
             ) -> T | None:
        """What `check` makes of a sound cache; None where there is no cache or a bad one, with a warning then.

        Args:
            names: of the arrays, in the order of the checksum.
            check: (content of the .json, arrays by name) -> (the result, arrays that the checksum begins with); it
                raises for what does not fit together.
        """
        try:
            return self._read(names, check)
        except (FileNotFoundError, NotADirectoryError):
            if not self.path.exists():
                return None
            reason = "has lost its .npy file"
        except PermissionError as error:
            raise cache.no_access(error, "read", self.path, self.words.who, self.words.option) from error
        except (*cache.DAMAGE, TypeError, AttributeError, OverflowError) as error:
            reason = cache.reason(error)
        warnings.warn(f"{self.words.who}: {self.path} {reason}; {self.words.what} are {self.words.done} anew and it is "
                      "replaced", stacklevel=4)
        return None

    def _read(self, names: Sequence[str], check: Callable) -> Any:
        found = json.loads(self.path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"it must be an object, got {type(found).__name__}")
        if found.get("format") != self.meta["format"]:
            raise cache.OtherData(
                f"is of another version (format {found.get('format')}, this is {self.meta['format']})"
            )
        if found.get("settings") != self.meta["settings"]:
            raise cache.OtherData("holds data of other settings")
        files = {name: found[name] for name in names}
        for name, file in files.items():
            if not file.startswith(self.stem) or Path(file).name != file:
                raise ValueError(f"{name} must be a file {self.stem}-*.npy beside it, got {file!r}")
        arrays = self._mapped(files)
        result, first = check(found, arrays)
        if checksum([*first, *arrays.values()]) != found["crc32"]:
            raise ValueError("the checksum is wrong")
        self._old = set(files.values())
        return result

    def _mapped(self, files: Mapping[str, str]) -> dict[str, np.ndarray]:
        # Copy on write: torch refuses read-only memory, and the file stays as it is. An empty array cannot be mapped.
        arrays = {}
        for name, file in files.items():
            path = self.folder / file
            try:
                arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
            except ValueError:
                arrays[name] = np.load(path, allow_pickle=False)
        return arrays

    def check_access(self) -> None:
        """Before the work, so that a folder without write permission costs no time."""
        probe = self.folder / f".{self.stem}.{uuid.uuid4().hex}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise cache.no_access(error, "written in", self.folder, self.words.who, self.words.option) from error

    def write(self, arrays: Mapping[str, np.ndarray], first: Sequence[np.ndarray] = (), **more: Any
              ) -> dict[str, np.ndarray]:
        """Saves `arrays`, and `more` in the .json; mapped from there, or as given where they could not be saved.

        Args:
            arrays: in the order of the checksum.
            first: arrays within `more` that the checksum begins with.
        """
        crc = checksum([*first, *arrays.values()])
        files = {name: f"{self.stem}-{crc:08x}-{name}.npy" for name in arrays}
        meta = {**self.meta, **files, "crc32": crc, **more}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, array in arrays.items():
                self._replace(self.folder / files[name], lambda file, array=array: np.save(file, array))
            self._replace(self.path, lambda file: file.write(json.dumps(meta).encode()))
            mapped = self._mapped(files)
            for file in self._old - set(files.values()):
                (self.folder / file).unlink(missing_ok=True)
        except OSError as error:
            who, what, done, option = self.words
            warnings.warn(
                f"{who}: {what} could not be saved in {self.folder} ({error}) and will be {done} again next time; free "
                f"some space there, pass {option}=, or set ACE_FAST_DATA to another folder",
                stacklevel=4,
            )
            return dict(arrays)
        return mapped

    def _replace(self, path: Path, fill: Callable[[Any], object]) -> None:
        temporary = self.folder / f".{path.name}.{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                fill(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def checksum(arrays: Sequence[np.ndarray]) -> int:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc
