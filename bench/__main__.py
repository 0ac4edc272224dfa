"""`python -m bench` (in a checkout) and `ace-fast bench` (installed): how fast, how much memory, against what."""

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from . import compare, gpu_day, machine, protocol_cases, results, scaling, suite, workloads

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

Scaling (--scaling): time and memory of every operator along edges (1e3 to 1e7), points, channels and degree, with the
fitted exponent beside the one that the algorithm says; what grows faster beyond its scatter has an `error`.

Products (--suite products), forward and backward, docs/products.md. A --case is a group or one of its cases:
  layers             Clebsch-Gordan products (ace_fast's and e3nn's), Gaunt products on a grid, by Fourier series and
                     with the Poisson bracket, CP factors of several ranks: time, memory, paths, independent maps and
                     equivariance error; cases L1 to L10, or L2_C64@1000 with channels and rows
  grid               sphere_product beside plain PyTorch, matrix products and einsum; cases grid_L1 to grid_L10, without
                     a --case to L6 on a CPU
  cp                 TDNTensorProduct beside e3nn's TensorProduct, "uuu", 64 channels; cases cp_L1 to cp_L4
  forms              the dense, mirrored, separable and sparse form of sphere_product, with their operations; cases
                     forms_L1 to forms_L16; not on a GPU, which takes the dense one
On a GPU plain versions run under torch.compile too (--no-compile: not), and times are those of captured kernels.

Before anything is timed its outputs and gradients are compared with the reference in float64 on the very tensors that
are timed; what is wrong gets a row with `error` and no time, and the exit status is 1. Versions run in turn, round
after round, in one process; the fast one runs twice, and `noise` is the difference of its two medians: nothing inside
it is called faster or slower. Without an option that names some, all workloads, protocols and operators run, which
takes hours on a small CPU; --quick takes one small case of each.

A run leaves its rows in one JSON file (pytest-benchmark's format, our numbers in extra_info) and appends a line for
each version to <device>.csv beside it: bench/results in a checkout, else bench-results. Commit both to contribute.
Files of --quick and --compare are in build, and --compare has no table.

--compare REV builds another git revision of the checkout once (build/revisions), and times its ace_fast against the
one here: the cases that the other options choose, in processes that run in turn, this revision twice. Ratios beyond
the noise must repeat in two more sets of processes; then the row says slower or faster, and slower sets the status 1.
""".replace("{protocols}", "\n".join(f"  {name}  {p.source}" for name, p in protocol_cases.PROTOCOLS.items()))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("bench", description=DESCRIPTION,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workload", choices=[*workloads.WORKLOADS, "all"], nargs="+", help="run these workloads")
    add("--protocol", choices=[*protocol_cases.PROTOCOLS, "all"], nargs="+", help="run these protocols")
    add("--direction", choices=protocol_cases.ALL, help="only this direction (protocols, operators)")
    add("--operators", action="store_true", help="run the operators' large cases")
    add("--op", nargs="+", help="run these operators or rooms")
    add("--backend", choices=["cpu", "cuda", "triton", "reference"], help="run the operators on this backend alone")
    add("--scaling", metavar="AXIS", nargs="*", choices=scaling.AXES,
        help=f"run the operators along {', '.join(scaling.AXES)}, default all")
    add("--suite", choices=["products"], help="products: products of irreps and their kernels side by side, by degree")
    add("--roofline", action="store_true", help="measure the machine's rates in every dtype")
    add("--case", help="only this case, e.g. batch100 or nbody_100; with --workload, --protocol, --operators or --op")
    add("--device", choices=["cpu", "cuda", "all"], help="default: the GPU where there is one, else the CPU")
    add("--dtype", choices=["float32", "float64"], default="float32")
    add("--threads", type=int, help="CPU threads, default torch's")
    add("--repeats", type=int, help="timed rounds, default 15 (3 with --quick)")
    add("--compile", action=argparse.BooleanOptionalAction,
        help="with or without the torch.compile column, which costs minutes; default: with it, but for --quick")
    add("--quick", action="store_true",
        help="one small case of each, few rounds, no torch.compile: under 3 minutes, for a look, not for a claim")
    add("--compare", metavar="REV", help="time the ace_fast here against that of another git revision")
    add("--json", metavar="FILE", help="the run's file, default <device>-<time>.json in bench/results or bench-results")
    add("--gpu-day", metavar="FOLDER", nargs="?", const="bench-results",
        help="on a machine with a GPU, into FOLDER: build, tests, benchmarks; under 10 minutes")
    add("--budget", type=float, metavar="S", default=gpu_day.BUDGET_S, help="seconds of --gpu-day as a whole")
    add("--parts", metavar="A,B", help="only these parts of --gpu-day: " + ", ".join(gpu_day.parts(Path(), Path())))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmarks and returns the exit status: 1 where a row has an error or is slower than --compare's."""
    parser = arguments()
    a = parser.parse_args(argv)
    if a.gpu_day:
        names, known = a.parts.split(",") if a.parts else None, gpu_day.parts(Path(), Path())
        if wrong := [name for name in names or () if name not in known]:
            parser.error(f"--parts must be of {', '.join(known)}, got {wrong[0]!r}")
        return gpu_day.main(Path(a.gpu_day), names, a.budget)
    _check(parser, a)
    if a.threads:
        torch.set_num_threads(a.threads)
    devices = machine.devices() if a.device == "all" else [a.device or machine.devices()[-1]]
    rows = suite.Rows(Path(a.json) if a.json else _file(devices[-1], a.quick or a.compare), a.quick)
    try:
        rows.file.parent.mkdir(parents=True, exist_ok=True)
        for device in devices:
            (compare.run if a.compare else suite.run)(a, device, rows)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    finally:  # a run that is stopped keeps what it has
        if rows:
            print(f"rows: {rows.file}{'' if a.compare else _appended(rows)}")
    if not rows:
        parser.error("nothing matches --case, --op, --backend and --direction")
    return int(any(row.get("error") or row.get("verdict") == compare.SLOWER for row in rows))


def _check(parser: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    """Ends with a message where options contradict each other or the machine."""
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; use --device cpu")
    for name in ("threads", "repeats"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(a, name)}")
    if a.compare and (a.scaling is not None or a.roofline or a.suite):
        parser.error("--compare takes workloads, protocols and operators; leave --scaling, --roofline and --suite out")
    if a.case and not (a.workload or a.protocol or a.operators or a.op or a.suite):
        parser.error(f"--case {a.case} needs the --workload, --protocol, --op or --suite that it is of")
    if os.environ.get("TRITON_INTERPRET") == "1" and a.device != "cpu" and torch.cuda.is_available():
        parser.error("TRITON_INTERPRET=1 interprets the kernels that are to be timed; unset it")


def _file(device: str, passing: bool) -> Path:
    """Where a run's rows go: a new file of bench/results in a checkout, of build where they are `passing`, a look or a
    comparison; of bench-results outside a checkout."""
    here = Path(__file__).resolve().parent
    folder = here.parent / "build" if passing else here / "results"
    folder = folder if (here.parent / "pyproject.toml").exists() else Path("bench-results")
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return folder / f"{results.slug(machine.describe(device) | {'device': device})}-{stamp}.json"


def _appended(rows: suite.Rows) -> str:
    try:
        return f"; appended to {', '.join(map(str, results.append(rows.file.parent, rows)))}"
    except (ValueError, OSError) as error:
        return f"; nothing appended: {error}"


if __name__ == "__main__":
    sys.exit(main())
