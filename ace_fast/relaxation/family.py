"""All deciders under their names."""

from torch import nn

from .ace import ACE
from .decider import Relaxation
from .penalty import Remul
from .prior import ResidualPrior
from .projection import SoftEquivariance
from .schedule import Schedule

RELAXATIONS = {"ace": ACE, "schedule": Schedule, "rpp": ResidualPrior, "per": SoftEquivariance, "remul": Remul}
KEPT = tuple(name for name, decider in RELAXATIONS.items() if getattr(decider, "kept", False))  # with their branches
TIMED = ("schedule", "per")  # take the number of training steps


def make(name: str, model: nn.Module, *, steps: int | None = None, **options) -> Relaxation:
    """The decider of a model with gated branches.

    Args:
        name: "ace", "schedule", "rpp", "per" or "remul".
        model: relaxed.
        steps: the training steps that there will be, which those with a timetable need ("schedule", "per"); the others
            do without.
        options: of `ACE`, `Schedule`, `ResidualPrior`, `SoftEquivariance` or `Remul`.

    Raises:
        ValueError: an unknown name, no `steps` where they are needed, and what the decider raises.

    Example:
        >>> decider = make("schedule", model, steps=10_000)  # doctest: +SKIP
    """
    if name not in RELAXATIONS:
        raise ValueError(f"make: name must be one of {', '.join(RELAXATIONS)}, got {name!r}")
    if name in TIMED:
        if steps is None:
            raise ValueError(f"make: steps must be the number of training steps for {name!r}, got None; pass steps=")
        options["steps"] = steps
    return RELAXATIONS[name](model, **options)
