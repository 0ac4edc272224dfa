"""Peak memory of one call: what it needed at its height, minus what was resident before it.

On a GPU the numbers are those of torch's caching allocator, on the device the call runs on. On the CPU they are the
kernel's own high-water mark of the resident set (VmHWM), which needs no sampling: free heap pages are handed back
(malloc_trim), the mark is reset to the present (5 written to /proc/self/clear_refs), the call runs, and the resident
set before (VmRSS) is taken off. A reused heap page would be counted as nothing, hence the trim. Where the mark cannot
be reset it is the maximum of the process's life: right only in a fresh process whose earlier peak was lower, so every
number comes with the name of its method. Without /proc it is ru_maxrss, which starts at what the parent had resident.
"""

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20
RESET = "VmHWM after resetting it through /proc/self/clear_refs, minus VmRSS before"
LIFETIME = "maximum of a fresh process (the high-water mark could not be reset), minus the resident set before"
ALLOCATOR = "torch.cuda allocator: maximum allocated minus allocated before"


def _status(field: str) -> int:
    """A field of /proc/self/status, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # not glibc: its allocator keeps what it keeps


def _reset_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _lifetime_peak() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident() -> int:
    try:
        return _status("VmRSS")
    except OSError:
        return _lifetime_peak()


def settled() -> int:
    """Resident bytes, free heap pages handed back."""
    _trim()
    return _resident()


def peak_mb(function: Callable[[], object], device: str | torch.device = "cpu") -> tuple[float, str]:
    """(MiB that `function()` needed beyond what was there before it, how that was measured).

    What the call returns counts; it is released afterwards. Call it once before, so that what is built only once
    (optimiser state, compiled kernels) is resident already.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = function()
        torch.cuda.synchronize(device)
        del kept
        return (torch.cuda.max_memory_allocated(device) - before) / MIB, ALLOCATOR
    _trim()
    reset = _reset_mark()
    before = _resident()
    kept = function()
    peak = _status("VmHWM") if reset else _lifetime_peak()
    del kept
    return max(0, peak - before) / MIB, RESET if reset else LIFETIME
