"""TensorProductConv is TensorProduct on gathered rows followed by a sum at the targets."""

import pytest
import torch
from dropin import assert_close, assert_same, copies, relaid, rows
from e3nn import o3

from ace_fast import Graph
from ace_fast.nn import TensorProduct, TensorProductConv

IRREPS = ("4x0e+3x1o", "1x0e+1x1o", "4x0e+3x1o+3x0e")
PATHS = [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True), (1, 1, 2, "uvu", True), (0, 1, 1, "uvw", True)]
EDGES = torch.tensor([[0, 2, 1, 0, 2, 2], [3, 0, 1, 3, 3, 0]])


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


class Plain(torch.nn.Module):
    """Gather, e3nn's product, sum."""

    def __init__(self, like, edges, targets):
        super().__init__()
        self.tp = o3.TensorProduct(*IRREPS, PATHS, internal_weights=like.internal_weights,
                                   shared_weights=like.shared_weights)
        self.edges, self.targets = edges, targets
        if like.internal_weights:
            self.weight = self.tp.weight = like.weight

    def forward(self, x, y, weight=None):
        out = self.tp(x[self.edges[0]], y, weight)
        return out.new_zeros(self.targets, out.shape[1]).index_add(0, self.edges[1], out)


class With(torch.nn.Module):
    """The layer with a graph."""

    def __init__(self, layer, graph):
        super().__init__()
        self.layer, self.graph = layer, graph
        if layer.internal_weights:
            self.weight = layer.weight

    def named_parameters(self, *args):
        return [("weight", self.weight)] if self.layer.internal_weights else []

    def forward(self, x, y, weight=None):
        return self.layer(x, y, weight, self.graph)


@pytest.mark.parametrize("options", [{}, {"shared_weights": True}, {"shared_weights": True, "internal_weights": False}],
                         ids=str)
@pytest.mark.parametrize("edges", [EDGES, EDGES[:, :0]], ids=["edges", "none"])
def test_equals_gather_product_sum(options, edges):
    layer = TensorProductConv(*IRREPS, PATHS, **options)
    inputs = [rows(IRREPS[0], 4), rows(IRREPS[1], edges.shape[1])]
    if not layer.internal_weights:
        lead = () if layer.shared_weights else (edges.shape[1],)
        inputs.append(torch.randn(*lead, layer.weight_numel, requires_grad=True))
    plain = Plain(layer, edges, 4)
    plain.named_parameters = lambda *a: [("weight", layer.weight)] if layer.internal_weights else []
    for graph in (edges, Graph(edges, 4)):
        assert_same(With(layer, graph), plain, inputs)


def test_bipartite_and_second_derivatives():
    layer = TensorProductConv(*IRREPS, PATHS)
    x, y, weight = rows(IRREPS[0], 3), rows(IRREPS[1], 6), torch.randn(6, layer.weight_numel, requires_grad=True)
    found = []
    for module in (With(layer, Graph(EDGES, (3, 5))), Plain(layer, EDGES, 5)):
        out = module(x, y, weight)
        assert out.shape == (5, layer.irreps_out.dim) and not out[2].any()
        first = torch.autograd.grad(out.pow(3).sum(), [x, y, weight], create_graph=True)
        found.append([out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, y, weight])])
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 256)


def test_layouts_and_states():
    layer, last = TensorProductConv(*IRREPS, PATHS), TensorProductConv(*IRREPS, PATHS, layout="ir_mul")
    x, y, weight = rows(IRREPS[0], 4), rows(IRREPS[1], 6), torch.randn(6, layer.weight_numel)
    want = layer(x, y, weight, EDGES)
    assert_close(relaid(last(relaid(x, IRREPS[0], "ir_mul"), y, weight, EDGES), IRREPS[2], "mul_ir"), want, 4)
    theirs = o3.TensorProduct(*IRREPS, PATHS, shared_weights=False)
    assert layer.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(layer.state_dict())
    assert_close(TensorProductConv.from_e3nn(theirs)(x, y, weight, EDGES), want)
    assert_close(layer(x, y, list(TensorProduct.from_e3nn(theirs).weight_views(weight)), EDGES), want)
    for other in copies(layer):
        assert torch.equal(other(x, y, weight, EDGES), want)


def test_atomic_is_refused_where_torch_wants_fixed_order():
    layer = TensorProductConv(*IRREPS, PATHS, atomic=True)
    with pytest.raises(RuntimeError, match="atomic=True does not have a deterministic implementation"):
        layer(rows(IRREPS[0], 4), rows(IRREPS[1], 6), torch.randn(6, layer.weight_numel), EDGES)


def test_compiles_with_a_graph():
    layer, graph = TensorProductConv(*IRREPS, PATHS), Graph(EDGES, 4)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, y, weight = rows(IRREPS[0], 4), rows(IRREPS[1], 6), torch.randn(6, layer.weight_numel)
    assert_close(compiled(x, y, weight, graph), layer(x, y, weight, graph))


def test_errors():
    layer = TensorProductConv(*IRREPS, PATHS)
    x, y, weight = rows(IRREPS[0], 4), rows(IRREPS[1], 6), torch.randn(6, layer.weight_numel)
    with pytest.raises(ValueError, match=r"TensorProductConv: x must be \[4, 13\], got \[4, 12\]"):
        layer(x[:, 1:], y, weight, EDGES)
    for wrong in (x[0], x[0, 0]):
        with pytest.raises(ValueError, match=r"TensorProductConv: x must be \[N, 13\], got \["):
            layer(wrong, y, weight, EDGES)
    with pytest.raises(ValueError, match=r"TensorProductConv: y must be \[6, 4\], got \[5, 4\]"):
        layer(x, y[1:], weight, EDGES)
    with pytest.raises(ValueError, match=r"weight must be \[6, 22\], a row for each edge, got \[5, 22\]"):
        layer(x, y, weight[1:], EDGES)
    with pytest.raises(ValueError, match=r"weight must be \[..., 22\], a row for every sample, got \[22\]"):
        layer(x, y, weight[0], EDGES)
    with pytest.raises(ValueError, match=r"Graph: edge_index must lie in 0..3, got 4"):
        layer(x, y, weight, EDGES + 1)
    with pytest.raises(ValueError, match="Graph: edge_index must be int64"):
        layer(x, y, weight, EDGES.int())
