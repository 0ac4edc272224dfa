"""How a product at points is registered: `sphere_product` and `cp_product` are one form with different tables.

The form is linear in each factor, so the derivative of a gradient is a sum of products and gradients in which a
cotangent takes the place of one factor (kernels/multilinear.py); of an input's power it takes one and leaves the rest.
"""

import functools
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..constant import plainly
from ..define import check_tensors, define, fail, is_half, mask
from .tables import FORMS, MOST, Points, Slot, unpack

_native = torch.ops.ace_fast_native


@functools.cache
@plainly()
def _as_tensor(grid: Sequence[int], slots: Sequence[int]) -> Tensor:
    """Both, one after the other: a tensor is handed to C++ in a tenth of a list's time."""
    return torch.tensor([*grid, *slots], device="cpu")


def _native_forward(x1, x2, x3, x4, x5, x6, table, grid, slots, ir_mul) -> Tensor:
    xs = [x for x in (x1, x2, x3, x4, x5, x6) if x is not None]
    return _native.point_product(None, xs, table, _as_tensor(tuple(grid), tuple(slots)), ir_mul, 1)[0]


def _native_backward(g, x1, x2, x3, x4, x5, x6, table, grid, slots, ir_mul, needs) -> tuple[Tensor, ...]:
    xs = [x for x in (x1, x2, x3, x4, x5, x6) if x is not None]
    read = _as_tensor(tuple(grid), tuple(slots))
    found = iter(_native.point_product(g, xs, table, read, ir_mul, mask(needs) << 1))
    return tuple([next(found) if need else g.new_empty(0) for need in needs])


CPU = SimpleNamespace(forward=_native_forward, backward=_native_backward)


def check_inputs(op: str, xs: list[Tensor], slots: Sequence[Slot], backend: str) -> int:
    """Dtypes, rows and channels of the inputs; returns the channels."""
    x1 = xs[0]
    dtype, device = x1.dtype, x1.device
    check_tensors(op, x1, half=is_half(op, "x1", x1, backend))
    channels, rows = 1, None
    for n, (x, slot) in enumerate(zip(xs, slots, strict=True), 1):
        shape, dim = x.shape, slot.dim
        if x.dtype != dtype or x.device != device:
            fail(op, f"x{n}", f"{dtype} on {device}", f"{x.dtype} on {x.device}")
        if len(shape) != 2 or shape[1] % dim:
            fail(op, f"x{n}", f"[Z, channels of {dim} components], degrees 0..{slot.degree}", list(shape))
        rows = shape[0] if n == 1 else rows
        if shape[0] not in (rows, 1):
            fail(op, f"x{n}", f"of {rows} rows like x1, or of one for all", f"{shape[0]} rows")
        width = shape[1] // dim
        if width != 1 and channels not in (1, width):
            fail(op, f"x{n}", f"of {channels} channels like those before, or of one for all", f"{width} channels")
        channels = width if width != 1 else channels
    return channels


@functools.cache
def _read(grid: tuple[int, ...], slots: tuple[int, ...]) -> tuple[tuple[Slot, ...], int]:
    """The slots, and how long the flat table must be."""
    points, unpacked = Points(*grid), unpack(slots)
    return unpacked, max(slot.offset + points.numel(slot) for slot in unpacked)


def _check(op: str, xs, table, grid, slots, backend: str) -> tuple[list[Tensor], tuple[Slot, ...], int]:
    """The inputs that are given, what their slots say, and the number of channels."""
    given = [x for x in xs if x is not None]
    integers = len(Points._fields), len(Slot._fields) * (1 + len(given))
    if (len(grid), len(slots)) != integers or not 0 <= grid[0] < len(FORMS):
        fail(op, "grid and slots", f"{integers[0]} and, for {len(given)} inputs, {integers[1]} integers",
             f"{len(grid)} and {len(slots)}", "give the table of a product of as many inputs")
    unpacked, needed = _read(tuple(grid), tuple(slots))
    if table.dtype != torch.float64 or table.dim() != 1 or table.shape[0] < needed or table.device != xs[0].device:
        fail(op, "table", f"float64 [{needed}] on {xs[0].device}",
             f"{table.dtype} {list(table.shape)} on {table.device}")
    return given, unpacked, check_inputs(op, given, unpacked[1:], backend)


def _check_bwd(op: str, g, xs, table, grid, slots, needs, backend) -> None:
    given, unpacked, channels = _check(op, xs, table, grid, slots, backend)
    shape = [given[0].shape[0], channels * unpacked[0].dim]
    if list(g.shape) != shape or g.dtype != given[0].dtype or g.device != given[0].device:
        fail(op, "g", f"{given[0].dtype} {shape} on {given[0].device}", f"{g.dtype} {list(g.shape)} on {g.device}")
    if len(needs) != MOST or any(needs[len(given):]):
        fail(op, "needs", f"{MOST} bools, False where an input is None", list(needs))


