"""The N-body task: SEGNN on charged trajectories. Its settings, model, data, loss, measurements and predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from ...data import Batch, FlatDataset, NBodySettings, ShardedDataset, nbody
from ...data.nbody import stream
from ...graph import Graph, Segments, segments
from ...models.segnn import PRODUCTS, nbody_graph
from ...report.chart import Chart, Lines
from .. import plots as draw
from ..measure import equivariance, turned
from ..options import DEFAULT_PRESET, OPTIMISATION, RELAXED, RUN, SYMMETRY, Config, Option, Options, flag
from ..options import SEED as LARGEST_SEED
from ..predict import Answer, PredictorBase, check_offsets, read_arrays, tensor
from ..progress import data_progress
from . import sharded
from .nbody_models import INPUTS, MODELS, check_model

TITLE = "ACE-SEGNN on charged N-body"
HELP = "SEGNN on charged N-body trajectories"
DESCRIPTION = "Trains ACE-SEGNN on charged N-body trajectories."
DATA_HELP = "charged N-body trajectories"
BEST = min  # of the measure on validation data
CURVES = False  # the last epoch says all
EQUIVARIANCE = "||f(gx) - g f(x)|| / ||f(x)||"
RELAXATIONS = ("ace", "schedule", "rpp", "per", "remul")
BRANCHED = ("segnn",)

# The defaults are the preset "demo"; the other presets change them.
OPTIONS: Options = {
    "data": Option("data", "", "cache folder of the trajectories; empty: $ACE_FAST_DATA or ~/.cache/ace_fast"),
    "shards": sharded.SHARDS,
    "num_train": Option("data", 10_000, "training trajectories simulated and cached", least=1),
    "num_valid": Option("data", 2_000, "validation trajectories", least=1),
    "num_test": Option("data", 2_000, "test trajectories", least=1),
    "data_seed": Option("data", 43, "seed of the simulation", least=0, most=LARGEST_SEED),
    "bodies": Option("data", 5, "charged bodies per trajectory", least=2),
    "steps": Option("data", 5_000, "steps of the simulation", least=1),
    "sample_every": Option("data", 100, "steps from one recorded frame to the next", least=1),
    "frame_from": Option("data", 30, "frame that is the input", least=0),
    "frame_to": Option("data", 40, "frame whose positions are predicted", least=0),
    "train_samples": Option("data", 3_000, "training trajectories used, the first ones", least=1),
    "model": Option("model", "segnn", "what is trained: segnn; strict only: egnn; egnn-sympe, which tells bodies "
                    "apart; gnn, not equivariant; fa-gnn, gnn averaged over frames", tuple(MODELS)),
    "layers": Option("model", 4, "message-passing layers", least=1),
    "hidden": Option("model", 64, "hidden width H; for segnn even: H/2 scalars and H/2 vectors", least=2),
    "lmax_attr": Option("model", 1, "segnn: largest degree of the edge and node attributes", least=1, most=6),
    "norm": Option("model", "none", "segnn: normalisation after each layer", ("none", "batch", "instance")),
    "product": Option("model", "clebsch_gordan", "segnn: how features meet attributes, by Clebsch-Gordan products or "
                                                 "as functions on the sphere", tuple(PRODUCTS)),
    "relaxed": RELAXED,
    **OPTIMISATION,
    "batch_size": Option("optimisation", 100, "trajectories per step", least=1),
    **SYMMETRY,
    **RUN,
}

_DAMPED = {"gamma_lr": 5e-3, "dual_lr": 5e-3, "augmentation": 1.0, "bound": "spectral"}
_UNDAMPED = {"gamma_lr": 9e-4, "dual_lr": 8e-4, "augmentation": 0.0, "bound": "none"}
_PUBLISHED = {"lr": 9e-4, "epochs": 2_000, "lr_schedule": "constant", "eval_every": 5}

PRESETS: dict[str, Config] = {
    DEFAULT_PRESET: {},
    "paper": {**_PUBLISHED, **_UNDAMPED},
    "paper_damped": {**_PUBLISHED, **_DAMPED},
    "original_code": {**_PUBLISHED, **_UNDAMPED, "gamma_optimizer": "adam", "dual_optimizer": "adam"},
}

PRESET_HELP = {
    "demo": "minutes on two cores, damped gammas, bounded branches",
    "paper": "the published settings: plain undamped steps, 2000 epochs",
    "paper_damped": "the published length with damped gammas and bounded branches",
    "original_code": "as paper, with Adam on gammas and multipliers as the authors' scripts",
}

EDGE_ATTRIBUTES = ("edge_attr", "additional_message_features")
_CHUNK = 500  # graphs per forward
_ARRAYS = ("pos", "vel", "charges", "target")  # of the nodes
_WRITTEN = ("data_seed", "bodies", "steps", "sample_every", "frame_from", "frame_to")  # what shards depend on
_UNUSED = ("data", "num_train", "num_valid", "num_test", "train_samples")  # where there are shards
_PROBE = 50  # graphs that the equivariance error and the branch ratios are measured on


def check(config: Config) -> None:
    """Raises ValueError where settings do not fit together."""
    check_model(config)
    sharded.check_options(config, {name: (OPTIONS[name].default,) for name in _UNUSED})
    if config["shards"]:
        return
    if config["train_samples"] > config["num_train"]:
        raise ValueError(
            f"train: {flag('train_samples')} must be at most the {config['num_train']} training trajectories, got "
            f"{config['train_samples']}; simulate more with {flag('num_train')}"
        )
    if config["batch_size"] > config["train_samples"]:
        raise ValueError(
            f"train: {flag('batch_size')} must be at most the {config['train_samples']} training samples, got "
            f"{config['batch_size']}; pass {flag('batch_size')} {config['train_samples']} or less, or more samples"
        )


def for_data(given: Mapping[str, Any]) -> Config:
    """Settings that only prepare data: fewer trajectories than the usual number of samples are all used."""
    return ({"train_samples": given["num_train"], "batch_size": 1} if "num_train" in given else {}) | dict(given)


def any_facts(config: Config) -> dict[str, Any]:
    return {}


def build_model(config: Config, facts: Mapping[str, Any]) -> nn.Module:
    """The model of a config, with fresh weights drawn from torch's generator."""
    return MODELS[config["model"]](config)


