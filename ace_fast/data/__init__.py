"""Data sets as flat arrays and offsets, and the batcher over them."""

from .batching import Batch, Batcher, FlatDataset
from .nbody import NBodySettings, nbody, simulate

__all__ = ["Batch", "Batcher", "FlatDataset", "NBodySettings", "nbody", "simulate"]
