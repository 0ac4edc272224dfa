"""PyTorch Geometric's own SchNet and layers: signatures, numbers and state of ours; convert, restore, from_pyg."""

import inspect
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dropin import copies
from torch import nn
from torch_geometric.io import fs
from torch_geometric.nn import MaxAggregation
from torch_geometric.nn.models import schnet as pyg

from ace_fast import Graph, convert, restore
from ace_fast import models as fast
from ace_fast import nn as layers
from ace_fast.functional import radius_graph

SIZES = {"hidden_channels": 8, "num_filters": 6, "num_interactions": 2, "num_gaussians": 7, "cutoff": 3.0}
MASSES = np.linspace(0, 118, 119)


@pytest.fixture(autouse=True)
def double(monkeypatch):
    torch.set_default_dtype(torch.float64)
    ase = types.ModuleType("ase")  # of which SchNet takes masses and units alone
    ase.data = types.ModuleType("ase.data")
    ase.data.atomic_masses = MASSES
    ase.units = SimpleNamespace(Debye=0.2, Bohr=0.5)
    monkeypatch.setitem(sys.modules, "ase", ase)
    monkeypatch.setitem(sys.modules, "ase.data", ase.data)


class Neighbours(nn.Module):
    """What its RadiusInteractionGraph returns; torch-cluster is not here."""

    def __init__(self, cutoff=SIZES["cutoff"]):
        super().__init__()
        self.cutoff = cutoff

    def forward(self, pos, batch):
        edges = radius_graph(pos.detach(), self.cutoff, batch=batch, max_num_neighbors=32)
        return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=-1)


neighbours = Neighbours()


@pytest.fixture
def molecules():
    torch.manual_seed(1)
    return torch.randint(1, 10, (11,)), 1.5 * torch.randn(11, 3), torch.tensor([0] * 5 + [1] * 6)


def results(model, given, edges=None):
    """Output, forces, and gradients of a loss of both in all parameters."""
    z, pos, batch = given
    pos = pos.clone().requires_grad_()
    kept = model.interaction_graph
    if edges is not None:
        model.interaction_graph = edges
    out = model(z, pos, batch)
    model.interaction_graph = kept
    (force,) = torch.autograd.grad(out.sum(), pos, create_graph=True)
    loss = out.square().sum() + force.square().sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)) | {"out": out, "force": force}


def assert_same(mine, gold):
    assert mine.keys() == gold.keys()
    for name, right in gold.items():
        assert (mine[name] - right).abs().max() <= 1e-12 * max(1, right.abs().max()), name


def theirs(**options):
    torch.manual_seed(0)
    return pyg.SchNet(**SIZES | options)


