"""One step of training: gradients of the parts of a batch, summed over parts and processes, checked and applied."""

from __future__ import annotations

import copy
import errno
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..relaxation import Relaxation
from .graphs import GraphedBackward
from .options import Config, flag
from .processes import Processes
from .relaxing import balances

_IN_A_ROW = 10  # batches that --nan skip leaves out one after another before the run counts as diverged
Found = tuple[Tensor, list[Tensor | None]]  # loss and gradients


class Failure(NamedTuple):
    """A step that was not applied, as its loss or a gradient was not finite."""

    batches: list[Any]  # its parts
    weights: list[float]
    rng: Tensor  # torch's generator before it


class Stepper:
    """Steps the weights and gammas of a model.

    Args:
        model, optimizer, relaxation: what is stepped; relaxation, the gammas' owner, is None without branches.
        training: of the task, with .batches and .loss.
        config, group: of the run.
        diverged: called with a Failure where a batch is not to be left out.

    Attributes:
        stop: whether a process was asked to stop, which all of them know.
        skipped: batches left out in this epoch.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, relaxation: Relaxation | None, training: Any,
        config: Config, group: Processes, diverged: Callable[[Failure], None],
    ) -> None:
        self.model, self.optimizer, self.relaxation, self.training = model, optimizer, relaxation, training
        self.config, self.group, self._diverged = config, group, diverged
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.batches = training.batches
        self.stop, self.skipped, self._in_a_row = False, 0, 0
        self._pieces = 1  # that every part is taken in since memory ran out
        self._device = torch.device(config["device"])
        self._buffers = [x for x in model.buffers() if x.is_floating_point()] if config["nan"] == "skip" else []
        self._lagging = self._device.type == "cuda"  # flags are read one step later
        self._later: _Reading | None = None
        self._wrong = torch.zeros((), dtype=torch.bool, device=self._device)  # then: nothing is applied any more
        self._backward = GraphedBackward(self._found, model) if config["cuda_graphs"] else self._found
        self._begin()

    def _begin(self) -> None:
        self._loss, self._grads = torch.zeros((), device=self._device), [None] * len(self.parameters)
        self._now = Failure([], [], torch.get_rng_state())
        self._before = [x.clone() for x in self._buffers]

    def add(self, batch: Any) -> None:
        """Loss and gradients of one part of the step's batch, by its weight; in pieces where memory runs out."""
        self._now.batches.append(batch)
        self._now.weights.append(self.batches.weight)
        found = None
        while found is None:
            parts = [(batch, self.batches.weight)] if self._pieces == 1 else list(self.batches.split(self._pieces))
            try:
                with self.relaxation.attempt() if self.relaxation else nullcontext():
                    found = self._sum(parts)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(len(parts), error)
        self._loss, self._grads = self._loss + found[0], _plus(self._grads, found[1])

    def _sum(self, parts: list[tuple[Any, float]]) -> Found:
        loss, grads = self._backward(*parts[0])
        for part in parts[1:]:
            more = self._backward(*part)
            loss, grads = loss + more[0], _plus(grads, more[1])
        return loss, grads

    def _found(self, batch: Any, weight: float | Tensor) -> Found:
        half = self.config["precision"] == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16) if half else nullcontext():
            loss = self.training.loss(self.model, batch)
        total = loss + self._penalty(loss, batch)
        if not isinstance(weight, float) or weight != 1.0:
            total, loss = total * weight, loss * weight
        return loss.detach(), list(torch.autograd.grad(total, self.parameters, allow_unused=True))

    def _penalty(self, loss: Tensor, batch: Any) -> Tensor | float:
        """What the decider adds to the loss of a part."""
        if self.relaxation is None:
            return 0.0
        return self.relaxation.penalty(loss, lambda: self.training.loss(self.model, self.training.turned(batch)))

    def _halve(self, tried: int, error: Exception) -> None:
        """Twice as many pieces from now on; raises where a part cannot be cut any further."""
        whole = balances(self.config)  # GradNorm reads gradients of a whole batch
        if tried < self._pieces or self.config["cuda_graphs"] or whole or (
            self.config["sync_batch_norm"] and self.group.world > 1
        ):
            raise OSError(
                errno.ENOMEM,
                f"train: a batch must fit in memory, got one that does not in {tried} pieces "
                f"({str(error).splitlines()[0]}); pass a smaller {flag('batch_size')}"
                + ("" if whole else f" or a larger {flag('accumulate')}")
            ) from error
        self._pieces *= 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"out of memory: every batch is taken in {self._pieces} pieces from here on, whose gradients are summed; "
              f"{flag('accumulate')} {self.config['accumulate'] * self._pieces} says so from the start",
              file=sys.stderr, flush=True)

    def apply(self, asked: bool) -> Tensor:
        """Steps weights and gammas, and gives the loss of the whole batch; 0 where it was not finite.

        Nothing waits for a GPU: there a step that must not be applied is found on the device, and on the host one
        step later.
        """
        numbers = torch.stack([self._loss, self._loss.new_tensor(float(asked))])
        grads, (loss, stop) = self.group.add_up(self._grads, numbers)
        norm = torch.nn.utils.get_total_norm([g for g in grads if g is not None], foreach=True)
        wrong = ~(loss.isfinite() & norm.isfinite())
        reading = _Reading(torch.stack([wrong.to(stop), stop]), self._now)
        if self._lagging:
            loss = self._guard(grads, wrong, loss)
            self._step(grads)
            self.finish()
            self._later = reading
        elif self._is_wrong(reading):
            loss = torch.zeros_like(loss)
            for now, before in zip(self._buffers, self._before, strict=True):
                now.copy_(before)
        else:
            self._step(grads)
        self._begin()
        return loss

    def _guard(self, grads: list[Tensor | None], wrong: Tensor, loss: Tensor) -> Tensor:
        """Lets the device leave the step out; with --nan stop this one and all that follow."""
        wrong = wrong if self.config["nan"] == "skip" else wrong | self._wrong
        self._wrong.copy_(wrong)
        self.optimizer.found_inf = wrong.to(torch.float32)  # what torch's GradScaler sets
        for p, g in zip(self.parameters, grads, strict=True):
            if g is not None and p.numel() == 1:
                g.masked_fill_(wrong, torch.nan)  # a gamma sits it out
        for now, before in zip(self._buffers, self._before, strict=True):
            now.copy_(torch.where(wrong, before, now))
        return torch.where(wrong, 0.0, loss)

    def finish(self) -> None:
        """Reads what the last step found, if that was put off."""
        reading, self._later = self._later, None
        if reading is not None:
            self._is_wrong(reading)

    def _is_wrong(self, reading: _Reading) -> bool:
        """Whether the step of a reading was not finite; takes note of it, and of a process that is to stop."""
        wrong, stop = reading.read()
        self.stop = self.stop or stop
        self._in_a_row = self._in_a_row + 1 if wrong else 0
        if wrong and (self.config["nan"] == "stop" or self._in_a_row == _IN_A_ROW):
            self._diverged(reading.failure)
        self.skipped += wrong
        return wrong

    def _step(self, grads: list[Tensor | None]) -> None:
        for p, g in zip(self.parameters, grads, strict=True):
            p.grad = g
        if self.config["clip"]:
            torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.config["clip"])
        self.optimizer.step()
        if self.relaxation:
            self.relaxation.step()
        self.optimizer.zero_grad()


class _Reading:
    """Two flags of a step on their way to the host; on a GPU `read` waits for their copy alone."""

    def __init__(self, flags: Tensor, failure: Failure) -> None:
        self.failure = failure
        # Pinned: the host waits for a copy into other memory.
        host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=flags.is_cuda)
        self._flags = host.copy_(flags.detach(), non_blocking=True)
        self._copied = torch.cuda.Event() if flags.is_cuda else None
        if self._copied:
            self._copied.record()

    def read(self) -> tuple[bool, bool]:
        if self._copied:
            self._copied.synchronize()
        wrong, stop = self._flags.tolist()
        return bool(wrong), bool(stop)


class Average:
    """Moving average of a model's weights, in a copy that is measured and kept in its place (Polyak, Ruppert).

    Its first steps weigh more, min(decay, (1 + n) / (10 + n)), as the initial weights say nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.steps = copy.deepcopy(model), decay, 0
        for p in self.model.parameters():
            p.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), share)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


def _plus(a: list[Tensor | None], b: list[Tensor | None]) -> list[Tensor | None]:
    return [x if y is None else y if x is None else x + y for x, y in zip(a, b, strict=True)]


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
