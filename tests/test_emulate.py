"""The emulation of CUDA kernels on the host: barriers, collectives, memory, tensor cores, and what it must refuse."""

import functools
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ace_fast import native
from ace_fast.backend import available
from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import cast, generator

ROOT = Path(__file__).resolve().parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++")
if not COMPILER or not (ROOT / "kernels" / "native.cuh").exists():
    if "emulate" in os.environ.get("ACE_FAST_REQUIRE", ""):
        pytest.fail("ACE_FAST_REQUIRE names emulate, but there is no C++ compiler", pytrace=False)
    pytest.skip("a C++ compiler and a checkout are needed", allow_module_level=True)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """tests/emulate_kernels.cu, compiled for the host."""
    folder = tmp_path_factory.mktemp("emulate")
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-DACE_EMULATE", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-I{ROOT / 'kernels'}", "-isystem", f"{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"]
    library = folder / "libemulate_test.so"
    source = ROOT / "tests" / "emulate_kernels.cu"
    subprocess.run([COMPILER, *flags, "-x", "c++", str(source), "-ltorch_cpu", "-o", str(library)], check=True)
    torch.ops.load_library(str(library))
    return torch.ops.ace_fast_emulate_test


@pytest.fixture(params=["forward", "reversed"])
def order(request, monkeypatch):
    monkeypatch.setenv("ACE_FAST_EMULATE_ORDER", request.param)
    return request.param


def test_barrier_and_dynamic_shared_memory(kernels, order):
    x = torch.randn(1024)
    assert torch.equal(kernels.test(0, x, x), x.view(4, 256).flip(1).flatten())


def test_a_missing_barrier_shows(kernels, monkeypatch):
    """The second half reads what the first wrote; which half that is depends on the order, so the results differ."""
    x = torch.randn(256)
    found = []
    for name in ("forward", "reversed"):
        monkeypatch.setenv("ACE_FAST_EMULATE_ORDER", name)
        found.append(kernels.test(1, x, x))
        assert found[-1].isnan().sum() == 128
    assert (found[0].isnan() ^ found[1].isnan()).all()


def test_sum_by_shuffles_and_atomics(kernels, order):
    x = torch.randn(2048)
    y = kernels.test(2, x, x)
    torch.testing.assert_close(y[0], x.sum())


