"""Labelled point clouds of one size, their batches, and what is done to a batch on its device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .batching import Batcher
from .checks import as_integer

ROTATIONS = ("aligned", "z", "so3")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PointClouds:
    """Point clouds of P points with a class each; z points up where the shapes have an upright pose.

    Args:
        points: [S, P, 3] float32, finite.
        labels: [S] int64 in 0 .. len(classes) - 1.
        classes: the names.
        source: what the data are, as a report has to call them.

    Raises:
        ValueError: anything else; the message names the first shape concerned.

    Example:
        >>> PointClouds(torch.zeros(2, 8, 3), torch.tensor([0, 1]), ("cup", "bowl"), "zeros")
        PointClouds(2 clouds of 8 points, 2 classes: zeros)
    """

    points: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        _check_array("points", self.points, torch.float32, "[S, P, 3]", 3)
        _check_array("labels", self.labels, torch.int64, "[S]", 1)
        S, P, xyz = self.points.shape
        if P == 0 or xyz != 3:
            raise ValueError(f"PointClouds: points must be [S, P, 3] with P at least 1, got {[S, P, xyz]}")
        if self.labels.shape[0] != S or self.labels.device != self.points.device:
            raise ValueError(
                f"PointClouds: labels must be [{S}] on {self.points.device} as points are, got "
                f"{list(self.labels.shape)} on {self.labels.device}"
            )
        names = self.classes
        if not isinstance(names, tuple) or not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"PointClouds: classes must be a tuple of names, got {names!r}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"PointClouds: classes must be different names, got {twice!r} twice")
        wrong = (self.labels < 0) | (self.labels >= len(names))
        if bool(wrong.any()):
            shape = int(wrong.nonzero()[0])
            raise ValueError(
                f"PointClouds: labels must be in 0 .. {len(names) - 1}, got {int(self.labels[shape])} for shape {shape}"
            )
        wrong = ~torch.isfinite(self.points).flatten(1).all(1)
        if bool(wrong.any()):
            raise ValueError(
                f"PointClouds: points must be finite, got NaN or infinity first in shape {int(wrong.nonzero()[0])}; "
                "repair that shape or leave it out"
            )

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def num_points(self) -> int:
        """P, points per cloud."""
        return self.points.shape[1]

    def __repr__(self) -> str:
        return (
            f"PointClouds({len(self)} clouds of {self.num_points} points, {len(self.classes)} classes: {self.source})"
        )

    def to(self, device: torch.device | str) -> PointClouds:
        """The clouds on another device, where batches are then formed."""
        return dataclasses.replace(self, points=self.points.to(device), labels=self.labels.to(device))

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> PointClouds:
        """The clouds `indices`, in that order, repeats allowed; the class names stay."""
        index = torch.as_tensor(indices).cpu()
        if index.numel() == 0:
            index = index.to(torch.int64)
        if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"PointClouds: indices must be integers [S], got {index.dtype} {list(index.shape)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(
                f"PointClouds: indices must be in 0 .. {len(self) - 1}, got {int(index.min())} .. {int(index.max())}"
            )
        index = index.to(self.labels.device)
        points, labels = self.points.index_select(0, index), self.labels.index_select(0, index)
        return dataclasses.replace(self, points=points, labels=labels)

    def holdout(self, fraction: float, *, seed: int = 0) -> tuple[PointClouds, PointClouds]:
        """The rest, and this share of each class drawn at random: a validation set where the source has none."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"PointClouds: fraction must be in 0 .. 1, got {fraction!r}")
        labels = self.labels.cpu().numpy()
        drawn = np.random.default_rng(as_integer("PointClouds", "seed", seed, 0)).permutation(len(self))
        by_class = drawn[np.argsort(labels[drawn], kind="stable")]
        counts = np.bincount(labels, minlength=len(self.classes))
        rank = np.empty(len(self), dtype=np.int64)  # within its class
        rank[by_class] = np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts)
        # Of a class that is split, one at least stays: nothing could be learned of it otherwise.
        held = rank < np.minimum(np.floor(fraction * counts + 0.5), counts - (fraction < 1))[labels]
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        num_points: int | None = None,
        sampling: str = "first",
    ) -> CloudBatcher:
        """Batches (points [B, n, 3], labels [B]), see CloudBatcher."""
        return CloudBatcher(self, batch_size, shuffle, seed, drop_last, num_points=num_points, sampling=sampling)


