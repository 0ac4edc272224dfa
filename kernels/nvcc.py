"""Compiles the rooms' cuda.cu ahead of time, without a GPU, and reports what the compiler made of each kernel.

Run it as `python -m ace_fast.kernels.nvcc [room ...] [--sm 80 90]`.
"""

import argparse
import concurrent.futures
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import triton_common
from .aot import CAPABILITIES, Report, table

HERE = Path(__file__).parent
MAX_STATIC = 8 << 10  # native.cuh, kMaxStatic
FLAGS = ("-std=c++20", "--expt-relaxed-constexpr", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000")


@functools.cache
def find() -> str | None:
    """The nvcc of $CUDA_HOME, of the path, or of the usual folder."""
    home = os.environ.get("CUDA_HOME")
    candidates = [f"{home}/bin/nvcc" if home else None, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def why_not() -> str | None:
    """None when .cu files can be compiled here, otherwise the reason."""
    if find() is None:
        return "nvcc was not found on the path, in $CUDA_HOME or in /usr/local/cuda; install the CUDA toolkit"
    return None


def rooms() -> tuple[str, ...]:
    """The rooms that have CUDA kernels."""
    return tuple(sorted(path.parent.name for path in HERE.glob("*/cuda.cu")))


def _include() -> list[str]:
    torch = Path(importlib.util.find_spec("torch").origin).parent
    return [f"-I{HERE}", "-isystem", str(torch / "include")]


def compile_source(source: Path, capabilities: Sequence[int] = CAPABILITIES, threads: bool = False) -> list[Report]:
    """One report for each kernel of a .cu file on each sm_<capability>; with the `threads` of its launch bounds.

    As in an installation (CMakeLists.txt) one PTX, of the least of them, is assembled for all: no kernel uses an
    instruction of a later one, and the PTX takes most of the time.

    Raises:
        RuntimeError: it does not compile; the message holds what nvcc said.
    """
    start = time.perf_counter()
    code = ",".join(f"sm_{sm}" for sm in capabilities)
    with tempfile.TemporaryDirectory() as folder:
        command = [find(), "-gencode", f"arch=compute_{min(capabilities)},code=[{code}]", "-fatbin", "-Xptxas", "-v"]
        command += [*FLAGS, *_include(), str(source), "-o", f"{folder}/out.fatbin"]
        done = subprocess.run(command, capture_output=True, text=True)
        bounds = launch_bounds(Path(folder, "out.fatbin")) if threads and not done.returncode else {}
    if done.returncode:
        raise RuntimeError(f"{source.parent.name}/{source.name} does not compile for {code}:\n{done.stderr[-4000:]}")
    return read_log(done.stderr, time.perf_counter() - start, bounds)


def launch_bounds(fatbin: Path) -> dict[str, int]:
    """The threads a block may have of each kernel in a compiled file, by mangled name (Triton brings cuobjdump)."""
    command = [triton_common.triton.knobs.nvidia.cuobjdump.path, "-elf", str(fatbin)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for section in re.split(r"^\.nv\.info\.", listing, flags=re.M)[1:]:
        bound = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:\s+0x([0-9a-f]+)", section.split("\n.", 1)[0])
        if bound:
            found[section.split(None, 1)[0]] = int(bound[1], 16)
    return found


def read_log(log: str, seconds: float, bounds: dict[str, int] | None = None) -> list[Report]:
    """The reports in what `ptxas -v` says; spills are bytes stored and loaded, `bounds` the threads by mangled name."""
    reports = []
    for block in re.split(r"Compiling entry function ", log)[1:]:
        block = block.split("Function properties for")  # device functions that were not inlined come after the kernel
        name, sm = re.match(r"'(\S+)' for 'sm_(\d+)'", block[0]).groups()
        spills = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", "".join(block))))
        registers = int(re.search(r"Used (\d+) registers", "".join(block))[1])
        shared = re.search(r"(\d+) bytes smem", "".join(block))
        threads = (bounds or {}).get(name, 0)
        reports.append(Report(name, int(sm), registers, spills, int(shared[1]) if shared else 0, seconds, threads))
    names = demangle([r.kernel for r in reports])
    return [r._replace(kernel=name) for r, name in zip(reports, names, strict=True)]


def demangle(names: list[str]) -> list[str]:
    """kernel<float, 4> for a mangled name, without namespaces and arguments; as it is where c++filt is missing."""
    tool = shutil.which("c++filt")
    if not names or tool is None:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return [_short(line) for line in done.stdout.splitlines()]


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|\b(?:ace|product)::", "", name).removeprefix("void ")
    return re.sub(r"\((?:int|bool|[\w:]+)\)", "", name.split("(", 1)[0] if "<" not in name else _until_arguments(name))


def _until_arguments(name: str) -> str:
    """What stands before the argument list: the bracket that opens outside of template arguments."""
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i]
    return name


def over(report: Report) -> list[str]:
    """The limits that a kernel exceeds, in words."""
    found = []
    if report.spills:
        found.append(f"{report.kernel} on sm_{report.sm} spills {report.spills} bytes, allowed 0")
    if report.shared_bytes > MAX_STATIC:
        found.append(f"{report.kernel} on sm_{report.sm} has {report.shared_bytes} bytes of static shared memory, "
                     f"allowed {MAX_STATIC}")
    return found


def compile_rooms(names: Sequence[str] = (),
                  capabilities: Sequence[int] = CAPABILITIES) -> dict[tuple[str, int], list[Report]]:
    """{(room, sm): its kernels' reports} of the named rooms (default: every room that has CUDA kernels)."""
    names = names or sorted(rooms(), key=lambda room: -sum(f.stat().st_size for f in (HERE / room).glob("*.cu*")))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda room: compile_source(HERE / room / "cuda.cu", capabilities), names)
        return {(room, sm): [report for report in reports if report.sm == sm]
                for room, reports in zip(names, found, strict=True) for sm in capabilities}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns 1 when a kernel spills or asks for more shared memory than there is."""
    parser = argparse.ArgumentParser(prog="python -m ace_fast.kernels.nvcc", description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help="default: every room with CUDA kernels")
    parser.add_argument("--sm", nargs="+", type=int, default=CAPABILITIES, help="default: 80 86 89 90")
    args = parser.parse_args(argv)
    if why_not():
        parser.error(why_not())
    reports = [report for found in compile_rooms(args.rooms, args.sm).values() for report in found]
    print(table(reports))
    found = [line for report in reports for line in over(report)]
    if found:
        print(*found, sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
