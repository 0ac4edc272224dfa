"""QM9 from each of its layouts: atoms, targets, units, edges, splits."""

import sys
import types

import numpy as np
import pytest
import torch
from qm9_toys import NAMES, SUBSET, archive, geometric, load, molecules, npz, sdf, write, xyz

from ace_fast.data import qm9, radius_edges
from ace_fast.data.qm9 import split_indices
from ace_fast.data.qm9_targets import ATOMISATION, HARTREE, REFERENCES, TARGETS, atom_sums, converted

real = pytest.mark.skipif(not SUBSET.exists(), reason="shared/data is not beside this checkout")
KEPT = [1, 2, 4, 5, 6, 8, 9, 10, 11, 12]


def alike(mine, theirs, rtol=1e-12):
    """The same molecules and targets."""
    assert mine.graph["gdb_id"].tolist() == theirs.graph["gdb_id"].tolist()
    assert set(mine.graph) == set(theirs.graph)
    for name in ("z", "pos"):
        torch.testing.assert_close(mine.node[name], theirs.node[name], rtol=0, atol=1e-6)
    for name in set(TARGETS) & set(mine.graph):
        torch.testing.assert_close(mine.graph[name], theirs.graph[name], rtol=rtol, atol=1e-9)
    for name in ("node_offsets", "edge_index", "edge_offsets"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name))


