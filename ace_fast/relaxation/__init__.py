from .ace import ACE, PRESETS
from .bounds import Bound, branch_weights
from .recalibrate import recalibrate

__all__ = ["ACE", "PRESETS", "Bound", "branch_weights", "recalibrate"]
