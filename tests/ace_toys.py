"""Models and loops for the tests of ACE."""

import torch
from torch import nn


class Toy(nn.Module):
    """n gammas beside a weight; the tests write the gammas' gradients, or a loss of the gammas alone, by hand."""

    def __init__(self, n=1, start=1.0, dtype=torch.float64):
        super().__init__()
        self.gammas = nn.ParameterList(nn.Parameter(torch.tensor(start, dtype=dtype)) for _ in range(n))
        self.weight = nn.Parameter(torch.ones(3, dtype=dtype))


def run(ace, model, gradient, steps):
    """`steps` steps under dJ/dgamma = gradient(gammas); the gammas, multipliers and slacks before each, [steps, n]."""
    rows = []
    for _ in range(steps):
        gammas = ace.gammas
        rows.append(torch.stack([gammas, ace.multipliers, ace.slacks]))
        for gamma, g in zip(model.gammas, gradient(gammas), strict=True):
            gamma.grad = g.clone()
        ace.step()
    return torch.stack(rows).unbind(1)


class Net(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.base = nn.Linear(4, 3, dtype=dtype)
        self.lin_noneq1 = nn.Sequential(nn.Linear(4, 5, dtype=dtype), nn.GELU(), nn.Linear(5, 3, dtype=dtype))
        self.block = nn.Module()
        self.block.gamma = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x, relaxed=True):
        return self.base(x) + self.block.gamma * self.lin_noneq1(x) if relaxed else self.base(x)


def train(model, ace, optimizer, steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 4, generator=g, dtype=torch.float64)
        optimizer.zero_grad()
        model(x.to(model.base.weight)).square().mean().backward()
        optimizer.step()
        ace.step()
