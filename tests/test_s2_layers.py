"""Layers on the sphere: S2Activation against e3nn, SwiGLU-S2, perceptrons at points, merged norm, smooth attention."""

import re

import e3nn.nn
import pytest
import torch
from dropin import Slope, assert_close, assert_same, assert_takes_bfloat16, copies, relaid, rows
from e3nn import o3
from torch.nn import functional as F

import ace_fast
from ace_fast import Graph, nn
from ace_fast.kernels.sphere_product import grids
from bench import sphere_errors

FIELD = o3.Irreps("0e+1o+2e")
EVEN = {"silu": F.silu, "gelu": torch.nn.GELU(), "relu": torch.relu, "sigmoid": torch.sigmoid, "softplus": F.softplus}
PLAIN = {"a lambda": lambda x: x.abs() ** 1.5, "with a parameter": Slope(), "tanh of GELU": torch.nn.GELU("tanh")}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def field(lmax: int, channels: int = 1) -> o3.Irreps:
    return o3.Irreps([(channels, (n, (-1) ** n)) for n in range(lmax + 1)])


def equivariance_error(function, irreps_in, irreps_out, layout: str = "mul_ir", size: float = 1.0, dtype=torch.float64):
    """Root mean square over turns and rows of f(D x) - D f(x), relative to f."""
    torch.manual_seed(0)
    x = torch.randn(40, irreps_in.dim)
    error = total = 0.0
    for _ in range(4):
        angles = o3.rand_angles()
        turn_in, turn_out = (ir.D_from_angles(*angles) for ir in (irreps_in, irreps_out))

        def turn(t, m, irreps):
            return relaid(relaid(t, irreps, "mul_ir") @ m.T, irreps, "ir_mul") if layout == "ir_mul" else t @ m.T

        y = turn(function(x), turn_out, irreps_out)
        error += (function(turn(x, turn_in, irreps_in)) - y).square().sum().item()
        total += y.square().sum().item()
    return (error / total) ** 0.5


@pytest.mark.parametrize("f", (EVEN | {"tanh": torch.nn.Tanh()} | PLAIN).values(), ids=(EVEN | {"tanh": 0} | PLAIN))
def test_activation_equals_e3nn(f):
    theirs, mine = e3nn.nn.S2Activation(FIELD, f, 8, lmax_out=3), nn.S2Activation(FIELD, f, 8, lmax_out=3)
    assert mine.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(mine.state_dict())
    assert repr(mine) == repr(theirs) and (mine.irreps_in, mine.irreps_out) == (theirs.irreps_in, theirs.irreps_out)
    assert (mine._fused is None) == any(f is g for g in PLAIN.values())
    for lead in ((5,), (), (2, 3)):
        assert_same(mine, theirs, [rows(FIELD, *lead)])
    assert mine(rows(FIELD, 2, 0)).shape == (2, 0, 16)  # where e3nn's FFT stops
    assert_same(nn.S2Activation.from_e3nn(theirs), theirs, [rows(FIELD, 5)])


def test_conversion():
    """Of a model, and back with its own modules."""
    model = torch.nn.Sequential(o3.Linear(FIELD, FIELD), e3nn.nn.S2Activation(FIELD, F.silu, 8))
    x, theirs = rows(FIELD, 4), model[1]
    want = model(x)
    ace_fast.convert(model)
    assert type(model[1]) is nn.S2Activation and model[1].to_s2 is theirs.to_s2
    assert_close(model(x), want, 4)
    ace_fast.restore(model)
    assert model[1] is theirs
    assert_close(model(x), want, 4)


@pytest.mark.parametrize("irreps", ["0e", "0e+1e+2e", "0o+1e+2o", "0o+1o"])
@pytest.mark.parametrize("options", [{}, {"normalization": "norm", "lmax_out": 1}, {"normalization": "integral"}],
                         ids=str)
