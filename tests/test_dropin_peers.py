"""backend="cuequivariance" and "openequivariance" on our layers: the same numbers, or the reason."""

import importlib.util

import pytest
import torch
from dropin import assert_close, assert_same, copies, relaid, rows
from e3nn import o3

from ace_fast import Graph, nn
from ace_fast.nn import peers

MIXED = ("3x0e+3x1o+2x2e", "3x0e+3x1o", "3x0e+3x1o+2x1e+9x0e+1x1e", [
    (0, 0, 0, "uvu", True), (1, 1, 0, "uvv", False), (0, 1, 1, "uuu", True), (2, 1, 1, "uvw", True),
    (1, 1, 2, "uuw", True), (1, 1, 3, "uvuv", True), (1, 1, 4, "uuw", False), (0, 0, 0, "uvu", True)])
EDGES = torch.tensor([[0, 2, 1, 0, 2, 2], [3, 0, 1, 3, 3, 0]])
needs_cuequivariance = pytest.mark.skipif(importlib.util.find_spec("cuequivariance_torch") is None,
                                          reason="cuequivariance_torch is not installed")


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


@needs_cuequivariance
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("shared", [True, False])
def test_every_mode_in_one_product(layout, shared):
    mine, other = (nn.TensorProduct(*MIXED, internal_weights=False, shared_weights=shared, layout=layout, backend=b)
                   for b in ("reference", "cuequivariance"))
    lead = () if shared else (3,)
    weight = torch.randn(*lead, mine.weight_numel, requires_grad=True)
    y = rows(MIXED[1], 3)
    assert_same(other, mine, (rows(MIXED[0], 2, 1), y, weight))
    assert_close(other.right(y, weight), mine.right(y, weight), 4)


@needs_cuequivariance
def test_layers(double):
    """Products, Linear with bias, SEGNN's gate; copies leave the adapter behind."""
    for make in (lambda b: nn.FullyConnectedTensorProduct("2x0e+2x1o", "0e+1o", "3x0e+1x1o", backend=b),
                 lambda b: nn.ElementwiseTensorProduct("2x1o", "2x1e", backend=b),
                 lambda b: nn.FullTensorProduct("2x1o+1x0e", "3x1e", backend=b)):
        mine, other = make("reference"), make("cuequivariance")
        other.load_state_dict(mine.state_dict())
        x, y = rows(mine.irreps_in1, 4), rows(mine.irreps_in2, 4)
        assert_same(other, mine, (x, y))
        for copied in copies(other):
            assert torch.equal(copied(x, y), other(x, y))
    for make, irreps in (
        (lambda b: nn.Linear("2x0e+2x1o", "3x0e+1x1o", biases=True, backend=b), ["2x0e+2x1o"]),
        (lambda b: nn.O3TensorProductSwishGate("2x0e+2x1o", "3x0e+1x1o", "0e+1o", backend=b), ["2x0e+2x1o", "0e+1o"]),
        (lambda b: nn.O3TensorProduct("2x0e+2x1o", "3x0e+1x1o", "0e+1o", backend=b), ["2x0e+2x1o", "0e+1o"]),
    ):
        mine, other = make("reference"), make("cuequivariance")
        other.load_state_dict(mine.state_dict())
        assert_same(other, mine, [rows(i, 4) for i in irreps])


@needs_cuequivariance
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_convolution(layout):
    irreps = ("4x0e+3x1o", "1x0e+1x1o", "4x0e+3x1o+3x0e")
    paths = [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True), (1, 1, 2, "uvu", True)]
    mine, other = (nn.TensorProductConv(*irreps, paths, layout=layout, backend=b) for b in ("auto", "cuequivariance"))
    x, y, weight = rows(irreps[0], 3), rows(irreps[1], 6), torch.randn(6, mine.weight_numel)
    graph = Graph(EDGES, (3, 5))
    assert_close(other(x, y, weight, graph), mine(x, y, weight, graph), 4)


@needs_cuequivariance
def test_second_derivatives_and_single_precision():
    args = ("2x0e+2x1o", "0e+1o", "2x0e+1x1o")
    mine, other = (nn.FullyConnectedTensorProduct(*args, backend=b) for b in ("reference", "cuequivariance"))
    other.load_state_dict(mine.state_dict())
    x, y = rows(args[0], 4), rows(args[1], 4)
    found = []
    for layer in (mine, other):
        first = torch.autograd.grad(layer(x, y).pow(3).sum(), [x, y], create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, y, layer.weight]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 64)
    assert_close(other.float()(x.float(), y.float()), mine.float()(x.float(), y.float()), 4)


