"""Groups: axioms, how elements act on every layout, representations of the user, every error."""

import pytest
import torch
from e3nn import o3

from ace_fast import symmetry
from ace_fast.symmetry import act, finite, generated, given, group, layout, product, vectors, wigner
from ace_fast.symmetry.layouts import directions
from ace_fast.symmetry.matrices import alternating, generators, random_o3, random_permutation

SIZES = [3, 0, 4]  # a graph without nodes
NAMES = ("SO(3)", "O(3)", "SE(3)", "E(3)", "T(3)", "S_n", "C_6", "D_4", "p4", "p4m", "E(3) x S_n", "C_4 x C_2")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(g, seed, count=3):
    return g.sample(count, draw(seed), sizes=SIZES if g.nodes == 0 else None, side=6)


def same(a, b):
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None) and (x is None or (x - y).abs().max() < 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_axioms(name):
    g = group(name)
    a, b, c = (sample(g, seed) for seed in range(3))
    one = g.identity(3, sizes=SIZES if g.nodes == 0 else None)
    same(g.compose(g.compose(a, b), c), g.compose(a, g.compose(b, c)))
    same(g.compose(a, one), a)
    same(g.compose(one, a), a)
    same(g.compose(a, g.inverse(a)), one)
    same(g.compose(g.inverse(a), a), one)
    same(sample(g, 0), a)  # the generator's alone
    assert any(x is not None and not torch.equal(x, y) for x, y in zip(a, b, strict=True))


OWNER = torch.tensor([0, 0, 0, 2, 2, 2, 2])
USER = given(group("O(3)"), lambda e: torch.linalg.det(e.matrix)[:, None, None] * e.matrix)
LAYOUTS = {
    "scalar": (layout("scalar").over(0), (7, 2)),
    "irreps": (layout("2x0e + 0o + 2x1o + 1e + 2x2e + 3o").over(0), (7, 2 + 1 + 6 + 3 + 10 + 7)),
    "ir_mul": (symmetry.irreps("2x0o + 3x1o + 2x2o", "ir_mul").over(0), (7, 2 + 9 + 10)),
    "vector": (layout("vector").over(0), (7, 4, 3)),
    "vector neurons": (vectors(2).over(0), (7, 2, 3, 5)),
    "position": (layout("position").over(0), (7, 3)),
    "user": (USER.over(0), (7, 6)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_elements_act_from_the_left(name):
    own, shape = LAYOUTS[name]
    g = group("E(3) x S_n")
    a, b = sample(g, 1), sample(g, 2)
    x = torch.randn(shape, dtype=torch.float64, generator=draw(3))
    twice = act(g, a, act(g, b, x, own, OWNER), own, OWNER)
    once = act(g, g.compose(a, b), x, own, OWNER)
    assert (once - twice).abs().max() < 1e-12 and (once - x).abs().max() > 1e-3
    assert (act(g, g.identity(3, sizes=SIZES), x, own, OWNER) - x).abs().max() < 1e-13


def test_each_graph_is_moved_by_its_own_element():
    g = group("SE(3)")
    a, x = sample(g, 1), torch.randn(7, 3, dtype=torch.float64)
    gold = torch.stack([a.matrix[i] @ p + a.shift[i] for i, p in zip(OWNER, x, strict=True)])
    assert torch.allclose(act(g, a, x, layout("position"), OWNER), gold, rtol=1e-12)
    assert torch.allclose(act(g, a, x[:3], layout("position")), torch.stack(  # a row an element
        [a.matrix[i] @ x[i] + a.shift[i] for i in range(3)]), rtol=1e-12)
    one = g.sample(1, draw())
    assert torch.allclose(act(g, one, x[0], layout("vector")), one.matrix[0] @ x[0])


def test_permutations_of_nodes_edges_and_dense_graphs():
    g = group("S_n")
    a, x = sample(g, 1), torch.randn(7, 2)
    edges = torch.tensor([[0, 3, 4], [2, 5, 3]])
    moved, index = act(g, a, x, layout("scalar").over(0)), act(g, a, edges, layout("index"))
    assert torch.equal(moved[a.permutation], x) and torch.equal(moved[index], x[edges])
    assert not torch.equal(moved, x) and torch.equal(act(g, a, x, layout("scalar")), x)
    five = group("S_5")
    a, dense = five.sample(2, draw(1)), torch.randn(2, 5, 3)
    moved = act(five, a, dense, layout("vector").over(1))
    adjacent = act(five, a, dense @ dense.mT, layout("scalar").over(1, 2))
    assert torch.equal(moved.flatten(0, 1)[a.permutation], dense.flatten(0, 1))
    assert torch.allclose(adjacent, moved @ moved.mT)
    assert torch.equal(act(five, a, dense.mT, layout("scalar").over(-1)), moved.mT)
    counts = torch.bincount(torch.cat([random_permutation([3], draw(i)) * 9 + torch.arange(3) for i in range(300)]))
    assert counts[counts > 0].min() > 70  # each node goes anywhere


def test_images_are_turned_mirrored_and_rolled():
    x = torch.arange(18.0).reshape(2, 3, 3)
    c4 = group("C_4")
    turns = c4.elements()
    for i in range(4):
        element = symmetry.Element(turns.matrix[i : i + 1], number=turns.number[i : i + 1])
        assert torch.equal(act(c4, element, x, symmetry.image()), torch.rot90(x, i, (1, 2)))
    for name, side in (("D_4", 4), ("p4m", 5), ("p4", 4)):
        g, own = group(name), symmetry.image(regular=2)
        a, b = g.sample(3, draw(1), side=side), g.sample(3, draw(2), side=side)
        x = torch.randn(3, 2, len(g.table), side, side)
        twice = act(g, a, act(g, b, x, own), own)
        assert torch.equal(act(g, g.compose(a, b), x, own), twice) and not torch.equal(twice, x)
        assert torch.equal(act(g, g.inverse(a), act(g, a, x, own), own), x)
    rolled = act(group("p4m"), group("p4m").identity()._replace(cell=torch.tensor([[1, 2]])), x, symmetry.image())
    assert torch.equal(rolled, torch.roll(x, (1, 2), (-2, -1)))


def test_matrices_of_irreps():
    g, h = random_o3(2, draw())
    for l in range(5):
        for irrep in (o3.Irrep(l, 1), o3.Irrep(l, -1)):
            assert (wigner(irrep, g) @ wigner(irrep, h) - wigner(irrep, g @ h)).abs().max() < 1e-13
            assert (wigner(irrep, g) - irrep.D_from_matrix(g)).abs().max() < 1e-5  # e3nn's has float32's digits
        turn = torch.matrix_exp(0.3 * generators(1)[1])
        assert (wigner(o3.Irrep(l, 1), turn) - torch.matrix_exp(0.3 * generators(l)[1])).abs().max() < 1e-13
    angle = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: wigner("2e", torch.matrix_exp(t * generators(1)[0])), angle)


def test_haar_measure_of_both_signs():
    q = random_o3(4000, draw())
    assert (q @ q.mT - torch.eye(3)).abs().max() < 1e-14
    assert q.mean(0).abs().max() < 0.04 and torch.linalg.det(q).mean().abs() < 0.05
    assert torch.linalg.det(random_o3(4, draw(), alternate=True)).round().tolist() == [1, -1, 1, -1]
    assert torch.linalg.det(alternating(random_o3(3, draw()), 1)).round().tolist() == [-1, 1, -1]
    assert torch.linalg.det(group("SO(3)").sample(9, draw()).matrix).min() > 0.99


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n != "scalar"])
def test_directions_are_derivatives_of_the_action(name):
    own, shape = LAYOUTS[name]
    g, x, step = group("E(3)"), torch.randn(shape, dtype=torch.float64), 1e-5
    for way, mine in zip(g.directions, directions(g, x, own), strict=True):
        ahead, back = (act(g, g.near(way, s), x, own) for s in (step, -step))
        assert (mine - (ahead - back) / (2 * step)).abs().max() < 1e-8
        assert group("E(3) x S_n").near(way, step).permutation is None


