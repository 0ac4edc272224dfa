"""ace_fast.relax and ace_fast.strict on models of e3nn, ace_fast, vnn, EGNN and plain torch: there and back."""

import copy
import pickle
from collections import OrderedDict

import e3nn.nn
import pytest
import torch
from e3nn import o3
from e3nn.nn.models.v2106.gate_points_message_passing import MessagePassing
from torch import nn

import ace_fast
from ace_fast import nn as ours
from ace_fast.bench import eager_vn
from ace_fast.models import SEGNN
from ace_fast.nn.added import NAME
from ace_fast.relaxation import branches_off, make

HIDDEN = "4x0e+3x1o"


class E3(nn.Module):
    """A product with weights of every edge, one with its own, a gate, two linear maps; of e3nn or of ace_fast."""

    def __init__(self, library):
        super().__init__()
        gate = e3nn.nn.Gate("4x0e", [torch.relu], "3x0e", [torch.sigmoid], "3x1o")
        self.lin1 = library.Linear(HIDDEN, HIDDEN)
        self.tp = library.TensorProduct(HIDDEN, "0e+1o", HIDDEN, [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)],
                                        shared_weights=False)
        self.full = library.FullyConnectedTensorProduct(HIDDEN, "0e+1o", gate.irreps_in)
        self.gate, self.lin2 = gate, library.Linear(HIDDEN, HIDDEN, biases=True)

    def forward(self, x, y, weight):
        return self.lin2(features=self.gate(self.full(self.tp(self.lin1(x), y, weight), y)))


class Vectors(nn.Module):
    """Vector-neuron layers of vnn or of ace_fast."""

    def __init__(self, library):
        super().__init__()
        self.first = library.VNLinearLeakyReLU(2, 4, 4)
        self.relu, self.last = library.VNLeakyReLU(4), library.VNLinear(4, 3)

    def forward(self, x):
        return self.last(self.relu(self.first(x)))


class E_GCL(nn.Module):  # noqa: N801, EGNN's name
    """EGNN's layer: its signature, children and outputs."""

    def __init__(self, width):
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(2 * width + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.coord_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False))

    def forward(self, h, edge_index, coord, edge_attr=None, node_attr=None):
        row, column = edge_index
        apart = coord[row] - coord[column]
        edge = self.edge_mlp(torch.cat([h[row], h[column], apart.square().sum(1, keepdim=True)], 1))
        coord = coord.index_add(0, row, apart * self.coord_mlp(edge))
        message = torch.zeros_like(h).index_add(0, row, edge)
        return h + self.node_mlp(torch.cat([h, message], 1)), coord, edge_attr


class Graphs(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, h, edges, x):
        for layer in self.layers:
            if isinstance(layer, E_GCL):
                h, x, _ = layer(h, edges, coord=x)
            else:
                x, _, h = layer(x, h, edges)
        return torch.cat([h, x], 1)


def _graph():
    edges = torch.combinations(torch.arange(5)).T
    return torch.randn(5, 6), torch.cat([edges, edges.flip(0)], 1), torch.randn(5, 3)


def _rows():
    weight = torch.randn(7, 7)
    return torch.randn(7, 13), torch.randn(7, 4), weight


CASES = {  # model, arguments, layers chosen, gates
    "e3nn": (lambda: E3(o3), _rows, None, 4),
    "ace_fast": (lambda: E3(ours), _rows, None, 4),
    "vnn": (lambda: Vectors(eager_vn), lambda: (torch.randn(3, 2, 3, 5),), None, 4),
    "vectors": (lambda: Vectors(ours), lambda: (torch.randn(3, 2, 3, 5),), None, 4),
    "egnn": (lambda: Graphs([E_GCL(6), E_GCL(6)]), _graph, None, 4),
    "egno": (lambda: Graphs([ours.EGNN_Layer(0, 6), ours.EGNN_Layer(0, 6)]), _graph, None, 4),
    "plain": (lambda: nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2)), lambda: (torch.randn(2, 4, 3),),
              ["0", "2"], 2),
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def begin(name):
    make_model, arguments, modules, count = CASES[name]
    torch.manual_seed(0)
    return make_model(), arguments(), modules, count


