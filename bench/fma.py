"""The peak rate of multiply-adds, by themselves: independent sums in registers, nothing read or written.

On the CPU a few lines of C (fma.c), compiled for this processor by its own compiler; on a GPU a Triton kernel.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ace_fast.kernels import triton_common
from ace_fast.kernels.triton_common import launch, tl, triton

SOURCE = Path(__file__).with_name("fma.c")
C_TYPES = {torch.float32: ("peak_float", ctypes.c_float), torch.float64: ("peak_double", ctypes.c_double)}
BLOCK, STEPS, WARPS = 1024, 16, 4  # sums of a program, multiply-adds of each in one turn of the loop


@triton.jit
def fma_peak_kernel(p_x, rounds, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o_x)
    b_factor, b_term = b_x * 0.5, b_x
    for _ in range(rounds):
        for _ in tl.static_range(STEPS):
            b_x = tl.fma(b_x, b_factor, b_term)
    tl.store(p_x + o_x, b_x)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """fma.c for this processor; None where there is no C compiler or it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "fma.so")
        flags = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
        done = subprocess.run([compiler, *flags, str(SOURCE), "-o", str(target)], capture_output=True)
        if done.returncode:
            return None
        return ctypes.CDLL(str(target))


def _on_cpu(dtype: torch.dtype, rounds: int):
    library = _library()
    if library is None:
        return None
    name, kind = C_TYPES[dtype]
    peak = getattr(library, name)
    peak.argtypes, peak.restype = (ctypes.c_long, kind, kind), kind
    threads = torch.get_num_threads()
    flops = 2 * threads * rounds * library.bytes_a_round() // dtype.itemsize

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of Python's lock
            list(pool.map(lambda _: peak(rounds, 0.5, 1.0), range(threads)))

    return run, flops


def _on_gpu(device: torch.device, dtype: torch.dtype, rounds: int):
    if triton_common.available(device) is not None:
        return None
    programs = 32 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    x = torch.ones(programs * BLOCK, device=device, dtype=dtype)

    def run() -> None:
        launch(fma_peak_kernel, (programs,), x, rounds, BLOCK, STEPS, device=device, num_warps=WARPS)

    return run, 2 * x.numel() * rounds * STEPS


def work(device: torch.device, dtype: torch.dtype, rounds: int):
    """(a call that does nothing but multiply-adds, how many operations those are); None where it cannot be built.

    `rounds` is the length of the loop: a million take about 10 ms on a CPU, 2000 about that on a GPU.
    """
    if dtype not in C_TYPES:
        return None
    return _on_cpu(dtype, rounds) if device.type == "cpu" else _on_gpu(device, dtype, rounds)
