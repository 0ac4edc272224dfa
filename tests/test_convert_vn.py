"""convert and restore of vector-neuron layers: what is recognised, shared, left and why."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ace_fast import convert, native, restore
from ace_fast import nn as fast
from ace_fast.bench import eager_vn as vnn
from ace_fast.relaxation import ACE, branch_weights

BACKENDS = ["reference", *([] if native.load() else ["cpu"])]
ARGS = SimpleNamespace(disable_equivariance=1, full_nonequi=1)


class VNLinearLeakyReLU(vnn.VNLinearLeakyReLU):
    """As in ACE's repository: it keeps `args`, which may leave out the directions' branch."""

    legacy_view = True

    def __init__(self, *sizes, args=ARGS):
        super().__init__(*sizes, relaxed=True)
        self.args, (self.in_channels, self.out_channels) = args, sizes[:2]
        if not args.full_nonequi:
            del self.map_to_dir_nonequiv
        del self.legacy_view

    def forward(self, x, disable_equivariance):
        p, d = (linear(x.transpose(1, -1)).transpose(1, -1) for linear in (self.map_to_feat, self.map_to_dir))
        if disable_equivariance:
            p = self._skip(p, x, self.map_to_feat_nonequiv, self.gammas[0])
            if self.args.full_nonequi:
                d = self._skip(d, x, self.map_to_dir_nonequiv, self.gammas[1])
        return vnn._leaky(self.batchnorm(p), d, self.negative_slope)


class Net(nn.Module):
    """Somebody's model: all layers, one used twice, ACE's among vnn's, one of another library under a known name."""

    def __init__(self):
        super().__init__()
        self.edge = vnn.VNLinearLeakyReLU(2, 6, relaxed=False)
        self.pools = nn.ModuleList([vnn.VNMaxPool(6)])
        self.first = VNLinearLeakyReLU(6, 8, 4)
        self.plain = VNLinearLeakyReLU(8, 8, 4, args=SimpleNamespace(disable_equivariance=1, full_nonequi=0))
        self.linear, self.norm, self.relu = vnn.VNLinear(8, 8), vnn.VNBatchNorm(8, 4), vnn.VNLeakyReLU(8, True, 0.1)
        self.again = self.relu
        self.std = vnn.VNStdFeature(8, 4, True, relaxed=True)
        self.missing = None

    def forward(self, x, on=True):
        x = self.pools[0](self.edge(vnn.get_graph_feature(x.unsqueeze(1), 4)))
        x = self.plain(self.first(x, on), on)
        x = self.again(self.relu(self.norm(self.linear(x))))
        return self.std(x, on)[0]


NAMES = ["edge", "pools.0", "first", "plain", "linear", "norm", "relu", "again", "std"]


@pytest.fixture
def net():
    torch.set_default_dtype(torch.float64)
    net = Net()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def clouds():
    return torch.randn(3, 3, 9)


def results(net, x):
    """Outputs, gradients and buffers of a step with the branches and one without."""
    found = []
    for on in (True, False):
        out = net(x, on)
        found += [out, *torch.autograd.grad(out.square().sum(), list(net.parameters()), allow_unused=True)]
    return found + [b.clone().double() for b in net.buffers()]


def assert_same(a, b):
    scale = max(y.abs().max() for y in b if y is not None)
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        assert x is None or (x - y).abs().max() <= 1e-11 * (y.abs().max() + 1e-2 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_convert_and_restore(net, backend):
    x, state = clouds(), copy.deepcopy(net.state_dict())
    parameters, buffers, modules = list(net.parameters()), list(net.buffers()), dict(net.named_modules())
    want = results(net, x)
    net.load_state_dict(state)
    before = torch.get_rng_state()
    report = convert(net, backend)
    assert torch.equal(torch.get_rng_state(), before)
    assert [e.name for e in report.replaced] == NAMES and report.left == []
    assert type(net.first) is fast.VNLinearLeakyReLU and net.first.legacy_view and net.first.backend == backend
    assert net.again is net.relu and type(net.std.vn1.batchnorm) is fast.VNBatchNorm
    assert [net.edge.relaxed, net.first.relaxed, net.std.vn1.relaxed] == [False, True, True]
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(net.buffers(), buffers, strict=True))
    assert list(net.state_dict()) == list(state)
    assert_same(results(net, x), want)
    back = restore(net)
    assert [e.name for e in back.replaced] == NAMES and not back.left
    assert dict(net.named_modules()) == modules
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    net.load_state_dict(state)
    assert_same(results(net, x), want)
    assert restore(net).replaced == []


def test_report_is_a_table(net):
    net.norm.register_forward_hook(lambda *a: None)
    lines = str(convert(net)).splitlines()
    assert lines[0] == "8 replaced, 1 left"
    assert lines[1].split() == ["replaced", "edge", "VNLinearLeakyReLU", "2", "->", "6"]
    assert lines[-2].split() == ["replaced", "std", "VNStdFeature", "8", "->", "4"]
    assert lines[-1].split(maxsplit=2) == ["left", "norm", "VNBatchNorm 8: it has hooks; remove them first"]


