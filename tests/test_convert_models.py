"""convert of whole networks: e3nn's own, and convolutions written as NequIP writes them."""

import pytest
import torch
from dropin import assert_close, copies
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from e3nn.nn.models.v2106.gate_points_networks import NetworkForAGraphWithAttributes, SimpleNetwork
from torch import nn

import ace_fast
from ace_fast import nn as fast
from ace_fast.convert import convert, restore
from ace_fast.convert_nequip import TensorProductScatter as ConvertedScatter

NODE, EDGE = "4x0e+2x0o+4x1o", "0e+1o"


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def derivatives(model, data, leaf):
    """Output, gradients of all parameters and of `leaf`, and the gradient of the latter's norm: forces in a loss."""
    out = model(data)
    parameters = [p for p in model.parameters() if p.requires_grad]
    (force,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    loss = out.square().sum() + force.square().sum()
    return [out, force, *torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True)]


def check(model, data, leaf, count, left=()):
    want = derivatives(model, data, leaf)
    parameters, modules, state = list(model.parameters()), dict(model.named_modules()), model.state_dict()
    report = convert(model)
    assert len(report.replaced) == count, str(report)
    assert [e.name for e in report.left] == list(left)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == state.keys() and model.load_state_dict(state)
    got = derivatives(model, data, leaf)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, 1000)
    for other in copies(model)[:1]:
        assert torch.equal(other(data), got[0])
    assert len(restore(model).replaced) == count and dict(model.named_modules()) == modules
    for a, b in zip(derivatives(model, data, leaf), want, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_e3nn_simple_network():
    model = SimpleNetwork("3x0e+2x1o", "4x0e+1x1o", max_radius=2.0, num_neighbors=3.0, num_nodes=5.0, mul=4, layers=1,
                          lmax=1)
    pos = torch.rand(5, 3, requires_grad=True)
    # a gate, and in each of two convolutions sc, lin1, tp, lin2, alpha
    check(model, {"pos": pos, "x": model.irreps_in.randn(5, -1)}, pos, 11)


def test_e3nn_network_with_attributes():
    model = NetworkForAGraphWithAttributes("3x0e+2x1o", "2x0e+1x1o", "1e", "3x0o+1e", max_radius=2.0, num_neighbors=3.0,
                                           num_nodes=3.0, mul=3, layers=1, lmax=1)
    edges, pos = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.rand(3, 3, requires_grad=True)
    data = {"pos": pos, "edge_index": edges, "node_input": model.irreps_node_input.randn(3, -1),
            "node_attr": model.irreps_node_attr.randn(3, -1), "edge_attr": o3.Irreps("1e").randn(3, -1)}
    check(model, data, pos, 11)


def paths():
    """NequIP's: every path to an irrep of the features, output slices sorted."""
    middle, found = [], []
    for i, (mul, a) in enumerate(o3.Irreps(NODE)):
        for j, (_, b) in enumerate(o3.Irreps(EDGE)):
            for c in a * b:
                if c in o3.Irreps(NODE):
                    found.append((i, j, len(middle), "uvu", True))
                    middle.append((mul, c))
    middle, p, _ = o3.Irreps(middle).sort()
    return middle, [(i, j, p[k], mode, train) for i, j, k, mode, train in found]


class TensorProductScatter(nn.Module):
    """Structure of NequIP's module of this name (0.12 and later)."""

    def __init__(self, feature_irreps_in, irreps_edge_attr, irreps_mid, instructions):
        super().__init__()
        self.feature_irreps_in, self.irreps_edge_attr = feature_irreps_in, irreps_edge_attr
        self.irreps_mid, self.instructions = irreps_mid, instructions
        self.tp = o3.TensorProduct(feature_irreps_in, irreps_edge_attr, irreps_mid, instructions, shared_weights=False,
                                   internal_weights=False)
        self.model_dtype = torch.get_default_dtype()

    def forward(self, x, edge_attr, edge_weight, edge_dst, edge_src):
        rows = self.tp(x[edge_src], edge_attr, edge_weight)
        return rows.new_zeros(x.shape[0], rows.shape[1]).index_add(0, edge_dst, rows)


class InteractionBlock(nn.Module):
    """Structure of NequIP's block: Linear, product with weights of every edge, sum, Linear, self-connection."""

    def __init__(self, apart):
        super().__init__()
        middle, instructions = paths()
        self.linear_1 = o3.Linear(NODE, NODE)
        if apart:
            self.tp_scatter = TensorProductScatter(o3.Irreps(NODE), o3.Irreps(EDGE), middle, instructions)
            numel = self.tp_scatter.tp.weight_numel
        else:
            self.tp = o3.TensorProduct(NODE, EDGE, middle, instructions, shared_weights=False, internal_weights=False)
            numel = self.tp.weight_numel
        self.edge_mlp = FullyConnectedNet([5, 8, numel], torch.nn.functional.silu)
        self.linear_2 = o3.Linear(middle.simplify(), NODE)
        self.sc = o3.FullyConnectedTensorProduct(NODE, "3x0e", NODE)

    def forward(self, data):
        weight, x = self.edge_mlp(data["edge_embedding"]), data["x"]
        dst, src = data["edge_index"]
        sc, x = self.sc(x, data["node_attrs"]), self.linear_1(x)
        if "tp_scatter" in self._modules:
            x = self.tp_scatter(x, data["edge_attrs"], weight, dst, src)
        else:
            rows = self.tp(x[src], data["edge_attrs"], weight)
            x = rows.new_zeros(x.shape[0], rows.shape[1]).index_add(0, dst, rows)
        return self.linear_2(x / 2) + sc


def graph_data(nodes=4, edges=9):
    return {"x": torch.randn(nodes, o3.Irreps(NODE).dim), "node_attrs": torch.rand(nodes, 3),
            "edge_index": torch.randint(nodes, (2, edges)), "edge_embedding": torch.rand(edges, 5),
            "edge_attrs": torch.randn(edges, 4, requires_grad=True)}


@pytest.mark.parametrize("apart", [False, True], ids=["block", "tp_scatter"])
def test_nequip_block(apart):
    data = graph_data()
    model = nn.Sequential(InteractionBlock(apart))
    check(model, data, data["edge_attrs"], 4)
    report = convert(model)
    assert {e.name for e in report.replaced} == {f"0.{n}" for n in
                                                 ("linear_1", "tp_scatter" if apart else "tp", "linear_2", "sc")}
    if apart:
        block = model[0].tp_scatter
        assert type(block) is ConvertedScatter and type(block.tp) is fast.TensorProductConv
        assert "TensorProductScatter 4x0e+2x0o+4x1o x 1x0e+1x1o" in str(report)
    else:
        assert type(model[0].tp) is fast.TensorProduct and not model[0].tp.shared_weights
    assert {e.why for e in convert(model).left} == {"it is converted already"}


def test_scatter_that_stays():
    middle, instructions = paths()

    def make():
        return TensorProductScatter(o3.Irreps(NODE), o3.Irreps(EDGE), middle, instructions)

    hooked, shared, tuned, other = make(), make(), make(), make()
    hooked.register_forward_hook(lambda *a: None)
    shared.tp = o3.TensorProduct(NODE, EDGE, middle, instructions)
    tuned.tp.scale = 2.0
    other.tp = fast.TensorProduct(NODE, EDGE, middle, instructions, shared_weights=False)
    report = convert(nn.ModuleList([hooked, shared, tuned, other]))
    assert [e.why for e in report.left if "." not in e.name] == [
        "it has hooks; remove them first", "its tp must have shared_weights=False",
        "its tp: it has attributes of its own (scale) that would be lost; delete them first",
        "its tp is TensorProduct; it must be e3nn.o3.TensorProduct",
    ]
    # what lies inside is looked at on its own
    assert [e.name for e in report.replaced] == ["0.tp", "1.tp"]
    alone = convert(make()).left[0].why
    assert alone == "it is the model itself; put it into a torch.nn.Sequential"


def test_restore_after_changes():
    model = nn.Sequential(InteractionBlock(True))
    convert(model)
    model[0].tp_scatter.note = "mine"
    report = restore(model)
    assert [(e.name, e.why) for e in report.left] == [
        ("0.tp_scatter", "it has attributes of its own (note) that would be lost; delete them first")]
    assert ace_fast.convert(model).left
