"""A trained model with the inputs and outputs of its task, and prediction from file to file."""

from __future__ import annotations

import os
import uuid
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import FlatDataset
from ..data.checks import as_tensor
from .options import Config
from .task import Forward, add_edges, build_model, with_attributes

_CHUNK = 500  # graphs per forward


class Predictor:
    """A model and the settings it was trained with.

    Attributes:
        model: the network; config: its settings; epoch: when its weights were saved.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = build_model(config).eval()
        self.epoch: int | None = None
        self._forward = Forward()

    def set_relaxed(self, relaxed: bool) -> None:
        """Branches on or off; off, the model is strictly equivariant."""
        if relaxed and not self.config["relaxed"]:
            raise ValueError("predict: relaxed must be False for a model without branches, got True")
        self.relaxed = relaxed
        self.model.set_equivariance(relaxed)

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
        x, v, q = (_tensor(name, a).to(dtype) for name, a in given.items())
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
        parts = [torch.zeros(0, 3, dtype=getattr(torch, self.config["dtype"]))]
        for start in range(0, len(data), _CHUNK):
            part = data.subset(range(start, min(start + _CHUNK, len(data))))
            prepared = with_attributes(part, self.config)
            parts.append(self._forward(self.model, prepared.batch(range(len(part)))).cpu())
        return torch.cat(parts)


def _tensor(name: str, a: Tensor | np.ndarray) -> Tensor:
    # Nested lists are taken too.
    return as_tensor("predict", name, a if isinstance(a, Tensor) else np.asarray(a)).detach().cpu()


def _offsets(offsets: Tensor | np.ndarray | None, pos: Tensor) -> Tensor:
    if offsets is None:
        return torch.arange(pos.shape[0] + 1) * pos.shape[1]
    ptr = _tensor("offsets", offsets)
    if ptr.dim() != 1 or ptr.is_floating_point() or ptr.numel() == 0:
        raise ValueError(f"predict: offsets must be integers [G + 1], got {ptr.dtype} {list(ptr.shape)}")
    ptr = ptr.to(torch.int64)
    if int(ptr[0]) != 0 or int(ptr[-1]) != pos.shape[0] or bool((ptr.diff() < 0).any()):
        raise ValueError(
            f"predict: offsets must rise from 0 to the {pos.shape[0]} bodies of pos, got {ptr[[0, -1]].tolist()}"
        )
    return ptr


def predict_file(predictor: Predictor, source: Path, output: Path, overwrite: bool = False) -> int:
    """Reads pos, vel, charges (and offsets) from an .npz and writes the predicted pos; returns how many graphs."""
    if output.exists() and not overwrite:
        raise FileExistsError(f"predict: {output} exists; pass another --output, or --overwrite")
    arrays = _read(source)
    predicted = predictor.predict(arrays["pos"], arrays["vel"], arrays["charges"], arrays.get("offsets"))
    found = {"pos": predicted.numpy()} | {name: arrays[name] for name in ("offsets",) if name in arrays}
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            try:
                np.savez(file, **found)
                file.close()
                os.replace(temporary, output)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f"predict: {output} cannot be written ({error.strerror}); pass another --output"
        ) from error
    return len(arrays["offsets"]) - 1 if "offsets" in arrays else len(arrays["pos"])


def _read(source: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here because numpy leaves a damaged archive open.
        with open(source, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"predict: INPUT must be an .npz file, got none at {source}") from error
    except OSError as error:
        raise OSError(
            error.errno, f"predict: INPUT must be an .npz file that can be read, got {source} ({error.strerror})"
        ) from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise ValueError(f"predict: {source} must be an .npz with pos, vel, charges, got another file") from error
    missing = [name for name in ("pos", "vel", "charges") if name not in arrays]
    if missing:
        raise ValueError(
            f"predict: {source} must hold pos, vel and charges, got {', '.join(arrays) or 'nothing'}; "
            f"add {', '.join(missing)}"
        )
    wrong = [name for name, a in arrays.items() if a.dtype.kind not in "fiu"]
    if wrong:
        raise ValueError(f"predict: {wrong[0]} must be numbers, got {arrays[wrong[0]].dtype} in {source}")
    return arrays
