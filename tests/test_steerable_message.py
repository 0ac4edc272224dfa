"""steerable_message: both forms are one function, nothing of edge size is kept, symmetries, bad input."""

import pytest
import torch
from e3nn import o3

from ace_fast import Graph, functional
from ace_fast.backend import available
from ace_fast.kernels.cases import cast, generator
from ace_fast.kernels.steerable_message import cases, cost, steerable_message
from ace_fast.kernels.steerable_message.op import NAMES, steerable_message_bwd, steerable_message_op
from ace_fast.kernels.tensor_product.cases import gate_input, gate_table, table

BACKENDS = [b for b, reason in available("cpu")["steerable_message"].items() if not reason and b != "triton"]
NATIVE = [b for b in BACKENDS if b != "reference"]
SHAPES = {
    "nbody": ("32x0e+32x1o", "1x0e+1x1o", "2x0e"),
    "qm9": ("7x0e+5x1o+3x2e", "1x0e+1x1o+1x2e+1x3o", "1x0e"),
    "scalars": ("12x0e", "2x0e", "1x0e"),
    "several": ("4x0e+3x1o+4x0e+3x1o", "1x0e+2x1o", "1x0e+1x1o"),
}


def message_of(hidden, attr, extra, nodes=23, edges=150, dtype=torch.float64):
    """Arguments of the public function: positional ones, then those by name."""
    g = generator()
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    irreps, more = o3.Irreps(hidden), o3.Irreps(extra)
    one = table(str((2 * irreps + more).simplify()), attr, gate_input(hidden))
    two = table(hidden, attr, gate_input(hidden))
    graph = Graph(torch.randint(0, nodes, (2, edges), generator=g), nodes)
    weights = [normal(t.weight_numel) / t.dims[0] ** 0.5 for t in (one, two)]
    rows = normal(nodes, irreps.dim), normal(edges, o3.Irreps(attr).dim)
    positional = (*rows, graph, weights[0], one, weights[1], two)
    gate = gate_table(hidden)
    return positional, {"extra": normal(edges, more.dim), "bias1": normal(one.bias_numel),
                        "bias2": normal(two.bias_numel), "gate1": gate, "gate2": gate}


def plain_message(h, attr, graph, weight1, table1, weight2, table2, *, extra, bias1, bias2, gate1, gate2):
    """The same from gather, product, product and sum."""
    ends = [functional.gather(h, s, backend="reference") for s in (graph.targets, graph.sources)]
    m = functional.tensor_product(torch.cat([*ends, extra], 1), attr, weight1, table1, bias1, gate=gate1,
                                  backend="reference")
    m = functional.tensor_product(m, attr, weight2, table2, bias2, gate=gate2, backend="reference")
    return functional.segment_sum(m, graph.targets, backend="reference")


def gradients(function, positional, named):
    leaves = [positional[i].requires_grad_() for i in (0, 1, 3, 5)]
    leaves += [named[k].requires_grad_() for k in ("extra", "bias1", "bias2")]
    out = function(*positional, **named)
    return [out, *torch.autograd.grad(out, leaves, torch.randn(out.shape, generator=generator(1), dtype=out.dtype))]


def close(mine, expected, tolerance=1e-12):
    for x, y in zip(mine, expected, strict=True):
        assert (x - y).abs().max() <= tolerance * y.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_both_forms_are_the_plain_one(backend, shape):
    """Weights at the nodes (R1) or at the edges: values and gradients to 1e-12."""
    positional, named = message_of(*SHAPES[shape])
    expected = gradients(plain_message, positional, named)
    for factor in (False, True):
        message = lambda *a, _f=factor, **k: steerable_message(*a, **k, factor=_f, backend=backend)  # noqa: E731
        close(gradients(message, positional, named), expected)


@pytest.mark.parametrize("backend", NATIVE)
def test_gradients_that_nobody_needs(backend):
    """Every subset with one gradient left out or one alone gives the same bits as all together."""
    case = next(c for c in cases.SMALL if c.name == "odd_factored" and c.op is steerable_message_bwd)
    inputs = cast(case.inputs(generator()), case, torch.float64)
    inputs = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    for factor in (False, True):
        inputs["factor"] = factor
        inputs["needs"] = [True] * 7
        everything = case.op(*inputs.values(), backend)
        for n in range(7):
            for needs in ([i == n for i in range(7)], [i != n for i in range(7)]):
                inputs["needs"] = needs
                found = case.op(*inputs.values(), backend)
                for need, x, y in zip(needs, found, everything, strict=True):
                    assert x.shape == (y.shape if need else (0,))
                    assert not need or (x - y).abs().max() <= 1e-13 * y.abs().max()


