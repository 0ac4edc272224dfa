"""convert and restore: what is replaced, what is shared, what is left and why."""

import copy
import io

import pytest
import torch
from e3nn import o3
from e3nn.nn import Gate, NormActivation
from torch import nn

from ace_fast import nn as fast
from ace_fast import which
from ace_fast.convert import convert, restore

IRREPS = ("3x0e+2x1o", "1x0e+1x1o", "2x0e+3x1o")


class Net(nn.Module):
    """Somebody's model: products in a list, one used twice, a gate, a norm activation and a product of another mode."""

    def __init__(self):
        super().__init__()
        self.first = o3.FullyConnectedTensorProduct(*IRREPS)
        second = (IRREPS[2], IRREPS[1], IRREPS[0])
        self.blocks = nn.ModuleList(nn.ModuleDict({"tp": o3.FullyConnectedTensorProduct(*second)}) for _ in range(2))
        self.again = self.blocks[0]["tp"]
        self.paths = o3.TensorProduct("2x0e+3x1o", "1x0e", "2x0e", [(0, 0, 0, "uvw", True)])
        self.depthwise = o3.TensorProduct("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvu", True)])
        self.gate = Gate("1x0e", [torch.tanh], "1x0e", [torch.sigmoid], "1x1o")
        self.norm = NormActivation(o3.Irreps(IRREPS[2]), torch.tanh, bias=True)
        self.missing = None

    def forward(self, x, y):
        x = self.first(x, y)
        for block in self.blocks:
            x = self.first(block["tp"](x, y), y)
        x = self.norm(self.first(self.again(x, y), y))
        return self.depthwise(self.paths(x, y[:, :1]), y[:, :1])


@pytest.fixture
def net():
    torch.set_default_dtype(torch.float64)
    return Net()


def inputs():
    return torch.randn(4, 9), torch.randn(4, 4)


def results(net, x, y):
    out = net(x, y)
    return [out, *torch.autograd.grad(out.square().sum(), list(net.parameters()))]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= 1e-12 * y.abs().max()


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_convert_and_restore(net, backend):
    x, y = inputs()
    assert which("tensor_product", x) == "cpu"  # what "auto" stands for
    parameters, modules, state = list(net.parameters()), dict(net.named_modules()), net.state_dict()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    want = results(net, x, y)
    report = convert(net, backend)
    assert [e.name for e in report.replaced] == ["first", "blocks.0.tp", "blocks.1.tp", "again", "paths", "depthwise",
                                                 "gate", "norm"]
    assert not report.left
    assert type(net.first) is fast.FullyConnectedTensorProduct and type(net.paths) is fast.TensorProduct
    assert net.again is net.blocks[0]["tp"]
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(p is q for p, q in zip(optimiser.param_groups[0]["params"], parameters, strict=True))
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in state.items()}
    net.load_state_dict(state, strict=True)
    assert_same(results(net, x, y), want)
    back = restore(net)
    assert [e.name for e in back.replaced] == [e.name for e in report.replaced] and not back.left
    assert dict(net.named_modules()) == modules
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert_same(results(net, x, y), want)
    assert restore(net).replaced == []


def test_training_continues_across_convert_and_restore(net):
    x, y = inputs()
    other = copy.deepcopy(net)
    optimisers = [torch.optim.Adam(n.parameters(), lr=1e-2) for n in (net, other)]
    for step in range(6):
        if step == 2:
            convert(net)
        if step == 4:
            restore(net)
        for n, optimiser in zip((net, other), optimisers, strict=True):
            optimiser.zero_grad()
            n(x, y).square().sum().backward()
            optimiser.step()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-9


def test_report_is_a_table(net):
    text = str(convert(net))
    lines = text.splitlines()
    assert lines[0] == "8 replaced, 0 left"
    assert lines[1].split() == ["replaced", "first", "FullyConnectedTensorProduct", "3x0e+2x1o", "x", "1x0e+1x1o", "->",
                                "2x0e+3x1o"]
    assert str(convert(nn.Linear(1, 1))) == "0 replaced, 0 left"


def test_twice(net):
    convert(net)
    first = net.first
    report = convert(net)
    assert report.replaced == [] and net.first is first
    assert [e.why for e in report.left if e.name == "first"] == ["it is converted already"]
    holder = nn.ModuleList([fast.FullyConnectedTensorProduct(*IRREPS)])
    assert convert(holder).left[0].why == "it is ace_fast's own"
    assert restore(holder).replaced == []


def with_hook(tp):
    tp.register_forward_hook(lambda *a: None)
    return tp


def with_tag(tp):
    tp.tag = "mine"
    tp.register_buffer("scale", torch.ones(1))
    return tp


def with_parametrization(tp):
    nn.utils.parametrize.register_parametrization(tp, "weight", nn.Identity())
    return tp


def with_hook_inside(norm):
    with_hook(norm.norm.tp)
    return norm


def with_another_product(gate):
    gate.mul = nn.Identity()
    return gate


GATE, NORM = ("1x0e", [torch.tanh], "1x0e", [torch.sigmoid], "1x1o"), (o3.Irreps("1x1o"), torch.sigmoid)


class Subclass(o3.FullyConnectedTensorProduct):
    def forward(self, x, y, weight=None):
        return -super().forward(x, y, weight)


