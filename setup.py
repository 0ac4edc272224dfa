"""Builds the native library with CMake and installs kernels/ and bench/ inside the package.

The library uses torch's stable ABI and no Python headers: one wheel serves every Python >= 3.11 and torch >= 2.10.
Without torch or a compiler the package is installed all the same and works on the reference backend.
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


def build_native(destination: Path) -> str:
    """Compiles the native libraries into `destination`; returns an empty string, or why it could not."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return "torch was not importable at build time (pip's build isolation hides it: use --no-build-isolation)"
    cmake = shutil.which("cmake")
    if cmake is None:
        return "cmake was not found; install it (pip install cmake) and reinstall"
    binary = ROOT / "build" / "native"
    configure = [cmake, "-S", str(ROOT), "-B", str(binary), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DTORCH_DIR={Path(torch.origin).parent}", f"-DACE_FAST_OUTPUT={destination}"]
    compile_ = [cmake, "--build", str(binary), "--parallel", str(os.cpu_count() or 1)]
    for command in (configure, compile_):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            errors = [line for line in lines if "rror" in line and "incomplete" not in line] or lines[-3:]
            said = " | ".join(errors[:3])
            return f"the native build failed ({said}); install a C++ compiler and make, then reinstall"
    return ""


class BuildNative(Command):
    """`build_native` as a step of `build`, so that wheels and editable installs run it too."""

    description = "build the native library with CMake"
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
        reason = build_native(destination)
        (destination / "missing.txt").write_text(reason)
        if reason:  # older libraries must not pass for the ones that could not be built
            for library in destination.glob("libace_fast_*.so"):
                library.unlink()
        if reason:
            print(f"ace_fast: no native library: {reason}. The reference backend is used instead.", file=sys.stderr)

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}

    def get_source_files(self):
        return ["CMakeLists.txt", *(str(p) for kind in ("*.cpp", "*.h") for p in Path("kernels").rglob(kind))]


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class Wheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


rooms = [f"ace_fast.kernels.{name}" for name in find_packages("kernels")]
setup(
    packages=[*find_packages(include=["ace_fast", "ace_fast.*"]), "ace_fast.kernels", *rooms, "ace_fast.bench"],
    package_dir={"ace_fast": "ace_fast", "ace_fast.kernels": "kernels", "ace_fast.bench": "bench"},
    package_data={"ace_fast": ["py.typed"], "ace_fast.kernels": ["*.h", "*/*.h", "*/*.cpp", "*/*.md"]},
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": Wheel},
)
