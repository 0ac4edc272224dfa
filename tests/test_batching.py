"""Flat data sets and the batcher against a plain loop over the graphs, resuming, and wrong input."""

import copy
import pickle

import numpy as np
import pytest
import torch

from ace_fast import Graph, segments
from ace_fast.adjacency import symmetric_adjacency
from ace_fast.data import Batch, Batcher, FlatDataset, checks, symmetric_edges

SIZES = [3, 1, 4, 0, 5, 2, 6, 2]


def ragged_graphs(seed=0):
    """A list of graphs as dicts; one has no nodes, one no edges, and edges repeat."""
    rng = np.random.default_rng(seed)
    graphs = []
    for number, n in enumerate(SIZES):
        edges = torch.from_numpy(rng.integers(0, n, (2, 2 * n)) if n > 1 else np.zeros((2, 0), dtype=np.int64))
        edges = edges[:, edges[1].argsort(stable=True)]
        graphs.append(
            {
                "x": torch.from_numpy(rng.standard_normal((n, 2, 3))),
                "kind": torch.from_numpy(rng.integers(0, 9, n)),
                "length": torch.from_numpy(rng.standard_normal((edges.shape[1], 1))),
                "label": torch.tensor(number),
                "edges": edges,
            }
        )
    return graphs


def offsets(counts):
    return torch.tensor([0, *counts]).cumsum(0)


def flat(graphs, **options):
    return FlatDataset(
        {name: torch.cat([g[name] for g in graphs]) for name in ("x", "kind")},
        offsets([len(g["x"]) for g in graphs]),
        torch.cat([g["edges"] for g in graphs], 1),
        offsets([g["edges"].shape[1] for g in graphs]),
        edge={"length": torch.cat([g["length"] for g in graphs])},
        graph={"label": torch.stack([g["label"] for g in graphs])},
        **options,
    )


def loop_batch(graphs, indices):
    """What a batch must be, one graph after another."""
    parts, start = [], 0
    for k, i in enumerate(indices):
        g = graphs[i]
        n = len(g["x"])
        parts.append((g["x"], g["kind"], g["length"], g["label"][None], g["edges"] + start, torch.full((n,), k)))
        start += n
    x, kind, length, label, edges, batch = zip(*parts, strict=True)
    return {
        "x": torch.cat(x),
        "kind": torch.cat(kind),
        "length": torch.cat(length),
        "label": torch.cat(label),
        "edge_index": torch.cat(edges, 1),
        "batch": torch.cat(batch),
        "ptr": offsets([len(a) for a in x]),
    }


def assert_same(batch, gold):
    for name, value in gold.items():
        mine = getattr(batch, name)
        assert mine.dtype == value.dtype and torch.equal(mine, value), name
    assert batch.num_nodes == len(gold["batch"]) and batch.num_graphs == len(gold["ptr"]) - 1


def uniform_data(num_graphs=10):
    """Graphs of three nodes in a ring."""
    node = {"x": torch.arange(3.0 * num_graphs).view(-1, 1)}
    edges = torch.tensor([[2, 0, 1], [0, 1, 2]]).repeat(1, num_graphs)
    steps = torch.arange(num_graphs + 1) * 3
    edge = {"e": torch.arange(3 * num_graphs)}
    return FlatDataset(node, steps, edges, steps, edge=edge, graph={"y": torch.arange(num_graphs)})


def labels(batcher):
    return [batch.label.tolist() if "label" in batch.names else batch.y.tolist() for batch in batcher]


@pytest.mark.parametrize("indices", [[0], [3], [6, 1, 4], [3, 3, 1], [], list(range(8)), [7, 0, 7]])
def test_batch_equals_the_plain_loop(indices):
    graphs = ragged_graphs()
    data = flat(graphs)
    assert len(data) == 8 and data.num_nodes == sum(SIZES) and not data.uniform
    if indices:
        assert_same(data.batch(indices), loop_batch(graphs, indices))
        assert data.batch(indices).structure_key is None
    else:
        assert data.batch(indices).num_graphs == data.batch(indices).num_nodes == 0


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda i: torch.tensor(i, dtype=torch.int32)])
def test_indices_of_any_kind(kind):
    graphs = ragged_graphs()
    assert_same(flat(graphs).batch(kind([4, 2])), loop_batch(graphs, [4, 2]))


