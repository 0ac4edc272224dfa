from .ace import ACE, PRESETS
from .bounds import Bound, branch_weights
from .projector import equivariant_part, equivariant_share
from .recalibrate import recalibrate

__all__ = ["ACE", "PRESETS", "Bound", "branch_weights", "equivariant_part", "equivariant_share", "recalibrate"]
