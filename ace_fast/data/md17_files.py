"""Where conformations with forces come from: MD17's and rMD17's archives, .xyz files, and the converted arrays."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import cache
from .extxyz import XYZ, read_xyz
from .frames import Frames, frames

_FOLDERS = (".", "npz_data", "rmd17", "rmd17/npz_data", "md17", "raw", "raw/rmd17/npz_data")
_MD17 = {"z": "z", "pos": "R", "energy": "E", "forces": "F"}
_REVISED = {"z": "nuclear_charges", "pos": "coords", "energy": "energies", "forces": "forces"}
_NAMES = ("pos", "energy", "forces")  # of a converted archive, after the molecule's name
_LENGTHS = ("Ang", "Angstrom", "angstrom", "A", "Å")  # what sGDML's files call it
_USUAL = "300K"  # the training file that is taken where there are several and none is asked for
_WHERE = (
    "get rMD17 (figshare 12672038, unpack rmd17.tar.bz2), MD17's .npz files (sgdml.org, quantum-machine.org), or "
    "3BPA's .xyz files (davkovacs/BOTNet-datasets), and name their folder or file (root=, --data)"
)


class Content(NamedTuple):
    """What files hold: frames to train on, and those to test on where the files say which."""

    source: str  # what the data are
    train: Frames  # for training, and for validation where that has none of its own
    valid: Frames | None
    tests: dict[str, Frames]  # by name, the usual one first; empty: to be split off
    ordered: bool  # whether the order of `train` is the published one, or of no meaning


def read(root: Path, molecule: str = "", *, fold: int = 1, train_set: str = "", unit: str = "auto") -> Content:
    """What `root` holds, a folder or a file.

    Args:
        root, molecule, fold, train_set, unit: see `md17`.

    Raises:
        FileNotFoundError: none of what is known.
        ValueError: several molecules or training files and none chosen, or a file that cannot be used.
    """
    if root.is_file() and root.suffix == ".npz":
        return _archive(root, molecule, fold, unit)
    if root.is_file() and root.suffix in (".xyz", ".extxyz"):
        return Content(root.stem, _xyz(root, unit), None, {}, False)
    if root.is_dir():
        for folder in (root, *((root / molecule, root / "xyz_data" / molecule) if molecule else ())):
            if sorted(folder.glob("train*.xyz")):
                return _xyz_folder(folder, train_set, unit)
        if found := _archives(root):
            return _archive(found[_chosen(found, molecule, root)], "", fold, unit)
    raise FileNotFoundError(
        f"md17: {root} must be a folder with <molecule>.npz files or with train_*.xyz and test_*.xyz, or one .npz or "
        f".xyz file, got {'other files' if root.exists() else 'no such folder or file'}; {_WHERE}"
    )


def _archives(root: Path) -> dict[str, Path]:
    """Molecules of a folder and their archives; of two the revised one."""
    found: dict[str, Path] = {}
    for folder in (root / name for name in _FOLDERS if (root / name).is_dir()):
        for path in sorted(folder.glob("*.npz"), key=lambda path: not path.name.startswith("rmd17_")):
            name = path.stem.removeprefix("rmd17_").removeprefix("md17_").removesuffix("_dft")
            found.setdefault(name, path)
    return found


def _chosen(names, molecule: str, where: Path) -> str:
    """`molecule`, or the only one there is; salicylic_acid is salicylic too."""
    for name in (molecule, molecule.removesuffix("_acid")):
        if name in names:
            return name
    if not molecule and len(names) == 1:
        return next(iter(names))
    raise ValueError(f"md17: molecule must be one that {where} has, {', '.join(sorted(names))}, got {molecule!r}; name "
                     "one (molecule=, --molecule)")


def _archive(path: Path, molecule: str, fold: int, unit: str) -> Content:
    arrays = _Archive(path)
    for names, kind in ((_REVISED, "rMD17"), (_MD17, "MD17")):
        if set(names.values()) & set(arrays.files):
            return _published(path, arrays, names, kind, fold, unit)
    molecules = _converted(arrays.files)
    if not molecules:
        wanted = " or ".join(", ".join(names.values()) for names in (_MD17, _REVISED))
        raise ValueError(f"md17: {path} must hold {wanted}, got {', '.join(arrays.files) or 'nothing'}")
    return _of_converted(path, arrays, _chosen(molecules, molecule, path), unit)


class _Archive:
    """The arrays of an .npz, read when they are asked for; damage is named."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                self.files = list(archive.files)
        except (*cache.DAMAGE, AttributeError, TypeError) as error:
            raise self._damaged(error) from error

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.files:
            raise ValueError(f"md17: {self.path} must hold {name}, got {', '.join(self.files)}; get it anew")
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                return archive[name]
        except cache.DAMAGE as error:
            raise self._damaged(error, name) from error

    def _damaged(self, error: Exception, name: str = "") -> ValueError:
        part = f" ({name})" if name else ""
        return ValueError(f"md17: {self.path}{part} must be a whole .npz file, got a truncated or damaged one "
                          f"({type(error).__name__}: {error}); get it anew")