@needs_cuequivariance
def test_adapter_alone():
    """What a benchmark times: in the library's own layout, weights converted once."""
    tp = nn.TensorProduct(*MIXED, layout="mul_ir", backend="reference")
    peer = peers.adapter("cuequivariance", tp.table, True, torch.float64, torch.device("cpu"))
    x, y = rows(MIXED[0], 4), rows(MIXED[1], 4)
    out = peer.product(relaid(x, MIXED[0], "ir_mul"), relaid(y, MIXED[1], "ir_mul"), peer.to_theirs(tp.weight))
    assert_close(relaid(out, MIXED[2], "mul_ir"), tp(x, y), 4)
    assert torch.equal(peer.to_ours(peer.to_theirs(tp.weight)), tp.weight)
    assert peer is peers.adapter("cuequivariance", tp.table, True, torch.float64, torch.device("cpu"))
    assert set(peer.methods) == {"naive"}


@needs_cuequivariance
@pytest.mark.parametrize("make, message", [
    (lambda b: nn.TensorSquare("2x1o", backend=b)(torch.zeros(2, 6)), "does not take mode 'uvu<v'"),
    (lambda b: nn.TensorProduct("2x0e", "1x0e", "2x0e", [], backend=b)(torch.zeros(2, 2), torch.zeros(2, 1)),
     "does not take a product without paths"),
    (lambda b: nn.TensorProduct("2x0e+3x0e", "3x0e+2x0e", "6x0e", [(0, 0, 0, "uvuv", False), (1, 1, 0, "uvuv", False)],
                                backend=b)(torch.zeros(2, 5), torch.zeros(2, 5)),
     "two uvuv paths of different multiplicities into one slice"),
])
def test_what_cuequivariance_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make("cuequivariance")


def test_reasons_where_nothing_is_installed(monkeypatch):
    tp = [nn.TensorProduct("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvu", True)], backend=b) for b in peers.NAMES]
    x, y = torch.zeros(3, 2), torch.zeros(3, 1)
    with pytest.raises(ValueError, match="'openequivariance' is not available: it takes CUDA tensors, not cpu"):
        tp[1](x, y)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'cuequivariance' is not available: cuequivariance_torch is not installed"):
        tp[0](x, y)
    assert peers.why_not("openequivariance", torch.device("cuda")) == "openequivariance is not installed"


def oeq_double(monkeypatch, shuffle):
    """openequivariance as far as its documentation says what it does, computed by e3nn, its weights in an own order."""
    import sys
    import types

    class Problem:
        def __init__(self, *args, irrep_dtype, weight_dtype, **options):
            self.tp = o3.TensorProduct(*args, **options)

    class Product(torch.nn.Module):
        def __init__(self, problem):
            super().__init__()
            self.tp = problem.tp
            self.order = shuffle(self.tp.weight_numel)

        def reorder_weights_from_e3nn(self, weights, has_batch_dim=True):
            return weights[..., self.order]

        def reorder_weights_to_e3nn(self, weights, has_batch_dim=True):
            return weights[..., self.order.argsort()]

        def forward(self, x, y, weight):
            return self.tp(x, y, self.reorder_weights_to_e3nn(weight))

    class Conv(Product):
        def forward(self, x, y, weight, rows, cols):
            out = super().forward(x[cols], y, weight)
            return out.new_zeros(x.shape[0], out.shape[1]).index_add(0, rows, out)

    module = types.ModuleType("openequivariance")
    module.TPProblem, module.TensorProduct, module.TensorProductConv = Problem, Product, Conv
    module.torch_to_oeq_dtype = lambda dtype: dtype
    monkeypatch.setitem(sys.modules, "openequivariance", module)
    monkeypatch.setattr(peers, "why_not", lambda *a: "")


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_openequivariance_adapter(monkeypatch, layout):
    """Path weights, order of weights, layouts and edges, on a double; the library itself needs a GPU."""
    oeq_double(monkeypatch, torch.randperm)
    irreps = ("4x0e+3x1o", "1x0e+1x1o", "4x0e+3x1o+3x0e")
    paths = [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True, 2.0), (1, 1, 2, "uvu", True)]
    for cls, graph in ((nn.TensorProduct, None), (nn.TensorProductConv, Graph(EDGES[:, :5], 4))):
        mine, other = (cls(*irreps, paths, shared_weights=False, layout=layout, backend=b)
                       for b in ("auto", "openequivariance"))
        x, y = rows(irreps[0], 4 if graph else 5), rows(irreps[1], 5)
        args = [x, y, torch.randn(5, mine.weight_numel), *([graph] if graph else [])]
        assert_close(other(*args), mine(*args), 4)
    with pytest.raises(ValueError, match="takes as many targets as sources, got 5 and 4"):
        other(x, y, args[2], Graph(EDGES[:, :5], (4, 5)))
    with pytest.raises(ValueError, match=r"must have weights and the one mode 'uvu' or 'uvw', got modes \['uuu'\]"):
        nn.TensorProduct("2x0e", "2x0e", "2x0e", [(0, 0, 0, "uuu", True)], backend="openequivariance")(
            torch.zeros(1, 2), torch.zeros(1, 2))
