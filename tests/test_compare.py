"""ace-fast compare: deciders side by side, runs used again, rows that the report reads, wrong input."""

import re
from types import SimpleNamespace

import pytest
import torch
from test_cli import TINY, failure

from ace_fast import report
from ace_fast.bench import results
from ace_fast.train import cli, options
from ace_fast.train.compare import _configs, _prepared, compare, deciders_of, models_of

NAMES = ["remul", "strict"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    before = torch.get_num_threads()
    yield TINY | {"data": str(tmp_path_factory.mktemp("data")), "epochs": 1}
    torch.set_num_threads(before)


def test_deciders_are_compared_in_one_command(given, tmp_path, capsys, no_plots):
    out = tmp_path / "compared"
    flags = [text for name, value in given.items() for text in (options.flag(name), str(value))]
    argv = ["compare", "nbody", "--relaxation", ",".join(NAMES), "--seeds", "2", "--repeats", "2", "--out", str(out),
            "--quiet", *flags]
    assert cli.main(argv) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES) and "equivariance error" in shown and "±" in shown
    assert {p.name for p in out.iterdir()} == {"compare.json", "compare.html", "compare.png"} | {
        f"{name}-{seed}" for name in NAMES for seed in (42, 43)}
    (row,) = results.load(out / "compare.json")
    assert row["workload"] == "nbody_relaxation" and row["seeds"] == 2 and row["command"].startswith("ace-fast compare")
    for name, mode in zip(NAMES, ("relaxed", "strict"), strict=True):
        assert row[f"{name}_ms"] > 0 and row[f"{name}_model"] == mode and row[f"{name}_test"] > 0
        assert (row[f"{name}_equivariance"] > 1e-4) == (mode == "relaxed")
    assert results.versions(row) == NAMES
    page = (out / "compare.html").read_text()
    assert "remul (relaxed model)" in page and "--relaxation remul,strict" in page
    (written, _) = report.write([out / "compare.json"], tmp_path / "page.html")
    assert "nbody_relaxation" in written.read_text()

    stamp = {p: p.stat().st_mtime_ns for p in out.rglob("weights.safetensors")}
    again = compare("nbody", out, NAMES, seeds=2, repeats=1, quiet=True, **given)  # finished runs are used again
    assert {p: p.stat().st_mtime_ns for p in out.rglob("weights.safetensors")} == stamp
    assert again["remul_test"] == row["remul_test"]
    with pytest.raises(FileExistsError, match="compare: .*remul-42 must hold a run with .*, got .*--lr"):
        compare("nbody", out, NAMES, quiet=True, **given | {"lr": 0.5})


def test_models_are_compared_in_one_command(given, tmp_path, capsys, no_plots):
    names, out = ["segnn-ace", "segnn", "egnn-sympe", "fa-gnn", "gnn"], tmp_path / "models"
    flags = [text for name, value in given.items() for text in (options.flag(name), str(value))]
    argv = ["compare", "nbody", "--model", ",".join(names), "--repeats", "1", "--out", str(out), "--quiet", *flags]
    assert cli.main(argv) == 0
    assert "egnn" in capsys.readouterr().out
    (row,) = results.load(out / "compare.json")
    assert row["workload"] == "nbody_models" and results.versions(row) == names
    errors = [row[f"{name}_equivariance"] for name in names]
    assert all(error < 1e-4 for error in errors[:4]) and errors[4] > 1e-2  # the plain network has no symmetry
    assert all(row[f"{name}_ms"] > 0 and row[f"{name}_model"] == "strict" for name in names)
    page = (out / "compare.html").read_text()
    assert "Equivariance error" in page and "segnn-ace" in page and (out / "compare.png").exists()
    (written, _) = report.write([out / "compare.json"], tmp_path / "page.html")
    assert "nbody_models" in written.read_text()


def test_what_is_aces_alone_is_left_to_it():
    given = {"mode": "resilient", "snap": True, "gamma_groups": "*: rho=2"}
    found = _configs("nbody", ["ace", "rpp", "strict"], False, "demo", 1, 1, given)
    assert [found[name][0]["snap"] for name in found] == [True, False, False]


@pytest.mark.parametrize(("argv", "message"), [
    (["nbody", "--relaxation", "ace,rpl"], "--relaxation must be different names among ace, .*, strict, got ace, rpl"),
    (["nbody", "--relaxation", "ace,ace"], "must be different names among"),
    (["nbody", "--relaxation", ","], "must be different names among .*, got none"),
    (["mocap", "--relaxation", "per"], "must be different names among ace, strict, got per"),
    (["nbody", "--model", "segnn,egn"], "--model must be different names among segnn, segnn-ace, .*, got segnn, egn"),
    (["nbody", "--model", "egnn-ace"], "--model must be different names among .*, got egnn-ace"),
    (["nbody", "--model", "segnn,egnn", "--relaxation", "ace"], "--model must be one model with --relaxation, got"),
    (["nbody", "--model", "egnn", "--norm", "batch"], "--norm must be none with --model egnn, got batch"),
    (["nbody", "--seeds", "0"], "compare: --seeds must be at least 1, got 0"),
    (["nbody", "--epochs", "0"], "--epochs must be at least 1, got 0"),
])
def test_what_cannot_be_compared_is_said_before_any_work(argv, message, tmp_path, capsys):
    line = failure(capsys, ["compare", *argv, "--out", tmp_path / "out"])
    assert re.search(message, line) and not (tmp_path / "out").exists()


def test_data_are_prepared_once_a_model():
    task, made = SimpleNamespace(Training=lambda config, facts, data: made.append(config) or object()), []
    configs = {f"{model}{on:d}": {"model": model, "relaxed": on} for model in "xy" for on in (False, True)}
    assert _prepared(task, configs, {}, None).keys() == {"x", "y"} and made == [configs["x0"], configs["y0"]]


def test_names():
    assert tuple(deciders_of("nbody")) == ("ace", "schedule", "rpp", "per", "remul", "strict")
    assert {"segnn", "segnn-ace", "egnn", "egnn-sympe", "gnn", "fa-gnn"} <= models_of("nbody").keys()
    assert "egnn-ace" not in models_of("nbody") and "schnet-rpp" in models_of("qm9") and models_of("mocap") == {}