def load(config: Config, split: str, quiet: bool = True) -> FlatDataset | sharded.Streamed:
    """Node arrays pos, vel, charges and target of a split, in the run's dtype; simulated where not cached."""
    if config["shards"]:
        dtype = getattr(torch, config["dtype"])
        return sharded.load(shards(config, split), split, lambda data: data.to(dtype=dtype))
    data = nbody(
        config["data"] or None,
        split,
        settings(config),
        frames=(config["frame_from"], config["frame_to"]),
        num_samples=config["train_samples"] if split == "train" else None,
        dtype=getattr(torch, config["dtype"]),
        progress=data_progress(split, quiet),
    )
    return _named(data)


def _named(data: FlatDataset, index: torch.dtype = torch.int64) -> FlatDataset:
    """The arrays of `ace_fast.data.nbody` by this task's names, and the edges in another type."""
    theirs = ("position", "velocity", "charge", "target")
    node = {name: data.node[other] for name, other in zip(_ARRAYS, theirs, strict=True)}
    return FlatDataset(node, data.node_offsets, data.edge_index.to(index), data.edge_offsets)


def shards(config: Config, split: str) -> ShardedDataset:
    """The shards of a split, checked."""
    return sharded.opened(config, split, "nbody", written(config), _ARRAYS)


def written(config: Config) -> Config:
    """What shards must have in common with a run."""
    return {name: config[name] for name in _WRITTEN}


def parts(config: Config, split: str) -> Iterator[FlatDataset]:
    """What is written into shards, simulated a part at a time."""
    frames = config["frame_from"], config["frame_to"]
    index = torch.uint8 if config["bodies"] <= 256 else torch.int32
    for part in stream(split, settings(config), frames, progress=data_progress(split)):
        yield _named(part, index)


