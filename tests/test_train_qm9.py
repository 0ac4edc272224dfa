"""Runs of the QM9 task: data, learning, resuming, schedules, units, reports, and wrong input. Everything is tiny."""

import json

import numpy as np
import pytest
import torch
from qm9_toys import SUBSET, npz, sdf
from run_checks import check_help, check_resuming, numbers

from ace_fast.data import qm9 as read
from ace_fast.data.qm9_targets import HARTREE, TARGETS, atom_sums
from ace_fast.models import qm9_graph
from ace_fast.train import cli, load, loop, options, report, train
from ace_fast.train.evaluate import evaluate_run
from ace_fast.train.run import Run
from ace_fast.train.tasks import qm9
from ace_fast.train.tasks.qm9_models import MODELS, one_hot, radius_of

pytestmark = pytest.mark.usefixtures("same_threads", "own_cache")
real = pytest.mark.skipif(not SUBSET.exists(), reason="shared/data is not beside this checkout")

TINY = {
    "task": "qm9", "quiet": True, "train_samples": 0, "eval_samples": 0, "layers": 1, "hidden": 8, "lmax_attr": 1,
    "batch_size": 16, "epochs": 2, "eval_every": 1, "rotations": 2, "threads": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """60 generated molecules: 45, 9 and 6."""
    return str(npz(tmp_path_factory.mktemp("data") / "few.npz", count=60, listed=()))


@pytest.fixture(scope="module")
def finished(data, own_cache, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "finished", data=data, target="gap", **TINY)


def test_a_run_folder_holds_errors_parity_and_what_the_data_are(finished):
    assert {path.name for path in finished.folder.iterdir()} == {
        "config.json", "metrics.jsonl", "weights.safetensors", "best.safetensors", "state.safetensors",
        "evaluation.json", "diagnosis.json", "report.png", "report.html",
    }
    about = finished.about()
    assert about["task"] == "qm9" and set(about["config"]) == set(qm9.OPTIONS)
    assert about["facts"]["source"] == "few (.npz)" and about["facts"]["molecules"] == 45
    rows = finished.metrics()
    assert [row["step"] for row in rows] == [3, 6]
    whats, modes = ("valid", "test", "equivariance"), ("strict", "relaxed")
    assert {f"{what}_{mode}" for what in whats for mode in modes} <= set(rows[0])
    assert (rows[0]["unit"], rows[0]["target"]) == ("meV", "gap")
    assert len(rows[0]["gammas"]) == len(rows[0]["branch_ratios"]) == 2
    assert rows[-1]["equivariance_strict"] < 1e-5 < 1e-3 < rows[-1]["equivariance_relaxed"]
    found = finished.evaluation()
    assert {len(values) for mode in modes for values in found[f"parity_{mode}"].values()} == {6}
    best = min(rows, key=lambda row: row["valid_strict"])
    assert found["epoch"] == best["epoch"] and found["test_strict"] == best["test_strict"]
    page = (finished.folder / "report.html").read_text()
    assert page.count("<svg") == 10 and "few (.npz); trained on 45 molecules" in page
    assert f"{found['test_strict']:.5g} meV" in page and "gap, lumo - homo (eV)" in page
    assert evaluate_run(finished.folder) == found


def test_errors_are_those_of_the_predictions_in_the_reported_unit(finished, data):
    config = finished.about()["config"]
    predictor, found = load(finished.folder), finished.evaluation()
    whole = {split: read(data, split) for split in ("train", "valid", "test")}
    for split, molecules in whole.items():
        said = predictor.predict(molecules.node["z"], molecules.node["pos"], molecules.node_offsets)
        error = (said - molecules.graph["gap"]).abs().mean() * 1000
        assert found[f"{split}_strict"] == pytest.approx(float(error), rel=1e-5)
    baseline = (whole["test"].graph["gap"] - whole["train"].graph["gap"].mean()).abs().mean() * 1000
    assert found["baseline"] == pytest.approx(float(baseline), rel=1e-9)
    np.testing.assert_allclose(found["parity_strict"]["target"], whole["test"].graph["gap"], rtol=1e-12)
    facts = qm9.facts(qm9.load(config, "train"))
    y = whole["train"].graph["gap"]
    assert facts["mean"] == pytest.approx(float(y.mean()))
    assert facts["spread"] == pytest.approx(float((y - y.mean()).abs().mean()))


@real
def test_training_on_real_molecules_learns(tmp_path, no_plots):
    """Below two thirds of the error of the training mean within 20 s of one core."""
    given = TINY | {"data": SUBSET, "train_samples": 400, "eval_samples": 100, "epochs": 8, "eval_every": 8}
    given |= {"layers": 2, "hidden": 16, "lmax_attr": 2, "batch_size": 20, "lr": 5e-3}
    run = train(tmp_path / "run", **given)
    row = run.metrics()[-1]
    assert row["unit"] == "a0^3" and 5 < row["baseline"] < 8
    assert row["test_strict"] < 0.67 * row["baseline"] and row["test_relaxed"] < 0.67 * row["baseline"]
    assert row["equivariance_strict"] < 1e-5


@pytest.mark.parametrize("step", [4, 6], ids=["within_an_epoch", "at_its_end"])
@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
def test_ctrl_c_and_resuming_give_the_same_numbers(step, schedule, data, tmp_path, no_plots):
    given = TINY | {"data": data, "epochs": 3, "lr_schedule": schedule, "gammas_follow": True, "mode": "resilient"}
    check_resuming(tmp_path, step, **given)


@pytest.mark.parametrize("epochs", [2, 5, 11, 600])
def test_multistep_is_torchs(epochs):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=3e-3)
    milestones = [int(0.8 * epochs), int(0.9 * epochs)]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    for epoch in range(epochs):
        for step in (0, 6):
            mine = 3e-3 * loop.course("multistep", 7 * epoch + step, 7, epochs)
            assert mine == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_the_gammas_follow_the_schedule_where_they_shall(data, tmp_path, no_plots):
    assert loop.course("multistep", 0, 3, 1) == 1.0  # a milestone at 0 is left out
    given = TINY | {"data": data, "epochs": 10, "eval_every": 10, "lr_schedule": "multistep"}
    for follow, last in ((True, 1e-2), (False, 1.0)):
        run = train(tmp_path / str(follow), gammas_follow=follow, **given)
        assert [row["lr"] / 3e-3 for row in run.metrics()] == pytest.approx([1.0] * 8 + [0.1, 0.01])
        rule = run.load_state()["relaxation"]["rule"]
        assert rule["lr"] == pytest.approx(last * 5e-3) and rule["slack_lr"] == pytest.approx(last * 5e-3)
        assert rule["dual_lr"] == 5e-3


