from .epilogue import gate
from .op import tensor_product
from .table import GateTable, ProductTable

__all__ = ["GateTable", "ProductTable", "gate", "tensor_product"]
