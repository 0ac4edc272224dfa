"""Runs of the N-body task: folders, resuming, measurements, predictions, and wrong input. Everything is tiny."""

import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from run_checks import interrupt_at, numbers

import ace_fast
from ace_fast.data import FlatDataset
from ace_fast.models import nbody_graph
from ace_fast.train import checkpoint, load, options, train
from ace_fast.train.progress import EpochProgress
from ace_fast.train.run import Run
from ace_fast.train.tasks import nbody

TINY = {
    "num_train": 40, "num_valid": 20, "num_test": 20, "steps": 301, "frame_from": 0, "frame_to": 1, "layers": 1,
    "train_samples": 40, "batch_size": 10, "hidden": 8, "eval_every": 2, "rotations": 2, "threads": 1, "epochs": 3,
}


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Options of a run of a second; the trajectories are simulated once for the session."""
    before = torch.get_num_threads()
    yield TINY | {"data": str(tmp_path_factory.mktemp("data"))}
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(settings, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "finished", **settings)


def test_a_run_folder_holds_settings_metrics_checkpoints_and_plots(finished):
    assert {path.name for path in finished.folder.iterdir()} == {
        "config.json", "metrics.jsonl", "weights.safetensors", "best.safetensors", "state.safetensors", "report.png",
        "report.html", "diagnosis.json",
    }
    about = finished.about()
    assert about["preset"] == "demo" and set(about["config"]) == set(nbody.OPTIONS)
    assert {"ace_fast", "torch", "e3nn", "python"} <= set(about["versions"]) and about["device_name"]
    rows = finished.metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3] and [row["step"] for row in rows] == [4, 8, 12]
    always = {"train_loss", "lr", "gammas", "multipliers", "slacks", "seconds"}
    measured = {f"{what}_{mode}" for what in ("valid", "test", "equivariance") for mode in ("strict", "relaxed")}
    assert always <= set(rows[0]) and not measured & set(rows[0])
    assert always | measured | {"branch_ratios"} <= set(rows[1]) and measured <= set(rows[2])
    assert all(len(rows[2][key]) == 2 for key in ("gammas", "multipliers", "slacks", "branch_ratios"))
    page = (finished.folder / "report.html").read_text()
    assert page.count("<svg") == 8 and f"{rows[2]['test_strict']:.5f}" in page


def test_an_evaluation_says_what_the_gates_found(finished):
    found, row = finished.diagnosis(), finished.metrics()[-1]
    assert [gate["name"] for gate in found["gates"]] == ["layers.0.gammas.0", "layers.0.gammas.1"]
    assert found["step"] == 12 and found["error"] == row["equivariance_relaxed"] < found["bound"]
    assert row["verdicts"] == ["undecided"] * 2 and row["snapped"] == [False] * 2
    assert row["equivariance_bound"] == found["bound"] and row["truncation"] == found["truncation"]
    assert all(len(row[key]) == 2 for key in ("equivariant_shares", "amplifications", "branch_ratios"))
    assert "2 undecided; 0 switched off" in (finished.folder / "report.html").read_text()


def test_branches_are_switched_off_in_training_and_stay_off_when_resumed(settings, tmp_path):
    options = settings | {"lr_schedule": "constant", "snap": True, "tolerance": 1e9, "gate_patience": 2, "epochs": 2,
                          "look_every": 1, "eval_every": 1, "gamma_groups": "*.0: mode=resilient rho=2",
                          "dual_warmup": 5}
    whole = train(tmp_path / "whole", **options)
    row = whole.metrics()[-1]
    assert row["verdicts"] == ["symmetric"] * 2 and row["equivariance_relaxed"] == row["equivariance_strict"]
    assert row["gammas"][1] == row["branch_ratios"][1] == 0 and row["snapped"][1] and row["truncation"] < 1e-3
    kept = load(whole.folder)  # the resilient branch; that of the other gamma, constrained to 0, is dropped
    assert kept.relaxed and kept.model.layers[0].snapped == (False, True)
    assert load(whole.folder, relaxed=True).model.layers[0].snapped == (False, False)
    train(tmp_path / "part", **options | {"epochs": 1})
    train(tmp_path / "part", resume=True, epochs=2)
    for one, other in zip(whole.metrics(), Run(tmp_path / "part").metrics(), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_training_learns_and_the_strict_model_is_equivariant(finished):
    rows = finished.metrics()
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    assert rows[-1]["equivariance_strict"] < 1e-5 < 1e-3 < rows[-1]["equivariance_relaxed"]


def test_the_first_gamma_step_is_the_one_of_algorithm_1(settings, tmp_path, no_plots):
    run = train(tmp_path / "run", **settings | {"epochs": 1, "batch_size": 40, "augmentation": 0.0, "bound": "none"})
    (row,) = run.metrics()
    assert row["multipliers"] == pytest.approx([5e-3, 5e-3])  # eta_d gamma(0)
    assert row["gammas"] != [1.0, 1.0] and row["gammas"] == pytest.approx([1.0, 1.0], abs=5e-3)


@pytest.mark.parametrize("step", [5, 8], ids=["within_an_epoch", "at_its_end"])
def test_ctrl_c_keeps_a_checkpoint_and_resuming_gives_the_same_numbers(
    step, finished, settings, tmp_path, monkeypatch, no_plots
):
    interrupt_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after {step} steps.*--resume --out"):
        train(tmp_path / "run", **settings)
    state = Run(tmp_path / "run").load_state()
    assert state["step"] == step and state["epoch"] == step // 4
    assert load(tmp_path / "run", "last").epoch == step // 4
    monkeypatch.undo()
    resumed = train(tmp_path / "run", resume=True)
    assert numbers(resumed) == numbers(finished)
    for mine, theirs in zip(load(resumed.folder).model.parameters(), load(finished.folder).model.parameters(),
                            strict=True):
        assert torch.equal(mine, theirs)


def test_a_second_ctrl_c_stops_at_once(settings, tmp_path, monkeypatch, no_plots):
    def twice(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EpochProgress, "step", twice)
    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        train(tmp_path / "run", **settings)
    assert Run(tmp_path / "run").load_state()["step"] == 0


def test_resuming_after_a_kill_measures_unfinished_lines_again(finished, settings, tmp_path, no_plots):
    shorter = train(tmp_path / "run", **settings | {"lr_schedule": "constant", "epochs": 1})
    whole = train(tmp_path / "whole", **settings | {"lr_schedule": "constant", "epochs": 2})
    with open(shorter.folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "train_loss": 7.0, "step": 8}\n{"epoch": 3, "tra')
    resumed = train(shorter.folder, resume=True, epochs=2)
    # The shorter run measured its last epoch, which the longer one does not.
    assert numbers(resumed)[1:] == numbers(whole)[1:]
    assert resumed.metrics()[0]["train_loss"] == whole.metrics()[0]["train_loss"]


def test_resuming_a_finished_run_changes_nothing(finished, no_plots):
    before = numbers(finished)
    assert numbers(train(finished.folder, resume=True)) == before


@pytest.mark.parametrize("change", [{"epochs": 4}, {"lr": 0.1}, {"hidden": 16}])
def test_a_resumed_run_keeps_its_settings(change, finished):
    (name, value), = change.items()
    with pytest.raises(ValueError, match=f"--{name} must be .* as in the run that is resumed, got {value}.*--out"):
        train(finished.folder, resume=True, **change)


def test_resuming_needs_a_run(finished, tmp_path):
    with pytest.raises(ValueError, match="--resume needs the folder of the run: pass it as --out"):
        train(resume=True)
    with pytest.raises(FileNotFoundError, match="must be a run folder, got one without config.json"):
        train(tmp_path, resume=True)
    for name in ("config.json", "weights.safetensors"):
        shutil.copy(finished.folder / name, tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold a checkpoint to resume, got none.*another --out"):
        train(tmp_path, resume=True)


def test_the_fast_and_the_reference_backend_train_alike(settings, tmp_path, no_plots):
    """50 steps in float64; the loss of every epoch, and the gammas."""
    assert ace_fast.which("tensor_product", torch.zeros(1)) == "cpu"
    curves = []
    for backend in ("auto", "reference"):
        wanted = {"backend": backend, "dtype": "float64", "epochs": 25, "batch_size": 20, "eval_every": 25}
        rows = train(tmp_path / backend, **settings | wanted).metrics()
        curves.append(np.array([[row["train_loss"], *row["gammas"]] for row in rows]))
    assert rows[-1]["step"] == 50
    np.testing.assert_allclose(*curves, rtol=1e-8)


def test_a_strict_model_trains_without_gammas(settings, tmp_path):
    run = train(tmp_path / "run", **settings | {"relaxed": False, "epochs": 2})
    row = run.metrics()[-1]
    assert "gammas" not in row and "test_relaxed" not in row and row["equivariance_strict"] < 1e-5
    assert ">Gammas<" not in (run.folder / "report.html").read_text()
    with pytest.raises(ValueError, match="relaxed must be False for a model without branches, got True"):
        load(run.folder, relaxed=True)


def test_the_resilient_mode_predicts_with_its_branches(settings, tmp_path, no_plots):
    run = train(tmp_path / "run", **settings | {"mode": "resilient", "epochs": 1, "batch_size": 20})
    assert min(run.metrics()[-1]["slacks"]) >= 0 and load(run.folder).relaxed
    assert not load(run.folder, relaxed=False).relaxed


def test_a_diverging_run_keeps_its_last_good_checkpoint(settings, tmp_path, no_plots):
    with pytest.raises(FloatingPointError, match="loss must stay finite, got NaN.*last good checkpoint.*smaller --lr"):
        train(tmp_path / "run", **settings | {"lr": 1e30})
    predictor = load(tmp_path / "run")
    assert all(bool(p.isfinite().all()) for p in predictor.model.parameters())
    assert Run(tmp_path / "run").load_state()["epoch"] == 0


def test_a_run_folder_is_never_overwritten(finished, settings, tmp_path):
    before = (finished.folder / "config.json").read_text()
    with pytest.raises(FileExistsError, match="exists; continue it with --resume or pass another --out"):
        train(finished.folder, **settings)
    assert (finished.folder / "config.json").read_text() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="exists; continue it"):
        train(tmp_path / "file", **settings)


def test_a_place_without_write_permission_is_named(settings, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made .*; pass --out a folder you may write to"):
        train(tmp_path / "file" / "run", **settings)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="cannot be written .Permission denied.; pass --out"):
        checkpoint.write_atomic(tmp_path / "a.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("given", "message"), [
    ({"preset": "fast"}, "preset must be one of demo, paper.*got 'fast'"),
    ({"learning_rate": 1.0}, "options must be among .*got learning_rate"),
    ({"lr": 0.0}, "--lr must be more than 0, got 0.0"),
    ({"lr": math.nan}, "--lr must be finite, got nan"),
    ({"epochs": 0}, "--epochs must be at least 1, got 0"),
    ({"epochs": 1.5}, "--epochs must be int, got 1.5"),
    ({"norm": "layer"}, "--norm must be one of none, batch, instance, got 'layer'"),
    ({"hidden": 7}, "--hidden must be even, got 7"),
    ({"train_samples": 41}, "--train-samples must be at most the 40 training trajectories, got 41.*--num-train"),
    ({"batch_size": 41}, "--batch-size must be at most the 40 training samples, got 41.*--batch-size 40 or less"),
    ({"device": "tpu0"}, "--device must be cpu or a GPU that is present, got 'tpu0'.*use --device cpu"),
    ({"device": "meta"}, "--device must be cpu or a GPU that is present, got 'meta' .*meta tensors.*use --device cpu"),
    ({"lmax_attr": 30}, "--lmax-attr must be at most 6, got 30"),
    ({"seed": 2**63}, "--seed must be at most 9223372036854775807, got 9223372036854775808"),
    ({"data_seed": 10**20}, "--data-seed must be at most 9223372036854775807"),
    ({"threads": 10**6}, "--threads must be at most 1024, got 1000000"),
    ({"frame_to": 9}, "frames must be two of 0 .. 2 in order, got .0, 9."),
])
def test_wrong_settings_are_named(given, message, settings, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **settings | given)


def test_nan_in_the_data_is_found(finished, settings, monkeypatch):
    config = finished.about()["config"]
    plain = nbody.nbody

    def spoilt(*arguments, **named):
        data = plain(*arguments, **named)
        data.node["velocity"][7] = math.nan
        return data

    monkeypatch.setattr(nbody, "nbody", spoilt)
    with pytest.raises(ValueError, match="'vel' must be finite, got NaN or infinity first in graph 1; repair"):
        nbody.load(config, "test")


def test_a_checkpoint_of_another_model_is_refused(finished, settings, tmp_path, no_plots):
    wider = train(tmp_path / "wider", **settings | {"hidden": 16, "layers": 2, "epochs": 1})
    folder = shutil.copytree(finished.folder, tmp_path / "mixed")
    shutil.copy(wider.folder / "best.safetensors", folder / "best.safetensors")
    with pytest.raises(ValueError, match=r"best.safetensors must hold the weights of this model, got those of another: "
                                         r"layers.1.* is not in this model.* and \d+ more; .*config.json"):
        load(folder)
    shutil.copy(wider.state_path, folder / "state.safetensors")
    with pytest.raises(ValueError, match="must hold the weights of this model"):
        train(folder, resume=True)


def test_damaged_and_missing_files_are_named(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    whole = (folder / "best.safetensors").read_bytes()
    (folder / "best.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="best.safetensors must be a whole safetensors file, got a damaged one"):
        load(folder)
    with pytest.raises(ValueError, match="checkpoint must be one of best, last, got 'first'"):
        load(folder, "first")
    (folder / "best.safetensors").unlink()
    assert load(folder).epoch == 3  # the last one stands in
    (folder / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file .*weights.safetensors"):
        load(folder)
    with pytest.raises(ValueError, match="must hold a training state, got other tensors"):
        checkpoint.load_tree(finished.folder / "best.safetensors")
    about = json.loads((folder / "config.json").read_text())
    without = {name: value for name, value in about.items() if name != "config"}
    for text, message in (("{", "must be JSON, got text that does not parse"),
                          (json.dumps(without), "must hold 'config' as dict, got nothing; repair that file"),
                          (json.dumps(about | {"versions": [1]}), "must hold 'versions' as dict, got list; repair"),
                          (json.dumps(about | {"config": about["config"] | {"hidden": "8"}}),
                           "settings in their range, got others .*--hidden must be int, got '8'.*repair that file"),
                          (json.dumps(about | {"format": 0}), "must be of format 1, got another"),
                          (json.dumps(about | {"config": {}}), "must hold every setting, got none for data")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(folder)


def test_trees_come_back_as_they_were(tmp_path):
    tree = {"a": torch.arange(3), "b": {0: {"c": torch.tensor(1.5, dtype=torch.float64)}, "d": None},
            "e": [1, 2.5, "x", True], "f": (0.9, 0.999), "g": torch.zeros(0, 2), "inf": math.inf}
    tree["again"] = tree["a"][1:]
    checkpoint.save_tree(tmp_path / "t", tree)
    back = checkpoint.load_tree(tmp_path / "t")
    assert torch.equal(back.pop("a"), tree.pop("a")) and torch.equal(back.pop("again"), tree.pop("again"))
    assert back.pop("g").shape == tree.pop("g").shape
    assert back["b"][0].pop("c").item() == tree["b"][0].pop("c").item()
    assert back == tree and type(back["f"]) is tuple
    with pytest.raises(TypeError, match="/a must be tensors and plain values, got set"):
        checkpoint.save_tree(tmp_path / "t", {"a": {1}})


def test_attributes_computed_once_are_those_of_each_batch(finished):
    config = finished.about()["config"]
    data = nbody.load(config, "train")
    prepared = nbody.with_attributes(data, config)
    index = [3, 0, 31]
    mine, graph = prepared.batch(index), nbody_graph(data.batch(index))
    for name in ("x", "node_attr", "edge_attr", "additional_message_features"):
        torch.testing.assert_close(getattr(mine, name), getattr(graph, name), rtol=1e-6, atol=1e-6)
    assert torch.equal(mine.edge_index, data.batch(index).edge_index)


def test_edges_within_ragged_graphs():
    data = nbody.add_edges({"x": torch.zeros(6)}, torch.tensor([0, 1, 1, 4, 6]))
    batch = data.batch(range(4))
    wanted = [(s, t) for t in range(6) for s in range(6) if s != t and batch.batch[s] == batch.batch[t]]
    assert sorted(wanted) == sorted(map(tuple, batch.edge_index.T.tolist()))


def test_the_linear_baseline_by_hand():
    node = {"pos": torch.zeros(2, 3), "vel": torch.ones(2, 3), "target": torch.full((2, 3), 1.5)}
    assert nbody.linear_baseline(FlatDataset(node, torch.tensor([0, 2])), time=1.0) == pytest.approx(0.25)


def test_a_cosine_ends_near_zero(finished):
    lrs = [row["lr"] for row in finished.metrics()]
    first = nbody.OPTIONS["lr"].default
    assert first > lrs[0] > lrs[1] > lrs[2] > 0.01 * first and lrs[2] < 0.05 * first


def test_presets():
    paper = options.make_config(nbody, "paper", {})
    assert (paper["lr"], paper["gamma_lr"], paper["dual_lr"], paper["augmentation"]) == (9e-4, 9e-4, 8e-4, 0.0)
    assert (paper["epochs"], paper["batch_size"], paper["train_samples"], paper["bound"]) == (2000, 100, 3000, "none")
    demo = options.make_config(nbody, "demo", {"epochs": 7})
    assert (demo["gamma_lr"], demo["dual_lr"], demo["augmentation"]) == (5e-3, 5e-3, 1.0)
    assert (demo["bound"], demo["train_samples"], demo["epochs"]) == ("spectral", 3000, 7)
    assert set(nbody.PRESETS) == set(nbody.PRESET_HELP)


def test_training_runs_outside_the_main_thread(settings, tmp_path, no_plots):
    from threading import Thread

    thread = Thread(target=lambda: train(tmp_path / "run", quiet=True, **settings | {"epochs": 1}))
    thread.start()
    thread.join()
    assert Run(tmp_path / "run").metrics()[0]["step"] == 4


def test_progress_is_a_line_per_tenth_outside_a_terminal(capfd):
    with EpochProgress(0, 20, 4) as shown:
        for epoch in range(1, 21):
            shown.epoch({"epoch": epoch, "train_loss": 0.5, "gammas": [0.25, -0.75]})
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "epoch 20/20  loss 0.50000  max|gamma| 0.750"