def test_subset_equals_the_plain_loop():
    graphs = ragged_graphs()
    data = flat(graphs).subset([5, 0, 6, 3])
    assert len(data) == 4
    assert_same(data.batch([2, 0]), loop_batch(graphs, [6, 5]))


def test_batcher_equals_the_plain_loop():
    graphs = ragged_graphs()
    batcher = Batcher(flat(graphs), 3, seed=5)
    order = batcher.order().tolist()
    assert sorted(order) == list(range(8)) and len(batcher) == 3
    for k, batch in enumerate(batcher):
        assert_same(batch, loop_batch(graphs, order[3 * k : 3 * k + 3]))


def test_uniform_batches_equal_ragged_ones():
    data = uniform_data()
    assert data.uniform and data.subset([3, 1]).uniform
    index = torch.tensor([4, 0, 9])
    mine, ragged = data.batch(index), data._ragged_batch(index)
    for name in ("x", "e", "y", "edge_index", "batch", "ptr"):
        assert torch.equal(getattr(mine, name), getattr(ragged, name)), name


def test_uniform_batches_share_their_structure():
    batches = list(Batcher(uniform_data(), 4))
    assert [batch.num_graphs for batch in batches] == [4, 4, 2]
    assert batches[0].edge_index is batches[1].edge_index and batches[0].ptr is batches[1].ptr
    assert batches[0].structure_key == batches[1].structure_key != batches[2].structure_key
    assert batches[0].structure_key == uniform_data(30).batch(range(4)).structure_key
    # The key knows the edges and the size of a graph, not only the number of graphs.
    other = FlatDataset({"x": torch.zeros(6)}, torch.arange(3) * 3, torch.tensor([[1, 1], [2, 2]]), torch.arange(3))
    assert other.uniform and other.batch([0, 1]).structure_key != uniform_data().batch([0, 1]).structure_key


def test_same_sizes_with_other_edges_are_not_uniform():
    edges = torch.tensor([[0, 1], [1, 0]])
    assert not FlatDataset({}, torch.arange(3) * 2, edges, torch.arange(3)).uniform


def test_edges_are_sorted_by_target():
    graphs = ragged_graphs()
    shuffled = copy.deepcopy(graphs)
    for g in shuffled:
        # A stable sort undoes a reversal within equal targets only if these are turned round too.
        order = (-g["edges"][1]).argsort(stable=True)
        g["edges"], g["length"] = g["edges"][:, order], g["length"][order]
    assert_same(flat(shuffled).batch([4, 6, 2]), loop_batch(graphs, [4, 6, 2]))


def test_clouds_without_edges():
    data = FlatDataset({"x": torch.arange(6.0)}, torch.tensor([0, 2, 6]), graph={"y": torch.tensor([7, 8])})
    batch = data.batch([1, 0])
    assert batch.edge_index.shape == (2, 0) and batch.x.tolist() == [2, 3, 4, 5, 0, 1] and batch.y.tolist() == [8, 7]


def test_moving_keeps_integers():
    data = flat(ragged_graphs()).to(dtype=torch.float32)
    batch = data.batch([0, 4])
    assert batch.x.dtype == batch.length.dtype == torch.float32 and batch.kind.dtype == torch.int64
    moved = batch.to("meta", torch.float16)
    assert moved.x.dtype == torch.float16 and moved.kind.dtype == torch.int64
    assert moved.x.device.type == moved.edge_index.device.type == moved.ptr.device.type == "meta"
    shared = uniform_data().batch([0])
    assert shared.to(dtype=torch.float64).edge_index is shared.edge_index
    assert shared.to("meta").structure_key == shared.structure_key


def test_copies_and_text():
    data, batch = uniform_data(), uniform_data().batch([0, 1])
    for clone in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(clone.x, batch.x) and clone.names == batch.names
    assert repr(data) == "FlatDataset(10 graphs, 30 nodes, 30 edges: x, e, y)"
    assert repr(batch) == "Batch(num_graphs=2, y=[2], x=[6, 1], e=[6], edge_index=[2, 6])"
    assert isinstance(batch, Batch) and len(pickle.loads(pickle.dumps(data))) == 10


