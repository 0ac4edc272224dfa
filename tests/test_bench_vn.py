"""The vector-neuron workloads at toy size: equal numbers on equal neighbours, and a gate that refuses what is wrong."""

import math

import pytest
import torch

from ace_fast import functional
from bench import eager_vn, gate, knn, memory, modelnet_vndgcnn, workloads
from bench.neighbours import Neighbours, excess


@pytest.fixture
def run(monkeypatch):
    """One row of a workload, without the processes that measure memory."""
    monkeypatch.setattr(workloads, "_child", lambda *a: (1.5, memory.RESET))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda workload, case: workloads.run(workload, case, repeats=1, compiled=False)
    torch.set_num_threads(before)


# the rule for kinks


def test_a_jump_of_rounding_size_is_no_error():
    gold = {"output": torch.ones(4), "gradient of w": torch.ones(4000, dtype=torch.float64)}
    judge = gate.kinked(gold, gold, torch.float32, {}, 1)
    one = gold["gradient of w"].clone()
    one[7] += 0.05  # 50 epsilons of the rule for values, but 0.0008 of the norm
    assert judge("fast", gold | {"gradient of w": one})[0] == ""
    one[7] += 0.05
    assert "gradient of w is wrong: relative error 0.00158 > 0.00138" in judge("fast", gold | {"gradient of w": one})[0]
    assert "output is wrong" in judge("fast", gold | {"output": torch.full((4,), 1 + 1e-5)})[0]
    assert "relative error nan" in judge("fast", {"output": torch.ones(4)})[0]


def test_a_long_sum_is_judged_by_its_terms():
    gold = {"gradient of gamma": torch.zeros((), dtype=torch.float64)}
    judge = gate.kinked(gold, gold, torch.float32, {"gradient of gamma": 100.0}, 2500)
    limit = 100 * (16 * 2**-23 + 4 * math.sqrt(2**-23 / 2500))
    assert judge("fast", {"gradient of gamma": torch.tensor(0.99 * limit)})[0] == ""
    assert judge("fast", {"gradient of gamma": torch.tensor(1.01 * limit)})[0].startswith("gradient of gamma is wrong")


def test_the_worst_of_several_runs_is_eager():
    gold = {"output": torch.zeros(2, dtype=torch.float64)}
    runs = [{"output": torch.full((2,), error)} for error in (1e-3, 3e-3, 2e-3)]
    assert gate.limits(gold, runs, torch.float32)["output"] == pytest.approx(6e-3)
    assert gate.limits(gold, runs, torch.float64, own=torch.float64)["output"] == pytest.approx(6e-3)


# neighbours


def test_neighbours_are_recorded_and_given():
    x = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0))
    columns = x.transpose(1, 2)
    with Neighbours(2) as seen:
        fast, eager = functional.knn(x, 4), eager_vn.nearest(columns, 4)
    assert torch.equal(seen.found[0], fast) and torch.equal(seen.found[1], eager)
    other = torch.randint(0, 30, (2, 30, 4))
    with Neighbours(2, [other, other]):
        assert torch.equal(functional.knn(x, 4), other) and torch.equal(eager_vn.nearest(columns, 4), other)


def test_neighbours_that_are_not_the_nearest_show():
    x = torch.tensor([[[0.0], [1.0], [3.0]]])
    with Neighbours(1) as seen:
        functional.knn(x, 2)
    assert excess(seen)["excess of knn 0"] == 0
    with Neighbours(1, [torch.tensor([[[0, 2], [1, 0], [2, 1]]])]) as seen:
        functional.knn(x, 2)
    # 0 -> 2 is at 9 instead of 1; the largest of the nearest is at 4
    assert excess(seen)["excess of knn 0"] == 2


def test_distances_of_the_nearest():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]]])
    least = knn.least(x, 2)
    assert least.dtype == torch.float64
    assert least.flatten().tolist() == pytest.approx([0, 1, 0, 1, 0, 20], abs=1e-14)
    assert torch.equal(knn.distances(x, torch.tensor([[[2], [2], [0]]])).flatten().long(), torch.tensor([25, 20, 25]))


# rows


@pytest.mark.parametrize(("workload", "case"), [
    ("knn", "3x40_7_k5"), ("vn_edge_conv", "3_5_2x24_k7"), ("vn_edge_conv", "3_5_2x24_k7_forward"),
    ("vn_linear", "682_12_2x20"), ("vn_linear", "169_5_2x20"), ("vn_linear", "7_5_2x20_forward"),
])
def test_layers_are_equal_and_timed(workload, case, run):
    row = run(workload, case)
    assert "error" not in row
    assert all(row[key] > 0 for key in ("eager_ms", "fast_ms", "speedup", "fast_calls", "clouds", "points"))
    assert row["fast_max_relative_error"] < 1e-4


def test_a_wrong_layer_is_not_timed(run, monkeypatch):
    right = functional.vn_edge_conv
    monkeypatch.setattr(functional, "vn_edge_conv", lambda *a, **options: right(*a, **options) * (1 + 1e-5))
    row = run("vn_edge_conv", "3_5_2x24_k7")
    assert "fast differs from the reference: output is wrong" in row["error"] and row["fast_ms"] is None


def test_wrong_neighbours_are_not_timed(run, monkeypatch):
    right = functional.knn
    monkeypatch.setattr(functional, "knn", lambda x, k: right(x, k + 1)[..., 1:])
    assert "distances is wrong" in run("knn", "3x40_7_k5")["error"]


def test_modelnet_vndgcnn_end_to_end(run, monkeypatch):
    """The models on four clouds: equal outputs, loss and gradients; branches off, the calls are the strict model's."""
    monkeypatch.setattr(modelnet_vndgcnn, "TIMING", {"warmup": 0})
    row = run("modelnet_vndgcnn", "clouds4x24")
    assert "error" not in row, row["error"]
    assert all(row[f"{name}_ms"] > 0 for name in ("eager", "fast", "strict", "branches_off"))
    assert (row["clouds"], row["points"], row["gate_clouds"]) == (4, 24, 4)
    assert row["strict_calls"] == row["branches_off_calls"] < row["fast_calls"]
