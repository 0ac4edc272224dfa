"""segment_sum and gather: indices outside the range, determinism, shapes, errors, limits."""

import pytest
import torch

from ace_fast.backend import available
from ace_fast.graph import Graph, Segments, segments
from ace_fast.kernels.segment_sum import gather, segment_sum
from ace_fast.kernels.segment_sum.op import segment_sum_bwd, segment_sum_op

BACKENDS = [name for name, reason in available("cpu")["segment_sum"].items() if not reason]
INDEX = torch.tensor([2, 0, 2, 1, 2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gather_masks_indices_outside(backend):
    g = torch.randn(3, 4, dtype=torch.float64)
    index = torch.tensor([0, -1, 2, 3, 1 << 40])
    s = segments(INDEX, 3)
    out = segment_sum_bwd(g, index, s.order, s.ptr, backend)
    assert torch.equal(out[[0, 2]], g[[0, 2]])
    assert (out[[1, 3, 4]] == 0).all()


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_sum_never_reads_rows_outside(backend):
    """A damaged order or ptr leaves rows out instead of reading elsewhere; the reference needs only the index."""
    # compiled Triton takes tensors of a GPU, interpreted and C++ those of the CPU
    device = "cuda" if backend == "triton" and available("cpu")["segment_sum"]["triton"] else "cpu"
    if reason := available(device)["segment_sum"][backend]:
        pytest.fail(f"{backend} is missing: {reason}")
    x = torch.randn(5, 4, dtype=torch.float64, device=device)
    order = torch.tensor([1, -1, 0, 5, 1 << 40], device=device)
    out = segment_sum_op(x, INDEX.to(device), order, torch.tensor([-3, 1, 2, 900], device=device), backend)
    assert torch.equal(out[0], x[1])
    assert (out[1] == 0).all()
    assert torch.equal(out[2], x[0])


def test_reference_leaves_out_indices_outside():
    x = torch.randn(3, 2)
    out = segment_sum_op(x, torch.tensor([0, -1, 2]), torch.arange(3), torch.tensor([0, 1, 1]), "reference")
    assert torch.equal(out, torch.stack([x[0], torch.zeros(2)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_trailing_shape_and_adjointness(backend):
    s = segments(INDEX, 4)
    x, g = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    total, rows = segment_sum(x, s, backend=backend), gather(g, s, backend=backend)
    assert total.shape == (4, 2, 3) and rows.shape == (5, 2, 3)
    assert (total[3] == 0).all()
    torch.testing.assert_close((total * g).sum(), (rows * x).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_agree_to_the_bit(backend):
    s = segments(torch.randint(0, 3, (200,)), 3)
    x = torch.randn(200, 5)
    assert torch.equal(segment_sum(x, s, backend=backend), segment_sum(x, s, backend=backend))


def test_constant_that_requires_grad_raises():
    s = segments(INDEX, 3)
    broken = Segments(s.index.float().requires_grad_(), s.order, s.ptr)
    with pytest.raises(ValueError, match="index must be a constant, got a tensor that requires grad; detach it"):
        segment_sum(torch.zeros(5, 2), broken)


@pytest.mark.parametrize("function", [segment_sum, gather])
def test_an_index_is_not_segments(function):
    message = rf"{function.__name__}: segments must be Segments .*, got Tensor; use ace_fast.segments\(index, n\)"
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(5, 2), INDEX)


@pytest.mark.parametrize("index, count, message", [
    ([0, 2], 3, r"index must be an int64 tensor \[E\], got list; use torch.as_tensor"),
    (INDEX[None], 3, r"index must be \[E\], got \[1, 5\]"),
    (INDEX.double(), 3, r"index must be int64, got torch.float64; use index.long\(\)"),
    (torch.tensor([0, 5]), 3, "index must lie in 0..2, got 5; check num_segments"),
    (torch.tensor([0, -1]), 3, "index must lie in 0..2, got -1; check num_segments"),
    (INDEX, 2.5, "num_segments must be a whole number, 0 or more, got 2.5; pass an int"),
    (INDEX, -1, "num_segments must be a whole number, 0 or more, got -1"),
])
def test_wrong_segments(index, count, message):
    with pytest.raises(ValueError, match=f"segments: {message}"):
        segments(index, count)


@pytest.mark.parametrize("edges, nodes, message", [
    ([[0], [1]], 3, r"edge_index must be an int64 tensor \[2, E\], got list; use torch.as_tensor"),
    (torch.zeros(3, 2, dtype=torch.int64), 3, r"edge_index must be \[2, E\], got \[3, 2\]"),
    (torch.zeros(2, 2), 3, r"edge_index must be int64, got torch.float32; use edge_index.long\(\)"),
    (torch.tensor([[0], [3]]), 3, "edge_index must lie in 0..2, got 3; check num_nodes and the offsets"),
    (torch.tensor([[0], [1]]), -3, "num_nodes must be a whole number, 0 or more, got -3; pass an int"),
    (torch.tensor([[0], [1]]), 3.5, "num_nodes must be a whole number, 0 or more, got 3.5"),
    (torch.tensor([[2], [2]]), (2, 3), r"edge_index\[0\] must lie in 0..1, got 2; num_nodes is \(num_sources, num_tar"),
    (torch.tensor([[2], [2]]), (3, 2), r"edge_index\[1\] must lie in 0..1, got 2; num_nodes is"),
    (torch.tensor([[0], [-1]]), (3, 2), r"edge_index\[1\] must lie in 0..1, got -1; num_nodes is"),
    (torch.tensor([[0], [1]]), (3, 2, 1), r"num_nodes must be an int or a pair \(num_sources, num_targets\), got 3 n"),
    (torch.tensor([[0], [1]]), (3, -1), r"num_nodes\[1\] must be a whole number, 0 or more, got -1; pass an int"),
])
def test_wrong_graphs(edges, nodes, message):
    with pytest.raises(ValueError, match=f"Graph: {message}"):
        Graph(edges, nodes)


def test_bipartite_graph():
    """Sources and targets are different nodes, each row of edge_index has its own range."""
    graph = Graph(torch.tensor([[4, 0, 4], [1, 1, 0]]), (5, 2))
    assert graph.num_nodes == (5, 2) and graph.num_sources == 5 and graph.num_targets == 2
    assert graph.sources.ptr.tolist() == [0, 1, 1, 1, 1, 3] and graph.targets.ptr.tolist() == [0, 1, 3]
    assert graph.degree.tolist() == [1, 2]
    assert repr(graph) == "Graph(5 sources, 2 targets, 3 edges)"
    plain = Graph(torch.tensor([[1], [0]]), 2)
    assert plain.num_nodes == plain.num_sources == plain.num_targets == 2 and repr(plain) == "Graph(2 nodes, 1 edges)"
    nothing = Graph(torch.zeros(2, 0, dtype=torch.int64), (0, 3))
    assert nothing.degree.tolist() == [0, 0, 0] and nothing.sources.ptr.tolist() == [0]


def test_indices_are_read_once(monkeypatch):
    """Each read is a synchronisation on a GPU: one for segments, one for a graph with both its orders."""
    reads, original = [], torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *a, **k: reads.append(1) or original(*a, **k))
    segments(INDEX, 3)
    assert len(reads) == 1
    Graph(torch.stack([INDEX, INDEX.flip(0)]), 3)
    assert len(reads) == 2
    Graph(torch.stack([INDEX, INDEX.flip(0)]), (3, 4))
    assert len(reads) == 3
    assert segments(INDEX[:0], 0).ptr.tolist() == [0] and len(reads) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_segments_made_in_inference_mode_can_train(backend):
    with torch.inference_mode():
        made = segments(INDEX.clone(), 3)
        graph = Graph(torch.stack([INDEX, INDEX]), 3)
    assert not any(t.is_inference() for t in (*made, *graph.sources, *graph.targets, graph.edge_index))
    x = torch.ones(5, 2, requires_grad=True)
    for s in (made, graph.targets):
        (grad,) = torch.autograd.grad(segment_sum(x, s, backend=backend).square().sum(), x)
        assert grad[:, 0].tolist() == [6, 2, 6, 2, 6]


@pytest.mark.parametrize("function, rows", [(segment_sum, 5), (gather, 3)])
def test_forward_mode_raises(function, rows):
    s = segments(INDEX, 3)
    x = torch.randn(rows, 2)
    with pytest.raises(NotImplementedError, match=f"{function.__name__}: forward-mode derivatives"):
        torch.func.jvp(lambda x: function(x, s), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(5, 2, dtype=torch.int64)}, "the first argument must be float32 or float64, got torch.int64"),
        ({"x": torch.zeros(5)}, r"the first argument must be \[rows, C\], got \[5\]"),
        ({"x": torch.zeros(4, 2)}, r"x must be \[5, C\] like index, got \[4, 2\]"),
        ({"index": INDEX.int()}, r"index must be int64 \[length\] on cpu, got torch.int32 \[5\] on cpu"),
        ({"index": INDEX.to("meta")}, r"index must be int64 \[length\] on cpu, got torch.int64 \[5\] on meta"),
        ({"order": INDEX[:4]}, r"order must be \[5\] like index, got \[4\]"),
        ({"ptr": INDEX[:0]}, r"ptr must be \[N \+ 1\], got \[0\]"),
        ({"backend": "fast"}, r"backend must be one of \['auto', .*\], got 'fast'"),
    ],
)
def test_wrong_arguments(change, message):
    s = segments(INDEX, 3)
    arguments = {"x": torch.zeros(5, 2), "index": s.index, "order": s.order, "ptr": s.ptr, "backend": "auto"} | change
    with pytest.raises(ValueError, match=f"segment_sum: {message}"):
        segment_sum_op(*arguments.values())


def test_wrong_gradient():
    s = segments(INDEX, 3)
    with pytest.raises(ValueError, match=r"segment_sum_bwd: g must be \[3, C\], got \[4, 2\]"):
        segment_sum_bwd(torch.zeros(4, 2), *s, "auto")
