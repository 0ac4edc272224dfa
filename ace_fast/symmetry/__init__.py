"""Groups, how their elements act on arrays, and how far a model is from commuting with them."""

from .forces import conservativity
from .groups import Element, Group, check_homomorphism, finite, generated, group, product
from .layouts import Layout, act, given, image, irreps, layout, vectors
from .matrices import random_o3, wigner
from .measure import measure
from .monitor import Monitor
from .report import Report

__all__ = [
    "Element",
    "Group",
    "Layout",
    "Monitor",
    "Report",
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
    "vectors",
    "wigner",
]
