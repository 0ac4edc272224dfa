"""convert of cuequivariance_torch's layers, on the library itself where it is installed."""

import copy

import pytest
import torch
from dropin import assert_close, copies
from torch import nn

from ace_fast.convert import convert, restore

cue = pytest.importorskip("cuequivariance")
cuet = pytest.importorskip("cuequivariance_torch")
pytestmark = pytest.mark.filterwarnings("ignore:.*Falling back to naive", "ignore:.*falling back to `naive`",
                                        "ignore:`use_fallback` is deprecated:DeprecationWarning")
LAYOUTS = {"mul_ir": {"layout": "mul_ir"}, "ir_mul": {"layout": "ir_mul"},
           "mixed": {"layout_in1": "ir_mul", "layout_in2": "mul_ir", "layout_out": "mul_ir"}}
BOTH = pytest.mark.parametrize("layout, group", [("mul_ir", "O3"), ("ir_mul", "SO3"), ("mixed", "O3")])


def irreps(group: str, text: str):
    return cue.Irreps(group, text if group == "O3" else text.replace("e", "").replace("o", ""))


def full(group, **options):
    return cuet.FullyConnectedTensorProduct(irreps(group, "3x0e+2x1o"), irreps(group, "2x0e+1x1o+1x2e"),
                                            irreps(group, "2x0e+3x1o+1x1e"), **options)


def channelwise(group, **options):
    return cuet.ChannelWiseTensorProduct(irreps(group, "4x0e+4x1o"), irreps(group, "0e+1o+2e"),
                                         [ir for _, ir in irreps(group, "0e+1o+2e")], **options)


def channelwise_two(group, **options):
    return cuet.ChannelWiseTensorProduct(irreps(group, "3x0e+2x1o"), irreps(group, "2x0e+1o"), None, **options)


def inputs(layer, z, weights=True):
    found = [torch.randn(z, i.dim, requires_grad=True) for i in (layer.irreps_in1, layer.irreps_in2)]
    if weights and not layer.internal_weights:
        found.append(torch.randn(1 if layer.shared_weights else z, layer.weight_numel, requires_grad=True))
    return found


def results(layer, args, **more):
    out = layer(*args, **more)
    leaves = [a for a in args if a is not None] + list(layer.parameters())
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


def check(make, args_of, **more):
    """Converted it gives the same, shares the Parameter, restores, and loads checkpoints both ways."""
    torch.set_default_dtype(torch.float64)
    holder = nn.ModuleDict({"layer": make()})
    old, twin = holder["layer"], copy.deepcopy(holder)
    args = args_of(old)
    want = results(old, args, **more)
    report = convert(holder)
    assert [e.name for e in report.replaced] == ["layer"] and not report.left
    assert holder["layer"].weight is old.weight and type(holder["layer"]) is not type(old)
    assert str(report).splitlines()[1].split()[2:4] == ["cuequivariance", type(old).__name__]
    for a, b in zip(results(holder["layer"], args, **more), want, strict=True):
        assert_close(a, b, 16)
    assert holder.state_dict().keys() == twin.state_dict().keys()
    assert holder.load_state_dict(twin.state_dict()) and twin.load_state_dict(holder.state_dict())
    for other in copies(holder["layer"]):
        assert torch.equal(other(*args, **more), holder["layer"](*args, **more))
    assert [e.why for e in convert(holder).left] == ["it is converted already"]
    assert [e.name for e in restore(holder).replaced] == ["layer"] and holder["layer"] is old
    for a, b in zip(results(old, args, **more), want, strict=True):
        assert torch.equal(a, b)


@BOTH
@pytest.mark.parametrize("make", [full, channelwise, channelwise_two])
def test_products(make, layout, group):
    check(lambda: make(group, method="naive", dtype=torch.float64, **LAYOUTS[layout]), lambda old: inputs(old, 5))


