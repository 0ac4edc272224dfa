from .op import spectral_conv, time_conv

__all__ = ["spectral_conv", "time_conv"]
