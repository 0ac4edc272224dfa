"""Predictions of the MD17 task: energies and forces of conformations from arrays, .xyz and .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...data import FlatDataset
from ...data.extxyz import XYZ, read_xyz
from ...data.frames import formula
from ..predict import Answer, PredictorBase, read_arrays, tensor
from .md17_model import Forward, inputs_of, physical

_CHUNK = 128  # conformations per forward
_SHOWN = 10  # conformations whose values a prediction prints
_MEV = 1e3


class Predictor(PredictorBase):
    """A trained model that predicts energies (eV) and forces (eV/Å) of the molecule it was trained on."""

    def predict(self, z: Tensor | np.ndarray, pos: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """Energy and forces of each conformation, float64 on the CPU.

        Args:
            z: [n] atomic numbers: those of the molecule of training, in any order.
            pos: [n, 3] of one conformation or [G, n, 3], Å.

        Returns:
            energy [] or [G] in eV, forces [n, 3] or [G, n, 3] in eV/Å, minus the gradient of the energy.

        Raises:
            ValueError: a wrong shape, another molecule, or values that are not finite.
        """
        numbers, places = tensor("z", z), tensor("pos", pos)
        if numbers.dim() != 1 or numbers.is_floating_point():
            raise ValueError(f"predict: z must be integers [n], got {numbers.dtype} {list(numbers.shape)}")
        n = len(numbers)
        if places.dim() not in (2, 3) or list(places.shape[-2:]) != [n, 3]:
            raise ValueError(f"predict: pos must be [{n}, 3] or [G, {n}, 3] for the {n} atoms of z, got "
                             f"{list(places.shape)}")
        if sorted(numbers.tolist()) != sorted(self.facts["numbers"]):
            raise ValueError(f"predict: z must be the atoms of {self.facts['molecule']}, the molecule that the run was "
                             f"trained on, got those of {_formula(numbers)}; its mean energy is of no use for others")
        energy, forces = self._predict(numbers, places.reshape(-1, n, 3))
        return (energy[0], forces[0]) if places.dim() == 2 else (energy, forces)

    def _predict(self, z: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [G] and forces [G, n, 3] for z [n] and pos [G, n, 3]."""
        G, n = pos.shape[:2]
        bad = (~pos.isfinite()).flatten(1).any(1)
        if bool(bad.any()):
            raise ValueError(f"predict: positions must be finite, got NaN or infinity in frame {int(bad.nonzero()[0])}")
        if G == 0:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, n, 3, dtype=torch.float64)
        node = {"z": z.to(torch.int64).repeat(G), "pos": pos.double().reshape(-1, 3)}
        data = inputs_of(FlatDataset(node, torch.arange(G + 1) * n, check=False), self.config)
        inputs = [data.batch(range(start, min(start + _CHUNK, G))) for start in range(0, G, _CHUNK)]
        energy, forces = physical(Forward(self.config), self.model, inputs, self.facts)
        bad = ~(energy.isfinite() & forces.isfinite().flatten(1).all(1))
        if bool(bad.any()):
            raise ValueError("predict: energies and forces must be finite, got NaN or infinity first in frame "
                             f"{int(bad.nonzero()[0])}; give positions in Å")
        return energy, forces

    def answer(self, source: Path) -> Answer:
        """Energies and forces of the conformations of an .xyz file, or of an .npz of z and pos.

        Where the file says energies or forces too (eV, eV/Å), both are written and compared.
        """
        found = _read(source)
        energy, forces = (x.numpy() for x in self.predict(found.z, found.pos))
        arrays = {"z": found.z, "pos": found.pos, "energy": energy, "forces": forces,
                  "unit": np.array("eV"), "forces_unit": np.array("eV/Å")}
        columns = {"frame": np.arange(len(energy)), "energy_predicted [eV]": energy}
        largest = np.linalg.norm(forces, axis=-1).max(axis=-1, initial=0.0)
        lines = [f"{g}: energy {e:.6f} eV, largest force {f:.4f} eV/Å"
                 for g, (e, f) in enumerate(zip(energy, largest, strict=True))][:_SHOWN]
        if found.energy is not None:
            arrays["energy_given"] = columns["energy_given [eV]"] = found.energy
            lines.append(f"mean absolute error of energies: {np.abs(energy - found.energy).mean() * _MEV:.5g} meV")
        if found.forces is not None:
            arrays["forces_given"] = found.forces
            lines.append(f"mean absolute error of forces: {np.abs(forces - found.forces).mean() * _MEV:.5g} meV/Å")
        return Answer(arrays, len(energy), f"{len(energy)} conformations", tuple(lines), columns)


def _formula(z: Tensor) -> str:
    known = z[(z > 0) & (z < 100)]
    return formula(known.numpy()) if len(known) == len(z) and len(z) else f"{z.tolist()}"


def _read(source: Path) -> XYZ:
    if source.suffix.lower() in (".xyz", ".extxyz"):
        try:
            return read_xyz(source, who="predict")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"predict: INPUT must be an .xyz or .npz file, got none at {source}") from error
    arrays = read_arrays(source, ("z", "pos"), "an .xyz or .npz", known=("energy", "forces"))
    pos = arrays["pos"] if arrays["pos"].ndim == 3 else arrays["pos"][None]
    given = {}
    for name, shape in (("energy", pos.shape[:1]), ("forces", pos.shape)):
        if name in arrays and arrays[name].size != int(np.prod(shape)):
            raise ValueError(f"predict: {name} of {source} must be {list(shape)} for these positions, got "
                             f"{list(arrays[name].shape)}")
        given[name] = arrays[name].reshape(shape) if name in arrays else None
    return XYZ(arrays["z"], pos, **given)