@pytest.mark.parametrize("res", [6, (8, 6)], ids=str)
def test_activation_takes_e3nn_s_arguments(irreps, options, res):
    arguments = (irreps, torch.tanh, res)
    theirs, mine = e3nn.nn.S2Activation(*arguments, **options), nn.S2Activation(*arguments, **options)
    assert mine.irreps_out == theirs.irreps_out
    assert_same(mine, theirs, [rows(irreps, 4)])


def test_activation_on_a_turned_grid():
    layers = [c.S2Activation(FIELD, torch.tanh, 12, random_rot=True) for c in (e3nn.nn, nn)]
    x, found = rows(FIELD, 5), []
    for layer in layers:
        torch.manual_seed(1)
        found.append(layer(x))
    assert_close(*found, 4)
    mine = nn.S2Activation("3x0e+3x1o+3x2e", torch.tanh, 12, random_rot=True, layout="ir_mul")
    assert mine(rows(mine.irreps_in, 4)).shape == (4, 27)


def test_activation_of_channels():
    """More than e3nn has: every channel by itself, in both layouts."""
    theirs, irreps = e3nn.nn.S2Activation(FIELD, F.silu, 8), o3.Irreps("3x0e+3x1o+3x2e")
    x = rows(irreps, 4)
    each = [torch.cat([x[:, s].unflatten(1, (3, -1))[:, c] for s in irreps.slices()], 1) for c in range(3)]
    want = torch.stack([theirs(one) for one in each], 2)  # [4, 9, 3]
    last = nn.S2Activation(irreps, F.silu, 8, layout="ir_mul")
    assert_close(last(relaid(x, irreps, "ir_mul")), want.flatten(1), 4)
    assert_close(relaid(nn.S2Activation(irreps, F.silu, 8)(x), irreps, "ir_mul"), want.flatten(1), 4)


