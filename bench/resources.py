"""Registers, spills, shared memory and threads of every GPU kernel on four architectures: data/kernel-resources.json.

Run it as `python -m bench.resources [room ...]` after a change of GPU kernels (no GPU needed; Triton, and nvcc for
CUDA): it compiles the rooms whose code differs from what the file was made of, or those that are named. Comments do not
count. A test asks `stale()`.
"""

import argparse
import hashlib
import io
import json
import re
import sys
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

from ace_fast import kernels
from ace_fast.kernels import aot, nvcc

FILE = Path(__file__).with_name("data") / "kernel-resources.json"
CODE = Path(kernels.__file__).parent
LANGUAGES = ("triton", "cuda")


class Kernel(NamedTuple):
    """One compiled kernel; lists have an entry for each architecture of aot.CAPABILITIES."""

    room: str
    language: str
    kernel: str
    threads: int  # of a block
    registers: list[int]  # of a thread
    spills: list[int]  # bytes
    shared_bytes: list[int]  # of a block, without what a CUDA launch adds

    @property
    def gradient(self) -> bool:
        """Whether it belongs to a backward pass, by its name."""
        return "bwd" in self.kernel.split("[")[0].split("<")[0]

    @property
    def single(self) -> bool:
        """Whether it is a float32 kernel."""
        return "fp32" in self.kernel and "bf16" not in self.kernel or "<float" in self.kernel


def languages(room: str) -> list[str]:
    """The GPU languages that a room has kernels in."""
    return [name for name, rooms in zip(LANGUAGES, (aot.rooms(), nvcc.rooms()), strict=True) if room in rooms]


def python_code(path: Path) -> str:
    """The code of a Python file without comments, docstrings of the module included."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return re.sub(r"\s", "", "".join(t.string for t in tokens if t.type != tokenize.COMMENT))


def _cpp(path: Path, seen: set[Path]) -> str:
    """The code of a C++ file and of what it includes from here, without comments."""
    if path in seen:
        return ""
    seen.add(path)
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.S)
    inner = [p for name in re.findall(r'#include\s+"([^"]+)"', code) for p in (path.parent / name, CODE / name)
             if p.exists()]
    return re.sub(r"\s", "", code) + "".join(_cpp(p.resolve(), seen) for p in inner)


def fingerprint(room: str, language: str) -> str:
    """A hash of the code that the kernels are made of."""
    if language == "cuda":
        code = _cpp((CODE / room / "cuda.cu").resolve(), set())
    else:
        code = "".join(map(python_code, (CODE / "triton_common.py", *sorted((CODE / room).glob("triton_*.py")))))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def load() -> tuple[dict[str, str], list[Kernel]]:
    """({"room language": fingerprint}, the kernels) of the file; both empty where there is none."""
    if not FILE.exists():
        return {}, []
    found = json.loads(FILE.read_text())
    return found["fingerprints"], [Kernel(**k) for k in found["kernels"]]


def stale() -> list[str]:
    """"room language" of everything whose code is not what the file was made of."""
    known = load()[0]
    now = {f"{room} {language}": fingerprint(room, language) for room in kernels.ROOMS for language in languages(room)}
    return sorted(name for name in now.keys() | known.keys() if now.get(name) != known.get(name))


def _compiled(room: str, language: str) -> list[Kernel]:
    if language == "triton":
        reports = [report for _, report in aot.compile_rooms([room])]
    else:
        reports = nvcc.compile_source(CODE / room / "cuda.cu", threads=True)
    groups: dict[str, list[aot.Report]] = {}
    for report in reports:
        groups.setdefault(report.kernel, []).append(report)
    found = []
    for name, group in groups.items():
        group.sort(key=lambda r: r.sm)
        # one name can be several compilations: as many for each architecture
        for i in range(len(group) // len(aot.CAPABILITIES)):
            each = group[i::len(group) // len(aot.CAPABILITIES)]
            found.append(Kernel(room, language, name, each[0].threads, [r.registers for r in each],
                                [r.spills for r in each], [r.shared_bytes for r in each]))
    return found


def update(names: list[str]) -> list[str]:
    """Compiles "room language" entries and writes the file; returns what could not be compiled, with the reason."""
    fingerprints, known = load()
    missing = []
    for name in names:
        room, language = name.split()
        known = [k for k in known if (k.room, k.language) != (room, language)]
        fingerprints.pop(name, None)
        if room not in kernels.ROOMS or language not in languages(room):
            continue  # the room has no such kernels any more
        reason = (aot if language == "triton" else nvcc).why_not()
        if reason:
            missing.append(f"{name}: {reason}")
            continue
        known += _compiled(room, language)
        fingerprints[name] = fingerprint(room, language)
    _write(fingerprints, known)
    return missing


def _write(fingerprints: dict[str, str], found: list[Kernel]) -> None:
    """A kernel a line, so that a change shows as what it is."""
    found = sorted(found, key=lambda k: (k.room, k.language, k.kernel))
    about: dict[str, Any] = {"capabilities": list(aot.CAPABILITIES), "fingerprints": dict(sorted(fingerprints.items()))}
    lines = ",\n".join(json.dumps(k._asdict()) for k in found)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(about, indent=1)[:-2] + ',\n "kernels": [\n' + lines + "\n ]\n}\n")


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 where something could not be compiled."""
    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help="default: those whose code changed")
    rooms = parser.parse_args(argv).rooms
    if unknown := [room for room in rooms if room not in kernels.ROOMS]:
        parser.error(f"rooms must be of {', '.join(kernels.ROOMS)}, got {unknown[0]!r}")
    names = [f"{room} {language}" for room in rooms for language in languages(room)] or stale()
    missing = [line for name in names for line in update([name])]
    print(*(missing or [f"{FILE.name}: {', '.join(names) or 'nothing'} compiled"]), sep="\n")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
