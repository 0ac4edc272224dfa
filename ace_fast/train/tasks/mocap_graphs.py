"""What training, evaluation and predictions of the MoCap task share: a batch of moments through EGNO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...data import Batch, FlatDataset
from ...data.mocap import HEIGHT, egno_inputs
from ...graph import Graph
from ..options import Config, flag

HEIGHTS = ("train", "batch", "none")  # what heights are divided by; none: they are no feature
_CHUNK = 100  # moments per forward


class Forward:
    """Predicted positions [T, N, 3] of a batch; the graph of all frames is made once for each size of batch."""

    def __init__(self, config: Config, facts: Mapping[str, Any]) -> None:
        self._kind, self._scale, self._joints = config["height"], facts["height"], len(facts["joints"])
        self._graphs: dict[str, Graph] = {}

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        graph = self._graphs.get(batch.structure_key)
        if graph is None:
            graph = model.frames(batch.edge_index.flip(0), batch.num_nodes)
            self._graphs[batch.structure_key] = graph
        height = None
        if self._kind != "none":
            height = batch.height / (self._scale if self._kind == "train" else batch.height.max())
        given = egno_inputs(batch.pos, batch.vel, batch.edge_index, batch.kind, self._joints, height)
        found = model(batch.pos, given["h"], graph, given["edge_fea"], batch.vel, given["loc_mean"])[0]
        return found.view(model.num_timesteps, -1, 3)


def chunk(config: Config) -> int:
    """Moments that are predicted together; with heights scaled by the batch it is that of training."""
    return config["batch_size"] if config["height"] == "batch" else _CHUNK


def check_heights(who: str, data: FlatDataset, config: Config, facts: Mapping[str, Any]) -> None:
    """Raises ValueError where there is no height to scale by."""
    if config["height"] == "none":
        return
    least = facts["height"]
    if config["height"] == "batch" and len(data):
        least = float(data.node["height"].view(len(data), -1).amax(1).min())
    if not least > 0:
        raise ValueError(f"{who}: the largest height must be positive, with y up and the ground at 0, got "
                         f"{HEIGHT * least:.4g}; pass {flag('height')} none")
