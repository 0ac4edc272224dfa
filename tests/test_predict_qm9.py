"""Properties of molecules by a trained run: whatever their number, place, pose, order and file; and wrong input."""

import csv

import numpy as np
import pytest
import torch
from qm9_toys import npz, write, xyz

from ace_fast.data import qm9 as read
from ace_fast.symmetry import random_o3
from ace_fast.train import cli, load, predict, train

pytestmark = pytest.mark.usefixtures("same_threads")

TINY = {
    "task": "qm9", "quiet": True, "train_samples": 0, "eval_samples": 0, "layers": 2, "hidden": 16, "lmax_attr": 2,
    "batch_size": 16, "epochs": 1, "eval_every": 1, "rotations": 1, "threads": 1, "dtype": "float64",
}
WATER = "3\nwater\nO 0.0 0.0 0.1173\nH 0.0 0.7572 -0.4692\n1 0.0 -0.7572 -0.4692\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_FAST_DATA", str(folder / "cache"))
        patch.setattr("ace_fast.train.report.write", lambda run: None)
        data = npz(folder / "few.npz", count=60, listed=())
        return train(folder / "run", data=data, target="U0", subtract_atomref=True, **TINY)


@pytest.fixture(scope="module")
def test_data(run):
    return read(run.about()["config"]["data"], "test", cache=run.folder.parent / "cache")


def arrays(data):
    return data.node["z"], data.node["pos"], data.node_offsets


def test_predictions_do_not_depend_on_place_and_pose(run, test_data):
    """Translations, rotations and reflections, with the branches off; with them on, rotations do matter."""
    z, pos, offsets = arrays(test_data)
    predictor = load(run.folder)
    assert predictor.target == "U0" and predictor.unit == "eV" and not predictor.relaxed
    found = predictor.predict(z, pos, offsets)
    assert found.shape == (6,) and found.dtype == torch.float64
    relaxed = load(run.folder, relaxed=True)
    shifts = []
    for rotation in random_o3(2, torch.Generator().manual_seed(3), alternate=True):
        turned = pos.double() @ rotation.T + torch.tensor([3.0, -2.0, 1.0])
        torch.testing.assert_close(predictor.predict(z, turned, offsets), found, rtol=0, atol=1e-8)
        shifts.append((relaxed.predict(z, turned, offsets) - relaxed.predict(z, pos, offsets)).abs().max())
    assert min(shifts) > 1e-2


def test_predictions_do_not_depend_on_order_and_company(run, test_data):
    z, pos, offsets = arrays(test_data)
    predictor = load(run.folder)
    found = predictor.predict(z, pos, offsets)
    for g, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        backwards = torch.arange(int(b) - 1, int(a) - 1, -1)
        alone = predictor.predict(z[backwards], pos[backwards])
        assert alone.shape == ()
        torch.testing.assert_close(alone, found[g], rtol=1e-10, atol=1e-8)
    again = predictor.predict(z.repeat(50), pos.repeat(50, 1), torch.cat([offsets[:1], (
        offsets[1:] + offsets[-1] * torch.arange(50)[:, None]).flatten()]))  # more than one forward pass
    torch.testing.assert_close(again, found.repeat(50), rtol=1e-10, atol=1e-8)
    assert predictor.predict(z[:0], pos[:0], [0]).shape == (0,)


def test_single_atoms_and_far_ones_have_no_edges(run):
    predictor = load(run.folder)
    carbon = predictor.predict([6], [[0.0, 0, 0]])
    assert carbon.isfinite() and torch.equal(carbon, predictor.predict([6], [[5.0, 1, 2]]))
    assert predictor.predict([6], [[0.0, 0, 0]]) != predictor.predict([7], [[0.0, 0, 0]])
    pair = predictor.predict([6, 1, 9], [[0.0, 0, 0], [40.0, 0, 0], [0, 50.0, 0]])
    assert pair.isfinite() and pair == predictor.predict([6, 1, 9], [[0.0, 0, 0], [0, 3.0, 0], [9, 0.0, 0]])


@pytest.mark.parametrize(("z", "pos", "offsets", "message"), [
    ([1.0], [[0.0, 0, 0]], None, r"z must be integers \[N\], got torch.float64 \[1\]"),
    ([1], [0.0, 0, 0], None, r"pos must be \[1, 3\] for the 1 atoms of z, got \[3\]"),
    ([1, 1], [[0.0, 0, 0]] * 2, [0, 1], "offsets must rise from 0 to the 2 atoms of z, got .0, 1."),
    ([14], [[0.0, 0, 0]], None, "atoms must be H C N O F .* got 14 in molecule 0"),
    ([6, 6], [[0.0, 0, 0], [float("nan"), 0, 0]], [0, 1, 2], "positions must be finite, got NaN .* in molecule 1"),
    ([6], [[0.0, 0, 0]], [0, 0, 1], "a molecule must have atoms, got none in molecule 0; leave it out"),
    ([], np.zeros((0, 3)), None, "z must be integers|a molecule must have atoms"),
])
def test_wrong_molecules_are_named(z, pos, offsets, message, run):
    with pytest.raises(ValueError, match=f"predict: ({message})"):
        load(run.folder).predict(z, pos, offsets)


