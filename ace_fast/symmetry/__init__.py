"""Groups, how their elements act on arrays, and how far a model is from commuting with them."""

from .groups import Element, Group, check_homomorphism, finite, generated, group, product
from .layouts import Layout, act, given, image, irreps, layout, vectors
from .matrices import random_o3, wigner

__all__ = [
    "Element",
    "Group",
    "Layout",
    "act",
    "check_homomorphism",
    "finite",
    "generated",
    "given",
    "group",
    "image",
    "irreps",
    "layout",
    "product",
    "random_o3",
    "vectors",
    "wigner",
]
