"""Continuous-filter convolutions in plain PyTorch: here, and only here, the filters of all edges exist."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from .basis import activate, activate_slopes, radial, radial_derivatives, radial_slope

GRAPH = 6  # neighbour, ptr, back, back_ptr, chunks, symmetric


class _Edges(NamedTuple):
    i: Tensor  # [E] targets
    j: Tensor  # [E] sources
    real: Tensor  # [E] bool: the source is a node


def _edges(neighbour: Tensor, ptr: Tensor) -> _Edges:
    nodes = ptr.shape[0] - 1
    node = torch.arange(nodes, device=ptr.device)
    target = torch.repeat_interleave(node, ptr[1:] - ptr[:-1], output_size=neighbour.shape[0])
    real = (neighbour >= 0) & (neighbour < nodes)
    return _Edges(target, torch.where(real, neighbour, 0), real)


class _Distances(NamedTuple):
    d: Tensor  # [E]; between coincident nodes 0, with derivatives 0
    unit: Tensor  # [E, 3] (r_i - r_j) / d, there 0
    inverse: Tensor  # [E, 1] 1 / d, there 0


def _distances(pos: Tensor, edges: _Edges) -> _Distances:
    r = pos.index_select(0, edges.i) - pos.index_select(0, edges.j)
    square = r.square().sum(-1)
    same = square == 0
    d = torch.where(same, 0.0, torch.where(same, 1.0, square).sqrt())
    inverse = torch.where(same, 0.0, 1 / torch.where(same, 1.0, d))[:, None]
    return _Distances(d, r * inverse, inverse)


def _cutoff(edges: _Edges, d: Tensor, cutoff: float) -> tuple[Tensor, ...]:
    """[E] of the cutoff function and its two derivatives; zero for edges that count nothing. NaN stays."""
    within, w = edges.real & ~(d >= cutoff), math.pi / cutoff
    sine, cosine = torch.sin(d * w), torch.cos(d * w)
    return tuple(torch.where(within, c, 0.0) for c in (0.5 * (cosine + 1), -0.5 * w * sine, -0.5 * w * w * cosine))


def _convolve(x: Tensor, edges: _Edges, d: Tensor, filters: Tensor, cutoff: float) -> Tensor:
    """y [N, F]: the sum over the edges to i of c(d) S(d) x_j."""
    c = torch.where(edges.real & ~(d >= cutoff), 0.5 * (torch.cos(d * (math.pi / cutoff)) + 1), 0.0)
    return _sum(x, edges.i, filters * c[:, None] * x.index_select(0, edges.j))


def _sum(like: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    return torch.zeros_like(like, memory_format=torch.contiguous_format).index_add(0, index, rows)


def network_forward(x, pos, weight1, bias1, weight2, bias2, centre, scale, neighbour, ptr, back, back_ptr, chunks,
                    symmetric, basis, activation, alpha, cutoff) -> Tensor:
    """x [N, F], pos [N, 3] -> [N, F] with the filter network Linear -> activation -> Linear of a radial basis."""
    edges = _edges(neighbour, ptr)
    d = _distances(pos, edges).d
    hidden = activate(activation, radial(basis, alpha, centre, scale, d) @ weight1.T + bias1)
    return _convolve(x, edges, d, hidden @ weight2.T + bias2, cutoff)


def _network_jets(d, t, weight1, bias1, weight2, bias2, centre, scale, basis, activation, alpha, cutoff):
    """S [E, F] and its change S_t where d changes at the rate t (None: no change), and how their gradients go back."""
    value, slope = radial_slope(basis, alpha, centre, scale, d)
    before = value @ weight1.T + bias1
    y, (y1, y2) = activate(activation, before), activate_slopes(activation, before)
    moved = torch.zeros_like(value) if t is None else t[:, None] * slope
    change = moved @ weight1.T
    y_t = y1 * change

    def back(g_S, g_t):
        """-> gradients of d and t, and of the parameters; g_t None: S_t is not used."""
        g_t = torch.zeros_like(g_S) if g_t is None else g_t
        b2, bp, b1p, bq, b1q = radial_derivatives(basis, alpha, centre, scale, d)
        rate = torch.zeros_like(d)[:, None] if t is None else t[:, None]
        g_change = y1 * (g_t @ weight2)
        g_before = y1 * (g_S @ weight2) + y2 * change * (g_t @ weight2)
        g_value, g_moved = g_before @ weight1, g_change @ weight1
        parameters = (g_before.T @ value + g_change.T @ moved, g_before.sum(0), g_S.T @ y + g_t.T @ y_t, g_S.sum(0),
                      (g_value * bp + rate * g_moved * b1p).sum(0), (g_value * bq + rate * g_moved * b1q).sum(0))
        return (g_value * slope + rate * g_moved * b2).sum(1), (g_moved * slope).sum(1), parameters

    return y @ weight2.T + bias2, y_t @ weight2.T, back


def _taps(d: Tensor, knots: int, cutoff: float) -> tuple[Tensor, list[Tensor]]:
    """Rows [E, 4] of table [2 K, F] around each distance, and their weights in S, S' and S''."""
    step = cutoff / (knots - 1)
    knot = torch.nan_to_num(d.detach() / step).long().clamp(0, knots - 2)
    s = d / step - knot
    u = 1 - s
    weights = (
        ((1 + 2 * s) * u * u, s * u * u * step, s * s * (3 - 2 * s), -s * s * u * step),
        (-6 * s * u / step, u * (1 - 3 * s), 6 * s * u / step, s * (3 * s - 2)),
        ((12 * s - 6) / step**2, (6 * s - 4) / step, (6 - 12 * s) / step**2, (6 * s - 2) / step),
    )
    return 2 * knot[:, None] + torch.arange(4, device=d.device), [torch.stack(w, 1) for w in weights]


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """[E, 4, F]"""
    return table.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (-1, 4))


