"""Products of fields on the sphere and products by factors: forms, powers, brackets, layouts, shared inputs, errors."""

import math

import numpy as np
import pytest
import torch
from e3nn import o3
from rounding import assert_rounded_once

from ace_fast.backend import available
from ace_fast.functional import CPTable, cp_product, sphere_product, sphere_table
from ace_fast.kernels.sphere_product import grids
from ace_fast.kernels.sphere_product.cases import SMALL
from ace_fast.kernels.sphere_product.tables import FORMS, Points, PointTable

DOUBLE = {"dtype": torch.float64}
PRESENT = [name for name, why in available("cpu")["sphere_product"].items() if not why]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def close(mine, gold, bound=1e-12):
    assert (mine - gold).abs().max().item() <= bound * max(gold.abs().max().item(), 1e-300)


def gaunt(l1: int, l2: int, l3: int) -> torch.Tensor:
    """Integrals of three real spherical harmonics, by Wigner and Eckart."""
    c = o3.wigner_3j(l1, l2, l3, **DOUBLE)
    return math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * math.pi)) * c[l1, l2, l3] * c


@pytest.mark.parametrize("form", FORMS)
def test_product_of_two_is_the_gaunt_product(form):
    x, y = draw(4, 9), draw(4, 16, seed=1)
    gold = torch.cat([sum(torch.einsum("ijk,zi,zj->zk", gaunt(l1, l2, l3), x[:, l1**2:(l1 + 1)**2],
                                       y[:, l2**2:(l2 + 1)**2]) for l1 in range(3) for l2 in range(4)
                          if abs(l1 - l2) <= l3 <= l1 + l2) for l3 in range(6)], 1)
    close(sphere_product(x, y, table=sphere_table((2, 3), 5, form=form)), gold)


@pytest.mark.parametrize("form", FORMS)
def test_bracket_has_the_odd_paths_alone(form):
    """Each triple is a constant times wigner_3j, not zero just where l1 + l2 + l3 is odd and l3 is from 1 on."""
    basis = torch.eye(9, **DOUBLE)
    m, m_dense = (sphere_product(basis.repeat_interleave(9, 0), basis.repeat(9, 1), table=sphere_table(
        (2, 2), 3, form=one, bracket=True)).view(9, 9, 16) for one in (form, "dense"))
    close(m, m_dense)
    for l1 in range(3):
        for l2 in range(3):
            for l3 in range(4):
                found = m[l1**2:(l1 + 1)**2, l2**2:(l2 + 1)**2, l3**2:(l3 + 1)**2]
                if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 and min(l1, l2, l3) > 0:
                    c = o3.wigner_3j(l1, l2, l3, **DOUBLE)
                    kappa = (found * c).sum()
                    assert kappa.abs() > 0.5
                    close(found, kappa * c)
                    if (l1, l2, l3) == (1, 1, 1):  # r . (a x b) times sqrt(3 / 4 pi), of the vectors a and b
                        close(kappa**2, torch.tensor(4.5 / math.pi, **DOUBLE))
                else:
                    assert found.abs().max() < 1e-13


@pytest.mark.parametrize("grid", ["gauss", "lebedev", "auto", grids.gauss(6, 12)])
def test_every_grid_gives_the_same(grid):
    x, y = draw(3, 2 * 9), draw(3, 2 * 9, seed=1)
    gold = sphere_product(x, y, table=sphere_table((2, 2), 2))
    close(sphere_product(x, y, table=sphere_table((2, 2), 2, grid=grid)), gold)


