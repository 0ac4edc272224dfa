"""SymPE: equivariance in distribution, distinct outputs for symmetric inputs, none for others, draws, wrong input."""

import itertools

import pytest
import torch
from e3nn import o3
from operator_calls import Calls
from torch import nn

import ace_fast
from ace_fast.symmetry import GraphSymmetries, SymPE, act, generated, group, image, product, refined_scores
from ace_fast.symmetry.breakers import rotations_are_free

PTR = torch.tensor([0, 4, 4, 7])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def both_ways(edges):
    edges = torch.tensor(edges).T
    return torch.cat([edges, edges.flip(0)], 1)


def ring(n, start=0):
    return [(start + i, start + (i + 1) % n) for i in range(n)]


SQUARE = both_ways(ring(4))
BENZENE = both_ways([*ring(6), *((i, i + 6) for i in range(6))])  # carbons, then hydrogens
COPIES = both_ways([(0, 1), (1, 2), (3, 4), (4, 5)])  # two paths of three nodes
CASES = {"square": (SQUARE, 4, 8), "benzene": (BENZENE, 12, 12), "copies": (COPIES, 6, 8)}


def matrix(edges, n):
    found = torch.zeros(n, n, dtype=torch.int64)
    found[edges[0], edges[1]] = 1
    return found


def frequencies(rows):
    """How often each row occurs: {row: count}."""
    found, counts = rows.unique(dim=0, return_counts=True)
    return {tuple(row): int(c) for row, c in zip(found.tolist(), counts, strict=True)}


def assert_same_distribution(one, two):
    """Counts of two samples of equal size: chi-squared of their difference, five standard deviations."""
    keys = one.keys() | two.keys()
    pairs = [(one.get(k, 0), two.get(k, 0)) for k in keys]
    chi, freedom = sum((a - b) ** 2 / (a + b) for a, b in pairs), len(keys) - 1
    assert chi < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("exact", [False, True], ids=["scores", "symmetries"])
def test_nodes_that_are_alike_are_told_apart(name, exact):
    edges, n, _ = CASES[name]
    pe = SymPE("S_n", (n, 3), generator=seeded())
    h = torch.ones(n, 2)
    given = GraphSymmetries(edges, num_nodes=n) if exact else refined_scores(ace_fast.Graph(edges, n))
    y = pe(h, inputs=given)
    assert torch.equal(y[:, :2], h) and len(y[:, 2:].unique(dim=0)) == n
    assert len(pe(h, inputs=given, samples=8)[..., 2:].flatten(1).unique(dim=0)) > 1


def test_nodes_that_differ_always_have_the_same_vector():
    edges = both_ways([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (1, 3), (2, 6), (6, 7), (0, 6)])
    graph = ace_fast.Graph(edges, 8)
    pe, h = SymPE("S_n", (8, 3), generator=seeded()), torch.ones(8, 1)
    for given in (refined_scores(graph), GraphSymmetries(edges, num_nodes=8)):
        y = pe(h, inputs=given, samples=20)
        assert torch.equal(y, y[:1].expand_as(y))
    assert GraphSymmetries(edges, num_nodes=8).log_count.item() == 0


@pytest.mark.parametrize("name", CASES)
def test_exact_draws_are_uniform_among_automorphisms(name):
    edges, n, count = CASES[name]
    symmetries, adjacency = GraphSymmetries(edges, num_nodes=n), matrix(edges, n)
    assert symmetries.log_count.exp().item() == pytest.approx(count)
    moved = symmetries.automorphisms(200 * count, seeded())
    assert all(torch.equal(adjacency[g][:, g], adjacency) for g in moved.unique(dim=0))
    found = frequencies(moved)
    assert len(found) == count
    assert_same_distribution(found, dict.fromkeys(found, 200))


def test_the_canonical_graph_does_not_depend_on_the_order_of_the_nodes():
    """Ranks of permuted nodes are distributed as the permuted ranks; regular graphs that colours cannot tell apart."""
    edges = both_ways([*ring(4, 3), *ring(3)])
    n, permutation = 7, torch.randperm(7)
    for own in (edges, permutation[edges]):
        symmetries = GraphSymmetries(own, num_nodes=n)
        assert symmetries.log_count.exp().item() == pytest.approx(48)
        _, order = symmetries.ranks(3, seeded())
        found = {matrix(own, n)[o][:, o].numpy().tobytes() for o in order}
        assert len(found) == 1
        if own is edges:
            first = found
    assert found == first


