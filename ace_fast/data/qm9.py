"""QM9: molecules with their properties as graphs of atoms closer than a radius, split as the field splits them."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import qm9_files
from .batching import FlatDataset
from .checks import as_integer
from .cloudcache import stamp
from .molecules import Molecules
from .nbody import Progress
from .qm9_raw import EXCLUDED, TOTAL
from .radius import radius_edges
from .store import Store, Words

FORMAT = 1  # of both caches
SPLITS = ("train", "valid", "test")
SCHEMES = ("cormorant", "ace")  # how molecules are split
_TRAIN = 100_000  # training molecules of the whole of QM9
_LEAST = 10  # molecules that can be split


class MolecularGraphs(FlatDataset):
    """A FlatDataset of molecules; `source` says what they are.

    Node arrays z [N] uint8 and pos [N, 3] float32 (Å), graph arrays gdb_id [G] int64 and one per target [G] float64, in
    the units of ace_fast.data.qm9_targets.TARGETS; the edges are all ordered pairs of atoms closer than the radius,
    kept in the smallest type that holds them (all of QM9 at 10 Å: 82 MB; a batch has int64).
    """

    def __init__(self, *arrays: Any, source: str = "molecules", **more: Any) -> None:
        super().__init__(*arrays, **more)
        self.source = source

    def subset(self, indices: torch.Tensor | np.ndarray | Sequence[int]) -> MolecularGraphs:
        found = super().subset(indices)
        arrays = found.node, found.node_offsets, found.edge_index, found.edge_offsets, found.edge, found.graph
        return MolecularGraphs(*arrays, check=False, symmetric=self.symmetric, source=self.source)

    def __repr__(self) -> str:
        names = ", ".join(name for name in self.graph if name != "gdb_id")
        return (f"MolecularGraphs({len(self)} molecules, {self.num_nodes} atoms, {self.edge_index.shape[1]} edges: "
                f"{names}; {self.source})")


def qm9(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    radius: float = 2.0,
    neighbours: int | None = None,
    scheme: str = "cormorant",
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MolecularGraphs:
    """QM9's molecules and all their targets, with energies in eV; read once, and then memory-mapped.

    What `root` may be or hold, itself or in folders of the usual names within it, in this order:
      - gdb9.sdf and gdb9.sdf.csv, as torch-geometric keeps them in raw/;
      - the original dsgdb9nsd_*.xyz, or their archive dsgdb9nsd.xyz.tar.bz2;
      - torch-geometric's qm9_v3.pt in raw/, or its processed/data_v3.pt (needs torch-geometric), whose total energies
        are rounded to float32: 1 meV;
      - an .npz file, see qm9_files.read_npz.
    Of the first two those molecules are left out that uncharacterized.txt beside them lists. Nothing is downloaded.
    The split is that of `split_indices`, or with the scheme "cormorant" the file's own, put into random order: the
    first molecules are a sample.

    Args:
        root: the folder or file; by default qm9 in $ACE_FAST_DATA or else in ~/.cache/ace_fast.
        split: "train", "valid", "test", or "all" in the order of the files.
        radius: Å; edges between atoms closer than that.
        neighbours: edges to an atom at most, from the nearest ones; None for all.
        scheme: of the split, "cormorant" or "ace", see `split_indices`.
        cache: where molecules and edges are kept; by default $ACE_FAST_DATA or else ~/.cache/ace_fast.
        seed: of the permutation; the field's split has 0, those of ACE's SchNet 42 to 46.
        progress: called with (molecules read, all) while reading.

    Raises:
        ValueError: an argument out of range, or files that cannot be used.
        FileNotFoundError: none of these is there.
        ModuleNotFoundError: torch-geometric is needed and missing.
        OSError: the cache cannot be written.

    Warns:
        UserWarning: a cache was damaged or of another format and is replaced, or it could not be written after all; or
            the whole of QM9 is there without uncharacterized.txt.

    Source: Ramakrishnan et al., Scientific Data 1, 140022 (2014); Anderson et al., Cormorant (arXiv 1906.04015).

    Example:
        >>> data = qm9("/data/QM9", "test")  # doctest: +SKIP
    """
    _check_arguments(split, radius, neighbours, scheme, seed)
    base = Path(os.environ.get("ACE_FAST_DATA") or Path.home() / ".cache" / "ace_fast")
    layout = qm9_files.find(Path(root or base / "qm9"))
    folder = Path(cache or base)
    molecules, codes = (_molecules(layout, folder, progress), None) if layout.cached else layout.read(progress)
    if layout.complete and len(molecules.ids) == TOTAL:
        warnings.warn(
            f"qm9: uncharacterized.txt is not beside the files: all {TOTAL} molecules are used, where the field leaves "
            f"{EXCLUDED} out; get it from figshare and put it there", stacklevel=2,
        )
    edges, edge_offsets = _edges(molecules, float(radius), neighbours, folder)
    data = _graphs(molecules, edges, edge_offsets, layout.source)
    if split == "all":
        return data
    part, own = SPLITS.index(split), codes is not None and scheme == "cormorant"
    return data.subset(_of_file(codes, part, seed) if own else split_indices(len(data), seed, scheme)[part])


def _check_arguments(split: str, radius: float, neighbours: int | None, scheme: str, seed: int) -> None:
    if split not in (*SPLITS, "all"):
        raise ValueError(f"qm9: split must be one of {', '.join(SPLITS)}, all, got {split!r}")
    if scheme not in SCHEMES:
        raise ValueError(f"qm9: scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if neighbours is not None:
        as_integer("qm9", "neighbours", neighbours, 1)
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 < radius < float("inf"):
        raise ValueError(f"qm9: radius must be positive and finite (Å), got {radius!r}")
    as_integer("qm9", "seed", seed, 0)


def _of_file(codes: np.ndarray, part: int, seed: int) -> np.ndarray:
    chosen = np.flatnonzero(codes == part)
    if len(chosen) == 0:
        raise ValueError(f"qm9: the split of the file must have {SPLITS[part]} molecules, got none; mark some")
    return np.random.RandomState(seed).permutation(chosen)


def split_indices(count: int, seed: int = 0, scheme: str = "cormorant") -> list[np.ndarray]:
    """Training, validation and test molecules out of 0 .. count - 1, as the field or the ACE code splits QM9.

    "cormorant": the molecules are permuted by numpy's RandomState(seed); the first 100 000 are for training, the last
    int(0.1 count) for the test and those between for validation: 100 000, 17 748 and 13 083 of the 130 831 that QM9 has
    without the uncharacterized ones. Of fewer molecules the same share, 100 000 / 130 831, is for training.

    "ace": they are permuted by torch.randperm after torch.manual_seed(seed); the first int(0.8 count) are for training,
    the next int(0.1 count) for validation and the rest for the test: 104 664, 13 083 and 13 084.

    Raises:
        ValueError: fewer than 10 molecules.

    Source: the SEGNN and ACE code (Steerable-E3-GNN, qm9/dataset.py, "identical to Cormorant"). Cormorant's own code
    (data/prepare/qm9.py, gen_splits_gdb9) draws the same permutation, but leaves out the molecules one place after the
    listed ones, and calls the second part the test and the third the validation. "ace": SchNet/datasets/datasets.py of
    the ACE code, whose runs have the seeds 42 to 46.

    Example:
        >>> [len(part) for part in split_indices(130_831)]
        [100000, 17748, 13083]
    """
    if count < _LEAST:
        raise ValueError(f"qm9: there must be {_LEAST} molecules to split, got {count}; give more, or an .npz with a "
                         "split of its own")
    if scheme == "ace":
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
        train = int(count * 0.8)
        return np.split(order, [train, train + int(count * 0.1)])
    train, test = min(_TRAIN, count * _TRAIN // (TOTAL - EXCLUDED)), int(0.1 * count)
    return np.split(np.random.RandomState(seed).permutation(count), [train, count - test])


def _graphs(molecules: Molecules, edges: np.ndarray, offsets: np.ndarray, source: str) -> MolecularGraphs:
    def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    node = tensors({"z": molecules.z, "pos": molecules.pos})
    graph = tensors({"gdb_id": molecules.ids} | molecules.targets)
    index = torch.from_numpy(edges if edges.dtype == np.uint8 else edges.astype(np.int32))
    places = torch.from_numpy(molecules.offsets), torch.from_numpy(offsets)
    return MolecularGraphs(node, places[0], index, places[1], graph=graph, check=False, source=source)


def _store(folder: Path, name: str, about: dict[str, Any], words: Words) -> Store:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return Store(folder, f"qm9-{name}-{digest}", {"format": FORMAT, "settings": about}, words)


def _molecules(layout: qm9_files.Layout, folder: Path, progress: Progress | None) -> Molecules:
    """What the files hold, from the cache where they are the same as then."""
    about = {"files": str(layout.files[0].resolve()), "source": layout.source}
    store = _store(folder, "molecules", about, Words("qm9", "the molecules", "read"))
    stamps = json.dumps([stamp(path.name, path) for path in layout.files])
    mark = hashlib.sha256(stamps.encode()).hexdigest()

    def check(found: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[Molecules | None, list]:
        names, targets = list(found["targets"]), arrays["values"]
        G = len(arrays["ids"])
        if targets.shape != (len(names), G) or arrays["offsets"].shape != (G + 1,):
            raise ValueError("the arrays have wrong shapes")
        if arrays["pos"].shape != (len(arrays["z"]), 3) or arrays["offsets"][-1] != len(arrays["z"]):
            raise ValueError("the arrays have wrong shapes")
        arrays = dict(arrays)
        values = dict(zip(names, arrays.pop("values"), strict=True))
        return (Molecules(**arrays, targets=values) if found["mark"] == mark else None), []

    have = store.read(("z", "pos", "offsets", "ids", "values"), check)
    if have is not None:
        return have
    store.check_access()
    read, _ = layout.read(progress)
    arrays = read._asdict()
    names, values = list(read.targets), np.stack(list(arrays.pop("targets").values()))
    saved = store.write({**arrays, "values": values}, targets=names, mark=mark)
    values = saved.pop("values")
    return Molecules(**saved, targets=dict(zip(names, values, strict=True)))


def _edges(molecules: Molecules, radius: float, neighbours: int | None, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """edge_index [2, E] of the smallest type that holds it, and its offsets; from the cache where they are there."""
    G, most = len(molecules.ids), int(np.diff(molecules.offsets).max())
    content = hashlib.sha256()
    for array in (molecules.pos, molecules.offsets):
        content.update(np.ascontiguousarray(array).data)
    about: dict[str, Any] = {"content": content.hexdigest(), "radius": radius}
    capped = neighbours is not None and neighbours < most - 1  # otherwise no atom has more
    if capped:
        about["neighbours"] = neighbours
    store = _store(folder, "edges", about, Words("qm9", "the edges", "found"))

    def check(found: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[tuple[np.ndarray, np.ndarray], list]:
        index, offsets = arrays["index"], arrays["offsets"]
        if offsets.shape != (G + 1,) or index.ndim != 2 or index.shape != (2, offsets[-1]):
            raise ValueError("the arrays have wrong shapes")
        return (index, offsets), []

    have = store.read(("index", "offsets"), check)
    if have is not None:
        return have
    store.check_access()
    index, offsets = radius_edges(molecules.pos, molecules.offsets, radius, neighbours if capped else None)
    saved = store.write({"index": index.astype(np.min_scalar_type(most)), "offsets": offsets})
    return saved["index"], saved["offsets"]
