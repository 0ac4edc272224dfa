"""y = base + gamma (act(x) weight^T + bias) + residual and its derivatives in plain PyTorch."""

import math

import torch
from torch import Tensor


def act(x: Tensor, activation: str) -> Tensor:
    return torch.nn.functional.gelu(x) if activation == "gelu" else x


def act_grad(x: Tensor, activation: str) -> Tensor:
    """The derivative of GELU x Phi(x) is Phi(x) + x phi(x)."""
    if activation == "none":
        return torch.ones_like(x)
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def forward(x, weight, bias, gamma, base, residual, activation) -> Tensor:
    """x [N, I], weight [O, I], bias [O] or None, gamma [] or None, base and residual [N, O] or None -> [N, O]."""
    y = torch.nn.functional.linear(act(x, activation), weight, bias)
    for value, join in ((gamma, torch.mul), (base, torch.add), (residual, torch.add)):
        if value is not None:
            y = join(y, value)
    return y


def backward(g, x, weight, bias, gamma, activation, needs) -> tuple[Tensor, ...]:
    """g [N, O] -> gradients of (x, weight, bias, gamma); those not in `needs` are empty [0]."""
    found = [g.new_zeros(0)] * 4
    scale = (lambda t: t) if gamma is None else gamma.mul
    if needs[0]:
        g_x = scale(g @ weight)
        found[0] = g_x if activation == "none" else g_x * act_grad(x, activation)
    d_matrix = g.t() @ act(x, activation) if needs[1] or needs[3] else None  # [O, I]
    d_bias = g.sum(0)  # [O]
    if needs[1]:
        found[1] = scale(d_matrix)
    if needs[2]:
        found[2] = scale(d_bias)
    if needs[3]:
        found[3] = (d_matrix * weight).sum()
        if bias is not None:
            found[3] = found[3] + (d_bias * bias).sum()
    return tuple(found)
