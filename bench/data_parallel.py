"""What two processes that train together reach on two cores: python -m bench.data_parallel [--batch 128] [--rounds 8].

The step is `ace-fast train`'s own (bench workload qm9_schnet: published sizes, batches drawn), `--batch` molecules a
process. Three ways in turn, in short bursts, each process pinned to its core:

    one        a process alone, the other core idle
    apart      two processes that know nothing of each other: what the two cores give, and the ceiling of
    together   two processes that sum their gradients (gloo)

Printed are the molecules a second of each (medians) and the medians over rounds of the ratios within a round. Cores
that are hyperthreads of one core have a ceiling well below 2; then `together` / `apart` is the share that is reached.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from ace_fast import ACE
from ace_fast.data import Batcher
from ace_fast.train import options
from ace_fast.train.processes import Processes
from ace_fast.train.steps import Stepper
from ace_fast.train.tasks import qm9
from ace_fast.train.tasks.qm9_models import MODELS

from . import machine, molecules, qm9_schnet, results

WAYS = ("one", "apart", "together")
_STEPS = 3  # a burst
_MOLECULES = 2_048


def stepper(batch: int, group: Processes) -> Stepper:
    """The step of a fresh model on this process's part of batches of `batch` molecules."""
    config = options.make_config(qm9, "paper", {"model": "schnet", "batch_size": batch, "dtype": "float32"})
    model = MODELS["schnet"]
    data = model.prepare(qm9_schnet.data_of(molecules.load(_MOLECULES)[0]), config)
    data.graph["target"] = data.graph["target"].float()
    batches = Batcher(data, batch, drop_last=True)
    batches.shard(group.rank, group.world)
    training = SimpleNamespace(batches=batches, loss=lambda network, part: torch.nn.functional.l1_loss(
        network(*model.inputs(part)), part.target))
    torch.manual_seed(0)
    network = model.build(config).train()
    ace = ACE(network)
    adam = torch.optim.Adam(ace.primal_parameters(), lr=config["lr"], fused=True)
    return Stepper(network, adam, ace, training, config, group, _diverged)


def _diverged(failure: object) -> None:
    raise FloatingPointError("data_parallel: the loss must stay finite, got NaN or infinity")


def _endless(step: Stepper):
    while True:
        yield from step.batches


def measure(rank: int, batch: int, rounds: int, core: int) -> dict[str, list[float]]:
    """Molecules a second of each way, a number a round; all processes call it together."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    steps = {False: stepper(batch, Processes()), True: stepper(2 * batch, Processes(rank, 2, rank))}
    drawn = {shared: _endless(step) for shared, step in steps.items()}
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(-1, rounds):  # one round to warm up
        for way in WAYS[number % 3:] + WAYS[:number % 3]:
            shared = way == "together"
            dist.barrier()
            start = time.perf_counter()
            for _ in range(_STEPS if way != "one" or rank == 0 else 0):
                steps[shared].add(next(drawn[shared]))
                steps[shared].apply(False)
            spent = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            dist.all_reduce(spent, dist.ReduceOp.MAX)
            if number >= 0:
                found[way].append((1 if way == "one" else 2) * batch * _STEPS / float(spent))
    return found


def summary(found: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the rates, and of the ratios within a round."""
    row = {f"{way}_per_s": statistics.median(rates) for way, rates in found.items()}
    for a, b in (("together", "one"), ("apart", "one"), ("together", "apart")):
        row[f"{a}_over_{b}"] = statistics.median(x / y for x, y in zip(found[a], found[b], strict=True))
    return row


def _process(rank: int, port: int, batch: int, rounds: int, cores: list[int], out: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = measure(rank, batch, rounds, cores[rank])
    if rank == 0:
        row = {"workload": "data_parallel", "case": f"batch{batch}", "device": "cpu", "rounds": rounds}
        results.write(out, [row | summary(found) | machine.describe("cpu")])
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.data_parallel", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="molecules a process (default: 128)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of the three ways (default: 8)")
    parser.add_argument("--json", type=Path, help="write a run file too")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error(f"there must be two cores, got {len(cores)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        out = str(arguments.json or Path(place) / "row.json")
        torch.multiprocessing.spawn(_process, (port, arguments.batch, arguments.rounds, cores, out), nprocs=2)
        (row,) = results.load(out)
    for way in WAYS:
        print(f"{way:9} {row[f'{way}_per_s']:8.0f} molecules/s")
    print(f"together / one {row['together_over_one']:.2f}, apart / one {row['apart_over_one']:.2f}, "
          f"together / apart {row['together_over_apart']:.2f}")


if __name__ == "__main__":
    main()
