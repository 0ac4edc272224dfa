"""The MD17 task: SchNet predicts energies and forces of a molecule. Its settings, data, loss and measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...data import Batch, Batcher, Conformations, FlatDataset
from ...data import md17 as read_md17
from ...data.frames import UNITS
from ...models.branches import GAMMAS
from ...report.chart import Chart, Lines
from .. import plots as draw
from ..measure import SEED, rotations, turned
from ..options import DEFAULT_PRESET, OPTIMISATION, RELAXED, RUN, SYMMETRY, Config, Option, Options, changed, flag
from . import md17_model
from .md17_model import Forward, inputs_of, physical
from .md17_predict import Predictor

__all__ = ["Evaluation", "Predictor", "Training"]

TITLE = "ACE on MD17"
HELP = "SchNet on energies and forces of a molecule (MD17, rMD17, 3BPA)"
DESCRIPTION = "Trains ACE-SchNet to predict energies and forces of conformations of a molecule."
DATA_HELP = "conformations of a molecule with energies and forces"
BEST = min  # of the mean absolute error of forces on validation data
CURVES = True
EQUIVARIANCE = "||E(gx) - E(x)|| / ||E(x)||"
RELAXATIONS = ("ace", "schedule", "rpp", "per", "remul")
MEV = 1e3  # of an eV
_CHUNK = 128  # conformations per forward
_PROBE = 64  # conformations that the equivariance error and the branch ratios are measured on
_PARITY = 500  # test conformations of the parity plot
_PARITY_FORCES = 3_000  # components of forces there
_STEP = 1.0  # Å, length of the translations that are measured

# Networks read features without gradient: forces would not be the slope of the energy.
_GATES = tuple(kind for kind in GAMMAS if kind != "nn")

# The defaults are the preset "demo"; the other presets change them.
OPTIONS: Options = {
    "data": Option("data", "", "rMD17 or MD17 (.npz files of molecules, and rMD17's splits/), a folder with "
                               "train_*.xyz and test_*.xyz (3BPA), or one .npz or .xyz file; empty: the folder md17 in "
                               "$ACE_FAST_DATA or else in ~/.cache/ace_fast"),
    "molecule": Option("data", "", "which molecule, where the data have several"),
    "fold": Option("data", 1, "which of the published splits, where they are there", least=1),
    "train_set": Option("data", "", "which train_*.xyz, where there are several; empty: the one of 300K"),
    "unit": Option("data", "auto", "unit of the energies in the files; auto: that of their layout",
                   ("auto", *UNITS)),
    "train_samples": Option("data", 950, "training conformations; 0: all but those for validation and test", least=0),
    "valid_samples": Option("data", 50, "validation conformations", least=1),
    "test_samples": Option("data", 1_000, "test conformations used, of each test set; 0: all", least=0),
    "data_seed": Option("data", 0, "seed of the split where none is published", least=0, most=2**32 - 1),
    "model": Option("model", "schnet", "what is trained", ("schnet",)),
    "hidden": Option("model", 64, "hidden channels", least=2),
    "filters": Option("model", 64, "filters", least=1),
    "interactions": Option("model", 3, "interaction blocks", least=1),
    "gaussians": Option("model", 25, "Gaussians of the distance", least=2),
    "cutoff": Option("model", 5.0, "distance beyond which atoms do not interact, in Å", above=0),
    "filter": Option("model", "exact", "the filter network on every pair, or interpolated from a table",
                     ("exact", "table")),
    "knots": Option("model", 1_024, "knots of the table", least=2),
    "gammas": Option("model", "layer", "one gate an interaction, or one for all", _GATES),
    "centre": Option("model", True, "the branches see positions relative to the molecule's mean, not absolute ones"),
    "relaxed": RELAXED,
    **changed(OPTIMISATION, epochs=60, lr=2e-3),
    "batch_size": Option("optimisation", 10, "conformations per step", least=1),
    "energy_weight": Option("optimisation", 0.01, "factor of the mean squared error of energies", least=0),
    "force_weight": Option("optimisation", 0.99, "factor of that of the components of forces", least=0),
    **SYMMETRY,
    "gammas_follow": Option("symmetry", False, "the step sizes of gammas and slacks follow --lr-schedule too"),
    **changed(RUN, eval_every=5),
}

PRESETS: dict[str, Config] = {
    DEFAULT_PRESET: {},
    "schnetpack": {"hidden": 128, "filters": 128, "interactions": 6, "gaussians": 20, "lr": 1e-3, "epochs": 1_000,
                   "test_samples": 0},
}

PRESET_HELP = {
    "demo": "minutes on two cores: a small SchNet, damped gammas, bounded branches",
    "schnetpack": "SchNetPack's experiment rmd17 with SchNet: 950 and 50 conformations, 5 Å, weights 0.01 and 0.99; "
                  "cosine in place of its plateaus",
}


def check(config: Config) -> None:
    """Raises ValueError where settings do not fit together."""
    if 0 < config["train_samples"] < config["batch_size"]:
        raise ValueError(
            f"train: {flag('batch_size')} must be at most the {config['train_samples']} training conformations, got "
            f"{config['batch_size']}; pass {flag('batch_size')} {config['train_samples']} or less, or more "
            f"{flag('train_samples')}"
        )
    if config["compile"] != "none" and config["force_weight"]:
        raise ValueError(f"train: {flag('compile')} must be none where forces are learned, as torch.compile has no "
                         f"second derivatives, got {config['compile']}; leave it out")
    if config["energy_weight"] + config["force_weight"] == 0:
        raise ValueError(f"train: {flag('energy_weight')} or {flag('force_weight')} must be more than 0, got 0 for "
                         "both")


def for_data(given: Mapping[str, Any]) -> Config:
    """Settings that only prepare data."""
    return {"batch_size": 1} | dict(given)


def load(config: Config, split: str, quiet: bool = True) -> Conformations:
    """Node arrays z, pos and forces, graph arrays energy, row and part of a split, in eV and Å, float64."""
    same = ("molecule", "fold", "train_set", "unit", "train_samples", "valid_samples", "test_samples")
    given = {name: config[name] for name in same}
    return read_md17(config["data"] or None, split, seed=config["data_seed"], **given)


def facts(data: Conformations) -> dict[str, Any]:
    """What the data are, the mean energy (eV) that is learned upon, and the scale: root mean square of the forces.

    A scale of s eV/Å is s eV for energies too; the model says (E - mean) / s, and its gradient forces / s.

    Raises:
        ValueError: all forces are zero.
    """
    scale = float(data.node["forces"].square().mean().sqrt())
    if scale == 0:
        raise ValueError(f"train: the forces of {data.source} must differ from zero, got zero for all {len(data)} "
                         "training conformations")
    return {"source": data.source, "frames": len(data), "molecule": data.molecule, "numbers": data.numbers,
            "mean": float(data.graph["energy"].mean()), "scale": scale}


def any_facts(config: Config) -> dict[str, Any]:
    return {"mean": 0.0, "scale": 1.0}


def build_model(config: Config, facts: Mapping[str, Any]) -> nn.Module:
    """The model of a config, with fresh weights drawn from torch's generator."""
    numbers = [facts.get(name) for name in ("mean", "scale")]
    if not all(isinstance(x, float) and math.isfinite(x) for x in numbers) or numbers[1] <= 0:
        raise ValueError(
            f"run: config.json must hold mean and scale of the training data, got {numbers}; train the run again"
        )
    return md17_model.build_model(config)


