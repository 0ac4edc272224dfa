"""The tensor product, its gate and their derivatives in plain PyTorch, close to the formula."""

import torch
from torch import Tensor

from .table import Path, unpack


def _dense(path: Path, cg_index: Tensor, cg_value: Tensor, like: Tensor) -> Tensor:
    """The path's coefficients as [d1, d2, d3]."""
    i, j, k = cg_index[path.start:path.stop].unbind(1)
    c = torch.zeros(path.d1, path.d2, path.d3, dtype=torch.float64, device=like.device)
    return c.index_put((i, j, k), cg_value[path.start:path.stop]).to(like.dtype)


def _views(path: Path, x1: Tensor, x2: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = x1.shape[0]
    u, v, w = path.U, path.V, path.W
    return (
        x1[:, path.o1:path.o1 + u * path.d1].reshape(z, u, path.d1),  # [Z, U, i]
        x2[:, path.o2:path.o2 + v * path.d2].reshape(z, v, path.d2),  # [Z, V, j]
        weight[path.weight:path.weight + u * v * w].reshape(u, v, w),  # [U, V, W]
    )


def forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots) -> Tensor:
    """x1 [Z, dim1], x2 [Z, dim2], weight [n], bias [b] or None -> [Z, dim_out]."""
    z = x1.shape[0]
    out = x1.new_zeros(z, dims[2])
    for path in unpack(paths):
        a, b, m = _views(path, x1, x2, weight)
        c = _dense(path, cg_index, cg_value, x1)
        y = torch.einsum("zui,zvj,ijk,uvw->zwk", a, b, c, m).flatten(1)
        out = _add(out, path.o3, y)
    start = 0
    for offset, length in zip(bias_slots[::2], bias_slots[1::2], strict=True):
        if bias is not None:
            out = _add(out, offset, bias[start:start + length].expand(z, length))
        start += length
    return out


def _add(out: Tensor, offset: int, y: Tensor) -> Tensor:
    """out with y added to the columns from `offset` on."""
    return out + torch.nn.functional.pad(y, (offset, out.shape[1] - offset - y.shape[1]))


def backward(g, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, needs) -> tuple[Tensor, ...]:
    """g [Z, dim_out] -> gradients of (x1, x2, weight, bias); those not in `needs` are empty [0]."""
    z = g.shape[0]
    g_x1, g_x2, g_weight = torch.zeros_like(x1), torch.zeros_like(x2), torch.zeros_like(weight)
    for path in unpack(paths):
        a, b, m = _views(path, x1, x2, weight)
        c = _dense(path, cg_index, cg_value, g)
        gy = g[:, path.o3:path.o3 + path.W * path.d3].reshape(z, path.W, path.d3)  # [Z, W, k]
        if needs[0]:
            g_x1 = _add(g_x1, path.o1, torch.einsum("zwk,zvj,ijk,uvw->zui", gy, b, c, m).flatten(1))
        if needs[1]:
            g_x2 = _add(g_x2, path.o2, torch.einsum("zwk,zui,ijk,uvw->zvj", gy, a, c, m).flatten(1))
        if needs[2]:
            y = torch.einsum("zwk,zui,zvj,ijk->uvw", gy, a, b, c).reshape(1, -1)
            g_weight = _add(g_weight[None], path.weight, y)[0]
    slots = zip(bias_slots[::2], bias_slots[1::2], strict=True)
    g_bias = torch.cat([g.new_zeros(0), *(g[:, o:o + n].sum(0) for o, n in slots)])
    found = (g_x1, g_x2, g_weight, g_bias)
    return tuple(x if need else g.new_zeros(0) for x, need in zip(found, needs, strict=True))


def gate(pre: Tensor, layout, scalar_gain: float, gate_gain: float) -> Tensor:
    """e3nn's Gate: [SiLU(scalars) c1, sigmoid(gates) c2 * gated], pre [Z, scalars + gates + gated]."""
    z, (scalars, gates) = pre.shape[0], layout[:2]
    out = [torch.nn.functional.silu(pre[:, :scalars]) * scalar_gain]
    s = torch.sigmoid(pre[:, scalars:scalars + gates]) * gate_gain
    i, o = 0, scalars + gates
    for mul, d in zip(layout[2::2], layout[3::2], strict=True):
        y = pre[:, o:o + mul * d].reshape(z, mul, d) * s[:, i:i + mul, None]
        out.append(y.flatten(1))
        i, o = i + mul, o + mul * d
    return torch.cat(out, 1)


def gate_backward(g: Tensor, pre: Tensor, layout, scalar_gain: float, gate_gain: float) -> Tensor:
    """Gradient of `gate` with respect to pre, by its formula."""
    z, (scalars, gates) = pre.shape[0], layout[:2]
    x = pre[:, :scalars]
    s = torch.sigmoid(x)
    g_scalars = g[:, :scalars] * scalar_gain * s * (1 + x * (1 - s))
    s = torch.sigmoid(pre[:, scalars:scalars + gates])
    g_gates, g_gated = [], []
    i, o, p = 0, scalars + gates, scalars
    for mul, d in zip(layout[2::2], layout[3::2], strict=True):
        gy = g[:, p:p + mul * d].reshape(z, mul, d)
        y = pre[:, o:o + mul * d].reshape(z, mul, d)
        t = s[:, i:i + mul]
        g_gates.append((gy * y).sum(2) * gate_gain * t * (1 - t))
        g_gated.append((gy * t[:, :, None] * gate_gain).flatten(1))
        i, o, p = i + mul, o + mul * d, p + mul * d
    return torch.cat([g_scalars, *g_gates, *g_gated], 1)


def gated_forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots, layout, scalar_gain,
                  gate_gain) -> tuple[Tensor, Tensor]:
    """The product followed by the gate: (out, pre-activation)."""
    pre = forward(x1, x2, weight, bias, cg_index, cg_value, dims, paths, bias_slots)
    return gate(pre, layout, scalar_gain, gate_gain), pre


def gated_backward(g, pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, layout, scalar_gain, gate_gain,
                   needs) -> tuple[Tensor, ...]:
    """Gradients of `gated_forward`'s first output with respect to (x1, x2, weight, bias)."""
    g_pre = gate_backward(g, pre, layout, scalar_gain, gate_gain)
    return backward(g_pre, x1, x2, weight, cg_index, cg_value, dims, paths, bias_slots, needs)
