"""pytest-benchmark suite of the operators: `pytest bench/bench_operators.py [-k name] [--benchmark-json FILE]`.

BENCH_DTYPE and BENCH_DEVICE choose the dtype (float32) and one device (default: the GPU where there is one, else the
CPU); BENCH_QUICK=1 measures the machine's rates roughly. Each benchmark first passes the gate of bench/gate.py on the
very tensors it times.
"""

import os

import pytest
import torch

from . import machine, operators, roofline

DEVICE = os.environ.get("BENCH_DEVICE") or machine.devices()[-1]
DTYPE = getattr(torch, os.environ.get("BENCH_DTYPE", "float32"))


@pytest.fixture(scope="session")
def roof() -> roofline.Roofline:
    return roofline.measure(DEVICE, DTYPE, os.environ.get("BENCH_QUICK") == "1")


@pytest.fixture(scope="session")
def about() -> dict[str, object]:
    return machine.describe(DEVICE)


JOBS = [job for job in operators.jobs(DEVICE, DTYPE) if not operators.skipped(job)]


@pytest.mark.parametrize("job", JOBS, ids=repr)
def test_operator(benchmark, job, roof, about):
    ready = operators.prepare(job)
    if ready.error:
        pytest.fail(f"not timed: {ready.error}")
    benchmark.group = f"{job.op} {job.case.name} {job.direction}"
    benchmark.extra_info.update(about | roof._asdict() | operators.info(job, ready))

    def run() -> None:
        ready.run()
        if job.device == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
    if benchmark.stats is not None:
        ms = 1e3 * benchmark.stats.stats.median
        benchmark.extra_info.update(operators.rates(ready, ms, roof))