def test_atom_references_are_subtracted_and_added_back(data, tmp_path, no_plots):
    given = TINY | {"data": data, "target": "U0", "epochs": 1}
    run = train(tmp_path / "run", subtract_atomref=True, **given)
    plain = read(data, "train")
    less = plain.graph["U0"] - torch.from_numpy(atom_sums("U0", plain.node["z"].numpy(), plain.node_offsets.numpy()))
    assert run.about()["facts"]["mean"] == pytest.approx(float(less.mean()))
    predictor, test = load(run.folder), read(data, "test")
    said = predictor.predict(test.node["z"], test.node["pos"], test.node_offsets)
    error = (said - test.graph["U0"]).abs().mean() * 1000
    assert run.evaluation()["test_strict"] == pytest.approx(float(error), rel=1e-6)
    np.testing.assert_allclose(run.evaluation()["parity_strict"]["target"], test.graph["U0"], rtol=1e-12)
    np.testing.assert_allclose(run.evaluation()["parity_strict"]["predicted"], said, rtol=1e-6)
    with pytest.raises(ValueError, match="--subtract-atomref must be off for a target without .* got mu; U0, U, H"):
        train(tmp_path / "other", **given | {"target": "mu"}, subtract_atomref=True)


def test_total_energies_keep_their_digits(data):
    """float32 would round them to 1 meV."""
    config = options.make_config(qm9, "demo", {k: v for k, v in TINY.items() if k not in ("task", "quiet")} | {
        "data": data, "target": "U0"})
    train_data, test = qm9.load(config, "train"), qm9.load(config, "test")
    facts = qm9.facts(train_data)
    split = qm9.Evaluation(config, facts, test, test)._splits["test"]
    found = split.value(split.scaled, facts["mean"], facts["spread"])
    np.testing.assert_allclose(found, test.graph["target"], rtol=1e-14)


