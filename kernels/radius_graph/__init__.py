from .op import radius_graph
from .vectors import edge_vectors

__all__ = ["edge_vectors", "radius_graph"]