LAYOUTS = {"sdf": sdf, "raw": lambda root: sdf(root / "raw").parent, "xyz": xyz, "archive": archive,
           "npz": lambda root: npz(root / "few.npz")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_molecules(name, tmp_path):
    data = load(LAYOUTS[name](tmp_path / "data"), radius=1.5)
    assert data.graph["gdb_id"].tolist() == KEPT
    kept = [molecule for molecule in molecules() if molecule[0] in KEPT]
    assert data.node["z"].tolist() == [int(a) for _, z, _, _ in kept for a in z]
    np.testing.assert_allclose(data.node["pos"].numpy(), np.concatenate([pos for _, _, pos, _ in kept]), atol=1e-6)
    for target in NAMES:
        factor = HARTREE if TARGETS[target].unit == "eV" else 1.0
        np.testing.assert_allclose(data.graph[target].numpy(), [values[target] * factor for *_, values in kept])
    assert list(data.graph)[1:] == list(TARGETS)
    source = {"npz": "few (.npz)", "raw": "QM9 (sdf)", "archive": "QM9 (xyz)"}.get(name, f"QM9 ({name})")
    assert data.source == source and repr(data).endswith(f"C; {source})") and "10 molecules" in repr(data)


def test_methane(tmp_path):
    data = load(sdf(tmp_path / "data"))
    first = {name: float(data.graph[name][0]) for name in TARGETS}
    assert first["U0"] == pytest.approx(-40.47893 * 27.211386246) and first["mu"] == 0.0
    # gdb9.sdf.csv itself says -395.999594594 kcal/mol, and torch-geometric makes eV of it by 0.04336414.
    assert first["U0_atom"] == pytest.approx(-395.999594594 * 0.04336414, abs=2e-6)
    assert first["homo"] == pytest.approx(-10.5499, abs=1e-4) and first["Cv"] == 6.469


def test_atom_references():
    z, offsets = np.array([6, 1, 1, 1, 1, 9, 8]), np.array([0, 5, 5, 6, 7])
    found = atom_sums("U0", z, offsets) / HARTREE
    np.testing.assert_allclose(found, [-37.846772 - 4 * 0.500273, 0.0, -99.71873, -75.064579])
    np.testing.assert_allclose(atom_sums("Cv", z, offsets), [5 * 2.981, 0.0, 2.981, 2.981])
    # torch-geometric's numbers, in eV
    wanted = {"U0": -13.61312172, "U": -13.5745904, "H": -13.54887564, "G": -13.90303183}
    for name, value in wanted.items():
        assert REFERENCES[name][0] == pytest.approx(value, rel=1e-7)
    assert REFERENCES["G"][4] == pytest.approx(-2713.88796536, rel=1e-8)
    assert list(ATOMISATION) == [name for name in TARGETS if name.endswith("_atom")]


def test_the_field_reports_errors_in_these_units():
    units = [TARGETS[name].error_unit for name in list(TARGETS)[:12]]
    assert units == ["D", "a0^3", "meV", "meV", "meV", "a0^2", "meV", "meV", "meV", "meV", "meV", "cal/(mol K)"]
    assert all(target.scale == (1e3 if target.unit == "eV" else 1) for target in TARGETS.values())
    np.testing.assert_allclose(converted("x", {"gap": np.array([2.0])}, {"gap": "Ha"})["gap"], 2 * HARTREE)
    assert converted("x", {"gap": np.array([2.0])}, {"gap": "eV"})["gap"] == 2
    with pytest.raises(ValueError, match="x: gap must be in eV or Ha, got 'meV'; convert it"):
        converted("x", {"gap": np.array([2.0])}, {"gap": "meV"})


@real
def test_the_real_subset(tmp_path):
    """128 molecules of the protocol: 2315 atoms and 6088 edges."""
    data = qm9(SUBSET, "all", cache=tmp_path)
    assert len(data) == 9_327 and data.num_nodes / len(data) == pytest.approx(17.93, abs=0.005)
    first = {name: float(data.graph[name][0]) for name in ("U0", "mu", "alpha", "Cv", "U0_atom")}
    assert first["U0"] / HARTREE == pytest.approx(-40.47893, abs=1e-9) and first["mu"] == 0.0
    assert (first["alpha"], first["Cv"]) == (13.21, 6.469) and first["U0_atom"] == pytest.approx(-17.17218, abs=1e-5)
    batch = data.batch(np.random.RandomState(0).permutation(len(data))[:128])
    assert (batch.num_nodes, batch.edge_index.shape[1]) == (2_315, 6_088)
    sizes = [len(qm9(SUBSET, split, cache=tmp_path)) for split in ("train", "valid", "test")]
    assert sizes == [7_463, 932, 932]
    with np.load(SUBSET) as archive:
        chosen = np.sort(qm9(SUBSET, "test", cache=tmp_path).graph["gdb_id"].numpy())
        np.testing.assert_array_equal(chosen, np.sort(archive["gdb_id"][archive["split"] == 2]))
        for name, values in zip(archive["atomref_names"], archive["atomref"].T, strict=True):
            np.testing.assert_allclose(REFERENCES[str(name)], values * (1.0 if name == "Cv" else HARTREE), rtol=1e-12)


def test_the_split_is_the_published_one():
    # The script of SEGNN and ACE, with its own names.
    Nmols, Ntrain = 130_831, 100_000
    Ntest = int(0.1 * Nmols)
    Nvalid = Nmols - (Ntrain + Ntest)
    np.random.seed(0)
    parts = np.split(np.random.permutation(Nmols), [Ntrain, Ntrain + Nvalid])
    for mine, theirs in zip(split_indices(Nmols), parts, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for count, sizes in ((130_831, [100_000, 17_748, 13_083]), (133_885, [100_000, 20_497, 13_388]), (10, [7, 2, 1])):
        assert [len(part) for part in split_indices(count)] == sizes


def test_the_split_of_schnet_is_the_ace_codes():
    """torch-geometric's shuffle draws torch.randperm after torch.manual_seed; then 80, 10 and 10 %."""
    torch.manual_seed(43)
    order = torch.randperm(130_831).numpy()
    parts = split_indices(130_831, 43, "ace")
    np.testing.assert_array_equal(np.concatenate(parts), order)
    assert [len(part) for part in parts] == [104_664, 13_083, 13_084]
    assert [len(part) for part in split_indices(10, 0, "ace")] == [8, 1, 1]


def test_splits_are_disjoint_and_follow_the_seed(tmp_path):
    root = sdf(tmp_path / "data")
    parts = [load(root, split).graph["gdb_id"].tolist() for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [7, 2, 1] and sorted(sum(parts, [])) == KEPT
    order = np.array(KEPT)[np.random.RandomState(0).permutation(10)].tolist()
    assert sum(parts, []) == order
    assert load(root, "train", seed=1).graph["gdb_id"].tolist() != parts[0]
    with pytest.raises(ValueError, match="there must be 10 molecules to split, got 5; give more, or an .npz with"):
        load(npz(tmp_path / "five.npz", count=7), "train")


def test_a_file_with_a_split_keeps_it(tmp_path):
    codes = np.array([0, 1, 2, 0, 0, 1, 2, 0, 0, 0])
    path = npz(tmp_path / "own.npz", split=codes)
    for code, split in enumerate(("train", "valid", "test")):
        found = load(path, split).graph["gdb_id"].tolist()
        assert sorted(found) == np.array(KEPT)[codes == code].tolist()
    assert load(path, "train").graph["gdb_id"].tolist() != sorted(load(path, "train").graph["gdb_id"].tolist())
    ace = [load(path, split, scheme="ace").graph["gdb_id"].tolist() for split in ("train", "valid", "test")]
    assert [len(part) for part in ace] == [8, 1, 1] and sorted(sum(ace, [])) == KEPT  # whatever the file says
    with pytest.raises(ValueError, match="the split of the file must have valid molecules, got none; mark some"):
        load(npz(tmp_path / "all.npz", split=np.zeros(10, int)), "valid")


# ---- edges


def test_edges_by_brute_force():
    rng = np.random.default_rng(0)
    counts = np.array([1, 7, 2, 30, 1, 12])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    pos = rng.uniform(-2, 2, (offsets[-1], 3))
    index, ends = radius_edges(pos, offsets, 1.7)
    for g, (a, b) in enumerate(zip(offsets, offsets[1:], strict=False)):
        distance = np.linalg.norm(pos[a:b, None] - pos[None, a:b], axis=2)
        target, source = np.nonzero((distance < 1.7) & ~np.eye(b - a, dtype=bool))
        np.testing.assert_array_equal(index[:, ends[g] : ends[g + 1]], [source, target])
    assert ends[1] == 0 and ends[-1] == index.shape[1] > 0


def test_edges_to_the_nearest_alone(tmp_path):
    pos, ends = np.array([[0.0, 0, 0], [1, 0, 0], [2.5, 0, 0], [9, 0, 0], [9, 1, 0]]), np.array([0, 3, 5])
    index, offsets = radius_edges(pos, ends, 3.0, 1)
    assert index.tolist() == [[1, 0, 1, 1, 0], [0, 1, 2, 0, 1]] and offsets.tolist() == [0, 3, 5]
    with pytest.raises(ValueError, match="max_num_neighbors must be 1 or more"):
        radius_edges(pos, ends, 3.0, 0)
    root = sdf(tmp_path / "data")
    whole = load(root, radius=9.0)
    assert whole.edge_index.dtype == torch.uint8 and whole.batch([0]).edge_index.dtype == torch.int64
    files = len(list((tmp_path / "cache").iterdir()))
    alike(load(root, radius=9.0, neighbours=5), whole)  # no atom has more than 5
    assert len(list((tmp_path / "cache").iterdir())) == files
    few = load(root, radius=9.0, neighbours=2)
    counts = np.bincount(few.batch(range(10)).edge_index[1], minlength=few.num_nodes)
    assert counts.max() == 2 and few.edge_index.shape[1] < whole.edge_index.shape[1]


def test_edges_at_the_limits():
    pair = np.array([[0.0, 0, 0], [2.0, 0, 0]])
    assert radius_edges(pair, np.array([0, 2]), 2.0)[0].shape == (2, 0)  # closer than: not at
    assert radius_edges(pair, np.array([0, 2]), 2.1)[0].tolist() == [[1, 0], [0, 1]]
    assert radius_edges(pair, np.array([0, 1, 2]), 9.0)[1].tolist() == [0, 0, 0]
    assert radius_edges(np.zeros((0, 3)), np.array([0]), 1.0)[0].shape == (2, 0)
    for radius in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="radius_edges: radius must be positive and finite, got"):
            radius_edges(pair, np.array([0, 2]), radius)


def test_single_files_are_taken(tmp_path):
    gold = load(sdf(tmp_path / "sdf"))
    alike(load(tmp_path / "sdf" / "gdb9.sdf"), gold)
    alike(load(archive(tmp_path / "tar") / "dsgdb9nsd.xyz.tar.bz2"), gold)


# ---- torch-geometric


def test_the_dicts_of_torch_geometric(tmp_path):
    gold = load(sdf(tmp_path / "gold"))
    root = tmp_path / "pyg"
    (root / "raw").mkdir(parents=True)
    torch.save(geometric(data=gold), root / "raw" / "qm9_v3.pt")
    data = load(root)
    alike(data, gold, rtol=1e-6)
    assert data.source == "QM9 (torch-geometric)"
    torch.save([{"z": torch.zeros(2)}], root / "raw" / "qm9_v4.pt")
    with pytest.raises(ValueError, match=r"qm9_v4.pt must be torch-geometric's list of molecules, got another file"):
        load(root)
    (root / "raw" / "qm9_v4.pt").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"qm9_v4.pt must be torch-geometric's list of molecules"):
        load(root)


def processed(entries):
    """torch-geometric's data set as far as it is used: it loads what was processed, and would download and process."""

    class QM9:
        def __init__(self, root):
            self.download()
            z, pos, y = (torch.cat([entry[name] for entry in entries]) for name in ("z", "pos", "y"))
            names = [entry["name"] for entry in entries]
            self._data = types.SimpleNamespace(z=z, pos=pos, y=y, name=names)
            ends = torch.tensor([0, *(len(entry["z"]) for entry in entries)]).cumsum(0)
            self.slices = {"z": ends}

        def download(self):
            raise AssertionError("nothing may be downloaded")

    return types.SimpleNamespace(QM9=QM9)


def test_the_processed_data_of_torch_geometric(tmp_path, monkeypatch):
    gold = load(sdf(tmp_path / "gold"))
    root = tmp_path / "pyg"
    write(root / "processed" / "data_v3.pt", "")
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="need torch-geometric, .* pip install torch-geometric, or give"):
        load(root)
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", processed(geometric(data=gold)))
    alike(load(root), gold, rtol=1e-6)
    entries = geometric(data=gold)
    entries[0]["name"] = "methane"
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", processed(entries))
    with pytest.raises(ValueError, match="must be called gdb_<number>, got .*methane"):
        load(root, cache=tmp_path / "other")


def test_torch_geometric_itself(tmp_path):
    data = pytest.importorskip("torch_geometric.data")
    datasets = pytest.importorskip("torch_geometric.datasets")
    gold = load(sdf(tmp_path / "gold"))
    root = tmp_path / "pyg"
    (root / "processed").mkdir(parents=True)
    entries = [data.Data(**entry) for entry in geometric(data=gold)]
    datasets.QM9.save(entries, str(root / "processed" / "data_v3.pt"))
    alike(load(root), gold, rtol=1e-6)