def test_attributes_computed_once_are_those_of_each_batch(finished, monkeypatch):
    config = finished.about()["config"]
    molecules = qm9.without_targets(qm9.load(config, "train"))
    for together in (4, 4_096):
        monkeypatch.setattr("ace_fast.train.tasks.qm9_models._PREPARED", together)
        prepared = MODELS["segnn"].prepare(molecules, config)
        index = [30, 2, 3, 17]
        mine, batch = prepared.batch(index), molecules.batch(index)
        batch.x = one_hot(batch.z, torch.float32)
        graph = qm9_graph(batch, config["lmax_attr"])
        for name in ("x", "node_attr", "edge_attr", "additional_message_features"):
            torch.testing.assert_close(getattr(mine, name), getattr(graph, name), rtol=1e-6, atol=1e-6)
        assert torch.equal(mine.edge_index, batch.edge_index)


def test_the_loss_is_the_error_over_the_spread(finished):
    config, facts = finished.about()["config"], finished.about()["facts"]
    molecules = qm9.load(config, "train")
    training = qm9.Training(config, facts, molecules)
    batch = next(iter(training.batches))
    order = training.batches.order()[:16]
    wanted = (molecules.graph["target"][order] - facts["mean"]) / facts["spread"]
    torch.testing.assert_close(batch.y.double(), wanted, rtol=1e-6, atol=1e-6)
    loss = training.loss(lambda inputs: torch.full((16, 1), 0.25), batch)
    assert float(loss) == pytest.approx(float((0.25 - wanted).abs().mean()), rel=1e-5)


def test_one_hot_columns_are_h_c_n_o_f():
    assert one_hot(torch.tensor([1, 6, 7, 8, 9], dtype=torch.uint8), torch.float64).equal(torch.eye(5).double())


@pytest.mark.parametrize("given", [{"relaxed": False}, {"mode": "resilient"}, {"dtype": "float64", "norm": "batch"},
                                   {"pool": "sum", "norm": "none", "lmax_h": 0}])
def test_other_settings_train(given, data, tmp_path, no_plots):
    run = train(tmp_path / "run", **TINY | {"data": data, "epochs": 1} | given)
    row = run.metrics()[-1]
    assert ("gammas" in row) == given.get("relaxed", True) and row["equivariance_strict"] < 1e-5
    assert load(run.folder).relaxed == (given.get("mode") == "resilient")


def test_samples_are_the_first_of_each_split(data, tmp_path):
    given = {"data": data, "train_samples": 20, "eval_samples": 4, "batch_size": 20}
    config = options.make_config(qm9, "demo", given)
    for split, count in (("train", 20), ("valid", 4), ("test", 4)):
        whole, found = read(data, split), qm9.load(config, split)
        assert found.graph["gdb_id"].tolist() == whole.graph["gdb_id"].tolist()[:count] and len(found) == count


@pytest.mark.parametrize(("given", "message"), [
    ({"target": "mass"}, "--target must be one of mu, alpha, homo, lumo, gap, r2, zpve, U0, U, H, .* got 'mass'"),
    ({"radius": -1.0}, "--radius must be at least 0, got -1.0"),
    ({"batch_size": 46}, "--batch-size must be at most the 45 training molecules, got 46; pass --batch-size 45 or"),
    ({"train_samples": 8}, "--batch-size must be at most the 8 training molecules, got 16; .* or more --train-samples"),
    ({"model": "gcn"}, "--model must be one of segnn, schnet, got 'gcn'"),
    ({"lr_schedule": "linear"}, "--lr-schedule must be one of constant, cosine, multistep, step, got 'linear'"),
    ({"lmax_attr": 9}, "--lmax-attr must be at most 6, got 9"),
    ({"data": "/nowhere"}, "nowhere must hold gdb9.sdf and gdb9.sdf.csv"),
])
def test_wrong_settings_are_named(given, message, data, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tmp_path / "run", **TINY | {"data": data} | given)