def test_finite_groups_from_matrices_and_tables():
    octahedral = generated(torch.stack([torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]),
                                        torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), -torch.eye(3)]), "O_h")
    assert octahedral.order == 48 and group("D_6").order == 12 and product(group("C_2"), group("C_3")).order == 6
    one = octahedral.elements()
    assert len(one.matrix) == 48 and torch.equal(one.matrix[0], torch.eye(3).double())
    assert group("E(3) x S_n").order is None and group("p4m").order is None


@pytest.mark.parametrize(("call", "message"), [
    (lambda: group("SU(2)"), r"group: name must be one of SO\(3\), .*, got 'SU\(2\)'"),
    (lambda: group("C_0"), "group: name must be one of"),
    (lambda: group("E(3) x SO(3)"), r"E\(3\) x SO\(3\): groups of a product must act on different things"),
    (lambda: group("E(3) x C_4"), "must act on different things.* act on space"),
    (lambda: group("S_n").sample(2), "S_n: sizes must be the nodes of each of 2 graphs, got None"),
    (lambda: group("S_5").sample(1, sizes=[4]), r"S_5: sizes must be 5 nodes of each of 1 graphs, got \[4\]"),
    (lambda: group("p4m").sample(), "p4m: side must be the images' pixels in a row, got None"),
    (lambda: group("O(3)").elements(), r"O\(3\): the group must be finite with a table"),
    (lambda: finite([[0, 1], [1, 1]]), "finite: table must be that of a group, got an element without inverse"),
    (lambda: finite([[1, 0], [0, 1]]), "another identity than element 0"),
    (lambda: finite([[0, 1], [1, 2]]), "products outside the group"),
    (lambda: finite([0, 1]), r"table must be \[n, n\] integers"),
    (lambda: finite([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]),
     "products that are not associative"),
    (lambda: finite([[0, 1], [1, 0]], torch.stack([torch.eye(3), group("C_4").elements().matrix[1]])),
     "must be a homomorphism of finite"),
    (lambda: finite([[0, 1], [1, 0]], torch.zeros(2, 3, 3)), r"matrices must be \[2, 3, 3\] orthogonal"),
    (lambda: generated(torch.ones(1, 3, 3)), r"matrices must be \[m, 3, 3\] orthogonal"),
    (lambda: generated(torch.matrix_exp(generators(1)[:1])), "must generate at most 256 elements"),
    (lambda: given(group("O(3)"), lambda e: e.matrix.mT), r"a homomorphism of O\(3\), got rho\(a b\)"),
    (lambda: given(group("C_3"), lambda e: 2 * e.matrix), r"got rho\(e\) - 1 of size 1"),
    (lambda: given(group("C_3"), lambda e: e.matrix[0]), r"must give \[G, d, d\] matrices for G elements, got \[3, 3"),
    (lambda: layout("vectors"), "layout: a layout must be .* got 'vectors'"),
    (lambda: symmetry.irreps("1o", "ir"), "irreps: order must be"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("name", "own", "shape", "message"), [
    ("O(3)", "1x1o", (1, 4), r"act: axis -1 must have 3 numbers for Layout\(1x1o\), got 4"),
    ("O(3)", "vector", (1, 4), "axis -1 must have 3 numbers"),
    ("O(3)", "vector", (5, 3), "axis 0 must have 2 rows, one an element, got .5, 3.; pass owner"),
    ("O(3)", "image", (2, 4, 4), r"must have a group of quarter turns.*, got O\(3\)"),
    ("C_6", "image", (2, 4, 4), "got C_6; its elements do not map pixels on pixels"),
    ("C_4", "image", (2, 3, 4), "an image must be square under C_4, got 3 x 4"),
    ("C_4 x C_2", "vector", (2, 3), "must be given by matrices under C_4 x C_2"),
    ("S_5", layout("scalar").over(0), (4, 3), r"axis 0 must run over the 10 nodes, got \[4, 3\]"),
])
def test_layouts_that_a_group_cannot_act_on(name, own, shape, message):
    g = group(name)
    with pytest.raises(ValueError, match=message):
        act(g, g.sample(2, draw()), torch.zeros(shape), layout(own))
