"""QM9 in miniature, in each of the layouts it comes in, and where the real subset lies."""

import tarfile
from pathlib import Path

import numpy as np
import torch

from ace_fast.data import qm9
from ace_fast.data.qm9_targets import ATOMISATION, SYMBOLS, TARGETS

SUBSET = Path(__file__).parents[2] / "shared" / "data" / "qm9.npz"
SYMBOL_OF = {number: symbol for symbol, number in SYMBOLS.items()}
NAMES = tuple(name for name in TARGETS if name not in ATOMISATION)
ORDER = (*"ABC", *(name for name in NAMES if name not in "ABC"))  # of the values in QM9's files


def load(root, split="all", **options):
    return qm9(root, split, **{"cache": root.parent / "cache", **options})


def molecules(count=12):
    """[(number, z, pos, {target: value in QM9's own units})]; the sizes differ, and the first one is methane's."""
    rng = np.random.default_rng(5)
    found = []
    for g in range(count):
        z = np.array([6, 1, 1, 1, 1] if g == 0 else rng.choice([1, 6, 7, 8, 9], 2 + g % 5))
        pos = np.round(np.cumsum(rng.uniform(0.6, 0.9, (len(z), 3)) * rng.choice([-1, 1], (len(z), 3)), 0), 4)
        values = {name: round(float(value), 6) for name, value in zip(NAMES, rng.uniform(0.1, 9, 15), strict=True)}
        if g == 0:
            values |= {"U0": -40.47893, "mu": 0.0, "homo": -0.3877, "Cv": 6.469}
        found.append((g + 1, z, pos, values))
    return found


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def sdf(root, count=12, listed=(3, 7)):
    records, rows = [], ["mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom"]
    for number, z, pos, values in molecules(count):
        atoms = [f"{x:10.4f}{y:10.4f}{w:10.4f} {SYMBOL_OF[a]}   0  0  0" for a, (x, y, w) in zip(z, pos, strict=True)]
        counts = f"{len(z):3d}  1  0     0  0  0  0  0  0999 V2000"
        lines = [f"gdb_{number}", "  -OEChem-03231823243D", "", counts, *atoms, "  1  2  1  0  0  0  0", "M  END"]
        records.append("\n".join([*lines, "$$$$", ""]))
        rows.append(",".join([f"gdb_{number}", *(repr(values[name]) for name in ORDER), "-395.9"]))
    write(root / "gdb9.sdf", "".join(records))
    write(root / "gdb9.sdf.csv", "\n".join(rows) + "\n")
    return uncharacterized(root, listed)


def uncharacterized(root, listed):
    lines = ["Index  Smiles (initial)", "=" * 30, *(f"  {number}  CC(=O)N  CC" for number in listed), "", "in total"]
    write(root / "uncharacterized.txt", "\n".join(lines))
    return root


def xyz_text(number, z, pos, values):
    atoms = [f"{SYMBOL_OF[a]}\t" + "\t".join(f"{x: .8f}" for x in row) + "\t-1.1*^-5" for a, row in
             zip(z, pos, strict=True)]
    comment = "gdb " + "\t".join([str(number), *(f"{values[name]}".replace("e", "*^") for name in ORDER)])
    return "\n".join([str(len(z)), comment, *atoms, "1341.307\t1341.3284", "C\tC", "InChI=1S/CH4\tInChI=1S/CH4", ""])


def xyz(root, count=12, listed=(3, 7)):
    for molecule in molecules(count):
        write(root / f"dsgdb9nsd_{molecule[0]:06}.xyz", xyz_text(*molecule))
    return uncharacterized(root, listed)


def archive(root, count=12, listed=(3, 7)):
    xyz(root.with_name("unpacked"), count)
    root.mkdir()
    with tarfile.open(root / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as tar:
        for path in sorted(root.with_name("unpacked").glob("*.xyz"), reverse=True):
            tar.add(path, path.name)
    return uncharacterized(root, listed)


def npz(path, count=12, listed=(3, 7), **changed):
    kept = [molecule for molecule in molecules(count) if molecule[0] not in listed]
    arrays = {
        "gdb_id": np.array([number for number, *_ in kept]),
        "z": np.concatenate([z for _, z, _, _ in kept]).astype(np.uint8),
        "pos": np.concatenate([pos for _, _, pos, _ in kept]).astype(np.float32),
        "offsets": np.cumsum([0, *(len(z) for _, z, _, _ in kept)]),
        "targets": np.array([[values[name] for name in NAMES] for *_, values in kept]),
        "target_names": np.array(NAMES),
        "target_units": np.array([TARGETS[name].original for name in NAMES]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: array for name, array in {**arrays, **changed}.items() if array is not None})
    return path


def geometric(count=12, listed=(3, 7), data=None):
    """torch-geometric's dicts of molecules: 19 targets in its order, energies in eV, float32."""
    found = []
    for g, (number, z, pos, _) in enumerate(m for m in molecules(count) if m[0] not in listed):
        y = torch.tensor([[float(data.graph[name][g]) for name in TARGETS]], dtype=torch.float32)
        found.append({"z": torch.tensor(z), "pos": torch.tensor(pos, dtype=torch.float32), "y": y,
                      "name": f"gdb_{number}", "idx": number - 1})
    return found