def test_ours_as_a_drop_in_for_a_whole_model():
    """vnn's classifier with converted layers: logits, gradients and evaluation; the graph functions stay theirs."""
    torch.set_default_dtype(torch.float64)
    model = vnn.EagerVNDGCNN(5, 4, "max", 0.0, relaxed=True, legacy_view=True)
    x = clouds()
    twin = copy.deepcopy(model)
    report = convert(twin)
    assert len(report.replaced) == 10 and not report.left
    model(x).square().sum().backward()
    twin(x).square().sum().backward()
    scale = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or (p.grad - q.grad).abs().max() <= 1e-9 * (q.grad.abs().max() + 1e-2 * scale)
    model.eval(), twin.eval()
    assert (twin(x) - model(x)).abs().max() <= 1e-10 * model(x).abs().max()


def test_ace_owns_and_bounds_the_branches_of_a_converted_model(net):
    """Gammas and matrices are found by name before and after, whoever's layers they are, and projected."""
    own = [name for name, _ in net.named_parameters() if "nonequiv.weight" in name]
    assert len(own) == 7  # two layers and a frame with two, one of them without that of the directions
    for change in (lambda model: None, convert, restore):
        change(net)
        named = dict(net.named_parameters())
        assert [id(w) for w in branch_weights(net)] == [id(named[name]) for name in own]
        with torch.no_grad():
            for p in named.values():
                p.mul_(100)
        before = {name: p.clone() for name, p in named.items()}
        ace = ACE(net, bound="spectral", bound_limit=2.0)
        assert len(ace.names) == 8
        ace.bound.project()
        ace.release()
        for name, p in named.items():
            if name in own:
                assert 1.9 < torch.linalg.matrix_norm(p.detach(), 2) < 2.1, name
            else:
                assert torch.equal(p, before[name]), name


def test_mended_order_is_kept():
    layer = nn.Sequential(vnn.VNLinearLeakyReLU(4, 5, 4, relaxed=True, legacy_view=False))
    convert(layer)
    assert layer[0].relaxed and not layer[0].legacy_view


def test_flags_and_parameters_that_change_in_between(net):
    convert(net, "reference")
    net.to(torch.float32).eval()
    net.first.batchnorm.bn.train()
    weight = net.first.map_to_feat.weight = nn.Parameter(torch.zeros(8, 6).float())
    bn = net.norm.bn = nn.BatchNorm1d(8).float()
    restore(net)
    assert net.first.map_to_feat.weight is weight and net.norm.bn is bn
    assert not net.first.training and net.first.batchnorm.bn.training and not net.std.vn2.batchnorm.training
    assert {t.dtype for t in net.state_dict().values()} == {torch.float32, torch.int64}
    net.eval()
    convert(net)
    assert not any(m.training for m in net.modules())


def test_twice_and_ours(net):
    convert(net)
    first, report = net.first, convert(net)
    assert report.replaced == [] and net.first is first
    assert [e.why for e in report.left] == ["it is converted already"] * len(NAMES)
    holder = nn.ModuleList([fast.VNLinearLeakyReLU(4, 5, 4)])
    assert [e.why for e in convert(holder).left] == ["it is ace_fast's own"] and restore(holder).replaced == []


def test_converted_models_are_copied_and_pickled(net):
    x = clouds()
    convert(net, "reference")
    want = net.eval()(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), want)
        assert [e.name for e in restore(twin).replaced] == NAMES and type(twin.first) is VNLinearLeakyReLU
        assert twin.first.map_to_feat.weight is not net.first.map_to_feat.weight
        assert_same([twin(x)], [want])


def hook(*args):
    return None


def changed(layer, change):
    change(layer)
    return layer


def layer():
    return vnn.VNLinearLeakyReLU(4, 6, 4, relaxed=True)