class CloudBatcher(Batcher):
    """Iterates over PointClouds in batches (points [B, n, 3], labels [B]), on their device.

    Epochs, shuffling and resuming are those of `Batcher`: the batches depend on seed and epoch alone, and a new one
    that loads `state_dict()` goes on with the very next batch.

    Args:
        clouds: the data.
        batch_size, shuffle, seed, drop_last: as for Batcher.
        num_points: n, at most P; by default all.
        sampling: "first" takes the first n points of each cloud, "random" others in each epoch.

    Raises:
        ValueError: an argument out of range, or a state of other data or settings.

    Example:
        >>> clouds = PointClouds(torch.zeros(5, 8, 3), torch.zeros(5, dtype=torch.int64), ("cup",), "zeros")
        >>> [list(points.shape) for points, labels in CloudBatcher(clouds, 2, num_points=6)]
        [[2, 6, 3], [2, 6, 3], [1, 6, 3]]
    """

    def __init__(
        self,
        clouds: PointClouds,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        num_points: int | None = None,
        sampling: str = "first",
    ) -> None:
        super().__init__(_Numbers(len(clouds)), batch_size, shuffle, seed, drop_last)
        P = clouds.num_points
        n = P if num_points is None else as_integer("CloudBatcher", "num_points", num_points, 1)
        if n > P:
            raise ValueError(
                f"CloudBatcher: num_points must be at most the {P} points of the clouds, got {n}; load the data with "
                "more points"
            )
        if sampling not in ("first", "random"):
            raise ValueError(f"CloudBatcher: sampling must be first or random, got {sampling!r}")
        self.clouds, self.num_points, self.sampling = clouds, n, sampling

    def _form(self, index: Tensor) -> tuple[Tensor, Tensor]:
        # Numbers begin at 1: numpy takes a last 0 for nothing, and the draw would be that of the order.
        seeds = [self.seed, self.epoch, self._number]
        points, n, index = self.clouds.points, self.num_points, index.to(self.clouds.points.device)
        labels = self.clouds.labels.index_select(0, index)
        if self.sampling == "first" or n == points.shape[1]:
            return points[:, :n].index_select(0, index), labels
        draw = np.random.default_rng(seeds).random((len(index), points.shape[1]), dtype=np.float32)
        chosen = torch.from_numpy(draw.argpartition(n, axis=1)[:, :n]).to(points.device)  # [B, n]
        return points[index[:, None], chosen], labels

    def _fingerprint(self) -> dict[str, int | bool | str]:
        return {**super()._fingerprint(), "num_points": self.num_points, "sampling": self.sampling}


class _Numbers:
    """What a Batcher needs of its data, where a batch is just the numbers of its members."""

    uniform = False

    def __init__(self, count: int) -> None:
        self.count, self.sizes = count, torch.ones(count, dtype=torch.int64)

    def __len__(self) -> int:
        return self.count

    def batch(self, index: Tensor, like: None = None) -> Tensor:
        return index


def _check_array(name: str, x: object, dtype: torch.dtype, shape: str, ndim: int) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"PointClouds: {name} must be a tensor {shape}, got {type(x).__name__}; use torch.as_tensor")
    if x.dtype != dtype or x.ndim != ndim:
        raise ValueError(f"PointClouds: {name} must be {dtype} {shape}, got {x.dtype} {list(x.shape)}")


def normalise(points: Tensor) -> Tensor:
    """Each cloud moved to its centroid (the mean of its points) and scaled until the largest norm is 1.

    Args:
        points: [..., P, 3]; identical points become zeros.

    Returns:
        [..., P, 3] in the dtype given; computed in float64 at a size of about 1, so that no finite coordinates overflow
        or vanish.

    Raises:
        ValueError: not floating-point [..., P, 3].

    Example:
        >>> normalise(torch.tensor([[3.0, 0.0, 0.0], [7.0, 0.0, 0.0]]))[:, 0]
        tensor([-1.,  1.])
    """
    _check_points("normalise", points, 2)
    x = points.to(torch.float64)
    size = x.abs().amax((-2, -1), keepdim=True)
    x = x / torch.where(size > 0, size, 1.0)
    x = x - x.mean(-2, keepdim=True)
    radius = x.norm(dim=-1, keepdim=True).amax(-2, keepdim=True)
    # Rounding of the mean leaves a little where all points are one; it is no shape.
    same = radius <= 8 * torch.finfo(torch.float64).eps
    return torch.where(same, 0.0, x / torch.where(same, 1.0, radius)).to(points.dtype)


