"""Data parallel training: the processes that torchrun started, what they sum, share and take turns in.

Every process has the whole model and takes its part of every batch (`Batcher.shard`). After the backward pass, and not
during it, all gradients travel in one all-reduce. torch's DistributedDataParallel is not used: it refuses SyncBatchNorm
on CPUs, it hides the methods of the model that it wraps, and a process that runs out of memory in the middle of its
backward pass, and repeats it in halves, would leave the others waiting.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..relaxation import Relaxation
from .options import Config, flag
from .relaxing import balances

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(minutes=60)  # the first process measures while the others wait
T = TypeVar("T")


class Elsewhere(Exception):
    """Why a process raises an error that another one had, and says."""


def _portable(error: Exception) -> Exception:
    """What the other processes can be sent of it."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


class Processes(NamedTuple):
    """This process among those that train together.

    Attributes:
        rank: its number, 0 .. world - 1; process 0 alone writes, measures and shows.
        world: how many there are.
        local: its number on its machine, and that of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What an exception inside is in one process it is in all: the others raise it too, caused by `Elsewhere`.

        All enter, and nothing inside waits for the others, but for contexts of this kind.
        """
        if self.world == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        said = None if own is None or isinstance(own.__cause__, Elsewhere) else _portable(own)
        found: list[Exception | None] = [None] * self.world
        dist.all_gather_object(found, said)
        rank = next((rank for rank, error in enumerate(found) if error is not None), self.rank)
        if rank != self.rank:
            raise found[rank] from Elsewhere(f"process {rank} raised it")
        if own is not None:
            raise own

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in process 0; the others do not call it, and raise what it raises."""
        found: list[T | None] = [None]
        with self.agreed():
            if self.first:
                found[0] = make()
        if self.world > 1:
            dist.broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]

    def gather(self, value: Tensor) -> Tensor:
        """[world, ...] `value` of every process, on the CPU."""
        if self.world == 1:
            return value[None]
        found = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(found, value)
        return torch.stack(found)

    def own(self, gathered: Tensor, like: Tensor) -> Tensor | None:
        """This process's row of what `gather` gave, perhaps with other processes; None where there is none."""
        rows = gathered.view(-1, like.numel())
        # A copy: torch.set_rng_state reads from the beginning of what a view is of.
        return rows[self.rank].clone() if self.rank < len(rows) else None

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of every machine goes before the others, which find what it has cached."""
        if self.local > 0:
            with self.agreed():
                pass
        with self.agreed():
            yield
        if self.local == 0:
            with self.agreed():
                pass

    def share_weights(self, model: nn.Module) -> None:
        """Parameters and buffers of process 0 for all."""
        if self.world > 1:
            for x in (*model.parameters(), *model.buffers()):
                dist.broadcast(x.data, 0)

    def add_up(self, grads: list[Tensor | None], numbers: Tensor) -> tuple[list[Tensor | None], Tensor]:
        """Gradients and `numbers` [K] summed over the processes by one all-reduce; None stays None.

        Which gradients are None must be the same everywhere, as which branches are on is.
        """
        if self.world == 1:
            return grads, numbers
        there = [g for g in grads if g is not None]
        flat = torch.cat([numbers.to(there[0]), *(g.reshape(-1) for g in there)])
        dist.all_reduce(flat)
        head, *parts = flat.split([numbers.numel(), *(g.numel() for g in there)])
        summed = iter(part.view_as(g) for part, g in zip(parts, there, strict=True))
        return [None if g is None else next(summed) for g in grads], head

    def check_alike(self, model: nn.Module, relaxation: Relaxation | None) -> None:
        """Raises RuntimeError where weights, or what the decider keeps, differ, which no step may make them do."""
        if self.world == 1:
            return
        named = {name: p.detach() for name, p in model.named_parameters()}
        kept = relaxation.state_dict() if relaxation else {}
        named |= {name: x for name, x in kept.items() if isinstance(x, Tensor)}
        sums = torch.stack([x.double().sum().cpu() for x in named.values()])
        gathered = self.gather(sums)
        if not torch.equal(gathered, gathered[:1].expand_as(gathered)):
            which = list(named)[int((gathered != gathered[0]).any(0).nonzero()[0])]
            raise RuntimeError("train: all processes must have the same weights and multipliers, got different "
                               f"{which}; use the same software on processors of one kind, and report this if they "
                               "were")


def from_environment() -> Processes:
    """What torchrun says in the environment; a process of its own where it does not."""
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
    if not all(name in os.environ for name in _ENVIRONMENT):
        return Processes()
    return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))


def restarts() -> int:
    """How often torchrun started these processes anew after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that train together, connected; gloo for CPU tensors, nccl for GPUs."""
    group = from_environment()
    if group.world == 1 or dist.is_initialized():
        yield group
        return
    if group.local < torch.cuda.device_count():
        torch.cuda.set_device(group.local)
    store, rank, world = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    # torchrun's store outlives its processes: the addresses of those before a restart are still in it.
    store = dist.PrefixStore(f"restart{restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    try:
        yield group
    finally:
        dist.destroy_process_group()


def check(group: Processes, config: Config, out: Any) -> None:
    """Raises ValueError where settings do not fit to several processes."""
    if group.world == 1:
        return
    if out is None:
        raise ValueError("train: --out must name the run folder for several processes, got none; they find their run "
                         "by it when they are started again")
    parts = group.world * config["accumulate"]
    if config["batch_size"] % parts:
        raise ValueError(
            f"train: {flag('batch_size')} must be a multiple of {parts}, {group.world} processes times "
            f"{flag('accumulate')} {config['accumulate']}, got {config['batch_size']}; pass {flag('batch_size')} "
            f"{max(1, round(config['batch_size'] / parts)) * parts}"
        )
    if config["device"].startswith("cuda:"):
        raise ValueError(f"train: {flag('device')} must be cuda for several processes, each of which takes its own "
                         f"GPU, got {config['device']}")
    if config["sync_batch_norm"] and config.get("recalibrate"):
        raise ValueError(f"train: {flag('recalibrate')} must be off with {flag('sync_batch_norm')}, got it: one "
                         "process alone recalibrates; leave one of the two out")
    if balances(config):
        raise ValueError(f"train: {flag('balance')} must be constant for several processes, got {config['balance']}, "
                         "which reads gradients of a whole batch")
    if config.get("height") == "batch":
        raise ValueError(f"train: {flag('height')} must be train or none for several processes, got batch, which makes "
                         "a sample depend on the others of its batch")


def own_device(group: Processes, config: Config) -> Config:
    """The config with the GPU of this process."""
    return config | {"device": f"cuda:{group.local}"} if group.world > 1 and config["device"] == "cuda" else config