def test_prediction_from_an_xyz_file(run, tmp_path, capsys):
    path = write(tmp_path / "some.xyz", WATER + "\n" + "1\n\nHe 0 0 0\n".replace("He", "F") + WATER)
    assert cli.main(["predict", str(run.folder), str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("0 water: U0 ") and shown[0].endswith(" eV") and shown[1].startswith("1: U0")
    assert shown[-1].startswith("3 molecules predicted: ")
    wanted = load(run.folder).predict([8, 1, 1], [[0.0, 0.0, 0.1173], [0.0, 0.7572, -0.4692], [0.0, -0.7572, -0.4692]])
    with np.load(tmp_path / "some-predicted.npz") as found:
        assert found["predicted"][[0, 2]] == pytest.approx(float(wanted)) and found["molecule"].tolist()[1] == "1"
        assert (str(found["target"]), str(found["unit"])) == ("U0", "eV") and "given" not in found.files
    assert cli.main(["predict", str(run.folder), str(path), "--output", str(tmp_path / "o.csv")]) == 0
    rows = list(csv.reader((tmp_path / "o.csv").read_text().splitlines()))
    assert rows[0] == ["molecule", "U0_predicted [eV]"] and rows[1][0] == "0 water" and len(rows) == 4
    assert float(rows[1][1]) == pytest.approx(float(wanted), rel=1e-14)


def test_prediction_from_files_that_say_the_target(run, test_data, tmp_path, capsys):
    """QM9's own .xyz files and an .npz with targets: both values are written, and the error is shown."""
    source = run.about()["config"]["data"]
    assert cli.main(["predict", str(run.folder), source, "--output", str(tmp_path / "o.csv")]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = list(csv.reader((tmp_path / "o.csv").read_text().splitlines()))
    assert rows[0] == ["molecule", "U0_predicted [eV]", "U0_given [eV]"] and len(rows) == 61 and rows[1][0] == "gdb_1"
    said, given = (np.array([float(row[column]) for row in rows[1:]]) for column in (1, 2))
    assert shown[-2] == f"mean absolute error: {np.abs(said - given).mean() * 1000:.5g} meV"
    number = int(test_data.graph["gdb_id"][0])
    own = xyz(tmp_path / "xyz", count=60) / f"dsgdb9nsd_{number:06}.xyz"
    assert cli.main(["predict", str(run.folder), str(own)]) == 0
    with np.load(own.with_name(f"{own.stem}-predicted.npz")) as found:
        assert found["molecule"].tolist() == [f"gdb_{number}"]
        assert found["given"] == pytest.approx(float(test_data.graph["U0"][0]), rel=1e-12)
        assert found["predicted"] == pytest.approx(said[number - 1], abs=1e-3)  # other digits of the positions
    np.savez(tmp_path / "plain.npz", z=[6, 1], pos=np.eye(3)[:2], extra=np.array(["a"]))
    answer = load(run.folder).answer(tmp_path / "plain.npz")
    assert answer.count == 1 and answer.arrays["molecule"].tolist() == ["0"]


def test_wrong_files_are_named(run, tmp_path):
    predictor = load(run.folder)
    cases = {
        "a.xyz": ("2\nx\nH 0 0 0\n", "a.xyz, line 1 must be followed by a comment and as many atoms"),
        "b.xyz": ("1\nx\nXe 0 0 0\n", "atoms must be H C N O F, got Xe in .*b.xyz, line 3; leave that molecule out"),
        "c.xyz": ("", "there must be molecules, got none"),
        "d.xyz": ("1\nx\nH 0 inf 0\n", "positions must be finite, got NaN or infinity in 0 x of .*d.xyz"),
        "e.npz": ("nothing", "must be an .xyz or .npz with z, pos, got another file"),
    }
    for name, (text, message) in cases.items():
        with pytest.raises(ValueError, match=f"predict: .*{message}"):
            predict.predict_file(predictor, write(tmp_path / name, text), tmp_path / "o.npz")
    np.savez(tmp_path / "f.npz", z=[1], charges=[1])
    with pytest.raises(ValueError, match="must hold z and pos, got z, charges; add pos"):
        predictor.answer(tmp_path / "f.npz")
    for name in ("no.xyz", "no.npz"):
        with pytest.raises(FileNotFoundError, match="INPUT must be an .xyz or .npz file, got none at .*no"):
            predictor.answer(tmp_path / name)
    (tmp_path / "o.csv").write_text("")
    with pytest.raises(FileExistsError, match="o.csv exists; pass another --output, or --overwrite"):
        predict.predict_file(predictor, write(tmp_path / "w.xyz", WATER), tmp_path / "o.csv")
    predict.predict_file(predictor, tmp_path / "w.xyz", tmp_path / "o.csv", overwrite=True)
    assert not list(tmp_path.glob(".o.csv.*"))


def test_only_tables_become_csv(tmp_path):
    class Other:
        def answer(self, source):
            return predict.Answer({"x": np.zeros(1)}, 1, "1 thing")

    with pytest.raises(ValueError, match="--output must be an .npz for predictions that are no table, got .*o.csv"):
        predict.predict_file(Other(), tmp_path / "i", tmp_path / "o.csv")
