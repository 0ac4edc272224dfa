"""Linear has the properties that e3nn's own tests ask of e3nn's, and equals it."""

import pytest
import torch
from dropin import assert_close, assert_same, copies, relaid, rows
from e3nn import o3
from e3nn.util.test import assert_equivariant, assert_normalized

from ace_fast.nn import Linear, TensorProduct

IRREPS = ("2x0e+3x0o+2x1o+0x2e", "3x0e+1x0o+4x1o+2x0e")
OPTIONS = [
    {}, {"biases": True}, {"biases": [True, False, False, True]}, {"path_normalization": "path"},
    {"instructions": [(0, 0), (2, 2), (0, 3)], "biases": [False, False, False, True]}, {"instructions": []},
    {"internal_weights": False, "biases": True}, {"shared_weights": False}, {"f_in": 3, "f_out": 4},
    {"f_in": 3, "f_out": 4, "biases": True}, {"f_in": 3, "f_out": 4, "shared_weights": False},
]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def inputs_of(linear, *lead):
    """Features, and weights and biases where they come from outside."""
    mixed = linear.f_in is not None
    found = [rows(linear.irreps_in, *lead, *([linear.f_in] if mixed else []))]
    if not linear.internal_weights:
        shape = (() if linear.shared_weights else lead) + ((linear.f_in, linear.f_out) if mixed else ())
        found.append(torch.randn(*shape, linear.weight_numel, requires_grad=True))
        if linear.bias_numel:
            found.append(torch.randn(linear.bias_numel, requires_grad=True))
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_e3nn(double, options):
    torch.manual_seed(1)
    theirs = o3.Linear(*IRREPS, **options)
    torch.manual_seed(1)
    mine = Linear(*IRREPS, **options)
    for name in ("irreps_in", "irreps_out", "instructions", "weight_numel", "bias_numel", "internal_weights",
                 "shared_weights", "weight_index_slices"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert repr(mine) == repr(theirs) and mine.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(mine.weight, theirs.weight) and torch.equal(mine.output_mask, theirs.output_mask)
    if isinstance(theirs.bias, torch.nn.Parameter):
        torch.nn.init.normal_(theirs.bias)
    assert mine.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(mine.state_dict())
    inputs = inputs_of(mine, 5)
    assert_same(mine, theirs, inputs)
    last = Linear(*IRREPS, **options, layout="ir_mul")
    last.load_state_dict(mine.state_dict())
    moved = [relaid(inputs[0], IRREPS[0], "ir_mul"), *inputs[1:]]
    assert_close(relaid(last(*moved), IRREPS[1], "mul_ir"), mine(*inputs), 4)
    if options.get("f_in") and not mine.internal_weights:
        with pytest.raises(ValueError, match="f_in and f_out of external weights are not known; keep the e3nn module"):
            Linear.from_e3nn(theirs)
    else:
        assert_same(Linear.from_e3nn(theirs), theirs, inputs)


@pytest.mark.parametrize("irreps_in", ["5x0e", "1e+2e+4x1e+3x3o", "2x1o+0x3e", "", "2x1o+1x0e+3x1o+1x0e"])
@pytest.mark.parametrize("irreps_out", ["5x0e", "1e+2e+3x3o+3x1e", "2x1o+0x3e", "4x0e+1x1o+2x0e", ""])
def test_is_the_product_with_one(double, irreps_in, irreps_out):
    linear = Linear(irreps_in, irreps_out)
    paths = [(i, 0, k, "uvw", True, 1.0) for i, (_, a) in enumerate(linear.irreps_in)
             for k, (_, b) in enumerate(linear.irreps_out) if a == b]
    tp = TensorProduct(irreps_in, "0e", irreps_out, paths)
    x = torch.randn(4, linear.irreps_in.dim)
    weight = linear.weight if linear.weight_numel else None
    assert_close(linear(x), tp(x, torch.ones(4, 1), weight))


def test_properties():
    linear = Linear("1e+2e+3x3o", "1e+2e+3x3o")
    assert linear(torch.randn(linear.irreps_in.dim)).shape == (linear.irreps_out.dim,)
    assert_equivariant(linear)
    assert_normalized(linear, n_weight=50, n_input=1000, atol=0.5)
    biased = Linear("0e+0o+1e+1o", "10x0e+0o+1e+1o", biases=True)
    torch.nn.init.normal_(biased.bias)
    assert_equivariant(biased)
    torch._dynamo.reset()
    assert_same(torch.compile(biased, fullgraph=True, backend="aot_eager"), biased, [rows("0e+0o+1e+1o", 4)])


def test_bias():
    linear = Linear("2x0e+1e+2x0e+0o", "3x0e+1e+3x0e+5x0e+0o", biases=[True, False, False, True, False])
    torch.nn.init.ones_(linear.bias)
    want = torch.tensor([1.0] * 3 + [0.0] * 6 + [1.0] * 5 + [0.0])
    assert torch.equal(linear(torch.zeros(8)), want)
    assert torch.equal(linear(torch.zeros(2, 3, 8)), want.expand(2, 3, -1))


def test_single_out():
    one, two = Linear("5x0e", "5x0e"), Linear("5x0e", "5x0e+3x0o")
    two.load_state_dict({**two.state_dict(), "weight": one.weight})
    x = torch.randn(3, 5)
    assert_close(two(x)[:, :5], one(x))
    assert not two(x)[:, 5:].any()


def test_masks_and_instructions(double):
    assert not Linear("1e+2e", "3e+5x2o").output_mask.any()
    linear = Linear("4x0e+3x4o", "1x2e+4x0o")
    assert not linear.instructions and not linear.output_mask.any()
    assert not Linear("3x0e+1o", "3x0e+1o", instructions=[])(torch.randn(3, 6)).any()
    linear = Linear("4x0e+3x1o+2x0e", "2x1o+8x0e")
    assert {(i.i_in, i.i_out): i.path_shape for i in linear.instructions} == {(0, 1): (4, 8), (1, 0): (3, 2),
                                                                             (2, 1): (2, 8)}
    linear = Linear("4x0e+3x1o+2x0e", "2x1o+8x0e", instructions=[(0, 1), (1, 0)])
    x = torch.randn(3, 15)
    assert torch.equal(linear(x * (torch.arange(15) >= 13)), torch.zeros(3, 14))
    assert [w.shape for w in linear.weight_views()] == [(4, 8), (3, 2)]
    with torch.no_grad():
        linear.weight_view_for_instruction(1).zero_()
    assert not linear(x)[:, :6].any()
    with torch.no_grad():
        for _, _, view in linear.weight_views(yield_instruction=True):
            view.fill_(2.0)
    assert (linear.weight == 2).all()


def test_weights_of_every_sample(double):
    linear = Linear("4x0e+3x1o+2x0e", "2x1o+8x0e", instructions=[(0, 1), (1, 0)], shared_weights=False)
    x, weight = torch.randn(7, 15), torch.randn(7, linear.weight_numel)
    assert linear.weight_view_for_instruction(0, weight).shape == (7, 4, 8)
    assert linear.weight_view_for_instruction(1, weight).shape == (7, 3, 2)
    linear.weight_view_for_instruction(1, weight).zero_()
    assert not linear(x, weight)[:, :6].any()
    lead = linear(torch.randn(2, 1, 15), torch.randn(3, linear.weight_numel))
    assert lead.shape == (2, 3, 14)  # e3nn takes equal leading dimensions only


def test_additional_channels(double):
    linear = Linear("0e+1e+2e", "0e+2x1e+2e", f_in=44, f_out=25)
    assert linear.weight_numel == 4 and linear.weight.shape == (44, 25, 4)
    x = torch.randn(10, 44, 9)
    assert_equivariant(linear, args_in=[x])
    assert linear(x).shape == (10, 25, 12) and 0.7 < linear(x).square().mean() < 1.4
    assert not Linear("0e", "1o", f_in=2, f_out=3)(torch.randn(5, 2, 1)).any()


def test_copies():
    linear = Linear(*IRREPS, biases=True)
    for other in copies(linear):
        x = rows(IRREPS[0], 3)
        assert torch.equal(other(x), linear(x)) and other.weight is not linear.weight


@pytest.mark.parametrize("make, error, message", [
    (lambda: Linear("4x0e+3x4o", "1x2e+4x0e", instructions=[(0, 0)]), ValueError,
     "the output of instruction 0 must be 0e as its input, got 2e"),
    (lambda: Linear("4x0e", "4x0e", instructions=[(4, 0)]), ValueError,
     "i_in of instruction 0 must be in 0..0, got 4; irreps_in is 4x0e"),
    (lambda: Linear("2x0e+1x1o", "1x1o", instructions=[(-1, 0)]), ValueError,  # -1 marks a bias inside
     r"i_in of instruction 0 must be in 0..1, got -1; irreps_in is 2x0e\+1x1o"),
    (lambda: Linear("4x0e", "4x0e", instructions=[(0, -1)]), ValueError,
     "i_out of instruction 0 must be in 0..0, got -1"),
    (lambda: Linear("4x0e", "4x0e", instructions=[(0, 0, 0)]), ValueError,
     r"instruction 0 must be \(i_in, i_out\), got \(0, 0, 0\)"),
    (lambda: Linear("4x0e", "2x0e", f_in=2, f_out=2, shared_weights=False)(
        torch.zeros(3, 2, 4), torch.zeros(5, 2, 2, 8)), ValueError,
     r"leading dimensions of features and weight must broadcast, got \[3, 2, 4\] and \[5, 2, 2, 8\]"),
    (lambda: Linear("4x0e", "4x0e", path_normalization="all"), ValueError,
     r"Linear: path_normalization must be one of \('element', 'path'\), got 'all'"),
    (lambda: Linear("4x0e", "4x0e", layout="last"), ValueError, "layout must be one of"),
    (lambda: Linear("4x0e", "4x0e", f_in=3), ValueError, "f_in and f_out must be given together, got 3 and None"),
    (lambda: Linear("4x0e", "4x0e", internal_weights=True, shared_weights=False), ValueError,
     "internal_weights must be False where shared_weights is False, got True"),
    (lambda: Linear("4x0e", "4x0e+1o", biases=[True]), ValueError, "biases must hold 2 flags, one for each of"),
    (lambda: Linear("4x0e", "4x0e+1x1o", biases=[True, True]), ValueError,
     r"biases must be of even scalars \(0e\), got one for 1x1o"),
    (lambda: Linear("4x0e", "2x0e", biases=True).weight_view_for_instruction(1), ValueError,
     "instruction 1 must have weights, got a bias"),
    (lambda: Linear("4x0e", "2x0e", internal_weights=False)(torch.zeros(1, 4)), RuntimeError,
     r"weight must be given where internal_weights is False, got None; pass a tensor \[..., 8\]"),
    (lambda: Linear("4x0e", "2x0e")(torch.zeros(1, 4), torch.zeros(3)), ValueError, r"weight must be \[8\], got \[3\]"),
    (lambda: Linear("4x0e", "2x0e", shared_weights=False)(torch.zeros(1, 4), torch.zeros(1, 3)), ValueError,
     r"weight must be \[..., 8\], got \[1, 3\]"),
    (lambda: Linear("4x0e", "2x0e", biases=True)(torch.zeros(1, 4), None, torch.zeros(3)), ValueError,
     r"bias must be \[2\], got \[3\]"),
    (lambda: Linear("4x0e", "2x0e")(torch.zeros(1, 5)), ValueError, r"Linear: x must be \[..., 4\], got \[1, 5\]"),
    (lambda: Linear("4x0e", "2x0e", f_in=3, f_out=2)(torch.zeros(1, 4)), ValueError,
     r"features must be \[..., 3, 4\], got \[1, 4\]"),
])
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
