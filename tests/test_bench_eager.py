"""The eager columns do the work of the original structure: matrix products, rows and passes over edges by hand counts.

Formulas are those of the originals as they are published, nothing refactored: every map of an edge feature on all
edges, filters of all edges, messages gathered, concatenated and added. So the eager time is that of the original
structure on whatever machine it is taken; nothing here is timed.
"""

from collections import Counter

import pytest
import torch
from operator_calls import Calls
from torch.utils.flop_counter import FlopCounterMode

from bench import eager, workloads


def counted(call):
    """(operations of the matrix products, calls by operator) of a forward pass."""
    with FlopCounterMode(display=False) as flops, Calls() as calls, torch.no_grad():
        call()
    return flops.get_total_flops(), Counter(call.split(".")[1] for call in calls.names)


@pytest.fixture(scope="module")
def load():
    """load(workload, case) -> (its data, its eager model, a forward pass of it)."""
    def make(name: str, case: str):
        module = workloads.find(name)
        data = module.load(case, "cpu", torch.float32)
        if name == "modelnet_vndgcnn":
            model = module._build(module.EagerVNDGCNN, data, True)
            return data, model, lambda: model(data.x)
        task = module.TASK if hasattr(module, "TASK") else module._task(data)
        model = task.model(task.eager).train()
        return data, model, lambda: model(data.graph)

    return make


def test_schnet(load):
    data, _, call = load("qm9_schnet", "batch4")
    n, e, (h, f, g, layers) = data.sizes["nodes"], data.sizes["edges"], (64, 64, 50, 6)
    flops, calls = counted(call)
    filters, nodes = 2 * e * (g * f + f * f), 2 * n * (h * f + f * h + h * h)
    branch, readout = 2 * n * (3 * h + layers * h * h), 2 * n * (h * h // 2 + h // 2)
    assert flops == layers * (filters + nodes) + branch + readout
    assert calls["index_add_"] == layers + 1 and calls["exp"] == 1  # messages and molecules; smeared once
    assert calls["index"] == layers + 2  # sources of the messages; both ends of the distances
    assert calls["softplus"] == 2 * layers + 1 and calls["native_batch_norm"] == layers


def test_egno(load):
    data, _, call = load("mocap_egno", "batch2")
    n, e, h, layers, modes, steps = data.sizes["nodes"], data.sizes["edges"], 128, 6, 2, 5
    flops, calls = counted(call)
    message, force = 2 * e * ((1 + 2 * h + 2) * h + h * h), 2 * e * (h * h + h)
    nodes = 2 * n * (2 * h * h + h * h) + 2 * n * (h * h + h)
    spectral = 2 * modes * (n // steps) * (h * h + 3 * 2 * 2)  # complex products, counted as one operation each
    branches = 2 * n * (h * h + 9 + 3 * h + h * 3)
    assert flops == layers * (message + force + nodes + spectral + branches) + 2 * 2 * n * (2 + 32) * h
    assert calls["_fft_r2c"] == calls["_fft_c2r"] == 2 * layers
    assert calls["index_add_"] == 3 * layers and calls["index"] == 4 * layers  # force, count, message; x and h at ends


def test_vndgcnn(load):
    data, _, call = load("modelnet_vndgcnn", "clouds2x40")
    b, n, k = 2, 40, 20
    flops, calls = counted(call)

    def layer(rows: int, inner: int, outer: int, directions: int) -> int:
        """Features and directions, both with their unconstrained maps."""
        return 2 * rows * (3 * inner * (outer + directions) + 3 * inner * 3 * (outer + directions))

    edges = sum(layer(b * n * k, i, o, o) for i, o in ((2, 21), (42, 21), (42, 42), (84, 85)))
    distances = sum(2 * b * n * n * 3 * c for c in (1, 21, 21, 42))
    nodes = layer(b * n, 169, 341, 1) + layer(b * n, 682, 341, 341) + layer(b * n, 341, 170, 170)
    frame = 2 * b * n * 3 * 170 * 3 + 2 * b * n * 682 * 3 * 3
    head = 2 * b * (4092 * 512 + 512 * 256 + 256 * 40)
    assert flops == edges + distances + nodes + frame + head
    assert calls["topk"] == calls["index"] == 4  # neighbours of each edge layer, gathered


def test_segnn(load):
    """e3nn's own product on all edges twice a layer, on all nodes twice; branches of 24 N D^2 operations a layer."""
    data, model, call = load("nbody_segnn", "batch3")
    n, e, width, layers, rows = data.sizes["nodes"], data.sizes["edges"], 128, 4, []
    for module in model.modules():
        if isinstance(module, eager.EagerTensorProduct):
            module.tp.register_forward_hook(lambda _, inputs, output: rows.append(inputs[0].shape[0]))
    with FlopCounterMode(display=False) as flops, Calls() as calls, torch.no_grad():
        call()
    assert rows == [n] + [e, e, n, n] * layers + [n, n] and calls.names.count("aten.index_add_.default") == layers
    found = flops.get_flop_counts()
    branches = [sum(x.values()) for name, x in found.items() if ".lin_noneq" in name and name.count(".") == 3]
    assert len(branches) == 2 * layers and sum(branches) == layers * 24 * n * width**2


@pytest.mark.parametrize(("workload", "small", "large"), [
    ("qm9_schnet", "batch2", "batch5"), ("mocap_egno", "batch2", "batch3"),
])
def test_a_step_has_as_many_calls_whatever_the_batch(workload, small, large):
    """No loop over samples makes eager slow; the only loop is the original's over the gammas."""
    module = workloads.find(workload)
    found = []
    for case in (small, large):
        step = module.variant("eager", module.load(case, "cpu", torch.float32)).step
        step()  # what is made once
        found.append(workloads.calls(step))
    assert found[0] == found[1]
