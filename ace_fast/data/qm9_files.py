"""Where QM9 comes from: which files a folder holds, and the readers of .npz and of torch-geometric's files."""

from __future__ import annotations

import functools
import importlib
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .molecules import Molecules, build
from .nbody import Progress
from .qm9_raw import exclude, read_sdf, read_xyz_files
from .qm9_targets import TARGETS, converted, with_atomisation

_FOLDERS = (".", "raw", "qm9", "qm9/raw", "QM9", "QM9/raw", "dsgdb9nsd", "raw/dsgdb9nsd")
_ARCHIVES = ("dsgdb9nsd.xyz.tar.bz2", "dsgdb9nsd.xyz.tar.gz", "dsgdb9nsd.xyz.tar")
_EXCLUDED = "uncharacterized.txt"
_WHERE = (
    "get gdb9.sdf and gdb9.sdf.csv (MoleculeNet's qm9.zip, which torch-geometric's QM9 downloads too) or "
    "dsgdb9nsd.xyz.tar.bz2 (figshare, Quantum chemistry structures and properties of 134 kilo molecules), and "
    "uncharacterized.txt from there"
)
NEEDED = ("z", "pos", "offsets", "targets", "target_names", "target_units")
_CODES = {"train": 0, "valid": 1, "test": 2}

Read = tuple[Molecules, np.ndarray | None]  # and the split of each where the file has one: 0 train, 1 valid, 2 test


class Layout(NamedTuple):
    """The files of a data set as they were found, and the function that reads them."""

    source: str  # what the data are
    files: tuple[Path, ...]
    read: Callable[[Progress | None], Read]
    cached: bool = True  # whether reading is slow enough to keep what was read
    complete: bool = False  # whether the molecules that QM9's authors could not characterize are among them


def find(root: Path) -> Layout:
    """What `root` holds, a folder or a file.

    Raises:
        FileNotFoundError: none of what is known, or a part of it.
    """
    if root.is_file():
        return _file(root)
    for folder in (root / name for name in _FOLDERS if (root / name).is_dir()):
        if layout := _raw(folder):
            return layout
    for folder in (root / name for name in _FOLDERS if (root / name).is_dir()):
        if layout := _geometric(folder):
            return layout
    raise FileNotFoundError(
        f"qm9: {root} must hold gdb9.sdf and gdb9.sdf.csv, dsgdb9nsd_*.xyz or their archive, or torch-geometric's QM9 "
        f"(raw/ or processed/), or be an .npz file, got {_content(root)}; {_WHERE}, and name their folder (root=, "
        "--data)"
    )


def _content(root: Path) -> str:
    if not root.is_dir():
        return "no such folder or file"
    names = sorted(path.name for path in root.iterdir())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "an empty folder"


def _file(path: Path) -> Layout:
    name = path.name.lower()
    if name.endswith(".npz"):
        return Layout(f"{path.stem} (.npz)", (path,), lambda progress: read_npz(path), cached=False)
    if name.endswith(".sdf") or name.endswith(".sdf.csv"):
        return _sdf(path.parent / path.name.removesuffix(".csv"))
    if ".tar" in name:
        return _xyz(path.parent, [path])
    raise FileNotFoundError(
        f"qm9: the data must be a folder, an .npz, gdb9.sdf or dsgdb9nsd.xyz.tar.bz2, got {path}; {_WHERE}"
    )


def _raw(folder: Path) -> Layout | None:
    if (folder / "gdb9.sdf").is_file() or (folder / "gdb9.sdf.csv").is_file():
        return _sdf(folder / "gdb9.sdf")
    if paths := sorted(folder.glob("dsgdb9nsd_*.xyz")):
        return _xyz(folder, paths)
    for name in _ARCHIVES:
        if (folder / name).is_file():
            return _xyz(folder, [folder / name])
    return None


def _sdf(sdf: Path) -> Layout:
    table = sdf.with_name(f"{sdf.name}.csv")
    missing = [path for path in (sdf, table) if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"qm9: {sdf.parent} must hold {sdf.name} and {table.name}, got no {missing[0].name}; "
                                f"{_WHERE}")
    return _with_exclusion(sdf.parent, "sdf", (sdf, table), functools.partial(read_sdf, sdf, table))


def _xyz(folder: Path, paths: list[Path]) -> Layout:
    return _with_exclusion(folder, "xyz", tuple(paths), functools.partial(read_xyz_files, paths))


def _with_exclusion(folder: Path, kind: str, files: tuple[Path, ...], read: Callable) -> Layout:
    found = next((place / _EXCLUDED for place in (folder, folder.parent) if (place / _EXCLUDED).is_file()), None)
    if found is None:
        source = f"QM9 ({kind}, uncharacterized molecules included)"
        return Layout(source, files, lambda progress: (read(progress), None), complete=True)
    return Layout(f"QM9 ({kind})", (*files, found), lambda progress: (exclude(read(progress), found), None))


