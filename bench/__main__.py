"""`python -m bench` (in a checkout) and `ace-fast bench` (installed): how fast, how much memory, against what."""

import argparse
import os
import sys
from pathlib import Path

import torch

from . import gpu_day, machine, operators, protocol_cases, protocols, results, roofline, tables, workloads

DESCRIPTION = """\
Times ace_fast against the eager reference, and says how sure it is.

Workloads; columns: the original's structure in PyTorch (eager), the same under torch.compile (compiled), ace_fast
(fast), and the peak memory of a step beyond what was there before.
One optimiser step (forward, loss, backward, optimiser, dual step):
  nbody_segnn        ACE-SEGNN on charged N-body systems, hidden 32x0e+32x1o, 4 layers, relaxed; cases batch100 and
                     batch1000 (any batchN)
  qm9_segnn          ACE-SEGNN on molecules of QM9, hidden 18x(0e+1o+2e), attributes to degree 3, 5 layers, instance
                     norm, relaxed; case batch128, on a GPU batch1024 too (any batchN)
  qm9_schnet         ACE-SchNet on molecules of QM9, 64 channels, 6 interactions, 10 Å, relaxed; cases batch256_table,
                     batch256 and batch4096_table (any batchN, batchN_table: filters from a table)
  md17_schnet        the same on energies and forces of aspirin (rMD17); cases batch32_table and batch32
  mocap_egno         ACE-EGNO on human motion, 128 channels, 6 layers, 5 time steps, relaxed; cases batch12, batch128
  modelnet_vndgcnn   ACE-VN-DGCNN on generated clouds, 20 neighbours, 40 classes, relaxed, without dropout; cases
                     clouds8x300 and clouds4x1024, on a GPU clouds32x300 and clouds32x1024 too (any cloudsBxN)
One layer (forward where the case ends in _forward, otherwise forward and backward):
  vn_edge_conv       VN-DGCNN's edge convolutions, neighbours given; cases IN_OUT_BxN[_kK], IN channels at the nodes
  vn_linear          its layers at the nodes; cases IN_OUT_BxN, 682 for [x ; mean x] of 341 channels
  knn                k nearest neighbours; cases BxN_F[_kK], F features

Operators (--operators): every room's large cases on every backend present, forward and forward + backward, against
plain PyTorch: median, GFLOP/s, GB/s, and the share of what this machine's measured copy and matrix rates allow.

Protocols (--protocol): the products of the field's publications, e3nn (eager and compiled) beside ace_fast,
cuequivariance-torch and openequivariance, what is missing with its reason; cases NAME[@ROWS]:
{protocols}

Before anything is timed its outputs and gradients are compared with the reference in float64 on the very tensors that
are timed; what is wrong gets a row with `error` and no time. Versions run in turn, round after round, in one process;
the fast one runs twice, and `noise` is the difference of its two medians. Without --workload, --protocol or
--operators, workloads and operators run.
""".replace("{protocols}", "\n".join(f"  {name}  {p.source}" for name, p in protocol_cases.PROTOCOLS.items()))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("bench", description=DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workload", choices=[*workloads.WORKLOADS, "all"], nargs="+", help="run these workloads")
    add("--protocol", choices=[*protocol_cases.PROTOCOLS, "all"], nargs="+", help="run these protocols")
    add("--direction", choices=protocol_cases.ALL, help="only this direction (protocols)")
    add("--operators", action="store_true", help="run the operators' large cases")
    add("--case", help="only this case, e.g. batch100 or nbody_100")
    add("--op", nargs="+", help="only these operators or rooms")
    add("--backend", help="only this backend (operators)")
    add("--device", choices=["cpu", "cuda", "all"], help="default: the GPU where there is one, else the CPU")
    add("--dtype", choices=["float32", "float64"], default="float32")
    add("--threads", type=int, help="CPU threads, default torch's")
    add("--repeats", type=int, help="timed rounds, default 15 (3 with --quick)")
    add("--no-compile", action="store_true", help="leave the torch.compile column out (it costs minutes)")
    add("--quick", action="store_true", help="few rounds, the first case of each workload: for a look, not for a claim")
    add("--json", metavar="FILE", help="write the rows, in pytest-benchmark's format")
    add("--gpu-day", metavar="FOLDER", nargs="?", const="bench-results",
        help="on a machine with a GPU, into FOLDER: build, tests, protocols, workloads, operators; under 10 minutes")
    add("--parts", metavar="A,B", help="only these parts of --gpu-day: " + ", ".join(gpu_day.parts(Path(), Path())))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmarks and returns the exit status: 1 where a row has an error."""
    parser = arguments()
    a = parser.parse_args(argv)
    if a.gpu_day:
        names, known = a.parts.split(",") if a.parts else None, gpu_day.parts(Path(), Path())
        if wrong := [name for name in names or () if name not in known]:
            parser.error(f"--parts must be of {', '.join(known)}, got {wrong[0]!r}")
        return gpu_day.main(Path(a.gpu_day), names)
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; use --device cpu")
    for name in ("threads", "repeats"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(a, name)}")
    if os.environ.get("TRITON_INTERPRET") == "1" and a.device != "cpu" and torch.cuda.is_available():
        parser.error("TRITON_INTERPRET=1 interprets the kernels that are to be timed; unset it")
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.json:
        Path(a.json).parent.mkdir(parents=True, exist_ok=True)
    rows = Rows(a.json)
    for device in machine.devices() if a.device == "all" else [a.device or machine.devices()[-1]]:
        tables.heading(machine.describe(device))
        _run(a, device, rows)
    if not rows:
        parser.error("nothing matches --case, --op and --backend")
    return int(any(row.get("error") for row in rows))


class Rows(list):
    """Rows that are in the file as soon as they are measured, so that a run that is stopped keeps what it has."""

    def __init__(self, file: str | None):
        super().__init__()
        self._file = file and Path(file)

    def add(self, row: dict) -> dict:
        self.append(row)
        if self._file:
            results.write(self._file, self)
        return row


def _run(a: argparse.Namespace, device: str, rows: Rows) -> None:
    repeats = a.repeats or (3 if a.quick else 15)
    dtype = getattr(torch, a.dtype)
    both = not (a.workload or a.operators or a.protocol)
    if a.workload or both:
        names = workloads.WORKLOADS if both or "all" in a.workload else a.workload
        found = []
        for name in names:
            cases = workloads.cases(workloads.find(name), device)
            for case in [a.case] if a.case else cases[:1] if a.quick else cases:
                with tables.waiting(f"{name} {case} on {device}"):
                    row = workloads.run(name, case, device, dtype, repeats, not a.no_compile)
                found.append(rows.add(row))
        tables.workloads(found)
    if a.protocol:
        _protocols(a, device, dtype, repeats, rows)
    if a.operators or both:
        _operators(a, device, dtype, repeats, rows)


def _protocols(a: argparse.Namespace, device: str, dtype: torch.dtype, repeats: int, rows: Rows) -> None:
    with tables.waiting("measuring the machine"):
        roof = roofline.measure(device, dtype, a.quick)
    names = list(protocol_cases.PROTOCOLS) if "all" in a.protocol else a.protocol
    found = []
    for case in protocols.jobs(names, device, dtype, a.case, a.direction, not a.no_compile, a.quick):
        with tables.waiting(f"{case.protocol} {case.name} on {device}"):
            for row in protocols.measure(case, roof, repeats):
                found.append(rows.add(row))
    tables.protocols(found, roof)


def _operators(a: argparse.Namespace, device: str, dtype: torch.dtype, repeats: int, rows: Rows) -> None:
    with tables.waiting("measuring the machine"):
        roof = roofline.measure(device, dtype, a.quick)
    found = []
    for job in operators.jobs(device, dtype, a.case, a.op, a.backend):
        if job.backend == "reference" and a.backend != "reference":
            continue  # the plain reference is a column already
        with tables.waiting(repr(job)):
            found.append(rows.add(operators.measure(job, roof, repeats)))
    tables.operators(found, roof)


if __name__ == "__main__":
    sys.exit(main())