def test_rule():
    """N-body takes the node form, QM9 the edge form: by counted operations and bytes."""
    for (hidden, attr, extra), nodes, edges, expected in (
        (SHAPES["nbody"], 500, 2000, True), (SHAPES["nbody"], 5000, 20000, True), (SHAPES["nbody"], 1000, 1000, False),
        (("18x0e+18x1o+18x2e", "1x0e+1x1o+1x2e+1x3o", "1x0e"), 2315, 6088, False),
    ):
        irreps = o3.Irreps(hidden)
        t = table(str((2 * irreps + o3.Irreps(extra)).simplify()), attr, gate_input(hidden))
        assert cost.factor_pays(t.paths, irreps.dim, nodes, edges) is expected
    # by hand: 32x0e x 1x0e -> 32x0e twice; 2*32*32*2 an edge and 64 for the contraction, or 2*32*32*2 a node
    t = table("64x0e", "1x0e", "32x0e")
    assert cost.plain(t.paths, 32) == (2 * 32 * 64 + 2 * 64, 2 * 32 * 4, 0, 0)
    assert cost.factored(t.paths, 32) == (2 * 32 + 32, 32 * 4, 2 * 2 * 32 * 32, 2 * 32 * 4)
    assert cost.roles(table("3x1o", "1x0e", "1x1o").paths, 4) is None  # 4 ends inside a vector


def test_auto_takes_the_rule(monkeypatch):
    positional, named = message_of(*SHAPES["scalars"])
    expected = steerable_message(*positional, **named, factor=False)
    asked = []
    monkeypatch.setattr(cost, "factor_pays", lambda *a: asked.append(a[1:]) or True)
    close([steerable_message(*positional, **named)], [expected])
    assert asked == [(12, 23, 150)]


