"""Weights of degrees and channels in products on the sphere: values, derivatives, sums over rows, errors."""

import pytest
import torch

from ace_fast.functional import sphere_product, sphere_table
from ace_fast.kernels.sphere_product.op import weighted_outside, weighted_sphere_product_bwd

DOUBLE = {"dtype": torch.float64}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def close(mine, gold, bound=1e-12):
    assert (mine - gold).abs().max().item() <= bound * max(gold.abs().max().item(), 1e-300)


def weights_of(table, *channels, seed=2):
    """Weights of inputs of these channels, and of the result."""
    degrees = [*table.lmax_in, table.lmax_out]
    return draw(sum((n + 1) * c for n, c in zip(degrees, [*channels, max(channels)], strict=True)), seed=seed)


SHAPES = {  # degrees, degree of the result, rows and channels of the inputs
    "channels": ((2, 2), 2, [(5, 19)] * 2),
    "rows": ((1, 2), 3, [(21, 2), (1, 2)]),
    "one_channel_for_all": ((2, 1), 1, [(7, 20), (7, 1)]),
    "scalars": ((0, 0), 0, [(3, 1)] * 2),
}


def spread(weights, degree, layout):
    """[(L + 1) C] as factors of a row."""
    each = enumerate(weights.view(degree + 1, -1))
    if layout == "ir_mul":
        return torch.cat([w.repeat(2 * n + 1) for n, w in each])
    return torch.cat([w.repeat_interleave(2 * n + 1) for n, w in each])


@pytest.mark.parametrize("form", ["sparse", "mirrored", "separable", "dense"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_weights_multiply_degrees(shapes, layout, form):
    degrees, out, shapes = SHAPES[shapes]
    table, channels = sphere_table(degrees, out, form=form), [c for _, c in shapes]
    x, y = (draw(rows, c * (n + 1) ** 2, seed=n) for (rows, c), n in zip(shapes, degrees, strict=True))
    w = weights_of(table, *channels)
    counts = [(n + 1) * c for n, c in zip((*degrees, out), (*channels, max(channels)), strict=True)]
    by = [spread(part, n, layout) for part, n in zip(w.split(counts), (*degrees, out), strict=True)]
    run = lambda x, y, w: sphere_product(x, y, table=table, weights=w, layout=layout)  # noqa: E731
    gold = sphere_product(x * by[0], y * by[1], table=table, layout=layout) * by[2]
    outside = weighted_outside(x, y, *[None] * 4, w, *table.on(x.device), layout == "ir_mul", "auto")
    close(run(x, y, w), gold)
    close(outside, gold)
    inputs = [t.requires_grad_() for t in (x, y, w)]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_third_derivatives_with_weights_and_powers():
    table = sphere_table((1, 1), 1, powers=(2, 1))
    inputs = [t.requires_grad_() for t in (draw(3, 8), draw(3, 8, seed=1), weights_of(table, 2, 2))]

    def slope(x, y, w):
        z = sphere_product(x, y, table=table, weights=w)
        return torch.autograd.grad(z.square().sum(), (x, y, w), create_graph=True)

    assert torch.autograd.gradgradcheck(slope, inputs, fast_mode=True)


def test_gradients_of_weights_do_not_depend_on_threads():
    table = sphere_table((2, 2), 2)
    x, y = draw(5001, 9 * 17).float(), draw(5001, 9 * 17, seed=1).float()
    w, before, found = weights_of(table, 17, 17).float().requires_grad_(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += torch.autograd.grad(sphere_product(x, y, table=table, weights=w).sin().sum(), w)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    w = w.detach().double().requires_grad_()
    gold, = torch.autograd.grad(sphere_product(x.double(), y.double(), table=table, weights=w).sin().sum(), w)
    assert (found[0] - gold).abs().max() < 2e-6 * gold.abs().max()


def test_autocast_runs_in_float32():
    table = sphere_table((2, 2), 2)
    x, w = draw(3, 9).bfloat16(), weights_of(table, 1, 1).float()
    gold = sphere_product(x.float(), x.float(), table=table, weights=w)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sphere_product(x, x, table=table, weights=w), gold)
        outside = weighted_outside(x, x, *[None] * 4, w, *table.on(x.device), False, "auto")
    assert outside.dtype == torch.float32
    close(outside, gold, 1e-6)


def test_errors_of_weights():
    x, table = draw(3, 9), sphere_table((2, 2), 2)
    for wrong in (torch.zeros(8), torch.zeros(1, 9), torch.zeros(9, dtype=torch.float64).float()):
        with pytest.raises(ValueError, match=r"weights must be torch.float64 \[9\] on cpu, degrees by"):
            sphere_product(x, x, table=table, weights=wrong)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda w: sphere_product(x, x, table=table, weights=w), (draw(9),), (draw(9),))
    with pytest.raises(ValueError, match=r"sphere_product: weights must be torch.float64 \[9\] on cpu, degrees by"):
        weighted_outside(x, x, *[None] * 4, torch.zeros(8), *table.on(x.device), False, "auto")
    needs = [True] * 6
    with pytest.raises(ValueError, match="needs must be 7 bools, the last for the weights"):
        weighted_sphere_product_bwd(x, x, x, *[None] * 4, draw(9), *table.on(x.device), False, needs, "auto")
