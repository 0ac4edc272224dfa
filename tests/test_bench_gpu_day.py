"""The one call on a machine with a GPU: parts with limits, everything in one folder."""

import json
import sys
from pathlib import Path

import pytest

from bench import gpu_day, results
from bench.__main__ import arguments as arguments_of
from bench.__main__ import main

ROOT = Path(__file__).parents[1]


def test_a_part_of_the_gpu_day_has_a_limit(tmp_path):
    log, seen = tmp_path / "log.txt", []
    command = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"]
    found = gpu_day.run(command, log, 5, tmp_path, {}, lambda: seen.append(1), 0.5)
    assert found["status"] == "stopped after 5 s" and seen
    assert "begun" in log.read_text() and "KeyboardInterrupt" in log.read_text()  # it may say how far it came
    assert gpu_day.run([sys.executable, "-c", "exit(3)"], log, 30, tmp_path, {})["status"] == 3
    assert "could not start" in gpu_day.run(["/nowhere/at/all"], log, 30, tmp_path, {})["status"]
    assert "not run" in gpu_day.run(command, log, 0, tmp_path, {})["status"]


def test_what_does_not_stop_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day, "GRACE_S", 0.5)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    found = gpu_day.run([sys.executable, "-c", code], tmp_path / "log.txt", 2, tmp_path, {})
    assert found["status"] == "stopped after 2 s" and found["seconds"] < 30


def test_all_results_of_the_gpu_day_are_in_one_folder(tmp_path):
    work, folder = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    folder.mkdir()
    (work / "tests.txt").write_text("\n".join(str(i) for i in range(100)))
    results.write(work / "workloads.json", [{"workload": "toy", "case": "one", "fast_ms": 1.0}])
    parts = {"tests": {"status": 0}, "workloads": {"status": "running"}, "operators": {"status": "not run"}}
    gpu_day.write(folder, {"device_name": "none"}, parts, work)
    assert sorted(p.name for p in folder.iterdir()) == ["logs.txt", "results.json"]
    row = {"workload": "toy", "case": "one", "fast_ms": 1.0, "part": "workloads"}
    assert results.load(folder / "results.json") == gpu_day.rows_of(work, parts) == [row]
    found = json.loads((folder / "results.json").read_text())
    assert found["parts"] == parts and found["machine"] == {"device_name": "none"}
    assert found["logs"] == {"tests": [str(i) for i in range(40, 100)]}
    assert (folder / "logs.txt").read_text().startswith("==== tests\n0\n1\n")


def test_parts_of_the_gpu_day(capsys, monkeypatch):
    every = gpu_day.parts(ROOT, Path("out"))
    assert set(gpu_day.DEFAULT) <= every.keys() and sum(every[n].limit_s for n in gpu_day.DEFAULT) <= gpu_day.BUDGET_S
    assert str(ROOT / "tests" / "test_equivalence.py") in every["tests"].command
    for name, part in every.items():  # commands of ours are ones that we take
        if "bench" in part.command:
            arguments_of().parse_args(part.command[part.command.index("bench") + 1:])
            assert str(Path("out") / f"{name}.json") in part.command
    with pytest.raises(SystemExit):
        main(["--gpu-day", "out", "--parts", "build,nothing"])
    assert "--parts must be of build, tests, warm, " in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(gpu_day, "main", lambda *given: asked.append(given) or 0)
    assert main(["--gpu-day", "out", "--parts", "build,tests", "--budget", "40"]) == main(["--gpu-day"]) == 0
    assert asked == [(Path("out"), ["build", "tests"], 40.0), (Path("bench-results"), None, gpu_day.BUDGET_S)]


def test_chosen_tests_are_there():
    files = [ROOT / "tests" / f"{name}.py" for name in gpu_day.ON_GPU]
    assert all(file.is_file() for file in files)
    for word in ("def test_required_backends", "def test_sanitizer", "def test_captured_training", "def test_a_gpu_"):
        assert any(word in file.read_text() for file in files)
