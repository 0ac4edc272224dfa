from .epilogue import gate, norm_activation
from .op import tensor_product
from .table import GateTable, NormTable, ProductTable

__all__ = ["GateTable", "NormTable", "ProductTable", "gate", "norm_activation", "tensor_product"]