class Training:
    """The training data in batches, and the loss: weighted mean squared errors of energies and forces, scaled."""

    def __init__(self, config: Config, facts: Mapping[str, Any], data: Conformations) -> None:
        if config["batch_size"] > len(data):
            raise ValueError(
                f"train: {flag('batch_size')} must be at most the {len(data)} training conformations, got "
                f"{config['batch_size']}; pass {flag('batch_size')} {len(data)} or less, or more data"
            )
        # In float64 up to here: a total energy does not fit float32.
        node = {name: data.node[name] for name in ("z", "pos")} | {"y_forces": data.node["forces"] / facts["scale"]}
        graph = {"y": (data.graph["energy"] - facts["mean"]) / facts["scale"]}
        prepared = FlatDataset(node, data.node_offsets, graph=graph, check=False)
        prepared = prepared.to(config["device"], getattr(torch, config["dtype"]))
        self.batches = Batcher(prepared, config["batch_size"], seed=config["seed"])
        self._weights = config["energy_weight"], config["force_weight"]
        self._forward = Forward(config)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        of_energies, of_forces = self._weights
        if of_forces == 0:
            return of_energies * (self._forward.energies(model, batch) - batch.y).square().mean()
        energy, forces = self._forward(model, batch, train=True)
        return of_energies * (energy - batch.y).square().mean() + of_forces * (forces - batch.y_forces).square().mean()


    def turned(self, batch: Batch) -> Batch:
        """The batch with every conformation turned by its own random element of O(3), its forces with it."""
        return turned(batch, {"pos": "1o", "y_forces": "1o"}, {})


