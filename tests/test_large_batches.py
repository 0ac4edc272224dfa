"""Throughput and memory against the batch: rows of tiny batches, the line through them, the table; nothing is timed."""

import json
import subprocess

import pytest

from ace_fast.bench import large_batches, large_batches_docs


def made(batch, version="fast", gb=1.0, **more):
    """A row of so many GB, 10 samples a second for ours, 2 for eager."""
    mb = gb * large_batches.MIB_OF_GB
    return {"workload": "qm9_schnet", "batch": batch, "version": version, "held_mb": 0.25 * mb, "peak_mb": 0.75 * mb,
            "cpu_s": batch / {"fast": 10, "eager": 2}[version], "threads": 1, "device_name": "Processor",
            "torch": "2.10", "revision": "abc"} | more


def test_a_step_is_measured(own_cache):
    fast, eager = (large_batches.measure("modelnet_vndgcnn", 2, version, 0.0, 1) for version in large_batches.VERSIONS)
    assert fast["cpu_s"] > 0 and fast["steps"] == 1 and 0 < fast["peak_mb"] < eager["peak_mb"]
    assert fast["loss"] == pytest.approx(eager["loss"], rel=large_batches.AGREE)


def test_molecules_are_repeated_beyond_those_of_the_file(monkeypatch):
    if large_batches.molecules.find_file() is None:
        pytest.skip("shared/data is not beside this checkout")
    few = large_batches.molecules.load(6)
    monkeypatch.setattr(large_batches.molecules, "load", lambda count: few)
    monkeypatch.setattr(large_batches.molecules, "read_npz", lambda file: few)
    data = large_batches.load("qm9_schnet", 14)
    assert data.sizes["molecules"] == 14 and data.target[:6].tolist() == data.target[6:12].tolist()


def test_the_largest_batch_is_where_the_line_meets_the_limit():
    rows = [made(10, gb=9.0), made(100, gb=1.2), made(200, gb=2.2)]  # 0.2 + batch / 100
    assert large_batches.line(rows) == pytest.approx((0.2, 0.01))
    assert large_batches.largest(rows, 16.0) == 1_500 and large_batches.largest(rows, 16.3) == 1_600


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Calls the command with steps that are not made, and gives the batches and versions that were to be measured.

    Memory is 10 MB a molecule, eager 100; 5 % more where the batch is 1600.
    """
    def command(*arguments, free=18.0, eager_loss=1.0):
        asked = []

        def child(job):
            asked.append((job["batch"], job["version"]))
            each = (0.01 if job["version"] == "fast" else 0.1) * (1.05 if job["batch"] == 1_600 else 0.99)
            loss = 1.0 if job["version"] == "fast" else eager_loss
            return made(job["batch"], job["version"], each * job["batch"], loss=loss, steps=1)

        monkeypatch.setattr(large_batches, "_child", child)
        monkeypatch.setattr(large_batches, "free_gb", lambda: free)
        status = large_batches.main(["qm9_schnet", *arguments, "--results", str(tmp_path)])
        return asked, status

    return command


def test_a_workload_leaves_rows(measured, tmp_path, capsys):
    asked, status = measured("--batches", "4", "8", "170")
    assert status == 0 and asked == [(4, "fast"), (4, "eager"), (8, "fast"), (8, "eager"), (170, "fast"),  # 16.8 GB
                                     (1_600, "fast"), (1_500, "fast"), (160, "eager")]
    rows = json.loads((tmp_path / "large_batches.json").read_text())
    assert rows[5] == {"workload": "qm9_schnet", "batch": 170, "version": "eager", "predicted_gb": pytest.approx(16.83)}
    assert [row["predicted_gb"] for row in rows if "limit_gb" in row] == pytest.approx([15.84, 15.74, 15.84], abs=0.01)
    assert "170 eager  not run: needs 16.8 GB, 18.0 GB are free" in capsys.readouterr().out


def test_batches_for_which_there_is_no_memory_are_not_run(measured, tmp_path, capsys):
    large_batches.keep([made(1) | {"workload": "other"}], tmp_path)
    assert measured("--batches", "4", "8", free=17.0) == ([(b, v) for b in (4, 8) for v in large_batches.VERSIONS], 0)
    assert "160 eager  not run: needs 15.8 GB, 17.0 GB are free" in capsys.readouterr().out
    rows = json.loads((tmp_path / "large_batches.json").read_text())
    assert [row["workload"] for row in rows] == ["other"] + 6 * ["qm9_schnet"] and "peak_mb" not in rows[-1]


def test_predict_runs_no_largest_batch(measured):
    assert len(measured("--batches", "4", "8", "--predict")[0]) == 4


@pytest.mark.parametrize("loss", [1.1, float("nan")])
def test_versions_that_differ_are_refused(measured, capsys, loss):
    assert measured("--batches", "4", "8", eager_loss=loss)[1] == 2
    assert "the losses of all versions of qm9_schnet 4 must agree to 1 %" in capsys.readouterr().err


def test_an_unknown_workload(capsys):
    assert large_batches.main(["schnet"]) == 2
    assert "WORKLOAD must be one of qm9_schnet, modelnet_vndgcnn, got 'schnet'" in capsys.readouterr().err


def test_a_single_batch_has_no_line(capsys):
    assert large_batches.main(["qm9_schnet", "--batches", "4", "4"]) == 2
    assert "--batches must be two or more, as a line goes through them, got [4, 4]" in capsys.readouterr().err


def test_a_step_that_fails_is_named(monkeypatch, tmp_path, capsys):
    done = lambda *_, **__: subprocess.CompletedProcess([], -9, "", "")  # noqa: E731  what the kernel does without memory
    monkeypatch.setattr(large_batches.subprocess, "run", done)
    assert large_batches.main(["qm9_schnet", "--results", str(tmp_path)]) == 2
    assert "must run, got exit status -9" in capsys.readouterr().err


def test_table_and_figure():
    missing = {"workload": "qm9_schnet", "version": "eager", "predicted_gb": 25.2}
    rows = [made(8), made(8, "eager", 4.0), made(64, gb=2.0), missing | {"batch": 64}, made(128),
            made(1_600, limit_gb=16.0, gb=15.5, predicted_gb=15.8), missing | {"batch": 90, "limit_gb": 16.0}]
    lines = large_batches_docs.block(rows)
    assert lines[2:5] == ["| qm9_schnet | 8 | 10.0 | 2.00 | 5.0× | 1.00 | 4.00 |",
                          "| qm9_schnet | 64 | 10.0 | – | – | 2.00 | needs 25.2 |",
                          "| qm9_schnet | 128 | 10.0 | – | – | 1.00 | – |"]  # before eager has its turn
    assert lines[6].startswith("| workload | version | largest batch in 16 GB") and lines[8:10] == [
        "| qm9_schnet | ours | 1,600 molecules | 15.8 | 15.5 | 10.0 |",
        "| qm9_schnet | eager | 90 molecules | 25.2 | not run | – |"]
    rate, memory = large_batches_docs.charts(rows)
    assert [series.points for series in rate.series] == [[(8.0, 10.0), (64.0, 10.0), (128.0, 10.0)], [(8.0, 2.0)]]
    assert memory.series[1].points == [(8.0, pytest.approx(4.0))]
