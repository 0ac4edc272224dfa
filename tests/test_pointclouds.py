"""Point clouds and their batches, resuming, and what is done to a batch: normalising, rotating, dropping points."""

import math

import numpy as np
import pytest
import torch

from ace_fast.data import CloudBatcher, PointClouds, drop_points, normalise, rotate, rotations

CLASSES = ("cup", "bowl", "vase")


def clouds(count=11, points=16):
    x = torch.arange(count * points * 3, dtype=torch.float32).view(count, points, 3)
    return PointClouds(x, torch.arange(count) % 3, CLASSES, "numbers")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_clouds():
    data = clouds()
    assert len(data) == 11 and data.num_points == 16
    assert repr(data) == "PointClouds(11 clouds of 16 points, 3 classes: numbers)"
    moved = data.to("cpu")
    assert torch.equal(moved.points, data.points) and moved.classes == CLASSES
    with pytest.raises(AttributeError, match="cannot assign"):
        data.source = "others"


@pytest.mark.parametrize("indices", [[3, 0, 3], np.array([3, 0, 3]), torch.tensor([3, 0, 3]), []])
def test_subset(indices):
    data = clouds()
    part = data.subset(indices)
    assert torch.equal(part.points, data.points[[int(i) for i in indices]])
    assert part.labels.tolist() == [int(i) % 3 for i in indices]
    assert (part.classes, part.source) == (data.classes, data.source)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 11], r"indices must be in 0 \.\. 10, got 0 \.\. 11"),
        ([-1], r"indices must be in 0 \.\. 10, got -1 \.\. -1"),
        ([0.5], r"indices must be integers \[S\], got torch.float32 \[1\]"),
        ([[0]], r"indices must be integers \[S\], got torch.int64 \[1, 1\]"),
    ],
)
def test_wrong_subset(indices, message):
    with pytest.raises(ValueError, match=message):
        clouds().subset(indices)


def bad(value):
    x = torch.zeros(4, 5, 3)
    x[2, 3, 1] = value
    return x


LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": bad(math.nan)}, "points must be finite, got NaN or infinity first in shape 2; repair"),
        ({"points": bad(-math.inf)}, "points must be finite, got NaN or infinity first in shape 2; repair"),
        ({"points": bad(0.0).double()}, r"points must be torch.float32 \[S, P, 3\], got torch.float64 \[4, 5, 3\]"),
        ({"points": bad(0.0).numpy()}, r"points must be a tensor \[S, P, 3\], got ndarray; use torch.as_tensor"),
        ({"points": torch.zeros(4, 5, 2)}, r"points must be \[S, P, 3\] with P at least 1, got \[4, 5, 2\]"),
        ({"points": torch.zeros(4, 0, 3)}, r"points must be \[S, P, 3\] with P at least 1, got \[4, 0, 3\]"),
        ({"points": torch.zeros(4, 3)}, r"points must be torch.float32 \[S, P, 3\], got torch.float32 \[4, 3\]"),
        ({"labels": LABELS.int()}, r"labels must be torch.int64 \[S\], got torch.int32 \[4\]"),
        ({"labels": LABELS[:3]}, r"labels must be \[4\] on cpu as points are, got \[3\] on cpu"),
        ({"labels": LABELS.to("meta")}, r"labels must be \[4\] on cpu as points are, got \[4\] on meta"),
        ({"labels": torch.tensor([0, 2, 3, 0])}, r"labels must be in 0 \.\. 2, got 3 for shape 2"),
        ({"labels": torch.tensor([0, -1, 3, 0])}, r"labels must be in 0 \.\. 2, got -1 for shape 1"),
        ({"classes": ["cup", "bowl"]}, "classes must be a tuple of names, got"),
        ({"classes": ()}, r"classes must be a tuple of names, got \(\)"),
        ({"classes": ("cup", 3)}, "classes must be a tuple of names, got"),
        ({"classes": ("cup", "bowl", "cup")}, "classes must be different names, got 'cup' twice"),
    ],
)
def test_wrong_clouds(changed, message):
    with pytest.raises(ValueError, match=f"PointClouds: {message}"):
        PointClouds(**{"points": bad(0.0), "labels": LABELS, "classes": CLASSES, "source": "zeros", **changed})


def test_holdout_takes_a_share_of_each_class():
    labels = torch.tensor([0] * 20 + [1] * 10 + [2])
    data = PointClouds(torch.arange(31.0).view(31, 1, 1).repeat(1, 1, 3), labels, CLASSES, "numbers")
    rest, held = data.holdout(0.2, seed=3)
    assert held.labels.bincount(minlength=3).tolist() == [4, 2, 0]
    both = torch.cat([rest.points, held.points])[:, 0, 0]
    assert sorted(both.tolist()) == list(range(31))
    assert torch.equal(data.holdout(0.2, seed=3)[1].points, held.points)
    assert not torch.equal(data.holdout(0.2, seed=4)[1].points, held.points)
    assert [len(part) for part in data.holdout(1.0)] == [0, 31]
    # A class of one shape is not taken away from training.
    assert data.holdout(0.5)[1].labels.bincount(minlength=3).tolist() == [10, 5, 0]
    with pytest.raises(ValueError, match=r"fraction must be in 0 \.\. 1, got 1.5"):
        data.holdout(1.5)


