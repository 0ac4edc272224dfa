from .ace import ACE, PRESETS
from .bounds import Bound, branch_weights

__all__ = ["ACE", "PRESETS", "Bound", "branch_weights"]
