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


@pytest.mark.parametrize("task, norm, output", [("node", "none", "1x1o"), ("node", "batch", "1x1e"),
                                                ("graph", "instance", "1x0e")])
def test_pseudo_vectors_are_as_with_the_other_product(task, norm, output):
    torch.set_default_dtype(torch.float64)
    sizes = "2x1o+1x0e", "4x0e+3x1o+3x1e", output, "1x0e+1x1o", "1x0e+1x1o", 2, norm, "avg", task, "2x0e"
    model, other = (SEGNN(*sizes, product=product) for product in ("gaunt", "clebsch_gordan"))
    batch, rotation, hidden = random_batch(), -o3.rand_matrix(), []
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, inputs, x: hidden.append(x))
    plain, turned = (model(graph_of("node", b)) for b in (batch, transformed(batch, rotation)))
    assert other(graph_of("node", batch)).shape == plain.shape
    for x, y, irreps in ((plain, turned, o3.Irreps(output)), *((*pair, model.hidden_irreps)
                                                               for pair in zip(hidden[:2], hidden[2:], strict=True))):
        want = x @ irreps.D_from_matrix(rotation).T
        assert x.abs().max() > 0 and (y - want).abs().max() < 1e-11 * x.abs().max() + 1e-13
    # pseudo-vectors come about, and vectors come from them: v x (v x r)
    vectors, odd = model.hidden_irreps.slices()[1:]
    assert hidden[0][:, odd].abs().max() > 1e-3
    x = torch.randn(4, model.hidden_irreps.dim, requires_grad=True)
    y = model.layers[0].update_layer_2(x, torch.randn(4, 4))[:, vectors]
    assert torch.autograd.grad(y.square().sum(), x)[0][:, odd].abs().max() > 1e-3


@pytest.mark.parametrize("irreps", [
    ("16x0e+8x1o", "8x0e+8x1o+8x2e", "1x0e+1x1o+1x2e"), ("8x0e+8x1o+8x1e", "9x0e+6x1o+6x1e", "1x0e+1x1o"),
    ("32x0e+32x1o", "1x1o", "1x0e+1x1o"), ("24x0e+5x1o", "24x0e+5x1o", None), ("64x0e+64x1o", "1x0e", "2x0e+2x1o")])
def test_both_products_start_at_the_same_scale(irreps):
    squares = {}
    for layer in (O3GauntProduct, O3TensorProduct):
        drawn = [layer(*irreps) for _ in range(60)]
        xs = torch.randn(200, drawn[0].irreps_in1.dim), torch.randn(200, drawn[0].irreps_in2.dim)
        xs = xs if irreps[2] else xs[:1]
        with torch.no_grad():
            found = torch.stack([tp(*xs).square() for tp in drawn])  # [draw, row, component]
        squares[layer] = torch.stack([found[..., s].mean() for s in drawn[0].irreps_out.slices()])
    assert (squares[O3GauntProduct] * 3 - 1).abs().max() < 0.3 > (squares[O3TensorProduct] * 3 - 1).abs().max()


@pytest.mark.parametrize("layers", [4, 8])
def test_both_products_start_networks_at_the_same_scale(layers):
    batch, outputs, hidden = random_batch(torch.float32), {}, {}
    graph = graph_of("node", batch)
    for product in ("gaunt", "clebsch_gordan"):
        outputs[product], hidden[product] = [], []
        for seed in range(8):
            torch.manual_seed(seed)
            model = SEGNN("2x1o+1x0e", "32x0e+32x1o", "1x1o", "1x0e+1x1o", "1x0e+1x1o", layers, task="node",
                          additional_message_irreps="2x0e", product=product)
            for layer in (model.embedding_layer, *model.layers):
                layer.register_forward_hook(lambda *call, seen=hidden[product]: seen.append(call[-1].std()))
            with torch.no_grad():
                outputs[product].append(model(graph).std())
    outputs = {product: torch.stack(values) for product, values in outputs.items()}
    ratio = torch.stack(hidden["gaunt"]) / torch.stack(hidden["clebsch_gordan"])
    assert 0.6 < ratio.min() and ratio.max() < 1.6
    for values in outputs.values():
        assert 0.01 < values.min() and values.max() < 0.6
    means = {product: values.log().mean().exp() for product, values in outputs.items()}
    assert 0.3 < means["gaunt"] / means["clebsch_gordan"] < 3


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
    assert [O3GauntProduct(f"{n}x0e", "4x0e").tp.irreps_in1.dim for n in (3, 9, 64)] == [4, 9, 32]
    assert plain(torch.randn(2, 7, 3)).shape == (2, 7, 2)
    assert layer(torch.zeros(0, 9), torch.zeros(0, 4)).shape == (0, 13)


@pytest.mark.parametrize("make, message", [
    (lambda: O3GauntProduct("1x0e", "1x1o"), "O3GauntProduct: .* reachable from 1x0e x 1x0e, got 1x1o; drop it or"),
    (lambda: O3GauntProduct("1x1o", "1x1e", "1x1o", odd_paths=False), "got 1e; pass odd_paths=True"),
    (lambda: SEGNN("1x0e", "2x0e+2x3o", "1x0e", "1x0e+1x1o", "1x0e+1x1o", 1, product="gaunt"),
     "O3GauntProduct: every slice of irreps_out must be reachable .*, got 2x3o; drop it or raise the degrees of irr"),
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
