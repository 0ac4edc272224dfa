"""What the deciders share whose gammas are set and not trained: whose gammas they are, state, what is logged."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from .branches import check_numbers
from .gammas import check_free, find_gammas, flat, in_range, live, same_keys


class Relaxation(Protocol):
    """Who decides how much symmetry a model with gated branches keeps; `relaxation.make` builds one by name.

    In a training loop::

        decider = ace_fast.relaxation.make("ace", model)
        optimizer = torch.optim.Adam(decider.primal_parameters(), lr=1e-3)
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            (loss + decider.penalty(loss, lambda: loss_of(model, turned(batch)))).backward()
            optimizer.step()
            decider.step()

    Attributes:
        names: the gammas' parameter names. gammas: their values [n]. steps: how many were taken.
    """

    names: list[str]
    steps: int

    @property
    def gammas(self) -> Tensor: ...

    def primal_parameters(self) -> list[nn.Parameter]:
        """All parameters of the model but the gammas: what the user's optimiser holds."""
        ...

    def penalty(self, loss: Tensor | None = None, turned: Callable[[], Tensor] | None = None) -> Tensor | float:
        """What is added to the task's loss of the last forward pass, on its graph.

        Args:
            loss: that loss, which "remul" weighs.
            turned: computes the loss of the same batch with every sample turned by its own random element of the
                group; only "remul" calls it.
        """
        ...

    def attempt(self) -> AbstractContextManager[None]:
        """Around passes that may fail and be repeated, where memory runs out: what a failed one recorded is dropped."""
        ...

    def step(self) -> None:
        """After the optimiser's step."""
        ...

    def metrics(self) -> dict[str, Tensor]:
        """Numbers worth logging, on the device; reading them syncs."""
        ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...

    def release(self) -> None:
        """Gives the gammas up, so that another decider can own them."""
        ...


@contextmanager
def undone(*records: list) -> Iterator[None]:
    """What was appended to the lists inside is taken off again where an exception leaves the context."""
    before = [len(record) for record in records]
    try:
        yield
    except BaseException:
        for record, count in zip(records, before, strict=True):
            del record[count:]
        raise


class Decider:
    """An owner of gammas that have a value of its choice and no gradient.

    Args:
        model: has gammas, found as `ACE` finds them.
        gamma: their value at the start.

    Raises:
        ValueError: no gammas, gates that networks compute, or gammas that another decider holds.
    """

    def __init__(self, model: nn.Module, gamma: float):
        owner = type(self).__name__
        if not in_range(gamma):
            raise ValueError(f"{owner}: gamma must be finite, got {gamma!r}")
        check_numbers(model, owner)
        found = find_gammas(model, None, owner)
        check_free(found, owner)
        self._model, self.names, self._gammas, self.steps = model, list(found), list(found.values()), 0
        for parameter in self._gammas:
            parameter.requires_grad_(False)
        self._set(gamma)
        live.add(self)

    @torch.no_grad()
    def _set(self, value: float) -> None:
        """All gammas to one value, in place and without a synchronisation."""
        torch._foreach_copy_(self._gammas, [torch.full_like(g, value) for g in self._gammas])

    def _held(self) -> list[nn.Parameter]:
        return self._gammas

    @property
    def gammas(self) -> Tensor:
        """[n], a copy, in the order of `names`."""
        return flat([g.detach() for g in self._gammas])

    def primal_parameters(self) -> list[nn.Parameter]:
        """All parameters of the model but the gammas."""
        own = {id(g) for g in self._gammas}
        return [p for p in self._model.parameters() if id(p) not in own]

    def penalty(self, loss: Tensor | None = None, turned: Callable[[], Tensor] | None = None) -> Tensor | float:
        """What is added to the task's loss, see `Relaxation.penalty`."""
        return 0.0

    def attempt(self) -> AbstractContextManager[None]:
        """Around passes that may fail and be repeated, see `Relaxation.attempt`."""
        return undone()

    def step(self) -> None:
        """After the optimiser's step; no host synchronisation.

        Raises:
            ValueError: it was released.
        """
        if not self.names:
            owner = type(self).__name__
            raise ValueError(f"{owner}: step must be called on an owner of gammas, got a released one; make a new one")
        self.steps += 1

    def metrics(self) -> dict[str, Tensor]:
        """The gammas [n]; deciders add their own numbers."""
        return {"gammas": self.gammas}

    def release(self) -> None:
        """Gives the gammas up: they can be trained, or owned by another decider."""
        for parameter in self._gammas:
            parameter.requires_grad_(True)
        self.names, self._gammas = [], []

    def state_dict(self) -> dict:
        """All but what the model's state_dict has: with both, training goes on with the same numbers."""
        return {"kind": type(self).__name__, "names": list(self.names), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Takes the state over.

        Raises:
            ValueError: keys, gammas or settings of another decider; nothing is changed then.
        """
        own, owner = self.state_dict(), type(self).__name__
        same_keys("state", state, own, owner)
        for key, value in own.items():
            if key == "steps" or isinstance(value, Tensor):
                continue
            if state[key] != value:
                raise ValueError(f"{owner}: state must have {key} {value!r}, got {state[key]!r}; make it alike")
        self.steps = state["steps"]
        for key, value in own.items():
            if isinstance(value, Tensor):
                if state[key].shape != value.shape:
                    raise ValueError(f"{owner}: state {key} must be {list(value.shape)}, got {list(state[key].shape)}")
                getattr(self, f"_{key}").copy_(state[key])
