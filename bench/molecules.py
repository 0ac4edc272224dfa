"""The molecules of the QM9 workloads: of QM9 where the file is at hand, generated ones of the same statistics else.

The file is looked for as shared/data/qm9.npz in the checkout and beside it, and as qm9.npz in $ACE_FAST_DATA. Of its
9 327 molecules the first of RandomState(0)'s permutation are taken: 128 have 2 315 atoms and 6 088 edges at 2 Å.
"""

import os
from pathlib import Path

import numpy as np

from ace_fast.data.molecules import Molecules, build
from ace_fast.data.qm9_files import read_npz
from ace_fast.data.radius import radius_edges

RADIUS = 2.0  # Å
TARGET = "alpha"
ELEMENTS = (1, 6, 7, 8, 9)
# generated molecules: atoms and their spread, bond length, least distance of the others (Å), shares of the elements
ATOMS, SPREAD, MOST = 17.9, 3.0, 29
BOND, LEAST = 1.3, 1.78
SHARES = (0.514, 0.352, 0.058, 0.074, 0.002)


def find_file(name: str = "qm9.npz") -> Path | None:
    """A file of real data, or None."""
    root = Path(__file__).resolve().parents[1]
    folders = [root / "shared" / "data", root.parent / "shared" / "data"]
    folders += [Path(os.environ["ACE_FAST_DATA"])] if os.environ.get("ACE_FAST_DATA") else []
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def load(count: int) -> tuple[Molecules, str]:
    """`count` molecules, the same in every process, and what they are."""
    file = find_file()
    if file is None:
        return generated(count), "generated"
    found, _ = read_npz(file)
    if count > len(found.ids):
        raise ValueError(f"bench: a case of QM9 must have at most {len(found.ids)} molecules, as {file.name} has, "
                         f"got {count}")
    return found.take(np.random.RandomState(0).permutation(len(found.ids))[:count]), "QM9"


def generated(count: int) -> Molecules:
    """Trees of atoms, each a bond's length from an earlier one and not too close to the others."""
    g = np.random.RandomState(0)
    sizes = np.clip(np.rint(g.normal(ATOMS, SPREAD, count)), 3, MOST).astype(int)
    pos = np.concatenate([tree(g, size) for size in sizes])
    z = g.choice(ELEMENTS, len(pos), p=SHARES)
    targets = {TARGET: g.normal(75.0, 8.0, count)}
    return build(z, pos, sizes, np.arange(1, count + 1), targets, lambda i: f"molecule {i}", "qm9_segnn")


def tree(g: np.random.RandomState, size: int) -> np.ndarray:
    """[size, 3] Å, one molecule."""
    atoms = np.zeros((1, 3))
    while len(atoms) < size:
        step = g.normal(size=3)
        new = atoms[g.randint(len(atoms))] + BOND * step / np.linalg.norm(step)
        if (np.linalg.norm(atoms - new, axis=1) < LEAST).sum() == 1:
            atoms = np.concatenate([atoms, new[None]])
    return atoms


def edges(molecules: Molecules, radius: float = RADIUS) -> np.ndarray:
    """[2, E] all ordered pairs of atoms of a molecule closer than `radius` (Å), numbered over all atoms."""
    found, offsets = radius_edges(molecules.pos, molecules.offsets, radius)
    return found + np.repeat(molecules.offsets[:-1], np.diff(offsets))
