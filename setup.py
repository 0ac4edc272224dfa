"""Builds the native libraries with CMake and installs kernels/ and bench/ inside the package.

The library uses torch's stable ABI and no Python headers: one wheel serves every Python >= 3.11 and torch >= 2.10.
Without torch or a compiler the package is installed all the same and works on the reference backend; without nvcc or a
CUDA build of torch, without the CUDA kernels. What is missing and why stands in ace_fast/lib/missing*.txt.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).parent.resolve()
SOURCES = ("*.cpp", "*.h", "*.cu", "*.cuh")


def torch_folder() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def find_nvcc() -> str | None:
    """The nvcc of $CUDA_HOME, of the path, or of the usual folder."""
    home = os.environ.get("CUDA_HOME")
    candidates = [f"{home}/bin/nvcc" if home else None, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def run_cmake(binary: Path, destination: Path, *options: str) -> str:
    """Configures and builds in `binary`; returns an empty string, or why it could not."""
    cmake = shutil.which("cmake")
    if cmake is None:
        return "cmake was not found; install it (pip install cmake) and reinstall"
    configure = [cmake, "-S", str(ROOT), "-B", str(binary), "-DCMAKE_BUILD_TYPE=Release", *options]
    configure += [f"-DTORCH_DIR={torch_folder()}", f"-DACE_FAST_OUTPUT={destination}"]
    compile_ = [cmake, "--build", str(binary), "--parallel", str(os.cpu_count() or 1)]
    for command in (configure, compile_):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            errors = [line for line in lines if "rror" in line and "incomplete" not in line] or lines[-3:]
            said = " | ".join(errors[:3])
            return f"the native build failed ({said}); install a C++ compiler and make, then reinstall"
    return ""


def best_instruction_set() -> str:
    """The library that ace_fast loads on this processor."""
    spec = importlib.util.spec_from_file_location("native", ROOT / "ace_fast" / "native.py")
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    return native.instruction_sets()[0]


def build_cpu(destination: Path, here: bool) -> str:
    """Compiles the CPU libraries into `destination`, or only the one for this processor where they stay `here`.

    Returns an empty string, or why it could not.
    """
    if torch_folder() is None:
        return "torch was not importable at build time (pip's build isolation hides it: use --no-build-isolation)"
    only = best_instruction_set() if here else ""
    return run_cmake(ROOT / "build" / "native", destination, f"-DACE_FAST_ISAS={only}")


def build_cuda(destination: Path, here: bool) -> str:
    """The same for the CUDA library, which is for all GPUs."""
    torch, nvcc = torch_folder(), find_nvcc()
    if torch is None:
        return "torch was not importable at build time"
    if not (torch / "lib" / "libtorch_cuda.so").exists():
        return "torch was built without CUDA"
    if nvcc is None:
        return "nvcc was not found on the path, in $CUDA_HOME or in /usr/local/cuda"
    return run_cmake(ROOT / "build" / "cuda", destination, "-DACE_FAST_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}")


# file of the reason, build, names of the libraries, what is left without them
LIBRARIES = (
    ("missing.txt", build_cpu, ("avx512", "avx2", "baseline"), "the reference backend is used instead"),
    ("missing_cuda.txt", build_cuda, ("cuda",), "GPUs run the Triton kernels"),
)


class BuildNative(Command):
    """The libraries as a step of `build`, so that wheels and editable installs make them too."""

    description = "build the native libraries with CMake"
    user_options = []
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        package = ROOT / "ace_fast" if self.editable_mode else Path(self.build_lib).resolve() / "ace_fast"
        destination = package / "lib"
        destination.mkdir(parents=True, exist_ok=True)
        for note, build_library, names, left in LIBRARIES:
            for name in names:  # older libraries must not pass for the ones that are not built now
                (destination / f"libace_fast_{name}.so").unlink(missing_ok=True)
            reason = build_library(destination, self.editable_mode)
            (destination / note).write_text(reason)
            if reason:
                print(f"ace_fast: {names[0]}: no library: {reason}; {left}.", file=sys.stderr)

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return ["CMakeLists.txt", *(str(p) for kind in SOURCES for p in Path("kernels").rglob(kind))]


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


kernel_files = [f"{folder}{kind}" for folder in ("", "*/") for kind in (*SOURCES, "*.md")]
rooms = [f"ace_fast.kernels.{name}" for name in find_packages("kernels")]
setup(
    packages=[*find_packages(include=["ace_fast", "ace_fast.*"]), "ace_fast.kernels", *rooms, "ace_fast.bench"],
    package_dir={"ace_fast": "ace_fast", "ace_fast.kernels": "kernels", "ace_fast.bench": "bench"},
    package_data={"ace_fast": ["py.typed"], "ace_fast.report": ["*.css", "*.js"], "ace_fast.kernels": kernel_files,
                  "ace_fast.bench": ["*.c"]},
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
)