def test_equal_scores_are_equivariant_in_distribution():
    score, permutation = torch.tensor([1.0, 0, 1, 1, 0]), torch.tensor([2, 0, 4, 1, 3])
    pe = SymPE("S_n", (5, 2))
    _, rank = pe(score[:, None], inputs=score, samples=3000, generator=seeded(1), return_element=True)
    _, other = pe(score[:, None], inputs=score[permutation], samples=3000, generator=seeded(2), return_element=True)
    found = frequencies(rank[:, permutation])
    assert len(found) == 12
    assert_same_distribution(found, frequencies(other))


def test_colors_and_labels_restrict_automorphisms():
    colors = torch.tensor([0, 1, 0, 1])
    assert GraphSymmetries(SQUARE, num_nodes=4, colors=colors).log_count.exp().item() == pytest.approx(4)
    labels = torch.tensor([0, 1, 0, 1] * 2)  # of opposite sides
    assert GraphSymmetries(SQUARE, num_nodes=4, edge_colors=labels).log_count.exp().item() == pytest.approx(4)
    s = refined_scores(ace_fast.Graph(SQUARE, 4), colors)
    assert s[0] == s[2] and s[1] == s[3] and s[0] != s[1]
    path = ace_fast.Graph(both_ways([(i, i + 1) for i in range(6)]), 7)
    s = refined_scores(path, rounds=1)
    assert s[0] == s[6] and s[1] == s[3] and s[0] != s[1]
    assert len(refined_scores(path).unique()) == 4


def test_ragged_batches_with_empty_graphs():
    edges = torch.cat([SQUARE, 4 + both_ways([(0, 1), (1, 2)])], 1)
    symmetries = GraphSymmetries(edges, PTR)
    torch.testing.assert_close(symmetries.log_count.exp(), torch.tensor([8.0, 1, 2], dtype=torch.float64))
    pe = SymPE("S_n", (4, 2), nn.Linear(1, 1), generator=seeded())
    for y in (pe(torch.ones(7, 1), PTR, samples=4), SymPE("S_n", (4, 2), generator=seeded())(
            torch.ones(7, 1), PTR, symmetries, samples=4)):
        assert y.shape == (4, 7, 3) and y.isfinite().all()
        assert all(len(draw[part].unique(dim=0)) == n for draw in y for part, n in ((slice(4), 4), (slice(4, 7), 3)))
    assert pe(torch.ones(0, 1), torch.tensor([0, 0])).shape == (0, 3)


def test_gradients_reach_the_vectors_and_the_features():
    pe = SymPE("S_n", (4, 2), nn.Linear(3, 1), generator=seeded())
    h = torch.randn(7, 3, requires_grad=True)
    pe(h, PTR).square().sum().backward()
    assert pe.parts[0].v.grad.abs().sum() > 0 and torch.equal(h.grad, 2 * h.detach())
    assert pe.canonicalizers[0].weight.grad is None  # ranks have no derivative


# Rotations.


def frames(vectors, name, samples, seed):
    pe = SymPE(name, "3x1o + 1x0o")
    return pe(torch.zeros(1, 1), inputs=vectors, samples=samples, generator=seeded(seed), return_element=True)[1][:, 0]


RANKS = {
    "generic": [[1.0, 0.5, 0], [0, 1, 0.2], [0.3, 0, 1]],
    "coplanar": [[1.0, 0, 0], [0, 1, 0], [1, 1, 0]],
    "collinear": [[0.0, 0, 2], [0, 0, -1], [0, 0, 0]],
    "coincident": [[0.0, 0, 0]] * 3,
}


