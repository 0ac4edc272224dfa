"""SchNet against the original code's numbers, its symmetries, its branches and its errors."""

import copy
import json

import pytest
import torch

from ace_fast import Graph, native, segments
from ace_fast.models import SchNet
from ace_fast.relaxation import recalibrate

BACKENDS = ["reference", *([] if native.load() else ["cpu"])]


def tensors(gold, prefix):
    return {key[len(prefix):]: torch.from_numpy(value) for key, value in gold.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def gold(golden):
    return golden("schnet")


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def model_of(gold, relaxed, **options):
    sizes = json.loads(str(gold["meta"]))
    model = SchNet(sizes["hidden"], sizes["filters"], sizes["interactions"], sizes["gaussians"], sizes["cutoff"],
                   relaxed=relaxed, **options)
    state = tensors(gold, "state/")
    if not relaxed:
        state = {k: v for k, v in state.items() if not k.startswith(("pos_", "gammas"))}
    model.load_state_dict(state)
    return model.double()


def inputs_of(gold):
    return {"z": torch.from_numpy(gold["input/z"]), "pos": torch.from_numpy(gold["input/pos"]),
            "batch": torch.from_numpy(gold["input/batch"]), "edges": torch.from_numpy(gold["input/edge_index"])}


def loss_of(output, gold):
    return (output[:, 0] - torch.from_numpy(gold["input/target"])).abs().mean()


@pytest.mark.parametrize("relaxed", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_original_numbers(double, gold, backend, relaxed):
    model, kind = model_of(gold, relaxed, backend=backend), "relaxed" if relaxed else "strict"
    output = model(**inputs_of(gold))
    loss = loss_of(output, gold)
    torch.testing.assert_close(output, torch.from_numpy(gold[f"{kind}_output"]), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(loss, torch.from_numpy(gold[f"{kind}_loss"]), rtol=1e-9, atol=1e-11)
    loss.backward()
    grads = tensors(gold, f"{kind}_grad/")
    # the original's embedding has no padding row
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for name, expected in grads.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()) + 1e-14)
    if not relaxed:
        return
    for name, expected in tensors(gold, "buffers_after/").items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-9, atol=1e-11)
    output = model.eval()(**inputs_of(gold))
    torch.testing.assert_close(output, torch.from_numpy(gold["eval_relaxed_output"]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_switched_off_is_the_strict_model(double, gold, backend):
    model = model_of(gold, True, backend=backend)
    before = copy.deepcopy(model.state_dict())
    model.set_equivariance(False)
    output = model(**inputs_of(gold))
    torch.testing.assert_close(output, torch.from_numpy(gold["strict_output"]), rtol=1e-9, atol=1e-11)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # no statistics of a branch that does not run
    with pytest.raises(ValueError, match="set_equivariance must be False for a strict model"):
        model_of(gold, False).set_equivariance(True)


def test_finds_its_own_edges(double, gold):
    given = inputs_of(gold)
    model = model_of(gold, False)
    output = model(**given)
    edges = given.pop("edges")
    torch.testing.assert_close(model(**given), output)
    torch.testing.assert_close(model(**given, edges=Graph(edges, 35)), output)
    batch = segments(given["batch"], 4)
    torch.testing.assert_close(model(given["z"], given["pos"], batch, edges), output)
    alone = [model(given["z"][given["batch"] == g], given["pos"][given["batch"] == g]) for g in range(4)]
    torch.testing.assert_close(torch.cat(alone), output)


def test_table_of_filters_is_near(double, gold):
    exact, table = model_of(gold, False), model_of(gold, False, filter="table")
    pos = torch.from_numpy(gold["input/pos"]).requires_grad_()
    found = []
    for model in (exact, table):
        output = model(**(inputs_of(gold) | {"pos": pos}))
        (force,) = torch.autograd.grad(output.sum(), pos)
        found.append((output, force))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < 1e-5 * a.norm()


def test_symmetries(double, gold):
    given, model = inputs_of(gold), model_of(gold, True)
    turn, _ = torch.linalg.qr(torch.randn(3, 3))
    moved = given | {"pos": given["pos"] @ turn.T + torch.randn(3)}
    model.set_equivariance(False)
    torch.testing.assert_close(model(**moved), model(**given))
    order = torch.cat([(given["batch"] == g).nonzero()[:, 0].flip(0) for g in range(4)])
    place = torch.empty_like(order)
    place[order] = torch.arange(35)
    shuffled = given | {"z": given["z"][order], "pos": given["pos"][order], "edges": place[given["edges"]]}
    torch.testing.assert_close(model(**shuffled), model(**given))
    model.set_equivariance(True)
    model.eval()
    assert (model(**moved) - model(**given)).abs().max() > 1e-3  # the branch sees absolute positions


@pytest.mark.parametrize("filter", ["exact", "table"])
def test_training_on_forces(double, gold, filter):
    model = model_of(gold, True, filter=filter)
    given = inputs_of(gold)
    pos = given["pos"].requires_grad_()
    target = torch.randn(35, 3)

    def loss():
        (force,) = torch.autograd.grad(-model(**given).sum(), pos, create_graph=True)
        return (force - target).square().mean()

    loss().backward()
    weight = model.interactions[1].mlp[0].weight
    slope, step = weight.grad.clone(), torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-6 * step)
        values.append(loss())
        with torch.no_grad():
            weight.sub_(sign * 1e-6 * step)
    torch.testing.assert_close((values[0] - values[1]) / 2e-6, (slope * step).sum(), rtol=1e-5, atol=1e-9)


def test_gates(gold):
    model = SchNet(16, 16, 3, relaxed=True, gammas="single")
    assert len(model.get_gammas()) == 1
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs_of(gold).items()}
    model(**given).sum().backward()
    assert model.gammas.grad is not None
    with model.probe() as ratios:
        model(**given)
    assert len(ratios) == 3
    assert SchNet(16, 16, 2).get_gammas() == []


