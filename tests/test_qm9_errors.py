"""Files of QM9 that cannot be used, and wrong arguments: each is named."""

import importlib

import numpy as np
import pytest
from qm9_toys import archive, load, npz, sdf, uncharacterized, write, xyz

from ace_fast.data import qm9, qm9_raw


def test_missing_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    where = r"get gdb9.sdf and gdb9.sdf.csv \(MoleculeNet's qm9.zip.*figshare.*, and name their folder \(root="
    for root, got in ((tmp_path / "no", "no such folder or file"), (tmp_path / "empty", "an empty folder")):
        with pytest.raises(FileNotFoundError, match=rf"must hold gdb9.sdf and .*got {got}; {where}"):
            load(root)
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="qm9 must hold gdb9.sdf"):
        qm9()
    for name in ("gdb9.sdf", "gdb9.sdf.csv"):
        root = sdf(tmp_path / name)
        (root / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"must hold gdb9.sdf and gdb9.sdf.csv, got no {name}; get gdb9"):
            load(root)
    with pytest.raises(FileNotFoundError, match="must be a folder, an .npz, gdb9.sdf or dsgdb9nsd.xyz.tar.bz2, got"):
        load(write(tmp_path / "notes.md", "QM9"))


@pytest.mark.parametrize(("options", "message"), [
    ({"split": "dev"}, "split must be one of train, valid, test, all, got 'dev'"),
    ({"radius": 0}, r"radius must be positive and finite \(Å\), got 0"),
    ({"radius": -2.0}, r"radius must be positive and finite \(Å\), got -2.0"),
    ({"radius": float("nan")}, "radius must be positive and finite"),
    ({"neighbours": 0}, "neighbours must be at least 1, got 0"),
    ({"scheme": "random"}, "scheme must be one of cormorant, ace, got 'random'"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
])
def test_wrong_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **options)


WRONG_XYZ = {
    "element": ("C\t", "Si\t", r"atoms must be H C N O F, got Si in .*dsgdb9nsd_000001.xyz, line 3; leave that mol"),
    "NaN": ("C\t", "C\tnan\t", r"positions must be finite, got NaN or infinity in molecule 1 of .*; repair it"),
    "word": ("C\t", "C\tx\t", r"000001.xyz, line 3 must have a symbol and three coordinates for each atom, got 'C x"),
    "count": ("5\ngdb", "50\ngdb", "line 1 must be followed by a comment and as many atoms as it says, .* got 50 and"),
    "none": ("5\ngdb", "0\ngdb", r"line 1 must be followed by .* got 0 and 8 lines"),
    "no count": ("5\ngdb", "five\ngdb", r"000001.xyz, line 1 must be a number of atoms, got 'five'; repair it"),
    "comment": ("gdb", "QM9", r"must have gdb, a number and 15 properties in its second line, got .* words; give"),
    "value": ("-40.47893", "none", r"15 properties in its second line, got .*none"),
    "infinite": ("-40.47893", "inf", r"U0 must be finite, got NaN or infinity in molecule 1 of"),
}


@pytest.mark.parametrize("name", WRONG_XYZ)
def test_wrong_xyz(tmp_path, name):
    old, new, message = WRONG_XYZ[name]
    root = xyz(tmp_path / "data")
    path = root / "dsgdb9nsd_000001.xyz"
    write(path, path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load(root)


def test_a_damaged_archive(tmp_path):
    root = archive(tmp_path / "data")
    path = root / "dsgdb9nsd.xyz.tar.bz2"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="must be a whole tar archive, got a damaged one .*; get it anew"):
        load(root)


SDF, TABLE = "gdb9.sdf", "gdb9.sdf.csv"


def edit(name, old, new, also=None):
    """Replaces the first `old` in a file (and in another one)."""

    def change(root):
        for path in (root / name, root / (also or name)):
            text = path.read_text()
            assert old in text or also is None
            write(path, text.replace(old, new, 1))
            if also is None:
                return

    return change


def cut(name, mark):
    """Leaves out all from `mark` on."""

    def change(root):
        text = (root / name).read_text()
        write(root / name, text[: text.index(mark)])

    return change


