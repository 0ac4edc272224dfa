"""Measured equivariance: known errors, planted defects, layers, Lie derivatives, forces; no trace in a model."""

import copy
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from e3nn import o3
from torch import nn

import ace_fast
from ace_fast import symmetry
from ace_fast.data import Batch
from ace_fast.models import SEGNN, VNDGCNN, SchNet, nbody_graph
from ace_fast.symmetry import Monitor, conservativity, measure
from ace_fast.symmetry.report import Error, Layer
from ace_fast.testing import assert_conservative, assert_equivariant

ATTRIBUTES = "1x0e + 1x1o"
OWNER = torch.tensor([0] * 4 + [1] + [3] * 3)  # one of a node, one without


def graph_of(dtype=torch.float64):
    index = torch.arange(len(OWNER))
    pairs = torch.cartesian_prod(index, index)
    edges = pairs[(OWNER[pairs[:, 0]] == OWNER[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])].T
    pos, vel = torch.randn(2, len(OWNER), 3, dtype=dtype)
    batch = SimpleNamespace(pos=pos, vel=vel, charges=torch.randn(len(OWNER), 1, dtype=dtype), edge_index=edges,
                            batch=OWNER, ptr=torch.tensor([0, 4, 5, 5, 8]))
    return nbody_graph(batch, 1)


def segnn(relaxed=False, norm=None, dtype=torch.float64):
    return SEGNN("2x1o + 1x0e", "4x0e + 4x1o", "1x1o", ATTRIBUTES, ATTRIBUTES, 2, norm, "avg", "node", "2x0e",
                 relaxed=relaxed).to(dtype)


def named(report, name):
    return next(layer for layer in report.layers if layer.name == name)


@pytest.fixture(scope="module")
def strict():
    torch.manual_seed(0)
    return segnn(), graph_of()


@pytest.mark.parametrize(("how", "most"), [("draws", 1e-13), ("lie", 1e-13), ("differences", 1e-8)])
def test_an_equivariant_network_has_no_error(strict, how, most):
    model, graph = strict
    report = measure(model, graph, "O(3)", how=how)
    assert 0 < report.relative < most and 0 < report.absolute < most and 0 < report.rounding < 1e-13
    assert {"embedding_layer", "layers.0", "layers.1.update_layer_1", "pre_pool2"} < {x.name for x in report.layers}
    assert all(layer.network.relative < most for layer in report.layers)
    assert all((layer.own is None) == (how != "draws") for layer in report.layers)
    assert len(report.worst.draws) == (8 if how == "draws" else 3)
    assert measure(model, graph, "O(3) x S_n").relative < 1e-13  # edge lists, Graphs and segments follow


def test_a_branch_is_found_where_it_is(strict):
    _, graph = strict
    model = segnn(relaxed=True)
    gammas = model.get_gammas()
    with torch.no_grad():
        for gamma in gammas[:2]:
            gamma.zero_()
    errors = {}
    for size in (1e-3, 1e-2):
        with torch.no_grad():
            for gamma in gammas[2:]:
                gamma.fill_(size)
        report = measure(model, graph, "O(3)", draws=4)
        errors[size] = report.relative
        assert named(report, "layers.0").network.relative < 1e-13 < 1e-6 < named(report, "layers.1").own.relative
        assert report.culprits[0].name == "layers.1" and named(report, "pre_pool2").own.relative < 1e-13
        assert named(report, "pre_pool2").network.relative > 1e-6  # it passes on what it is given
    assert errors[1e-2] == pytest.approx(10 * errors[1e-3], rel=0.05)  # slope 1 in gamma
    lie, differences = (measure(model, graph, "SO(3)", how=how) for how in ("lie", "differences"))
    assert lie.worst.draws == pytest.approx(differences.worst.draws, rel=1e-6)
    for one, other in zip(lie.layers, differences.layers, strict=True):
        assert one.network.draws == pytest.approx(other.network.draws, rel=1e-6, abs=1e-8)


