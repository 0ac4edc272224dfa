"""The model of the MD17 task and how it is called: energies, and forces as minus their gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Batch, FlatDataset
from ...functional import radius_graph
from ...graph import Graph, Segments
from ...models import SchNet
from ..options import Config

COMPLETE = 32  # atoms of the largest molecule whose pairs are all given, whatever their distances


def build_model(config: Config) -> nn.Module:
    """The SchNet of a config with fresh weights from torch's generator; it says energies in units of the scale."""
    return SchNet(
        config["hidden"], config["filters"], config["interactions"], config["gaussians"], config["cutoff"],
        relaxed=config["relaxed"], gammas=config["gammas"], filter=config["filter"], knots=config["knots"],
        backend=config["backend"],
    )


def inputs_of(data: FlatDataset, config: Config) -> FlatDataset:
    """z and pos of conformations on the run's device, in its dtype."""
    node = {name: data.node[name] for name in ("z", "pos")}
    return FlatDataset(node, data.node_offsets, check=False).to(config["device"], getattr(torch, config["dtype"]))


class Forward:
    """Energies and forces of batches of conformations, all of one number of atoms.

    Edges of molecules up to COMPLETE atoms are all pairs, found once for each number of conformations and shared by
    the batches: the convolution's filter is zero beyond the cutoff, so the result is that of the radius graph, which
    larger molecules get at each call, without a cap on neighbours (a cap would make energies jump).

    Args:
        config: cutoff, centre and backend of the run.
        complete: whether edges are all pairs; None: as the number of atoms says.
    """

    def __init__(self, config: Config, complete: bool | None = None) -> None:
        self._cutoff, self._centre, self._backend = (config[name] for name in ("cutoff", "centre", "backend"))
        self._complete = complete
        self._graphs: dict[Any, tuple[Graph, Segments]] = {}

    def __call__(self, model: nn.Module, batch: Batch, train: bool = False) -> tuple[Tensor, Tensor]:
        """Energies [G] and forces [N, 3], -dE/dpos; both can be differentiated further where `train`."""
        # Evaluation runs without gradients, forces need them.
        with torch.enable_grad():
            pos = batch.pos.detach().requires_grad_()
            energy = self._energies(model, batch, pos)
            (slope,) = torch.autograd.grad(energy.sum(), pos, create_graph=train)
        return (energy if train else energy.detach()), -slope

    def energies(self, model: nn.Module, batch: Batch) -> Tensor:
        """Energies [G] alone."""
        return self._energies(model, batch, batch.pos)

    def _energies(self, model: nn.Module, batch: Batch, pos: Tensor) -> Tensor:
        graph, owners = self._structure(batch)
        if self._centre and model.disable_equivariance:
            # Only the branches see where a molecule lies.
            frames = pos.view(batch.num_graphs, -1, 3)
            pos = (frames - frames.mean(1, keepdim=True)).view_as(pos)
        return model(batch.z, pos, owners, graph)[:, 0]

    def _structure(self, batch: Batch) -> tuple[Graph, Segments]:
        G, n = batch.num_graphs, batch.num_nodes // max(batch.num_graphs, 1)
        complete = n <= COMPLETE if self._complete is None else self._complete
        key = G, n, batch.pos.device
        if complete and key in self._graphs:
            return self._graphs[key]
        edges = _all_pairs(G, n, batch.pos.device) if complete else radius_graph(
            batch.pos, self._cutoff, batch=batch.batch, backend=self._backend)
        found = Graph(edges, batch.num_nodes), batch.segments()
        if complete:
            self._graphs[key] = found
        return found


def physical(
    forward: Forward, model: nn.Module, inputs: list[Batch], facts: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """What a model says, in eV and eV/Å: energies [G] and forces [G, n, 3], float64 on the CPU."""
    said = [forward(model, batch) for batch in inputs]
    energy = torch.cat([e for e, _ in said]).double().cpu()
    forces = torch.cat([f.view(b.num_graphs, -1, 3) for (_, f), b in zip(said, inputs, strict=True)]).double().cpu()
    return energy * facts["scale"] + facts["mean"], forces * facts["scale"]


def _all_pairs(count: int, atoms: int, device: torch.device) -> Tensor:
    """[2, G n (n - 1)] source and target of every pair within each of G molecules of n atoms, sorted by target."""
    target, source = (~torch.eye(atoms, dtype=torch.bool, device=device)).nonzero().unbind(1)
    first = torch.arange(count, device=device)[:, None] * atoms
    return torch.stack([(source + first).flatten(), (target + first).flatten()])
