"""Batches from shards: shuffled in windows of shards, reproducible, resumable, divided among processes, prefetched."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batching import Batch, FlatDataset
from .checks import as_integer
from .resuming import Shared
from .shards import ShardedDataset, concatenate


class ShardBatcher(Shared):
    """Iterates over a ShardedDataset in batches, as `Batcher` does over a FlatDataset in memory.

    Each epoch permutes the shards, and the graphs within each window of `window` consecutive shards; seed, epoch and
    window decide the order, whatever the number of processes and threads. Two windows are in memory, the second read
    while the first is used; batches are formed ahead by a thread of its own.

    Args:
        dataset: the shards.
        batch_size: graphs of a batch over all processes (`shard`).
        shuffle: a new order each epoch; otherwise the order of the shards.
        seed: of the order, >= 0.
        drop_last: leave out the last batch where it is not full.
        window: shards that are mixed with each other; more mix better and take more memory.
        prefetch: batches formed ahead, 0 for none and no thread.
        pin: batches in page-locked memory, from which copies to a GPU run beside its work; needs CUDA.
        prepare: the graphs of a window -> those that batches are formed of, as many in the same order: attributes that
            are not on disk, another device. Called by whoever forms the batches.

    A state is the same on every rank, and good for another number of processes; batches formed ahead do not count as
    done.

    Raises:
        ValueError: an argument out of range, and while iterating what `ShardedDataset.read` raises.

    Example:
        >>> for batch in ShardBatcher(ShardedDataset("qm9-shards"), 4096, pin=True):  # doctest: +SKIP
        ...     step(batch.to("cuda", non_blocking=True))
    """

    def __init__(self, dataset: ShardedDataset, batch_size: int, shuffle: bool = True, seed: int = 0,
                 drop_last: bool = False, *, window: int = 8, prefetch: int = 2, pin: bool = False,
                 prepare: Callable[[FlatDataset], FlatDataset] | None = None) -> None:
        whole = lambda name, x, least: as_integer("ShardBatcher", name, x, least)  # noqa: E731
        self.dataset, self.batch_size = dataset, whole("batch_size", batch_size, 1)
        self.shuffle, self.seed, self.drop_last = shuffle, whole("seed", seed, 0), drop_last
        self.window, self.prefetch, self.pin = whole("window", window, 1), whole("prefetch", prefetch, 0), pin
        self.prepare, self._formed = prepare, None
        if batch_size > len(dataset):
            raise ValueError(f"ShardBatcher: batch_size must be at most the {len(dataset)} graphs of the shards, got "
                             f"{batch_size}")
        if pin and not torch.cuda.is_available():
            raise ValueError("ShardBatcher: pin must be False where torch sees no GPU, got True")

    def __iter__(self) -> Iterator[Batch]:
        start, self._resume = self._resume, 0
        stream = _Stream(self, start)
        ahead = _ahead(iter(stream), self.prefetch) if self.prefetch else iter(stream)
        try:
            for formed in ahead:
                self._formed = formed
                self._hand_out(formed.position, formed.weight, formed.last)
                yield formed.batch
        finally:
            ahead.close()
            stream.close()
        self.epoch, self._position = self.epoch + 1, 0

    def split(self, count: int) -> Iterator[tuple[Batch, float]]:
        """As that of `Batcher`."""
        graphs, index = self._formed.graphs, self._formed.index
        for part, weight in self._pieces(len(index), count):
            yield self._made(graphs.batch(index[part])), weight

    def _made(self, batch: Batch) -> Batch:
        return _pinned(batch) if self.pin else batch

    def _fingerprint(self) -> dict[str, int | bool]:
        return super()._fingerprint() | {"num_shards": self.dataset.num_shards, "window": self.window}


class _Formed(NamedTuple):
    """A part of a batch, and what it was formed of."""

    batch: Batch
    graphs: FlatDataset
    index: Tensor  # [G], which of them
    position: int  # of the batch in its epoch
    weight: float
    last: bool


class _Stream:
    """The batches of one epoch from `start` on, formed one by one; a window is read while the one before is used."""

    def __init__(self, batcher: ShardBatcher, start: int) -> None:
        self.b, self.start, self.epoch = batcher, start, batcher.epoch
        shards = np.arange(batcher.dataset.num_shards)
        if batcher.shuffle:
            shards = self._generator(0).permutation(shards)
        self.windows = [shards[k : k + batcher.window] for k in range(0, len(shards), batcher.window)]
        counts = np.array(batcher.dataset.counts)
        self.ends = np.cumsum([counts[w].sum() for w in self.windows])  # of the windows, in graphs
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="ace_fast-shards")
        self.read: dict[int, Future[FlatDataset]] = {}
        self.ready: dict[int, FlatDataset] = {}
        self.orders: dict[int, Tensor] = {}
        self.like: dict[int, Batch] = {}

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.b.seed, self.epoch, stream])

    def __iter__(self) -> Iterator[_Formed]:
        b = self.b
        for position in range(self.start, len(b)):
            first = position * b.batch_size
            graphs, whole = self._graphs(first, min(first + b.batch_size, len(b.dataset)))
            for index, weight, last in b._parts(whole, graphs.sizes):
                batch = graphs.batch(index, like=self.like.get(len(index)))
                if batch.structure_key is not None:
                    self.like[len(index)] = Batch({}, batch.edge_index, batch.batch, batch.ptr, batch.structure_key)
                yield _Formed(b._made(batch), graphs, index, position, weight, last)

    def _graphs(self, start: int, stop: int) -> tuple[FlatDataset, Tensor]:
        """Those in which graphs start .. stop - 1 of the epoch's order are, of a window or several, and which [G]."""
        first = last = min(int(np.searchsorted(self.ends, start, side="right")), len(self.ends) - 1)
        while last + 1 < len(self.ends) and self.ends[last] < stop:
            last += 1
        for done in [w for w in self.orders if w < first]:
            del self.orders[done]
            self.ready.pop(done, None)
        parts = []
        for window in range(first, last + 1):
            begin = int(self.ends[window - 1]) if window else 0
            rows = slice(max(start - begin, 0), stop - begin)
            parts.append((self._window(window), self.orders[window][rows]))
        if len(parts) == 1:
            return parts[0]
        data = concatenate([one.subset(rows) for one, rows in parts])
        return data, torch.arange(len(data))

    def _window(self, number: int) -> FlatDataset:
        for near in range(number, min(number + 2, len(self.windows))):
            if near not in self.orders:
                self.read[near] = self.pool.submit(self.b.dataset.read, self.windows[near].tolist())
                count = int(self.ends[near] - (self.ends[near - 1] if near else 0))
                self.orders[near] = (torch.from_numpy(self._generator(1 + near).permutation(count)) if self.b.shuffle
                                     else torch.arange(count))
        if number not in self.ready:
            graphs = self.read.pop(number).result()
            self.ready[number] = self.b.prepare(graphs) if self.b.prepare else graphs
        return self.ready[number]

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def _ahead(stream: Iterator[_Formed], depth: int) -> Iterator[_Formed]:
    """The same, `depth` of them formed ahead by a thread; what it raises is raised here, in its place."""
    ready: queue.Queue[tuple[str, object]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, value: object) -> None:
        while not stopped.is_set():
            try:
                return ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)  # a thread's own begins at 0
            for batch in stream:
                put("batch", batch)
                if stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=run, name="ace_fast-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()


def _pinned(batch: Batch) -> Batch:
    arrays = {name: getattr(batch, name).pin_memory() for name in batch.names}
    structure = (x.pin_memory() for x in (batch.edge_index, batch.batch, batch.ptr))
    return Batch(arrays, *structure, batch.structure_key, batch.symmetric)
