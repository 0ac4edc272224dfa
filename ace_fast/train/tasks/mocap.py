"""The MoCap task: EGNO predicts human motion. Its settings, model, data, loss and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Batch, Batcher, MotionSamples
from ...data import mocap as read_mocap
from ...data.mocap import FRAMES
from ...data.mocap_files import CASES
from ...models import EGNO
from ...models.branches import GAMMAS
from ...report.chart import Chart, Lines, Series
from .. import plots as draw
from ..measure import rotations
from ..options import DEFAULT_PRESET, OPTIMISATION, RELAXED, RUN, SYMMETRY, Config, Option, Options, changed, flag
from ..progress import data_progress
from .mocap_graphs import HEIGHTS, Forward, check_heights, chunk
from .mocap_predict import Predictor

__all__ = ["Evaluation", "Predictor", "Training"]

TITLE = "ACE-EGNO on human motion"
HELP = "EGNO on human motion of the CMU database (walk, run)"
DESCRIPTION = "Trains ACE-EGNO to predict where a walker's or runner's joints will be."
DATA_HELP = "human motion of the CMU database"
BEST = min  # of the mean squared error of the last frame on validation data
CURVES = True
EQUIVARIANCE = "||f(gx) - g f(x)|| / ||f(x)||, g in O(3), heights kept"
RELAXATIONS = ("ace",)  # EGNO's branches have fixed norms, and its inputs a direction of gravity
_PROBE = 50  # moments that the equivariance error and the branch ratios are measured on

# The defaults are the preset "demo"; the other presets change them.
OPTIONS: Options = {
    "data": Option("data", "", "folder or .zip of CMU's files (35.asf, 35_01.amc ...; 09.asf, 09_01.amc ...), or .npz "
                               "file; empty: the folder mocap in $ACE_FAST_DATA or else ~/.cache/ace_fast"),
    "case": Option("data", "run", "walk: subject 35; run: subject 9", tuple(CASES)),
    "delta": Option("data", 30, "frames from the input to the last target, 120 a second", least=1),
    "steps": Option("data", 5, "frames predicted, T", least=1, most=64),
    "frames": Option("data", "last", "which: the last T up to delta, as the authors' code, or every delta / T-th",
                     FRAMES),
    "train_samples": Option("data", 200, "training moments used, equally many of each trial; 0: all", least=0),
    "eval_samples": Option("data", 600, "validation and test moments used, each; 0: all", least=0),
    "data_seed": Option("data", 100, "seed of start frames where the data have none; 100: the field's", least=0,
                        most=2**32 - 1),
    "layers": Option("model", 4, "layers", least=1),
    "hidden": Option("model", 64, "width of all networks", least=1),
    "modes": Option("model", 2, "Fourier modes of the convolutions along time, at most T // 2 + 1", least=1),
    "time_emb": Option("model", 32, "numbers that encode a frame", least=2),
    "height": Option("model", "train", "the joints' heights as a feature, over the largest of the training data or, "
                                       "as the authors' code, of the batch; none: without", HEIGHTS),
    "gammas": Option("model", "layer", "gates: two of each layer, two for all, or networks that compute them", GAMMAS),
    "relaxed": RELAXED,
    **changed(OPTIMISATION, epochs=150, clip=1.0),
    "batch_size": Option("optimisation", 12, "moments per step; a last batch that is not full is left out", least=1),
    "lr": Option("optimisation", 1e-3, "step size of Adam on the weights", above=0),
    **changed(SYMMETRY, bound="none"),
    **changed(RUN, eval_every=10),
}

_PUBLISHED = {
    "layers": 6, "hidden": 128, "lr": 5e-4, "weight_decay": 1e-10, "lr_schedule": "constant", "epochs": 3_000,
    "eval_every": 5, "gamma_lr": 5e-4, "dual_lr": 2e-4, "augmentation": 0.0,
}

PRESETS: dict[str, Config] = {
    DEFAULT_PRESET: {},
    "paper": _PUBLISHED,
    "paper_damped": {**_PUBLISHED, "gamma_lr": 5e-3, "dual_lr": 5e-3, "augmentation": 1.0},
    "original_code": {**_PUBLISHED, "height": "batch", "gamma_optimizer": "adam", "dual_optimizer": "adam",
                      "dual_eps": 1e-4, "repo_clamp": True},
}

PRESET_HELP = {
    "demo": "minutes on two cores: a smaller model, damped gammas",
    "paper": "the published settings: 6 layers of 128, 3000 epochs, plain undamped steps",
    "paper_damped": "the published model and length with damped gammas",
    "original_code": "as paper, with Adam on gammas and multipliers, multipliers >= 0 and heights scaled by the batch "
                     "as the authors' script",
}


def check(config: Config) -> None:
    """Raises ValueError where settings do not fit together."""
    steps, modes = config["steps"], config["modes"]
    if steps > config["delta"]:
        raise ValueError(f"train: {flag('steps')} must be at most {flag('delta')} {config['delta']}, got {steps}")
    if modes > steps // 2 + 1:
        raise ValueError(
            f"train: {flag('modes')} must be at most {steps // 2 + 1} for {flag('steps')} {steps}, got {modes}; pass "
            f"fewer modes or {flag('steps')} {2 * modes - 2} or more"
        )
    if 0 < config["train_samples"] < config["batch_size"]:
        raise ValueError(
            f"train: {flag('batch_size')} must be at most the {config['train_samples']} training moments, got "
            f"{config['batch_size']}; pass a smaller one or more {flag('train_samples')}"
        )
    if config["height"] == "batch" and config["accumulate"] > 1:
        raise ValueError(f"train: {flag('accumulate')} must be 1 with {flag('height')} batch, whose samples depend on "
                         f"each other, got {config['accumulate']}; pass {flag('height')} train")
    if config["bound"] != "none":
        raise ValueError(f"train: {flag('bound')} must be none for EGNO, whose branches have spectral norms of their "
                         f"own, got {config['bound']}")


def for_data(given: Mapping[str, Any]) -> Config:
    """Settings that only prepare data: of any number of moments."""
    fewer = {"modes": 1} if "steps" in given else {}
    return {"batch_size": 1} | fewer | dict(given)


def load(config: Config, split: str, quiet: bool = True) -> MotionSamples:
    """The moments of a split, float64, with node arrays pos, vel, height and target."""
    return read_mocap(
        config["data"] or None, split, case=config["case"], delta=config["delta"], steps=config["steps"],
        frames=config["frames"], num_samples=config["train_samples" if split == "train" else "eval_samples"],
        seed=config["data_seed"], progress=data_progress(f"{config['case']} ({split})", quiet, "load", "trials"),
    )


def facts(data: MotionSamples) -> dict[str, Any]:
    """What the data are, the skeleton, and the largest height."""
    about = data.recordings
    return {
        "source": data.source, "moments": len(data), "joints": list(about.joints), "bones": about.bones.tolist(),
        "unit_cm": about.unit_cm, "frames": data.frames.tolist(), "height": float(data.node["height"].max()),
    }


def any_facts(config: Config) -> dict[str, Any]:
    return {"joints": ["one", "two"], "bones": [[0, 1]], "frames": list(range(config["steps"])), "height": 0.0}


def build_model(config: Config, facts: Mapping[str, Any]) -> nn.Module:
    """The EGNO of a config, with fresh weights drawn from torch's generator."""
    lists = [facts.get(name) for name in ("joints", "bones", "frames")]
    sizes = [len(x) if isinstance(x, list) else 0 for x in lists]
    if sizes[0] < 2 or sizes[1:] != [sizes[0] - 1, config["steps"]] or not isinstance(facts.get("height"), float):
        raise ValueError("run: config.json must hold joints, bones, frames and the largest height of the training "
                         "data, got others; train the run again")
    return EGNO(
        config["layers"], 1 if config["height"] == "none" else 2, 2, config["hidden"], with_v=True,
        num_modes=config["modes"], num_timesteps=config["steps"], time_emb_dim=config["time_emb"],
        relaxed=config["relaxed"], gammas=config["gammas"], backend=config["backend"],
    )


