"""Gaunt products: every path against e3nn's 3j symbols, method against method, many bodies, edges."""

import copy
import pickle

import numpy as np
import pytest
import torch
from dropin import assert_takes_bfloat16, relaid
from e3nn import o3

from ace_fast.nn import (
    GauntEdgeProduct,
    GauntManyBody,
    GauntMultiProduct,
    GauntTensorProduct,
    O3GauntProduct,
    TDNTensorProduct,
)
from ace_fast.nn.gaunt_fourier import Torus

NATURAL = "3x0e+3x1o+3x2e"
CASES = {  # irreps of the inputs and the output, odd paths
    "natural": (NATURAL, NATURAL, NATURAL, False),
    "one_channel": (NATURAL, "1x1o+1x0e+1x3o", "3x2e+3x0e+3x1o", False),
    "no_parity": ("2x0e+2x1e+2x2e", "2x0e+2x1e", "2x0e+2x1e+2x2e", True),
    "cross": ("1x0e+1x1o+1x2e", "2x0e+2x1o", "2x0e+2x1o+2x1e+2x2o", True),
    "mixed": ("2x0e+2x1o+2x1e", "2x0e+2x1o+2x1e+2x0o", "2x0e+2x1o+2x2e+2x1e+2x2o+2x0o", True),
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def drawn(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3)))
    return layer


def rows(layer, count):
    return [torch.randn(count, irreps.dim) for irreps in (layer.irreps_in1, layer.irreps_in2)]


def turn(irreps, improper=True):
    rotation = o3.matrix_x(torch.tensor(0.3)) @ o3.matrix_y(torch.tensor(1.3))
    return irreps.D_from_matrix(-rotation if improper else rotation).T


