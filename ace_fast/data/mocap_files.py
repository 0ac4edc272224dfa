"""Recorded human motion from files: Acclaim's .asf and .amc in a folder or zip archive, and converted .npz arrays."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .mocap_skeleton import Skeleton, check_tree, positions, read_amc, read_asf
from .nbody import Progress

NEEDED = ("pos", "offsets", "edges")
FPS = 120.0  # of CMU's recordings; .amc files do not say it
_DAMAGE = (ValueError, EOFError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)
_WHERE = "get the subject's .asf and .amc files from mocap.cs.cmu.edu and name their folder or archive (root=, --data)"


class Case(NamedTuple):
    """A motion of CMU's database as GMN and EGNO use it.

    Attributes:
        subject, trials: CMU's numbers.
        starts, per_trial: start frames of a trial are drawn among its first `starts`, `per_trial` of them.
        parts: indices into the trials of training, validation and test data.
    """

    subject: int
    trials: tuple[int, ...]
    starts: int
    per_trial: int
    parts: tuple[tuple[int, ...], ...]


CASES = {
    "walk": Case(35, (*range(1, 17), *range(28, 35)), 300, 100,
                 ((20, 1, 17, 13, 14, 9, 4, 2, 7, 5, 16), (3, 8, 11, 12, 15, 18), (6, 19, 21, 0, 22, 10))),
    "run": Case(9, tuple(range(1, 12)), 90, 80, ((1, 2, 5, 6, 10), (0, 4, 9), (3, 7, 8))),
}


class Recordings(NamedTuple):
    """Trials of one skeleton.

    Attributes:
        trials: their names; pos: of each trial [F, J, 3] float64, y up, in units of `unit_cm` centimetres.
        joints: J names; bones: [J - 1, 2] int64, (joint, its parent).
        source: what the data are.
        fps, unit_cm: frames a second, and the unit of length (None: not known).
        split: [K] 0 train, 1 validation, 2 test; starts: of each trial, start frames. None where the files have none.
    """

    trials: tuple[str, ...]
    pos: tuple[np.ndarray, ...]
    joints: tuple[str, ...]
    bones: np.ndarray
    source: str
    fps: float
    unit_cm: float | None
    split: np.ndarray | None = None
    starts: np.ndarray | None = None


def read(root: Path, case: str, progress: Progress | None = None) -> Recordings:
    """The trials of a case that `root` holds; see `ace_fast.data.mocap`."""
    if root.is_file():
        return _file(root, case, progress)
    for folder in _folders(root, CASES[case].subject):
        files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        found = _subject({name: _reader(path) for name, path in files.items()}, str(folder), case, progress)
        if found is not None:
            return found
        for name in (f"mocap_{case}.npz", f"{case}.npz"):
            if name in files:
                return read_npz(files[name])
    raise FileNotFoundError(
        f"mocap: {root} must hold {CASES[case].subject:02}.asf with {CASES[case].subject:02}_01.amc and so on, or "
        f"mocap_{case}.npz, or be a .zip of the former or an .npz file, got {_content(root)}; {_WHERE}"
    )


def _file(path: Path, case: str, progress: Progress | None) -> Recordings:
    kind = path.suffix.lower()
    if kind == ".npz":
        return read_npz(path)
    if kind in (".asf", ".amc"):
        return read(path.parent, case, progress)
    if kind != ".zip":
        raise FileNotFoundError(f"mocap: the data must be a folder, an .npz or a .zip file, got {path}; {_WHERE}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.rsplit("/", 1)[-1]: _member(archive, path, name) for name in archive.namelist()}
            found = _subject(members, str(path), case, progress)
    except zipfile.BadZipFile as error:
        raise ValueError(f"mocap: {path} must be a whole zip archive, got a damaged one ({error}); get it anew"
                         ) from error
    if found is None:
        raise FileNotFoundError(f"mocap: {path} must hold {CASES[case].subject:02}.asf for the case {case}, got none; "
                                f"{_WHERE}")
    return found


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> Callable[[], str]:
    def text() -> str:
        try:
            return archive.read(name).decode("ascii", errors="replace")
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"mocap: {name} of {path} must be a whole file, got a damaged one ({error}); get the "
                             "archive anew") from error

    return text


def _reader(path: Path) -> Callable[[], str]:
    return lambda: path.read_text(encoding="ascii", errors="replace")


def _folders(root: Path, subject: int) -> list[Path]:
    own = (f"{subject:02}", str(subject))
    inner = [".", *own, *(f"{way}subjects/{name}" for way in ("", "all_asfamc/", "allasfamc/all_asfamc/")
                          for name in own)]
    return [root / name for name in inner if (root / name).is_dir()]


def _content(root: Path) -> str:
    if not root.is_dir():
        return "no such folder or file"
    names = sorted(path.name for path in root.iterdir())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "an empty folder"


def _subject(
    files: Mapping[str, Callable[[], str]], where: str, case: str, progress: Progress | None
) -> Recordings | None:
    """The case's trials among files by name; None where its skeleton is not among them."""
    about = CASES[case]
    asf = next((name for name in files if re.fullmatch(rf"0*{about.subject}\.asf", name, re.IGNORECASE)), None)
    if asf is None:
        return None
    skeleton = read_asf(files[asf](), f"{where}, {asf}")
    numbered = ((re.fullmatch(rf"0*{about.subject}_(\d+)\.amc", name, re.IGNORECASE), name) for name in files)
    motions = dict(sorted((int(found[1]), name) for found, name in numbered if found))
    motions = {number: name for number, name in motions.items() if number in about.trials}
    if not motions:
        raise FileNotFoundError(
            f"mocap: {where} must hold motions of subject {about.subject} for the case {case}, "
            f"{about.subject:02}_{about.trials[0]:02}.amc and so on, got none; {_WHERE}"
        )
    names = tuple(f"{about.subject:02}_{number:02}" for number in motions)
    found = []
    for done, name in enumerate(motions.values(), 1):
        found.append(read_motion(files[name](), f"{where}, {name}", skeleton))
        if progress is not None:
            progress(done, len(motions))
    source = f"CMU subject {about.subject}, {case}, {len(names)} of {len(about.trials)} trials (.asf, .amc)"
    return Recordings(names, tuple(found), skeleton.joints, skeleton.bones, source, FPS, skeleton.unit_cm)


