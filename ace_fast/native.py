"""Finds and loads the native library; keeps the reason when there is none."""

import functools
import platform
from pathlib import Path

import torch

LIB = Path(__file__).parent / "lib"


def _instruction_sets() -> list[str]:
    """The instruction sets this processor runs, best first."""
    order = ["avx512", "avx2", "baseline"]
    capability = torch.backends.cpu.get_cpu_capability()
    start = {"AVX512": 0, "AVX2": 1}.get(capability, 2) if platform.machine() in ("x86_64", "AMD64") else 2
    return order[start:]


@functools.cache
def load() -> str:
    """Loads the library once; returns an empty string, or why there is none."""
    for isa in _instruction_sets():
        path = LIB / f"libace_fast_{isa}.so"
        if path.exists():
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                return f"{path.name} does not load: {error}"
            return ""
    note = LIB / "missing.txt"
    reason = note.read_text().strip() if note.exists() else "it was not built"
    return f"the native library is missing: {reason or 'it was not built'}; reinstall with a C++ compiler and cmake"
