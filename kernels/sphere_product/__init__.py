from .op import sphere_product
from .tables import PointTable, sphere_table

__all__ = ["PointTable", "sphere_product", "sphere_table"]