@pytest.mark.parametrize("factor", [False, True])
def test_nothing_of_edge_size_is_kept(factor):
    """What waits for the backward pass are the arguments themselves."""
    positional, named = message_of(*SHAPES["nbody"])
    mine = [x for x in (*positional, *named.values()) if isinstance(x, torch.Tensor)]
    mine += [x for t in (positional[4], positional[6]) for x in t.on("cpu")]
    mine += [*positional[2].sources, *positional[2].targets]
    addresses, kept = {x.data_ptr() for x in mine}, []
    positional[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        steerable_message(*positional, **named, factor=factor)
    assert kept and all(x.data_ptr() in addresses for x in kept)


@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_symmetries(backend, factor):
    hidden, attr, extra = SHAPES["qm9"]
    (h, a, graph, *weights), named = message_of(hidden, attr, extra)
    message = lambda h, a, graph, **k: steerable_message(  # noqa: E731
        h, a, graph, *weights, **named | k, factor=factor, backend=backend)
    torch.set_default_dtype(torch.float64)  # for e3nn's matrices
    out, rotation = message(h, a, graph), -o3.rand_matrix()
    d, d_attr = (o3.Irreps(i).D_from_matrix(rotation) for i in (hidden, attr))
    close([message(h @ d.T, a @ d_attr.T, graph)], [out @ d.T], 1e-11)
    order = torch.randperm(150, generator=generator())
    shuffled = Graph(graph.edge_index[:, order], 23)
    close([message(h, a[order], shuffled, extra=named["extra"][order])], [out])


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("factor", [False, True])
def test_indices_outside_are_not_followed(backend, factor):
    """A source outside counts as a row of zeros, an edge outside the order as none; nothing else is read."""
    case = next(c for c in cases.SMALL if c.name == "odd" and c.op is steerable_message_op)
    inputs = cast(case.inputs(generator()), case, torch.float64)
    inputs["factor"] = factor
    wrong = inputs["source_index"].clone()
    wrong[[3, 40]] = torch.tensor([-5, 999])
    expected = case.op(*(inputs | {"source_index": wrong}).values(), "reference")
    close([case.op(*(inputs | {"source_index": wrong}).values(), backend)], [expected])
    order = inputs["target_order"].clone()
    order[[0, 50]] = torch.tensor([67, -1])
    ptr = torch.where(inputs["target_ptr"] == 0, -3, inputs["target_ptr"] + 2)
    for change in ({"target_order": order}, {"source_order": order}, {"target_ptr": ptr}, {"source_ptr": ptr}):
        out = case.op(*(inputs | change).values(), backend)
        assert out.isfinite().all()
        needs = [True] * 7
        steerable_message_bwd(torch.ones_like(out), *(inputs | change).values(), needs, backend)


@pytest.mark.parametrize("changes, message", [
    (dict(h=torch.zeros(13)), r"h must be \[N, D\], got \[13\]"),
    (dict(h=torch.zeros(12, 14)), r"target_ptr must be \[13\], one more than the rows of h, got \[14\]; build"),
    (dict(h=torch.zeros(13, 15)), r"dims1 must be 32 and 4 inputs, got 30 and 4; check table1"),
    (dict(h=torch.zeros(13, 14, dtype=torch.int64)), "first argument must be float32 or float64, got torch.int64"),
    (dict(attr=torch.zeros(66, 4)), r"attr must be \[67, A\], a row per edge, got \[66, 4\]"),
    (dict(attr=torch.zeros(67, 4, dtype=torch.float64)), "attr must be torch.float32 on cpu, got torch.float64"),
    (dict(extra=torch.zeros(67)), r"extra must be \[67, X\], a row per edge, got \[67\]"),
    (dict(extra=None), "dims1 must be 28 and 4 inputs, got 30 and 4"),
    (dict(weight1=torch.zeros(7)), r"weight1 must be \[198\], got \[7\]"),
    (dict(weight2=torch.zeros(2, 2)), r"weight2 must be \[\d+\], got \[2, 2\]"),
    (dict(bias1=torch.zeros(2)), r"bias1 must be \[8\], one per even scalar, got \[2\]"),
    (dict(source_index=torch.zeros(66, dtype=torch.int64)), r"source_order must be \[66\] like source_index"),
    (dict(target_index=torch.zeros(67)), r"target_index must be int64 \[length\] on cpu, got torch.float32"),
    (dict(layout1=[5, 3, 2, 3]), "layout1 must be 17 numbers with one gate a gated irrep, got 14 numbers, 3 gates"),
    (dict(dims2=[14, 5, 17, 0]), "dims2 must be 14 and 4 inputs, got 14 and 5; check table2"),
    (dict(dims1=[30, 4, 17, 1]), "table1 must be of mode uvw in layout mul_ir, got layout ir_mul; use"),
    (dict(cg_value1=torch.zeros(3)), r"cg_value1 must be float64 \[nnz\] beside int64 cg_index1"),
    (dict(paths1=[0] * 5), "paths1 must be 13 integers a path, got 5"),
], ids=lambda v: "" if isinstance(v, str) else "-".join(v))
def test_wrong_arguments_raise(changes, message):
    case = next(c for c in cases.SMALL if c.name == "odd" and c.op is steerable_message_op)
    inputs = cast(case.inputs(generator()), case, torch.float32)
    with pytest.raises(ValueError, match=f"^steerable_message: .*{message}"):
        steerable_message_op(*(inputs | changes).values(), "reference")
    if "h" not in changes:
        with pytest.raises(ValueError, match=f"^steerable_message_bwd: .*{message}"):
            steerable_message_bwd(torch.zeros(13, 14), *(inputs | changes).values(), [True] * 7, "reference")


def test_more_wrong_arguments_raise():
    case = next(c for c in cases.SMALL if c.name == "odd" and c.op is steerable_message_op)
    inputs = cast(case.inputs(generator()), case, torch.float32)
    with pytest.raises(ValueError, match=r"steerable_message_bwd: g must be \[13, 14\], got \[13, 13\]"):
        steerable_message_bwd(torch.zeros(13, 13), *inputs.values(), [True] * 7, "reference")
    with pytest.raises(ValueError, match="needs must be a bool for each of h, extra, .*, got \\[True\\]"):
        steerable_message_bwd(torch.zeros(13, 14), *inputs.values(), [True], "reference")
    with pytest.raises(ValueError, match="paths1|mode uvw"):
        paths = list(inputs["paths1"])
        paths[12] = 1
        steerable_message_op(*(inputs | {"paths1": paths}).values(), "reference")
    with pytest.raises(ValueError, match="backend must be one of .*, got 'cuda9'"):
        steerable_message_op(*inputs.values(), "cuda9")
    positional, named = message_of(*SHAPES["scalars"])
    with pytest.raises(ValueError, match="graph must be an ace_fast.Graph, got Tensor; use ace_fast.Graph"):
        steerable_message(*positional[:2], positional[2].edge_index, *positional[3:], **named)
    with pytest.raises(ValueError, match="factor must be True, False or 'auto', got 'yes'"):
        steerable_message(*positional, **named, factor="yes")
    # one slice of in1 whose vectors lie across h_i and h_j
    one, two = table("4x1o", "1x0e", "1x1o"), table("1x1o", "1x0e", "1x1o")
    graph = Graph(torch.zeros(2, 3, dtype=torch.int64), 2)
    arguments = (torch.ones(2, 6), torch.ones(3, 1), graph, torch.arange(4.0), one, torch.ones(1), two)
    assert steerable_message(*arguments).shape == (2, 3)
    split = (torch.arange(10.0).reshape(2, 5), *arguments[1:])
    extra = torch.ones(3, 2)
    close([steerable_message(*split, extra=extra)], [steerable_message(*split, extra=extra, backend="reference")], 1e-6)
    with pytest.raises(ValueError, match="factor must be False where a channel of in1 lies across two of h_i, h_j"):
        steerable_message(*split, extra=extra, factor=True)


def test_forward_mode_raises():
    positional, named = message_of(*SHAPES["scalars"])
    with pytest.raises(NotImplementedError, match="steerable_message: forward-mode"):
        torch.func.jvp(lambda h: steerable_message(h, *positional[1:], **named), (positional[0],), (positional[0],))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_with_the_rule_inside(backend):
    """Full graph; the form is chosen while tracing."""
    positional, named = message_of(*SHAPES["scalars"], dtype=torch.float32)
    h = positional[0].requires_grad_()
    function = lambda: steerable_message(*positional, **named, backend=backend).sin().sum()  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), function())
    torch.testing.assert_close(torch.autograd.grad(compiled(), h), torch.autograd.grad(function(), h))


def test_names():
    assert NAMES == ("h", "extra", "attr", "weight1", "bias1", "weight2", "bias2")
