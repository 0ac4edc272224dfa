"""What a number depends on: device, threads, versions, revision."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from . import results


def device_name(device: str | torch.device) -> str:
    """The GPU's name, or the processor's."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Installed version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision() -> str | None:
    """The git revision of the checkout, with `+` where files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        here = Path(__file__).resolve().parent
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    # measured files are no change of what was measured
    return head and head + ("+" if git("status", "--porcelain", "-uno", "--", ":/", ":/!bench/results") else "")


def describe(device: str | torch.device) -> dict[str, object]:
    """Device, threads, versions and revision, for every row and every extra_info."""
    found = {
        "device_name": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "revision": revision(),
        "datetime": results.now(),
    }
    return found | {name: version(name) for name in ("triton", "e3nn", "ace_fast")}


def devices() -> list[str]:
    """The devices present: "cpu", and "cuda" where torch sees a GPU."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