WRONG_SDF = {
    "element": (edit(SDF, " C   0", " Si  0"), r"must be H C N O F, got Si in .*gdb9.sdf, molecule 1 \(gdb_1\); leave"),
    "counts": (edit(SDF, "  5  1  0", "  x  1  0"), r"molecule 1 \(gdb_1\) must have a counts line, got 'x  1"),
    "atom": (edit(SDF, " C   0  0  0", ""), r"molecule 1 \(gdb_1\) must have a symbol and three coordinates"),
    "empty": (edit(SDF, "  5  1  0", "  0  1  0"), "must have atoms, got none in gdb_1 of .*; leave it out"),
    "cut": (cut(SDF, "$$$$"), r"must end with \$\$\$\$, got the end of the file"),
    "fewer": (cut(SDF, "gdb_12"), "must hold the 12 molecules of gdb9.sdf.csv, got 11; get both files anew"),
    "fewer rows": (cut(TABLE, "gdb_12"), "must have a row for each molecule of gdb9.sdf, got 11 rows; get both files"),
    "order": (edit(TABLE, "gdb_2,", "gdb_22,"), "in the order of gdb9.sdf, got gdb_22 where that has 'gdb_2'; get"),
    "twice": (edit(SDF, "gdb_2", "gdb_1", also=TABLE), "must have different numbers, got 1 twice; leave one out"),
    "column": (edit(TABLE, "alpha", "a"), "must have the columns mol_id, A, .* got none called alpha; get it anew"),
    "number": (edit(TABLE, "-40.47893", "x"), "must hold gdb_<number> and numbers in each row, got .*'x'; get it"),
}


@pytest.mark.parametrize("name", WRONG_SDF)
def test_wrong_sdf(tmp_path, name):
    change, message = WRONG_SDF[name]
    root = sdf(tmp_path / "data")
    change(root)
    with pytest.raises(ValueError, match=message):
        load(root)


@pytest.mark.parametrize(("changed", "message"), [
    ({"z": None}, "must hold z, pos, .* got none called z; add them"),
    ({"pos": np.zeros((5, 3))}, r"pos of .* must be \[\d+, 3\], got \[5, 3\]"),
    ({"targets": np.zeros((10, 2))}, r"targets of .* must be \[10, 15\], got \[10, 2\]"),
    ({"target_names": np.array(["mu", *"x" * 14])}, "target_names of .* must be among mu, alpha, .*, got x"),
    ({"target_units": np.array(["D"] * 15)}, r"alpha must be in a0\^3, got 'D'; convert it"),
    ({"split": np.full(10, 3)}, "split of .* must be 0 .train., 1 .validation. or 2 .test., got others"),
    ({"offsets": np.arange(11.0)}, r"offsets of .* must be integers \[G \+ 1\] from 0 to the"),
    ({"gdb_id": np.zeros(10, int)}, "must have different numbers, got 0 twice"),
])
def test_wrong_npz(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        load(npz(tmp_path / "x.npz", **changed))


def test_more_wrong_npz(tmp_path):
    path = npz(tmp_path / "x.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    z, offsets = arrays["z"].copy(), arrays["offsets"].copy()
    z[6] = 14
    offsets[2] = offsets[1]
    offsets_back = arrays["offsets"].copy()
    offsets_back[2] = 0
    bad = arrays["pos"].copy()
    bad[3, 1] = np.inf
    for change, message in (({"z": z}, r"must be H C N O F .atomic numbers 1, 6, 7, 8, 9., got 14 in molecule 1 of"),
                            ({"offsets": offsets}, "must have atoms, got none in molecule 1 of .*; leave it out"),
                            ({"offsets": offsets_back}, "must never decrease, got -5 atoms in a molecule"),
                            ({"pos": bad}, "positions must be finite, got NaN or infinity in molecule 0 of")):
        np.savez(path, **arrays | change)
        with pytest.raises(ValueError, match=message):
            load(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="must be a whole .npz file, got another one .*; get it anew"):
        load(path)


def test_the_list_of_molecules_to_leave_out(tmp_path, monkeypatch):
    root = sdf(tmp_path / "data", listed=(1, 12))
    assert load(root).graph["gdb_id"].tolist() == list(range(2, 12))
    monkeypatch.setattr(qm9_raw, "TOTAL", 12)
    with pytest.raises(ValueError, match="uncharacterized.txt must list 3054 molecules, got 3; get it anew"):
        load(uncharacterized(root, (1, 2, 3)), cache=tmp_path / "other")
    monkeypatch.setattr(importlib.import_module("ace_fast.data.qm9"), "TOTAL", 12)
    (root / "uncharacterized.txt").unlink()
    with pytest.warns(UserWarning, match="uncharacterized.txt is not beside the files: all 12 molecules are used, w"):
        data = load(root)
    assert len(data) == 12 and data.source == "QM9 (sdf, uncharacterized molecules included)"
