"""ModelNet from each layout it comes in, complete and incomplete, and what is said about bad files."""

import sys
import types

import numpy as np
import pytest
import torch
from modelnet_toys import NAMES, SHAPES, hdf5, kind, load, mesh_text, princeton, resampled, resampled_points, write

from ace_fast.data import modelnet, normalise


def assert_in_unit_sphere(data, count):
    assert data.points.shape == (count, 32, 3) and data.classes == NAMES
    torch.testing.assert_close(data.points.mean(1), torch.zeros(count, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.points.norm(dim=-1).amax(1), torch.ones(count))


@pytest.mark.parametrize("place", [".", "raw", "ModelNet2"])
def test_meshes_of_princeton(tmp_path, place):
    princeton(tmp_path / "data" / place)
    data = load(tmp_path / "data")
    assert_in_unit_sphere(data, 3)
    assert data.labels.tolist() == [0, 0, 1]
    assert data.source == f"{'data' if place == '.' else place} (2 classes of a folder, not ModelNet)"
    # Points of the boxes: extents as their proportions, z as it was.
    extent = data.points.amax(1) - data.points.amin(1)
    for number, row in enumerate(extent):
        torch.testing.assert_close(row / row[1], torch.tensor([(1 + number) / 2, 1.0, 0.25]), rtol=0.25, atol=0)
    assert load(tmp_path / "data", "test").labels.tolist() == [0, 1]


def test_points_of_a_mesh_depend_on_seed_and_path_alone(tmp_path):
    root = princeton(tmp_path / "data")
    whole = load(root)
    assert torch.equal(load(root, cache=tmp_path / "other").points, whole.points)
    assert not torch.equal(load(root, seed=1).points, whole.points)
    (root / "cup" / "train" / "cup_0001.off").unlink()
    assert torch.equal(load(root, cache=tmp_path / "third").points, whole.points[1:])
    # The same mesh under another name is other points.
    write(root / "cup" / "train" / "cup_0005.off", mesh_text(1))
    assert not torch.equal(load(root).points[1], whole.points[1])


@pytest.mark.parametrize("layout", [resampled, hdf5])
@pytest.mark.parametrize("inside", [False, True])
def test_resampled_points(tmp_path, layout, inside):
    names = {resampled: "modelnet40_normal_resampled", hdf5: "modelnet40_ply_hdf5_2048"}
    root = tmp_path / "data"
    layout(root / names[layout] if inside else root)
    for split, shapes in SHAPES.items():
        data = load(root, split)
        assert_in_unit_sphere(data, len(shapes))
        assert data.labels.tolist() == [NAMES.index(kind(shape)) for shape in shapes]
        assert data.source == f"{names[layout] if inside else 'data'} (2 classes of a folder, not ModelNet)"
        x, y, z = torch.from_numpy(np.stack([resampled_points(shape)[:32, :3] for shape in shapes])).unbind(-1)
        torch.testing.assert_close(data.points, normalise(torch.stack([x, -z, y], -1)).float(), atol=1e-6, rtol=1e-5)


def test_a_shape_listed_twice_counts_once(tmp_path):
    root = resampled(tmp_path / "data")
    write(root / "modelnet2_train.txt", "cup_0001\ncup_0003\ncup_0001\nnight_stand_0001\n")
    assert load(root).labels.tolist() == load(root).labels.tolist() == [0, 0, 1]


def test_default_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("ACE_FAST_DATA", str(tmp_path))
    princeton(tmp_path / "ModelNet2")
    assert len(modelnet(classes=2, points=8)) == 3
    assert len(list(tmp_path.glob("modelnet-train-*.json"))) == 1


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="split must be train or test, got 'valid'; .* PointClouds.holdout"):
        load(tmp_path, "valid")
    for name, value, least in (("points", 0, 1), ("classes", 0, 1), ("seed", -1, 0)):
        with pytest.raises(ValueError, match=f"modelnet: {name} must be at least {least}, got {value}"):
            load(tmp_path, **{name: value})


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold class .* no such folder; name .* \(root=, --data\)"):
        load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"must hold class folders .* got a file; name"):
        load(write(tmp_path / "file", ""))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"must hold class folders .* got an empty folder; name"):
        load(tmp_path / "empty")
    for name in "abcdef":
        write(tmp_path / "other" / name, "")
    with pytest.raises(FileNotFoundError, match=r"got a, b, c, d and 2 more; name"):
        load(tmp_path / "other")


