"""Predictions of the MoCap task: from arrays, .npz and .amc files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.mocap import HEIGHT, skeleton_graphs
from ...data.mocap_files import FPS, Recordings, read_amc_file
from ..predict import Answer, PredictorBase, read_arrays, tensor
from . import mocap_graphs


class Predictor(PredictorBase):
    """A trained EGNO that predicts where the joints of a skeleton will be.

    Attributes:
        joints: names, in the order of the positions; frames: how many frames later each prediction is.
    """

    @property
    def joints(self) -> tuple[str, ...]:
        return tuple(self.facts["joints"])

    @property
    def frames(self) -> tuple[int, ...]:
        return tuple(self.facts["frames"])

    def predict(self, pos: Tensor | np.ndarray, vel: Tensor | np.ndarray) -> Tensor:
        """Positions in the predicted frames.

        Args:
            pos: [G, J, 3] or, of one moment, [J, 3], in the unit of the training data, y up.
            vel: as pos, the difference of the positions to those of the next frame.

        Returns:
            [G, T, J, 3] (or [T, J, 3]) on the CPU. Where the run scales heights by the batch, the moments of each
            batch_size in a row depend on each other.

        Raises:
            ValueError: a wrong shape, values that are not finite, or so large that the predictions are not.
        """
        dtype = getattr(torch, self.config["dtype"])
        x, v = (tensor(name, a).to(dtype) for name, a in (("pos", pos), ("vel", vel)))
        shape = [len(self.joints), 3]
        if x.dim() not in (2, 3) or list(x.shape[-2:]) != shape:
            raise ValueError(f"predict: pos must be [G, {shape[0]}, 3] or {shape} for the run's {shape[0]} joints, got "
                             f"{list(x.shape)}")
        if v.shape != x.shape:
            raise ValueError(f"predict: vel must be {list(x.shape)} as pos is, got {list(v.shape)}")
        one = x.dim() == 2
        x, v = (a[None] if one else a for a in (x, v))
        for name, a in (("pos", x), ("vel", v)):
            bad = (~a.isfinite()).nonzero()
            if len(bad):
                raise ValueError(f"predict: {name} must be finite, got NaN or infinity in moment {int(bad[0, 0])}, "
                                 f"joint {self.joints[int(bad[0, 1])]}; leave that moment out")
        found = self._predict(x, v)
        bad = (~found.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            raise ValueError(f"predict: the predicted positions must be finite, got NaN or infinity first in moment "
                             f"{int(bad[0])}; give pos and vel of about the size of the training data")
        return found[0] if one else found

    @torch.no_grad()
    def _predict(self, pos: Tensor, vel: Tensor) -> Tensor:
        """[G, T, J, 3]."""
        G, J = pos.shape[:2]
        about = Recordings((), (), self.joints, np.array(self.facts["bones"]).reshape(-1, 2), "", FPS, None)
        node = {"pos": pos, "vel": vel, "height": pos[..., 1:2] / HEIGHT}
        flat = {name: x.flatten(0, 1).cpu().numpy() for name, x in node.items()}
        data = skeleton_graphs(about, flat, {}, np.array(self.frames))
        mocap_graphs.check_heights("predict", data, self.config, self.facts)
        forward, size = mocap_graphs.Forward(self.config, self.facts), mocap_graphs.chunk(self.config)
        moved = data.to(self.config["device"], pos.dtype)
        parts = [pos.new_zeros(0, len(self.frames), J, 3)]
        for start in range(0, G, size):
            said = forward(self.model, moved.batch(range(start, min(start + size, G))))  # [T, N, 3]
            parts.append(said.view(len(self.frames), -1, J, 3).transpose(0, 1).cpu())
        return torch.cat(parts)

    def answer(self, source: Path) -> Answer:
        """Predicted positions for an .npz of pos and vel, or from each frame of an .amc with its .asf beside it.

        Of an .amc file, those frames are compared with the predictions that it holds.
        """
        if source.suffix.lower() == ".amc":
            return self._of_motion(source)
        arrays = read_arrays(source, ("pos", "vel"), "an .amc or .npz", known=())
        found = self.predict(arrays["pos"], arrays["vel"])
        count = 1 if found.dim() == 3 else len(found)
        return Answer({"pos": found.numpy()} | self._about(), count, f"{count} moments")

    def _about(self) -> dict[str, Any]:
        return {"frames": np.array(self.frames), "joint_names": np.array(self.joints)}

    def _of_motion(self, source: Path) -> Answer:
        if not source.is_file():
            raise FileNotFoundError(f"predict: INPUT must be an .amc or .npz file, got none at {source}")
        motion, skeleton = read_amc_file(source)  # [F, J, 3]
        if skeleton.joints != self.joints or skeleton.bones.tolist() != self.facts["bones"]:
            raise ValueError(f"predict: {source} must have the skeleton of the run, {len(self.joints)} joints, got "
                             f"{len(skeleton.joints)} joints or other bones; give a motion of such a subject")
        unit = self.facts.get("unit_cm")
        if unit and not math.isclose(unit, skeleton.unit_cm, rel_tol=1e-3):
            raise ValueError(f"predict: {source} must be in the run's unit of {unit:.4g} cm, got one of "
                             f"{skeleton.unit_cm:.4g} cm; change the length of its :units and all lengths")
        if len(motion) < 2:
            raise ValueError(f"predict: {source} must have two frames or more for a velocity, got {len(motion)}")
        found = self.predict(motion[:-1], np.diff(motion, axis=0)).numpy()
        arrays = {"pos": found, "start": np.arange(len(found))} | self._about()
        known, last = len(motion) - max(self.frames), ()
        if known > 0:
            wanted = motion[np.arange(known)[:, None] + np.array(self.frames)]
            error = np.square(found[:known] - wanted).mean((0, 2, 3))
            last = (f"mean squared error of the last frame: {error[-1]:.5g}, mean over frames {error.mean():.5g} "
                    f"({known} moments)",)
        return Answer(arrays, len(found), f"{len(found)} moments", last)
