"""Data sets: graphs as flat arrays and offsets, labelled point clouds, and the batchers over them."""

from .batching import Batch, Batcher, FlatDataset
from .modelnet import modelnet
from .nbody import NBodySettings, nbody, simulate
from .pointclouds import CloudBatcher, PointClouds, drop_points, normalise, rotate, rotations
from .shapefile import shape_file
from .solids import generated_shapes

__all__ = [
    "Batch",
    "Batcher",
    "CloudBatcher",
    "FlatDataset",
    "NBodySettings",
    "PointClouds",
    "drop_points",
    "generated_shapes",
    "modelnet",
    "nbody",
    "normalise",
    "rotate",
    "rotations",
    "shape_file",
    "simulate",
]
