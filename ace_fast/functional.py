"""The operators under their public names."""

from .kernels.segment_sum import gather, segment_sum

__all__ = ["gather", "segment_sum"]
