"""Other libraries' products: the same numbers as e3nn, and reasons where they cannot run."""

import importlib.util

import pytest
import torch
from e3nn import o3

import ace_fast
from ace_fast.nn import peers

needs_cuequivariance = pytest.mark.skipif(importlib.util.find_spec("cuequivariance_torch") is None,
                                          reason="cuequivariance_torch is not installed")
PRODUCTS = {
    "uvw": ("4x0e+3x1o+2x1e", "2x0e+1o", "5x0e+3x1o", [(0, 0, 0, "uvw", True), (1, 0, 1, "uvw", True),
                                                       (1, 1, 0, "uvw", True)]),
    "uvu": ("6x0e+4x1o", "0e+1o", "6x0e+4x0e+6x1o", [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True),
                                                     (0, 1, 2, "uvu", True)]),
    "uvv": ("4x1o", "3x0e", "3x1o", [(0, 0, 0, "uvv", True)]),
    "uuw": ("4x1o", "4x0e", "5x1o", [(0, 0, 0, "uuw", True)]),
    "uuu": ("4x1o", "4x1e", "4x1o", [(0, 0, 0, "uuu", True)]),
    "uvuv": ("4x1o", "3x1o", "12x0e", [(0, 0, 0, "uvuv", True)]),
    "mixed": ("4x0e", "4x1o", "4x1o+4x1o+5x1o", [(0, 0, 0, "uuu", False), (0, 0, 1, "uvu", True),
                                                 (0, 0, 2, "uvw", True)]),
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield torch.Generator().manual_seed(0)
    torch.set_default_dtype(torch.float32)


def product(name: str, shared: bool, **options) -> ace_fast.nn.TensorProduct:
    return ace_fast.nn.TensorProduct(*PRODUCTS[name], shared_weights=shared, internal_weights=False, **options)


@needs_cuequivariance
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", PRODUCTS)
def test_cuequivariance_equals_e3nn(name, shared, double):
    like = o3.TensorProduct(*PRODUCTS[name], shared_weights=shared, internal_weights=False)
    rows = () if shared else (7,)
    shapes = ((7, like.irreps_in1.dim), (7, like.irreps_in2.dim), (*rows, like.weight_numel))
    given = [torch.randn(shape, generator=double, requires_grad=True) for shape in shapes]
    gold, mine = like(*given), product(name, shared, backend="cuequivariance")(*given)
    torch.testing.assert_close(mine, gold, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(gold.shape, generator=double)
    grads = (torch.autograd.grad(out, given, cotangent) for out in (mine, gold))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def convolved(peer, table, x1, x2, weight, source, target, n):
    """The peer's convolution of tensors in e3nn's layout."""
    slices = [[(mul, ir.dim) for mul, ir in irreps] for irreps in table.irreps]
    x1, x2 = (peers.transpose(x, s, peer.layout) for x, s in zip((x1, x2), slices, strict=False))
    out = peer.convolution(x1, x2, peer.to_theirs(weight), source, target, n)
    return peers.transpose(out, slices[2], "mul_ir")


@needs_cuequivariance
@pytest.mark.parametrize("name", ["uvu", "mixed"])
def test_cuequivariance_sums_at_the_targets(name, double):
    like = product(name, False)
    peer = peers.adapter("cuequivariance", like.table, False, torch.float64, "cpu", convolution=True)
    source, target = torch.tensor([0, 2, 1, 0, 2]), torch.tensor([0, 0, 1, 3, 3])
    x1 = torch.randn(3, like.irreps_in1.dim, generator=double)
    x2 = torch.randn(5, like.irreps_in2.dim, generator=double)
    weight = torch.randn(5, like.weight_numel, generator=double)
    plain = o3.TensorProduct(*PRODUCTS[name], shared_weights=False, internal_weights=False)
    gold = torch.zeros(4, like.irreps_out.dim).index_add(0, target, plain(x1[source], x2, weight))
    torch.testing.assert_close(convolved(peer, like.table, x1, x2, weight, source, target, 4), gold, rtol=1e-12,
                               atol=1e-12)


@needs_cuequivariance
def test_channels_are_cut_into_pieces_of_one_extent(double):
    """What its fastest kernel asks for; the numbers are checked with its plain implementation of the cut product."""
    import cuequivariance_torch as cuet

    like = product("uvu", False)
    cut = peers._uniform(peers._polynomial(like.table, "uvu", peers.unpack(like.table.paths)))
    assert {s for operand in cut.operands for s in operand.segments} == {(), (2,)}
    peer = peers.adapter("cuequivariance", like.table, False, torch.float64, "cpu")
    assert peer.methods == ["naive"]
    x1 = torch.randn(7, like.irreps_in1.dim, generator=double)
    x2 = torch.randn(7, like.irreps_in2.dim, generator=double)
    weight = torch.randn(7, like.weight_numel, generator=double)
    mine, = cuet.SegmentedPolynomial(cut, method="naive")([weight, x1, x2])
    torch.testing.assert_close(mine, peer.product(x1, x2, weight), rtol=1e-12, atol=1e-12)
    matrices = product("uvw", True).table
    assert peers._uniform(peers._polynomial(matrices, "uvw", peers.unpack(matrices.paths))) is None


def test_reasons(monkeypatch):
    like = product("uvu", False)
    needs_gpu = "backend 'openequivariance' is not available: it takes CUDA tensors, not cpu"
    with pytest.raises(ValueError, match=needs_gpu):
        peers.adapter("openequivariance", like.table, False, torch.float32, "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="backend 'cuequivariance' is not available: cuequivariance_torch is not inst"):
        peers.adapter("cuequivariance", like.table, False, torch.float32, "cpu")
    assert peers.why_not("openequivariance", torch.device("cuda")) == "openequivariance is not installed"


@needs_cuequivariance
def test_what_a_peer_does_not_have():
    pairs = ace_fast.nn.TensorProduct("4x1o", "4x1o", "6x1e", [(0, 0, 0, "uvu<v", True)], backend="cuequivariance")
    with pytest.raises(ValueError, match="backend 'cuequivariance' does not take mode 'uvu<v'; use backend='auto'"):
        pairs(torch.ones(2, 12), torch.ones(2, 12))
