"""What this machine can do: bytes copied and products formed per second, measured at the start of a run.

`copy_gbs` is a large copy (read plus write). `matmul_gflops` is a large product in the dtype, the better of torch.mm
and, on the CPU in float32, oneDNN (torch.mm's library stays below the instruction set of some processors). It is called
by its name because that is what is measured: the multiply-add peak is somewhat higher. Small cases stay in cache and
can exceed 100 % of a roofline that counts memory.
"""

import time
from typing import NamedTuple

import torch


class Roofline(NamedTuple):
    """Rates of one device and dtype."""

    copy_gbs: float
    matmul_gflops: float
    dtype: str

    def least_ms(self, flops: float, bytes_: float) -> float:
        """The time below which no kernel with these counts can go."""
        return 1e3 * max(bytes_ / (self.copy_gbs * 1e9), flops / (self.matmul_gflops * 1e9))

    def percent(self, flops: float, bytes_: float, ms: float) -> float:
        """The share of the attainable rate that a time of `ms` reaches."""
        return 100 * self.least_ms(flops, bytes_) / ms


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


def matmul_gflops(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, size: int = 1536, repeats: int = 5
) -> float:
    """GFLOP/s of the best product of two [size, size] matrices."""
    device = torch.device(device)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = _best_seconds(lambda: torch.mm(a, b, out=out), device, repeats)
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
        if linear is not None:
            product = lambda: linear(a, b, None, "none", [], None)  # noqa: E731
            seconds = min(seconds, _best_seconds(product, device, repeats))
    return 2 * size**3 / seconds / 1e9


def measure(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, quick: bool = False) -> Roofline:
    """Both rates; `quick` takes smaller sizes and fewer repeats (less accurate)."""
    gpu = torch.device(device).type == "cuda"
    copy = copy_gbs(device, 1024 if gpu else 32 if quick else 256, 2 if quick else 5)
    size = 512 if quick else 8192 if gpu else 1536
    return Roofline(copy, matmul_gflops(device, dtype, size, 2 if quick else 5), str(dtype).removeprefix("torch."))
