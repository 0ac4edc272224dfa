"""Reading a cache file of trajectories, and the words for what is wrong with a cache file."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

# What reading a damaged archive raises; RuntimeError: a flipped bit that marks a member as encrypted.
DAMAGE = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class OtherData(ValueError):
    """A sound file that holds something else; its text continues the name of the file."""


def reason(error: Exception) -> str:
    return str(error) if isinstance(error, OtherData) else f"is truncated or damaged ({type(error).__name__}: {error})"


def no_access(error: OSError, what: str, path: Path, who: str = "nbody", option: str = "root") -> OSError:
    # OSError picks its subclass by the number, so the caller still gets a PermissionError.
    return OSError(
        error.errno,
        f"{who}: the data cache cannot be {what} {path} ({error.strerror}); pass {option}= a folder you may write to, "
        "or set ACE_FAST_DATA to one",
    )


def read(path: Path, meta: dict[str, object], sizes: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """The arrays of a cache file; the archive's CRC-32 of each member is verified in reading it."""
    B, T, n = sizes
    # Opened here because numpy leaves a damaged archive open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        found = json.loads(str(archive["meta"]))
        if not isinstance(found, dict):
            raise ValueError(f"meta must be an object, got {type(found).__name__}")
        if found.get("format") != meta["format"]:
            raise OtherData(f"is of another version (format {found.get('format')}, this is {meta['format']})")
        if found != meta:
            raise OtherData("holds data of other settings")
        arrays = {name: archive[name] for name in ("position", "velocity", "charge")}
    shapes = {"position": (B, T, n, 3), "velocity": (B, T, n, 3), "charge": (B, n, 1)}
    if any(arrays[name].shape != shape or arrays[name].dtype != np.float32 for name, shape in shapes.items()):
        raise ValueError("the arrays have wrong shapes")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    return arrays