def test_recalibrating_leaves_the_branch_alone(double, gold):
    model = model_of(gold, True)
    model(**inputs_of(gold))
    before = copy.deepcopy(model.state_dict())
    given = inputs_of(gold)
    with pytest.raises(ValueError, match="got SchNet, whose norms are all in its branches"):
        recalibrate(model, [(given["z"], given["pos"], given["batch"])])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_readouts(gold):
    given = {k: v.float() if v.is_floating_point() else v for k, v in inputs_of(gold).items()}
    model = SchNet(16, 16, 2)
    total = model(**given)
    model.readout = "mean"
    count = torch.bincount(given["batch"]).float()[:, None]
    torch.testing.assert_close(model(**given), total / count)
    reference = torch.arange(100.0)[:, None]
    shifted = SchNet(16, 16, 2, mean=-2.0, std=3.0, atomref=reference)
    shifted.load_state_dict(model.state_dict(), strict=False)
    sums = torch.zeros(4).index_add(0, given["batch"], given["z"].float())[:, None]
    torch.testing.assert_close(shifted(**given), 3 * total - 2 * count + sums)


def test_one_atom_and_isolated_atoms(double):
    model = SchNet(16, 16, 2)
    alone = model(torch.tensor([6]), torch.zeros(1, 3))
    far = model(torch.tensor([6, 6]), torch.tensor([[0.0, 0, 0], [0, 0, 99]]))
    torch.testing.assert_close(far, 2 * alone)
    pos = torch.zeros(2, 3, requires_grad=True)
    output = model(torch.tensor([6, 1]), pos)  # coincident
    (force,) = torch.autograd.grad(output.sum(), pos)
    assert torch.isfinite(output).all()
    assert torch.isfinite(force).all()
    assert model(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3)).shape[1] == 1


def test_errors():
    model, z, pos = SchNet(16, 16, 1), torch.tensor([6, 1]), torch.randn(2, 3)
    with pytest.raises(ValueError, match="SchNet: z must be atomic numbers below 100, got 119 at atom 1"):
        model(torch.tensor([6, 119]), pos)
    with pytest.raises(ValueError, match="SchNet: z must be .N. int64"):
        model(z.float(), pos)
    with pytest.raises(ValueError, match=r"SchNet: pos must be \[2, 3\]"):
        model(z, pos[:, :2])
    with pytest.raises(ValueError, match="SchNet: edges must be of 2 atoms as pos, got Graph"):
        model(z, pos, edges=Graph(torch.zeros(2, 0, dtype=torch.int64), 3))
    with pytest.raises(ValueError, match="readout must be one of add, sum, mean, got 'max'"):
        SchNet(16, 16, 1, readout="max")
    with pytest.raises(ValueError, match="gammas must be one of layer, single, nn, got 'none'"):
        SchNet(16, 16, 1, relaxed=True, gammas="none")
    with pytest.raises(ValueError, match=r"pos.*finite"):
        model(z, torch.tensor([[0.0, 0, 0], [float("nan"), 0, 0]]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's, at graph breaks
def test_compiles_from_positions():
    """The radius graph is a graph break without a warning."""
    torch.manual_seed(0)
    model = SchNet(hidden_channels=8, num_filters=8, num_interactions=1, num_gaussians=5, cutoff=3.0, relaxed=True)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="eager")
    z, batch = torch.tensor([6, 1, 1, 8] * 3), torch.arange(3).repeat_interleave(4)
    pos = torch.randn(12, 3)
    found, expected = compiled(z, pos, batch), model(z, pos, batch)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    for mine, eager in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, eager.grad)
