"""One command runs everything, on what is present: which cases, the quick ones, where the rows go."""

import csv
from pathlib import Path

import pytest
import torch

from ace_fast.kernels import ROOMS
from bench import machine, operators, protocols, results, roofline, scaling, suite, tables, workloads
from bench.__main__ import _file, arguments, main

ROOT = Path(__file__).parents[1]
ROOF = roofline.Roofline(10.0, 100.0, "float32")
KINDS = ["workloads", "protocols", "operators"]


def asked(*argv: str):
    return arguments().parse_args(argv)


@pytest.mark.parametrize(("argv", "kinds"), [
    ((), KINDS), (("--quick",), KINDS), (("--workload", "knn"), KINDS[:1]), (("--protocol", "O1"), KINDS[1:2]),
    (("--operators",), KINDS[2:]), (("--op", "knn"), KINDS[2:]), (("--backend", "cpu"), KINDS[2:]),
    (("--op", "knn", "--workload", "all"), ["workloads", "operators"]), (("--roofline",), ["roofline"]),
    (("--scaling",), ["scaling"]), (("--scaling", "edges", "--op", "knn"), ["scaling"]),
    (("--scaling", "--operators"), ["operators", "scaling"]),
])
def test_what_runs(argv, kinds):
    assert suite.kinds(asked(*argv)) == kinds


def test_every_workload_runs_and_can_be_looked_at():
    every, quick = (list(suite.workload_cases(asked(*argv), "cpu")) for argv in ((), ("--quick",)))
    assert [name for name, _ in quick] == list(workloads.WORKLOADS)
    assert {name for name, _ in every} == set(workloads.WORKLOADS) and len(every) > len(quick)
    on_gpu = list(suite.workload_cases(asked("--quick"), "cuda"))
    assert on_gpu == [(name, workloads.find(name).CASES[0]) for name in workloads.WORKLOADS]
    for name, case in quick:  # QUICK is a case that the workload takes
        with pytest.raises(ValueError, match="must"):
            workloads.find(name).load(f"{case}x", "cpu", torch.float32)


def test_a_look_is_at_one_case_of_every_protocol_and_operator():
    found = list(suite.protocol_jobs(asked("--quick"), "cpu"))
    assert [case.protocol for case in found] == list(protocols.PROTOCOLS)
    assert all(case.rows <= protocols.QUICK_ROWS and not case.compiled for case in found)
    assert [(case.name, len(case.problem.instructions)) for case in found if case.protocol in ("F1", "J1")] == [
        ("4_32_1@64", 10), ("square-128@4", 15)]
    assert next(suite.protocol_jobs(asked("--quick", "--protocol", "O1"), "cuda")).rows == 50_000
    jobs = list(suite.operator_jobs(asked("--quick", "--backend", "reference"), "cpu"))
    assert {job.room for job in jobs} == set(ROOMS)
    assert len({job.op for job in jobs}) == len(jobs)
    one = next(job for job in jobs if job.op == "segment_sum")
    assert (one.case.name, one.direction) == ("nbody_100", "forward+backward")


def test_filters():
    found = list(suite.operator_jobs(asked("--op", "knn", "--backend", "reference", "--direction", "forward"), "cpu"))
    assert found and all((job.op, job.backend, job.direction) == ("knn", "reference", "forward") for job in found)
    assert not suite.compiled(asked("--quick")) and suite.compiled(asked("--quick", "--compile"))
    assert suite.compiled(asked()) and not suite.compiled(asked("--no-compile"))
    assert next(suite.operator_jobs(asked("--op", "knn", "--dtype", "float64"), "cpu")).dtype == torch.float64


def test_a_backend_that_is_missing_has_rows_with_its_reason(monkeypatch, capsys):
    job = next(suite.operator_jobs(asked("--op", "segment_sum", "--backend", "triton"), "cpu"))
    row = operators.measure(job, ROOF, 1)
    assert row["skipped"] == "backend triton is not available: it takes CUDA tensors, not cpu" and row["ms"] is None
    assert {"device_name", "revision", "threads", "datetime"} <= row.keys()
    missing = operators.missing("cpu")
    assert missing.keys() >= {"triton", "cuda"} and "reference" not in missing
    tables.operators([row], ROOF, missing)
    assert "backend triton is not available: it takes CUDA tensors" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("where", "what"), [
    ((operators, "prepare"), "operators"), ((operators, "_timed"), "operators"), ((operators, "skipped"), "operators"),
    ((protocols.versions_of, "load"), "protocols"), ((protocols, "verdicts"), "protocols"),
    ((protocols.timing, "interleaved"), "protocols"), ((workloads, "_memory"), "workloads"),
])
def test_whatever_fails_is_a_row(monkeypatch, where, what):
    """Not only the kernel: making the tensors, the reference, the stopwatch, the measurement of memory."""
    def fail(*arguments, **options):
        raise MemoryError("no room")

    monkeypatch.setattr(*where, fail)
    if what == "operators":
        rows = [operators.measure(next(operators.jobs("cpu", torch.float32, ops=["segment_sum"], size="SMALL")), ROOF)]
    elif what == "protocols":
        case = next(protocols.jobs(["O2"], "cpu", torch.float32, "tetris-poly-2@4", compiled=False))
        rows = list(protocols.measure(case, ROOF, 1))
        assert [row["direction"] for row in rows] == list(case.directions)
    else:
        rows = [workloads.run("knn", "2x32_3", repeats=1, compiled=False)]
    assert all(row["error"] == "MemoryError: no room" and row[results.time_key(row)] is None for row in rows)
    assert all(row["device_name"] for row in rows)


