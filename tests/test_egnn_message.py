"""egnn_message and the layers on it: the plain formula, what is kept, symmetries, the original's numbers, bad input."""

import copy
import json
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from ace_fast import Graph
from ace_fast.backend import available
from ace_fast.functional import egnn_message
from ace_fast.kernels.cases import cast, generator
from ace_fast.kernels.egnn_message import cases, reference
from ace_fast.kernels.egnn_message.op import NAMES, egnn_message_bwd, egnn_message_op
from ace_fast.nn import EGNN, EGNN_Layer

BACKENDS = [b for b, reason in available("cpu")["egnn_message"].items() if not reason]
FAST = [b for b in BACKENDS if b != "triton"]
NATIVE = [b for b in BACKENDS if b != "reference"]
WEIGHTS = NAMES[3:]


def message_of(nodes=23, edges=90, widths=(6, 2, 9, 17, 5), scale=1.0, dtype=torch.float64, needs_grad=True):
    """x, h, graph and the networks, and what is given by name."""
    g = generator()
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    f, a, h, m, c = widths
    graph = Graph(torch.randint(0, nodes, (2, edges), generator=g), nodes)
    parameters = []
    for out, width in ((h, 1 + 2 * f + a), (m, h), (c, m), (1, c)):
        parameters += [scale * normal(out, width) / width ** 0.5, normal(out)]
    leaves = [t.requires_grad_(needs_grad) for t in (normal(nodes, 3), normal(nodes, f), *parameters)]
    return (*leaves[:2], graph, *leaves[2:]), {"edge": normal(edges, a).requires_grad_(needs_grad)}


def plain(x, h, graph, w1, b1, w2, b2, w3, b3, w4, b4, *, edge, aggregation="mean", clamp=100.0):
    """EGNO's EGNN_Layer up to both sums, edge by edge, as its authors wrote it."""
    row, col = graph.edge_index[1], graph.edge_index[0]
    rij = x[row] - x[col]
    message = F.linear(torch.cat([(rij * rij).sum(1, keepdim=True), h[row], h[col], edge], 1), w1, b1)
    message = F.silu(F.linear(F.silu(message), w2, b2))
    f = rij * F.linear(F.silu(F.linear(message, w3, b3)), w4, b4)
    total = torch.zeros_like(x).index_add(0, row, f)
    if aggregation == "mean":
        total = total / torch.zeros_like(x).index_add(0, row, torch.ones_like(f)).clamp(min=1)
    return total.clamp(-clamp, clamp), message.new_zeros(x.shape[0], w2.shape[0]).index_add(0, row, message)


def gradients(function, positional, named):
    leaves = [t for t in (*positional, *named.values()) if isinstance(t, torch.Tensor)]
    out = function(*positional, **named)
    g = generator(1)
    return [*out, *torch.autograd.grad(out, leaves, [torch.randn(o.shape, generator=g, dtype=o.dtype) for o in out])]