class Training:
    """The training data in batches of one size, and the loss: the mean squared error over all frames.

    The last layer's features have no part in the positions. Their gate gets a gradient of 0, so that the multipliers
    drive it to zero like all others, as they do in the authors' code.
    """

    def __init__(self, config: Config, facts: Mapping[str, Any], data: MotionSamples) -> None:
        if config["batch_size"] > len(data):
            raise ValueError(
                f"train: {flag('batch_size')} must be at most the {len(data)} training moments, got "
                f"{config['batch_size']}; pass {flag('batch_size')} {len(data)} or less, or more data"
            )
        check_heights("train", data, config, facts)
        moved = data.to(config["device"], getattr(torch, config["dtype"]))
        self.batches = Batcher(moved, config["batch_size"], seed=config["seed"], drop_last=True)
        self._forward = Forward(config, facts)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = (self._forward(model, batch) - batch.target.transpose(0, 1)).square().mean()
        return loss + 0.0 * sum(gamma.sum() for gamma in model.get_gammas())


class Evaluation:
    """Validation and test data prepared once, and a probe with its rotated copies."""

    def __init__(self, config: Config, facts: Mapping[str, Any], valid: MotionSamples, test: MotionSamples) -> None:
        self._config, self._facts, self._forward = config, facts, Forward(config, facts)
        for data in (valid, test):
            _check_skeleton(data, facts)
            check_heights("train", data, config, facts)
        linear = linear_baseline(test)
        self.fixed = {"data": test.source, "frames": test.frames.tolist(), "baseline": linear[-1],
                      "baseline_average": sum(linear) / len(linear), "baseline_by_frame": linear}
        self._splits = {"valid": self._batches(valid), "test": self._batches(test)}
        probe = test.subset(range(min(_PROBE, chunk(config), len(test))))
        (self._plain,) = self._batches(probe)
        self._rotations = rotations(config["rotations"])
        self._copies = [self._batches(rotated(probe, g))[0] for g in self._rotations]
        self._rotations = self._rotations.to(config["device"], getattr(torch, config["dtype"]))

    def _batches(self, data: MotionSamples) -> list[Batch]:
        size = chunk(self._config)
        moved = data.to(self._config["device"], getattr(torch, self._config["dtype"]))
        return [moved.batch(range(i, min(i + size, len(data)))) for i in range(0, len(data), size)]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Mean squared errors of the last frame and of all, and the equivariance error."""
        found = {}
        for split, batches in self._splits.items():
            errors = self._errors(model, batches)
            found[split], found[f"{split}_average"] = errors[-1], sum(errors) / len(errors)
        return found | {"equivariance": self._equivariance(model)}

    def curves(self, model: nn.Module) -> dict[str, Any]:
        """The error on the training moments, and that of each frame on the test moments."""
        train = self._errors(model, self._batches(load(self._config, "train")))
        return {"train": train[-1], "by_frame": self._errors(model, self._splits["test"])}

    def probe(self, model: nn.Module) -> Tensor:
        """The displacements of the moments that gates and equivariance are measured on, in one forward pass."""
        return self._forward(model, self._plain) - self._plain.pos

    def _errors(self, model: nn.Module, batches: list[Batch]) -> list[float]:
        """[T] mean squared errors over moments, joints and coordinates."""
        parts = [(self._forward(model, b) - b.target.transpose(0, 1)).double().square().sum((1, 2)) for b in batches]
        return (torch.stack(parts).sum(0) / sum(b.pos.numel() for b in batches)).tolist()

    def _equivariance(self, model: nn.Module) -> float:
        """Mean over draws g of ||f(g x) - g f(x)|| / ||f(x)|| for the displacements f of all frames."""
        plain = self.probe(model)
        errors = []
        for rotation, copy in zip(self._rotations, self._copies, strict=True):
            turned = self._forward(model, copy) - copy.pos
            errors.append((turned - plain @ rotation.T).norm() / plain.norm())
        return float(torch.stack(errors).double().mean())


def _check_skeleton(data: MotionSamples, facts: Mapping[str, Any]) -> None:
    if data.recordings.bones.tolist() != facts["bones"]:
        raise ValueError(f"train: the data must have the skeleton of the run, {len(facts['joints'])} joints, got "
                         f"{data.joints} joints or other bones ({data.source}); pass other --data")


def rotated(data: MotionSamples, rotation: Tensor) -> MotionSamples:
    """Positions and velocities turned by `rotation` [3, 3]; the feature height is kept, as the authors' measure has it.

    EGNO is equivariant under O(3) and translations for given features of the nodes, and the height is one.
    """
    node = dict(data.node) | {name: data.node[name] @ rotation.T for name in ("pos", "vel", "target")}
    places = data.node_offsets, data.edge_index, data.edge_offsets
    return MotionSamples(node, *places, data.edge, data.graph, check=False, recordings=data.recordings,
                         frames=data.frames)


def linear_baseline(data: MotionSamples) -> list[float]:
    """[T] mean squared errors of x + v t."""
    node = data.node
    time = torch.from_numpy(data.frames).to(node["pos"].dtype)
    said = node["pos"][:, None] + time[:, None] * node["vel"][:, None]  # [N, T, 3]
    return (said - node["target"]).double().square().mean((0, 2)).tolist()


def summary(latest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the data are, and the errors, as (what, value)."""
    unit = f"; 1 unit is {facts['unit_cm']:.4g} cm" if facts.get("unit_cm") else ""
    ahead = ", ".join(f"+{frame}" for frame in facts["frames"])
    lines = [("data", f"{latest.get('data', facts['source'])}; trained on {facts['moments']} moments{unit}"),
             ("frames predicted", ahead)]
    for split, name in (("test", "test"), ("valid", "validation"), ("train", "training")):
        for mode in ("strict", "relaxed"):
            if (key := f"{split}_{mode}") in latest:
                average = f", mean over frames {latest[f'{split}_average_{mode}']:.5g}" if split != "train" else ""
                lines.append((f"{name} error (MSE) of the last frame, {mode} model", f"{latest[key]:.5g}{average}"))
    if "baseline" in latest:
        lines.append(("test error of linear motion",
                      f"{latest['baseline']:.5g}, mean over frames {latest['baseline_average']:.5g}"))
    return lines


def plots(rows: draw.Rows, result: Mapping[str, Any]) -> list[Chart]:
    charts: list[Chart] = [draw.training_loss("mean squared error, all frames", rows),
                           draw.errors("mean squared error, last frame", rows, "linear motion")]
    return [*charts, *([_by_frame(result)] if "by_frame_strict" in result else [])]


def _by_frame(result: Mapping[str, Any]) -> Lines:
    shown = [("linear motion", "baseline_by_frame", "c7"),
             *((mode, f"by_frame_{mode}", colour) for mode, colour in draw.MODES)]
    series = [Series(name, list(zip(result["frames"], result[key], strict=True)), colour, marks=True)
              for name, key, colour in shown if key in result]
    return Lines("Test error by frame", "frames ahead", "mean squared error", series, log_y=True)
