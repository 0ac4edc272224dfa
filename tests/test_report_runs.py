"""The page of a run folder that was written by hand, and what is said of folders that are none."""

import pytest

from ace_fast.train import cli
from ace_fast.train.options import make_config
from ace_fast.train.run import Run
from ace_fast.train.tasks import nbody


@pytest.fixture
def run(tmp_path):
    """Two epochs of nbody, the second one measured."""
    found = Run(tmp_path / "run")
    found.create("nbody", "demo", make_config(nbody, "demo", {"batch_size": 10}))
    gates = {"gammas": [0.5, -0.1], "multipliers": [0.1, 0.2], "slacks": [0.0, 0.0]}
    found.add_metrics({"epoch": 1, "step": 4, "train_loss": 0.5, "lr": 1e-3, "seconds": 2.0} | gates)
    measured = {f"{what}_{mode}": value for what, value in (("valid", 0.2), ("test", 0.25), ("equivariance", 1e-3))
                for mode in ("strict", "relaxed")}
    found.add_metrics({"epoch": 2, "step": 8, "train_loss": 0.3, "lr": 1e-3, "seconds": 1.0, "baseline": 0.4,
                       "branch_ratios": [0.01, 0.02], "equivariance_bound": 0.1} | gates | measured)
    return found


def test_a_run_has_a_page_with_its_curves(run, tmp_path, capsys):
    assert cli.main(["report", str(run.folder)]) == 0
    assert f"report: {run.folder / 'report.png'}" in capsys.readouterr().out
    page = (run.folder / "report.html").read_text()
    for title in ("Error", "Gammas", "Multipliers", "Equivariance error", "Branches", "Throughput"):
        assert f"<h3>{title}</h3>" in page
    assert ">Slacks<" not in page and "bound (theorem 4.2)" in page and "All 2 epochs" in page
    assert "training: epoch 2.00, samples a second 40.0" in page and "<dt>gamma_lr</dt><dd>" in page
    assert cli.main(["report", str(run.folder), "--out", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_text() == page and (tmp_path / "other.png").exists()


def test_folders_that_are_no_runs_are_named(run, tmp_path, capsys):
    def said(*arguments):
        assert cli.main(["report", *map(str, arguments)]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "must be a run or hold .json files of results, got a folder without" in said(tmp_path)
    (tmp_path / "rows.json").write_text("[]")
    assert "must be runs alone or benchmarks alone, got the run" in said(run.folder, tmp_path / "rows.json")
    again = said(run.folder, run.folder, "--out", tmp_path / "page.html")
    assert "--out must be left out with several runs" in again
    (run.folder / "metrics.jsonl").write_text("")
    assert "must be a run with at least one epoch, got one without" in said(run.folder)
    (run.folder / "metrics.jsonl").write_text('{"epoch": 1}\n{broken\n{"epoch": 3}\n')
    assert "must hold one epoch per line, got a damaged line 2" in said(run.folder)
    (run.folder / "config.json").write_text("{")
    assert "must be JSON, got text that does not parse" in said(run.folder)
