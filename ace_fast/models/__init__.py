"""The networks of the ACE paper."""

from .balanced import weight_balanced_irreps
from .egno import EGNO
from .nbody import NBodyEGNN, NBodyGNN
from .schnet import SchNet
from .segnn import SEGNN, SEGNNLayer, nbody_graph, qm9_graph
from .vn_dgcnn import VNDGCNN, VNDGCNNPartSeg
from .vn_pointnet import VNPointNet

__all__ = ["EGNO", "NBodyEGNN", "NBodyGNN", "SEGNN", "SEGNNLayer", "SchNet", "VNDGCNN", "VNDGCNNPartSeg",
           "VNPointNet", "nbody_graph", "qm9_graph", "weight_balanced_irreps"]