def _second(name: str, product, gradients, g, xs: list[Tensor], slots: list[Slot], cotangents, needs) -> list:
    """Gradients of sum_n <cotangents[n], gradient n> with respect to (g, *xs)."""
    sums: list[Tensor | None] = [None] * (1 + len(xs))

    def add(slot: int, value: Tensor) -> None:
        sums[slot] = value if sums[slot] is None else sums[slot] + value

    for n, (cotangent, power) in enumerate(zip(cotangents, [s.power for s in slots[1:]], strict=True)):
        if cotangent is None:
            continue
        factors, read = list(xs), list(slots)
        if power == 1:
            factors[n] = cotangent
        else:
            if len(xs) == MOST:
                fail(name, "inputs", f"at most {MOST} with one more for each derivative of a power", len(xs) + 1)
            factors.append(cotangent)
            read += [slots[1 + n]._replace(power=1)]
            read[1 + n] = slots[1 + n]._replace(power=power - 1)
        flat = [value for slot in read for value in slot]
        if needs[0]:
            add(0, power * product(factors, flat))
        wanted = [need and (i != n or power > 1) for i, need in enumerate(needs[1:])]
        if any(wanted):
            found = gradients(g, factors, flat, wanted)
            for i, want in enumerate(wanted):
                if want:
                    add(1 + i, power * found[i])
    return sums


def keeping(tensors: int):
    """The setups of an operator with so many tensors, `table` the last of them, and of its gradient, with g before."""

    def setup(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.static, ctx.backend = inputs[tensors:-1], inputs[-1]

    def backward_setup(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:tensors + 1])
        ctx.static, ctx.given, ctx.backend = inputs[tensors + 1:-2], inputs[-2], inputs[-1]

    return setup, backward_setup


def _all_six(values: list, nothing=None) -> list:
    return [*values, *[nothing] * (MOST - len(values))]


def _backward_rule(name: str, product, gradient, ctx, cotangents) -> tuple:
    """Gradients of the gradient `name` of `product` with respect to all of its arguments."""
    g, *xs, table = ctx.saved_tensors
    grid, slots, ir_mul = ctx.static
    xs = [x for x in xs if x is not None]
    found = _second(
        name,
        lambda factors, flat: product(*_all_six(factors), table, grid, flat, ir_mul, ctx.backend),
        lambda g, factors, flat, wanted: gradient(g, *_all_six(factors), table, grid, flat, ir_mul,
                                                  _all_six(wanted, False), ctx.backend),
        g, xs, unpack(slots),
        [c if need else None for c, need in zip(cotangents, ctx.given, strict=True)][:len(xs)],
        ctx.needs_input_grad[:1 + len(xs)],
    )
    return found[0], *_all_six(found[1:]), *(None,) * 6


def register(name: str, backends: dict):
    """Defines the operators `name` and `name`_bwd on these backends and returns them."""
    op_bwd = f"{name}_bwd"
    setup, backward_setup = keeping(MOST + 1)

    def forward(*args):
        *inputs, backend = args
        _check(name, args[:MOST], *inputs[MOST:MOST + 3], backend)
        given = args[0].dtype, *args[MOST + 1:MOST + 3]
        return pick(name, backends, backend, args[0], given).forward

    def forward_fake(*args):
        _, slots, channels = _check(name, args[:MOST], *args[MOST:MOST + 3], args[-1])
        return args[0].new_empty(args[0].shape[0], channels * slots[0].dim)

    def check_backward(*args):
        _check_bwd(op_bwd, args[0], args[1:1 + MOST], *args[1 + MOST:4 + MOST], *args[5 + MOST:])

    def backward(*args):
        check_backward(*args)
        given = args[0].dtype, *args[MOST + 2:MOST + 4]
        return pick(op_bwd, backends, args[-1], args[0], given).backward

    def backward_fake(*args):
        check_backward(*args)
        return tuple(args[0].new_empty(0 if x is None or not need else x.shape)
                     for x, need in zip(args[1:1 + MOST], args[5 + MOST], strict=True))

    def rule(ctx, g):
        needs = list(ctx.needs_input_grad[:MOST])
        found = gradient(g, *ctx.saved_tensors, *ctx.static, needs, ctx.backend)
        return *[x if need else None for x, need in zip(found, needs, strict=True)], *(None,) * 5

    inputs = ", ".join(["Tensor x1", *(f"Tensor? x{n}" for n in range(2, MOST + 1))])
    tables = "Tensor table, int[] grid, int[] slots, bool ir_mul"
    product = define(f"{name}({inputs}, {tables}, str backend) -> Tensor", forward, forward_fake, setup, rule)
    gradient = define(f"{op_bwd}(Tensor g, {inputs}, {tables}, bool[] needs, str backend) -> "
                      f"({', '.join(['Tensor'] * MOST)})", backward, backward_fake, backward_setup,
                      lambda ctx, *cotangents: _backward_rule(op_bwd, product, gradient, ctx, cotangents))
    return product, gradient
