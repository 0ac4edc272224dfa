"""QM9's raw files: gdb9.sdf with its .csv, the original .xyz files, and the list of molecules to leave out."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from .molecules import Molecules, build
from .nbody import Progress
from .qm9_targets import SYMBOLS, TARGETS, converted, with_atomisation

TOTAL = 133_885  # molecules in QM9's files
EXCLUDED = 3_054  # of them fail its consistency check of geometries
_EVERY = 1_000  # molecules from one report of progress to the next

# What gdb9.sdf.csv calls the targets.
_COLUMNS = {
    "A": "A", "B": "B", "C": "C", "mu": "mu", "alpha": "alpha", "homo": "homo", "lumo": "lumo", "gap": "gap",
    "r2": "r2", "zpve": "zpve", "u0": "U0", "u298": "U", "h298": "H", "g298": "G", "cv": "Cv",
}
_ORDER = tuple(_COLUMNS.values())  # of the values in an .xyz file's second line


class Frame(NamedTuple):
    """One molecule of an .xyz file."""

    z: list[int]
    pos: list[float]  # 3 numbers an atom
    comment: str


def read_sdf(sdf: Path, table: Path, progress: Progress | None = None) -> Molecules:
    """All molecules of an .sdf file (V2000), in its order, with the targets of the table beside it.

    Raises:
        ValueError: a damaged file, an element other than H C N O F, or molecules that the table does not have.
    """
    ids, targets = _read_table(table)
    z, pos, counts = [], [], []
    with open(sdf, encoding="ascii", errors="replace") as file:
        for title in iter(file.readline, ""):
            g = len(counts)
            if g >= len(ids):
                raise ValueError(f"qm9: {table} must have a row for each molecule of {sdf.name}, got {len(ids)} rows; "
                                 "get both files anew")
            if title.strip() not in ("", f"gdb_{ids[g]}"):
                raise ValueError(f"qm9: {table} must be in the order of {sdf.name}, got gdb_{ids[g]} where that has "
                                 f"{title.strip()!r}; get both files anew")
            counts.append(_read_record(file, f"{sdf}, molecule {g + 1} ({title.strip() or 'no title'})", z, pos))
            _report(progress, len(counts), len(ids))
    if len(counts) != len(ids):
        raise ValueError(
            f"qm9: {sdf} must hold the {len(ids)} molecules of {table.name}, got {len(counts)}; get both files anew"
        )
    return _finished(z, pos, counts, ids, targets, lambda g: f"gdb_{ids[g]} of {sdf}")


def _read_record(file: IO[str], where: str, z: list[int], pos: list[float]) -> int:
    """Appends the atoms of the record whose title was read, goes to its end, and returns their number."""
    file.readline(), file.readline()
    counts = file.readline()
    try:
        n = int(counts[:3])
    except ValueError as error:
        raise ValueError(f"qm9: {where} must have a counts line, got {counts.strip()!r}; get the file anew") from error
    for _ in range(n):
        words = file.readline().split(None, 4)
        _add_atom("qm9", where, words[3:4], words[:3], z, pos)
    for line in iter(file.readline, ""):
        if line.startswith("$$$$"):
            return n
    raise ValueError(f"qm9: {where} must end with $$$$, got the end of the file; get the file anew")


def _add_atom(
    who: str, where: str, symbol: Sequence[str], numbers: Sequence[str], z: list[int], pos: list[float]
) -> None:
    """Appends one atom of a symbol (or atomic number) and three coordinates, each a word."""
    try:
        (name,), (x, y, w) = symbol, map(float, numbers)
    except ValueError as error:
        raise ValueError(
            f"{who}: {where} must have a symbol and three coordinates for each atom, got "
            f"{' '.join([*symbol, *numbers])!r}; repair it"
        ) from error
    number = SYMBOLS.get(name, name)
    if number == name and not name.isdecimal():
        raise ValueError(f"{who}: atoms must be {' '.join(SYMBOLS)}, got {name} in {where}; leave that molecule out")
    z.append(int(number))
    pos += (x, y, w)


def _read_table(path: Path) -> tuple[list[int], dict[str, np.ndarray]]:
    """Numbers of the molecules and targets in the original units."""
    with open(path, newline="", encoding="ascii", errors="replace") as file:
        rows = [row for row in csv.reader(file) if row]
    header = rows[0] if rows else []
    missing = [name for name in ("mol_id", *_COLUMNS) if name not in header]
    if missing:
        raise ValueError(f"qm9: {path} must have the columns mol_id, {', '.join(_COLUMNS)}, got none called "
                         f"{', '.join(missing)}; get it anew")
    place = {name: header.index(name) for name in ("mol_id", *_COLUMNS)}
    try:
        ids = [int(row[place["mol_id"]].removeprefix("gdb_")) for row in rows[1:]]
        columns = [[float(row[place[name]]) for row in rows[1:]] for name in _COLUMNS]
    except (ValueError, IndexError) as error:
        raise ValueError(f"qm9: {path} must hold gdb_<number> and numbers in each row, got {error}; get it anew"
                         ) from error
    return ids, dict(zip(_ORDER, map(np.array, columns), strict=True))


def read_xyz_files(paths: Sequence[Path], progress: Progress | None = None) -> Molecules:
    """The molecules of QM9's own .xyz files, or of one tar archive of them, by number."""
    z, pos, counts, ids, values = [], [], [], [], []
    for name, text in _texts(paths):
        for frame in frames(text, name):
            number, row = _values(frame.comment, name)
            z += frame.z
            pos += frame.pos
            counts.append(len(frame.z))
            ids.append(number)
            values.append(row)
        _report(progress, len(counts), max(len(paths), TOTAL if len(paths) == 1 else 0, len(counts) + 1))
    _report(progress, len(counts), len(counts))
    targets = dict(zip(_ORDER, np.array(values, dtype=np.float64).reshape(-1, len(_ORDER)).T, strict=True))
    found = _finished(z, pos, counts, ids, targets, lambda g: f"molecule {ids[g]} of {paths[0].parent}")
    return found.take(np.argsort(found.ids))