@pytest.mark.parametrize("name", ["SO(3)", "O(3)"])
@pytest.mark.parametrize("rank", RANKS)
def test_frames_are_equivariant_in_distribution(name, rank):
    """First and second moments of g times the frames, and of the frames of turned vectors."""
    vectors = torch.tensor([RANKS[rank]])
    g = group(name).sample(1, seeded(3)).matrix.float()
    one = g @ frames(vectors, name, 2000, 1)
    two = frames(vectors @ g.mT, name, 2000, 2)
    for a, b in ((one, two), (one[:, :, :, None, None] * one[:, None, None], two[:, :, :, None, None]
                              * two[:, None, None])):
        assert (a.mean(0) - b.mean(0)).abs().max() < 5 * 0.75 * (2 / 2000) ** 0.5
    spread = two.std(0).max().item()
    settled = rank == "generic" or rank == "coplanar" and name == "SO(3)"
    assert spread < 1e-5 if settled else spread > 0.5
    if rank == "collinear":
        torch.testing.assert_close(two[:, :, 0], two[:1, :, 0].expand(2000, 3), atol=1e-5, rtol=0)
    if name == "SO(3)":
        torch.testing.assert_close(torch.linalg.det(two), torch.ones(2000))


def test_vectors_turn_with_the_frame_and_repeat_over_the_rows():
    pe = SymPE("SE(3)", "2x1o + 1x2e", generator=seeded())
    x, vectors = torch.randn(7, 3), torch.randn(3, 2, 3)
    y, frame = pe(x, PTR, vectors, return_element=True)
    assert y.shape == (7, 14) and torch.equal(y[:, :3], x)
    first = pe.parts[0].v[:3] @ frame[0].mT
    torch.testing.assert_close(y[:4, 3:6], first[[0] * 4])


def test_which_irreps_are_free():
    free = {"SO(3)": ["2x1o", "1x1o + 1x2e", "1x3o", "2x2e"], "O(3)": ["3x1o", "2x1o + 1x0o", "2x1o + 1x1e", "2x3o"]}
    bound = {"SO(3)": ["1x1o", "1x2e", "9x0e", ""], "O(3)": ["2x1o", "2x1o + 4x0e", "3x1e", "1x1o", "4x2e"]}
    for name in free:
        assert all(rotations_are_free(o3.Irreps(text), name == "O(3)") for text in free[name])
        assert not any(rotations_are_free(o3.Irreps(text), name == "O(3)") for text in bound[name])


# Finite groups.


class Activations(nn.Module):
    """Equivariant activations of an image: its correlations with a filter under every element."""

    def __init__(self, name, side):
        super().__init__()
        self.cells = group(name).cells
        part = SymPE(name, (1, side, side)).parts[0]
        filters = torch.randn(1, side, side, generator=seeded(9))
        element = part.element(torch.arange(part.order) * part.side**2)
        self.filters = act(group(name), element, filters.expand(part.order, -1, -1, -1), image())[:, 0]

    def forward(self, x):
        if not self.cells:
            return torch.einsum("bpq,hpq->bh", x[:, 0], self.filters)
        spectrum = torch.fft.rfft2(x[:, :1]) * torch.fft.rfft2(self.filters).conj()
        return torch.fft.irfft2(spectrum, s=x.shape[-2:])  # [B, h, p], the filter taken to pixel p


@pytest.mark.parametrize("name", ["D_4", "p4m", "p4", "C_2"])
def test_images_without_symmetry_have_one_answer_that_moves_with_them(name):
    side, g = 4, group(name)
    pe = SymPE(name, (2, side, side), Activations(name, side), tolerance=1e-5, generator=seeded())
    x = torch.randn(6, 3, side, side)
    y = pe(x, samples=3)
    assert y.shape == (3, 6, 5, side, side) and torch.equal(y, y[:1].expand_as(y))
    element = g.sample(6, seeded(5), side=side)
    torch.testing.assert_close(pe(act(g, element, x, image())), act(g, element, y[0], image()))


def test_images_with_symmetry_are_equivariant_in_distribution():
    side, g = 3, group("p4m")
    pe = SymPE("p4m", (1, side, side), Activations("p4m", side), tolerance=1e-5)
    x = torch.zeros(1, 1, side, side)
    x[0, 0, 1] = 1.0  # a stripe: its own mirrors and rolls along it
    element = g.sample(1, seeded(6), side=side)
    y = pe(x, samples=1500, generator=seeded(1))[:, 0]
    moved = pe(act(g, element, x, image()), samples=1500, generator=seeded(2))[:, 0]
    expected = act(g, element, y, image())
    assert len(y.unique(dim=0)) == 12  # two mirrors and three rolls
    assert_same_distribution(*(frequencies((1000 * z.flatten(1)).round()) for z in (expected, moved)))