def facts(data: FlatDataset | sharded.Streamed) -> dict[str, Any]:
    """Nothing: the config says all that the model and its predictions depend on."""
    return {}


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


class Training:
    """The training data in batches, and the loss: the mean squared error over all coordinates."""

    def __init__(self, config: Config, facts: Mapping[str, Any], data: FlatDataset | sharded.Streamed) -> None:
        self.batches = sharded.batches(data, config, lambda graphs: with_attributes(graphs, config))
        self._forward = Forward()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (self._forward(model, batch) - batch.target).square().mean()

    def turned(self, batch: Batch) -> Batch:
        """The batch with every graph turned by its own random element of O(3), attributes and target with it."""
        attributes = o3.Irreps.spherical_harmonics(math.isqrt(batch.node_attr.shape[1]) - 1)
        node = {"pos": "1o", "target": "1o", "x": INPUTS, "node_attr": attributes}
        return turned(batch, node, {"edge_attr": attributes})


class Evaluation:
    """Validation and test data prepared once, and a probe with its rotated copies."""

    def __init__(self, config: Config, facts: Mapping[str, Any], valid: FlatDataset, test: FlatDataset) -> None:
        self.fixed = {"baseline": linear_baseline(test, _interval(config))}
        self._forward = Forward()
        self._splits = {name: _batches(data, config) for name, data in (("valid", valid), ("test", test))}
        self._config, self._probe = config, test.subset(range(min(_PROBE, len(test))))
        (self._plain,) = _batches(self._probe, config)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Mean squared errors and the equivariance error."""
        found = {split: self._error(model, batches) for split, batches in self._splits.items()}
        return found | {"equivariance": self._equivariance(model)}

    def probe(self, model: nn.Module) -> Tensor:
        """The displacements [N, 3] of the graphs that gates and equivariance are measured on, in one forward pass."""
        return self._forward(model, self._plain) - self._plain.pos

    def _error(self, model: nn.Module, batches: list[Batch]) -> float:
        total = sum((self._forward(model, b) - b.target).double().square().sum() for b in batches)
        return float(total / sum(b.target.numel() for b in batches))

    def _equivariance(self, model: nn.Module) -> float:
        """Mean over draws of ||f(g x) - g f(x)|| / ||f(x)|| for the displacements f, g an element of O(3) a graph."""
        data = self._probe

        def displacements(pos: Tensor, vel: Tensor) -> Tensor:
            moved = FlatDataset(data.node | {"pos": pos, "vel": vel}, data.node_offsets, data.edge_index,
                                data.edge_offsets, check=False)
            (batch,) = _batches(moved, self._config)  # attributes of the turned inputs
            return self._forward(model, batch) - batch.pos

        return equivariance(displacements, (data.node["pos"], data.node["vel"]), self._config["rotations"], "vector",
                            self._plain.batch)


def linear_baseline(data: FlatDataset, time: float) -> float:
    """Mean squared error of x + v t."""
    node = data.node
    return float((node["pos"] + time * node["vel"] - node["target"]).double().square().mean())


def _interval(config: Config) -> float:
    return (config["frame_to"] - config["frame_from"]) * config["sample_every"] * settings(config).dt


def _batches(data: FlatDataset, config: Config) -> list[Batch]:
    prepared = with_attributes(data, config)
    return [prepared.batch(range(i, min(i + _CHUNK, len(data)))) for i in range(0, len(data), _CHUNK)]


def summary(latest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The errors, as (what, value)."""
    modes = [mode for mode in ("strict", "relaxed") if f"test_{mode}" in latest]
    lines = [(f"test error, {mode} model", f"{latest[f'test_{mode}']:.5f}") for mode in modes]
    return lines + ([("linear baseline x + v t", f"{latest['baseline']:.5f}")] if "baseline" in latest else [])


