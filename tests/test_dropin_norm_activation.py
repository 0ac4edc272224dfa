"""NormActivation equals e3nn's for any nonlinearity, with all its flags, in both layouts."""

import e3nn.nn
import pytest
import torch
from dropin import Slope, assert_close, assert_same, copies, relaid, rows
from e3nn import o3
from e3nn.util.test import assert_equivariant
from torch.nn import functional as F

from ace_fast.nn import NormActivation

IRREPS = o3.Irreps("4x0e+3x0o+5x1o+2x1o+3x2e")  # neighbours of the same irrep, which e3nn joins


FUSED = {"silu": F.silu, "SiLU": torch.nn.SiLU(), "sigmoid": torch.sigmoid, "functional.sigmoid": F.sigmoid,
         "Sigmoid": torch.nn.Sigmoid(), "tanh": torch.tanh, "functional.tanh": F.tanh, "Tanh": torch.nn.Tanh(),
         "relu": torch.relu, "functional.relu": F.relu, "ReLU": torch.nn.ReLU()}
OTHERS = {"softplus": F.softplus, "a lambda": lambda x: x**3, "across channels": lambda x: x.softmax(-1),
          "with a parameter": Slope()}
FLAGS = [{}, {"bias": True}, {"epsilon": 1.5}, {"epsilon": 0.25, "bias": True}, {"normalize": False},
         {"normalize": False, "bias": True}]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def original(irreps, f, normalize=True, **options) -> e3nn.nn.NormActivation:
    """e3nn's; what its constructor would make of normalize=False if it did not stop with a TypeError."""
    theirs = e3nn.nn.NormActivation(o3.Irreps(irreps), f, **options)
    if not normalize:
        with pytest.raises(TypeError, match="'>' not supported"):
            e3nn.nn.NormActivation(o3.Irreps(irreps), f, normalize=False)
        theirs.normalize, theirs.epsilon, theirs._eps_squared, theirs.norm = False, None, 0.0, o3.Norm(irreps)
    return theirs


def pair(f, **flags):
    """Theirs and ours with the same random bias."""
    theirs, mine = original(IRREPS, f, **flags), NormActivation(IRREPS, f, **flags)
    if theirs.bias:
        torch.nn.init.normal_(theirs.biases)
    assert mine.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(mine.state_dict())
    return theirs, mine


@pytest.mark.parametrize("f", (FUSED | OTHERS).values(), ids=FUSED | OTHERS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_equals_e3nn(flags, f):
    theirs, mine = pair(f, **flags)
    assert repr(mine) == repr(theirs)
    for name in ("irreps_in", "irreps_out", "epsilon", "normalize", "bias", "scalar_nonlinearity"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert (mine.norm_table is not None) == (any(f is x for x in FUSED.values()) and mine.normalize)
    for lead in ((5,), (), (2, 0), (2, 3)):
        assert_same(mine, theirs, [rows(IRREPS, *lead)])
    adopted = NormActivation.from_e3nn(theirs)
    assert not theirs.bias or adopted.biases is theirs.biases
    assert_same(adopted, theirs, [rows(IRREPS, 5)])
    last, x = NormActivation.from_e3nn(theirs, layout="ir_mul"), rows(IRREPS, 5)
    assert_close(relaid(last(relaid(x, IRREPS, "ir_mul")), IRREPS, "mul_ir"), mine(x))


@pytest.mark.parametrize("f", [torch.sigmoid, F.silu, F.softplus], ids=["fused", "fused, not monotonous", "plain"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_second_derivatives(flags, f):
    theirs, mine = pair(f, **flags)
    x, found = rows(IRREPS, 5), []
    for layer in (mine, theirs):
        leaves = [x, *layer.parameters()]
        first = torch.autograd.grad(layer(x).pow(3).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 64)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("f", [torch.tanh, F.softplus], ids=["fused", "plain"])
def test_norms_of_zero(f, flags):
    """No NaN, and no gradient through the norm."""
    theirs, mine = pair(f, **flags)
    x = torch.zeros(2, IRREPS.dim, requires_grad=True)
    assert_same(mine, theirs, [x])
    assert torch.isfinite(torch.autograd.grad(mine(x).sum(), x)[0]).all()


def test_properties():
    layer = NormActivation("3x0o+4x1o+2x2e", torch.sigmoid, bias=True)
    torch.nn.init.normal_(layer.biases)
    assert_equivariant(layer)
    torch._dynamo.reset()
    assert_same(torch.compile(layer, fullgraph=True, backend="aot_eager"), layer, [rows(layer.irreps_in, 4)])
    for other in copies(layer):
        x = rows(layer.irreps_in, 3)
        assert torch.equal(other(x), layer(x))
    norms = layer(rows(layer.irreps_in, 3))[:, 3:15].unflatten(1, (4, 3)).norm(dim=2)
    assert (norms < 1).all()  # a sigmoid's
    with pytest.raises(NotImplementedError, match="NormActivation: torch.jit.script is not supported"):
        torch.jit.script(layer)


@pytest.mark.parametrize("irreps", ["", "0x1o", "2x0e+0x1o"])
@pytest.mark.parametrize("f", [torch.tanh, F.softplus], ids=["fused", "plain"])
def test_no_channels(f, irreps):
    layer, x = NormActivation(irreps, f), rows(irreps, 3)
    assert layer(x).shape == x.shape


@pytest.mark.parametrize("backend", ["triton", "cuequivariance"])
def test_backends_without_the_operator(backend):
    """The formula in plain torch."""
    layer = NormActivation(IRREPS, torch.tanh, backend=backend)
    assert layer.norm_table is None
    assert_same(layer, original(IRREPS, torch.tanh), [rows(IRREPS, 5)])


@pytest.mark.parametrize("options, message", [
    ({"epsilon": 0.1, "normalize": False}, "NormActivation: epsilon must be None where normalize is False, got 0.1"),
    ({"epsilon": 0.0}, r"NormActivation: epsilon must be strictly positive, got 0\.0"),
    ({"backend": "fast"}, r"NormActivation: backend must be one of \('auto', .*\), got 'fast'"),
    ({"epsilon": -1}, "NormActivation: epsilon must be strictly positive, got -1"),
    ({"layout": "e3nn"}, r"NormActivation: layout must be one of \('mul_ir', 'ir_mul'\), got 'e3nn'"),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        NormActivation(IRREPS, torch.tanh, **options)
    if "epsilon" in options:
        with pytest.raises(ValueError, match="epsilon"):
            e3nn.nn.NormActivation(IRREPS, torch.tanh, **options)


@pytest.mark.parametrize("f", [torch.tanh, F.softplus], ids=["fused", "plain"])
def test_bad_input(f):
    with pytest.raises(ValueError, match=r"NormActivation: features must be \[..., 43\], got \[2, 3\]; its last dim"):
        NormActivation(IRREPS, f)(torch.zeros(2, 3))
