"""ModelNet10 and ModelNet40 as point clouds, from the meshes, the resampled text files or the HDF5 of the field."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from . import cloudcache, meshes
from .checks import as_integer
from .cloudcache import Piece
from .nbody import Progress
from .pointclouds import PointClouds, from_y_up, normalise

_SPLITS = ("train", "test")
_RESAMPLED = ("modelnet40_normal_resampled", "modelnet40_ply_hdf5_2048")
_TEN = frozenset("bathtub bed chair desk dresser monitor night_stand sofa table toilet".split())
_FORTY = _TEN | set(
    "airplane bench bookshelf bottle bowl car cone cup curtain door flower_pot glass_box guitar keyboard lamp laptop "
    "mantel person piano plant radio range_hood sink stairs stool tent tv_stand vase wardrobe xbox".split()
)


def modelnet(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    classes: int = 40,
    points: int = 1024,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    download: bool = False,
) -> PointClouds:
    """ModelNet's shapes as clouds in the unit sphere, z up, prepared once and then memory-mapped.

    What is looked for, in `root` and in folders of the usual names within it, in this order:
      - <class>/train/*.off and <class>/test/*.off (Princeton's ModelNet10 and ModelNet40; torch-geometric's raw/):
        points are drawn uniformly from the surface;
      - modelnet40_normal_resampled: modelnet40_train.txt and <class>/<class>_0001.txt: the first points of each file;
      - modelnet40_ply_hdf5_2048: ply_data_train*.h5 and shape_names.txt: the first points of each shape (needs h5py).
    The last two are turned from y up to z up. ModelNet has no validation split: see PointClouds.holdout.

    Args:
        root: the folder; by default ModelNet<classes> in $ACE_FAST_DATA or else in ~/.cache/ace_fast.
        split: "train" or "test".
        classes: how many there are; 10 or 40 for ModelNet itself.
        points: per cloud.
        cache: where the prepared clouds are kept; by default $ACE_FAST_DATA or else ~/.cache/ace_fast.
        seed: of the points drawn from meshes; a shape's points depend on it and on the shape's path alone.
        progress: called with (files done, all) while preparing.
        download: where none of these is in `root`, let torch-geometric download the meshes into it (2 GB for 40).

    Raises:
        ValueError: an argument out of range, a wrong number of classes, or files that cannot be used: all others were
            prepared then, are kept, and are not read again.
        FileNotFoundError: none of these layouts is there.
        ModuleNotFoundError: h5py or torch-geometric is needed and missing.
        OSError: the cache cannot be written.

    Warns:
        UserWarning: the cache was damaged or of another format and is replaced, or it could not be written after all.

    Source: Wu et al., 3D ShapeNets, CVPR 2015 (arXiv 1406.5670); Qi et al., PointNet (arXiv 1612.00593) and PointNet++
    (arXiv 1706.02413) for the resampled files.

    Example:
        >>> data = modelnet("/data/ModelNet40", "test")  # doctest: +SKIP
    """
    _check_arguments(split, classes, points, seed)
    base = Path(os.environ.get("ACE_FAST_DATA") or Path.home() / ".cache" / "ace_fast")
    folder = Path(root or base / f"ModelNet{classes}")
    layout = _layout(folder, split, classes, download)
    about = {"root": str(layout.folder.resolve()), "source": layout.source, "classes": list(layout.classes)}
    about |= {"split": split, "points": points, "seed": seed}
    read = functools.partial(layout.read, layout, points, seed)
    files = [(path.relative_to(layout.folder).as_posix(), path) for path in layout.files]
    clouds, labels = cloudcache.prepare(Path(cache or base), f"modelnet-{split}", about, files, read, progress)
    return PointClouds(torch.from_numpy(clouds), torch.from_numpy(labels), layout.classes, layout.source)


def _check_arguments(split: str, classes: int, points: int, seed: int) -> None:
    if split not in _SPLITS:
        raise ValueError(
            f"modelnet: split must be train or test, got {split!r}; ModelNet has no other, take some of train by "
            "PointClouds.holdout"
        )
    for name, value, least in (("classes", classes, 1), ("points", points, 1), ("seed", seed, 0)):
        as_integer("modelnet", name, value, least)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The files of one split as they were found, and the function that prepares one of them."""

    folder: Path
    source: str
    classes: tuple[str, ...]
    files: list[Path]
    read: Callable[[_Layout, int, int, Path], Piece]


def _layout(root: Path, split: str, classes: int, download: bool) -> _Layout:
    layout = _find(root, split, classes)
    if layout is None and download:
        _download(root, classes)
        layout = _find(root, split, classes)
    if layout is None:
        raise FileNotFoundError(
            f"modelnet: {root} must hold class folders with train and test .off files, modelnet{classes}_train.txt "
            f"with text files, or ply_data_train*.h5, got {_content(root)}; name the folder of ModelNet{classes} "
            "(root=, --data), get it from modelnet.cs.princeton.edu (download=True does), or train on generated solids"
        )
    return layout


def _find(root: Path, split: str, classes: int) -> _Layout | None:
    for folder in (root / name for name in (".", "raw", f"ModelNet{classes}", *_RESAMPLED)):
        for find in (_find_meshes, _find_texts, _find_hdf5):
            if folder.is_dir() and (layout := find(folder, split, classes)):
                return layout
    return None


def _content(root: Path) -> str:
    if not root.is_dir():
        return "a file" if root.exists() else "no such folder"
    names = sorted(path.name for path in root.iterdir())
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "an empty folder"


def _find_meshes(folder: Path, split: str, classes: int) -> _Layout | None:
    # Hidden files: macOS leaves one beside each mesh.
    found = sorted(p for p in folder.iterdir() if p.is_dir() and any((p / name).is_dir() for name in _SPLITS))
    found = [p for p in found if not p.name.startswith(".")]
    if not found:
        return None
    names = _checked_classes(folder, [p.name for p in found], classes)
    files = []
    for kind in found:
        inside = (kind / split).iterdir() if (kind / split).is_dir() else ()
        files_of = sorted(p for p in inside if p.suffix.lower() == ".off" and not p.name.startswith("."))
        if not files_of:
            raise ValueError(f"modelnet: {kind / split} must hold .off files, got none; get the data anew")
        files += files_of
    return _Layout(folder, _source(folder, names, "sampled from its meshes"), names, files, _read_mesh)


def _find_texts(folder: Path, split: str, classes: int) -> _Layout | None:
    if not any((folder / f"modelnet{classes}_{name}.txt").is_file() for name in _SPLITS):
        return None
    ids = {name: _lines(folder / f"modelnet{classes}_{name}.txt") for name in _SPLITS}
    kinds = sorted({_class_of(shape) for part in ids.values() for shape in part})
    names = _checked_classes(folder, kinds, classes)
    files = [folder / _class_of(shape) / f"{shape}.txt" for shape in dict.fromkeys(ids[split])]
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        raise ValueError(
            f"modelnet: modelnet{classes}_{split}.txt must list files of {folder}, got {len(files)} of which "
            f"{len(missing)} are missing{f', first {missing[0]}' if missing else ''}; get the data anew"
        )
    return _Layout(folder, _source(folder, names, "modelnet40_normal_resampled"), names, files, _read_text)


def _find_hdf5(folder: Path, split: str, classes: int) -> _Layout | None:
    if not any(folder.glob("ply_data_*.h5")):
        return None
    names = _checked_classes(folder, _lines(folder / "shape_names.txt"), classes)
    files = sorted(folder.glob(f"ply_data_{split}*.h5"))
    if not files:
        raise ValueError(f"modelnet: {folder} must hold ply_data_{split}*.h5, got none; get the data anew")
    _import("h5py", "HDF5 files need h5py")
    return _Layout(folder, _source(folder, names, "modelnet40_ply_hdf5_2048"), names, files, _read_hdf5)


def _source(folder: Path, classes: tuple[str, ...], made: str) -> str:
    """What the data are; other classes never pass for ModelNet's."""
    for known in (_TEN, _FORTY):
        if set(classes) == known:
            return f"ModelNet{len(known)}, {made}"
    return f"{folder.resolve().name} ({len(classes)} classes of a folder, not ModelNet)"


def _class_of(shape: str) -> str:
    return shape.rpartition("_")[0]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except FileNotFoundError as error:
        raise ValueError(f"modelnet: {path} must be there, got no such file; get the data anew") from error


def _checked_classes(folder: Path, names: list[str], classes: int) -> tuple[str, ...]:
    if len(names) != classes:
        raise ValueError(
            f"modelnet: {folder} must have {classes} classes, got {len(names)} ({', '.join(names[:3])}, ...); pass "
            f"classes={len(names)} (--classes {len(names)}), or complete the folder"
        )
    return tuple(names)


def _read_mesh(layout: _Layout, points: int, seed: int, path: Path) -> Piece:
    vertices, faces = meshes.read_off(path)
    key = hashlib.sha256(path.relative_to(layout.folder).as_posix().encode()).digest()
    generator = np.random.default_rng([seed, int.from_bytes(key[:8], "little")])
    try:
        cloud = meshes.sample(vertices, faces, points, generator)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    label = layout.classes.index(path.parent.parent.name)
    return _piece(cloud[None], [label])


def _read_text(layout: _Layout, points: int, seed: int, path: Path) -> Piece:
    with open(path, "rb") as file:
        # Only as many lines as are wanted: the rest would be nine tenths of the time.
        rows = [line for line in (file.readline() for _ in range(points)) if line.strip()]
    if len(rows) < points:
        raise ValueError(
            f"modelnet: {path} must have {points} points, got {len(rows)}; pass fewer points or get it anew"
        )
    words = [word for row in rows for word in row.split(b",", 3)[:3]]
    try:
        if len(words) != 3 * points:
            raise ValueError("a line of fewer numbers")
        cloud = np.fromiter(map(float, words), np.float64, 3 * points).reshape(points, 3)
    except ValueError as error:
        raise ValueError(f"modelnet: {path} must hold x,y,z,... in each line, got {error}; get it anew") from error
    _check_finite(path, cloud)
    return _piece(cloud[None], [layout.classes.index(_class_of(path.stem))], y_up=True)


def _read_hdf5(layout: _Layout, points: int, seed: int, path: Path) -> Piece:
    h5py = _import("h5py", "HDF5 files need h5py")
    try:
        with h5py.File(path, "r") as file:
            data, labels = file["data"][:, :points], file["label"][()]
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"modelnet: {path} is truncated or damaged ({error}); get it anew") from error
    labels = np.reshape(labels, -1)
    kinds = data.dtype.kind == "f" and labels.dtype.kind in "iu"
    if data.shape[1:] != (points, 3) or len(labels) != len(data) or not kinds:
        raise ValueError(
            f"modelnet: {path} must hold data [S, {points} or more, 3] of floats and a whole-numbered label each, got "
            f"{data.dtype} {list(data.shape)} and {len(labels)} {labels.dtype} labels; pass fewer points or get it anew"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(layout.classes):
        raise ValueError(
            f"modelnet: {path} must hold labels in 0 .. {len(layout.classes) - 1}, got {labels.min()} .. {labels.max()}"
        )
    _check_finite(path, data)
    return _piece(data, labels, y_up=True)


def _check_finite(path: Path, points: np.ndarray) -> None:
    if not np.isfinite(points).all():
        raise ValueError(f"modelnet: {path} must hold finite points, got NaN or infinity; repair it or leave it out")


def _piece(points: np.ndarray, labels: np.ndarray | list[int], y_up: bool = False) -> Piece:
    cloud = torch.as_tensor(points, dtype=torch.float64)
    cloud = normalise(from_y_up(cloud) if y_up else cloud)
    return cloud.to(torch.float32).numpy(), np.asarray(labels, dtype=np.int64)


def _import(name: str, need: str, package: str | None = None):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"modelnet: {need}, which is not installed; install it with: pip install {package or name}"
        ) from error


def _download(folder: Path, classes: int) -> None:
    """The meshes into folder/raw by torch-geometric; what it would make of them itself is left out."""
    datasets = _import("torch_geometric.datasets", "download=True needs torch-geometric", "torch-geometric")
    if classes not in (10, 40):
        raise ValueError(f"modelnet: classes must be 10 or 40 to be downloaded, got {classes}")

    class Meshes(datasets.ModelNet):
        def process(self) -> None:
            pass

        def load(self, *args: object, **options: object) -> None:
            pass

    Meshes(str(folder), str(classes))
