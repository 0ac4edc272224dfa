"""What the predictors of all tasks share: the model, its branches, and prediction from file to file."""

from __future__ import annotations

import csv
import io
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data.checks import as_tensor
from .options import Config


class Answer(NamedTuple):
    """What was predicted for a file."""

    arrays: dict[str, np.ndarray]  # to be written
    count: int  # of graphs or clouds
    text: str  # the count in words
    lines: tuple[str, ...] = ()  # to be shown
    columns: dict[str, np.ndarray] | None = None  # of equal lengths, to be written where the output is a .csv


class PredictorBase:
    """A model and the settings it was trained with.

    Attributes:
        model: the network; config: its settings; facts: what it needs to know of its training data; epoch: when its
            weights were saved; relaxed: whether its branches are on; recalibrated: whether its batch norms hold the
            statistics of the strict model.
    """

    def __init__(self, config: Config, facts: dict, model: nn.Module) -> None:
        self.config, self.facts, self.model = config, facts, model.eval()
        self.epoch: int | None = None
        self.recalibrated = False

    def set_relaxed(self, relaxed: bool) -> None:
        """Branches on or off; off, the model is strictly equivariant."""
        if relaxed and not self.config["relaxed"]:
            raise ValueError("predict: relaxed must be False for a model without branches, got True")
        if relaxed and self.recalibrated:
            raise ValueError(
                "predict: relaxed must be False for a model whose batch norms were recalibrated without the branches, "
                "got True; load the run with relaxed=True"
            )
        self.relaxed = relaxed
        self.model.set_equivariance(relaxed)


def predict_file(predictor: PredictorBase, source: Path, output: Path, overwrite: bool = False) -> Answer:
    """Reads the inputs of a task from a file and writes what is predicted as .npz, or as .csv where it is a table."""
    if output.exists() and not overwrite:
        raise FileExistsError(f"predict: {output} exists; pass another --output, or --overwrite")
    answer = predictor.answer(source)
    table = output.suffix.lower() == ".csv"
    if table and not answer.columns:
        raise ValueError(f"predict: --output must be an .npz for predictions that are no table, got {output}")
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            try:
                if table:
                    file.write(_csv(answer.columns).encode())
                else:
                    np.savez(file, **answer.arrays)
                file.close()
                os.replace(temporary, output)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno, f"predict: {output} cannot be written ({error.strerror}); pass another --output"
        ) from error
    return answer


def _csv(columns: dict[str, np.ndarray]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return text.getvalue()


def tensor(name: str, a: Tensor | np.ndarray) -> Tensor:
    """A tensor on the CPU; nested lists are taken too."""
    return as_tensor("predict", name, a if isinstance(a, Tensor) else np.asarray(a)).detach().cpu()


def read_arrays(
    source: Path, needed: Iterable[str], files: str = "an .npz", known: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an .npz, all of them numbers, the needed ones among them.

    Args:
        source: the file.
        needed: names of arrays.
        files: what the task takes, for messages; where an .npy is among it, its array gets the first name needed.
        known: names that are read where they are there, and no others; None: all.

    Raises:
        ValueError: another file, an array missing, or one that holds no numbers.
        OSError: there is no such file, or it cannot be read.
    """
    needed = tuple(needed)
    try:
        # Opened here because numpy leaves a damaged archive open.
        with open(source, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray) and ".npy" in files:
                there, arrays = [needed[0]], {needed[0]: found}
            else:
                with found as archive:
                    there = archive.files
                    arrays = {name: archive[name] for name in there if known is None or name in (*needed, *known)}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"predict: INPUT must be {files} file, got none at {source}") from error
    except OSError as error:
        raise OSError(
            error.errno, f"predict: INPUT must be {files} file that can be read, got {source} ({error.strerror})"
        ) from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise ValueError(f"predict: {source} must be {files} with {', '.join(needed)}, got another file") from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        wanted = " and ".join([", ".join(needed[:-1]), needed[-1]] if needed[:-1] else needed)
        raise ValueError(
            f"predict: {source} must hold {wanted}, got {', '.join(there) or 'nothing'}; add {', '.join(missing)}"
        )
    wrong = [name for name, a in arrays.items() if a.dtype.kind not in "fiu"]
    if wrong:
        raise ValueError(f"predict: {wrong[0]} must be numbers, got {arrays[wrong[0]].dtype} in {source}")
    return arrays


def check_offsets(offsets: Tensor | np.ndarray, count: int, form: str, what: str) -> Tensor:
    """Offsets [G + 1] (`form`) of `count` rows (`what`) as int64, checked."""
    ptr = tensor("offsets", offsets)
    if ptr.dim() != 1 or ptr.is_floating_point() or ptr.numel() == 0:
        raise ValueError(f"predict: offsets must be integers {form}, got {ptr.dtype} {list(ptr.shape)}")
    ptr = ptr.to(torch.int64)
    if int(ptr[0]) != 0 or int(ptr[-1]) != count or bool((ptr.diff() < 0).any()):
        raise ValueError(f"predict: offsets must rise from 0 to the {count} {what}, got {ptr[[0, -1]].tolist()}")
    return ptr
