"""Runs of the QM9 task with SchNet: learning, resuming, predicting, its options and presets. Everything is tiny."""

import json

import numpy as np
import pytest
import torch
from qm9_toys import SUBSET, npz, write
from run_checks import check_resuming

from ace_fast.data import qm9 as read
from ace_fast.models import SchNet
from ace_fast.models.schnet import GAMMAS
from ace_fast.symmetry import random_o3
from ace_fast.train import cli, load, options, train
from ace_fast.train.evaluate import evaluate_run
from ace_fast.train.tasks import qm9
from ace_fast.train.tasks.qm9_models import MODELS, radius_of

pytestmark = pytest.mark.usefixtures("same_threads", "own_cache")
real = pytest.mark.skipif(not SUBSET.exists(), reason="shared/data is not beside this checkout")

TINY = {
    "task": "qm9", "model": "schnet", "quiet": True, "train_samples": 0, "eval_samples": 0, "layers": 2, "hidden": 16,
    "filters": 8, "gaussians": 20, "batch_size": 16, "epochs": 2, "eval_every": 1, "rotations": 2, "threads": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 generated molecules: 45, 9 and 6."""
    return str(npz(tmp_path_factory.mktemp("data") / "few.npz", count=60, listed=()))


@pytest.fixture(scope="module")
def finished(data, own_cache, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "finished", data=data, target="gap", **TINY)


def config_of(preset="demo", **given):
    return options.make_config(qm9, preset, {"model": "schnet"} | given)


def test_a_run_folder_holds_errors_plots_and_gammas(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"evaluation.json", "report.png", "report.html", "best.safetensors"} <= names
    row = finished.metrics()[-1]
    assert len(row["gammas"]) == len(row["branch_ratios"]) == 2
    assert row["equivariance_strict"] < 1e-5 < 1e-3 < row["equivariance_relaxed"]
    assert evaluate_run(finished.folder) == finished.evaluation()
    assert "<dt>model</dt><dd>schnet</dd>" in (finished.folder / "report.html").read_text()


def test_errors_are_those_of_the_predictions_in_the_reported_unit(finished, data):
    predictor, found = load(finished.folder), finished.evaluation()
    for split in ("train", "valid", "test"):
        molecules = read(data, split)
        said = predictor.predict(molecules.node["z"], molecules.node["pos"], molecules.node_offsets)
        error = (said - molecules.graph["gap"]).abs().mean() * 1000
        assert found[f"{split}_strict"] == pytest.approx(float(error), rel=1e-5)


@pytest.mark.parametrize("given", [{"gammas": "nn"}, {"filter": "table", "gammas": "single"}])
def test_ctrl_c_and_resuming_give_the_same_numbers(given, data, tmp_path, no_plots):
    given = TINY | {"data": data, "lr_schedule": "multistep", "gammas_follow": True} | given
    check_resuming(tmp_path, 4, **given)


@real
def test_training_on_real_molecules_learns_with_either_filter(tmp_path, no_plots):
    """Below two thirds of the error of the training mean within seconds, and the same from a table."""
    given = TINY | {"data": SUBSET, "train_samples": 210, "eval_samples": 60, "epochs": 5, "eval_every": 5, "lr": 1e-2,
                    "batch_size": 15, "filters": 0, "pool": "sum", "radius": 4.0, "relaxed": False}
    rows = {kind: train(tmp_path / kind, filter=kind, **given).metrics()[-1] for kind in ("exact", "table")}
    for row in rows.values():
        assert row["test_strict"] < 0.67 * row["baseline"] and row["equivariance_strict"] < 1e-5
    assert rows["table"]["test_strict"] == pytest.approx(rows["exact"]["test_strict"], rel=1e-3)


@pytest.mark.parametrize("given", [
    {"relaxed": False}, {"gammas": "nn"}, {"mode": "resilient", "gammas": "single"},
    {"dtype": "float64", "filter": "table", "knots": 99},
    {"pool": "avg", "filters": 0, "radius": 1.5}, {"standardise": False, "bound": "frobenius", "neighbours": 1},
])
def test_other_settings_train(given, data, tmp_path, no_plots):
    run = train(tmp_path / "run", **TINY | {"data": data, "epochs": 1} | given)
    row = run.metrics()[-1]
    assert ("gammas" in row) == given.get("relaxed", True) and row["equivariance_strict"] < 1e-4
    model = load(run.folder).model
    assert isinstance(model, SchNet) and model.cutoff == given.get("radius", 10.0)
    numbers_of = {"nn": 0, "single": 1, "layer": 2 * given.get("relaxed", True)}
    assert len(model.get_gammas()) == numbers_of[given.get("gammas", "layer")]


def test_raw_values_are_learned_where_they_shall(data, tmp_path, no_plots):
    """Errors, baseline and predictions are in the target's unit with and without mean and spread."""
    runs = [train(tmp_path / str(flag), **TINY | {"data": data, "epochs": 1, "standardise": flag})
            for flag in (True, False)]
    test = read(data, "test")
    for run in runs:
        said = load(run.folder).predict(test.node["z"], test.node["pos"], test.node_offsets)
        error = (said - test.graph["alpha"]).abs().mean()
        assert run.evaluation()["test_strict"] == pytest.approx(float(error), rel=1e-5)
    first, second = (run.evaluation() for run in runs)
    assert first["baseline"] == pytest.approx(second["baseline"]) and first["test_strict"] != second["test_strict"]
    config, facts = (runs[1].about()[name] for name in ("config", "facts"))
    training = qm9.Training(config, facts, qm9.load(config, "train"))
    wanted = qm9.load(config, "train").graph["target"][training.batches.order()[:16]]
    torch.testing.assert_close(next(iter(training.batches)).y, wanted.float())


def test_batches_need_no_sorting(finished):
    """The graph of a batch is the one that sorting gives, and the model says the same on it."""
    config = finished.about()["config"]
    prepared = MODELS["schnet"].prepare(qm9.without_targets(qm9.load(config, "train")), config)
    assert prepared.symmetric and prepared.edge_index.dtype == torch.uint8
    batch = prepared.batch([30, 2, 3, 17])
    model = load(finished.folder).model.eval()
    mine = model(*MODELS["schnet"].inputs(batch))
    torch.testing.assert_close(mine, model(batch.z, batch.pos, batch.batch, batch.edge_index), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine, model(batch.z, batch.pos, batch.batch), rtol=1e-6, atol=1e-6)  # its own radius


def test_predictions_depend_on_the_molecule_alone(finished, data):
    predictor = load(finished.folder)
    test = read(data, "test")
    z, pos, offsets = test.node["z"], test.node["pos"].double(), test.node_offsets
    found = predictor.predict(z, pos, offsets)
    for rotation in random_o3(2, torch.Generator().manual_seed(3), alternate=True):
        turned = pos @ rotation.T + torch.tensor([3.0, -2.0, 1.0])
        torch.testing.assert_close(predictor.predict(z, turned, offsets), found, rtol=0, atol=1e-4)
    for g, (a, b) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        backwards = torch.arange(b - 1, a - 1, -1)
        torch.testing.assert_close(predictor.predict(z[backwards], pos[backwards]), found[g], rtol=0, atol=1e-4)
    alone = predictor.predict([6], [[0.0, 0, 0]])
    assert alone.isfinite() and alone == predictor.predict([6], [[5.0, 1, 2]])
    apart = predictor.predict([6, 6], [[0.0, 0, 0], [40.0, 0, 0]])
    assert apart.isfinite() and apart != alone
    with pytest.raises(ValueError, match="predict: positions must be finite, got NaN or infinity in molecule 0"):
        predictor.predict([6], [[float("nan"), 0, 0]])
    with pytest.raises(ValueError, match="predict: atoms must be H C N O F .* got 14 in molecule 0"):
        predictor.predict([14], [[0.0, 0, 0]])


def test_more_neighbours_than_the_cap(data, tmp_path, no_plots):
    """The nearest 32 of 39; all of them where the run was trained with all."""
    pos = torch.from_numpy(np.random.default_rng(0).uniform(0, 4, (40, 3)))
    said = {}
    for cap in (32, 0):
        run = train(tmp_path / str(cap), **TINY | {"data": data, "epochs": 1, "neighbours": cap})
        predictor = load(run.folder)
        said[cap] = predictor.predict([6] * 40, pos)
        model, facts = predictor.model, predictor.facts
        model.max_num_neighbors = cap or 40
        with torch.no_grad():
            own = model(torch.full((40,), 6), pos.float())[0, 0].double() * facts["spread"] + facts["mean"]
        torch.testing.assert_close(said[cap], own, rtol=0, atol=1e-4)
    assert said[32] != said[0]  # the weights are the same: no molecule of the data has more


@pytest.mark.parametrize(("given", "message"), [
    ({"lmax_h": 2}, "--lmax-h must be left out with --model schnet, got 2; it is an option of --model segnn"),
    ({"norm": "batch"}, "--norm must be left out with --model schnet, got batch; it is an option of --model segnn"),
    ({"filter": "cubic"}, "--filter must be one of exact, table, got 'cubic'"),
    ({"gammas": "none"}, f"--gammas must be one of {', '.join(GAMMAS)}, got 'none'"),
    ({"knots": 1}, "--knots must be at least 2, got 1"),
    ({"gaussians": 1}, "--gaussians must be at least 2, got 1"),
    ({"radius": -1.0}, "--radius must be at least 0, got -1.0"),
    ({"neighbours": -1}, "--neighbours must be at least 0, got -1"),
    ({"split": "random"}, "--split must be one of cormorant, ace, got 'random'"),
])
def test_wrong_settings_are_named(given, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **TINY | {"data": data} | given)


def test_options_of_schnet_are_not_segnns():
    message = "--filter must be left out with --model segnn, got table; it is an option of --model schnet"
    with pytest.raises(ValueError, match=message):
        options.make_config(qm9, "demo", {"filter": "table"})


def test_presets_are_the_published_settings():
    paper = config_of("paper")
    assert (paper["hidden"], paper["filters"], paper["gaussians"], paper["layers"]) == (64, 0, 50, 6)
    assert (radius_of(paper), paper["neighbours"], paper["batch_size"], paper["epochs"]) == (10.0, 32, 256, 1000)
    assert (paper["lr"], paper["lr_schedule"], paper["gamma_lr"], paper["dual_lr"]) == (1e-3, "constant", 1e-3, 1e-3)
    assert (paper["split"], paper["data_seed"], paper["pool"], paper["filter"]) == ("ace", 42, "sum", "exact")
    model = qm9.build_model(paper, {"mean": 0.0, "spread": 1.0})
    branch = sum(p.numel() for p in model.branch_parameters())
    assert branch == 64 * 4 + 6 * (2 * 64 + 65 * 64) and len(model.get_gammas()) == 6
    code = config_of("original_code")
    assert {k for k in code if code[k] != paper[k]} == {"gamma_optimizer", "dual_optimizer", "standardise"}
    damped = config_of("paper_damped")
    assert {k for k in damped if damped[k] != paper[k]} == {"gamma_lr", "dual_lr", "augmentation", "bound"}
    assert set(qm9.MODEL_PRESETS["schnet"]) == set(qm9.PRESETS) and "schnet" in MODELS
    assert radius_of(options.make_config(qm9, "paper", {})) == 2.0 and radius_of(config_of(radius=5.0)) == 5.0


def test_the_command_line(data, tmp_path, capsys, no_plots):
    argv = [text for name, value in TINY.items() if name not in ("task", "quiet", "model")
            for text in (options.flag(name), str(value))]
    out = str(tmp_path / "run")
    argv += ["--model", "schnet", "--filter", "table", "--knots", "200", "--split", "ace", "--data-seed", "42",
             "--target", "U0", "--subtract-atomref", "--data", data, "--quiet"]
    assert cli.main(["train", "qm9", "--out", out, *argv]) == 0
    assert "U0, internal energy at 0 K (eV)" in capsys.readouterr().out
    assert cli.main(["evaluate", out, "--json", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["unit"] == "meV"
    water = write(tmp_path / "water.xyz", "3\nwater\nO 0 0 0.1173\nH 0 0.7572 -0.4692\nH 0 -0.7572 -0.4692\n")
    capsys.readouterr()
    assert cli.main(["predict", out, str(water)]) == 0
    assert capsys.readouterr().out.startswith("0 water: U0 ")
    assert cli.main(["data", "qm9", "--data", data, "--radius", "10", "--split", "ace"]) == 0
    assert "train: MolecularGraphs(48 molecules, " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["train", "qm9", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "presets with --model schnet:" in text and "batch_size 256" in text
