"""Workload `nbody_segnn`: one optimiser step of ACE-SEGNN on the charged N-body task; versions: bench/training.py.

Hidden 32x0e+32x1o, 4 layers, relaxed; forward, mean squared error of the positions, backward, Adam, dual step. Inputs
are simulated trajectories (frame 30 to frame 40, fixed seed). The attributes (spherical harmonics) are those of the
batch, formed once before the step for all variants alike: `prepare_ms` says what that costs.
"""

import functools
import time
from types import SimpleNamespace

import torch
from e3nn import o3
from torch import Tensor

from ace_fast.data.nbody import NBodySettings, initial_conditions, simulate
from ace_fast.models import SEGNN, nbody_graph

from . import steps, training
from .eager import EagerSEGNN
from .training import EXTRAS, GPU_EXTRAS, Data  # noqa: F401  a workload's names

CASES, GPU_CASES = ("batch100", "batch1000"), ()
QUICK = "batch20"
TIMING = {"burst": 4}
FRAMES = (30, 40)
ATTRIBUTES = "1x0e+1x1o"
HIDDEN = "32x0e+32x1o"
LAYERS = 4


def graphs_of(case: str) -> int:
    """batchN -> N."""
    number = case.removeprefix("batch")
    if not case.startswith("batch") or not number.isdigit() or int(number) < 1:
        raise ValueError(f"nbody_segnn: the case must be batchN with N graphs, as in {', '.join(CASES)}, got {case!r}")
    return int(number)


def trajectories(count: int) -> dict[str, Tensor]:
    """Positions, velocities, charges and later positions of `count` systems of five bodies, [N, ...] float64."""
    settings = NBodySettings(num_test=count)
    x, v, q = initial_conditions(settings, "test")
    length = FRAMES[1] * settings.sample_every + settings.sample_every + 1
    position, velocity = simulate(x, v, q, steps=length)  # [B, T, n, 3]
    first, last = FRAMES
    return {"pos": position[:, first].flatten(0, 1), "vel": velocity[:, first].flatten(0, 1),
            "charges": q.flatten(0, 1), "target": position[:, last].flatten(0, 1)}


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """The case's batch and weights, the same in every process."""
    count, n = graphs_of(case), 5
    arrays = {k: x.to(device, dtype) for k, x in trajectories(count).items()}
    target, source = (~torch.eye(n, dtype=torch.bool)).nonzero().unbind(1)
    shift = n * torch.arange(count)[:, None]
    edge_index = torch.stack([(source + shift).flatten(), (target + shift).flatten()]).to(device)
    batch = SimpleNamespace(
        **arrays, edge_index=edge_index, batch=torch.arange(count).repeat_interleave(n).to(device),
        ptr=n * torch.arange(count + 1).to(device),
    )
    nbody_graph(batch)
    start = time.perf_counter()
    graph = nbody_graph(batch)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    sizes = {"graphs": count, "nodes": count * n, "edges": edge_index.shape[1]}
    return Data(graph, arrays["target"], steps.state_of(lambda: _model(SEGNN)), prepare_ms, sizes)


def _model(kind: type) -> torch.nn.Module:
    return kind("2x1o+1x0e", HIDDEN, "1x1o", ATTRIBUTES, ATTRIBUTES, LAYERS, norm=None, task="node",
                additional_message_irreps="2x0e", relaxed=True)


def _loss(output: Tensor, graph: SimpleNamespace, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = graph.pos + output
    return prediction, torch.nn.functional.mse_loss(prediction, target)


TASK = training.Task(SEGNN, EagerSEGNN, _model, _loss, lambda name: o3.Irreps(HIDDEN).dim, lr=9e-4, dual_lr=8e-4)
variant, judge = functools.partial(training.variant, TASK), functools.partial(training.judge, TASK)
