"""Operations and bytes of the rooms' large cases, kept in data/case-counts.json: projections need no tensors.

Run it as `python -m bench.case_counts [room ...]` after a change of a room's cases.py or counts.py; a test asks
`stale()`.
"""

import argparse
import hashlib
import importlib
import json
import sys
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import Case, cast, generator
from ace_fast.kernels.tensor_product.table import MODES, unpack

from . import counts, resources

FILE = resources.FILE.with_name("case-counts.json")


class Call(NamedTuple):
    """One operator on one large case in one direction, float32."""

    room: str
    op: str
    case: str
    direction: str
    mode: str  # of a tensor product, as e3nn calls it, with " shared" where all rows share the weights; else ""
    flops: int
    bytes: int


def mode(inputs: dict[str, Any]) -> str:
    """The mode of a product's first path; "" of another operator."""
    paths, weight = (inputs.get(name, inputs.get(f"{name}1")) for name in ("paths", "weight"))
    if not paths:
        return ""
    return MODES[unpack(list(paths))[0].mode] + (" shared" if weight.dim() == 1 else "")


def _count(room: str, case: Case, inputs: dict[str, Any], outputs) -> list[Call]:
    op = case.op.name
    forward = counts.forward(op, inputs, outputs)
    found = {"forward": forward}
    if hasattr(torch.ops.ace_fast, f"{op}_bwd"):
        found["forward+backward"] = forward + counts.backward(op, inputs, outputs)
    return [Call(room, op, case.name, direction, mode(inputs), *map(int, count)) for direction, count in found.items()]


def count(room: str, case: Case) -> list[Call]:
    """The case in every direction: from shapes alone where they decide, from the tensors where values do."""
    try:
        with FakeTensorMode():
            inputs = cast(case.inputs(generator()), case, torch.float32)
            return _count(room, case, inputs, case.op(*inputs.values(), "reference"))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        pass  # values decide: coefficients, sizes of clouds, neighbours
    inputs = cast(case.inputs(generator()), case, torch.float32)
    with torch.no_grad():
        return _count(room, case, inputs, case.op(*inputs.values(), "auto"))


def fingerprint(room: str) -> str:
    """A hash of the code that the counts come from."""
    files = [resources.CODE / room / name for name in ("cases.py", "counts.py")]
    code = "".join(map(resources.python_code, (resources.CODE / "counts.py", *files)))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def load() -> tuple[dict[str, str], list[Call]]:
    """({room: fingerprint}, the calls) of the file; both empty where there is none."""
    if not FILE.exists():
        return {}, []
    found = json.loads(FILE.read_text())
    return found["fingerprints"], [Call(*call) for call in found["calls"]]


def stale() -> list[str]:
    """The rooms whose code is not what the file was made of."""
    known, now = load()[0], {room: fingerprint(room) for room in ROOMS}
    return sorted(room for room in now.keys() | known.keys() if now.get(room) != known.get(room))


def update(rooms: list[str]) -> None:
    """Counts the operators (not their gradients by themselves) of these rooms anew and writes the file."""
    fingerprints, calls = load()
    for room in rooms:
        calls = [call for call in calls if call.room != room]
        fingerprints.pop(room, None)
        if room not in ROOMS:
            continue
        for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").LARGE:
            if not case.op.name.endswith("_bwd"):
                calls += count(room, case)
        fingerprints[room] = fingerprint(room)
    calls.sort(key=lambda call: ROOMS.index(call.room))
    lines = ",\n".join(json.dumps(call) for call in calls)
    head = json.dumps({"fingerprints": dict(sorted(fingerprints.items()))}, indent=1)[:-2]
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(head + ',\n "calls": [\n' + lines + "\n ]\n}\n")


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.case_counts", description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help="default: those whose code changed")
    rooms = parser.parse_args(argv).rooms
    if unknown := [room for room in rooms if room not in ROOMS]:
        parser.error(f"rooms must be of {', '.join(ROOMS)}, got {unknown[0]!r}")
    rooms = rooms or stale()
    for room in rooms:
        update([room])
    print(f"{FILE.name}: {', '.join(rooms) or 'nothing'} counted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