def test_the_numbers_of_a_known_error():
    """f(x) = x + c breaks rotations by (g - 1) c, with Lie derivative A c."""
    shift = torch.tensor([3.0, 0, 4], dtype=torch.float64)
    x = torch.zeros(1, 3, dtype=torch.float64)
    report = measure(lambda x: x + shift, x, "SO(3)", layouts="vector", output="vector", draws=200)
    g = symmetry.group("SO(3)").sample(1, torch.Generator().manual_seed(0)).matrix[0]
    assert report.worst.draws[0] == pytest.approx(float((g @ shift - shift).norm()) / 5)
    low, high = report.worst.interval
    assert low < 4 / 3 < high  # the mean of |g c - c| / |c| over SO(3)
    assert report.absolute == max(report.worst.largest) <= 10
    for how in ("lie", "differences"):
        report = measure(lambda x: x + shift, x, "SO(3)", layouts="vector", output="vector", how=how)
        assert report.worst.draws == pytest.approx([0.8, 1.0, 0.6], rel=1e-8)
    rough = measure(lambda x: x.abs().round(), x + shift, "C_4", layouts="vector", output="vector", draws=9)
    assert rough.exact and len(rough.worst.draws) == 4 and rough.worst.draws[0] == 0 and "all 4 elements" in str(rough)


class Wrapped(nn.Module):
    """Three layers, of which one is spoilt."""

    def __init__(self, spoil=None):
        super().__init__()
        irreps = "4x0e + 4x1o"
        self.first, self.last = (ace_fast.nn.Linear(irreps, irreps).double() for _ in range(2))
        self.middle = ace_fast.nn.FullyConnectedTensorProduct(irreps, irreps, irreps).double()
        self.spoil = spoil or (lambda y: y)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.spoil(self.middle(x, x)))


def test_a_wrong_sign_in_one_path_is_found():
    model, x = Wrapped(), torch.randn(5, 16, dtype=torch.float64)
    known = {"layouts": "4x0e + 4x1o", "output": "4x0e + 4x1o"}
    assert assert_equivariant(model, x, **known).relative < 1e-13
    _, coefficients = model.middle.table.on(torch.device("cpu"))
    coefficients[-1] *= -1
    report = measure(model, x, **known)
    assert report.relative > 1e-2 and report.culprits[0].name == "middle"
    assert named(report, "last").own.relative < 1e-13 < 1e-2 < named(report, "last").network.relative
    with pytest.raises(AssertionError, match=r"output must commute with O\(3\) to .*; middle alone does not\n"):
        assert_equivariant(model, x, **known)


def test_a_scrambled_channel_order_is_found():
    def scrambled(y):
        return torch.cat([y[:, :4], y[:, 4:].unflatten(1, (4, 3)).transpose(1, 2).flatten(1)], 1)

    x, known = torch.randn(5, 16, dtype=torch.float64), {"layouts": "4x0e + 4x1o", "output": "4x0e + 4x1o"}
    report = measure(Wrapped(scrambled), x, **known)
    assert report.relative > 0.1
    assert all(layer.own.relative < 1e-13 for layer in report.layers)  # between the layers, not in them
    assert named(report, "middle").network.relative < 1e-13 < 0.1 < named(report, "last").network.relative
    wrong = Wrapped()
    wrong.middle.register_forward_hook(lambda module, inputs, y: scrambled(y))
    assert measure(wrong, x, **known).culprits[0].name == "middle"


def graph_mean(x, owner):
    return (torch.zeros(4, 3).double().index_add(0, owner, x) / owner.bincount()[:, None])[owner]


@pytest.mark.parametrize(("centre", "found"), [
    (lambda x, owner: x - x.mean(-1, keepdim=True), {"O(3)", "E(3)", "E(3) one"}),  # over x, y, z
    (lambda x, owner: x - x.mean(0, keepdim=True), {"O(3)", "E(3)"}),  # over all graphs
    (lambda x, owner: x, {"E(3)", "E(3) one"}),  # forgotten
    (lambda x, owner: x - graph_mean(x, owner), set()),
])
def test_a_mean_over_the_wrong_axis_is_found(centre, found):
    graph = {"pos": torch.randn(8, 3, dtype=torch.float64), "batch": OWNER}
    model = lambda pos, batch: centre(pos, batch)  # noqa: E731
    for group in ("O(3)", "E(3)", "S_n"):
        assert (measure(model, graph, group, output="vector").relative > 1e-2) == (group in found)
    one = measure(lambda pos: centre(pos, OWNER), graph["pos"], "E(3)", output="vector")
    assert (one.relative > 1e-2) == ("E(3) one" in found)  # one element for all graphs does not see leaks between them


