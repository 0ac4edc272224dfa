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

import e3nn
import torch
from e3nn import o3
from torch import Tensor

from ace_fast.data.nbody import NBodySettings, initial_conditions, simulate
from ace_fast.models import SEGNN, nbody_graph
from ace_fast.relaxation import ACE

from .eager import EagerSEGNN
from .gate import Numbers

CASES = ("batch100", "batch1000")
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


class Variant(NamedTuple):
    """A model with its optimisers."""

    step: Callable[[], Tensor]  # one optimiser step, changes the weights; returns the loss
    check: Callable[[], Numbers]  # outputs, loss and gradients at the present weights, changes nothing


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
    steps = FRAMES[1] * settings.sample_every + settings.sample_every + 1
    position, velocity = simulate(x, v, q, steps=steps)  # [B, T, n, 3]
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
    torch.manual_seed(0)
    state = {k: v.detach().clone() for k, v in _build(SEGNN, torch.float32).named_parameters()}
    sizes = {"graphs": count, "nodes": count * n, "edges": edge_index.shape[1]}
    return Data(graph, arrays["target"], state, prepare_ms, sizes)


def _arguments() -> tuple:
    return "2x1o+1x0e", HIDDEN, "1x1o", ATTRIBUTES, ATTRIBUTES, LAYERS


def _options() -> dict[str, object]:
    return {"norm": None, "task": "node", "additional_message_irreps": "2x0e", "relaxed": True}


def _build(
    kind: type, dtype: torch.dtype, state: dict[str, Tensor] | None = None, device: str = "cpu"
) -> torch.nn.Module:
    """A model whose constants too are computed in `dtype`, with the given weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = kind(*_arguments(), **_options())
    finally:
        torch.set_default_dtype(before)
    model = model.to(device)
    if state is not None:
        parameters = dict(model.named_parameters())
        if parameters.keys() != state.keys():
            raise ValueError(f"nbody_segnn: parameters must be {sorted(state)}, got {sorted(parameters)}")
        with torch.no_grad():
            for name, value in state.items():
                parameters[name].copy_(value)
    return model.train()


def _loss(model: Callable, graph: SimpleNamespace, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = graph.pos + model(graph)
    return prediction, torch.nn.functional.mse_loss(prediction, target)


def _check(model: torch.nn.Module, call: Callable, graph: SimpleNamespace, target: Tensor) -> Numbers:
    prediction, loss = _loss(call, graph, target)
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters)
    found = {f"gradient of {n}": g for n, g in zip(names, grads, strict=True)}
    return {"output": prediction.detach(), "loss": loss.detach()} | found


def _original_step(model: torch.nn.Module, call: Callable, data: Data) -> Callable[[], Tensor]:
    """The step of the original training loop, equality constraints: Adam on everything, a loop over the gammas."""
    gammas = model.get_gammas()
    multipliers = [torch.zeros_like(gamma) for gamma in gammas]
    primal = torch.optim.Adam(model.parameters(), lr=LR)
    dual = torch.optim.Adam(multipliers, lr=DUAL_LR)

    def step() -> Tensor:
        primal.zero_grad()
        slacks = [gamma - 0.0 for gamma in gammas]
        _, loss = _loss(call, data.graph, data.target)
        penalty = 0.0
        for multiplier, slack in zip(multipliers, slacks, strict=True):
            penalty = penalty + multiplier * slack + 0.0 * slack**2
        for multiplier, slack in zip(multipliers, slacks, strict=True):
            multiplier.grad = -slack.detach()
        (loss + penalty).backward()
        primal.step()
        dual.step()
        return loss.detach()

    return step


def _fast_step(model: torch.nn.Module, data: Data, fused: bool) -> Callable[[], Tensor]:
    ace = ACE(model, lr=LR, dual_lr=DUAL_LR)
    optimizer = torch.optim.Adam(ace.primal_parameters(), lr=LR, fused=fused or None)

    def step() -> Tensor:
        optimizer.zero_grad()
        _, loss = _loss(model, data.graph, data.target)
        loss.backward()
        optimizer.step()
        ace.step()
        return loss.detach()

    return step


def variant(name: str, data: Data) -> Variant:
    """"eager", "compiled", "fast" or one of EXTRAS."""
    dtype, device = data.target.dtype, str(data.target.device)
    if name in ("fast", *EXTRAS):
        model = _build(SEGNN, dtype, data.state, device)
        return Variant(_fast_step(model, data, name == "fast"), lambda: _check(model, model, data.graph, data.target))
    if name == "eager":
        model = call = _build(EagerSEGNN, dtype, data.state, device)
    else:
        model = _unscripted(lambda: _build(EagerSEGNN, dtype, data.state, device))
        torch.compiler.reset()  # the shapes of an earlier case would make this one's dynamic, and slower
        call = torch.compile(model, dynamic=False)
    return Variant(_original_step(model, call, data), lambda: _check(model, call, data.graph, data.target))


def _unscripted(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Builds with e3nn's generated code left in Python: torch.compile cannot look into scripted modules."""
    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(jit_script_fx=False)
    try:
        return build()
    finally:
        e3nn.set_optimization_defaults(**before)


def gold(data: Data, eager: Numbers) -> tuple[Numbers, Numbers, dict[str, float]]:
    """(eager in float64, eager in float32, sizes of the gammas' gradients), on the timed tensors and weights.

    `eager` are the eager variant's own numbers, used again where it is the float32 one.
    """
    device = str(data.target.device)
    double = _build(EagerSEGNN, torch.float64, data.state, device)
    graph, target = _cast(data.graph, torch.float64), data.target.double()
    if data.target.dtype != torch.float32:
        model = _build(EagerSEGNN, torch.float32, data.state, device)
        eager = _check(model, model, _cast(data.graph, torch.float32), data.target.float())
    return _check(double, double, graph, target), eager, _gamma_sizes(double, graph, target)


def _cast(graph: SimpleNamespace, dtype: torch.dtype) -> SimpleNamespace:
    move = lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
    return SimpleNamespace(**{name: move(x) for name, x in vars(graph).items()})


def _gamma_sizes(model: torch.nn.Module, graph: SimpleNamespace, target: Tensor) -> dict[str, float]:
    """The sum of the absolute values of the terms of each gamma's gradient: gamma widened to one number an element."""
    held = {id(gamma) for gamma in model.get_gammas()}
    names = [name for name, p in model.named_parameters() if id(p) in held]
    shape = (target.shape[0], o3.Irreps(HIDDEN).dim)
    wide = {n: p.detach().expand(shape).clone().requires_grad_() for n, p in model.named_parameters() if id(p) in held}
    call = lambda g: torch.func.functional_call(model, wide, (g,))  # noqa: E731
    _, loss = _loss(call, graph, target)
    grads = torch.autograd.grad(loss, [wide[n] for n in names])
    return {f"gradient of {n}": g.abs().sum().item() for n, g in zip(names, grads, strict=True)}