REFERENCE = torch.linspace(-1, 1, 100)[:, None]
VARIANTS = {
    "plain": {}, "mean": {"readout": "mean"}, "shifted": {"mean": -2.0, "std": 3.0, "atomref": REFERENCE},
    "atomref": {"atomref": REFERENCE, "mean": 1.0}, "dipole": {"dipole": True, "readout": "mean"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_with_schnet_inside(name, molecules):
    """Values, forces, gradients, state both ways, the same parameters, and back."""
    model = nn.ModuleDict({"inner": theirs(**VARIANTS[name])})
    old = model["inner"]
    old.scale = 0.5 if name == "plain" else None
    gold, state = results(old, molecules, neighbours), old.state_dict()
    parameters = list(model.parameters())
    report = convert(model)
    assert [(e.name, e.what) for e in report.replaced] == [("inner", "SchNet 8 channels, 2 interactions")]
    new = model["inner"]
    assert type(new) is fast.SchNet and not report.left
    assert_same(results(new, molecules), gold)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert new.state_dict().keys() == state.keys()
    new.load_state_dict(state), old.load_state_dict(new.state_dict())
    assert torch.equal(copies(new)[0](*molecules), new(*molecules))
    model.float().double().eval()
    assert [e.name for e in restore(model).replaced] == ["inner"] and model["inner"] is old
    assert not any(part.training for part in old.modules())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    old.load_state_dict(state)
    assert_same(results(old, molecules, neighbours), gold)


@pytest.mark.parametrize("options", [{}, {"filter": "table", "knots": 2048}])
def test_weights_alone_and_from_pyg(options, molecules):
    """Ours loads its state, and from_pyg shares its parameters and may add branches."""
    model = theirs(atomref=REFERENCE)
    gold = results(model, molecules, neighbours)
    mine = fast.SchNet(**SIZES, atomref=REFERENCE)
    mine.load_state_dict(model.state_dict())
    assert_same(results(mine, molecules), gold)
    relaxed = fast.SchNet.from_pyg(model, relaxed=True, **options)
    assert relaxed.embedding.weight is model.embedding.weight and len(relaxed.get_gammas()) == 2
    relaxed.set_equivariance(False)
    tolerance = 1e-5 if options else 1e-12
    assert (relaxed(*molecules) - gold["out"]).abs().max() <= tolerance * gold["out"].abs().max()
    assert convert(model).left[0].why == "it is the model itself; use ace_fast.models.SchNet.from_pyg"
    assert convert(mine).left[0].why == "it is ace_fast's own"


def published(target):
    """What the pickles of the published weights hold, with SchNetPack's names."""
    torch.manual_seed(2)
    dense = lambda a, b, **o: nn.Linear(a, b, **o)  # noqa: E731
    blocks = [SimpleNamespace(
        filter_network=[dense(50, 128), dense(128, 128)], dense=dense(128, 128),
        cfconv=SimpleNamespace(in2f=dense(128, 128, bias=False), f2out=dense(128, 128))) for _ in range(6)]
    kind = type("DipoleMoment" if target == 0 else "Atomwise", (SimpleNamespace,), {})
    output = kind(out_net=[None, SimpleNamespace(out_net=[dense(128, 64), dense(64, 1)])],
                  atom_pool=SimpleNamespace(average=target == 5),
                  standardize=SimpleNamespace(mean=torch.tensor(-0.3), stddev=torch.tensor(2.0)),
                  atomref=nn.Embedding(100, 1) if target == 7 else None)
    return SimpleNamespace(representation=SimpleNamespace(embedding=nn.Embedding(100, 128), interactions=blocks),
                           output_modules=[output])


class Dataset:
    """The parts of torch_geometric's QM9 that its loader asks for."""

    data = SimpleNamespace(idx=torch.arange(4))

    def atomref(self, target):
        return REFERENCE if target in (7, 5) else None

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("target", [0, 5, 7])
def test_the_layout_of_the_published_weights(target, molecules, tmp_path, monkeypatch):
    """torch_geometric's own loader fills its model from files as the published ones; ours takes it over."""
    folder = tmp_path / "trained_schnet_models" / f"qm9_{pyg.qm9_target_dict[target]}"
    folder.mkdir(parents=True)
    np.savez(folder / "split.npz", train_idx=np.arange(2), val_idx=np.arange(2, 3), test_idx=np.arange(3, 4))
    monkeypatch.setitem(sys.modules, "schnetpack", types.ModuleType("schnetpack"))
    monkeypatch.setattr(fs, "torch_load", lambda path, map_location: published(target))
    model, _ = pyg.SchNet.from_qm9_pretrained(str(tmp_path), Dataset(), target)
    holder = nn.ModuleList([model])
    z, pos, batch = molecules
    model.interaction_graph, graph = Neighbours(10.0), model.interaction_graph
    gold = model(z, pos, batch)
    model.interaction_graph = graph
    assert len(convert(holder).replaced) == 1
    assert holder[0].scale == model.scale is not None
    out = holder[0](z, pos, batch)
    assert (out - gold).abs().max() <= 1e-12 * gold.abs().max()
    assert holder[0].state_dict().keys() == model.state_dict().keys()


def test_an_interaction_graph_of_the_users(molecules):
    """Its distances are taken, periodic ones for instance, which the positions do not tell; without them ours are."""
    stretched = lambda pos, batch: (lambda e, d: (e, 0.9 * d))(*neighbours(pos, batch))  # noqa: E731
    model = nn.ModuleList([theirs(interaction_graph=stretched)])
    gold = results(model[0], molecules)
    convert(model)
    assert_same(results(model[0], molecules), gold)
    model[0].interaction_graph = lambda pos, batch: (neighbours(pos, batch)[0], None)
    assert_same(results(model[0], molecules), results(theirs(), molecules, neighbours))
    model[0].interaction_graph = lambda pos, batch: (neighbours(pos, batch)[0], torch.ones(1))
    with pytest.raises(ValueError, match=r"SchNet: interaction_graph must return distances \[\d+\], got \[1\]"):
        model[0](*molecules)


class Blocks(nn.Module):
    """Somebody's model with blocks and a convolution of torch_geometric's."""

    def __init__(self):
        super().__init__()
        self.block = pyg.InteractionBlock(5, 7, 6, 3.0)
        self.conv = pyg.CFConv(5, 4, 6, nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 6)), 3.0)
        self.smear = pyg.GaussianSmearing(0.0, 3.0, 7)

    def forward(self, x, edges, d):
        return self.conv(self.block(x, edges, d, self.smear(d)), edges, d, self.smear(d))


