from .op import rank_concat, segment_rank

__all__ = ["rank_concat", "segment_rank"]
