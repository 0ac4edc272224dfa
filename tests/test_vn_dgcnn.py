"""VN-DGCNN and its relatives against the original code's numbers, their symmetries, branches and errors."""

import copy
import functools
import json
import pickle
import zlib

import numpy as np
import pytest
import torch
from e3nn import o3
from operator_calls import Calls
from torch.nn.functional import one_hot
from vn_eager import EagerPartSeg, EagerPointNet

from ace_fast import native
from ace_fast.bench.eager_vn import EagerVNDGCNN, smoothed_loss
from ace_fast.data import drop_points
from ace_fast.models import VNDGCNN, VNDGCNNPartSeg, VNPointNet
from ace_fast.relaxation import ACE, branch_weights

BACKENDS = ["reference", *([] if native.load() else ["cpu"])]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def model_of(cls=VNDGCNN, backend="reference", classes=5, k=4, pooling="mean", **options):
    ours = {"legacy_view": False} if cls.__name__.startswith("Eager") else {"backend": backend}
    dropout = {} if cls in (EagerPartSeg, EagerPointNet) else {"dropout": 0.0}
    return cls(classes, k, pooling, **dropout, **(ours | {"relaxed": False} | options))


def clouds(count=3, points=12):
    return torch.randn(count, 3, points)


def randomize_gammas(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "gammas" in name:
                p.normal_()


def tensors(gold, prefix):
    return {key[len(prefix):]: torch.from_numpy(np.array(v)) for key, v in gold.items() if key.startswith(prefix)}


@functools.cache
def weight_by_rule(name, shape):
    """A weight of the golden file, by the rule in its `meta`."""
    scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(("bn" in name and name.endswith("weight")) + scale * draw))


def fill_by_rule(model, gold):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weight_by_rule(name, tuple(p.shape)))
        for gamma, value in zip(model.get_gammas(), gold["gammas"], strict=True):
            gamma.fill_(float(value))


def assert_close(got, want, what):
    # gradients that vanish analytically (a bias before a normalisation) are rounding noise on both sides
    error, scale = (got - want).abs().max(), want.abs().max()
    assert error <= 1e-9 and error <= 1e-9 * scale + 1e-14, f"{what}: {error} of {scale}"


def assert_gradients(gold, model, mode):
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    summaries = tensors(gold, f"{mode}_grad_summary/")
    assert set(grads) == set(summaries)
    for name, want in tensors(gold, f"{mode}_grad/").items():
        assert_close(grads[name], want, f"{mode} {name}")
    for name, want in summaries.items():
        g = grads[name]
        got = torch.stack([g.sum(), g.abs().sum(), g.square().sum()])
        scale = want[[1, 1, 2]]  # of the terms that were summed
        assert ((got - want).abs() <= 1e-9 * scale + 1e-14 * g.numel()).all(), f"{mode} summary {name}"


@pytest.mark.parametrize("cls, backend", [(VNDGCNN, b) for b in BACKENDS] + [(EagerVNDGCNN, "eager")],
                         ids=[*BACKENDS, "eager"])
def test_golden(double, golden, cls, backend):
    gold = golden("vn_dgcnn")
    meta = json.loads(str(gold["meta"]))
    assert (meta["k"], meta["classes"], meta["legacy_view"], meta["dropout"]) == (8, 10, True, 0.0)
    model = model_of(cls, backend, meta["classes"], meta["k"], relaxed=True, legacy_view=True)
    fill_by_rule(model, gold)
    x, target = (torch.from_numpy(gold[f"input/{name}"]) for name in ("x", "target"))
    trained = None
    for mode in ("relaxed", "strict"):
        one = copy.deepcopy(model)
        one.set_equivariance(mode == "relaxed")
        out = one(x)
        loss = smoothed_loss(out, target)
        loss.backward()
        assert_close(out, torch.from_numpy(gold[f"{mode}_output"]), mode)
        assert_close(loss, torch.tensor(float(gold[f"{mode}_loss"])), f"{mode} loss")
        assert_gradients(gold, one, mode)
        trained = trained or one
    trained.eval()
    for mode in ("relaxed", "strict"):  # with the running statistics of the relaxed forward pass
        trained.set_equivariance(mode == "relaxed")
        assert_close(trained(x), torch.from_numpy(gold[f"eval_{mode}_output"]), f"eval {mode}")