@pytest.mark.parametrize("make", [full, channelwise])
@pytest.mark.parametrize("shared", [True, False])
def test_weights_from_outside(make, shared):
    check(lambda: make("O3", method="naive", layout="ir_mul", shared_weights=shared, internal_weights=False),
          lambda old: inputs(old, 5))


@pytest.mark.parametrize("layout", ["ir_mul", "mixed"])
def test_gather_and_sum(layout):
    """The layer's own convolution runs as ours."""
    source, target = torch.tensor([0, 2, 1, 0, 2, 2]), torch.tensor([3, 0, 1, 3, 3, 0])

    def make():
        return channelwise("O3", method="naive", shared_weights=False, **LAYOUTS[layout])

    def args(old):
        x, y, weight = inputs(old, 6)
        return [x[:3].detach().requires_grad_(), y, weight]

    check(make, args, indices_1=source, indices_out=target, size_out=4)
    if layout != "mixed":
        return
    check(make, args, indices_1=source)
    check(make, lambda old: inputs(old, 6), indices_out=target, size_out=4)
    check(make, args, indices_1=source, indices_2=target, indices_out=target, size_out=4)


@BOTH
def test_linear(layout, group):
    options = {"layout_in": "ir_mul", "layout_out": "mul_ir"} if layout == "mixed" else {"layout": layout}

    def make(**more):
        return cuet.Linear(irreps(group, "3x0e+2x1o+1x1o"), irreps(group, "2x0e+4x1o+1x2e"), dtype=torch.float64,
                           **options, **more)

    check(make, lambda old: [torch.randn(5, old.irreps_in.dim, requires_grad=True)])
    check(lambda: make(weight_classes=3), lambda old: [torch.randn(5, old.irreps_in.dim, requires_grad=True)],
          weight_indices=torch.tensor([0, 2, 1, 1, 0]))
    check(lambda: make(shared_weights=False),
          lambda old: [torch.randn(5, old.irreps_in.dim, requires_grad=True),
                       torch.randn(5, old.weight_numel, requires_grad=True)])


def test_what_stays():
    tuned = full("O3", method="naive", layout="ir_mul", math_dtype=torch.float64)
    half = full("O3", method="naive", layout="ir_mul").to(torch.bfloat16)
    spinors = cuet.Linear(cue.Irreps("SU2", "2x1/2"), cue.Irreps("SU2", "3x1/2"), layout="ir_mul")
    hooked = full("O3", method="naive", layout="ir_mul")
    hooked.register_forward_hook(lambda *a: None)
    report = convert(nn.ModuleList([tuned, half, spinors, hooked]))
    assert not report.replaced
    assert [e.why for e in report.left] == [
        "it computes in float64, its weights are torch.float32; ours computes in one dtype",
        "its weights are torch.bfloat16; ours must be float32 or float64",
        "its description is not understood: irreps of even dimension in 2x1/2",
        "it has hooks; remove them first",
    ]


def test_errors():
    holder = nn.ModuleList([full("O3", method="naive", layout="ir_mul"),
                            channelwise("O3", method="naive", layout="ir_mul", internal_weights=False),
                            cuet.Linear(irreps("O3", "2x0e"), irreps("O3", "2x0e"), layout="ir_mul", weight_classes=2)])
    convert(holder)
    x, y = torch.zeros(2, holder[0].irreps_in1.dim), torch.zeros(2, holder[0].irreps_in2.dim)
    with pytest.raises(ValueError, match="weight must be None with internal weights, got a tensor"):
        holder[0](x, y, torch.zeros(1, 3))
    x, y = torch.zeros(2, holder[1].irreps_in1.dim), torch.zeros(2, holder[1].irreps_in2.dim)
    with pytest.raises(ValueError, match=r"weight must be \[1, \d+\] without internal weights, got None"):
        holder[1](x, y)
    with pytest.raises(ValueError, match="size_out must be given with indices_out, got None"):
        holder[1](x, y, torch.zeros(1, holder[1].weight_numel), indices_out=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"weight_indices must be \[Z\] with 2 weight classes, got None"):
        holder[2](torch.zeros(1, 2))
