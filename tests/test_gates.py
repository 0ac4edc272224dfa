"""Gates that are switched off: values, what is recorded of a branch; the projector on equivariant maps."""

import copy
import pickle

import pytest
import torch
from e3nn import o3
from gated_models import NAMES, inputs, make, output

from ace_fast.nn import RelaxedLinear
from ace_fast.nn.gates import Collector, Seen, gated_layers, recording
from ace_fast.relaxation import equivariant_part, equivariant_share


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def switch(model, *off):
    """Switches off the gates at the places `off` in get_gammas(); the layers of a model hold them in this order."""
    places = iter(range(99))
    for layer in gated_layers(model):
        layer.snapped = tuple(next(places) in off for _ in layer.snapped)


@pytest.mark.parametrize(("name", "options"), [
    *((name, {}) for name in NAMES), *((name, {"gammas": "single"}) for name in ("schnet", "egno"))])
def test_a_gate_switched_off_is_a_gate_at_zero(name, options):
    arguments, fresh = inputs(name), make(name, **options)
    count = len(fresh.get_gammas())
    for place in {0, count // 2, count - 1}:
        zero, off = copy.deepcopy(fresh), copy.deepcopy(fresh)
        with torch.no_grad():
            zero.get_gammas()[place].zero_()
        switch(off, place)
        want, got = output(zero, arguments), output(off, arguments)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
        got.square().sum().backward()
        assert [gamma.grad is None for gamma in off.get_gammas()].index(True) == place


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_switched_off_is_not_probed(name):
    model = make(name)
    with model.probe() as ratios:
        output(model, inputs(name))
        assert len(ratios) == len(model.get_gammas())
        switch(model, 1)
        output(model, inputs(name))
    assert len(ratios) == 2 * len(model.get_gammas()) - 1


@pytest.mark.parametrize("name", NAMES)
def test_what_is_recorded_has_the_irreps_that_the_layer_names(name):
    model, seen = make(name), []
    with recording(gated_layers(model), Collector(seen, lambda one: one._replace(free=one.free()))):
        output(model, inputs(name))
    assert len(seen) == len(model.get_gammas())
    layers = [layer for layer in gated_layers(model) for _ in layer.snapped]
    places = [gate for layer in gated_layers(model) for gate in range(len(layer.snapped))]
    for layer, gate in zip(layers, places, strict=True):
        reads, returns = layer.gate_irreps(gate)
        assert isinstance(reads, o3.Irreps)
        if name in ("segnn", "schnet") or (name == "egno" and gate < 2):
            one = seen[layers.index(layer) + gate]
            assert (one.x.shape[1], one.free.shape[1]) == (reads.dim, returns.dim) and one.base.shape == one.free.shape


def test_a_layer_of_ones_own_can_be_switched_off():
    layer, x, base = RelaxedLinear(4, 3), torch.randn(5, 4), torch.randn(5, 3)
    ratios = []
    with recording([layer], Collector(ratios, Seen.ratio)):
        layer(x, base)
    assert abs(ratios[0] - torch.nn.functional.linear(x, layer.weight, layer.bias).norm() / base.norm()) < 1e-12
    layer.snapped = (True,)
    assert torch.equal(layer(x, base), base) and gated_layers(layer) == [layer]


def test_copies_record_nothing():
    layer, ratios = RelaxedLinear(4, 3), []
    with recording([layer], Collector(ratios, Seen.ratio)):
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            twin(torch.randn(5, 4), torch.randn(5, 3))
            assert twin._record is None and twin.snapped == (False,)
    assert ratios == [] and layer._record is None


# ---- the projector


IRREPS = o3.Irreps("2x0e+1x0o+3x1o+1x1e+1x2e"), o3.Irreps("1x0e+2x1o+2x1e+2x2e")


def test_the_projector_is_the_mean_over_the_group():
    """Of rotations and reflections drawn at random, to the error of the draw; and it is a projector."""
    torch.manual_seed(0)
    out, own = IRREPS
    matrix = torch.randn(out.dim, own.dim)
    part = equivariant_part(matrix, out, own)
    count = 2000
    angles = o3.rand_angles(count)
    parity = torch.arange(count) % 2
    turned = out.D_from_angles(*angles, parity).transpose(1, 2) @ matrix @ own.D_from_angles(*angles, parity)
    assert (turned.mean(0) - part).abs().max() < 6 * matrix.abs().max() / count**0.5
    assert torch.allclose(equivariant_part(part, out, own), part, rtol=0, atol=1e-14)
    assert abs((part * (matrix - part)).sum()) < 1e-12  # orthogonal
    g = out.D_from_angles(*(a[0] for a in angles)), own.D_from_angles(*(a[0] for a in angles))
    assert torch.allclose(g[0] @ part, part @ g[1], rtol=0, atol=1e-12)


def test_parts_that_commute_with_turns_about_an_axis():
    out, own = IRREPS
    part = equivariant_part(torch.randn(out.dim, own.dim), out, own, "SO2z")
    about = dict(zip("xyz", torch.linalg.cross(torch.eye(3)[:, None].expand(3, 3, 3), torch.eye(3)[None]), strict=True))
    for axis, commutes in (("z", True), ("x", False)):
        g = torch.matrix_exp(0.7 * about[axis].T)
        moved = out.D_from_matrix(g) @ part, part @ own.D_from_matrix(g)
        assert torch.allclose(*moved, rtol=0, atol=1e-6) == commutes


def test_shares():
    out, own = IRREPS
    matrix = torch.randn(out.dim, own.dim)
    part = equivariant_part(matrix, out, own)
    assert abs(equivariant_share(part, out, own) - 1) < 1e-12
    assert equivariant_share(matrix - part, out, own) < 1e-24
    assert equivariant_share(torch.randn(4, 3), "4x0e", "1x1o") == 0
    assert equivariant_share(torch.zeros(3, 3), "1x1o", "1x1o").isnan()
    assert equivariant_share(torch.eye(3), "1x1e", "1x1o") == 0 < equivariant_share(torch.eye(3), "1x1e", "1x1o", "SO3")


def test_wrong_matrices():
    with pytest.raises(ValueError, match=r"matrix must be \[3, 4\] for 1x1o and 4x0e, got \[4, 3\]"):
        equivariant_part(torch.zeros(4, 3), "1x1o", "4x0e")
    with pytest.raises(ValueError, match="groups must be different ones of O3, SO3, O2x, .*, got SE3"):
        equivariant_part(torch.zeros(3, 3), "1x1o", "1x1o", "SE3")
