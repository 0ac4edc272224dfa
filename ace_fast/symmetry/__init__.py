"""Groups, how their elements act on arrays, how far a model is from commuting with them, and breaking symmetries."""

from .breaking import SymPE
from .forces import conservativity
from .frame_averaging import FrameAveraging
from .group_conv import GroupConv2d
from .groups import Element, Group, check_homomorphism, finite, generated, group, product
from .layouts import Layout, act, given, image, irreps, layout, vectors
from .matrices import random_o3, wigner
from .measure import measure
from .monitor import Monitor
from .refinement import GraphSymmetries, refined_scores
from .report import Report

__all__ = [
    "Element",
    "FrameAveraging",
    "Group",
    "GroupConv2d",
    "GraphSymmetries",
    "Layout",
    "Monitor",
    "Report",
    "SymPE",
    "act",
    "check_homomorphism",
    "conservativity",
    "finite",
    "generated",
    "given",
    "group",
    "image",
    "irreps",
    "layout",
    "measure",
    "product",
    "random_o3",
    "refined_scores",
    "vectors",
    "wigner",
]