def _geometric(folder: Path) -> Layout | None:
    raw = sorted(folder.glob("qm9_v*.pt"))
    if raw:
        return Layout("QM9 (torch-geometric)", (raw[-1],), lambda progress: (_read_dicts(raw[-1]), None))
    processed = sorted((folder / "processed").glob("data_v*.pt"))
    if processed:
        return Layout("QM9 (torch-geometric)", (processed[-1],), lambda progress: (_read_processed(folder), None))
    return None


def read_npz(path: Path) -> Read:
    """Molecules of an .npz file, and its split where it has one.

    z [N], pos [N, 3] (Å), offsets [G + 1], targets [G, T], target_names [T] (of TARGETS), target_units [T] (Ha or eV
    for energies, else the unit of TARGETS); optional are gdb_id [G] and split [G] (0 train, 1 validation, 2 test).

    Raises:
        ValueError: an array missing or of another shape, an unknown target or unit, or bad values.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise ValueError(f"qm9: {path} must be a whole .npz file, got another one ({error}); get it anew") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ValueError(f"qm9: {path} must hold {', '.join(NEEDED)}, got none called {', '.join(missing)}; add them")
    names, units = ([str(x) for x in arrays[name]] for name in ("target_names", "target_units"))
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise ValueError(f"qm9: the target_names of {path} must be among {', '.join(TARGETS)}, got {unknown[0]}")
    offsets, values = arrays["offsets"], arrays["targets"]
    G, N = len(offsets) - 1, len(arrays["z"])
    shapes = {"pos": (N, 3), "targets": (G, len(names)), "target_units": (len(names),), "gdb_id": (G,), "split": (G,)}
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise ValueError(f"qm9: {name} of {path} must be {list(shape)}, got {list(arrays[name].shape)}")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or offsets[0] != 0 or offsets[-1] != N:
        raise ValueError(f"qm9: offsets of {path} must be integers [G + 1] from 0 to the {N} atoms, got others")
    counts = np.diff(offsets.astype(np.int64))
    if (counts < 0).any():
        raise ValueError(f"qm9: offsets of {path} must never decrease, got {counts.min()} atoms in a molecule")
    ids = arrays.get("gdb_id", np.arange(1, G + 1))
    targets = converted("qm9", dict(zip(names, values.T, strict=True)), dict(zip(names, units, strict=True)))
    found = build(arrays["z"], arrays["pos"], counts, ids, targets, lambda g: f"molecule {g} of {path}")
    split = arrays.get("split")
    if split is not None and not np.isin(split, list(_CODES.values())).all():
        raise ValueError(f"qm9: split of {path} must be 0 (train), 1 (validation) or 2 (test), got others")
    return found._replace(targets=with_atomisation(found.targets, found.z, found.offsets)), split


def _read_dicts(path: Path) -> Molecules:
    """torch-geometric's preprocessed raw file: a list of dicts, in its units."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        z = torch.cat([entry["z"] for entry in found]).numpy()
        pos = torch.cat([entry["pos"] for entry in found]).numpy()
        y = torch.cat([entry["y"].reshape(1, -1) for entry in found]).numpy()
        counts, names = [len(entry["z"]) for entry in found], [entry["name"] for entry in found]
    except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise ValueError(f"qm9: {path} must be torch-geometric's list of molecules, got another file ({error}); get it "
                         "anew") from error
    return _of_geometric(path, z, pos, counts, names, y)


def _read_processed(root: Path) -> Molecules:
    """torch-geometric's processed data set in `root`; nothing is downloaded and nothing processed anew."""
    try:
        datasets = importlib.import_module("torch_geometric.datasets")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"qm9: torch-geometric's processed files in {root} need torch-geometric, which is not installed; install "
            "it with: pip install torch-geometric, or give the raw files"
        ) from error

    class Processed(datasets.QM9):
        def download(self) -> None:
            pass

    data = Processed(str(root))
    slices = data.slices["z"]
    stored = data._data  # molecule by molecule it would take a minute
    arrays = stored.z.numpy(), stored.pos.numpy(), slices.diff().numpy()
    return _of_geometric(root, *arrays, stored.name, stored.y.numpy())


def _of_geometric(path: Path, z: np.ndarray, pos: np.ndarray, counts, names: list[str], y: np.ndarray) -> Molecules:
    """Targets as they are: energies in eV, all in float32, so that total energies are exact to 1 meV only."""
    if y.ndim != 2 or y.shape != (len(counts), len(TARGETS)):
        raise ValueError(f"qm9: the molecules of {path} must have {len(TARGETS)} targets each, got {list(y.shape)}")
    try:
        ids = [int(name.removeprefix("gdb_")) for name in names]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"qm9: the molecules of {path} must be called gdb_<number>, got {error}") from error
    targets = dict(zip(TARGETS, y.T.astype(np.float64), strict=True))
    return build(z, pos, counts, ids, targets, lambda g: f"{names[g]} of {path}")
