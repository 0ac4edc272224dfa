"""Data sets: graphs as flat arrays and offsets, molecules, motions, labelled point clouds, and their batchers."""

from .batching import Batch, Batcher, FlatDataset
from .checks import symmetric_edges
from .md17 import Conformations, md17
from .mocap import MotionSamples, mocap
from .modelnet import modelnet
from .nbody import NBodySettings, nbody, simulate
from .pointclouds import CloudBatcher, PointClouds, drop_points, normalise, rotate, rotations
from .pyg import from_pyg
from .qm9 import MolecularGraphs, qm9
from .radius import radius_edges
from .shapefile import shape_file
from .shards import ShardedDataset, concatenate, write_shards
from .solids import generated_shapes
from .streaming import ShardBatcher

__all__ = [
    "Batch",
    "Batcher",
    "CloudBatcher",
    "Conformations",
    "FlatDataset",
    "MolecularGraphs",
    "MotionSamples",
    "NBodySettings",
    "PointClouds",
    "ShardBatcher",
    "ShardedDataset",
    "concatenate",
    "drop_points",
    "from_pyg",
    "generated_shapes",
    "md17",
    "mocap",
    "modelnet",
    "nbody",
    "normalise",
    "qm9",
    "radius_edges",
    "rotate",
    "rotations",
    "shape_file",
    "simulate",
    "symmetric_edges",
    "write_shards",
]