def trace(model):
    """What must not change: keys, types, hooks, what a pickle holds."""
    hooks = [{k: list(v) for k, v in vars(m).items() if k.endswith("_hooks")} for m in model.modules()]
    held = [sorted(vars(m)) for m in model.modules()]
    return list(model.state_dict()), [type(m) for m in model.modules()], hooks, held, len(pickle.dumps(model))


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    model, arguments, modules, count = begin(name)
    before, keys, parameters = trace(model), list(model.state_dict()), list(model.parameters())
    gold = model(*arguments)
    relaxed = ace_fast.relax(model, modules, gamma_init=0.0)
    assert relaxed.model is model and len(relaxed.gammas) == count and f"{count} gates" in str(relaxed)
    assert torch.equal(model(*arguments), gold)  # to the bit while gamma is 0
    assert [k for k in model.state_dict() if k in keys] == keys and all(not g.item() for g in relaxed.gammas.values())
    with torch.no_grad():
        for gamma in relaxed.gammas.values():
            gamma.fill_(0.7)
    assert (model(*arguments) - gold).abs().max() > 1e-3
    model(*arguments).square().sum().backward()
    added = [p for p in model.parameters() if all(p is not q for q in parameters)]
    assert len(added) == 3 * count and all(p.grad is not None and p.grad.abs().max() > 0 for p in added)
    with branches_off(model):
        assert torch.equal(model(*arguments), gold)
    twin, loaded = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, loaded):
        assert torch.equal(other(*arguments), model(*arguments))
        assert torch.equal(ace_fast.strict(other)(*arguments), gold) and list(other.state_dict()) == keys
    other = ace_fast.relax(begin(name)[0], modules).model
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*arguments), model(*arguments))
    assert ace_fast.strict(model) is model and torch.equal(model(*arguments), gold)
    model.zero_grad()
    assert trace(model) == before and all(p is q for p, q in zip(model.parameters(), parameters, strict=True))


def test_a_network_of_e3nn_itself():
    torch.manual_seed(0)
    model = MessagePassing(["2x0e", "1x1o"], "0e", "0e+1o", [3, 4], num_neighbors=2.0)
    ends = torch.randint(0, 4, (2, 9))
    arguments = torch.randn(4, 2), torch.ones(4, 1), *ends, torch.randn(9, 4), torch.randn(9, 3)
    gold, keys = model(*arguments), list(model.state_dict())
    gammas = ace_fast.relax(model).gammas
    assert {name.split(".")[-3] for name in gammas} == {"lin1", "tp", "lin2", "alpha"}  # sc has no path
    assert (model(*arguments) - gold).abs().max() > 1e-3
    assert torch.equal(ace_fast.strict(model)(*arguments), gold) and list(model.state_dict()) == keys


def test_the_branch_is_the_map_of_the_first_input():
    model, (x, y, weight), *_ = begin("e3nn")
    base = model.full(x, y)
    ace_fast.relax(model, "full", gamma_init=0.3, hidden=(9, 8))
    branch = model.full.lin_noneq
    assert [m.weight.shape for m in branch.gate_maps(0)] == [(9, 13), (8, 9), (16, 8)]
    assert torch.allclose(model.full(x, y), base + 0.3 * branch.maps(x), rtol=1e-13)
    one = model.full(x[:1], y)  # leading dimensions broadcast as the product's
    assert torch.allclose(one, ace_fast.strict(copy.deepcopy(model)).full(x[:1], y) + 0.3 * branch.maps(x[:1]))


def test_vnns_maps_and_ours_get_the_same_branches():
    theirs, (x,), *_ = begin("vnn")
    mine = begin("vectors")[0]
    mine.load_state_dict(theirs.state_dict())
    ace_fast.relax(theirs, gamma_init=0.5)
    ace_fast.relax(mine, gamma_init=0.5)
    for layer, parts in (("first", ("feat", "dir")), ("relu", ("dir",)), ("last", ("feat",))):
        for part in parts:
            branch = getattr(getattr(theirs, layer), f"map_to_{part}").lin_noneq.maps[0]
            getattr(getattr(mine, layer), f"map_to_{part}_nonequiv").load_state_dict(branch.state_dict())
    assert torch.allclose(mine(x), theirs(x), rtol=1e-10)
    edges = torch.randn(2, 2, 3, 5, 4)  # vnn's own order of five dimensions
    theirs.first.dim = mine.first.dim = 5
    for model in (theirs, mine):
        model.first.batchnorm.bn = nn.BatchNorm2d(4)
        model.first.batchnorm.dim = 5
    assert torch.allclose(mine.first(edges), theirs.first(edges), rtol=1e-10)


