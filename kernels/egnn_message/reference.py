"""The message of an EGNN layer in plain PyTorch, close to the formula: here, and only here, all edge tensors exist."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..segment_sum import reference as segments


class Arguments(NamedTuple):
    """What the operator takes, in its order, without `keep` and `backend`."""

    x: Tensor  # [N, D]
    h: Tensor  # [N, F]
    edge: Tensor | None  # [E, A]
    weight1: Tensor  # [H, 1 + 2F + A], columns |r|^2, h_i, h_j, edge
    bias1: Tensor  # [H]
    weight2: Tensor  # [M, H]
    bias2: Tensor  # [M]
    weight3: Tensor  # [C, M]
    bias3: Tensor  # [C]
    weight4: Tensor  # [1, C]
    bias4: Tensor | None  # [1]
    source_index: Tensor  # [E]
    source_order: Tensor  # [E]
    source_ptr: Tensor  # [N + 1]
    target_index: Tensor  # [E]
    target_order: Tensor  # [E]
    target_ptr: Tensor  # [N + 1]
    mean: bool

    @property
    def sources(self) -> tuple[Tensor, ...]:
        return self[11:14]

    @property
    def targets(self) -> tuple[Tensor, ...]:
        return self[14:17]


class Edges(NamedTuple):
    """What an edge j -> i computes; `row` is the input of the edge network."""

    r: Tensor  # [E, D], x_i - x_j
    row: Tensor  # [E, 1 + 2F + A]
    pre1: Tensor  # [E, H]
    pre2: Tensor  # [E, M]
    pre3: Tensor  # [E, C]
    w: Tensor  # [E, 1]


def edges(a: Arguments) -> Edges:
    """All of it; an index outside 0..N-1 counts as a row of zeros."""
    ends = [(segments.backward(a.x, *s), segments.backward(a.h, *s)) for s in (a.targets, a.sources)]
    r = ends[0][0] - ends[1][0]
    parts = [r.square().sum(1, keepdim=True), ends[0][1], ends[1][1]]
    row = torch.cat(parts if a.edge is None else [*parts, a.edge], 1)
    pre1 = F.linear(row, a.weight1, a.bias1)
    pre2 = F.linear(F.silu(pre1), a.weight2, a.bias2)
    pre3 = F.linear(F.silu(pre2), a.weight3, a.bias3)
    return Edges(r, row, pre1, pre2, pre3, F.linear(F.silu(pre3), a.weight4, a.bias4))


def count(a: Arguments) -> Tensor | float:
    """[N, 1], what the coordinates' sum is divided by."""
    return (a.target_ptr[1:] - a.target_ptr[:-1]).clamp(min=1)[:, None].to(a.x.dtype) if a.mean else 1.0


def node_products(a: Arguments) -> Tensor:
    """h -> [N, 2H], what the first layer takes from a target (with the bias) and from a source."""
    width = a.h.shape[1]
    target, source = a.weight1[:, 1:1 + width], a.weight1[:, 1 + width:1 + 2 * width]
    return torch.cat([F.linear(a.h, target, a.bias1), F.linear(a.h, source)], 1)


def forward(*arguments) -> tuple[Tensor, ...]:
    """Arguments, keep -> coordinates [N, D], features [N, M], and what the gradient can use again, no derivatives.

    That is the nodes' products [N, 2H] and the edges' pre-activations [E, M], [E, C]; empty [0] without `keep`.
    """
    *arguments, keep = arguments
    a = Arguments(*arguments)
    e = edges(a)
    coordinates = segments.forward(e.r * e.w, *a.targets) / count(a)
    kept = (node_products(a), e.pre2, e.pre3) if keep else (a.x.new_zeros(0) for _ in range(3))
    return coordinates, segments.forward(F.silu(e.pre2), *a.targets), *(x.detach().contiguous() for x in kept)


def _silu_grad(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def backward(g_coordinates, g_features, *arguments) -> tuple[Tensor, ...]:
    """g [N, D] and [N, M], Arguments, three kept tensors (not used), needs -> gradients of x, ..., bias4.

    Those that `needs` leaves out are empty [0].
    """
    *arguments, _, _, _, needs = arguments
    a = Arguments(*arguments)
    e, width = edges(a), a.h.shape[1]
    m1, m2, m3 = (F.silu(x) for x in (e.pre1, e.pre2, e.pre3))
    g_f = segments.backward(g_coordinates / count(a), *a.targets)  # [E, D]
    g_w = (g_f * e.r).sum(1, keepdim=True)  # [E, 1]
    g_3 = g_w * a.weight4 * _silu_grad(e.pre3)  # [E, C]
    g_2 = (g_3 @ a.weight3 + segments.backward(g_features, *a.targets)) * _silu_grad(e.pre2)  # [E, M]
    g_1 = (g_2 @ a.weight2) * _silu_grad(e.pre1)  # [E, H]
    # An edge that ends nowhere adds to nothing.
    g_row = g_1 @ a.weight1
    g_r = g_f * e.w + 2 * g_row[:, :1] * e.r
    found = (
        lambda: segments.forward(g_r, *a.targets) - segments.forward(g_r, *a.sources),
        lambda: (segments.forward(g_row[:, 1:1 + width], *a.targets)
                 + segments.forward(g_row[:, 1 + width:1 + 2 * width], *a.sources)),
        lambda: g_row[:, 1 + 2 * width:].clone(memory_format=torch.contiguous_format),
        lambda: g_1.t() @ e.row, lambda: g_1.sum(0), lambda: g_2.t() @ m1, lambda: g_2.sum(0),
        lambda: g_3.t() @ m2, lambda: g_3.sum(0), lambda: g_w.t() @ m3, lambda: g_w.sum(0),
    )
    return tuple(gradient() if need else a.x.new_zeros(0) for gradient, need in zip(found, needs, strict=True))
