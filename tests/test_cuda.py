"""CUDA kernels on a GPU: streams, CUDA graphs, a second device, NVIDIA's sanitizer. Values are tested elsewhere."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ace_fast.backend import available
from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import cast, generator

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

SANITIZERS = [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "compute-sanitizer")]
SANITIZER = shutil.which("compute-sanitizer") or next(filter(os.path.exists, SANITIZERS), None)
NAMES = ("odd", "both_branches", "repeated_edge", "mixed_modes", "mixed_modes_per_sample", "many_channels")
CASES = [
    case
    for room in ROOMS
    if available("cuda")[room].get("cuda") == ""
    for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL
    if case.name in NAMES and "cuda" not in case.refused_by
]
if not CASES:
    pytest.skip(f"no CUDA kernels: {available('cuda')[ROOMS[0]].get('cuda')}", allow_module_level=True)


def inputs_of(case, device: str = "cuda", seed: int = 0) -> dict:
    inputs = cast(case.inputs(generator(seed)), case, torch.float32, device)
    return {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def run(case, inputs: dict) -> list[torch.Tensor]:
    out = case.op(*inputs.values(), "cuda")
    return [out] if isinstance(out, torch.Tensor) else list(out)


def floats(inputs: dict) -> list[torch.Tensor]:
    return [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]


def equal(found, expected) -> bool:
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_runs_on_the_current_stream(case):
    """The inputs get their values late on a stream: a kernel on any other one would read what was there before."""
    expected = run(case, inputs_of(case))
    late = inputs_of(case)
    values = [x.clone() for x in floats(late)]
    for x in floats(late):
        x.fill_(float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for x, value in zip(floats(late), values, strict=True):
            x.copy_(value)
        found = run(case, late)
    stream.synchronize()
    assert equal(found, expected)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_cuda_graph(case):
    """Captured once, replayed with other values in the same memory; nothing waits for the device in between."""
    static, other = inputs_of(case), inputs_of(case)
    for x in floats(other):
        if x.dtype == torch.float32:  # the coefficient tables are float64 and stay
            x.mul_(0.5).add_(0.125)
    expected = run(case, other)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(case, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(case, static)
    for x, y in zip(floats(static), floats(other), strict=True):
        x.copy_(y)
    graph.replay()
    torch.cuda.synchronize()
    assert equal(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_second_device(case):
    expected = run(case, inputs_of(case, "cuda:0"))
    found = run(case, inputs_of(case, "cuda:1"))
    assert all(x.device.index == 1 for x in found)
    assert torch.cuda.current_device() == 0
    assert equal(found, expected)


@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_sanitizer(tool):
    """No access out of bounds, no race in shared memory, no stray barrier."""
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "TRITON_INTERPRET": "0", "ACE_FAST_EMULATE": "0"}
    command = [SANITIZER, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


if __name__ == "__main__":
    for each in CASES:
        run(each, inputs_of(each))
    torch.cuda.synchronize()
