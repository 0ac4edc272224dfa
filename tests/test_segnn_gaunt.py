"""SEGNN with products on the sphere in the place of Clebsch-Gordan products: symmetry, training, errors."""

import pytest
import torch
from e3nn import o3
from test_segnn import graph_of, model_of, random_batch, transformed

from ace_fast.models import SEGNN
from ace_fast.nn import O3GauntProduct, O3GauntProductSwishGate, O3TensorProduct
from ace_fast.train import options
from ace_fast.train.tasks import nbody, qm9


@pytest.mark.parametrize("name, changes", [("node", {}), ("node", {"norm": "batch"}), ("graph", {}), ("segnn_qm9", {})],
                         ids=str)
def test_is_equivariant(name, changes):
    torch.set_default_dtype(torch.float64)
    model = model_of(SEGNN, name, "auto", product="gaunt", **changes)
    batch, rotation = random_batch(), -o3.rand_matrix()
    plain = model(graph_of(name, batch))
    turned = model(graph_of(name, transformed(batch, rotation)))
    want = plain @ rotation.T if name == "node" else plain
    assert (turned - want).abs().max() < 1e-11 * plain.abs().max() + 1e-13
    assert plain.abs().max() > 0 and all(p.requires_grad for p in model.parameters())


def test_branches_are_those_of_the_other_product():
    torch.set_default_dtype(torch.float64)
    model, graph = model_of(SEGNN, "node", "auto", product="gaunt", relaxed=True), graph_of("node", random_batch())
    relaxed = model(graph)
    model.set_equivariance(False)
    assert (model(graph) - relaxed).abs().max() > 1e-3
    (relaxed.sum() + 0 * model(graph).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_few_steps_of_training_lower_the_loss():
    model, batch = model_of(SEGNN, "node", "auto", product="gaunt"), random_batch(torch.float32)
    graph = graph_of("node", batch)
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=3e-2), []
    for _ in range(10):
        loss = (model(graph) - batch.vel).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("task, facts", [(nbody, {}), (qm9, {"mean": 0.0, "spread": 1.0})])
def test_ace_fast_train_builds_it(task, facts):
    for product, layer in (("gaunt", O3GauntProduct), ("clebsch_gordan", O3TensorProduct)):
        config = options.make_config(task, options.DEFAULT_PRESET, {"product": product, "layers": 1, "hidden": 8})
        model = task.build_model(config, facts)
        assert model.layers[0].product == product and isinstance(model.embedding_layer, layer)


def test_layers_reach_what_they_promise():
    layer = O3GauntProductSwishGate("3x0e+2x1o", "4x0e+3x1o", "1x0e+1x1o")
    assert layer(torch.randn(5, 9), torch.randn(5, 4)).shape == (5, 13)
    assert layer.tp.irreps_in1 == o3.Irreps("4x0e+4x1o") and layer.linear_out.bias.shape == (7,)
    plain = O3GauntProduct("3x0e", "2x0e", channels=5)
    assert plain(torch.randn(2, 7, 3)).shape == (2, 7, 2)
    assert layer(torch.zeros(0, 9), torch.zeros(0, 4)).shape == (0, 13)


@pytest.mark.parametrize("make, message", [
    (lambda: O3GauntProduct("1x0e", "1x1o"), "reachable from 1x0e x 1x0e, got 1o; drop it"),
    (lambda: O3GauntProduct("1x1o", "1x1e", "1x1o"), "got 1e; pass odd_paths=True"),
    (lambda: O3GauntProduct("1x1o", "1x0e", "1x1o", 0), "O3GauntProduct: channels must be at least 1, got 0"),
    (lambda: O3GauntProduct("1x1o", "1x0e", "1x1o")(torch.zeros(1, 3)), r"data_in2 must be \[..., 3\], got None; pass"),
    (lambda: O3GauntProduct("1x1o", "1x1o")(torch.zeros(1, 4)), r"data_in1 must be \[..., 3\], got \[1, 4\]"),
    (lambda: O3GauntProductSwishGate("1x1o", "1x1o", "1x0e"), r"must begin with even scalars \(0e\), got 1x1o"),
    (lambda: model_of(SEGNN, "node", product="cp"), r"product must be one of \('clebsch_gordan', 'gaunt'\), got 'cp'"),
])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_segnn_has_products():
    config = options.make_config(nbody, options.DEFAULT_PRESET, {"model": "gnn", "relaxed": False})
    with pytest.raises(ValueError, match="--product must be clebsch_gordan with --model gnn, got gaunt"):
        nbody.check(config | {"product": "gaunt"})