class Subclass(pyg.SchNet):
    """A SchNet that somebody changed."""


def test_parts_of_other_models(molecules):
    edges, d = neighbours(*molecules[1:])
    model, x = Blocks(), torch.randn(11, 5)
    d, x = d.requires_grad_(), x.requires_grad_()
    ask = lambda: (out := model(x, edges, d), torch.autograd.grad(out.sin().sum(), [x, d, *model.parameters()]))  # noqa: E731
    gold = ask()
    report = convert(model)
    assert [(e.name, e.what) for e in report.replaced] == [("block", "InteractionBlock 5 -> 5"),
                                                           ("conv", "CFConv 5 -> 4")]
    assert (type(model.block), type(model.conv)) == (layers.InteractionBlock, layers.CFConv)
    found = ask()
    assert_same(dict(enumerate([found[0], *found[1]])), dict(enumerate([gold[0], *gold[1]])))
    assert "it is converted already" in str(convert(model))
    assert len(restore(model).replaced) == 2 and type(model.conv) is pyg.CFConv
    changed = nn.ModuleList([Subclass(**SIZES, interaction_graph=neighbours)])
    gold = results(changed[0], molecules)
    report = convert(changed)
    assert [(e.name, e.why) for e in report.left] == [("0", "it is a subclass, which may compute something else")]
    assert [e.name for e in report.replaced] == ["0.interactions.0", "0.interactions.1"]
    assert_same(results(changed[0], molecules), gold)


def hooked(module):
    module.register_forward_hook(lambda *a: None)


