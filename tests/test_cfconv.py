"""cfconv: the plain formula, the error of tables, symmetry of graphs, hard inputs, messages."""

import math

import pytest
import torch
from torch.autograd import forward_ad

from ace_fast import Graph, which
from ace_fast.adjacency import adjacency
from ace_fast.backend import available
from ace_fast.functional import RadialBasis, bessel_basis, cfconv, expnorm_basis, gaussian_basis
from ace_fast.kernels.cfconv.basis import activate, filter_table, radial, radial_derivatives, radial_slope, spline_table
from ace_fast.kernels.cfconv.cases import molecules
from ace_fast.kernels.cfconv.op import cfconv_bwd, cfconv_op, spline_conv_op
from ace_fast.kernels.cfconv.reference import _spline_jets

CUTOFF = 5.0
BACKENDS = [name for name, reason in available("cpu")["cfconv"].items() if not reason]
BASES = {"gaussian": gaussian_basis, "bessel": bessel_basis, "expnorm": expnorm_basis}
torch_dtype = {"dtype": torch.float64}


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def make(basis: str = "gaussian", F: int = 6, H: int = 5, G: int = 8, graph: Graph | None = None) -> dict:
    """Arguments of cfconv for two molecules of four atoms, or another graph."""
    graph = graph or Graph(molecules(2, 4), 8)
    return {"x": randn(graph.num_nodes, F), "pos": 1.5 * randn(graph.num_nodes, 3), "graph": graph, "cutoff": CUTOFF,
            "basis": BASES[basis](CUTOFF, G, **torch_dtype), "weight1": randn(H, G), "bias1": randn(H),
            "weight2": randn(F, H), "bias2": randn(F)}


def plain(x, pos, graph, cutoff, basis, weight1, bias1, weight2, bias2, activation="shifted_softplus"):
    """SchNet's formula, edge by edge, as PyTorch Geometric has it."""
    source, target = graph.edge_index
    d = (pos[target] - pos[source]).norm(dim=1)
    if basis.kind == "bessel":
        values = basis.scale * torch.sin(basis.centre * d[:, None]) / d[:, None]
    else:
        u = d if basis.kind == "gaussian" else torch.exp(-basis.alpha * d)
        values = torch.exp(basis.scale * (u[:, None] - basis.centre) ** 2)
    hidden = values @ weight1.T + bias1
    hidden = torch.nn.functional.silu(hidden) if activation == "silu" else torch.logaddexp(
        hidden, torch.zeros_like(hidden)) - math.log(2)
    cut = torch.where(d < cutoff, 0.5 * (torch.cos(math.pi * d / cutoff) + 1), 0.0)
    messages = (hidden @ weight2.T + bias2) * cut[:, None] * x[source]
    return torch.zeros_like(x).index_add(0, target, messages)


# interpreted, Triton takes seconds: once for each basis
FORMULAS = [(backend, basis, activation) for backend in BACKENDS for basis in BASES
            for activation in ("shifted_softplus", "silu")
            if backend != "triton" or (activation == "silu") == (basis == "expnorm")]


