from .op import steerable_message

__all__ = ["steerable_message"]
