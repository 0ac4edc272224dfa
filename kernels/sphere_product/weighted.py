"""Products at points with weights of degrees: every input times its weights, and the result times its own.

Phi = sum over points of (M_0 (w_0 g)) prod_n (M_n (w_n x_n))^p_n is linear in g, in every factor and in the weights of
each; the product is its gradient with respect to g. So this operator and its gradient close on themselves too: a
cotangent replaces one factor, or the weights of one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from ...backend import pick
from ..define import define, fail, mask
from . import reference
from .product import CPU, _all_six, _as_tensor, _check, _check_bwd, keeping
from .reference import channels_of, weight_counts
from .tables import MOST, Slot, unpack

_native = torch.ops.ace_fast_native


def _native_forward(*arguments) -> Tensor:
    *inputs, weights, table, grid, slots, ir_mul = arguments
    xs, read = [x for x in inputs if x is not None], _as_tensor(tuple(grid), tuple(slots))
    return _native.weighted_point_product(None, xs, weights, table, read, ir_mul, 1)[0]


def _native_backward(g: Tensor, *arguments) -> tuple[Tensor, ...]:
    *inputs, weights, table, grid, slots, ir_mul, needs = arguments
    xs, read = [x for x in inputs if x is not None], _as_tensor(tuple(grid), tuple(slots))
    wanted = mask([False, *needs[:len(xs)], needs[-1]])
    found = iter(_native.weighted_point_product(g, xs, weights, table, read, ir_mul, wanted))
    return tuple([next(found) if need else g.new_empty(0) for need in needs])


CPU = SimpleNamespace(**vars(CPU), weighted_forward=_native_forward, weighted_backward=_native_backward)


def check_weights(op: str, weights: Tensor, xs: list[Tensor], slots: Sequence[Slot], cast: bool = False) -> None:
    """As many as the inputs and the result have degrees and channels, on their device, of their dtype unless `cast`."""
    x1, number = xs[0], sum(weight_counts(xs, slots, channels_of(xs, slots[1:])))
    if list(weights.shape) != [number] or weights.device != x1.device or weights.dtype != x1.dtype and not cast:
        fail(op, "weights", f"{x1.dtype} [{number}] on {x1.device}, degrees by channels of each input and of the "
             "result", f"{weights.dtype} {list(weights.shape)} on {weights.device}")


class _Factor(NamedTuple):
    """An input of a product or, with g for its value, the result."""

    value: Tensor
    weights: Tensor
    slot: Slot
    value_of: int | None  # the input whose gradient is the value's; None where the value is a cotangent
    weights_of: int | None  # the slot whose weights' gradient is the weights'


def _in_place(name: str, factors: list[_Factor], n: int, one: _Factor) -> list[_Factor]:
    """The factors where `one` replaces the n-th, or one of its power."""
    whole = factors[n]
    if whole.slot.power == 1:
        return [*factors[:n], one, *factors[n + 1:]]
    if len(factors) == MOST:
        fail(name, "inputs", f"at most {MOST} with one more for each derivative of a power", MOST + 1)
    rest = whole._replace(slot=whole.slot._replace(power=whole.slot.power - 1))
    return [*factors[:n], rest, *factors[n + 1:], one._replace(slot=one.slot._replace(power=1))]


def _second(name: str, call: Callable, gradients: Callable, factors: list[_Factor], result: _Factor,
            cotangents: list[Tensor | None], needs: list[bool]) -> list[Tensor | None]:
    """Gradients of sum_n <cotangents[n], gradient n> with respect to (g, inputs, weights).

    Args:
        call, gradients: the product and its gradients of (g, xs, weights, slots, wanted).
        cotangents: of the gradients of the inputs, and of the weights.
        needs: which of (g, inputs, weights) want a gradient.
    """
    N = len(factors)
    sums: list[Tensor | None] = [None] * (1 + N)  # of g and the inputs
    of_weights: list[Tensor | None] = [None] * (1 + N)

    def add(to: list, n: int, value: Tensor, power: int) -> None:
        value = value if power == 1 else power * value
        to[n] = value if to[n] is None else to[n] + value

    def add_gradients(power: int, factors: list[_Factor], result: _Factor) -> None:
        """Those of power * the form with these factors."""
        every = [*factors, result]
        xs, joint = [f.value for f in factors], torch.cat([f.weights for f in every])
        flat = [value for f in (result, *factors) for value in f.slot]
        if needs[0]:
            add(sums, 0, call(xs, joint, flat), power)
        wanted = [f.value_of is not None and needs[1 + f.value_of] for f in factors]
        if not (any(wanted) or needs[-1]):
            return
        *found, of_joint = gradients(result.value, xs, joint, flat, wanted, needs[-1])
        for f, want, y in zip(factors, wanted, found, strict=False):
            if want:
                add(sums, 1 + f.value_of, y, power)
        for f, y in zip(every, of_joint.split([f.weights.numel() for f in every]) if needs[-1] else (), strict=False):
            if f.weights_of is not None:
                add(of_weights, f.weights_of, y, power)

    *of_inputs, joint = cotangents
    each = [f.weights.numel() for f in (*factors, result)]
    parts = [None] * (1 + N) if joint is None else joint.split(each)
    for n, factor in enumerate(factors):
        if of_inputs[n] is not None:
            one = factor._replace(value=of_inputs[n], value_of=None)
            add_gradients(factor.slot.power, _in_place(name, factors, n, one), result)
        if joint is not None:
            one = factor._replace(weights=parts[n], weights_of=None)
            add_gradients(factor.slot.power, _in_place(name, factors, n, one), result)
    if joint is not None:
        add_gradients(1, factors, result._replace(weights=parts[N], weights_of=None))
    if not needs[-1] or all(y is None for y in of_weights):
        return [*sums, None]
    return [*sums, torch.cat([torch.zeros_like(f.weights) if y is None else y
                              for f, y in zip((*factors, result), of_weights, strict=True)])]


def _backward_rule(name: str, value, gradient, ctx, cotangents) -> tuple:
    """Gradients of the gradient `name` of `value` with respect to all of its arguments."""
    g, *xs, weights, table = ctx.saved_tensors
    grid, slots, ir_mul = ctx.static
    xs, read = [x for x in xs if x is not None], unpack(slots)
    each = weights.split(weight_counts(xs, read, g.shape[1] // read[0].dim))
    factors = [_Factor(x, w, slot, n, n) for n, (x, w, slot) in enumerate(zip(xs, each, read[1:], strict=False))]
    asked = [c if need else None for c, need in zip(cotangents, ctx.given, strict=True)]
    of_g, *of_inputs, of_weights = _second(
        name,
        lambda xs, joint, flat: value(*_all_six(xs), joint, table, grid, flat, ir_mul, ctx.backend),
        lambda g, xs, joint, flat, wanted, of_joint: gradient(
            g, *_all_six(xs), joint, table, grid, flat, ir_mul, [*_all_six(wanted, False), of_joint], ctx.backend),
        factors, _Factor(g, each[-1], read[0], None, len(xs)), [*asked[:len(xs)], asked[-1]],
        [*ctx.needs_input_grad[:1 + len(xs)], ctx.needs_input_grad[1 + MOST]],
    )
    return of_g, *_all_six(of_inputs), of_weights, *(None,) * 6


def register_weighted(op: str, backends: dict):
    """Defines the operators `op` and `op`_bwd on these backends and returns them.

    A backend without `weighted_forward` and `weighted_backward` multiplies by the weights in plain torch.
    """
    op_bwd = f"{op}_bwd"
    setup, backward_setup = keeping(MOST + 2)

    def check(*args) -> tuple[tuple[Slot, ...], int]:
        *xs, weights, table, grid, slots, _, backend = args
        given, read, channels = _check(op, xs, table, grid, slots, backend)
        check_weights(op, weights, given, read)
        return read, channels

    def check_backward(g, *args) -> None:
        *xs, weights, table, grid, slots, _, needs, backend = args
        if len(needs) != MOST + 1:
            fail(op_bwd, "needs", f"{MOST + 1} bools, the last for the weights", list(needs))
        _check_bwd(op_bwd, g, xs, table, grid, slots, needs[:MOST], backend)
        check_weights(op_bwd, weights, [x for x in xs if x is not None], unpack(slots))

    def choose(*args) -> Callable:
        check(*args)
        chosen = pick(op, backends, args[-1], args[0], (args[0].dtype, *args[MOST + 2:MOST + 4]))
        return getattr(chosen, "weighted_forward", None) or partial(reference.weighted_forward, product=chosen.forward)

    def fake(*args) -> Tensor:
        slots, channels = check(*args)
        return args[0].new_empty(args[0].shape[0], channels * slots[0].dim)

    def choose_backward(*args) -> Callable:
        check_backward(*args)
        chosen = pick(op_bwd, backends, args[-1], args[0], (args[0].dtype, *args[MOST + 3:MOST + 5]))
        return getattr(chosen, "weighted_backward", None) or partial(
            reference.weighted_backward, product=chosen.forward, gradient=chosen.backward)

    def backward_fake(*args) -> tuple[Tensor, ...]:
        check_backward(*args)
        return tuple(args[0].new_empty(x.shape if need else 0)
                     for x, need in zip(args[1:MOST + 2], args[-2], strict=True))

    def rule(ctx, g: Tensor) -> tuple:
        needs = list(ctx.needs_input_grad[:MOST + 1])
        found = gradient(g, *ctx.saved_tensors, *ctx.static, needs, ctx.backend)
        return *(x if need else None for x, need in zip(found, needs, strict=True)), *(None,) * 5

    inputs = ", ".join(["Tensor x1", *(f"Tensor? x{n}" for n in range(2, MOST + 1)), "Tensor weights"])
    tables = "Tensor table, int[] grid, int[] slots, bool ir_mul"
    value = define(f"{op}({inputs}, {tables}, str backend) -> Tensor", choose, fake, setup, rule)
    gradient = define(f"{op_bwd}(Tensor g, {inputs}, {tables}, bool[] needs, str backend) -> "
                      f"({', '.join(['Tensor'] * (MOST + 1))})", choose_backward, backward_fake, backward_setup,
                      lambda ctx, *cotangents: _backward_rule(op_bwd, value, gradient, ctx, cotangents))
    return value, gradient