@pytest.mark.parametrize("relaxation", ["ace", "schedule", "rpp", "per", "remul"])
@pytest.mark.parametrize("name", ["e3nn", "vectors"])
def test_every_decider_takes_the_model(relaxation, name):
    model, arguments, *_ = begin(name)
    _, gammas = ace_fast.relax(model)
    options = {"schedule": {"steps": 4}, "per": {"steps": 4}, "ace": {"bound": "spectral"}}.get(relaxation, {})
    decider = make(relaxation, model, **options)
    assert decider.names == list(gammas)
    optimizer = torch.optim.SGD(decider.primal_parameters(), lr=1e-3)
    for _ in range(2):
        loss = model(*arguments).square().mean()
        (loss + decider.penalty(loss, lambda: model(*arguments).square().mean())).backward()
        optimizer.step()
        decider.step()
        optimizer.zero_grad()
    decider.release()
    assert all(not key.endswith("gamma") for key in ace_fast.strict(model).state_dict())


def test_irreps_of_plain_maps():
    model = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 1))
    ace_fast.relax(model, "*[01]", irreps={"0": ("2x1o", "1x1o"), "1": ("1o", "0e")}, gamma_init=1.0)
    decider = make("per", model, steps=4, groups=["SO3"])
    matrix = model[0].lin_noneq.maps[0].weight.detach()
    mean = torch.stack([matrix[:, :3].diagonal().mean() * torch.eye(3), matrix[:, 3:].diagonal().mean() * torch.eye(3)])
    rest = (matrix - torch.cat(list(mean), 1)).square().sum() + model[0].lin_noneq.maps[0].bias.square().sum()
    assert torch.allclose(2 * decider.gaps()[0], rest + model[1].lin_noneq.maps[0].weight.square().sum())


def test_a_shared_layer_gets_one_branch():
    layer = o3.Linear(HIDDEN, HIDDEN)
    model, x = nn.Sequential(layer, layer), torch.randn(2, 13)
    gold = layer(layer(x))
    gammas = ace_fast.relax(model, gamma_init=0.5).gammas
    assert list(gammas) == ["0.lin_noneq.gamma"]
    maps = layer.lin_noneq.maps
    plain = copy.deepcopy(layer)
    del plain._modules[NAME]
    plain._forward_hooks.clear()
    once = plain(x) + 0.5 * maps(x)
    assert torch.allclose(model(x), plain(once) + 0.5 * maps(once), rtol=1e-13)
    assert torch.equal(ace_fast.strict(model)(x), gold)


def test_other_hooks_stay_and_frozen_models_train_their_branches():
    model = nn.Sequential(o3.Linear(HIDDEN, HIDDEN)).requires_grad_(False)
    calls = []
    model[0].register_forward_hook(lambda *a: calls.append(1))
    ace_fast.relax(model.eval())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "0.lin_noneq.gamma", "0.lin_noneq.maps.0.weight", "0.lin_noneq.maps.0.bias"]
    assert not model[0].lin_noneq.training
    model(torch.randn(2, 13)).sum().backward()
    ace_fast.strict(model)
    model(torch.randn(2, 13))
    assert len(calls) == 2 and len(model[0]._forward_hooks) == 1 and not model[0]._forward_hooks_with_kwargs


def test_the_branch_has_the_layers_dtype_and_relaxes_under_torch_compile():
    torch.manual_seed(0)
    model = nn.Sequential(ours.Linear(HIDDEN, HIDDEN)).float()
    x = torch.randn(3, 13, dtype=torch.float32)
    gold = model(x)
    ace_fast.relax(model, gamma_init=0.5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), model(x), rtol=1e-6) and not torch.allclose(compiled(x), gold)
    compiled(x).sum().backward()
    assert model[0].lin_noneq.gamma.grad is not None
    with pytest.raises(ValueError, match="must not be compiled or wrapped yet, got OptimizedModule that is compiled"):
        ace_fast.relax(compiled)
    ace_fast.strict(model)
    assert torch.allclose(compiled(x), gold, rtol=1e-6)


def _attr_segnn():
    return SEGNN("2x1o", HIDDEN, "1x1o", "0e+1o", "0e+1o", 1, task="node")


def _small():
    return nn.Sequential(OrderedDict(lin1=o3.Linear("2x0e", "2x0e"), gate=nn.ReLU()))


