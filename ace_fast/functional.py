"""The operators under their public names."""

from .kernels.dual_update import dual_update
from .kernels.relaxed_linear import relaxed_linear
from .kernels.segment_sum import gather, segment_sum
from .kernels.tensor_product import GateTable, ProductTable, tensor_product

__all__ = ["GateTable", "ProductTable", "dual_update", "gather", "relaxed_linear", "segment_sum", "tensor_product"]
