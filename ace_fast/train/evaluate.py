"""What is measured of a model: its errors, strict and relaxed, its equivariance error, the weight of its branches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Batch, FlatDataset
from .options import Config
from .progress import data_progress
from .run import load
from .task import Forward, settings, trajectories, use_threads, with_attributes

_CHUNK = 500  # graphs per forward
_PROBE = 50  # graphs that the equivariance error and the branch ratios are measured on
_SEED = 7  # of the rotations: the same ones in every run, so that curves can be compared


def random_o3(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[count, 3, 3] orthogonal matrices, Haar-distributed; every second one has determinant -1."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
    wanted = 1.0 - 2.0 * (np.arange(count) % 2)
    return torch.from_numpy(q * (wanted * np.linalg.det(q))[:, None, None]).to(dtype)


def linear_baseline(data: FlatDataset, time: float) -> float:
    """Mean squared error of x + v t."""
    node = data.node
    return float((node["pos"] + time * node["vel"] - node["target"]).double().square().mean())


@contextmanager
def evaluating(model: nn.Module, relaxed: bool) -> Iterator[None]:
    """Evaluation mode without gradients, branches on or off; as it was trained afterwards."""
    was = model.training
    model.eval()
    model.set_equivariance(relaxed)
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_equivariance(model.relaxed)
        model.train(was)


class Evaluator:
    """Validation and test data prepared once, and a probe with its rotated copies."""

    def __init__(self, config: Config, valid: FlatDataset, test: FlatDataset) -> None:
        self.config = config
        self.baseline = linear_baseline(test, _interval(config))
        self._forward = Forward()
        self._splits = {name: _batches(data, config) for name, data in (("valid", valid), ("test", test))}
        self._probe = test.subset(range(min(_PROBE, len(test))))
        dtype = getattr(torch, config["dtype"])
        self._rotations = random_o3(config["rotations"], _SEED, dtype).to(config["device"])
        self._copies = [_rotated(self._probe, r.cpu(), config) for r in self._rotations]
        (self._plain,) = _batches(self._probe, config)

    def modes(self) -> dict[str, bool]:
        """{"strict": False, "relaxed": True}, or the strict model alone where there are no branches."""
        return {"strict": False, "relaxed": True} if self.config["relaxed"] else {"strict": False}

    def measure(self, model: nn.Module) -> dict[str, float | list[float]]:
        """valid_, test_ and equivariance_ strict and relaxed, branch_ratios, and the linear baseline (test data)."""
        found: dict[str, float | list[float]] = {"baseline": self.baseline}
        for mode, relaxed in self.modes().items():
            with evaluating(model, relaxed):
                for split, batches in self._splits.items():
                    found[f"{split}_{mode}"] = self._error(model, batches)
                found[f"equivariance_{mode}"] = self._equivariance(model)
        if self.config["relaxed"]:
            with evaluating(model, True):
                found["branch_ratios"] = self._branch_ratios(model)
        return found

    def _error(self, model: nn.Module, batches: list[Batch]) -> float:
        total = sum((self._forward(model, b) - b.target).double().square().sum() for b in batches)
        return float(total / sum(b.target.numel() for b in batches))

    def _equivariance(self, model: nn.Module) -> float:
        """Mean over draws g of ||f(g x) - g f(x)|| / ||f(x)|| for the displacements f."""
        plain = self._forward(model, self._plain) - self._plain.pos  # [N, 3]
        errors = []
        for rotation, copy in zip(self._rotations, self._copies, strict=True):
            turned = self._forward(model, copy) - copy.pos
            errors.append((turned - plain @ rotation.T).norm() / plain.norm())
        return float(torch.stack(errors).double().mean())

    def _branch_ratios(self, model: nn.Module) -> list[float]:
        """|gamma| ||f_neq(x)|| / ||f_eq(x)|| of every relaxed map, in the order of the gammas."""
        with model.probe() as ratios:
            self._forward(model, self._plain)
        return torch.stack(ratios).tolist()


def evaluate_run(
    folder: str | os.PathLike[str],
    checkpoint: str = "best",
    data: str | None = None,
    *,
    device: str | None = None,
    backend: str | None = None,
) -> dict[str, Any]:
    """Measures a checkpoint of a run folder on the whole validation and test data.

    Args:
        folder: the run.
        checkpoint: "best" or "last".
        data: cache folder of the trajectories, if not the one of the run.
        device, backend: other than the run was trained with.

    Returns:
        The keys of `Evaluator.measure`, and gammas, checkpoint and epoch.
    """
    predictor = load(folder, checkpoint, device=device, backend=backend)
    config = predictor.config | ({} if data is None else {"data": data})
    use_threads(config)
    valid, test = (trajectories(config, split, data_progress(split)) for split in ("valid", "test"))
    evaluator = Evaluator(config, valid, test)
    found: dict[str, Any] = {"checkpoint": checkpoint, "epoch": predictor.epoch}
    found["gammas"] = [float(gamma.detach()) for gamma in predictor.model.get_gammas()]
    return found | evaluator.measure(predictor.model)


def _interval(config: Config) -> float:
    return (config["frame_to"] - config["frame_from"]) * config["sample_every"] * settings(config).dt


def _batches(data: FlatDataset, config: Config) -> list[Batch]:
    prepared = with_attributes(data, config)
    return [prepared.batch(range(i, min(i + _CHUNK, len(data)))) for i in range(0, len(data), _CHUNK)]


def _rotated(data: FlatDataset, rotation: Tensor, config: Config) -> Batch:
    """`data` turned by `rotation` [3, 3], attributes computed from the turned inputs."""
    node = dict(data.node) | {name: data.node[name] @ rotation.T for name in ("pos", "vel")}
    turned = FlatDataset(node, data.node_offsets, data.edge_index, data.edge_offsets, check=False)
    (batch,) = _batches(turned, config)
    return batch