@pytest.mark.parametrize(("backend", "basis", "activation"), FORMULAS)
def test_is_the_formula(backend, basis, activation):
    a = make(basis)
    a |= {name: a[name].requires_grad_() for name in ("x", "pos", "weight1", "bias1", "weight2", "bias2")}
    leaves = [v for v in a.values() if isinstance(v, torch.Tensor)]
    mine, right = cfconv(**a, activation=activation, backend=backend), plain(**a, activation=activation)
    torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
    g = randn(*right.shape)
    for x, y in zip(torch.autograd.grad(mine, leaves, g), torch.autograd.grad(right, leaves, g), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


def forces_loss(function, a: dict, leaves: list) -> list[torch.Tensor]:
    """Gradients of a loss of energies and forces."""
    pos = a["pos"].detach().requires_grad_()
    energy = function(**a | {"pos": pos}).sin().sum()
    forces = torch.autograd.grad(energy, pos, create_graph=True)[0]
    return torch.autograd.grad(forces.square().sum() + energy, [*leaves, pos])


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_on_forces(backend):
    a = make()
    leaves = [a[name].requires_grad_() for name in ("x", "weight1", "bias1", "weight2", "bias2")]
    mine = forces_loss(lambda **a: cfconv(**a, backend=backend), a, leaves)
    for x, y in zip(mine, forces_loss(plain, a, leaves), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def network(G: int = 50, F: int = 32, H: int = 32, cutoff: float = 10.0) -> dict:
    """SchNet's own initialisation of a filter network, with biases."""
    weights = [torch.nn.init.xavier_uniform_(randn(H, G)), 0.1 * randn(H),
               torch.nn.init.xavier_uniform_(randn(F, H)), 0.1 * randn(F)]
    return {"basis": gaussian_basis(cutoff, G, **torch_dtype)} | dict(
        zip(("weight1", "bias1", "weight2", "bias2"), weights, strict=True))


@pytest.mark.parametrize("activation", [0, 1])
def test_error_of_a_table(activation):
    """Values, first and second derivatives between the knots, relative to the largest: as the README states."""
    a, cutoff, knots = network(), 10.0, 1024
    weight1, bias1, weight2, bias2 = (a[n] for n in ("weight1", "bias1", "weight2", "bias2"))
    d = torch.linspace(0, cutoff, 4001, dtype=torch.float64).requires_grad_()
    value = activate(activation, radial(0, 0.0, *a["basis"][1:3], d) @ weight1.T + bias1) @ weight2[:4].T + bias2[:4]
    table = filter_table(a["basis"], weight1, bias1, weight2[:4], bias2[:4], activation, cutoff, knots)
    spline = _spline_jets(d, None, table, cutoff)[0]
    for order, limit in enumerate((1e-5, 1e-5, 2e-3)):
        assert (spline - value).detach().abs().max() < limit * value.detach().abs().max()
        if order < 2:
            spline, value = (torch.stack([torch.autograd.grad(y[:, c].sum(), d, create_graph=True)[0]
                                          for c in range(4)], 1) for y in (spline, value))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])  # minutes, interpreted
def test_table_against_exact(backend):
    """Values, all gradients and those of a loss of forces; the cutoff's gradient is exact."""
    graph = Graph(molecules(1, 4), 4)
    a = {"x": randn(4, 32), "pos": 2.5 * randn(4, 3), "graph": graph, "cutoff": 10.0} | network()
    leaves = [a[name].requires_grad_() for name in ("x", "weight1", "bias1", "weight2", "bias2")]
    exact = [plain(**a), *forces_loss(plain, a, leaves)]
    run = lambda **a: cfconv(**a, filter="table", backend=backend)  # noqa: E731
    for limit, x, y in zip((1e-5, *[2e-3] * 6), [run(**a), *forces_loss(run, a, leaves)], exact, strict=True):
        assert (x - y).abs().max() <= limit * y.abs().max()
    g = randn(4, 32)
    for x, y in zip(torch.autograd.grad(run(**a), leaves, g), torch.autograd.grad(plain(**a), leaves, g), strict=True):
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_splines(backend):
    """Knot values alone have the slopes of central differences; lines are reproduced; the spline trains."""
    graph = Graph(torch.tensor([[1], [0]]), 2)
    pos, x = torch.tensor([[0.0, 0, 0], [1.23, 0, 0]], dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    line = torch.linspace(0, CUTOFF, 11, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, -3.0]).double()
    cut = 0.5 * (math.cos(math.pi * 1.23 / CUTOFF) + 1)
    y = cfconv(x, pos, graph, CUTOFF, filter="spline", spline=line, backend=backend)
    torch.testing.assert_close(y[0], cut * 1.23 * torch.tensor([1.0, 2.0, -3.0]).double())
    assert not y[1].any()
    table = spline_table(line, CUTOFF)
    torch.testing.assert_close(cfconv(x, pos, graph, CUTOFF, filter="spline", spline=table, backend=backend), y)
    line.requires_grad_()
    cfconv(x, pos, graph, CUTOFF, filter="spline", spline=line, backend=backend).sum().backward()
    assert line.grad[:, 0].sum().item() == pytest.approx(cut)  # a constant is reproduced


@pytest.mark.parametrize("filter", ["exact", "table"])
def test_gradgradcheck(filter):
    a = make(F=2, H=2, G=2, graph=Graph(molecules(1, 3), 3))
    leaves = [a[n].requires_grad_() for n in ("x", "pos", "weight1", "bias1", "weight2", "bias2")]
    basis = [a["basis"].centre.requires_grad_(), a["basis"].scale.requires_grad_()]

    def function(x, pos, w1, b1, w2, b2, centre, scale):
        return cfconv(x, pos, a["graph"], CUTOFF, RadialBasis("gaussian", centre, scale), w1, b1, w2, b2,
                      filter=filter, knots=5)

    assert torch.autograd.gradcheck(function, [*leaves, *basis], fast_mode=True)
    assert torch.autograd.gradgradcheck(function, [*leaves, *basis], fast_mode=True)


# ---- graphs ----------------------------------------------------------------------------------------------------------

