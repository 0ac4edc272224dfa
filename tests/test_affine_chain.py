"""affine_chain: the plain chain of batch norms and linear maps, values, gradients, buffers, in every mode."""

import copy

import pytest
import torch
from torch import nn

from ace_fast.functional import relaxed_linear
from ace_fast.nn import affine_chain, moments


def chain(width=3, hidden=8, blocks=3, spectral=False, **options):
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.spectral_norm if spectral else lambda linear, **_: linear
    model = nn.ModuleDict({"first": nn.Linear(width, hidden), "blocks": nn.ModuleList(
        nn.Sequential(nn.BatchNorm1d(hidden, **options), norm(nn.Linear(hidden, hidden), n_power_iterations=5))
        for _ in range(blocks))}).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def plain(model, x):
    p, found = model["first"](x), []
    for block in model["blocks"]:
        p = block(p)
        found.append(p)
    return found


def folded(model, x):
    maps = affine_chain(x, model["first"], model["blocks"])
    return [nn.functional.linear(maps.rows, w, b) for w, b in zip(maps.weights, maps.biases, strict=True)]


def points(n=40, width=3, seed=2):
    """Correlated, away from the origin."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    return draw(n, width) @ draw(width, width) + 3 * draw(width)


def close(mine, gold, tolerance=1e-12):
    assert mine.shape == gold.shape and mine.dtype == gold.dtype
    assert not gold.numel() or (mine - gold).abs().max() <= tolerance * max(gold.abs().max(), 1e-300)


def loss(outputs):
    return sum((p * (1 + i)).sin().mean() + p.square().mean() for i, p in enumerate(outputs))


SETTINGS = {
    "plain": {}, "cumulative": {"momentum": None}, "momentum": {"momentum": 0.3, "eps": 1e-3},
    "no_running_statistics": {"track_running_stats": False}, "no_affine": {"affine": False},
    "spectral": {"spectral": True}, "wide": {"width": 34, "hidden": 24},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_several_steps_equal_the_plain_chain(name):
    """Three steps of SGD in training mode, then evaluation: outputs, gradients (input's too), buffers, parameters."""
    mine = chain(**SETTINGS[name])
    gold = copy.deepcopy(mine)
    width = mine["first"].in_features
    steps = [(function, model, torch.optim.SGD(model.parameters(), 0.05))
             for function, model in ((folded, mine), (plain, gold))]
    for step in range(4):
        x = points(40 + step, width, seed=step)
        if step == 3:
            mine.eval(), gold.eval()
        found = []
        for function, model, optimiser in steps:
            leaf = x.clone().requires_grad_()
            outputs = function(model, leaf)
            optimiser.zero_grad()
            loss(outputs).backward()
            found.append((*outputs, leaf.grad, *(p.grad for p in model.parameters())))
            optimiser.step()
        # gradients of what the norms remove are zero up to rounding: relative to the largest gradient
        scale = max(g.abs().max() for g in found[1][3:])
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            assert (a - b).abs().max() <= 1e-12 * max(b.abs().max(), scale if i >= 3 else 0), (step, i)
        for (key, a), b in zip(mine.state_dict().items(), gold.state_dict().values(), strict=True):
            assert a.dtype == b.dtype and (a - b).abs().max() <= 1e-12 * max(1, b.abs().max()), key


def test_norms_in_different_modes():
    mine = chain()
    folded(mine, points())  # statistics that are not the first
    mine["blocks"][1].eval()
    gold = copy.deepcopy(mine)
    for a, b in zip(folded(mine, points(seed=5)), plain(gold, points(seed=5)), strict=True):
        close(a, b)
    for a, b in zip(mine.buffers(), gold.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_evaluation_takes_the_input_as_it_is():
    model, x = chain().eval(), points()
    maps = affine_chain(x, model["first"], model["blocks"])
    assert maps.rows is x
    close(affine_chain(x[:1], model["first"], model["blocks"]).weights[2], maps.weights[2])  # one row is enough


def test_second_derivatives():
    mine = chain(blocks=2)
    x = points(12).requires_grad_()
    found = []
    for function, model in ((folded, mine), (plain, copy.deepcopy(mine))):
        (g,) = torch.autograd.grad(loss(function(model, x)), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), [x, *model.parameters()]))
    scale = max(g.abs().max() for g in found[1])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-11 * scale


