"""cp_product: a bilinear map by factors of rank R, with weights that all paths share."""

import torch
from torch import Tensor

from ..define import fail, no_forward_mode
from ..sphere_product.op import LAYOUTS, arguments
from ..sphere_product.product import CPU, check_inputs, register
from ..sphere_product.reference import channels_of, components, contract, joined
from ..sphere_product.tables import MOST, Points, Slot
from . import reference, triton_kernels
from .table import CPTable

MODES = ("uuu", "uvu")
BACKENDS = {"reference": reference, "cpu": CPU, "triton": triton_kernels}

cp_product_op, cp_product_bwd = register("cp_product", BACKENDS)


def _mixed(y: Tensor, weight: Tensor, d: int, layout: str) -> Tensor:
    """y of V channels -> of U, by the weights [U, V] or [Z, U, V]: the map is then channel by channel."""
    ir_mul = layout == "ir_mul"
    return joined(components(y, d, ir_mul) @ weight.mT, ir_mul)


def _autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _check(x: Tensor, y: Tensor, weight: Tensor | None, table: CPTable, mode: str) -> None:
    op = "cp_product"
    if not isinstance(table, CPTable):
        fail(op, "table", "a CPTable", type(table).__name__)
    if mode not in MODES:
        fail(op, "mode", f"one of {MODES}", repr(mode))
    cast = _autocast(x)  # to one dtype
    for name, t in (("y", y), ("weight", weight)):
        if t is not None and (t.device != x.device or t.dtype != x.dtype and not cast):
            fail(op, name, f"{x.dtype} on {x.device} like x", f"{t.dtype} on {t.device}")
    _, in1, in2 = ((degree + 1) ** 2 for degree in table.degrees)
    for name, t, d in (("x", x, in1), ("y", y, in2)):
        if t.dim() != 2 or t.shape[1] % d:
            fail(op, name, f"[Z, channels of {d} components]", list(t.shape))
    u, v, z = x.shape[1] // in1, y.shape[1] // in2, x.shape[0]
    if y.shape[0] not in (z, 1):
        fail(op, "y", f"of {z} rows like x, or of one for all", f"{y.shape[0]} rows")
    if mode == "uuu" and v not in (1, u):
        fail(op, "y", f"of {u} channels like x, or of one (mode 'uuu')", f"{v} channels")
    if weight is None and mode == "uvu" and v != 1:
        fail(op, "weight", f"[{u}, {v}] or [{z}, {u}, {v}] (mode 'uvu')", None)
    shape = [u] if mode == "uuu" else [u, v]
    if weight is not None and list(weight.shape) not in (shape, [z, *shape]):
        fail(op, "weight", f"{shape} or {[z, *shape]} (mode {mode!r})", list(weight.shape))


def cp_product(x: Tensor, y: Tensor, weight: Tensor | None = None, *, table: CPTable, mode: str = "uuu",
               layout: str = "mul_ir", backend: str = "auto") -> Tensor:
    r"""Bilinear map of irreps through R products, approximate or exact, with one weight for all of its paths.

    .. math:: z^u_k = \sum_v w_{uv} \sum_r A_{kr} \Big(\sum_i B_{ir} x^u_i\Big) \Big(\sum_j C_{jr} y^v_j\Big)

    The map with coefficients M_ijk = sum_r B_ir C_jr A_kr. Mode "uuu" pairs channel u with channel u.

    Args:
        x: [Z, U (L1+1)^2], float32 or float64, bfloat16 on a GPU.
        y: [Z, V (L2+1)^2], V = U or 1 in mode "uuu".
        weight: [U] in mode "uuu", [U, V] in mode "uvu", either with a first dimension Z for weights of every row; or
            None for ones, in mode "uvu" where V is 1.
        table: the factors A, B and C.
        mode: "uuu" or "uvu".
        layout: "mul_ir" (e3nn's) or "ir_mul", of inputs and result.
        backend: "auto", "reference", "cpu" or "triton"; not used where a factor requires grad.

    Returns:
        [Z, U (L3+1)^2].

    Raises:
        ValueError: wrong shapes, dtypes or devices, unknown modes, a backend that cannot run here.
        NotImplementedError: forward-mode derivatives.

    Derivatives of any order in x, y and weight, and in factors that require grad. Source: Lin et al. 2025 (TDN).

    Example:
        >>> table = ace_fast.functional.CPTable(torch.randn(9, 28), torch.randn(9, 28), torch.randn(9, 28))
        >>> x, y, weight = torch.randn(100, 9 * 64), torch.randn(100, 9), torch.randn(100, 64, 1)
        >>> ace_fast.functional.cp_product(x, y, weight, table=table, mode="uvu").shape
        torch.Size([100, 576])
    """
    _check(x, y, weight, table, mode)
    no_forward_mode("cp_product", x, y, weight)
    if weight is not None and mode == "uvu":
        if weight.shape[-1] == 1:
            weight = weight[..., 0]
        else:
            y, weight = _mixed(y, weight, (table.degrees[2] + 1) ** 2, layout), None
    operands = [x, y] if weight is None else [x, y, weight if weight.dim() == 2 else weight[None]]
    if not table.trainable:
        return cp_product_op(*arguments("cp_product", operands, table.points(weight is not None), layout), backend)
    if layout not in LAYOUTS:
        fail("cp_product", "layout", f"one of {LAYOUTS}", repr(layout))
    if backend not in ("auto", *BACKENDS):
        fail("cp_product", "backend", f"one of {['auto', *BACKENDS]}", repr(backend))
    flat, points, slots = table.flat(weight is not None, x.device)
    if flat.requires_grad:
        return _differentiable(operands, flat, points, slots, layout == "ir_mul", backend)
    integers = list(points), [value for slot in slots for value in slot]
    return cp_product_op(*operands, *(None,) * (MOST - len(operands)), flat, *integers, layout == "ir_mul", backend)


def _differentiable(operands: list[Tensor], flat: Tensor, points: Points, slots: list[Slot], ir_mul: bool,
                    backend: str) -> Tensor:
    """The product with gradients of the table, in plain torch; under autocast in float32, as the operator has it."""
    if not _autocast(flat):
        check_inputs("cp_product", operands, slots[1:], backend)
        channels = channels_of(operands, slots[1:])
        return contract(0, [None, *operands], channels, flat, points, slots, ir_mul).contiguous()
    with torch.autocast(flat.device.type, enabled=False):
        wide = [x.float() if x.is_floating_point() and x.dtype != torch.float64 else x for x in operands]
        return _differentiable(wide, flat, points, slots, ir_mul, backend)
