"""The targets of QM9: names, units, conversions and atom references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

HARTREE = 27.211386246  # eV; torch-geometric's value
SYMBOLS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
ATOMS = tuple(SYMBOLS.values())


class Target(NamedTuple):
    """One property of a molecule.

    Attributes:
        meaning: in words.
        unit: of its values here; original: of those in QM9's own files.
        error_unit: of the errors as the field reports them; scale: how many of it are one `unit`.
    """

    meaning: str
    unit: str
    original: str
    error_unit: str
    scale: float = 1.0


def _energy(meaning: str) -> Target:
    return Target(meaning, "eV", "Ha", "meV", 1e3)


def _plain(meaning: str, unit: str) -> Target:
    return Target(meaning, unit, unit, unit)


# In the order of torch-geometric's data set.
TARGETS: dict[str, Target] = {
    "mu": _plain("dipole moment", "D"),
    "alpha": _plain("isotropic polarizability", "a0^3"),
    "homo": _energy("energy of the highest occupied orbital"),
    "lumo": _energy("energy of the lowest unoccupied orbital"),
    "gap": _energy("lumo - homo"),
    "r2": _plain("electronic spatial extent", "a0^2"),
    "zpve": _energy("zero-point vibrational energy"),
    "U0": _energy("internal energy at 0 K"),
    "U": _energy("internal energy at 298.15 K"),
    "H": _energy("enthalpy at 298.15 K"),
    "G": _energy("free energy at 298.15 K"),
    "Cv": _plain("heat capacity at 298.15 K", "cal/(mol K)"),
    "U0_atom": _energy("U0 less its atom references"),
    "U_atom": _energy("U less its atom references"),
    "H_atom": _energy("H less its atom references"),
    "G_atom": _energy("G less its atom references"),
    "A": _plain("rotational constant", "GHz"),
    "B": _plain("rotational constant", "GHz"),
    "C": _plain("rotational constant", "GHz"),
}

# QM9's own single-atom values of H C N O F; Ha, and cal/(mol K) for Cv.
_REFERENCES = {
    "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
    "Cv": (2.981, 2.981, 2.981, 2.981, 2.981),
}
# Atom references in the units used here, of the targets that have them.
REFERENCES = {
    name: tuple(value * (HARTREE if TARGETS[name].unit == "eV" else 1.0) for value in values)
    for name, values in _REFERENCES.items()
}
ATOMISATION = {f"{name}_atom": name for name in ("U0", "U", "H", "G")}


def converted(who: str, targets: Mapping[str, np.ndarray], units: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Values in the units used here, float64.

    Args:
        who: begins the message.
        targets: name -> [G].
        units: name -> unit.

    Raises:
        ValueError: neither the original unit nor the one used here.
    """
    found = {}
    for name, values in targets.items():
        known, unit = TARGETS[name], units[name]
        factors = {known.unit: 1.0, known.original: HARTREE if known.original == "Ha" else 1.0}
        if unit not in factors:
            raise ValueError(f"{who}: {name} must be in {' or '.join(factors)}, got {unit!r}; convert it")
        found[name] = np.asarray(values, dtype=np.float64) * factors[unit]
    return found


def atom_sums(name: str, z: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[G] float64, the sum of the atom references of a target over each molecule.

    Args:
        name: one of REFERENCES.
        z: [N] atomic numbers, all of them in ATOMS.
        offsets: [G + 1].
    """
    G, owner = len(offsets) - 1, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    kinds = np.searchsorted(ATOMS, z)
    counts = np.bincount(owner * len(ATOMS) + kinds, minlength=G * len(ATOMS)).reshape(G, len(ATOMS))
    return counts @ np.array(REFERENCES[name])


def with_atomisation(targets: Mapping[str, np.ndarray], z: np.ndarray, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """`targets` and the atomisation energies that follow from them, in the order of TARGETS."""
    found = dict(targets)
    for name, whole in ATOMISATION.items():
        if whole in found and name not in found:
            found[name] = found[whole] - atom_sums(whole, z, offsets)
    return {name: found[name] for name in TARGETS if name in found}