def close(mine, expected, tolerance=1e-12):
    for x, y in zip(mine, expected, strict=True):
        assert (x - y).abs().max() <= tolerance * y.abs().max()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("aggregation", ["mean", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_plain_formula(backend, aggregation, recompute):
    """Weights at the nodes (R1), pre-activations kept or not: values and gradients to 1e-12."""
    positional, named = message_of()
    expected = gradients(lambda *a, **k: plain(*a, **k, aggregation=aggregation), positional, named)
    mine = gradients(lambda *a, **k: egnn_message(*a, **k, aggregation=aggregation, recompute=recompute,
                                                  backend=backend), positional, named)
    close(mine, expected)


@pytest.mark.parametrize("backend", FAST)
def test_the_clamp_is_the_original_s(backend):
    """Of the mean, not of an edge; nothing flows through a component at its bound."""
    positional, named = message_of(scale=9.0)
    expected = gradients(plain, positional, named)
    assert (expected[0].abs() == 100).any() and (expected[0].abs() < 100).any()
    close(gradients(lambda *a, **k: egnn_message(*a, **k, backend=backend), positional, named), expected, 1e-11)
    free = egnn_message(*positional, **named, clamp=None, backend=backend)[0]
    assert torch.equal(free.clamp(-100, 100), egnn_message(*positional, **named, backend=backend)[0])
    assert egnn_message(*positional, **named, clamp=0.5, backend=backend)[0].abs().max() == 0.5


@pytest.mark.parametrize("backend", FAST)
def test_second_derivatives_of_forces(backend):
    """A loss of the gradient by positions reaches every weight, as plain autograd does."""
    positional, named = message_of()

    def of(function):
        coordinates, features = function(*positional, **named)
        force = torch.autograd.grad(features.sin().sum() + coordinates.sin().sum(), positional[0], create_graph=True)[0]
        leaves = [t for t in (*positional, *named.values()) if isinstance(t, torch.Tensor)]
        return torch.autograd.grad(force.square().sum(), leaves, materialize_grads=True)

    close(of(lambda *a, **k: egnn_message(*a, **k, backend=backend)), of(plain), 1e-11)


@pytest.mark.parametrize("backend", FAST)
def test_third_derivative(backend):
    positional, named = message_of(5, 9, (2, 1, 3, 3, 3))

    def of(function):
        value = function(*positional, **named)[0].sin().sum()
        for _ in range(3):
            value = torch.autograd.grad(value, positional[0], create_graph=True)[0].square().sum()
        return [value]

    close(of(lambda *a, **k: egnn_message(*a, **k, backend=backend)), of(plain), 1e-10)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_kept(recompute):
    """Two pre-activations of the edges and the nodes' products, or the arguments alone; nothing without gradients."""
    positional, named = message_of()
    given = [*(t for t in (*positional, *named.values()) if isinstance(t, torch.Tensor)), *positional[2].sources,
             *positional[2].targets]
    addresses, kept = {t.data_ptr() for t in given}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        egnn_message(*positional, **named, recompute=recompute, clamp=None)
    more = [list(t.shape) for t in kept if t.data_ptr() not in addresses]
    assert more == ([] if recompute else [[23, 18], [90, 17], [90, 5]])
    inputs = cast(cases.SMALL[0].inputs(generator()), cases.SMALL[0], torch.float32)
    assert [list(t.shape) for t in egnn_message_op(*(inputs | {"keep": False}).values(), "auto")[2:]] == [[0]] * 3
    with torch.no_grad():
        out = egnn_message(*positional, **named)
    assert not any(o.requires_grad for o in out)


@pytest.mark.parametrize("backend", NATIVE)
def test_gradients_that_nobody_needs(backend):
    """Every subset with one gradient left out or one alone gives the same numbers as all together."""
    case = next(c for c in cases.SMALL if c.name == "repeated_edge" and c.op is egnn_message_bwd)
    inputs = cast(case.inputs(generator()), case, torch.float64)
    inputs = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    everything = case.op(*inputs.values(), backend)
    for n in range(0, 11, 5 if backend == "triton" else 1):  # interpreted, Triton takes long
        for needs in ([i == n for i in range(11)], [i != n for i in range(11)]):
            found = case.op(*(inputs | {"needs": needs}).values(), backend)
            for need, x, y in zip(needs, found, everything, strict=True):
                assert x.shape == (y.shape if need else (0,))
                assert not need or (x - y).abs().max() <= 1e-13 * y.abs().max()


@pytest.mark.parametrize("backend", FAST)
def test_symmetries(backend):
    """Rotations, reflections and translations of x, and the order of edges."""
    (x, h, graph, *weights), named = message_of()
    coordinates, features = egnn_message(x, h, graph, *weights, **named, backend=backend)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    moved = egnn_message(x @ rotation.T + torch.ones(3).double(), h, graph, *weights, **named, backend=backend)
    close(moved, [coordinates @ rotation.T, features], 1e-11)
    order = torch.randperm(90, generator=generator())
    shuffled = Graph(graph.edge_index[:, order], 23)
    close(egnn_message(x, h, shuffled, *weights, edge=named["edge"][order], backend=backend), [coordinates, features])


@pytest.mark.parametrize("backend", BACKENDS)
def test_coincident_and_isolated_nodes(backend):
    """Finite values and gradients of first and second order at |r| = 0; zeros where no edge ends."""
    (x, h, _, *weights), _ = message_of(6, 4)
    x = torch.ones(6, 3, dtype=torch.float64, requires_grad=True)
    graph = Graph(torch.tensor([[0, 1, 1, 3], [1, 0, 0, 3]]), 6)
    edge = torch.ones(4, 2, dtype=torch.float64)
    coordinates, features = egnn_message(x, h, graph, *weights, edge=edge, backend=backend)
    assert (coordinates == 0).all() and (features[[2, 4, 5]] == 0).all() and features[[0, 1, 3]].abs().min() > 0
    g_x, = torch.autograd.grad(coordinates.sum() + features.square().sum(), x, create_graph=True)
    second = torch.autograd.grad(g_x.square().sum(), [x, h, *weights])
    assert all(t.isfinite().all() for t in (g_x, *second))


@pytest.mark.parametrize("backend", FAST)
def test_nan_stays_where_it_is(backend):
    """A position that is no number spoils the nodes that it has edges to, and no other."""
    (x, h, graph, *weights), named = message_of(needs_grad=False)
    x[4] = math.nan
    ends = graph.edge_index[1][graph.edge_index[0] == 4].tolist()
    into = graph.edge_index[1] == 4
    hit = {*ends, *([4] if into.any() else [])}
    coordinates, features = egnn_message(x, h, graph, *weights, **named, backend=backend)
    for n in range(23):
        assert bool(coordinates[n].isnan().any()) == bool(features[n].isnan().any()) == (n in hit)


@pytest.mark.parametrize("backend", NATIVE)
def test_indices_outside_are_not_followed(backend):
    """A source outside counts as a row of zeros, an edge outside the order as none; nothing else is read."""
    case = next(c for c in cases.SMALL if c.name == "odd" and c.op is egnn_message_op)
    inputs = cast(case.inputs(generator()), case, torch.float64)
    wrong = inputs["source_index"].clone()
    wrong[[3, 40]] = torch.tensor([-5, 999])
    expected = case.op(*(inputs | {"source_index": wrong}).values(), "reference")[:2]
    close(case.op(*(inputs | {"source_index": wrong}).values(), backend)[:2], expected)
    if backend == "triton":  # takes its sums from segment_sum, whose test this is
        return
    order = inputs["target_order"].clone()
    order[[0, 50]] = torch.tensor([67, -1])
    ptr = torch.where(inputs["target_ptr"] == 0, -3, inputs["target_ptr"] + 2)
    for change in ({"target_order": order}, {"source_order": order}, {"target_ptr": ptr}, {"source_ptr": ptr}):
        changed = {k: v for k, v in (inputs | change).items() if k != "keep"}
        coordinates, features, *_ = case.op(*changed.values(), False, backend)
        assert coordinates.isfinite().all() and features.isfinite().all()
        g = torch.ones_like(coordinates), torch.ones_like(features)
        egnn_message_bwd(*g, *changed.values(), None, None, None, [True] * 11, backend)


@pytest.mark.parametrize("changes, message", [
    (dict(x=torch.zeros(13)), r"x must be \[N, D\] with D at least 1, got \[13\]"),
    (dict(x=torch.zeros(13, 0)), r"x must be \[N, D\] with D at least 1, got \[13, 0\]"),
    (dict(h=torch.zeros(12, 5)), r"h must be \[13, F\], a row per row of x, got \[12, 5\]"),
    (dict(h=torch.zeros(13, 6)), r"weight1 must be \[out, 16\], a column for each number of \|r\|\^2, .*\[7, 14\]"),
    (dict(h=torch.zeros(13, 5, dtype=torch.float64)), "h must be torch.float32 on cpu, got torch.float64"),
    (dict(edge=torch.zeros(66, 3)), r"edge must be \[67, A\], a row per edge, got \[66, 3\]"),
    (dict(edge=None), r"weight1 must be \[out, 11\]"),
    (dict(bias1=torch.zeros(8)), r"bias1 must be \[7\], got \[8\]"),
    (dict(weight2=torch.zeros(11, 8)), r"weight2 must be \[out, 7\], a column for each number of the first layer"),
    (dict(weight3=torch.zeros(9)), r"weight3 must be \[out, 11\], a column for each number of the message, got \[9\]"),
    (dict(weight4=torch.zeros(2, 9)), r"weight4 must be \[1, 9\], a column for each number of the coordinate layer"),
    (dict(bias4=torch.zeros(2)), r"bias4 must be \[1\], got \[2\]"),
    (dict(source_index=torch.zeros(66, dtype=torch.int64)), r"source_order must be \[66\] like source_index"),
    (dict(target_index=torch.zeros(67)), r"target_index must be int64 \[length\] on cpu, got torch.float32"),
    (dict(target_ptr=torch.zeros(13, dtype=torch.int64)), r"target_ptr must be \[14\], one more than .*; build the"),
], ids=lambda v: "" if isinstance(v, str) else "-".join(v))
def test_wrong_arguments_raise(changes, message):
    case = next(c for c in cases.SMALL if c.name == "odd" and c.op is egnn_message_op)
    inputs = {k: v for k, v in cast(case.inputs(generator()), case, torch.float32).items() if k != "keep"} | changes
    with pytest.raises(ValueError, match=f"^egnn_message: .*{message}"):
        egnn_message_op(*inputs.values(), False, "reference")
    with pytest.raises(ValueError, match=f"^egnn_message_bwd: .*{message}"):
        egnn_message_bwd(torch.zeros(13, 3), torch.zeros(13, 11), *inputs.values(), None, None, None, [True] * 11,
                         "reference")


def test_more_wrong_arguments_raise():
    case = next(c for c in cases.SMALL if c.name == "odd" and c.op is egnn_message_op)
    inputs = cast(case.inputs(generator()), case, torch.float32)
    with pytest.raises(ValueError, match="first argument must be float32 or float64, got torch.int64"):
        egnn_message_op(*(inputs | {"x": torch.zeros(13, 3, dtype=torch.int64)}).values(), "reference")
    values, g = [v for k, v in inputs.items() if k != "keep"], (torch.zeros(13, 3), torch.zeros(13, 11))
    none, needs = (None, None, None), [True] * 11
    for bad, message in (
        ((torch.zeros(13, 2), g[1], *values, *none, needs), r"g_coordinates must be \[13, 3\], got \[13, 2\]"),
        ((g[0], torch.zeros(12, 11), *values, *none, needs), r"g_features must be \[13, 11\], got \[12, 11\]"),
        ((*g, *values, torch.zeros(13, 14), None, None, needs), "given together or not at all, got some of them"),
        ((*g, *values, torch.zeros(13, 13), None, None, needs), r"nodes must be \[13, 14\], got \[13, 13\]"),
        ((*g, *values, *none, [True]), r"needs must be a bool for each of x, h, .*, got \[True\]"),
    ):
        with pytest.raises(ValueError, match=f"^egnn_message_bwd: .*{message}"):
            egnn_message_bwd(*bad, "reference")
    positional, named = message_of()
    for arguments, options, message in (
        (positional, {"aggregation": "max"}, "aggregation must be 'mean' or 'sum', got 'max'"),
        (positional, {"clamp": 0.0}, "clamp must be positive or None, got 0.0"),
        (positional, {"backend": "cuda9"}, "backend must be one of .*, got 'cuda9'"),
        ((*positional[:2], positional[2].edge_index, *positional[3:]), {}, "must be an ace_fast.Graph, got Tensor"),
        ((*positional[:2], Graph(positional[2].edge_index, (23, 24)), *positional[3:]), {},
         "graph must be of one set of nodes, got 23 sources and 24 targets"),
    ):
        with pytest.raises(ValueError, match=f"^egnn_message: .*{message}"):
            egnn_message(*arguments, **named, **options)


def test_forward_mode_raises():
    (x, *rest), named = message_of(needs_grad=False)
    with pytest.raises(NotImplementedError, match="egnn_message: forward-mode"):
        torch.func.jvp(lambda x: egnn_message(x, *rest, **named)[0], (x,), (x,))


@pytest.mark.parametrize("backend", FAST)
def test_compiles(backend):
    """Full graph, with what is kept inside."""
    positional, named = message_of(dtype=torch.float32)
    function = lambda: sum(o.sin().sum() for o in egnn_message(*positional, **named, backend=backend))  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), function())
    leaves = [*positional[:2], *positional[3:]]
    for mine, eager in zip(torch.autograd.grad(compiled(), leaves), torch.autograd.grad(function(), leaves),
                           strict=True):
        torch.testing.assert_close(mine, eager)


