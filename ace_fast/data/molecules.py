"""Molecules in flat arrays as files give them, and what is demanded of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .qm9_targets import ATOMS, SYMBOLS

SYMBOL_OF = {number: symbol for symbol, number in SYMBOLS.items()}


class Molecules(NamedTuple):
    """Molecules of any sizes: molecule g owns the atoms offsets[g] .. offsets[g + 1] - 1."""

    z: np.ndarray  # [N] uint8, atomic numbers
    pos: np.ndarray  # [N, 3], Å, float32 from files of QM9
    offsets: np.ndarray  # [G + 1] int64
    ids: np.ndarray  # [G] int64, QM9's numbers from 1 on
    targets: dict[str, np.ndarray]  # name -> [G] float64, units of qm9_targets.TARGETS

    def take(self, index: np.ndarray) -> Molecules:
        """The molecules `index` [G'], in that order."""
        counts = np.diff(self.offsets)[index]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        atoms = np.repeat(self.offsets[index] - offsets[:-1], counts) + np.arange(offsets[-1])
        targets = {name: values[index] for name, values in self.targets.items()}
        return Molecules(self.z[atoms], self.pos[atoms], offsets, self.ids[index], targets)


def build(
    z: Sequence[int] | np.ndarray,
    pos: Sequence[float] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    ids: Sequence[int] | np.ndarray,
    targets: dict[str, np.ndarray],
    name: Callable[[int], str],
    who: str = "qm9",
    dtype: type = np.float32,
) -> Molecules:
    """Molecules from atoms one after another, checked.

    Args:
        z: [N] atomic numbers; pos: [N, 3], or 3 N numbers; counts: [G] atoms of each; ids: [G].
        targets: name -> [G].
        name: of molecule g, for messages.
        who: begins the messages.
        dtype: of the positions.

    Raises:
        ValueError: no molecules, one without atoms, an element other than H C N O F, positions or targets that are not
            finite, two molecules of one number.
    """
    z, counts = np.asarray(z), np.asarray(counts, dtype=np.int64)
    pos = np.asarray(pos).reshape(-1, 3)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    with np.errstate(over="ignore"):
        pos = np.ascontiguousarray(pos, dtype=dtype)
    ids = np.asarray(ids, dtype=np.int64)
    _check(Molecules(z, pos, offsets, ids, targets), name, who)
    return Molecules(z.astype(np.uint8), pos, offsets, ids, targets)


def _check(data: Molecules, name: Callable[[int], str], who: str) -> None:
    z, pos, offsets, ids, targets = data
    counts = np.diff(offsets)
    if len(counts) == 0:
        raise ValueError(f"{who}: there must be molecules, got none")
    if (counts == 0).any():
        raise ValueError(f"{who}: a molecule must have atoms, got none in {name(int(counts.argmin()))}; leave it out")

    def first(bad: np.ndarray) -> str:
        return name(int(np.searchsorted(offsets, np.argmax(bad), side="right")) - 1)

    other = ~np.isin(z, ATOMS)
    if other.any():
        found = int(z[np.argmax(other)])
        raise ValueError(
            f"{who}: atoms must be {' '.join(SYMBOLS)} (atomic numbers {', '.join(map(str, ATOMS))}), got {found} in "
            f"{first(other)}; leave that molecule out"
        )
    bad = ~np.isfinite(pos).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{who}: positions must be finite, got NaN or infinity in {first(bad)}; repair it or leave it out"
        )
    for target, values in targets.items():
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise ValueError(
                f"{who}: {target} must be finite, got NaN or infinity in {name(int(np.argmax(wrong)))}; repair it or "
                "leave it out"
            )
    ordered = np.sort(ids)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"{who}: molecules must have different numbers, got {twice[0]} twice; leave one out")
