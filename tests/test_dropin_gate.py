"""Gate equals e3nn's for any activations, orders of irreps and layouts."""

import e3nn.nn
import pytest
import torch
from dropin import Slope, assert_close, assert_same, copies, relaid, rows
from e3nn.util.test import assert_equivariant, assert_normalized
from torch.nn.functional import silu

from ace_fast.nn import Gate

ODD = ("16x0o", [torch.tanh], "32x0o", [torch.tanh], "16x1e+16x1o")
SPECS = {
    "odd": ODD,
    "e3nn's models": ("4x0e+3x0o", [silu, torch.tanh], "3x0e+4x0o+1x0e", [torch.sigmoid, torch.tanh, torch.sigmoid],
                      "5x1o+3x2e"),
    "fused": ("4x0e", [silu], "8x0e", [torch.sigmoid], "5x1o+3x2e"),
    "fused, two kinds of scalars": ("4x0e+2x0e", [silu, silu], "8x0e", [torch.sigmoid], "5x1o+3x2e"),
    "modules": ("4x0e", [torch.nn.SiLU()], "8x0e", [torch.nn.Sigmoid()], "5x1o+3x2e"),
    "scalars only": ("4x0e", [silu], "", [], ""),
    "gates only": ("", [], "2x0e", [torch.sigmoid], "2x1o"),
    "merged slices": ("4x0e", [None], "9x0e", [torch.sigmoid], "2x1o+3x1e+4x1o"),
    "cut slices": ("4x0e+2x0e", [None, torch.abs], "5x0e+3x0o", [None, torch.abs], "8x1o"),
    "gated scalars": ("2x0e", [silu], "5x0e", [torch.sigmoid], "2x0o+3x1o"),
}


@pytest.fixture(params=SPECS)
def spec(request):
    torch.set_default_dtype(torch.float64)
    return SPECS[request.param]


def test_equals_e3nn(spec):
    theirs, mine = e3nn.nn.Gate(*spec), Gate(*spec)
    assert repr(mine) == repr(theirs) and mine.irreps_in == theirs.irreps_in and mine.irreps_out == theirs.irreps_out
    assert mine.irreps_gated == theirs.irreps_gated and mine.irreps_scalars == theirs.irreps_scalars
    assert mine.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(mine.state_dict())
    for lead in ((5,), (), (2, 0), (2, 3)):
        assert_same(mine, theirs, [rows(mine.irreps_in, *lead)])
    adopted = Gate.from_e3nn(theirs)
    assert adopted.act_scalars is theirs.act_scalars
    assert_same(adopted, theirs, [rows(mine.irreps_in, 5)])
    x = rows(mine.irreps_in, 5)
    last = Gate(*spec, layout="ir_mul")
    assert_close(relaid(last(relaid(x, mine.irreps_in, "ir_mul")), mine.irreps_out, "mul_ir"), mine(x))


def test_which_are_fused():
    fused = {key for key, spec in SPECS.items() if Gate(*spec).gate_table is not None}
    assert fused == {"fused", "fused, two kinds of scalars", "modules", "scalars only", "gates only"}
    assert Gate(*SPECS["fused"], backend="cuequivariance").gate_table is None


def test_second_derivatives(spec):
    theirs, mine = e3nn.nn.Gate(*spec), Gate(*spec)
    x = rows(mine.irreps_in, 5)
    found = []
    for layer in (mine, theirs):
        (g,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), x)[0])
    assert_close(*found, 64)


def test_properties():
    gate = Gate(*ODD)
    assert gate.irreps_in.simplify() == e3nn.o3.Irreps("48x0o+16x1o+16x1e")
    assert_equivariant(gate)
    assert_normalized(gate)
    torch._dynamo.reset()
    assert_same(torch.compile(gate, fullgraph=True, backend="aot_eager"), gate, [rows(gate.irreps_in, 4)])
    for other in copies(gate):
        x = rows(gate.irreps_in, 3)
        assert torch.equal(other(x), gate(x))


def test_activations_with_parameters():
    theirs = e3nn.nn.Gate("2x0e", [Slope()], "1x0e", [Slope()], "1x1o")
    mine = Gate.from_e3nn(theirs)
    assert dict(mine.named_parameters()).keys() == {"act_scalars.acts.0.f.slope", "act_gates.acts.0.f.slope"}
    assert_same(mine, theirs, [rows(mine.irreps_in, 5)])


@pytest.mark.parametrize("args, message", [
    (("2x1o", [silu], "", [], ""), "Scalars must be scalars"),
    (("2x0e", [silu], "1x1o", [silu], "1x1o"), "Gate scalars must be scalars"),
    (("2x0e", [silu], "2x0e", [silu], "3x1o"), r"There are 3 irreps in irreps_gated, but a different number \(2\)"),
    (("2x0e", [], "2x0e", [silu], "2x1o"), "number of activation functions does not match"),
    (("2x0o", [silu], "", [], ""), "the parity is violated"),
])
def test_bad_irreps(args, message):
    with pytest.raises(ValueError, match=message):
        Gate(*args)


def test_bad_input():
    with pytest.raises(ValueError, match=r"Gate: layout must be one of \('mul_ir', 'ir_mul'\), got 'e3nn'"):
        Gate(*ODD, layout="e3nn")
    with pytest.raises(ValueError, match=r"Gate: features must be \[..., 144\], got \[2, 3\]; its last dimension"):
        Gate(*ODD)(torch.zeros(2, 3))
