"""sphere_product: products of fields on the sphere, from coefficients to a grid and back in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..define import fail, no_forward_mode
from . import cuda_kernels, reference, triton_kernels
from .product import register
from .tables import MOST, PointTable, unpack
from .weighted import CPU, check_weights, register_weighted

LAYOUTS = ("mul_ir", "ir_mul")
BACKENDS = {"reference": reference, "cpu": CPU, "cuda": cuda_kernels, "triton": triton_kernels}

sphere_product_op, sphere_product_bwd = register("sphere_product", BACKENDS)
weighted_sphere_product_op, weighted_sphere_product_bwd = register_weighted("weighted_sphere_product", BACKENDS)


def arguments(op: str, xs: Sequence[Tensor], table: PointTable, layout: str) -> tuple:
    """What the registered operator takes of these inputs, without `backend`."""
    if not isinstance(table, PointTable):
        fail(op, "table", "a PointTable", type(table).__name__, "make it with sphere_table or cp_table")
    if len(xs) != len(table.slots) - 1:
        fail(op, "xs", f"{len(table.slots) - 1} inputs, as its table says", len(xs))
    if layout not in LAYOUTS:
        fail(op, "layout", f"one of {LAYOUTS}", repr(layout))
    no_forward_mode(op, *xs)
    return *xs, *(None,) * (MOST - len(xs)), *table.on(xs[0].device), layout == "ir_mul"


def sphere_product(*xs: Tensor, table: PointTable, weights: Tensor | None = None, layout: str = "mul_ir",
                   backend: str = "auto") -> Tensor:
    r"""Product of fields on the sphere given by their coefficients, channel by channel; no grid reaches memory.

    .. math:: z_{lm} = \int_{S^2} \Big(\prod_n F_n(r)^{p_n}\Big) Y_{lm}(r)\, dr, \quad
              F_n(r) = \sum_{lm} x_{n,lm} Y_{lm}(r)

    with orthonormal real spherical harmonics (e3nn's normalization "integral"): the Gaunt tensor product of two inputs,
    a many-body product of several. With a table of the bracket, :math:`r \cdot (\nabla F_1 \times \nabla F_2)` in
    place of the product: the antisymmetric paths, l1 + l2 + l odd.

    Args:
        xs: one to six inputs [Z, C (L+1)^2], float32 or float64, bfloat16 on a GPU: C channels of degrees 0..L in
            `layout`. The first has all rows; another may have one row for all. An input may have one channel for all.
        table: degrees, powers and grid of the product, from `sphere_table`.
        weights: factors of every degree and channel that all rows share, before the product and behind it: L+1 degrees
            by its channels of each input in order and then of the result, flat, [sum of (L+1) C]; None for ones.
        layout: of inputs and result: "mul_ir" (e3nn's: the components of a channel and degree lie together) or
            "ir_mul" ([(L+1)^2, C]: the channels of a component lie together).
        backend: "auto", "reference", "cpu", "cuda" (mirrored points, no float64) or "triton".

    Returns:
        [Z, C (L_out+1)^2].

    Raises:
        ValueError: inputs that do not fit the table or each other, a backend that cannot run here, more than six
            different factors in a derivative.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in all inputs and the weights. Source: Luo et al. 2024 (Gaunt tensor product); Xie et al.
    2025 (on a grid).

    Example:
        >>> table = ace_fast.functional.sphere_table((2, 2), 2)
        >>> x, y = torch.randn(100, 9 * 64), torch.randn(100, 9 * 64)
        >>> ace_fast.functional.sphere_product(x, y, table=table).shape
        torch.Size([100, 576])
    """
    if not xs:
        fail("sphere_product", "xs", "one input or more", 0)
    given = arguments("sphere_product", xs, table, layout)
    if weights is None:
        return sphere_product_op(*given, backend)
    no_forward_mode("sphere_product", weights)
    run = weighted_sphere_product_op if weights.is_cpu else weighted_outside
    return run(*given[:MOST], weights, *given[MOST:], backend)


def weighted_outside(*given) -> Tensor:
    """`weighted_sphere_product_op` for GPUs, whose kernels take no weights: what is multiplied outside is recorded by
    autograd, which keeps what the operator's gradient would form again, and seen by torch.compile."""
    *inputs, weights, table, grid, slots, ir_mul, backend = given
    cast = torch.is_autocast_enabled(weights.device.type)  # to one dtype, by the operator
    check_weights("sphere_product", weights, [x for x in inputs if x is not None], unpack(slots), cast)
    return reference.weighted_forward(*given[:-1], product=lambda *plain: sphere_product_op(*plain, backend))
