"""The experiments of docs/reproduction.md: their settings, runs that are used again, rows, tables and figures."""

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from test_cli import TINY

from ace_fast.bench import experiments, reproduction, reproduction_docs
from ace_fast.report import readme
from ace_fast.train import cli
from ace_fast.train.run import Run

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {"strict": {"relaxed": False}, "ace": {"rotations": 1}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An experiment of two runs of a second."""
    before = torch.get_num_threads()
    given = TINY | {"data": str(tmp_path_factory.mktemp("data")), "eval_every": 1}
    yield experiments.Experiment("A title", "nbody", given, VERSIONS, (42,))
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path, monkeypatch, tiny, no_plots):
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", tiny)
    return ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "rows"), "--quiet"]


def test_every_run_has_settings_that_train_takes(tmp_path, monkeypatch):
    for name, experiment in experiments.EXPERIMENTS.items():
        assert name in reproduction_docs.TABLES and not set("/* ") & set("".join(experiment.versions))
        if experiment.data:
            (tmp_path / experiment.data).touch()
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path))
    for job in reproduction.jobs():
        assert reproduction.config_of(job, None) == reproduction.config_of(job, tmp_path)
    assert len({job.label for job in reproduction.jobs()}) == len(reproduction.jobs())


def test_committed_rows_are_of_the_experiments_as_they_are():
    for name, experiment in experiments.EXPERIMENTS.items():
        for row in reproduction.load(name):
            settings = experiment.settings(row["version"], row["seed"])
            assert row["settings"] == settings, f"{name}: the settings changed; run it again"
            assert row["command"] == reproduction.command(experiment, settings)


def test_commands_ask_for_what_the_runs_are():
    """Read by the command line itself, against the settings that the runs are given."""
    for job in reproduction.jobs():
        settings = job.experiment.settings(job.version, job.seed)
        program, *argv = shlex.split(reproduction.command(job.experiment, settings))
        asked = cli._given(cli._parser().parse_args(argv))
        assert program == "ace-fast" and argv[1] == job.experiment.task
        assert asked == settings | ({"data": job.experiment.data} if job.experiment.data else {})


def test_runs_leave_rows_and_are_used_again(place, tmp_path, capsys):
    assert reproduction.main(["tiny", *place]) == 0
    file = tmp_path / "rows" / "tiny.json"
    strict, ace = json.loads(file.read_text())
    assert (strict["version"], ace["version"], ace["seed"], ace["epochs"], ace["steps"]) == ("strict", "ace", 42, 2, 8)
    assert strict["command"].startswith("ace-fast train nbody --num-train 40") and "--strict" in strict["command"]
    assert "relaxed" not in strict and strict["gates"] == {} and strict["cpu_seconds"] > 0
    assert ace["relaxed"]["equivariance"] > 1e-4 > ace["strict"]["equivariance"] and ace["strict"]["epoch"] in (1, 2)
    assert ace["strict"]["test"] > 0 and len(ace["gates"]["gammas"]) == len(ace["gates"]["verdicts"])
    assert [point["epoch"] for point in ace["curve"]] == [1, 2] and ace["curve"][0]["ratio"] > 0

    stamp = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("weights.safetensors")}
    before = file.read_text()
    assert reproduction.main(["tiny/ace-*", *place]) == 0
    assert file.read_text() == before and {p: p.stat().st_mtime_ns for p in stamp} == stamp
    assert reproduction.main([*place]) == 0 and "tiny/ace-42  (has a row)" in capsys.readouterr().out


def test_a_run_that_was_cut_off_goes_on_and_counts_its_time(place, tmp_path, monkeypatch):
    cut = Run.add_metrics

    def stop(run, row):
        cut(run, row)
        raise KeyboardInterrupt("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "add_metrics", stop)
        assert reproduction.main(["tiny/ace-42", *place]) == 130 and not (tmp_path / "rows").exists()
    cost = tmp_path / "runs" / "tiny" / "ace-42.json"
    cost.write_text(str(json.loads(cost.read_text()) + 1000.0))
    assert reproduction.main(["tiny/ace-42", *place]) == 0
    (row,) = reproduction.load("tiny", tmp_path / "rows")
    assert row["cpu_seconds"] > 1000 and [point["epoch"] for point in row["curve"]] == [1, 2]


def test_a_killed_run_does_not_claim_to_know_its_time(place, tmp_path):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "strict-42.json").write_text("null")
    assert reproduction.main(["tiny/strict-42", *place]) == 0
    (row,) = reproduction.load("tiny", tmp_path / "rows")
    assert row["cpu_seconds"] is None and row["strict"]["test"] > 0


@pytest.mark.parametrize(("argv", "message"), [
    (["nbdy"], "an experiment must be one of nbody, .* such as 'nbody/strict-42', got 'nbdy'"),
    (["nbody/ace-7"], "got 'nbody/ace-7'"),
    (["mocap", "--data", "nowhere"], "--data must be a folder with mocap_run.npz for mocap, got nowhere without"),
])
def test_what_cannot_be_run_is_said_before_any_work(argv, message, tmp_path, capsys):
    assert reproduction.main([*argv, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "rows")]) == 2
    assert re.search(message, capsys.readouterr().err) and not list(tmp_path.iterdir())


def test_a_damaged_file_of_rows_is_named(tmp_path):
    (tmp_path / "nbody.json").write_text("[{")
    with pytest.raises(ValueError, match=r"nbody\.json must be a list of rows in JSON, got text that does not parse"):
        reproduction.load("nbody", tmp_path)


def made(version, seed, test, **more):
    """A row as a run leaves it, small."""
    relaxed = version != "strict"
    row = {"version": version, "seed": seed, "settings": more.pop("settings", {}), "command": f"train {version}",
           "epochs": 2, "cpu_seconds": 60.0 * seed, "threads": 1, "device_name": "Processor", "revision": "abc",
           "strict": {"epoch": 2, "test": test, "equivariance": 1e-7},
           "gates": {"gammas": [0.1, 0.2], "ratios": [0.001, None], "verdicts": ["symmetric", "broken"]} if relaxed
           else {},
           "curve": [{"epoch": e, "valid_strict": test / e} | ({"valid_relaxed": test, "ratio": 0.5} if relaxed else {})
                     for e in (1, 2)]}
    return row | ({"relaxed": {"epoch": 1, "test": 2 * test, "equivariance": 0.01}} if relaxed else {}) | more


def test_tables_have_mean_and_spread_of_the_seeds():
    rows = [made("strict", 1, 0.004), made("strict", 3, 0.006), made("ace", 1, 0.003), made("ace", 3, 0.003)]
    _, _, strict, off, on = reproduction_docs.nbody(rows)
    assert strict == "| strict | no branches | 5.00 ± 1.4 | 5.6 | 1.00 | 1.00 | 1.0 × 10⁻⁷ | – | 2, 2 | 2.0 ± 1.4 |"
    assert off == ("| ace | branches off | 3.00 ± 0 | 3.8 | 0.60 | 0.68 | 1.0 × 10⁻⁷ | 2 symmetric, 2 broken, r at "
                   "most 0.0010 | 2, 2 | 2.0 ± 1.4 |")
    assert on == "| ace | with branches | 6.00 ± 0 | – | 1.20 | – | 1.0 × 10⁻² |  | 1, 1 |  |"
    closed = made("schedule", 1, 0.004)
    assert len(reproduction_docs.nbody([closed | {"relaxed": closed["strict"]}])) == 3
    rows = [made(f"{name}-{n}", 1, error, settings={"train_samples": n})
            for n in (10, 20) for name, error in (("strict", 0.004), ("ace", 0.002))]
    assert reproduction_docs.samples(rows)[2:] == [f"| {n} | 2 | 4.00 | 2.00 | 4.00 | 0.50 |" for n in (10, 20)]
    assert reproduction_docs.spread([1.0, None]) == "–"


def test_the_sample_efficiency_takes_the_runs_of_nbody(tmp_path):
    for name, version, seed, settings in (("nbody", "strict", 42, {}), ("nbody", "strict", 43, {}),
                                          ("nbody", "schedule", 42, {}), ("samples", "strict-500", 42,
                                                                          {"train_samples": 500})):
        reproduction.keep(made(version, seed, 0.005, settings=settings, experiment=name), tmp_path)
    found = reproduction_docs.rows_of("samples", tmp_path)
    assert [(row["version"], row["seed"]) for row in found] == [("strict-500", 42), ("strict-3000", 42)]
    assert len(reproduction_docs.rows_of("nbody", tmp_path)) == 3 and reproduction_docs.rows_of("mocap", tmp_path) == []


def test_the_page_follows_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction_docs, "EXPERIMENTS", {"nbody": experiments.EXPERIMENTS["nbody"]})
    monkeypatch.setattr(reproduction_docs, "MEASURED", {})
    (tmp_path / "docs").mkdir()
    assert reproduction_docs.pages(tmp_path) == {}
    page = tmp_path / "docs" / "reproduction.md"
    page.write_text("before\n<!-- measured: nbody -->\nold\n<!-- end of measured -->\nafter\n")
    ((_, text),) = reproduction_docs.pages(tmp_path).items()
    assert "Not run yet" in text and "old" not in text and text.startswith("before\n") and text.endswith("\nafter\n")
    folder = tmp_path / "bench" / "results" / "reproduction"
    for seed in (43, 42):
        for version in ("ace", "strict"):
            reproduction.keep(made(version, seed, 0.005, experiment="nbody"), folder)
    assert [(r["version"], r["seed"]) for r in reproduction.load("nbody", folder)] == [
        ("strict", 42), ("strict", 43), ("ace", 42), ("ace", 43)]
    found = reproduction_docs.pages(tmp_path)
    text, picture = found[page], found[tmp_path / "docs" / "reproduction-nbody.svg"]
    assert "4 runs, seeds 42, 43: 170 minutes" in text and "    train ace\n" in text and "5.00 ± 0" in text
    assert len(ElementTree.fromstring(picture).findall("{*}svg")) == 2
    page.write_text("no place")
    with pytest.raises(ValueError, match="must hold one line '<!-- measured: nbody -->' and below it"):
        reproduction_docs.pages(tmp_path)


def test_the_page_shows_the_committed_rows():
    assert [path for path in readme.stale(ROOT) if "reproduction" in path.name] == [], "run ace-fast report --readme"


def test_tables_of_targets_batches_and_dropped_points():
    def molecule(version, error):
        return made(f"{version}-gap", 1, error, settings={"target": "gap"}, baseline=900.0)

    _, _, line = reproduction_docs.targets([molecule("strict", 40.0), molecule("ace", 20.0)])
    assert line == ("| gap, meV | 40.0 | 20.0 | 40.0 | 0.50 | 900 | 1 symmetric, 1 broken, r at most 0.0010 | 1.0, "
                    "1.0 |")
    runs = ((128, "sqrt", 500.0, 60), (64, "sqrt", 400.0, 120), (128, "none", 600.0, 60))
    rows = [made("strict", 1, error, steps=steps, experiment="batches_qm9",
                 settings={"batch_size": batch, "lr_scaling": how}) for batch, how, error, steps in runs]
    assert reproduction_docs.batches_qm9(rows)[2:] == ["| 64 | 120 | 400 | – | 1.0 |", "| 128 | 60 | 500 | 600 | 1.0 |"]
    (chart,) = reproduction_docs.against_batch(rows)
    assert [series.points for series in chart.series] == [[(64.0, 400.0), (128.0, 500.0)], [(128.0, 600.0)]]

    shares = {"0.00": 0.5, "0.85": 0.25}
    rows = [made(name, seed, 0.4, measured={"dropped_strict": shares} | ({"dropped_relaxed": shares} if seed else {}))
            for name, seed in (("strict", 0), ("ace", 1))]
    found = reproduction_docs.dropping(rows)
    assert found[-5] == "| test accuracy, % | 0% dropped | 85% dropped |"
    assert found[-3:] == [f"| {name} | 50.0 | 25.0 |" for name in (
        "strict, branches off", "ace, branches off", "ace, with branches")]
    (chart,) = reproduction_docs.dropped(rows)
    assert [(s.name, s.dash) for s in chart.series] == [("strict", False), ("ace", False), ("ace", True)]