def test_incomplete_layouts(tmp_path):
    root = princeton(tmp_path / "meshes")
    with pytest.raises(ValueError, match=r"must have 40 classes, got 2 \(cup, night_stand, .*; pass classes=2 \(--c"):
        load(root, classes=40)
    (root / "night_stand" / "test" / "night_stand_0002.off").unlink()
    with pytest.raises(ValueError, match=r"night_stand/test must hold \.off files, got none; get the data anew"):
        load(root, "test")
    root = resampled(tmp_path / "texts")
    (root / "cup" / "cup_0001.txt").unlink()
    with pytest.raises(ValueError, match=r"modelnet2_train.txt must list files of .* 3 of which 1 are missing, first"):
        load(root)
    (root / "modelnet2_train.txt").unlink()
    with pytest.raises(ValueError, match=r"modelnet2_train.txt must be there, got no such file; get the data anew"):
        load(root, "test")
    root = hdf5(tmp_path / "hdf5")
    (root / "shape_names.txt").unlink()
    with pytest.raises(ValueError, match=r"shape_names.txt must be there, got no such file; get the data anew"):
        load(root)
    for path in hdf5(root).glob("ply_data_test*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"must hold ply_data_test\*.h5, got none; get the data anew"):
        load(root, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n" * 31, r"must have 32 points, got 31; pass fewer points or get it anew"),
        ("", "must have 32 points, got 0"),
        ("1,2\n" * 32, "must hold x,y,z,... in each line, got a line of fewer numbers; get it anew"),
        ("1 2 3\n" * 32, "must hold x,y,z,... in each line, got"),
        ("1,2,x\n" * 32, "must hold x,y,z,... in each line, got could not convert string to float: b'x"),
        ("1,2,3\n1,nan,3\n" + "1,2,3\n" * 30, "must hold finite points, got NaN or infinity; repair it"),
    ],
)
def test_wrong_texts(tmp_path, text, message):
    root = resampled(tmp_path / "data")
    write(root / "cup" / "cup_0003.txt", text)
    with pytest.raises(ValueError, match=rf"1 of 3 files cannot be used(.|\n)*cup_0003\.txt {message}"):
        load(root)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": None}, "is truncated or damaged .*; get it anew"),
        ({"data": np.zeros((1, 20, 3), np.float32)}, r"must hold data \[S, 32 or more, 3\] .* float32 \[1, 20, 3\]"),
        ({"data": np.zeros((1, 40, 2), np.float32)}, r"must hold data .* float32 \[1, 32, 2\] and 1 uint8 labels"),
        ({"data": np.zeros((1, 40, 3), np.int32)}, r"must hold data .* got int32 \[1, 32, 3\] and 1 uint8 labels"),
        ({"data": np.zeros((9, 40, 3), np.float32)}, r"must hold data .* got float32 \[9, 32, 3\] and 1 uint8 labels"),
        ({"data": np.full((1, 40, 3), np.nan, np.float32)}, "must hold finite points, got NaN or infinity"),
        ({"label": np.array([[7]])}, r"must hold labels in 0 \.\. 1, got 7 \.\. 7"),
        ({"label": np.float32(1.0)}, r"must hold data .* a whole-numbered label each, got .* float32 labels"),
    ],
)
def test_wrong_hdf5(tmp_path, changed, message):
    with pytest.raises(ValueError, match=rf"files cannot be used(.|\n)*ply_data_train0\.h5 {message}"):
        load(hdf5(tmp_path / "data", **changed))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_truncated_hdf5(tmp_path, keep):
    root = hdf5(tmp_path / "data")
    path = root / "ply_data_train1.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"1 of 2 files (.|\n)*ply_data_train1\.h5 is truncated or damaged"):
        load(root)
    path.write_bytes(whole)
    assert_in_unit_sphere(load(root), 3)


def test_missing_packages(tmp_path, monkeypatch):
    root = hdf5(tmp_path / "hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="HDF5 files need h5py, .* install it with: pip install h5py"):
        load(root)
    with pytest.raises(ModuleNotFoundError, match="needs torch-geometric, .*: pip install torch-geometric"):
        load(tmp_path / "absent", classes=10, download=True)
    assert_in_unit_sphere(load(princeton(tmp_path / "meshes"), download=True), 3)  # nothing to download


MODELNET10 = "bathtub bed chair desk dresser monitor night_stand sofa table toilet".split()


def test_download(tmp_path, monkeypatch):
    """torch-geometric's data set as far as it is used: it fetches into root/raw, processes and loads."""

    class ModelNet:
        def __init__(self, root, name):
            assert name == "10"
            for number, name in enumerate(MODELNET10):
                for split in ("train", "test"):
                    write(tmp_path / "new" / "raw" / name / split / f"{name}_1.off", mesh_text(number))
            assert root == str(tmp_path / "new")
            self.process()
            self.load("processed/training.pt")

        def process(self):
            raise AssertionError("the meshes are prepared here, not there")

        def load(self, path):
            raise AssertionError("nothing was processed")

    monkeypatch.setitem(sys.modules, "torch_geometric.datasets", types.SimpleNamespace(ModelNet=ModelNet))
    with pytest.raises(ValueError, match="classes must be 10 or 40 to be downloaded, got 2"):
        load(tmp_path / "new", download=True)
    data = load(tmp_path / "new", classes=10, download=True)
    assert data.labels.tolist() == list(range(10)) and data.source == "ModelNet10, sampled from its meshes"


def test_other_classes_never_pass_for_modelnets(tmp_path):
    for name in ("cup", *MODELNET10[1:]):
        for split in ("train", "test"):
            write(tmp_path / "ModelNet10" / name / split / f"{name}_1.off", mesh_text(1))
    assert load(tmp_path / "ModelNet10", classes=10).source == "ModelNet10 (10 classes of a folder, not ModelNet)"
    names = (
        "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
        "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink "
        "sofa stairs stool table tent toilet tv_stand vase wardrobe xbox"
    )
    hdf5(tmp_path / "h5", names=names.split())
    assert load(tmp_path / "h5", classes=40).source == "ModelNet40, modelnet40_ply_hdf5_2048"