def embedded_energy(pos, detached=False):
    """Squared densities of neighbours within 2, with a smooth cutoff, whose gradient may be left out of the forces."""
    i, j = (torch.ones(len(pos), len(pos)) - torch.eye(len(pos))).nonzero().T
    r = (pos[i] - pos[j]).norm(dim=1)
    switch = torch.where(r < 2, 0.5 * (torch.cos(r * torch.pi / 2) + 1), torch.zeros_like(r))
    density = (switch.detach() if detached else switch) * torch.exp(-r)
    return torch.zeros(len(pos)).double().index_add(0, i, density).square().sum()[None]


def forces_of(pos, detached=False):
    pos = pos.requires_grad_()
    return -torch.autograd.grad(embedded_energy(pos, detached).sum(), pos)[0]


@pytest.mark.parametrize("detached", [False, True])
def test_a_cutoff_gradient_left_out_is_found(detached):
    pos = torch.randn(6, 3, dtype=torch.float64)
    report = conservativity(lambda x: forces_of(x, detached), pos, energy=embedded_energy)
    curl, work = report.outputs
    assert (curl.name, work.name) == ("curl", "work") and len(curl.draws) == 4
    if detached:
        assert curl.relative > 1e-2 and work.relative > 1e-2
        assert measure(lambda x: forces_of(x, True), pos, "E(3)", layouts="position", output="vector").relative < 1e-12
        with pytest.raises(AssertionError, match="curl must be the gradient of an energy to .*, got"):
            assert_conservative(lambda x: forces_of(x, True), pos)
    else:
        assert curl.relative < 1e-8 and work.relative < 1e-8
        assert_conservative(forces_of, pos)
    rotational = conservativity(lambda x: torch.linalg.cross(x, torch.ones_like(x)), pos)
    assert rotational.relative == pytest.approx(1)


def test_forces_of_several_graphs_and_of_a_trained_architecture():
    z, pos = torch.tensor([8, 1, 1, 6, 1]), torch.randn(5, 3, dtype=torch.float64)
    owner = torch.tensor([0, 0, 0, 1, 1])
    model = SchNet(hidden_channels=8, num_filters=8, num_interactions=1, cutoff=3.0).double()
    model.train()

    def forces(x):
        x = x.requires_grad_()
        return -torch.autograd.grad(model(z, x, owner).sum(), x)[0]

    report = assert_conservative(forces, pos, energy=lambda x: model(z, x, owner), graphs=owner, module=model)
    assert report.relative < 1e-6 and model.training and "curl under displacements" in str(report)
    one = conservativity(lambda x: forces(x) + x.roll(1, 0), pos, graphs=owner)  # a leak between the graphs
    assert one.relative > 1e-3


def springs(x, owner, count):
    return torch.zeros(count).to(x).index_add(0, owner, x.square().sum(1)) / 2


def test_forces_of_graphs_without_nodes():
    pos, owner = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 0, 2, 2])
    for count in (3, 5):
        energy = lambda x, n=count: springs(x, owner, n)[:, None]  # noqa: E731
        report = conservativity(lambda x: -x, pos, energy=energy, graphs=owner)
        assert report.relative < 1e-8 and [error.name for error in report.outputs] == ["curl", "work"]
    for count, graphs in ((1, None), (2, owner[:0])):
        energy = lambda x, n=count: springs(x, owner[:0], n)  # noqa: E731
        report = assert_conservative(lambda x: -x, pos[:0], energy=energy, graphs=graphs)
        assert report.relative == report.absolute == 0


def edges(*pairs):
    return torch.tensor(pairs).T


