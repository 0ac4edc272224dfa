"""Runs that go on: full disks, kept states, checkpoints within epochs, loggers, older folders, wrong options."""

import errno
import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from run_checks import numbers
from test_snap import Pair, loop

from ace_fast import ACE
from ace_fast.train import cli, load, options, train
from ace_fast.train.loggers import flat
from ace_fast.train.processes import Processes, check, own_device
from ace_fast.train.progress import EpochProgress
from ace_fast.train.run import Run
from ace_fast.train.tasks import TASKS

pytestmark = pytest.mark.usefixtures("same_threads", "no_plots", "own_cache")
NBODY = {
    "num_train": 22, "num_valid": 8, "num_test": 8, "steps": 301, "frame_from": 0, "frame_to": 1, "layers": 1,
    "train_samples": 22, "batch_size": 8, "hidden": 8, "rotations": 1, "threads": 1, "eval_every": 1, "quiet": True,
    "epochs": 2, "ema": 0.9, "accumulate": 2, "norm": "batch",
}  # three steps an epoch


class Killed(BaseException):
    """Nothing in the package may catch it."""


@pytest.fixture(scope="module")
def finished(own_cache, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ace_fast.train.report.write", lambda run, result=None: None)
        return train(tmp_path_factory.mktemp("runs") / "finished", **NBODY)


@pytest.fixture
def copied(finished, tmp_path):
    return Run(shutil.copytree(finished.folder, tmp_path / "run"))


def check_same(run, finished):
    assert numbers(run) == numbers(finished)
    for name in ("best.safetensors", "weights.safetensors"):
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes()


@pytest.mark.parametrize("calls", [3, 8, 11, 12])
def test_a_full_disk_stops_the_run_and_leaves_it_whole(calls, finished, tmp_path, monkeypatch):
    """Of 18 flushes of files and of their folder."""
    done, plain = [], os.fsync

    def flush(handle):
        done.append(handle)
        if len(done) > calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flush)
        with pytest.raises(OSError, match="cannot be written .No space left on device.; .* whole: make room and go on "
                                          "with --resume"):
            train(tmp_path / "run", **NBODY)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    check_same(train(tmp_path / "run", resume=True, quiet=True), finished)


def test_a_checkpoint_within_an_epoch(finished, tmp_path, monkeypatch):
    """Killed in the second epoch after step 5, a run goes on from step 4."""
    given, plain = NBODY | {"checkpoint_every": 2}, EpochProgress.step

    def step(self):
        plain(self)
        self.count = getattr(self, "count", 0) + 1
        if self.count == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(EpochProgress, "step", step)
        with pytest.raises(Killed):
            train(tmp_path / "run", **given)
    state = Run(tmp_path / "run").load_state()
    assert (state["epoch"], state["step"]) == (1, 4) and state["versions"]["torch"] == torch.__version__
    check_same(train(tmp_path / "run", resume=True, quiet=True), finished)


def test_the_last_states_are_kept_and_stand_in(finished, tmp_path):
    run = train(tmp_path / "run", **NBODY | {"keep": 2, "checkpoint_every": 1})
    assert [path.name for path in run.states()] == ["state-000000006.safetensors", "state-000000005.safetensors"]
    run.state_path.write_bytes(run.state_path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="must be a whole safetensors file.*an earlier one is tried"):
        resumed = train(run.folder, resume=True, keep=1, quiet=True)
    check_same(resumed, finished)
    assert not resumed.states()


def test_other_versions_are_mentioned(copied, monkeypatch):
    monkeypatch.setattr("ace_fast.train.loop.versions", lambda: {"ace_fast": "0.1.0", "torch": "9.9", "numpy": "9"})
    with pytest.warns(UserWarning, match=r"the run began with torch 2\..*, numpy .* last bits"):
        train(copied.folder, resume=True, quiet=True)


def test_folders_from_before_some_settings(copied, finished):
    about = json.loads((copied.folder / "config.json").read_text())
    for name in options.LATER:
        del about["config"][name]
    del about["id"]
    (copied.folder / "config.json").write_text(json.dumps(about))
    assert load(copied.folder).epoch == load(finished.folder).epoch
    assert copied.about()["config"]["keep"] == 1 and copied.about()["id"] == "run"


