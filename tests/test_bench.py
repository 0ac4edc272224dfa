"""The benchmarks: what is wrong is not timed, memory and counts are right, rows have their keys."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ace_fast.kernels.vn_edge_conv import cases as vn_edge_conv_cases
from bench import (
    gate,
    machine,
    memory,
    molecules,
    operators,
    results,
    roofline,
    steps,
    tables,
    timing,
    workloads,
)
from bench.__main__ import main

ROOT = Path(__file__).parents[1]
ROOF = roofline.Roofline(10.0, 100.0, "float32")


def test_help_explains_the_workload(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("nbody_segnn", "batch100", "--json", "--operators", "--gpu-day", "noise"))
    assert all(name in text for name in workloads.WORKLOADS)


@pytest.mark.parametrize(("argv", "message"), [
    (["--repeats", "0"], "--repeats must be at least 1, got 0"),
    (["--threads", "0"], "--threads must be at least 1, got 0"),
    (["--workload", "other"], "invalid choice: 'other'"),
    (["--operators", "--case", "nowhere", "--quick"], "nothing matches --case, --op, --backend and --direction"),
])
def test_bad_options_name_the_remedy(argv, message, capsys, monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *a: ROOF)
    with pytest.raises(SystemExit) as stop:
        main(["--device", "cpu", *argv])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_cuda_is_refused_where_there_is_none(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "torch sees no GPU; use --device cpu" in capsys.readouterr().err
    assert main(["--gpu-day"]) == 2
    assert "--gpu-day needs a GPU" in capsys.readouterr().err


# memory


def test_memory_of_a_known_tensor():
    mb, method = memory.peak_mb(lambda: torch.ones(16 * 2**20))
    assert method == memory.RESET
    assert mb == pytest.approx(64, abs=2)


def test_memory_counts_what_is_freed_within_the_call():
    total = lambda: torch.ones(16 * 2**20).sum()  # noqa: E731
    total()
    mb, _ = memory.peak_mb(total)
    assert mb == pytest.approx(64, abs=2)


def test_memory_counts_reused_pages():
    """Small tensors come from the heap, which keeps freed pages: the second call must cost as much as the first."""
    many = lambda: [torch.ones(8 * 1024) for _ in range(1024)]  # noqa: E731
    many()
    mb, _ = memory.peak_mb(many)
    assert mb == pytest.approx(32, abs=3)


def test_memory_without_the_mark_says_so():
    """Also in the child of a process with more memory than the call takes: its maximum starts with its own image."""
    ballast = torch.ones(128 * 2**20)
    code = ("import torch; from bench import memory; memory._reset_mark = lambda: False; import json;"
            "print(json.dumps(memory.peak_mb(lambda: torch.ones(64 * 2**20))))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    mb, method = json.loads(done.stdout)
    assert method == memory.LIFETIME and ballast[0] == 1
    assert mb == pytest.approx(256, abs=16)


# roofline


def test_roofline_percent():
    # 2e6 bytes at 10 GB/s 0.2 ms, 1e6 flops at 100 GFLOP/s 0.01 ms: memory bounds
    assert ROOF.least_ms(1e6, 2e6) == pytest.approx(0.2)
    assert ROOF.percent(1e6, 2e6, 0.4) == pytest.approx(50)
    assert ROOF.least_ms(1e9, 2e6) == pytest.approx(10)


def test_roofline_is_measured():
    found = roofline.measure("cpu", torch.float64, quick=True)
    assert found.copy_gbs > 0 and found.matmul_gflops > 0 and found.dtype == "float64"


# timing


def test_rounds_are_interleaved_and_the_first_do_not_count():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in ("a", "b", "c")}
    times = timing.interleaved(variants, repeats=4, warmup=2)
    assert calls == ["a", "b", "c"] * 6
    assert {t.rounds for t in times.values()} == {4}


def test_a_budget_ends_the_rounds_but_one_counts():
    calls = []
    times = timing.interleaved({"a": lambda: calls.append(0)}, repeats=9, warmup=3, budget_s=-1)
    assert times["a"].rounds == 1 and len(calls) == 2


def test_medians_and_quantiles():
    assert timing.summary([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) [:4] == (3.5, 2.0, 5.0, 6)
    assert timing.summary([2.0]) == timing.Timing(2.0, 2.0, 2.0, 1, [2.0])
    assert timing.noise(timing.summary([2.0]), timing.summary([2.5])) == pytest.approx(0.25)


# the gate


def small_job(direction: str = "forward") -> operators.Job:
    found = operators.jobs("cpu", torch.float32, case="odd", ops=("segment_sum",), backend="reference", size="SMALL")
    return next(job for job in found if job.direction == direction and job.op == "segment_sum")


def wrong(monkeypatch, **changed):
    room = importlib.import_module("ace_fast.kernels.segment_sum.op")
    right = room.reference
    parts = {"forward": right.forward, "backward": right.backward} | changed
    monkeypatch.setitem(room.BACKENDS, "reference", SimpleNamespace(**parts))
    for op in (room.segment_sum_op, room.segment_sum_bwd):
        monkeypatch.setattr(op, "_runs", {})
    return right


@pytest.mark.parametrize("direction", operators.DIRECTIONS)
def test_right_kernel_is_timed(direction):
    row = operators.measure(small_job(direction), ROOF, 1)
    assert "error" not in row
    keys = ("ms", "q20_ms", "q80_ms", "reference_ms", "gflops", "gbs", "roofline_percent", "peak_mb", "first_call_ms",
            "noise", "rows_per_s", "flops", "bytes", "threads")
    assert all(isinstance(row[key], (int, float)) for key in keys)


@pytest.mark.parametrize("direction", operators.DIRECTIONS)
def test_wrong_values_are_not_timed(direction, monkeypatch):
    reference = wrong(monkeypatch, forward=lambda *a: reference.forward(*a) * (1 + 1e-5))
    row = operators.measure(small_job(direction), ROOF, 1)
    assert row["error"].startswith("output 0 is wrong: error")
    assert row["ms"] is None and "speedup" not in row


def test_wrong_gradients_are_not_timed(monkeypatch):
    reference = wrong(monkeypatch, backward=lambda *a: reference.backward(*a).flip(0).contiguous())
    row = operators.measure(small_job(), ROOF, 1)
    assert row["error"].startswith("gradient of x is wrong: error") and row["ms"] is None


def test_nan_and_exceptions_are_not_timed(monkeypatch):
    reference = wrong(monkeypatch, forward=lambda *a: reference.forward(*a) * float("nan"))
    assert "output 0 is wrong: error nan" in operators.measure(small_job(), ROOF, 1)["error"]

    def fail(*a):
        raise RuntimeError("no such kernel")

    wrong(monkeypatch, forward=fail)
    assert operators.measure(small_job(), ROOF, 1)["error"] == "RuntimeError: no such kernel"


def test_missing_and_misshapen_results_are_wrong():
    gold = {"output": torch.ones(2, 3)}
    limit = gate.limits(gold, gold, torch.float32)
    assert "output must be [2, 3], got None" in gate.verdict({}, gold, limit)[0]
    assert "output must be [2, 3], got [3, 2]" in gate.verdict({"output": torch.ones(3, 2)}, gold, limit)[0]
    assert gate.verdict({"output": torch.ones(2, 3)}, gold, limit) == ("", 0.0)


# workloads


def toy(factor: float = 1.0, compiled: str = "") -> SimpleNamespace:
    """A workload of one product; `fast` is off by `factor`."""
    x = torch.linspace(0, 1, 8)

    def variant(name, data):
        if name in ("compiled", "graph") and compiled:
            raise RuntimeError(compiled)
        scale = factor if name == "fast" else 1.0
        return SimpleNamespace(step=lambda: x * scale, check=lambda: {"output": x * scale})

    data = SimpleNamespace(sizes={"rows": 8}, prepare_ms=0.0)
    judge = lambda data, eager: gate.judge({"output": x.double()}, eager, torch.float32)  # noqa: E731
    return SimpleNamespace(CASES=("one", "two"), GPU_CASES=("three",), QUICK="small", EXTRAS=(), GPU_EXTRAS=("graph",),
                           TIMING={}, load=lambda *a: data, variant=variant, judge=judge)


@pytest.fixture
def use(monkeypatch):
    def put(module):
        monkeypatch.setattr(workloads, "find", lambda name: module)
        monkeypatch.setattr(workloads, "_child", lambda *a: (1.5, memory.RESET))

    return put


def test_row_of_a_workload(use):
    use(toy())
    row = workloads.run("toy", "one", repeats=2)
    assert set(workloads.KEYS) <= row.keys() and "error" not in row
    numbers = [row[k] for k in workloads.KEYS[3:]]
    assert all(isinstance(v, float) for v in numbers)
    assert row["speedup"] == row["eager_ms"] / row["fast_ms"] and row["rows"] == 8 and row["rounds"] == 2
    assert {"fast_q20_ms", "fast_q80_ms", "fast_first_ms", "noise", "threads", "torch", "revision"} <= row.keys()


def test_wrong_fast_version_is_not_timed(use, capsys):
    use(toy(factor=1.001))
    row = workloads.run("toy", "one", repeats=2)
    assert "fast differs from the reference: output is wrong" in row["error"]
    assert all(row[k] is None for k in workloads.KEYS[3:])


def test_failing_compiler_gives_a_reason(use):
    use(toy(compiled="no C++ compiler\nmore"))
    row = workloads.run("toy", "one", repeats=1)
    assert row["compiled_ms"] is None and row["compiled_reason"] == "RuntimeError: no C++ compiler"
    assert row["fast_ms"] is not None


def test_more_versions_on_a_gpu():
    """They may fail, with a reason; on the CPU they are not tried."""
    module = toy(compiled="operation not permitted when stream is capturing\nmore")
    row = {}
    variants, _ = workloads._checked(module, module.load(), "cuda", False, row)
    assert variants.keys() == {"eager", "fast"}
    assert row["graph_reason"] == "RuntimeError: operation not permitted when stream is capturing"
    variants, _ = workloads._checked(toy(), module.load(), "cuda", False, {})
    assert variants.keys() == {"eager", "fast", "graph"}
    assert workloads._checked(toy(), module.load(), "cpu", False, {})[0].keys() == {"eager", "fast"}


def test_cases_come_in_order_and_errors_set_the_status(use, tmp_path):
    use(toy())
    file = tmp_path / "new" / "rows.json"
    arguments = ["--workload", "nbody_segnn", "--device", "cpu", "--repeats", "1", "--json", str(file)]
    assert main(arguments) == 0
    assert [row["case"] for row in results.load(file)] == ["one", "two"]
    use(toy(factor=2.0))
    assert main(arguments) == 1
    assert all(row["error"] for row in results.load(file))


def test_unknown_workload_and_case():
    with pytest.raises(ValueError, match="workload must be one of modelnet_vndgcnn, nbody_segnn, .*, got 'qm9'"):
        workloads.find("qm9")
    assert workloads.find("nbody_segnn").CASES[:2] == ("batch100", "batch1000")


@pytest.mark.parametrize(("workload", "case", "message"), [
    ("nbody_segnn", "batchX", "the case must be batchN with N graphs, as in batch100.*got 'batchX'"),
    ("qm9_segnn", "batch1", "the case must be batchN with N >= 2 molecules, as in batch128, got 'batch1'"),
    ("qm9_schnet", "batch1_table", "the case must be batchN or batchN_table with N >= 2 molecules, got 'batch1_table'"),
    ("md17_schnet", "aspirin", "the case must be batchN or batchN_table with N >= 2 conformations, got 'aspirin'"),
    ("mocap_egno", "batch1", "the case must be batchN with N >= 2 samples, as in batch12, batch128, got 'batch1'"),
    ("modelnet_vndgcnn", "clouds1x300", "must be cloudsBxN with B >= 2 .*N >= 20 points.*got 'clouds1x300'"),
    ("modelnet_vndgcnn", "8x300", "must be cloudsBxN.*as in clouds8x300.*got '8x300'"),
    ("vn_edge_conv", "42_85_8x300_k301", "IN_OUT_BxN.*with K <= N, as in 42_85_8x300_forward, got '42_85_8x300_k301'"),
    ("vn_linear", "42_8x300", "IN_OUT_BxN.*got '42_8x300'"),
    ("knn", "8x10_3", "must be BxN_F.*with K <= N, as in 8x1024_63, got '8x10_3'"),
])
def test_unknown_cases_say_what_a_case_is(workload, case, message):
    with pytest.raises(ValueError, match=message):
        workloads.find(workload).load(case, "cpu", torch.float32)


def test_a_gpu_runs_more_cases():
    assert workloads.cases(toy(), "cpu") == ("one", "two")
    assert workloads.cases(toy(), "cuda") == ("one", "two", "three")
    assert workloads.find("modelnet_vndgcnn").CASES[0] == "clouds8x300"
    for name in workloads.WORKLOADS:
        found = workloads.cases(workloads.find(name), "cuda")
        assert len(set(found)) == len(found)


@pytest.fixture
def one_thread():
    """Two processes that each take all cores wait for one another."""
    before = torch.get_num_threads()
    yield ["--threads", "1"]
    torch.set_num_threads(before)


def test_nbody_segnn_end_to_end(tmp_path, one_thread):
    """The real models on four graphs: equal outputs, loss and gradients, then one row with every key."""
    file = tmp_path / "rows.json"
    assert main(["--workload", "nbody_segnn", "--case", "batch4", "--device", "cpu", "--quick", "--repeats", "1",
                 "--no-compile", "--json", str(file), *one_thread]) == 0
    row, = results.load(file)
    assert {k: row[k] for k in workloads.KEYS[:3]} == {"workload": "nbody_segnn", "case": "batch4", "device": "cpu"}
    assert row["compiled_ms"] is None and row["compiled_reason"]
    assert all(row[k] > 0 for k in ("eager_ms", "fast_ms", "speedup", "eager_mb", "fast_mb"))
    assert row["threads"] == 1 and row["fast_plain_adam_ms"] > 0
    assert (row["graphs"], row["nodes"], row["edges"]) == (4, 20, 80)
    assert row["memory_method"] == memory.RESET


def test_molecules_of_the_protocol():
    """128 molecules: 2315 atoms and 6088 edges of QM9, or generated ones that are alike."""
    found, source = molecules.load(128)
    edges = molecules.edges(found)
    assert edges.shape[0] == 2 and (np.diff(edges[1]) >= 0).all()
    if source == "QM9":
        assert (len(found.pos), edges.shape[1]) == (2315, 6088)


@pytest.mark.skipif(molecules.find_file() is None, reason="qm9.npz is not at hand")
def test_no_more_molecules_than_there_are():
    with pytest.raises(ValueError, match="must have at most 9327 molecules, as qm9.npz has, got 9328"):
        molecules.load(9328)


def test_generated_molecules_are_alike(monkeypatch):
    monkeypatch.setattr(molecules, "find_file", lambda: None)
    (found, source), (again, _) = molecules.load(64), molecules.load(64)
    assert source == "generated" and (found.pos == again.pos).all()
    atoms, edges = len(found.pos), molecules.edges(found)
    assert 16 < atoms / 64 < 20 and 2.4 < edges.shape[1] / atoms < 2.9
    assert set(np.unique(found.z)) <= set(molecules.ELEMENTS) and len(found.targets[molecules.TARGET]) == 64
    for start, stop in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        x = found.pos[start:stop]
        assert np.linalg.norm(x[:, None] - x[None] + 9 * np.eye(len(x))[:, :, None], axis=2).min() > 1.2


@pytest.mark.parametrize(("workload", "case", "most"), [
    ("qm9_segnn", "batch2", 1e-3), ("qm9_schnet", "batch4", 1e-3), ("qm9_schnet", "batch4_table", 1e-3),
    ("md17_schnet", "batch2", 1e-3), ("md17_schnet", "batch2_table", 1e-3),
    ("mocap_egno", "batch2", 0.05),  # eager's rounding too: batch norms cancel the gradients of what is before them
])
def test_models_are_the_reference(workload, case, most):
    """The real models on a few samples: equal output, loss and gradients."""
    module = workloads.find(workload)
    data = module.load(case, "cpu", torch.float32)
    eager = module.variant("eager", data).check()
    error, worst = module.judge(data, eager)("fast", module.variant("fast", data).check())
    assert error == "" and 0 < worst < most


# the rest


def test_operators_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *a: ROOF)
    file = tmp_path / "rows.json"
    assert main(["--operators", "--op", "segment_sum", "--case", "nbody_100", "--device", "cpu", "--repeats", "1",
                 "--json", str(file)]) == 0
    rows = results.load(file)
    assert {row["direction"] for row in rows} == set(operators.DIRECTIONS)
    assert all(row["case"] == "nbody_100" and row["ms"] > 0 for row in rows)


def test_operators_take_turns():
    """What is stopped early has seen the first case of every operator."""
    found = [(job.op, job.case.name) for job in operators.jobs("cpu", torch.float32, backend="reference")]
    cases = list(dict.fromkeys(found))
    ops = {op for op, _ in cases}
    assert {op for op, _ in cases[:len(ops)]} == ops


def test_what_does_not_fit_is_a_row_that_says_so(monkeypatch, tmp_path):
    case = next(c for c in vn_edge_conv_cases.SMALL if c.name == "odd" and "bwd" not in repr(c))
    job = operators.Job("vn_edge_conv", case, "reference", "forward", "cpu", torch.float32)
    assert operators.skipped(job) == "" and operators.skipped(job._replace(device="cuda")) == ""
    refused = job._replace(case=case._replace(refused_by=("reference",)))
    assert operators.measure(refused, ROOF, 1)["skipped"] == "backend reference does not take this case"
    monkeypatch.setattr(operators, "CPU_LIMIT", 2**10)
    row = operators.measure(job, ROOF, 1)
    assert row["ms"] is None and "error" not in row
    assert "the plain reference needs about" in row["skipped"]
    tables.operators([row], ROOF)


def test_pytest_benchmark_suite_runs(tmp_path):
    file = tmp_path / "suite.json"
    command = [sys.executable, "-m", "pytest", "-q", "bench/bench_operators.py", "-p", "no:cacheprovider"]
    command += ["-k", "segment_sum-nbody_100-reference", f"--benchmark-json={file}"]
    command += ["--benchmark-max-time=0.001", "--benchmark-min-rounds=1"]
    # pytest-benchmark measures nothing in what it takes for a worker of pytest-xdist
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")} | {"BENCH_QUICK": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    info = [b["extra_info"] for b in json.loads(file.read_text())["benchmarks"]]
    assert len(info) == 2
    keys = {"device", "threads", "torch", "triton", "e3nn", "revision", "case", "bytes", "flops", "gflops", "gbs",
            "first_call_ms", "peak_mb", "roofline_percent", "rows_per_s"}
    assert all(keys <= i.keys() for i in info)


def test_description_of_the_machine():
    found = machine.describe("cpu")
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["device_name"] and machine.version("no-such-package-at-all") is None


def test_sizes_of_what_cancels():
    """A bias of every row: the sum of the absolute values of its terms, of its largest element."""
    layer = torch.nn.Linear(2, 2)
    signs = torch.tensor([[1.0, 2.0], [-1.0, -3.0], [0.5, 1.0]])
    loss_of = lambda call: (None, (call(torch.ones(3, 2)) * signs).sum())  # noqa: E731
    found = steps.gamma_sizes(Wide(layer), loss_of, lambda name: (3, 2), also="bias")
    assert found == {"gradient of layer.bias": 6.0}


class Wide(torch.nn.Module):
    """A layer whose bias may have a row for each of its input's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def get_gammas(self):
        return []

    def forward(self, x):
        return x @ self.layer.weight.T + self.layer.bias