def test_order_depends_on_seed_and_epoch_alone():
    data = flat(ragged_graphs())
    one, two, other = Batcher(data, 3, seed=1), Batcher(data, 3, seed=1), Batcher(data, 3, seed=2)
    torch.manual_seed(99)
    first, second = labels(one), labels(one)
    assert first != second and one.epoch == 2
    assert labels(two) == first != labels(other)
    two.set_epoch(0)
    assert labels(two) == first
    assert labels(two) == second


def test_order_without_shuffling_and_the_last_batch():
    data = flat(ragged_graphs())
    assert labels(Batcher(data, 3, shuffle=False)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    dropping = Batcher(data, 3, shuffle=False, drop_last=True)
    assert labels(dropping) == [[0, 1, 2], [3, 4, 5]] and len(dropping) == 2
    assert len(Batcher(data, 8)) == len(Batcher(data, 8, drop_last=True)) == 1


@pytest.mark.parametrize("taken", range(8))
def test_resumed_run_yields_the_same_batches(taken):
    data = flat(ragged_graphs())

    def run(batcher, count):
        out = []
        while len(out) < count:
            for batch in batcher:
                out.append(batch.label.tolist())
                if len(out) == count:
                    break
        return out

    whole = run(Batcher(data, 3, seed=4), 9)
    first = Batcher(data, 3, seed=4)
    head = run(first, taken)
    second = Batcher(data, 3, seed=0)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert head + run(second, 9 - taken) == whole


def test_set_epoch_keeps_a_loaded_position():
    data = flat(ragged_graphs())
    first, second = Batcher(data, 2), Batcher(data, 2)
    whole = labels(first)
    second.load_state_dict({**first.state_dict(), "epoch": 0, "position": 3})
    second.set_epoch(0)
    assert labels(second) == whole[3:]
    second.load_state_dict({**first.state_dict(), "epoch": 0, "position": 3})
    second.set_epoch(1)
    second.set_epoch(0)
    assert labels(second) == whole


def test_a_peek_takes_nothing_away():
    batcher = Batcher(flat(ragged_graphs()), 3)
    peek = next(iter(batcher)).label.tolist()
    assert labels(batcher)[0] == peek


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 9}, "at most the 8 graphs of the data set, got 9; pass a batch_size of 8 or less"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer, got 1.5"),
        ({"batch_size": 2, "seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"batch_size": 2, "seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_batcher_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Batcher: .*{message}"):
        Batcher(flat(ragged_graphs()), **arguments)


def test_wrong_state_and_epoch():
    data = flat(ragged_graphs())
    batcher = Batcher(data, 3)
    with pytest.raises(ValueError, match="batch_size must be 2 as in the saved state, got 3; build the Batcher with"):
        batcher.load_state_dict(Batcher(data, 2).state_dict())
    with pytest.raises(ValueError, match="num_graphs must be 4 as in the saved state, got 8"):
        batcher.load_state_dict(Batcher(data.subset(range(4)), 3).state_dict())
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        batcher.set_epoch(-1)
    with pytest.raises(ValueError, match="must be what state_dict.. gave, got one without epoch, position, num_graphs"):
        batcher.load_state_dict({})
    whole = batcher.state_dict()
    for change, message in (({"position": 3}, "position must be in 0 .. 2, got 3 in the saved state; use set_epoch"),
                            ({"position": -1}, "position must be at least 0, got -1"),
                            ({"epoch": 0.5}, "epoch must be an integer, got 0.5")):
        with pytest.raises(ValueError, match=message):
            batcher.load_state_dict(whole | {"seed": 9} | change)
    assert batcher.state_dict() == whole


def test_numpy_arrays_are_taken():
    node = {"x": np.arange(6, dtype=">f4")[::-1], "wide": np.arange(6, dtype=np.longdouble)}
    edges = np.array([[0, 1, 2], [1, 0, 0]])
    data = FlatDataset(node, np.array([0, 2, 6]), edges, np.array([0, 2, 3]), graph={"y": np.array([7, 8])})
    batch = data.batch([1, 0])
    assert batch.x.tolist() == [3, 2, 1, 0, 5, 4] and batch.x.dtype == torch.float32
    assert batch.wide.dtype == torch.float64 and batch.y.tolist() == [8, 7]
    assert batch.edge_index.tolist() == [[2, 5, 4], [0, 4, 5]]


@pytest.mark.parametrize(
    "x, message",
    [([1.0], "x must be a tensor or a numpy array, got list"), (np.array(["a"]), "x must be numbers, got <U1")],
)
def test_other_arrays_are_refused(x, message):
    with pytest.raises(ValueError, match=f"FlatDataset: {message}"):
        FlatDataset({"x": x}, torch.tensor([0, 1]))


@pytest.mark.parametrize("name, kind", [("x", "node"), ("length", "edge")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(name, kind, value):
    graphs = ragged_graphs()
    graphs[4][name].view(-1)[2] = value
    graphs[6][name].view(-1)[0] = value
    message = f"{kind} array '{name}' must be finite, got NaN or infinity first in graph 4; repair that graph"
    with pytest.raises(ValueError, match=message):
        flat(graphs)
    assert len(flat(graphs, check=False)) == 8


def test_graph_values_that_are_not_finite():
    y = torch.tensor([0.0, float("nan")])
    with pytest.raises(ValueError, match="graph array 'y' must be finite, .* first in graph 1"):
        FlatDataset({}, torch.arange(3), graph={"y": y})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"node_offsets": [0, 3, 2, 4]}, "node_offsets must start at 0 and never decrease, got a decrease at graph 1"),
        ({"node_offsets": [1, 2, 3, 4]}, "node_offsets must start at 0 and never decrease, got 1 at first"),
        ({"node_offsets": []}, r"node_offsets must be int64 \[G \+ 1\], got torch.float32 \[0\]"),
        ({"edge_offsets": [0, 1, 3]}, "edge_offsets must have 4 entries as node_offsets has, got 3"),
        ({"edge_offsets": [0, 1, 2, 2]}, "edge_offsets must end at the 3 edges, got 2"),
        ({"edge_offsets": None}, "edge_offsets must be given together with edge_index, got None"),
        ({"node": {"x": torch.zeros(5)}}, r"node array 'x' must have 4 rows, got \[5\]; the offsets say"),
        ({"graph": {"y": torch.tensor(1)}}, r"graph array 'y' must have 3 rows, got \[\]"),
        ({"edge": {"x": torch.zeros(3)}}, "array names must be identifiers, each used once, .* got 'x'"),
        ({"edge": {"ptr": torch.zeros(3)}}, "array names must be .* none of batch, .* got 'ptr'"),
        ({"edge": {"a b": torch.zeros(3)}}, "array names must be identifiers, .* got 'a b'"),
        ({"edge_index": torch.zeros(3, 2)}, r"edge_index must be int64 \[2, E\] \(or .*\), got torch.float32 \[3, 2\]"),
        ({"edge_index": [[0, 0, 0], [0, 2, 0]]}, "got an edge that leaves graph 1, which has 2 nodes; number"),
        ({"edge_index": [[0, 0, -1], [0, 1, 0]]}, "must stay within its graph, got an edge that leaves graph 2"),
    ],
)
def test_wrong_data(changes, message):
    arguments = {
        "node": {"x": torch.zeros(4)},
        "node_offsets": [0, 1, 3, 4],
        "edge_index": [[0, 1, 0], [0, 0, 0]],
        "edge_offsets": [0, 1, 2, 3],
    } | changes
    tensors = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=f"FlatDataset: .*{message}"):
        FlatDataset(**tensors)


