"""The models that the QM9 task trains: how each is built, what it needs of the molecules, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from ...data import Batch, FlatDataset
from ...data.qm9_targets import ATOMS
from ...graph import Graph, segments
from ...models import SEGNN, qm9_graph, weight_balanced_irreps
from ..options import Config

_PREPARED = 4_096  # molecules whose attributes are computed together


class Model(NamedTuple):
    """One kind of model.

    Attributes:
        build: config -> the model with fresh weights; has get_gammas(), set_equivariance(flag), relaxed and probe().
        prepare: (molecules with z and pos, config) -> the same on the run's device, with all that depends on inputs
            alone.
        inputs: batch of these -> what the model takes.
    """

    build: Callable[[Config], nn.Module]
    prepare: Callable[[FlatDataset, Config], FlatDataset]
    inputs: Callable[[Batch], SimpleNamespace]


def one_hot(z: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, 5], the columns H C N O F, for atomic numbers [N] that are among them."""
    return (z[:, None] == torch.tensor(ATOMS, device=z.device)).to(dtype)


def _build_segnn(config: Config) -> SEGNN:
    attributes = o3.Irreps.spherical_harmonics(config["lmax_attr"])
    return SEGNN(
        "5x0e",  # the element
        weight_balanced_irreps(config["hidden"], attributes, config["lmax_h"]),
        "1x0e",
        attributes,
        attributes,
        config["layers"],
        norm=None if config["norm"] == "none" else config["norm"],
        pool=config["pool"],
        task="graph",
        additional_message_irreps="1x0e",  # squared distance
        relaxed=config["relaxed"],
        backend=config["backend"],
    )


def _prepare_segnn(data: FlatDataset, config: Config) -> FlatDataset:
    """Spherical harmonics of the edges and their means at the nodes: once, as they never change."""
    device, dtype = torch.device(config["device"]), getattr(torch, config["dtype"])
    names = {"node": ("x", "node_attr"), "edge": ("edge_attr", "additional_message_features")}
    parts: dict[str, list[Tensor]] = {name: [] for part in names.values() for name in part}
    for start in range(0, len(data), _PREPARED):
        batch = data.batch(range(start, min(start + _PREPARED, len(data)))).to(device, dtype)
        atoms = SimpleNamespace(pos=batch.pos, x=one_hot(batch.z, dtype), edge_index=batch.edge_index)
        found = qm9_graph(atoms, config["lmax_attr"], backend=config["backend"])
        for name, arrays in parts.items():
            arrays.append(getattr(found, name))
    whole = {name: torch.cat(arrays) for name, arrays in parts.items()}
    node, edge = ({name: whole[name] for name in part} for part in names.values())
    places = (x.to(device) for x in (data.node_offsets, data.edge_index, data.edge_offsets))
    graph = {name: x.to(device) for name, x in data.graph.items()}
    return FlatDataset(node, *places, edge, graph, check=False)


def _segnn_inputs(batch: Batch) -> SimpleNamespace:
    return SimpleNamespace(
        x=batch.x, node_attr=batch.node_attr, edge_attr=batch.edge_attr,
        additional_message_features=batch.additional_message_features,
        edge_index=Graph(batch.edge_index, batch.num_nodes), segments=segments(batch.batch, batch.num_graphs),
    )


MODELS: dict[str, Model] = {"segnn": Model(_build_segnn, _prepare_segnn, _segnn_inputs)}
