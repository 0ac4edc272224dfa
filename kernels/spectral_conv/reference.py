"""The inverse transform of W times the transform along time, by real cosines and sines, and its derivatives."""

import math

import torch
from torch import Tensor


def waves(times: int, modes: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """cos and sin [M, T] of 2 pi m t / T, and the share [M, 1] of each mode in a real signal: 1/T or 2/T."""
    mode = torch.arange(modes, device=like.device)[:, None]
    turn = mode * torch.arange(times, device=like.device) % times  # [M, T]
    angle = turn.double() * (2 * math.pi / times)
    real = 2 * mode % times == 0  # mode 0 and T/2: the sine vanishes
    sin = torch.where(real, 0.0, torch.sin(angle))
    share = (2 - real.double()) / times
    return torch.cos(angle).to(like), sin.to(like), share.to(like)


def analyse(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part [M, N, C] of sum_t x [T, N, C] exp(-2 pi i m t / T)."""
    return torch.einsum("mt,tnc->mnc", cos, x), -torch.einsum("mt,tnc->mnc", sin, x)


def synthesise(p: Tensor, q: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[T, N, C] of sum_m Re((p + i q) [M, N, C] exp(2 pi i m t / T))."""
    return torch.einsum("mt,mnc->tnc", cos, p) - torch.einsum("mt,mnc->tnc", sin, q)


def multiply(p: Tensor, q: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(p + i q) (u + i v) for p, q [M, N, A] and u, v [M, A, B], in parts."""
    return p @ u - q @ v, p @ v + q @ u


def parts(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part [M, I, O] of the weight [I, O, M, 2]."""
    return tuple(w.permute(2, 0, 1) for w in weight.unbind(3))


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, N, I], weight [I, O, M, 2] -> [T, N, O]."""
    cos, sin, share = waves(x.shape[0], weight.shape[2], x)
    p, q = multiply(*analyse(x, cos, sin), *parts(weight))
    return synthesise(p, q, share * cos, share * sin).contiguous()


def backward(g: Tensor, x: Tensor, weight: Tensor, needs) -> tuple[Tensor, Tensor]:
    """g [T, N, O] -> gradients of (x, weight); those not in `needs` are empty [0]."""
    cos, sin, share = waves(x.shape[0], weight.shape[2], x)
    u, v = parts(weight)
    gp, gq = analyse(g, share * cos, share * sin)  # [M, N, O], with respect to the parts of a mode of the result
    found = [g.new_zeros(0), g.new_zeros(0)]
    if needs[0]:
        found[0] = synthesise(*multiply(gp, gq, u.mT, -v.mT), cos, sin).contiguous()
    if needs[1]:
        p, q = analyse(x, cos, sin)
        g_u, g_v = multiply(p.mT, -q.mT, gp, gq)
        found[1] = torch.stack([g_u, g_v], 3).permute(1, 2, 0, 3).contiguous()
    return tuple(found)


def time_forward(x: Tensor, weight: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """x + leaky_relu(convolution) [T, N, C], and where the convolution is positive (bool)."""
    h = forward(x, weight)
    return (x + torch.nn.functional.leaky_relu(h, slope)).contiguous(), h > 0


def time_backward(g: Tensor, positive: Tensor, x: Tensor, weight: Tensor, slope: float, needs) -> tuple[Tensor, Tensor]:
    """g [T, N, C] -> gradients of (x, weight); those not in `needs` are empty [0]."""
    g_x, g_weight = backward(scale(g, positive, slope), x, weight, needs)
    return (g + g_x).contiguous() if needs[0] else g_x, g_weight


def scale(g: Tensor, positive: Tensor, slope: float) -> Tensor:
    """The derivative of the leaky ReLU times g."""
    return torch.where(positive, g, g * slope)
