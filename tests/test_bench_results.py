"""Run files: what is written is read back, pytest-benchmark reads it too, and the CSV misses no version."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench import results

ROOT = Path(__file__).parents[1]
ABOUT = {"device": "cpu", "dtype": "float32", "device_name": "Intel(R) Xeon(R) Processor", "threads": 2, "cores": 2,
         "python": "3.11.2", "torch": "2.13.0", "revision": "0123456789ab+", "datetime": "2026-11-27T02:00:00"}
OPERATOR = ABOUT | {"op": "knn", "case": "8x300", "backend": "cpu", "direction": "forward", "ms": 2.0, "q20_ms": 1.0,
                    "q80_ms": 3.0, "rounds": 3, "noise": 0.01, "reference_ms": 8.0, "peak_mb": 1.5,
                    "first_call_ms": 9.0, "max_relative_error": 1e-7, "flops": 10, "bytes": 20,
                    "roofline_percent": 50.0, "times_ms": [1.0, 2.0, 3.0]}
WORKLOAD = ABOUT | {"workload": "toy", "case": "one", "eager_ms": 4.0, "compiled_ms": None, "fast_ms": 2.0,
                    "eager_mb": 8.0, "fast_mb": 1.0, "compiled_reason": "no compiler", "prepare_ms": 1.0,
                    "eager_q20_ms": 3.5, "fast_q20_ms": 1.5, "fast_first_ms": 7.0, "noise": 0.02, "rounds": 5}
WRONG = ABOUT | {"protocol": "O1", "case": "x@5", "direction": "forward", "eager_ms": 1.0, "fast_ms": None,
                 "cuequivariance_ms": None, "cuequivariance_reason": "is not installed", "error": "fast: wrong"}
ROWS = [OPERATOR, WORKLOAD, WRONG]


def test_rows_survive_the_file(tmp_path):
    file = tmp_path / "run.json"
    results.write(file, ROWS)
    assert results.load(file) == ROWS
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    found = json.loads(file.read_text())
    assert found.keys() == {"machine_info", "commit_info", "benchmarks", "datetime", "version"}
    assert found["datetime"] == ABOUT["datetime"] and found["machine_info"]["device_name"] == ABOUT["device_name"]
    assert (found["commit_info"]["id"], found["commit_info"]["dirty"]) == ("0123456789ab", True)
    first, second, third = found["benchmarks"]
    assert first["name"] == "knn 8x300 cpu forward" and first["group"] == "knn 8x300"
    assert first["stats"]["median"] == 2e-3 and first["stats"]["rounds"] == 3 and first["stats"]["max"] == 3e-3
    assert second["stats"]["median"] == 2e-3 and second["stats"]["rounds"] == 5 and second["stats"]["data"] == []
    assert third["stats"]["rounds"] == 0 and third["extra_info"]["error"] == "fast: wrong"


def test_what_is_not_finite_is_null(tmp_path):
    file = tmp_path / "run.json"
    results.write(file, [OPERATOR | {"gflops": math.inf, "noise": math.nan}])
    row, = results.load(file)
    assert row["gflops"] is None and row["noise"] is None


def test_lists_of_rows_are_read_too(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(ROWS))
    assert results.load(file) == ROWS


def test_a_file_of_the_suite_has_its_time_in_the_statistics(tmp_path):
    file = tmp_path / "suite.json"
    info = {"op": "knn", "case": "8x300", "backend": "cpu"}
    file.write_text(json.dumps({"benchmarks": [{"extra_info": info, "stats": {"median": 0.25, "data": [0.25]}}]}))
    assert results.load(file) == [info | {"ms": 250.0, "times_ms": [250.0]}]


@pytest.mark.parametrize(("text", "message"), [
    (None, "must be a JSON file of benchmarks, got .*No such file"),
    ("{", "must be a JSON file of benchmarks, got Expecting property name"),
    ('{"rows": 1}', "must hold `benchmarks` or a list of rows, got dict; write it with python -m bench --json FILE"),
    ("[1, 2]", "must hold `benchmarks` or a list of rows, got list"),
])
def test_other_files_are_refused(tmp_path, text, message):
    file = tmp_path / "run.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        results.load(file)


def test_pytest_benchmark_compares_run_files(tmp_path):
    for name, factor in (("a", 1.0), ("b", 2.0)):
        results.write(tmp_path / f"{name}.json", [OPERATOR | {"times_ms": [factor, factor, factor + 0.1]}, WORKLOAD])
    done = subprocess.run([sys.executable, "-m", "pytest_benchmark", "compare", "a.json", "b.json"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "Failed to load" not in done.stderr, done.stderr
    assert "knn 8x300 cpu forward" in done.stdout and "toy one" in done.stdout


def test_committed_files_are_run_files():
    for file in sorted((ROOT / "bench" / "results").glob("*.json")):
        found = json.loads(file.read_text())
        assert found.keys() == {"machine_info", "commit_info", "benchmarks", "datetime", "version"}, file.name
        assert results.load(file) and all(results.label(row) for row in results.load(file)), file.name


def test_each_version_has_its_line(tmp_path):
    file, = results.append(tmp_path, ROWS)
    again, = results.append(tmp_path, [WORKLOAD])
    assert file == again and file.name == "intel-xeon-processor-2-threads.csv"
    with file.open(newline="") as text:
        found = list(csv.DictReader(text))
    seen = [(r["kind"], r["name"], r["version"], r["median_ms"], r["reason"]) for r in found]
    assert seen == [
        ("op", "knn", "cpu", "2.0", ""), ("op", "knn", "reference", "8.0", ""),
        ("workload", "toy", "eager", "4.0", ""), ("workload", "toy", "compiled", "", "no compiler"),
        ("workload", "toy", "fast", "2.0", ""),
        ("protocol", "O1", "eager", "1.0", ""), ("protocol", "O1", "fast", "", "fast: wrong"),
        ("protocol", "O1", "cuequivariance", "", "is not installed"),
        *[("workload", "toy", *rest) for rest in (("eager", "4.0", ""), ("compiled", "", "no compiler"),
                                                  ("fast", "2.0", ""))],
    ]
    mine = found[0]
    assert (mine["peak_mb"], mine["flops"], mine["noise"], mine["first_ms"]) == ("1.5", "10", "0.01", "9.0")
    assert found[1]["flops"] == found[2]["noise"] == "" and found[4]["noise"] == "0.02"


def test_a_csv_with_other_columns_is_left_alone(tmp_path):
    file = tmp_path / "intel-xeon-processor-2-threads.csv"
    file.write_text("a,b\n")
    with pytest.raises(ValueError, match="must have the columns datetime, .*, got a, b; move it away"):
        results.append(tmp_path, ROWS)
    assert file.read_text() == "a,b\n"


def test_names_of_devices():
    assert results.slug({"device_name": "NVIDIA H200", "device": "cuda", "threads": 1}) == "nvidia-h200"
    assert results.slug({}) == "unknown"