def _texts(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if path.suffix == ".xyz":
            yield str(path), path.read_text(encoding="ascii", errors="replace")
            continue
        try:
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(".xyz"):
                        content = archive.extractfile(member).read()
                        yield f"{path}, {member.name}", content.decode("ascii", errors="replace")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"qm9: {path} must be a whole tar archive, got a damaged one ({error}); get it anew"
                             ) from error


def _values(comment: str, where: str) -> tuple[int, list[float]]:
    """Number and 15 targets from the second line of one of QM9's .xyz files."""
    words = comment.split()
    try:
        if words[0] != "gdb" or len(words) != 2 + len(_ORDER):
            raise ValueError(f"{len(words)} words")
        return int(words[1]), [float(word) for word in words[2:]]
    except (IndexError, ValueError) as error:
        raise ValueError(
            f"qm9: {where} must have gdb, a number and {len(_ORDER)} properties in its second line, got {error}; give "
            "QM9's own files (dsgdb9nsd_000001.xyz ...)"
        ) from error


def frames(text: str, where: str, who: str = "qm9") -> Iterator[Frame]:
    """The molecules of an .xyz text: number of atoms, comment, one line an atom; frequencies, SMILES and InChI of QM9's
    own files are passed over.

    Raises:
        ValueError: a line that is something else, with its number, or an element other than H C N O F.
    """
    # QM9's files were written by a program whose exponents read 1.5*^-6.
    lines = text.replace("*^", "e").splitlines()
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        try:
            n = int(lines[at])
        except ValueError as error:
            raise ValueError(
                f"{who}: {where}, line {at + 1} must be a number of atoms, got {lines[at].strip()[:40]!r}; repair it"
            ) from error
        if n < 1 or at + 2 + n > len(lines):
            raise ValueError(f"{who}: {where}, line {at + 1} must be followed by a comment and as many atoms as it "
                             f"says, 1 or more, got {n} and {max(0, len(lines) - at - 2)} lines; repair it")
        z, pos, comment = [], [], lines[at + 1]
        for number, line in enumerate(lines[at + 2 : at + 2 + n], at + 3):
            words = line.split()
            _add_atom(who, f"{where}, line {number}", words[:1], words[1:4], z, pos)
        yield Frame(z, pos, comment.strip())
        at += 2 + n + (3 if comment.split()[:1] == ["gdb"] else 0)


def read_excluded(path: Path) -> set[int]:
    """QM9's numbers of the molecules in uncharacterized.txt: the first words of its lines that are numbers."""
    words = (line.split(maxsplit=1)[:1] for line in path.read_text(encoding="ascii", errors="replace").splitlines())
    return {int(word) for first in words for word in first if word.isdecimal()}


def exclude(data: Molecules, path: Path) -> Molecules:
    """`data` without the molecules that `path` lists.

    Raises:
        ValueError: all of QM9 is there, and the list is not QM9's.
    """
    listed = read_excluded(path)
    if len(data.ids) == TOTAL and len(listed) != EXCLUDED:
        raise ValueError(f"qm9: {path} must list {EXCLUDED} molecules, got {len(listed)}; get it anew")
    return data.take(np.flatnonzero(~np.isin(data.ids, list(listed))))


def _finished(
    z: list[int], pos: list[float], counts: list[int], ids: list[int], targets: dict[str, np.ndarray],
    name: Callable[[int], str],
) -> Molecules:
    """Checked, energies in eV, atomisation energies added."""
    targets = converted("qm9", targets, {name: TARGETS[name].original for name in targets})
    found = build(z, pos, counts, ids, targets, name)
    return found._replace(targets=with_atomisation(found.targets, found.z, found.offsets))


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None and (done % _EVERY == 0 or done == total):
        progress(done, total)
