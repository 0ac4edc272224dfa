"""Conformations of one molecule in (extended) .xyz files: a small vectorised parser that names what it cannot read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es"
).split()  # of the atomic numbers 1 to 99
NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS, 1)}
_PLAIN = "species:S:1:pos:R:3"  # the columns of an .xyz file that does not say
_SPECIES, _POSITIONS = ("species", "z"), ("pos", "positions")
_FORCES, _ENERGY = ("forces", "force", "ref_forces"), ("energy", "ref_energy")
_PAIR = re.compile(r"""([\w-]+)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|\S+)""")


class XYZ(NamedTuple):
    """What a file holds: G conformations of one molecule of n atoms."""

    z: np.ndarray  # [n] int64, atomic numbers
    pos: np.ndarray  # [G, n, 3] float64
    energy: np.ndarray | None  # [G] float64, where every comment line says it
    forces: np.ndarray | None  # [G, n, 3] float64, where there are such columns


class _Columns(NamedTuple):
    text: str  # as the file says it
    species: int
    pos: int
    forces: int | None
    count: int


def read_xyz(path: Path, who: str = "md17") -> XYZ:
    """The conformations of an .xyz file: number of atoms, comment line, one line an atom, and so on.

    The comment line may be extended .xyz: `Properties=` says the columns (without it: symbol or atomic number and three
    coordinates), `energy=` the energy; names are compared without case, with or without REF_. Numbers are kept as they
    stand, in the file's units. A Lattice is passed over; frames that are said to be periodic (pbc) are refused.

    Args:
        path: the file.
        who: begins the messages.

    Raises:
        ValueError: a line that is something else, with its number, an unknown element, frames of different molecules or
            columns, or no frame at all.
        OSError: the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    heads, n = _heads(lines, path, who)
    found = [{name.lower(): value.strip("\"'") for name, value in _PAIR.findall(lines[at + 1])} for at in heads]
    columns = _columns(found[0].get("properties", _PLAIN), path, who)
    energies = []
    for g, (at, said) in enumerate(zip(heads, found, strict=True)):
        if said.get("properties", _PLAIN) != columns.text:
            raise ValueError(f"{who}: the frames of {path} must have the same Properties, got others in frame {g} "
                             f"(line {at + 2}); put them in files of their own")
        periodic = said.get("pbc", "").lower().replace(",", " ").split()
        if {"t", "true", "1"} & set(periodic):
            raise ValueError(f"{who}: {path}, frame {g} must be an open molecule, got pbc={said['pbc']!r}; write it "
                             'with pbc="F F F"')
        energies.append(_energy(said, path, at + 2, who))
    if len({energy is None for energy in energies}) == 2:
        raise ValueError(f"{who}: every frame of {path} must say its energy, got none in frame {energies.index(None)}; "
                         "add energy=")
    starts = np.array(heads) + 2
    rows = [line for at in starts for line in lines[at : at + n]]
    numbers = _table(rows, columns, lambda row: int(starts[row // n]) + row % n + 1, path, who)
    z = _elements(rows, columns, n, path, who)
    forces = None if columns.forces is None else numbers[:, 3:].reshape(-1, n, 3)
    energy = None if energies[0] is None else np.array(energies)
    return XYZ(z, numbers[:, :3].reshape(-1, n, 3), energy, forces)


def _heads(lines: list[str], path: Path, who: str) -> tuple[list[int], int]:
    """Where each frame begins, and the number of atoms of all."""
    heads: list[int] = []
    at = n = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        word = lines[at].strip()
        if not word.isdecimal() or int(word) < 1:
            raise ValueError(f"{who}: {path}, line {at + 1} must be a number of atoms, got {word[:40]!r}; repair it")
        if heads and int(word) != n:
            raise ValueError(f"{who}: the frames of {path} must be of one molecule of {n} atoms, got {word} in frame "
                             f"{len(heads)} (line {at + 1}); put it in a file of its own")
        n = int(word)
        if at + 2 + n > len(lines):
            raise ValueError(f"{who}: {path}, line {at + 1} must be followed by a comment and {n} atoms, got "
                             f"{len(lines) - at - 1} lines: frame {len(heads)} is cut off; get the file anew")
        heads.append(at)
        at += 2 + n
    if not heads:
        raise ValueError(f"{who}: {path} must hold conformations, got none")
    return heads, n


def _columns(text: str, path: Path, who: str) -> _Columns:
    """Where the columns of `Properties` stand."""
    words, places, at = text.split(":"), {}, 0
    try:
        for name, _, count in zip(words[::3], words[1::3], words[2::3], strict=True):
            places[name.lower()] = at, int(count)
            at += int(count)
    except ValueError as error:
        raise ValueError(f"{who}: Properties of {path} must be name:type:columns three by three, got {text!r}"
                         ) from error

    def of(names: tuple[str, ...], count: int) -> int | None:
        return next((places[name][0] for name in names if name in places and places[name][1] == count), None)

    species, pos = of(_SPECIES, 1), of(_POSITIONS, 3)
    if species is None or pos is None:
        raise ValueError(f"{who}: Properties of {path} must have species:S:1 and pos:R:3, got {text!r}")
    return _Columns(text, species, pos, of(_FORCES, 3), at)


def _energy(said: dict[str, str], path: Path, line: int, who: str) -> float | None:
    text = next((said[name] for name in _ENERGY if name in said), None)
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise ValueError(f"{who}: {path}, line {line} must say energy= and a number, got {text!r}; repair it"
                         ) from error


def _table(rows: list[str], columns: _Columns, line, path: Path, who: str) -> np.ndarray:
    """[rows, 3 or 6] float64, positions and forces; line(row) is for messages."""
    wanted = [columns.pos + i for i in range(3)]
    wanted += [] if columns.forces is None else [columns.forces + i for i in range(3)]
    try:
        table = np.loadtxt(rows, dtype=np.float64, comments=None, usecols=wanted, ndmin=2)
        if len(table) == len(rows):
            return table
    except ValueError:
        pass  # the wrong line is named below
    number = next((i for i, row in enumerate(rows) if not _numbers(row, wanted)), len(rows) - 1)
    raise ValueError(f"{who}: {path}, line {line(number)} must have {columns.count} columns ({columns.text}), got "
                     f"{rows[number].strip()[:60]!r}; repair it")


def _numbers(row: str, wanted: list[int]) -> bool:
    words = row.split()
    try:
        return bool([float(words[at]) for at in wanted])
    except (ValueError, IndexError):
        return False


def _elements(rows: list[str], columns: _Columns, n: int, path: Path, who: str) -> np.ndarray:
    """[n] int64, which all frames have in common."""
    at = columns.species
    words = np.array([row.split(None, at + 1)[at] for row in rows]).reshape(-1, n)
    other = words != words[0]
    if other.any():
        g, i = (int(k) for k in np.argwhere(other)[0])
        raise ValueError(f"{who}: the frames of {path} must be of one molecule, got {words[g, i]} where frame 0 has "
                         f"{words[0, i]} (atom {i} of frame {g}); put it in a file of its own")
    unknown = [(i, word) for i, word in enumerate(words[0]) if word not in NUMBERS and not word.isdecimal()]
    if unknown:
        raise ValueError(f"{who}: {path} must name elements, got {str(unknown[0][1])!r} for atom {unknown[0][0]} of "
                         "frame 0")
    return np.array([NUMBERS.get(word) or int(word) for word in words[0].tolist()], dtype=np.int64)
