"""Training runs: the loop, run folders, evaluation, reports and the command line."""

from .loop import train
from .run import load

__all__ = ["load", "train"]
