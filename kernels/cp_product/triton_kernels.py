"""The Triton backend: that of products at points, whose matrices are the factors (sphere_product/triton_kernels.py)."""

from ..sphere_product.triton_kernels import aot, backward, forward

__all__ = ["backward", "forward"]

AOT = [aot("fp32", 3, 3, 3, 0x010101)]
