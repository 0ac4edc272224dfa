"""SEGNN against the original code's numbers, its symmetries, its branches and its errors."""

import copy
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from e3nn import o3
from torch.utils.checkpoint import checkpoint

from ace_fast import Graph, functional, native, segments
from ace_fast.bench.eager import EagerSEGNN
from ace_fast.models import SEGNN, nbody_graph, qm9_graph

BACKENDS = ["reference", *([] if native.load() else ["cpu"])]
NBODY = ("2x1o+1x0e", "8x0e+8x1o", "1x1o", "1x0e+1x1o", "1x0e+1x1o", 2)
QM9 = ("5x0e", "7x0e+7x1o+7x2e", "1x0e", "1x0e+1x1o+1x2e+1x3o", "1x0e+1x1o+1x2e+1x3o", 2)
# small models for everything but the original's numbers
NODE = ("2x1o+1x0e", "4x0e+3x1o", "1x1o", "1x0e+1x1o", "1x0e+1x1o", 2)
GRAPH = ("5x0e", "4x0e+3x1o", "1x0e", "1x0e+1x1o", "1x0e+1x1o", 1)
TASKS = {
    "node": (NODE, {"task": "node", "additional_message_irreps": "2x0e"}),
    "graph": (GRAPH, {"task": "graph", "norm": "instance", "additional_message_irreps": "1x0e"}),
    "segnn_nbody": (NBODY, {"task": "node", "additional_message_irreps": "2x0e"}),
    "segnn_qm9": (QM9, {"task": "graph", "norm": "instance", "pool": "avg", "additional_message_irreps": "1x0e"}),
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def sizes(name, **changes):
    args, options = TASKS[name]
    return args, options | changes


def model_of(cls, name, backend="reference", **changes):
    args, options = sizes(name, **changes)
    return cls(*args, **options, **({} if cls is EagerSEGNN else {"backend": backend}))


def graph_of(name, inputs, backend="reference"):
    make = nbody_graph if name in ("node", "segnn_nbody") else qm9_graph
    return make(inputs, 3 if name == "segnn_qm9" else 1, backend=backend)


def loss_of(out, inputs):
    if out.shape[1] == 3:
        return (inputs.pos + out - inputs.target).square().mean()
    return (out[:, 0] - inputs.target).abs().mean()


def tensors(gold, prefix):
    return {key[len(prefix):]: torch.from_numpy(value) for key, value in gold.items() if key.startswith(prefix)}


def assert_close(got, want, what):
    # gradients that vanish analytically (a bias before a normalisation) are rounding noise on both sides
    error, scale = (got - want).abs().max(), want.abs().max()
    assert error <= 1e-9 and error <= 1e-9 * scale + 1e-15, f"{what}: {error} of {scale}"


@pytest.mark.parametrize("name", ["segnn_nbody", "segnn_qm9"])
@pytest.mark.parametrize("cls, backend", [(SEGNN, b) for b in BACKENDS] + [(EagerSEGNN, "eager")],
                         ids=[*BACKENDS, "eager"])
def test_golden(double, golden, name, cls, backend):
    gold = golden(name)
    meta = json.loads(str(gold["meta"]))
    inputs = SimpleNamespace(**tensors(gold, "input/"))
    assert (meta["hidden_irreps"], meta["task"]) == (TASKS[name][0][1], TASKS[name][1]["task"])
    graph = graph_of(name, inputs, "reference" if backend == "eager" else backend)
    model = model_of(cls, name, backend, relaxed=True)
    model.load_state_dict(tensors(gold, "state/"), strict=True)
    for mode in ("relaxed", "strict"):
        model.set_equivariance(mode == "relaxed")
        model.zero_grad()
        out = model(graph)
        loss = loss_of(out, inputs)
        loss.backward()
        assert_close(out + inputs.pos if name == "segnn_nbody" else out, torch.from_numpy(gold[f"{mode}_output"]), mode)
        assert_close(loss, torch.from_numpy(gold[f"{mode}_loss"]), "loss")
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        want = tensors(gold, f"{mode}_grad/")
        assert set(grads) == set(want)
        for key, value in want.items():
            assert_close(grads[key], value, f"{mode} {key}")


@pytest.mark.parametrize("name, changes", [
    ("node", {"relaxed": True}), ("node", {"norm": "batch", "relaxed": True}),
    ("graph", {"relaxed": True, "pool": "sum"}), ("graph", {"norm": "none", "relaxed": False}),
    ("graph", {"norm": "batch"}),
], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_eager_for_random_weights(double, backend, name, changes):
    inputs = random_batch()
    graph = graph_of(name, inputs, backend)
    theirs, mine = model_of(EagerSEGNN, name, **changes), model_of(SEGNN, name, backend, **changes)
    with torch.no_grad():
        for gamma in theirs.get_gammas():
            gamma.normal_()
    mine.load_state_dict(theirs.state_dict(), strict=True)
    outs, grads = [], []
    cotangent = torch.randn(9, 3) if name == "node" else torch.randn(2, 1)
    for model in (mine, theirs):
        out = model(graph)
        (out * cotangent).sum().backward()
        outs.append(out)
        grads.append({key: p.grad for key, p in model.named_parameters()})
    assert_close(*outs, "output")
    for key, value in grads[1].items():
        assert_close(grads[0][key], value, key)
    for key, value in theirs.named_buffers():
        if "running" in key:
            assert_close(dict(mine.named_buffers())[key], value, key)
    theirs.load_state_dict(mine.state_dict(), strict=True)


def random_batch(dtype=torch.float64):
    """Two clusters of five and four charged bodies, edges in no order, one of them twice."""
    n = 9
    edges = [(i, j) for i in range(n) for j in range(n) if i != j and (i < 5) == (j < 5)]
    edges = torch.tensor(edges + edges[:1]).T
    edges = edges[:, torch.randperm(edges.shape[1])].contiguous()
    return SimpleNamespace(
        pos=torch.randn(n, 3, dtype=dtype), vel=torch.randn(n, 3, dtype=dtype),
        charges=torch.randint(0, 2, (n, 1)).to(dtype) * 2 - 1, edge_index=edges,
        batch=torch.tensor([0] * 5 + [1] * 4), x=torch.randn(n, 5, dtype=dtype),
    )


def transformed(batch, rotation):
    new = SimpleNamespace(**vars(batch))
    new.pos, new.vel = batch.pos @ rotation.T, batch.vel @ rotation.T
    return new


def permuted(batch, order):
    new = SimpleNamespace(**{k: v[order] for k, v in vars(batch).items() if k != "edge_index"})
    new.edge_index = torch.argsort(order)[batch.edge_index]
    return new


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("norm", [None, "batch", "instance"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_strict_model_is_equivariant(double, backend, norm, improper):
    rotation = o3.rand_matrix() * (-1 if improper else 1)
    batch = random_batch()
    model = model_of(SEGNN, "node", backend, norm=norm, relaxed=True)
    model.set_equivariance(False)
    out, turned = (model(graph_of("node", b, backend)) for b in (batch, transformed(batch, rotation)))
    assert (turned - out @ rotation.T).abs().max() < 1e-13 * out.abs().max()
    scalar = model_of(SEGNN, "graph", backend, norm=norm)
    out, turned = (scalar(graph_of("graph", b, backend)) for b in (batch, transformed(batch, rotation)))
    assert (turned - out).abs().max() < 1e-12 * out.abs().max()


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_permutations(double, backend, relaxed):
    """Both models treat the order of nodes and edges alike: the branches act per node."""
    batch = random_batch()
    order = torch.randperm(9)
    model = model_of(SEGNN, "node", backend, relaxed=relaxed)
    out, other = (model(graph_of("node", b, backend)) for b in (batch, permuted(batch, order)))
    assert (other - out[order]).abs().max() < 1e-13 * out.abs().max()
    scalar = model_of(SEGNN, "graph", backend, relaxed=relaxed)
    out, other = (scalar(graph_of("graph", b, backend)) for b in (batch, permuted(batch, order)))
    assert (other - out).abs().max() < 1e-12 * out.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equivariance_error_has_slope_one_in_gamma(double, backend):
    """For fixed weights the error is O(max |gamma|): ten times less gamma, ten times less error."""
    rotation, batch = o3.rand_matrix(), random_batch()
    graph, turned = (nbody_graph(b, backend=backend) for b in (batch, transformed(batch, rotation)))
    model = model_of(SEGNN, "node", backend, relaxed=True)
    errors = []
    for gamma in (1e-1, 1e-2, 1e-3, 1e-4):
        with torch.no_grad():
            for parameter in model.get_gammas():
                parameter.fill_(gamma)
            errors.append((model(turned) - model(graph) @ rotation.T).norm())
    slopes = torch.log10(torch.stack(errors[:-1]) / torch.stack(errors[1:]))
    assert errors[-1] > 1e-7
    assert (slopes[1:] - 1).abs().max() < 0.02 and abs(slopes[0] - 1) < 0.2


def test_strict_forward_makes_the_strict_models_calls(double, monkeypatch):
    """A branch that is switched off costs nothing: same operators in the same order."""
    batch = random_batch()
    calls = []
    for name in ("tensor_product", "segment_sum", "gather", "relaxed_linear", "steerable_message"):
        original = getattr(functional, name)

        def record(*args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(functional, name, record)
    seen = []
    for relaxed in (False, True, True):
        model = model_of(SEGNN, "node", relaxed=relaxed)
        model.set_equivariance(relaxed and len(seen) == 2)
        graph = nbody_graph(batch)
        calls.clear()
        model(graph)
        seen.append(list(calls))
    strict, off, on = seen
    assert off == strict and "relaxed_linear" not in off
    assert on.count("relaxed_linear") == 12 and on.count("tensor_product") == strict.count("tensor_product") == 7
    assert on.count("steerable_message") == strict.count("steerable_message") == 2 and "gather" not in on


def test_probe(double):
    model = model_of(SEGNN, "node", relaxed=True)
    graph = nbody_graph(random_batch())
    out = model(graph)
    with torch.no_grad():
        for n, gamma in enumerate(model.get_gammas()):
            gamma.fill_(-0.5 if n == 1 else 0.0 if n == 2 else 1.0)
    inner, x = [], {}
    layer = model.layers[0]
    handle = layer.update_layer_2.register_forward_hook(lambda m, args, y: x.update(u=args[0], y=y))
    with model.probe() as ratios:
        model(graph)
        inner += ratios
    handle.remove()
    assert len(ratios) == len(model.get_gammas()) == 4 and all(r.shape == () and not r.requires_grad for r in ratios)
    assert ratios[2] == 0 and ratios[0] > 0
    want = 0.5 * layer.lin_noneq2(x["u"]).norm() / x["y"].norm()
    assert abs(ratios[1] - want) < 1e-12 * want
    model(graph)
    assert len(ratios) == 4  # closed: nothing more is recorded
    model.set_equivariance(False)
    with model.probe() as ratios:
        model(graph)
    assert ratios == [] and out.shape == (9, 3)
    with pytest.raises(ValueError, match="probe must be used on a relaxed model, got a strict one"):
        with model_of(SEGNN, "node").probe():
            pass


def test_gammas():
    strict, relaxed = model_of(SEGNN, "node"), model_of(SEGNN, "node", relaxed=True)
    assert strict.get_gammas() == [] and not any("noneq" in name for name, _ in strict.named_parameters())
    names = [name for name, _ in relaxed.named_parameters() if "gamma" in name]
    assert names == ["layers.0.gammas.0", "layers.0.gammas.1", "layers.1.gammas.0", "layers.1.gammas.1"]
    assert [g.item() for g in relaxed.get_gammas()] == [1.0] * 4
    assert all(a is dict(relaxed.named_parameters())[b] for a, b in zip(relaxed.get_gammas(), names, strict=True))
    with pytest.raises(ValueError, match="set_equivariance must be False for a strict model, got True; build it with"):
        strict.set_equivariance(True)
    strict.set_equivariance(False)


def test_bounded_branches(double):
    """The branches read their weights through the module, so parametrizations such as the spectral norm act."""
    graph = nbody_graph(random_batch())
    theirs, mine = (model_of(cls, "node", relaxed=True) for cls in (EagerSEGNN, SEGNN))
    mine.load_state_dict(theirs.state_dict())
    for model in (theirs, mine):
        for layer in model.layers:
            for linear in (m for m in (*layer.lin_noneq1, *layer.lin_noneq2) if isinstance(m, torch.nn.Linear)):
                torch.nn.utils.parametrize.register_parametrization(linear, "weight", Halved())
    assert_close(mine(graph), theirs(graph), "output")


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


def test_published_size():
    """The N-body model of the SEGNN paper and of ACE: 147 424 and 937 960 parameters."""
    args = ("2x1o+1x0e", "32x0e+32x1o", "1x1o", "1x0e+1x1o", "1x0e+1x1o", 4)
    for relaxed, count in ((False, 147_424), (True, 937_960)):
        model = SEGNN(*args, task="node", additional_message_irreps="2x0e", relaxed=relaxed)
        assert sum(p.numel() for p in model.parameters()) == count


def test_graph_object_is_not_changed_and_may_be_reused(double):
    batch = random_batch()
    model = model_of(SEGNN, "graph", relaxed=True)
    graph = qm9_graph(batch, 1)
    want = model(graph)
    before = {k: v.clone() for k, v in vars(graph).items() if isinstance(v, torch.Tensor)}
    assert set(before) == {"x", "pos", "edge_index", "edge_attr", "node_attr", "batch", "additional_message_features"}
    plain = SimpleNamespace(**before)  # what a PyG Data object holds
    assert torch.equal(model(plain), want)
    assert all(torch.equal(getattr(plain, k), v) and torch.equal(getattr(graph, k), v) for k, v in before.items())
    plain.edge_index = Graph(batch.edge_index, 9)
    plain.segments = segments(batch.batch, 2)
    assert torch.equal(model(plain), want)
    again = qm9_graph(batch, 1, graph=plain.edge_index)
    assert again.graph is plain.edge_index and torch.equal(model(again), want)
    one = SimpleNamespace(**before | {"batch": None})
    assert model(one).shape == (1, 1)


def test_isolated_nodes(double):
    """Nodes without edges: attributes (1, 0, ...), also where node_attr has no row for the last ones."""
    batch = random_batch()
    batch.edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    model = model_of(SEGNN, "graph", norm="none")
    graph = qm9_graph(batch, 1)
    assert torch.equal(graph.node_attr[3:], torch.zeros(6, 4))
    want = model(graph)
    assert want.isfinite().all()
    graph.node_attr = graph.node_attr[:3]
    assert torch.equal(model(graph), want)
    graph.node_attr = torch.nn.functional.pad(graph.node_attr, (0, 0, 0, 6))
    graph.node_attr[:, 0] = 1.0
    assert torch.equal(model(graph), want)


def test_no_edges(double):
    batch = random_batch()
    batch.edge_index = torch.zeros(2, 0, dtype=torch.int64)
    assert model_of(SEGNN, "node", relaxed=True)(nbody_graph(batch)).isfinite().all()


def test_model_without_additional_features(double):
    batch = random_batch()
    graph = qm9_graph(batch, 1)
    del graph.additional_message_features
    theirs, mine = (model_of(cls, "graph", additional_message_irreps=None) for cls in (EagerSEGNN, SEGNN))
    mine.load_state_dict(theirs.state_dict())
    assert_close(mine(graph), theirs(graph), "output")


def test_nbody_graph_by_hand():
    """One pair: the attributes written out."""
    batch = SimpleNamespace(
        pos=torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]]), vel=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]),
        charges=torch.tensor([[1.0], [-1.0]]), edge_index=torch.tensor([[1, 0], [0, 1]]), batch=torch.tensor([0, 0]),
    )
    graph = nbody_graph(batch, lmax_attr=1)
    c0, c1 = 0.25**0.5 / torch.pi**0.5, (3 / (4 * torch.pi)) ** 0.5
    edge = torch.tensor([[c0, 0.0, 0.6 * c1, 0.8 * c1], [c0, 0.0, -0.6 * c1, -0.8 * c1]])
    torch.testing.assert_close(graph.edge_attr, edge)
    velocity = torch.tensor([[c0, c1, 0.0, 0.0], [c0, 0.0, 0.0, c1]])
    torch.testing.assert_close(graph.node_attr, edge + velocity)
    torch.testing.assert_close(graph.additional_message_features, torch.tensor([[5.0, -1.0], [5.0, -1.0]]))
    torch.testing.assert_close(graph.x, torch.cat([batch.pos, batch.vel, torch.tensor([[1.0], [2.0]])], 1))
    assert not hasattr(batch, "x")


def test_model_survives_copies_casts_and_meta(double):
    graph = nbody_graph(random_batch())
    model = model_of(SEGNN, "node", relaxed=True)
    want = model(graph)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(graph), want)
    with torch.device("meta"):
        empty = model_of(SEGNN, "node", relaxed=True)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(graph), want)
    torch.set_default_dtype(torch.float32)
    single = model_of(SEGNN, "node", relaxed=True).to(torch.float64)
    single.load_state_dict(model.state_dict())
    assert torch.equal(single(graph), want)


def test_layer_compiles_and_checkpoints(double):
    graph = nbody_graph(random_batch())
    layer = model_of(SEGNN, "node", norm="instance", relaxed=True).layers[0]
    x = torch.randn(9, 13)
    args = (graph.graph, graph.edge_attr, graph.node_attr, segments(graph.batch, 2), graph.additional_message_features)
    torch._dynamo.reset()
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager"),
                lambda *a: checkpoint(layer, *a, use_reentrant=False)):
        out = run(x.requires_grad_(), *args)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert (got - want).abs().max() <= 1e-12 * want.abs().max() + 1e-15