def test_loggers_get_the_numbers(tmp_path, monkeypatch):
    seen = {"tensorboard": [], "wandb": [], "settings": {}}

    class Writer:
        def __init__(self, folder, purge_step):
            seen["folder"], seen["purge"] = folder, purge_step

        def add_scalar(self, name, value, step):
            seen["tensorboard"].append((name, value, step))

        def flush(self):
            pass

        def close(self):
            seen["closed"] = True

    def init(**settings):
        seen["settings"] = settings
        return SimpleNamespace(log=lambda row, step: seen["wandb"].append((row, step)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    run = train(tmp_path / "run", **NBODY | {"tensorboard": True, "wandb": True})
    row = run.metrics()[-1]
    assert ("gammas/1", row["gammas"][1], 6) in seen["tensorboard"] and seen["closed"]
    assert seen["folder"] == str(run.folder / "tensorboard")
    assert seen["wandb"][-1] == (flat(row), 6)
    name = seen["settings"]["id"]
    assert seen["settings"]["name"] == "run" and seen["settings"]["config"]["batch_size"] == 8 and seen["purge"] == 1
    train(run.folder, resume=True, quiet=True)
    assert seen["settings"]["id"] == name == run.about()["id"] and seen["purge"] == 7
    other = Run(tmp_path / "other" / "run")
    other.create("nbody", "demo", run.about()["config"])
    assert other.about()["id"] != name




def test_tensorboard_itself_writes_a_file(tmp_path):
    pytest.importorskip("tensorboard")
    run = train(tmp_path / "run", **NBODY | {"tensorboard": True, "epochs": 1})
    assert list((run.folder / "tensorboard").glob("events*"))


def test_a_logger_that_is_missing_costs_no_time(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"--wandb must be off where wandb is not installed.*pip install wandb"):
        train(tmp_path / "run", **NBODY | {"wandb": True})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("task", "given", "message"), [
    ("nbody", {"warmup": 61.0}, "--warmup must be at most the 60 epochs, got 61.0"),
    ("nbody", {"precision": "bfloat16", "dtype": "float64"}, "--precision must be full with --dtype float64, got bf"),
    ("nbody", {"cuda_graphs": True}, "--cuda-graphs must be off with --device cpu, got True"),
    ("nbody", {"cuda_graphs": True, "device": "cuda", "compile": "inductor"}, "--compile must be none with --cuda-gr"),
    ("nbody", {"cuda_graphs": True, "device": "cuda", "snap": True}, "--cuda-graphs must be off with --snap"),
    ("nbody", {"cuda_graphs": True, "device": "cuda", "relaxation": "remul"}, "--cuda-graphs must be off with --relax"),
    ("nbody", {"accumulate": 2, "relaxation": "remul", "balance": "gradnorm"}, "--accumulate must be 1 with --balance"),
    ("nbody", {"accumulate": 3}, "--accumulate must be a divisor of the 100 samples of a step, got 3"),
    ("nbody", {"ema": 1.0}, "--ema must be at most 0.99999, got 1.0"),
    ("qm9", {"model": "schnet", "gammas": "nn", "cuda_graphs": True, "device": "cuda"}, "--cuda-graphs must be off wh"),
    ("nbody", {"norm": "batch", "sync_batch_norm": True}, "--norm must be instance or none with --sync-batch-norm"),
    ("mocap", {"height": "batch", "accumulate": 2}, "--accumulate must be 1 with --height batch, whose.*got 2"),
    ("md17", {"compile": "inductor"}, "--compile must be none where forces are learned, .*got inductor"),
])
def test_contradictory_options(task, given, message):
    with pytest.raises(ValueError, match=message):
        options.make_config(TASKS[task], "demo", given)


@pytest.mark.parametrize(("task", "given", "out", "message"), [
    ("nbody", {}, None, "--out must name the run folder for several processes, got none"),
    ("nbody", {"batch_size": 100, "accumulate": 2}, "run", "--batch-size must be a multiple of 6, 3 processes times "
     "--accumulate 2, got 100; pass --batch-size 102"),
    ("nbody", {"batch_size": 6, "device": "cuda:1"}, "run", "--device must be cuda for several processes.*got cuda:1"),
    ("nbody", {"batch_size": 6, "relaxation": "remul", "balance": "gradnorm"}, "run", "--balance must be constant for"),
    ("mocap", {"height": "batch"}, "run", "--height must be train or none for several processes, got batch"),
    ("modelnet", {"sync_batch_norm": True, "recalibrate": True, "batch_size": 6}, "run", "--recalibrate must be off"),
])
def test_settings_that_do_not_fit_several_processes(task, given, out, message):
    config = options.make_config(TASKS[task], "demo", given)
    with pytest.raises(ValueError, match=message):
        check(Processes(1, 3, 1), config, out)
    check(Processes(), config, out)


def test_a_restart_without_the_folder_begins_nothing(tmp_path, monkeypatch):
    """As on a machine that does not share it."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    with pytest.raises(FileNotFoundError, match="--out must be a folder that all machines share, got .*run without a "
                                                "run at restart 2"):
        train(tmp_path / "run", **NBODY)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="--warmup must be at most"):  # what stopped the first start is said again
        train(tmp_path / "run", **NBODY | {"warmup": 9.0})


def test_every_process_has_its_gpu():
    config = {"device": "cuda"}
    assert own_device(Processes(5, 8, 1), config) == {"device": "cuda:1"}
    assert own_device(Processes(), config) == config and own_device(Processes(5, 8, 1), {"device": "cpu"})


def test_a_run_of_another_task_is_named(copied, capsys):
    assert cli.main(["train", "qm9", "--resume", "--out", str(copied.folder)]) == 2
    assert "--out must be a run of qm9, got one of nbody; resume it with: ace-fast train nbody --resume" in (
        capsys.readouterr().err)


def test_lines_show_throughput_and_time_left(tmp_path, capfd):
    with EpochProgress(0, 3, 4, samples=500) as shown:
        for epoch in (1, 2, 3):
            shown.epoch({"epoch": epoch, "train_loss": 0.5, "seconds": 0.25})
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("epoch 1/3  loss 0.50000  2000 samples/s  eta 0:00:0")
    assert lines[-1] == "epoch 3/3  loss 0.50000  2000 samples/s"


def test_replaced_weights_of_one_process_are_noticed(monkeypatch):
    model = Pair()
    ace = ACE(model)
    loop(model, ace, 2)
    Processes().check_alike(model, ace)
    monkeypatch.setattr(Processes, "gather", lambda self, x: torch.stack([x, x]))
    Processes(0, 2, 0).check_alike(model, ace)
    for place, name in ((0, "base.weight"), (-1, "moments")):
        def gather(self, x, place=place):
            other = x.clone()
            other[place] += 1
            return torch.stack([x, other])

        monkeypatch.setattr(Processes, "gather", gather)
        with pytest.raises(RuntimeError, match=f"the same weights and multipliers, got different {name}; use the same"):
            Processes(0, 2, 0).check_alike(model, ace)

