"""The ModelNet task: VN-DGCNN classifies point clouds. Its settings, data, loss, measurements and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import models
from ...data import PointClouds, drop_points, generated_shapes, meshes, normalise, shape_file
from ...data import modelnet as read_modelnet
from ...data.pointclouds import ROTATIONS
from ...data.shapefile import has_validation
from ...report.chart import Bar, Bars, Chart, Lines, Series
from ...symmetry import random_o3
from .. import plots as draw
from ..measure import SEED, equivariance
from ..options import DEFAULT_PRESET, OPTIMISATION, RELAXED, RUN, SYMMETRY, Config, Option, Options, changed, flag
from ..options import SEED as LARGEST_SEED
from ..predict import Answer, PredictorBase, check_offsets, read_arrays, tensor
from ..progress import data_progress
from .clouds import Clouds, accuracies

TITLE = "ACE-VN-DGCNN on point clouds"
HELP = "VN-DGCNN on the point clouds of ModelNet, of a file, or of generated solids"
DESCRIPTION = "Trains ACE-VN-DGCNN to classify point clouds."
DATA_HELP = "labelled point clouds"
BEST = max  # of the accuracy on validation data
CURVES = True
LEAST = 2  # clouds that the batch norms of the classifier need
EQUIVARIANCE = "||f(gx) - f(x)|| / ||f(x)||"
RELAXATIONS = ("ace", "schedule", "rpp", "per", "remul")
DROPPED = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.85)  # shares of points that the accuracy is measured at
_CHUNK = 32  # clouds per forward
_SHOWN = 10  # clouds whose classes a prediction prints

# The defaults are the preset "demo"; the other presets change them.
OPTIONS: Options = {
    "data": Option("data", "", "folder of ModelNet (meshes, resampled text files or HDF5; what is prepared of them is "
                               "kept in $ACE_FAST_DATA or else ~/.cache/ace_fast) or .npz file of shapes; "
                               "empty: solids that the package generates itself, not ModelNet"),
    "classes": Option("data", 40, "classes of that folder, 10 or 40 for ModelNet itself; a file of shapes and the "
                                  "generated solids have their own", least=2),
    "valid_fraction": Option("data", 0.1, "share of the training data kept for validation, where the data have no "
                                          "validation split of their own", above=0, most=0.5),
    "data_seed": Option("data", 0, "seed of that share, of points drawn from meshes and of the solids", least=0,
                        most=LARGEST_SEED),
    "train_per_class": Option("data", 32, "generated training solids per class", least=1),
    "test_per_class": Option("data", 16, "generated validation and test solids per class", least=1),
    "num_points": Option("data", 128, "points per cloud", least=1),
    "train_rotation": Option("data", "so3", "rotation of each training cloud: none, about z, any", ROTATIONS),
    "test_rotation": Option("data", "so3", "rotation of each validation and test cloud", ROTATIONS),
    "drop": Option("data", 0.0, "largest share of points dropped (replaced by the cloud's first one), drawn for each "
                                "training, validation and test cloud; 0: none, 0.875: as the authors", least=0, most=1),
    "n_knn": Option("model", 20, "nearest neighbours of each point, itself included", least=1, most=64),
    "pooling": Option("model", "mean", "how neighbours are pooled", ("mean", "max")),
    "dropout": Option("model", 0.5, "dropout in the classifier", least=0, most=0.99),
    "legacy_view": Option("model", False, "the authors' transposition in the branches of two layers"),
    "relaxed": RELAXED,
    **changed(OPTIMISATION, epochs=20),
    "batch_size": Option("optimisation", 16, "clouds per step, two or more", least=2),
    "lr": Option("optimisation", 1e-3, "step size of the optimiser of the weights", above=0),
    "optimizer": Option("optimisation", "adam", "optimiser of the weights", ("sgd", "adam")),
    "momentum": Option("optimisation", 0.0, "momentum of sgd", least=0, most=0.999),
    "label_smoothing": Option("optimisation", 0.2, "share of the target spread over the other classes", least=0,
                              most=0.5),
    **changed(SYMMETRY, gamma_lr=2e-2, dual_lr=2e-3),
    "recalibrate": Option("symmetry", False, "batch norms recomputed without the branches for the strict model"),
    **changed(RUN, eval_every=4),
}

_PUBLISHED = {
    "num_points": 300, "batch_size": 32, "optimizer": "sgd", "lr": 0.1, "lr_schedule": "constant", "epochs": 250,
    "eval_every": 5, "gamma_lr": 0.1, "dual_lr": 1e-4, "augmentation": 0.0, "bound": "none",
}

PRESETS: dict[str, Config] = {
    DEFAULT_PRESET: {},
    "paper": _PUBLISHED,
    "original_code": {**_PUBLISHED, "repo_scale": True, "legacy_view": True},
}

PRESET_HELP = {
    "demo": "minutes on two cores, damped gammas, bounded branches; with generated solids unless --data is given",
    "paper": "the published settings: 300 points, plain undamped steps, 250 epochs",
    "original_code": "as paper, with multipliers divided by their number and the transposition of the authors' code",
}


def check(config: Config) -> None:
    """Raises ValueError where settings do not fit together."""
    if config["n_knn"] > config["num_points"]:
        raise ValueError(
            f"train: {flag('n_knn')} must be at most the {config['num_points']} points of a cloud, got "
            f"{config['n_knn']}; pass more {flag('num_points')}"
        )


def for_data(given: Mapping[str, Any]) -> Config:
    """Settings that only prepare data: clouds of few points too."""
    return ({"n_knn": 1} if "num_points" in given else {}) | dict(given)


def load(config: Config, split: str, quiet: bool = True) -> PointClouds:
    """The clouds of a split; a validation split is drawn from the training data where there is none."""
    data, points, seed = config["data"], config["num_points"], config["data_seed"]
    if not data:
        count = config["train_per_class" if split == "train" else "test_per_class"]
        return generated_shapes(split, per_class=count, points=points, seed=seed)
    path = Path(data)
    if path.suffix.lower() == ".npz":
        def read(part: str) -> PointClouds:
            return shape_file(path, part, points=points, seed=seed)
    else:
        def read(part: str) -> PointClouds:
            shown = data_progress(part, quiet, "prepar", "files")
            return read_modelnet(path, part, classes=config["classes"], points=points, seed=seed, progress=shown)

    if split == "test":
        return read("test")
    train = read("train")
    if path.suffix.lower() == ".npz" and has_validation(path):
        return train if split == "train" else read("valid")
    return train.holdout(config["valid_fraction"], seed=seed)[split == "valid"]


def facts(data: PointClouds) -> dict[str, Any]:
    """The classes, and what the data are."""
    if len(data.classes) < 2:
        raise ValueError(f"train: the data must have two classes or more, got {len(data.classes)}; pass other --data")
    return {"classes": list(data.classes), "source": data.source}


def any_facts(config: Config) -> dict[str, Any]:
    return {"classes": ["one", "two"]}


def build_model(config: Config, facts: Mapping[str, Any]) -> nn.Module:
    """The VN-DGCNN of a config, with fresh weights drawn from torch's generator."""
    if not isinstance(facts.get("classes"), list) or len(facts["classes"]) < 2:
        raise ValueError(
            f"run: config.json must hold the classes of the data, two or more, got {facts.get('classes')!r}; train the "
            "run again"
        )
    return models.VNDGCNN(
        len(facts["classes"]), config["n_knn"], config["pooling"], config["dropout"], relaxed=config["relaxed"],
        legacy_view=config["legacy_view"], backend=config["backend"],
    )


