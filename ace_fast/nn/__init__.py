"""Layers with the originals' constructors, parameter names and numbers, on the fused operators."""

from .conv import TensorProductConv
from .gate import Gate
from .linear import Linear
from .norm import BatchNorm, InstanceNorm
from .norm_activation import NormActivation
from .o3_layers import O3TensorProduct, O3TensorProductSwishGate
from .products import ElementwiseTensorProduct, FullTensorProduct, FullyConnectedTensorProduct, TensorSquare
from .radius import radius_graph
from .relaxed import RelaxedLinear
from .tensor_product import TensorProduct
from .vector_neurons import (
    VNBatchNorm,
    VNLeakyReLU,
    VNLinear,
    VNLinearLeakyReLU,
    VNMaxPool,
    VNStdFeature,
    mean_pool,
)
from .vn_edge_conv import VNEdgeConv

__all__ = [
    "BatchNorm",
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Gate",
    "InstanceNorm",
    "Linear",
    "NormActivation",
    "O3TensorProduct",
    "O3TensorProductSwishGate",
    "RelaxedLinear",
    "TensorProduct",
    "TensorProductConv",
    "TensorSquare",
    "VNBatchNorm",
    "VNEdgeConv",
    "VNLeakyReLU",
    "VNLinear",
    "VNLinearLeakyReLU",
    "VNMaxPool",
    "VNStdFeature",
    "mean_pool",
    "radius_graph",
]