def test_shuffles(kernels, order):
    x = torch.arange(64.0)
    y = kernels.test(3, x, x).view(8, 2, 32)
    lane = torch.arange(32)
    for warp in range(2):
        v = x.view(2, 32)[warp]
        inside = lambda other, width: other // width == lane // width  # noqa: E731
        assert torch.equal(y[0, warp], v[3].expand(32))
        assert torch.equal(y[1, warp], v[lane // 8 * 8 + (lane + 1) % 8])
        assert torch.equal(y[2, warp], v[lane ^ 5])
        assert torch.equal(y[3, warp], v[torch.where(lane + 2 < 32, lane + 2, lane)])
        assert torch.equal(y[4, warp], v[torch.where(inside(lane + 3, 8), lane + 3, lane)])
        assert torch.equal(y[5, warp], v[torch.where(lane >= 4, lane - 4, lane)])
        assert (y[6, warp] == 0x1111).all()
        grouped = torch.where(lane < 8, v[lane ^ 3], v)
        assert torch.equal(y[7, warp], grouped[lane ^ 1])


def test_asynchronous_copies_arrive_with_the_wait(kernels, order):
    x = torch.randn(256)
    expected = torch.cat([x[:100], torch.zeros(28)]).flip(0)
    assert torch.equal(kernels.test(4, x, x)[:128], expected)
    assert torch.equal(kernels.test(5, x, x)[:128], expected)  # the second group may still be under way


@pytest.mark.parametrize("kind, bound", [(20, 2**-10), (21, 2**-21), (22, 2**-7)], ids=["tf32", "3xtf32", "bf16"])
def test_tensor_core_products(kernels, order, kind, bound):
    a, b = torch.randn(16, 48), torch.randn(48, 8)
    c = kernels.test(kind, a, b).view(16, 8).double()
    exact, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    error = ((c - exact).abs() / scale).max()
    assert error < bound
    assert kind == 21 or error > bound / 1000  # it really rounds


def test_bfloat16_rounds_as_torch_does(kernels):
    a, b = torch.randn(16, 16), torch.eye(16)[:, :8].contiguous()
    assert torch.equal(kernels.test(22, a, b).view(16, 8), a[:, :8].bfloat16().float())


@pytest.mark.parametrize(("which", "message"), [
    (0, r"thread \d+ waits at __syncthreads, but thread \d+ has returned"),
    (1, r"waits at __shfl_xor_sync, but thread 3 waits at __syncthreads"),
    (2, r"thread \d+ is not in the mask of its own __shfl_sync"),
    (3, r"reads lane 20, which is not in the mask of __shfl_sync"),
    (4, r"wrote byte 25\d of 256 bytes of dynamic shared memory"),
    (5, r"wrote byte 1\d of 16 bytes of static shared memory"),
    (6, r"takes a vector at an address that is not a multiple of its size"),
    (7, r"waits at __s\w+, but thread \d+ waits at __s\w+"),
])
def test_errors(kernels, order, which, message):
    with pytest.raises(RuntimeError, match=rf"(?s)wrong_kernel \(emulated\), block \(0, 0, 0\): .*{message}"):
        kernels.wrong(which, torch.zeros(64), 64, 256)
    assert torch.equal(kernels.test(0, torch.ones(256), torch.ones(0)), torch.ones(256))  # the next launch works


def test_shared_memory_starts_as_nan(kernels):
    assert kernels.wrong(8, torch.zeros(64), 64, 256).isnan().all()


def test_limits_of_a_launch(kernels):
    with pytest.raises(RuntimeError, match="names lane 20, but the block ends before it"):
        kernels.wrong(9, torch.zeros(64), 20, 256)
    with pytest.raises(RuntimeError, match="1 to 1024 threads, got 1025"):
        kernels.wrong(9, torch.zeros(64), 1025, 256)
    with pytest.raises(RuntimeError, match="asks for 200000 bytes of shared memory, has 101376"):
        kernels.wrong(9, torch.zeros(64), 64, 200000)


@functools.cache
def cases():
    return [case for room in ROOMS if available("cpu")[room].get("cuda") == ""
            for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL
            if "cuda" not in case.refused_by]


@pytest.mark.parametrize("case", cases(), ids=repr)
def test_the_order_of_threads_and_blocks_does_not_change_a_bit(case, monkeypatch):
    """A missing barrier, a race between blocks or an unordered sum shows here."""
    inputs = cast(case.inputs(generator()), case, torch.float32)
    found = []
    for name in ("forward", "reversed"):
        monkeypatch.setenv("ACE_FAST_EMULATE_ORDER", name)
        with torch.no_grad():
            out = case.op(*inputs.values(), "cuda")
        found.append([out] if isinstance(out, torch.Tensor) else out)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_reasons(monkeypatch, tmp_path):
    """Why backend cuda is missing, in words: not emulated, no library, no GPU, the build's own note."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(native, "LIB", tmp_path)
    for emulated in (True, False):
        monkeypatch.setattr(native, "EMULATED", emulated)
        native.load_cuda.cache_clear()
        try:
            if emulated:
                assert native.why_not_cuda(cpu).endswith("build it in a checkout with `make emulated`")
                assert "unset it to run on the GPU" in native.why_not_cuda(gpu)
                continue
            assert native.why_not_cuda(cpu) == "it takes CPU tensors only in tests, with ACE_FAST_EMULATE=1"
            assert native.why_not_cuda(torch.device("meta")) == "it takes CUDA tensors, not meta"
            (tmp_path / "missing_cuda.txt").write_text("torch was built without CUDA")
            assert native.load_cuda().startswith("the CUDA library is missing: torch was built without CUDA; reinstall")
            monkeypatch.setattr(native, "_gpu", lambda index: "torch sees no CUDA device")
            assert native.why_not_cuda(gpu) == "torch sees no CUDA device"
        finally:
            native.load_cuda.cache_clear()
