"""Fast kernels for approximately equivariant networks."""

from .backend import available, which
from .functional import gather, segment_sum
from .graph import Graph, Segments, segments

__version__ = "0.1.0"
__all__ = ["Graph", "Segments", "available", "gather", "segment_sum", "segments", "which"]
