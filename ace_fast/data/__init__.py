"""Data sets: graphs as flat arrays and offsets, molecules, labelled point clouds, and the batchers over them."""

from .batching import Batch, Batcher, FlatDataset
from .modelnet import modelnet
from .nbody import NBodySettings, nbody, simulate
from .pointclouds import CloudBatcher, PointClouds, drop_points, normalise, rotate, rotations
from .qm9 import MolecularGraphs, qm9
from .radius import radius_edges
from .shapefile import shape_file
from .solids import generated_shapes

__all__ = [
    "Batch",
    "Batcher",
    "CloudBatcher",
    "FlatDataset",
    "MolecularGraphs",
    "NBodySettings",
    "PointClouds",
    "drop_points",
    "generated_shapes",
    "modelnet",
    "nbody",
    "normalise",
    "qm9",
    "radius_edges",
    "rotate",
    "rotations",
    "shape_file",
    "simulate",
]