CHANGES = {
    "hook": (hooked, "it has hooks; remove them first"),
    "attribute": (lambda m: setattr(m, "tag", 1), "it has attributes of its own (tag) that would be lost; delete them "
                                                  "first"),
    "inside": (lambda m: hooked(m.interactions[1].mlp[0]),
               "its interactions.1.conv.nn has hooks, which ours would not call"),
    "block": (lambda m: hooked(m.interactions[0]), "its interactions.0: it has hooks; remove them first"),
    "message": (lambda m: m.interactions[0].conv.register_message_forward_hook(lambda *a: None),
                "its interactions.0: its conv: it has hooks; remove them first"),
    "flow": (lambda m: setattr(m.interactions[0].conv, "flow", "target_to_source"),
             "its interactions.0: its conv: it must add along source_to_target, got aggr, flow and node_dim "
             "('add', 'target_to_source', -2)"),
    "tanh": (lambda m: m.interactions[0].mlp.__setitem__(1, nn.Tanh()),
             "its interactions.0.conv.nn must be Linear, ShiftedSoftplus or SiLU, Linear, got Linear, Tanh, Linear"),
    "other block": (lambda m: m.interactions.__setitem__(0, nn.Identity()),
                    "its interactions.0 is Identity; it must be torch_geometric's InteractionBlock"),
    "smearing": (lambda m: setattr(m, "distance_expansion", nn.Identity()),
                 "its distance_expansion is Identity; it must be torch_geometric's GaussianSmearing"),
    "smearing hook": (lambda m: hooked(m.distance_expansion),
                      "its distance_expansion has hooks, which ours would not call"),
    "graph hook": (lambda m: hooked(m.interaction_graph), "its interaction_graph has hooks, which ours would not call"),
    "dtype": (lambda m: m.bfloat16(), "its weights are torch.bfloat16; ours must be float32 or float64"),
    "readout": (lambda m: setattr(m, "readout", MaxAggregation()),
                "its readout is MaxAggregation; it must be add or mean"),
    "dipole": (lambda m: setattr(m, "dipole", True), "it has no atomic_mass, which dipole needs"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_left_with_its_reason(name):
    change, why = CHANGES[name]
    holder = nn.ModuleList([theirs()])
    old = holder[0]
    change(old)
    report = convert(holder)
    assert (report.left[0].name, report.left[0].why) == ("0", why) and holder[0] is old


def test_restore_leaves_what_was_changed_since():
    holder = nn.ModuleList([theirs(), theirs(), theirs()])
    convert(holder)
    holder[0].readout = "mean"
    hooked(holder[1].interactions[1].conv)
    assert [e.why for e in restore(holder).left] == [
        "its readout became mean; set it back to add",
        "its interactions.1: its conv: it has hooks; remove them first"]
    assert type(holder[2]) is pyg.SchNet


def test_constructors_have_its_arguments():
    """The same names, order and defaults; what is ours alone comes after."""
    for name in ("SchNet", "InteractionBlock", "CFConv", "GaussianSmearing", "ShiftedSoftplus"):
        mine, gold = (list(inspect.signature(cls).parameters.values())
                      for cls in (getattr(fast if name == "SchNet" else layers, name), getattr(pyg, name)))
        assert [(p.name, p.default) for p in mine[:len(gold)]] == [(p.name, p.default) for p in gold]
        assert all(p.default is not p.empty for p in mine[len(gold):])


def test_layers_have_its_numbers(molecules):
    """A seed gives the same parameters, and these the same values, gradients and state."""
    edges, d = neighbours(*molecules[1:])
    d, x = d.requires_grad_(), torch.randn(11, 5, requires_grad=True)
    filters = nn.Sequential(nn.Linear(7, 6), pyg.ShiftedSoftplus(), nn.Linear(6, 6))
    made = {"GaussianSmearing": (0.0, 3.0, 7), "ShiftedSoftplus": (), "CFConv": (5, 4, 6, filters, 3.0),
            "InteractionBlock": (5, 7, 6, 3.0)}
    smeared = pyg.GaussianSmearing(0.0, 3.0, 7)(d.detach())
    for name, arguments in made.items():
        found = []
        for where in (layers, pyg):
            torch.manual_seed(3)
            layer = getattr(where, name)(*arguments)
            given = {"GaussianSmearing": (d,), "ShiftedSoftplus": (x,)}.get(name, (x, edges, d, smeared))
            out = layer(*given)
            leaves = [t for t in given if t.requires_grad] + list(layer.parameters())
            grads = torch.autograd.grad(out.sin().sum(), leaves)
            found.append(dict(enumerate([out, *grads])) | layer.state_dict())
        assert_same(*found)
    block = layers.InteractionBlock(*made["InteractionBlock"])
    graph = Graph(edges, 11)
    fused = block(x, graph, molecules[1], layers.GaussianSmearing(0.0, 3.0, 7).basis())
    assert_same({"out": fused}, {"out": block(x, graph, d, smeared)})
