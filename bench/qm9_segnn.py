"""Workload `qm9_segnn`: one optimiser step of ACE-SEGNN on molecules of QM9; versions: bench/training.py.

The published setting: hidden 18x0e+18x1o+18x2e, attributes to degree 3, 5 layers, instance norm, mean over the atoms,
relaxed; forward, mean absolute error of the standardised polarisability, backward, Adam, dual step. Molecules:
bench/molecules.py. Attributes and edges are formed once before the step for all variants alike: `prepare_ms`.
"""

import functools
import time
from types import SimpleNamespace

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from ace_fast.models import SEGNN, qm9_graph

from . import molecules, steps, training
from .eager import EagerSEGNN
from .training import EXTRAS, GPU_EXTRAS, Data  # noqa: F401  a workload's names

CASES, GPU_CASES = ("batch128",), ("batch1024",)
QUICK = "batch8"
TIMING = {"burst": 2, "warmup": 2, "budget_s": 120.0}
ATTRIBUTES = "1x0e+1x1o+1x2e+1x3o"
HIDDEN = "18x0e+18x1o+18x2e"
LAYERS = 5


def count_of(case: str) -> int:
    """batchN -> N."""
    number = case.removeprefix("batch")
    if not case.startswith("batch") or not number.isdigit() or int(number) < 2:
        raise ValueError(f"qm9_segnn: the case must be batchN with N >= 2 molecules, as in {CASES[0]}, got {case!r}")
    return int(number)


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """The case's batch and weights, the same in every process."""
    found, source = molecules.load(count_of(case))
    sizes, y = np.diff(found.offsets), torch.from_numpy(found.targets[molecules.TARGET])
    target = (y - y.mean()) / (y - y.mean()).abs().mean()
    kinds = torch.from_numpy(found.z[:, None] == np.asarray(molecules.ELEMENTS))
    batch = SimpleNamespace(
        pos=torch.from_numpy(found.pos).to(device, dtype), x=kinds.to(device, dtype),
        edge_index=torch.from_numpy(molecules.edges(found)).to(device),
        batch=torch.arange(len(sizes)).repeat_interleave(torch.from_numpy(sizes)).to(device),
        ptr=torch.from_numpy(found.offsets).to(device),
    )
    qm9_graph(batch)
    start = time.perf_counter()
    graph = qm9_graph(batch)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    sizes = {"molecules": len(sizes), "nodes": len(found.pos), "edges": batch.edge_index.shape[1],
             "source": source}
    return Data(graph, target[:, None].to(device, dtype), steps.state_of(lambda: _model(SEGNN)), prepare_ms, sizes)


def _model(kind: type) -> torch.nn.Module:
    return kind("5x0e", HIDDEN, "1x0e", ATTRIBUTES, ATTRIBUTES, LAYERS, norm="instance", pool="avg", task="graph",
                additional_message_irreps="1x0e", relaxed=True)


def _loss(output: Tensor, graph: SimpleNamespace, target: Tensor) -> tuple[Tensor, Tensor]:
    return output, torch.nn.functional.l1_loss(output, target)


# the norm takes off what a bias before it adds
TASK = training.Task(SEGNN, EagerSEGNN, _model, _loss, lambda name: o3.Irreps(HIDDEN).dim, lr=6e-4, dual_lr=1e-2,
                     cancels=("update_layer_2.biases",))
variant, judge = functools.partial(training.variant, TASK), functools.partial(training.judge, TASK)