@pytest.mark.parametrize(
    "indices, message",
    [
        ([0, 8], r"indices must be in 0 .. 7, got 0 .. 8"),
        ([-1], r"indices must be in 0 .. 7, got -1 .. -1"),
        ([0.5], r"indices must be integers \[G\], got torch.float32 \[1\]"),
        ([[1]], r"indices must be integers \[G\], got torch.int64 \[1, 1\]"),
    ],
)
def test_wrong_indices(indices, message):
    data = flat(ragged_graphs())
    for take in (data.batch, data.subset):
        with pytest.raises(ValueError, match=f"FlatDataset: {message}"):
            take(indices)


# ---- graphs of a batch


def molecules(counts=(3, 1, 5, 0, 4, 2), reach=0.7, dtype=torch.uint8):
    """Random pairs of nodes both ways, sorted by target and then source; all pairs where reach is 1."""
    rng = np.random.default_rng(0)
    parts = []
    for n in counts:
        pairs = np.triu(rng.uniform(size=(n, n)) < reach, 1)
        parts.append(torch.from_numpy(pairs | pairs.T).nonzero().t().flip(0))
    edges = torch.cat(parts, 1).to(dtype)
    return FlatDataset({"x": torch.rand(sum(counts))}, offsets(counts), edges, offsets([p.shape[1] for p in parts]))


