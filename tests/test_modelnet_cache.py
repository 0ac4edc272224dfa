"""The cache of prepared clouds: used again, changed files, failures that lose nothing, damage."""

import json
import os
import warnings

import numpy as np
import pytest
import torch
from modelnet_toys import load, mesh_text, princeton, write

from ace_fast.data import meshes, modelnet


@pytest.fixture
def read_meshes(monkeypatch):
    """The names of the meshes read so far."""
    calls = []
    original = meshes.read_off
    monkeypatch.setattr(meshes, "read_off", lambda path: calls.append(path.name) or original(path))
    return calls


def test_cache_is_used_again(tmp_path, read_meshes):
    root = princeton(tmp_path / "data")
    done = []
    first = load(root, progress=lambda *pair: done.append(pair))
    assert done == [(1, 3), (2, 3), (3, 3)] and len(read_meshes) == 3
    second = load(root, progress=lambda *pair: done.append(pair))
    assert len(done) == len(read_meshes) == 3
    assert torch.equal(second.points, first.points) and torch.equal(second.labels, first.labels)
    load(root, points=16)
    assert len(read_meshes) == 6
    # Writing into the clouds leaves the cache as it is.
    second.points.zero_()
    assert torch.equal(load(root).points, load(root, points=32).points) and len(read_meshes) == 6
    assert load(root).points.abs().max() > 0


def test_a_changed_file_alone_is_read_again(tmp_path, read_meshes):
    root = princeton(tmp_path / "data")
    first = load(root)
    read_meshes.clear()
    write(root / "cup" / "train" / "cup_0003.off", mesh_text(5) + "\n")
    second = load(root)
    assert read_meshes == ["cup_0003.off"]
    assert torch.equal(second.points[::2], first.points[::2]) and not torch.equal(second.points[1], first.points[1])
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the old clouds are gone
    # A copy of the same size with another time is another file.
    os.utime(root / "cup" / "train" / "cup_0003.off", ns=(0, 0))
    load(root)
    assert read_meshes == ["cup_0003.off"] * 2
    (root / "cup" / "train" / "cup_0001.off").unlink()
    assert torch.equal(load(root).points, second.points[1:]) and len(read_meshes) == 2


def test_a_bad_file_loses_nothing(tmp_path, read_meshes):
    root = princeton(tmp_path / "data")
    bad = root / "cup" / "train" / "cup_0003.off"
    text = bad.read_text()
    write(bad, text.replace("4 0 1 3 2", "4 0 1 3 8"))
    summary = "1 of 3 files cannot be used; repair .* the 2 others are prepared and kept in .*cache"
    with pytest.raises(ValueError, match=rf"{summary}:\n  read_off: .*cup_0003.off, line 10: a face must consist of"):
        load(root)
    assert sorted(read_meshes) == ["cup_0001.off", "cup_0003.off", "night_stand_0001.off"]
    read_meshes.clear()
    write(bad, "OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n")
    with pytest.raises(ValueError, match=r"\n  .*cup_0003.off: sample: the area of the faces must be positive"):
        load(root)
    write(bad, text)
    data = load(root)
    assert read_meshes == ["cup_0003.off"] * 2
    assert data.labels.tolist() == [0, 0, 1]
    assert torch.equal(data.points, load(root, cache=tmp_path / "other").points)


def test_many_bad_files_are_counted(tmp_path):
    root = princeton(tmp_path / "data")
    for number in range(10, 20):
        write(root / "cup" / "train" / f"cup_{number:04}.off", "OFF\n")
    with pytest.raises(ValueError, match=r"10 of 13 files (.|\n)*cup_0014.off.*\n  and 5 more$"):
        load(root)


def test_interruption_keeps_what_is_done(tmp_path, read_meshes):
    root = princeton(tmp_path / "data")

    def stop(done, count):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(root, progress=stop)
    load(root)
    assert read_meshes == ["cup_0001.off", "cup_0003.off", "night_stand_0001.off"]


