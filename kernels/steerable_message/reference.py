"""The SEGNN message in plain PyTorch, close to the formula: here, and only here, the edge tensors exist."""

from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from ..segment_sum import reference as segments
from ..tensor_product import reference as product


class Arguments(NamedTuple):
    """What the operator takes, in its order, without `backend`."""

    h: Tensor  # [N, D]
    extra: Tensor | None  # [E, X]
    attr: Tensor  # [E, A]
    weight1: Tensor  # [n1]
    bias1: Tensor | None  # [b1]
    weight2: Tensor  # [n2]
    bias2: Tensor | None  # [b2]
    source_index: Tensor  # [E]
    source_order: Tensor  # [E]
    source_ptr: Tensor  # [N + 1]
    target_index: Tensor  # [E]
    target_order: Tensor  # [E]
    target_ptr: Tensor  # [N + 1]
    cg_index1: Tensor  # [nnz1, 3]
    cg_value1: Tensor  # [nnz1]
    dims1: list[int]
    paths1: list[int]
    bias_slots1: list[int]
    layout1: list[int]  # empty: no gate
    scalar_gain1: float
    gate_gain1: float
    cg_index2: Tensor  # [nnz2, 3]
    cg_value2: Tensor  # [nnz2]
    dims2: list[int]
    paths2: list[int]
    bias_slots2: list[int]
    layout2: list[int]
    scalar_gain2: float
    gate_gain2: float
    factor: bool  # how the first product is summed, not what: the reference forms every edge

    def tables(self, which: int) -> tuple:
        """cg_index, cg_value, dims, paths, bias_slots of the first (0) or second (1) product."""
        start = 13 + 8 * which
        return self[start:start + 5]

    def gate(self, which: int) -> tuple:
        """layout, scalar_gain, gate_gain."""
        start = 18 + 8 * which
        return self[start:start + 3]


def _product(parts, a: Arguments, which: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the gate of the first (0) or second (1) product gives, and the pre-activation."""
    weight, bias = a[3 + 2 * which:5 + 2 * which]
    if a.gate(which)[0]:
        return parts.product.gated_forward(x, a.attr, weight, bias, *a.tables(which), *a.gate(which))
    y = parts.product.forward(x, a.attr, weight, bias, *a.tables(which))
    return y, y


def _product_backward(parts, a: Arguments, which: int, g: Tensor, pre: Tensor, x: Tensor, needs) -> tuple[Tensor, ...]:
    """Gradients of x, attr, weight and bias."""
    weight = a[3 + 2 * which]
    if a.gate(which)[0]:
        return parts.product.gated_backward(g, pre, x, a.attr, weight, *a.tables(which), *a.gate(which), needs)
    return parts.product.backward(g, x, a.attr, weight, *a.tables(which), needs)


def _first(parts, a: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """cat(h_i, h_j, extra) [E, 2 D + X], the first product's message and pre-activation."""
    ends = [parts.segments.backward(a.h, *a[start:start + 3]) for start in (10, 7)]
    row = torch.cat(ends if a.extra is None else [*ends, a.extra], 1)
    return row, *_product(parts, a, 0, row)


def compose(segments, product) -> SimpleNamespace:
    """forward and backward from a backend of segment_sum and one of tensor_product."""
    parts = SimpleNamespace(segments=segments, product=product)

    def forward(*arguments) -> Tensor:
        """Arguments -> [N, D_out]: the sum over the edges that end in each node."""
        a = Arguments(*arguments)
        return segments.forward(_product(parts, a, 1, _first(parts, a)[1])[0], *a[10:13])

    def backward(g, *arguments) -> tuple[Tensor, ...]:
        """g [N, D_out], Arguments, needs -> gradients of h, extra, attr, weight1, bias1, weight2, bias2.

        Those that `needs` leaves out are empty [0].
        """
        *arguments, (h, extra, attr, weight1, bias1, weight2, bias2) = arguments
        a, d = Arguments(*arguments), arguments[0].shape[1]
        row, m1, pre1 = _first(parts, a)
        pre2 = _product(parts, a, 1, m1)[1]
        first = h or extra or attr or weight1 or bias1
        g_m2 = segments.backward(g, *a[10:13])
        g_m1, g_attr, *two = _product_backward(parts, a, 1, g_m2, pre2, m1, (first, attr, weight2, bias2))
        if not first:
            return *(g.new_zeros(0) for _ in range(5)), *two
        needs = (h or extra, attr, weight1, bias1)
        g_row, g_attr1, *one = _product_backward(parts, a, 0, g_m1, pre1, row, needs)
        g_h = g_extra = g.new_zeros(0)
        if h:
            g_h = segments.forward(g_row[:, :d], *a[10:13]) + segments.forward(g_row[:, d:2 * d], *a[7:10])
        if extra:
            g_extra = g_row[:, 2 * d:].clone(memory_format=torch.contiguous_format)
        return g_h, g_extra, g_attr + g_attr1, *one, *two

    return SimpleNamespace(forward=forward, backward=backward)


_plain = compose(segments, product)
forward, backward = _plain.forward, _plain.backward
