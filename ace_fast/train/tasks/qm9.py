"""The QM9 task: SEGNN or SchNet predicts properties of molecules. Its settings, data, loss and measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...data import FlatDataset, MolecularGraphs, ShardedDataset, symmetric_edges
from ...data import qm9 as read_qm9
from ...data.qm9 import SCHEMES
from ...data.qm9_targets import REFERENCES, TARGETS, atom_sums
from ...report.chart import Chart
from .. import plots as draw
from ..measure import rotations, turned
from ..options import DEFAULT_PRESET, OPTIMISATION, RELAXED, RUN, SYMMETRY, Config, Option, Options, changed, flag
from ..progress import data_progress
from . import sharded
from .qm9_models import MODELS, radius_of, scaling
from .qm9_predict import Predictor

__all__ = ["Evaluation", "Predictor", "Training"]

TITLE = "ACE on QM9"
HELP = "SEGNN or SchNet on the molecules of QM9"
DESCRIPTION = "Trains ACE-SEGNN or ACE-SchNet to predict a property of QM9's molecules."
DATA_HELP = "QM9's molecules and their edges"
BEST = min  # of the mean absolute error on validation data
CURVES = True
EQUIVARIANCE = "||f(gx) - f(x)|| / ||f(x)||"
RELAXATIONS = ("ace", "schedule", "rpp", "per", "remul")
_CHUNK = 256  # molecules per forward
_PROBE = 64  # molecules that the equivariance error and the branch ratios are measured on
_TOGETHER = 4_096  # training molecules whose attributes are held at a time to measure them
_PARITY = 2_000  # test molecules of the parity plot

# The defaults are the preset "demo"; the other presets change them.
OPTIONS: Options = {
    "data": Option("data", "", "QM9: a folder with gdb9.sdf and gdb9.sdf.csv, with the original .xyz files or their "
                               "archive, or with torch-geometric's QM9, or an .npz file; molecules and edges are kept "
                               "in $ACE_FAST_DATA or else ~/.cache/ace_fast; empty: the folder qm9 there"),
    "shards": sharded.SHARDS,
    "target": Option("data", "alpha", "the property that is predicted", tuple(TARGETS)),
    "subtract_atomref": Option("data", False, f"learn {', '.join(REFERENCES)} less their atom references, which are "
                                              "added to what is predicted"),
    "radius": Option("data", 0.0, "edges between atoms closer than that, in Å, for schnet also the cutoff of the "
                                  f"filters; 0: {', '.join(f'{m.radius:g} for {name}' for name, m in MODELS.items())}",
                     least=0),
    "neighbours": Option("data", 32, "edges to an atom at most, from the nearest ones; 0: all", least=0),
    "split": Option("data", "cormorant", "cormorant: the split that the data have, or else 100 000 molecules of QM9 "
                                         "for training; ace: 80, 10 and 10 %, as the code of ACE's SchNet draws them",
                    SCHEMES),
    "train_samples": Option("data", 2_000, "training molecules used, the first ones of the split; 0: all", least=0),
    "eval_samples": Option("data", 500, "validation and test molecules used, each; 0: all", least=0),
    "data_seed": Option("data", 0, "seed of the split where the data have none; 0: the field's split; 42 to 46: those "
                                   "of ACE's SchNet", least=0, most=2**32 - 1),
    "model": Option("model", "segnn", "what is trained", tuple(MODELS)),
    "layers": Option("model", 3, "message-passing layers, or interactions of schnet", least=1),
    "hidden": Option("model", 32, "hidden width; for segnn of a linear layer with as many weights as a product",
                     least=1),
    "pool": Option("model", "avg", "how the atoms of a molecule are pooled", ("avg", "sum")),
    "relaxed": RELAXED,
    **{name: option for model in MODELS.values() for name, option in model.options.items()},
    **changed(OPTIMISATION, epochs=30),
    "batch_size": Option("optimisation", 32, "molecules per step", least=1),
    "standardise": Option("optimisation", True, "learn the property less its mean and over its spread; off: as it is"),
    **SYMMETRY,
    "gammas_follow": Option("symmetry", False, "the step sizes of gammas and slacks follow --lr-schedule too"),
    **changed(RUN, eval_every=3),
}

_PUBLISHED = {
    "train_samples": 0, "eval_samples": 0, "layers": 5, "hidden": 64, "lmax_h": 2, "lmax_attr": 3, "batch_size": 1_024,
    "lr": 6e-4, "lr_schedule": "multistep", "epochs": 600, "eval_every": 1, "gamma_lr": 6e-4, "dual_lr": 1e-2,
    "augmentation": 0.0, "bound": "none", "gammas_follow": True,
}

_DAMPED = {"gamma_lr": 5e-3, "dual_lr": 5e-3, "augmentation": 1.0, "bound": "spectral"}

PRESETS: dict[str, Config] = {
    DEFAULT_PRESET: {},
    "paper": _PUBLISHED,
    "paper_damped": {**_PUBLISHED, **_DAMPED, "gammas_follow": False},
    "original_code": {**_PUBLISHED, "gamma_optimizer": "adam", "dual_optimizer": "adam"},
}

_SCHNET = {
    "train_samples": 0, "eval_samples": 0, "split": "ace", "data_seed": 42, "layers": 6, "hidden": 64, "pool": "sum",
    "batch_size": 256, "lr": 1e-3, "lr_schedule": "constant", "epochs": 1_000, "eval_every": 1, "gamma_lr": 1e-3,
    "dual_lr": 1e-3, "augmentation": 0.0, "bound": "none",
}

# of the other models; they have the same names
MODEL_PRESETS: dict[str, dict[str, Config]] = {
    "schnet": {
        DEFAULT_PRESET: {"hidden": 64, "pool": "sum", "lr": 1e-3},
        "paper": _SCHNET,
        "paper_damped": {**_SCHNET, **_DAMPED},
        "original_code": {**_SCHNET, "gamma_optimizer": "adam", "dual_optimizer": "adam", "standardise": False},
    },
}

PRESET_HELP = {
    "demo": "minutes on two cores: few molecules, a small model, damped gammas, bounded branches",
    "paper": "the published settings, plain undamped steps",
    "paper_damped": "the published model and length with damped gammas and bounded branches",
    "original_code": "as paper, with Adam on gammas and multipliers as the authors' script",
}


def check(config: Config) -> None:
    """Raises ValueError where settings do not fit together."""
    for other, model in MODELS.items():
        wrong = [name for name, option in model.options.items() if config[name] != option.default]
        if wrong and other != config["model"]:
            raise ValueError(
                f"train: {flag(wrong[0])} must be left out with {flag('model')} {config['model']}, got "
                f"{config[wrong[0]]}; it is an option of {flag('model')} {other}"
            )
    if config["subtract_atomref"] and config["target"] not in REFERENCES:
        raise ValueError(
            f"train: {flag('subtract_atomref')} must be off for a target without atom references, got "
            f"{config['target']}; {', '.join(REFERENCES)} have them"
        )
    sharded.check_options(config, {"data": ("",), "train_samples": (OPTIONS["train_samples"].default, 0)})
    if not config["shards"] and 0 < config["train_samples"] < config["batch_size"]:
        raise ValueError(
            f"train: {flag('batch_size')} must be at most the {config['train_samples']} training molecules, got "
            f"{config['batch_size']}; pass {flag('batch_size')} {config['train_samples']} or less, or more "
            f"{flag('train_samples')}"
        )


def for_data(given: Mapping[str, Any]) -> Config:
    """Settings that only prepare data: all of them, unless something else is asked for."""
    return {"train_samples": 0, "eval_samples": 0, "batch_size": 1} | dict(given)


def load(config: Config, split: str, quiet: bool = True) -> MolecularGraphs | sharded.Streamed:
    """Node arrays z and pos, graph arrays gdb_id, target and references (its atom references, or 0) of a split."""
    if config["shards"]:
        found = shards(config, split)
        source = found.about.get("source", "shards")
        data = sharded.load(found, split, lambda graphs: _chosen(graphs, config, source))
    else:
        data = _chosen(_read(config, split, quiet), config)
    most = config["train_samples" if split == "train" else "eval_samples"]
    return data.subset(range(most)) if isinstance(data, FlatDataset) and 0 < most < len(data) else data


def _read(config: Config, split: str, quiet: bool) -> MolecularGraphs:
    """A split with all targets."""
    shown = data_progress("QM9", quiet, "load", "molecules")
    return read_qm9(config["data"] or None, split, radius=radius_of(config), neighbours=config["neighbours"] or None,
                    scheme=config["split"], seed=config["data_seed"], progress=shown)


def _chosen(data: FlatDataset, config: Config, source: str | None = None) -> MolecularGraphs:
    """The molecules with the target of a run and its atom references alone."""
    name, source = config["target"], source or data.source
    if name not in data.graph:
        known = [target for target in TARGETS if target in data.graph]
        raise ValueError(
            f"train: {flag('target')} must be one that {source} has, {', '.join(known)}, got {name}; choose "
            "another or give other --data"
        )
    references = torch.zeros(len(data), dtype=torch.float64)
    if config["subtract_atomref"]:
        references = torch.from_numpy(atom_sums(name, data.node["z"].numpy(), data.node_offsets.numpy()))
    kept = {one: data.graph[one] for one in ("gdb_id",) if one in data.graph}
    graph = kept | {"target": data.graph[name].double(), "references": references}
    places = data.node_offsets, data.edge_index, data.edge_offsets
    return MolecularGraphs(data.node, *places, graph=graph, check=False, symmetric=data.symmetric, source=source)


def shards(config: Config, split: str) -> ShardedDataset:
    """The shards of a split, checked."""
    return sharded.opened(config, split, "qm9", written(config), ("z", "pos", config["target"]))


def written(config: Config) -> Config:
    """What shards must have in common with a run."""
    return {"radius": radius_of(config)} | {name: config[name] for name in ("neighbours", "split", "data_seed")}


def parts(config: Config, split: str) -> Iterator[MolecularGraphs]:
    """What is written into shards: molecules with all their targets, and edges."""
    data = _read(config, split, False)
    data.symmetric = symmetric_edges(data)
    yield from (data.subset(range(start, min(start + _TOGETHER, len(data))))
                for start in range(0, len(data), _TOGETHER))


def facts(data: MolecularGraphs | sharded.Streamed) -> dict[str, Any]:
    """What the data are, and mean and spread (mean absolute deviation) of what is learned: they scale the output.

    Raises:
        ValueError: all values are equal.
    """
    y = torch.cat([part.graph["target"] - part.graph["references"] for part in sharded.parts(data)])
    mean = y.mean()
    spread = float((y - mean).abs().mean())
    # Rounding of the mean alone leaves a spread of equal values.
    if not spread > 1e-12 * max(1.0, abs(float(mean))):
        raise ValueError(
            f"train: {flag('target')} must differ between the training molecules, got {float(y[0])} for all "
            f"{len(data)}; choose another target or give more molecules"
        )
    return {"source": data.source, "molecules": len(data), "mean": float(mean), "spread": spread}


def any_facts(config: Config) -> dict[str, Any]:
    return {"mean": 0.0, "spread": 1.0}


def build_model(config: Config, facts: Mapping[str, Any]) -> nn.Module:
    """The model of a config, with fresh weights drawn from torch's generator."""
    numbers = [facts.get(name) for name in ("mean", "spread")]
    if not all(isinstance(x, float) and math.isfinite(x) for x in numbers) or numbers[1] <= 0:
        raise ValueError(
            f"run: config.json must hold mean and spread of the training data, got {numbers}; train the run again"
        )
    return MODELS[config["model"]].build(config)


