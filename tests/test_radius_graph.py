"""radius_graph: against brute force with explicit images, crystals, molecules, caps, wrong values, compilation."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from ace_fast import Graph
from ace_fast.backend import available
from ace_fast.functional import edge_vectors, radius_graph
from ace_fast.kernels.radius_graph import bins, reference
from ace_fast.kernels.radius_graph.cases import LARGE, SHEARED, SMALL
from ace_fast.kernels.radius_graph.op import radius_graph_op

QM9 = Path(__file__).parents[2] / "shared" / "data" / "qm9.npz"
BACKENDS = [name for name, reason in available("cpu")["radius_graph"].items() if not reason]
NATIVE = [name for name in BACKENDS if name != "triton"]  # interpreted, it takes milliseconds an atom
DTYPES = [torch.float32, torch.float64]
EVERY = (True, True, True)


def brute(pos, r, cell=None, pbc=EVERY, loop=False, most=None) -> list[tuple]:
    """(target, source, S1, S2, S3) of one graph, sorted: all pairs and all images in float64, nothing wrapped."""
    x = np.asarray(pos, dtype=np.float64)
    shifts = np.zeros((1, 3), dtype=int)
    moved = np.zeros((1, 3))
    if cell is not None and any(pbc) and len(x):
        rows = np.asarray(cell, dtype=np.float64)[list(pbc)]
        inverse = np.linalg.pinv(rows)
        fraction, height = x @ inverse, 1 / np.linalg.norm(inverse, axis=0)
        most_images = np.floor(np.ptp(fraction, axis=0) + r / height).astype(int) + 1
        numbers = np.array(list(itertools.product(*(range(-m, m + 1) for m in most_images))))
        shifts = np.zeros((len(numbers), 3), dtype=int)
        shifts[:, list(pbc)] = numbers
        moved = numbers @ rows
    found = []
    for target in range(len(x)):
        vectors = x[:, None] + moved - x[target]  # [source, image, 3]
        square = (vectors**2).sum(-1)
        near = [(square[j, s], j, *shifts[s].tolist()) for j, s in np.argwhere(square < r * r).tolist()
                if loop or j != target or shifts[s].any()]
        near = sorted(near)[:most]
        found += sorted((target, *edge[1:]) for edge in near)
    return found


def listed(found) -> list[tuple]:
    """What radius_graph returned as `brute` has it."""
    if isinstance(found, torch.Tensor):
        found = found, torch.zeros(found.shape[1], 3, dtype=torch.int32)
    edges, shifts = found
    assert edges.dtype == torch.int64 and shifts.dtype == torch.int32
    return [(t, s, *n) for (s, t), n in zip(edges.t().tolist(), shifts.tolist(), strict=True)]


def cell_of(angle: float = 0.6) -> torch.Tensor:
    """A random triclinic cell of about 2 x 3 x 4."""
    return (torch.diag(torch.tensor([2.0, 3.0, 4.0])) + angle * torch.randn(3, 3)).double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pbc", [EVERY, (True, True, False), (False, True, False), (False, False, False)], ids=str)
def test_random_cells(backend, dtype, pbc):
    """The cutoff is below, about and above the heights of the cell; atoms lie outside of it."""
    few = backend == "triton"
    for atoms, r in ((3, 1.1),) if few else ((5, 1.1), (4, 2.6), (3, 5.5)):
        cell, pos = cell_of().to(dtype), (4 * torch.randn(atoms, 3)).to(dtype)
        found = radius_graph(pos, r, cell=cell, pbc=pbc, backend=backend)
        assert listed(found) == brute(pos, r, cell, pbc)
        vectors = edge_vectors(pos.double(), found[0], shifts=found[1], cell=cell.double())
        assert (vectors.norm(dim=1) < r + 1e-9).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loop", [False, True])
def test_open_systems(backend, dtype, loop):
    for atoms, r in ((12, 0.9),) if backend == "triton" else ((1, 1.0), (60, 1.5), (300, 0.7)):
        pos = (2 * torch.randn(atoms, 3)).to(dtype)
        assert listed(radius_graph(pos, r, loop=loop, backend=backend)) == brute(pos, r, loop=loop)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("shape", [(9.0, 9.0, 9.0), (60.0, 3.0, 3.0), (0.0, 30.0, 30.0), (300.0,) * 3], ids=str)
def test_many_bins(backend, shape):
    """Boxes, needles, sheets, gas; open and periodic."""
    pos = torch.rand(150, 3) * torch.tensor(shape)
    assert listed(radius_graph(pos, 1.6, backend=backend)) == brute(pos, 1.6)
    cell = torch.diag(torch.tensor(shape).clamp(min=2.0)) + 0.3 * torch.rand(3, 3)
    for pbc in (EVERY, (False, True, True)):
        found = radius_graph(pos - 1.0, 1.6, cell=cell, pbc=pbc, backend=backend)
        assert listed(found) == brute(pos - 1.0, 1.6, cell, pbc)


@pytest.mark.parametrize("backend", NATIVE)
def test_an_atom_far_away(backend):
    pos = torch.cat([torch.rand(90, 3) * 6, torch.tensor([[1e6, -3e7, 2.0], [1e30, 0, 0], [-3e38, 3e38, 3e38]])])
    assert listed(radius_graph(pos, 1.4, backend=backend)) == brute(pos, 1.4)


def shells(backend, pos, cell, r) -> list[int]:
    """Neighbours of each atom."""
    edges, _ = radius_graph(torch.tensor(pos).float(), r, cell=torch.tensor(cell).float(), backend=backend)
    return edges[1].bincount(minlength=len(pos)).tolist()


@pytest.mark.parametrize("backend", NATIVE)
def test_crystals(backend):
    """Coordination numbers: fcc 12, 6, 24, ...; bcc 8, 6; simple cubic 6, 12, 8; diamond 4, 12; by primitive cells."""
    cubic = np.eye(3).tolist()
    fcc = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    bcc = [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]
    assert shells(backend, [[0.3, 0.1, 0.7]], fcc, 0.75) == [12]
    assert shells(backend, [[0.3, 0.1, 0.7]], bcc, 1.05) == [14]
    assert shells(backend, [[0.3, 0.1, 0.7]], cubic, 1.5) == [18]
    assert shells(backend, [[0.0, 0, 0], [0.25, 0.25, 0.25]], fcc, 0.75) == [16, 16]
    assert shells(backend, [[0.0, 0, 0]], fcc, 1.24) == [42]
    assert shells(backend, [[0.0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], cubic, 1.24) == [42] * 4
    rock = [[i / 4, j / 4, k / 4] for i in range(4) for j in range(4) for k in range(5)]
    assert shells(backend, rock, [[1.0, 0, 0], [0, 1, 0], [0, 0, 1.25]], 0.3) == [6] * 80


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("atoms", [4, 90])
def test_moving_atoms_by_lattice_vectors_changes_shifts_alone(backend, atoms):
    width = atoms ** (1 / 3)
    cell, pos = cell_of(0.4) * width / 2, width * torch.randn(atoms, 3, dtype=torch.float64)
    moves = torch.randint(-5, 6, (atoms, 3))
    one = radius_graph(pos, 1.7, cell=cell, backend=backend)
    two = radius_graph(pos + moves.double() @ cell, 1.7, cell=cell, backend=backend)
    assert torch.equal(one[0], two[0]) and one[0].shape[1] > atoms
    assert torch.equal(two[1], one[1] - moves[one[0][0]] + moves[one[0][1]])


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_edges_come_in_pairs(backend, dtype):
    """Both directions of a pair are at the same distance to the bit: the graph is symmetric whatever rounding does."""
    pos, cell = (5 * torch.rand(120, 3)).to(dtype), (5 * torch.eye(3) + 0.3 * torch.rand(3, 3)).to(dtype)
    first = radius_graph(pos, 3.0, cell=cell, backend=backend)
    distance = edge_vectors(pos.double(), first[0], shifts=first[1], cell=cell.double()).norm(dim=1)
    for r in distance[::1500].tolist():  # cutoffs at which rounding decides
        found = set(listed(radius_graph(pos, r, cell=cell, backend=backend)))
        assert {(s, t, -a, -b, -c) for t, s, a, b, c in found} == found


# ---- batches


@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_batches(backend):
    """Each graph alone gives the same edges: molecules, empty graphs, crystals of their own cells, one large graph."""
    sizes = [2, 0, 1, 3] if backend == "triton" else [3, 0, 70, 1, 9, 0]
    pos, ptr = 1.5 * torch.randn(sum(sizes), 3), torch.tensor([0, *sizes]).cumsum(0)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    cells = torch.stack([cell_of(0.3) for _ in sizes]).float()
    pbc = torch.rand(len(sizes), 3) < 0.5
    periodic = {"cell": cells, "pbc": pbc}
    by_ptr, by_batch = (radius_graph(pos, 1.3, **which, **periodic, backend=backend)
                        for which in ({"ptr": ptr}, {"batch": batch}))
    assert all(torch.equal(x, y) for x, y in zip(by_ptr, by_batch, strict=True))
    assert torch.equal(radius_graph(pos, 1.3, ptr=ptr, backend=backend), radius_graph(pos, 1.3, batch=batch))
    whole, flat = [], []
    for b, (start, stop) in enumerate(itertools.pairwise(ptr.tolist())):
        alone = brute(pos[start:stop], 1.3, cells[b], tuple(pbc[b].tolist()))
        whole += [(t + start, s + start, *n) for t, s, *n in alone]
        flat += [(t + start, s + start, *n) for t, s, *n in brute(pos[start:stop], 1.3)]
    assert listed(by_ptr) == whole
    assert listed(radius_graph(pos, 1.3, batch=3 * batch + 7, backend=backend)) == flat  # numbers may be left out


@pytest.mark.parametrize("backend", NATIVE)
def test_one_cell_for_all_graphs(backend):
    pos, batch = torch.rand(6, 3), torch.tensor([0, 0, 2, 2, 2, 5])
    cell = torch.tensor(SHEARED)
    one = radius_graph(pos, 2.0, batch=batch, cell=cell, pbc=(True, False, True), backend=backend)
    many = radius_graph(pos, 2.0, batch=batch, cell=cell.expand(6, 3, 3),
                        pbc=torch.tensor([True, False, True]), backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(one, many, strict=True))


@pytest.mark.skipif(not QM9.exists(), reason="shared/data is not beside this checkout")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("r", [1.8, 10.0])
def test_real_molecules(backend, r):
    with np.load(QM9) as archive:
        count = 2 if backend == "triton" else 60
        ptr = torch.from_numpy(archive["offsets"][: count + 1])
        pos = torch.from_numpy(archive["pos"][: ptr[-1]])
    expected = []
    for start, stop in itertools.pairwise(ptr.tolist()):
        expected += [(t + start, s + start, *n) for t, s, *n in brute(pos[start:stop], r)]
    assert listed(radius_graph(pos, r, ptr=ptr, backend=backend)) == expected


# ---- caps and limits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("most", [1, 5, 40])
def test_caps_with_ties(backend, loop, most):
    """A grid, an atom in its middle twice: rings of equal distances."""
    side = 2 if backend == "triton" else 5
    pos = torch.tensor([*itertools.product(range(side), repeat=3), (1, 1, 1)], dtype=torch.float32)
    found = radius_graph(pos, 2.5, loop=loop, max_num_neighbors=most, backend=backend)
    assert listed(found) == brute(pos, 2.5, loop=loop, most=most)
    if backend != "triton":
        cell = side * torch.eye(3)
        found = radius_graph(pos + 0.5, 2.5, cell=cell, loop=loop, max_num_neighbors=most, backend=backend)
        assert listed(found) == brute(pos + 0.5, 2.5, cell, loop=loop, most=most)


@pytest.mark.parametrize("backend", NATIVE)
def test_a_cap_that_nobody_reaches_changes_nothing(backend):
    pos, cell = torch.rand(5, 3), 1.5 * torch.eye(3)
    free = radius_graph(pos, 1.4, cell=cell, backend=backend)
    capped = radius_graph(pos, 1.4, cell=cell, max_num_neighbors=1000, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(free, capped, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_and_next_to_nothing(backend):
    none = radius_graph(torch.zeros(0, 3), 1.0, backend=backend)
    assert none.shape == (2, 0)
    edges, shifts = radius_graph(torch.zeros(0, 3), 1.0, ptr=torch.tensor([0, 0]), cell=torch.eye(3)[None],
                                 backend=backend)
    assert edges.shape == (2, 0) and shifts.shape == (0, 3)
    assert radius_graph(torch.zeros(0, 3), 1.0, ptr=torch.tensor([0]), backend=backend).shape == (2, 0)
    single = torch.ones(1, 3)
    assert radius_graph(single, 1.0, backend=backend).shape == (2, 0)
    assert radius_graph(single, 1.0, loop=True, backend=backend).tolist() == [[0], [0]]
    apart = torch.tensor([[0.0, 0, 0], [2.0, 0, 0]])
    assert radius_graph(apart, 2.0, backend=backend).shape == (2, 0)  # closer than: not at
    assert radius_graph(apart, 2.000001, backend=backend).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_coincident_atoms_are_neighbours(backend):
    pos = torch.tensor([[0.25, 0, 0]]).repeat(3, 1).requires_grad_()
    edges = radius_graph(pos, 1e-3, backend=backend)
    assert edges.tolist() == [[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]
    vectors = edge_vectors(pos, edges)
    assert not vectors.any()
    (g,) = torch.autograd.grad(vectors.norm(dim=1).sum(), pos)
    assert g.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_directions_without_period_are_not_looked_at(backend):
    pos = 2 * torch.rand(3, 3)
    cell = torch.tensor([[1.5, 0.5, 0], [0, 0, 0], [0, 0, 0]])
    odd = torch.tensor([[1.5, 0.5, 0], [torch.nan, torch.inf, 0], [1.5, 0.5, 1e-30]])
    found = [radius_graph(pos, 2.0, cell=c, pbc=(True, False, False), backend=backend) for c in (cell, odd)]
    assert listed(found[0]) == listed(found[1]) == brute(pos, 2.0, cell, (True, False, False))
    edges, shifts = radius_graph(pos, 2.0, cell=torch.zeros(3, 3), pbc=False, backend=backend)
    assert torch.equal(edges, radius_graph(pos, 2.0)) and shifts.shape == (edges.shape[1], 3) and not shifts.any()


def test_the_reference_does_not_depend_on_its_parts(monkeypatch):
    pos, cell = 6 * torch.rand(100, 3), 6 * torch.eye(3)
    whole = radius_graph(pos, 2.0, cell=cell, max_num_neighbors=9, backend="reference")
    for visits, candidates in ((1, 1), (100, 50)):
        monkeypatch.setattr(reference, "VISITS", visits)
        monkeypatch.setattr(reference, "CANDIDATES", candidates)
        parts = radius_graph(pos[:20], 2.0, cell=cell, max_num_neighbors=9, backend="reference")
        assert listed(parts) == brute(pos[:20], 2.0, cell, most=9)
    monkeypatch.setattr(reference, "VISITS", 1000)
    parts = radius_graph(pos, 2.0, cell=cell, max_num_neighbors=9, backend="reference")
    assert all(torch.equal(x, y) for x, y in zip(whole, parts, strict=True))


def test_sizes_beyond_int32():
    sizes = torch.tensor([2**31, 5, 2**32, 7])
    assert list(reference._parts(sizes, 2**31 + 5)) == [(0, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("backend", NATIVE)
def test_bins_change_nothing(backend, monkeypatch):
    """Molecules in bins, large systems without."""
    pos = 5 * torch.rand(80, 3)
    expected = brute(pos, 1.5)
    for plain in (0, 1000):
        monkeypatch.setattr(bins, "PLAIN", plain)
        assert listed(radius_graph(pos, 1.5, backend=backend)) == expected
        assert listed(radius_graph(pos[:20], 1.5, backend=backend)) == brute(pos[:20], 1.5)


@pytest.mark.parametrize("options", [{}, {"max_num_neighbors": 20}], ids=str)
def test_threads_do_not_change_an_edge(options):
    case = next(case for case in LARGE if case.name == "qm9_256").inputs(torch.Generator().manual_seed(0))
    crystal = {"pos": 12 * torch.rand(900, 3), "r": 3.0, "cell": 12 * torch.eye(3)}
    molecules = {"pos": case["pos"], "r": 4.0, "batch": case["batch"]}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([*radius_graph(**crystal, **options, backend="cpu"),
                          radius_graph(**molecules, **options, backend="cpu")])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_one_synchronisation(monkeypatch):
    """On a GPU: the number of edges and everything that may be wrong with the values are read together."""
    if "triton" not in BACKENDS:
        pytest.skip("Triton is not interpreted here")
    reads, original = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append(t.shape) or original(t))
    for name in ("item", "__bool__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("reads the device"))
    radius_graph(torch.rand(4, 3), 0.5, batch=torch.tensor([0, 0, 0, 1]), cell=torch.eye(3), backend="triton",
                 max_num_neighbors=3)
    assert reads == [(8,)]


# ---- torch.compile and vmap


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles(backend):
    """In a full graph where unbacked sizes are allowed, otherwise with a break of the graph, never with wrong edges."""
    function = lambda x: radius_graph(2 * x, 1.5, backend=backend).sum(0) + 1  # noqa: E731
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    pos = torch.rand(4, 3)
    assert torch.equal(compiled(pos), function(pos))
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for atoms in (4, 6):
            pos = torch.rand(atoms, 3)
            assert torch.equal(compiled(pos), function(pos))


def test_vmap_needs_equally_many_edges():
    pos = torch.tensor([[[0.0, 0, 0], [1, 0, 0]], [[0, 0, 0], [3, 0, 0]]])
    with pytest.raises(RuntimeError, match="equal size"):
        torch.vmap(lambda x: radius_graph(x, 2.0))(pos)


def test_edges_have_no_derivative():
    assert not radius_graph(torch.rand(4, 3, requires_grad=True), 2.0).requires_grad


# ---- edge_vectors


def test_edge_vectors_and_their_derivatives():
    pos, batch = torch.rand(7, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    cells = torch.stack([cell_of(0.2), cell_of(0.2)])
    edges, shifts = radius_graph(pos, 2.0, batch=batch, cell=cells)
    graph, options = Graph(edges, 7), {"shifts": shifts, "batch": batch}
    plain = edge_vectors(pos, edges, cell=cells, **options)
    for e, (j, i) in enumerate(edges.t().tolist()):
        torch.testing.assert_close(plain[e], pos[j] + shifts[e].double() @ cells[batch[i]] - pos[i])
    assert torch.equal(edge_vectors(pos, graph, cell=cells, **options), plain)
    pos.requires_grad_(), cells.requires_grad_()
    for which in (edges, graph):
        function = lambda x, c, w=which: edge_vectors(x, w, cell=c, **options).square().sum(1).sqrt()  # noqa: E731
        assert torch.autograd.gradcheck(function, (pos, cells), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (pos, cells), fast_mode=True)
    one = edge_vectors(pos, edges, shifts=shifts, cell=cells[0])
    assert torch.equal(one, edge_vectors(pos, edges, shifts=shifts, cell=cells[:1]))
    assert torch.equal(edge_vectors(pos, edges), pos[edges[0]] - pos[edges[1]])


E = torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize("pos, edges, options, message", [
    ([0.0], E, {}, r"pos must be \[N, 3\], got list"),
    (torch.zeros(4), E, {}, r"pos must be \[N, 3\], got \[4\]"),
    (torch.zeros(4, 3), E[0], {}, r"edges must be \[2, E\], got \[4\]"),
    (torch.zeros(4, 3), E.int(), {}, r"edges must be int64, got torch.int32"),
    (torch.zeros(4, 3), E, {"shifts": E.t()}, r"shifts must be given together with cell, got one of them"),
    (torch.zeros(4, 3), E, {"cell": torch.eye(3)}, r"shifts must be given together with cell, got one of them"),
    (torch.zeros(4, 3), E, {"shifts": torch.zeros(3, 3), "cell": torch.eye(3)},
     r"shifts must be \[4, 3\] like the edges, got \[3, 3\]"),
    (torch.zeros(4, 3), E, {"shifts": torch.zeros(4, 3), "cell": torch.eye(2)},
     r"cell must be \[3, 3\] or \[B, 3, 3\], rows are lattice vectors, got \[2, 2\]"),
    (torch.zeros(4, 3), E, {"shifts": torch.zeros(4, 3), "cell": torch.zeros(2, 3, 3)},
     r"batch must be given with a cell for each graph, got None; it is \[N\] int64"),
])
def test_wrong_arguments_of_edge_vectors(pos, edges, options, message):
    with pytest.raises(ValueError, match=f"edge_vectors: {message}"):
        edge_vectors(pos, edges, **options)


# ---- wrong values and arguments

X, CELL = torch.zeros(4, 3), torch.eye(3)


def changed(value, atom: int = 2) -> torch.Tensor:
    x = torch.rand(5, 3)
    x[atom, 1] = value
    return x


WRONG = [
    (changed(torch.nan), {}, r"pos must be finite, got \[.*, nan, .*\] at atom 2"),
    (changed(torch.inf), {"cell": CELL}, r"pos must be finite, got \[.*, inf, .*\] at atom 2"),
    (changed(-torch.inf, 4), {"batch": torch.tensor([0, 0, 1, 1, 1])}, r"pos must be finite, got .* at atom 4"),
    (changed(torch.nan), {"cell": 0 * CELL, "batch": torch.tensor([0, 0, 1, 1, 1])}, r"pos must be finite, .* atom 2"),
    (torch.rand(5, 3), {"batch": torch.tensor([0, 1, 3, 2, 2])},
     r"batch must be sorted, got 2 after 3 at index 3; sort the atoms by graph"),
    (torch.rand(5, 3), {"batch": torch.tensor([0, 1, 0, 1, 0]), "cell": CELL}, r"batch must be sorted, .* at index 2"),
    (torch.rand(5, 3), {"batch": torch.tensor([-1, 0, 0, 1, 1])}, r"batch must be 0 or more, got -1 at index 0"),
    (torch.rand(5, 3), {"batch": torch.tensor([0, 0, 1, 1, 4]), "cell": CELL.expand(2, 3, 3)},
     r"batch must be 0 or more, below 2, the number of cells, got 4 at index 4; give a cell for each graph"),
    (torch.rand(5, 3), {"cell": torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 0, 1]])},
     r"cell must be of finite periodic vectors that are linearly independent, got \[\[1.0, .*\] for graph 0; its"),
    (torch.rand(5, 3), {"cell": torch.stack([CELL, 0 * CELL]), "batch": torch.tensor([0, 0, 0, 1, 1])},
     r"cell must be of finite periodic vectors .* for graph 1"),
    (torch.rand(5, 3), {"cell": CELL * torch.nan}, r"cell must be of finite periodic vectors"),
    (torch.rand(5, 3), {"cell": 0 * CELL, "pbc": (False, True, False)}, r"cell must be of finite periodic vectors"),
    (torch.rand(5, 3), {"cell": 1e-4 * CELL}, r"r must be at most 1023 times the height of a cell, .*, got 1.5 for"),
    (torch.rand(5, 3), {"cell": 2e-3 * CELL}, r"r must be at most .*, for 2\^30 images, got 1.5 .*; repeat the cell"),
    (changed(3e7), {"cell": CELL}, r"pos must be within a million cells of the origin, got .* at atom 2; wrap it into"),
]


@pytest.mark.parametrize(("backend", "pos", "options", "message"), [
    # interpreted, Triton searches for seconds where the cell is right
    (backend, *wrong) for backend in BACKENDS for wrong in WRONG
    if backend != "triton" or "cell" not in wrong[1] or wrong[2].startswith("r ")
])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_wrong_values(backend, pos, options, message):
    with pytest.raises(ValueError, match=f"radius_graph: {message}"):
        radius_graph(pos, 1.5, backend=backend, **options)


@pytest.mark.parametrize("pos, r, options, message", [
    ([[0.0]], 1.0, {}, r"pos must be a tensor, got list; use torch.as_tensor"),
    (X.long(), 1.0, {}, r"pos must be float32 or float64, got torch.int64; cast it with .float\(\)"),
    (X[:, :2], 1.0, {}, r"pos must be \[N, 3\], got \[4, 2\]"),
    (X, -1.0, {}, r"r must be positive and finite, got -1.0"),
    (X, 0, {}, r"r must be positive and finite, got 0"),
    (X, float("nan"), {}, r"r must be positive and finite, got nan"),
    (X, float("inf"), {}, r"r must be positive and finite, got inf"),
    (X, "1", {}, r"r must be a number, got '1'; pass a float"),
    (X, 1.0, {"max_num_neighbors": 0}, r"max_num_neighbors must be 1 or more, or None for all, got 0"),
    (X, 1.0, {"max_num_neighbors": 2.5}, r"max_num_neighbors must be a whole number, or None for all, got 2.5"),
    (X, 1.0, {"batch": [0, 0, 0, 0]}, r"batch must be a tensor, got list; use torch.as_tensor"),
    (X, 1.0, {"batch": X[:, 0]}, r"batch must be int64 \[N\] on cpu, got torch.float32 \[4\] on cpu"),
    (X, 1.0, {"batch": torch.zeros(3, dtype=torch.int64)}, r"batch must be \[4\] like the rows of pos, got \[3\]"),
    (X, 1.0, {"batch": E[0], "ptr": torch.tensor([0, 4])}, r"batch must be left out where ptr is given, got both"),
    (X, 1.0, {"ptr": torch.tensor([0, 4.0])}, r"ptr must be int64 \[B \+ 1\] on cpu, got torch.float32 \[2\]"),
    (X, 1.0, {"ptr": torch.tensor([0, 3])}, r"ptr must be 0 at its start and 4, the rows of pos, at its end, got 0"),
    (X, 1.0, {"ptr": torch.tensor([0, 3, 1, 4])}, r"ptr must be in ascending order, got a step of -2; sort the rows"),
    (X, 1.0, {"pbc": True}, r"cell must be given where pbc is, got None; leave both out for open systems"),
    (X, 1.0, {"cell": [[1.0]]}, r"cell must be a tensor, got list"),
    (X, 1.0, {"cell": torch.eye(2)}, r"cell must be \[3, 3\] or \[B, 3, 3\], rows are lattice .*, got \[1, 2, 2\]"),
    (X, 1.0, {"cell": torch.zeros(3)}, r"cell must be \[3, 3\] or \[B, 3, 3\], rows are lattice vectors, got \[3\]"),
    (X, 1.0, {"cell": torch.zeros(0, 3, 3)}, r"cell must be \[3, 3\], or one for each graph, got \[0, 3, 3\]"),
    (X, 1.0, {"cell": CELL.double()}, r"cell must be torch.float32 on cpu, got torch.float64 on cpu"),
    (X, 1.0, {"cell": CELL, "pbc": (True, False)}, r"pbc must be bool \[3\] or \[1, 3\] on cpu, got torch.bool \[2\]"),
    (X, 1.0, {"cell": CELL, "pbc": torch.ones(3)}, r"pbc must be bool \[3\] or \[1, 3\] on cpu, got torch.float32"),
    (X, 1.0, {"backend": "fast"}, r"backend must be one of \['auto', .*\], got 'fast'"),
])
def test_wrong_arguments(pos, r, options, message):
    with pytest.raises(ValueError, match=f"radius_graph: {message}"):
        radius_graph(pos, r, **options)


def test_the_operator_wants_pbc_with_a_cell():
    with pytest.raises(ValueError, match="radius_graph: cell must be given together with pbc, got one of them; leave"):
        radius_graph_op(X, E[0], CELL[None], None, 1.0, False, None, "auto")


def test_cases_are_what_they_say():
    sizes = {case.name: case.inputs(torch.Generator().manual_seed(0))["batch"].bincount() for case in LARGE}
    assert [len(sizes[f"qm9_{n}"]) for n in (256, 4096)] == [256, 4096]
    assert 17 < sizes["qm9_4096"].float().mean() < 19 and sizes["qm9_4096"].max() <= 29
    assert [sizes[f"periodic_{n}"].tolist() for n in (10_000, 100_000)] == [[10_000], [100_000]]
    for case in SMALL:
        inputs = case.inputs(torch.Generator().manual_seed(0))
        assert all(torch.equal(x, x.float().double()) for x in (inputs["pos"], inputs["cell"]) if x is not None)
