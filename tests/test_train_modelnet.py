"""Runs of the ModelNet task: data, resuming, accuracies, reports, predictions and wrong input. Everything is tiny.

The loop's tests run with a small classifier of the same interface; VN-DGCNN itself trains in one of them.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from cloud_toys import TINY, make, write_shapes
from run_checks import check_help, check_resuming, numbers

from ace_fast.train import checkpoint, cli, load, options, train
from ace_fast.train import run as run_module
from ace_fast.train.evaluate import evaluate_run
from ace_fast.train.measure import evaluating
from ace_fast.train.run import Run
from ace_fast.train.tasks import modelnet
from ace_fast.train.tasks.clouds import Clouds, accuracies

pytestmark = pytest.mark.usefixtures("same_threads")


def test_a_run_folder_holds_accuracies_curves_and_what_the_data_are(modelnet_run):
    assert {path.name for path in modelnet_run.folder.iterdir()} == {
        "config.json", "metrics.jsonl", "weights.safetensors", "best.safetensors", "state.safetensors",
        "evaluation.json", "diagnosis.json", "report.png", "report.html",
    }
    about = modelnet_run.about()
    assert about["task"] == "modelnet" and set(about["config"]) == set(modelnet.OPTIONS)
    assert len(about["facts"]["classes"]) == 10 and about["facts"]["source"] == "generated solids (not ModelNet)"
    row = modelnet_run.metrics()[-1]
    whats = ("valid", "valid_class", "test", "test_class", "equivariance")
    assert {f"{what}_{mode}" for what in whats for mode in ("strict", "relaxed")} <= set(row)
    assert row["step"] == 6 and len(row["branch_ratios"]) == 1
    assert row["equivariance_strict"] < 1e-5 < 1e-3 < row["equivariance_relaxed"]
    page = (modelnet_run.folder / "report.html").read_text()
    assert page.count("<svg") == 10 and "generated solids (not ModelNet)" in page
    assert "test accuracy, by share of points dropped, strict model" in page


def test_the_curves_are_those_of_the_best_checkpoint(modelnet_run, small_classifier):
    found = modelnet_run.evaluation()
    assert list(found["dropped_strict"]) == ["0.00", "0.15", "0.30", "0.45", "0.60", "0.75", "0.85"]
    assert list(found["rotated_relaxed"]) == ["aligned", "z", "so3"]
    # No points are dropped and so3 is the run's own rotation: the same clouds three times.
    assert found["dropped_strict"]["0.00"] == found["rotated_strict"]["so3"] == found["test_strict"]
    assert found["rotated_strict"]["aligned"] == found["rotated_strict"]["so3"]
    rows = modelnet_run.metrics()
    best = max(rows, key=lambda row: row["valid_strict"])
    assert found["epoch"] == best["epoch"] and found["valid_strict"] == best["valid_strict"]
    again = evaluate_run(modelnet_run.folder)
    assert again == found


def test_accuracies_by_hand():
    found, labels = torch.tensor([0, 0, 1, 2, 2, 1]), torch.tensor([0, 0, 0, 2, 2, 2])
    whole, mean = accuracies(found, labels, 4)
    assert whole == pytest.approx(4 / 6) and mean == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert accuracies(torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 1, 2]), 3) == pytest.approx((0.75, 0.5))


def test_measured_accuracies_are_those_of_the_model(modelnet_run, small_classifier):
    config, facts = modelnet_run.about()["config"] | {"test_rotation": "aligned"}, modelnet_run.about()["facts"]
    test = modelnet.load(config, "test")
    predictor = load(modelnet_run.folder)
    found = predictor.predict(test.points).argmax(1)
    evaluation = modelnet.Evaluation(config, facts, modelnet.load(config, "valid"), test)
    with evaluating(predictor.model, False):
        measured = evaluation.measure(predictor.model)
    right = found == test.labels
    assert measured["test"] == pytest.approx(right.double().mean().item())
    by_class = [right[test.labels == k].double().mean().item() for k in range(10)]
    assert measured["test_class"] == pytest.approx(np.mean(by_class))


def test_the_loss_spreads_the_smoothing_over_the_other_classes():
    clouds, facts = make(), {"classes": ["a", "b", "c"], "source": "zeros"}
    config = options.make_config(modelnet, "demo", TINY | {"batch_size": 6})
    training = modelnet.Training(config, facts, clouds)
    points, labels = next(iter(training.batches))
    logits = torch.randn(6, 3, dtype=torch.float64)
    target = torch.full((6, 3), 0.1, dtype=torch.float64)
    target[torch.arange(6), labels] = 0.8
    gold = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(training.loss(lambda x: logits, (points, labels)), gold)


@pytest.mark.parametrize("step", [2, 3], ids=["within_an_epoch", "at_its_end"])
def test_ctrl_c_and_resuming_give_the_same_numbers(step, small_classifier, tmp_path, no_plots):
    """Order, rotations, dropped points and dropout go on where they were."""
    given = TINY | {"drop": 0.5, "dropout": 0.5, "task": "modelnet", "quiet": True}
    check_resuming(tmp_path, step, **given)


class Killed(BaseException):
    """Nothing in the package may catch it."""


# config, facts; state, last; best, state, last; then strict and evaluation of the best checkpoint.
@pytest.mark.parametrize("writes", range(1, 9))
def test_a_kill_at_any_point_changes_nothing(writes, small_classifier, tmp_path, monkeypatch, no_plots):
    given = TINY | {"epochs": 1, "recalibrate": True, "quiet": True}
    whole, done, plain = train(tmp_path / "whole", task="modelnet", **given), [], checkpoint.write_atomic

    def write(path, content):
        if len(done) == writes:
            raise Killed
        plain(path, content)
        done.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", write)
        patch.setattr(run_module, "write_atomic", write)
        with pytest.raises(Killed):
            train(tmp_path / "run", task="modelnet", **given)
    resumed = train(tmp_path / "run", resume=True, quiet=True)
    assert numbers(resumed) == numbers(whole) and resumed.evaluation() == whole.evaluation()
    for name in ("best.safetensors", "weights.safetensors", "strict.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_batches_are_drawn_anew_each_epoch_and_resumed():
    def clouds():
        return Clouds(make().batches(6), "so3", 0.5, torch.float64, seed=5)

    first = clouds()
    epochs = [[points for points, _ in first] for _ in range(2)]
    assert all(points.dtype == torch.float64 and points.shape == (6, 32, 3) for points in epochs[0])
    again, state = clouds(), None
    for position, (points, _) in enumerate(again):
        assert torch.equal(points, epochs[0][position])
        if position == 1:
            state = again.state_dict()
            break
    other = clouds()
    other.load_state_dict(state)
    assert torch.equal(next(iter(other))[0], epochs[0][2])
    norms = [torch.cat(epoch).norm(dim=2).sort(1).values.sum() for epoch in epochs]
    assert not torch.allclose(*norms)  # other points were dropped


def test_a_last_batch_of_one_cloud_is_left_out():
    config = options.make_config(modelnet, "demo", TINY | {"batch_size": 17})
    training = modelnet.Training(config, {"classes": ["a", "b", "c"], "source": ""}, make())
    assert [len(labels) for _, labels in training.batches] == [17]
    config["batch_size"] = 16
    training = modelnet.Training(config, {"classes": ["a", "b", "c"], "source": ""}, make())
    assert [len(labels) for _, labels in training.batches] == [16, 2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_weights_are_stepped_by_the_optimizer_asked_for(optimizer, small_classifier, tmp_path, no_plots):
    run = train(tmp_path / "run", task="modelnet", quiet=True, **TINY | {"optimizer": optimizer, "momentum": 0.9})
    (first, *_), state = run.load_state()["optimizer"]["param_groups"], run.load_state()["optimizer"]["state"]
    assert ("momentum" in first) == (optimizer == "sgd")
    assert set(state[0]) == ({"momentum_buffer"} if optimizer == "sgd" else {"step", "exp_avg", "exp_avg_sq"})


def test_a_strict_run_has_no_gammas(small_classifier, tmp_path):
    run = train(tmp_path / "run", task="modelnet", quiet=True, **TINY | {"relaxed": False, "recalibrate": True})
    row = run.metrics()[-1]
    assert "gammas" not in row and "test_relaxed" not in row and row["equivariance_strict"] < 1e-5
    assert "dropped_strict" in run.evaluation() and "dropped_relaxed" not in run.evaluation()
    assert not (run.folder / "strict.safetensors").exists()
    assert "points dropped" in (run.folder / "report.html").read_text()


def test_recalibration_changes_running_statistics_alone(small_classifier, tmp_path, no_plots):
    plain = train(tmp_path / "plain", task="modelnet", quiet=True, **TINY)
    run = train(tmp_path / "run", task="modelnet", quiet=True, **TINY | {"recalibrate": True})
    # Training and the relaxed model do not notice.
    for mine, theirs in zip(run.metrics(), plain.metrics(), strict=True):
        assert all(mine[key] == theirs[key] for key in ("train_loss", "gammas", "test_relaxed", "equivariance_relaxed"))
    strict, relaxed = load(run.folder), load(run.folder, relaxed=True)
    mine, theirs = strict.model.state_dict(), relaxed.model.state_dict()
    differ = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert differ and differ <= {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
    # The statistics are those of the strict model on the training data.
    inputs = torch.cat(modelnet.Training(strict.config, strict.facts, modelnet.load(strict.config, "train")).inputs())
    size = inputs.norm(dim=1)
    with torch.no_grad():
        h = strict.model.linear1(torch.stack([size, size.square()], 2)).relu().mean(1)
    torch.testing.assert_close(mine["bn1.running_mean"], h.mean(0), rtol=1e-4, atol=1e-5)
    assert evaluate_run(run.folder) == run.evaluation()
    with pytest.raises(ValueError, match="batch norms were recalibrated without the branches.*load the run with rel"):
        strict.set_relaxed(True)


def test_vn_dgcnn_itself_trains(tmp_path, no_plots):
    given = TINY | {"train_per_class": 1, "test_per_class": 1, "epochs": 1, "optimizer": "sgd", "recalibrate": True}
    run = train(tmp_path / "run", task="modelnet", quiet=True, **given)
    (row,) = run.metrics()
    assert len(row["gammas"]) == len(row["branch_ratios"]) == 14 and row["gammas"] != [1.0] * 14
    assert 10 * row["equivariance_strict"] < 1e-4 < row["equivariance_relaxed"]
    strict, relaxed = load(run.folder), load(run.folder, relaxed=True)
    cloud = modelnet.load(strict.config, "test").points[:2]
    assert not torch.allclose(strict.predict(cloud), relaxed.predict(cloud))
    assert strict.classes[:2] == ("box", "bracket")


def test_a_file_of_shapes_is_named_and_gets_a_validation_split(small_classifier, tmp_path, capsys):
    file = write_shapes(tmp_path / "shapes40.npz")
    argv = ["train", "modelnet", "--quiet", "--out", str(tmp_path / "run"), "--data", str(file), "--num-points", "24",
            "--n-knn", "4", "--batch-size", "4", "--epochs", "1", "--valid-fraction", "0.25", "--threads", "1"]
    assert cli.main(argv) == 0
    assert "shapes40 (not ModelNet40), research use only" in capsys.readouterr().out
    assert "shapes40 (not ModelNet40), research use only" in (tmp_path / "run" / "report.html").read_text()
    other = shutil.copy(file, tmp_path / "other.npz")
    assert cli.main(["evaluate", str(tmp_path / "run"), "--data", str(other)]) == 0
    out = capsys.readouterr().out
    assert "other (shape file, not ModelNet)" in out and "trained on" in out
    config = Run(tmp_path / "run").about()["config"]
    sizes = [len(modelnet.load(config, split)) for split in ("train", "valid", "test")]
    assert sizes == [9, 3, 6]
    assert cli.main(["data", "modelnet", "--data", str(file), "--num-points", "24"]) == 0
    assert "test: PointClouds(6 clouds of 24 points, 3 classes: shapes40" in capsys.readouterr().out


def test_a_validation_split_of_the_data_is_taken(tmp_path):
    file = write_shapes(tmp_path / "own.npz", split=(0, 0, 0, 1, 2, 2))
    config = options.make_config(modelnet, "demo", TINY | {"data": str(file)})
    sizes = [len(modelnet.load(config, split)) for split in ("train", "valid", "test")]
    assert sizes == [9, 3, 6]
    valid = modelnet.load(config, "valid")
    assert valid.source == "own (shape file, not ModelNet)" and valid.labels.tolist() == [0, 1, 2]


def test_a_folder_of_meshes_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path / "cache"))
    for kind in ("cup", "bowl"):
        for split, count in (("train", 4), ("test", 1)):
            folder = tmp_path / "ModelNet2" / kind / split
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{kind}_{number}.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    given = TINY | {"data": str(tmp_path / "ModelNet2"), "classes": 2, "valid_fraction": 0.25}
    config = options.make_config(modelnet, "demo", given)
    parts = [modelnet.load(config, split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [6, 2, 2] and parts[0].classes == ("bowl", "cup")


@pytest.mark.parametrize(("given", "message"), [
    ({"n_knn": 33}, "--n-knn must be at most the 32 points of a cloud, got 33; pass more --num-points"),
    ({"batch_size": 1}, "--batch-size must be at least 2, got 1"),
    ({"batch_size": 31}, "--batch-size must be at most the 30 training clouds, got 31; pass --batch-size 30 or less"),
    ({"drop": 1.5}, "--drop must be at most 1, got 1.5"),
    ({"pooling": "sum"}, "--pooling must be one of mean, max, got 'sum'"),
    ({"test_rotation": "x"}, "--test-rotation must be one of aligned, z, so3, got 'x'"),
    ({"label_smoothing": 0.7}, "--label-smoothing must be at most 0.5, got 0.7"),
    ({"optimizer": "lion"}, "--optimizer must be one of sgd, adam, got 'lion'"),
    ({"hidden": 8}, "options must be among data, classes.*got hidden"),
    ({"preset": "paper_damped"}, "preset must be one of demo, paper, original_code, got 'paper_damped'"),
    ({"task": "molecules"}, "task must be one of nbody, modelnet, qm9, mocap, md17, got 'molecules'"),
])
def test_wrong_settings_are_named(given, message, small_classifier, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **{"task": "modelnet"} | TINY | given)


def test_missing_data_are_named(small_classifier, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere must hold class folders .* no such folder"):
        train(tmp_path / "run", task="modelnet", **TINY | {"data": str(tmp_path / "nowhere")})
    file = write_shapes(tmp_path / "few.npz")
    with pytest.raises(ValueError, match="there must be validation clouds, got none; .* or more --valid-fraction"):
        train(tmp_path / "other", task="modelnet", **TINY | {"data": str(file), "valid_fraction": 0.01})


def test_data_of_other_classes_are_refused(modelnet_run, small_classifier, tmp_path, no_plots):
    file = write_shapes(tmp_path / "own.npz")
    message = r"data must have the 10 classes of the run \(box, .*got 3 \(a, b, c, ...\); pass the --data that"
    with pytest.raises(ValueError, match=message):
        evaluate_run(modelnet_run.folder, data=str(file))
    copied = shutil.copytree(modelnet_run.folder, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        train(copied, resume=True, data=str(file))
    with pytest.raises(ValueError, match="the data must have two classes or more, got 1; pass other --data"):
        modelnet.facts(make(classes=1))


def test_damaged_files_of_a_run_are_named(modelnet_run, small_classifier, tmp_path):
    copied = shutil.copytree(modelnet_run.folder, tmp_path / "run")
    about = json.loads((copied / "config.json").read_text())
    for change, message in (({"task": "molecules"}, "must name a task of this version .*got 'molecules'"),
                            ({"facts": {}}, "must hold the classes of the data, two or more, got None; train the run"),
                            ({"facts": []}, "must hold 'facts' as dict, got list")):
        (copied / "config.json").write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=message):
            load(copied)
    (copied / "evaluation.json").write_text("{")
    with pytest.raises(ValueError, match="evaluation.json must be a JSON object, got something else .* remove it and"):
        Run(copied).evaluation()


def test_a_longer_run_measures_its_new_best(small_classifier, tmp_path, no_plots):
    given = TINY | {"lr_schedule": "constant", "recalibrate": True}
    run = train(tmp_path / "run", task="modelnet", quiet=True, **given | {"epochs": 1})
    assert run.evaluation()["epoch"] == 1 and run.strict_path.exists()
    longer = train(tmp_path / "run", resume=True, quiet=True, epochs=2)
    whole = train(tmp_path / "whole", task="modelnet", quiet=True, **given)
    assert numbers(longer) == numbers(whole) and longer.evaluation() == whole.evaluation()
    assert longer.strict_path.read_bytes() == whole.strict_path.read_bytes()


def test_help_names_every_option_and_preset(capsys):
    check_help("modelnet", modelnet, capsys)


def test_presets_are_the_published_settings():
    paper = options.make_config(modelnet, "paper", {})
    assert (paper["num_points"], paper["n_knn"], paper["batch_size"], paper["epochs"]) == (300, 20, 32, 250)
    assert (paper["optimizer"], paper["momentum"], paper["lr"], paper["gamma_lr"]) == ("sgd", 0.0, 0.1, 0.1)
    assert (paper["dual_optimizer"], paper["dual_lr"], paper["gamma_init"]) == ("sgd", 1e-4, 1.0)
    assert (paper["label_smoothing"], paper["drop"], paper["bound"]) == (0.2, 0.0, "none")
    code = options.make_config(modelnet, "original_code", {})
    assert {k for k in code if code[k] != paper[k]} == {"repo_scale", "legacy_view"}


def test_a_folder_without_a_task_is_one_of_nbody(tmp_path):
    given = {"num_train": 20, "num_valid": 20, "num_test": 20, "steps": 301, "frame_from": 0, "frame_to": 1,
             "layers": 1, "train_samples": 20, "batch_size": 10, "hidden": 8, "rotations": 1, "threads": 1, "epochs": 1}
    run = train(tmp_path / "run", quiet=True, data=tmp_path / "data", **given)
    about = json.loads((run.folder / "config.json").read_text())
    assert about.pop("task") == "nbody" and "facts" not in about
    (run.folder / "config.json").write_text(json.dumps(about))
    assert run.about()["task"] == "nbody" and load(run.folder).predict(*(torch.zeros(1, 2, n) for n in (3, 3, 1))).shape


def test_the_demo_refuses_a_folder_of_another_task(modelnet_run, capsys):
    assert cli.main(["demo", "--out", str(modelnet_run.folder)]) == 2
    assert "must hold a run of the task nbody, got one of modelnet; pass another --out" in capsys.readouterr().err
