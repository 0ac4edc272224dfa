"""Vector-neuron edge convolution in plain PyTorch: here, and only here, the edge tensors exist."""

import torch
from torch import Tensor

from ..vn_linear.reference import EPS, activate, activate_backward, affine, affine_backward, moments, norm, unit, wide


def edges(p: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """p [B, N, 3, 2C] (neighbour part | centre part) -> p_j + q_i [B, N, K, 3, C], and which neighbours exist.

    A neighbour outside 0..N-1 is none: its edge has norm 0 in the statistics and adds nothing to what is pooled.
    """
    first, centre = p.chunk(2, -1)
    real = (neighbours >= 0) & (neighbours < p.shape[1])  # [B, N, K]
    cloud = torch.arange(p.shape[0], device=p.device)[:, None, None]
    gathered = first[cloud, torch.where(real, neighbours, 0)]  # [B, N, K, 3, C]
    return gathered + centre.unsqueeze(2), real


def scatter(g: Tensor, neighbours: Tensor, real: Tensor) -> Tensor:
    """The adjoint of `edges`: g [B, N, K, 3, C] -> [B, N, 3, 2C]."""
    g = g * real[..., None, None]
    B, N = neighbours.shape[:2]
    target = torch.where(real, neighbours, 0) + N * torch.arange(B, device=g.device)[:, None, None]
    first = g.new_zeros(B * N, *g.shape[-2:]).index_add(0, target.flatten(), g.flatten(0, 2))
    return torch.cat([first.unflatten(0, (B, N)), g.sum(2)], -1)


def stats(p, neighbours) -> tuple[Tensor, Tensor]:
    """p [B, N, 3, 2C], neighbours [B, N, K] -> mean and biased variance [C] of |p_j + q_i| + 1e-6 over all edges."""
    e, real = edges(wide(p), neighbours)
    return moments(torch.where(real.unsqueeze(-1), norm(e) + EPS, 0.0).flatten(0, 2))


def stats_backward(g_mean, g_var, p, neighbours, mean) -> Tensor:
    """-> the gradient of p [B, N, 3, 2C]."""
    e, real = edges(wide(p), neighbours)
    g_r = (g_mean + 2 * g_var * (norm(e) + EPS - mean)) / max(neighbours.numel(), 1)  # [B, N, K, C]
    return scatter(g_r.unsqueeze(-2) * unit(e), neighbours, real).to(p.dtype)


def forward(p, d, neighbours, mean, var, weight, bias, selected, eps, slope) -> Tensor:
    """p [B, N, 3, 2C], d [B, N, 3, 2C or 2], vectors [C], selected [B, N, C] or None (mean) -> [B, N, 3, C]."""
    e, real = edges(wide(p), neighbours)
    out = activate(e, edges(wide(d), neighbours)[0], *affine(mean, var, weight, bias, eps), slope)
    return pool(out * real[..., None, None], selected).to(p.dtype).contiguous()


def pool(out: Tensor, selected: Tensor | None) -> Tensor:
    """[B, N, K, 3, C] -> [B, N, 3, C]: the mean over neighbours, or each channel's selected one."""
    if selected is None:
        return out.sum(2) / max(out.shape[2], 1)
    index = selected[:, :, None, None].expand(-1, -1, 1, 3, -1)
    return out.gather(2, index).squeeze(2)


def backward(g, p, d, neighbours, mean, var, weight, bias, selected, eps, slope, needs) -> tuple[Tensor, ...]:
    """g [B, N, 3, C] -> gradients of (p, d, mean, var, weight, bias); those not in `needs` are empty [0]."""
    (e, real), direction = edges(wide(p), neighbours), edges(wide(d), neighbours)[0]
    a, b = affine(mean, var, weight, bias, eps)
    K = neighbours.shape[2]
    if selected is None:
        g_e = (wide(g) / max(K, 1)).unsqueeze(2).expand(-1, -1, K, -1, -1)
    else:
        here = selected.unsqueeze(2) == torch.arange(K, device=g.device)[None, None, :, None]  # [B, N, K, C]
        g_e = wide(g).unsqueeze(2) * here.unsqueeze(3)
    g_p, g_d, g_a, g_b = activate_backward(g_e * real[..., None, None], e, direction, a, b, slope)
    rest = affine_backward(g_a.sum((0, 1, 2)), g_b.sum((0, 1, 2)), mean, var, weight, eps)
    found = (scatter(g_p, neighbours, real).to(p.dtype), scatter(g_d, neighbours, real).to(d.dtype), *rest)
    return tuple(x if need else g.new_zeros(0) for x, need in zip(found, needs, strict=True))


def select(p, d, neighbours, mean, var, weight, bias, pool_weight, eps, slope) -> Tensor:
    """VNMaxPool's choice: per node and channel the neighbour of the largest <o, pool_weight o>, the first of equals.

    A neighbour that does not exist is never chosen before one that does. -> int64 [B, N, C] in 0..K-1.
    """
    e, real = edges(wide(p), neighbours)
    out = activate(e, edges(wide(d), neighbours)[0], *affine(mean, var, weight, bias, eps), slope)
    score = (out * (out @ pool_weight.t())).sum(-2)  # [B, N, K, C]
    return torch.where(real.unsqueeze(-1), score, -torch.inf).argmax(2)
