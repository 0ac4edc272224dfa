"""MD17, revised MD17, 3BPA and their like: conformations of one molecule with energies and forces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import md17_files
from .batching import FlatDataset
from .checks import as_integer
from .frames import UNITS, Frames, formula

SPLITS = ("train", "valid", "test")


class Conformations(FlatDataset):
    """A FlatDataset of conformations of one molecule of n atoms, without edges.

    Node arrays z [N] int64, pos [N, 3] (Å) and forces [N, 3] (eV/Å), graph arrays energy [G] (eV), row [G] int64 (where
    a frame stands in its file) and part [G] int64 (which of `parts` it belongs to); floating-point ones are float64.

    Attributes:
        source: what the data are. molecule: its formula. numbers: its n atomic numbers.
        parts: names of the sets that the frames belong to: "test", or "test_300K", "test_600K" and so on.
    """

    def __init__(
        self, *arrays: Any, source: str = "conformations", parts: Sequence[str] = ("all",), **more: Any
    ) -> None:
        super().__init__(*arrays, **more)
        self.source, self.parts = source, tuple(parts)
        n = self.num_nodes // max(len(self), 1)
        self.numbers: list[int] = self.node["z"][:n].tolist()
        self.molecule = formula(np.array(self.numbers, dtype=np.int64))

    def subset(self, indices: torch.Tensor | np.ndarray | Sequence[int]) -> Conformations:
        found = super().subset(indices)
        return Conformations(found.node, found.node_offsets, graph=found.graph, check=False, source=self.source,
                             parts=self.parts)

    def __repr__(self) -> str:
        sets = f" in {', '.join(self.parts)}" if len(self.parts) > 1 else ""
        return f"Conformations({len(self)} frames of {self.molecule}{sets}; {self.source})"


def md17(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    molecule: str = "",
    train_samples: int = 950,
    valid_samples: int = 50,
    test_samples: int = 1000,
    fold: int = 1,
    train_set: str = "",
    seed: int = 0,
    unit: str = "auto",
) -> Conformations:
    """Conformations of a molecule with energies in eV and forces in eV/Å.

    What `root` may be or hold:
      - rMD17 as published: rmd17_<molecule>.npz (nuclear_charges, coords, energies, forces; kcal/mol) and, in splits/
        beside their folder, index_train_0N.csv and index_test_0N.csv: the N-th published split;
      - MD17 in sGDML's layout: <molecule>.npz, md17_<molecule>.npz (z, R, E, F; kcal/mol unless e_unit says eV);
      - 3BPA, acetylacetone and the like: a folder with train_*.xyz, test_*.xyz (each a test set of its own) and
        perhaps valid.xyz, or one .xyz file, in extended .xyz with energy= and forces (eV, eV/Å);
      - an .npz of converted arrays: <molecule>_z, _pos, _energy, _forces (eV, eV/Å) and _split (0, 1, 2), or in sets
        <molecule>_train..._pos, <molecule>_test..._pos and so on.
    Nothing is downloaded. Training frames are the first of the published list; where there is none, of a permutation
    by numpy's RandomState(seed). Validation frames follow them, and test frames those, where the files name no others.

    Args:
        root: the folder or file; by default md17 in $ACE_FAST_DATA or else in ~/.cache/ace_fast.
        split: "train", "valid" or "test".
        molecule: where there are several; "salicylic_acid" is "salicylic" too.
        train_samples, valid_samples: frames of each; train_samples 0: all that are not for validation or test.
        test_samples: frames of each test set, the first ones; 0: all.
        fold: number of the published split. train_set: of several train_*.xyz, "300K" if not said.
        unit: "eV" or "kcal/mol" where a file is in another unit than its layout's ("auto").

    Raises:
        ValueError: an argument out of range, too few frames, or a file that cannot be used.
        FileNotFoundError: none of these is there.

    Warns:
        UserWarning: a test file without forces is left out.

    Sources: Chmiela et al., Sci. Adv. 3, e1603015 (2017); Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol.
    1, 045018 (2020), which asks for at most 1000 training frames; Kovacs et al., J. Chem. Theory Comput. 17, 7696
    (2021).

    Example:
        >>> data = md17("/data/rmd17", "test", molecule="aspirin")  # doctest: +SKIP
    """
    if split not in SPLITS:
        raise ValueError(f"md17: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if unit not in ("auto", *UNITS):
        raise ValueError(f"md17: unit must be one of auto, {', '.join(UNITS)}, got {unit!r}")
    numbers = {"train_samples": train_samples, "valid_samples": valid_samples, "test_samples": test_samples}
    counts = {name: as_integer("md17", name, x, int(name == "valid_samples")) for name, x in numbers.items()}
    as_integer("md17", "seed", seed, 0)
    base = Path(os.environ.get("ACE_FAST_DATA") or Path.home() / ".cache" / "ace_fast")
    given = {"fold": as_integer("md17", "fold", fold, 1), "train_set": train_set, "unit": unit}
    content = md17_files.read(Path(root or base / "md17"), molecule, **given)
    return _conformations(_split(content, split, counts, seed), content.source)


def _split(content: md17_files.Content, split: str, counts: dict[str, int], seed: int) -> dict[str, Frames]:
    """The frames of a split by the names of their sets."""
    pool, most = content.train, counts["test_samples"]
    if not content.ordered:
        pool = pool.take(np.random.RandomState(seed).permutation(len(pool.rows)))
    total, valid = len(pool.rows), 0 if content.valid is not None else counts["valid_samples"]
    train = counts["train_samples"] or total - valid - (0 if content.tests else most)
    left = total - valid - (0 if content.tests else 1)  # at least one frame to test on
    if not 0 < train <= left:
        raise ValueError(
            f"md17: train_samples must be at most the {max(left, 0)} of {total} frames that validation and test leave, "
            f"got {train}; ask for fewer frames (--train-samples, --valid-samples, --test-samples)"
        )
    if split == "train":
        return {"train": pool.take(np.arange(train))}
    if split == "valid":
        found = pool.take(np.arange(train, train + valid)) if valid else content.valid
        return {"valid": found.take(np.arange(min(counts["valid_samples"], len(found.rows))))}
    tests = content.tests or {"test": pool.take(np.arange(train + valid, total))}
    return {name: x.take(np.arange(min(most or len(x.rows), len(x.rows)))) for name, x in tests.items()}


def _conformations(sets: dict[str, Frames], source: str) -> Conformations:
    parts = list(sets.values())
    G, n = sum(len(part.rows) for part in parts), len(parts[0].z)
    pos, energy, forces, rows = (torch.from_numpy(np.concatenate(arrays)) for arrays in
                                 zip(*(part[1:] for part in parts), strict=True))
    owner = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part.rows) for part in parts]))
    node = {"z": torch.from_numpy(parts[0].z).repeat(G), "pos": pos.flatten(0, 1), "forces": forces.flatten(0, 1)}
    graph = {"energy": energy, "row": rows, "part": owner}
    return Conformations(node, torch.arange(G + 1) * n, graph=graph, check=False, source=source, parts=tuple(sets))
