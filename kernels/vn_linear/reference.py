"""Vector-neuron layers on rows in plain PyTorch: linear with relaxation, statistics of norms, norm and leaky ReLU."""

import torch
from torch import Tensor

EPS = 1e-6  # vnn's: added to norms and to squared norms of directions


def columns(t: Tensor | None, inner: int, edge: bool) -> Tensor | None:
    """A map of an edge feature [x_j - x_i ; x_i] as one of x: first what x_j is multiplied with, then what x_i is."""
    if t is None or not edge:
        return t
    difference, centre = t[:, : t.shape[1] // 2], t[:, t.shape[1] // 2:]
    o = t.shape[0] // inner
    parts = difference.reshape(o, inner, -1), (centre - difference).reshape(o, inner, -1)
    return torch.cat(parts).reshape(2 * t.shape[0], -1)


def forward(x, weight, dense, bias, gamma, offset, edge) -> Tensor:
    """x [R, 3, C], weight [O, C] or [O, 2C], dense [3O, 3C] or [3O, 6C], bias [3O], offset [G, 3, O or 2O]."""
    y = x @ columns(weight, 1, edge).t()  # [R, 3, O]
    if dense is not None:
        vec = x.transpose(1, 2).flatten(1)  # [R, 3C], xyz of a channel side by side
        free = vec @ columns(dense, 3, edge).t()  # [R, 3O]
        if bias is not None:  # of an edge, so with its centre
            free = free + (torch.cat([torch.zeros_like(bias), bias]) if edge else bias)
        free = free.unflatten(1, (-1, 3)).transpose(1, 2)  # [R, 3, O]
        y = y + (free if gamma is None else gamma * free)
    if offset is not None:
        y = (y.unflatten(0, (offset.shape[0], -1)) + offset[:, None]).flatten(0, 1) if x.shape[0] else y
    return y.contiguous()


def _columns_grad(g: Tensor, inner: int, edge: bool) -> Tensor:
    """The adjoint of `columns`."""
    if not edge:
        return g
    neighbour, centre = g.unflatten(0, (-1, inner)).chunk(2)
    neighbour, centre = neighbour.flatten(0, 1), centre.flatten(0, 1)
    return torch.cat([neighbour - centre, centre], 1)


def backward(g, x, weight, dense, bias, gamma, edge, needs) -> tuple[Tensor, ...]:
    """g [R, 3, O or 2O] -> gradients of (x, weight, dense, bias, gamma); those not in `needs` are empty [0]."""
    found = [g.new_zeros(0)] * 5
    scale = (lambda t: t) if gamma is None else gamma.mul
    if needs[0]:
        found[0] = g @ columns(weight, 1, edge)
    if needs[1]:
        found[1] = _columns_grad(g.flatten(0, 1).t() @ x.flatten(0, 1), 1, edge)
    if dense is None:
        return tuple(found)
    vec, flat = x.transpose(1, 2).flatten(1), g.transpose(1, 2).flatten(1)  # [R, 3C], [R, 3O]
    if needs[0]:
        found[0] = found[0] + scale((flat @ columns(dense, 3, edge)).unflatten(1, (-1, 3)).transpose(1, 2))
    d_dense = _columns_grad(flat.t() @ vec, 3, edge) if needs[2] or needs[4] else None
    d_bias = flat.sum(0).chunk(2)[1] if edge else flat.sum(0)
    if needs[2]:
        found[2] = scale(d_dense)
    if needs[3]:
        found[3] = scale(d_bias)
    if needs[4]:
        found[4] = (d_dense * dense).sum() + (0 if bias is None else (d_bias * bias).sum())
    return tuple(found)


def norm(p: Tensor) -> Tensor:
    """[..., 3, C] -> [..., C]; its derivatives at zero are zero."""
    square = p.square().sum(-2)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def unit(p: Tensor) -> Tensor:
    """p / |p|; at zero it and its derivatives are zero."""
    n = norm(p).unsqueeze(-2)
    return torch.where(n == 0, 0.0, p / torch.where(n == 0, 1.0, n))


def moments(r: Tensor) -> tuple[Tensor, Tensor]:
    """r [n, C] -> mean [C] and biased variance [C]; zeros where n is 0."""
    count = max(r.shape[0], 1)
    mean = r.sum(0) / count
    return mean, (r - mean).square().sum(0) / count


def stats(p) -> tuple[Tensor, Tensor]:
    """p [R, 3, C] -> mean and biased variance [C] of |p| + 1e-6; of bfloat16 in float32."""
    return moments(norm(wide(p)) + EPS)


def stats_backward(g_mean, g_var, p, mean) -> Tensor:
    """-> the gradient of p [R, 3, C]."""
    r = norm(wide(p)) + EPS
    g_r = (g_mean + 2 * g_var * (r - mean)) / max(p.shape[0], 1)  # [R, C]
    return (g_r.unsqueeze(1) * unit(wide(p))).to(p.dtype)


def wide(x: Tensor | None) -> Tensor | None:
    """bfloat16 as float32, all else as it is."""
    return x.float() if x is not None and x.dtype == torch.bfloat16 else x


def affine(mean, var, weight, bias, eps) -> tuple[Tensor, Tensor]:
    """Batch norm of a norm r as (a, b): r -> a r + b."""
    a = weight * torch.rsqrt(var + eps)
    return a, bias - mean * a


def affine_backward(g_a, g_b, mean, var, weight, eps) -> tuple[Tensor, ...]:
    """Gradients of (mean, var, weight, bias) from those of (a, b)."""
    inverse = torch.rsqrt(var + eps)
    g_scale = g_a - mean * g_b
    return -weight * inverse * g_b, -0.5 * weight * inverse**3 * g_scale, inverse * g_scale, g_b


def activate(p, d, a, b, slope) -> Tensor:
    """p [..., 3, C], d [..., 3, C or 1] or None, a and b [C] or None: batch norm of |p|, then the vector leaky ReLU."""
    q = p if a is None else (a + b / (norm(p) + EPS)).unsqueeze(-2) * p
    if d is None:
        return q
    dot = (q * d).sum(-2, keepdim=True)
    square = d.square().sum(-2, keepdim=True) + EPS
    return torch.where(dot >= 0, q, q - (1 - slope) * dot / square * d)


def activate_backward(g, p, d, a, b, slope) -> tuple[Tensor | None, ...]:
    """-> per-row gradients of p and d (that of a shared d is summed over channels) and the per-row terms of a and b."""
    n = norm(p)
    s = 1.0 if a is None else (a + b / (n + EPS)).unsqueeze(-2)  # [..., 1, C]
    q, g_q, g_d = s * p, g, None
    if d is not None:
        dot = (q * d).sum(-2, keepdim=True)
        square = d.square().sum(-2, keepdim=True) + EPS
        along = (1 - slope) * (g * d).sum(-2, keepdim=True) / square  # of g, to be removed
        kept = dot >= 0
        g_q = torch.where(kept, g, g - along * d)
        pull = -(1 - slope) * dot / square * g - along * q + 2 * along * dot / square * d
        g_d = torch.where(kept, 0.0, pull)
        g_d = g_d if d.shape[-1] == p.shape[-1] else g_d.sum(-1, keepdim=True)
    if a is None:
        return g_q, g_d, None, None
    g_s = (g_q * p).sum(-2)  # [..., C]
    r = n + EPS
    return s * g_q + (-g_s * b / r.square()).unsqueeze(-2) * unit(p), g_d, g_s, g_s / r


def leaky_relu(p, d, mean, var, weight, bias, eps, slope) -> Tensor:
    """p [R, 3, C], d [R, 3, C or 1] or None, mean, var, weight, bias [C] or None (no batch norm) -> [R, 3, C]."""
    a, b = (None, None) if mean is None else affine(mean, var, weight, bias, eps)
    return activate(wide(p), wide(d), a, b, slope).to(p.dtype).contiguous()


def leaky_relu_backward(g, p, d, mean, var, weight, bias, eps, slope, needs) -> tuple[Tensor, ...]:
    """-> gradients of (p, d, mean, var, weight, bias); those not in `needs` are empty [0]."""
    a, b = (None, None) if mean is None else affine(mean, var, weight, bias, eps)
    g_p, g_d, g_a, g_b = activate_backward(wide(g), wide(p), wide(d), a, b, slope)
    rest = (None,) * 4 if mean is None else affine_backward(g_a.sum(0), g_b.sum(0), mean, var, weight, eps)
    found = (g_p.to(p.dtype), None if g_d is None else g_d.to(d.dtype), *rest)
    return tuple(x if need else g.new_zeros(0) for x, need in zip(found, needs, strict=True))
