"""EGNO against the original code's numbers, its symmetries, its branches and its errors."""

import json

import pytest
import torch

from ace_fast import native
from ace_fast.models import EGNO
from ace_fast.symmetry import measure
from ace_fast.testing import assert_equivariant

BACKENDS = ["reference", *([] if native.load() else ["cpu"])]


def tensors(gold, prefix):
    return {key[len(prefix):]: torch.from_numpy(value) for key, value in gold.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def gold(golden):
    return golden("egno")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def model_of(gold, relaxed, **options):
    s = json.loads(str(gold["meta"]))
    model = EGNO(s["layers"], s["in_node"], s["in_edge"], s["hidden"], with_v=True, num_modes=s["modes"],
                 num_timesteps=s["timesteps"], time_emb_dim=s["time_emb_dim"], relaxed=relaxed, **options)
    state = tensors(gold, "state/")
    if not relaxed:
        state = {k: v for k, v in state.items() if not k.startswith(("pos_", "gammas"))}
    model.load_state_dict(state)
    return model


def call(model, gold, edges=None, **changes):
    given = tensors(gold, "input/") | changes
    edges = given["edge_index"] if edges is None else edges
    return model(given["x"], given["h"], edges, given["edge_attr"], given["v"], given["loc_mean"])


@pytest.mark.parametrize("relaxed", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_original_numbers(double, gold, backend, relaxed):
    model, kind = model_of(gold, relaxed, backend=backend), "relaxed" if relaxed else "strict"
    output = call(model, gold)
    loss = (output[0] - torch.from_numpy(gold["input/target"])).square().mean()
    for name, value in zip(("output", "velocity", "features"), output, strict=True):
        torch.testing.assert_close(value, torch.from_numpy(gold[f"{kind}_{name}"]), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(loss, torch.from_numpy(gold[f"{kind}_loss"]), rtol=1e-9, atol=1e-11)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, expected in tensors(gold, f"{kind}_grad/").items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()) + 1e-12)
    if not relaxed:
        return
    for name, expected in tensors(gold, "buffers_after/").items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(call(model.eval(), gold)[0], torch.from_numpy(gold["eval_relaxed_output"]), rtol=1e-9,
                               atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_switched_off_is_the_strict_model(double, gold, backend):
    model = model_of(gold, True, backend=backend)
    model.set_equivariance(False)
    frames = model.frames(torch.from_numpy(gold["input/edge_index"]), 14)
    torch.testing.assert_close(call(model, gold, frames)[0], torch.from_numpy(gold["strict_output"]), rtol=1e-9,
                               atol=1e-10)


def test_symmetries(double, gold):
    model = model_of(gold, True).eval()
    given = tensors(gold, "input/")
    given = {name: given[name] for name in ("x", "h", "edge_index", "v", "loc_mean")} | {"edge_fea": given["edge_attr"]}
    model.set_equivariance(False)
    assert_equivariant(model, given, "E(3)")
    model.set_equivariance(True)
    assert measure(model, given, "E(3)", draws=2).relative > 1e-3


def test_gates(double, gold):
    model = EGNO(2, 2, 2, 16, with_v=True, num_timesteps=5, time_emb_dim=8, relaxed=True, gammas="single")
    assert len(model.get_gammas()) == 2
    with model.probe() as ratios:
        call(model, gold)
    assert len(ratios) == 4
    model = EGNO(2, 2, 2, 16, with_v=True, num_timesteps=5, time_emb_dim=8, relaxed=True)
    for gamma in model.get_gammas()[:2]:
        torch.nn.init.zeros_(gamma)
    with model.probe() as ratios:
        call(model, gold)
    assert ratios[0] == ratios[1] == 0 < min(ratios[2:])  # in the order of the gates: features, then positions
    assert EGNO(1, 2, 2, 16, with_v=True).get_gammas() == []
    x, h = EGNO(1, 2, 2, 16, use_time_conv=False, num_timesteps=3)(
        torch.randn(2, 3), torch.randn(2, 2), torch.tensor([[0, 1], [1, 0]]), torch.randn(2, 2))
    assert x.shape == (6, 3)
    assert h.shape == (6, 16)


def test_errors(gold):
    with pytest.raises(ValueError, match="EGNO: num_modes must be 1 to 3 for num_timesteps 5, got 4"):
        EGNO(1, 2, 2, 16, num_modes=4, num_timesteps=5)
    with pytest.raises(ValueError, match="EGNO: gammas must be one of layer, single, nn"):
        EGNO(1, 2, 2, 16, gammas="network")
    with pytest.raises(ValueError, match="EGNO: time_emb_dim must be at least 2, got 1"):
        EGNO(1, 2, 2, 16, time_emb_dim=1)
    model = EGNO(1, 2, 2, 16, with_v=True, num_timesteps=5)
    x, h, edges = torch.randn(2, 3), torch.randn(2, 2), torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="EGNO: v must be a tensor where use_time_conv is True"):
        model(x, h, edges, torch.randn(2, 2))
    with pytest.raises(ValueError, match=r"EGNO: edge_index must be a Graph of 5 x 2 nodes, got Graph\(15 nodes"):
        model(x, h, model.frames(edges, 3), torch.randn(2, 2), x)
