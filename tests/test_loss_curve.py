"""Training with the fast kernels is training with the reference: the same losses, step after step."""

import pytest
import torch

from ace_fast import ACE
from ace_fast.bench.eager import EagerSEGNN
from ace_fast.bench.nbody_segnn import load
from ace_fast.models import SEGNN

ATTRIBUTES, HIDDEN = "1x0e+1x1o", "16x0e+16x1o"


def curve(kind: type, dtype: torch.dtype, steps: int = 50) -> torch.Tensor:
    """Losses of `steps` steps of Adam and ACE (damped, bounded) on one batch of 20 simulated systems, [steps]."""
    torch.set_default_dtype(dtype)
    data = load("batch20", "cpu", dtype)
    model = kind("2x1o+1x0e", HIDDEN, "1x1o", ATTRIBUTES, ATTRIBUTES, 3, None, "avg", "node", "2x0e", relaxed=True)
    drawn = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, p in sorted(model.named_parameters()):
            p.copy_(0.1 * torch.randn(p.shape, generator=drawn, dtype=torch.float64))
    ace = ACE(model, lr=5e-3, dual_lr=5e-3, augmentation=1.0, bound="spectral")
    optimizer = torch.optim.Adam(ace.primal_parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (data.graph.pos + model(data.graph) - data.target).square().mean()
        loss.backward()
        optimizer.step()
        ace.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


@pytest.fixture(scope="module")
def gold() -> torch.Tensor:
    return curve(EagerSEGNN, torch.float64)


def test_it_learns(gold):
    assert gold[-1] < 0.5 * gold[0]


def test_same_curve_in_float64(gold):
    mine = curve(SEGNN, torch.float64)
    assert ((mine - gold).abs() <= 1e-8 * gold).all()


def test_same_curve_in_float32_up_to_its_noise(gold):
    noise = (curve(EagerSEGNN, torch.float32) - gold).abs().cummax(0).values
    mine = (curve(SEGNN, torch.float32) - gold).abs()
    assert (mine <= 4 * noise + 16 * torch.finfo(torch.float32).eps * gold).all()