class Training:
    """The training data in batches, and the loss: cross entropy against smoothed labels.

    Each other one of K classes gets smoothing / (K - 1) of the target, as in DGCNN's code. A last batch of a single
    cloud is left out: the batch norms of the classifier cannot work on it.
    """

    def __init__(self, config: Config, facts: Mapping[str, Any], data: PointClouds) -> None:
        _check_classes("training", data, facts)
        if config["batch_size"] > len(data):
            raise ValueError(
                f"train: {flag('batch_size')} must be at most the {len(data)} training clouds, got "
                f"{config['batch_size']}; pass {flag('batch_size')} {len(data)} or less, or more data"
            )
        self.config, self._data = config, data.to(config["device"])
        self.batches = self._batches(True, config["seed"])
        K = len(data.classes)
        self._smoothing = config["label_smoothing"] * K / (K - 1)  # torch spreads it over all classes

    def _batches(self, shuffle: bool, seed: int) -> Clouds:
        config, size = self.config, self.config["batch_size"]
        batches = self._data.batches(size, shuffle=shuffle, seed=seed, drop_last=len(self._data) % size == 1)
        return Clouds(batches, config["train_rotation"], config["drop"], getattr(torch, config["dtype"]), seed)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        points, labels = batch
        return nn.functional.cross_entropy(_logits(model, points), labels, label_smoothing=self._smoothing)

    def turned(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The batch with every cloud turned by its own random element of O(3)."""
        points, labels = batch
        return points @ random_o3(len(points)).to(points), labels

    def inputs(self) -> list[Tensor]:
        """The training clouds as the model takes them, [B, 3, N] each, with draws that are always the same."""
        return [points.transpose(1, 2) for points, _ in self._batches(False, SEED)]


class Evaluation:
    """Validation and test clouds, rotated and thinned once, and a probe with its rotated copies."""

    def __init__(self, config: Config, facts: Mapping[str, Any], valid: PointClouds, test: PointClouds) -> None:
        self.fixed = {"data": test.source}
        self._config, self._classes = config, len(facts["classes"])
        for name, data in (("validation", valid), ("test", test)):
            _check_classes(name, data, facts)
            if len(data) == 0:
                raise ValueError(f"train: there must be {name} clouds, got none; give more data or more "
                                 f"{flag('valid_fraction')}")
        self._test = test.to(config["device"])
        splits = {"valid": valid.to(config["device"]), "test": self._test}
        self._splits = {name: self._drawn(data, config["test_rotation"], config["drop"]) for name, data in
                        splits.items()}
        self._plain = self._splits["test"][0][0]  # [B, N, 3]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Accuracies over clouds and over classes, and the equivariance error: logits must not change."""
        found = {}
        for split, batches in self._splits.items():
            found[split], found[f"{split}_class"] = self._accuracy(model, batches)
        return found | {"equivariance": self._equivariance(model)}

    def curves(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Accuracy on test clouds under each kind of rotation, with all points, and at each share of dropped points."""
        rotated = {kind: self._accuracy(model, self._drawn(self._test, kind, 0.0))[0] for kind in ROTATIONS}
        plain = self._drawn(self._test, self._config["test_rotation"], 0.0)
        dropped = {}
        for share in DROPPED:
            generator = torch.Generator(self._plain.device).manual_seed(SEED)
            batches = [(drop_points(x, ratio=share, generator=generator), labels) for x, labels in plain]
            dropped[f"{share:.2f}"] = self._accuracy(model, batches)[0]
        return {"rotated": rotated, "dropped": dropped}

    def probe(self, model: nn.Module) -> Tensor:
        """The logits [B, K] of the clouds that gates and equivariance are measured on, in one forward pass."""
        return _logits(model, self._plain)

    def _drawn(self, data: PointClouds, rotation: str, drop: float) -> list[tuple[Tensor, Tensor]]:
        batches = data.batches(min(_CHUNK, len(data)), shuffle=False)
        return list(Clouds(batches, rotation, drop, getattr(torch, self._config["dtype"]), SEED))

    def _accuracy(self, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Share of clouds found, and the mean over the classes present of that share within each."""
        labels = torch.cat([labels for _, labels in batches])
        found = torch.cat([_logits(model, points).argmax(1) for points, _ in batches])
        return accuracies(found.cpu(), labels.cpu(), self._classes)

    def _equivariance(self, model: nn.Module) -> float:
        """Mean over draws of ||f(g x) - f(x)|| / ||f(x)|| for the logits f, g an element of O(3) a cloud."""
        return equivariance(lambda points: _logits(model, points), self._plain, self._config["rotations"], "scalar",
                            "samples")


def _logits(model: nn.Module, points: Tensor) -> Tensor:
    return model(points.transpose(1, 2))  # [B, N, 3] -> [B, K]


def _check_classes(name: str, data: PointClouds, facts: Mapping[str, Any]) -> None:
    if list(data.classes) != facts["classes"]:
        raise ValueError(
            f"train: the {name} data must have the {len(facts['classes'])} classes of the run "
            f"({', '.join(facts['classes'][:3])}, ...), got {len(data.classes)} ({', '.join(data.classes[:3])}, ...); "
            "pass the --data that the run was trained with"
        )


def summary(latest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the data are, and the accuracies, as (what, value)."""
    lines = [("data", _named(latest.get("data", facts["source"])))]
    if latest.get("data", facts["source"]) != facts["source"]:
        lines.append(("trained on", _named(facts["source"])))
    modes = [mode for mode in ("strict", "relaxed") if f"test_{mode}" in latest]
    for split, name in (("test", "test"), ("valid", "validation")):
        for mode in modes:
            numbers = f"{latest[f'{split}_{mode}']:.4f}, mean over classes {latest[f'{split}_class_{mode}']:.4f}"
            lines.append((f"{name} accuracy, {mode} model", numbers))
    for key, name in (("rotated", "by rotation, "), ("dropped", "by share of points dropped, ")):
        for mode in modes:
            if found := latest.get(f"{key}_{mode}"):
                numbers = ", ".join(f"{x}: {value:.4f}" for x, value in found.items())
                lines.append((f"test accuracy, {name}{mode} model", numbers))
    return lines


def _named(source: str) -> str:
    """The data in words; nobody shall take them for ModelNet40 where they are not."""
    return source if "ModelNet" in source else f"{source} (not ModelNet40)"


def plots(rows: draw.Rows, result: Mapping[str, Any]) -> list[Chart]:
    charts: list[Chart] = [draw.training_loss("cross entropy", rows, log=False),
                           Lines("Accuracy", "epoch", "accuracy", draw.splits(rows))]
    return [*charts, *(_curves(result) if "dropped_strict" in result else [])]


def _curves(result: Mapping[str, Any]) -> list[Chart]:
    shown = [(mode, colour) for mode, colour in draw.MODES if f"rotated_{mode}" in result]
    dropped = [Series(mode, [(float(share), value) for share, value in result[f"dropped_{mode}"].items()], colour,
                      marks=True) for mode, colour in shown]
    names = list(result[f"rotated_{shown[0][0]}"])
    bars = [Bar(f"{name}, {mode}", result[f"rotated_{mode}"][name], f"{result[f'rotated_{mode}'][name]:.3f}", colour)
            for name in names for mode, colour in shown]
    return [Lines("Test accuracy, points dropped", "share of points dropped", "test accuracy", dropped,
                  range_y=(0.0, 1.0)), Bars("Test accuracy, by rotation", bars, top=1.0)]


class Predictor(PredictorBase):
    """A trained VN-DGCNN that names the classes of point clouds.

    Attributes:
        classes: the names, in the order of the probabilities.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.facts["classes"])

    @torch.no_grad()
    def predict(self, points: Tensor | np.ndarray, offsets: Tensor | np.ndarray | None = None) -> Tensor:
        """Probabilities of the classes.

        Each cloud is moved to its centroid and scaled into the unit sphere, as in training. Of one with more points
        than those of training as many are drawn, always the same ones.

        Args:
            points: [B, N, 3] or one cloud [N, 3]; [M, 3] with offsets.
            offsets: [B + 1], points offsets[b] .. offsets[b + 1] - 1 are cloud b.

        Returns:
            [B, K] on the CPU; [K] for one cloud without offsets.

        Raises:
            ValueError: a wrong shape, values that are not finite, or a cloud of fewer points than there are neighbours.
        """
        x = tensor("points", points)
        dims = (2, 3) if offsets is None else (2,)
        if x.dim() not in dims or x.shape[-1] != 3:
            expected = "[B, N, 3] or [N, 3]" if offsets is None else "[M, 3]"
            raise ValueError(f"predict: points must be {expected}, got {list(x.shape)}")
        one = offsets is None and x.dim() == 2
        if offsets is None:
            clouds = list(x[None] if one else x)
        else:
            clouds = list(x.split(check_offsets(offsets, len(x), "[B + 1]", "points").diff().tolist()))
        clouds = [self._prepared(number, cloud) for number, cloud in enumerate(clouds)]
        found = torch.zeros(len(clouds), len(self.classes), dtype=getattr(torch, self.config["dtype"]))
        for size in {len(cloud) for cloud in clouds}:
            alike = [number for number, cloud in enumerate(clouds) if len(cloud) == size]
            for start in range(0, len(alike), _CHUNK):
                chosen = alike[start : start + _CHUNK]
                batch = torch.stack([clouds[number] for number in chosen]).to(self.config["device"])
                found[chosen] = _logits(self.model, batch).softmax(1).cpu()
        return found[0] if one else found

    def _prepared(self, number: int, cloud: Tensor) -> Tensor:
        """[n, 3] in the unit sphere, in the run's dtype, with at most as many points as in training."""
        cloud = cloud.to(torch.float64)
        if not bool(cloud.isfinite().all()):
            raise ValueError(f"predict: points must be finite, got NaN or infinity first in cloud {number}")
        if len(cloud) < self.config["n_knn"]:
            raise ValueError(
                f"predict: a cloud must have at least {self.config['n_knn']} points, as many as a neighbourhood "
                f"(n_knn), got {len(cloud)} in cloud {number}"
            )
        cloud = normalise(cloud)
        if len(cloud) > self.config["num_points"]:
            chosen = np.random.default_rng(SEED).permutation(len(cloud))[: self.config["num_points"]]
            cloud = cloud[torch.from_numpy(chosen)]
        return cloud.to(getattr(torch, self.config["dtype"]))

    def answer(self, source: Path) -> Answer:
        """Classes and probabilities for an .npy, an .npz of points (and offsets), or a mesh."""
        if source.suffix.lower() == ".off":
            arrays = {"points": self._sampled(source)}
        else:
            arrays = read_arrays(source, ("points",), "an .npy, .npz or .off")
        found = torch.atleast_2d(self.predict(arrays["points"], arrays.get("offsets")))  # [B, K]
        best, names = found.argsort(1, descending=True)[:, :3], np.array(self.classes)
        lines = [
            f"cloud {b}: " + ", ".join(f"{names[k]} {found[b, k]:.3f}" for k in row.tolist())
            for b, row in enumerate(best[:_SHOWN])
        ]
        label = found.argmax(1).numpy()
        arrays = {"probabilities": found.numpy(), "label": label, "class": names[label], "classes": names}
        return Answer(arrays, len(found), f"{len(found)} clouds", tuple(lines))

    def _sampled(self, source: Path) -> np.ndarray:
        try:
            vertices, faces = meshes.read_off(source)
        except OSError as error:
            raise OSError(
                error.errno, f"predict: INPUT must be a mesh that can be read, got {source} ({error.strerror})"
            ) from error
        try:
            return meshes.sample(vertices, faces, self.config["num_points"], np.random.default_rng(SEED))
        except ValueError as error:
            raise ValueError(f"predict: {source} cannot be used ({error})") from error