@pytest.mark.parametrize("kind", ["far_away", "planar", "repeated"])
def test_float32_is_as_good_as_the_plain_chain(kind):
    """Far from the origin, in a plane (a variance that is almost nothing), with constant and repeated columns."""
    x = points(200)
    x = {"far_away": x + 300, "planar": x - x @ torch.ones(3, 3).double() / 3, "repeated": x[:, [0, 0, 1]]}[kind]
    model = chain()
    x = x.float().double()
    single = copy.deepcopy(model).float()
    gold = plain(copy.deepcopy(model).float().double(), x)
    eager = plain(copy.deepcopy(single), x.float())
    mine = folded(single, x.float())
    for a, b, c in zip(mine, eager, gold, strict=True):
        size, eps = c.abs().max(), torch.finfo(torch.float32).eps
        assert a.dtype == torch.float32
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 16 * eps * size


def test_statistics_of_more_than_this_batch():
    """Half of the rows with the moments of all, as after a sum over processes."""
    model, x = chain(), points()
    gold = plain(copy.deepcopy(model), x)
    maps = affine_chain(x[:15], model["first"], model["blocks"], of_batch=moments(x))
    for weight, bias, p in zip(maps.weights, maps.biases, gold, strict=True):
        close(nn.functional.linear(maps.rows, weight, bias), p[:15])
    whole = moments(x)
    assert whole.count == 40 and whole.mean.dtype == torch.float64
    close(whole.covariance, torch.cov(x.t(), correction=0))


def test_fits_relaxed_linear():
    model, x = chain(), points()
    base, gamma = torch.randn(40, 8).double(), torch.tensor(0.3).double()
    gold = base + gamma * plain(copy.deepcopy(model), x)[1]
    maps = affine_chain(x, model["first"], model["blocks"])
    close(relaxed_linear(maps.rows, maps.weights[1], maps.biases[1], gamma, base), gold)


def test_no_rows():
    mine = chain()
    gold = copy.deepcopy(mine)
    x = points()[:0]
    for a, b in zip(folded(mine, x), plain(gold, x), strict=True):
        assert a.shape == b.shape == (0, 8)
    for a, b in zip(mine.buffers(), gold.buffers(), strict=True):
        assert torch.equal(a, b)


def test_without_biases_and_without_blocks():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(3, 4, bias=False), "blocks": nn.ModuleList(
        [nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6, bias=False))])}).double()
    close(folded(copy.deepcopy(model), points())[0], plain(model, points())[0])
    assert affine_chain(points(), model["first"], []).weights == []


def test_autocast_and_half_precision_do_not_reach_the_statistics():
    model = chain().float()
    x = points().float()
    gold = affine_chain(x, model["first"], model["blocks"])
    with torch.autocast("cpu", torch.bfloat16):
        mine = affine_chain(x, model["first"], model["blocks"])
    assert torch.equal(mine.weights[2], gold.weights[2]) and mine.biases[2].dtype == torch.float32
    assert affine_chain(x.bfloat16(), model["first"], model["blocks"]).rows.dtype == torch.float32


def test_full_graph_compile():
    model, x = chain(hidden=4, blocks=1), points()
    expected = folded(copy.deepcopy(model), x)
    torch._dynamo.reset()
    for a, b in zip(torch.compile(lambda x: folded(model, x), fullgraph=True, backend="aot_eager")(x), expected,
                    strict=True):
        close(a, b)


def test_one_row_raises_as_torch_does():
    model = chain()
    with pytest.raises(ValueError) as theirs:
        plain(model, points()[:1])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as mine:
        affine_chain(points()[:1], model["first"], model["blocks"])
    assert str(mine.value) == str(theirs.value)


@pytest.mark.parametrize(("change", "message"), [
    ({"x": torch.zeros(5, 4)}, r"x must be \[N, 3\], got \[5, 4\]"),
    ({"x": [1.0]}, r"x must be \[N, 3\], got list"),
    ({"first": nn.ReLU()}, "first must be a Linear, got ReLU"),
    ({"blocks": [(nn.Linear(8, 8), nn.BatchNorm1d(8))]},
     r"blocks\[0\] must be \(BatchNorm1d, Linear\), got \['Linear', 'BatchNorm1d'\]"),
    ({"blocks": [(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.SiLU())]},
     r"blocks\[0\] must be \(BatchNorm1d, Linear\), got"),
    ({"blocks": [(nn.BatchNorm1d(8), nn.Linear(8, 4)), (nn.BatchNorm1d(8), nn.Linear(8, 8))]},
     r"blocks\[1\] must take 4 channels, got 8 and 8"),
])
def test_errors(change, message):
    arguments = {"x": torch.zeros(5, 3), "first": nn.Linear(3, 8), "blocks": []} | change
    with pytest.raises(ValueError, match=f"affine_chain: {message}"):
        affine_chain(**arguments)
