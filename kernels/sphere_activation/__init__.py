from .grid import SphereGrid
from .op import ACTIVATIONS, sphere_activation

__all__ = ["ACTIVATIONS", "SphereGrid", "sphere_activation"]