def test_names():
    assert NAMES == reference.Arguments._fields[:11]


# layers


def layer_inputs(nodes=9, edges=30, hidden=8, dtype=torch.float64):
    g = generator()
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    return (normal(nodes, 3), normal(nodes, hidden), torch.randint(0, nodes, (2, edges), generator=g),
            normal(edges, 2), normal(nodes, 3))


@pytest.mark.parametrize("backend", FAST)
def test_layer_sums_at_row_zero(backend):
    """edge_index in the original's order, or a Graph whose targets are its row 0."""
    layer = EGNN_Layer(2, 8, with_v=True, backend=backend).double()
    x, h, edge_index, edge, v = layer_inputs()
    found = layer(x, h, edge_index, edge, v)
    names = [*layer.edge_message_net.scalar_net.parts(), *layer.coord_net.parts()]
    shift, message = plain(x, h, Graph(edge_index.flip(0), 9), *names, edge=edge)
    close(found, [x + layer.node_v_net(h) * v + shift, v, layer.node_net(torch.cat([h, message], 1))])
    close(layer(x, h, Graph(edge_index.flip(0), 9), edge, v), found)
    still, none, _ = layer(x, h, edge_index, edge)
    assert none is None
    close([still], [x + shift])
    loaded = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    close(loaded(x, h, edge_index, edge, v), found, 0)


