"""Spectral norms in batches against torch's parametrization, one by one."""

import copy

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm

from ace_fast.nn import affine_chain, spectral_weights


def maps(double=True):
    """Two shapes, in turn, and one map without a norm."""
    torch.manual_seed(3)
    shapes = [(3, 8), (8, 5), (3, 8), (8, 5), (3, 8)]
    made = [spectral_norm(torch.nn.Linear(*s), n_power_iterations=2) for s in shapes] + [torch.nn.Linear(4, 4)]
    return [m.double() for m in made] if double else made


def buffers(linears):
    return [b for m in linears for b in m.buffers()]


@pytest.mark.parametrize("training", [True, False])
def test_equals_reading_each_weight(training):
    ours = [m.train(training) for m in maps()]
    theirs = copy.deepcopy(ours)
    for _ in range(2):  # the second starts from the vectors of the first
        found, expected = spectral_weights(ours), [m.weight for m in theirs]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(buffers(ours), buffers(theirs), rtol=1e-12, atol=1e-13)
    for weights in (found, expected):
        sum((w * torch.arange(w.numel()).view_as(w)).sum().sin() for w in weights).backward()
    for a, b in zip(ours, theirs, strict=True):
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            if "bias" not in name:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_maps_with_other_parametrizations_are_read():
    doubled = maps(False)[0]
    torch.nn.utils.parametrize.register_parametrization(doubled, "weight", Twice())
    other = copy.deepcopy(doubled)
    torch.testing.assert_close(spectral_weights([doubled])[0], other.weight)
    assert spectral_weights([]) == []


class Twice(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_chain_takes_weights_that_are_formed():
    first, linears = torch.nn.Linear(4, 8), [spectral_norm(torch.nn.Linear(8, 8)) for _ in range(2)]
    blocks, x = [(torch.nn.BatchNorm1d(8), linear) for linear in linears], torch.randn(6, 4)
    other = copy.deepcopy(blocks)
    found = affine_chain(x, first, blocks, weights=spectral_weights(linears))
    torch.testing.assert_close(found.weights, affine_chain(x, first, other).weights)
    with pytest.raises(ValueError, match=r"affine_chain: weights must be 2 matrices, one for each block, got 1"):
        affine_chain(x, first, blocks, weights=found.weights[:1])
