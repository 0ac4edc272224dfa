"""`python -m bench.shard_loading`: graphs a second that come from shards, from memory, and from torch_geometric.

One core: torch has one thread, and the process is bound to one processor. The graphs are those of the N-body and QM9
benchmarks (5 bodies, 20 edges; molecules of the real subset where it is at hand, 2 Å), repeated to `--graphs`.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from ace_fast.data import Batcher, FlatDataset, ShardBatcher, radius_edges, write_shards

from . import molecules

PYG_GRAPHS = 2_000  # Data objects that torch_geometric's loader collates in a round


def nbody(graphs: int) -> FlatDataset:
    """Positions, velocities, charges and targets of 5 bodies, all edges."""
    edges = torch.tensor([(i, j) for j in range(5) for i in range(5) if i != j], dtype=torch.uint8).t()
    vectors = {name: torch.randn(5 * graphs, 3) for name in ("pos", "vel", "target")}
    return FlatDataset(vectors | {"charge": torch.randn(5 * graphs, 1)}, 5 * torch.arange(graphs + 1),
                       edges.repeat(1, graphs), 20 * torch.arange(graphs + 1), check=False, symmetric=True)


def qm9(graphs: int) -> FlatDataset:
    """Molecules with edges up to 2 Å and one target."""
    data, _ = molecules.load(4096)
    edges, ends = radius_edges(data.pos, data.offsets, molecules.RADIUS)
    whole = FlatDataset({"pos": data.pos, "z": data.z}, data.offsets, edges.astype("uint8"), ends,
                        graph={"y": data.targets[molecules.TARGET]}, check=False, symmetric=True)
    return whole.subset(torch.arange(graphs) % len(whole))


def pyg(data: FlatDataset) -> list[Data]:
    """The first graphs as torch_geometric has them."""
    one = [data.batch([k]) for k in range(PYG_GRAPHS)]
    return [Data(edge_index=b.edge_index, **{name: getattr(b, name) for name in b.names}) for b in one]


def rate(make: Callable[[], Iterable], rounds: int, most: int) -> float:
    """Graphs a second, median of the rounds; a round ends with its data or after `most` graphs."""
    found = []
    for _ in range(rounds):
        start, seen = time.perf_counter(), 0
        for batch in make():
            seen += batch.num_graphs
            if seen >= most:
                break
        found.append(seen / (time.perf_counter() - start))
    return statistics.median(found)


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser("bench.shard_loading", description=__doc__)
    parser.add_argument("--graphs", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{'graphs/s':24}{'shards':>12}{'memory':>12}{'pyg':>12}")
    for name, make, sizes in (("nbody", nbody, (100, 1000)), ("qm9", qm9, (128, 1024, 4096))):
        data = make(a.graphs)
        items = pyg(data)
        with tempfile.TemporaryDirectory() as folder:
            shards = write_shards(folder, data)
            for size in sizes:
                ours = rate(partial(ShardBatcher, shards, size), a.rounds, a.graphs)
                flat = rate(partial(Batcher, data, size), a.rounds, a.graphs)
                peer = rate(partial(DataLoader, items, size, shuffle=True), a.rounds, PYG_GRAPHS)
                print(f"{name + ' batch ' + str(size):24}{ours:12,.0f}{flat:12,.0f}{peer:12,.0f}", flush=True)


if __name__ == "__main__":
    main()