def plots(rows: draw.Rows, result: Mapping[str, Any]) -> list[Chart]:
    found = draw.measured(rows, "baseline")
    series = [*draw.curve(rows, "train_loss", "training"), *draw.splits(rows)]
    return [Lines("Error", "epoch", "mean squared error", series, log_y=True,
                  rules=[("x + v t", found[-1][1])] if found else [])]


class Predictor(PredictorBase):
    """A trained SEGNN that predicts positions."""

    def predict(
        self,
        pos: Tensor | np.ndarray,
        vel: Tensor | np.ndarray,
        charges: Tensor | np.ndarray,
        offsets: Tensor | np.ndarray | None = None,
    ) -> Tensor:
        """Positions of the bodies one prediction interval later.

        Args:
            pos, vel: [G, n, 3], or [N, 3] with offsets.
            charges: [G, n] or [G, n, 1], or [N] or [N, 1] with offsets.
            offsets: [G + 1], bodies offsets[g] .. offsets[g + 1] - 1 are graph g.

        Returns:
            As pos, on the CPU.

        Raises:
            ValueError: shapes that do not fit together, values that are not finite, or so large that the predicted
                positions are not.
        """
        dtype = getattr(torch, self.config["dtype"])
        given = {"pos": pos, "vel": vel, "charges": charges}
        x, v, q = (tensor(name, a).to(dtype) for name, a in given.items())
        dims = 3 if offsets is None else 2
        expected = "[G, n, 3]" if offsets is None else "[N, 3]"
        if x.dim() != dims or x.shape[-1] != 3:
            raise ValueError(f"predict: pos must be {expected}, got {list(x.shape)}; [N, 3] needs offsets")
        if v.shape != x.shape:
            raise ValueError(f"predict: vel must be {list(x.shape)} as pos is, got {list(v.shape)}")
        if tuple(q.shape) not in (tuple(x.shape[:-1]), (*x.shape[:-1], 1)):
            raise ValueError(f"predict: charges must be {[*x.shape[:-1], 1]}, got {list(q.shape)}")
        ptr = _offsets(offsets, x)
        data = add_edges({"pos": x.reshape(-1, 3), "vel": v.reshape(-1, 3), "charges": q.reshape(-1, 1)}, ptr)
        predicted = self._predict(data)  # [N, 3]
        bad = (~predicted.isfinite()).any(1).nonzero()
        if len(bad):
            graph = int(torch.searchsorted(ptr, bad[0], right=True)) - 1
            raise ValueError(
                f"predict: the predicted positions must be finite, got NaN or infinity first in graph {graph}; give "
                "pos, vel and charges of about the size of the training data"
            )
        return predicted.reshape(x.shape)

    @torch.no_grad()
    def _predict(self, data: FlatDataset) -> Tensor:
        forward = Forward()
        parts = [torch.zeros(0, 3, dtype=getattr(torch, self.config["dtype"]))]
        for start in range(0, len(data), _CHUNK):
            part = data.subset(range(start, min(start + _CHUNK, len(data))))
            prepared = with_attributes(part, self.config)
            parts.append(forward(self.model, prepared.batch(range(len(part)))).cpu())
        return torch.cat(parts)

    def answer(self, source: Path) -> Answer:
        """The predicted pos (and the offsets) for an .npz of pos, vel, charges (and offsets)."""
        arrays = read_arrays(source, ("pos", "vel", "charges"))
        predicted = self.predict(arrays["pos"], arrays["vel"], arrays["charges"], arrays.get("offsets"))
        found = {"pos": predicted.numpy()} | {name: arrays[name] for name in ("offsets",) if name in arrays}
        count = len(arrays["offsets"]) - 1 if "offsets" in arrays else len(arrays["pos"])
        return Answer(found, count, f"{count} graphs")


def _offsets(offsets: Tensor | np.ndarray | None, pos: Tensor) -> Tensor:
    if offsets is None:
        return torch.arange(pos.shape[0] + 1) * pos.shape[1]
    return check_offsets(offsets, pos.shape[0], "[G + 1]", "bodies of pos")