@pytest.mark.parametrize("make, why", [
    (lambda: with_hook(o3.FullyConnectedTensorProduct(*IRREPS)), "it has hooks; remove them first"),
    (lambda: with_tag(o3.FullyConnectedTensorProduct(*IRREPS)),
     "it has attributes of its own (scale, tag) that would be lost; delete them first"),
    (lambda: with_parametrization(o3.FullyConnectedTensorProduct(*IRREPS)),
     "it has parametrizations; remove them first"),
    (lambda: Subclass(*IRREPS), "it is a subclass, which may compute something else"),
    (lambda: o3.FullyConnectedTensorProduct(*IRREPS).to(torch.bfloat16),
     "its weights are torch.bfloat16; ours must be float32 or float64"),
    (lambda: with_another_product(Gate(*GATE)), "its product is Identity; it must be e3nn's"),
], ids=["hooks", "attributes", "parametrized", "subclass", "bfloat16", "mul"])
def test_left_with_its_reason(make, why):
    module = make()
    holder = nn.ModuleDict({"tp": module})
    report = convert(holder)
    assert report.replaced == [] and [(e.name, e.why) for e in report.left] == [("tp", why)]
    assert holder["tp"] is module


@pytest.mark.parametrize("make, why", [
    (lambda: NormActivation(*NORM).to(torch.bfloat16),
     "its weights are torch.bfloat16; ours must be float32 or float64"),
    (lambda: with_hook_inside(NormActivation(*NORM)),
     "what is inside has hooks, which ours would not call; remove them first"),
], ids=["bfloat16", "hooks-inside"])
def test_what_is_inside_comes_after(make, why):
    """Of a module that stays, the products inside may be replaced."""
    holder = nn.ModuleDict({"norm": make()})
    report = convert(holder)
    assert (report.left[0].name, report.left[0].why) == ("norm", why) and type(holder["norm"]) is NormActivation
    assert {e.name for e in report.replaced + report.left[1:]} == {"norm.norm.tp", "norm.scalar_multiplier"}


@pytest.mark.parametrize("change, why", [
    (with_hook, "it has hooks; remove them first"),
    (with_tag, "it has attributes of its own (scale, tag) that would be lost; delete them first"),
    (with_parametrization, "it has parametrizations; remove them first"),
])
def test_restore_leaves_what_was_changed_since(net, change, why):
    convert(net)
    change(net.first)
    converted = net.first
    report = restore(net)
    assert [(e.name, e.why) for e in report.left] == [("first", why)]
    assert [e.name for e in report.replaced] == ["blocks.0.tp", "blocks.1.tp", "again", "paths", "depthwise",
                                                 "gate", "norm"]
    assert net.first is converted and type(net.paths) is o3.TensorProduct


@pytest.mark.parametrize("make", [
    lambda: o3.TensorProduct("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvw", True)], internal_weights=False),
    lambda: o3.TensorProduct("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvw", True)], compile_left_right=False),
    lambda: copy.deepcopy(o3.FullyConnectedTensorProduct(*IRREPS)),
    lambda: o3.FullyConnectedTensorProduct("1x0e", "1x0e", "1x1o"),
], ids=["external", "not-compiled", "copied", "empty"])
def test_e3nns_own_attributes_are_no_obstacle(make):
    holder = nn.ModuleList([make()])
    assert [e.name for e in convert(holder).replaced] == ["0"]
    assert [e.name for e in restore(holder).replaced] == ["0"]


def test_unknown_backends_are_refused(net):
    first = net.first
    with pytest.raises(ValueError, match=r"convert: backend must be one of \['auto', .*\], got 'fast'; take 'auto'"):
        convert(net, backend="fast")
    assert net.first is first


def test_scripted_modules_are_left():
    from e3nn.util.jit import script

    holder = nn.ModuleList([script(o3.FullyConnectedTensorProduct(*IRREPS))])
    assert [e.why for e in convert(holder).left] == ["it is scripted; convert the model before torch.jit.script"]


def test_the_model_itself():
    report = convert(o3.FullyConnectedTensorProduct(*IRREPS))
    assert report.left[0].why == "it is the model itself; use ace_fast.nn.FullyConnectedTensorProduct.from_e3nn"
    tp = o3.FullyConnectedTensorProduct(*IRREPS)
    mine = fast.FullyConnectedTensorProduct.from_e3nn(tp)
    assert mine.weight is tp.weight


def test_weights_from_outside():
    torch.set_default_dtype(torch.float64)
    holder = nn.ModuleList([o3.FullyConnectedTensorProduct(*IRREPS, internal_weights=False)])
    x, y = inputs()
    weight = torch.randn(holder[0].weight_numel)
    want = holder[0](x, y, weight)
    assert len(convert(holder, backend="reference").replaced) == 1
    assert_same([holder[0](x, y, weight)], [want])


def test_restore_after_changes_in_between(net):
    """Casts, new Parameter objects and the training flag of the converted model reach the restored one."""
    convert(net, backend="reference")
    net.to(torch.float32).eval()
    net.first.weight = nn.Parameter(torch.zeros_like(net.first.weight))
    weight = net.first.weight
    restore(net)
    assert net.first.weight is weight and not net.first.training
    assert {t.dtype for t in net.state_dict().values()} == {torch.float32}
    assert net(*(t.float() for t in inputs())).dtype == torch.float32


def test_converted_models_are_copied_and_saved(net):
    x, y = inputs()
    convert(net, backend="reference")
    want = net(x, y)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x, y), want)
    restore(twin)
    assert type(twin.first) is o3.FullyConnectedTensorProduct and twin.first.weight is not net.first.weight
    assert_same([twin(x, y)], [want])
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x, y), want)
