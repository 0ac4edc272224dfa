"""Workload `nbody_segnn`: one optimiser step of ACE-SEGNN on the charged N-body task.

Hidden 32x0e+32x1o, 4 layers, relaxed; forward, mean squared error of the positions, backward, Adam, dual step. Inputs
are simulated trajectories (frame 30 to frame 40, fixed seed). The attributes (spherical harmonics) are those of the
batch, formed once before the step for all variants alike: `prepare_ms` says what that costs.

eager     e3nn's modules in the original's structure, Adam on all parameters, the original's loop over gammas and Adam
          on the multipliers
compiled  the same under torch.compile (e3nn's generated code unscripted, so that the compiler sees it)
fast      ace_fast.models.SEGNN and ace_fast.ACE with the paper's undamped step sizes, Adam(fused=True) as `ace-fast
          train` has it
fast_plain_adam   the same with the Adam of the eager version, to show what the models alone are worth
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor

from ace_fast.data.nbody import NBodySettings, initial_conditions, simulate
from ace_fast.models import SEGNN, nbody_graph
from ace_fast.relaxation import ACE

from . import gate, steps
from .eager import EagerSEGNN
from .gate import Numbers
from .steps import Variant

CASES, GPU_CASES = ("batch100", "batch1000"), ()
TIMING = {"burst": 4}
EXTRAS = ("fast_plain_adam",)
FRAMES = (30, 40)
ATTRIBUTES = "1x0e+1x1o"
HIDDEN = "32x0e+32x1o"
LAYERS = 4
LR, DUAL_LR = 9e-4, 8e-4


class Data(NamedTuple):
    """One batch, ready for the models, and the weights that all of them start from."""

    graph: SimpleNamespace
    target: Tensor  # [N, 3]
    state: dict[str, Tensor]  # float32 parameters by the original's names
    prepare_ms: float
    sizes: dict[str, int]


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


def _build(kind: type, data: Data, dtype: torch.dtype | None = None) -> torch.nn.Module:
    return steps.build(lambda: _model(kind), dtype or data.target.dtype, data.state, str(data.target.device))


def _loss(data: Data, dtype: torch.dtype | None = None) -> steps.LossOf:
    graph, target = _cast(data.graph, dtype), data.target.to(dtype or data.target.dtype)

    def loss_of(call: Callable) -> tuple[Tensor, Tensor]:
        prediction = graph.pos + call(graph)
        return prediction, torch.nn.functional.mse_loss(prediction, target)

    return loss_of


def _cast(graph: SimpleNamespace, dtype: torch.dtype | None) -> SimpleNamespace:
    if dtype is None:
        return graph
    move = lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
    return SimpleNamespace(**{name: move(x) for name, x in vars(graph).items()})


def variant(name: str, data: Data) -> Variant:
    """"eager", "compiled", "fast" or one of EXTRAS."""
    loss_of = _loss(data)
    if name in ("fast", *EXTRAS):
        model = _build(SEGNN, data)
        adam = lambda parameters: torch.optim.Adam(parameters, lr=LR, fused=name == "fast" or None)  # noqa: E731
        step = steps.fast_step(model, loss_of, adam, ACE(model, lr=LR, dual_lr=DUAL_LR))
        return Variant(step, lambda: steps.numbers(model, model, loss_of))
    if name == "eager":
        model = call = _build(EagerSEGNN, data)
    else:
        model = steps.unscripted(lambda: _build(EagerSEGNN, data))
        call = steps.compiled(model)
    step = steps.original_step(model, call, loss_of, torch.optim.Adam, LR, DUAL_LR)
    return Variant(step, lambda: steps.numbers(model, call, loss_of))


def judge(data: Data, eager: Numbers) -> gate.Judge:
    """Eager in float64 on the timed tensors and weights; `eager` stands for float32 where that is the dtype."""
    model, loss_of = _build(EagerSEGNN, data, torch.float64), _loss(data, torch.float64)
    if data.target.dtype != torch.float32:
        single = _build(EagerSEGNN, data, torch.float32)
        eager = steps.numbers(single, single, _loss(data, torch.float32))
    shape = (data.target.shape[0], o3.Irreps(HIDDEN).dim)
    sizes = steps.gamma_sizes(model, loss_of, lambda name: shape)
    return gate.judge(steps.numbers(model, model, loss_of), eager, data.target.dtype, sizes)
