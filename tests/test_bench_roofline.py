"""The machine's rates and the points under the roof: what multiply-adds are counted, what a row says."""

import os

import pytest
import torch

from ace_fast.kernels import triton_common
from bench import fma, roofline

ROOF = roofline.Roofline(10.0, 100.0, "float32", 160.0)


def test_a_point_and_its_roof():
    # 1e6 operations and 2e6 bytes: memory bounds at 5 GFLOP/s; 0.4 ms are half of that
    found = ROOF.achieved(1e6, 2e6, 0.4)
    assert found == pytest.approx({"gflops": 2.5, "gbs": 5.0, "roofline_percent": 50.0, "intensity": 0.5,
                                   "attainable_gflops": 5.0, "copy_gbs": 10.0, "peak_gflops": 160.0})
    # the roof is the higher of multiply-adds and products: 1e9 operations at 160 GFLOP/s
    assert ROOF.least_ms(1e9, 2e6) == pytest.approx(6.25)
    assert ROOF.attainable_gflops(1e9, 2e6) == 160.0
    assert ROOF._replace(fma_gflops=None).peak_gflops == 100.0
    # the percentage is the achieved rate over the attainable one
    assert found["roofline_percent"] == pytest.approx(100 * found["gflops"] / found["attainable_gflops"])


def test_a_gather_has_no_operations():
    found = ROOF.achieved(0, 2e6, 0.4)
    assert found["intensity"] == found["gflops"] == found["attainable_gflops"] == 0.0 and found["gbs"] == 5.0
    assert ROOF.attainable_gflops(5, 0) == 160.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multiply_adds_of_the_processor(dtype):
    """x a + b, a round for every sum: after two rounds of 0.5 x + 1 the sums i / 2 are i / 8 + 1.5."""
    library = fma._library()
    if library is None:
        assert "cpu" not in os.environ.get("ACE_FAST_REQUIRE", "").split(","), "there is no C compiler"
        pytest.skip("there is no C compiler")
    run, flops = fma.work(torch.device("cpu"), dtype, 10)
    run()
    sums = library.bytes_a_round() // dtype.itemsize
    assert flops == 2 * torch.get_num_threads() * 10 * sums
    found = getattr(library, fma.C_TYPES[dtype][0])(2, 0.5, 1.0)
    # n numbers in a vector, as many of each value
    assert found in [n * sum(i / 8 + 1.5 for i in range(sums // n)) for n in (2, 4, 8, 16)]


def test_without_a_compiler_products_are_the_roof(monkeypatch):
    monkeypatch.setattr(fma, "_library", lambda: None)
    found = roofline.measure("cpu", torch.float32, quick=True)
    assert found.fma_gflops is None and found.peak_gflops == found.matmul_gflops > 0


@pytest.mark.skipif(not triton_common.INTERPRETED, reason="runs the kernel on the CPU with TRITON_INTERPRET=1")
def test_multiply_adds_of_a_gpu():
    run, flops = fma._on_gpu(torch.device("cpu"), torch.float32, 3)
    run()
    assert flops == 2 * 2 * fma.BLOCK * 3 * fma.STEPS
    x = torch.arange(fma.BLOCK, dtype=torch.float64) / fma.BLOCK
    expected = x
    for _ in range(2):
        expected = expected * (0.5 * x) + x
    triton_common.launch(fma.fma_peak_kernel, (1,), x, 1, fma.BLOCK, 2, device=x.device)
    torch.testing.assert_close(x, expected)


def test_rates_of_every_dtype(monkeypatch):
    monkeypatch.setattr(roofline, "copy_gbs", lambda *a: 50.0)
    monkeypatch.setattr(roofline, "matmul_gflops", lambda device, dtype, *a: 8.0 * dtype.itemsize)
    monkeypatch.setattr(roofline, "fma_gflops", lambda device, dtype, *a: None if dtype.itemsize < 4 else 40.0)
    rows = roofline.rows("cpu")
    assert [(r["suite"], r["case"], r["dtype"]) for r in rows] == [
        ("roofline", name, name) for name in ("float32", "float64", "bfloat16")]
    assert [r["peak_gflops"] for r in rows] == [40.0, 64.0, 16.0]
    assert rows[2]["fma_gflops"] is None and rows[0]["matmul_gflops"] == 32.0 and rows[0]["device"] == "cpu"


def test_no_rate_of_multiply_adds_in_half_precision():
    assert roofline.fma_gflops("cpu", torch.bfloat16) is None