class _Split(NamedTuple):
    inputs: list[Batch]  # of _CHUNK conformations each
    energy: Tensor  # [G] float64, eV
    forces: Tensor  # [G, n, 3] float64, eV/Å
    part: Tensor  # [G] which of the sets


class Evaluation:
    """Validation and test data prepared once, and a probe with its moved copies."""

    def __init__(self, config: Config, facts: Mapping[str, Any], valid: Conformations, test: Conformations) -> None:
        _check_molecule(facts, test)
        self._config, self._facts, self._parts = config, facts, test.parts
        self._forward = Forward(config)
        self._splits = {"valid": self._split(valid), "test": self._split(test)}
        self.fixed = {"data": test.source, "sets": list(self._parts)} | self._baselines()
        probe = test.subset(range(min(_PROBE, len(test))))
        self._plain = self._split(probe).inputs
        self._rotations = rotations(config["rotations"])
        self._copies = [self._split(_moved(probe, g)).inputs for g in self._rotations]
        shift = torch.randn(3, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        self._shifted = self._split(_moved(probe, shift=_STEP * shift / shift.norm())).inputs

    def _split(self, data: Conformations) -> _Split:
        whole = inputs_of(data, self._config)
        parts = (range(start, min(start + _CHUNK, len(data))) for start in range(0, len(data), _CHUNK))
        forces = data.node["forces"].view(len(data), -1, 3)
        return _Split([whole.batch(part) for part in parts], data.graph["energy"], forces, data.graph["part"])

    def _baselines(self) -> dict[str, Any]:
        """Errors of the training mean and of no forces, on each test set."""
        test = self._splits["test"]
        found = self._errors(torch.full_like(test.energy, self._facts["mean"]), torch.zeros_like(test.forces), test)
        return {"baseline": found["forces"][0], "baselines": found}

    def measure(self, model: nn.Module) -> dict[str, Any]:
        """Mean absolute errors in meV and meV/Å, and what rotations and a translation change.

        "valid" and "test" are errors of forces, "test" of the first test set; "errors" has energies and forces of all.
        """
        found: dict[str, Any] = {}
        for name, split in self._splits.items():
            errors = self._errors(*self._said(model, split.inputs), split)
            found |= {name: errors["forces"][0], f"{name}_energy": errors["energy"][0]}
        return found | {"errors": errors} | self._symmetry(model)

    def curves(self, model: nn.Module) -> dict[str, Any]:
        """Errors on the training conformations, and what is predicted for some of the test ones."""
        train = self._split(load(self._config, "train"))
        errors = self._errors(*self._said(model, train.inputs), train)
        test = self._splits["test"]
        first = test.part == 0
        pairs = zip((test.energy, test.forces), self._said(model, test.inputs), strict=True)
        (energy, said_energy), (forces, said_forces) = ((x[first][:_PARITY], y[first][:_PARITY]) for x, y in pairs)
        parity = {"energy": (energy - self._facts["mean"], said_energy - self._facts["mean"]),
                  "forces": (forces.flatten()[:_PARITY_FORCES], said_forces.flatten()[:_PARITY_FORCES])}
        listed = {name: {"target": x.tolist(), "predicted": y.tolist()} for name, (x, y) in parity.items()}
        return {"train": errors["forces"][0], "train_energy": errors["energy"][0], "parity": listed}

    def probe(self, model: nn.Module) -> Tensor:
        """The energies [G] of the conformations that gates and equivariance are measured on, in one forward pass."""
        return torch.cat([self._forward.energies(model, batch) for batch in self._plain])

    def _said(self, model: nn.Module, inputs: list[Batch]) -> tuple[Tensor, Tensor]:
        """Energies [G] in eV and forces [G, n, 3] in eV/Å, float64 on the CPU."""
        return physical(self._forward, model, inputs, self._facts)

    def _errors(self, energy: Tensor, forces: Tensor, split: _Split) -> dict[str, list[float]]:
        """Mean absolute errors for each set: energies in meV, components of forces in meV/Å."""
        wrong = {"energy": (energy - split.energy).abs(), "forces": (forces - split.forces).abs()}
        sets = range(int(split.part.max()) + 1)
        return {name: [float(x[split.part == i].mean()) * MEV for i in sets] for name, x in wrong.items()}

    def _symmetry(self, model: nn.Module) -> dict[str, float]:
        """Relative changes of energies (above the mean) and of forces, turned back, and of both by a translation."""
        plain, forces = self._raw(model, self._plain)
        energies, turned_forces = [], []
        for g, copy in zip(self._rotations, self._copies, strict=True):
            turned, turned_force = self._raw(model, copy)
            energies.append((turned - plain).norm() / plain.norm())
            turned_forces.append((turned_force - forces @ g.T).norm() / forces.norm())
        shifted, _ = self._raw(model, self._shifted)
        return {"equivariance": float(torch.stack(energies).mean()),
                "equivariance_forces": float(torch.stack(turned_forces).mean()),
                "translation": float((shifted - plain).norm() / plain.norm())}

    def _raw(self, model: nn.Module, inputs: list[Batch]) -> tuple[Tensor, Tensor]:
        return physical(self._forward, model, inputs, {"mean": 0.0, "scale": 1.0})


def _check_molecule(facts: Mapping[str, Any], data: Conformations) -> None:
    if data.numbers != facts["numbers"]:
        raise ValueError(f"evaluate: {flag('data')} must hold the molecule that the run was trained on, "
                         f"{facts['molecule']} in the same order of atoms, got {data!r}")


def _moved(data: Conformations, rotation: Tensor | None = None, shift: Tensor | None = None) -> Conformations:
    """`data` turned by `rotation` [3, 3] or moved by `shift` [3], in double precision."""
    pos = data.node["pos"] @ rotation.T if rotation is not None else data.node["pos"] + shift
    return Conformations(dict(data.node) | {"pos": pos}, data.node_offsets, graph=data.graph, check=False,
                         source=data.source, parts=data.parts)


def summary(latest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the data are, and the errors, as (what, value)."""
    lines = [("data", f"{latest.get('data', facts['source'])}: {facts['molecule']}; trained on {facts['frames']} "
                      "conformations")]
    if "sets" not in latest:
        return lines

    def line(what: str, errors: Mapping[str, list[float]], i: int) -> tuple[str, str]:
        return what, f"energies {errors['energy'][i]:.4g} meV, forces {errors['forces'][i]:.4g} meV/Å"

    for i, name in enumerate(latest["sets"]):
        for mode in ("strict", "relaxed"):
            if f"errors_{mode}" in latest:
                lines.append(line(f"{name} error (MAE), {mode} model", latest[f"errors_{mode}"], i))
        lines.append(line(f"{name} error of the training mean and no forces", latest["baselines"], i))
    for split, name in (("valid", "validation"), ("train", "training")):
        for mode in ("strict", "relaxed"):
            if f"{split}_{mode}" in latest:
                errors = {"energy": [latest[f"{split}_energy_{mode}"]], "forces": [latest[f"{split}_{mode}"]]}
                lines.append(line(f"{name} error (MAE), {mode} model", errors, 0))
    for key, what in (("equivariance_forces", "rotations change forces"), ("translation", "1 Å changes energies")):
        for mode in ("strict", "relaxed"):
            if f"{key}_{mode}" in latest:
                lines.append((f"{what}, {mode}", f"{latest[f'{key}_{mode}']:.2e}"))
    return lines


def plots(rows: draw.Rows, result: Mapping[str, Any]) -> list[Chart]:
    charts: list[Chart] = [
        draw.training_loss("training loss, scaled", rows),
        replace(draw.errors("mean absolute error (meV/Å)", rows, "no forces"), title="Error of forces"),
        Lines("Error of energies", "epoch", "mean absolute error (meV)", draw.splits(rows, "energy_"), log_y=True),
    ]
    for name, unit in (("energy", "eV, less the mean"), ("forces", "eV/Å")):
        pairs = {mode: result[f"parity_{mode}"][name] for mode, _ in draw.MODES if f"parity_{mode}" in result}
        if pairs:
            charts.append(draw.parity(f"Test {name}", unit, pairs))
    return charts
