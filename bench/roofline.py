"""What this machine can do: bytes copied and operations done per second, measured at the start of a run.

`copy_gbs` is a large copy (read plus write). `fma_gflops` is the peak of multiply-adds in registers (bench/fma.py),
`matmul_gflops` a large product in the dtype, the better of torch.mm and, on the CPU in float32, oneDNN (torch.mm's
library stays below the instruction set of some processors). The roof is the larger of the two: a matrix unit may be
faster than the vector units. Small cases stay in cache and can exceed 100 % of a roofline that counts memory.
"""

import time
from typing import Any, NamedTuple

import torch

from . import fma

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Roofline(NamedTuple):
    """Rates of one device and dtype."""

    copy_gbs: float
    matmul_gflops: float
    dtype: str
    fma_gflops: float | None = None  # None where it cannot be measured

    @property
    def peak_gflops(self) -> float:
        """The roof over products and multiply-adds."""
        return max(self.matmul_gflops, self.fma_gflops or 0.0)

    def least_ms(self, flops: float, bytes_: float) -> float:
        """The time below which no kernel with these counts can go."""
        return 1e3 * max(bytes_ / (self.copy_gbs * 1e9), flops / (self.peak_gflops * 1e9))

    def percent(self, flops: float, bytes_: float, ms: float) -> float:
        """The share of the attainable rate that a time of `ms` reaches."""
        return 100 * self.least_ms(flops, bytes_) / ms

    def attainable_gflops(self, flops: float, bytes_: float) -> float:
        """The roof over these counts: the lower of the peak and what the copy bandwidth feeds."""
        return min(self.peak_gflops, self.copy_gbs * flops / bytes_) if bytes_ else self.peak_gflops

    def achieved(self, flops: float, bytes_: float, ms: float) -> dict[str, float]:
        """What a row says: rates at `ms` a call, and its point and its roof in the plot of both (flops a byte)."""
        return {
            "gflops": flops / ms / 1e6, "gbs": bytes_ / ms / 1e6, "roofline_percent": self.percent(flops, bytes_, ms),
            "intensity": flops / bytes_ if bytes_ else 0.0, "attainable_gflops": self.attainable_gflops(flops, bytes_),
            "copy_gbs": self.copy_gbs, "peak_gflops": self.peak_gflops,
        }


def _best_seconds(function, device: torch.device, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def copy_gbs(device: str | torch.device = "cpu", mib: int = 256, repeats: int = 5) -> float:
    """GB/s of copying `mib` MiB, read and write both counted."""
    device = torch.device(device)
    source = torch.ones(mib * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device, repeats) / 1e9


def fma_gflops(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, rounds: int | None = None, repeats: int = 5
) -> float | None:
    """GFLOP/s of multiply-adds alone, two operations each; None for other dtypes than float32 and float64, and where
    neither a C compiler (CPU) nor Triton (GPU) is at hand."""
    device = torch.device(device)
    found = fma.work(device, dtype, rounds or (1_000_000 if device.type == "cpu" else 2000))
    if found is None:
        return None
    run, flops = found
    return flops / _best_seconds(run, device, repeats) / 1e9


def matmul_gflops(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, size: int = 1536, repeats: int = 5
) -> float:
    """GFLOP/s of the best product of two [size, size] matrices."""
    device = torch.device(device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = _best_seconds(lambda: torch.mm(a, b, out=out), device, repeats)
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
        if linear is not None:
            product = lambda: linear(a, b, None, "none", [], None)  # noqa: E731
            seconds = min(seconds, _best_seconds(product, device, repeats))
    return 2 * size**3 / seconds / 1e9


def measure(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, quick: bool = False) -> Roofline:
    """All rates; `quick` takes smaller sizes and fewer repeats (less accurate)."""
    gpu, repeats = torch.device(device).type == "cuda", 2 if quick else 5
    copy = copy_gbs(device, 1024 if gpu else 32 if quick else 256, repeats)
    size = 512 if quick else 8192 if gpu else 1536
    name = str(dtype).removeprefix("torch.")
    return Roofline(copy, matmul_gflops(device, dtype, size, repeats), name, fma_gflops(device, dtype, None, repeats))


def rows(device: str | torch.device = "cpu", quick: bool = False) -> list[dict[str, Any]]:
    """The rates in every dtype, and on a GPU of float32 products in TF32, a row each; {"suite": "roofline", ...}."""
    found = [(measure(device, dtype, quick), None) for dtype in DTYPES]
    if torch.device(device).type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            found.append((measure(device, torch.float32, quick), "TF32"))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return [{"suite": "roofline", "op": "roofline", "case": f"{roof.dtype} {unit}" if unit else roof.dtype,
             "device": torch.device(device).type, **roof._asdict(), "peak_gflops": roof.peak_gflops}
            for roof, unit in found]