def test_layer_errors():
    for cls, sizes in ((EGNN_Layer, (2, 8)), (EGNN, (1, 3, 2, 8))):
        for options, message in (({"activation": torch.nn.ReLU()}, r"activation must be nn.SiLU\(\), got ReLU"),
                                 ({"flat": True}, "flat must be False, got True"),
                                 ({"norm": True}, "norm must be False, got True")):
            with pytest.raises(ValueError, match=f"^{cls.__name__}: {message}"):
                cls(*sizes, **options)
    x, h, edge_index, edge, v = layer_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match="EGNN_Layer: v must be None where with_v is False, got a tensor"):
        EGNN_Layer(2, 8)(x, h, edge_index, edge, v)
    with pytest.raises(ValueError, match=r"egnn_message: edge must be \[30, A\], a row per edge, got \[29, 2\]"):
        EGNN_Layer(2, 8)(x, h, edge_index, edge[:-1])
    bare, no_edges = EGNN_Layer(0, 8)(x, h, edge_index), EGNN_Layer(2, 8)(x, h, edge_index[:, :0], edge[:0])
    assert bare[2].shape == (9, 8) and torch.equal(no_edges[0], x)


def _spectral(x, weight):
    """EGNO's temporal convolution, x [T, N, ..., I], weight [I, O, modes, 2]."""
    modes = weight.shape[2]
    kept = torch.fft.rfft(x, dim=0)[:modes]
    out = torch.einsum("mn...i,iom->mn...o", kept, torch.view_as_complex(weight.contiguous()))
    return torch.fft.irfft(out, n=x.shape[0], dim=0)


