"""Steps with the drawing of their batches: what is drawn, what a row says, and what two processes reach."""

from types import SimpleNamespace

import pytest
import torch

from bench import data_parallel, gate, memory, qm9_schnet, tables, workloads


@pytest.fixture(scope="module")
def data():
    return qm9_schnet.load("batch4_table", "cpu", torch.float32)


def test_batches_are_the_same_molecules_in_another_order(data):
    drawn = [data.draw() for _ in range(6)]
    orders = {tuple(target.flatten().tolist()) for _, target in drawn}
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(data.target.flatten().tolist()))}
    assert len(orders) > 1
    for graph, _ in drawn:
        assert (graph.graph.num_nodes, graph.graph.num_edges) == (data.sizes["nodes"], data.sizes["edges"])
        assert graph.graph.adjacency.symmetric and graph.pos.dtype == torch.float32


def test_the_first_step_is_that_of_the_fast_version(data):
    """The loss of the same weights on the same molecules, whatever their order."""
    fast, loading = (qm9_schnet.variant(name, data) for name in ("fast", "end_to_end"))
    torch.testing.assert_close(loading.check()["loss"], fast.check()["loss"], rtol=0, atol=0)
    torch.testing.assert_close(loading.step(), fast.step(), rtol=1e-5, atol=0)


def test_a_row_says_how_many_samples_a_second(monkeypatch, capsys):
    x = torch.linspace(0, 1, 8)
    module = SimpleNamespace(
        EXTRAS=("end_to_end",), GPU_EXTRAS=(), TIMING={},
        load=lambda *case: SimpleNamespace(sizes={"samples": 50}, prepare_ms=0.0),
        variant=lambda name, data: SimpleNamespace(step=lambda: x + 0.0, check=lambda: {"output": x}),
        judge=lambda data, eager: gate.judge({"output": x.double()}, eager, torch.float32),
    )
    monkeypatch.setattr(workloads, "find", lambda name: module)
    monkeypatch.setattr(workloads, "_child", lambda *child: (1.5, memory.RESET))
    row = workloads.run("toy", "one", repeats=2, compiled=False)
    assert row["samples_per_s"] == pytest.approx(50e3 / row["fast_ms"])
    assert row["end_to_end_samples_per_s"] == pytest.approx(50e3 / row["end_to_end_ms"])
    assert row["end_to_end_share"] == pytest.approx(row["fast_ms"] / row["end_to_end_ms"])
    tables.workloads([row])
    assert "toy one (cpu, float32): end to end" in " ".join(capsys.readouterr().out.split())


def test_ratios_of_two_processes_are_those_within_a_round():
    found = data_parallel.summary({"one": [100, 50, 80], "apart": [200, 90, 152], "together": [180, 90, 128]})
    assert found == {"one_per_s": 80, "apart_per_s": 152, "together_per_s": 128, "together_over_one": 1.8,
                     "apart_over_one": 1.9, "together_over_apart": 0.9}
