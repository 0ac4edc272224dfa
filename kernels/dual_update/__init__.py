from .op import dual_step, dual_update
from .reference import ROWS, Rule

__all__ = ["ROWS", "Rule", "dual_step", "dual_update"]
