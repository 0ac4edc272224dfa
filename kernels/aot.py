"""Compiles the rooms' Triton kernels ahead of time, without a GPU, and reports what the compiler made of them.

Run it as `python -m ace_fast.kernels.aot [room ...] [--sm 80 90]`.
"""

import argparse
import contextlib
import importlib
import inspect
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import triton_common
from .triton_common import AotCase

CAPABILITIES = (80, 86, 89, 90)  # A100, A5000, 4090, H200
SAME_PTX = {89: 86}  # Triton translates for the former as for the latter: ptxas alone is run again
MAX_SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448}  # bytes a block may ask for


class Report(NamedTuple):
    """What one compilation gave; spills are the bytes a thread stores and loads, shared_bytes is per block.

    `threads` of a block: the number or the most that it is launched with, 0 where it was not asked for.
    """

    kernel: str
    sm: int
    registers: int
    spills: int
    shared_bytes: int
    seconds: float
    threads: int = 0

    def over(self, case: AotCase) -> list[str]:
        """The limits that this kernel exceeds, in words."""
        found = []
        if self.spills > case.max_spill:
            remedy = "; launch and compile it with maxnreg=255" if case.maxnreg is None and self.registers < 255 else ""
            found.append(f"{self.kernel} on sm_{self.sm} spills {self.spills} bytes, allowed {case.max_spill}{remedy}")
        if self.shared_bytes > MAX_SHARED.get(self.sm, self.shared_bytes):
            limit = MAX_SHARED[self.sm]
            found.append(f"{self.kernel} on sm_{self.sm} needs {self.shared_bytes} bytes of shared memory, has {limit}")
        return found


def why_not() -> str | None:
    """None when kernels can be compiled in this process, otherwise the reason and the remedy."""
    if not triton_common.PRESENT:
        return triton_common.MISSING
    if triton_common.INTERPRETED:
        return "TRITON_INTERPRET=1 replaces the compiler in this process; unset it and start Python again"
    return None


def _jit_function(kernel):
    """The kernel under triton.autotune and triton.heuristics."""
    while not isinstance(kernel, triton_common.triton.JITFunction):
        kernel = kernel.fn
    return kernel


def _source(case: AotCase):
    """The AST source of a case, specialised as a launch would specialise it."""
    from triton.compiler import ASTSource

    kernel = _jit_function(case.kernel)
    given = {**case.signature, **dict.fromkeys(case.constexprs, "constexpr")}
    if set(given) != set(kernel.arg_names):
        missing, unknown = set(kernel.arg_names) - set(given), set(given) - set(kernel.arg_names)
        raise ValueError(f"{kernel.__name__}: AotCase lacks {sorted(missing)}, has unknown {sorted(unknown)}")
    signature = {name: given[name] for name in kernel.arg_names}
    divisible = case.divisible
    if divisible is None:
        divisible = [name for name, kind in signature.items() if kind.startswith("*")]
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    return ASTSource(kernel, signature, dict(case.constexprs), attrs)


def with_ones(case: AotCase) -> AotCase:
    """The case as a launch compiles it when every integer argument is 1: Triton then makes constants of them."""
    params = _jit_function(case.kernel).params
    free = {param.name for param in params if not param.do_not_specialize}
    ones = [name for name, kind in case.signature.items() if name in free and not kind.startswith("*")]
    signature = {name: kind for name, kind in case.signature.items() if name not in ones}
    return case._replace(signature=signature, constexprs={**case.constexprs, **dict.fromkeys(ones, 1)}, divisible=None)


def in_float64(case: AotCase) -> AotCase:
    """The case with float64 for float32 throughout, and with float constants that float32 does not hold."""
    def constant(value):
        return triton_common.tl.float64 if value == triton_common.tl.float32 else (
            value / 3 if isinstance(value, float) else value)

    signature = {name: kind.replace("*fp32", "*fp64") for name, kind in case.signature.items()}
    return case._replace(signature=signature, constexprs={k: constant(v) for k, v in case.constexprs.items()})


def rounded(ttir: str) -> list[str]:
    """The lines of a float64 case, as `read` gives it with its passes, in which float64 comes from float32.

    Those are conversions, and constants with more than 12 and at most the 24 binary digits of float32: Triton makes
    float32 of a plain number that is bound to a name, and 3.6 of one that is compared or an argument of tl.fma.
    """
    found = []
    for line in ttir.splitlines():
        constants = re.findall(r"-?\d\.\d+(?:[eE][-+]\d+)?", line) if re.search(r"arith\.constant.*f64", line) else ()
        if re.search(r"arith\.extf.*f64", line) or any(12 < _digits(float(value)) <= 24 for value in constants):
            found.append(line.split(" loc(")[0].strip())
    return found


def _digits(value: float) -> int:
    """Binary digits of a number; none of a whole one, which float32 holds as well."""
    fraction = struct.unpack("<Q", struct.pack("<d", value))[0] & (1 << 52) - 1 | 1 << 52
    return 0 if value.is_integer() else 54 - (fraction & -fraction).bit_length()


def _cubin_usage(cubin: bytes) -> dict[str, int]:
    """Registers, stack and shared memory as written in the compiled file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton_common.triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED):(\d+)", out.stdout)}


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes of a thread; its stack may also hold arrays, as in the reduction of large sines."""
    from triton.backends.nvidia.compiler import CUDABackend, get_ptxas

    allocation = "--regAllocOptLevel=2"  # in the versions of Triton that say so
    options = ["-v", "-lineinfo", *([allocation] if allocation in inspect.getsource(CUDABackend.make_cubin) else [])]
    arch = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [get_ptxas(capability).path, *options, f"--gpu-name={arch}", str(path), "-o", f"{path}.o"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log)))
    return int(re.search(r"Used (\d+) registers", log)[1]), spills