@pytest.mark.parametrize(("speedup", "noise", "said"), [
    (1.04, 0.05, "within noise"), (0.96, 0.05, "within noise"), (1.2, 0.05, "1.20x"), (0.8, 0.05, "0.80x"),
    (1.01, None, "1.01x"), (None, None, "-"),
])
def test_nothing_inside_the_noise_is_called_faster_or_slower(speedup, noise, said):
    assert tables.ratio({"speedup": speedup, "noise": noise}) == said


def test_a_run_leaves_a_file_and_a_line_for_each_version(tmp_path, monkeypatch, capsys, same_threads):
    """`python -m bench --quick` of one workload, without --json."""
    file = tmp_path / "run.json"
    monkeypatch.setattr("bench.__main__._file", lambda device, passing: file)
    argv = ["--workload", "knn", "--quick", "--device", "cpu", "--threads", "1", "--repeats", "2"]
    assert main(argv) == main(argv) == 0
    row, = results.load(file)
    assert row["quick"] and row["case"] == "2x256_63" and row["threads"] == 1 and len(row["times_ms"]) == 2
    assert row["fast_mb"] >= 0 and row["compiled_reason"] == "not asked for (--no-compile or --quick)"
    with (tmp_path / f"{results.slug(row)}.csv").open(newline="") as text:
        found = list(csv.DictReader(text))
    assert [line["version"] for line in found] == ["eager", "compiled", "fast"] * 2
    assert found[1]["reason"] and found[2]["quick"] == "True" and found[0]["datetime"] <= found[3]["datetime"]
    assert f"rows: {file}; appended to {tmp_path}" in "".join(capsys.readouterr().out.split("\n"))


def test_the_file_of_a_run():
    found = _file("cpu", False)
    assert found.parent == ROOT / "bench" / "results" and found.suffix == ".json"
    assert found.name.startswith(results.slug(machine.describe("cpu") | {"device": "cpu"}))
    assert _file("cpu", True).parent == ROOT / "build"
    assert "ace-fast bench $(BENCH)" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("argv", "message"), [
    (["--case", "batch100"], "--case batch100 needs the --workload, --protocol, --op or --suite that it is of"),
    (["--protocol", "O1", "--case", "mace"], "the case must be NAME or NAME@ROWS"),
    (["--backend", "gpu"], "invalid choice: 'gpu'"),
    (["--op", "nothing"], "nothing matches --case, --op, --backend and --direction"),
    (["--compare", "no-such-revision", "--op", "knn"], "--compare: REV must be a commit, branch or tag of"),
])
def test_bad_options_name_the_remedy(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *a: ROOF)
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cpu", "--json", str(tmp_path / "x.json"), *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["--workload", "knn", "--device", "cpu", "--json", str(tmp_path / "file" / "x.json")])
    assert "error: [Errno" in capsys.readouterr().err


def test_rates_and_curves_are_runs_too(monkeypatch, tmp_path, capsys):
    """--roofline and --scaling leave rows in the file and a table; a curve that grows too fast is exit status 1."""
    rates = {"suite": "roofline", "op": "roofline", "case": "float32", "device": "cpu", "dtype": "float32",
             "copy_gbs": 9.0, "fma_gflops": None, "matmul_gflops": 50.0, "peak_gflops": 50.0}
    monkeypatch.setattr(roofline, "rows", lambda device, quick: [rates])
    file = tmp_path / "rates.json"
    assert main(["--roofline", "--quick", "--device", "cpu", "--json", str(file)]) == 0
    (row,) = results.load(file)
    assert row["matmul_gflops"] == 50.0 and row["revision"] and "This machine" in capsys.readouterr().out
    curve = {"suite": "scaling", "op": "knn", "axis": "points", "backend": "cpu", "device": "cpu", "dtype": "float32",
             "direction": "forward", "case": "points", "size": 9, "ms": 1.0, "peak_mb": 2.0, "exponent": 3.0,
             "exponent_error": 0.0, "expected_exponent": 2.0, "memory_exponent": None, "expected_memory_exponent": 1.0,
             "error": "time grows as size^3.00"}
    seen = []
    monkeypatch.setattr(scaling, "measure", lambda *a: seen.append(a) or [curve])
    arguments_ = ["--scaling", "points", "--op", "knn", "--quick", "--device", "cpu", "--json", str(file)]
    assert main(arguments_) == 1
    assert "time grows as size^3.00" in " ".join(capsys.readouterr().out.split())
    ((family, rounds, budget_s),) = seen
    assert len(family.axis.sizes) == scaling.FITTED and (rounds, budget_s) == (scaling.ROUNDS, suite.QUICK_S)


def test_curves_are_not_compared(capsys):
    with pytest.raises(SystemExit):
        main(["--compare", "HEAD", "--scaling"])
    assert "--compare takes workloads, protocols and operators" in capsys.readouterr().err
