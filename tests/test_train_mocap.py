"""Runs of the MoCap task: learning, resuming, errors, predictions, the command line, and wrong input."""

import json
import zipfile

import numpy as np
import pytest
import torch
from mocap_toys import SHARED, amc, asf, motion, npz
from run_checks import check_resuming

from ace_fast.data import mocap as read
from ace_fast.data.mocap_files import read_amc_file
from ace_fast.models.branches import GAMMAS
from ace_fast.train import cli, load, options, train
from ace_fast.train.evaluate import evaluate_run
from ace_fast.train.tasks import mocap
from ace_fast.train.tasks.mocap_graphs import Forward

pytestmark = pytest.mark.usefixtures("same_threads")

SMALL = {"delta": 4, "steps": 3, "modes": 2}
TINY = {
    "task": "mocap", "quiet": True, **SMALL, "layers": 2, "hidden": 8, "time_emb": 4, "batch_size": 7, "epochs": 2,
    "eval_every": 1, "rotations": 2, "threads": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Moments of a skeleton of four joints: 24, 8 and 8."""
    return str(npz(tmp_path_factory.mktemp("data") / "runs.npz"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "finished", data=data, **TINY)


def moments(data, split):
    """pos, vel [G, 4, 3] and target [G, T, 4, 3]."""
    found = read(data, split, case="run", delta=4, steps=3)
    pos, vel, target = (found.node[name].unflatten(0, (len(found), 4)) for name in ("pos", "vel", "target"))
    return pos, vel, target.transpose(1, 2)


def test_a_run_folder_holds_errors_frames_and_what_the_data_are(finished):
    assert {path.name for path in finished.folder.iterdir()} == {
        "config.json", "metrics.jsonl", "weights.safetensors", "best.safetensors", "state.safetensors",
        "evaluation.json", "diagnosis.json", "report.png", "report.html",
    }
    about = finished.about()
    assert about["task"] == "mocap" and set(about["config"]) == set(mocap.OPTIONS)
    facts = about["facts"]
    assert facts["source"] == "runs (.npz)" and facts["joints"] == ["root", "trunk", "arm", "leg"]
    assert facts["moments"] == 24 and facts["frames"] == [2, 3, 4]
    rows = finished.metrics()
    assert [row["step"] for row in rows] == [3, 6]  # a last batch of 3 is left out
    whats, modes = ("valid", "test", "test_average", "equivariance"), ("strict", "relaxed")
    assert {f"{what}_{mode}" for what in whats for mode in modes} <= set(rows[0])
    assert len(rows[0]["gammas"]) == len(rows[0]["branch_ratios"]) == 4
    assert all(gamma != 1 for gamma in rows[-1]["gammas"])  # the last one of the features too, which does nothing
    assert rows[-1]["equivariance_strict"] < 1e-5 < 1e-3 < rows[-1]["equivariance_relaxed"]
    found = finished.evaluation()
    best = min(rows, key=lambda row: row["valid_strict"])
    assert found["epoch"] == best["epoch"] and found["test_strict"] == best["test_strict"]
    for mode in modes:
        assert found[f"by_frame_{mode}"][-1] == found[f"test_{mode}"] and len(found[f"by_frame_{mode}"]) == 3
        assert np.mean(found[f"by_frame_{mode}"]) == pytest.approx(found[f"test_average_{mode}"])
    page = (finished.folder / "report.html").read_text()
    assert page.count("<svg") == 10 and "trained on 24 moments; 1 unit is 5.644 cm" in page
    assert f"{found['test_strict']:.5g}, mean over frames" in page and "+2, +3, +4" in page
    assert evaluate_run(finished.folder) == found


def test_errors_are_those_of_the_predictions(finished, data):
    found = finished.evaluation()
    for relaxed, mode in ((False, "strict"), (True, "relaxed")):
        predictor = load(finished.folder, relaxed=relaxed)
        for split in ("train", "valid", "test"):
            pos, vel, target = moments(data, split)
            said = predictor.predict(pos, vel)
            errors = (said - target).square().mean((0, 2, 3))
            assert found[f"{split}_{mode}"] == pytest.approx(float(errors[-1]), rel=1e-4)
            if split != "train":
                assert found[f"{split}_average_{mode}"] == pytest.approx(float(errors.mean()), rel=1e-4)
            np.testing.assert_allclose(predictor.predict(pos[1], vel[1]), said[1], atol=1e-5)
    pos, vel, target = moments(data, "test")
    linear = (pos[:, None] + torch.tensor([2.0, 3, 4])[:, None, None] * vel[:, None] - target).square().mean((0, 2, 3))
    assert found["baseline"] == pytest.approx(float(linear[-1]), rel=1e-9)
    assert found["baseline_average"] == pytest.approx(float(linear.mean()), rel=1e-9)


def test_the_strict_model_commutes_with_rotations_and_shifts(finished, data):
    """Heights, a feature, are those of the unrotated moments; without them the predictions commute altogether."""
    config, facts = finished.about()["config"] | {"height": "none", "dtype": "float64"}, finished.about()["facts"]
    torch.manual_seed(0)
    model = mocap.build_model(config | {"relaxed": False}, facts).double()
    predictor = mocap.Predictor(config, facts, model)
    pos, vel, _ = moments(data, "test")
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    said = predictor.predict(pos, vel)
    torch.testing.assert_close(predictor.predict(pos @ turn.T + 3, vel @ turn.T), said @ turn.T + 3)
    torch.testing.assert_close(predictor.predict(pos[[2, 0]], vel[[2, 0]]), said[[2, 0]])


def test_one_graph_of_all_frames_serves_every_batch(finished, data):
    config, facts = finished.about()["config"], finished.about()["facts"]
    training = mocap.Training(config, facts, mocap.load(config, "train"))
    model, made = mocap.build_model(config, facts), []
    frames = model.frames
    model.frames = lambda *given: made.append(frames(*given)) or made[-1]
    losses = [training.loss(model, batch) for _ in range(2) for batch in training.batches]
    assert len(losses) == 6 and len(made) == 1 and made[0].num_nodes == 3 * 7 * 4


def test_the_loss_is_the_mean_square_over_all_frames(finished):
    config, facts = finished.about()["config"], finished.about()["facts"]
    samples = mocap.load(config, "train")
    training = mocap.Training(config, facts, samples)
    model, batch = mocap.build_model(config, facts), next(iter(training.batches))
    order = training.batches.order()[:7]
    target = samples.node["target"].unflatten(0, (24, 4))[order].permute(2, 0, 1, 3)  # [T, G, J, 3]
    said = Forward(config, facts)(model.eval(), batch).unflatten(1, (7, 4))
    wanted = float((said - target).square().mean().detach())
    assert float(training.loss(model, batch).detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("step", [4, 6], ids=["within_an_epoch", "at_its_end"])
def test_ctrl_c_and_resuming_give_the_same_numbers(step, data, tmp_path, no_plots):
    given = TINY | {"data": data, "epochs": 3, "mode": "resilient", "lr_schedule": "cosine"}
    check_resuming(tmp_path, step, **given)


def test_gradients_are_clipped(data, tmp_path, monkeypatch, no_plots):
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def watching(parameters, limit):
        parameters = list(parameters)
        clip(parameters, limit)
        seen.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watching)
    run = train(tmp_path / "run", data=data, **TINY | {"clip": 0.01, "epochs": 1})
    assert len(seen) == 3 and max(seen) == pytest.approx(0.01, rel=1e-4)
    assert len(run.load_state()["optimizer"]["param_groups"]) == 1
    train(tmp_path / "free", data=data, **TINY | {"clip": 0.0, "epochs": 1})
    assert len(seen) == 3


@pytest.mark.parametrize("given", [
    {"relaxed": False, "height": "none"}, {"mode": "resilient", "height": "batch", "dtype": "float64"},
    {"frames": "uniform", "modes": 1, "preset": "original_code", "layers": 1, "hidden": 8},
    *({"gammas": kind} for kind in GAMMAS if kind != "layer")])
def test_other_settings_train(given, data, tmp_path, no_plots):
    run = train(tmp_path / "run", **TINY | {"data": data, "epochs": 1} | given)
    row = run.metrics()[-1]
    assert ("gammas" in row) == given.get("relaxed", True) and row["equivariance_strict"] < 1e-5
    pos, vel, target = moments(data, "test")
    if given.get("frames") != "uniform":
        predictor = load(run.folder, relaxed=False)
        errors = (predictor.predict(pos, vel) - target).square().mean((0, 2, 3))
        assert run.evaluation()["test_strict"] == pytest.approx(float(errors[-1]), rel=1e-4)


@pytest.mark.skipif(not (SHARED / "mocap_run.npz").exists(), reason="shared/data is not beside this checkout")
def test_training_on_real_motion_learns(tmp_path, no_plots):
    """Well below the error of linear motion within some seconds of one core."""
    given = TINY | {"data": SHARED, "delta": 30, "steps": 5, "hidden": 16, "time_emb": 8, "train_samples": 60}
    run = train(tmp_path / "run", **given | {"eval_samples": 30, "epochs": 10, "eval_every": 10, "lr": 1e-2})
    row = run.metrics()[-1]
    assert row["test_strict"] < 0.85 * row["baseline"] and row["test_relaxed"] < 0.85 * row["baseline"]
    assert row["equivariance_strict"] < 1e-5


@pytest.mark.parametrize(("given", "message"), [
    ({"steps": 3, "modes": 3}, "--modes must be at most 2 for --steps 3, got 3; pass fewer modes or --steps 4 or more"),
    ({"steps": 5}, "--steps must be at most --delta 4, got 5"),
    ({"bound": "spectral"}, "--bound must be none for EGNO, whose branches have spectral norms of their own, got spec"),
    ({"batch_size": 25}, "--batch-size must be at most the 24 training moments, got 25; pass --batch-size 24 or less"),
    ({"train_samples": 6}, "--batch-size must be at most the 6 training moments, got 7; pass a smaller one or more"),
    ({"gammas": "many"}, "--gammas must be one of layer, single"),
    ({"case": "jump"}, "--case must be one of walk, run, got 'jump'"),
    ({"delta": 9, "steps": 2}, r"start frame 15 of trial 09_0. \(runs \(.npz\)\) must be in 0 .. 14"),
    ({"data": "/nowhere"}, "nowhere must hold 09.asf with 09_01.amc and so on"),
])
def test_wrong_settings_are_named(given, message, data, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tmp_path / "run", **TINY | {"data": data} | given)


def test_heights_that_cannot_be_scaled_by_are_named(data, tmp_path):
    with np.load(data) as archive:
        arrays = dict(archive)
    arrays["pos"] = arrays["pos"] - np.float32([0, 50, 0])
    np.savez(tmp_path / "low.npz", **arrays)
    for height in ("train", "batch"):
        with pytest.raises(ValueError, match="the largest height must be positive, with y up .*; pass --height none"):
            train(tmp_path / height, **TINY | {"data": tmp_path / "low.npz", "height": height})


def test_damaged_facts_and_other_skeletons_are_named(finished, data, tmp_path):
    about = finished.about()
    for facts in ({}, about["facts"] | {"bones": []}, about["facts"] | {"height": None}):
        with pytest.raises(ValueError, match="config.json must hold joints, bones, frames and the largest height"):
            mocap.build_model(about["config"], facts)
    other = npz(tmp_path / "other.npz", edges=np.array([[1, 0], [2, 1], [3, 1]]))
    with pytest.raises(ValueError, match="the data must have the skeleton of the run, 4 joints, got 4 joints or other"):
        evaluate_run(finished.folder, data=str(other))


def test_predictions_of_wrong_input_are_refused(finished, tmp_path):
    predictor, x = load(finished.folder), torch.rand(2, 4, 3)
    nan, huge = x.clone(), torch.full_like(x, 1e30)
    nan[1, 2, 0] = float("nan")
    for pos, vel, message in (
        (x[:, :3], x, r"pos must be \[G, 4, 3\] or \[4, 3\] for the run's 4 joints, got \[2, 3, 3\]"),
        (x, x[0], r"vel must be \[2, 4, 3\] as pos is, got \[4, 3\]"),
        (nan, x, "pos must be finite, got NaN or infinity in moment 1, joint "),
        (huge, huge, "the predicted positions must be finite, got NaN or infinity first in moment 0"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.predict(pos, vel)
    assert predictor.predict(x[:0], x[:0]).shape == (0, 3, 4, 3)
    with pytest.raises(FileNotFoundError, match="INPUT must be an .amc or .npz file, got none at"):
        predictor.answer(tmp_path / "no.amc")
    (tmp_path / "07_01.amc").write_text(amc(motion(5)))
    with pytest.raises(FileNotFoundError, match="must hold the .asf file of 07_01.amc, got none; put it there"):
        predictor.answer(tmp_path / "07_01.amc")
    for text, message in ((asf(units="length 1.0\nangle deg"), "in the run's unit of 5.644 cm, got one of 2.54 cm"),
                          (asf("trunk 0 1 0 2 0 0 0 rx ry rz", "root trunk"), "frame 1 must be of the joints of"),
                          (asf(hierarchy="root trunk leg\nleg arm"), "must have the skeleton of the run, 4 joints")):
        (tmp_path / "07.asf").write_text(text)
        with pytest.raises(ValueError, match=message):
            predictor.answer(tmp_path / "07_01.amc")


def test_the_command_line(data, tmp_path, capsys, no_plots):
    argv = [text for name, value in TINY.items() if name not in ("task", "quiet")
            for text in (options.flag(name), str(value))]
    out = str(tmp_path / "run")
    assert cli.main(["train", "mocap", "--out", out, "--data", data, "--quiet", "--case", "run", *argv]) == 0
    shown = capsys.readouterr().out
    assert "test error of linear motion" in shown and "of the last frame, relaxed model" in shown
    assert cli.main(["evaluate", out, "--json", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["data"] == "runs (.npz)"
    pos, vel, _ = moments(data, "test")
    np.savez(tmp_path / "in.npz", pos=pos, vel=vel)
    assert cli.main(["predict", out, str(tmp_path / "in.npz")]) == 0
    assert "8 moments predicted" in capsys.readouterr().out
    with np.load(tmp_path / "in-predicted.npz") as found:
        np.testing.assert_array_equal(found["pos"], load(out).predict(pos, vel))
        assert found["frames"].tolist() == [2, 3, 4] and found["joint_names"][0] == "root"
    (tmp_path / "09.asf").write_text(asf())
    (tmp_path / "09_77.amc").write_text(amc(motion(12, 77)))
    assert cli.main(["predict", out, str(tmp_path / "09_77.amc"), "--relaxed"]) == 0
    shown = capsys.readouterr().out
    positions, _ = read_amc_file(tmp_path / "09_77.amc")
    with np.load(tmp_path / "09_77-predicted.npz") as found:
        assert found["pos"].shape == (11, 3, 4, 3) and found["start"].tolist() == list(range(11))
        error = np.square(found["pos"][:8, -1] - positions[4:]).mean()
    assert f"mean squared error of the last frame: {error:.5g}" in shown and "(8 moments)" in shown
    assert cli.main(["data", "mocap", "--data", data, "--case", "run", "--delta", "4", "--steps", "1"]) == 0
    assert "valid: MotionSamples(8 moments of 1 trials" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "bad.zip", "w"):
        pass
    assert cli.main(["train", "mocap", "--data", str(tmp_path / "bad.zip"), "--out", str(tmp_path / "b")]) == 2
    assert "ace-fast: mocap: " in capsys.readouterr().err
