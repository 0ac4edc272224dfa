from .grid import SphereGrid
from .op import ACTIVATIONS, sphere_activation
from .reference import components, joined

__all__ = ["ACTIVATIONS", "SphereGrid", "components", "joined", "sphere_activation"]
