"""Shards on disk and the batches that stream from them, against the data set in memory; damage and wrong use."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from ace_fast.data import Batch, FlatDataset, ShardBatcher, ShardedDataset, concatenate, from_pyg, write_shards
from ace_fast.data.shards import MANIFEST, file_name

STREAM = """
import sys, numpy as np, torch
from ace_fast.data import FlatDataset, ShardBatcher, ShardedDataset, write_shards
folder, count = sys.argv[1], int(sys.argv[2])
part = 10_000
pairs = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)
def graphs():
    for first in range(0, count, part):
        number = torch.arange(first, first + part)
        pos, ends = number.repeat_interleave(2).float()[:, None].repeat(1, 3), 2 * torch.arange(part + 1)
        yield FlatDataset({"pos": pos}, ends, pairs.repeat(1, part), ends, graph={"number": number}, check=False)
def anonymous():
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))
data = write_shards(folder, graphs(), shard_size=4 * part)
batcher = ShardBatcher(data, 5_000, window=2)
used, seen, total = [], 0, 0
for batch in batcher:
    seen, total = seen + batch.num_graphs, total + int(batch.number.sum())
    used.append(anonymous())
quarter = len(used) // 4
print(seen, total, max(used[quarter:2 * quarter]), max(used[3 * quarter:]))
"""


def graphs(count=50, seed=0, kind=torch.int16):
    """Ragged graphs: some without nodes, some without edges."""
    rng = np.random.default_rng(seed)
    nodes, edges = rng.integers(0, 5, count), rng.integers(0, 7, count)
    edges[nodes == 0] = 0
    index = np.concatenate([rng.integers(0, max(n, 1), (2, e)) for n, e in zip(nodes, edges, strict=True)], 1)
    ends = [torch.from_numpy(np.concatenate([[0], np.cumsum(x)])) for x in (nodes, edges)]
    return FlatDataset({"pos": torch.from_numpy(rng.standard_normal((nodes.sum(), 3)))}, ends[0],
                       torch.from_numpy(index).to(kind), ends[1],
                       {"length": torch.from_numpy(rng.standard_normal(edges.sum())).float()},
                       {"number": torch.arange(count), "odd": torch.arange(count) % 2 == 1})


def alike(count=40):
    """Graphs with the same edges."""
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    return FlatDataset({"x": torch.arange(3.0 * count)}, 3 * torch.arange(count + 1), edges.repeat(1, count),
                       3 * torch.arange(count + 1), graph={"number": torch.arange(count)})


def same(found, expected):
    """Two data sets or two batches."""
    kinds = [vars(x) if isinstance(x, Batch) else vars(x) | {n: v for k in ("node", "edge", "graph")
                                                             for n, v in getattr(x, k).items()}
             for x in (found, expected)]
    tensors = [{n: v for n, v in kind.items() if isinstance(v, torch.Tensor)} for kind in kinds]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        torch.testing.assert_close(value, tensors[1][name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def data():
    return graphs()


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards") / "ragged", data, shard_size=8)


@pytest.fixture
def copy(data, tmp_path):
    """A folder to damage."""
    write_shards(tmp_path / "copy", data, shard_size=20)
    return tmp_path / "copy"


def numbers(batches):
    return [batch.number.tolist() for batch in batches]


def test_shards_are_the_data_set(data, shards):
    assert shards.counts == [8] * 6 + [2] and len(shards) == 50
    for number in range(shards.num_shards):
        same(shards.shard(number), data.subset(range(8 * number, min(8 * number + 8, 50))))
    same(shards.read([2, 0, 6]), data.subset([*range(16, 24), *range(8), 48, 49]))
    assert repr(shards) == "ShardedDataset(50 graphs in 7 shards: pos, length, number, odd)"


def test_a_stream_is_cut_into_shards(data, shards, tmp_path):
    cuts = [0, 3, 3, 21, 22, 50]
    stream = (data.subset(range(a, b)) for a, b in zip(cuts, cuts[1:], strict=False))
    written = write_shards(tmp_path, stream, shard_size=8)
    assert written.counts == shards.counts
    for path in shards.folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_what_they_are_is_kept(data, shards, tmp_path):
    about = {"source": "drawn", "settings": {"seed": 0}}
    assert write_shards(tmp_path, data, about=about).about == ShardedDataset(tmp_path).about == about
    assert shards.about == {} and shards.names == ("pos", "length", "number", "odd")


def test_symmetric_edges_stay_known(tmp_path):
    path = FlatDataset({}, torch.tensor([0, 2]), torch.tensor([[1, 0], [0, 1]]), torch.tensor([0, 2]), symmetric=True)
    assert write_shards(tmp_path, path).shard(0).batch([0]).symmetric


def test_order_without_shuffling(data, shards):
    for prefetch in (0, 2):
        found = list(ShardBatcher(shards, 7, shuffle=False, window=2, prefetch=prefetch))
        for k, batch in enumerate(found):
            same(batch, data.batch(range(7 * k, min(7 * k + 7, 50))))
        assert len(found) == 8
    assert numbers(ShardBatcher(shards, 7, shuffle=False, drop_last=True))[-1] == list(range(42, 49))


def test_shuffled_epochs(data, shards):
    batcher = ShardBatcher(shards, 7, seed=3, window=3)
    first, second = list(batcher), list(batcher)
    assert sorted(sum(numbers(first), [])) == sorted(sum(numbers(second), [])) == list(range(50))
    assert numbers(first) != numbers(second)
    for batch in first:
        same(batch, data.batch(batch.number))
    again = ShardBatcher(shards, 7, seed=3, window=3, prefetch=0)
    again.set_epoch(1)
    assert numbers(again) == numbers(second)
    assert numbers(ShardBatcher(shards, 7, seed=4, window=3)) != numbers(first)
    # a window's graphs are mixed with each other
    assert len({number // 8 for number in first[0].number.tolist()}) > 1


def test_graphs_that_are_alike_share_their_structure(tmp_path):
    batches = list(ShardBatcher(write_shards(tmp_path, alike(), shard_size=6), 5, window=2))
    assert len({id(batch.edge_index) for batch in batches}) == 1 and batches[0].structure_key
    same(batches[3], alike().batch(batches[3].number))


@pytest.mark.parametrize("done", [0, 1, 5, 7, 8])
def test_resumes_with_the_next_batch(shards, done):
    whole = ShardBatcher(shards, 7, seed=1, window=2)
    expected = numbers(whole) + numbers(whole)
    stopped = ShardBatcher(shards, 7, seed=1, window=2, prefetch=3)
    iterator = iter(stopped)
    found = numbers(next(iterator) for _ in range(done))
    state = json.loads(json.dumps(stopped.state_dict()))
    iterator.close()
    other = ShardBatcher(shards, 7, window=2)
    other.load_state_dict(state)
    found += numbers(other)
    assert found + (numbers(other) if done < 8 else []) == expected
    assert not [t for t in threading.enumerate() if t.name.startswith("ace_fast-prefetch")]


def test_processes_share_each_batch(shards):
    """As those of a Batcher do: 50 graphs in batches of 6 leave 2, for the third process one at weight 0."""
    single = numbers(ShardBatcher(shards, 6, seed=2, window=2))
    ranks = [shared(shards, rank) for rank in range(3)]
    for whole, *parts in zip(single, *ranks, strict=True):
        assert sorted(sum((ids for ids, weight in parts if weight), [])) == sorted(whole)
        assert [weight for ids, weight in parts] == ([1 / 3] * 3 if len(whole) == 6 else [0.5, 0.5, 0.0])
    assert ranks[2][-1][0] == ranks[0][-1][0]


def shared(shards, rank):
    """(graphs, weight) of what a process of three is handed out."""
    batcher = ShardBatcher(shards, 6, seed=2, window=2)
    batcher.shard(rank, 3)
    return [(batch.number.tolist(), batcher.weight) for batch in batcher]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_parts_and_pieces_of_a_batch(shards, prefetch):
    """Accumulated parts make up the batch, of which a state counts whole ones alone; pieces make up a part."""
    single, batcher = numbers(ShardBatcher(shards, 9, window=2)), ShardBatcher(shards, 9, window=2, prefetch=prefetch)
    batcher.shard(accumulate=2)
    found, whole = [], []
    for batch in batcher:
        pieces = list(batcher.split(3))
        assert sum((piece.number.tolist() for piece, _ in pieces), []) == batch.number.tolist()
        assert sum(weight for _, weight in pieces) == pytest.approx(batcher.weight)
        whole += batch.number.tolist()
        assert batcher.state_dict()["position"] == (len(found) + batcher.last) % 6
        if batcher.last:
            found, whole = [*found, sorted(whole)], []
    assert found == [sorted(batch) for batch in single]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_windows_are_prepared(shards, data, prefetch):
    """Batches are formed of what `prepare` makes of a window, also those that lie in two."""
    seen = []

    def prepare(graphs):
        seen.append(len(graphs))
        node = {"twice": 2 * graphs.node["pos"]}
        return FlatDataset(node, graphs.node_offsets, graph={"number": graphs.graph["number"]}, check=False)

    for batch in ShardBatcher(shards, 7, window=3, prefetch=prefetch, prepare=prepare):
        torch.testing.assert_close(batch.twice, 2 * data.batch(batch.number).pos, rtol=0, atol=0)
    assert len(seen) == 3 and sum(seen) == 50


def test_memory_stays_flat(tmp_path):
    """Graphs in shards of 40 000, written and read as a stream; `make stress` takes ten million."""
    count = int(os.environ.get("ACE_FAST_STRESS_GRAPHS", 400_000))
    done = subprocess.run([sys.executable, "-c", STREAM, str(tmp_path), str(count)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen, total, early, late = map(int, done.stdout.split())
    assert (seen, total) == (count, count * (count - 1) // 2)
    assert late < early + 8_000  # kB; the graphs have 52 bytes each, 21 MB and more


def test_damage_is_named(copy, data):
    path = copy / file_name(1, "pos")
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    shards = ShardedDataset(copy)
    for read in (shards.verify, lambda: shards.read([1]), lambda: list(ShardBatcher(shards, 10))):
        with pytest.raises(ValueError, match=rf"{path} must have the checksum it was written with"):
            read()
    same(shards.read([0]), data.subset(range(20)))
    path.write_bytes(content[:-8])
    with pytest.raises(ValueError, match=rf"{path} must have {len(content)} bytes, got {len(content) - 8}"):
        ShardedDataset(copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} is missing"):
        ShardedDataset(copy)


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: m | {"format": 0}, "must be of version 1, got 0"),
    (lambda m: [m], "must be of version 1, got list"),
    (lambda m: m | {"arrays": {}}, "is damaged"),
    (lambda m: {k: v for k, v in m.items() if k != "shards"}, "is damaged"),
    (lambda m: m | {"arrays": m["arrays"] | {"pos": {"part": "node", "dtype": "float32", "row": [3]}}}, "is damaged"),
    (lambda m: "{", "is damaged"),
])
def test_manifest_of_something_else(copy, change, message):
    changed = change(json.loads((copy / MANIFEST).read_text()))
    (copy / MANIFEST).write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(ValueError, match=message):
        ShardedDataset(copy)


def test_interrupted_writing_is_no_data_set(data, tmp_path):
    def stream():
        yield data
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, stream(), shard_size=20)
    with pytest.raises(FileNotFoundError, match=f"must hold {MANIFEST}, got none; .* interrupted"):
        ShardedDataset(tmp_path)
    assert len(write_shards(tmp_path, data, shard_size=20)) == 50
    with pytest.raises(FileExistsError, match="must not hold shards"):
        write_shards(tmp_path, data)


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"batch_size": 51}, "at most the 50 graphs"),
    ({"batch_size": 10, "window": 0}, "window must be at least 1"),
    ({"batch_size": 10, "prefetch": -1}, "prefetch must be at least 0"),
])
def test_wrong_options(shards, options, message):
    with pytest.raises(ValueError, match=message):
        ShardBatcher(shards, **options)


def test_state_of_another_run(shards):
    batcher = ShardBatcher(shards, 10)
    for name, value in (("batch_size", 5), ("window", 1), ("num_graphs", 60), ("position", 9)):
        with pytest.raises(ValueError, match=f"ShardBatcher: {name} must be"):
            batcher.load_state_dict(batcher.state_dict() | {name: value})
    with pytest.raises(ValueError, match="got one without epoch"):
        batcher.load_state_dict({"position": 0})


def test_pinned_batches_need_a_gpu(shards):
    if torch.cuda.is_available():
        assert next(iter(ShardBatcher(shards, 10, pin=True))).pos.is_pinned()
    else:
        with pytest.raises(ValueError, match="pin must be False where torch sees no GPU"):
            ShardBatcher(shards, 10, pin=True)


def test_parts_with_other_arrays(data, tmp_path):
    with pytest.raises(ValueError, match=r"part 1 must have the arrays of part 0, pos float64 \[3\], .* int64 \[2\]"):
        concatenate([data, graphs(kind=torch.int64)])
    with pytest.raises(ValueError, match="must be data sets, got none"):
        concatenate([])
    with pytest.raises(ValueError, match="write_shards: all graphs must have the arrays .* in shard 1"):
        write_shards(tmp_path, iter([data, graphs(kind=torch.int64)]), shard_size=50)
    with pytest.raises(ValueError, match="at least one graph, got none"):
        write_shards(tmp_path, [])
    half = FlatDataset({"x": torch.zeros(2, dtype=torch.bfloat16)}, torch.arange(3))
    with pytest.raises(ValueError, match="x must have a dtype of numpy's, got bfloat16"):
        write_shards(tmp_path, half)


def molecules():
    """The second has one atom: its numbers of rows alone do not tell what y and pos are."""
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    return [Data(pos=torch.randn(3, 3), z=torch.tensor([8, 1, 1]), edge_index=edges, edge_attr=torch.randn(4, 2),
                 y=torch.randn(1, 19), idx=7, name="water"),
            Data(pos=torch.randn(1, 3), z=torch.tensor([2]), edge_index=edges[:, :0], edge_attr=torch.randn(0, 2),
                 y=torch.randn(1, 19), idx=8, name="helium")]


def test_from_torch_geometric(tmp_path):
    items = molecules()
    data = from_pyg(items)
    assert [sorted(getattr(data, kind)) for kind in ("node", "edge", "graph")] == [["pos", "z"], ["edge_attr"],
                                                                                 ["idx", "y"]]
    batch = write_shards(tmp_path, (from_pyg(items[k : k + 1]) for k in range(2)), shard_size=1).read([1, 0]).batch([1])
    for name in ("pos", "z", "y"):
        torch.testing.assert_close(getattr(batch, name), items[0][name])
    order = items[0].edge_index[1].argsort(stable=True)
    torch.testing.assert_close(batch.edge_attr, items[0].edge_attr[order])
    torch.testing.assert_close(batch.edge_index, items[0].edge_index[:, order])
    assert batch.idx.tolist() == [7]


def test_from_torch_geometric_errors():
    first, second = molecules()
    with pytest.raises(ValueError, match="at least one Data object, got none"):
        from_pyg([])
    with pytest.raises(ValueError, match="charge must have a row for each node, for each edge, or one, got 2 in"):
        from_pyg([Data(pos=first.pos, charge=torch.zeros(2))])
    with pytest.warns(UserWarning, match="infer 'num_nodes'"), pytest.raises(ValueError, match=(
            "graph 1 must have nodes, got neither arrays of nodes nor num_nodes; set its")):
        from_pyg([first, Data(y=torch.zeros(1, 19))])
    with pytest.raises(ValueError, match=r"Data objects, got a HeteroData as graph 1; make one of it with to_homogen"):
        from_pyg([first, HeteroData()])
    with pytest.raises(ValueError, match="graphs must be torch_geometric Data objects, got a tuple as graph 0"):
        from_pyg(first)
    del second.y
    with pytest.raises(ValueError, match="graph 1 must have the attributes of graph 0"):
        from_pyg([first, second])