def test_symmetry_of_graphs_is_found():
    pairs = molecules(3, 5)
    shuffled = pairs[:, torch.randperm(pairs.shape[1])]
    loops = torch.arange(15).expand(2, 15)
    for edges, symmetric in ((pairs, True), (shuffled, True), (torch.cat([pairs, loops], 1), True),
                             (torch.cat([pairs, pairs], 1), True), (pairs[:, 1:], False), (shuffled[:, 1:], False),
                             (torch.cat([pairs, pairs[:, :1]], 1), False), (pairs[:, :0], True),
                             (torch.tensor([[0, 1, 2], [1, 2, 0]]), False)):
        assert Graph(edges, 15).adjacency.symmetric is symmetric
    with pytest.raises(ValueError, match="Graph: adjacency must be asked of a graph on one set of nodes"):
        _ = Graph(torch.zeros(2, 1, dtype=torch.int64), (1, 2)).adjacency


def test_adjacency_of_isolated_nodes_and_none():
    assert Graph(torch.zeros(2, 0, dtype=torch.int64), 0).adjacency.chunks.shape == (0, 4)
    chunks = Graph(torch.tensor([[3], [2]]), 6).adjacency.chunks
    assert chunks.tolist() == [[0, 6, 0, 6]]


def test_chunks_cover_all_nodes_and_their_edges():
    graph = Graph(molecules(300, 18), 5400)
    near, ptr = graph.adjacency[:2]
    chunks = graph.adjacency.chunks.tolist()
    assert len(chunks) == 8
    assert [c[0] for c in chunks] + [5400] == [0] + [c[1] for c in chunks]
    for first, last, low, high in chunks:
        of = near[ptr[first]:ptr[last]]
        assert low <= min(first, of.min()) and high >= max(last, of.max() + 1)
    # without locality, every chunk touches nearly all nodes: few of them
    random = torch.randint(0, 2000, (2, 100_000))
    assert len(Graph(random, 2000).adjacency.chunks) == 4


@pytest.mark.parametrize("filter", ["exact", "spline"])
def test_symmetric_and_directed_agree(filter):
    """Pairs of a symmetric graph give what its edges give one by one: repeated edges, self-loops, any order."""
    pairs = molecules(30, 9)
    pairs = torch.cat([pairs, pairs[:, :72], torch.arange(40).expand(2, 40)], 1)
    n = 270
    graph = Graph(pairs[:, torch.randperm(pairs.shape[1])], n)
    one = graph.adjacency
    assert one.symmetric
    a = make(graph=graph)
    x, pos, g = a["x"].requires_grad_(), a["pos"].requires_grad_(), randn(n, 6)
    found = []
    for lists in (one, one._replace(symmetric=False)):
        if filter == "exact":
            leaves = [x, pos, *(a[k].requires_grad_() for k in ("weight1", "bias1", "weight2", "bias2")),
                      *(t.requires_grad_() for t in a["basis"][1:3])]
            y = cfconv_op(*leaves, *lists, 0, 0, 0.0, CUTOFF, "auto")
        else:
            leaves = [x, pos, filter_table(a["basis"], *(a[k].detach() for k in ("weight1", "bias1", "weight2",
                                                                                  "bias2")), 0, CUTOFF, 32)]
            leaves[2] = leaves[2].detach().requires_grad_()
            y = spline_conv_op(*leaves, *lists, CUTOFF, "auto")
        first = torch.autograd.grad(y, leaves, g, create_graph=True)
        second = torch.autograd.grad(first[1].square().sum() + first[0].sin().sum(), leaves)
        found.append([y, *first, *second])
    for u, v in zip(*found, strict=True):
        torch.testing.assert_close(u, v, rtol=1e-11, atol=1e-10 * v.abs().max().item())


