"""The caches of molecules and of edges: used again, changed files, damage, places that cannot be written."""

import importlib
import json
import os
import warnings

import numpy as np
import pytest
import torch
from qm9_toys import load, npz, sdf, uncharacterized, write, xyz

from ace_fast.data import qm9, qm9_files, qm9_raw, radius

module = importlib.import_module("ace_fast.data.qm9")


@pytest.fixture
def work(monkeypatch):
    """What was done so far: "read" for the files, "edges" for the edges."""
    done = []

    def counted(name, function):
        return lambda *arguments: done.append(name) or function(*arguments)

    monkeypatch.setattr(qm9_files, "read_sdf", counted("read", qm9_raw.read_sdf))
    monkeypatch.setattr(module, "radius_edges", counted("edges", radius.radius_edges))
    return done


def same(mine, theirs):
    for part in ("node", "graph"):
        for name, array in getattr(theirs, part).items():
            assert torch.equal(getattr(mine, part)[name], array)
    assert torch.equal(mine.edge_index, theirs.edge_index) and torch.equal(mine.edge_offsets, theirs.edge_offsets)


def test_both_caches_are_used_again(tmp_path, work):
    root, shown = sdf(tmp_path / "data"), []
    first = load(root, progress=lambda *pair: shown.append(pair))
    assert work == ["read", "edges"] and shown == [(12, 12)]
    second = load(root, progress=lambda *pair: shown.append(pair))
    same(second, first)
    assert work == ["read", "edges"] and len(shown) == 1
    load(root, "train")
    assert work == ["read", "edges"]
    load(root, radius=1.5)
    assert work == ["read", "edges", "edges"]
    # Writing into the arrays leaves the cache as it is.
    second.node["pos"].zero_()
    same(load(root), first)


def test_edges_belong_to_the_positions(tmp_path, work):
    """Other files with the same atoms at the same places have the same edges."""
    gold = load(sdf(tmp_path / "data"))
    same(load(npz(tmp_path / "few.npz")), gold)
    assert work == ["read", "edges"]
    with np.load(tmp_path / "few.npz") as archive:
        arrays = dict(archive)
    arrays["pos"][0] += 1e-3
    np.savez(tmp_path / "few.npz", **arrays)
    load(tmp_path / "few.npz")
    assert work == ["read", "edges", "edges"]


@pytest.mark.parametrize("name", ["gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt"])
def test_changed_files_are_read_again(tmp_path, work, name):
    root = sdf(tmp_path / "data")
    load(root)
    os.utime(root / name, ns=(0, 0))
    load(root)
    assert work == ["read", "edges", "read"]
    before = sorted(path.name for path in (tmp_path / "cache").iterdir())
    write(root / "gdb9.sdf.csv", (root / "gdb9.sdf.csv").read_text().replace("-40.47893", "-40.5"))
    assert float(load(root).graph["U0"][0]) == pytest.approx(-40.5 * 27.211386246)
    assert len(list((tmp_path / "cache").iterdir())) == len(before)  # the old arrays are gone
    assert len(load(uncharacterized(root, (1, 2, 3)))) == 9


def test_a_list_that_comes_later_counts(tmp_path):
    root = xyz(tmp_path / "data")
    (root / "uncharacterized.txt").unlink()
    assert len(load(root)) == 12
    assert len(load(uncharacterized(root, (3, 7)))) == 10


def edit(change):
    def damage(meta, arrays):
        content = json.loads(meta.read_text())
        change(content)
        meta.write_text(json.dumps(content))

    return damage


def flip(meta, arrays):
    data = bytearray(arrays[0].read_bytes())
    data[-3] ^= 1
    arrays[0].write_bytes(data)


DAMAGE = {
    "empty json": (lambda meta, arrays: meta.write_text(""), "is truncated or damaged"),
    "no object": (lambda meta, arrays: meta.write_text("[1, 2]"), "it must be an object, got list"),
    "format": (edit(lambda meta: meta.update(format=0)), r"is of another version \(format 0, this is 1\)"),
    "settings": (edit(lambda meta: meta["settings"].update(source="x", radius=9)), "holds data of other settings"),
    "missing key": (edit(lambda meta: meta.pop("offsets")), r"is truncated or damaged \(KeyError: 'offsets'"),
    "elsewhere": (edit(lambda meta: meta.update(offsets="../x.npy")), r"offsets must be a file qm9-.* '../x.npy'"),
    "swapped": (edit(lambda meta: meta.update(offsets=meta[next(k for k in meta if k in ("index", "pos"))])),
                "the arrays have wrong shapes|truncated or damaged"),
    "bit": (flip, "the checksum is wrong"),
    "cut": (lambda meta, arrays: arrays[0].write_bytes(arrays[0].read_bytes()[:-5]), "is truncated or damaged"),
    "empty array": (lambda meta, arrays: arrays[0].write_bytes(b""), "is truncated or damaged"),
    "lost": (lambda meta, arrays: arrays[0].unlink(), r"has lost its \.npy file"),
}


@pytest.mark.parametrize("what", ["molecules", "edges"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_rebuilt(tmp_path, name, what):
    root, cache = sdf(tmp_path / "data"), tmp_path / "cache"
    load(root)
    gold = load(root, cache=tmp_path / "other")
    (meta,) = cache.glob(f"qm9-{what}-*.json")
    damage, message = DAMAGE[name]
    damage(meta, sorted(cache.glob(f"qm9-{what}-*.npy")))
    words = {"molecules": "the molecules are read anew", "edges": "the edges are found anew"}[what]
    with pytest.warns(UserWarning, match=rf"qm9: .*\.json .*({message})(.|\n)*; {words} and it is replaced"):
        same(load(root), gold)
    same(load(root), gold)  # without a warning
    assert len(list(cache.iterdir())) == 9 or name == "swapped"


def test_warnings_name_the_line_of_the_caller(tmp_path):
    root = sdf(tmp_path / "data")
    load(root)
    for path in (tmp_path / "cache").glob("*.npy"):
        path.unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qm9(root, "all", cache=tmp_path / "cache")
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_a_cache_that_cannot_be_written(tmp_path, work, monkeypatch):
    root = sdf(tmp_path / "data")
    with pytest.raises(OSError, match=r"qm9: the data cache cannot be written in .* pass cache= a folder you may"):
        load(root, cache=write(tmp_path / "file", "") / "cache")
    assert work == []

    def full(file, array):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    saved = pytest.warns(UserWarning, match=r"the (molecules|edges) could not be saved in .*No space left.*pass cache=")
    with monkeypatch.context() as patch, saved:
        patch.setattr(np, "save", full)
        data = load(root)
    assert list((tmp_path / "cache").iterdir()) == []
    same(load(root), data)


def test_a_cache_that_cannot_be_read(tmp_path, monkeypatch):
    root = sdf(tmp_path / "data")
    load(root)

    def refuse(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(PermissionError, match=r"qm9: the data cache cannot be read .*json \(Permission denied\)"):
        load(root)


def test_molecules_without_edges_are_kept_too(tmp_path):
    root = sdf(tmp_path / "data")
    first = load(root, radius=0.1)
    assert first.edge_index.shape == (2, 0)
    same(load(root, radius=0.1), first)
