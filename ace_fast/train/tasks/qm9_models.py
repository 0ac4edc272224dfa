"""The models that the QM9 task trains: how each is built, what it needs of the molecules, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from ...data import Batch, FlatDataset, symmetric_edges
from ...data.qm9_targets import ATOMS
from ...models import SEGNN, SchNet, qm9_graph, weight_balanced_irreps
from ...models.schnet import GAMMAS
from ...models.segnn import PRODUCTS
from ..options import Config, Option, Options

FILTERS = ("exact", "table")
_PREPARED = 4_096  # molecules whose attributes are computed together


class Model(NamedTuple):
    """One kind of model.

    Attributes:
        build: config -> the model with fresh weights; has get_gammas(), set_equivariance(flag), relaxed and probe().
        prepare: (molecules with z and pos, config) -> the same on the run's device, with all that depends on inputs
            alone.
        inputs: batch of these -> the arguments of the model.
        irreps: config -> those of its node and of its edge arrays that turn with the molecule.
        radius: of the edges, in Å, where no other is asked for.
        options: those of this model alone.
    """

    build: Callable[[Config], nn.Module]
    prepare: Callable[[FlatDataset, Config], FlatDataset]
    inputs: Callable[[Batch], tuple[Any, ...]]
    irreps: Callable[[Config], tuple[dict[str, o3.Irreps], dict[str, o3.Irreps]]]
    radius: float
    options: Options


def radius_of(config: Config) -> float:
    """Of the edges and of the filters, in Å."""
    return config["radius"] or MODELS[config["model"]].radius


def scaling(config: Config, facts: Mapping[str, Any]) -> tuple[float, float]:
    """What is taken off a target's value, and what the rest is divided by, to make what the model learns."""
    return (facts["mean"], facts["spread"]) if config["standardise"] else (0.0, 1.0)


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
        product=config["product"],
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


def _segnn_inputs(batch: Batch) -> tuple[SimpleNamespace]:
    return (SimpleNamespace(
        x=batch.x, node_attr=batch.node_attr, edge_attr=batch.edge_attr,
        additional_message_features=batch.additional_message_features,
        edge_index=batch.graph(), segments=batch.segments(),
    ),)


def _segnn_irreps(config: Config) -> tuple[dict[str, o3.Irreps], dict[str, o3.Irreps]]:
    attributes = o3.Irreps.spherical_harmonics(config["lmax_attr"])
    return {"node_attr": attributes}, {"edge_attr": attributes}


def _build_schnet(config: Config) -> SchNet:
    return SchNet(
        config["hidden"],
        config["filters"] or config["hidden"],
        config["layers"],
        config["gaussians"],
        radius_of(config),
        readout={"avg": "mean", "sum": "add"}[config["pool"]],
        relaxed=config["relaxed"],
        gammas=config["gammas"],
        filter=config["filter"],
        knots=config["knots"],
        backend=config["backend"],
    )


def _prepare_schnet(data: FlatDataset, config: Config) -> FlatDataset:
    """Elements and positions on the device, and whether its graphs can be made without sorting."""
    device, dtype = torch.device(config["device"]), getattr(torch, config["dtype"])
    node = {"z": data.node["z"].to(device, torch.int64), "pos": data.node["pos"].to(device, dtype)}
    places = (x.to(device) for x in (data.node_offsets, data.edge_index, data.edge_offsets))
    graph = {name: x.to(device) for name, x in data.graph.items()}
    return FlatDataset(node, *places, graph=graph, check=False,
                       symmetric=data.symmetric or symmetric_edges(data))


def _schnet_inputs(batch: Batch) -> tuple[Any, ...]:
    return batch.z, batch.pos, batch.segments(), batch.graph()


_SEGNN: Options = {
    "lmax_h": Option("segnn", 1, "largest degree of the hidden features", least=0, most=6),
    "lmax_attr": Option("segnn", 2, "largest degree of the edge and node attributes", least=0, most=6),
    "norm": Option("segnn", "instance", "normalisation after each layer", ("none", "batch", "instance")),
    "product": Option("segnn", "clebsch_gordan", "how features meet attributes: by Clebsch-Gordan products or as "
                                                 "functions on the sphere", tuple(PRODUCTS)),
}
_SCHNET: Options = {
    "filters": Option("schnet", 0, "width of the filters; 0: --hidden", least=0),
    "gaussians": Option("schnet", 50, "Gaussians that a distance is expanded in", least=2),
    "filter": Option("schnet", "exact", "the filter network on every pair of atoms, or from a table of it with cubic "
                                        "interpolation", FILTERS),
    "knots": Option("schnet", 1024, "distances in that table", least=2),
    "gammas": Option("schnet", "layer", "a gate a layer, a single one, or (nn) networks that compute each atom's",
                     GAMMAS),
}

MODELS: dict[str, Model] = {
    "segnn": Model(_build_segnn, _prepare_segnn, _segnn_inputs, _segnn_irreps, 2.0, _SEGNN),
    "schnet": Model(_build_schnet, _prepare_schnet, _schnet_inputs, lambda config: ({"pos": o3.Irreps("1o")}, {}), 10.0,
                    _SCHNET),
}
