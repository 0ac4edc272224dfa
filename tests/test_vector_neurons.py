"""Vector-neuron layers: the originals' numbers, algebraic identities, symmetries, batch norm, errors."""

import copy
import pickle

import pytest
import torch
from e3nn import o3
from torch.utils.checkpoint import checkpoint

from ace_fast import functional, native
from ace_fast import nn as fast
from ace_fast.bench import eager_vn as eager
from ace_fast.kernels import triton_common
from ace_fast.nn.gates import Collector, Seen, recording

BACKENDS = ["reference", *([] if native.load() else ["cpu"])]
TRITON = [] if triton_common.available(torch.device("cpu")) else ["triton"]  # interpreted, so only once
SHAPES = {3: (6, 5, 3), 4: (2, 5, 3, 7), 5: (2, 5, 3, 4, 3)}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def randomize(model):
    """Weights, gammas and statistics away from their initial values."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn_like(p))
        for name, b in model.named_buffers():
            if "running" in name:
                b.copy_(torch.rand_like(b) + 0.5)
    return model


def assert_same(got, want, what="", tolerance=1e-12):
    assert got.shape == want.shape, what
    error, scale = (got - want).abs().max(), want.abs().max()
    assert error <= tolerance * scale + 1e-14, f"{what}: {error} of {scale}"


def outputs(result):
    return list(result) if isinstance(result, tuple) else [result]


def compare(mine, theirs, mine_args, theirs_args, buffers=True):
    """Values, gradients and running statistics of two modules that share names; in training, then in evaluation."""
    mine.load_state_dict(theirs.state_dict(), strict=True)
    mine_args, theirs_args = (tuple(a.clone().requires_grad_() if torch.is_tensor(a) else a for a in args)
                              for args in (mine_args, theirs_args))
    grads = []
    results = [outputs(m(*args)) for m, args in ((mine, mine_args), (theirs, theirs_args))]
    cotangents = [torch.randn_like(r) for r in results[1]]
    for model, args, result in zip((mine, theirs), (mine_args, theirs_args), results, strict=True):
        sum((r * c).sum() for r, c in zip(result, cotangents, strict=True)).backward()
        grads.append({"x": args[0].grad} | {name: p.grad for name, p in model.named_parameters()})
    for a, b in zip(*results, strict=True):
        assert_same(a, b, "output")
    scale = max(g.abs().max() for g in grads[1].values() if g is not None)
    for name, want in grads[1].items():
        assert (want is None) == (grads[0][name] is None), name
        if want is not None:
            assert (grads[0][name] - want).abs().max() <= 1e-11 * (want.abs().max() + 1e-2 * scale), name
    for name, want in theirs.named_buffers():
        assert_same(dict(mine.named_buffers())[name].double(), want.double(), name)
    mine.eval(), theirs.eval()
    for a, b in zip(outputs(mine(*mine_args)), outputs(theirs(*theirs_args)), strict=True):
        assert_same(a, b, "evaluation")


LAYERS = {
    "VNLinear": [((5, 7), {}, (3, 4, 5))],
    "VNLeakyReLU": [((5,), {}, (3, 4, 5)), ((5, True, 0.0), {}, (4,))],
    "VNBatchNorm": [((5, 4), {}, (3, 4)), ((5, 5), {}, (5,))],
    "VNLinearLeakyReLU": [
        ((5, 7, 4), {}, (3, 4)), ((5, 7, 5, True), {}, (5,)), ((5, 7, 4), {"relaxed": True}, (3, 4)),
        ((5, 7, 4, True, 0.1), {"relaxed": True}, (4,)), ((5, 7, 4), {"relaxed": True, "legacy_view": True}, (4,)),
        ((5, 7), {"relaxed": True}, (5,)), ((5, 1, 4), {"relaxed": True}, (4,)),
    ],
    "VNMaxPool": [((5,), {}, (4, 5))],
    "VNStdFeature": [
        ((5, 3), {}, (3,)), ((5, 4), {"relaxed": True}, (4,)), ((5, 5), {"relaxed": True}, (5,)),
        ((13, 4, True), {}, (4,)), ((13, 4, True, True, 0.0), {"relaxed": True, "legacy_view": True}, (4,)),
    ],
}
CASES = [(name, args, options, dim) for name, rows in LAYERS.items() for args, options, dims in rows for dim in dims]


@pytest.mark.parametrize("name, args, options, dim", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_to_the_originals(double, backend, name, args, options, dim):
    """Odd channels, all dimensions; states load both ways, inputs of any strides."""
    relaxed = options.get("relaxed", False)
    theirs = randomize(getattr(eager, name)(*args, **({"legacy_view": False} | options if options else {})))
    mine = getattr(fast, name)(*args, **options, backend=backend)
    theirs.load_state_dict(mine.state_dict(), strict=True)
    x = torch.randn(SHAPES[dim][0], args[0], *SHAPES[dim][2:])
    flag = (True,) if relaxed else ()
    randomize(theirs)
    compare(mine, theirs, (x,), (x, *flag))
    strided = torch.stack([x, x], -1)[..., 1]
    assert not strided.is_contiguous()
    for a, b in zip(outputs(mine(strided)), outputs(mine(x)), strict=True):
        assert_same(a, b)
    if relaxed and name != "VNStdFeature":
        mine.relaxed = False
        assert_same(mine(x), theirs(x, False), "strict")
        assert_same(mine(x, True), theirs(x, True), "the call's own flag")


@pytest.mark.parametrize("kind, backend", [(kind, b) for kind in ("edge", "formed") for b in BACKENDS]
                         + [("edge", b) for b in TRITON] + [("eager", "eager")])
def test_golden(double, golden, backend, kind):
    """The ACE code's layer on edge features, pooled: as one layer, on formed edges, and in eager PyTorch."""
    gold = {key: torch.from_numpy(value) for key, value in golden("vn_edge_conv").items() if key != "meta"}
    neighbours = gold["input/neighbours"]
    if kind == "edge":
        layer = fast.VNEdgeConv(5, 7, 6, relaxed=True, backend=backend)
        forward = lambda x, on: layer(x, neighbours, on)  # noqa: E731
    else:
        layer = (eager.VNLinearLeakyReLU(10, 7, relaxed=True) if kind == "eager"
                 else fast.VNLinearLeakyReLU(10, 7, relaxed=True, backend=backend))
        pool = eager.mean_pool if kind == "eager" else fast.mean_pool
        forward = lambda x, on: pool(layer(eager.get_graph_feature(x, 6, neighbours), on))  # noqa: E731
    state = {key[6:]: value for key, value in gold.items() if key.startswith("state/")}
    for mode in ("strict", "relaxed"):
        layer.load_state_dict(state, strict=True)
        layer.zero_grad()
        x = gold["input/x"].clone().requires_grad_()
        out = forward(x, mode == "relaxed")
        (out * gold["input/grad_output"]).sum().backward()
        found = {"output": out, "grad_x": x.grad}
        found |= {f"grad/{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
        want = {key[len(mode) + 1:]: v for key, v in gold.items() if key.startswith(mode)}
        assert set(found) == set(want)
        for key, value in want.items():
            error = (found[key] - value).abs().max()
            assert error <= 1e-9 and error <= 1e-9 * value.abs().max() + 1e-14, f"{mode} {key}"
    for key, value in layer.named_buffers():
        if f"buffers_after/{key}" in gold:
            assert (value - gold[f"buffers_after/{key}"]).abs().max() <= 1e-12
    layer.eval()
    assert (forward(gold["input/x"], True) - gold["eval_relaxed_output"]).abs().max() <= 1e-9


def neighbours_of(x, k):
    return eager.nearest(x.flatten(1, 2), k)


@pytest.mark.parametrize("pooling", ["mean", "max", None])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_edge_convolution_is_the_layer_on_formed_edges(double, backend, shared, pooling):
    """The maps at the nodes equal those of [x_j - x_i ; x_i]; any neighbours, its own pool or one from outside."""
    x = torch.randn(2, 5, 3, 11)
    theirs = randomize(eager.VNLinearLeakyReLU(10, 7, share_nonlinearity=shared, relaxed=True))
    mine = fast.VNEdgeConv(5, 7, 4, pooling=pooling, share_nonlinearity=shared, relaxed=True, backend=backend)
    outside = fast.VNEdgeConv(5, 7, 4, share_nonlinearity=shared, relaxed=True, backend=backend)
    pool = {"mean": eager.mean_pool, "max": eager.VNMaxPool(7), None: torch.nn.Identity()}[pooling]

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in theirs._modules.items():
                self.add_module(name, child)
            if pooling == "max":
                self.pool = pool

        def forward(self, x):
            return pool(theirs(eager.get_graph_feature(x, 4), True))

    compare(mine, Theirs(), (x,), (x,))
    if pooling == "max":
        outside.load_state_dict({k: v for k, v in mine.state_dict().items() if not k.startswith("pool")}, strict=True)
        assert torch.equal(outside.eval()(x, pool=mine.pool), mine(x))
    assert_same(mine(x, neighbours_of(x, 4)), mine(x))


@pytest.mark.parametrize("options", [{}, {"relaxed": True}, {"relaxed": True, "legacy_view": True}], ids=str)
@pytest.mark.parametrize("dim", [3, 4, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_part_equals_the_concatenation(double, backend, dim, options):
    """W [x ; m] = W_a x + W_b m with the bias once, values and gradients."""
    x, mean = torch.randn(SHAPES[dim], requires_grad=True), torch.randn(SHAPES[dim][0], 4, 3, requires_grad=True)
    for layer in (fast.VNLinearLeakyReLU(9, 6, dim, **options, backend=backend),
                  fast.VNStdFeature(9, dim, **options, backend=backend)):
        randomize(layer)
        wide = mean[(..., *[None] * (dim - 3))].expand(-1, -1, -1, *x.shape[3:])
        results = []
        for args, more in (((x,), {"mean": mean}), ((torch.cat([x, wide], 1),), {})):
            out = outputs(layer(*args, **more))
            loss = sum((r * torch.linspace(-1, 2, r.numel()).view(r.shape)).sum() for r in out)
            results.append([*out, *torch.autograd.grad(loss, [x, mean, *layer.parameters()])])
        scale = max(r.abs().max() for r in results[1])
        for a, b in zip(*results, strict=True):
            assert (a - b).abs().max() <= 1e-11 * (b.abs().max() + 1e-2 * scale)
    assert results[1][0].shape == (*x.shape[:1], 9, *x.shape[2:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_relaxation_folds_into_one_matrix(double, backend):
    """y = M vec(x) + gamma b with M = W (x) I3 + gamma D; unfolded, d gamma = <dM, D> + <db, b>, dD = gamma dM."""
    layer = randomize(fast.VNLinear(5, 7, relaxed=True, backend=backend))
    x, g = torch.randn(2, 5, 3, 9), torch.randn(2, 7, 3, 9)
    (layer(x) * g).sum().backward()
    weight, branch, (gamma,) = layer.map_to_feat.weight, layer.map_to_feat_nonequiv, layer.gammas
    matrix = (torch.kron(weight, torch.eye(3)) + gamma * branch.weight).detach()
    vec, flat = (t.permute(0, 3, 1, 2).flatten(0, 1).flatten(1) for t in (x, g))
    folded = vec @ matrix.T + gamma.detach() * branch.bias.detach()
    assert_same(layer(x).permute(0, 3, 1, 2).flatten(0, 1).flatten(1).detach(), folded)
    d_matrix = flat.T @ vec  # [3 O, 3 C]
    assert_same(branch.weight.grad, gamma.detach() * d_matrix)
    assert_same(gamma.grad, (d_matrix * branch.weight).sum().detach() + (flat.sum(0) * branch.bias).sum().detach())
    assert_same(weight.grad, torch.einsum("oaca->oc", d_matrix.view(7, 3, 5, 3)))
    relu = randomize(fast.VNLeakyReLU(5, relaxed=True, backend=backend))
    branch, rows = relu.map_to_dir_nonequiv, x.permute(0, 3, 2, 1)
    d = functional.vn_linear(rows, relu.map_to_dir.weight, branch.weight, branch.bias, relu.gammas[0])
    want = functional.vn_leaky_relu(rows, d)
    assert_same(relu(x), want.permute(0, 3, 2, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strict_layers_are_equivariant(double, backend):
    rotation, x = -o3.rand_matrix(), torch.randn(2, 5, 3, 11)
    turned = torch.einsum("ij,bcjn->bcin", rotation, x)
    neighbours = neighbours_of(x, 4)
    options = {"relaxed": True, "backend": backend}
    for layer, more in ((fast.VNLinear(5, 7, **options), ()), (fast.VNLeakyReLU(5, **options), ()),
                        (fast.VNBatchNorm(5, 4, backend=backend), ()),
                        (fast.VNLinearLeakyReLU(5, 7, 4, **options), ()),
                        (fast.VNEdgeConv(5, 7, 4, **options), (neighbours,)),
                        (fast.VNEdgeConv(5, 7, 4, pooling="max", **options), (neighbours,))):
        randomize(layer)
        if hasattr(layer, "relaxed"):
            layer.relaxed = False
        out = layer(x, *more)
        assert_same(layer(turned, *more), torch.einsum("ij,bcjn->bcin", rotation, out))
        if hasattr(layer, "relaxed"):
            layer.relaxed = True
            assert (layer(turned, *more) - torch.einsum("ij,bcjn->bcin", rotation, layer(x, *more))).abs().max() > 1e-2
    for normalize in (False, True):  # a frame of three vectors turns with a reflection, that of a cross product not
        turn = rotation * (-1 if normalize else 1)
        layer = randomize(fast.VNStdFeature(8, normalize_frame=normalize, backend=backend))
        x = torch.randn(2, 8, 3, 11)
        (std, frame), (same, moved) = layer(x), layer(torch.einsum("ij,bcjn->bcin", turn, x))
        assert_same(same, std, tolerance=1e-10)
        assert_same(moved, torch.einsum("ij,bjkn->bikn", turn, frame), tolerance=1e-10)


@pytest.mark.parametrize("dim", [4, 5])
@pytest.mark.parametrize("change", [
    {"momentum": None}, {"momentum": 0.7, "eps": 0.1}, {"affine": False}, {"track_running_stats": False},
], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_norm_options_are_torchs(double, backend, change, dim):
    mine, theirs = fast.VNBatchNorm(5, dim, backend=backend), eager.VNBatchNorm(5, dim)
    for layer in (mine, theirs):
        layer.bn = type(layer.bn)(5, **change)
    x = torch.randn(SHAPES[dim])
    for step in range(5):
        if step == 3:
            mine.eval(), theirs.eval()
        y = (x * (step + 1)).requires_grad_()
        a, b = mine(y), theirs(y)
        assert_same(a, b)
        assert_same(*(torch.autograd.grad(r.square().sum(), y)[0] for r in (a, b)))
    for (name, a), (_, b) in zip(mine.named_buffers(), theirs.named_buffers(), strict=True):
        assert_same(a.double(), b.double(), name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [lambda: fast.VNEdgeConv(5, 7, 4, relaxed=True),
                                  lambda: fast.VNLinearLeakyReLU(5, 7, 4, relaxed=True)], ids=["edge", "node"])
def test_checkpointing_counts_a_batch_once(double, make, reentrant):
    layer, x = make(), torch.randn(2, 5, 3, 11, requires_grad=True)
    plain = copy.deepcopy(layer)
    more = (neighbours_of(x.detach(), 4),) if isinstance(layer, fast.VNEdgeConv) else ()
    results = []
    for m in (layer, plain):
        out = checkpoint(m, x, *more, use_reentrant=reentrant) if m is layer else m(x, *more)
        x.grad = None
        out.square().sum().backward()
        results.append(x.grad)
    assert_same(*results)
    for (name, a), (_, b) in zip(layer.named_buffers(), plain.named_buffers(), strict=True):
        assert_same(a.double(), b.double(), name)
    assert layer.batchnorm.bn.num_batches_tracked == 1


@pytest.mark.parametrize("relaxed", [False, True])
def test_compiles_as_a_full_graph(relaxed):
    layer = fast.VNLinearLeakyReLU(5, 7, 4, relaxed=relaxed)
    plain = copy.deepcopy(layer)
    x = torch.randn(2, 5, 3, 11)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        a, b = compiled(x), plain(x)
        assert_same(a, b, tolerance=1e-6)
    a.sum().backward(), b.sum().backward()
    for p, q in zip(layer.parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-5 * (q.grad.abs().max() + 1)
    for p, q in zip(layer.buffers(), plain.buffers(), strict=True):
        assert_same(p.double(), q.double(), tolerance=1e-6)


def test_edge_convolution_compiles_as_a_full_graph():
    layer = fast.VNEdgeConv(5, 7, 4, relaxed=True).eval()
    x = torch.randn(2, 5, 3, 11)
    neighbours = neighbours_of(x, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, neighbours)
    assert_same(compiled, layer(x, neighbours), tolerance=1e-6)


def test_results_lie_as_rows():
    """vnn's shape, but the rows [B, N, 3, C] are contiguous: the next layer's permutation costs nothing."""
    x = torch.randn(2, 5, 3, 11)
    y = fast.VNLinearLeakyReLU(5, 7, 4)(fast.VNEdgeConv(5, 5, 4)(x, neighbours_of(x, 4)))
    assert y.shape == (2, 7, 3, 11) and y.permute(0, 3, 2, 1).is_contiguous()


@pytest.mark.parametrize("name, args, shape", [
    ("VNLinear", (5, 7), (4, 5, 3, 6)), ("VNLeakyReLU", (5,), (4, 5, 3, 6)),
    ("VNLinearLeakyReLU", (5, 7, 4), (4, 5, 3, 6)), ("VNStdFeature", (8,), (4, 8, 3, 6)),
    ("VNEdgeConv", (5, 7, 3), (4, 5, 3, 6)),
])
def test_copied_pickled_and_built_without_memory(name, args, shape):
    layer = getattr(fast, name)(*args, relaxed=True).eval()
    x = torch.randn(shape)
    want = outputs(layer(x))
    with torch.device("meta"):
        empty = getattr(fast, name)(*args, relaxed=True).eval()
    empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), empty):
        assert all(torch.equal(a, b) for a, b in zip(outputs(other(x)), want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_and_empty_batches(backend):
    options = {"backend": backend}
    for layer in (fast.VNEdgeConv(5, 7, 3, **options), fast.VNEdgeConv(5, 7, 3, pooling="max", **options),
                  fast.VNLinearLeakyReLU(5, 7, 4, **options), fast.VNStdFeature(5, 4, True, **options),
                  fast.VNBatchNorm(5, 4, **options), fast.VNMaxPool(5, **options)):
        x = torch.zeros(2, 5, 3, 4, requires_grad=True)
        out = outputs(layer(x))[0]
        out.sum().backward()
        assert out.isfinite().all() and x.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
        running = [b for name, b in layer.named_buffers() if "running" in name]
        before = [b.clone() for b in running]
        assert outputs(layer(x[:0]))[0].shape == (0, *out.shape[1:])
        assert all(torch.equal(a, b) for a, b in zip(running, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_within_rounding_of_float64(backend):
    x = torch.randn(2, 5, 3, 11)
    for layer, more in ((fast.VNLinearLeakyReLU(5, 7, 4, relaxed=True, backend=backend), ()),
                        (fast.VNEdgeConv(5, 7, 4, relaxed=True, backend=backend), (neighbours_of(x, 4),))):
        out = layer(x, *more)
        want = layer.double()(x.double(), *more)
        assert out.dtype == torch.float32 and (out - want).abs().max() < 2e-6 * want.abs().max()


def test_bfloat16_in_float32_statistics():
    layer = fast.VNLinearLeakyReLU(5, 7, 4, relaxed=True, backend="reference")
    x = torch.randn(2, 5, 3, 50)
    want = copy.deepcopy(layer)(x)
    out = layer.bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16 and (out - want).norm() < 0.02 * want.norm()
    assert layer.batchnorm.bn.running_mean.dtype == torch.bfloat16 and layer.batchnorm.bn.running_mean.all()


def test_probe_of_an_edge_convolution(double):
    """From the statistics of the norms, without the edges: |gamma| |f_neq| / |f_eq| over all of them."""
    layer = randomize(fast.VNEdgeConv(5, 7, 4, relaxed=True, share_nonlinearity=True, backend="reference"))
    x = torch.randn(2, 5, 3, 11)
    neighbours = neighbours_of(x, 4)
    ratios = []
    with recording([layer], Collector(ratios, Seen.ratio)):
        layer(x, neighbours)
    edges = eager.get_graph_feature(x, 4, neighbours)  # [B, 10, 3, N, K]
    vec = edges.permute(0, 3, 4, 1, 2).flatten(3)
    for part, gamma, ratio in zip(("feat", "dir"), layer.gammas, ratios, strict=True):
        base = torch.einsum("oc,bcink->boink", getattr(layer, f"map_to_{part}").weight, edges)
        want = gamma.abs() * getattr(layer, f"map_to_{part}_nonequiv")(vec).norm() / base.norm()
        assert abs(ratio - want) < 1e-10 * want


def test_flags_and_gammas():
    strict = fast.VNLinearLeakyReLU(5, 7, 4)
    relaxed = fast.VNLinearLeakyReLU(5, 7, 4, relaxed=True, relaxation_init=0.5)
    assert strict.get_gammas() == [] and strict.get_nonequi_linear_layers() == [] and not strict.relaxed
    assert [g.item() for g in relaxed.get_gammas()] == [0.5, 0.5] and relaxed.relaxed
    assert relaxed.get_nonequi_linear_layers() == [relaxed.map_to_feat_nonequiv, relaxed.map_to_dir_nonequiv]
    assert [tuple(m.weight.shape) for m in relaxed.get_nonequi_linear_layers()] == [(21, 15), (21, 15)]
    std = fast.VNStdFeature(8, relaxed=True)
    assert len(std.get_gammas()) == len(std.get_nonequi_linear_layers()) == 4
    shared = fast.VNEdgeConv(5, 7, share_nonlinearity=True, relaxed=True)
    assert shared.map_to_dir.weight.shape == (1, 10) and shared.map_to_dir_nonequiv.weight.shape == (3, 30)