class Training:
    """The training data in batches, and the loss: mean absolute error, where standardised in units of the spread."""

    def __init__(
        self, config: Config, facts: Mapping[str, Any], data: MolecularGraphs | sharded.Streamed
    ) -> None:
        if config["batch_size"] > len(data):
            raise ValueError(
                f"train: {flag('batch_size')} must be at most the {len(data)} training molecules, got "
                f"{config['batch_size']}; pass {flag('batch_size')} {len(data)} or less, or more data"
            )
        self._model, self._config, self._scaling = MODELS[config["model"]], config, scaling(config, facts)
        self.batches = sharded.batches(data, config, self._prepared)

    def _prepared(self, data: MolecularGraphs) -> FlatDataset:
        prepared = self._model.prepare(without_targets(data), self._config)
        dtype = getattr(torch, self._config["dtype"])
        prepared.graph["y"] = _scaled(data, *self._scaling).to(self._config["device"], dtype)
        return prepared

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return (model(*self._model.inputs(batch))[:, 0] - batch.y).abs().mean()

    def turned(self, batch: Any) -> Any:
        """The batch with every molecule turned by its own random element of O(3)."""
        return turned(batch, *self._model.irreps(self._config))


def without_targets(data: FlatDataset) -> FlatDataset:
    """`data` without its targets."""
    places = data.node_offsets, data.edge_index, data.edge_offsets
    return FlatDataset(data.node, *places, check=False, symmetric=data.symmetric)