@contextlib.contextmanager
def _compiling(case: AotCase, capability: int):
    """Says what did not compile; gives Triton's target and options."""
    reason = why_not()
    if reason:
        raise (RuntimeError if triton_common.PRESENT else ImportError)(reason)
    from triton.backends.compiler import GPUTarget

    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.maxnreg}
    options["enable_fp_fusion"] = True  # as triton_common.launch has it
    try:
        yield GPUTarget("cuda", capability, 32), options
    except Exception as error:
        cause = error
        while cause.__cause__ is not None:  # an error in a device function lies below one trace for each call
            cause = cause.__cause__
        raise RuntimeError(f"{case.label} does not compile for sm_{capability}: {cause}") from error


def build(case: AotCase, capability: int):
    """Triton's CompiledKernel of one case for one architecture; its `asm` holds ptx, cubin and sass.

    Raises:
        ImportError: Triton is missing.
        RuntimeError: kernels are interpreted in this process, or the kernel does not compile.
    """
    with _compiling(case, capability) as (target, options):
        return triton_common.triton.compile(_source(case), target=target, options=options)


def read(case: AotCase, capability: int, passes: bool = False) -> str:
    """What Triton reads in a case, before any pass: enough to find what its language does not take.

    With `passes` it is what Triton makes of that for every GPU: functions are inlined, constants folded.

    Raises:
        as `build`.
    """
    with _compiling(case, capability) as (target, options):
        from triton._C.libtriton import ir
        from triton.compiler import make_backend

        backend, context = make_backend(target), ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        parsed = backend.parse_options(options)
        functions = backend.get_codegen_implementation(parsed), backend.get_module_map()
        source, stages = _source(case), {}
        module = source.make_ir(target, parsed, *functions, context)
        if passes:
            backend.add_stages(stages, parsed, source.language)
            module = stages["ttir"](module, {})
        return str(module)


def compile_case(case: AotCase, capabilities: Sequence[int] = CAPABILITIES) -> list[Report]:
    """Compile one case for each sm_<capability> and read what it gave; a second time Triton's cache makes it quick."""
    built, reports = {}, []
    for capability in capabilities:
        start = time.perf_counter()
        like, one = SAME_PTX.get(capability, capability), case.at(capability)
        built[like] = compiled = built.get(like) or build(one, like)
        usage = _cubin_usage(compiled.asm["cubin"])
        registers, spills = usage["REG"], 0
        if usage["STACK"] or like != capability:
            ptx = compiled.asm["ptx"].replace(f".target sm_{like}", f".target sm_{capability}")
            registers, spills = _assemble(ptx, capability)
        seconds = time.perf_counter() - start
        shared, threads = compiled.metadata.shared, 32 * one.num_warps
        reports.append(Report(case.label, capability, registers, spills, shared, seconds, threads))
    return reports


def rooms() -> tuple[str, ...]:
    """The rooms that have Triton kernels."""
    here = Path(__file__).parent
    names = importlib.import_module(__package__).ROOMS
    return tuple(name for name in names if (here / name / "triton_kernels.py").exists())


def cases(room: str) -> list[AotCase]:
    """The list AOT of a room's triton_kernels.py."""
    found = getattr(importlib.import_module(f"{__package__}.{room}.triton_kernels"), "AOT", None)
    if not found:
        raise ValueError(f"kernels/{room}/triton_kernels.py must list its compilations as AOT = [AotCase(...), ...]")
    return found


def table(reports: list[Report]) -> str:
    """The reports as aligned text, one line each."""
    width = max([len("kernel"), *(len(r.kernel) for r in reports)])
    lines = [f"{'kernel':<{width}}  {'sm':>3}  registers  spills  shared  seconds"]
    for r in reports:
        lines.append(
            f"{r.kernel:<{width}}  {r.sm:>3}  {r.registers:>9}  {r.spills:>6}  {r.shared_bytes:>6}  {r.seconds:>7.2f}"
        )
    return "\n".join(lines)


def compile_rooms(names: Sequence[str], capabilities: Sequence[int] = CAPABILITIES) -> list[tuple[AotCase, Report]]:
    """Every case of the named rooms with its report, for every architecture."""
    return [(case, found) for room in names for case in cases(room) for found in compile_case(case, capabilities)]


def report(names: Sequence[str] = (), capabilities: Sequence[int] = CAPABILITIES) -> str:
    """The table of all kernels of the named rooms (default: every room that has Triton kernels)."""
    return table([result for _, result in compile_rooms(names or rooms(), capabilities)])


def main(argv: list[str] | None = None) -> int:
    """The command line; returns 1 when a kernel spills or asks for more shared memory than there is."""
    parser = argparse.ArgumentParser(prog="python -m ace_fast.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", default=rooms(), help="default: every room with Triton kernels")
    parser.add_argument("--sm", nargs="+", type=int, default=CAPABILITIES, help="default: 80 86 89 90")
    args = parser.parse_args(argv)
    reason = why_not()
    if reason:
        parser.error(reason)
    pairs = compile_rooms(args.rooms, args.sm)
    print(table([result for _, result in pairs]))
    over = [line for case, result in pairs for line in result.over(case)]
    if over:
        print(*over, sep="\n", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
