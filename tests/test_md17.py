"""MD17, rMD17, 3BPA and converted arrays: every layout gives the same frames, in eV, split as published."""

import numpy as np
import pytest
import torch
from md17_toys import MEAN, REAL, Z, converted, folder, md17_npz, revised, springs, xyz_text

from ace_fast.data import md17
from ace_fast.data.extxyz import read_xyz
from ace_fast.data.frames import KCAL_PER_MOL, formula

SMALL = {"train_samples": 15, "valid_samples": 5, "test_samples": 0}
real = pytest.mark.skipif(not (REAL / "rmd17.npz").exists(), reason="shared/data is not beside this checkout")


def check(data, rows, seed=0, count=40, atol=1e-9):
    """`data` are the frames `rows` of springs."""
    pos, energy, forces = springs(count, seed)
    assert data.graph["row"].tolist() == list(rows) and data.numbers == Z.tolist() and data.molecule == "CH4O"
    assert {x.dtype for x in (data.node["pos"], data.node["forces"], data.graph["energy"])} == {torch.float64}
    for name, array in (("pos", pos), ("forces", forces)):
        np.testing.assert_allclose(data.node[name].view(-1, 6, 3), array[list(rows)], rtol=0, atol=atol)
    np.testing.assert_allclose(data.graph["energy"], energy[list(rows)], rtol=1e-14)
    assert data.uniform and data.node["z"].tolist() == Z.tolist() * len(data)


def test_the_published_splits_of_rmd17(tmp_path):
    root = revised(tmp_path / "rmd17", splits=(1, 2))
    for fold in (1, 2):
        order = np.random.RandomState(fold).permutation(40)
        wanted = {"train": order[:15], "valid": order[15:20], "test": order[20:]}
        for split, rows in wanted.items():
            for place in (root, root / "npz_data" / "rmd17_methanol.npz"):
                data = md17(place, split, fold=fold, **SMALL)
                check(data, rows)
                assert data.source == f"rMD17 (rmd17_methanol.npz, published split {fold})"
    assert len(md17(root, "test", **SMALL | {"test_samples": 3})) == 3
    assert len(md17(root, "train", **SMALL | {"train_samples": 0})) == 15  # 20 are published, 5 of them for validation


def test_md17_is_split_by_a_seed(tmp_path):
    path = md17_npz(tmp_path / "md17_methanol.npz")
    for seed in (0, 3):
        order = np.random.RandomState(seed).permutation(40)
        check(md17(tmp_path, "train", seed=seed, **SMALL), order[:15])
        check(md17(path, "valid", seed=seed, **SMALL), order[15:20])
        check(md17(path, "test", seed=seed, **SMALL), order[20:])
        check(md17(path, "test", seed=seed, **SMALL | {"test_samples": 4}), order[20:24])
    assert len(md17(path, "train", train_samples=0, valid_samples=5, test_samples=10)) == 25
    assert repr(md17(path, "valid", **SMALL)) == "Conformations(5 frames of CH4O; MD17 (md17_methanol.npz))"


def test_units_are_converted_by_the_stated_constant(tmp_path):
    assert pytest.approx(0.0433641042, rel=1e-9) == KCAL_PER_MOL
    pos, energy, forces = springs()
    said = md17_npz(tmp_path / "a.npz", E=energy, F=forces, e_unit=np.array("eV"), r_unit=np.array("Ang"))
    check(md17(said, "train", **SMALL), np.random.RandomState(0).permutation(40)[:15])
    wrong = md17_npz(tmp_path / "b.npz", E=energy, F=forces)
    check(md17(wrong, "train", unit="eV", **SMALL), np.random.RandomState(0).permutation(40)[:15])
    plain = md17(md17_npz(tmp_path / "c.npz", e_unit=np.array("kcal/mol")), "train", unit="eV", **SMALL)
    assert plain.graph["energy"][0] == pytest.approx(MEAN / KCAL_PER_MOL, rel=1e-2)


def test_several_molecules_of_a_folder(tmp_path):
    root = revised(tmp_path / "rmd17", molecule="salicylic")
    md17_npz(root / "npz_data" / "md17_salicylic.npz", R=None)  # the revised one is taken
    revised(root, molecule="benzene")
    for name in ("salicylic", "salicylic_acid", "benzene"):
        assert f"rmd17_{name.removesuffix('_acid')}.npz" in md17(root, molecule=name, **SMALL).source
    with pytest.raises(ValueError, match="molecule must be one that .*rmd17 has, benzene, salicylic, got ''; name one"):
        md17(root, **SMALL)
    with pytest.raises(ValueError, match="has, benzene, salicylic, got 'water'"):
        md17(root, molecule="water", **SMALL)