PAIRS = {"dgcnn": (EagerVNDGCNN, VNDGCNN), "partseg": (EagerPartSeg, VNDGCNNPartSeg),
         "pointnet": (EagerPointNet, VNPointNet)}


def arguments(name, x):
    return (x, one_hot(torch.arange(len(x)), 16).to(x.dtype)) if name == "partseg" else (x,)


@pytest.mark.parametrize("name, options", [
    ("dgcnn", {"relaxed": True}), ("dgcnn", {"relaxed": False, "pooling": "max"}),
    ("dgcnn", {"relaxed": True, "pooling": "max", "legacy_view": True}),
    ("partseg", {"relaxed": True}), ("partseg", {"relaxed": True, "pooling": "max", "legacy_view": True}),
    ("pointnet", {"relaxed": True}), ("pointnet", {"relaxed": True, "pooling": "max", "legacy_view": True}),
    ("pointnet", {"relaxed": False, "feature_transform": False}),
], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_eager_for_random_weights(double, backend, name, options):
    """Same seed, same weights; values, gradients and running statistics agree; states load both ways."""
    models = []
    for cls in PAIRS[name]:
        torch.manual_seed(3)
        models.append(model_of(cls, backend, **options))
    theirs, mine = models
    if name == "partseg":
        for module in mine.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    want = theirs.state_dict()
    assert {k: v.shape for k, v in mine.state_dict().items()} == {k: v.shape for k, v in want.items()}
    assert all(torch.equal(v, want[k]) for k, v in mine.state_dict().items())
    randomize_gammas(theirs)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    inputs, outs, grads = arguments(name, clouds(6)), [], []  # fewer make the batch norms ill-conditioned
    for model in models:
        out = model(*inputs)
        torch.manual_seed(4)
        (out * torch.randn_like(out)).sum().backward()
        outs.append(out)
        grads.append({key: p.grad for key, p in model.named_parameters()})
    assert_close(outs[1], outs[0], "output")
    scale = max(g.abs().max() for g in grads[0].values() if g is not None)
    for key, value in grads[0].items():
        assert (value is None) == (grads[1][key] is None), key
        if value is not None:
            assert (grads[1][key] - value).abs().max() <= 1e-9 * (value.abs().max() + 1e-3 * scale), key
    for key, value in theirs.named_buffers():
        assert_close(dict(mine.named_buffers())[key].double(), value.double(), key)
    theirs.load_state_dict(mine.state_dict(), strict=True)
    for model in models:
        model.eval()
    assert_close(mine(*inputs), theirs(*inputs), "evaluation")


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_strict_logits_are_invariant(double, backend, pooling, name):
    model = model_of(PAIRS[name][1], backend, pooling=pooling, relaxed=True)
    model.set_equivariance(False)
    x, rotation = clouds(), o3.rand_matrix() * (1 if name == "pointnet" else -1)  # its cross product: no reflections
    model.eval()
    out, turned = (model(*arguments(name, y)) for y in (x, rotation @ x))
    assert (turned - out).abs().max() < 1e-10 * out.abs().max()
    model.set_equivariance(True)
    relaxed, turned = (model(*arguments(name, y)) for y in (x, rotation @ x))
    assert (turned - relaxed).abs().max() > 1e-4 * relaxed.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_permutations(double, backend):
    """The order of points and clouds does not matter, branches on or off; with legacy_view it does."""
    x, order = clouds(), torch.randperm(12)
    for relaxed in (False, True):
        model = model_of(VNDGCNN, backend, relaxed=relaxed)
        out = model(x)
        assert (model(x[:, :, order]) - out).abs().max() < 1e-10 * out.abs().max()
        assert (model(x.flip(0)) - out.flip(0)).abs().max() < 1e-10 * out.abs().max()
    model = model_of(VNDGCNN, backend, relaxed=True, legacy_view=True)
    out = model(x)
    assert (model(x[:, :, order]) - out).abs().max() > 1e-4 * out.abs().max()
    model = model_of(VNDGCNNPartSeg, backend, relaxed=True).eval()
    out, other = (model(*arguments("partseg", y)) for y in (x, x[:, :, order]))
    assert (other - out[:, :, order]).abs().max() < 1e-10 * out.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_invariance_error_has_slope_one_in_gamma(double, backend):
    """For fixed weights the error is O(max |gamma|): ten times less gamma, ten times less error."""
    rotation, x = o3.rand_matrix(), clouds()
    model = model_of(VNDGCNN, backend, relaxed=True).eval()
    errors = []
    for gamma in (1e-3, 1e-4, 1e-5):
        with torch.no_grad():
            for parameter in model.get_gammas():
                parameter.fill_(gamma)
            errors.append((model(rotation @ x) - model(x)).norm())
    slopes = torch.log10(torch.stack(errors[:-1]) / torch.stack(errors[1:]))
    assert errors[-1] > 1e-9
    assert abs(slopes[1] - 1) < 0.02 and abs(slopes[0] - 1) < 0.2


@pytest.mark.parametrize("name", PAIRS)
def test_strict_step_makes_the_strict_models_calls(name):
    """A branch that is switched off costs nothing: same operators in the same order, backward included."""
    seen = []
    for relaxed, on in ((False, False), (True, False), (True, True)):
        model = model_of(PAIRS[name][1], relaxed=relaxed)
        model.set_equivariance(on)
        inputs = arguments(name, clouds())
        with Calls() as calls:
            model(*inputs).sum().backward()
        seen.append(calls.names)
    strict, off, on = seen
    assert off == strict and len(strict) > 100
    assert strict.count("ace_fast.vn_linear.default") == on.count("ace_fast.vn_linear.default")
    assert len(on) > len(off) or on != off


def test_gammas():
    strict, relaxed = model_of(), model_of(relaxed=True, relaxation_init=0.25)
    assert strict.get_gammas() == [] and not strict.relaxed and branch_weights(strict) == []
    assert not any("nonequiv" in name for name, _ in strict.named_parameters())
    places = [f"conv{i}" for i in range(1, 6)] + ["std_feature.vn1", "std_feature.vn2"]
    named = dict(relaxed.named_parameters())
    assert [id(g) for g in relaxed.get_gammas()] == [id(named[f"{p}.gammas.{i}"]) for p in places for i in range(2)]
    assert [g.item() for g in relaxed.get_gammas()] == [0.25] * 14
    assert len(model_of(VNDGCNNPartSeg, relaxed=True).get_gammas()) == 16
    assert len(model_of(VNPointNet, relaxed=True).get_gammas()) == 20
    weights = {name for name, p in named.items() if any(p is w for w in branch_weights(relaxed))}
    assert weights == {f"{p}.map_to_{part}_nonequiv.weight" for p in places for part in ("feat", "dir")}
    for cls in (VNDGCNN, VNDGCNNPartSeg, VNPointNet):
        with pytest.raises(ValueError, match=f"{cls.__name__}: set_equivariance must be False for a strict model, got "
                                             "True; build it with relaxed=True"):
            model_of(cls).set_equivariance(True)
    strict.set_equivariance(False)


def test_ace_drives_the_gammas():
    model = model_of(relaxed=True)
    ace = ACE(model, lr=0.1, dual_lr=0.1)
    assert len(ace.names) == 14
    smoothed_loss(model(clouds()), torch.arange(3)).backward()
    ace.step()
    assert all(g.item() != 1.0 for g in model.get_gammas())


@pytest.mark.parametrize("cls", [VNDGCNN, VNDGCNNPartSeg, VNPointNet], ids=lambda c: c.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
def test_probe(double, backend, cls):
    model = model_of(cls, backend, relaxed=True, legacy_view=True).eval()
    name = {VNDGCNN: "dgcnn", VNDGCNNPartSeg: "partseg", VNPointNet: "pointnet"}[cls]
    inputs = arguments(name, clouds())
    with torch.no_grad():
        for n, gamma in enumerate(model.get_gammas()):
            gamma.fill_(0.0 if n == 2 else -0.5)
    seen, layer = {}, model.std_feature.vn2 if name != "pointnet" else model.feat.std_feature.vn2
    handle = layer.register_forward_hook(lambda m, args, y: seen.update(x=args[0]))
    out = model(*inputs)
    with model.probe() as ratios:
        assert torch.equal(model(*inputs), out)
    handle.remove()
    assert len(ratios) == len(model.get_gammas()) and all(r.shape == () and not r.requires_grad for r in ratios)
    assert ratios[2] == 0 and all(r > 0 for n, r in enumerate(ratios) if n != 2)
    vec = seen["x"].permute(0, 3, 1, 2).flatten(2)
    for i, part in enumerate(("feat", "dir")):  # vn2 is the last layer of each model
        base = torch.einsum("oc,bcin->boin", getattr(layer, f"map_to_{part}").weight, seen["x"])
        want = 0.5 * getattr(layer, f"map_to_{part}_nonequiv")(vec).norm() / base.norm()
        assert abs(ratios[-2 + i] - want) < 1e-12 * want
    model(*inputs)
    assert len(ratios) == len(model.get_gammas())  # closed: nothing more is recorded
    model.set_equivariance(False)
    with model.probe() as ratios:
        model(*inputs)
    assert ratios == []
    with pytest.raises(ValueError, match=f"{cls.__name__}: probe must be used on a relaxed model, got a strict one"):
        with model_of(cls).probe():
            pass


def test_published_size():
    """VN-DGCNN for 40 classes: 2.90 million parameters, with ACE's branches 8.83."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in VNDGCNN(relaxed=relaxed).parameters()) for relaxed in (False, True)]
    assert counts == [2_899_830, 8_831_612]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_copied_pickled_and_built_without_memory(pooling):
    model = model_of(pooling=pooling, relaxed=True).eval()
    x = clouds()
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want) and other.conv1.gammas[0] is not model.conv1.gammas[0]
    with torch.device("meta"):
        empty = model_of(pooling=pooling, relaxed=True).eval()
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert torch.equal(empty(x), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_points(backend):
    """Zero distances, zero edge differences, equal norms: finite outputs and gradients, for all points at 0 too."""
    for value in (0.0, 0.7):
        model = model_of(VNDGCNN, backend, relaxed=True)
        x = torch.full((3, 3, 12), value, requires_grad=True)
        out = model(x)
        out.square().sum().backward()
        assert out.isfinite().all() and x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        model.set_equivariance(False)
        assert model(x).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    model = model_of(VNDGCNN, backend, relaxed=True)
    before = {name: b.clone() for name, b in model.named_buffers() if "num_batches" not in name}
    out = model(torch.zeros(0, 3, 12))
    out.sum().backward()
    assert out.shape == (0, 5) and all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert all(torch.equal(dict(model.named_buffers())[name], b) for name, b in before.items())
    assert model_of(VNDGCNNPartSeg, backend).eval()(torch.zeros(0, 3, 12), torch.zeros(0, 16)).shape == (0, 5, 12)
    assert model_of(VNPointNet, backend).eval()(torch.zeros(0, 3, 12)).shape == (0, 5)


def test_float32_is_within_rounding_of_float64():
    model = model_of(relaxed=True, k=12).eval()  # all points are neighbours: rounding cannot change the graph
    x = clouds()
    out, want = model(x), model.double()(x.double())
    assert (out - want).abs().max() < 2e-5 * want.abs().max()


@pytest.mark.parametrize("relaxed", (False, True))
def test_copies_of_a_point_have_features_along_it_but_for_branches(relaxed, double):
    """A neighbourhood of copies of x looks the same turned about x, and so do its equivariant features."""
    x = clouds(2, 32).transpose(1, 2)
    x = torch.cat([drop_points(x, ratio=1.0), x], 1).transpose(1, 2)[:, None]  # [B, 1, 3, N], half of it copies
    along = torch.nn.functional.normalize(x[..., :1], dim=2)
    model = model_of(k=8, relaxed=relaxed)
    for conv in (model.conv1, model.conv2, model.conv3, model.conv4):
        x = conv(x)
        copies = x[..., :32]
        across = (copies - (copies * along).sum(2, keepdim=True) * along).norm() / copies.norm()
        assert across > 0.1 if relaxed else across < 1e-8  # rounding grows up to 40 times a layer
