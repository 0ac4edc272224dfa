"""Generated solids: their surfaces, what makes classes different, splits; shape files, real and broken."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ace_fast.data import generated_shapes, normalise, shape_file
from ace_fast.data.shapefile import _from_voxels
from ace_fast.data.solids import SOLIDS

SHARED = Path(__file__).parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not on this machine")

# Volume and surface where all proportions are in the middle of their ranges. Polygons of
# 24 and 48 corners stand for circles, up to 2 % less; that of the helix has 12, with the area 3 r^2.
PI = math.pi
EXACT = {
    "box": (8 * 0.7**3, 24 * 0.7**2),
    "bracket": ((2 * 0.25 * 0.85 - 0.25**2) * 0.65, 2 * (2 * 0.25 * 0.85 - 0.25**2) + 4 * 0.85 * 0.65),
    "capsule": (PI * (4 / 3 + 3.5), PI * (4 + 2 * 3.5)),
    "cone": (PI * 0.75**2 * 1.9 / 3, PI * 0.75 * (0.75 + math.hypot(0.75, 1.9))),
    "cross": (4 * (2 * 0.8 * 0.225 - 0.225**2) * 0.55, 8 * (2 * 0.8 * 0.225 - 0.225**2) + 8 * 0.8 * 0.55),
    "cylinder": (PI * 0.7**2 * 1.8, 2 * PI * 0.7 * (0.7 + 1.8)),
    "ellipsoid": (PI * 4 / 3 * 0.75**3, 4 * PI * 0.75**2),
    "helix": (3 * 0.11**2 * 6 * PI, None),
    "pyramid": (1.4**2 * 1.9 / 3, 1.4 * (1.4 + 2 * math.hypot(0.7, 1.9))),
    "torus": (2 * PI**2 * 0.3**2, 4 * PI**2 * 0.3),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_are_closed_and_have_their_volume(name):
    vertices, faces = SOLIDS[name](np.full((1, 6), 0.5))
    a, b, c = vertices[0][faces].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a) / 2
    volume, surface = EXACT[name]
    np.testing.assert_allclose(normal.sum(0), 0, atol=1e-12)  # so for any closed surface
    np.testing.assert_allclose(abs((a * normal).sum() / 3), volume, rtol=0.02)
    if surface:
        np.testing.assert_allclose(np.linalg.norm(normal, axis=1).sum(), surface, rtol=0.01)


def test_generated_shapes():
    data = generated_shapes("train", per_class=5, points=256)
    assert len(data) == 50 and len(data.classes) == 10 and data.source == "generated solids (not ModelNet)"
    assert data.labels.bincount().tolist() == [5] * 10
    torch.testing.assert_close(data.points.mean(1), torch.zeros(50, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.points.norm(dim=-1).amax(1), torch.ones(50))
    assert torch.equal(data.points, generated_shapes("train", per_class=5, points=256).points)
    # Every shape has proportions of its own.
    size = normalise(data.points).abs().amax(1)
    assert len({tuple(row) for row in size.tolist()}) == 50


def test_points_lie_on_the_solid_but_for_the_noise():
    """A cylinder without noise: each point on its side or its lids."""
    number = list(SOLIDS).index("cylinder")
    clean, noisy = (generated_shapes(per_class=3, points=512, noise=noise) for noise in (0.0, 0.01))
    for x in clean.points[clean.labels == number]:
        x = x - (x.amax(0) + x.amin(0)) / 2
        radius, height = x[:, :2].norm(dim=1), x[:, 2].abs()
        off = torch.minimum((radius - radius.max()).abs(), (height - height.max()).abs())
        assert off.max() < 0.02  # the chords of the circle, and the middle guessed from the points
    difference = (noisy.points - clean.points).square().mean().sqrt()
    assert 0.005 < difference < 0.02


def test_splits_and_seeds_share_nothing():
    parts = [generated_shapes(split, per_class=4, points=32) for split in ("train", "valid", "test")]
    parts.append(generated_shapes("train", per_class=4, points=32, seed=1))
    assert len({cloud.numpy().tobytes() for part in parts for cloud in part.points}) == 160


def test_fewer_shapes_are_the_first_ones_of_more():
    few, many = (generated_shapes(per_class=n, points=16) for n in (3, 300))
    assert torch.equal(few.points.view(10, 3, 16, 3), many.points.view(10, 300, 16, 3)[:, :3])


def test_classes_can_be_told_apart():
    """One neighbour by the distances within a cloud, which no rotation changes."""

    def describe(data):
        pair = torch.randint(512, (2, 2048), generator=torch.Generator().manual_seed(0))
        x = normalise(data.points)
        far = (x[:, pair[0]] - x[:, pair[1]]).norm(dim=-1).sort(1).values[:, ::32]
        return torch.cat([x.norm(dim=-1).sort(1).values[:, ::8], far], 1)

    train, test = (generated_shapes(split, per_class=n, points=512) for split, n in (("train", 60), ("test", 20)))
    nearest = torch.cdist(describe(test), describe(train)).argmin(1)
    right = (train.labels[nearest] == test.labels).view(10, 20).double().mean(1)
    assert right.mean() > 0.9 and right.min() > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "all"}, "split must be one of train, valid, test, got 'all'"),
        ({"per_class": 0}, "per_class must be at least 1, got 0"),
        ({"points": 2.5}, "points must be an integer, got 2.5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"noise": -0.1}, "noise must be a number >= 0, got -0.1"),
        ({"noise": math.nan}, "noise must be a number >= 0, got nan"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=f"generated_shapes: {message}"):
        generated_shapes(**options)


@shared
def test_shapes40():
    train, test = (shape_file(SHARED / "shapes40.npz", split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (664, 162, 40)
    assert train.source == "shapes40 (not ModelNet40), research use only"
    assert train.points.shape == (664, 1024, 3) and train.labels.unique().numel() == 40
    with np.load(SHARED / "shapes40.npz", allow_pickle=False) as archive:
        chosen = archive["split"] == 2
        x, y, z = torch.from_numpy(archive["points"][chosen]).unbind(-1)
        assert test.labels.tolist() == archive["label"][chosen].tolist()
    torch.testing.assert_close(test.points, torch.stack([x, -z, y], -1), atol=1e-5, rtol=0)
    few = shape_file(SHARED / "shapes40.npz", "test", points=100, up="z")
    torch.testing.assert_close(few.points, normalise(torch.stack([x, y, z], -1)[:, :100]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"shapes40.npz must have shapes of the split, got none of 'valid'; take some"):
        shape_file(SHARED / "shapes40.npz", "valid")


@shared
def test_voxels_of_modelnet10():
    train, test = (shape_file(SHARED / "modelnet10_voxels.npz", split, points=600) for split in ("train", "test"))
    assert train.classes == ("chair", "monitor") and "not ModelNet10" in train.source
    assert train.labels.bincount().tolist() == [622, 326] and test.labels.bincount().tolist() == [156, 81]
    assert train.points.shape == (948, 600, 3)


@shared
def test_public_meshes():
    data = shape_file(SHARED / "public_meshes.npz", "all")
    assert len(data) == len(data.classes) == 12 and data.classes[0] == "stanford-bunny" and data.num_points == 4096
    assert "not ModelNet" in data.source


@shared
def test_other_data_are_refused():
    with pytest.raises(ValueError, match=r"qm7.npz must hold points or voxels, .*, got .*; it is no collection"):
        shape_file(SHARED / "qm7.npz")


def test_points_from_voxels():
    """Points lie in occupied cells, and each cell is taken before any is taken again."""
    generator = np.random.default_rng(0)
    grid = np.zeros((3, 512), dtype=np.uint8)
    counts = (5, 40, 300)
    for row, count in zip(grid, counts, strict=True):
        row[generator.choice(512, count, replace=False)] = 1
    points = _from_voxels(Path("v.npz"), np.packbits(grid, axis=1), 64, 0)
    assert points.shape == (3, 64, 3) and points.dtype == torch.float32
    for row, cloud, count in zip(grid, points.numpy(), counts, strict=True):
        cell = np.ravel_multi_index(cloud.astype(int).T, (8, 8, 8))
        taken = np.bincount(cell, minlength=512)
        assert (taken[row == 0] == 0).all()
        assert set(taken[row == 1]) <= {64 // count, -(-64 // count)}
        inside = cloud % 1
        assert 0.4 < inside.mean() < 0.6 and inside.std() > 0.2


def save(path, **arrays):
    """A shape file of ten clouds, with some arrays changed or left out."""
    whole = {
        "points": np.random.default_rng(0).standard_normal((10, 20, 3)).astype(np.float32),
        "label": np.arange(10) % 2,
        "class_names": np.array(["cup", "bowl"]),
        **arrays,
    }
    np.savez(path, **{name: array for name, array in whole.items() if array is not None})
    return path


def test_own_file(tmp_path):
    split = np.array([0, 0, 0, 0, 0, 0, 1, 2, 2, 2])
    path = save(tmp_path / "mine.npz", split=split)
    parts = [shape_file(path, name) for name in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [6, 1, 3]
    assert torch.equal(torch.cat([part.points for part in parts]), shape_file(path, "all").points)
    assert parts[0].source == "mine (shape file, not ModelNet)" and parts[0].classes == ("cup", "bowl")
    # Units do not matter, neither those beyond float32.
    points = np.load(path)["points"].astype(np.float64)
    large = shape_file(save(tmp_path / "large.npz", points=points * 1e200, split=split))
    torch.testing.assert_close(large.points, parts[0].points)
    path = save(tmp_path / "unsplit.npz")
    train, test = shape_file(path), shape_file(path, "test")
    assert train.labels.bincount().tolist() == [4, 4] and test.labels.bincount().tolist() == [1, 1]
    both = torch.cat([train.points, test.points]).flatten(1).sort(0).values
    assert torch.equal(both, shape_file(path, "all").points.flatten(1).sort(0).values)


NAN = np.zeros((10, 20, 3), np.float32)
NAN[4, 3, 1] = np.nan
GRID = np.ones((10, 64), np.uint8)
GRID[2] = 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": None}, "must hold points or voxels, and label and class_names or names, got class_names, label;"),
        ({"label": None}, "must hold points or voxels, and label and class_names or names, got class_names, points;"),
        ({"points": np.zeros((10, 20, 2))}, r"must be floats \[S, P, 3\], got float64 \[10, 20, 2\]"),
        ({"points": np.zeros((10, 20, 3), int)}, r"must be floats \[S, P, 3\], got int64 \[10, 20, 3\]"),
        ({"points": NAN}, "cannot be used: PointClouds: points must be finite, got NaN or infinity first in shape 4"),
        ({"label": np.arange(9) % 2}, r"must be integers \[10\], one per shape, got int64 \[9\]"),
        ({"label": np.zeros(10)}, r"must be integers \[10\], one per shape, got float64 \[10\]"),
        ({"label": np.arange(10)}, r"cannot be used: PointClouds: labels must be in 0 \.\. 1, got 2 for shape 2"),
        ({"split": np.zeros(3, int)}, r"must be integers \[10\], one per shape, got int64 \[3\]"),
        ({"split": np.ones(10, int)}, "must have shapes of the split, got none of 'train'; take some of another"),
        ({"voxels": np.zeros((10, 65), np.uint8)}, r"must be packed bits, .* \[S, side\^3 / 8\], got uint8 \[10, 65\]"),
        ({"voxels": np.zeros((10, 64))}, r"must be packed bits, uint8 \[S, side\^3 / 8\], got float64 \[10, 64\]"),
        ({"voxels": np.uint8(3)}, r"must be packed bits, uint8 \[S, side\^3 / 8\], got uint8 \[\]"),
        ({"voxels": GRID}, "must have occupied voxels, got none in shape 2"),
    ],
)
def test_wrong_shape_file(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=f"shape_file: .*bad.npz {message}"):
        shape_file(save(tmp_path / "bad.npz", **arrays))


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_truncated_shape_file(tmp_path, keep):
    path = save(tmp_path / "bad.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"bad.npz is no .npz file or is truncated or damaged \(.*; get it anew"):
        shape_file(path)


def test_wrong_shape_file_arguments(tmp_path):
    path = save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="split must be one of train, valid, test, all, got 'both'"):
        shape_file(path, "both")
    with pytest.raises(ValueError, match="points must be at most the 20 of .*a.npz, got 21"):
        shape_file(path, points=21)
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        shape_file(path, points=0)
    with pytest.raises(ValueError, match="up must be y or z, got 'x'"):
        shape_file(path, up="x")
    for error, name in ((FileNotFoundError, "absent"), (IsADirectoryError, "folder")):
        (tmp_path / "folder.npz").mkdir(exist_ok=True)
        with pytest.raises(error, match=rf"{name}.npz must be an .npz file that can be read, got none \(.*; name the"):
            shape_file(tmp_path / f"{name}.npz")
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(ValueError, match="b.npy is no .npz file or"):
        shape_file(tmp_path / "b.npy")
