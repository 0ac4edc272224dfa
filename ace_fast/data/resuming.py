"""Where an iteration over batches stands: kept as plain numbers, and gone on from."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from torch import Tensor

from .checks import as_integer
from .shares import dealt, shares


class Resumable:
    """What batchers share. A subclass has the attributes below, and `__iter__` sets `_position` and `_resume`."""

    dataset: Sized
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool
    epoch = 0
    _position = 0  # batches of this epoch handed out so far
    _resume = 0  # where the next iteration begins

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the current epoch, or one just loaded, stays where it is."""
        epoch = as_integer(type(self).__name__, "epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self._position, self._resume = epoch, 0, 0

    def _fingerprint(self) -> dict[str, int | bool]:
        settings = {name: getattr(self, name) for name in ("batch_size", "shuffle", "seed", "drop_last")}
        return {"num_graphs": len(self.dataset), **settings}

    def state_dict(self) -> dict[str, int | bool]:
        """Where the iteration stands, as plain numbers: the batches already handed out count as done."""
        done = self._position >= len(self)
        epoch, position = (self.epoch + 1, 0) if done else (self.epoch, self._position)
        return {"epoch": epoch, "position": position, **self._fingerprint()}

    def load_state_dict(self, state: Mapping[str, int | bool]) -> None:
        """Continue where `state` was taken; settings other than the seed must agree, the seed is taken over."""
        owner, begin = type(self).__name__, "use set_epoch to begin an epoch afresh"
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"{owner}: the state must be what state_dict() gave, got one without "
                             f"{', '.join(missing)}; {begin}")
        for name, mine in self._fingerprint().items():
            if name != "seed" and state[name] != mine:
                raise ValueError(f"{owner}: {name} must be {state[name]} as in the saved state, got {mine}; build the "
                                 f"{owner} with the saved settings, or {begin}")
        seed, epoch, position = (as_integer(owner, name, state[name], 0) for name in ("seed", "epoch", "position"))
        if position >= len(self):
            raise ValueError(f"{owner}: position must be in 0 .. {len(self) - 1}, got {position} in the saved state; "
                             f"{begin}")
        self.seed, self.epoch, self._position, self._resume = seed, epoch, position, position


class Shared(Resumable):
    """A batcher of whose batches every process takes its share, in parts where gradients are accumulated.

    `__iter__` takes `_parts` of every batch, and calls `_hand_out` before it yields one.

    Attributes:
        weight, last: of the part handed out last, see `shard`; 1.0 and True of a whole batch.
    """

    weight, last = 1.0, True
    _shares: tuple[int, int, int, int] = (0, 1, 1, 1)  # as `shard` was given them

    def shard(self, rank: int = 0, world: int = 1, accumulate: int = 1, least: int = 1) -> None:
        """From now on hand out what process `rank` of `world` takes of every batch, in `accumulate` parts: `shares`.

        All processes go through the batches of one and the same order, so that a state is good for any number of them.
        Parts are nearly equal in number and in nodes and edges (`dealt`). With each part `weight` is its share of the
        whole batch, and `last` whether it ends this process's share.
        """
        self._shares = rank, world, accumulate, least

    def _parts(self, index: Tensor, sizes: Tensor) -> list[tuple[Tensor, float, bool]]:
        """Those of a batch, graphs `index` [G] of a data set of `sizes`, that each part has; weight and last."""
        if self._shares[1] * self._shares[2] > 1:
            index = index[dealt(sizes[index], *self._shares[1:])]
        parts = shares(len(index), *self._shares)
        return [(index[part], weight, number == len(parts)) for number, (part, weight) in enumerate(parts, 1)]

    def _hand_out(self, position: int, weight: float, last: bool) -> None:
        """Notes what is handed out of batch `position`, which is done with its last part."""
        self.weight, self.last = weight, last
        if last:
            self._position = position + 1

    def _pieces(self, count: int, pieces: int) -> list[tuple[slice, float]]:
        """Those of the `count` samples handed out last, for `split`."""
        return [(part, share * self.weight) for part, share in shares(count, 0, 1, pieces, self._shares[3])]
