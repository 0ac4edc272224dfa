"""The command `ace-fast`: every subcommand on a tiny run, exit codes, messages, Ctrl-C."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ace_fast.train import cli, demo, load, options
from ace_fast.train.progress import EpochProgress
from ace_fast.train.run import Run
from ace_fast.train.tasks import nbody

MAIN = "import sys; from ace_fast.train.cli import main; sys.exit(main(sys.argv[1:]))"
TINY = {
    "num_train": 40, "num_valid": 20, "num_test": 20, "steps": 301, "frame_from": 0, "frame_to": 1, "layers": 1,
    "train_samples": 40, "batch_size": 10, "hidden": 8, "rotations": 2, "threads": 1, "epochs": 2,
}


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    """The options of a run of a second, as on a command line."""
    before = torch.get_num_threads()
    values = TINY | {"data": tmp_path_factory.mktemp("data")}
    yield [text for name, value in values.items() for text in (options.flag(name), str(value))]
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert cli.main(["train", "nbody", "--out", str(out), "--quiet", *given]) == 0
    return out


def failure(capsys, argv, status=2):
    """The one line on stderr of a command that must fail."""
    capsys.readouterr()
    assert cli.main([str(a) for a in argv]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ace-fast: ")
    return line


def test_train_shows_its_result(given, tmp_path, capsys):
    assert cli.main(["train", "nbody", "--out", str(tmp_path / "run"), *given]) == 0
    shown = capsys.readouterr()
    for text in ("test error, strict model", "test error, relaxed model", "linear baseline", "gammas",
                 "equivariance error", "report.html"):
        assert text in shown.out
    assert "epoch 2/2  loss" in shown.err


def test_options_go_over_the_preset(given, tmp_path):
    out = tmp_path / "run"
    argv = ["train", "nbody", "--preset", "paper", "--lr", "0.002", "--strict", "--quiet", "--out", str(out), *given]
    assert cli.main(argv) == 0
    about = Run(out).about()
    config = about["config"]
    assert about["preset"] == "paper" and config["lr"] == 0.002 and not config["relaxed"]
    assert config["dual_lr"] == 8e-4 and config["epochs"] == 2


def test_the_default_folder_names_preset_and_time(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "nbody", "--quiet", *given]) == 0
    (found,) = (tmp_path / "runs").iterdir()
    assert found.name.startswith("nbody-demo-2") and (found / "report.html").exists()


def test_evaluate_prints_and_writes_the_numbers(folder, tmp_path, capsys):
    assert cli.main(["evaluate", str(folder), "--checkpoint", "last", "--json", str(tmp_path / "e.json")]) == 0
    found, last = json.loads((tmp_path / "e.json").read_text()), Run(folder).metrics()[-1]
    assert found["epoch"] == 2 and found["gammas"] == last["gammas"]
    for key in ("test_strict", "test_relaxed", "valid_strict", "equivariance_relaxed"):
        assert found[key] == pytest.approx(last[key], rel=1e-6)
    assert f"{last['test_strict']:.5f}" in capsys.readouterr().out


def test_predict_from_file_to_file(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {"pos": rng.standard_normal((3, 5, 3)), "vel": rng.standard_normal((3, 5, 3)), "charges": np.ones((3, 5))}
    np.savez(tmp_path / "in.npz", **arrays)
    assert cli.main(["predict", str(folder), str(tmp_path / "in.npz")]) == 0
    assert "3 graphs predicted" in capsys.readouterr().out
    with np.load(tmp_path / "in-predicted.npz") as found:
        np.testing.assert_array_equal(found["pos"], load(folder).predict(**arrays).numpy())
    argv = ["predict", folder, tmp_path / "in.npz", "--relaxed", "--output", tmp_path / "relaxed.npz"]
    assert cli.main(list(map(str, argv))) == 0
    with np.load(tmp_path / "relaxed.npz") as found:
        np.testing.assert_array_equal(found["pos"], load(folder, relaxed=True).predict(**arrays).numpy())
    assert "exists; pass another --output, or --overwrite" in failure(capsys, argv)


def test_data_is_cached(tmp_path, capsys):
    sizes = ["--num-train", "4", "--num-valid", "3", "--num-test", "2", "--steps", "301", "--frame-from", "0",
             "--frame-to", "1", "--data", str(tmp_path)]
    assert cli.main(["data", "nbody", *sizes]) == 0
    assert "train: FlatDataset(4 graphs, 20 nodes, 80 edges" in capsys.readouterr().out
    assert len(list(tmp_path.glob("nbody-*.npz"))) == 3


def test_a_damaged_cache_is_rebuilt_with_a_message(tmp_path, capsys):
    argv = ["data", "nbody", "--num-train", "4", "--num-valid", "3", "--num-test", "2", "--steps", "301",
            "--frame-from", "0", "--frame-to", "1", "--data", str(tmp_path)]
    assert cli.main(argv) == 0
    damaged = next(tmp_path.glob("nbody-test-*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(argv) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("ace-fast: nbody: ") and "simulated anew" in line] == lines[:1]


def test_help_names_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "nbody", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, option in nbody.OPTIONS.items():
        default = "empty" if option.default == "" else option.default
        assert options.flag(name) in text and f"(default: {default})" in text
    assert all(f"{preset}:" in text for preset in nbody.PRESETS)


@pytest.mark.parametrize("argv", [["train", "nbody"], ["demo"]])
def test_help_shows_the_values_of_the_default_preset(argv, capsys):
    with pytest.raises(SystemExit):
        cli.main([*argv, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for shown in ("passes over the training data (default: 60)", "Adam on the weights (default: 0.003)",
                  "over the run (default: cosine)", "step size of the gammas, eta_p (default: 0.005)"):
        assert shown in text
    assert options.make_config(nbody, "demo", {}) == {name: option.default for name, option in nbody.OPTIONS.items()}


@pytest.mark.parametrize(("argv", "message"), [
    (["evaluate", "nowhere"], "nowhere must be a run folder, got one without config.json"),
    (["train", "nbody", "--out", "file/run"], "cannot be made .*; pass --out a folder you may write to"),
    (["train", "nbody", "--batch-size", "4000"], "--batch-size must be at most the 3000 training samples, got 4000"),
    (["train", "nbody", "--resume"], "--resume needs the folder of the run: pass it as --out"),
    (["predict", "nowhere", "in.npz"], "must be a run folder"),
    (["data", "nbody", "--num-train", "0"], "must be at least 1, got 0"),
    (["train", "nbody", "--device", "meta"], "--device must be cpu or a GPU .* got 'meta'"),
    (["evaluate", "nowhere", "--json", "no/e.json"], "--json must be a file in a folder .* write to, got no/e.json"),
    (["evaluate", "nowhere", "--json", "file/e.json"], "--json must be a file in a folder .* got file/e.json"),
    (["evaluate", "nowhere", "--json", "."], "--json must be a file in a folder"),
])
def test_wrong_input_ends_with_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert re.search(message, failure(capsys, argv))


def test_an_existing_run_folder_is_named(folder, capsys):
    line = failure(capsys, ["train", "nbody", "--out", folder])
    assert str(folder) in line and "--resume or pass another --out" in line


def test_a_diverging_run_ends_with_status_1(given, tmp_path, capsys):
    line = failure(capsys, ["train", "nbody", "--quiet", "--out", tmp_path / "run", "--lr", "1e30", *given], 1)
    assert "the last good checkpoint is kept" in line


@pytest.mark.parametrize("argv", [["--debug", "evaluate", "no"], ["evaluate", "--debug", "no"],
                                  ["evaluate", "no", "--debug"], ["predict", "no", "in.npz", "--debug"]])
def test_debug_shows_the_traceback(argv):
    with pytest.raises(FileNotFoundError, match="must be a run folder"):
        cli.main(argv)


def test_ctrl_c_before_the_training_says_stopped(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ace_fast.train.tasks.nbody.load", interrupted)
    monkeypatch.chdir(tmp_path)
    assert failure(capsys, ["train", "nbody"], 130) == "ace-fast: stopped"


def test_a_run_of_a_gpu_is_used_on_the_cpu(folder, tmp_path, capsys):
    moved = shutil.copytree(folder, tmp_path / "run")
    about = json.loads((moved / "config.json").read_text())
    about["config"] |= {"device": "cuda:99", "backend": "cuda"}
    (moved / "config.json").write_text(json.dumps(about))
    np.savez(tmp_path / "in.npz", pos=np.eye(3)[None], vel=np.zeros((1, 3, 3)), charges=np.ones((1, 3)))
    commands = {"evaluate": ["evaluate", moved], "predict": ["predict", moved, tmp_path / "in.npz"]}
    for argv in commands.values():
        line = failure(capsys, argv)
        assert "got 'cuda:99'" in line and "use --device cpu, with --backend auto" in line
        assert cli.main([str(a) for a in (*argv, "--device", "cpu", "--backend", "auto")]) == 0
    assert (tmp_path / "in-predicted.npz").exists()


@pytest.mark.parametrize(("argv", "message"), [
    (["train", "nbody", "--speed", "3"], "unknown arguments: --speed 3; see ace-fast --help"),
    (["train", "nbody", "--epochs", "x"], "argument --epochs: invalid int value: 'x'; see ace-fast train nbody --help"),
    (["fly"], "invalid choice: 'fly'"),
])
def test_wrong_arguments_end_with_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and message in line


def test_info_lists_operators_and_reasons(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "threads", "native library", "operators on cpu", "tensor_product", "reference", "triton"):
        assert word in text


def test_info_is_what_the_module_prints():
    done = subprocess.run([sys.executable, "-m", "ace_fast"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "operators on cpu" in done.stdout and not done.stderr


def test_bench_gets_its_arguments(monkeypatch):
    seen = []
    fake = SimpleNamespace(main=lambda argv: seen.append(argv))
    monkeypatch.setitem(sys.modules, "ace_fast.bench.__main__", fake)
    assert cli.main(["bench", "--workload", "nbody_segnn", "--help"]) == 0
    assert cli.main(["bench", "--debug", "--quick"]) == 0
    assert seen == [["--workload", "nbody_segnn", "--help"], ["--quick"]]


def test_ctrl_c_ends_with_130_and_a_checkpoint(given, tmp_path):
    """A signal from outside, to a process of its own."""
    argv = ["train", "nbody", "--out", str(tmp_path / "run"), *given, "--epochs", "100000"]
    process = subprocess.Popen([sys.executable, "-c", MAIN, *argv], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        for _ in range(600):
            if metrics.exists():
                break
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        text = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "continue with: ace-fast train nbody --resume --out" in text
    assert "Traceback" not in text
    state = Run(tmp_path / "run").load_state()
    assert state["step"] >= 4 and load(tmp_path / "run", "last").epoch == state["epoch"]


def test_the_demo_runs_once_and_is_used_again(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "compare", lambda device: {"eager_ms": 60.0, "fast_ms": 20.0})
    argv = ["demo", "--out", str(tmp_path / "run"), *given]
    for again in (False, True):
        assert cli.main(argv) == 0
        shown = capsys.readouterr()
        assert ("is used again; remove that folder to train afresh" in shown.err) == again
        assert "20.0 ms, eager reference 60.0 ms: ratio 3.00" in shown.out
    assert "ratio 3.00" in (tmp_path / "run" / "report.html").read_text()
    line = failure(capsys, [*argv, "--epochs", "3"])
    assert "must hold a run with the settings asked for, got one with --epochs 2; pass another --out or remove" in line


def test_the_demo_continues_an_interrupted_run(given, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "compare", lambda device: {"eager_ms": 60.0, "fast_ms": 20.0})
    count, plain = [0], EpochProgress.step

    def counting(self):
        plain(self)
        count[0] += 1
        if count[0] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EpochProgress, "step", counting)
    argv = ["demo", "--out", str(tmp_path / "run"), *given]
    assert cli.main(argv) == 130 and len(Run(tmp_path / "run").metrics()) == 1
    assert cli.main(argv) == 0
    losses = [[row["train_loss"] for row in Run(at).metrics()] for at in (tmp_path / "run", folder)]
    assert losses[0] == losses[1]


def test_the_demo_compares_with_the_eager_reference(monkeypatch):
    from ace_fast.bench import nbody_segnn

    plain = nbody_segnn.load
    monkeypatch.setattr(nbody_segnn, "load", lambda case, *rest: plain("batch2", *rest))
    found = demo.compare("cpu", repeats=1)
    assert set(found) == {"eager_ms", "fast_ms"} and min(found.values()) > 0
