"""Every room's cpu.cpp for the instruction sets that this checkout does not build: it compiles, without a warning."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ace_fast.native import instruction_sets

KERNELS = Path(__file__).parents[2] / "kernels"
FLAGS = {"baseline": "-march=x86-64-v2", "avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}
COMMAND = ("-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
           "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{KERNELS}", "-isystem",
           str(Path(torch.__file__).parent / "include"))


def sources() -> list[Path]:
    return sorted(KERNELS.glob("*/cpu.cpp"))


def check(source: Path, isa: str, *options: str) -> str:
    """What the compiler says."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        assert "cpu" not in os.environ.get("ACE_FAST_REQUIRE", "").split(","), "there is no C++ compiler"
        pytest.skip("there is no C++ compiler")
    command = [compiler, FLAGS[isa], *COMMAND, *(options or ["-fsyntax-only"]), source]
    return subprocess.run(command, capture_output=True, text=True).stderr


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """headers(isa): options with which native.h, which takes most of the time, is read once for all rooms."""
    @functools.cache
    def build(isa: str) -> tuple[str, ...]:
        common = tmp_path_factory.mktemp(isa) / "common.h"
        common.write_text('#include "native.h"\n')
        assert check(common, isa, "-x", "c++-header", "-o", f"{common}.gch") == ""
        return "-fsyntax-only", "-include", str(common)

    return build


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.parent.name)
@pytest.mark.parametrize("isa", [isa for isa in FLAGS if isa != instruction_sets()[0]])
def test_compiles_for_other_processors(source, isa, headers):
    assert check(source, isa, *headers(isa)) == ""


def test_what_does_not_compile_is_named(tmp_path, headers):
    source = tmp_path / "cpu.cpp"
    source.write_text("void f() { nothing(); }")
    assert "nothing" in check(source, "baseline", *headers("baseline"))
