"""Mistakes of training loops that would go unnoticed: a gamma that two step, one that left, gradients cleared early."""

import gc
import warnings

from torch import nn
from torch.optim import Optimizer

IDLE = 10  # steps in a row without any gradient after which is asked whether they were cleared too early
SCAN_EVERY = 64  # a scan takes milliseconds: somebody who writes the gammas at each step must not pay for it each time


class Guard:
    """Looks after gammas that are numbers.

    Args:
        model: has them. numbers: by name.
    """

    def __init__(self, model: nn.Module, numbers: dict[str, nn.Parameter]):
        self._model, self._numbers = model, numbers
        self._writes, self._idle, self._warned = 0, 0, False
        self.own_write()

    def own_write(self) -> None:
        """The gammas were written by their owner."""
        self._versions = [gamma._version for gamma in self._numbers.values()]
        self._idle = 0

    def check(self, optimizer: Optimizer) -> None:
        """Raises ValueError if `optimizer` holds a gamma."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, gamma in self._numbers.items():
            if id(gamma) in held:
                raise ValueError(f"ACE: gamma {name!r} must be stepped by ACE alone, got an optimiser "
                                 f"({type(optimizer).__name__}) that holds it; build it from ace.primal_parameters()")

    def check_at_first_step(self, optimizer: Optimizer) -> None:
        """Checks it now and once more when it first steps."""
        def check(*_):
            handle.remove()
            self.check(optimizer)

        self.check(optimizer)
        handle = optimizer.register_step_pre_hook(check)

    def look_for_other_optimizers(self) -> None:
        """Where a gamma was written between two steps: by load_state_dict, by the user's own hand, or by an optimiser.

        Looks at all optimisers there are, at the writes 1, 2, 4, .., 64, 128, 192 and so on.
        """
        seen = [gamma._version for gamma in self._numbers.values()]
        if seen == self._versions:
            return
        self._writes += 1
        if self._writes % min(SCAN_EVERY, 1 << (self._writes.bit_length() - 1)) == 0:
            for thing in gc.get_objects():
                if issubclass(type(thing), Optimizer):
                    self.check(thing)
        self._versions = seen

    def check_in_model(self) -> None:
        """Raises ValueError where a gamma is no parameter of the model any more."""
        current = {id(p) for p in self._model.parameters()}
        for name, gamma in self._numbers.items():
            if id(gamma) not in current:
                raise ValueError(f"ACE: gamma {name!r} must still be the model's parameter, got another one there "
                                 "(load_state_dict(assign=True) does that); make a new ACE")

    def count_idle(self) -> None:
        """A step that found no gradients; the tenth in a row warns."""
        self._idle += not self._numbers or any(gamma.requires_grad for gamma in self._numbers.values())
        if self._idle >= IDLE and not self._warned:
            self._warned = True
            warnings.warn(f"ACE: step must find gradients of the gammas, got none in {self._idle} calls in a row, and "
                          "the gammas stay as they are; call ace.step() after backward() and before zero_grad() or "
                          "model.zero_grad(), or do not call it while the branches are switched off", stacklevel=4)
