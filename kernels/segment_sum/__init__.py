from .op import gather, segment_sum

__all__ = ["gather", "segment_sum"]
