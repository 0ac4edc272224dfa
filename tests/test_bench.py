"""The benchmarks: what is wrong is not timed, memory and counts are right, rows have their keys."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import counts, gate, gpu_day, machine, memory, operators, roofline, timing, workloads
from bench.__main__ import main

ROOT = Path(__file__).parents[1]
ROOF = roofline.Roofline(10.0, 100.0, "float32")


def test_help_explains_the_workload(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("nbody_segnn", "batch100", "--json", "--operators", "--gpu-day", "noise"))


@pytest.mark.parametrize(("argv", "message"), [
    (["--repeats", "0"], "--repeats must be at least 1, got 0"),
    (["--threads", "0"], "--threads must be at least 1, got 0"),
    (["--workload", "other"], "invalid choice: 'other'"),
    (["--operators", "--case", "nowhere", "--quick"], "nothing matches --case, --op and --backend"),
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
    code = ("import torch; from bench import memory; memory._reset_mark = lambda: False; import json;"
            "print(json.dumps(memory.peak_mb(lambda: torch.ones(64 * 2**20))))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    mb, method = json.loads(done.stdout)
    assert method == memory.LIFETIME
    assert mb == pytest.approx(256, abs=16)


# counts


def tensors(**shapes):
    return {name: torch.zeros(shape, requires_grad=True) for name, shape in shapes.items()}


def product(in1: str, in2: str, out: str, rows: int) -> dict:
    table = importlib.import_module("ace_fast.kernels.tensor_product.cases").table(in1, in2, out)
    cg_index, cg_value = table.on(torch.device("cpu"))
    sizes = {"x1": (rows, table.dims[0]), "x2": (rows, table.dims[1]), "weight": (table.weight_numel,)}
    bias = {"bias": torch.zeros(table.bias_numel, requires_grad=True)}
    static = {"cg_index": cg_index, "cg_value": cg_value, "dims": table.dims, "paths": table.paths}
    return tensors(**sizes) | bias | static | {"bias_slots": table.bias_slots}


def test_counts_of_segment_sum():
    index = {k: torch.zeros(n, dtype=torch.int64) for k, n in (("index", 7), ("order", 7), ("ptr", 5))}
    inputs = tensors(x=(7, 3)) | index
    out = torch.zeros(4, 3)
    # 21 additions; 21 + 12 floats of 4 bytes, 19 integers of 8
    assert counts.forward("segment_sum", inputs, out) == (21, 132 + 152)
    # the gather adds nothing: it reads 12 floats and writes 21
    assert counts.backward("segment_sum", inputs, out) == (0, 132 + 152)


def test_counts_of_a_product_path():
    inputs = product("32x0e", "1x1o", "16x1o", 10)
    # 0 x 1 -> 1: three coefficients, three (i, k). T: 2*3. Weights first: 2*32*16*1 + 2*16*3 = 1120; contraction first:
    # 2*32*3 + 2*32*16*3 = 3264. No scalar in the output, so no bias.
    assert counts.product_row(inputs) == 6 + 1120
    out = torch.zeros(10, 48)
    bytes_ = 4 * (320 + 30 + 512 + 480) + 3 * 24 + 3 * 8
    assert counts.forward("tensor_product", inputs, out) == (11260, bytes_)
    gradients = counts.backward("tensor_product", inputs, out)
    assert gradients.flops == 3 * 11260
    assert gradients.bytes == bytes_ + 4 * (320 + 30 + 512)


def test_counts_of_a_product_to_scalars_and_its_gate():
    inputs = product("4x1o", "1x1o", "3x0e", 5)
    # 1 x 1 -> 0: three coefficients, three (i, k) = (i, 0). T: 6. Weights first: 2*4*3*3 + 2*3*3 = 90; contraction
    # first: 2*4*3 + 2*4*3*1 = 48. Three biases.
    assert counts.forward("tensor_product", inputs, torch.zeros(5, 3)).flops == 5 * (6 + 48 + 3)
    gated = inputs | {"layout": (1, 2, 2, 3)}
    # one scalar: SiLU and gain 6; two gates: sigmoid and gain 5 each; 2 x 3 gated components
    assert counts.gate_row(gated) == 6 + 10 + 6
    assert counts.gated_tensor_product(gated) == 5 * (57 + 22)


def test_counts_of_a_segnn_message():
    """The second message of SEGNN N-body: each path takes the cheaper order."""
    inputs = product("32x0e+32x1o", "1x0e+1x1o", "64x0e+32x1o", 1)
    scalars = 2 + min(4096 + 128, 64 + 4096)  # 0 x 0 -> 0, 64 channels
    lifted = 6 + min(2048 + 192, 192 + 6144)  # 0 x 1 -> 1: the matrix product on the scalar side
    vectors = 6 + min(6144 + 192, 192 + 6144)  # 1 x 0 -> 1
    dots = 6 + min(12288 + 384, 192 + 4096)  # 1 x 1 -> 0: the dot product first
    assert counts.product_row(inputs) == scalars + lifted + vectors + dots == 17044


def test_counts_of_relaxed_linear():
    inputs = tensors(x=(10, 4), weight=(3, 4), bias=(3,), gamma=(), base=(10, 3))
    inputs |= {"residual": None, "activation": "gelu"}
    out = torch.zeros(10, 3)
    # product 240, bias + gamma + base 90, GELU of 40 numbers 200; 40 + 12 + 3 + 1 + 30 + 30 floats
    assert counts.forward("relaxed_linear", inputs, out) == (530, 4 * 116)
    # x and weight 480, bias 30, gamma 2*12 + 2*3 and its scaling 12, the activation's derivative 360
    assert counts.backward("relaxed_linear", inputs, out) == (912, 4 * (116 + 86))


def test_every_large_case_is_counted():
    for job in operators.jobs("cpu", torch.float32):
        assert job.op in counts.FLOPS, job


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
    assert timing.summary([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == timing.Timing(3.5, 2.0, 5.0, 6)
    assert timing.summary([2.0]) == timing.Timing(2.0, 2.0, 2.0, 1)
    assert timing.noise(timing.summary([2.0]), timing.summary([2.5])) == pytest.approx(0.25)


# the gate


def small_job(direction: str = "forward") -> operators.Job:
    found = operators.jobs("cpu", torch.float32, case="odd", op="segment_sum", backend="reference", size="SMALL")
    return next(job for job in found if job.direction == direction and job.op == "segment_sum")


def wrong(monkeypatch, **changed):
    room = importlib.import_module("ace_fast.kernels.segment_sum.op")
    right = room.reference
    parts = {"forward": right.forward, "backward": right.backward} | changed
    monkeypatch.setitem(room.BACKENDS, "reference", SimpleNamespace(**parts))
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
        if name == "compiled" and compiled:
            raise RuntimeError(compiled)
        scale = factor if name == "fast" else 1.0
        return SimpleNamespace(step=lambda: x * scale, check=lambda: {"output": x * scale})

    data = SimpleNamespace(sizes={"rows": 8}, prepare_ms=0.0)
    gold = lambda data, eager: ({"output": x.double()}, eager, {})  # noqa: E731
    return SimpleNamespace(CASES=("one", "two"), EXTRAS=(), load=lambda *a: data, variant=variant, gold=gold)


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


def test_cases_come_in_order_and_errors_set_the_status(use, tmp_path):
    use(toy())
    file = tmp_path / "new" / "rows.json"
    arguments = ["--workload", "nbody_segnn", "--device", "cpu", "--repeats", "1", "--json", str(file)]
    assert main(arguments) == 0
    assert [row["case"] for row in json.loads(file.read_text())] == ["one", "two"]
    use(toy(factor=2.0))
    assert main(arguments) == 1
    assert all(row["error"] for row in json.loads(file.read_text()))


def test_unknown_workload_and_case():
    with pytest.raises(ValueError, match="workload must be one of nbody_segnn, got 'qm9'"):
        workloads.find("qm9")
    module = workloads.find("nbody_segnn")
    assert module.CASES[:2] == ("batch100", "batch1000")
    with pytest.raises(ValueError, match="the case must be batchN with N graphs, as in batch100.*got 'batchX'"):
        module.load("batchX", "cpu", torch.float32)


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
    row, = json.loads(file.read_text())
    assert {k: row[k] for k in workloads.KEYS[:3]} == {"workload": "nbody_segnn", "case": "batch4", "device": "cpu"}
    assert row["compiled_ms"] is None and row["compiled_reason"]
    assert all(row[k] > 0 for k in ("eager_ms", "fast_ms", "speedup", "eager_mb", "fast_mb"))
    assert row["threads"] == 1 and row["fast_plain_adam_ms"] > 0
    assert (row["graphs"], row["nodes"], row["edges"]) == (4, 20, 80)
    assert row["memory_method"] == memory.RESET


# the rest


def test_operators_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda *a: ROOF)
    file = tmp_path / "rows.json"
    assert main(["--operators", "--op", "segment_sum", "--case", "nbody_100", "--device", "cpu", "--repeats", "1",
                 "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert {row["direction"] for row in rows} == set(operators.DIRECTIONS)
    assert all(row["case"] == "nbody_100" and row["ms"] > 0 for row in rows)


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


def test_a_part_of_the_gpu_day_has_a_limit(tmp_path):
    log = tmp_path / "log.txt"
    command = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"]
    found = gpu_day.run(command, log, 2, tmp_path, {})
    assert found["status"] == "stopped after 2 s" and "begun" in log.read_text()
    assert gpu_day.run([sys.executable, "-c", "exit(3)"], log, 30, tmp_path, {})["status"] == 3
    assert "could not start" in gpu_day.run(["/nowhere/at/all"], log, 30, tmp_path, {})["status"]
    assert "not run" in gpu_day.run(command, log, 0, tmp_path, {})["status"]


def test_description_of_the_machine():
    found = machine.describe("cpu")
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert found["device_name"] and machine.version("no-such-package-at-all") is None
