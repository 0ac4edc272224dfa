"""Finds and loads the native libraries, for CPUs and for CUDA; keeps the reason when there is none.

With ACE_FAST_EMULATE=1 in the environment when Python starts, the CUDA kernels are the ones compiled for the host, with
the threads of a block emulated: backend "cuda" then takes CPU tensors. It is for tests.
"""

import functools
import os
import platform
from pathlib import Path

import torch

LIB = Path(__file__).parent / "lib"
EMULATED = os.environ.get("ACE_FAST_EMULATE") == "1"


def instruction_sets() -> list[str]:
    """The instruction sets this processor runs, best first."""
    order = ["avx512", "avx2", "baseline"]
    capability = torch.backends.cpu.get_cpu_capability()
    start = {"AVX512": 0, "AVX2": 1}.get(capability, 2) if platform.machine() in ("x86_64", "AMD64") else 2
    return order[start:]


@functools.cache
def load() -> str:
    """Loads the library once; returns an empty string, or why there is none."""
    for isa in instruction_sets():
        path = LIB / f"libace_fast_{isa}.so"
        if path.exists():
            return _load(path)
    return f"the native library is missing: {_note('missing.txt')}; reinstall with a C++ compiler and cmake"


def _load(path: Path) -> str:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return ""


def _note(name: str) -> str:
    """Why the build made no library."""
    note = LIB / name
    return note.read_text().strip() if note.exists() and note.read_text().strip() else "it was not built"


@functools.cache
def load_cuda() -> str:
    """Loads the CUDA kernels once, for GPUs or emulated; returns an empty string, or why there are none."""
    path = LIB / ("libace_fast_emulated.so" if EMULATED else "libace_fast_cuda.so")
    if path.exists():
        return _load(path)
    if EMULATED:
        return "the emulated CUDA library is missing; build it in a checkout with `make emulated`"
    return f"the CUDA library is missing: {_note('missing_cuda.txt')}; reinstall with nvcc and a CUDA build of torch"


@functools.cache
def _gpu(index: int | None) -> str:
    if torch.version.hip is not None:
        return "the CUDA kernels are written for NVIDIA GPUs, this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return f"the CUDA kernels need compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}"
    return ""


def why_not_cuda(device: torch.device) -> str:
    """Why the CUDA kernels cannot take tensors on `device`; empty when they can."""
    if device.type == "cpu":
        return load_cuda() if EMULATED else "it takes CPU tensors only in tests, with ACE_FAST_EMULATE=1"
    if device.type != "cuda":
        return f"it takes CUDA tensors, not {device.type}"
    if EMULATED:
        return "ACE_FAST_EMULATE=1 emulates the kernels on CPU tensors; unset it to run on the GPU"
    return _gpu(device.index) or load_cuda()