def test_batches_cover_an_epoch_once():
    data = clouds()
    batches = list(data.batches(4, num_points=5))
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    points, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    number = (points[:, 0, 0] / 48).long()
    assert sorted(number.tolist()) == list(range(11)) and number.tolist() != list(range(11))
    assert torch.equal(points, data.points[number, :5]) and torch.equal(labels, data.labels[number])
    assert points.is_contiguous()
    assert [len(labels) for _, labels in data.batches(4, drop_last=True)] == [4, 4]
    first, _ = next(iter(data.batches(4, shuffle=False)))
    assert torch.equal(first, data.points[:4])


def test_random_points_are_different_points_of_the_same_cloud():
    data = clouds(points=40)
    batcher = data.batches(11, shuffle=False, num_points=10, sampling="random")
    one, two = (next(iter(epoch))[0] for epoch in (batcher, fresh(data, 1)))
    for points in (one, two):
        row = (points[..., 0] - data.points[:, :1, 0]) / 3  # [S, 10]: which of the 40
        assert torch.equal(points, data.points[torch.arange(11)[:, None], row.long()])
        assert all(len(set(chosen)) == 10 for chosen in row.tolist())
        assert len({tuple(sorted(chosen)) for chosen in row.tolist()}) == 11
    assert not torch.equal(one, two)


def fresh(data, epoch):
    batcher = data.batches(11, shuffle=False, num_points=10, sampling="random")
    batcher.set_epoch(epoch)
    return batcher


def test_every_point_is_drawn_equally_often():
    data = PointClouds(torch.arange(8.0).view(1, 8, 1).repeat(500, 1, 3), torch.zeros(500).long(), CLASSES, "numbers")
    ((points, _),) = data.batches(500, num_points=3, sampling="random")
    counts = points[..., 0].flatten().long().bincount(minlength=8).double()
    p = 3 / 8
    assert ((counts - 500 * p).abs() < 5 * math.sqrt(500 * p * (1 - p))).all()


@pytest.mark.parametrize("sampling", ["first", "random"])
@pytest.mark.parametrize("done", [0, 1, 3, 4, 6])
def test_resuming_goes_on_with_the_next_batch(sampling, done):
    options = {"seed": 5, "num_points": 7, "sampling": sampling}

    def stream(batcher):
        while True:
            yield from batcher

    whole = clouds().batches(3, **options)
    all_batches = [batch for _, batch in zip(range(10), stream(whole), strict=False)]
    first = clouds().batches(3, **options)
    for _ in zip(range(done), stream(first), strict=False):
        pass
    second = clouds().batches(3, **{**options, "seed": 0})
    second.load_state_dict(first.state_dict())
    for gold, mine in zip(all_batches[done:], stream(second), strict=False):
        assert torch.equal(gold[0], mine[0]) and torch.equal(gold[1], mine[1])


def test_wrong_batches():
    data = clouds()
    with pytest.raises(ValueError, match="num_points must be at most the 16 points of the clouds, got 17; load"):
        data.batches(2, num_points=17)
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        data.batches(2, num_points=0)
    with pytest.raises(ValueError, match="sampling must be first or random, got 'last'"):
        data.batches(2, sampling="last")
    with pytest.raises(ValueError, match="batch_size must be at most the 11"):
        data.batches(12)
    state = CloudBatcher(data, 2, num_points=8).state_dict()
    with pytest.raises(ValueError, match="num_points must be 8 as in the saved state, got 16; build"):
        CloudBatcher(data, 2).load_state_dict(state)


def test_normalise():
    x = torch.randn(4, 50, 3) * 3 + 7
    y = normalise(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.mean(1), torch.zeros(4, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.norm(dim=-1).amax(1), torch.ones(4))
    # Nothing but the place and the size is changed.
    ratio = (x - x.mean(1, keepdim=True)).norm(dim=-1) / y.norm(dim=-1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3e7, 1e38])
def test_normalise_identical_points(value):
    assert torch.equal(normalise(torch.full((2, 7, 3), value)), torch.zeros(2, 7, 3))


@pytest.mark.parametrize("scale", [1e-35, 1.0, 1e38])
def test_normalise_any_scale(scale):
    x = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(normalise(scale * x), x)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1.7e308])
def test_normalise_any_scale_in_float64(scale):
    x = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(normalise(scale * x), x)


@pytest.mark.parametrize("x", [torch.zeros(4, 5, 2), torch.zeros(3), torch.zeros(4, 5, 3, dtype=torch.int64)])
def test_wrong_points(x):
    with pytest.raises(ValueError, match=r"normalise: points must be floating-point \[\.\.\., P, 3\], got torch"):
        normalise(x)
    for op in (rotate, drop_points):
        with pytest.raises(ValueError, match=rf"{op.__name__}: points must be floating-point \[B, N, 3\], got torch"):
            op(x)


