"""The ready-made products: fully connected, full, elementwise, square."""

import pytest
import torch
from dropin import assert_close, assert_same, copies, relaid, rows
from e3nn import o3
from e3nn.util.test import assert_equivariant, assert_normalized

from ace_fast import nn

IRREPS = "1e+2e+3x3o"
# class name, arguments, whether a second input is taken
LAYERS = {
    "fully": ("FullyConnectedTensorProduct", (IRREPS, IRREPS, IRREPS), {}),
    "fully-norm": ("FullyConnectedTensorProduct", (IRREPS, IRREPS, IRREPS),
                   {"irrep_normalization": "norm", "path_normalization": "path"}),
    "full": ("FullTensorProduct", (IRREPS, "1e+2x2e+2x3o"), {}),
    "full-filter": ("FullTensorProduct", ("2x1o+1o+0e", "3x1o+2x0o"), {"filter_ir_out": ["0e", "1o", o3.Irrep("2e")]}),
    "elementwise": ("ElementwiseTensorProduct", ("5x1o+5x1e", "10x1e"), {}),
    "elementwise-filter": ("ElementwiseTensorProduct", ("5x1o+5x1e", "10x1e", ["0e", "0o"]),
                           {"irrep_normalization": "norm"}),
    "square": ("TensorSquare", ("2x0e+3x1o+1x2e",), {}),
    "square-filter": ("TensorSquare", ("2x0e+3x1o+1x2e",), {"filter_ir_out": ["0e", "2e"]}),
    "square-norm": ("TensorSquare", ("2x0e+3x1o+1x2e",), {"irrep_normalization": "norm"}),
    "square-weights": ("TensorSquare", ("2x0e+3x1o+1x2e", "3x0e+2x1e+1x2e"), {}),
    "square-unshared": ("TensorSquare", ("2x0e+3x1o+1x2e", "3x0e+2x1e+1x2e"), {"shared_weights": False}),
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


@pytest.fixture(params=LAYERS)
def layers(request):
    """(ours, e3nn's, make ours in a layout, inputs)."""
    torch.set_default_dtype(torch.float64)
    name, args, options = LAYERS[request.param]
    torch.manual_seed(1)
    theirs = getattr(o3, name)(*args, **options)
    torch.manual_seed(1)
    mine = getattr(nn, name)(*args, **options)
    inputs = [rows(mine.irreps_in1, 4)] if "Square" in name else [rows(mine.irreps_in1, 4), rows(mine.irreps_in2, 4)]
    if not mine.shared_weights:
        inputs.append(torch.randn(4, mine.weight_numel, requires_grad=True))
    return mine, theirs, lambda layout: getattr(nn, name)(*args, **options, layout=layout), inputs


def test_equal_e3nn(layers):
    mine, theirs, _, inputs = layers
    for name in ("irreps_in1", "irreps_in2", "irreps_out", "instructions", "weight_numel", "internal_weights",
                 "shared_weights"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert repr(mine) == repr(theirs) and getattr(mine, "irreps_in", None) == getattr(theirs, "irreps_in", None)
    assert torch.equal(mine.weight, theirs.weight) and torch.equal(mine.output_mask, theirs.output_mask)
    assert mine.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(mine.state_dict())
    assert_same(mine, theirs, inputs)
    adopted = type(mine).from_e3nn(theirs)
    assert_same(adopted, theirs, inputs)
    assert repr(adopted) == repr(theirs)


def test_second_derivatives(layers):
    mine, theirs, _, inputs = layers
    found = []
    for layer in (mine, theirs):
        first = torch.autograd.grad(layer(*inputs).pow(3).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 64)


def test_channels_last(layers):
    mine, _, make, inputs = layers
    last = make("ir_mul")
    last.load_state_dict(mine.state_dict())
    irreps = [mine.irreps_in1, mine.irreps_in2][:len(inputs) - (not mine.shared_weights)]
    moved = [relaid(x, i, "ir_mul") for x, i in zip(inputs, irreps, strict=False)] + inputs[len(irreps):]
    assert_close(relaid(last(*moved), mine.irreps_out, "mul_ir"), mine(*inputs), 4)


def test_equivariant(layers):
    mine, _, _, inputs = layers
    if mine.shared_weights:
        assert_equivariant(mine, irreps_in=[mine.irreps_in1, mine.irreps_in2][:len(inputs)])


def test_copies(layers):
    mine, _, _, inputs = layers
    for other in copies(mine):
        assert torch.equal(other(*inputs), mine(*inputs)) and repr(other) == repr(mine)


@pytest.mark.parametrize("key", ["fully", "full", "elementwise", "square", "square-weights"])
def test_compile_as_a_full_graph(key):
    name, args, options = LAYERS[key]
    mine = getattr(nn, name)(*args, **options)
    torch._dynamo.reset()
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    assert_same(compiled, mine, [rows(mine.irreps_in1, 4), rows(mine.irreps_in2, 4)][:1 if "square" in key else 2])


def test_normalisation_does_not_depend_on_the_partition(double):
    one, other = (nn.FullyConnectedTensorProduct(i, i, "0e") for i in ("10x0e", "3x0e+7x0e"))
    for tp in (one, other):
        torch.nn.init.ones_(tp.weight)
    x, y = torch.randn(2, 3, 10)
    assert_close(one(x, y), other(x, y), 4)


def test_normalised():
    assert_normalized(nn.FullyConnectedTensorProduct("10x0e+5x1o", "3x0e+2x1o", "4x0e+4x1o"), n_weight=50,
                      n_input=2000, atol=0.5)
    assert_normalized(nn.ElementwiseTensorProduct("5x0e+5x1e", "10x0e"))


@pytest.mark.parametrize("irreps, normalization", [("0e+1e+2e", "norm"), ("0e+3x1e+3e", "component")])
def test_square_is_normalised(double, irreps, normalization):
    irreps = o3.Irreps(irreps)
    tp = nn.TensorSquare(irreps, irrep_normalization=normalization)
    y = tp(irreps.randn(30_000, -1, normalization=normalization))
    squares = o3.Norm(tp.irreps_out, squared=True)(y) if normalization == "norm" else y.square()
    assert (squares.mean(0).log().abs().exp() < 1.1).all()
    plain = nn.TensorSquare(irreps, irrep_normalization="none")(irreps.randn(20_000, -1)).square().mean(0)
    assert not (plain.log().abs().exp() < 1.1).all()


def test_square_with_weights_is_normalised(double):
    irreps = o3.Irreps("0e+3x1e+3e")
    tp = nn.TensorSquare(irreps, irreps, shared_weights=False)
    y = tp(irreps.randn(30_000, -1), torch.randn(30_000, tp.weight_numel))
    assert (y.square().mean(0).log().abs().exp() < 1.1).all()


def test_elasticity_tensor():
    once = nn.TensorSquare("1o")
    assert nn.TensorSquare(once.irreps_out).irreps_out.simplify() == o3.Irreps("2x0e+2x2e+4e")


@pytest.mark.parametrize("make, message", [
    (lambda: nn.ElementwiseTensorProduct("2x1o", "3x0e"),
     "ElementwiseTensorProduct: irreps_in2 must have the 2 channels of irreps_in1, got 3"),
    (lambda: nn.FullTensorProduct("1o", "1o", filter_ir_out=["x"]), "must be an iterable of e3nn.o3.Irrep"),
    (lambda: nn.TensorSquare("1o", "0e", filter_ir_out=["0e"]), "Both `irreps_out` and `filter_ir_out` are not None"),
    (lambda: nn.TensorSquare("1o", irrep_normalization="all"),
     r"TensorSquare: irrep_normalization must be one of \(None, 'component', .* got 'all'"),
    (lambda: nn.FullTensorProduct("1o", "1o", layout="mul"), r"layout must be one of \('mul_ir', 'ir_mul'\), got"),
])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