def test_the_table_of_errors():
    """docs/products.md against measurements, and these against EquiformerV3's numbers for SiLU at L = 6."""
    shown = {}
    for row in re.findall(r"^\| (.*) \|$", sphere_errors.PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        name, grid, *cells = row.split(" | ")
        shown[name, grid] = cells
    lines = {(line.name, line.grid): line for line in sphere_errors.lines()}
    assert lines.keys() < shown.keys()
    assert all(shown[key][0] == (line.published or "–") for key, line in lines.items())
    silu = [lines["`S2Activation`, SiLU", grid] for grid in ("18 x 18", "32 x 32")]
    assert sphere_errors.error(silu[0], *sphere_errors.COLUMNS[0]) == pytest.approx(3.4e-3, rel=0.25)
    for line, column in ((silu[1], 2), (lines["its product, orders to 2, about the axis", "20 x 6"], 1)):
        found = sphere_errors.error(line, *sphere_errors.COLUMNS[column])
        assert float(shown[line.name, line.grid][1 + column]) == pytest.approx(found, rel=0.1)
    for key in (("`SwiGLUS2`, exact grid", "10 x 19"), ("its product, orders to 2, about the axis", "20 x 8")):
        assert max(float(cell) for cell in shown[key][2:]) < 1e-12
        assert sphere_errors.error(lines[key], *sphere_errors.COLUMNS[3]) < 1e-12


@pytest.mark.parametrize("lmax", [1, 2, 4])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_swiglu_is_equivariant_to_rounding(lmax, layout):
    layer = nn.SwiGLUS2(field(lmax, 2), layout=layout)
    s = torch.randn(40, 6)
    error = equivariance_error(lambda x: layer(x, s), layer.irreps_in, layer.irreps_out, layout)
    assert error < 1e-12


def swiglu(layer, x, s):
    """EquiformerV3's code, on the grid of e3nn that it takes, [N, (L+1)^2, 2 C] and [N, 3 C]."""
    lmax = layer.irreps_out.lmax
    to, back = o3.ToS2Grid(lmax, (20, 20), "integral"), o3.FromS2Grid((20, 20), lmax, "integral")
    one, two = (torch.einsum("mbi,am,nic->nbac", to.shb, to.sha, t) for t in x.chunk(2, 2))
    y = torch.einsum("mbi,am,nbac->nic", back.shb, back.sha, one * two)
    a, b, gate = s.chunk(3, 1)
    y = y * torch.sigmoid(gate)[:, None]
    return torch.cat([y[:, :1] + (F.silu(a) * b)[:, None], y[:, 1:]], 1).flatten(1)


def test_swiglu_equals_the_original():
    layer, x, s = nn.SwiGLUS2(field(3, 4), layout="ir_mul"), torch.randn(5, 16, 8, requires_grad=True), rows("12x0e", 5)
    assert_close(layer(x.flatten(1), s), swiglu(layer, x, s), 8)
    g = torch.randn(5, 64)
    mine = torch.autograd.grad(layer(x.flatten(1), s), (x, s), g)
    for a, b in zip(mine, torch.autograd.grad(swiglu(layer, x, s), (x, s), g), strict=True):
        assert_close(a, b, 16)
    plain, turned = nn.SwiGLUS2(field(3, 4)), relaid(x.flatten(1), field(3, 8), "mul_ir")
    assert_close(plain(turned, s), relaid(layer(x.flatten(1), s), field(3, 4), "mul_ir"), 4)
    alone = nn.SwiGLUS2(field(3, 4), layout="ir_mul", merge=False)
    assert_close(alone(x.flatten(1), s[:, 8:])[:, 4:], layer(x.flatten(1), s)[:, 4:], 4)


def mlp_at_points(mlp, x):
    """The formula with every value at a point in memory, x [N, (L+1)^2, C]."""
    into, back = mlp.grid.on(torch.device("cpu"))
    *maps, last = [module for name, module in mlp.named_children() if name != "gating_linear"]
    u = torch.einsum("si,nic->nsc", into, x)
    for linear in maps:
        u = linear(u)
        if mlp.act == "swiglu":
            one, two = u.chunk(2, 2)
            u = torch.sigmoid(mlp.gating_linear(x[:, 0]))[:, None] * one * two
        else:
            u = getattr(torch, mlp.act)(u) if mlp.act == "tanh" else getattr(F, mlp.act)(u)
    return torch.einsum("si,nsc->nic", back, last(u)).flatten(1)


@pytest.mark.parametrize("act, hidden", [("silu", 5), ("tanh", 5), ("swiglu", 5), ("silu", [5, 4]),
                                         ("gelu", (3, 6, 2))], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_one_at_every_point(act, hidden, bias):
    mlp = nn.S2MLP(field(2, 3), field(1, 2), hidden, act, bias=bias, layout="ir_mul")
    x = torch.randn(4, 9, 3, requires_grad=True)
    got, want = mlp(x.flatten(1)), mlp_at_points(mlp, x)
    assert_close(got, want, 8)
    g, leaves = torch.randn_like(got), [x, *mlp.parameters()]
    for a, b in zip(torch.autograd.grad(got, leaves, g), torch.autograd.grad(want, leaves, g), strict=True):
        assert_close(a, b, 32)
    other = nn.S2MLP(field(2, 3), field(1, 2), hidden, act, bias=bias)
    other.load_state_dict(mlp.state_dict())
    turned = relaid(x.flatten(1), field(2, 3), "mul_ir")
    assert_close(relaid(other(turned), field(1, 2), "ir_mul"), got, 8)


@pytest.mark.parametrize("act, hidden, limit", [("swiglu", 5, 1e-12), ("silu", 5, 1e-3), ("silu", [5, 4], 1e-3)])
def test_mlp_is_equivariant(act, hidden, limit):
    mlp = nn.S2MLP(field(2, 3), field(2, 3), hidden, act)
    assert equivariance_error(mlp, mlp.irreps_in, mlp.irreps_out) < limit


class Original(torch.nn.Module):
    """EquivariantMergeLayerNorm as EquiformerV3 writes it, [N, (L+1)^2, C]."""

    def __init__(self, lmax, channels, eps):
        super().__init__()
        self.eps = eps
        self.affine_weight = torch.nn.Parameter(torch.randn(lmax + 1, channels))
        self.affine_bias = torch.nn.Parameter(torch.randn(channels))
        degree = torch.tensor([n for n in range(lmax + 1) for _ in range(2 * n + 1)])
        self.register_buffer("expand_index", degree)
        self.register_buffer("balance_degree_weight", 1.0 / (2 * degree + 1)[None] / (lmax + 1))

    def forward(self, x):
        x = torch.cat([x[:, :1] - x[:, :1].mean(2, keepdim=True), x[:, 1:]], 1)
        level = torch.einsum("ai,nic->nac", self.balance_degree_weight, x.pow(2).mean(2, keepdim=True))
        y = x * (level + self.eps).pow(-0.5) * self.affine_weight[self.expand_index]
        return torch.cat([y[:, :1] + self.affine_bias, y[:, 1:]], 1)


def test_merged_norm():
    theirs, mine = Original(2, 4, 1e-5), nn.MergedLayerNorm(field(2, 4), layout="ir_mul")
    mine.load_state_dict(theirs.state_dict())  # with its constants
    x = torch.randn(5, 9, 4, requires_grad=True)
    got, want = mine(x.flatten(1)), theirs(x).flatten(1)
    assert_close(got, want, 4)
    for a, b in zip(torch.autograd.grad(got.pow(3).sum(), [x, *mine.parameters()]),
                    torch.autograd.grad(want.pow(3).sum(), [x, *theirs.parameters()]), strict=True):
        assert_close(a, b, 64)
    plain = nn.MergedLayerNorm(field(2, 4))
    plain.load_state_dict(mine.state_dict())
    turned = relaid(x.flatten(1), field(2, 4), "mul_ir")
    assert_close(relaid(plain(turned), field(2, 4), "ir_mul"), got, 4)
    assert equivariance_error(plain, plain.irreps, plain.irreps) < 1e-13
    # unit size without the affine map: the sum over degrees of the mean squares is L + 1
    bare = nn.MergedLayerNorm(field(2, 4), 0.0, affine=False)
    y = bare(turned)
    squares = sum(y[:, s].unflatten(1, (4, -1)).square().mean((1, 2)) for s in bare.irreps.slices())
    assert_close(squares, torch.full_like(squares, 3.0), 16)
    rms = nn.MergedLayerNorm("4x0o+4x1e", centering=False)
    assert rms.affine_bias is None and rms(torch.randn(2, 16)).shape == (2, 16)


def test_smooth_attention():
    index = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 0, 1, 1, 2, 1]])
    graph, attention = Graph(index, 5), nn.SmoothCutoffAttention(1e-12)
    z, d, v = rows("3x0e", 6), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 5.9], requires_grad=True), rows("6x0e", 6)
    v = v.unflatten(1, (3, 2))
    c = nn.polynomial_envelope(d, 6.0)
    alpha, summed = attention(z, c, graph), attention(z, c, graph, v)
    weight = c[:, None] * z.exp()
    total = torch.zeros(5, 3).index_add(0, index[1], weight)
    want = c[:, None] * weight / total[index[1]]
    assert_close(alpha, want, 64)
    assert_close(summed, torch.zeros(5, 3, 2).index_add(0, index[1], want[..., None] * v), 64)
    assert (summed[3:] == 0).all()  # no edge ends there
    first = torch.autograd.grad(summed.pow(3).sum(), (z, d), create_graph=True)
    mine = torch.autograd.grad(sum(g.square().sum() for g in first), (z, d), retain_graph=True)
    plain = torch.zeros(5, 3, 2).index_add(0, index[1], want[..., None] * v)
    first = torch.autograd.grad(plain.pow(3).sum(), (z, d), create_graph=True)
    for a, b in zip(mine, torch.autograd.grad(sum(g.square().sum() for g in first), (z, d)), strict=True):
        assert_close(a, b, 1e4)  # 1e-12 of eps


