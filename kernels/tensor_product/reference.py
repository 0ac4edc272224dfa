"""The tensor product, its gate and their derivatives in plain PyTorch, close to the formula."""

import math

import torch
from torch import Tensor

from ..multilinear import second_derivative
from .table import MODES, Path, unpack, weight_shape, with_weight


def _dense(path: Path, cg_index: Tensor, cg_value: Tensor, like: Tensor) -> Tensor:
    """The path's coefficients as [d1, d2, d3]."""
    i, j, k = cg_index[path.start:path.stop].unbind(1)
    c = torch.zeros(path.d1, path.d2, path.d3, dtype=torch.float64, device=like.device)
    return c.index_put((i, j, k), cg_value[path.start:path.stop]).to(like.dtype)


# Subscripts of in1, in2, weight and out for each mode; z stands before the weight's where every row has its own.
_SUBSCRIPTS = {
    "uvw": ("zui", "zvj", "uvw", "zwk"), "uvu": ("zui", "zvj", "uv", "zuk"), "uvv": ("zui", "zvj", "uv", "zvk"),
    "uuw": ("zui", "zuj", "uw", "zwk"), "uuu": ("zui", "zuj", "u", "zuk"), "uvuv": ("zui", "zvj", "uv", "zuvk"),
    "uvu<v": ("zpi", "zpj", "p", "zpk"), "u<vw": ("zpi", "zpj", "pw", "zwk"),
}


def _slice(x: Tensor, offset: int, mul: int, d: int, ir_mul: int) -> Tensor:
    """One irrep's columns as [Z, mul, d]."""
    x = x[:, offset:offset + mul * d]
    return x.unflatten(1, (d, mul)).mT if ir_mul else x.unflatten(1, (mul, d))


def _columns(y: Tensor, ir_mul: int) -> Tensor:
    """[Z, mul, d] as columns, the inverse of `_slice`."""
    return (y.mT if ir_mul else y).flatten(1)


def _add(out: Tensor, offset: int, y: Tensor) -> Tensor:
    """out with y added to the columns from `offset` on."""
    return out + torch.nn.functional.pad(y, (offset, out.shape[-1] - offset - y.shape[-1]))


def _pairs(path: Path, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """The channels u < v of the modes that take each pair once."""
    return torch.triu_indices(path.U, path.U, 1, device=device).unbind() if "<" in MODES[path.mode] else None


def _block(path: Path, weight: Tensor) -> Tensor:
    """The path's weights, [Z] before their shape where every row has its own; ones where it has none."""
    shape = weight_shape(path)
    if path.weight < 0:
        return weight.new_ones(shape)
    return weight[..., path.weight:path.weight + math.prod(shape)].reshape(*weight.shape[:-1], *shape)


def _operands(path: Path, x1: Tensor, x2: Tensor, weight: Tensor, ir_mul: int) -> tuple:
    """The path's in1, in2 and weights, and the subscripts of in1, in2, weights and out."""
    a, b = _slice(x1, path.o1, path.U, path.d1, ir_mul), _slice(x2, path.o2, path.V, path.d2, ir_mul)
    if pairs := _pairs(path, x1.device):
        a, b = a[:, pairs[0]], b[:, pairs[1]]
    m = _block(path, weight)
    s1, s2, sw, so = _SUBSCRIPTS[MODES[path.mode]]
    return a, b, m, (s1, s2, "z" + sw if m.dim() > len(sw) else sw, so)


def _spread(path: Path, slot: int, mul: int, y: Tensor) -> Tensor:
    """Gradient [Z, mul, d] of an input from that of what `_operands` took of it."""
    pairs = _pairs(path, y.device)
    return y if pairs is None else y.new_zeros(y.shape[0], mul, y.shape[2]).index_add(1, pairs[slot], y)


def forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots) -> Tensor:
    """x1 [Z, dim1], x2 [Z, dim2], weight [n] or [Z, n], bias [b] or None -> [Z, dim_out]."""
    z, ir_mul = x1.shape[0], dims[3]
    out = x1.new_zeros(z, dims[2])
    for path in unpack(paths):
        a, b, m, (s1, s2, sw, so) = _operands(path, x1, x2, weight, ir_mul)
        y = torch.einsum(f"{s1},{s2},ijk,{sw}->{so}", a, b, _dense(path, cg_index, cg_value, x1), m)
        out = _add(out, path.o3, _columns(y.reshape(z, path.W, path.d3), ir_mul))
    start = 0
    for offset, length in zip(bias_slots[::2], bias_slots[1::2], strict=True):
        if bias is not None:
            out = _add(out, offset, bias[start:start + length].expand(z, length))
        start += length
    return out


