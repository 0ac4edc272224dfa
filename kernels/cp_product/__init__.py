from .op import cp_product
from .table import CPTable

__all__ = ["CPTable", "cp_product"]