def _scaled(data: MolecularGraphs, mean: float, spread: float) -> Tensor:
    """[G] float64, what the model learns to say."""
    return (data.graph["target"] - data.graph["references"] - mean) / spread


class _Split(NamedTuple):
    inputs: list[tuple[Any, ...]]  # what the model takes, of _CHUNK molecules each
    scaled: Tensor  # [G] float64, what it shall say
    references: Tensor  # [G] float64

    def value(self, scaled: Tensor, mean: float, spread: float) -> Tensor:
        """[G] in the target's unit, of something [G] that the model says."""
        return scaled * spread + mean + self.references


class Evaluation:
    """Validation and test data prepared once, and a probe with its rotated copies."""

    def __init__(
        self, config: Config, facts: Mapping[str, Any], valid: MolecularGraphs, test: MolecularGraphs
    ) -> None:
        self._config, self._scaling, target = config, scaling(config, facts), TARGETS[config["target"]]
        self._unit = self._scaling[1] * target.scale  # what is reported for 1 of what the model says
        self._splits = {"valid": self._split(valid), "test": self._split(test)}
        self.fixed = {"data": test.source, "target": config["target"], "unit": target.error_unit,
                      "baseline": float(_scaled(test, facts["mean"], 1.0).abs().mean()) * target.scale}
        probe = test.subset(range(min(_PROBE, len(test))))
        self._plain = self._split(probe).inputs
        self._copies = [self._split(_rotated(probe, g)).inputs for g in rotations(config["rotations"])]

    def _split(self, data: MolecularGraphs) -> _Split:
        model = MODELS[self._config["model"]]
        prepared = model.prepare(without_targets(data), self._config)
        parts = (range(start, min(start + _CHUNK, len(data))) for start in range(0, len(data), _CHUNK))
        inputs = [model.inputs(prepared.batch(part)) for part in parts]
        return _Split(inputs, _scaled(data, *self._scaling), data.graph["references"])

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Mean absolute errors in the unit in which the field reports them, and the equivariance error."""
        found = {name: self._error(_said(model, split.inputs), split) for name, split in self._splits.items()}
        return found | {"equivariance": self._equivariance(model)}

    def curves(self, model: nn.Module) -> dict[str, Any]:
        """The error on the training molecules, and what is predicted for some of the test molecules."""
        train, total = load(self._config, "train"), 0.0
        for data in sharded.parts(train):
            for start in range(0, len(data), _TOGETHER):
                part = self._split(data.subset(range(start, min(start + _TOGETHER, len(data)))))
                total += self._error(_said(model, part.inputs), part) * len(part.scaled)
        test = self._splits["test"]
        pair = {"target": test.scaled, "predicted": _said(model, test.inputs)}
        parity = {name: test.value(scaled, *self._scaling)[:_PARITY].tolist() for name, scaled in pair.items()}
        return {"train": total / len(train), "parity": parity}

    def probe(self, model: nn.Module) -> Tensor:
        """What the model says [G] of the molecules that gates and equivariance are measured on, in one pass."""
        return _said(model, self._plain)

    def _error(self, said: Tensor, split: _Split) -> float:
        return float((said - split.scaled).abs().mean()) * self._unit

    def _equivariance(self, model: nn.Module) -> float:
        """Mean over draws g of ||f(g x) - f(x)|| / ||f(x)|| for what the model says f."""
        plain = self.probe(model)
        errors = [(_said(model, copy) - plain).norm() / plain.norm() for copy in self._copies]
        return float(torch.stack(errors).mean())


def _said(model: nn.Module, inputs: list[tuple[Any, ...]]) -> Tensor:
    """[G] float64 on the CPU: the mean and the spread are applied in double precision."""
    return torch.cat([model(*part)[:, 0] for part in inputs]).double().cpu()


def _rotated(data: MolecularGraphs, rotation: Tensor) -> MolecularGraphs:
    """`data` turned by `rotation` [3, 3] in double precision; edges do not change."""
    node = dict(data.node) | {"pos": data.node["pos"].double() @ rotation.T}
    places = data.node_offsets, data.edge_index, data.edge_offsets
    return MolecularGraphs(node, *places, graph=data.graph, check=False, source=data.source)


def summary(latest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the data are, and the errors, as (what, value)."""
    lines = [("data", f"{latest.get('data', facts['source'])}; trained on {facts['molecules']} molecules")]
    if "target" not in latest:
        return lines
    unit, target = latest["unit"], TARGETS[latest["target"]]
    lines.append(("target", f"{latest['target']}, {target.meaning} ({target.unit})"))
    for split, name in (("test", "test"), ("valid", "validation"), ("train", "training")):
        for mode in ("strict", "relaxed"):
            if (key := f"{split}_{mode}") in latest:
                lines.append((f"{name} error (MAE), {mode} model", f"{latest[key]:.5g} {unit}"))
    return [*lines, ("test error of the training mean", f"{latest['baseline']:.5g} {unit}")]


def plots(rows: draw.Rows, result: Mapping[str, Any]) -> list[Chart]:
    unit = next((row["unit"] for row in reversed(rows) if "unit" in row), "")
    label = "mean absolute error" + (f" ({unit})" if unit else "")
    charts: list[Chart] = [draw.training_loss("training loss", rows), draw.errors(label, rows, "training mean")]
    pairs = {mode: result[f"parity_{mode}"] for mode, _ in draw.MODES if f"parity_{mode}" in result}
    if pairs:
        charts.append(draw.parity(f"Test molecules, {result['target']}", TARGETS[result["target"]].unit, pairs))
    return charts
