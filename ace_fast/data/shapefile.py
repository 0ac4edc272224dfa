"""Small collections of labelled shapes in one .npz file, as point clouds or as voxels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from . import cache
from .checks import as_integer
from .pointclouds import PointClouds, from_y_up, normalise

_CODES = {"train": 0, "valid": 1, "test": 2}
_SOURCES = {
    "shapes40": "shapes40 (not ModelNet40), research use only",
    "modelnet10_voxels": "modelnet10_voxels (two classes of ModelNet10 from voxels, not ModelNet10), research use only",
    "public_meshes": "public_meshes (single meshes, not ModelNet), research use only",
}


def shape_file(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    points: int | None = None,
    up: str | None = None,
    seed: int = 0,
) -> PointClouds:
    """The shapes of one split of an .npz file, in the unit sphere, z up.

    The file holds `label` [S] and `class_names`, or `names` [S] alone where each shape is a class of its
    own, and one of
      - `points` [S, P, 3] in random order: the first ones are taken;
      - `voxels` [S, side^3 / 8] packed bits: each point is drawn uniformly from an occupied cell, cells in random order
        and all of them before any is taken again;
    and `split` [S] with 0 train, 1 valid, 2 test; without it, a fifth of each class is drawn for "test".

    Args:
        path: of the file.
        split: "train", "valid", "test", or "all".
        points: per cloud; by default all P, or 1024 from voxels.
        up: "y" or "z", the file's upward axis; by default y for points and z for voxels.
        seed: of the draws.

    Raises:
        ValueError: an argument out of range, or a file that is damaged or holds something else.
        OSError: it cannot be read.

    Example:
        >>> data = shape_file("shapes40.npz", "test")  # doctest: +SKIP
    """
    path = Path(path)
    if split not in ("all", *_CODES):
        raise ValueError(f"shape_file: split must be one of {', '.join(_CODES)}, all, got {split!r}")
    if up not in (None, "y", "z"):
        raise ValueError(f"shape_file: up must be y or z, got {up!r}")
    as_integer("shape_file", "seed", seed, 0)
    arrays = _read(path)
    if "voxels" in arrays:
        points = as_integer("shape_file", "points", 1024 if points is None else points, 1)
        clouds = _from_voxels(path, arrays["voxels"], points, seed)
    else:
        clouds = _first_points(path, arrays["points"], points)
    if (up or ("z" if "voxels" in arrays else "y")) == "y":
        clouds = from_y_up(clouds)
    labels, classes = _labels(path, arrays, len(clouds))
    source = _SOURCES.get(path.stem, f"{path.stem} (shape file, not ModelNet)")
    try:
        whole = PointClouds(normalise(clouds).to(torch.float32), labels, classes, source)
    except ValueError as error:
        raise ValueError(f"shape_file: {path} cannot be used: {error}") from error
    return _part(path, whole, arrays.get("split"), split, seed)


def has_validation(path: str | os.PathLike[str]) -> bool:
    """Whether a file of shapes marks some of them for validation."""
    return bool((_read(Path(path)).get("split", np.empty(0)) == _CODES["valid"]).any())


def _read(path: Path) -> dict[str, np.ndarray]:
    wanted = ("points", "voxels", "label", "class_names", "names", "split")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            found = sorted(archive.files)
            arrays = {name: archive[name] for name in wanted if name in archive.files}
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise OSError(
            error.errno, f"shape_file: {path} must be an .npz file that can be read, got none ({error.strerror}); name "
            "the file of shapes"
        ) from error
    except (*cache.DAMAGE, TypeError) as error:  # TypeError: an .npy is no archive
        raise ValueError(f"shape_file: {path} is no .npz file or {cache.reason(error)}; get it anew") from error
    shapes = "points" in arrays or "voxels" in arrays
    if not shapes or not ({"label", "class_names"} <= arrays.keys() or "names" in arrays):
        raise ValueError(
            f"shape_file: {path} must hold points or voxels, and label and class_names or names, got "
            f"{', '.join(found[:6]) or 'nothing'}; it is no collection of labelled shapes"
        )
    return arrays


def _first_points(path: Path, array: np.ndarray, points: int | None) -> torch.Tensor:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind != "f":
        raise ValueError(
            f"shape_file: points of {path} must be floats [S, P, 3], got {array.dtype} {list(array.shape)}"
        )
    P = array.shape[1]
    n = P if points is None else as_integer("shape_file", "points", points, 1)
    if n > P:
        raise ValueError(f"shape_file: points must be at most the {P} of {path}, got {n}")
    # In float64, as a file in large units leaves the range of float32 before it is normalised.
    return torch.from_numpy(array[:, :n].astype(np.float64))


def _from_voxels(path: Path, packed: np.ndarray, points: int, seed: int) -> torch.Tensor:
    """[S, points, 3] in units of a cell."""
    bits = 8 * packed.shape[1] if packed.ndim == 2 and packed.dtype == np.uint8 else 0
    side = round(bits ** (1 / 3))
    if bits == 0 or side**3 != bits:
        raise ValueError(
            f"shape_file: voxels of {path} must be packed bits, uint8 [S, side^3 / 8], got {packed.dtype} "
            f"{list(packed.shape)}"
        )
    shape, cell = np.nonzero(np.unpackbits(packed, axis=1))  # [all occupied cells], by shape
    count = np.bincount(shape, minlength=len(packed))
    if (count == 0).any():
        raise ValueError(
            f"shape_file: each shape of {path} must have occupied voxels, got none in shape {int(count.argmin())}"
        )
    generator = np.random.default_rng(seed)
    cell = cell[np.argsort(shape + generator.random(len(cell)))]  # in random order within a shape
    start = np.cumsum(count) - count
    chosen = cell[start[:, None] + np.arange(points) % count[:, None]]  # [S, points]
    corner = np.stack(np.unravel_index(chosen, (side, side, side)), axis=-1)
    return torch.from_numpy((corner + generator.random(corner.shape)).astype(np.float32))


def _labels(path: Path, arrays: dict[str, np.ndarray], count: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    if "label" in arrays:
        label, classes = arrays["label"], arrays["class_names"]
    else:
        label, classes = np.arange(len(arrays["names"])), arrays["names"]
    for name, array in (("label", label), ("split", arrays.get("split", label))):
        if array.shape != (count,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"shape_file: {name} of {path} must be integers [{count}], one per shape, got {array.dtype} "
                f"{list(array.shape)}"
            )
    return torch.from_numpy(label.astype(np.int64)), tuple(str(name) for name in classes.reshape(-1))


def _part(path: Path, clouds: PointClouds, codes: np.ndarray | None, split: str, seed: int) -> PointClouds:
    if split == "all":
        return clouds
    if codes is not None:
        part = clouds.subset(np.flatnonzero(codes == _CODES[split]))
    elif split == "valid":
        part = clouds.subset([])
    else:
        part = clouds.holdout(0.2, seed=seed)[split == "test"]
    if len(part) == 0:
        raise ValueError(
            f"shape_file: {path} must have shapes of the split, got none of {split!r}; take some of another by "
            "PointClouds.holdout, or all"
        )
    return part