def from_y_up(points: Tensor) -> Tensor:
    """[..., 3] turned from y up to z up: (x, y, z) -> (x, -z, y)."""
    x, y, z = points.unbind(-1)
    return torch.stack([x, -z, y], -1)


def rotations(
    count: int,
    kind: str = "so3",
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """[count, 3, 3] random rotations: "aligned" the identity, "z" about z, "so3" uniform over all rotations."""
    if kind not in ROTATIONS:
        raise ValueError(f"rotate: kind must be one of {', '.join(ROTATIONS)}, got {kind!r}")
    _check_generator("rotate", generator, torch.device(device))
    draw = {"generator": generator, "dtype": dtype, "device": device}
    if kind == "aligned":
        return torch.eye(3, dtype=dtype, device=device).repeat(count, 1, 1)
    if kind == "z":
        angle = torch.rand(count, **draw) * (2 * math.pi)
        c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
        return torch.stack([c, -s, o, s, c, o, o, o, o + 1], -1).view(count, 3, 3)
    # A normalised Gaussian is uniform on the sphere of unit quaternions, whose rotations are then Haar.
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, **draw), dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]
    rows += [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]
    rows += [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, -1).view(count, 3, 3)


def rotate(points: Tensor, kind: str = "aligned", generator: torch.Generator | None = None) -> Tensor:
    """Each cloud of a batch under its own random rotation, x_i -> R x_i.

    Args:
        points: [B, N, 3] on any device; the rotations are drawn there.
        kind: "aligned" leaves the points as they are, "z" turns about z, "so3" is uniform over all rotations.
        generator: of the points' device; by default that device's own.

    Returns:
        [B, N, 3]; for "aligned" the tensor given. Differentiable in the points.

    Raises:
        ValueError: wrong shape or dtype, an unknown kind, or a generator of another device.

    Example:
        >>> rotate(torch.tensor([[[0.0, 0.0, 2.0]]]), "z")
        tensor([[[0., 0., 2.]]])
    """
    _check_points("rotate", points, 3)
    if kind == "aligned":
        return points
    R = rotations(points.shape[0], kind, generator, dtype=points.dtype, device=points.device)
    # Not a matrix product: TF32 would turn a rotation into something that is none.
    return (points[:, :, None, :] * R[:, None]).sum(-1)


def drop_points(
    points: Tensor,
    max_ratio: float = 0.875,
    *,
    ratio: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The ACE code's dropping of points: each is dropped with its cloud's ratio and replaced by point 0.

    Args:
        points: [B, N, 3] on any device; the draws are made there.
        max_ratio: each cloud's ratio is uniform in 0 .. max_ratio.
        ratio: the same ratio for all clouds instead, as for a curve of accuracy against it.
        generator: of the points' device; by default that device's own.

    Returns:
        [B, N, 3], the number of points unchanged.

    Raises:
        ValueError: wrong shape or dtype, a ratio outside 0 .. 1, or a generator of another device.

    Example:
        >>> drop_points(torch.arange(6.0).view(1, 2, 3), ratio=1.0)
        tensor([[[0., 1., 2.],
                 [0., 1., 2.]]])
    """
    _check_points("drop_points", points, 3)
    _check_generator("drop_points", generator, points.device)
    name, value = ("max_ratio", max_ratio) if ratio is None else ("ratio", ratio)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"drop_points: {name} must be a number in 0 .. 1, got {value!r}")
    B, N, _ = points.shape
    draw = {"generator": generator, "dtype": torch.float32, "device": points.device}
    threshold = max_ratio * torch.rand(B, 1, **draw) if ratio is None else ratio
    dropped = torch.rand(B, N, **draw) < threshold
    return torch.where(dropped[..., None], points[:, :1], points)


def _check_points(who: str, points: Tensor, ndim: int) -> None:
    """ndim: exactly 3, or at least 2."""
    fits = points.ndim == ndim if ndim == 3 else points.ndim >= ndim
    if not fits or points.shape[-1] != 3 or not points.is_floating_point():
        shape = "[B, N, 3]" if ndim == 3 else "[..., P, 3]"
        raise ValueError(f"{who}: points must be floating-point {shape}, got {points.dtype} {list(points.shape)}")


def _check_generator(who: str, generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"{who}: generator must be of the points' device {device}, got one of {generator.device}; make it with "
            f'torch.Generator("{device}")'
        )