def test_small_types_of_edges_give_the_same_batches():
    gold = molecules(dtype=torch.int64)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        data = molecules(dtype=dtype)
        for mine in (data, data.subset(range(6)), data.to("cpu")):
            assert mine.edge_index.dtype == dtype
            assert torch.equal(mine.batch([4, 0, 2]).edge_index, gold.batch([4, 0, 2]).edge_index)
    uniform = [molecules((3, 3), 1.0, dtype).batch([1, 0]).edge_index for dtype in (torch.uint8, torch.int64)]
    assert torch.equal(*uniform) and uniform[0].dtype == torch.int64
    with pytest.raises(ValueError, match=r"edge_index must be int64 \[2, E\] \(or uint8, int16, int32\), got torch.f"):
        FlatDataset({}, torch.tensor([0, 2]), torch.zeros(2, 1), torch.tensor([0, 1]))


@pytest.mark.parametrize("index", [[4, 0, 2, 2, 1, 3], [1], [3], []])
@pytest.mark.parametrize("reach", [0.7, 1.0])
def test_the_graph_of_a_symmetric_batch_is_the_sorted_one(index, reach):
    data = molecules(reach=reach)
    assert symmetric_edges(data)
    data.symmetric = True
    batch = data.subset(range(6)).to("cpu").batch(index)
    mine, gold = batch.graph(), Graph(batch.edge_index, batch.num_nodes)
    assert batch.symmetric and batch.to(dtype=torch.float64).symmetric and isinstance(mine, Graph)
    for name in ("num_nodes", "num_sources", "num_targets", "num_edges"):
        assert getattr(mine, name) == getattr(gold, name)
    for a, b in zip((*mine.sources, *mine.targets, *mine.adjacency, mine.degree),
                    (*gold.sources, *gold.targets, *gold.adjacency, gold.degree), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert repr(mine) == repr(gold)
    for a, b in zip(batch.segments(), segments(batch.batch, len(index)), strict=True):
        assert torch.equal(a, b)


def test_elsewhere_than_on_the_cpu_nothing_is_read_for_chunks():
    adjacency = symmetric_adjacency(torch.tensor([1, 0], device="meta"), torch.tensor([0, 1, 2], device="meta"))
    assert adjacency.chunks.shape == (1, 4) and adjacency.chunks.device.type == "meta" and adjacency.symmetric


def test_uniform_batches_know_it_too():
    data = molecules((3, 3, 3), 1.0)
    assert data.uniform and not data.batch([0]).symmetric and type(data.batch([0]).graph()) is Graph
    data.symmetric = True
    assert all(batch.symmetric for batch in Batcher(data, 2))


@pytest.mark.parametrize(("edges", "answer"), [
    ([[1, 0], [0, 1]], True), ([[], []], True), ([[0, 1, 0, 1], [0, 0, 1, 1]], True),
    ([[1], [0]], False), ([[1, 1, 0], [0, 0, 1]], False), ([[2, 1, 0, 0], [0, 0, 1, 2]], False),
])
def test_symmetry_is_found(edges, answer, monkeypatch):
    """No edge without its reverse, none twice, sources sorted; in a graph among others, in one block or several."""
    edges = torch.tensor(edges, dtype=torch.int64)
    whole, ends = torch.tensor([[1, 0], [0, 1]]), [2, edges.shape[1], 2]
    data = FlatDataset({}, offsets([2, 3, 2]), torch.cat([whole, edges, whole], 1), offsets(ends), check=False)
    assert symmetric_edges(data) == answer
    for together in (9, 1):
        monkeypatch.setattr(checks, "_TOGETHER", together)
        assert symmetric_edges(data) == answer
    monkeypatch.setattr(checks, "_LARGEST", 2)
    assert not symmetric_edges(data)  # a graph too large to look at