SHAPES = [((19, 1), (19, 1)), ((35, 3), (35, 3)), ((3, 21), (3, 21)), ((33, 3), (1, 3)), ((2, 21), (2, 1)),
          ((19, 5), (19, 1)), ((3, 21), (1, 1))]


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_terms_of_equal_degrees_are_the_product(degree, shapes, layout):
    """Their kernel is unrolled; the values, both derivatives and float32 are those of the grid."""
    inputs = [draw(rows, channels * (degree + 1) ** 2, seed=n) for n, (rows, channels) in enumerate(shapes)]
    found = []
    for form in ("sparse", "mirrored"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        table = sphere_table((degree, degree), degree, form=form)
        z = sphere_product(*leaves, table=table, layout=layout)
        first = torch.autograd.grad((z * draw(*z.shape, seed=3)).sum(), leaves, create_graph=True)
        alone, = torch.autograd.grad((z * draw(*z.shape, seed=3)).sum(), leaves[1], create_graph=True)
        second = torch.autograd.grad(sum((g * draw(*g.shape, seed=4)).sum() for g in first), leaves)
        low = sphere_product(*(x.float() for x in inputs), table=table, layout=layout)
        close(low.double(), z, 1e-6)
        found.append((z, *first, alone, *second))
    for mine, gold in zip(*found, strict=True):
        close(mine, gold)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("channels", [64, 65])
def test_large_results_are_those_of_their_parts(channels, layout):
    """A result of more than four megabytes is written past the caches where its rows are aligned."""
    rows = 4_500_000 // (4 * 9 * channels)
    x, y = draw(rows, 9 * channels).float(), draw(rows, 9 * channels, seed=1).float()
    table = sphere_table((2, 2), 2)
    whole = sphere_product(x, y, table=table, layout=layout)
    parts = [sphere_product(a, b, table=table, layout=layout) for a, b in zip(x.chunk(2), y.chunk(2), strict=True)]
    assert torch.equal(whole, torch.cat(parts))


def test_a_list_of_equal_degrees_is_not_taken_for_the_product():
    """Coefficients that are not symmetric, or terms that are missing, are computed as they are given."""
    table = sphere_table((2, 2), 2, form="sparse")
    flat, grid, slots = table.on("cpu")
    lists = [flat[slot.offset:slot.offset + table.points.numel(slot)].view(2, -1) for slot in table.slots]
    other = [lists[0].clone(), *lists[1:]]
    other[0][1] *= 1 + draw(grid[1]).abs()
    few = [one[:, 1:].contiguous() for one in lists]
    x, y = draw(19, 9).requires_grad_(), draw(19, 9, seed=1).requires_grad_()
    for changed in (other, few):
        made = PointTable(Points(3, changed[0].shape[1], 1, 1), [(2, 1, 0, one) for one in changed])
        mine, gold = (sphere_product(x, y, table=made, backend=backend) for backend in ("cpu", "reference"))
        close(mine, gold)
        assert (mine - sphere_product(x, y, table=table)).abs().max() > 1e-3
        for a, b in zip(*(torch.autograd.grad(z.square().sum(), (x, y)) for z in (mine, gold)), strict=True):
            close(a, b)


def test_powers_are_repeated_inputs():
    x, y = draw(3, 2 * 4), draw(3, 2 * 9, seed=1)
    many = sphere_product(x, x, y, x, table=sphere_table((1, 1, 2, 1), 3))
    close(sphere_product(x, y, table=sphere_table((1, 2), 3, powers=(3, 1))), many)
    for leaf in (x, y):
        leaf.requires_grad_()
    few = sphere_table((1, 2), 2, powers=(2, 2))
    # the third derivative of a square is zero, and every order has one factor more: four inputs in the last
    assert torch.autograd.gradgradcheck(lambda x, y: sphere_product(x, y, table=few), (x, y), fast_mode=True)
    first, = torch.autograd.grad(sphere_product(x, y, table=few).square().sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    third, = torch.autograd.grad(second.sum(), y)
    assert third.isfinite().all() and third.abs().max() > 0


def test_layouts_and_shared_inputs():
    """One row and one channel for all are what their copies give, gradients too."""
    x, y, w = draw(5, 7 * 9), draw(5, 4, seed=1), draw(1, 7, seed=2)
    wide = [x, y.view(5, 1, 4)[..., [0]].expand(5, 7, 1), w.expand(5, 7)]
    wide[1] = torch.cat([wide[1].reshape(5, 7), y[:, None, 1:].expand(5, 7, 3).reshape(5, 21)], 1)
    table = sphere_table((2, 1, 0), 2)
    narrow = [t.clone().requires_grad_() for t in (x, y, w)]
    copies = [t.clone().requires_grad_() for t in wide]
    z, gold = sphere_product(*narrow, table=table), sphere_product(*copies, table=table)
    close(z, gold)
    c = draw(*z.shape, seed=3)
    g, g_gold = (torch.autograd.grad((c * out).sum(), leaves) for out, leaves in ((z, narrow), (gold, copies)))
    close(g[0], g_gold[0])
    close(g[1], torch.cat([g_gold[1][:, :7].sum(1, True), g_gold[1][:, 7:].view(5, 7, 3).sum(1)], 1))
    close(g[2], g_gold[2].sum(0, True))
    pieces = lambda t: [t[:, 7 * n * n:7 * (n + 1) ** 2].view(5, 7, -1) for n in range(3)]  # noqa: E731
    ir_mul = torch.cat([p.mT for p in pieces(x)], 1).reshape(5, -1)
    other = sphere_product(ir_mul, y, w, table=table, layout="ir_mul").view(5, 9, 7)
    close(other, torch.cat([p.mT for p in pieces(z)], 1))


@pytest.mark.parametrize("shape", [(0, 9), (3, 0)])
def test_no_rows_or_channels(shape):
    x, y = torch.zeros(shape, requires_grad=True), torch.zeros(shape[0], 9, requires_grad=True)
    z = sphere_product(x, y, table=sphere_table((2, 2), 1))
    assert z.shape == (shape[0], 4 if shape[1] else 0)
    z.sum().backward()
    assert x.grad.shape == x.shape and y.grad.shape == y.shape and not y.grad.any()


def test_degree_zero():
    x, y = draw(3, 2), draw(3, 2, seed=1)
    close(sphere_product(x, y, table=sphere_table((0, 0), 0)), x * y / math.sqrt(4 * math.pi))


@pytest.mark.parametrize("degrees", [(0, 0), (2, 0), (0, 2)])
@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_the_bracket_with_a_constant_is_zero(degrees, form):
    x, y = (draw(3, 2 * (n + 1) ** 2, seed=n).requires_grad_() for n in degrees)
    z = sphere_product(x, y, table=sphere_table(degrees, max(degrees), form=form, bracket=True))
    assert z.shape == (3, 2 * (max(degrees) + 1) ** 2) and not z.any()
    assert not any(g.any() for g in torch.autograd.grad(z.sum(), (x, y)))


@pytest.mark.parametrize("lmax_in, lmax_out, powers, message", [
    ((2,), 2, (1.5,), "powers must be an integer of at least 1, got 1.5"),
    ((2,), 2, (0,), "powers must be an integer of at least 1, got 0"),
    ((2,), 2, (True,), "powers must be an integer of at least 1, got True"),
    ((2.5,), 2, None, "lmax_in must be an integer of at least 0, got 2.5"),
    ((-1,), 2, None, "lmax_in must be an integer of at least 0, got -1"),
    (2, 2, None, "lmax_in must be a sequence, an integer for each input, got 2"),
    ((2,), 1.5, None, "lmax_out must be an integer of at least 0, got 1.5"),
])
def test_degrees_and_powers_that_are_no_integers(lmax_in, lmax_out, powers, message):
    with pytest.raises(ValueError, match=f"sphere_table: {message}"):
        sphere_table(lmax_in, lmax_out, powers=powers)


def test_integers_of_any_type():
    assert sphere_table(np.array([2]), np.int64(2), powers=[np.int32(2)]) is sphere_table((2,), 2, powers=(2,))
    assert sphere_table((2,), 2, grid=[3, 5]) is sphere_table((2,), 2, grid=grids.gauss(3, 5))


def test_errors():
    x = torch.zeros(3, 18)
    table = sphere_table((2, 2), 2)
    with pytest.raises(ValueError, match=r"2 x 2 kept to 2 must have at least 4 x 7 points .*, got 3 x 7"):
        sphere_table((2, 2), 2, grid=grids.gauss(3, 7))
    with pytest.raises(ValueError, match=r"bracket of degrees 2 x 2 kept to 2 must have at least 3 x 6 .*, got 3 x 5"):
        sphere_table((2, 2), 2, grid=grids.gauss(3, 5), bracket=True)
    sphere_table((2, 2), 2, grid=grids.gauss(3, 6), bracket=True)
    with pytest.raises(ValueError, match="form must be 'auto' or one of"):
        sphere_table((2, 2), 2, form="fast")
    with pytest.raises(ValueError, match="form must be 'dense' where a grid is given"):
        sphere_table((2, 2), 2, grid="lebedev", form="separable")
    with pytest.raises(ValueError, match="grid must be one of .* a Grid or .rings, points a ring., got 'square'"):
        sphere_table((2, 2), 2, grid="square")
    with pytest.raises(ValueError, match="two inputs of power 1 for the bracket"):
        sphere_table((2,), 2, powers=(2,), bracket=True)
    with pytest.raises(ValueError, match="powers must be one for each of 1 inputs"):
        sphere_table((2,), 2, powers=(1, 1))
    with pytest.raises(ValueError, match="lmax_in must be the degrees of one input or more"):
        sphere_table((), 2)
    with pytest.raises(ValueError, match="at most 6 inputs, got 7; give equal inputs once"):
        sphere_table((1,) * 7, 1)
    with pytest.raises(ValueError, match="xs must be 2 inputs, as its table says, got 1"):
        sphere_product(x, table=table)
    with pytest.raises(ValueError, match="xs must be one input or more"):
        sphere_product(table=table)
    with pytest.raises(ValueError, match="table must be a PointTable, got str"):
        sphere_product(x, x, table="gaunt")
    with pytest.raises(ValueError, match="layout must be one of"):
        sphere_product(x, x, table=table, layout="channels")
    with pytest.raises(ValueError, match=r"x2 must be \[Z, channels of 9 components\], degrees 0..2, got \[3, 8\]"):
        sphere_product(x, x[:, :8], table=table)
    with pytest.raises(ValueError, match="x2 must be of 3 rows like x1, or of one for all, got 2 rows"):
        sphere_product(x, x[:2], table=table)
    with pytest.raises(ValueError, match="x2 must be of 2 channels like those before, or of one for all, got 3 ch"):
        sphere_product(x, torch.zeros(3, 27), table=table)
    with pytest.raises(ValueError, match="x2 must be torch.float32"):
        sphere_product(x, x.double(), table=table)
    with pytest.raises(ValueError, match="PointTable: matrix 0 must be"):
        type(table)(table.points, [(2, 1, 0, torch.zeros(5))])


def test_forward_mode_raises():
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: sphere_product(x, x, table=sphere_table((1, 1), 1)), (draw(2, 4),), (draw(2, 4),))


def test_a_table_outlives_the_transform_in_which_it_is_made():
    made = []
    torch.func.grad(lambda x: (made.append(sphere_table((4, 1), 2, form="dense")), x.sum())[1])(draw(3))
    assert sphere_table((4, 1), 2, form="dense") is made[0]
    assert not torch._C._functorch.is_functorch_wrapped_tensor(made[0].on("cpu")[0])


def factors(rank: int, *dims: int) -> list[torch.Tensor]:
    return [draw(d, rank, seed=9 + n) for n, d in enumerate(dims)]


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize(("mode", "shape"), [("uuu", (3,)), ("uuu", (5, 3)), ("uvu", (3, 2)), ("uvu", (5, 3, 2)),
                                             ("uvu", (3, 1)), ("uvu", (5, 3, 1)), ("uuu", None), ("uvu", None)])
def test_cp_product_is_its_formula(mode, shape, layout):
    a, b, c = factors(7, 4, 9, 4)
    v = {"uuu": 3, "uvu": 1 if shape is None else shape[-1]}[mode]
    x, y = draw(5, 9, 3), draw(5, 4, v, seed=1)  # [Z, d, channels]
    weight = None if shape is None else draw(*shape, seed=2).requires_grad_()
    turned = lambda t: [t[:, n * n:(n + 1) ** 2].mT.reshape(5, -1) for n in range(3)]  # noqa: E731
    rows = lambda t: t.reshape(5, -1) if layout == "ir_mul" else torch.cat(turned(t), 1)  # noqa: E731
    ones = torch.ones(3, v if mode == "uvu" else 1, **DOUBLE)
    w = ones if weight is None else weight if mode == "uvu" else weight[..., None]
    m = torch.einsum("ir,jr,kr->ijk", b, c, a)
    pairs = "zju" if mode == "uuu" else "zjv"
    gold = torch.einsum(f"ijk,ziu,{pairs},{'z' * (w.dim() == 3)}uv->zku", m, x, y, w)
    mine = cp_product(rows(x), rows(y), weight, table=CPTable(a, b, c), mode=mode, layout=layout)
    close(mine, rows(gold))
    if weight is not None:
        cotangent = draw(*mine.shape, seed=3)
        g, g_gold = (torch.autograd.grad((cotangent * out).sum(), weight)[0] for out in (mine, rows(gold)))
        close(g, g_gold)


def test_trainable_factors_have_gradients():
    leaves = [f.requires_grad_() for f in factors(5, 4, 4, 4)]
    x, y = draw(3, 8), draw(3, 8, seed=1)
    product = lambda *f: cp_product(x, y, draw(2, seed=2), table=CPTable(*f))  # noqa: E731
    assert torch.autograd.gradcheck(product, leaves)
    frozen = cp_product(x, y, draw(2, seed=2), table=CPTable(*(f.detach() for f in leaves)))
    close(frozen, product(*leaves))


@pytest.mark.parametrize("trainable", [False, True])
def test_cp_inputs_are_checked(trainable):
    table = CPTable(*(f.requires_grad_(trainable) for f in factors(5, 4, 4, 4)))
    x, wide = draw(3, 8), draw(3, 12)
    with pytest.raises(ValueError, match="must be float32 or float64, got torch.int64"):
        cp_product(x.long(), x.long(), table=table)
    with pytest.raises(ValueError, match="y must be torch.float64 on cpu like x, got torch.float32 on cpu"):
        cp_product(x, x.float(), table=table)
    with pytest.raises(ValueError, match="weight must be torch.float64 on cpu like x, got torch.float32 on cpu"):
        cp_product(x, wide, torch.zeros(2, 3), table=table, mode="uvu")
    with pytest.raises(ValueError, match="y must be of 1 rows like x, or of one for all, got 3 rows"):
        cp_product(x[:1], x, table=table)
    with pytest.raises(ValueError, match="y must be of 3 rows like x, or of one for all, got 2 rows"):
        cp_product(x, wide[:2], draw(3, 2, 3), table=table, mode="uvu")
    with pytest.raises(ValueError, match="layout must be one of"):
        cp_product(x, x, table=table, layout="channels")
    with pytest.raises(ValueError, match="backend must be one of .*, got 'fast'"):
        cp_product(x, x, table=table, backend="fast")


def test_cp_errors():
    table = CPTable(*factors(5, 4, 4, 4))
    x, y = draw(3, 8), draw(3, 12)
    with pytest.raises(ValueError, match=r"rank must be from 1 to 16, with which every map is exact, got 17"):
        CPTable(*factors(17, 4, 4, 4))
    with pytest.raises(ValueError, match=r"in1 must be \[\(L\+1\)\^2, R\], components of degrees 0..L, got \[5, 5\]"):
        CPTable(*factors(5, 4, 5, 4))
    with pytest.raises(ValueError, match="in2 must be of rank 5 like out"):
        CPTable(*factors(5, 4, 4), draw(4, 6))
    with pytest.raises(ValueError, match="y must be of 2 channels like x, or of one"):
        cp_product(x, y, table=table)
    with pytest.raises(ValueError, match="mode must be one of"):
        cp_product(x, x, table=table, mode="uvw")
    with pytest.raises(ValueError, match=r"weight must be \[2, 3\] or \[3, 2, 3\] \(mode 'uvu'\), got None"):
        cp_product(x, y, table=table, mode="uvu")
    with pytest.raises(ValueError, match=r"weight must be \[2\] or \[3, 2\] \(mode 'uuu'\), got \[3\]"):
        cp_product(x, x, draw(3), table=table)
    with pytest.raises(ValueError, match="table must be a CPTable, got PointTable"):
        cp_product(x, x, table=sphere_table((1, 1), 1))
    with pytest.raises(ValueError, match=r"x must be \[Z, channels of 4 components\], got \[3, 7\]"):
        cp_product(x[:, :7], x, table=table)


def test_form_is_chosen_by_degree():
    found = [FORMS[sphere_table((n, n), n).points.form] for n in (2, 4, 5, 6, 11)]
    assert found == ["sparse", "sparse", "sparse", "mirrored", "separable"]
    assert FORMS[sphere_table((5, 5), 4).points.form] == FORMS[sphere_table((5, 4), 5).points.form] == "mirrored"
    assert FORMS[sphere_table((1,), 1, powers=(2,)).points.form] == "mirrored"
    with pytest.raises(ValueError, match="form must be one for many inputs or powers, got 'sparse'"):
        sphere_table((1,), 1, powers=(2,), form="sparse")


def test_bfloat16_is_for_gpus_and_the_reference():
    x, y = draw(4, 2 * 9).float(), draw(4, 2 * 9, seed=1).float()
    table = sphere_table((2, 2), 2)
    low = sphere_product(x.bfloat16(), y.bfloat16(), table=table, backend="reference")
    assert low.dtype == torch.bfloat16
    close(low.float(), sphere_product(x, y, table=table), 2e-2)
    with pytest.raises(ValueError, match="x1 must be float32 or float64 on the CPU, got torch.bfloat16; cast it"):
        sphere_product(x.bfloat16(), y.bfloat16(), table=table)


@pytest.mark.parametrize("case", [
    case for case in SMALL if case.name in ("odd", "tiles", "tiles_ir_mul") and "weighted" not in repr(case)], ids=repr)
@pytest.mark.parametrize("backend", [n for n in PRESENT if n != "cpu"])
def test_bfloat16_is_computed_in_float32_and_rounded_once(backend, case):
    assert_rounded_once(case, backend)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("rows, channels", [(1800, 1), (40, 50), (40, 64)])
@pytest.mark.parametrize("lmax_in, lmax_out, form", [
    ((2, 2), 2, "mirrored"), ((4, 4), 4, "mirrored"), ((6, 6), 6, "mirrored"), ((7, 7), 7, "mirrored"),
    ((1, 2), 2, "mirrored"), ((6, 6), 6, "separable"), ((9, 9), 9, "separable"),
])
@pytest.mark.parametrize("backend", [n for n in PRESENT if n == "cuda"])
def test_many_columns(backend, lmax_in, lmax_out, form, rows, channels, layout):
    """A block takes one tile of columns after the other; g is what one input needs for its gradient, or both."""
    table = sphere_table(lmax_in, lmax_out, form=form)
    inputs = [draw(rows, channels * (n + 1) ** 2, seed=n) for n in lmax_in]
    cotangent = draw(rows, channels * (lmax_out + 1) ** 2, seed=3)
    found = []
    for dtype, name in ((torch.float64, "cpu"), (torch.float32, backend)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        z = sphere_product(*leaves, table=table, layout=layout, backend=name)
        both = torch.autograd.grad(z, leaves, cotangent.to(dtype), retain_graph=True)
        one, = torch.autograd.grad(z, leaves[1:], cotangent.to(dtype))
        found.append((z, *both, one))
    for gold, mine in zip(*found, strict=True):
        close(mine.double(), gold, 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_threads_do_not_change_a_bit(form):
    """A filter that all rows share sums its gradient over blocks that threads share out."""
    x, y = draw(3000, 9).float(), draw(1, 9, seed=1).float().requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            z = sphere_product(x, y, table=sphere_table((2, 2), 2, form=form))
            found.append((z.detach(), *torch.autograd.grad(z.square().sum(), y)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
