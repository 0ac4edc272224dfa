"""The operators under their public names."""

from .kernels.cfconv import RadialBasis, bessel_basis, cfconv, expnorm_basis, gaussian_basis
from .kernels.cp_product import CPTable, cp_product
from .kernels.dual_update import dual_update
from .kernels.egnn_message import egnn_message
from .kernels.frames import frame_channels, frame_concat, frames
from .kernels.knn import knn
from .kernels.radius_graph import edge_vectors, radius_graph
from .kernels.relaxed_linear import relaxed_linear
from .kernels.segment_rank import rank_concat, segment_rank
from .kernels.segment_sum import gather, segment_sum
from .kernels.spectral_conv import spectral_conv, time_conv
from .kernels.sphere_activation import SphereGrid, sphere_activation
from .kernels.sphere_product import PointTable, sphere_product, sphere_table
from .kernels.steerable_message import steerable_message
from .kernels.tensor_product import GateTable, NormTable, ProductTable, gate, norm_activation, tensor_product
from .kernels.tensor_product_conv import tensor_product_conv
from .kernels.vn_edge_conv import vn_edge_conv, vn_edge_select, vn_edge_stats
from .kernels.vn_linear import vn_leaky_relu, vn_linear, vn_norm_stats

__all__ = [
    "CPTable",
    "GateTable",
    "NormTable",
    "PointTable",
    "ProductTable",
    "RadialBasis",
    "SphereGrid",
    "bessel_basis",
    "cfconv",
    "cp_product",
    "dual_update",
    "edge_vectors",
    "egnn_message",
    "expnorm_basis",
    "frame_channels",
    "frame_concat",
    "frames",
    "gate",
    "gather",
    "gaussian_basis",
    "knn",
    "norm_activation",
    "radius_graph",
    "rank_concat",
    "relaxed_linear",
    "segment_rank",
    "segment_sum",
    "spectral_conv",
    "sphere_activation",
    "sphere_product",
    "sphere_table",
    "steerable_message",
    "tensor_product",
    "tensor_product_conv",
    "time_conv",
    "vn_edge_conv",
    "vn_edge_select",
    "vn_edge_stats",
    "vn_leaky_relu",
    "vn_linear",
    "vn_norm_stats",
]