def test_files_of_temperatures(tmp_path):
    root = folder(tmp_path / "dataset_3BPA")
    order = np.random.RandomState(0).permutation(30)
    train, valid, test = (md17(root, split, **SMALL) for split in ("train", "valid", "test"))
    assert train.source == "dataset_3BPA/train_300K.xyz" and train.parts == ("train",)
    assert train.graph["row"].tolist() == order[:15].tolist() and valid.graph["row"].tolist() == order[15:20].tolist()
    assert test.parts == ("test_300K", "test_600K", "test_1200K")
    assert test.graph["part"].bincount().tolist() == [8, 7, 9]
    few = md17(root, "test", **SMALL | {"test_samples": 2})
    assert few.graph["part"].tolist() == [0, 0, 1, 1, 2, 2] and few.graph["row"].tolist() == [0, 1] * 3
    last = test.subset(torch.arange(15, 24))
    assert last.parts == test.parts and last.source == test.source
    assert "24 frames of CH4O in test_300K, test_600K, test_1200K; dataset_3BPA" in repr(test)
    (root / "train_mixedT.xyz").write_text(xyz_text(25, 9))
    assert len(md17(root, "train", **SMALL | {"train_samples": 0})) == 25  # of 300K
    assert len(md17(root, "train", train_set="mixedT", **SMALL | {"train_samples": 0})) == 20
    (root / "valid_300K.xyz").write_text(xyz_text(4, 9))
    assert len(md17(root, "valid", **SMALL)) == 4 and len(md17(root, "train", **SMALL | {"train_samples": 0})) == 30
    (root / "test_dih.xyz").write_text(xyz_text(3, 9, forces=False))
    with pytest.warns(UserWarning, match="test_dih.xyz has no forces and is left out"):
        assert md17(root, "test", **SMALL).parts == test.parts


def test_one_xyz_file(tmp_path):
    path = tmp_path / "frames.xyz"
    path.write_text(xyz_text(40))
    check(md17(path, "train", **SMALL), np.random.RandomState(0).permutation(40)[:15], atol=0)
    found = read_xyz(path)
    pos, energy, forces = springs(40)
    assert np.array_equal(found.pos, pos) and np.array_equal(found.energy, energy)
    assert np.array_equal(found.forces, forces)


def test_plain_and_other_xyz(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("3\nwater\nO 0 0 0.1\nH 0 0.7 -0.4 extra\n1 0 -0.7 -4e-1\n\n3\n\n8 0 0 0\n1 1 1 1\nH 2 2 2\n\n")
    with pytest.raises(ValueError, match="must be of one molecule, got 8 where frame 0 has O"):
        read_xyz(path)
    path.write_text(path.read_text().replace("8 0 0 0", "O 0 0 0").replace("1 1 1 1", "H 1 1 1")
                    .replace("\n1 0 -", "\nH 0 -"))
    found = read_xyz(path)
    assert found.z.tolist() == [8, 1, 1] and found.energy is None and found.forces is None
    assert found.pos[:, 2].tolist() == [[0, -0.7, -0.4], [2, 2, 2]]
    path.write_text('1\nREF_energy=-2.5 properties=Z:I:1:tags:I:1:REF_forces:R:3:pos:R:3 pbc="F F F" name="energy=3"\n'
                    "6 0 1 2 3 4 5 6\n")
    found = read_xyz(path)
    assert (found.z.tolist(), found.energy.tolist()) == ([6], [-2.5])
    assert found.forces.tolist() == [[[1, 2, 3]]] and found.pos.tolist() == [[[4, 5, 6]]]


def test_converted_arrays(tmp_path):
    path = converted(tmp_path / "all.npz")
    split = np.array([0, 0, 0, 1, 1] * 8)
    split[-4:] = 2
    rows = [np.flatnonzero(split == code) for code in range(3)]
    check(md17(path, "train", molecule="methanol", **SMALL), rows[0][:15], atol=1e-5)
    check(md17(path, "valid", molecule="methanol", **SMALL), rows[1][:5], atol=1e-5)
    check(md17(path, "test", molecule="methanol", **SMALL), rows[2], atol=1e-5)
    other = md17(path, "test", molecule="other", **SMALL)
    assert other.parts == ("test300K", "test600K") and other.numbers == Z[::-1].tolist()
    assert len(md17(path, "train", molecule="3m", train_samples=0, valid_samples=2, test_samples=3)) == 7
    with pytest.raises(ValueError, match="molecule must be one that .*all.npz has, 3m, methanol, other, got ''"):
        md17(path, **SMALL)


@real
def test_the_real_files():
    """Forces sum to zero, energies are total energies with all their digits, splits are those of the README."""
    for split, count in (("train", 950), ("valid", 50), ("test", 200)):
        data = md17(REAL / "rmd17.npz", split, molecule="aspirin")
        assert len(data) == count and data.molecule == "C9H8O4"
        assert data.node["forces"].view(count, 21, 3).sum(1).abs().max() < 1e-3
        assert -17620 < data.graph["energy"].min() < data.graph["energy"].max() < -17614
    bpa = md17(REAL / "3bpa_acac.npz", "test", molecule="3bpa", train_samples=300)
    assert (len(bpa), bpa.molecule) == (88, formula(np.array(bpa.numbers))) and len(bpa.numbers) == 27
    acac = md17(REAL / "3bpa_acac.npz", "test", molecule="acac", train_samples=300)
    assert acac.molecule == "C5H8O2" and acac.parts == ("test300K", "test600K") and len(acac) == 900


def test_the_default_folder_is_that_of_the_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path))
    revised(tmp_path / "md17")
    assert len(md17(**SMALL)) == 15


def test_formulas_begin_with_carbon_and_hydrogen():
    assert [formula(np.array(z)) for z in ([1, 8, 1], [8, 6, 1, 7, 6], [35, 1])] == ["H2O", "C2HNO", "HBr"]