CASES = {
    "linear": lambda: (ace_fast.nn.Linear("3x0e + 2x1o + 2e", "2x0e + 1o + 2e"), (torch.randn(5, 14),), "O(3)"),
    "e3nn": lambda: (o3.Linear("3x0e + 2x1o", "2x0e + 1o"), torch.randn(5, 9), "O(3)"),
    "ir_mul": lambda: (ace_fast.nn.ElementwiseTensorProduct("4x1o", "4x0e", layout="ir_mul"),
                       (torch.randn(5, 12), torch.randn(5, 4)), "O(3)", {"graphs": "samples"}),
    "gate": lambda: (ace_fast.nn.O3TensorProductSwishGate("4x0e + 2x1o", "4x0e + 2x1o", ATTRIBUTES),
                     (torch.randn(5, 10), torch.randn(5, 4)), "O(3)"),
    "gaunt gate": lambda: (ace_fast.nn.O3GauntProductSwishGate("4x0e + 2x1o", "4x0e + 2x1o", ATTRIBUTES),
                           (torch.randn(5, 10), torch.randn(5, 4)), "O(3)"),
    "norm": lambda: (ace_fast.nn.InstanceNorm("3x0e + 2x1o"), (torch.randn(8, 9), OWNER), "O(3) x S_n"),
    "vn": lambda: (VNDGCNN(4, 5).double(), torch.randn(2, 3, 20).double(), "SE(3) x S_n"),
    "vn D_4": lambda: (VNDGCNN(4, 5).double(), torch.randn(2, 3, 20).double(), "D_4"),
    "schnet": lambda: (SchNet(8, 8, 1), (torch.randint(1, 9, (8,)), torch.randn(8, 3), OWNER), "E(3) x S_n"),
    "egnn": lambda: (ace_fast.nn.EGNN(2, 4, 2, 8, with_v=True), (torch.randn(4, 3), torch.randn(4, 4), edges(
        (0, 1), (1, 2), (2, 3)), torch.randn(3, 2), torch.randn(4, 3)), "E(3) x S_n"),
    "egnn, no v": lambda: (ace_fast.nn.EGNN(1, 4, 0, 8), {"x": torch.randn(3, 3), "h": torch.randn(3, 4),
                                                          "edge_index": edges((0, 1), (1, 2), (2, 0))}, "E(3)",
                           {"how": "lie"}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_known_of_layers_and_models(name):
    model, batch, group, *options = CASES[name]()
    assert_equivariant(model, batch, group, **(options[0] if options else {}))


@pytest.mark.parametrize("how", ["draws", "differences"])
def test_layers_of_vector_neurons_under_permutations(how):
    model, batch, _ = CASES["vn"]()
    report = measure(model, batch, "SE(3) x S_n", how=how, draws=1)
    assert [layer.name for layer in report.layers] == ["conv1", "conv2", "conv3", "conv4", "conv5", "std_feature.vn1",
                                                       "std_feature.vn2"]
    assert report.relative < 1e-6 and all(layer.network.relative < 1e-6 for layer in report.layers)
    assert how != "draws" or all(layer.own.relative < 1e-12 for layer in report.layers)


class Centred(nn.Module):
    """Vectors from the mean of their graph of five nodes, then a layer."""

    def __init__(self):
        super().__init__()
        self.layer = ace_fast.nn.Linear("1o", "1o").double()

    def forward(self, pos):
        pos = pos.view(-1, 5, 3)
        return self.layer((pos - pos.mean(1, keepdim=True)).view(-1, 3))


def test_layers_of_several_graphs_of_five():
    model, pos, graphs = Centred(), torch.randn(10, 3, dtype=torch.float64), torch.tensor([0] * 5 + [1] * 5)
    for how in ("draws", "lie", "differences"):
        report = measure(model, pos, "E(3) x S_5", output="vector", graphs=graphs, how=how, draws=2)
        assert [layer.name for layer in report.layers] == ["layer"] and report.relative < 1e-8
    with pytest.raises(ValueError, match=r"S_4: sizes must be 4 nodes of each of 2 graphs, got \[5, 5\]"):
        measure(model, pos, "S_4", output="vector", graphs=graphs)


def test_a_layer_with_other_rows_than_samples_is_left_out():
    model, x = Centred(), torch.randn(4, 5, 3, dtype=torch.float64)
    known = {"module": model, "layouts": "vector", "output": "vector", "graphs": "samples"}
    report = measure(lambda x: model(x).view(x.shape), x, **known)
    assert report.relative < 1e-12 and report.layers == []
    with pytest.raises(ValueError, match="axis 0 must have 4 rows, one an element"):
        measure(lambda x: model(x).view(x.shape), x, **known, layers={"layer": "vector"})
    dense = symmetry.layout("scalar").over(1)  # ten nodes in two graphs are not four in five
    with pytest.raises(ValueError, match="act: axis 1 must run over the 10 nodes"):
        symmetry.act(g := symmetry.group("S_n"), g.identity(2, sizes=[5, 5]), torch.zeros(4, 2), dense)


class Drawing(nn.Module):
    """Vectors times a number that a generator of its own, torch, numpy or Python draws."""

    def __init__(self, source):
        super().__init__()
        self.irreps_in = self.irreps_out = o3.Irreps("1o")
        self.source, self.generator = source, torch.Generator().manual_seed(3)

    def forward(self, x):
        drawn = {"own": lambda: torch.rand(1, generator=self.generator), "torch": lambda: torch.rand(1),
                 "numpy": np.random.rand, "python": random.random}
        return x * drawn[self.source]()


@pytest.mark.parametrize("source", ["own", "torch", "numpy", "python"])
def test_layers_that_draw_draw_the_same_and_their_generators_are_put_back(source):
    model = nn.Sequential(Drawing(source), Drawing(source))
    states = [m.generator.get_state() for m in model]
    report = measure(model, torch.randn(4, 3, dtype=torch.float64), layouts="1o", output="1o", draws=3)
    assert report.relative < 1e-13
    assert [layer.own.relative < 1e-13 for layer in report.layers] == [True, True]
    assert all(torch.equal(m.generator.get_state(), state) for m, state in zip(model, states, strict=True))


def test_layouts_may_be_irreps_of_e3nn():
    layer, irreps = o3.Linear("2x0e+2x1o", "3x0e+1x1o"), o3.Irreps("2x0e+2x1o")
    report = measure(lambda x: layer(x), torch.randn(4, 8), "O(3)", layouts=irreps, output=layer.irreps_out, draws=2)
    assert report.relative < 1e-5


def test_a_representation_of_the_user():
    o3_group = symmetry.group("O(3)")
    axial = symmetry.given(o3_group, lambda e: torch.linalg.det(e.matrix)[:, None, None] * e.matrix)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    cross, known = lambda x, y: torch.linalg.cross(x, y), {"layouts": ("vector", "vector"), "how": "draws"}  # noqa: E731
    assert measure(cross, tuple(x), o3_group, output=axial, **known).relative < 1e-13
    assert measure(cross, tuple(x), "SO(3)", output="vector", **known).relative < 1e-13
    assert measure(cross, tuple(x), "O(3)", output="vector", **known).relative > 0.5  # no vector under reflections
    assert measure(cross, tuple(x), o3_group, output=axial, **known | {"how": "lie"}).relative < 1e-8
    pairs = symmetry.group("SO(3) x S_n")
    own, x = symmetry.given(pairs, lambda e: e.matrix), torch.randn(4, 3, dtype=torch.float64)
    assert measure(lambda x: x * x.norm(), x, pairs, layouts=own, output=own, how="lie").relative < 1e-8


def test_images_under_p4m():
    model, known = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False), {"layouts": "image",
                                                                                       "output": "image"}
    x = torch.randn(2, 2, 6, 6)
    assert measure(model, x, "p4m", **known).relative > 0.1
    square = symmetry.group("D_4")
    kernel = torch.randn(6, 1, 3, 3)
    elements = square.elements()
    copies = [symmetry.act(square, symmetry.Element(elements.matrix[i : i + 1], number=elements.number[i : i + 1]),
                           kernel, symmetry.image()) for i in range(8)]
    with torch.no_grad():
        model.weight.copy_(torch.stack(copies).mean(0).view(3, 2, 3, 3))
    assert_equivariant(model, x, "p4m", **known)


def test_nothing_of_a_model_is_touched(strict):
    _, graph = strict
    model = segnn(norm="batch")
    model.train()
    model.layers[0].feature_norm.eval()
    model(graph).square().sum().backward()
    before = {name: x.clone() for name, x in (*model.named_parameters(), *model.named_buffers())}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    values = {name: None if g is None else g.clone() for name, g in gradients.items()}
    training = [m.training for m in model.modules()]
    arrays = {name: x.clone() for name, x in vars(graph).items() if isinstance(x, torch.Tensor)}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    def noisy(g):
        torch.rand(1), np.random.rand(), random.random()
        g.x.requires_grad_()
        model.layers[0].feature_norm.train()  # as a careless callable would
        y = model(g)
        y.sum().backward()
        return y

    for how in ("draws", "lie", "differences"):
        measure(model, graph, "O(3)", how=how, draws=2)
    measure(noisy, graph, "O(3)", draws=2, module=model, output="1o", layouts={"x": "2x1o + 1x0e"})
    assert all(torch.equal(x, before[name]) for name, x in (*model.named_parameters(), *model.named_buffers()))
    assert all(p.grad is gradients[name] for name, p in model.named_parameters())
    assert all(g is None or torch.equal(g, values[name]) for name, g in gradients.items())
    assert [m.training for m in model.modules()] == training
    assert all(torch.equal(getattr(graph, name), x) for name, x in arrays.items()) and not graph.x.requires_grad
    assert all(not m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert np.random.get_state()[1].tolist() == states[1]


def test_draws_depend_on_the_seed_alone_and_models_that_draw_see_the_same_numbers(strict):
    model, graph = segnn(relaxed=True), strict[1]
    torch.manual_seed(1)
    one = measure(model, graph, draws=3)
    torch.manual_seed(2)
    assert measure(model, graph, draws=3).worst.draws == one.worst.draws
    assert measure(model, graph, draws=3, seed=1).worst.draws != one.worst.draws
    drawing = lambda x: x * torch.rand(1)  # noqa: E731
    assert measure(drawing, torch.randn(4, 3), layouts="vector", output="vector").relative < 1e-6


def test_batches_of_objects_are_moved_with_their_structure():
    batch = Batch({"pos": torch.randn(8, 3, dtype=torch.float64)}, graph_of().edge_index, OWNER,
                  torch.tensor([0, 4, 5, 5, 8]), "key", True)
    seen = []

    def model(b):
        seen.append((b.structure_key, b.symmetric))
        source, target = b.edge_index
        return torch.zeros(8, 3).double().index_add(0, target, b.pos[source] - b.pos[target])

    assert measure(model, batch, "E(3) x S_n", layouts={}, output="vector").relative < 1e-13
    assert set(seen) == {("key", True), (None, False)} and batch.structure_key == "key"
    total = lambda b: torch.zeros(4, 3).double().index_add(0, b.batch, b.pos)  # noqa: E731, a row a graph
    assert measure(total, batch, "O(3) x S_n", layouts={}, output="vector").relative < 1e-13


def test_layouts_of_layers_are_declared_or_left_out():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.turns = nn.Identity()
            self.wrong = nn.Linear(3, 3)

        def forward(self, x):
            return self.turns(x) + 0 * self.wrong(x), x.norm(dim=-1)

    model, x = Own(), torch.randn(4, 3)
    known = {"layouts": "vector", "output": ("vector", "scalar")}
    assert measure(model, x, **known).layers == []
    report = measure(model, x, layers={"turns": "vector", "wrong": "vector"}, **known)
    assert [layer.name for layer in report.layers] == ["turns", "wrong"] and named(report, "turns").own is None
    assert named(report, "turns").network.relative < 1e-6 < 0.1 < named(report, "wrong").network.relative
    assert measure(model, x, layouts="vector", output=(None, "scalar")).worst.name == "output"
    assert measure(model, x, layers=(), **known).layers == []
    twice = nn.Sequential(shared := ace_fast.nn.Linear("1o", "1o"), shared)
    names = [layer.name for layer in measure(twice, x, layouts="1o", output="1o").layers]
    assert names == ["0", "0 #2"]


def test_reports_are_tables_rows_and_pictures(strict, tmp_path):
    report = measure(*strict, draws=2)
    text = str(report)
    assert text.startswith("output under O(3), 2 draws: relative error") and "rounding of the input" in text
    assert "in the network" in text and "layers.0.update_layer_2" in text and "4x0e+4x1o" in text
    row = report.row()
    assert row["equivariance"] == report.relative and "equivariance/layers.0" in row
    page, picture = report.plot(tmp_path / "errors.html")
    assert "Error under O(3) over rounding" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"plot: path must end in .png or .html, got .*errors.pdf"):
        report.plot(tmp_path / "errors.pdf")


def test_a_monitor_in_a_plain_loop(strict, tmp_path):
    model, graph = segnn(relaxed=True), strict[1]
    monitor = Monitor(graph, "O(3)", every=2, draws=2)
    reports = [monitor(model, step) for step in (10, 11, 12)]
    assert [r is None for r in reports] == [False, True, False] and [r["step"] for r in monitor.history] == [10, 12]
    assert monitor.last is reports[2] and monitor.history[0]["equivariance/layers.0"] > 1e-3
    assert monitor.plot(tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="Monitor: every must be at least 1, got 0"):
        Monitor(graph, every=0)
    with pytest.raises(ValueError, match="plot: there must be a measurement .* got no measurement"):
        Monitor(graph).plot(tmp_path / "empty.png")


def test_a_monitor_as_lightnings_callback(strict, monkeypatch):
    class Callback:
        pass

    logged = []
    module = nn.Module()
    module.network, module.log_dict = segnn(), logged.append
    monitor = Monitor(strict[1], draws=1, of=lambda m: m.network)
    with pytest.raises(ImportError, match="Monitor: lightning must be installed for its callback"):
        monitor.lightning()
    monkeypatch.setitem(sys.modules, "lightning", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lightning.pytorch", SimpleNamespace(Callback=Callback))
    callback = monitor.lightning()
    assert isinstance(callback, Callback)
    callback.on_validation_epoch_end(SimpleNamespace(sanity_checking=True, global_step=0), module)
    assert logged == []
    callback.on_validation_epoch_end(SimpleNamespace(sanity_checking=False, global_step=7), module)
    assert logged[0]["equivariance"] < 1e-12 and "step" not in logged[0] and monitor.history[0]["step"] == 7


X = torch.randn(4, 3)
SAME = nn.Identity()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: measure(SAME, X), r"the layout of input \[4, 3\] must be given, got none; pass layouts="),
    (lambda: measure(SAME, X, layouts="vector"), "the layout of the output must be given, got none; pass output="),
    (lambda: measure(SAME, X, layouts={"y": "vector"}, output="vector"), "must name arrays among input, got y"),
    (lambda: measure(SAME, X, layouts="vector", output=("vector", "scalar")), "output must have 1 layouts for as many"),
    (lambda: measure(SAME, X, layouts="vector", output="4x0e"), r"act: axis -1 must have 4 numbers .*, got 3"),
    (lambda: measure(SAME, X, layouts="image", output="image"), "the layout of input: an image must have a group of"),
    (lambda: measure(SAME, X, "SU(3)"), "group: name must be one of"),
    (lambda: measure(SAME, X, how="lies"), "how must be one of draws, lie, differences, got 'lies'"),
    (lambda: measure(SAME, X, "C_4", how="lie"), "how must be 'draws' under C_4, which has no infinitesimal elements"),
    (lambda: measure(SAME, X, draws=0), "draws must be at least 1, got 0"),
    (lambda: measure(SAME, X, graphs="rows", layouts="vector"), "graphs must be 'samples' or the graph of each node"),
    (lambda: measure(SAME, (), layouts="vector"), "batch must hold tensors, got tuple with none"),
    (lambda: measure(SAME, 3), "batch must be a tensor, a tuple, a mapping or an object with tensors, got int"),
    (lambda: measure(lambda x: None, X, layouts="vector", output="vector"), "the model must return tensors"),
    (lambda: measure(lambda x: x[x[:, 0] > 0], X, layouts="vector", output="vector"), "output must keep its shape"),
    (lambda: measure(lambda x: x.detach(), X, layouts="vector", output="vector", how="lie"),
     "how must be 'differences' for a model whose output has no gradient"),
    (lambda: measure(lambda x: x, X, layouts="vector", output="vector", layers=["a"]), "layers must be left out"),
    (lambda: measure(nn.Sequential(SAME), X, layouts="vector", output="vector", layers=["a"]), "layers must be among"),
    (lambda: measure(nn.Sequential(SAME), X, layouts="vector", output="vector", layers=["0"]),
     "the layout of 0 must be given, got none; pass layers="),
    (lambda: measure(nn.Sequential(SAME), X, layouts="vector", output="vector", layers={"0": "2x0e"}),
     "axis -1 must have 2 numbers"),
    (lambda: measure(SAME, X, layouts=["vector", "scalar"], output="vector"), "at most 1, of input, got 2"),
    (lambda: measure(SAME, X[:3], graphs=OWNER, layouts="vector", output="vector"), "a row for each of 8 nodes"),
    (lambda: conservativity(SAME, X[:, :2]), r"pos must be \[N, 3\] floating-point, got torch.float32 \[4, 2\]"),
    (lambda: conservativity(lambda x: x[:2], X), r"forces must be \[4, 3\] as pos is, got \[2, 3\]"),
    (lambda: conservativity(lambda x: x / 0, X), "forces must be finite, got NaN or infinity"),
    (lambda: conservativity(SAME, X, energy=lambda x: x.sum()[None] / 0), "energy must be finite, got NaN or infinity"),
    (lambda: conservativity(SAME, X, energy=lambda x: x.sum(1)), r"\[G, 1\] for 1 graphs, got \[4\]; pass graphs="),
    (lambda: conservativity(SAME, X, energy=lambda x: x[:2]), r"energy must be \[G\] or \[G, 1\] .* got \[2, 3\]"),
    (lambda: conservativity(SAME, X, energy=lambda x: x[:2, 0], graphs=torch.arange(4)), "for 4 or more graphs, got"),
    (lambda: conservativity(SAME, X, graphs=OWNER), r"graphs must be \[4\], got \[8\]"),
    (lambda: conservativity(SAME, X, draws=0), "draws must be at least 1, got 0"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("group", ["E(3)", "E(3) x S_n"])
def test_nothing_and_points_at_one_place(group):
    empty = {"pos": torch.zeros(0, 3), "batch": torch.zeros(0, dtype=torch.int64), "ptr": torch.tensor([0, 0, 0])}
    assert measure(lambda pos, batch, ptr: pos, empty, group, output="position").relative == 0
    together = {"pos": torch.ones(4, 3), "batch": torch.zeros(4, dtype=torch.int64)}
    assert measure(lambda pos, batch: 0 * pos, together, group, output="vector").relative == 0


def test_no_number_is_no_proof():
    calls = iter(range(99))
    broken = lambda x: x if next(calls) == 0 else x * float("nan")  # noqa: E731
    with pytest.raises(AssertionError, match=r"output must commute with O\(3\) to .*, got nan"):
        assert_equivariant(broken, X, layouts="vector", output="vector")
    spoilt = lambda x: (x + 1, x * float("nan"))  # noqa: E731, both wrong, of one nobody knows how much
    report = measure(spoilt, X, layouts="vector", output=("vector", "vector"))
    assert report.worst.name == "output 1" and np.isnan(report.relative) and np.isnan(report.absolute)
    with pytest.raises(AssertionError, match=r"^output 1 must commute with O\(3\) to .*, got nan"):
        assert_equivariant(spoilt, X, layouts="vector", output=("vector", "vector"))
    layers = [Layer(name, "1o", Error(name), Error(name, [error], [error])) for name, error in
              (("a", 0.5), ("b", float("nan")), ("c", 0.7))]
    assert [layer.name for layer in replace(report, layers=layers).culprits] == ["b", "c", "a"]
    assert copy.deepcopy(measure(SAME, X, layouts="vector", output="vector")).relative == 0
