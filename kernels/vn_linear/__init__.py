from .op import vn_leaky_relu, vn_linear, vn_norm_stats

__all__ = ["vn_leaky_relu", "vn_linear", "vn_norm_stats"]
