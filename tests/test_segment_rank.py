"""segment_rank and rank_concat: against Python's sort, uniform ties, NaN, draws, wrong input, calls."""

import itertools

import pytest
import torch

from ace_fast.backend import available
from ace_fast.functional import rank_concat, segment_rank
from ace_fast.kernels.segment_rank.op import segment_rank_op

BACKENDS = [name for name, reason in available("cpu")["segment_rank"].items() if not reason]
PTR = torch.tensor([0, 3, 3, 7])


def ptr_of(sizes):
    return torch.tensor([0, *sizes]).cumsum(0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(5, 0, 12, 1), (80, 3)], ids=["short", "long"])
def test_distinct_scores_are_sorted_whatever_the_seed(backend, sizes):
    score = torch.randn(sum(sizes), dtype=torch.float64)
    rank, order = segment_rank(score, ptr_of(sizes), torch.tensor([1, 2]), backend=backend)
    for start, stop in itertools.pairwise(ptr_of(sizes).tolist()):
        expected = sorted(range(start, stop), key=score.tolist().__getitem__)
        for k in range(2):
            assert order[k, start:stop].tolist() == expected
            assert rank[k, expected].tolist() == list(range(stop - start))


def test_equal_scores_in_random_order():
    """All orders of three tied nodes are equally likely, those of the others are fixed; draws and segments differ."""
    score = torch.tensor([1.0, 0, 1, 1, 2] * 2)
    rank, _ = segment_rank(score, ptr_of([5, 5]), torch.arange(1200))
    found = rank.view(1200, 2, 5)
    assert (found[..., 1] == 0).all() and (found[..., 4] == 4).all()
    assert (found[:, 0] != found[:, 1]).any()
    tied = found[..., [0, 2, 3]].flatten(0, 1)
    counts = tied.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert (counts - 400).square().sum() / 400 < 20.5  # chi-squared of 5 degrees of freedom, one in a thousand


@pytest.mark.parametrize("length", [40, 200])
def test_the_same_seed_gives_the_same_order_everywhere(length):
    score = torch.randint(0, 3, (length,)).float()
    found = [segment_rank(score, ptr_of([length]), -7, backend=backend)[0] for backend in BACKENDS]
    assert all(torch.equal(found[0], x) for x in found)
    assert not torch.equal(found[0], segment_rank(score, ptr_of([length]), -8)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [9, 70], ids=["short", "long"])
def test_tolerance_joins_steps(backend, length):
    """0, 0.1, 0.2 are one group at 0.1 and three at less; the next one is apart."""
    score = torch.full((length,), 9.0, dtype=torch.float64)
    score[:4] = torch.tensor([0.0, 0.125, 0.25, 1.0])
    seeds = torch.arange(8)
    apart, _ = segment_rank(score, ptr_of([length]), seeds, tolerance=0.0625, backend=backend)
    assert (apart[:, :4] == torch.arange(4)).all()
    joined, _ = segment_rank(score, ptr_of([length]), seeds, tolerance=0.125, backend=backend)
    assert (joined[:, 3] == 3).all() and (joined[:, 0] == 2).any() and (joined[:, 2] == 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [8, 80], ids=["short", "long"])