def harmonics_at_points():
    """Weights [S] of points r [S, 3] that integrate degree 9, and Y_l(r) [S, 2l + 1] with gradients [2l + 1, S, 3]."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(6))
    phi = torch.arange(12) * (torch.pi / 6)
    flat = (1 - nodes.square()).sqrt()[:, None]
    r = torch.stack([flat * phi.sin(), nodes[:, None].expand(-1, 12), flat * phi.cos()], -1).flatten(0, 1)
    r.requires_grad_()
    found = []
    for n in range(4):
        y = o3.spherical_harmonics(n, r, True, "integral") + 0 * r[:, :1]
        found.append((y.detach(), torch.stack([torch.autograd.grad(part.sum(), r, retain_graph=True)[0]
                                               for part in y.unbind(1)])))
    return (weights * torch.pi / 6).repeat_interleave(12), r.detach(), found


@pytest.mark.parametrize("method", ["grid", "fourier"])
def test_signs_are_those_of_the_formulas(method):
    weights, r, harmonics = harmonics_at_points()
    for one, (f, df) in enumerate(harmonics):
        for two, (g, dg) in enumerate(harmonics):
            for out in range(abs(one - two), min(one + two, 3) + 1):
                tp = GauntTensorProduct(f"1x{one}e", f"1x{two}e", f"1x{out}e", method, odd_paths=True)
                got = tp(torch.eye(2 * one + 1)[:, None], torch.eye(2 * two + 1)[None])
                at = torch.einsum("si,sj->ijs", f, g)
                if (one + two + out) % 2:  # r . (grad F x grad G)
                    at = (torch.linalg.cross(df[:, None], dg[None]) * r).sum(-1)
                want = torch.einsum("s,ijs,sk->ijk", weights, at, harmonics[out][0])
                torch.testing.assert_close(got / got.norm(), want / want.norm(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", ["grid", "fourier"])
def test_every_path_is_e3nns(method):
    for one in range(4):
        for two in range(4):
            for out in range(abs(one - two), min(one + two, 3) + 1):
                tp = GauntTensorProduct(f"1x{one}e", f"1x{two}e", f"1x{out}e", method, odd_paths=True)
                x, y = torch.eye(2 * one + 1), torch.eye(2 * two + 1)
                got = tp(x[:, None], y[None]) / (2 * out + 1) ** 0.5
                want = o3.wigner_3j(one, two, out)
                sign = (got * want).sum().sign()
                assert (got - sign * want).abs().max() < 1e-12, (one, two, out)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("case", CASES)
def test_methods_agree_and_are_equivariant(case, layout):
    *irreps, odd = CASES[case]
    layers = [drawn(GauntTensorProduct(*irreps, method, odd, layout=layout)) for method in ("grid", "fourier")]
    x, y = rows(layers[0], 4)
    x.requires_grad_()
    values = [layer(x, y) for layer in layers]
    slopes = [torch.autograd.grad(z.square().sum(), x)[0] for z in values]
    for one, other in (values, slopes):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if layout == "mul_ir":
        tp = layers[0]
        turned = tp(x @ turn(tp.irreps_in1), y @ turn(tp.irreps_in2))
        torch.testing.assert_close(turned, values[0] @ turn(tp.irreps_out), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degrees, size", [((0, 0, 0), (1, 2)), ((1, 1, 1), (5, 4)), ((3, 3, 3), (14, 10)),
                                           ((6, 6, 6), (25, 20)), ((2, 4, 1), (14, 8)), ((10, 10, 10), (42, 32))])
def test_transforms_have_sizes_of_small_primes(degrees, size):
    assert Torus(degrees, False).size == size  # from (2 (L1 + L2) + 1) x (L1 + L2 + L3 + 1) on


@pytest.mark.parametrize("case", CASES)
def test_results_have_unit_variance(case):
    *irreps, odd = CASES[case]
    tp = GauntTensorProduct(*irreps, odd_paths=odd, internal_weights=None)
    square = tp(*rows(tp, 4000)).square().mean(0)
    assert (square - 1).abs().max() < 0.35 and abs(square.mean() - 1) < 0.03


def test_weights_scale_their_degrees_and_may_be_of_every_row():
    tp = GauntTensorProduct(*CASES["cross"][:3], odd_paths=True, internal_weights=False)
    assert tp.weight_numel == 2 * (3 * 1 + 2 * 2 + 4 * 2) and tp.weight is None
    x, y = rows(tp, 5)
    weight = torch.randn(5, tp.weight_numel)
    each = torch.cat([tp(x[n:n + 1], y[n:n + 1], weight[n]) for n in range(5)])
    torch.testing.assert_close(tp(x, y, weight), each, rtol=1e-12, atol=1e-12)
    weight[:, 3 + 4:3 + 4 + 2] = 0  # product, degree 0e of the result
    assert tp(x, y, weight)[:, :2].abs().max() == 0
    with pytest.raises(ValueError, match=r"weight must be \[30\] or \[..., 30\] where .* is False, got None"):
        tp(x, y)
    with pytest.raises(ValueError, match="weight must be None, got"):
        GauntTensorProduct(*CASES["natural"][:3])(*[torch.zeros(1, 27)] * 2, weight)


def derivatives(function, inputs):
    """Values, first and second derivatives."""
    z = function(*inputs)
    first = torch.autograd.grad(z.sin().sum(), inputs, create_graph=True)
    return z, *first, *torch.autograd.grad(sum(x.sin().sum() for x in first), inputs)


def assert_shared_weights_are_those_of_every_row(layer, xs):
    """Weights that all rows share are multiplied in the operator, those of every row before and behind it."""
    inputs = [x.requires_grad_() for x in (*xs, torch.randn(layer.weight_numel))]
    count = len(xs[0])
    shared = derivatives(lambda *xs: layer(*xs[:-1], weight=xs[-1]), inputs)
    own = derivatives(lambda *xs: layer(*xs[:-1], weight=xs[-1].expand(count, -1)), inputs)
    for one, other in zip(shared, own, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("case", [*CASES, "scalars", "wide"])
def test_weights_in_the_operator_are_those_outside(case, layout):
    more = {"scalars": ("3x0e", "1x0e", "3x0e", False), "wide": ("20x0e+20x1o", "20x1o+20x2e", "20x1o+20x0e", False)}
    *irreps, odd = (CASES | more)[case]
    for count in (7, 1, 0):
        tp = GauntTensorProduct(*irreps, odd_paths=odd, layout=layout, internal_weights=False)
        assert_shared_weights_are_those_of_every_row(tp, rows(tp, count))
    if case == "wide":
        several = GauntMultiProduct([*irreps[:2], "1x0e+1x1o"], irreps[2], layout=layout, internal_weights=False)
        assert_shared_weights_are_those_of_every_row(several, [torch.randn(5, i.dim) for i in several.irreps_in])


def test_weights_in_the_operator_save_operations():
    """No tensor of all rows is multiplied by weights or constants of unit variance."""
    tp = GauntTensorProduct(*CASES["no_parity"][:3], odd_paths=True)
    x, y = (x.requires_grad_() for x in rows(tp, 50))
    for layer in (tp, GauntTensorProduct(*CASES["no_parity"][:3], odd_paths=True, internal_weights=None)):
        with torch.profiler.profile(record_shapes=True) as profile:
            layer(x, y).sum().backward()
        products = [event.input_shapes for event in profile.events() if event.name == "aten::mul"]
        assert not [shapes for shapes in products if any(len(shape) == 2 for shape in shapes)]


def test_second_derivatives():
    *irreps, odd = CASES["cross"]
    for method in ("grid", "fourier"):
        tp = GauntTensorProduct(*irreps, method, odd, internal_weights=False)
        inputs = [t.requires_grad_() for t in (*rows(tp, 2), torch.randn(tp.weight_numel))]
        assert torch.autograd.gradgradcheck(tp, inputs, fast_mode=True)


@pytest.mark.parametrize("method", ["grid", "fourier"])
def test_leading_dimensions_empty_rows_and_no_channels(method):
    tp = GauntTensorProduct("2x0e+2x1o", "1x0e+1x1o", "2x0e+2x1o", method)
    x, y = torch.randn(3, 1, 8), torch.randn(4, 4)
    assert tp(x, y).shape == (3, 4, 8)
    torch.testing.assert_close(tp(x, y)[1, 2], tp(x[1, 0], y[2]))
    assert tp(torch.zeros(0, 8), torch.zeros(0, 4)).shape == (0, 8)
    assert tp(torch.zeros(0, 5, 8), torch.zeros(4)).shape == (0, 5, 8)
    none = GauntTensorProduct("0x0e+0x1o", "1x0e+1x1o", "0x0e+0x1o", method)
    assert none(torch.zeros(3, 0), torch.zeros(3, 4)).shape == (3, 0)
    odd = GauntTensorProduct("2x0e+2x1o", "2x0e+2x1o", "2x1o+2x1e", method, odd_paths=True)
    x, y = torch.zeros(2, 0, 8, requires_grad=True)
    assert [g.shape for g in torch.autograd.grad(odd(x, y).sum(), (x, y))] == [(0, 8)] * 2
    assert GauntTensorProduct("2x0e", "2x0e", "", method)(torch.zeros(3, 2), torch.zeros(3, 2)).shape == (3, 0)
    scalar = GauntTensorProduct("2x0e", "2x0e", "2x0e", method, internal_weights=None)
    torch.testing.assert_close(scalar(*[torch.full((1, 2), 3.0)] * 2), torch.full((1, 2), 9.0))


@pytest.mark.parametrize("method", ["grid", "fourier"])
def test_layers_are_copied_cast_and_compiled(method):
    tp = drawn(GauntTensorProduct("2x0e+2x1o", "2x0e+2x1o", "2x0e+2x1o+2x1e", method, odd_paths=True))
    x, y = rows(tp, 3)
    for twin in (copy.deepcopy(tp), pickle.loads(pickle.dumps(tp))):
        assert torch.equal(twin(x, y), tp(x, y))
    if method == "grid":  # no compiler has complex numbers
        whole = torch.compile(tp, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(x, y), tp(x, y))
    with torch.device("meta"):
        later = GauntTensorProduct("2x0e+2x1o", "2x0e+2x1o", "2x0e+2x1o+2x1e", method, odd_paths=True)
    later = later.to_empty(device="cpu")
    later.load_state_dict(tp.state_dict())
    assert torch.equal(later(x, y), tp(x, y))
    single = copy.deepcopy(tp).to(torch.float32)
    z = tp(x, y)
    assert (single(x.float(), y.float()) - z).abs().max() < {"grid": 3e-7, "fourier": 1e-6}[method] * z.abs().max()


FOUR = "4x0e+4x1o"
LOW = {"grid": (lambda: GauntTensorProduct(FOUR, FOUR, FOUR + "+4x1e", odd_paths=True), [16, 16]),
       "fourier": (lambda: GauntTensorProduct(FOUR, FOUR, FOUR, "fourier"), [16, 16]),
       "many bodies": (lambda: GauntManyBody(FOUR, FOUR, 3), [16]),
       "several": (lambda: GauntMultiProduct([FOUR, FOUR, FOUR], FOUR), [16, 16, 16]),
       "edges": (lambda: GauntEdgeProduct(FOUR, 2, FOUR), [16, 3]),
       "TDN": (lambda: TDNTensorProduct("4x0e+4x1e+4x2e", "1x0e+1x1e", "4x0e+4x1e", rank="exact"), [36, 4])}


@pytest.mark.filterwarnings("ignore:TDNTensorProduct. rank")
@pytest.mark.parametrize("make, widths", LOW.values(), ids=LOW)
def test_bfloat16_and_autocast(make, widths):
    assert_takes_bfloat16(make(), [torch.randn(5, width) for width in widths])


TWO = "2x0e+2x1o"
BARE = {"internal_weights": None}


@pytest.mark.parametrize("make, dtypes, message", [
    (lambda: GauntTensorProduct(TWO, TWO, TWO, **BARE), "double float", "y must be torch.float64 as x, got torch.fl"),
    (lambda: GauntTensorProduct(TWO, TWO, TWO, **BARE), "float double", "y must be torch.float32 as x, got torch.fl"),
    (lambda: GauntTensorProduct(TWO, TWO, TWO), "double float", "y must be torch.float64 as x, got torch.float32; cas"),
    (lambda: GauntTensorProduct(TWO, TWO, TWO, "fourier"), "float double", "y must be torch.float32 as x, got torch.f"),
    (lambda: GauntTensorProduct(TWO, TWO, TWO, **BARE), "bfloat16 bfloat16", "x must be float32 or float64 on the CPU"),
    (lambda: GauntTensorProduct(TWO, TWO, TWO).bfloat16(), "bfloat16 bfloat16", "x must be float32 or float64 on the "),
    (lambda: GauntTensorProduct(TWO, TWO, TWO, **BARE), "half half", "x must be float32 or float64, got torch.float16"),
    (lambda: GauntMultiProduct([TWO, TWO], TWO), "double float", r"inputs\[1\] must be torch.float64 as inputs\[0\], "),
    (lambda: GauntMultiProduct([TWO, TWO], TWO, **BARE), "bfloat16 bfloat16", r"inputs\[0\] must be float32 or float6"),
    (lambda: GauntManyBody(TWO, TWO, 2).bfloat16(), "bfloat16", "x must be float32 or float64 on the CPU, got torch.b"),
    (lambda: O3GauntProduct(TWO, TWO, TWO), "float double", "data_in2 must be torch.float32 as data_in1, got torch.fl"),
    (lambda: O3GauntProduct(TWO, TWO, TWO).bfloat16(), "bfloat16 bfloat16", "data_in1 must be float32 or float64 on t"),
])
def test_dtypes_are_refused_by_the_names_of_the_call(make, dtypes, message):
    torch.set_default_dtype(torch.float32)
    layer, inputs = make(), [torch.randn(3, 8).to(getattr(torch, dtype)) for dtype in dtypes.split()]
    with pytest.raises(ValueError, match=f"{type(layer).__name__}: {message}"):
        layer(*inputs)


def test_weights_and_autocast_make_dtypes_alike():
    torch.set_default_dtype(torch.float32)
    x, y = torch.randn(3, 8), torch.randn(3, 8)
    for layer in (GauntTensorProduct(TWO, TWO, TWO), GauntMultiProduct([TWO, TWO], TWO)):
        want = layer(x.bfloat16().float(), y)
        assert torch.equal(layer(x.bfloat16(), y), want)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x.bfloat16(), y).float(), want)
        assert layer.double()(x, y.double()).dtype == torch.float64


@pytest.mark.parametrize("irreps, options, message", [
    (("2x0e+1x1o", "1x0e", "2x0e"), {}, r"irreps_in1 must have one multiplicity, got 2x0e\+1x1o; put an"),
    (("2x0e+2x0e", "1x0e", "2x0e"), {}, "irreps_in1 must hold each irrep once, got"),
    (("2x0e", "3x0e", "2x0e"), {}, "irreps_in2 must have the 2 channels of irreps_in1, or 1, got 3"),
    (("2x0e", "1x0e", "3x0e"), {}, "irreps_out must have 2 channels as the inputs, got 3x0e"),
    (("1x1o", "1x1o", "1x1e"), {}, "even l1 .* l2 .* l3, .* got 1e; pass odd_paths=True"),
    (("1x1o", "1x1o", "1x1o"), {"odd_paths": True}, "reachable from 1x1o x 1x1o, got 1o; drop it"),
    (("1x1o", "1x1o", "1x0e"), {"method": "fft"}, "method must be one of .*, got 'fft'"),
    (("1x2e", "1x2e", "1x2e"), {"grid": (3, 7)}, "grid: a product of degrees 2 x 2 kept to 2 must have at least 4 x 7"),
    (("1x1o", "1x1o", "1x0e"), {"grid": (4, 7, 2)}, r"grid must be one of .* or .rings, .*, got \(4, 7, 2\)"),
    (("1x1o", "1x1o", "1x0e"), {"grid": "square"}, "grid must be one of .*, got 'square'"),
    (("1x1o", "1x1o", "1x0e"), {"grid": (4.0, 7.0)}, "rings must be an integer of at least 1, got 4.0"),
    (("1x1o", "1x1o", "1x0e"), {"odd_paths": "yes"}, "odd_paths must be True or False, got 'yes'"),
    (("1x1o", "1x1o", "1x0e"), {"method": "fourier", "grid": (2, 4)}, r"grid must be left out .*, got \(2, 4\)"),
    (("1x1o", "1x1o", "1x0e"), {"method": "fourier", "backend": "triton"}, "backend must be left out with method 'fou"),
    (("1x1o", "1x1o", "1x0e"), {"layout": "mul"}, "layout must be one of .*, got 'mul'"),
])
def test_errors(irreps, options, message):
    with pytest.raises(ValueError, match=message):
        GauntTensorProduct(*irreps, **options)


def test_errors_of_calls():
    tp = GauntTensorProduct("2x0e+2x1o", "1x0e+1x1o", "2x0e")
    with pytest.raises(ValueError, match=r"GauntTensorProduct: y must be \[..., 4\], got \[3, 5\]"):
        tp(torch.zeros(3, 8), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="leading dimensions of x and y must broadcast"):
        tp(torch.zeros(3, 8), torch.zeros(2, 4))
    with pytest.raises(NotImplementedError, match="torch.jit.script is not supported"):
        torch.jit.script(tp)


@pytest.mark.parametrize("grid", ["gauss", "lebedev", "auto", (6, 12)])
def test_grids_give_the_same(grid):
    x, y = torch.randn(2, 3, 27)
    plain = GauntTensorProduct(NATURAL, NATURAL, NATURAL)
    other = GauntTensorProduct(NATURAL, NATURAL, NATURAL, grid=grid)
    torch.testing.assert_close(other(x, y), plain(x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", ["lebedev", "auto", (8, 16)])
def test_many_bodies_and_several_inputs_take_grids(grid):
    x, y, z = torch.randn(3, 3, 18)
    irreps = "2x0e+2x1o+2x2e"
    plain, other = (GauntMultiProduct([irreps] * 3, irreps, **options) for options in ({}, {"grid": grid}))
    torch.testing.assert_close(other(x, y, z), plain(x, y, z), rtol=1e-12, atol=1e-12)
    many = [GauntManyBody(irreps, irreps, 3, **options) for options in ({}, {"grid": grid})]
    torch.testing.assert_close(many[1](x), many[0](x), rtol=1e-12, atol=1e-12)
    if grid == "lebedev":
        assert other._table.points.size == many[1]._tables[2].points.size == 38  # for degree 8; Gauss-Legendre: 45


@pytest.mark.parametrize("make", [lambda grid: GauntManyBody("1x0e+1x1o", "1x0e", 2, grid=grid),
                                  lambda grid: GauntMultiProduct(["1x1o", "1x1o"], "1x0e", grid=grid)])
def test_errors_of_grids(make):
    with pytest.raises(ValueError, match=r"^Gaunt\w+: grid must be one of .*, got 'square'"):
        make("square")
    with pytest.raises(ValueError, match="grid: a product of degrees .* must have at least"):
        make((1, 2))


def test_the_automatic_grid_has_the_fewest_points():
    def points(lmax, grid):
        return GauntTensorProduct(*[f"1x{lmax}e"] * 3, grid=grid)._plans[0].products[0][2].points.size

    # Gauss-Legendre's grids have 1 and 28
    assert {grid: (points(0, grid), points(2, grid)) for grid in ("auto", "lebedev")} == {"auto": (1, 26),
                                                                                          "lebedev": (6, 26)}


# ---- many bodies

MANY = {"natural": ("2x0e+2x1o+2x2e", "2x0e+2x1o"), "no_parity": ("2x0e+2x1e", "2x2e+2x0e+2x1e"),
        "mixed": ("2x0e+2x1o+2x1e", "2x0e+2x0o+2x1e+2x2o")}


@pytest.mark.parametrize("case", MANY)
def test_many_bodies_are_equivariant_and_normalised(case):
    many = GauntManyBody(*MANY[case], 3)
    x = torch.randn(4000, many.irreps_in.dim)
    with torch.no_grad():
        for n in range(3):  # a power by itself
            many.weight.zero_()
            many.weight.unflatten(1, (3, -1))[:, n] = 1
            square = many(x).square().mean(0)
            assert abs(square.mean() - 1 / 3) < 0.03 if n else set((square * 3).round().tolist()) <= {0.0, 1.0}
        drawn(many)
        x = x[:3]
        turned = many(x @ turn(many.irreps_in))
        torch.testing.assert_close(turned, many(x) @ turn(many.irreps_out), rtol=1e-11, atol=1e-11)


def test_a_power_is_a_repeated_product():
    many = GauntManyBody("1x0e+1x1o", "1x0e+1x1o", 3)
    with torch.no_grad():
        many.weight.zero_()
        many.weight.unflatten(1, (3, -1))[:, 2] = 1
    x = torch.randn(5, 4)
    square = GauntTensorProduct("1x0e+1x1o", "1x0e+1x1o", "1x0e+1x1o+1x2e", internal_weights=None)
    cube = GauntTensorProduct("1x0e+1x1o+1x2e", "1x0e+1x1o", "1x0e+1x1o", internal_weights=None)
    gains = [tp._fields[2].spread(tp._plans[0].constants[2].on("cpu")) for tp in (square, cube)]
    want = cube(square(x, x) / gains[0], x) / gains[1] * many._gains[2].on("cpu")
    torch.testing.assert_close(many(x), want, rtol=1e-12, atol=1e-12)


def test_types_choose_weights():
    many = drawn(GauntManyBody("2x0e+2x1o", "2x0e+2x1o", 2, num_types=3, layout="ir_mul"))
    x, types = torch.randn(2, 3, 8), torch.tensor([[0, 2, 2], [1, 0, 2]])
    whole = many(x, types)
    for n in range(3):
        alone = GauntManyBody("2x0e+2x1o", "2x0e+2x1o", 2, layout="ir_mul")
        alone.load_state_dict({"weight": many.weight[n:n + 1].detach()})
        torch.testing.assert_close(whole[types == n], alone(x[types == n]))
    assert many(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)).shape == (0, 8)
    for wrong, message in ((None, r"types must be int64 \[2, 3\], got None; there are 3"),
                           (types.int(), r"types must be int64 \[2, 3\], got torch.int32 \[2, 3\]"),
                           (types + 1, r"types must be in 0\.\.2, got 3; num_types has their number"),
                           (types - 1, r"types must be in 0\.\.2, got -1")):
        with pytest.raises(ValueError, match=message):
            many(x, wrong)


@pytest.mark.parametrize("irreps", [NATURAL, "3x0e+3x1o+3x1e"])
def test_powers_of_one_type_are_those_of_any(irreps):
    """Weights that all rows share are multiplied in the operator, those of types before and behind it."""
    many = drawn(GauntManyBody(irreps, irreps, 3))
    inputs = torch.randn(4, many.irreps_in.dim).requires_grad_(), many.weight
    shared, typed = (derivatives(lambda x, _, types=types: many(x, types), inputs)
                     for types in (None, torch.zeros(4, dtype=torch.int64)))
    for one, other in zip(shared, typed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_second_derivatives_of_powers():
    many = drawn(GauntManyBody("1x0e+1x1o", "1x0e+1x1o", 3))
    assert torch.autograd.gradgradcheck(many, torch.randn(2, 4).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("args, message", [
    (("1x0e", "1x0e", 0), "correlation must be an integer from 1 to 6, got 0"),
    (("1x0e", "1x0e", 2.5), "correlation must be an integer from 1 to 6, got 2.5"),
    (("1x1o", "1x1e", 3), "reachable from powers 1 to 3 of 1x1o by even couplings, got 1e; drop it"),
    (("2x1o", "1x0e", 2), "irreps_out must have the 2 channels of irreps_in, got 1x0e"),
])
def test_errors_of_many_bodies(args, message):
    with pytest.raises(ValueError, match=f"GauntManyBody: .*{message}"):
        GauntManyBody(*args)
    with pytest.raises(ValueError, match="num_types must be an integer of at least 1, got 0"):
        GauntManyBody("1x0e", "1x0e", 1, num_types=0)


# ---- several inputs

SEVERAL = {"natural": (["2x0e+2x1o+2x2e", "1x0e+1x1o", "2x1o"], "2x0e+2x1o+2x2e"),
           "no_parity": (["2x0e+2x1e"] * 3, "2x2e+2x0e+2x1e"),
           "pseudo": (["2x1e", "2x0o+2x2o", "2x0e+2x1o"], "2x1o+2x0e"),
           "mixed": (["2x0e+2x1o+2x1e", "2x0e+2x0o", "1x1o+1x0o"], "2x0e+2x1o+2x1e+2x2o")}


@pytest.mark.parametrize("case", CASES)
def test_a_product_of_two_is_the_tensor_product(case):
    one, two, out, _ = CASES[case]
    out = {"cross": "2x0e+2x1o"}.get(case, out)  # the others of it are odd paths
    plain = drawn(GauntTensorProduct(one, two, out))
    several = GauntMultiProduct([one, two], out)
    several.load_state_dict(plain.state_dict())
    x, y = rows(plain, 4)
    torch.testing.assert_close(several(x, y), plain(x, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", SEVERAL)
def test_several_inputs_are_equivariant_and_normalised(case):
    tp = GauntMultiProduct(*SEVERAL[case])
    xs = [torch.randn(4000, irreps.dim) for irreps in tp.irreps_in]
    assert abs(tp(*xs).square().mean() - 1) < 0.1
    drawn(tp)
    xs = [x[:3] for x in xs]
    plain = tp(*xs)
    turned = tp(*(x @ turn(irreps) for x, irreps in zip(xs, tp.irreps_in, strict=True)))
    torch.testing.assert_close(turned, plain @ turn(tp.irreps_out), rtol=1e-11, atol=1e-11)
    assert len(tp._signs) == (2 if case == "mixed" else 1) and plain.abs().min() > 0
    other = GauntMultiProduct(*SEVERAL[case], layout="ir_mul")
    other.load_state_dict(tp.state_dict())
    laid = other(*(relaid(x, irreps, "ir_mul") for x, irreps in zip(xs, tp.irreps_in, strict=True)))
    torch.testing.assert_close(laid, relaid(plain, tp.irreps_out, "ir_mul"), rtol=1e-12, atol=1e-12)


def test_equal_inputs_are_a_power():
    irreps = "2x0e+2x1o+2x1e"
    tp, many = GauntMultiProduct([irreps] * 3, irreps, internal_weights=None), GauntManyBody(irreps, irreps, 3)
    with torch.no_grad():
        many.weight.zero_()
        many.weight.unflatten(1, (3, -1))[:, 2] = 1
    x = torch.randn(5, 14)
    gains = [gain.on(x.device) for gain in (tp._gain, many._gains[2])]
    torch.testing.assert_close(tp(x, x, x) / gains[0], many(x) / gains[1], rtol=1e-12, atol=1e-12)


def test_several_inputs_take_weights_of_every_row_leading_dimensions_and_nothing():
    tp = GauntMultiProduct(["2x0e+2x1o", "1x0e+1x1o", "2x1o"], "2x0e+2x1o", internal_weights=False)
    assert tp.weight_numel == 2 * 2 + 2 * 1 + 1 * 2 + 2 * 2
    xs = [torch.randn(3, 1, 8), torch.randn(4, 4), torch.randn(6)]
    weight = torch.randn(3, 4, 12)
    z = tp(*xs, weight=weight)
    torch.testing.assert_close(z[1, 2], tp(xs[0][1, 0], xs[1][2], xs[2], weight=weight[1, 2]), rtol=1e-12, atol=1e-12)
    assert tp(xs[0][:0], *xs[1:], weight=weight[:0]).shape == (0, 4, 8)
    assert GauntMultiProduct(["0x0e", "1x0e"], "0x0e")(torch.zeros(3, 0), torch.zeros(3, 1)).shape == (3, 0)
    for nowhere in (GauntMultiProduct(["2x0e"], ""), GauntManyBody("2x0e", "", 2)):
        assert nowhere(torch.zeros(3, 2)).shape == (3, 0)
    scalars = GauntMultiProduct(["1x0e"] * 6, "1x0e")
    torch.testing.assert_close(scalars(*torch.full((6, 2, 1), 3.0)), torch.full((2, 1), 3.0**6))
    assert torch.autograd.gradgradcheck(lambda *a: tp(*a[:3], weight=a[3]), [
        torch.randn(2, n).requires_grad_() for n in (8, 4, 6, 12)], fast_mode=True)


def test_several_inputs_are_copied_and_compiled():
    tp = drawn(GauntMultiProduct(*SEVERAL["mixed"]))
    xs = [torch.randn(3, irreps.dim) for irreps in tp.irreps_in]
    for twin in (copy.deepcopy(tp), pickle.loads(pickle.dumps(tp))):
        assert torch.equal(twin(*xs), tp(*xs))
    many = GauntManyBody(SEVERAL["mixed"][0][0], "2x0e+2x1o", 3, num_types=2)
    for layer, inputs in ((tp, xs), (many, [xs[0], torch.tensor([0, 1, 1])])):
        whole = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(*inputs), layer(*inputs))
    with torch.device("meta"):
        later = GauntMultiProduct(*SEVERAL["mixed"])
    later = later.to_empty(device="cpu")
    later.load_state_dict(tp.state_dict())
    assert torch.equal(later(*xs), tp(*xs))


@pytest.mark.parametrize("irreps, out, message", [
    ("2x0e+2x1o", "2x0e", "irreps_in must be a sequence of 1 to 6 irreps, got '2x0e"),
    (o3.Irreps("2x0e+2x1o"), "2x0e", "irreps_in must be a sequence of 1 to 6 irreps, got 2x0e"),
    ([], "1x0e", r"irreps_in must be a sequence of 1 to 6 irreps, got \[\]"),
    (["1x0e"] * 7, "1x0e", "irreps_in must be a sequence of 1 to 6 irreps, got"),
    (["2x0e", "2x0e+1x1o"], "2x0e", r"irreps_in\[1\] must have one multiplicity"),
    (["2x0e", "3x0e"], "2x0e", "irreps_in must have one multiplicity, or 1, got 2x0e and 3x0e"),
    (["2x0e", "1x0e"], "1x0e", "irreps_out must have 2 channels as the inputs, got 1x0e"),
    (["1x1o", "1x1o"], "1x1e", "reachable from 1x1o x 1x1o by even couplings, got 1e; drop it, or chain Gaunt"),
])
def test_errors_of_several_inputs(irreps, out, message):
    with pytest.raises(ValueError, match=f"GauntMultiProduct: .*{message}"):
        GauntMultiProduct(irreps, out)


def test_errors_of_calls_with_several_inputs():
    tp = GauntMultiProduct(["2x0e", "2x1o"], "2x1o")
    for given, message in (((torch.zeros(3, 2),), "inputs must be 2, as irreps_in, got 1"),
                           ((torch.zeros(3, 2), torch.zeros(3, 5)), r"inputs\[1\] must be \[..., 6\], got \[3, 5\]"),
                           ((torch.zeros(3, 2), torch.zeros(2, 6)), r"dimensions of inputs\[0\] and inputs\[1\] must")):
        with pytest.raises(ValueError, match=f"GauntMultiProduct: .*{message}"):
            tp(*given)
    with pytest.raises(ValueError, match="GauntMultiProduct: weight must be None"):
        tp(torch.zeros(3, 2), torch.zeros(3, 6), weight=torch.ones(10))


# ---- edges


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("irreps, lmax, out, odd", [
    ("2x0e+2x1o+2x2e", 2, "2x0e+2x1o+2x2e", False), ("2x0e+2x1o+2x1e", 3, "2x2e+2x1o+2x1e+2x2o+2x0o", True)])
def test_edges_are_products_with_harmonics(irreps, lmax, out, odd, layout):
    edge = drawn(GauntEdgeProduct(irreps, lmax, out, odd, layout=layout))
    plain = GauntTensorProduct(irreps, edge.irreps_in2, out, odd_paths=odd, layout=layout)
    plain.load_state_dict(edge.state_dict())
    x = torch.randn(8, edge.irreps_in1.dim, requires_grad=True)
    axes = torch.tensor([[0, 1, 0], [0, -2, 0], [3, 0, 0], [0, 0, -1]], dtype=torch.float64)
    vectors = torch.cat([axes, torch.randn(4, 3)]).requires_grad_()

    def harmonics():
        y = o3.spherical_harmonics(list(range(lmax + 1)), vectors, True, "component")
        inner = -2 if layout == "mul_ir" else -1
        return torch.cat([part.unsqueeze(inner).repeat_interleave(2, inner).flatten(1)
                          for part in y.split([2 * n + 1 for n in range(lmax + 1)], 1)], 1)

    got, want = edge(x, vectors), plain(x, harmonics())
    direction = torch.randn_like(want)
    slopes = [torch.autograd.grad((z * direction).sum(), (x, vectors)) for z in (got, want)]
    for one, other in ((got, want), *zip(*slopes, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_an_edge_of_length_zero_has_harmonics_of_degree_zero():
    edge = drawn(GauntEdgeProduct("2x0e+2x1o", 2, "2x0e+2x1o"))
    plain = GauntTensorProduct("2x0e+2x1o", edge.irreps_in2, "2x0e+2x1o")
    plain.load_state_dict(edge.state_dict())
    x, vectors = torch.randn(3, 8), torch.zeros(3, 3, requires_grad=True)
    y = torch.cat([torch.ones(3, 2), torch.zeros(3, 16)], 1)
    z = edge(x, vectors)
    torch.testing.assert_close(z, plain(x, y), rtol=1e-12, atol=1e-12)
    (first,) = torch.autograd.grad(z.sum(), vectors, create_graph=True)
    assert not first.any() and not torch.autograd.grad(first.square().sum() + first.sum(), vectors)[0].any()
    beside = torch.cat([vectors[:1], torch.randn(2, 3)]).detach().requires_grad_()
    grads = [torch.autograd.grad(edge(x, beside).square().sum(), beside, create_graph=True)[0]]
    for _ in range(2):
        grads += torch.autograd.grad(grads[-1].square().sum(), beside, create_graph=True)
    assert all(g.isfinite().all() and not g[0].any() and g[1:].any() for g in grads)
    assert edge(x, torch.full((3, 3), torch.nan)).isnan().any(1).all()
    with torch.device("meta"):
        later = GauntEdgeProduct("2x0e+2x1o", 2, "2x0e+2x1o")
    later = later.to_empty(device="cpu")
    later.load_state_dict(edge.state_dict())
    assert torch.equal(later(x, vectors), z)
    assert edge(x[:0], vectors[:0]).shape == (0, 8)


def test_edges_take_weights_of_every_edge_and_differentiate_twice():
    edge = GauntEdgeProduct("1x0e+1x1o", 1, "1x0e+1x1o", internal_weights=False)
    inputs = [torch.randn(2, n).requires_grad_() for n in (4, 3, edge.weight_numel)]
    assert torch.autograd.gradgradcheck(edge, inputs, fast_mode=True)
    x, vectors, weight = inputs
    torch.testing.assert_close(edge(x, vectors, weight)[1], edge(x[1:], vectors[1:], weight[1])[0])
    assert torch.equal(edge(x, vectors, weight[:1]), edge(x, vectors, weight[0]))
    lead = edge(x[:, None], vectors[None, :1].expand(1, 5, 3), weight[:, None])
    assert lead.shape == (2, 5, 4)
    torch.testing.assert_close(lead[1, 3], edge(x[1], vectors[0], weight[1]))
    for wrong, message in ((torch.ones(3, 6), r"leading dimensions of x, vectors and weight must broadcast"),
                           (None, r"weight must be \[6\] or")):
        with pytest.raises(ValueError, match=message):
            edge(x, vectors, wrong)
    with pytest.raises(ValueError, match="leading dimensions of x, vectors and weight must broadcast, got .*3, 3"):
        edge(x, vectors[:1].expand(3, 3), weight)
    with pytest.raises(ValueError, match="lmax_filter must be an integer of at least 0, got -1"):
        GauntEdgeProduct("1x0e", -1, "1x0e")
    with pytest.raises(ValueError, match="lmax_filter must be an integer of at least 0, got 1.5"):
        GauntEdgeProduct("1x0e", 1.5, "1x0e")
