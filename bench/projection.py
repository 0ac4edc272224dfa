"""What each operator would take on GPUs that nobody has measured, from counts, compiled kernels and data sheets.

    time = launch + max(bytes / (bandwidth * COPIED), operations / (rate * MULTIPLIED), need * work / issued)

`work` are the counted bytes, or the counted operations at BALANCE a byte where these are more. `issued` are the
instructions that the schedulers of a GPU issue in a second, times the share of them that the warps resident on a
multiprocessor can keep busy: registers, threads and shared memory of the compiled kernels decide how many those are.
`need`, instructions a unit of work, and `launch`, the time of the smallest calls, are read off the measured devices:
two numbers for each room, language and direction. A kernel below what memory and arithmetic allow is limited by what it
issues, here and elsewhere. Rooms that nobody has measured borrow from the others, with a larger error.

Run it as `python -m bench.projection`: it writes results/projections.json and the table in docs/performance.md. Rows
have `projected: true`; measured rows of a device take their place as soon as a file of it lies in results/.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ace_fast.kernels import ROOMS
from ace_fast.kernels.aot import CAPABILITIES

from . import case_counts, operators, resources, results
from .case_counts import Call
from .devices import DEVICES, Device, key, resident_warps

RESULTS = Path(__file__).with_name("results")
FILE = RESULTS / "projections.json"
COPIED, MULTIPLIED = 0.85, 0.76  # of the data sheet: an H200 copies at 4.1 of 4.8 TB/s, cuBLAS multiplies at 51 of 67
LIBRARY = {"vn_linear"}  # operators whose products are cuBLAS's: they need what it needs
BALANCE = 14.0  # operations that take as long as a byte, an H200's
BLOCK = 256  # threads of a block of a CUDA kernel that does not say
ENOUGH_WARPS = 16  # four a scheduler hide the latency of arithmetic; fewer issue in proportion
MOST = 3.0  # launches: what takes longer says something about the kernel
# rooms that run others' kernels in a language
BORROWS = {("steerable_message", "triton"): ("segment_sum", "tensor_product")}


class Measured(NamedTuple):
    """A time on a device of DEVICES."""

    device: str
    language: str
    call: Call
    ms: float


Residency = dict[tuple[str, str, str, int], float]


class Model(NamedTuple):
    """The two numbers of each room, language and direction; `at_most` where nothing took longer than launches."""

    launch: dict[tuple, float]
    need: dict[tuple, float]
    at_most: dict[tuple, float]


def work(call: Call) -> float:
    """Counted bytes, or operations at what they cost in bytes."""
    return max(float(call.bytes), call.flops / BALANCE)


def residency(kernels: list[resources.Kernel]) -> Residency:
    """(room, language, direction, sm) -> warps on a multiprocessor, the median over the float32 kernels of the
    direction; of all of the room, where none is named so.

    Raises:
        ValueError: no kernels of a room in one of its languages.
    """
    found = {}
    pairs = [(room, language) for room in ROOMS for language in languages(room)]
    for room, language in pairs:
        own = [k for k in kernels if k.language == language and k.room in (room, *BORROWS.get((room, language), ()))]
        if not own:
            raise ValueError(f"projection: {resources.FILE.name} must have kernels of {room} in {language}, got none; "
                             "run python -m bench.resources")
        for direction in operators.DIRECTIONS:
            chosen = [k for k in own if k.single and (direction != "forward" or not k.gradient)] or own
            for at, sm in enumerate(CAPABILITIES):
                each = (resident_warps(sm, k.registers[at], k.threads or BLOCK, k.shared_bytes[at]) for k in chosen)
                found[room, language, direction, sm] = statistics.median(each)
    return found


def issued(device: Device, resident: float) -> float:
    """Instructions a second."""
    return 1e9 * device.issue_ghz * min(1.0, resident / ENOUGH_WARPS)


def languages(room: str) -> list[str]:
    """The GPU languages that a room runs in; "auto" takes CUDA where it was built."""
    return [name for name in ("cuda", "triton") if name in resources.languages(room) or (room, name) in BORROWS]


def measurements(rows: Iterable[dict[str, Any]]) -> list[Measured]:
    """What rows of operators and protocols, in float32 on known GPUs, say about our kernels."""
    rooms = {call.op: call.room for call in case_counts.load()[1]}
    modes = {(call.op, call.case): call.mode for call in case_counts.load()[1]}
    found = []
    for row in rows:
        device = key(row.get("device_name"))
        if device is None or row.get("device") != "cuda" or row.get("dtype") != "float32" or row.get("projected"):
            continue
        if "mode" in row:  # of a protocol; a suite's rows are of several calls
            op = "tensor_product_conv" if row["protocol"].startswith("F") else "tensor_product"
            kind, ms, language = f"{row['mode']}{' shared' * bool(row['shared_weights'])}", row.get("fast_ms"), "cuda"
        else:
            op, ms, language = row.get("op"), row.get("ms"), row.get("backend")
            kind = modes.get((op, row.get("case")), "")
        usual = row.get("direction") in ("forward", "forward+backward")
        if ms and usual and op in rooms and language in resources.LANGUAGES and row.get("suite") is None:
            call = Call(rooms[op], op, row["case"], row["direction"], kind, row["flops"], row["bytes"])
            found.append(Measured(device, language, call, ms))
    return found


def _tiers(language: str, call: Call) -> list[tuple]:
    """Keys of the numbers for a call, the closest first: its room, the mode in its language, its language, any."""
    d, m = call.direction, call.mode
    return [("room", call.room, language, m, d), ("mode", language, m, d), ("language", language, d), ("all", d)]


def calibrate(found: list[Measured], resident: Residency) -> Model:
    """The model of these measurements."""
    fastest: dict[tuple, list[float]] = {}
    for m in found:
        fastest.setdefault((m.call.room, m.language, m.call.direction), []).append(m.ms)
    directions = {d for _, _, d in fastest}
    launch: dict[tuple, float] = {
        (d,): statistics.median(min(ms) for (_, _, of), ms in fastest.items() if of == d) for d in directions}
    launch |= {k: min(min(ms), launch[(k[2],)]) for k, ms in fastest.items()}
    need: dict[tuple, list[float]] = {}
    at_most: dict[tuple, float] = {}
    for m in found:
        device, own = DEVICES[m.device], launch[m.call.room, m.language, m.call.direction]
        rate = issued(device, resident[m.call.room, m.language, m.call.direction, device.sm])
        room, *others = _tiers(m.language, m.call)
        if m.ms > MOST * own:
            for tier in (room, *others):
                need.setdefault(tier, []).append(1e-3 * (m.ms - own) * rate / work(m.call))
        else:
            at_most[room] = min(at_most.get(room, math.inf), 1e-3 * m.ms * rate / work(m.call))
    return Model(launch, {k: statistics.geometric_mean(v) for k, v in need.items()}, at_most)


def predict(model: Model, resident: Residency, device: Device, language: str, call: Call) -> tuple[float, str]:
    """(milliseconds, where `need` comes from: "room", "mode", "language", "all", or the cuBLAS of "library")."""
    tiers = _tiers(language, call)
    basis, need = next(((tier[0], model.need[tier]) for tier in tiers if tier in model.need), ("all", math.inf))
    if basis != "room" and call.op in LIBRARY:
        basis, need = "library", 0.0
    elif basis != "room" and tiers[0] in model.at_most:
        basis, need = "room", min(need, model.at_most[tiers[0]])
    launch = model.launch.get((call.room, language, call.direction), model.launch[(call.direction,)])
    rate = issued(device, resident[call.room, language, call.direction, device.sm])
    seconds = max(call.bytes / (1e9 * device.bandwidth_gbs * COPIED), need * work(call) / rate,
                  call.flops / (1e9 * device.float32_gflops * MULTIPLIED))
    return launch + 1e3 * seconds, basis


def factors(found: list[Measured], resident: Residency, same: Callable[[Measured], Any]) -> list[float]:
    """For each measurement the factor, at least 1, by which the model of the others misses it; `same`: what is left out
    together."""
    missed = []
    for group in {same(m) for m in found}:
        others = [m for m in found if same(m) != group]
        directions = {m.call.direction for m in others}
        model = calibrate(others, resident)
        for m in (m for m in found if same(m) == group and m.call.direction in directions):
            ms, _ = predict(model, resident, DEVICES[m.device], m.language, m.call)
            missed.append(max(ms / m.ms, m.ms / ms))
    return sorted(missed)


def validation(found: list[Measured], resident: Residency) -> dict[str, dict[str, float]]:
    """Median, 90 % quantile and largest of the factors, leaving out each case, each room in a language, each device."""
    left_out = {"case": lambda m: (m.call.room, m.language, m.call.case), "room": lambda m: (m.call.room, m.language),
                "device": lambda m: m.device}
    said = {}
    for name, same in left_out.items():
        missed = factors(found, resident, same)
        if missed:
            at = math.ceil(0.9 * len(missed)) - 1
            said[name] = {"n": len(missed), "median": statistics.median(missed), "q90": missed[at], "worst": missed[-1]}
    return said


def chosen(calls: list[Call]) -> list[Call]:
    """Of every operator its first case and its largest, in every direction."""
    found: dict[Call, None] = {}
    for op in dict.fromkeys(call.op for call in calls):
        own = [call for call in calls if call.op == op]
        names = own[0].case, max(own, key=work).case
        found |= dict.fromkeys(call for call in own if call.case in names)
    return list(found)


def load_results() -> list[dict[str, Any]]:
    """The rows of all committed runs."""
    return [row for file in sorted(RESULTS.glob("*.json")) if file != FILE for row in results.load(file)]


def project(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every operator on every GPU of DEVICES, in every language and direction, what is measured left out."""
    calls, found = chosen(case_counts.load()[1]), measurements(rows)
    resident = residency(resources.load()[1])
    model, said = calibrate(found, resident), validation(found, resident)
    known = {(m.device, m.language, m.call.op, m.call.case, m.call.direction) for m in found}
    made = []
    for name, device in DEVICES.items():
        for call in calls:
            for language in languages(call.room):
                if (name, language, call.op, call.case, call.direction) in known:
                    continue
                ms, basis = predict(model, resident, device, language, call)
                within = said["case" if basis == "room" else "room"]
                made.append({
                    "op": call.op, "case": call.case, "backend": language, "direction": call.direction,
                    "device": "cuda", "device_name": device.name, "dtype": "float32", "projected": True,
                    "ms": float(f"{ms:.3g}"), "flops": call.flops, "bytes": call.bytes, "basis": basis,
                    "error_factor": round(within["median"], 2), "error_factor_q90": round(within["q90"], 2)})
    return made


def main() -> int:
    """Writes the projections and the table of the docs; 2 outside of a checkout."""
    from . import projection_docs

    if not projection_docs.PAGE.exists():
        print(f"projection: must run in a checkout, got an installation without {projection_docs.PAGE.name}; run it in "
              "a clone of the repository", file=sys.stderr)
        return 2
    rows = load_results()
    made = project(rows)
    results.write(FILE, made, max(filter(None, (row.get("datetime") for row in rows)), default=None))
    projection_docs.write(made, rows)
    print(f"{FILE.name}: {len(made)} projections; {projection_docs.PAGE.name}: its table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