def backward(g, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, needs) -> tuple[Tensor, ...]:
    """g [Z, dim_out] -> gradients of (x1, x2, weight, bias); those not in `needs` are empty [0]."""
    ir_mul = dims[3]
    g_x1, g_x2, g_weight = torch.zeros_like(x1), torch.zeros_like(x2), torch.zeros_like(weight)
    for path in unpack(paths):
        a, b, m, (s1, s2, sw, so) = _operands(path, x1, x2, weight, ir_mul)
        c = _dense(path, cg_index, cg_value, g)
        gy = _slice(g, path.o3, path.W, path.d3, ir_mul)
        if so == "zuvk":
            gy = gy.unflatten(1, (path.U, path.V))
        if needs[0]:
            y = _spread(path, 0, path.U, torch.einsum(f"{so},{s2},ijk,{sw}->{s1}", gy, b, c, m))
            g_x1 = _add(g_x1, path.o1, _columns(y, ir_mul))
        if needs[1]:
            y = _spread(path, 1, path.V, torch.einsum(f"{so},{s1},ijk,{sw}->{s2}", gy, a, c, m))
            g_x2 = _add(g_x2, path.o2, _columns(y, ir_mul))
        if needs[2] and path.weight >= 0:
            y = torch.einsum(f"{so},{s1},{s2},ijk->{sw}", gy, a, b, c)
            g_weight = _add(g_weight, path.weight, y.flatten(weight.dim() - 1))
    slots = zip(bias_slots[::2], bias_slots[1::2], strict=True)
    g_bias = torch.cat([g.new_zeros(0), *(g[:, o:o + n].sum(0) for o, n in slots)])
    found = (g_x1, g_x2, g_weight, g_bias)
    return tuple(x if need else g.new_zeros(0) for x, need in zip(found, needs, strict=True))


def second(g, x1, x2, weight, gg_x1, gg_x2, gg_weight, cg_index, cg_value, dims, paths, bias_slots, needs,
           product=forward, gradients=backward) -> tuple[Tensor, ...]:
    """Gradients of sum <gg, gradient> with respect to (g, x1, x2, weight); gg are None where there are none.

    The product is multilinear: a sum of products and gradients, of any backend, with one operand replaced.
    """

    def tables(slot):  # what has no weight is constant in the weights
        return cg_index, cg_value, dims, with_weight(paths) if slot == 2 else paths, bias_slots

    found = second_derivative(
        (x1, x2, weight), (gg_x1, gg_x2, gg_weight), needs,
        lambda slot, x: product(*x, None, *tables(slot)),
        lambda slot, x, wanted: gradients(g, *x, *tables(slot), [*wanted, False])[:3],
    )
    return tuple(x.new_zeros(x.shape if need else 0) if y is None else y
                 for x, y, need in zip((g, x1, x2, weight), found, needs, strict=True))


def gate(pre: Tensor, layout, scalar_gain: float, gate_gain: float, ir_mul: int = 0) -> Tensor:
    """e3nn's Gate: [SiLU(scalars) c1, sigmoid(gates) c2 * gated], pre [Z, scalars + gates + gated]."""
    scalars, gates = layout[:2]
    out = [torch.nn.functional.silu(pre[:, :scalars]) * scalar_gain]
    s = torch.sigmoid(pre[:, scalars:scalars + gates]) * gate_gain
    i, o = 0, scalars + gates
    for mul, d in zip(layout[2::2], layout[3::2], strict=True):
        out.append(_columns(_slice(pre, o, mul, d, ir_mul) * s[:, i:i + mul, None], ir_mul))
        i, o = i + mul, o + mul * d
    return torch.cat(out, 1)


def gate_backward(g: Tensor, pre: Tensor, layout, scalar_gain: float, gate_gain: float, ir_mul: int = 0) -> Tensor:
    """Gradient of `gate` with respect to pre, by its formula."""
    scalars, gates = layout[:2]
    x = pre[:, :scalars]
    s = torch.sigmoid(x)
    g_scalars = g[:, :scalars] * scalar_gain * s * (1 + x * (1 - s))
    s = torch.sigmoid(pre[:, scalars:scalars + gates])
    g_gates, g_gated = [], []
    i, o, p = 0, scalars + gates, scalars
    for mul, d in zip(layout[2::2], layout[3::2], strict=True):
        gy, y = _slice(g, p, mul, d, ir_mul), _slice(pre, o, mul, d, ir_mul)
        t = s[:, i:i + mul]
        g_gates.append((gy * y).sum(2) * gate_gain * t * (1 - t))
        g_gated.append(_columns(gy * t[:, :, None] * gate_gain, ir_mul))
        i, o, p = i + mul, o + mul * d, p + mul * d
    return torch.cat([g_scalars, *g_gates, *g_gated], 1)


