"""Runs of the MD17 task: forces, learning, resuming, measures and their units, reports, wrong input. All is tiny."""

import json

import numpy as np
import pytest
import torch
from md17_toys import MEAN, REAL, Z, folder, md17_npz, revised
from run_checks import check_help, check_resuming

from ace_fast.data import md17 as read
from ace_fast.train import cli, load, options, report, train
from ace_fast.train.evaluate import evaluate_run
from ace_fast.train.tasks import md17
from ace_fast.train.tasks.md17_model import Forward, inputs_of

pytestmark = pytest.mark.usefixtures("same_threads")
real = pytest.mark.skipif(not (REAL / "rmd17.npz").exists(), reason="shared/data is not beside this checkout")

TINY = {
    "task": "md17", "quiet": True, "train_samples": 24, "valid_samples": 6, "test_samples": 0, "hidden": 8,
    "filters": 8, "interactions": 2, "gaussians": 8, "batch_size": 8, "epochs": 2, "eval_every": 1, "rotations": 2,
    "threads": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(md17_npz(tmp_path_factory.mktemp("data") / "methanol.npz"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "finished", data=data, **TINY)


def config_of(data, **given):
    given = {k: v for k, v in TINY.items() if k not in ("task", "quiet")} | {"data": data} | given
    return options.make_config(md17, "demo", given)


def prepared(config, facts=None):
    """A model with fresh weights, and training data in its dtype."""
    found = md17.load(config, "train")
    facts = md17.facts(found)
    torch.manual_seed(3)
    model = md17.build_model(config, facts).to(getattr(torch, config["dtype"]))
    return model, inputs_of(found, config)


def test_a_run_folder_holds_errors_of_energies_and_forces(finished):
    assert {path.name for path in finished.folder.iterdir()} == {
        "config.json", "metrics.jsonl", "weights.safetensors", "best.safetensors", "state.safetensors",
        "evaluation.json", "diagnosis.json", "report.png", "report.html",
    }
    about = finished.about()
    assert about["task"] == "md17" and set(about["config"]) == set(md17.OPTIONS)
    assert about["facts"]["molecule"] == "CH4O" and about["facts"]["numbers"] == Z.tolist()
    rows = finished.metrics()
    assert [row["step"] for row in rows] == [3, 6] and len(rows[0]["gammas"]) == len(rows[0]["branch_ratios"]) == 2
    whats = ("valid", "test", "valid_energy", "test_energy", "equivariance", "equivariance_forces", "translation")
    assert {f"{what}_{mode}" for what in whats for mode in ("strict", "relaxed")} <= set(rows[0])
    for what in ("equivariance", "equivariance_forces"):
        assert rows[-1][f"{what}_strict"] < 1e-4 < 1e-3 < rows[-1][f"{what}_relaxed"]
    assert max(rows[-1]["translation_strict"], rows[-1]["translation_relaxed"]) < 1e-4  # the branches see no place
    found = finished.evaluation()
    best = min(rows, key=lambda row: row["valid_strict"])
    assert found["epoch"] == best["epoch"] and found["test_strict"] == best["test_strict"]
    assert {len(x) for x in found["parity_strict"]["energy"].values()} == {10}
    assert {len(x) for x in found["parity_relaxed"]["forces"].values()} == {180}
    page = (finished.folder / "report.html").read_text()
    assert page.count("<svg") == 12 and "MD17 (methanol.npz): CH4O; trained on 24 conformations" in page
    assert f"forces {found['test_strict']:.4g} meV/Å" in page and "error of the training mean and no forces" in page
    assert evaluate_run(finished.folder) == found


def test_errors_are_those_of_the_predictions_in_meV(finished, data):
    predictor, found = load(finished.folder), finished.evaluation()
    for split in ("train", "valid", "test"):
        frames = read(data, split, **{k: TINY[k] for k in ("train_samples", "valid_samples", "test_samples")})
        energy, forces = predictor.predict(Z, frames.node["pos"].view(-1, 6, 3))
        wrong = forces.flatten(0, 1) - frames.node["forces"]
        assert found[f"{split}_strict"] == pytest.approx(float(wrong.abs().mean()) * 1000, rel=1e-6)
        wrong = energy - frames.graph["energy"]
        assert found[f"{split}_energy_strict"] == pytest.approx(float(wrong.abs().mean()) * 1000, rel=1e-6)
    mean = float(read(data, "train", train_samples=24, valid_samples=6).graph["energy"].mean())
    assert finished.about()["facts"]["mean"] == pytest.approx(mean, rel=1e-14)
    baselines = found["baselines"]
    assert baselines["forces"] == [pytest.approx(float(frames.node["forces"].abs().mean()) * 1000)]
    assert baselines["energy"] == [pytest.approx(float((frames.graph["energy"] - mean).abs().mean()) * 1000)]
    assert found["baseline"] == baselines["forces"][0]


@pytest.mark.parametrize("given", [{"relaxed": True}, {"relaxed": True, "centre": False, "gammas": "single"},
                                   {"relaxed": False, "filter": "table"}], ids=str)
def test_forces_are_minus_the_slope_of_the_energy(given, data):
    """Against central differences in float64, with trained statistics of the branch's norms."""
    config = config_of(data, dtype="float64", cutoff=2.5, **given)
    model, frames = prepared(config)
    forward = Forward(config)
    forward(model.train(), frames.batch(range(8)))  # the norms see a batch
    batch, step = frames.batch([3, 9]), 1e-5
    energy, forces = forward(model.eval(), batch)
    assert not energy.requires_grad and not forces.requires_grad and forces.abs().max() > 1e-3
    plain = batch.pos
    with torch.no_grad():
        for atom, axis in ((0, 0), (3, 1), (7, 2), (11, 0)):
            ends = []
            for sign in (1, -1):
                batch.pos = plain.clone()
                batch.pos[atom, axis] += sign * step
                ends.append(forward.energies(model, batch).sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(forces[atom, axis], -slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("relaxed", [True, False])
def test_all_pairs_and_the_radius_graph_agree(relaxed, data):
    """Beyond the cutoff filters are zero: values, forces and gradients of a loss of forces."""
    config = config_of(data, dtype="float64", cutoff=1.9, relaxed=relaxed)
    found = []
    for complete in (True, False, None):
        model, frames = prepared(config)
        batch, forward = frames.batch([0, 5, 7]), Forward(config, complete)
        graph, _ = forward._structure(batch)
        energy, forces = forward(model.train(), batch, train=True)
        (energy.square().sum() + forces.square().sum()).backward()
        found.append((graph.num_edges, energy, forces, [p.grad for p in model.parameters() if p.grad is not None]))
    assert found[0][0] == found[2][0] == 3 * 30 > found[1][0] > 0
    for plain, mine in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-12)
    assert forward._structure(batch)[0] is forward._structure(frames.batch([1, 2, 3]))[0]  # shared by the batches


def test_larger_molecules_get_a_radius_graph(data, monkeypatch):
    monkeypatch.setattr("ace_fast.train.tasks.md17_model.COMPLETE", 5)
    config = config_of(data, cutoff=1.9)
    _, frames = prepared(config)
    forward = Forward(config)
    graph, _ = forward._structure(frames.batch([0, 1]))
    assert 0 < graph.num_edges < 60 and not forward._graphs


def test_the_loss_is_of_scaled_energies_and_forces(data):
    config = config_of(data, energy_weight=0.25, force_weight=2.0)
    frames = md17.load(config, "train")
    facts = md17.facts(frames)
    assert facts["scale"] == pytest.approx(float(frames.node["forces"].square().mean().sqrt()))
    training = md17.Training(config, facts, frames)
    batch, order = next(iter(training.batches)), training.batches.order()[:8]
    wanted = (frames.graph["energy"][order] - facts["mean"]) / facts["scale"]
    torch.testing.assert_close(batch.y.double(), wanted, rtol=1e-6, atol=1e-6)
    forces = frames.node["forces"].view(-1, 6, 3)[order].flatten(0, 1) / facts["scale"]
    torch.testing.assert_close(batch.y_forces.double(), forces, rtol=1e-6, atol=1e-6)
    for weights in ((0.25, 2.0), (1.0, 0.0), (0.0, 1.0)):
        training._weights = weights
        model, _ = prepared(config)
        energy, said = Forward(config)(model.eval(), batch)
        loss = weights[0] * (energy.double() - wanted).square().mean()
        loss += weights[1] * (said.double() - forces).square().mean()
        assert float(training.loss(model, batch).detach()) == pytest.approx(float(loss), rel=1e-5)


def test_total_energies_keep_their_digits(finished, data):
    """float32 would round them to 0.2 meV."""
    frames = read(data, "test", train_samples=24, valid_samples=6)
    assert finished.evaluation()["parity_strict"]["energy"]["target"] == pytest.approx(
        (frames.graph["energy"] - finished.about()["facts"]["mean"]).tolist(), abs=1e-12)
    assert abs(float(frames.graph["energy"][0]) - MEAN) < 50
    energy, _ = load(finished.folder).predict(Z, frames.node["pos"].view(-1, 6, 3))
    assert (energy - energy.float()).abs().max() > 1e-5


def test_ctrl_c_and_resuming_give_the_same_numbers(data, tmp_path, no_plots):
    given = TINY | {"data": data, "epochs": 3, "gammas_follow": True, "mode": "resilient", "test_samples": 4}
    check_resuming(tmp_path, 4, **given)


@pytest.mark.parametrize("mode", ["strict", "relaxed"])
def test_it_learns_the_springs(mode, tmp_path, no_plots):
    """Half of the error of no forces is left after a second of one core."""
    data = md17_npz(tmp_path / "more.npz", count=140)
    given = TINY | {"data": str(data), "train_samples": 100, "gaussians": 12, "batch_size": 10, "epochs": 12}
    given |= {"energy_weight": 0.1}
    run = train(tmp_path / "run", relaxed=mode == "relaxed", **given | {"eval_every": 12, "lr": 2e-2})
    row = run.metrics()[-1]
    assert row[f"test_{mode}"] < 0.5 * row["baseline"]
    assert row[f"test_energy_{mode}"] < 0.8 * row["baselines"]["energy"][0]
    assert row["equivariance_strict"] < 1e-4


@pytest.mark.parametrize("given", [{"relaxed": False}, {"centre": False, "bound": "frobenius"},
                                   {"filter": "table", "knots": 256, "gammas": "single"}, {"force_weight": 0.0}],
                         ids=str)
def test_other_settings_train(given, data, tmp_path, no_plots):
    run = train(tmp_path / "run", **TINY | {"data": data, "epochs": 1, "test_samples": 4} | given)
    row = run.metrics()[-1]
    assert ("gammas" in row) == given.get("relaxed", True) and row["equivariance_strict"] < 1e-4
    if "relaxed" not in given:
        assert (row["translation_relaxed"] > 1e-3) == ("centre" in given) and row["translation_strict"] < 1e-4
        assert len(row["gammas"]) == (1 if "gammas" in given else 2)


def test_each_temperature_is_measured(tmp_path, capsys, no_plots):
    root = folder(tmp_path / "3BPA")
    run = train(tmp_path / "run", **TINY | {"data": str(root), "train_samples": 16, "epochs": 1})
    found = run.evaluation()
    assert found["sets"] == ["test_300K", "test_600K", "test_1200K"]
    predictor = load(run.folder)
    test = read(root, "test", train_samples=16, valid_samples=6)
    _, forces = predictor.predict(Z, test.node["pos"].view(-1, 6, 3))
    wrong = (forces - test.node["forces"].view(-1, 6, 3)).abs()
    for i in range(3):
        error = float(wrong[test.graph["part"] == i].mean()) * 1000
        assert found["errors_strict"]["forces"][i] == pytest.approx(error, rel=1e-6)
    assert found["test_strict"] == found["errors_strict"]["forces"][0]
    report.show(run)
    shown = " ".join(capsys.readouterr().out.split())
    assert "test_1200K error (MAE), strict model" in shown and "3BPA/train_300K.xyz: CH4O; trained on 16" in shown


@pytest.mark.parametrize(("given", "message"), [
    ({"batch_size": 25}, "--batch-size must be at most the 24 training conformations, got 25; pass --batch-size 24 or"),
    ({"train_samples": 0, "test_samples": 10, "batch_size": 30}, "at most the 24 training conformations, got 30; pass"),
    ({"energy_weight": 0.0, "force_weight": 0.0}, "--energy-weight or --force-weight must be more than 0, got 0 for"),
    ({"force_weight": -1.0}, "--force-weight must be at least 0, got -1.0"),
    ({"cutoff": 0.0}, "--cutoff must be more than 0, got 0.0"),
    ({"filter": "spline"}, "--filter must be one of exact, table, got 'spline'"),
    ({"gammas": "nn"}, "--gammas must be one of layer, single, got 'nn'"),
    ({"model": "painn"}, "--model must be one of schnet, got 'painn'"),
    ({"train_samples": 40}, "train_samples must be at most the 33 of 40 frames that validation and test leave, got 40"),
    ({"data": "/nowhere"}, "nowhere must be a folder with <molecule>.npz files"),
])
def test_wrong_settings_are_named(given, message, data, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tmp_path / "run", **TINY | {"data": data} | given)


def test_other_molecules_and_no_forces_are_named(finished, tmp_path):
    other = md17_npz(tmp_path / "other.npz", z=np.array([7, 8, 1, 1, 1, 1]))
    message = "--data must hold the molecule that the run was trained on, CH4O in the same order of atoms, got Conform"
    with pytest.raises(ValueError, match=f"evaluate: {message}"):
        evaluate_run(finished.folder, data=str(other))
    still = md17_npz(tmp_path / "still.npz", F=np.zeros((40, 6, 3)))
    with pytest.raises(ValueError, match="forces of MD17 .still.npz. must differ from zero, got zero for all 24"):
        train(tmp_path / "run", **TINY | {"data": str(still)})
    for facts in ({}, {"mean": 1.0, "scale": 0.0}, {"mean": float("nan"), "scale": 1.0}):
        with pytest.raises(ValueError, match="config.json must hold mean and scale of the training data, got"):
            md17.build_model(finished.about()["config"], facts)


def test_the_command_line(tmp_path, capsys, no_plots):
    root = str(revised(tmp_path / "rmd17"))
    given = TINY | {"train_samples": 14, "molecule": "methanol", "model": "schnet", "batch_size": 7}
    argv = [text for name, value in given.items() if name not in ("task", "quiet")
            for text in (options.flag(name), str(value))]
    out = str(tmp_path / "run")
    assert cli.main(["train", "md17", "--out", out, "--data", root, "--no-centre", "--quiet", *argv]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "published split 1): CH4O; trained on 14 conformations" in shown and "meV/Å" in shown
    assert cli.main(["evaluate", out, "--json", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["sets"] == ["test"]
    capsys.readouterr()
    assert cli.main(["data", "md17", "--data", root, "--train-samples", "12", "--valid-samples", "4"]) == 0
    shown = capsys.readouterr().out
    assert "train: Conformations(12 frames of CH4O" in shown and "test: Conformations(20 frames" in shown
    assert cli.main(["train", "md17", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "b")]) == 2
    assert "get rMD17 (figshare" in capsys.readouterr().err


def test_help_names_every_option_and_preset(capsys):
    check_help("md17", md17, capsys)


def test_the_published_preset():
    config = options.make_config(md17, "schnetpack", {})
    assert (config["train_samples"], config["valid_samples"], config["batch_size"]) == (950, 50, 10)
    assert (config["cutoff"], config["lr"], config["energy_weight"], config["force_weight"]) == (5.0, 1e-3, 0.01, 0.99)
    model = md17.build_model(config, {"mean": 0.0, "scale": 1.0})
    assert len(model.interactions) == 6 and model.embedding.weight.shape[1] == 128


@real
def test_real_conformations_have_those_forces(tmp_path):
    config = config_of(str(REAL / "rmd17.npz"), molecule="ethanol", train_samples=0, test_samples=50)
    data = md17.load(config, "train")
    facts = md17.facts(data)
    assert (facts["frames"], facts["molecule"]) == (950, "C2H6O") and 0.5 < facts["scale"] < 2
    found = md17.Evaluation(config, facts, md17.load(config, "valid"), md17.load(config, "test")).fixed
    assert 500 < found["baseline"] < 1500 and 50 < found["baselines"]["energy"][0] < 300
