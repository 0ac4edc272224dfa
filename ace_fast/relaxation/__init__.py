from ..report.diagnosis import draw_diagnosis
from .ace import ACE, PRESETS
from .bounds import Bound, branch_weights
from .decider import Relaxation
from .family import RELAXATIONS, make
from .groups import equivariant_part, equivariant_share
from .penalty import Remul
from .prior import ResidualPrior
from .projection import SoftEquivariance
from .recalibrate import recalibrate
from .relax import Relaxed, branches_off, relax, strict
from .schedule import Schedule

__all__ = [
    "ACE",
    "Bound",
    "PRESETS",
    "RELAXATIONS",
    "Relaxation",
    "Relaxed",
    "Remul",
    "ResidualPrior",
    "Schedule",
    "SoftEquivariance",
    "branch_weights",
    "branches_off",
    "draw_diagnosis",
    "equivariant_part",
    "equivariant_share",
    "make",
    "recalibrate",
    "relax",
    "strict",
]