def edit(change):
    def damage(meta, clouds):
        content = json.loads(meta.read_text())
        change(content)
        meta.write_text(json.dumps(content))

    return damage


def flip(meta, clouds):
    data = bytearray(clouds.read_bytes())
    data[-40] ^= 1
    clouds.write_bytes(data)


DAMAGE = {
    "empty json": (lambda meta, clouds: meta.write_text(""), "is truncated or damaged"),
    "cut json": (lambda meta, clouds: meta.write_text(meta.read_text()[:-9]), "is truncated or damaged"),
    "no object": (lambda meta, clouds: meta.write_text("[1, 2]"), r"ValueError: it must be an object, got list"),
    "not utf-8": (lambda meta, clouds: meta.write_bytes(b"\xff\xfe\x00"), "is truncated or damaged"),
    "missing key": (edit(lambda meta: meta.pop("files")), r"is truncated or damaged \(KeyError: 'files'"),
    "wrong type": (edit(lambda meta: meta.update(points=3)), r"is truncated or damaged \(AttributeError"),
    "huge label": (edit(lambda meta: meta.update(labels=[10**30])), r"is truncated or damaged \(OverflowError"),
    "other labels": (edit(lambda meta: meta["labels"].reverse()), "the checksum is wrong"),
    "rows": (edit(lambda meta: meta["files"].pop()), "the arrays have wrong shapes"),
    "format": (edit(lambda meta: meta.update(format=0)), r"is of another version \(format 0, this is 1\)"),
    "settings": (edit(lambda meta: meta["settings"].update(seed=9)), "holds data of other settings"),
    "elsewhere": (edit(lambda meta: meta.update(points="../x.npy")), r"points must be a file modelnet-.* '../x.npy'"),
    "bit": (flip, "the checksum is wrong"),
    "cut clouds": (lambda meta, clouds: clouds.write_bytes(clouds.read_bytes()[:-50]), "is truncated or damaged"),
    "empty clouds": (lambda meta, clouds: clouds.write_bytes(b""), "is truncated or damaged"),
    "lost clouds": (lambda meta, clouds: clouds.unlink(), r"has lost its \.npy file"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_cache_is_replaced(tmp_path, name):
    root = princeton(tmp_path / "data")
    gold = load(root).points.clone()
    (meta,), (clouds,) = (tmp_path / "cache").glob("*.json"), (tmp_path / "cache").glob("*.npy")
    damage, message = DAMAGE[name]
    damage(meta, clouds)
    with pytest.warns(UserWarning, match=rf"modelnet: .*\.json .*{message}(.|\n)*; the clouds are prepared anew"):
        assert torch.equal(load(root).points, gold)
    assert torch.equal(load(root).points, gold)  # without a warning
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_warnings_name_the_line_of_the_caller(tmp_path):
    root = princeton(tmp_path / "data")
    load(root)
    next((tmp_path / "cache").glob("*.npy")).unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        modelnet(root, classes=2, points=32, cache=tmp_path / "cache")
    assert [warning.filename for warning in caught] == [__file__]


def test_cache_that_cannot_be_written(tmp_path, read_meshes, monkeypatch):
    root = princeton(tmp_path / "data")
    with pytest.raises(OSError, match=r"modelnet: the data cache cannot be written in .* pass cache= a folder you may"):
        load(root, cache=write(tmp_path / "file", "") / "cache")
    assert read_meshes == []

    def full(file, array):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    saved = pytest.warns(UserWarning, match=r"could not be saved in .*No space left.*pass cache=")
    with monkeypatch.context() as patch, saved:
        patch.setattr(np, "save", full)
        data = load(root)
    assert list((tmp_path / "cache").iterdir()) == []
    assert torch.equal(load(root).points, data.points)


def test_cache_that_cannot_be_read(tmp_path, monkeypatch):
    root = princeton(tmp_path / "data")
    load(root)

    def refuse(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(PermissionError, match=r"modelnet: the data cache cannot be read .*json \(Permission denied\)"):
        load(root)
