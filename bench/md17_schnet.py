"""Workload `md17_schnet`: one optimiser step of ACE-SchNet on energies and forces; versions: bench/training.py.

64 channels and filters, 50 Gaussians, 6 interactions, 10 Å, relaxed; forward, forces as the gradient of the energy,
mean squared error of both (forces 100 times), backward through the forces, Adam, dual step. Conformations of aspirin
(21 atoms) from the revised MD17 where shared/data/rmd17.npz is at hand, else generated molecules. Edges are found once
before the step, distances in it. Cases: batchN with exact filters, batchN_table with filters from a table of 1024
knots. torch.compile cannot differentiate twice: it has no column.
"""

import time
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from ace_fast.data import md17

from . import gate, molecules, steps, training
from .eager_schnet import EagerSchNet
from .qm9_schnet import HIDDEN, FastSchNet, batch_of, model_of, parse
from .training import EXTRAS, GPU_EXTRAS, Data  # noqa: F401  a workload's names

CASES, GPU_CASES = ("batch32_table", "batch32"), ("batch256_table",)
QUICK = "batch4_table"
TIMING = {"burst": 2, "warmup": 2, "budget_s": 120.0}
MOLECULE, FORCES = "aspirin", 100.0
ATOMS = 21
TABLE = {"output": 1e-5, "loss": 2e-5, "gradient": 2e-3}  # what functional.cfconv states of a table's derivatives


def conformations(count: int) -> tuple[Tensor, Tensor, Tensor, str]:
    """z [N], pos [N, 3] Å, target [N + count, 3]: forces in eV/Å, then energies above their mean (first column)."""
    file = molecules.find_file("rmd17.npz")
    if file is None:
        g = np.random.RandomState(0)
        z = torch.from_numpy(np.tile(g.choice(molecules.ELEMENTS, ATOMS), count).astype(np.int64))
        pos = torch.from_numpy(np.concatenate([molecules.tree(g, ATOMS) for _ in range(count)]))
        force, energy = torch.from_numpy(g.normal(size=(len(pos), 3))), torch.from_numpy(g.normal(size=count))
        source = "generated"
    else:
        data = md17(file, molecule=MOLECULE)
        if count > len(data):
            raise ValueError(f"md17_schnet: the case must have at most {len(data)} conformations, got {count}")
        chosen, source = data.batch(range(count)), "rMD17"
        z, pos, force, energy = chosen.z, chosen.pos, chosen.forces, chosen.energy
    rows = torch.zeros(count, 3, dtype=torch.float64)
    rows[:, 0] = energy - energy.mean()
    return z, pos, torch.cat([force, rows]), source


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """The case's batch and weights, the same in every process."""
    count, kind = parse("md17_schnet", case, "conformations")
    z, pos, target, source = conformations(count)
    start = time.perf_counter()
    atoms = len(z) // count
    pairs = (~torch.eye(atoms, dtype=torch.bool)).nonzero().t()  # within 10 Å: all, cut off below
    edges = (pairs[:, None] + atoms * torch.arange(count)[None, :, None]).flatten(1)
    edges = edges[:, (pos[edges[0]] - pos[edges[1]]).norm(dim=1) < 10.0]
    graph = batch_of(z, pos, torch.full((count,), atoms), edges, device, dtype)
    graph.pos.requires_grad_()
    prepare_ms = 1e3 * (time.perf_counter() - start)
    sizes = {"molecules": count, "nodes": len(z), "edges": edges.shape[1], "source": source, "filter": kind}
    return Data(graph, target.to(device, dtype), steps.state_of(lambda: model_of(FastSchNet, "exact")), prepare_ms,
                sizes)


def _loss(output: Tensor, graph: SimpleNamespace, target: Tensor) -> tuple[Tensor, Tensor]:
    """(forces and energies, loss)"""
    (slope,) = torch.autograd.grad(output.sum(), graph.pos, create_graph=True)
    n = len(slope)
    loss = FORCES * (-slope - target[:n]).square().mean() + (output[:, 0] - target[n:, 0]).square().mean()
    return torch.cat([-slope.flatten(), output.flatten()]), loss


def _task(data: Data) -> training.Task:
    return training.Task(FastSchNet, EagerSchNet, lambda kind: model_of(kind, data.sizes["filter"]), _loss,
                         lambda name: HIDDEN, lr=1e-3, dual_lr=1e-3, cancels=("pos_linear.bias",),
                         approximate=TABLE if data.sizes["filter"] == "table" else {})


def variant(name: str, data: Data) -> steps.Variant:
    """"eager", "compiled", "fast" or one of EXTRAS and GPU_EXTRAS."""
    return training.variant(_task(data), name, data)


def judge(data: Data, eager: gate.Numbers) -> gate.Judge:
    """Eager in float64 on the timed tensors and weights."""
    return training.judge(_task(data), data, eager)
