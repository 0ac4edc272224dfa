"""Plain PyTorch of sphere_activation: the formulas of README.md, with everything of grid size in memory."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sphere_product.reference import components, joined

FUNCTIONS = {
    "none": lambda u: u,
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,  # u itself above 20
}
ACTIVATIONS = tuple(FUNCTIONS)


def derivatives(act: str, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f(u), f'(u) and f''(u)."""
    if act == "none":
        return u, torch.ones_like(u), torch.zeros_like(u)
    if act == "relu":
        return u.relu(), (u > 0).to(u.dtype), torch.zeros_like(u)
    if act == "tanh":
        t = u.tanh()
        return t, 1 - t * t, -2 * t * (1 - t * t)
    if act == "gelu":
        normal = 0.5 * (1 + torch.erf(u * 0.5**0.5))
        density = 0.3989422804014327 * torch.exp(-0.5 * u * u)
        return u * normal, normal + u * density, density * (2 - u * u)
    s = u.sigmoid()
    slope = s * (1 - s)
    if act == "sigmoid":
        return s, slope, slope * (1 - 2 * s)
    if act == "softplus":
        return F.softplus(u), torch.where(u > 20, 1.0, s), torch.where(u > 20, 0.0, slope)
    return u * s, s + u * slope, slope * (2 + u * (1 - 2 * s))


def values(x: Tensor, table: Tensor, ir_mul: bool) -> Tensor:
    """Values [Z, S, C] at the points of rows [Z, d C], by the table [S, d]."""
    return torch.einsum("si,zic->zsc", table.to(x.dtype), components(x, table.shape[1], ir_mul))


def coefficients(u: Tensor, table: Tensor, ir_mul: bool) -> Tensor:
    """The adjoint of `values`: [Z, S, C] -> [Z, d C]."""
    return joined(torch.einsum("si,zsc->zic", table.to(u.dtype), u), ir_mul)


def _wide(*tensors: Tensor | None) -> list[Tensor | None]:
    """In float32 where they are bfloat16."""
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def forward(x, x2, gate, into, back, ring, ir_mul, act) -> Tensor:
    """x, x2 [Z, d C], gate [Z, C], into [S, d], back [S, e] -> [Z, e C]."""
    dtype = x.dtype
    x, x2, gate = _wide(x, x2, gate)
    u = FUNCTIONS[act](values(x, into, ir_mul))
    if x2 is not None:
        u = u * values(x2, into, ir_mul)
    if gate is not None:
        u = u * gate[:, None]
    return coefficients(u, back, ir_mul).to(dtype)


def _made(found, needs, dtype: torch.dtype, like: Tensor) -> tuple[Tensor, ...]:
    """The gradients that are needed, rounded once."""
    return tuple((make() if need else like.new_zeros(0)).to(dtype) for make, need in zip(found, needs, strict=True))


def backward(g, x, x2, gate, into, back, ring, ir_mul, act, needs) -> tuple[Tensor, ...]:
    """g [Z, e C] -> gradients of (x, x2, gate), empty where not needed."""
    dtype = x.dtype
    g, x, x2, gate = _wide(g, x, x2, gate)
    w = values(g, back, ir_mul)
    f, slope, _ = derivatives(act, values(x, into, ir_mul))
    v = torch.ones_like(w) if x2 is None else values(x2, into, ir_mul)
    h = torch.ones_like(w[:, :1]) if gate is None else gate[:, None]
    found = (lambda: coefficients(slope * v * w * h, into, ir_mul), lambda: coefficients(f * w * h, into, ir_mul),
             lambda: (f * v * w).sum(1))
    return _made(found, needs, dtype, g)


def second(c_x, c_x2, c_gate, g, x, x2, gate, into, back, ring, ir_mul, act, needs) -> tuple[Tensor, ...]:
    """Gradients of <c_x, g_x> + <c_x2, g_x2> + <c_gate, g_gate> with respect to (g, x, x2, gate)."""
    dtype = x.dtype
    c_x, c_x2, c_gate, g, x, x2, gate = _wide(c_x, c_x2, c_gate, g, x, x2, gate)
    w = values(g, back, ir_mul)
    f, slope, curve = derivatives(act, values(x, into, ir_mul))
    v = torch.ones_like(w) if x2 is None else values(x2, into, ir_mul)
    h = torch.ones_like(w[:, :1]) if gate is None else gate[:, None]
    p, q = (torch.zeros_like(w) if c is None else values(c, into, ir_mul) for c in (c_x, c_x2))
    r = torch.zeros_like(w[:, :1]) if c_gate is None else c_gate[:, None]
    t = p * slope * v + q * f
    found = (lambda: coefficients(h * t + r * f * v, back, ir_mul),
             lambda: coefficients(w * (h * (p * curve * v + q * slope) + r * slope * v), into, ir_mul),
             lambda: coefficients(w * (h * p * slope + r * f), into, ir_mul),
             lambda: (w * t).sum(1))
    return _made(found, needs, dtype, g)
