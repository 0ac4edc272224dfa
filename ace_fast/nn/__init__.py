"""Layers with the originals' constructors, parameter names and numbers, on the fused operators."""

from .norm import BatchNorm, InstanceNorm
from .o3_layers import O3TensorProduct, O3TensorProductSwishGate
from .relaxed import RelaxedLinear
from .tensor_product import FullyConnectedTensorProduct, TensorProduct

__all__ = [
    "BatchNorm",
    "FullyConnectedTensorProduct",
    "InstanceNorm",
    "O3TensorProduct",
    "O3TensorProductSwishGate",
    "RelaxedLinear",
    "TensorProduct",
]
