"""Layers with the originals' constructors, parameter names and numbers, on the fused operators."""

from . import cp
from .affine_chain import AffineMaps, Moments, affine_chain, moments, moments_of_all
from .choice import Choice, choose_product, equivariance_error
from .conv import TensorProductConv
from .egnn import EGNN, EGNN_Layer
from .gate import Gate
from .gaunt import GauntTensorProduct
from .gaunt_edge import GauntEdgeProduct
from .gaunt_many_body import GauntManyBody, GauntMultiProduct
from .linear import Linear
from .merged_norm import MergedLayerNorm
from .norm import BatchNorm, InstanceNorm
from .norm_activation import NormActivation
from .o3_gaunt import O3GauntProduct, O3GauntProductSwishGate
from .o3_layers import O3TensorProduct, O3TensorProductSwishGate
from .products import ElementwiseTensorProduct, FullTensorProduct, FullyConnectedTensorProduct, TensorSquare
from .radius import radius_graph
from .relaxed import RelaxedLinear
from .s2_activation import S2Activation
from .s2_mlp import S2MLP, SwiGLUS2
from .schnet import CFConv, GaussianSmearing, InteractionBlock, ShiftedSoftplus
from .smooth_attention import SmoothCutoffAttention, polynomial_envelope
from .spectral import SpectralConv1d, SpectralConv1d_x, TimeConv, TimeConv_x
from .spectral_norm import spectral_weights
from .tdn import TDNTensorProduct
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
    "AffineMaps",
    "BatchNorm",
    "Choice",
    "EGNN",
    "EGNN_Layer",
    "CFConv",
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Gate",
    "GauntEdgeProduct",
    "GauntManyBody",
    "GauntMultiProduct",
    "GauntTensorProduct",
    "GaussianSmearing",
    "InstanceNorm",
    "InteractionBlock",
    "Linear",
    "MergedLayerNorm",
    "Moments",
    "NormActivation",
    "O3GauntProduct",
    "O3GauntProductSwishGate",
    "O3TensorProduct",
    "O3TensorProductSwishGate",
    "RelaxedLinear",
    "S2Activation",
    "S2MLP",
    "ShiftedSoftplus",
    "SmoothCutoffAttention",
    "SpectralConv1d",
    "SpectralConv1d_x",
    "TDNTensorProduct",
    "SwiGLUS2",
    "TensorProduct",
    "TensorProductConv",
    "TensorSquare",
    "TimeConv",
    "TimeConv_x",
    "VNBatchNorm",
    "VNEdgeConv",
    "VNLeakyReLU",
    "VNLinear",
    "VNLinearLeakyReLU",
    "VNMaxPool",
    "VNStdFeature",
    "affine_chain",
    "choose_product",
    "cp",
    "equivariance_error",
    "mean_pool",
    "moments",
    "moments_of_all",
    "polynomial_envelope",
    "radius_graph",
    "spectral_weights",
]
