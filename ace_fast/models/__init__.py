"""The networks of the ACE paper."""

from .segnn import SEGNN, SEGNNLayer, nbody_graph, qm9_graph

__all__ = ["SEGNN", "SEGNNLayer", "nbody_graph", "qm9_graph"]
