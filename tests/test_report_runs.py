"""The page of a run folder that was written by hand, and what is said of folders that are none."""

import pytest

from ace_fast.train import cli
from ace_fast.train.options import make_config
from ace_fast.train.run import Run
from ace_fast.train.tasks import TASKS


def written(folder, task="nbody", gates=(0.5, -0.1), test=0.25, **given):
    """Two epochs of a task, the second one measured."""
    found = Run(folder)
    found.create(task, "demo", make_config(TASKS[task], "demo", {"batch_size": 10} | given))
    ace = {"gammas": list(gates), "multipliers": [0.1, 0.2], "slacks": [0.0, 0.0]} if gates else {}
    found.add_metrics({"epoch": 1, "step": 4, "train_loss": 0.5, "lr": 1e-3, "seconds": 2.0} | ace)
    measured = {f"{what}_{mode}": value for what, value in (("valid", 0.2), ("test", test), ("equivariance", 1e-3))
                for mode in (("strict", "relaxed") if gates else ("strict",))}
    branches = {"branch_ratios": [0.01, 0.02], "equivariance_bound": 0.1} if gates else {}
    found.add_metrics({"epoch": 2, "step": 8, "train_loss": 0.3, "lr": 1e-3, "seconds": 1.0, "baseline": 0.4}
                      | ace | measured | branches)
    return found


@pytest.fixture
def run(tmp_path):
    return written(tmp_path / "run")


def test_a_run_has_a_page_with_its_curves(run, tmp_path, capsys):
    assert cli.main(["report", str(run.folder)]) == 0
    assert f"report: {run.folder / 'report.png'}" in capsys.readouterr().out
    page = (run.folder / "report.html").read_text()
    for title in ("Error", "Gammas", "Multipliers", "Equivariance error", "Branches", "Throughput"):
        assert f"<h3>{title}</h3>" in page
    assert ">Gates<" not in page and ">Slacks<" not in page and "bound (theorem 4.2)" in page and "All 2 epochs" in page
    assert "training: epoch 2.00, samples a second 40.0" in page and "<dt>gamma_lr</dt><dd>" in page
    assert cli.main(["report", str(run.folder), "--out", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_text() == page and (tmp_path / "other.png").exists()


def test_the_page_has_what_the_gates_said(run):
    gates = [{"name": "one", "share": 0.25, "verdict": "broken", "evidence": "ratio 0.02, above", "snapped": False},
             {"name": "two", "share": None, "verdict": "symmetric", "evidence": "switched off", "snapped": True}]
    run.keep_diagnosis({"tolerance": 0.015, "gates": gates})
    assert cli.main(["report", str(run.folder)]) == 0
    page = (run.folder / "report.html").read_text()
    assert "<h3>Gates</h3>" in page and "<h3>Equivariant share of the branches</h3>" in page
    assert "one: 25%; broken: ratio 0.02, above" in page and "two: no value; symmetric: switched off" in page
    assert "one: broken: epoch 2.00" in page and "tolerance" in page


def test_runs_are_compared_over_their_seeds(tmp_path, capsys):
    for seed, test in ((1, 0.2), (2, 0.3)):
        written(tmp_path / "runs" / f"ace{seed}", test=test, seed=seed)
    strict = written(tmp_path / "runs" / "strict", gates=None, relaxed=False, test=0.4)
    (strict.folder / "report.html").write_text("its own page")
    assert cli.main(["report", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.split()[1] == str(tmp_path / "runs" / "report.html")
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "3 runs of 2 kinds: ace (strict model), strict" in page
    assert "ace (strict model): 0.250; 2 runs, 0.200 to 0.300" in page
    assert "± 0.071 over 2 seeds" in page and '<a href="strict/report.html">strict</a>' in page
    for title in ("Test", "Equivariance error", "Time of a training step", "Test against symmetry",
                  "Validation"):
        assert f"<h3>{title}</h3>" in page
    assert "ace (strict model): 375 ms; 2 runs, 375 ms to 375 ms" in page  # the median of 500 and 250


def test_folders_that_are_no_runs_are_named(run, tmp_path, capsys):
    def said(*arguments):
        assert cli.main(["report", *map(str, arguments)]) == 2
        return " ".join(capsys.readouterr().err.split())

    (tmp_path / "empty").mkdir()
    assert "must be a run or hold .json files of results, got a folder without" in said(tmp_path / "empty")
    (tmp_path / "rows.json").write_text("[]")
    assert "must be runs alone or benchmarks alone, got the run" in said(run.folder, tmp_path / "rows.json")
    other = written(tmp_path / "modelnet", "modelnet", None, relaxed=False)
    assert "must be of one task, got nbody, modelnet; report them apart" in said(run.folder, other.folder)
    (run.folder / "metrics.jsonl").write_text("")
    assert "must be a run with at least one epoch, got one without" in said(run.folder)
    (run.folder / "metrics.jsonl").write_text('{"epoch": 1}\n{broken\n{"epoch": 3}\n')
    assert "must hold one epoch per line, got a damaged line 2" in said(run.folder)
    (run.folder / "config.json").write_text("{")
    assert "must be JSON, got text that does not parse" in said(run.folder)