@pytest.mark.parametrize("kind", ["aligned", "z", "so3"])
def test_rotations_are_rotations(kind):
    R = rotations(500, kind, generator(), dtype=torch.float64)
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=torch.float64).expand(500, 3, 3), atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(500, dtype=torch.float64), atol=1e-14, rtol=0)
    assert torch.equal(R, rotations(500, kind, generator(), dtype=torch.float64))
    if kind == "z":
        up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        assert torch.equal(R @ up, up.expand(500, 3))
        # Both components of a uniform angle: mean 0, variance 1/2.
        assert R[:, :2, 0].mean(0).abs().max() < 5 * math.sqrt(0.5 / 500)


def test_so3_is_uniform():
    n = 20_000
    R = rotations(n, "so3", generator(1), dtype=torch.float64)
    # Of a Haar rotation each entry is a coordinate of a uniform unit vector: moments 0, 1/3, 1/5; five sigma.
    assert R.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / n)
    assert (R.square().mean(0) - 1 / 3).abs().max() < 5 * math.sqrt((1 / 5 - 1 / 9) / n)
    # The trace has mean 0 and variance 1; a uniform angle about a uniform axis would have mean 1.
    trace = R.diagonal(dim1=1, dim2=2).sum(-1)
    assert abs(trace.mean()) < 5 / math.sqrt(n)
    assert abs(trace.square().mean() - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotate(dtype):
    x = torch.randn(6, 40, 3, dtype=dtype)
    y, R = rotate(x, "so3", generator(4)), rotations(6, "so3", generator(4), dtype=dtype)
    assert y.dtype == dtype and y.is_contiguous()
    torch.testing.assert_close(y, torch.einsum("bij,bnj->bni", R, x))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(R[0], R[1])
    assert torch.equal(rotate(x, "z", generator())[..., 2], x[..., 2])
    assert rotate(x) is x
    assert rotate(x[:0], "so3").shape == (0, 40, 3) and rotate(x[:, :0], "z").shape == (6, 0, 3)


def test_default_generator_of_the_device():
    x = torch.randn(3, 5, 3)
    torch.manual_seed(7)
    one, dropped = rotate(x, "so3"), drop_points(x)
    torch.manual_seed(7)
    assert torch.equal(one, rotate(x, "so3")) and torch.equal(dropped, drop_points(x))


def test_nothing_comes_from_another_device():
    """On the meta device any tensor of the CPU's, and any look at a value, would raise."""
    x = torch.zeros(2, 5, 3, device="meta")
    for y in (rotate(x, "z"), rotate(x, "so3"), drop_points(x), drop_points(x, ratio=0.5), normalise(x)):
        assert y.device.type == "meta" and y.shape == x.shape and y.dtype == x.dtype


def test_drop_points():
    x = torch.randn(400, 200, 3)
    y = drop_points(x, generator=generator())
    kept = (y == x).all(-1)
    assert kept[:, 0].all()
    assert torch.equal(y, torch.where(kept[..., None], x, x[:, :1]))
    share = 1 - kept[:, 1:].double().mean(1)
    assert share.max() < 1 and share.min() < 0.05 and share.max() > 0.8
    # Uniform in 0 .. 0.875: mean and variance over 400 clouds (with the binomial's own, at most 1/4/199), five sigma.
    assert abs(share.mean() - 0.4375) < 5 * math.sqrt((0.875**2 / 12 + 0.25 / 199) / 400)
    assert torch.equal(y, drop_points(x, generator=generator()))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1])
def test_drop_points_by_a_fixed_ratio(ratio):
    x = torch.randn(50, 200, 3)
    dropped = ~(drop_points(x, ratio=ratio, generator=generator()) == x).all(-1)[:, 1:]
    n = dropped.numel()
    assert abs(dropped.double().mean() - ratio) <= 5 * math.sqrt(ratio * (1 - ratio) / n)
    # No cloud has a ratio of its own.
    assert (dropped.double().mean(1) - ratio).abs().max() <= 5 * math.sqrt(ratio * (1 - ratio) / 199)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.1}, r"ratio must be a number in 0 \.\. 1, got 1.1"),
        ({"ratio": math.nan}, r"ratio must be a number in 0 \.\. 1, got nan"),
        ({"max_ratio": -0.5}, r"max_ratio must be a number in 0 \.\. 1, got -0.5"),
        ({"max_ratio": "0.5"}, r"max_ratio must be a number in 0 \.\. 1, got '0.5'"),
    ],
)
def test_wrong_ratio(options, message):
    with pytest.raises(ValueError, match=f"drop_points: {message}"):
        drop_points(torch.zeros(1, 2, 3), **options)


def test_wrong_rotation():
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="rotate: kind must be one of aligned, z, so3, got 'y'"):
        rotate(x, "y")
    for op in (lambda x, g: rotate(x, "so3", g), lambda x, g: drop_points(x, generator=g)):
        with pytest.raises(ValueError, match=r"generator must be of the points' device meta, got one of cpu; make"):
            op(x.to("meta"), generator())


def test_rotation_has_its_derivative():
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, "so3", generator(3)), x)