def _spline_jets(d, t, table, cutoff):
    """As `_network_jets`, of cubic Hermite splines."""
    knots, _, channels = table.shape
    rows, weights = _taps(d, knots, cutoff)
    at = _rows(table, rows)
    S, slope, bend = ((w[:, :, None] * at).sum(1) for w in weights)
    rate = torch.zeros_like(d)[:, None] if t is None else t[:, None]

    def back(g_S, g_t):
        g_t = torch.zeros_like(g_S) if g_t is None else g_t
        shares = weights[0][:, :, None] * g_S[:, None] + (rate * weights[1])[:, :, None] * g_t[:, None]
        g_table = table.new_zeros(2 * knots, channels).index_add(0, rows.flatten(), shares.flatten(0, 1))
        return (slope * g_S + rate * bend * g_t).sum(1), (slope * g_t).sum(1), (g_table.view(knots, 2, channels),)

    return S, rate * slope, back


def spline_forward(x, pos, table, neighbour, ptr, back, back_ptr, chunks, symmetric, cutoff) -> Tensor:
    """x [N, F], pos [N, 3] -> [N, F] with filters by cubic Hermite interpolation of table [K, 2, F]."""
    edges = _edges(neighbour, ptr)
    d = _distances(pos, edges).d
    rows, weights = _taps(d, table.shape[0], cutoff)
    return _convolve(x, edges, d, (weights[0][:, :, None] * _rows(table, rows)).sum(1), cutoff)


def _complete(forward, jets, parameters: int) -> SimpleNamespace:
    """`forward` with its gradient and the gradient of that."""

    def split(arguments):
        *arguments, needs = arguments
        x, pos, *rest = arguments
        of_filter, graph, constants = rest[:parameters], rest[parameters:parameters + GRAPH], rest[parameters + GRAPH:]
        edges = _edges(*graph[:2])
        return x, pos, of_filter, constants, needs, edges, _distances(pos, edges)

    def chosen(found, needs) -> tuple[Tensor, ...]:
        return tuple(y.contiguous() if need else y.new_empty(0) for y, need in zip(found, needs, strict=True))

    def backward(g, *arguments) -> tuple[Tensor, ...]:
        """g [N, F] -> gradients of x, pos and the parameters."""
        x, pos, of_filter, constants, needs, edges, (d, unit, _) = split(arguments)
        c, c1, _ = _cutoff(edges, d, constants[-1])
        S, _, back = jets(d, None, *of_filter, *constants)
        g_i = g.index_select(0, edges.i)
        m = x.index_select(0, edges.j) * g_i
        g_d, _, g_filter = back(c[:, None] * m, None)
        g_r = (g_d + c1 * (S * m).sum(1))[:, None] * unit
        g_x = _sum(x, edges.j, c[:, None] * S * g_i)
        return chosen((g_x, _sum(pos, edges.i, g_r) - _sum(pos, edges.j, g_r), *g_filter), needs)

    def second(c_x, c_pos, g, *arguments) -> tuple[Tensor, ...]:
        """Cotangents of the gradients of x and pos -> gradients of g, x, pos and the parameters."""
        x, pos, of_filter, constants, needs, edges, (d, unit, inverse) = split(arguments)
        i, j, _ = edges
        c, c1, c2 = _cutoff(edges, d, constants[-1])
        step = c_pos.index_select(0, i) - c_pos.index_select(0, j)
        t = (step * unit).sum(1)
        S, S_t, back = jets(d, t, *of_filter, *constants)
        x_j, c_j, g_i = x.index_select(0, j), c_x.index_select(0, j), g.index_select(0, i)
        m, m_c = x_j * g_i, c_j * g_i
        W, W_t = c[:, None] * S, c[:, None] * S_t + (t * c1)[:, None] * S
        g_d, g_t, g_filter = back(c[:, None] * m_c + (t * c1)[:, None] * m, c[:, None] * m)
        g_d = g_d + c1 * (S * m_c + S_t * m).sum(1) + t * c2 * (S * m).sum(1)
        g_t = g_t + c1 * (S * m).sum(1)
        g_r = g_d[:, None] * unit + g_t[:, None] * (step - t[:, None] * unit) * inverse
        return chosen((_sum(g, i, W * c_j + W_t * x_j), _sum(x, j, W_t * g_i),
                       _sum(pos, i, g_r) - _sum(pos, j, g_r), *g_filter), needs)

    return SimpleNamespace(forward=forward, backward=backward, second=second)


network = _complete(network_forward, _network_jets, 6)
spline = _complete(spline_forward, _spline_jets, 1)