def test_attention_vanishes_at_the_cutoff():
    graph, attention = Graph(torch.tensor([[0, 2], [1, 1]]), 3), nn.SmoothCutoffAttention()
    z = torch.tensor([[800.0], [-800.0]])  # beyond the exponential's range
    c = nn.polynomial_envelope(torch.tensor([1.0, 4.0]), 4.0)
    alpha = attention(z, c, graph)
    assert torch.isfinite(alpha).all() and alpha[1] == 0 and abs(alpha[0] - c[0]) < 1e-12
    assert (attention(z, torch.zeros(2), graph) == 0).all()
    masked = attention(torch.tensor([[-torch.inf], [-torch.inf]]), torch.ones(2), graph)
    assert (masked == 0).all()  # no NaN
    d = torch.tensor([3.0], requires_grad=True)
    for distance in (4.0, 5.0):  # value and two derivatives
        d = torch.tensor([distance], requires_grad=True)
        y = nn.polynomial_envelope(d, 4.0)
        (g,) = torch.autograd.grad(y, d, create_graph=True)
        assert y == 0 and abs(g) < 1e-13 and (not g.requires_grad or abs(torch.autograd.grad(g, d)[0]) < 1e-12)
    assert nn.polynomial_envelope(torch.zeros(1), 4.0) == 1
    x = torch.linspace(0, 1, 9)
    for p in (2, 5, 6):
        plain = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        assert_close(nn.polynomial_envelope(3 * x, 3.0, p), plain, 16)
    near = nn.polynomial_envelope(torch.tensor([1 - 2.0**-20, 1 - 2.0**-12], dtype=torch.float32), 1.0)
    assert ((near.double() / (35 * torch.tensor([2.0**-60, 2.0**-36])) - 1).abs() < 2e-3).all()  # (1 - x)^3 C(7, 3)
    assert attention(torch.zeros(0, 2), torch.zeros(0), Graph(torch.zeros(2, 0, dtype=torch.int64), 3)).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("excess", [30.0, 100.0, 800.0])
