"""What training workloads share: a model with given weights, its numbers, and one optimiser step in two ways.

`loss_of(call)` is a workload's forward pass: (output, loss) of `call`, the model or a stand-in for it.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import e3nn
import torch
from torch import Tensor

from ace_fast.relaxation import ACE

from .gate import Numbers

LossOf = Callable[[Callable], tuple[Tensor, Tensor]]
EDGE_TENSORS = 20  # float64 tensors of the size of the edges that an eager edge layer holds with its gradients
CPU_LIMIT = 8 * 2**30  # bytes of them in the gate


class Variant(NamedTuple):
    """One version of what a workload times."""

    step: Callable[[], object]  # what is timed; a training step changes the weights
    check: Callable[[], Numbers]  # outputs, loss and gradients at the present weights, changes nothing


def build(
    make: Callable[[], torch.nn.Module], dtype: torch.dtype, state: dict[str, Tensor] | None = None,
    device: str = "cpu",
) -> torch.nn.Module:
    """A model in training mode whose constants too are computed in `dtype`, with the weights of `state`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = make()
    finally:
        torch.set_default_dtype(before)
    model = model.to(device)
    if state is not None:
        parameters = dict(model.named_parameters())
        if parameters.keys() != state.keys():
            raise ValueError(f"bench: parameters must be {sorted(state)}, got {sorted(parameters)}")
        with torch.no_grad():
            for name, value in state.items():
                parameters[name].copy_(value)
    return model.train()


def state_of(make: Callable[[], torch.nn.Module]) -> dict[str, Tensor]:
    """The weights that all versions start from, the same in every process: float32 parameters by name."""
    torch.manual_seed(0)
    return {k: v.detach().clone() for k, v in build(make, torch.float32).named_parameters()}


def compiled(model: torch.nn.Module) -> Callable:
    """The model under torch.compile, for these shapes alone."""
    torch.compiler.reset()  # the shapes of an earlier case would make this one's dynamic, and slower
    return torch.compile(model, dynamic=False)


def unscripted(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Builds with e3nn's generated code left in Python: torch.compile cannot look into scripted modules."""
    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(jit_script_fx=False)
    try:
        return build()
    finally:
        e3nn.set_optimization_defaults(**before)


def numbers(model: torch.nn.Module, call: Callable, loss_of: LossOf) -> Numbers:
    """Output, loss and the gradient of every parameter that has one."""
    output, loss = loss_of(call)
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = {f"gradient of {n}": g for n, g in zip(names, grads, strict=True) if g is not None}
    return {"output": output.detach(), "loss": loss.detach()} | found


def original_step(
    model: torch.nn.Module, call: Callable, loss_of: LossOf, optimizer: type[torch.optim.Optimizer], lr: float,
    dual_lr: float,
) -> Callable[[], Tensor]:
    """The step of the original training loops, equality constraints: one optimiser for all, loops over the gammas."""
    gammas = model.get_gammas()
    multipliers = [torch.zeros_like(gamma) for gamma in gammas]
    primal = optimizer(model.parameters(), lr=lr)
    dual = optimizer(multipliers, lr=dual_lr)

    def step() -> Tensor:
        primal.zero_grad()
        slacks = [gamma - 0.0 for gamma in gammas]
        _, loss = loss_of(call)
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


def fast_step(
    model: torch.nn.Module, loss_of: LossOf, optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    ace: ACE | None = None,
) -> Callable[[], Tensor]:
    """The step of `ace-fast train`: the user's optimiser and, unless the model is strict, `ace`."""
    primal = optimizer(ace.primal_parameters() if ace else model.parameters())

    def step() -> Tensor:
        primal.zero_grad()
        _, loss = loss_of(model)
        loss.backward()
        primal.step()
        if ace:
            ace.step()
        return loss.detach()

    return step


def graphed(function: Callable[[], object], warmup: int = 3, pool: tuple[int, int] | None = None
            ) -> Callable[[], object]:
    """`function` captured in a CUDA graph after `warmup` calls, in memory of its own or of a pool that graphs
    share; the result of a replay stands in the same tensors.

    What Python does in it (counters, hooks) happens at the capture alone. Numbers that are no tensors stay as captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # first compilations, tables and the optimiser's state
        for _ in range(warmup):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = function()

    def replay() -> object:
        graph.replay()
        return result

    return replay


def graph_variant(model: torch.nn.Module, loss_of: LossOf, step: Callable[[], Tensor], inputs: list[Tensor]) -> Variant:
    """`step` as one replay, after a batch was copied into `inputs`, the tensors that it reads.

    Captured at the first call; the check replays a capture of its own, of forward and backward.
    """
    batch, captured = [x.clone() for x in inputs], []

    def replay() -> object:
        if not captured:
            captured.append(graphed(step))
        torch._foreach_copy_(inputs, batch)
        return captured[0]()

    def check() -> Numbers:
        found = graphed(lambda: numbers(model, model, loss_of))()
        return {name: x.clone() for name, x in found.items()}

    return Variant(replay, check)


def gamma_sizes(
    model: torch.nn.Module, loss_of: LossOf, shape_of: Callable[[str], tuple[int, ...]], also: tuple[str, ...] = ()
) -> dict[str, float]:
    """The sum of the absolute values of the terms of each gamma's gradient: gamma widened to `shape_of(name)`.

    So for parameters whose name ends in `also`, whose terms cancel; of several elements, the largest.
    """
    held = {id(gamma) for gamma in model.get_gammas()}
    kept = {n: p for n, p in model.named_parameters() if id(p) in held or n.endswith(also)}
    wide = {n: p.detach().expand(shape_of(n)).clone().requires_grad_() for n, p in kept.items()}
    _, loss = loss_of(lambda *inputs: torch.func.functional_call(model, wide, inputs))
    grads = torch.autograd.grad(loss, list(wide.values()), allow_unused=True)
    terms = {n: g.abs().flatten(0, g.dim() - kept[n].dim() - 1).sum(0) for n, g in zip(wide, grads, strict=True)
             if g is not None}
    return {f"gradient of {n}": x.max().item() for n, x in terms.items()}


def gate_clouds(clouds: int, edges: int, channels: int, device: str) -> int:
    """The clouds, of `edges` vectors of `channels` each, with which eager float64 fits in memory: the gate's."""
    limit = torch.cuda.get_device_properties(device).total_memory // 2 if device == "cuda" else CPU_LIMIT
    return max(1, min(clouds, limit // (EDGE_TENSORS * edges * channels * 3 * 8)))