def test_a_target_that_says_nothing_is_refused(data, tmp_path):
    with np.load(data) as archive:
        arrays = dict(archive)
    arrays["targets"][:, 1] = 0.1
    np.savez(tmp_path / "same.npz", **arrays)
    message = "--target must differ between the training molecules, got 0.1.* for all 45; choose another target or give"
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", data=tmp_path / "same.npz", **TINY)
    few = {name: arrays[name][..., :12] for name in ("targets", "target_names", "target_units")}
    np.savez(tmp_path / "few.npz", **arrays | few)
    with pytest.raises(ValueError, match=r"--target must be one that few \(.npz\) has, mu, .*, G_atom, got A; choose"):
        train(tmp_path / "other", data=tmp_path / "few.npz", target="A", **TINY)


def test_damaged_facts_are_named(finished, tmp_path):
    about = finished.about()
    for facts in ({}, {"mean": 1.0, "spread": 0.0}, {"mean": float("nan"), "spread": 1.0}):
        with pytest.raises(ValueError, match="config.json must hold mean and spread of the training data, got"):
            qm9.build_model(about["config"], facts)


def test_the_command_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "write", lambda run, result=None: None)
    argv = [text for name, value in TINY.items() if name not in ("task", "quiet")
            for text in (options.flag(name), str(value))]
    out = str(tmp_path / "run")
    argv += ["--model", "segnn", "--target", "Cv", "--subtract-atomref", "--data", data, "--quiet"]
    assert cli.main(["train", "qm9", "--out", out, *argv]) == 0
    shown = capsys.readouterr().out
    assert "Cv, heat capacity at 298.15 K (cal/(mol K))" in shown and "test error of the training mean" in shown
    assert cli.main(["evaluate", out, "--json", str(tmp_path / "e.json")]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["unit"] == "cal/(mol K)"
    assert "test error (MAE), relaxed model" in capsys.readouterr().out
    other = sdf(tmp_path / "raw", count=24)
    assert cli.main(["evaluate", out, "--data", str(other)]) == 0
    assert "QM9 (sdf); trained on 45 molecules" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["data", "qm9", "--data", str(other), "--radius", "1.5"]) == 0
    shown = capsys.readouterr()
    assert "train: MolecularGraphs(16 molecules, " in shown.out and "test: MolecularGraphs(2 molecules" in shown.out
    assert cli.main(["train", "qm9", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "b")]) == 2
    assert "get gdb9.sdf and gdb9.sdf.csv" in capsys.readouterr().err


def test_help_names_every_option_and_preset(capsys):
    check_help("qm9", qm9, capsys)


def test_presets_are_the_published_settings():
    paper = options.make_config(qm9, "paper", {})
    assert (paper["target"], radius_of(paper), paper["batch_size"], paper["epochs"]) == ("alpha", 2.0, 1024, 600)
    assert (paper["lr"], paper["lr_schedule"], paper["dual_lr"], paper["gamma_init"]) == (6e-4, "multistep", 1e-2, 1.0)
    assert (paper["norm"], paper["pool"], paper["layers"]) == ("instance", "avg", 5)
    assert (paper["train_samples"], paper["eval_samples"], paper["subtract_atomref"]) == (0, 0, False)
    model = qm9.build_model(paper, {"mean": 0.0, "spread": 1.0})
    assert str(model.hidden_irreps) == "18x0e+18x1o+18x2e" and str(model.edge_attr_irreps) == "1x0e+1x1o+1x2e+1x3o"
    assert len(model.get_gammas()) == 10
    code = options.make_config(qm9, "original_code", {})
    assert {k for k in code if code[k] != paper[k]} == {"gamma_optimizer", "dual_optimizer"}


def test_targets_have_the_units_that_a_report_names():
    assert {target.unit for target in TARGETS.values()} == {"D", "a0^3", "eV", "a0^2", "cal/(mol K)", "GHz"}
    assert HARTREE == pytest.approx(27.211386246)


def test_resuming_keeps_the_facts(data, tmp_path, no_plots):
    given = TINY | {"data": data, "lr_schedule": "constant"}
    short = train(tmp_path / "run", **given | {"epochs": 1})
    longer = train(tmp_path / "run", resume=True, quiet=True, epochs=2)
    whole = train(tmp_path / "whole", **given)
    assert numbers(longer) == numbers(whole) and Run(tmp_path / "run").about()["facts"] == short.about()["facts"]