def test_an_edge_at_the_cutoff_counts_for_nothing_whatever_its_logit(dtype, excess):
    # two edges, and a third that lies at the cutoff or is not there
    index, z = torch.tensor([[0, 2, 3], [1, 1, 1]]), torch.tensor([[0.0], [1.0], [excess]], dtype=dtype)
    attention, without = nn.SmoothCutoffAttention(), Graph(index[:, :2], 4)
    d = torch.tensor([1.0, 2.0, 4.0], dtype=dtype, requires_grad=True)
    z.requires_grad_()

    def found(graph, n):
        alpha = attention(z[:n], nn.polynomial_envelope(d[:n], 4.0), graph)
        first = torch.autograd.grad(alpha.pow(2).sum(), (z, d), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (z, d))
        return [alpha[:2], *(g[:2] for g in (*first, *second))], [alpha[2:], *(g[2:] for g in (*first, *second))]

    (there, gone), (want, _) = found(Graph(index, 4), 3), found(without, 2)
    for one, other in zip(there, want, strict=True):
        torch.testing.assert_close(one, other)
    assert all((g == 0).all() for g in gone)
    assert want[0].sum() > 0.5
    # what is left of the others once it has come a little closer is continuous
    c = torch.tensor([1.0, 1.0, 0.0], dtype=dtype)
    for share in (1e-3, 1.0):  # of e^(z - m) c beside the others' 1 + e
        c[2] = share * (1 + torch.e) * torch.exp(torch.tensor(-excess, dtype=torch.float64))
        if c[2] > torch.finfo(dtype).tiny:
            alpha = attention(z.detach(), c, Graph(index, 4))
            torch.testing.assert_close(alpha[:2].sum().item(), 1 / (1 + share), rtol=1e-4, atol=0.0)


