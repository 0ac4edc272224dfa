"""The formula z = A ((B^T x) (C^T y)), that of products at points whose matrices are the factors."""

from ..sphere_product.reference import backward, forward

__all__ = ["backward", "forward"]
