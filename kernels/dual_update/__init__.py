from .op import dual_update
from .reference import ROWS, Rule

__all__ = ["ROWS", "Rule", "dual_update"]