def _egno(model, state, inputs, sizes):
    """EGNO's strict forward around our layers, as its authors wrote it."""
    steps, dim, nodes = sizes["timesteps"], sizes["time_emb_dim"], inputs["h"].shape[0]
    rate = torch.exp(torch.arange(dim // 2) * (-math.log(10000) / (dim // 2 - 1)))
    phase = torch.arange(steps)[:, None] * rate
    time = torch.cat([phase.sin(), phase.cos()], 1)[:, None].expand(-1, nodes, -1)
    h = model.embedding(torch.cat([inputs["h"].expand(steps, -1, -1), time], 2).flatten(0, 1))
    x, v, mean, edge = (inputs[name].repeat(steps, 1) for name in ("x", "v", "loc_mean", "edge_attr"))
    shift = (nodes * torch.arange(steps)).repeat_interleave(inputs["edge_index"].shape[1])
    graph = Graph((inputs["edge_index"].repeat(1, steps) + shift).flip(0), nodes * steps)
    for n, layer in enumerate(model.layers):
        h = h.view(steps, nodes, -1)
        h = (h + F.leaky_relu(_spectral(h, state[f"time_conv_modules.{n}.t_conv.weights1"]))).flatten(0, 1)
        pair = torch.stack([x - mean, v], -1).view(steps, nodes, 3, 2)
        pair = (pair + _spectral(pair, state[f"time_conv_x_modules.{n}.t_conv.weights1"])).flatten(0, 1)
        x, v, h = layer(pair[..., 0] + mean, h, graph, edge, v=pair[..., 1])
    return x, v, h


@pytest.mark.parametrize("backend", FAST)
def test_equals_the_original_egno(golden, backend):
    """The strict EGNO of the original code, its temporal convolution written out here: values and gradients to 1e-9."""
    torch.set_default_dtype(torch.float64)
    gold = golden("egno")
    sizes = json.loads(str(gold["meta"]))
    part = lambda prefix: {k[len(prefix):]: torch.from_numpy(v) for k, v in gold.items()  # noqa: E731
                           if k.startswith(prefix)}
    state, inputs = part("state/"), part("input/")
    model = EGNN(sizes["layers"], sizes["in_node"] + sizes["time_emb_dim"], sizes["in_edge"], sizes["hidden"],
                 with_v=True, backend=backend)
    own = model.state_dict()
    model.load_state_dict({name: state[name] for name in own})
    assert {name for name in state if name.startswith(("layers.", "embedding."))} == own.keys()
    x, v, h = _egno(model, state, inputs, sizes)
    close([x, v, h], [torch.from_numpy(gold[f"strict_{k}"]) for k in ("output", "velocity", "features")], 1e-9)
    loss = F.mse_loss(x, inputs["target"])
    close([loss], [torch.from_numpy(gold["strict_loss"])], 1e-9)
    loss.backward()
    for name, expected in part("strict_grad/").items():
        if name in own:
            close([dict(model.named_parameters())[name].grad], [expected], 1e-9)
