"""Operations of products by factors: those of products at R points; see kernels/counts.py."""

from ..sphere_product.counts import backward, forward
from ..sphere_product.tables import MOST

FLOPS = {"cp_product": forward, "cp_product_bwd": backward}
NEEDS = {"cp_product": tuple(f"x{n}" for n in range(1, MOST + 1))}