def test_slopes_are_finite_where_nothing_counts():
    graph = Graph(torch.tensor([[0, 2, 0], [1, 1, 2]]), 3)
    for dtype in (torch.float32, torch.float64):
        z = torch.tensor([[800.0], [0.0], [-800.0]], dtype=dtype, requires_grad=True)
        c = torch.zeros(3, dtype=dtype, requires_grad=True)
        alpha = nn.SmoothCutoffAttention()(z, c, graph)
        slopes = torch.autograd.grad(alpha.sum(), (z, c), create_graph=True)
        again = torch.autograd.grad(sum(g.sum() for g in slopes), (z, c))
        assert not alpha.any() and all(g.isfinite().all() for g in (*slopes, *again))
    # a slope of the envelope at the cutoff that is not 0 is seen by the others, as e^(z - m)
    c = torch.tensor([1.0, 0.0, 1.0], requires_grad=True)
    alpha = nn.SmoothCutoffAttention()(torch.tensor([[1.0], [3.0], [0.0]]), c, graph)
    (slope,) = torch.autograd.grad(alpha[0].sum(), c)
    assert_close(slope[1:], torch.tensor([-(torch.e**2), 0.0]), 16)


LAYERS = {
    "S2Activation": (lambda: nn.S2Activation("2x0e+2x1o", F.silu, 6), [(3, 8)]),
    "SwiGLUS2": (lambda: nn.SwiGLUS2("2x0e+2x1o"), [(3, 16), (3, 6)]),
    "S2MLP": (lambda: nn.S2MLP("2x0e+2x1o", "3x0e+3x1o", 4), [(3, 8)]),
    "S2MLP, deep": (lambda: nn.S2MLP("2x0e+2x1o", "3x0e+3x1o", [4, 3]), [(3, 8)]),
    "S2MLP, gated": (lambda: nn.S2MLP("2x0e+2x1o", "3x0e+3x1o", 4, "swiglu"), [(3, 8)]),
    "MergedLayerNorm": (lambda: nn.MergedLayerNorm("2x0e+2x1o"), [(3, 8)]),
}


@pytest.mark.parametrize("make, shapes", LAYERS.values(), ids=LAYERS)
def test_properties(make, shapes):
    """Copies, compilation in one graph, empty batches, and second derivatives by differences."""
    layer, inputs = make(), [torch.randn(shape, requires_grad=True) for shape in shapes]
    want = layer(*inputs)
    for other in copies(layer):
        assert torch.equal(other(*inputs), want)
    torch._dynamo.reset()
    assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(*inputs), want, 4)
    with torch.device("meta"):
        later = make()
    later = later.to_empty(device="cpu")
    later.load_state_dict(layer.state_dict())
    assert torch.equal(later(*inputs), want)
    with pytest.raises(NotImplementedError, match=f"{type(layer).__name__}: torch.jit.script is not supported"):
        torch.jit.script(layer)
    assert layer(*(t[:0] for t in inputs)).shape == (0, want.shape[1])
    assert layer(*(t[:2].reshape(2, 1, -1) for t in inputs)).shape == (2, 1, want.shape[1])
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)


