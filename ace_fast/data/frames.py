"""Conformations of one molecule with energies and forces in flat arrays, their units, and what is demanded of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .extxyz import SYMBOLS

# 4184 J over the charge and the number of a mole (exact in the SI of 2019), in eV.
KCAL_PER_MOL = 4184 / (1.602176634e-19 * 6.02214076e23)
UNITS = {"eV": 1.0, "kcal/mol": KCAL_PER_MOL}  # of energies, in eV; forces are in the same unit an Å


class Frames(NamedTuple):
    """G conformations of a molecule of n atoms."""

    z: np.ndarray  # [n] int64, atomic numbers
    pos: np.ndarray  # [G, n, 3] float64, Å
    energy: np.ndarray  # [G] float64, eV
    forces: np.ndarray  # [G, n, 3] float64, eV/Å
    rows: np.ndarray  # [G] int64, where they stand in their file

    def take(self, index: np.ndarray) -> Frames:
        """The frames `index` [G'], in that order."""
        return Frames(self.z, *(x[index] for x in self[1:]))


def frames(
    z: np.ndarray, pos: np.ndarray, energy: np.ndarray, forces: np.ndarray, unit: str, where: str, who: str = "md17"
) -> Frames:
    """Frames from a file's arrays, checked and in eV and Å.

    Args:
        z: [n] atomic numbers. pos: [G, n, 3] in Å. energy: [G] or [G, 1]. forces: [G, n, 3].
        unit: of the energies, one of UNITS; of the forces the same an Å.
        where: the file, for messages. who: begins them.

    Raises:
        ValueError: shapes that do not fit together, no frames, atomic numbers outside 1..99, values that are not
            finite.
    """
    z = np.asarray(z)
    if z.ndim != 1 or z.dtype.kind not in "iu" or len(z) == 0:
        raise ValueError(f"{who}: the atomic numbers of {where} must be integers [n], got {z.dtype} {list(z.shape)}")
    unknown = (z < 1) | (z > len(SYMBOLS))
    if unknown.any():
        i = int(unknown.argmax())
        raise ValueError(f"{who}: the atomic numbers of {where} must be 1 to {len(SYMBOLS)}, got {z[i]} for atom {i}")
    pos, energy, forces = (np.asarray(x) for x in (pos, energy, forces))
    G, n = len(pos) if pos.ndim else 0, len(z)
    if energy.shape == (G, 1):
        energy = energy[:, 0]
    shapes = (("positions", pos, (G, n, 3)), ("energies", energy, (G,)), ("forces", forces, (G, n, 3)))
    for name, array, shape in shapes:
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise ValueError(f"{who}: the {name} of {where} must be numbers {list(shape)} for {G} frames of {n} atoms, "
                             f"got {array.dtype} {list(array.shape)}; get the file anew")
        if G == 0:
            raise ValueError(f"{who}: {where} must hold conformations, got none")
        bad = ~np.isfinite(array).reshape(G, -1).all(axis=1)
        if bad.any():
            raise ValueError(f"{who}: the {name} of {where} must be finite, got NaN or infinity in frame "
                             f"{int(bad.argmax())}; repair it or leave it out")
    if unit not in UNITS:
        raise ValueError(f"{who}: the energies of {where} must be in {' or '.join(UNITS)}, got {unit!r}; convert them")
    pos, energy, forces = (np.ascontiguousarray(x, dtype=np.float64) for x in (pos, energy, forces))
    return Frames(z.astype(np.int64), pos, energy * UNITS[unit], forces * UNITS[unit], np.arange(G))


def formula(z: np.ndarray) -> str:
    """Carbon, hydrogen, then the others by number: C9H8O4."""
    numbers, counts = np.unique(z, return_counts=True)
    found = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    order = [number for number in (6, 1) if number in found] + [number for number in found if number not in (1, 6)]
    return "".join(f"{SYMBOLS[number - 1]}{found[number] if found[number] > 1 else ''}" for number in order)