class VNLinear(nn.Module):
    """Another library's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("make, why", [
    (lambda: changed(layer(), lambda m: m.register_forward_hook(hook)), "it has hooks; remove them first"),
    (lambda: changed(layer(), lambda m: m.register_full_backward_hook(hook)), "it has hooks; remove them first"),
    (lambda: changed(layer(), lambda m: m.map_to_dir.register_forward_hook(hook)),
     "its map_to_dir has hooks, which ours would not call; remove them first"),
    (lambda: changed(layer(), lambda m: m.batchnorm.bn.register_forward_hook(hook)),
     "its batchnorm: its bn has hooks, which ours would not call; remove them first"),
    (lambda: changed(layer(), lambda m: setattr(m, "use_batchnorm", "none")),
     "it has attributes of its own (use_batchnorm); ours may compute something else"),
    (lambda: changed(layer(), lambda m: m.register_buffer("scale", torch.ones(1))),
     "it has attributes of its own (scale); ours may compute something else"),
    (lambda: changed(layer(), lambda m: setattr(m, "forward", m.forward)),
     "it has attributes of its own (forward); ours may compute something else"),
    (lambda: changed(layer(), lambda m: setattr(m, "map_to_feat", nn.Linear(4, 6))),
     "its map_to_feat must have no bias"),
    (lambda: changed(layer(), lambda m: setattr(m, "map_to_feat_nonequiv", nn.Linear(12, 18, bias=False))),
     "its map_to_feat_nonequiv must have a bias"),
    (lambda: changed(layer(), lambda m: setattr(m, "map_to_dir_nonequiv", nn.Linear(12, 3))),
     "its map_to_dir_nonequiv must map to and from (18, 12) features, got (3, 12)"),
    (lambda: changed(layer(), lambda m: setattr(m, "map_to_dir", nn.Linear(4, 3, bias=False))),
     "its map_to_dir must have 1 or 6 directions, got 3"),
    (lambda: changed(layer(), lambda m: setattr(m, "map_to_feat", nn.Identity())),
     "its map_to_feat is Identity; it must be torch.nn.Linear"),
    (lambda: changed(layer(), lambda m: delattr(m, "gammas")),
     "it has map_to_dir_nonequiv, map_to_feat_nonequiv alone; ACE's has map_to_feat_nonequiv and gammas"),
    (lambda: changed(layer(), lambda m: m.gammas.append(nn.Parameter(torch.ones(())))),
     "its gammas must be a torch.nn.ParameterList of two scalars"),
    (lambda: changed(layer(), lambda m: setattr(m, "batchnorm", nn.BatchNorm1d(6))),
     "its batchnorm is BatchNorm1d; it must be VNBatchNorm"),
    (lambda: changed(layer(), lambda m: setattr(m, "batchnorm", vnn.VNBatchNorm(5, 4))),
     "its batchnorm must have 6 features, got 5"),
    (lambda: changed(layer(), lambda m: setattr(m, "dim", 5)), "its dim must be that of its batchnorm, 4, got 5"),
    (lambda: changed(layer(), lambda m: setattr(m.batchnorm, "bn", nn.SyncBatchNorm(6))),
     "its batchnorm: its bn is SyncBatchNorm; for dim 4 it must be torch.nn.BatchNorm1d"),
    (lambda: changed(vnn.VNBatchNorm(6, 4), lambda m: setattr(m, "dim", 2)), "its dim must be 3, 4 or 5, got 2"),
    (lambda: layer().bfloat16(), "its weights are torch.bfloat16; ours must be float32 or float64"),
    (lambda: changed(vnn.VNStdFeature(8), lambda m: setattr(m, "vn2", vnn.VNLinearLeakyReLU(5, 2, 4))),
     "its maps must follow each other, got [(4, 8), (2, 5), (3, 2)]"),
    (lambda: changed(vnn.VNLeakyReLU(5), lambda m: delattr(m, "negative_slope")),
     "it has no negative_slope as vnn's VNLeakyReLU"),
    (VNLinear, "it has no map_to_feat as vnn's VNLinear"),
], ids=range(23))
def test_left_with_its_reason(make, why):
    module = make()
    holder = nn.ModuleDict({"vn": module})
    report = convert(holder)
    assert [(e.name, e.why) for e in report.left if e.name == "vn"] == [("vn", why)] and holder["vn"] is module


def test_what_lies_inside_a_layer_that_was_left():
    holder = nn.ModuleList([changed(vnn.VNStdFeature(8), lambda m: setattr(m, "mine", 1))])
    report = convert(holder)
    assert [e.name for e in report.left] == ["0"]
    assert [e.name for e in report.replaced] == ["0.vn1", "0.vn2"] and type(holder[0].vn1) is fast.VNLinearLeakyReLU
    assert [e.name for e in restore(holder).replaced] == ["0.vn1", "0.vn2"]


@pytest.mark.parametrize("change, why", [
    (lambda m: m.register_forward_hook(hook), "it has hooks; remove them first"),
    (lambda m: setattr(m, "tag", 1), "it has attributes of its own (tag) that would be lost; delete them first"),
    (lambda m: m.batchnorm.register_forward_hook(hook), "its batchnorm: it has hooks; remove them first"),
])
def test_restore_leaves_what_was_changed_since(net, change, why):
    convert(net)
    change(net.first)
    converted, report = net.first, restore(net)
    assert [(e.name, e.why) for e in report.left] == [("first", why)] and net.first is converted
    assert [e.name for e in report.replaced] == [name for name in NAMES if name != "first"]


def test_parametrized_weights_go_on_acting():
    torch.set_default_dtype(torch.float64)
    holder = nn.Sequential(vnn.VNLinear(5, 7))
    nn.utils.parametrizations.weight_norm(holder[0].map_to_feat)
    x = torch.randn(2, 5, 3, 4)
    want = holder(x)
    assert [e.name for e in convert(holder, "reference").replaced] == ["0"]
    assert_same([holder(x)], [want])


def test_the_model_itself_and_scripted_layers():
    report = convert(layer())
    assert [e.why for e in report.left] == ["it is the model itself; put it into a torch.nn.Sequential"]
    scripted = nn.ModuleList([torch.jit.script(VNLinear())])
    assert [e.why for e in convert(scripted).left] == ["it is scripted; convert the model before torch.jit.script"]
