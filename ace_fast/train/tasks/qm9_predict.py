"""Predictions of the QM9 task: from arrays, .xyz and .npz files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import FlatDataset, radius_edges
from ...data.molecules import Molecules, build
from ...data.qm9_files import NEEDED, read_npz
from ...data.qm9_raw import frames, read_xyz_files
from ...data.qm9_targets import TARGETS, atom_sums
from ..predict import Answer, PredictorBase, check_offsets, read_arrays, tensor
from .qm9_models import MODELS, radius_of, scaling

_CHUNK = 256  # molecules per forward
_SHOWN = 10  # molecules whose values a prediction prints
_COMMENT = 60  # letters of an .xyz file's comment that name a molecule


class Predictor(PredictorBase):
    """A trained model that predicts one property of molecules.

    Attributes:
        target: the property's name; unit: of what is predicted (eV for energies).
    """

    @property
    def target(self) -> str:
        return self.config["target"]

    @property
    def unit(self) -> str:
        return TARGETS[self.target].unit

    def predict(
        self, z: Tensor | np.ndarray, pos: Tensor | np.ndarray, offsets: Tensor | np.ndarray | None = None
    ) -> Tensor:
        """The property of each molecule, in `unit`, float64 on the CPU.

        Args:
            z: [n] atomic numbers (1, 6, 7, 8, 9) of one molecule; [N] with offsets.
            pos: [n, 3] or [N, 3], Å.
            offsets: [G + 1], atoms offsets[g] .. offsets[g + 1] - 1 are molecule g.

        Returns:
            [G]; a single number [] for one molecule without offsets.

        Raises:
            ValueError: a wrong shape or element, a molecule without atoms, or values that are not finite.
        """
        numbers, places, ends = _checked(z, pos, offsets)
        if len(ends) == 1:
            return torch.zeros(0, dtype=torch.float64)
        found = self._predict(_molecules(numbers, places, np.diff(ends), lambda g: f"molecule {g}"))
        return found[0] if offsets is None else found

    @torch.no_grad()
    def _predict(self, molecules: Molecules) -> Tensor:
        parts = [self._of(molecules.take(np.arange(start, min(start + _CHUNK, len(molecules.ids)))))
                 for start in range(0, len(molecules.ids), _CHUNK)]
        found = torch.cat(parts)
        bad = ~found.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"predict: {self.target} must be finite, got NaN or infinity first for molecule "
                f"{int(bad.nonzero()[0])}; give positions in Å"
            )
        return found

    def _of(self, molecules: Molecules) -> Tensor:
        index, edge_offsets = radius_edges(molecules.pos, molecules.offsets, radius_of(self.config),
                                           self.config["neighbours"] or None)
        node = {"z": torch.from_numpy(molecules.z), "pos": torch.from_numpy(molecules.pos)}
        places = (torch.from_numpy(x) for x in (molecules.offsets, index, edge_offsets))
        model = MODELS[self.config["model"]]
        prepared = model.prepare(FlatDataset(node, *places, check=False), self.config)
        said = self.model(*model.inputs(prepared.batch(range(len(prepared)))))[:, 0].double().cpu()
        mean, spread = scaling(self.config, self.facts)
        found = said * spread + mean
        if self.config["subtract_atomref"]:
            found = found + torch.from_numpy(atom_sums(self.target, molecules.z, molecules.offsets))
        return found

    def answer(self, source: Path) -> Answer:
        """The property of each molecule of an .xyz file, or of an .npz of z, pos (and offsets).

        Where the file says it too (an .npz with targets, or QM9's own .xyz files), both are written and compared.
        """
        molecules, names = _read_xyz(source) if source.suffix.lower() == ".xyz" else _read_npz(source)
        found = self._predict(molecules).numpy()
        columns = {"molecule": np.array(names), f"{self.target}_predicted [{self.unit}]": found}
        arrays = {"molecule": columns["molecule"], "predicted": found, "target": np.array(self.target),
                  "unit": np.array(self.unit)}
        lines = [f"{name}: {self.target} {value:.6g} {self.unit}" for name, value in zip(names, found, strict=True)]
        lines = lines[:_SHOWN]
        given = molecules.targets.get(self.target)
        if given is not None:
            columns[f"{self.target}_given [{self.unit}]"] = arrays["given"] = given
            error = np.abs(found - given).mean() * TARGETS[self.target].scale
            lines.append(f"mean absolute error: {error:.5g} {TARGETS[self.target].error_unit}")
        return Answer(arrays, len(found), f"{len(found)} molecules", tuple(lines), columns)


def _read_xyz(source: Path) -> tuple[Molecules, list[str]]:
    """Molecules and their names: QM9's own, or the comment line, or the place in the file."""
    try:
        text = source.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"predict: INPUT must be an .xyz or .npz file, got none at {source}") from error
    found = list(frames(text, str(source), who="predict"))
    if found and all(frame.comment.split()[:1] == ["gdb"] for frame in found):
        molecules = read_xyz_files([source])
        return molecules, [f"gdb_{number}" for number in molecules.ids]
    names = [f"{g} {frame.comment[:_COMMENT]}".strip() for g, frame in enumerate(found)]
    z = np.array([number for frame in found for number in frame.z], dtype=np.int64)
    pos = np.array([x for frame in found for x in frame.pos])
    counts = np.array([len(frame.z) for frame in found], dtype=np.int64)
    return _molecules(z, pos, counts, lambda g: f"{names[g]} of {source}"), names


def _read_npz(source: Path) -> tuple[Molecules, list[str]]:
    arrays = read_arrays(source, ("z", "pos"), "an .xyz or .npz", known=("offsets",))
    with np.load(source, allow_pickle=False) as archive:
        whole = set(NEEDED) <= set(archive.files)
    if whole:
        molecules, _ = read_npz(source)
        return molecules, [f"gdb_{number}" for number in molecules.ids]
    z, pos, offsets = _checked(arrays["z"], arrays["pos"], arrays.get("offsets"))
    names = [str(g) for g in range(len(offsets) - 1)]
    return _molecules(z, pos, np.diff(offsets), lambda g: f"molecule {g} of {source}"), names


def _checked(z: Any, pos: Any, offsets: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z [N], pos [N, 3] and offsets [G + 1] of shapes that fit together; without offsets it is one molecule."""
    numbers, places = tensor("z", z), tensor("pos", pos)
    if numbers.dim() != 1 or numbers.is_floating_point():
        raise ValueError(f"predict: z must be integers [N], got {numbers.dtype} {list(numbers.shape)}")
    if places.shape != (len(numbers), 3):
        raise ValueError(
            f"predict: pos must be {[len(numbers), 3]} for the {len(numbers)} atoms of z, got {list(places.shape)}"
        )
    if offsets is None:
        return numbers.numpy(), places.numpy(), np.array([0, len(numbers)])
    return numbers.numpy(), places.numpy(), check_offsets(offsets, len(numbers), "[G + 1]", "atoms of z").numpy()


def _molecules(z: np.ndarray, pos: np.ndarray, counts: np.ndarray, name: Callable[[int], str]) -> Molecules:
    return build(z, pos, counts, np.arange(len(counts)), {}, name, who="predict", dtype=np.float64)