class Attention(torch.nn.Module):
    """Over a graph of its own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.SmoothCutoffAttention()

    def forward(self, logits, envelope, *values):
        graph = Graph(torch.tensor([[0, 1, 2, 0], [1, 2, 1, 2]]), 3)
        return self.attention(logits, envelope.abs(), graph, *values)


LOW = LAYERS | {
    "S2Activation, plain": (lambda: nn.S2Activation("2x0e+2x1o", PLAIN["a lambda"], 6), [(3, 8)]),
    "S2Activation, turned": (lambda: nn.S2Activation("2x0e+2x1o", F.silu, 8, random_rot=True), [(3, 8)]),
    "attention": (Attention, [(4, 2), (4,)]),
    "attention, values": (Attention, [(4, 2), (4,), (4, 2, 3)]),
}


@pytest.mark.parametrize("name", LOW)
def test_bfloat16_and_autocast(name):
    make, shapes = LOW[name]
    assert_takes_bfloat16(make(), [torch.randn(shape) for shape in shapes], exact="MLP" not in name)


def test_bfloat16_is_refused_on_the_cpu():
    for layer in (nn.S2Activation("2x0e+2x1o", F.silu, 6), nn.S2MLP("2x0e+2x1o", "2x0e+2x1o", 3)):
        with pytest.raises(ValueError, match=r"x must be float32 or float64 on the CPU, .*; cast it with \.float"):
            layer.bfloat16()(torch.zeros(2, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("irreps", ["0x0e+0x1o", "3x0e"], ids=str)
def test_no_channels_and_degree_zero(irreps):
    layer = nn.S2Activation(irreps, F.silu, 4)
    x = rows(irreps, 2)
    assert layer(x).shape == x.shape
    if x.numel():  # a constant function: the activation of the number itself
        assert_close(layer(x), layer.act(x), 4)
    s = torch.randn(2, 3 * o3.Irreps(irreps)[0].mul)
    assert nn.SwiGLUS2(irreps)(torch.randn(2, 2 * x.shape[1]), s).shape == x.shape
    assert nn.S2MLP(irreps, irreps, 0)(x).shape == x.shape
    assert nn.MergedLayerNorm(irreps)(x).shape == x.shape


def messages():
    act, glu, mlp, norm = nn.S2Activation, nn.SwiGLUS2, nn.S2MLP, nn.MergedLayerNorm
    silu, points = F.silu, "0e+1o+2e"
    yield "several parities", lambda: act("0e+1o+2o", silu, 8), r"irreps must be of one parity or of alternating ones"
    yield "missing degree", lambda: act("0e+2e", silu, 8), r"must have the degrees 0\.\.L in order, .* got 1x0e\+1x2e"
    yield "no irreps", lambda: act("", silu, 8), r"irreps must have the degrees 0\.\.L"
    yield "unequal", lambda: glu("2x0e+3x1o"), r"irreps_out must have one multiplicity, got 2x0e\+3x1o"
    yield "twice", lambda: mlp("0e+1o+0e", points, 4), r"irreps_in must hold each irrep once"
    yield "rings", lambda: act(points, silu, 4), r"res must have at least 6 rings, .* 5 azimuths .*, got 4"
    yield "odd rings", lambda: act(points, silu, (7, 9)), r"an even number, .* got \(7, 9\)"
    yield "azimuths", lambda: act(points, silu, (8, 4)), r"got \(8, 4\)"
    yield "lmax_out", lambda: act(points, silu, 6, lmax_out=4), r"at least 10 rings"
    yield "res", lambda: act(points, silu, "fine"), r"res must be an int or a pair of ints, got 'fine'"
    yield "act", lambda: act("0o+1e", silu, 6), r"act must be even or odd where the scalars are odd"
    yield "act's name", lambda: act(points, "silu", 8), r"act must be a function or a module, got 'silu'; take torch"
    yield "act's class", lambda: act(points, torch.nn.SiLU, 8), r"act must be a function or a module, got <class"
    yield "negative", lambda: act(points, silu, 8, lmax_out=-1), r"lmax_out must be an integer of at least 0, got -1"
    yield "normalization", lambda: act(points, silu, 8, "unit"), r"normalization must be one of .*, got 'unit'"
    yield "backend", lambda: act(points, silu, 8, backend="fast"), r"S2Activation: backend must be .*, got 'fast'"
    yield "grid", lambda: glu(points, (3, 7)), r"must have at least 4 x 7 points .* got 3 x 7"
    yield "grid's type", lambda: glu(points, 12), r"SwiGLUS2: grid must be one of .*, a Grid or \(rings, .* got 12"
    yield "grid's length", lambda: mlp(points, points, 4, grid=(4, 7, 1)), r"S2MLP: grid must be one of .* got \(4, 7"
    yield "swiglu's backend", lambda: glu(points, backend="fast"), r"SwiGLUS2: backend must be one of .*, got 'fast'"
    yield "mlp's backend", lambda: mlp(points, points, 4, backend="fast"), r"S2MLP: backend must be .*, got 'fast'"
    yield "integers", lambda: norm(points)(torch.zeros(2, 9, dtype=torch.int64)), r"features must be float32 .*int64"
    yield "a list", lambda: mlp(points, points, 4)([[0.0] * 9]), r"inputs must be a tensor, got list; use torch"
    yield "odd scalars", lambda: glu("0o+1e"), r"irreps_out must have even scalars \(0e\), got 1x0o\+1x1e"
    yield "other parities", lambda: mlp("0e+1o", "0e+1e", 4), r"irreps_out must have the parities of irreps_in"
    yield "mlp's act", lambda: mlp(points, points, 4, "none"), r"act must be one of \('swiglu', .*got 'none'"
    yield "hidden", lambda: mlp(points, points, -1), r"hidden must be an integer of at least 0, got -1"
    yield "no hidden", lambda: mlp(points, points, []), r"hidden must be a number of channels or a list .*, got \[\]"
    yield "hidden's type", lambda: mlp(points, points, [4, 2.0]), r"hidden must be an integer of at least 0, got 2\.0"
    yield "gated twice", lambda: mlp(points, points, [4, 2], "swiglu"), r"hidden must be one number with act 'swiglu'"
    yield "columns", lambda: mlp(points, points, 4)(torch.zeros(2, 8)), r"inputs must be \[\.\.\., 9\], got \[2, 8\]"
    yield "scalars", lambda: glu(points)(torch.zeros(2, 18), torch.zeros(2, 2)), r"scalars must be \[\.\.\., 3\]"
    yield "rows", lambda: glu(points)(torch.zeros(2, 18), torch.zeros(3, 3)), r"scalars must be \[2, 3\], got \[3, 3\]"
    yield "norm's scalars", lambda: norm("0o+1e"), r"even scalars \(0e\) with centering, .*; pass centering=False"
    yield "norm's degrees", lambda: norm("1o+0e"), r"MergedLayerNorm: irreps must have the degrees 0\.\.L"
    yield "eps", lambda: norm(points, -1.0), r"eps must be 0 or more, got -1\.0"
    attention, graph = nn.SmoothCutoffAttention(), Graph(torch.tensor([[0], [1]]), 2)
    one = torch.zeros(1)
    yield "graph", lambda: attention(one[None], one, None), r"graph must be an ace_fast\.Graph, got NoneType"
    yield "integer logits", lambda: attention(one[None].long(), one, graph), r"logits must be float32 or .*torch\.int64"
    yield "logits", lambda: attention(one, one, graph), r"logits must be \[1, H\], a row for each edge, got \[1\]"
    yield "envelope", lambda: attention(one[None], one[None], graph), r"envelope must be \[1\], got \[1, 1\]"
    yield "values", lambda: attention(one[None], one, graph, torch.zeros(1, 2)), r"values must be \[1, 1, \.\.\.\]"
    yield "attention's eps", lambda: nn.SmoothCutoffAttention(-1), r"eps must be 0 or more, got -1"
    yield "cutoff", lambda: nn.polynomial_envelope(one, 0.0), r"cutoff must be strictly positive, got 0\.0"
    yield "p", lambda: nn.polynomial_envelope(one, 1.0, 1), r"p must be an integer of at least 2, got 1"


MESSAGES = list(messages())


@pytest.mark.parametrize("call, message", [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_exact_grids_are_those_of_the_product():
    assert repr(nn.SwiGLUS2(field(6)).grid) == "SphereGrid(10 x 19 points, lmax=6, lmax_out=6)"
    assert nn.S2MLP(field(3), field(1), 2, "swiglu").grid.points == grids.exact(7).size
    fewest, plain = nn.SwiGLUS2(field(3, 2), "lebedev"), nn.SwiGLUS2(field(3, 2))
    assert fewest.grid.points < plain.grid.points
    inputs = torch.randn(4, 64), torch.randn(4, 6)
    assert_close(fewest(*inputs), plain(*inputs), 8)
