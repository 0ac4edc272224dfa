"""The N-body task: its model, its data with all attributes computed once, and its loss."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..data import Batch, FlatDataset, NBodySettings, nbody
from ..data.nbody import Progress
from ..graph import Graph, Segments, segments
from ..models.segnn import SEGNN, nbody_graph
from .options import Config

EDGE_ATTRIBUTES = ("edge_attr", "additional_message_features")


def build_model(config: Config) -> nn.Module:
    """The SEGNN of a config, with fresh weights drawn from torch's generator."""
    half = config["hidden"] // 2
    attributes = " + ".join(f"1x{l}{'eo'[l % 2]}" for l in range(config["lmax_attr"] + 1))
    model = SEGNN(
        "2x1o + 1x0e",  # position, velocity, speed
        f"{half}x0e + {half}x1o",
        "1x1o",  # the displacement
        attributes,
        attributes,
        config["layers"],
        norm=None if config["norm"] == "none" else config["norm"],
        task="node",
        additional_message_irreps="2x0e",  # distance, product of the charges
        relaxed=config["relaxed"],
        backend=config["backend"],
    )
    with torch.no_grad():
        for gamma in model.get_gammas():
            gamma.fill_(config["gamma_init"])
    return model.to(config["device"], getattr(torch, config["dtype"]))


def check_device(config: Config) -> None:
    """Raises ValueError where torch does not have the device of a config, or no operator runs on it."""
    try:
        kind = torch.empty(0, device=config["device"]).device.type
        reason = "" if kind in ("cpu", "cuda") else f"the operators do not run on {kind} tensors"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise ValueError(
            f"run: --device must be cpu or a GPU that is present, got {config['device']!r} ({reason}); use --device "
            "cpu, with --backend auto for a run that names a backend of the GPU"
        )


def use_threads(config: Config) -> None:
    if config["threads"]:
        torch.set_num_threads(config["threads"])


def settings(config: Config) -> NBodySettings:
    return NBodySettings(
        bodies=config["bodies"],
        num_train=config["num_train"],
        num_valid=config["num_valid"],
        num_test=config["num_test"],
        seed=config["data_seed"],
        steps=config["steps"],
        sample_every=config["sample_every"],
    )


def trajectories(config: Config, split: str, progress: Progress | None = None) -> FlatDataset:
    """Node arrays pos, vel, charges and target of a split, in the run's dtype."""
    data = nbody(
        config["data"] or None,
        split,
        settings(config),
        frames=(config["frame_from"], config["frame_to"]),
        num_samples=config["train_samples"] if split == "train" else None,
        dtype=getattr(torch, config["dtype"]),
        progress=progress,
    )
    names = {"pos": "position", "vel": "velocity", "charges": "charge", "target": "target"}
    node = {mine: data.node[theirs] for mine, theirs in names.items()}
    return FlatDataset(node, data.node_offsets, data.edge_index, data.edge_offsets)


def with_attributes(data: FlatDataset, config: Config) -> FlatDataset:
    """`data` on the run's device with the model's attributes: they depend on inputs alone, so once is enough."""
    batch = data.to(config["device"]).batch(torch.arange(len(data)))
    graph = nbody_graph(batch, config["lmax_attr"], backend=config["backend"])
    node = {"pos": batch.pos, "x": graph.x, "node_attr": graph.node_attr}
    if "target" in data.node:
        node["target"] = batch.target
    edge = {name: getattr(graph, name) for name in EDGE_ATTRIBUTES}
    # The batch numbers its edges over all graphs; the data set numbers them within each.
    index = batch.edge_index - batch.ptr[batch.batch[batch.edge_index[1]]]
    edges = data.edge_offsets.diff().to(index.device)
    offsets = torch.cat([edges.new_zeros(1), edges.cumsum(0)])
    return FlatDataset(node, batch.ptr, index, offsets, edge, check=False)


def add_edges(node: dict[str, Tensor], offsets: Tensor) -> FlatDataset:
    """Graphs of the nodes with all directed edges within each graph, sorted by target."""
    counts = offsets.diff()
    edges = counts * (counts - 1)
    ptr = torch.cat([edges.new_zeros(1), edges.cumsum(0)])
    graph = torch.arange(len(counts)).repeat_interleave(edges)
    rank = torch.arange(int(ptr[-1])) - ptr[graph]
    others = (counts - 1)[graph]
    target, source = rank // others, rank % others
    source = source + (source >= target)  # every node but the target itself
    return FlatDataset(node, offsets, torch.stack([source, target]), ptr)


class Forward:
    """Predicted positions of a batch of prepared data; graphs of equal structure are sorted once and shared."""

    def __init__(self) -> None:
        self._structures: dict[str, tuple[Graph, Segments]] = {}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        graph, owners = self._structure(batch)
        names = ("x", "edge_attr", "node_attr", "additional_message_features")
        arrays = {name: getattr(batch, name) for name in names}
        return batch.pos + model(SimpleNamespace(edge_index=graph, segments=owners, **arrays))  # [N, 3]

    def _structure(self, batch: Batch) -> tuple[Graph, Segments]:
        key = batch.structure_key
        if key in self._structures:
            return self._structures[key]
        found = Graph(batch.edge_index, batch.num_nodes), segments(batch.batch, batch.num_graphs)
        if key:
            self._structures[key] = found
        return found


def loss_of(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all coordinates."""
    return (prediction - target).square().mean()
