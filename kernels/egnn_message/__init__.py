from .op import egnn_message

__all__ = ["egnn_message"]
