"""Throughput and memory against the batch: rows of tiny batches, the line through them, the table; nothing is timed."""

import json

import pytest

from ace_fast.bench import large_batches, large_batches_docs


def made(batch, version="fast", gb=1.0, **more):
    """A row of so many GB, 10 samples a second for ours, 2 for eager."""
    mb = gb * large_batches.MIB_OF_GB
    return {"workload": "qm9_schnet", "batch": batch, "version": version, "held_mb": 0.25 * mb, "peak_mb": 0.75 * mb,
            "cpu_s": batch / {"fast": 10, "eager": 2}[version], "threads": 1, "device_name": "Processor",
            "torch": "2.10", "revision": "abc"} | more


def test_versions_of_a_batch_are_measured(own_cache):
    rows = large_batches.measure("modelnet_vndgcnn", 2, ["fast", "eager"], 1, 1)
    assert [row["version"] for row in rows] == ["fast", "eager"]
    fast, eager = rows
    assert fast["cpu_s"] > 0 and eager["cpu_s"] > 0 and fast["peak_mb"] < eager["peak_mb"]
    assert fast["loss"] == pytest.approx(eager["loss"], rel=large_batches.AGREE)


def test_molecules_are_repeated_beyond_those_of_the_file(monkeypatch):
    if large_batches.molecules.find_file() is None:
        pytest.skip("shared/data is not beside this checkout")
    few = large_batches.molecules.load(6)
    monkeypatch.setattr(large_batches.molecules, "load", lambda count: few)
    monkeypatch.setattr(large_batches.molecules, "read_npz", lambda file: few)
    data = large_batches.load("qm9_schnet", 14)
    assert data.sizes["molecules"] == 14 and data.target[:6].tolist() == data.target[6:12].tolist()


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_versions_that_differ_are_refused(monkeypatch, factor):
    plain = large_batches.modelnet_vndgcnn.variant

    def variant(name, data):
        made = plain(name, data)
        return made._replace(step=lambda: factor * made.step()) if name == "eager" else made

    monkeypatch.setattr(large_batches.modelnet_vndgcnn, "variant", variant)
    with pytest.raises(ValueError, match="the losses of all versions must agree to 1 %"):
        large_batches.measure("modelnet_vndgcnn", 2, ["fast", "eager"], 0, 1)


def test_the_largest_batch_is_where_the_line_meets_the_limit():
    rows = [made(10, gb=9.0), made(100, gb=1.2), made(200, gb=2.2)]  # 0.2 + batch / 100
    assert large_batches.line(rows) == pytest.approx((0.2, 0.01))
    assert large_batches.largest(rows, 16.0) == 1_500 and large_batches.largest(rows, 16.3) == 1_600


def test_a_workload_leaves_rows(monkeypatch, tmp_path, capsys):
    asked = []

    def child(job):
        asked.append((job["batch"], job["versions"], job["rounds"]))
        more = 1.05 if job["batch"] == 1_600 else 0.99
        return [made(job["batch"], version, more * job["batch"] * (0.01 if version == "fast" else 0.1))
                for version in job["versions"]]

    monkeypatch.setattr(large_batches, "_child", child)
    monkeypatch.setattr(large_batches, "free_gb", lambda: 18.0)
    given = ["qm9_schnet", "--batches", "4", "8", "--eager", "4", "8", "--results", str(tmp_path)]
    assert large_batches.main(given) == 0
    both = ["fast", "eager"]
    assert asked == [(4, both, 1), (8, both, 1), (1_600, ["fast"], 0), (1_500, ["fast"], 0), (160, ["eager"], 0)]
    rows = json.loads((tmp_path / "large_batches.json").read_text())
    predicted = [row["predicted_gb"] for row in rows if "limit_gb" in row]
    assert predicted == pytest.approx([15.84, 15.75, 15.84], abs=0.01)  # the first one takes 16.8
    large_batches.keep([made(1) | {"workload": "other"}], tmp_path)
    monkeypatch.setattr(large_batches, "free_gb", lambda: 17.0)
    assert large_batches.main(given) == 0 and "eager  not run: 17.0 GB are free" in capsys.readouterr().out
    rows = json.loads((tmp_path / "large_batches.json").read_text())
    assert [row["workload"] for row in rows] == ["other"] + 6 * ["qm9_schnet"] and "peak_mb" not in rows[-1]
    assert large_batches.main(["schnet"]) == 2
    assert "WORKLOAD must be one of qm9_schnet, modelnet_vndgcnn, got 'schnet'" in capsys.readouterr().err


def test_table_and_figure():
    rows = [made(8), made(8, "eager", 4.0), made(64, gb=2.0), made(1_600, limit_gb=16.0, gb=15.5),
            {"workload": "qm9_schnet", "batch": 90, "version": "eager", "limit_gb": 16.0}]
    lines = large_batches_docs.block(rows)
    assert lines[2:4] == ["| qm9_schnet | 8 | 10.0 | 2.00 | 5.0× | 1.00 | 4.00 |",
                          "| qm9_schnet | 64 | 10.0 | – | – | 2.00 | – |"]
    assert lines[5].startswith("| workload | version | largest batch in 16 GB") and lines[7:9] == [
        "| qm9_schnet | ours | 1,600 molecules | 15.5 |", "| qm9_schnet | eager | 90 molecules | not run |"]
    rate, memory = large_batches_docs.charts(rows)
    assert [series.points for series in rate.series] == [[(8.0, 10.0), (64.0, 10.0)], [(8.0, 2.0)]]
    assert memory.series[1].points == [(8.0, pytest.approx(4.0))]
