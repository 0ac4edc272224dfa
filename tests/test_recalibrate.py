"""Batch-norm statistics recomputed for the strict model."""

from types import SimpleNamespace

import pytest
import torch

from ace_fast.models import SEGNN, VNDGCNN, nbody_graph
from ace_fast.nn import BatchNorm
from ace_fast.relaxation import recalibrate


def model_of():
    return VNDGCNN(5, 4, dropout=0.0, relaxed=True)


def clouds(count=3, points=12):
    return torch.randn(count, 3, points)


def test_statistics_are_the_strict_models():
    """The statistics are those of the strict model, averaged over the batches; nothing else changes."""
    torch.set_default_dtype(torch.float64)
    model = model_of()
    model.dp1.p = 0.5
    batches = [clouds(), clouds(), clouds()]
    model(batches[0])
    model.conv1.batchnorm.bn.momentum = None
    model.bn1.eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    flags = [m.training for m in model.modules()]
    assert recalibrate(model, [(x,) for x in batches[:1]] + batches[1:]) == 3
    assert flags == [m.training for m in model.modules()] and model.conv1.relaxed and model.relaxed
    assert model.conv1.batchnorm.bn.momentum is None and model.conv2.batchnorm.bn.momentum == 0.1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    want = model_of()
    want.load_state_dict(model.state_dict())
    want.set_equivariance(False)
    for m in want.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.reset_running_stats()
            m.momentum = None
    for x in batches:
        want(x)
    for (name, got), (_, value) in zip(model.named_buffers(), want.named_buffers(), strict=True):
        assert (got - value).abs().max() <= 1e-9 * value.abs().max(), name


def test_segnn_with_e3nns_batch_norm():
    torch.set_default_dtype(torch.float64)
    attributes = "1x0e+1x1o"
    model = SEGNN("2x1o+1x0e", "4x0e+3x1o", "1x1o", attributes, attributes, 1, "batch", "avg", "node", "2x0e",
                  relaxed=True)
    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    batches = [nbody_graph(SimpleNamespace(pos=torch.randn(4, 3), vel=torch.randn(4, 3), charges=torch.ones(4, 1),
                                           edge_index=edges, batch=torch.zeros(4).long())) for _ in range(3)]
    recalibrate(model, batches)
    assert model.layers[0].disable_equivariance
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    found = [[b.clone() for b in norm.buffers()] for norm in norms]
    model.set_equivariance(False)
    totals = [[torch.zeros_like(b) for b in norm.buffers()] for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    for graph in batches:
        model(graph)
        for norm, sums in zip(norms, totals, strict=True):
            for total, b in zip(sums, norm.buffers(), strict=True):
                total += b / 3
    assert len(norms) == 2
    assert all((a - b).abs().max() <= 1e-12 for x, y in zip(found, totals, strict=True)
               for a, b in zip(x, y, strict=True))


def test_recalibrate_refuses():
    model = model_of()
    before = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.raises(ValueError, match="recalibrate: batches must hold at least one batch, got none"):
        recalibrate(model, [])
    with pytest.raises(ValueError, match=r"VNDGCNN: x must be \[B, 3, N\]"):
        recalibrate(model, [clouds(), torch.zeros(3)])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert model.training and model.conv1.relaxed and model.bn1.momentum == 0.1
    with pytest.raises(ValueError, match="recalibrate: model must have batch norms with running statistics"):
        recalibrate(torch.nn.Linear(1, 1), [torch.zeros(1, 1)])