def gated_forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots, layout, scalar_gain,
                  gate_gain) -> tuple[Tensor, Tensor]:
    """The product followed by the gate: (out, pre-activation)."""
    pre = forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots)
    return gate(pre, layout, scalar_gain, gate_gain, dims[3]), pre


def gated_backward(g, pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, layout, scalar_gain, gate_gain,
                   needs) -> tuple[Tensor, ...]:
    """Gradients of `gated_forward`'s first output with respect to (x1, x2, weight, bias)."""
    g_pre = gate_backward(g, pre, layout, scalar_gain, gate_gain, dims[3])
    return backward(g_pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, needs)


def _activation(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative of a nonlinearity (table.py, ACTIVATIONS)."""
    if name == "tanh":
        y = torch.tanh(x)
        return y, 1 - y * y
    if name == "relu":
        return torch.relu(x), (x > 0).to(x.dtype)
    s = torch.sigmoid(x)
    return (s, s * (1 - s)) if name == "sigmoid" else (x * s, s * (1 + x * (1 - s)))


def _norms(pre: Tensor, bias: Tensor | None, layout, epsilon: float, ir_mul: int):
    """For each slice: x [Z, mul, d], which norms are free (not clamped), the norms n, n + bias."""
    o = c = 0
    for mul, d in zip(layout[::2], layout[1::2], strict=True):
        x = _slice(pre, o, mul, d, ir_mul)
        square = x.square().sum(2)
        free = square >= epsilon**2
        n = torch.where(free, square, epsilon**2).sqrt()
        yield x, free, n, n if bias is None else n + bias[c:c + mul]
        o, c = o + mul * d, c + mul


def norm_activation(pre: Tensor, norm_bias: Tensor | None, layout, activation: str, epsilon: float,
                    ir_mul: int = 0) -> Tensor:
    """e3nn's NormActivation: f(n + bias) x / n with the clamped norm n of each channel x; pre [Z, dim]."""
    out = [pre[:, :0]]
    for x, _, n, shifted in _norms(pre, norm_bias, layout, epsilon, ir_mul):
        out.append(_columns(x * (_activation(activation, shifted)[0] / n)[:, :, None], ir_mul))
    return torch.cat(out, 1)


def norm_activation_backward(g: Tensor, pre: Tensor, norm_bias: Tensor | None, layout, activation: str,
                             epsilon: float, ir_mul: int = 0) -> tuple[Tensor, Tensor]:
    """Gradients of `norm_activation` with respect to pre and bias (empty without one), by its formula."""
    g_pre, g_bias, o = [pre[:, :0]], [pre.new_zeros(0)], 0
    for x, free, n, shifted in _norms(pre, norm_bias, layout, epsilon, ir_mul):
        gy = _slice(g, o, *x.shape[1:], ir_mul)
        f, slope = _activation(activation, shifted)
        along = (gy * x).sum(2) / n
        radial = torch.where(free, (slope - f / n) * along / n, 0)
        g_pre.append(_columns(gy * (f / n)[:, :, None] + x * radial[:, :, None], ir_mul))
        g_bias.append((slope * along).sum(0))
        o += x.shape[1] * x.shape[2]
    return torch.cat(g_pre, 1), torch.cat(g_bias) if norm_bias is not None else pre.new_zeros(0)


def normed_forward(x1, x2, weight, bias, norm_bias, cg_index, cg_value, dims, paths, bias_slots, layout, activation,
                   epsilon) -> tuple[Tensor, Tensor]:
    """The product followed by the activation of norms: (out, pre-activation)."""
    pre = forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots)
    return norm_activation(pre, norm_bias, layout, activation, epsilon, dims[3]), pre


def normed_backward(g, pre, x1, x2, weight, norm_bias, cg_index, cg_value, dims, paths, bias_slots, layout, activation,
                    epsilon, needs) -> tuple[Tensor, ...]:
    """Gradients of `normed_forward`'s first output with respect to (x1, x2, weight, bias, norm_bias)."""
    g_pre, g_norm = norm_activation_backward(g, pre, norm_bias, layout, activation, epsilon, dims[3])
    found = backward(g_pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, needs[:4])
    return *found, g_norm if needs[4] else g.new_zeros(0)
