from .op import vn_edge_conv, vn_edge_select, vn_edge_stats

__all__ = ["vn_edge_conv", "vn_edge_select", "vn_edge_stats"]