def _published(path: Path, arrays: _Archive, names: dict[str, str], kind: str, fold: int, unit: str) -> Content:
    """MD17 or rMD17, in kcal/mol unless the file says otherwise, with the published split where its lists are there."""
    said = {name: str(arrays[name]) for name in ("e_unit", "r_unit") if name in arrays.files}  # sGDML's
    if said.get("r_unit", "Ang") not in _LENGTHS:
        raise ValueError(f"md17: the positions of {path} must be in Å, got r_unit {said['r_unit']!r}; convert them")
    unit = said.get("e_unit", "kcal/mol") if unit == "auto" else unit
    found = frames(*(arrays[names[name]] for name in ("z", "pos", "energy", "forces")), unit, str(path))
    lists = _lists(path, fold)
    if lists is None:
        return Content(f"{kind} ({path.name})", found, None, {}, False)
    train, test = (found.take(_indices(listed, len(found.rows))) for listed in lists)
    both = np.intersect1d(train.rows, test.rows)
    if len(both):
        raise ValueError(f"md17: {lists[1]} must list other frames than {lists[0].name}, got {both[0]} in both; "
                         "get both anew")
    return Content(f"{kind} ({path.name}, published split {fold})", train, None, {"test": test}, True)


def _lists(path: Path, fold: int) -> tuple[Path, Path] | None:
    for folder in (path.parent, path.parent / "splits", path.parent.parent / "splits"):
        train, test = (folder / f"index_{part}_{fold:02}.csv" for part in ("train", "test"))
        if train.is_file() and test.is_file():
            return train, test
        if sorted(folder.glob("index_train_*.csv")):
            raise ValueError(f"md17: {folder} must hold {train.name} and {test.name}, got no such split; choose "
                             "another one (fold=, --fold)")
    return None


def _indices(path: Path, count: int) -> np.ndarray:
    """[G'] the frames that a file lists, one a line."""
    words = path.read_text(encoding="ascii", errors="replace").split()
    wrong = [word for word in words if not word.isdecimal() or int(word) >= count]
    if wrong or not words:
        got = wrong[0] if wrong else "none"
        raise ValueError(f"md17: {path} must list frames, 0 to {count - 1}, got {got!r}; get it anew")
    return np.array([int(word) for word in words], dtype=np.int64)


def _converted(names: list[str]) -> dict[str, list[str]]:
    """Molecules of a converted archive, and the names of their sets of frames ("" for the only one)."""
    found: dict[str, list[str]] = {}
    for name in names:
        stem = name.removesuffix("_z")
        if stem != name and stem:
            sets = [other.removesuffix("_energy") for other in names if other.startswith(f"{stem}_")
                    and other.endswith("_energy")]
            if sets:
                found[stem] = [part.removeprefix(stem).removeprefix("_") for part in sets]
    return found