def test_nan_scores_come_last_and_show(backend, length):
    score = torch.arange(length, dtype=torch.float32)
    score[[0, 2]] = torch.nan
    score[1] = torch.inf
    ptr = ptr_of([length])
    rank, order = segment_rank(score, ptr, 3, backend=backend)
    assert (rank[0, [0, 2]] == -1).all() and rank[0, 1] == length - 3
    assert rank[0, 3:].tolist() == list(range(length - 3))
    assert set(order[0, -2:].tolist()) == {0, 2}
    table = torch.ones(length, 2, requires_grad=True)
    y = rank_concat(torch.zeros(length, 1), table, rank, order, ptr, backend=backend)
    assert y[0, [0, 2], 1:].isnan().all() and not y[0, 3:].isnan().any() and not y[0, :, 0].isnan().any()
    (g,) = torch.autograd.grad(y[0, :, 1:], table, torch.ones(length, 2), create_graph=True)
    assert torch.equal(g.detach(), (torch.arange(length) < length - 2).float()[:, None].expand(-1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rank_without_a_vector_is_nan(backend):
    rank, order = segment_rank(torch.arange(7.0), PTR, 0, backend=backend)
    y = rank_concat(torch.zeros(7, 0), torch.ones(3, 1), rank, order, PTR, backend=backend)
    assert y[0, :, 0].isnan().tolist() == [False] * 6 + [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_no_segment(backend):
    """A ptr that nobody checked is never read beyond, and says what has no segment."""
    score = torch.zeros(6)
    for ptr in ([1, 4], [0], [-3, 2, 99], [4, 1]):
        rank, order = segment_rank_op(score, torch.tensor(ptr), torch.tensor([5]), 6, 0.0, backend)
        assert ((rank >= -1) & (rank < 6)).all() and ((order >= 0) & (order < 6)).all()
    rank, order = segment_rank_op(score, torch.tensor([1, 4]), torch.tensor([5]), 3, 0.0, backend)
    assert rank[0, [0, 4, 5]].tolist() == [-1] * 3 and order[0, [0, 4, 5]].tolist() == [0, 4, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_sums_over_draws_and_segments(backend):
    score, x = torch.tensor([0.0, 1, 2, 0, 0, 1, 1]), torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    table = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rank, order = segment_rank(score, PTR, torch.tensor([1, 2, 3]), backend=backend)
    y = rank_concat(x, table, rank, order, PTR, backend=backend)
    assert torch.equal(y, torch.cat([x.expand(3, 7, 2), table[rank]], -1))
    g = torch.randn_like(y)
    g_x, g_table = torch.autograd.grad(y, (x, table), g)
    torch.testing.assert_close(g_x, g[..., :2].sum(0))
    expected = torch.stack([g[..., 2:][rank == r].sum(0) for r in range(4)])
    torch.testing.assert_close(g_table, expected)


@pytest.mark.parametrize("change, message", [
    ({"score": [1.0]}, "segment_rank: score must be a tensor, got list; use torch.as_tensor"),
    ({"score": torch.zeros(7, 1)}, r"score must be \[N\], got \[7, 1\]; one number for each node"),
    ({"score": torch.zeros(7).long()}, "first argument must be float32 or float64, got torch.int64"),
    ({"ptr": torch.tensor([0, 3, 8])}, "ptr must be ascending from 0 to 7, the rows, got 0 to 8"),
    ({"ptr": torch.tensor([0, 5, 3, 7])}, "ptr must be ascending from 0 to 7, the rows, got a descent"),
    ({"ptr": torch.tensor([0.0, 7.0])}, r"ptr must be int64 \[B \+ 1\] on cpu, got torch.float32"),
    ({"ptr": torch.zeros(0).long()}, r"ptr must be \[B \+ 1\], got \[0\]; no sets are ptr = \[0\]"),
    ({"seed": 1.5}, r"seed must be a whole number of 64 bits, or int64 \[K\], got 1.5"),
    ({"seed": torch.zeros(2)}, r"seed must be a whole number, or int64 \[K\], got torch.float32 \[2\]"),
    ({"tolerance": -1.0}, "tolerance must be 0 or more, and finite, got -1.0"),
    ({"tolerance": float("nan")}, "tolerance must be 0 or more, and finite, got nan"),
    ({"longest": 9}, "longest must be in 0..7, the nodes, got 9; it is the size of the largest segment"),
    ({"backend": "cuda"}, "backend must be one of"),
])
def test_wrong_input_of_ranks(change, message):
    arguments = {"score": torch.zeros(7), "ptr": PTR, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        segment_rank(**arguments)


@pytest.mark.parametrize("change, message", [
    ({"x": torch.zeros(7)}, r"rank_concat: x must be \[N, F\], got \[7\]"),
    ({"table": torch.zeros(4)}, r"table must be \[T, C\], got \[4\]"),
    ({"table": torch.zeros(4, 2).double()}, "table must be torch.float32 on cpu, got torch.float64"),
    ({"rank": torch.zeros(1, 6).long(), "order": torch.zeros(1, 6).long()},
     r"rank must be \[K, 7\], a column for each row of x, got \[1, 6\]"),
    ({"order": torch.zeros(2, 7).long()}, r"order must be \[1, 7\] like rank, got \[2, 7\]"),
    ({"rank": torch.zeros(7).long()}, r"rank must be int64 \[K, N\] on cpu, got torch.int64 \[7\]"),
    ({"ptr": torch.zeros(0).long()}, r"ptr must be \[B \+ 1\], got \[0\]"),
])
def test_wrong_input_of_vectors(change, message):
    rank, order = segment_rank(torch.zeros(7), PTR, 0)
    arguments = {"x": torch.zeros(7, 2), "table": torch.zeros(4, 2), "rank": rank, "order": order, "ptr": PTR} | change
    with pytest.raises(ValueError, match=message):
        rank_concat(**arguments)


def test_forward_mode_raises():
    rank, order = segment_rank(torch.zeros(7), PTR, 0)
    with pytest.raises(NotImplementedError, match="rank_concat: forward-mode"):
        torch.func.jvp(lambda x: rank_concat(x, torch.zeros(4, 2), rank, order, PTR), (torch.zeros(7, 1),),
                       (torch.zeros(7, 1),))


def test_scores_are_constants():
    score = torch.randn(7, requires_grad=True)
    rank, order = segment_rank(score, PTR, 0)
    assert not rank.requires_grad and not order.requires_grad
