"""What SEGNN and its graphs say about bad input."""

from types import SimpleNamespace

import pytest
import torch
from test_segnn import NODE, model_of, random_batch

from ace_fast import Graph
from ace_fast.models import SEGNN, nbody_graph


@pytest.mark.parametrize("change, message", [
    ({"x": torch.zeros(9, 6)}, r"SEGNN: x must be \[9, 7\], got \[9, 6\]; build the graph and the model for the same"),
    ({"edge_attr": torch.zeros(33, 9)}, r"SEGNN: edge_attr must be \[33, 4\], got \[33, 9\]"),
    ({"edge_attr": torch.zeros(32, 4)}, r"SEGNN: edge_attr must be \[33, 4\], got \[32, 4\]"),
    ({"node_attr": torch.zeros(9, 9)}, r"SEGNN: node_attr must be \[9, 4\], got \[9, 9\]"),
    ({"node_attr": torch.zeros(9)}, r"SEGNN: node_attr must be \[9, 4\], got \[9\]"),
    ({"additional_message_features": torch.zeros(33, 1)}, r"message_features must be \[33, 2\], got \[33, 1\]"),
    ({"additional_message_features": None}, r"message_features must be \[33, 2\] \(None for 0\), got None"),
    ({"graph": Graph(torch.zeros(2, 33, dtype=torch.int64), 8)}, "the graph must have 9 nodes as x, got 8"),
    ({"graph": None, "edge_index": torch.tensor([[0], [9]])}, r"edge_index must lie in 0..8, got 9; check num_nodes"),
    ({"graph": None, "edge_index": torch.tensor([[-1], [0]])}, r"edge_index must lie in 0..8, got -1"),
], ids=lambda v: "" if isinstance(v, str) else "-".join(v))
def test_wrong_graphs_raise(change, message):
    graph = nbody_graph(random_batch(torch.float32))
    vars(graph).update(change)
    with pytest.raises(ValueError, match=message):
        model_of(SEGNN, "node")(graph)


def test_wrong_batches_raise():
    batch = random_batch(torch.float32)
    for name, value, message in (
        ("pos", torch.zeros(9, 2), r"pos must be \[N, 3\], got \[9, 2\]"),
        ("vel", torch.zeros(8, 3), r"nbody_graph: vel must be \[9, 3\], got \[8, 3\]"),
        ("charges", torch.zeros(9), r"nbody_graph: charges must be \[9, 1\], got \[9\]"),
    ):
        wrong = SimpleNamespace(**vars(batch) | {name: value})
        with pytest.raises(ValueError, match=message):
            nbody_graph(wrong)
    with pytest.raises(ValueError, match="graph must have 9 nodes as pos, got 5; reuse it only for"):
        nbody_graph(batch, graph=Graph(torch.zeros(2, 1, dtype=torch.int64), 5))
    graph = nbody_graph(batch)
    with pytest.raises(ValueError, match="float64"):
        model_of(SEGNN, "node").double()(graph)


@pytest.mark.parametrize("changes, message", [
    ({"task": "edge"}, r"task must be one of \('graph', 'node'\), got 'edge'"),
    ({"pool": "max"}, r"pool must be one of \('avg', 'sum'\), got 'max'"),
    ({"norm": "layer"}, "norm must be None, 'batch' or 'instance', got 'layer'"),
])
def test_wrong_options_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        model_of(SEGNN, "node", **changes)


def test_wrong_irreps_raise():
    with pytest.raises(ValueError, match=r"node_attr_irreps must begin with 0e, got 1x1o; use Irreps.spherical_harm"):
        SEGNN("1x0e", "4x0e", "1x0e", "1x0e+1x1o", "1x1o", 1)
    with pytest.raises(ValueError, match="edge_attr_irreps must begin with 0e, got"):
        SEGNN("1x0e", "4x0e", "1x0e", "", "1x0e", 1)
    with pytest.raises(ValueError, match="must be reachable"):
        SEGNN("1x0e", "4x0e+4x1o", "1x0e", "1x0e", "1x0e", 1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model_of(SEGNN, "node").load_state_dict(
            SEGNN(NODE[0], "5x0e+4x1o", *NODE[2:], task="node", additional_message_irreps="2x0e").state_dict())
