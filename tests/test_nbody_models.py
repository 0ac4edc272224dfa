"""Networks for charged bodies beside SEGNN: their symmetries, measured; settings; predictions of a trained run."""

from types import SimpleNamespace

import pytest
import torch

from ace_fast.models import NBodyEGNN, NBodyGNN, nbody_graph
from ace_fast.symmetry import measure
from ace_fast.train import load, options, train
from ace_fast.train.tasks import nbody

OWNER = torch.tensor([0] * 3 + [1] * 4)


@pytest.fixture
def bodies():
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    edges = pairs[(OWNER[pairs[:, 0]] == OWNER[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1])].T
    pos, vel = torch.randn(2, 7, 3, dtype=torch.float64)
    return {"pos": pos, "vel": vel, "charges": torch.randn(7, 1).double(), "edge_index": edges, "batch": OWNER}


def error(model, bodies, group):
    says = lambda **given: model(nbody_graph(SimpleNamespace(**given)))  # noqa: E731
    layouts = {"pos": "position", "vel": "vector", "charges": "scalar"}
    return measure(says, bodies, group, layouts=layouts, output="vector", module=model).relative


def test_egnn_has_the_symmetries_of_space_and_of_identical_bodies(bodies):
    model = NBodyEGNN(2, 8).double()
    assert error(model, bodies, "E(3) x S_n") < 1e-12
    assert model.get_gammas() == [] and not model.relaxed


def test_egnn_tells_bodies_apart_that_are_alike(bodies):
    """A square of equal charges at rest: EGNN moves its corners alike, SymPE does not."""
    corners = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]]).double()
    edges = torch.tensor([[i, j] for i in range(4) for j in range(4) if i != j]).T
    square = nbody_graph(SimpleNamespace(pos=corners, vel=torch.zeros(4, 3).double(), charges=torch.ones(4, 1).double(),
                                         edge_index=edges, batch=torch.zeros(4, dtype=torch.int64)))
    plain, broken = NBodyEGNN(2, 8).double(), NBodyEGNN(2, 8, places=(5, 3)).double()
    sizes = plain(square).norm(dim=1), broken(square).norm(dim=1)
    assert torch.allclose(sizes[0], sizes[0].mean(), rtol=1e-12) and sizes[1].std() > 1e-6 * sizes[1].mean()
    assert error(broken, bodies, "E(3) x S_n") < 1e-12  # speeds that differ leave nothing to draw
    with pytest.raises(ValueError, match="representation must have a row for each of 4 nodes"):
        NBodyEGNN(2, 8, places=(3, 3)).double()(square)


def test_frames_make_the_plain_network_equivariant(bodies):
    model = NBodyGNN(2, 8, frames="E(3)").double()
    assert error(model, bodies, "E(3) x S_n") < 1e-10
    assert error(NBodyGNN(2, 8, frames="SE(3)").double(), bodies, "SE(3)") < 1e-10


def test_the_plain_network_knows_permutations_alone(bodies):
    model = NBodyGNN(2, 8).double()
    assert error(model, bodies, "S_n") < 1e-12
    assert error(model, bodies, "O(3)") > 1e-2 and error(model, bodies, "T(3)") > 1e-2
    graph = nbody_graph(SimpleNamespace(**bodies))
    y = model(graph)
    other = lambda x: SimpleNamespace(**vars(graph) | {"x": x})  # noqa: E731
    changed = other(graph.x * (OWNER == 1)[:, None])
    assert torch.allclose(model(changed)[3:], y[3:], rtol=1e-12)  # graphs do not see each other


def test_a_run_of_another_model_predicts(tmp_path, no_plots, same_threads):
    tiny = {"num_train": 20, "num_valid": 10, "num_test": 10, "steps": 301, "frame_from": 0, "frame_to": 1, "layers": 1,
            "train_samples": 20, "batch_size": 10, "hidden": 9, "rotations": 1, "threads": 1, "epochs": 1,
            "data": str(tmp_path / "data")}
    train(tmp_path / "run", task="nbody", quiet=True, model="egnn", relaxed=False, **tiny)
    predictor = load(tmp_path / "run")
    x, v = torch.randn(2, 2, 5, 3)
    q = torch.ones(2, 5)
    shifted = predictor.predict(x + 1, v, q) - 1  # EGNN alone is equivariant under translations
    assert torch.allclose(shifted, predictor.predict(x, v, q), atol=1e-5)


@pytest.mark.parametrize(("given", "message"), [
    ({"model": "egnn"}, "--relaxed must be off with --model egnn, which has no branches, got it on; pass --strict"),
    ({"model": "gnn", "relaxed": False, "norm": "instance"}, "--norm must be none with --model gnn, got instance"),
    ({"model": "egn"}, "--model must be one of segnn, egnn, .*, got 'egn'"),
    ({"hidden": 9}, "--hidden must be even, got 9"),
])
def test_settings_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        options.make_config(nbody, options.DEFAULT_PRESET, given)
