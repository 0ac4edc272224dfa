"""Conformations of a small molecule with the energies and forces of springs, in each of the layouts they come in."""

from pathlib import Path

import numpy as np

from ace_fast.data.extxyz import SYMBOLS
from ace_fast.data.frames import KCAL_PER_MOL

REAL = Path(__file__).parents[2] / "shared" / "data"
Z = np.array([6, 8, 1, 1, 1, 1])  # methanol's atoms
MEAN = -3150.0  # eV


def springs(count=40, seed=0, width=0.15):
    """pos [G, 6, 3] Å, energy [G] eV, forces [G, 6, 3] eV/Å: springs of 4 eV/Å^2 between all atoms."""
    rng = np.random.default_rng(seed)
    rest = np.array([[0, 0, 0], [1.4, 0, 0], [-0.4, 1, 0], [-0.4, -0.5, 0.9], [-0.4, -0.5, -0.9], [1.8, 0.9, 0]])
    pos = rest + rng.normal(size=(count, 6, 3)) * width
    i, j = np.triu_indices(6, 1)
    lengths = np.linalg.norm(rest[i] - rest[j], axis=1)
    apart = pos[:, i] - pos[:, j]
    far = np.linalg.norm(apart, axis=2)
    pull = 4.0 * (far - lengths)
    forces = np.zeros_like(pos)
    along = pull[..., None] * apart / far[..., None]
    np.add.at(forces, (slice(None), i), -along)
    np.add.at(forces, (slice(None), j), along)
    return pos, MEAN + 2.0 * np.square(far - lengths).sum(1), forces


def revised(root, count=40, splits=(1,), molecule="methanol", train=20, **changed):
    """rMD17 as it is unpacked: npz_data/ and splits/."""
    pos, energy, forces = springs(count)
    arrays = {"nuclear_charges": Z.astype(np.uint8), "coords": pos, "energies": energy / KCAL_PER_MOL,
              "forces": forces / KCAL_PER_MOL, "old_indices": np.arange(count) * 7}
    (root / "npz_data").mkdir(parents=True, exist_ok=True)
    kept = {name: array for name, array in {**arrays, **changed}.items() if array is not None}
    np.savez(root / "npz_data" / f"rmd17_{molecule}.npz", **kept)
    for fold in splits:
        (root / "splits").mkdir(exist_ok=True)
        order = np.random.RandomState(fold).permutation(count)
        for part, listed in (("train", order[:train]), ("test", order[train:])):
            (root / "splits" / f"index_{part}_{fold:02}.csv").write_text("\n".join(map(str, listed)) + "\n")
    return root


def md17_npz(path, count=40, **changed):
    """MD17 in sGDML's layout."""
    pos, energy, forces = springs(count)
    arrays = {"z": Z.astype(np.uint8), "R": pos, "E": energy[:, None] / KCAL_PER_MOL, "F": forces / KCAL_PER_MOL,
              "name": np.array("methanol"), "type": np.array("d")}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array for name, array in {**arrays, **changed}.items() if array is not None})
    return path


def xyz_text(count=8, seed=0, forces=True, width=0.15):
    pos, energy, force = springs(count, seed, width)
    lines = []
    for g in range(count):
        columns = "species:S:1:pos:R:3:forces:R:3" if forces else "species:S:1:pos:R:3"
        lines += [str(len(Z)), f'Lattice="50.0 0.0 0.0 0.0 50.0 0.0 0.0 0.0 50.0" Properties={columns} '
                               f'energy={float(energy[g])!r} dihedrals="_JSON [160.34, 73.35]" pbc="F F F"']
        rows = np.concatenate([pos[g], force[g]], 1) if forces else pos[g]
        lines += [f"{SYMBOLS[z - 1]}  " + "  ".join(repr(float(x)) for x in row)
                  for z, row in zip(Z, rows, strict=True)]
    return "\n".join(lines) + "\n"


def folder(root, sizes=None):
    """3BPA's layout: a training set, test sets of temperatures, one without forces."""
    sizes = sizes or {"train_300K": 30, "test_1200K": 9, "test_300K": 8, "test_600K": 7}
    root.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate(sizes.items()):
        (root / f"{name}.xyz").write_text(xyz_text(count, seed, width=0.1 + 0.1 * ("1200" in name)))
    return root


def converted(path, count=40):
    """Arrays as shared/data has them: one molecule with a split, one in sets, one without."""
    pos, energy, forces = springs(count)
    split = (np.arange(count) % 5 // 3).astype(np.uint8)
    split[-4:] = 2
    arrays = {"methanol_z": Z.astype(np.uint8), "methanol_pos": pos.astype(np.float32), "methanol_energy": energy,
              "methanol_forces": forces.astype(np.float32), "methanol_split": split}
    arrays |= {"other_z": Z[::-1].copy()}
    for name, seed in (("train300K", 1), ("test600K", 2), ("test300K", 3)):
        pos, energy, forces = springs(count, seed)
        found = {"pos": pos[:, ::-1], "energy": energy, "forces": forces[:, ::-1]}
        arrays |= {f"other_{name}_{key}": array for key, array in found.items()}
    pos, energy, forces = springs(12, 4)
    arrays |= {"3m_z": Z, "3m_pos": pos, "3m_energy": energy, "3m_forces": forces, "3m_dihedrals": pos[:, :3, 0]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path
