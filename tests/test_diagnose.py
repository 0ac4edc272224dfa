"""What ACE says about the data: numbers against plain formulas, bounds, verdicts and their evidence."""

import json

import pytest
import torch
from gated_models import NAMES, inputs, make, output
from test_snap import Pair, loop
from torch import nn

from ace_fast import ACE
from ace_fast.nn.gates import Collector, recording
from ace_fast.relaxation import draw_diagnosis, equivariant_share
from ace_fast.symmetry import measure


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def with_gammas(model, value):
    with torch.no_grad():
        for gamma in model.get_gammas():
            gamma.fill_(value)
    return model


KEYS = {"name", "mode", "gamma", "lambda", "u", "ratio", "branch", "amplification", "share", "snapped", "verdict",
        "evidence"}


@pytest.mark.parametrize("name", NAMES)
def test_a_diagnosis_is_plain_data_and_leaves_the_model_as_it_was(name):
    model, arguments = with_gammas(make(name), 0.1), inputs(name)
    ace = ACE(model, "resilient")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = ace.diagnose(*arguments, error=0.25)
    assert found == json.loads(json.dumps(found)) and [g["name"] for g in found["gates"]] == ace.names
    assert all(set(gate) == KEYS for gate in found["gates"]) and found["error"] == 0.25 and found["step"] == 0
    assert found["truncation"] > 0 and 0 < found["bound_by_gate"] <= found["bound"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and all(module.training for module in model.modules())
    with model.probe() as ratios:
        model.eval()
        output(model, arguments)
    for gate, ratio in zip(found["gates"], ratios, strict=True):
        assert abs(gate["ratio"] - ratio) <= 1e-12 * ratio
        assert abs(gate["ratio"] - 0.1 * gate["branch"]) <= 1e-12 * ratio
        # the features after EGNO's last layer are an output of their own
        assert gate["amplification"] > 0 or gate["name"] == "gammas_h.1"


def test_a_diagnosis_is_drawn(tmp_path):
    """Alone, and several over the steps."""
    model, x = Pair(), torch.randn(8, 4)
    ace = ACE(model)
    first = ace.diagnose(x, error=0.25)
    (picture,) = draw_diagnosis(first, tmp_path / "gates.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    loop(model, ace, 2)
    second = ace.diagnose(x, error=0.125)
    page, picture = draw_diagnosis([first, second], str(tmp_path / "page.html"))
    text = page.read_text()
    assert picture == tmp_path / "page.png" and picture.exists() and "Gates at step 2" in text
    for title in ("Gates", "Equivariant share of the branches", "Relative error of the relaxed model"):
        assert f"<h3>{title}</h3>" in text
    for gate in second["gates"]:
        assert f"{gate['name']}: {gate['ratio']:.1e}; undecided: {gate['evidence']}" in text
    assert "bound (theorem 4.2): step 2.00" in text and "measured: step 2.00, error 0.125" in text


@pytest.mark.parametrize(("count", "name", "message"), [
    (0, "gates.png", "found must be one diagnosis, or several of the same gates, got none"),
    (2, "gates.png", "or several of the same gates, got of different gates"),
    (1, "gates.pdf", "out must be a .png or .html file, got .*gates.pdf"),
])
def test_what_cannot_be_drawn(count, name, message, tmp_path):
    found = [{"step": 0, "gates": [{"name": str(i)}]} for i in range(count)]
    with pytest.raises(ValueError, match=message):
        draw_diagnosis(found, tmp_path / name)


def test_shares_are_those_of_the_branches_maps():
    """Of a branch without nonlinearity its weights' product; scalars keep every symmetry, positions to scalars none."""
    model = make("segnn")
    layer = model.layers[0]
    layer.lin_noneq1[1] = layer.lin_noneq1[3] = nn.Identity()
    found = ACE(model).diagnose(*inputs("segnn"))["gates"]
    matrix = layer.lin_noneq1[4].weight @ layer.lin_noneq1[2].weight @ layer.lin_noneq1[0].weight
    want = equivariant_share(matrix, layer.hidden_irreps, 2 * layer.hidden_irreps)
    assert abs(found[0]["share"] - want) < 1e-10 and 0 < found[1]["share"] < 1
    assert [gate["share"] for gate in ACE(make("schnet")).diagnose(*inputs("schnet"))["gates"]] == [0.0, 0.0]
    features, positions = ACE(make("egno")).diagnose(*inputs("egno"))["gates"][::2]
    assert features["share"] == 1.0 and 0 < positions["share"] < 1
    vectors = make("vn_dgcnn")
    first = ACE(vectors).diagnose(*inputs("vn_dgcnn"))["gates"][0]["share"]
    weight = vectors.conv1.map_to_feat_nonequiv.weight
    assert abs(first - equivariant_share(weight, "21x1o", "2x1o")) < 1e-12


def test_the_bounds_hold_and_fall_with_the_gates():
    """Theorem 4.2 on a SEGNN: first order in the gates, and above the error that is measured under rotations."""
    (graph,) = inputs("segnn")
    bounds = []
    for value in (1e-1, 1e-2, 1e-3):
        model = with_gammas(make("segnn"), value)
        with torch.no_grad():
            errors = measure(model, graph, "O(3)", draws=4, layers=()).worst.draws
        found = ACE(model).diagnose(graph, error=max(errors))
        assert found["error"] < found["bound_by_gate"] < found["bound"]
        assert found["error"] < 2 * found["truncation"] * (1 + found["truncation"]) + 1e-12  # theorem 4.1, twice
        bounds.append(found["bound"])
    assert abs(bounds[1] / bounds[2] - 10) < 0.1 and bounds[0] > 5 * bounds[1]


def test_truncation_and_amplification_are_differences_of_outputs():
    (graph,) = inputs("segnn")
    model = with_gammas(make("segnn"), 0.05)
    found = ACE(model).diagnose(graph)
    with torch.no_grad():
        plain = model(graph)
        model.set_equivariance(False)
        strict = model(graph)
        model.set_equivariance(True)
        assert abs(found["truncation"] - (plain - strict).norm() / strict.norm()) < 1e-12
        gate = found["gates"][-1]
        step = 1e-2 / gate["branch"]
        model.get_gammas()[-1].add_(step)
        moved = (model(graph) - plain).norm()
        free = []
        with recording([model.layers[-1]], Collector(free, lambda one: one.free().norm())):
            model(graph)
    assert abs(gate["amplification"] * step - moved / free[-1]) < 1e-9


def test_without_outputs_there_are_no_bounds():
    model = make("schnet")
    found = ACE(model).diagnose(lambda: None if output(model, inputs("schnet")) is None else None)
    assert found["bound"] is found["truncation"] is found["gates"][0]["amplification"] is None
    assert found["gates"][0]["ratio"] > 0


@pytest.mark.parametrize("name", ["schnet", "egno"])
def test_gates_that_networks_compute(name):
    model = make(name, gammas="nn")
    found = ACE(model).diagnose(*inputs(name))
    assert found["bound"] is None and all(gate["ratio"] > 0 for gate in found["gates"])
    assert len(found["gates"]) == len(model.get_gate_networks())


# ---- verdicts


def watched(ratios, steps=50, **options):
    """The verdict after ratios that were measured every `steps` steps."""
    ace = ACE(make("schnet"), **{"tolerance": 1e-2, "patience": 100} | options)
    for i, ratio in enumerate(ratios):
        ace._watch.note(steps * (i + 1), [ratio, 1.0], [float("nan")] * 2)
    return ace._watch.verdict(0)


@pytest.mark.parametrize(("ratios", "verdict", "evidence"), [
    ([], "undecided", "no ratio was measured"),
    ([1e-3], "undecided", "ratio 1.00e-03, below 0.01 for 0 steps of the 100 that a verdict takes"),
    ([1e-3] * 3, "symmetric", "ratio 1.00e-03, below 0.01 for 100 steps"),
    ([0.5, 1e-3, 1e-3], "undecided", "below 0.01 for 50 steps of the 100"),
    ([0.5] * 3, "broken", "ratio 5.00e-01, above 0.01 for 100 steps, and not falling: 5.00e-01 to 5.00e-01"),
    ([0.5, 0.4, 0.2], "undecided", "above 0.01 for 100 steps, but falling: 5.00e-01 to 2.00e-01"),
    ([float("nan")] * 3, "undecided", "no ratio was measured"),
])
def test_verdicts(ratios, verdict, evidence):
    found, words = watched(ratios)
    assert found == verdict and evidence in words


def test_a_branch_that_is_switched_off_is_symmetric():
    model, arguments = with_gammas(make("schnet"), 1e-9), inputs("schnet")
    ace = ACE(model, lr=0.0, snap=True, patience=2, look_every=1)
    for _ in range(3):
        output(model, arguments).sum().backward()
        ace.step()
    found = ace.diagnose(*arguments)
    for gate in found["gates"]:
        assert gate["verdict"] == "symmetric" and "switched off at step 3: the ratio had" in gate["evidence"]
        assert gate["snapped"] and gate["gamma"] == gate["ratio"] == 0 < gate["branch"]
    assert found["truncation"] == 0 and found["bound"] == 0


def test_diagnoses_add_up_to_a_verdict():
    """Where nothing is measured while training, each diagnosis is a measurement."""
    model, arguments = make("schnet"), inputs("schnet")
    ace = ACE(model, lr=0.0, patience=4)
    verdicts = []
    for _ in range(3):
        for _ in range(2):
            output(model, arguments).sum().backward()
            ace.step()
        verdicts.append(ace.diagnose(*arguments)["gates"][0]["verdict"])
    assert verdicts == ["undecided", "undecided", "broken"]