@pytest.mark.parametrize("filter", ["exact", "table"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_coincident_far_and_isolated_atoms(backend, filter):
    edges = torch.tensor([[0, 1, 2, 3, 0, 3], [1, 0, 3, 2, 3, 0]])
    for basis in BASES:
        a = make(basis, graph=Graph(edges, 5))
        pos = torch.zeros(5, 3, dtype=torch.float64)
        pos[2:] = torch.tensor([7.0, 0, 0])
        pos[3, 1] = 1.0
        leaves = [a["x"].requires_grad_(), pos.requires_grad_(), a["weight1"].requires_grad_()]
        y = cfconv(**a | {"pos": pos}, filter=filter, knots=12, backend=backend)
        assert not y[4].any() and y[:4].any(1).all()
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        assert all(t.isfinite().all() for t in first)
        assert not first[1][[0, 1, 4]].any()  # coincident with a neighbour, another beyond the cutoff; no neighbour
        second = torch.autograd.grad(sum(t.square().sum() for t in first), leaves)
        assert all(t.isfinite().all() for t in second)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_positions_stay(backend):
    a = make()
    a["pos"][1, 0] = math.nan
    y = cfconv(**a, filter="table", knots=32, backend=backend)
    assert y[:4].isnan().all() and y[4:].isfinite().all()
    assert cfconv(**a, backend=backend)[:4].isnan().all()


def test_needs():
    """Gradients that nobody asks for are not made."""
    a = make()
    leaves = (a["x"], a["pos"], a["weight1"], a["bias1"], a["weight2"], a["bias2"], *a["basis"][1:3])
    constants = (*a["graph"].adjacency, 0, 0, 0.0, CUTOFF)
    every = cfconv_bwd(randn(8, 6), *leaves, *constants, [True] * 8, "auto")
    assert [t.shape for t in every] == [t.shape for t in leaves]
    for k in range(8):
        torch.manual_seed(1)
        g, needs = randn(8, 6), [n == k for n in range(8)]
        found = cfconv_bwd(g, *leaves, *constants, needs, "auto")
        assert [t.numel() > 0 for t in found] == needs
        torch.testing.assert_close(found[k], cfconv_bwd(g, *leaves, *constants, [True] * 8, "auto")[k])


def test_constants_of_the_bases():
    b = gaussian_basis(10.0, 50)
    assert b.scale[0].item() == pytest.approx(-0.5 / (10 / 49) ** 2, rel=1e-6) and b.centre[-1] == 10
    b = bessel_basis(4.0, 3, **torch_dtype)
    values, slopes = radial_slope(2, 0.0, b.centre, b.scale, torch.tensor([0.0, 1e-5, 2.0], **torch_dtype))
    torch.testing.assert_close(values[:2], (b.scale * b.centre).expand(2, 3), rtol=1e-8, atol=0)
    assert not slopes[0].any() and values[2, 1].abs() < 1e-15
    b = expnorm_basis(5.0, 7, **torch_dtype)
    assert b.alpha == 1.0 and b.centre[0].item() == pytest.approx(math.exp(-5)) and b.centre[-1] == 1
    assert which("cfconv", b.centre) == ("cpu" if "cpu" in BACKENDS else "reference")


def test_gaussians_far_away_are_zero():
    """No subnormal number among values, slopes and all derivatives; what is left of them is not changed."""
    b = gaussian_basis(10.0, 50)
    args = 0, 0.0, b.centre, b.scale
    d = torch.linspace(0, 10, 301)
    found = [radial(*args, d), *radial_slope(*args, d), *radial_derivatives(*args, d)]
    assert all(((x == 0) | (x.abs() > 1e-34)).all() for x in found)
    power = b.scale.double() * (d.double()[:, None] - b.centre.double()).square()
    torch.testing.assert_close(found[0].double(), torch.exp(power), rtol=2e-5, atol=1e-26)


# ---- errors ----------------------------------------------------------------------------------------------------------

ERRORS = {
    "graph must be an ace_fast.Graph, got Tensor": {"graph": torch.zeros(2, 0, dtype=torch.int64)},
    r"graph must be on one set of nodes, got Graph\(8 sources": {"graph": Graph(molecules(2, 4), (8, 9))},
    "filter must be 'exact', 'table' or 'spline', got 'fast'": {"filter": "fast"},
    "basis must be a RadialBasis of kind gaussian, expnorm, bessel, got NoneType; use gaussian_basis": {"basis": None},
    "basis must be a RadialBasis of kind .*, got 'cosine'": {"basis": RadialBasis("cosine", randn(8), randn(8))},
    "weight1 must be a tensor, got NoneType; give the filter network": {"weight1": None},
    "activation must be one of shifted_softplus, silu, got 'relu'": {"activation": "relu"},
    "spline must be None where a network gives the filter, got a tensor": {"spline": randn(4, 6)},
    "spline must be .* with at least two knots, got NoneType": {"filter": "spline"},
    r"spline must be .* with at least two knots, got \[1, 6\]": {"filter": "spline", "spline": randn(1, 6)},
    "knots must be a whole number, at least 2, got 1": {"filter": "table", "knots": 1},
    "cutoff must be a positive number of Å, got -1.0": {"cutoff": -1.0},
    "cutoff must be a positive number of Å, got nan": {"cutoff": math.nan, "filter": "table"},
    "cutoff must be a positive number of Å, got inf": {"cutoff": math.inf, "filter": "spline", "spline": randn(4, 6)},
    r"x must be \[N, F\], got \[8\]": {"x": randn(8)},
    r"pos must be \[8, 3\], a row for each of x, got \[8, 2\]": {"pos": randn(8, 2)},
    r"pos must be torch.float64 on cpu, got torch.float32": {"pos": torch.zeros(8, 3)},
    r"ptr must be \[8\], one more than the rows of x, got \[9\]": {"x": randn(7, 6), "pos": randn(7, 3)},
    r"weight1 must be \[H, G\], got \[5\]": {"weight1": randn(5)},
    r"bias1 must be \[5\] for x \[N, 6\] and weight1 \[5, 8\], got \[4\]": {"bias1": randn(4)},
    r"weight2 must be \[6, 5\] for .*, got \[5, 5\]": {"weight2": randn(5, 5)},
    r"centre must be \[8\] for .*, got \[7\]": {"basis": gaussian_basis(CUTOFF, 7, **torch_dtype)},
    "backend must be one of": {"backend": "fast"},
}


@pytest.mark.parametrize("message", ERRORS)
def test_says_what_is_wrong(message):
    with pytest.raises(ValueError, match="^cfconv: " + message):
        cfconv(**make() | ERRORS[message])


def test_operators_say_what_is_wrong():
    a = make()
    lists, table = a["graph"].adjacency, randn(4, 2, 6)
    for change, message in (({"chunks": lists.chunks[:, :3]}, r"chunks must be \[C, 4\], got \[1, 3\]"),
                            ({"back": lists.back[1:]}, r"back must be \[24\] like neighbour, got \[23\]"),
                            ({"neighbour": lists.neighbour.int()}, "neighbour must be int64 on cpu, got torch.int32")):
        with pytest.raises(ValueError, match="spline_conv: " + message):
            spline_conv_op(a["x"], a["pos"], table, *lists._replace(**change), CUTOFF, "auto")
    with pytest.raises(ValueError, match=r"spline_conv: table must be \[K, 2, 6\] with at least two knots, got \[1"):
        spline_conv_op(a["x"], a["pos"], table[:1], *lists, CUTOFF, "auto")
    leaves = (a["x"], a["pos"], a["weight1"], a["bias1"], a["weight2"], a["bias2"], *a["basis"][1:3])
    for constants, message in (((3, 0), "basis must be 0..2, got 3"), ((0, 2), "activation must be 0..1, got 2")):
        with pytest.raises(ValueError, match="cfconv: " + message):
            cfconv_op(*leaves, *lists, *constants, 0.0, CUTOFF, "auto")
    constants = (*lists, 0, 0, 0.0, CUTOFF)
    with pytest.raises(ValueError, match="cfconv_bwd: needs must be a bool for each of x, pos, .*, got "):
        cfconv_bwd(a["x"], *leaves, *constants, [True], "auto")
    with pytest.raises(ValueError, match=r"cfconv_bwd: g must be \[8, 6\], got \[8, 5\]"):
        cfconv_bwd(a["x"][:, 1:], *leaves, *constants, [True] * 8, "auto")


def test_bases_say_what_is_wrong():
    with pytest.raises(ValueError, match="gaussian_basis: count must be at least 2 and stop above start, got 1"):
        gaussian_basis(5.0, 1)
    for basis in (bessel_basis, expnorm_basis):
        with pytest.raises(ValueError, match="_basis: count must be at least 1 and cutoff above 0, got 3 and 0"):
            basis(0.0, 3)


def test_forward_mode_raises():
    a = make()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a["pos"], torch.ones_like(a["pos"]))
        with pytest.raises(NotImplementedError, match="cfconv: forward-mode"):
            cfconv(**a | {"pos": dual})
        with pytest.raises(NotImplementedError, match="cfconv: forward-mode"):
            cfconv(a["x"], dual, a["graph"], CUTOFF, filter="spline", spline=randn(4, 6))


def test_indices_outside_are_left_out():
    """Indices outside are left out, never read."""
    a = make()
    lists = a["graph"].adjacency
    neighbour = lists.neighbour.clone().index_fill_(0, torch.tensor([0, 1]), 99)
    outside = lists._replace(neighbour=neighbour, symmetric=False)
    table = randn(4, 2, 6)
    gold = spline_conv_op(a["x"], a["pos"], table, *outside, CUTOFF, "reference")
    for backend in BACKENDS:
        torch.testing.assert_close(spline_conv_op(a["x"], a["pos"], table, *outside, CUTOFF, backend), gold)
    assert adjacency(*lists[:4]).symmetric
