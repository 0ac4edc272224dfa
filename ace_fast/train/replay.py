"""A batch whose loss or gradient was not finite: kept in the run folder, and computed once more to see where."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Batch
from .checkpoint import load_tree, save_tree
from .run import Run, build, check_device
from .steps import Failure
from .tasks import find

_NAME = "diverged-{rank}.safetensors"


def keep(run: Run, failure: Failure, model: nn.Module, rank: int, epoch: int, step: int) -> None:
    """Writes what a process had of the batch, with the weights before the step."""
    run.folder.mkdir(parents=True, exist_ok=True)
    save_tree(run.folder / _NAME.format(rank=rank), {
        "epoch": epoch, "step": step, "model": dict(model.state_dict()), "rng": failure.rng,
        "weights": failure.weights, "batches": [_packed(batch) for batch in failure.batches],
    })


def drop(run: Run) -> None:
    """Forgets the batches of an earlier divergence."""
    for path in run.folder.glob(_NAME.format(rank="*")):
        path.unlink()


def replay(folder: str | os.PathLike[str], *, device: str | None = None, backend: str | None = None) -> list[str]:
    """Loss and gradients of the batch that stopped a run, computed once more.

    Args:
        folder: the run.
        device, backend: other than the run was trained with: what differs between two is a fault of one.

    Returns:
        Lines that say, for each process, what is not finite first: inputs, outputs of a module (in the order of the
        computation), the loss, gradients (with the names of their parameters).

    Raises:
        FileNotFoundError: no batch was kept.

    Example:
        >>> print(*replay("runs/diverged"), sep="\\n")  # doctest: +SKIP
    """
    run = Run(folder)
    about = run.about()
    paths = sorted(run.folder.glob(_NAME.format(rank="*")))
    if not paths:
        raise FileNotFoundError(f"replay: {run.folder} must hold a batch that stopped its run, diverged-0.safetensors, "
                                "got none; the run did not diverge, or went on since")
    config = about["config"] | {k: v for k, v in (("device", device), ("backend", backend)) if v is not None}
    check_device(config)
    task, lines = find(about["task"]), []
    training = task.Training(config, about["facts"], task.load(config, "train"))
    for path in paths:
        state = load_tree(path)
        model = build(task, config, about["facts"]).train()
        model.load_state_dict(state["model"])  # running statistics may be what is not finite
        torch.set_rng_state(state["rng"])
        lines.append(f"{path.name}: epoch {state['epoch'] + 1}, step {state['step'] + 1}")
        for packed in state["batches"]:
            lines += [f"  {line}" for line in _look(model, training, _unpacked(packed, config["device"]))]
    return lines


def _look(model: nn.Module, training: Any, batch: Any) -> list[str]:
    tensors = {n: getattr(batch, n) for n in batch.names} if isinstance(batch, Batch) else dict(enumerate(batch))
    lines = [f"input {name} is not finite" for name, x in tensors.items() if not _finite(x)]
    with _outputs(model) as wrong:
        loss = training.loss(model, batch)
    lines += [f"the output of {name} is not finite" for name in wrong[:1]]
    lines.append(f"loss {loss.item()}")
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    bad = [n for (n, _), g in zip(model.named_parameters(), grads, strict=True) if g is not None and not _finite(g)]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        lines.append(f"gradients of {', '.join(bad[:3])}{more} are not finite")
    return lines if len(lines) > 1 or not loss.isfinite() else [*lines, "all gradients are finite"]


@contextmanager
def _outputs(model: nn.Module) -> Iterator[list[str]]:
    """The names of modules with an output that is not finite, in the order in which they are done."""
    wrong: list[str] = []

    def look(name: str, output: Any) -> None:
        parts = output if isinstance(output, tuple | list) else [output]
        if not all(_finite(x) for x in parts if isinstance(x, Tensor)):
            wrong.append(name)

    handles = [module.register_forward_hook(lambda _m, _i, output, name=name: look(name or "the model", output))
               for name, module in model.named_modules()]
    try:
        yield wrong
    finally:
        for handle in handles:
            handle.remove()


def _finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(x.isfinite().all())


def _packed(batch: Any) -> Any:
    if not isinstance(batch, Batch):
        return list(batch)
    return {"arrays": {name: getattr(batch, name) for name in batch.names}, "edge_index": batch.edge_index,
            "batch": batch.batch, "ptr": batch.ptr, "key": batch.structure_key, "symmetric": batch.symmetric}


def _unpacked(packed: Any, device: str) -> Any:
    if not isinstance(packed, Mapping):
        return tuple(x.to(device) for x in packed)
    places = (packed[name] for name in ("edge_index", "batch", "ptr"))
    return Batch(packed["arrays"], *places, packed["key"], packed["symmetric"]).to(device)
