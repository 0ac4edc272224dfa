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


def make(name: str, model: nn.Module, **options) -> Relaxation:
    """The decider of a model with gated branches.

    Args:
        name: "ace", "schedule", "rpp", "per" or "remul".
        model: relaxed.
        options: of `ACE`, `Schedule`, `ResidualPrior`, `SoftEquivariance` or `Remul`.

    Raises:
        ValueError: an unknown name, and what the decider raises.

    Example:
        >>> decider = make("schedule", model, steps=10_000)  # doctest: +SKIP
    """
    if name not in RELAXATIONS:
        raise ValueError(f"make: name must be one of {', '.join(RELAXATIONS)}, got {name!r}")
    return RELAXATIONS[name](model, **options)