def test_cyclic_groups_on_irreps_and_on_numbers_of_elements():
    g = group("C_5")
    pe = SymPE(g, "2x1o", generator=seeded())
    a = torch.eye(5)[[1, 3]]
    y, chosen = pe(torch.zeros(2, 1), inputs=a, return_element=True)
    assert chosen.tolist() == [[1, 3]]
    v = pe.parts[0].v
    turned = [(v.view(2, 3) @ g.matrices[n].float().mT).flatten() for n in (1, 3)]
    torch.testing.assert_close(y[:, 1:], torch.stack(turned))
    regular = SymPE("D_3", 4, generator=seeded())
    d = group("D_3")
    y = regular(torch.zeros(1, 1, 6), inputs=torch.eye(6)[[2]])
    assert y.shape == (1, 5, 6)
    for h in range(6):
        assert torch.equal(y[0, 1:, d.table[2, h]], regular.parts[0].v[:, h])
    rows = pe(torch.zeros(7, 1), PTR, torch.eye(5)[:3])  # a vector for each graph's rows
    assert rows.shape == (7, 7) and torch.equal(rows[0], rows[3]) and not torch.equal(rows[3], rows[4])


@pytest.mark.parametrize("name", ["C_4", "p4m"])
def test_straight_through_has_the_gradient_of_the_mean(name):
    side = 3
    pe = SymPE(name, (2, side, side), tie="straight_through").double()
    part, g = pe.parts[0], group(name)
    a = torch.randn(2, part.order * part.side**2, dtype=torch.float64, requires_grad=True)
    x = torch.zeros(2, 1, side, side, dtype=torch.float64)
    y = pe(x, inputs=a, generator=seeded())
    hard = SymPE(name, (2, side, side)).double()
    hard.load_state_dict(pe.state_dict())
    torch.testing.assert_close(y, hard(x, inputs=a, generator=seeded()))
    every = part.element(torch.arange(a.shape[1]))
    turned = act(g, every, part.v.expand(a.shape[1], *part.v.shape), image())
    mean = torch.tensordot(torch.softmax(a, 1), turned, 1)
    direction = torch.randn_like(mean)
    mine = torch.autograd.grad((y[:, 1:] * direction).sum(), a)[0]
    torch.testing.assert_close(mine, torch.autograd.grad((mean * direction).sum(), a)[0])


def test_equal_activations_are_chosen_equally_often():
    pe = SymPE("C_6", "2x1o")
    a = torch.tensor([[1.0, 2, 2, 0, 2, -1]])
    _, chosen = pe(torch.zeros(1, 1), inputs=a, samples=3000, generator=seeded(), return_element=True)
    found = frequencies(chosen)
    assert found.keys() == {(1,), (2,), (4,)}
    assert_same_distribution(found, dict.fromkeys(found, 1000))


# Products, modes, what goes wrong.


def test_products_break_one_symmetry_after_the_other():
    """Four points of a square: a turn and an order; scores see the turned vectors, so the frame orders the points."""
    pos = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]])
    heads = lambda x: x.new_zeros(1, 2, 3), lambda x: (x[:, :3] * x[:, 3:6]).sum(1)  # noqa: E731
    pe = SymPE("SO(3) x S_n", ("2x1o", (4, 2)), heads)
    y, elements = pe(pos, torch.tensor([0, 4]), generator=seeded(), return_element=True)
    assert y.shape == (4, 11) and len(elements) == 2
    assert len(y[:, 9:].unique(dim=0)) == 4
    more = pe(pos, torch.tensor([0, 4]), generator=seeded(), samples=2)
    assert more.shape == (2, 4, 11) and not torch.equal(more[0], more[1])
    named = SymPE(group("E(3) x S_n"), ("3x1o", (4, 2)))
    assert [type(part).__name__ for part in named.parts] == ["Rotations", "Permutations"]