def read_motion(text: str, where: str, skeleton: Skeleton) -> np.ndarray:
    """[F, J, 3] float64, the joints in each frame of an .amc text, in the skeleton's unit."""
    channels, _ = read_amc(text, where, skeleton)
    return positions(skeleton, channels)


def read_amc_file(path: Path) -> tuple[np.ndarray, Skeleton]:
    """The joints in each frame [F, J, 3] of an .amc file, and its skeleton.

    That is the .asf file of the subject in the same folder (35.asf for 35_02.amc), or the only one there.
    """
    skeletons = sorted(found for found in path.parent.iterdir() if found.suffix.lower() == ".asf")
    own = [found for found in skeletons if found.stem.lstrip("0") == path.stem.split("_")[0].lstrip("0")]
    if len(own or skeletons) != 1:
        got = ", ".join(found.name for found in skeletons[:4]) or "none"
        raise FileNotFoundError(f"mocap: {path.parent} must hold the .asf file of {path.name}, got {got}; put it there")
    asf = (own or skeletons)[0]
    skeleton = read_asf(_reader(asf)(), str(asf))
    return read_motion(_reader(path)(), str(path), skeleton), skeleton


def read_npz(path: Path) -> Recordings:
    """The trials of an .npz file.

    pos [F, J, 3], all trials one after the other; offsets [K + 1]; edges [J - 1, 2], (joint, parent). Optional are
    joint_names [J], trial [K] (names or numbers), split [K] (0 train, 1 validation, 2 test), start_frames [K, S]
    (counted within the trial), fps, unit_cm.

    Raises:
        ValueError: a damaged file, an array missing or of another shape, positions that are not finite (the message
            names trial, frame and joint), edges that form no tree.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        raise ValueError(f"mocap: {path} must be a whole .npz file, got another one ({error}); get it anew") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise ValueError(f"mocap: {path} must hold {', '.join(NEEDED)}, got none called {', '.join(missing)}; add them")
    pos, offsets = arrays["pos"], arrays["offsets"]
    if pos.ndim != 3 or pos.shape[2] != 3 or pos.shape[1] < 2 or pos.dtype.kind != "f":
        raise ValueError(f"mocap: pos of {path} must be floating-point [F, J, 3] with J at least 2, got {pos.dtype} "
                         f"{list(pos.shape)}")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2 or offsets[0] or offsets[-1] != len(pos):
        raise ValueError(f"mocap: offsets of {path} must be integers [K + 1] from 0 to the {len(pos)} frames, got "
                         "others")
    if (np.diff(offsets.astype(np.int64)) < 1).any():
        raise ValueError(f"mocap: offsets of {path} must rise, got a trial without frames; leave it out")
    K, J = len(offsets) - 1, pos.shape[1]
    shapes = {"edges": (J - 1, 2), "joint_names": (J,), "trial": (K,), "split": (K,), "fps": (), "unit_cm": ()}
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            raise ValueError(f"mocap: {name} of {path} must be {list(shape)}, got {list(arrays[name].shape)}")
    joints = tuple(map(str, arrays.get("joint_names", [f"joint {j}" for j in range(J)])))
    trials = tuple(map(str, arrays.get("trial", range(K))))
    bones = _bones(arrays["edges"], joints, str(path))
    _check_finite(pos, offsets, trials, joints, path)
    parts = tuple(part.astype(np.float64) for part in np.split(pos, offsets[1:-1]))
    split, starts = _split(arrays, K, path)
    fps, unit_cm = (float(arrays[name]) if name in arrays else default for name, default in
                    (("fps", FPS), ("unit_cm", None)))
    return Recordings(trials, parts, joints, bones, f"{path.stem} (.npz)", fps, unit_cm, split, starts)


def _bones(edges: np.ndarray, joints: tuple[str, ...], where: str) -> np.ndarray:
    J = len(joints)
    if edges.dtype.kind not in "iu" or (edges < 0).any() or (edges >= J).any():
        raise ValueError(f"mocap: edges of {where} must be pairs (joint, parent) in 0 .. {J - 1}, got others")
    edges = edges.astype(np.int64)
    parents = np.full(J, -2)
    parents[edges[:, 0]] = edges[:, 1]
    children, counts = np.unique(edges[:, 0], return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"mocap: each joint of {where} must have one parent, got more for "
                         f"{joints[children[counts.argmax()]]}")
    parents[parents == -2] = -1  # J - 1 children: one is left, the root
    check_tree(parents, joints, where)
    return edges


def _check_finite(pos: np.ndarray, offsets: np.ndarray, trials: tuple[str, ...], joints: tuple[str, ...], path: Path
                  ) -> None:
    bad = np.argwhere(~np.isfinite(pos))
    if len(bad):
        frame, joint = int(bad[0, 0]), joints[bad[0, 1]]
        k = int(np.searchsorted(offsets, frame, side="right")) - 1
        raise ValueError(f"mocap: pos of {path} must be finite, got NaN or infinity in trial {trials[k]}, frame "
                         f"{frame - int(offsets[k])}, joint {joint}; leave that trial out")


def _split(arrays: Mapping[str, np.ndarray], count: int, path: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    split, starts = arrays.get("split"), arrays.get("start_frames")
    if split is not None and not np.isin(split, (0, 1, 2)).all():
        raise ValueError(f"mocap: split of {path} must be 0 (train), 1 (validation) or 2 (test), got others")
    if starts is not None and (starts.ndim != 2 or len(starts) != count or starts.dtype.kind not in "iu"):
        raise ValueError(f"mocap: start_frames of {path} must be integers [{count}, S], got {starts.dtype} "
                         f"{list(starts.shape)}")
    return split, starts
