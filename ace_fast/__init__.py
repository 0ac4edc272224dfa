"""Fast kernels for approximately equivariant networks."""

from . import functional, models, nn, symmetry
from .backend import available, which
from .convert import convert, restore
from .functional import gather, segment_sum
from .graph import Graph, Segments, segments
from .relaxation import ACE, relax, strict
from .train.run import load

__version__ = "0.1.0"
__all__ = [
    "ACE",
    "Graph",
    "Segments",
    "available",
    "convert",
    "functional",
    "gather",
    "load",
    "models",
    "nn",
    "relax",
    "restore",
    "segment_sum",
    "segments",
    "strict",
    "symmetry",
    "which",
]