def test_products_are_split_into_the_groups_they_are_made_of():
    """Not by their names, which are the user's; the same product has the same factors by name and as an object."""
    about_x = generated(torch.tensor([[[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]]), "C_4")
    pe = SymPE(product(about_x, group("S_n")), ("2x1o", (4, 2)))
    assert pe.parts[0].group is about_x
    assert [type(part).__name__ for part in pe.parts] == ["Finite", "Permutations"]
    y = SymPE(product(group("S_n"), generated(-torch.eye(3)[None], "foo")), ((4, 2), "1x1o"))
    assert y.name == "S_n x foo"
    for two in ("C_4 x C_2", group("C_4 x C_2"), product(group("C_4"), group("C_2"))):
        assert [part.group.name for part in SymPE(two, (3, 2)).parts] == ["C_4", "C_2"]
    three = group("C_4 x C_2 x S_n").factors
    assert [one.name for one in three] == ["C_4", "C_2", "S_n"] and not about_x.factors


def test_draws_depend_on_the_generator_alone():
    pe, h = SymPE("S_n", (4, 2)), torch.ones(7, 1)
    one, two = (pe(h, PTR, h, generator=seeded(4), samples=3) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one[0], one[1])
    with pytest.raises(ValueError, match="SymPE: generator must be a torch.Generator in deterministic mode"):
        pe(h, PTR, h)
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(1)
    assert pe(h, PTR, h).shape == (7, 3)


@pytest.mark.parametrize("name", ["S_n", "SO(3)", "C_4"])
def test_nan_predictions_show(name):
    given = {"S_n": torch.tensor([[0.0], [torch.nan]]), "SO(3)": torch.full((2, 2, 3), torch.nan),
             "C_4": torch.full((2, 4), torch.nan)}[name]
    given[0] = torch.rand_like(given[0])
    representation = (4, 2) if name == "S_n" else "2x1o"
    y = SymPE(name, representation)(torch.ones(2, 1), inputs=given, generator=seeded())
    assert y[0].isfinite().all() and y[1, 1:].isnan().all() and y[1, 0] == 1


def test_adds_few_calls_to_a_forward_pass():
    """A network of EGNN makes more than ten times the operator calls."""
    pe = SymPE("S_n", (4, 2), nn.Linear(1, 1), generator=seeded())
    with Calls() as calls:
        pe(torch.ones(7, 1), PTR, samples=8)
    assert len(calls.own) == 2  # a sort for all draws, and the vectors
    frames_ = SymPE("O(3)", "3x1o", generator=seeded())
    with Calls() as calls:
        frames_(torch.ones(7, 1), PTR, torch.randn(3, 3, 3), samples=8)
    assert len(calls.own) == 1


@pytest.mark.parametrize("arguments, message", [
    (("U(1)", (4, 2)), "group: name must be one of"),
    (("T(3)", "2x1o"), r"group must have rotations, permutations or a table, got T\(3\); subtract the centre"),
    (("S_n", (4, 2), None, "softmax"), "tie must be one of uniform, straight_through, got 'softmax'"),
    (("S_n", (4, 2), None, "straight_through"), "tie must be 'uniform' under S_n, got 'straight_through'"),
    (("S_n", "2x1o"), r"representation must be \(most nodes of a graph, channels\) under S_n, got '2x1o'"),
    (("S_n", (0, 2)), r"representation must be \(most nodes of a graph, channels\)"),
    (("SO(3)", (4, 2, 3, 3)), "representation must be irreps under"),
    (("SO(3)", "1x1o"), r"changed by every element of SO\(3\) but the identity, got 1x1o, which is not; take 2x1o"),
    (("O(3)", "2x1o"), r"changed by every element of O\(3\) but the identity, got 2x1o"),
    (("C_4", "3x0e"), "changed by every element of C_4 but the identity, got 3x0e, which is not"),
    (("p4m", (1, 2, 2)), r"changed by every element of p4m but the identity, got \(1, 2, 2\)"),
    (("p4m", (1, 4, 5)), r"must be a square image under p4m, got \(1, 4, 5\)"),
    (("p4m", "2x1o"), r"must be an image \(channels, pixels, pixels\) under p4m"),
    (("C_6", (1, 4, 4)), "an image must have a group of quarter turns"),
    (("S_n x O(3)", (4, 2, 1)), "representation must be a tuple of 2, one for each factor, got 3"),
    (("S_n", (4, 2), None, "uniform", -1.0), "tolerance must be 0 or more, and finite, got -1.0"),
])
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SymPE(*arguments)


@pytest.mark.parametrize("name, representation, call, message", [
    ("S_n", (2, 2), {"ptr": PTR}, "a row for each of 4 nodes, those of the largest graph, got 2; take a larger table"),
    ("S_n", (9, 2), {"inputs": torch.zeros(7, 2)}, r"give scores \[7\] or \[7, 1\], one for each node, got \[7, 2\]"),
    ("S_n", (9, 2), {"inputs": "x"}, "must give scores .* got str"),
    ("S_n", (9, 2), {"ptr": torch.tensor([0, 8])}, "ptr must be ascending from 0 to 7"),
    ("S_n", (9, 2), {"ptr": torch.tensor([0, 7]), "inputs": GraphSymmetries(SQUARE, num_nodes=4)},
     "ptr must be that of the GraphSymmetries, got another one"),
    ("SO(3)", "2x1o", {"inputs": torch.zeros(7, 1, 3)}, r"must give 2 vectors \[7, 2, 3\] or more for each set"),
    ("O(3)", "3x1o", {"inputs": torch.zeros(7, 2, 3)}, r"must give 3 vectors \[7, 3, 3\] or more for each set"),
    ("C_4", "2x1o", {"inputs": torch.zeros(7, 5)}, r"activations \[7, 4\], one for each element of C_4, got \[7, 5\]"),
    ("p4", (1, 3, 3), {"inputs": torch.zeros(7, 4)}, r"activations \[7, 4, 3, 3\], one for each element of p4, got"),
    ("C_4", (1, 3, 3), {"inputs": torch.zeros(7, 4)}, r"x must be \[B, F, 3, 3\] beside representation \[1, 3, 3\]"),
    ("S_n", (9, 2), {"samples": 0}, "samples must be 1 or more, or None, got 0"),
    ("S_n x C_2", ((9, 2), "2x1o"), {"inputs": (None,)}, "inputs must be 2, one for each factor of S_n x C_2, got 1"),
])
def test_wrong_calls(name, representation, call, message):
    call = {"ptr": None, "inputs": torch.zeros(7), "generator": seeded()} | call
    with pytest.raises(ValueError, match=message):
        SymPE(name, representation)(torch.zeros(7, 1), **call)


@pytest.mark.parametrize("call, message", [
    ({"edge_index": SQUARE}, "one of ptr and num_nodes must be given, got neither"),
    ({"edge_index": SQUARE, "ptr": torch.tensor([0, 2, 4])}, "edges must stay in their graph, got one from graph"),
    ({"edge_index": SQUARE, "num_nodes": 4, "colors": torch.zeros(4)}, r"colors must be int64 \[4\], got torch.f"),
    ({"edge_index": SQUARE, "num_nodes": 4, "edge_colors": torch.zeros(3).long()}, r"edge_colors must be int64 \[8\]"),
    ({"edge_index": SQUARE, "num_nodes": 4, "budget": 1},
     r"settled by budget=1 refinements, got one of 4 nodes that is not; raise budget, .* \(graph 0\)"),
    ({"edge_index": SQUARE, "num_nodes": 3}, "Graph: edge_index must lie in 0..2, got 3"),
])
def test_wrong_graphs(call, message):
    with pytest.raises(ValueError, match=message):
        GraphSymmetries(**call)


@pytest.mark.parametrize("call, message", [
    ({"rounds": -1}, "rounds must be 0 or more, got -1"),
    ({"colors": torch.zeros(3).long()}, r"colors must be int64 \[4\], got torch.int64 \[3\]"),
])
def test_wrong_scores(call, message):
    with pytest.raises(ValueError, match=f"refined_scores: {message}"):
        refined_scores(ace_fast.Graph(SQUARE, 4), **call)
    with pytest.raises(ValueError, match="must be of one set of nodes"):
        refined_scores(ace_fast.Graph(torch.tensor([[0], [1]]), (1, 2)))


def test_every_order_of_identical_nodes():
    pe = SymPE("S_n", (3, 2))
    _, rank = pe(torch.ones(3, 1), inputs=torch.zeros(3), samples=1200, generator=seeded(), return_element=True)
    found = frequencies(rank)
    assert found.keys() == set(itertools.permutations(range(3)))
    assert_same_distribution(found, dict.fromkeys(found, 200))
