"""Energies and forces by a trained run: whatever order, pose, company and file; and wrong input."""

import csv

import numpy as np
import pytest
import torch
from md17_toys import Z, md17_npz, springs, xyz_text

from ace_fast.symmetry import random_o3
from ace_fast.train import cli, load, predict, train

pytestmark = pytest.mark.usefixtures("same_threads")

TINY = {
    "task": "md17", "quiet": True, "train_samples": 24, "valid_samples": 6, "test_samples": 4, "hidden": 8,
    "filters": 8, "interactions": 2, "gaussians": 8, "batch_size": 8, "epochs": 1, "eval_every": 1, "rotations": 1,
    "threads": 1, "dtype": "float64",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ace_fast.train.report.write", lambda run: None)
        return train(place / "run", data=str(md17_npz(place / "methanol.npz")), **TINY)


def test_forces_turn_with_the_molecule(run):
    pos, predictor = torch.from_numpy(springs(5, 1)[0]), load(run.folder)
    assert not predictor.relaxed
    energy, forces = predictor.predict(Z, pos)
    assert energy.shape == (5,) and forces.shape == (5, 6, 3) and energy.dtype == forces.dtype == torch.float64
    assert forces.sum(1).abs().max() < 1e-10
    relaxed = load(run.folder, relaxed=True)
    for g in random_o3(2, torch.Generator().manual_seed(3), alternate=True):
        turned = pos @ g.T + torch.tensor([3.0, -2.0, 1.0])
        found = predictor.predict(Z, turned)
        torch.testing.assert_close(found[0], energy, rtol=0, atol=1e-9)
        torch.testing.assert_close(found[1], forces @ g.T, rtol=0, atol=1e-9)
        assert (relaxed.predict(Z, turned)[0] - relaxed.predict(Z, pos)[0]).abs().max() > 1e-4


def test_predictions_do_not_depend_on_order_and_company(run):
    pos, predictor = torch.from_numpy(springs(130, 2)[0]), load(run.folder)  # more than one forward pass
    energy, forces = predictor.predict(Z, pos)
    order = torch.tensor([5, 0, 3, 2, 1, 4])
    alone = predictor.predict(Z[order.numpy()], pos[129][order])
    assert alone[0].shape == () and alone[1].shape == (6, 3)
    torch.testing.assert_close(alone[0], energy[129], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(alone[1], forces[129][order], rtol=1e-9, atol=1e-11)
    none = predictor.predict(Z, pos[:0])
    assert none[0].shape == (0,) and none[1].shape == (0, 6, 3)
    together = pos[0].clone()
    together[1] = together[0]  # coincident atoms, and one that nothing reaches
    together[5] += 90
    assert all(x.isfinite().all() for x in predictor.predict(Z, together))


@pytest.mark.parametrize(("z", "pos", "message"), [
    (Z.astype(float), np.zeros((6, 3)), r"z must be integers \[n\], got torch.float64 \[6\]"),
    (Z, np.zeros((5, 3)), r"pos must be \[6, 3\] or \[G, 6, 3\] for the 6 atoms of z, got \[5, 3\]"),
    (Z, np.zeros(18), r"pos must be \[6, 3\] or \[G, 6, 3\] for the 6 atoms of z, got \[18\]"),
    (Z[:5], np.zeros((5, 3)), "z must be the atoms of CH4O, the molecule that .* trained on, got those of CH3O; its"),
    (Z * 0, np.zeros((6, 3)), r"z must be the atoms of CH4O, .* got those of \[0, 0, 0, 0, 0, 0\]"),
    (Z, np.full((2, 6, 3), [[[0.0]], [[np.nan]]]), "positions must be finite, got NaN or infinity in frame 1"),
])
def test_wrong_molecules_are_named(z, pos, message, run):
    with pytest.raises(ValueError, match=f"predict: {message}"):
        load(run.folder).predict(z, pos)


def test_prediction_from_an_xyz_file(run, tmp_path, capsys):
    path = tmp_path / "some.xyz"
    path.write_text(xyz_text(12, 5))
    assert cli.main(["predict", str(run.folder), str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    pos, energy, forces = springs(12, 5)
    said, said_forces = load(run.folder).predict(Z, pos)
    assert shown[0].startswith(f"0: energy {float(said[0]):.6f} eV, largest force ") and len(shown) == 13
    error = np.abs(said_forces.numpy() - forces).mean() * 1000
    assert shown[-2] == f"mean absolute error of forces: {error:.5g} meV/Å"
    assert shown[-3] == f"mean absolute error of energies: {np.abs(said.numpy() - energy).mean() * 1000:.5g} meV"
    assert shown[-1].startswith("12 conformations predicted: ")
    with np.load(tmp_path / "some-predicted.npz") as found:
        np.testing.assert_allclose(found["energy"], said, rtol=1e-14)
        np.testing.assert_allclose(found["forces"], said_forces, rtol=1e-12, atol=1e-14)
        assert np.array_equal(found["forces_given"], forces) and found["z"].tolist() == Z.tolist()
        assert (str(found["unit"]), str(found["forces_unit"])) == ("eV", "eV/Å")
    assert cli.main(["predict", str(run.folder), str(path), "--output", str(tmp_path / "o.csv")]) == 0
    rows = list(csv.reader((tmp_path / "o.csv").read_text().splitlines()))
    assert rows[0] == ["frame", "energy_predicted [eV]", "energy_given [eV]"] and len(rows) == 13
    assert float(rows[3][1]) == pytest.approx(float(said[2]), rel=1e-14)


def test_prediction_from_arrays(run, tmp_path):
    pos, energy, forces = springs(3, 6)
    predictor = load(run.folder)
    np.savez(tmp_path / "a.npz", z=Z, pos=pos, energy=energy[:, None], forces=forces, other=np.array("x"))
    answer = predictor.answer(tmp_path / "a.npz")
    assert answer.count == 3 and answer.arrays["energy_given"].shape == (3,) and len(answer.lines) == 5
    np.savez(tmp_path / "b.npz", z=Z, pos=pos[1])
    alone = predictor.answer(tmp_path / "b.npz")
    assert alone.arrays["energy"] == pytest.approx(answer.arrays["energy"][1:2]) and "forces_given" not in alone.arrays
    np.savez(tmp_path / "c.npz", z=Z, pos=pos, energy=energy[:2])
    with pytest.raises(ValueError, match=r"energy of .*c.npz must be \[3\] for these positions, got \[2\]"):
        predictor.answer(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", z=Z, R=pos)
    with pytest.raises(ValueError, match="must hold z and pos, got z, R; add pos"):
        predictor.answer(tmp_path / "d.npz")
    for name in ("no.xyz", "no.npz"):
        with pytest.raises(FileNotFoundError, match="INPUT must be an .xyz or .npz file, got none at .*no"):
            predictor.answer(tmp_path / name)
    (tmp_path / "e.xyz").write_text("1\n\nXx 0 0 0\n")
    with pytest.raises(ValueError, match="predict: .*e.xyz must name elements, got 'Xx'"):
        predict.predict_file(predictor, tmp_path / "e.xyz", tmp_path / "o.npz")
