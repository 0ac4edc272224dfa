from .op import relaxed_linear

__all__ = ["relaxed_linear"]