def _twice():
    model = nn.Sequential(o3.Linear("2x0e", "2x0e"), nn.Linear(2, 2))
    ace_fast.relax(model, "0")
    return model


@pytest.mark.parametrize(("make_model", "options", "message"), [
    (_twice, {"modules": "1"}, "must be strict, got one whose layer '0' was relaxed before; .*strict"),
    (_small, {"modules": "lin3"}, "must match names of the model's layers, got 'lin3' that matches none; "
                                          "layers that can take a branch: 'lin1'"),
    (_small, {"modules": ["lin1", "line*"]}, "got 'line\\*' that matches none"),
    (_small, {"modules": []}, "must name at least one layer, got none"),
    (_small, {"modules": lambda name, module: False}, "got a function that chooses none"),
    (_small, {"modules": "gate"}, "can take a branch .*, got 'gate', a ReLU: nothing is known of its input"),
    (lambda: nn.Sequential(nn.ReLU()), {}, "layers that can take a branch, got Sequential without; choose torch"),
    (lambda: nn.Sequential(nn.LazyLinear(3)), {"modules": "0"}, "shapes are not known yet; call the model once first"),
    (lambda: nn.Sequential(torch.jit.script(nn.Linear(2, 2))), {"modules": "0"}, "relax the model before torch.jit"),
    (lambda: nn.Sequential(ours.VNLinear(2, 2, relaxed=True)), {"modules": "0"}, "it was built with relaxed=True"),
    (lambda: Vectors(eager_vn), {"modules": "last"}, "branches belong to its maps; choose its children map_to_feat"),
    (lambda: Vectors(ours), {"hidden": (4,)}, "hidden must be .. for ace_fast's vector neurons, got .4,. for 'first'"),
    (lambda: nn.Sequential(ours.O3TensorProduct(HIDDEN, HIDDEN)), {"modules": "0.tp"},
     "got '0.tp' inside O3TensorProduct of ace_fast, which reads its weights"),
    (_attr_segnn, {}, "got SEGNN without; SEGNN '' has branches of its own: build it with relaxed=True"),
    (lambda: nn.DataParallel(_small()), {}, "must not be compiled or wrapped yet, got DataParallel; relax it first"),
    (_small, {"hidden": (0,)}, "hidden must be positive widths such as .64,., got .0,."),
    (_small, {"hidden": 64}, "hidden must be positive widths such as .64,., got 64"),
    (_small, {"modules": nn.Linear}, "modules must be names of layers, .*, got the class Linear; for all layers of a"),
    (_small, {"modules": [nn.Linear(1, 1)]}, "must be names of layers, or a function of name and module, got a Linear"),
    (_small, {"modules": nn.Linear(1, 1)}, "must be names of layers, or a function of name and module, got a Linear"),
    (_small, {"gamma_init": "one"}, "gamma_init must be finite, got 'one'"),
    (_small, {"gamma_init": float("nan")}, "gamma_init must be finite, got nan"),
    (lambda: nn.Sequential(nn.Linear(3, 1)), {"modules": "0", "irreps": {"0": ("1o", "1o")}},
     "irreps of '0' must be two, of the dimensions of a torch.nn.Linear that has none yet, got 1x1o, 1x1o for Linear"),
    (_small, {"irreps": {"lin2": ("1o", "1o")}}, "irreps must be of layers that get a branch, got 'lin2'"),
    (lambda: "model", {}, "model must be a torch.nn.Module, got str"),
])
def test_what_relax_refuses(make_model, options, message):
    with pytest.raises(ValueError, match=f"relax: .*{message}"):
        ace_fast.relax(make_model(), **options)


def test_what_strict_refuses():
    with pytest.raises(ValueError, match="strict: model must have branches that .* added, got Sequential without"):
        ace_fast.strict(_small())
    with pytest.raises(ValueError, match="set_equivariance"):
        ace_fast.strict(ours.VNLinear(2, 2, relaxed=True))


def test_a_swish_gates_branch_has_the_width_that_comes_out():
    layer = ours.O3TensorProductSwishGate(HIDDEN, HIDDEN)
    model, x = nn.Sequential(layer), torch.randn(2, 13)
    ace_fast.relax(model)
    assert layer.lin_noneq.gate_irreps(0)[1].simplify() == o3.Irreps(HIDDEN) and model(x).shape == (2, 13)
