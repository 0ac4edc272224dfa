"""What the workloads of relaxed graph networks share: the versions of one optimiser step, and their judge.

eager     the original's structure in PyTorch (SEGNN: with e3nn's modules), Adam on all parameters, the original's loop
          over gammas and Adam on the multipliers
compiled  the same under torch.compile (e3nn's generated code unscripted, so that the compiler sees it)
fast      ace_fast's model and ace_fast.ACE with the paper's undamped step sizes, Adam(fused=True) as `ace-fast train`
          has it
fast_plain_adam   the same with the Adam of the eager version, to show what the models alone are worth
end_to_end   `fast` on a new batch each time, the time to draw it from the data set included (workloads that draw)
graph     on a GPU: the whole step of `fast` (forward, backward, Adam, ACE) captured in a CUDA graph and replayed, the
          batch copied into place before each replay; only batches of the very same structure can share a capture
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from ace_fast.relaxation import ACE

from . import gate, steps
from .gate import Numbers
from .steps import Variant

EXTRAS, GPU_EXTRAS = ("fast_plain_adam",), ("graph",)


class Data(NamedTuple):
    """One batch, ready for the models, and the weights that all of them start from."""

    graph: SimpleNamespace
    target: Tensor
    state: dict[str, Tensor]  # float32 parameters by the original's names
    prepare_ms: float
    sizes: dict[str, int]  # `nodes` among them
    buffers: dict[str, Tensor] = {}  # noqa: RUF012  those that are drawn at random, by name
    draw: Callable[[], tuple[SimpleNamespace, Tensor]] | None = None  # the next batch of the data set: graph, target


class Task(NamedTuple):
    """What differs between the workloads."""

    fast: type
    eager: type
    model: Callable[[type], torch.nn.Module]  # one of the two -> model
    loss: Callable[[Tensor, SimpleNamespace, Tensor], tuple[Tensor, Tensor]]  # (model's output, graph, target)
    width: Callable[[str], int]  # name of a gamma -> numbers of a node that it multiplies
    lr: float
    dual_lr: float
    cancels: tuple[str, ...] = ()  # ends of the names of parameters whose gradient is 0 but for rounding
    approximate: dict[str, float] = {}  # noqa: RUF012  beginning of a name -> relative error that `fast` states


def _build(task: Task, kind: type, data: Data, dtype: torch.dtype | None = None) -> torch.nn.Module:
    model = steps.build(lambda: task.model(kind), dtype or data.target.dtype, data.state, str(data.target.device))
    model.load_state_dict(data.buffers, strict=False)
    return model


def _loss(task: Task, data: Data, dtype: torch.dtype | None = None) -> steps.LossOf:
    """(output, loss) of a model: the output is what is compared."""
    graph, target = _cast(data.graph, dtype), data.target.to(dtype or data.target.dtype)
    return lambda call: task.loss(call(graph), graph, target)


def _loss_of_drawn(task: Task, data: Data) -> steps.LossOf:
    """The loss on the next batch of the data set."""
    def loss_of(call: Callable) -> tuple[Tensor, Tensor]:
        graph, target = data.draw()
        return task.loss(call(graph), graph, target)

    return loss_of


def _cast(graph: SimpleNamespace, dtype: torch.dtype | None) -> SimpleNamespace:
    if dtype is None:
        return graph
    move = lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x  # noqa: E731
    return SimpleNamespace(**{name: move(x) for name, x in vars(graph).items()})


def variant(task: Task, name: str, data: Data) -> Variant:
    """"eager", "compiled", "fast", "end_to_end" or one of EXTRAS and GPU_EXTRAS."""
    loss_of = _loss(task, data)
    if name in ("fast", "end_to_end", *EXTRAS, *GPU_EXTRAS):
        model = _build(task, task.fast, data)
        options = {"graph": {"fused": True, "capturable": True}, "fast_plain_adam": {}}.get(name, {"fused": True})
        adam = lambda parameters: torch.optim.Adam(parameters, lr=task.lr, **options)  # noqa: E731
        timed = _loss_of_drawn(task, data) if name == "end_to_end" else loss_of
        step = steps.fast_step(model, timed, adam, ACE(model, lr=task.lr, dual_lr=task.dual_lr))
        if name == "graph":
            read = [x for x in vars(data.graph).values() if isinstance(x, Tensor) and x.is_floating_point()]
            return steps.graph_variant(model, loss_of, step, [*read, data.target])
        return Variant(step, lambda: steps.numbers(model, model, loss_of))
    if name == "eager":
        model = call = _build(task, task.eager, data)
    else:
        model = steps.unscripted(lambda: _build(task, task.eager, data))
        call = steps.compiled(model)
    step = steps.original_step(model, call, loss_of, torch.optim.Adam, task.lr, task.dual_lr)
    return Variant(step, lambda: steps.numbers(model, call, loss_of))


def judge(task: Task, data: Data, eager: Numbers) -> gate.Judge:
    """Eager in float64 on the timed tensors and weights; `eager` stands for float32 where that is the dtype."""
    model, loss_of = _build(task, task.eager, data, torch.float64), _loss(task, data, torch.float64)
    if data.target.dtype != torch.float32:
        single = _build(task, task.eager, data, torch.float32)
        eager = steps.numbers(single, single, _loss(task, data, torch.float32))
    nodes, parameters = data.sizes["nodes"], dict(model.named_parameters())
    wide = lambda name: (nodes, *(parameters[name].shape or (task.width(name),)))  # noqa: E731
    sizes = steps.gamma_sizes(model, loss_of, wide, task.cancels)
    return gate.judge(steps.numbers(model, model, loss_of), eager, data.target.dtype, sizes, allowed=task.approximate)
