"""Files of conformations that cannot be used, and wrong arguments: each is named."""

import numpy as np
import pytest
from md17_toys import Z, converted, folder, md17_npz, revised, springs, xyz_text

from ace_fast.data import md17
from ace_fast.data.extxyz import read_xyz

SMALL = {"train_samples": 15, "valid_samples": 5, "test_samples": 0}


def test_missing_files_are_named(tmp_path, monkeypatch):
    where = r"get rMD17 \(figshare 12672038.*and name their folder or file \(root="
    for root, got in ((tmp_path / "no", "no such folder or file"), (tmp_path, "other files")):
        with pytest.raises(FileNotFoundError, match=f"md17: .* must be a folder with .*got {got}; {where}"):
            md17(root)
    (tmp_path / "rmd17.tar.bz2").write_text("")
    with pytest.raises(FileNotFoundError, match="unpack rmd17.tar.bz2"):
        md17(tmp_path / "rmd17.tar.bz2")
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="md17 must be a folder with"):
        md17()


@pytest.mark.parametrize(("given", "message"), [
    ({"split": "dev"}, "split must be one of train, valid, test, got 'dev'"),
    ({"unit": "Ha"}, "unit must be one of auto, eV, kcal/mol, got 'Ha'"),
    ({"train_samples": -1}, "train_samples must be at least 0, got -1"),
    ({"valid_samples": 0}, "valid_samples must be at least 1, got 0"),
    ({"test_samples": 1.5}, "test_samples must be an integer, got 1.5"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    ({"fold": 0}, "fold must be at least 1, got 0"),
    ({"fold": 6}, "splits must hold index_train_06.csv and index_test_06.csv, got no such split; choose another one"),
    ({"train_samples": 16}, "train_samples must be at most the 15 of 20 frames that validation and test leave, got 16"),
    ({"train_samples": 0, "valid_samples": 20}, "at most the 0 of 20 frames .* got 0; ask for fewer frames"),
])
def test_wrong_arguments(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        md17(revised(tmp_path / "rmd17"), **SMALL | given)


def edited(name, at, value):
    pos, energy, forces = springs()
    array = {"coords": pos, "energies": energy, "forces": forces}[name].copy()
    array[at] = value
    return {name: array}


WRONG = {
    "positions": (edited("coords", (7, 2, 1), np.nan), "positions of .*ol.npz must be finite, got NaN .* frame 7"),
    "energies": (edited("energies", 3, np.inf), "the energies of .* must be finite, got NaN or infinity in frame 3"),
    "forces": (edited("forces", (39, 0, 0), np.nan), "the forces of .* must be finite, got NaN .* in frame 39"),
    "number": ({"nuclear_charges": np.array([6, 8, 1, 1, 120, 1])}, "must be 1 to 99, got 120 for atom 4"),
    "zero": ({"nuclear_charges": np.array([6, 8, 1, 1, 1, 0])}, "must be 1 to 99, got 0 for atom 5"),
    "floats": ({"nuclear_charges": Z.astype(float)}, r"must be integers \[n\], got float64 \[6\]"),
    "atoms": ({"nuclear_charges": Z[:5]}, r"positions of .* must be numbers \[40, 5, 3\] .* got float64 \[40, 6, 3\]"),
    "frames": ({"energies": np.zeros(39)}, r"energies of .* must be numbers \[40\] for 40 frames of 6 atoms.* \[39\]"),
    "shape": ({"forces": np.zeros((40, 18))}, r"forces of .* must be numbers \[40, 6, 3\] .* got float64 \[40, 18\]"),
    "empty": ({"coords": np.zeros((0, 6, 3)), "energies": np.zeros(0), "forces": np.zeros((0, 6, 3))}, "got none"),
    "missing": ({"forces": None}, "must hold forces, got nuclear_charges, coords, energies, old_indices; get it anew"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays(name, tmp_path):
    changed, message = WRONG[name]
    with pytest.raises(ValueError, match=f"md17: .*{message}"):
        md17(revised(tmp_path / "rmd17", splits=(), **changed), **SMALL)


def test_wrong_units_and_archives(tmp_path):
    with pytest.raises(ValueError, match="energies of .* must be in eV or kcal/mol, got 'Hartree'; convert them"):
        md17(md17_npz(tmp_path / "a.npz", e_unit=np.array("Hartree")), **SMALL)
    with pytest.raises(ValueError, match="positions of .* must be in Å, got r_unit 'Bohr'; convert them"):
        md17(md17_npz(tmp_path / "b.npz", r_unit=np.array("Bohr")), **SMALL)
    np.savez(tmp_path / "c.npz", charges=[1.0])
    with pytest.raises(ValueError, match="c.npz must hold z, R, E, F or nuclear_charges, coords, .* got charges"):
        md17(tmp_path / "c.npz", **SMALL)
    whole = md17_npz(tmp_path / "d.npz").read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("flipped", whole[:600] + b"\0\1" * 40 + whole[680:]),
                          ("text", b"nothing"), ("empty", b"")):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.npz.* must be a whole .npz file, got a truncated or damaged one"):
            md17(tmp_path / f"{name}.npz", **SMALL)


def test_wrong_lists(tmp_path):
    root = revised(tmp_path / "rmd17")
    train, test = (root / "splits" / f"index_{part}_01.csv" for part in ("train", "test"))
    kept = train.read_text()
    for text, message in (("0\n40\n", "must list frames, 0 to 39, got '40'"), ("a\n", "0 to 39, got 'a'"),
                          ("", "got 'none'"), (test.read_text(), "must list other frames than .* in both; get")):
        train.write_text(text)
        with pytest.raises(ValueError, match=message):
            md17(root, **SMALL)
    train.write_text(kept)
    test.unlink()
    with pytest.raises(ValueError, match="must hold index_train_01.csv and index_test_01.csv, got no such split"):
        md17(root, **SMALL)


def test_wrong_converted_arrays(tmp_path):
    path = converted(tmp_path / "all.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    for changed, molecule, message in (
        ({"methanol_split": np.zeros(40)}, "methanol", "_split of .* must say 0, 1 or 2 for each of the 40 frames"),
        ({"methanol_split": np.arange(3)}, "methanol", "must say 0, 1 or 2 for each of the 40 frames"),
        ({"other_train300K_pos": arrays["methanol_pos"][:3]}, "other", "energies of other_train300K of .*all.npz must"),
        ({"other_train600K_energy": arrays["methanol_energy"]}, "other", "one training set of other and test sets"),
    ):
        np.savez(path, **arrays | changed)
        with pytest.raises(ValueError, match=message):
            md17(path, molecule=molecule, **SMALL)


WRONG_XYZ = {
    "word": (("C  ", "C  x "), "line 3 must have 7 columns .species:S:1:pos:R:3:forces:R:3., got 'C  x"),
    "element": (("C  ", "Xx  "), "got C where frame 0 has Xx .atom 0 of frame 1."),
    "count": (("6\nL", "7\nL"), "line 10 must be a number of atoms, got 'Lattice"),
    "no count": (("6\nL", "six\nL"), "line 1 must be a number of atoms, got 'six'; repair it"),
    "none": (("6\nL", "0\nL"), "line 1 must be a number of atoms, got '0'"),
    "energy": (("energy=-", "energy=x"), "line 2 must say energy= and a number, got 'x3"),
    "no energy": (("energy=-", "enthalpy=-"), "every frame of .* must say its energy, got none in frame 0; add"),
    "periodic": (('pbc="F F F"', 'pbc="T T F"'), "frame 0 must be an open molecule, got pbc='T T F'; write it"),
    "columns": (("forces:R:3", "forces:R:2"), "must have the same Properties, got others in frame 1 .line 10."),
    "NaN": (("C  ", "C  nan "), "the positions of .* must be finite, got NaN or infinity in frame 0"),
}


@pytest.mark.parametrize("name", WRONG_XYZ)
def test_wrong_xyz(name, tmp_path):
    (old, new), message = WRONG_XYZ[name]
    path = tmp_path / "frames.xyz"
    path.write_text(xyz_text(40).replace(old, new, 1))
    with pytest.raises(ValueError, match=f"md17: .*({message})"):
        md17(path, **SMALL)


def test_cut_and_mixed_xyz(tmp_path):
    path, lines = tmp_path / "frames.xyz", xyz_text(4).splitlines()
    for kept, message in ((lines[:-2], "line 25 must be followed by a comment and 6 atoms, got 5 lines: frame 3 is"),
                          ([], "must hold conformations, got none"),
                          ([*lines, "1", "", "H 0 0 0"], "of one molecule of 6 atoms, got 1 in frame 4 .line 33."),
                          (["1", "Properties=pos:R:3", "0 0 0"], "must have species:S:1 and pos:R:3, got 'pos:R:3'"),
                          (["1", "Properties=species:S:a", "H"], "must be name:type:columns three by three"),
                          (["2", "", "H 0 0 0", ""], "line 4 must have 4 columns"),
                          (["1", "", "H 0 0"], "line 3 must have 4 columns .*got 'H 0 0'"),
                          (["1", "", "Xx 0 0 0"], "must name elements, got 'Xx' for atom 0")):
        path.write_text("\n".join(kept) + "\n")
        with pytest.raises(ValueError, match=f"md17: .*{message}"):
            read_xyz(path)


def test_wrong_folders_of_xyz(tmp_path):
    root = folder(tmp_path / "3BPA")
    (root / "test_600K.xyz").write_text(xyz_text(3).replace("C  ", "N  "))
    with pytest.raises(ValueError, match="test_600K.xyz must hold the molecule of the training set in the same order"):
        md17(root, "test", **SMALL)
    (root / "test_600K.xyz").unlink()
    (root / "train_600K.xyz").write_text(xyz_text(3))
    with pytest.raises(ValueError, match="training set must be one that .* has, 300K, 600K, got 'mixedT'; name one"):
        md17(root, train_set="mixedT", **SMALL)
    (root / "train_300K.xyz").rename(root / "train_1200K.xyz")
    with pytest.raises(ValueError, match="the training set must be one that .* has, 1200K, 600K, got ''; name one"):
        md17(root, **SMALL)
    (root / "train_600K.xyz").write_text(xyz_text(3, forces=False))
    with pytest.raises(ValueError, match="train_600K.xyz must say energies .* and forces .*, got no forces"):
        md17(root, train_set="600K", **SMALL)
    for name in ("a", "b"):
        (root / f"valid_{name}.xyz").write_text(xyz_text(3))
    with pytest.raises(ValueError, match="must hold one validation set, got valid_a, valid_b"):
        md17(root, train_set="1200K", **SMALL)