def _of_converted(path: Path, arrays: _Archive, molecule: str, unit: str) -> Content:
    """<molecule>_z, _pos, _energy, _forces (eV, Å), with _split 0 1 2, or in sets <molecule>_train..., _test...."""
    unit, source = "eV" if unit == "auto" else unit, f"{molecule} ({path.name})"

    def of(part: str) -> Frames:
        stem = f"{molecule}_{part}" if part else molecule
        found = (arrays[f"{stem}_{name}"] for name in _NAMES)
        return frames(arrays[f"{molecule}_z"], *found, unit, f"{stem} of {path}")

    parts = _converted(arrays.files)[molecule]
    if parts == [""]:
        whole, name = of(""), f"{molecule}_split"
        if name not in arrays.files:
            return Content(source, whole, None, {}, False)
        split = arrays[name]
        if split.shape != whole.rows.shape or not all((split == code).any() for code in range(3)):
            raise ValueError(f"md17: {name} of {path} must say 0, 1 or 2 for each of the {len(whole.rows)} frames, got "
                             "others, or none of a kind")
        train, valid, test = (whole.take(np.flatnonzero(split == code)) for code in range(3))
        return Content(source, train, valid, {"test": test}, True)
    train = [part for part in parts if part.startswith("train")]
    tests = sorted((part for part in parts if part.startswith("test")), key=_by_temperature)
    if len(train) != 1 or not tests:
        raise ValueError(f"md17: {path} must hold one training set of {molecule} and test sets, got {', '.join(parts)}")
    return Content(source, of(train[0]), None, {part: of(part) for part in tests}, False)


def _xyz(path: Path, unit: str) -> Frames:
    return _frames(path, read_xyz(path), unit)


def _frames(path: Path, found: XYZ, unit: str) -> Frames:
    missing = [name for name in ("energy", "forces") if getattr(found, name) is None]
    if missing:
        raise ValueError(f"md17: {path} must say energies (energy=) and forces (Properties=...:forces:R:3), got no "
                         f"{' and no '.join(missing)}")
    return frames(found.z, found.pos, found.energy, found.forces, "eV" if unit == "auto" else unit, str(path))


def _xyz_folder(folder: Path, train_set: str, unit: str) -> Content:
    """train*.xyz, valid*.xyz (optional) and test*.xyz; sets without forces are left out with a warning."""
    files = {part: {path.stem: path for path in folder.glob(f"{part}*.xyz")} for part in ("train", "valid", "test")}
    known = {stem.removeprefix("train").removeprefix("_"): path for stem, path in files["train"].items()}
    name = train_set or (next(iter(known)) if len(known) == 1 else _USUAL)
    if name not in known:
        raise ValueError(f"md17: the training set must be one that {folder} has, {', '.join(sorted(known))}, got "
                         f"{train_set!r}; name one (train_set=, --train-set)")
    if len(files["valid"]) > 1:
        raise ValueError(f"md17: {folder} must hold one validation set, got {', '.join(sorted(files['valid']))}")
    train, tests = _xyz(known[name], unit), {}
    for stem in sorted(files["test"], key=_by_temperature):
        path = files["test"][stem]
        found = read_xyz(path)
        if found.forces is None:
            warnings.warn(f"md17: {path} has no forces and is left out", stacklevel=4)
            continue
        tests[stem] = _same(_frames(path, found, unit), train, path)
    valid = next((_same(_xyz(path, unit), train, path) for path in files["valid"].values()), None)
    return Content(f"{folder.name}/{known[name].name}", train, valid, tests, False)


def _same(found: Frames, train: Frames, path: Path) -> Frames:
    if found.z.tolist() != train.z.tolist():
        raise ValueError(f"md17: {path} must hold the molecule of the training set in the same order of atoms, got "
                         "another one")
    return found


def _by_temperature(name: str) -> tuple[float, str]:
    """300K before 1200K, and names without a temperature last."""
    temperature = re.search(r"(\d+)K", name)
    return (float(temperature.group(1)) if temperature else float("inf")), name
