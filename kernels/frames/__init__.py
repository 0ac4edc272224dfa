from .op import frame_channels, frame_concat, frames

__all__ = ["frame_channels", "frame_concat", "frames"]
