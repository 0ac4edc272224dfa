"""Workload `qm9_schnet`: one optimiser step of ACE-SchNet on molecules of QM9; versions: bench/training.py.

The published setting: 64 channels and filters, 50 Gaussians, 6 interactions, 10 Å, at most 32 neighbours (no molecule
has more), relaxed; forward, mean absolute error of the polarisability, backward, Adam, dual step. Molecules:
bench/molecules.py. Edges are found once before the step for all versions alike (`prepare_ms`), distances in the step.
`end_to_end` draws a new batch of the same molecules before each step, in another order, as `ace-fast train qm9` does.
Cases: batchN with exact filters, batchN_table with filters from a table of 1024 knots.
"""

import itertools
import re
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from ace_fast import Graph, segments
from ace_fast.data import Batcher, FlatDataset, radius_edges
from ace_fast.data.molecules import Molecules
from ace_fast.models import SchNet
from ace_fast.train.tasks.qm9_models import MODELS

from . import gate, molecules, steps, training
from .eager_schnet import EagerSchNet
from .training import GPU_EXTRAS, Data  # noqa: F401  a workload's names

QUICK = "batch16_table"
EXTRAS = (*training.EXTRAS, "end_to_end")
CASES, GPU_CASES = ("batch256_table", "batch256", "batch4096_table"), ("batch4096",)
TIMING = {"burst": 2, "warmup": 2, "budget_s": 120.0}
HIDDEN, CUTOFF = 64, 10.0


class FastSchNet(SchNet):
    """Called with the graph object, as eager is."""

    def forward(self, graph: SimpleNamespace) -> Tensor:
        return super().forward(graph.z, graph.pos, graph.segments, graph.graph)


def parse(name: str, case: str, most: str) -> tuple[int, str]:
    """batchN or batchN_table -> N, filter."""
    found = re.fullmatch(r"batch(\d+)(_table)?", case)
    if not found or int(found[1]) < 2:
        raise ValueError(f"{name}: the case must be batchN or batchN_table with N >= 2 {most}, got {case!r}")
    return int(found[1]), "table" if found[2] else "exact"


def batch_of(z: Tensor, pos: Tensor, sizes: Tensor, edge_index: Tensor, device: str, dtype: torch.dtype
             ) -> SimpleNamespace:
    """The graph object of molecules of `sizes` atoms."""
    batch = torch.arange(len(sizes)).repeat_interleave(sizes).to(device)
    edge_index = edge_index.to(device)
    return SimpleNamespace(z=z.to(device), pos=pos.to(device, dtype), batch=batch, num_graphs=len(sizes),
                           edge_index=edge_index, graph=Graph(edge_index, len(z)), segments=segments(batch, len(sizes)))


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """The case's batch and weights, the same in every process."""
    count, kind = parse("qm9_schnet", case, "molecules")
    return data_for(*molecules.load(count), kind, device, dtype)


def data_for(found: Molecules, source: str, kind: str, device: str, dtype: torch.dtype) -> Data:
    """A batch of these molecules, which `source` names, for filters of one `kind`."""
    count, start = len(found.ids), time.perf_counter()
    data = data_of(found)
    batch = data.batch(range(count))
    graph = batch_of(batch.z.long(), batch.pos, batch.ptr.diff(), batch.edge_index, device, dtype)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    sizes = {"molecules": count, "samples": count, "nodes": len(found.pos), "edges": data.edge_index.shape[1],
             "source": source, "filter": kind}
    return Data(graph, batch.target.to(device, dtype), steps.state_of(lambda: model_of(FastSchNet, "exact")),
                prepare_ms, sizes, draw=drawing(data, count, device, dtype))


def data_of(found: Molecules) -> FlatDataset:
    """Elements z, positions pos, edges within the cutoff and the target [G, 1] of molecules."""
    edges, ends = radius_edges(found.pos, found.offsets, CUTOFF)
    node = {"z": torch.from_numpy(found.z), "pos": torch.from_numpy(found.pos)}
    target = torch.from_numpy(found.targets[molecules.TARGET])[:, None]
    return FlatDataset(node, torch.from_numpy(found.offsets), torch.from_numpy(edges).to(torch.uint8),
                       torch.from_numpy(ends), graph={"target": target})


def drawing(data: FlatDataset, count: int, device: str, dtype: torch.dtype
            ) -> Callable[[], tuple[SimpleNamespace, Tensor]]:
    """Gives the next batch of `count` molecules at each call, made by what `ace-fast train qm9` makes batches with."""
    model = MODELS["schnet"]
    prepared = model.prepare(data, {"device": device, "dtype": str(dtype).removeprefix("torch.")})
    prepared.graph["target"] = prepared.graph["target"].to(dtype)
    batches = itertools.chain.from_iterable(itertools.repeat(Batcher(prepared, count, drop_last=True)))

    def draw() -> tuple[SimpleNamespace, Tensor]:
        batch = next(batches)
        names = ("z", "pos", "segments", "graph")
        return SimpleNamespace(**dict(zip(names, model.inputs(batch), strict=True))), batch.target

    return draw


def model_of(kind: type, filters: str) -> torch.nn.Module:
    """SchNet of the published size, of class `kind`; `filters`: "exact" or "table", where it has a choice."""
    options = {"filter": filters} if kind is FastSchNet else {}
    return kind(HIDDEN, HIDDEN, cutoff=CUTOFF, relaxed=True, **options)


def _loss(output: Tensor, graph: SimpleNamespace, target: Tensor) -> tuple[Tensor, Tensor]:
    return output, torch.nn.functional.l1_loss(output, target)


def _task(data: Data) -> training.Task:
    # a batch norm takes off what the first map's bias adds
    return training.Task(FastSchNet, EagerSchNet, lambda kind: model_of(kind, data.sizes["filter"]), _loss,
                         lambda name: HIDDEN, lr=1e-3, dual_lr=1e-3, cancels=("pos_linear.bias",))


def variant(name: str, data: Data) -> steps.Variant:
    """"eager", "compiled", "fast" or one of EXTRAS ("end_to_end": drawing the batch included) and GPU_EXTRAS."""
    return training.variant(_task(data), name, data)


def judge(data: Data, eager: gate.Numbers) -> gate.Judge:
    """Eager in float64 on the timed tensors and weights."""
    return training.judge(_task(data), data, eager)
