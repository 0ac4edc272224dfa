"""Other libraries' products: the same numbers as e3nn, and reasons where they cannot run."""

import importlib.util

import pytest
import torch
from e3nn import o3

from ace_fast import peers

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
}


def product(name: str, shared: bool) -> o3.TensorProduct:
    return o3.TensorProduct(*PRODUCTS[name], shared_weights=shared, internal_weights=False).double()


def build(like: o3.TensorProduct, **options) -> peers.Peer:
    irreps = (like.irreps_in1, like.irreps_in2, like.irreps_out)
    return peers.build("cuequivariance", irreps, like.instructions, like.shared_weights, dtype=torch.float64, **options)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield torch.Generator().manual_seed(0)
    torch.set_default_dtype(torch.float32)


@needs_cuequivariance
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", PRODUCTS)
def test_cuequivariance_equals_e3nn(name, shared, double):
    like = product(name, shared)
    rows = () if shared else (7,)
    shapes = {"x1": (7, like.irreps_in1.dim), "x2": (7, like.irreps_in2.dim), "weight": (*rows, like.weight_numel)}
    given = {n: torch.randn(shape, generator=double, requires_grad=True) for n, shape in shapes.items()}
    peer = build(like)
    gold = like(*given.values())
    mine = peer.e3nn("out", peer.call(*(peer.native(n, x) for n, x in given.items())))
    torch.testing.assert_close(mine, gold, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(gold.shape, generator=double)
    grads = (torch.autograd.grad(out, list(given.values()), cotangent) for out in (mine, gold))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@needs_cuequivariance
def test_cuequivariance_sums_at_the_targets(double):
    like = product("uvu", False)
    peer = build(like, convolution=True)
    source, target = torch.tensor([0, 2, 1, 0, 2]), torch.tensor([0, 0, 1, 3, 3])
    x1 = torch.randn(3, like.irreps_in1.dim, generator=double)
    x2 = torch.randn(5, like.irreps_in2.dim, generator=double)
    weight = torch.randn(5, like.weight_numel, generator=double)
    gold = torch.zeros(4, like.irreps_out.dim).index_add(0, target, like(x1[source], x2, weight))
    mine = peer.call(peer.native("x1", x1), peer.native("x2", x2), weight, source, target, 4)
    torch.testing.assert_close(peer.e3nn("out", mine), gold, rtol=1e-12, atol=1e-12)


@needs_cuequivariance
def test_channels_are_cut_into_pieces_of_one_extent(double, monkeypatch):
    """What its fastest kernel asks for; the numbers are checked with its plain implementation of the cut product."""
    monkeypatch.setattr(peers, "_method", lambda device, mode: "uniform_1d")
    kept = []
    cut = peers._uniform
    monkeypatch.setattr(peers, "_uniform", lambda polynomial: kept.append(cut(polynomial)) or kept[-1])
    like = product("uvu", False)
    peer = build(like)
    assert {s for operand in kept[0].operands for s in operand.segments} == {(), (2,)}
    x1 = torch.randn(7, like.irreps_in1.dim, generator=double)
    x2 = torch.randn(7, like.irreps_in2.dim, generator=double)
    weight = torch.randn(7, like.weight_numel, generator=double)
    mine = peer.e3nn("out", peer.call(peer.native("x1", x1), peer.native("x2", x2), weight))
    torch.testing.assert_close(mine, like(x1, x2, weight), rtol=1e-12, atol=1e-12)


def test_native_and_back():
    x = torch.arange(5.0)
    peer = peers.Peer(lambda *a: a[0], {"x1": torch.tensor([3, 1, 4, 0, 2]), "x2": None}, "naive")
    assert peer.native("x1", x).tolist() == [3, 1, 4, 0, 2]
    assert peer.e3nn("x1", peer.native("x1", x)).equal(x) and peer.native("x2", x) is x


def test_reasons(monkeypatch):
    with pytest.raises(ValueError, match=r"name must be one of \('cuequivariance', 'openequivariance'\), got 'x'"):
        peers.why_not("x", "cpu")
    assert peers.why_not("openequivariance", "cpu") == "openequivariance takes CUDA tensors, not cpu"
    like = product("uvu", False)
    irreps = (like.irreps_in1, like.irreps_in2, like.irreps_out)
    with pytest.raises(ValueError, match="openequivariance takes CUDA tensors, not cpu"):
        peers.build("openequivariance", irreps, like.instructions, False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"cuequivariance_torch is not installed \(pip install cuequivariance-torch\)"):
        peers.build("cuequivariance", irreps, like.instructions, False)


@needs_cuequivariance
def test_what_a_peer_does_not_have():
    mixed = o3.TensorProduct("4x1o", "4x0e", "4x1o", [(0, 0, 0, "uuu", True), (0, 0, 0, "uvu", True)])
    with pytest.raises(ValueError, match=r"must share one connection mode and have weights, got \['uuu', 'uvu'\]"):
        build(mixed)
    pairs = o3.TensorProduct("4x1o", "4x1o", "6x1e", [(0, 0, 0, "uvu<v", True)])
    with pytest.raises(ValueError, match="cuequivariance has no connection mode 'uvu<v'"):
        build(pairs)
