"""Shapes the package generates itself: parametric solids of random proportions, for machines without ModelNet."""

from __future__ import annotations

import numpy as np
import torch

from . import meshes
from .checks import as_integer
from .pointclouds import PointClouds, normalise

_SPLITS = ("train", "valid", "test")
_CHUNK = 256  # shapes per working set
_AROUND = 48  # corners of a circle: the chord misses the arc by 0.2 % of the radius, below the default noise


def generated_shapes(
    split: str = "train", *, per_class: int = 100, points: int = 1024, noise: float = 0.01, seed: int = 0
) -> PointClouds:
    """Ten classes of solids as clouds in the unit sphere: points uniform on the surface, with Gaussian noise.

    Proportions are random for each shape; the pose is aligned to the axes with z up. Splits and seeds are independent,
    and fewer shapes per class are the first ones of more.

    Args:
        split: "train", "valid" or "test".
        per_class: shapes of each class.
        points: per cloud.
        noise: standard deviation of the noise on each coordinate, in units of the sphere's radius.
        seed: of everything.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> generated_shapes("test", per_class=2, points=16)
        PointClouds(20 clouds of 16 points, 10 classes: generated solids (not ModelNet))
    """
    if split not in _SPLITS:
        raise ValueError(f"generated_shapes: split must be one of {', '.join(_SPLITS)}, got {split!r}")
    for name, value, least in (("per_class", per_class, 1), ("points", points, 1), ("seed", seed, 0)):
        as_integer("generated_shapes", name, value, least)
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
        raise ValueError(f"generated_shapes: noise must be a number >= 0, got {noise!r}")
    clouds = np.empty((len(SOLIDS), per_class, points, 3), dtype=np.float32)
    for number, solid in enumerate(SOLIDS.values()):
        # One stream per quantity: then a shape does not depend on how many follow it.
        streams = np.random.SeedSequence([seed, _SPLITS.index(split), number]).spawn(3)
        proportions, places, blur = (np.random.default_rng(stream) for stream in streams)
        for start in range(0, per_class, _CHUNK):
            part = clouds[number, start : start + _CHUNK]
            vertices, faces = solid(proportions.random((len(part), 6)))
            cloud = normalise(torch.from_numpy(meshes.sample(vertices, faces, points, places))).numpy()
            cloud += noise * blur.standard_normal(cloud.shape)
            part[...] = normalise(torch.from_numpy(cloud)).numpy()
    labels = torch.arange(len(SOLIDS)).repeat_interleave(per_class)
    return PointClouds(
        torch.from_numpy(clouds).flatten(0, 1), labels, tuple(SOLIDS), "generated solids (not ModelNet)"
    )


def _between(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    """[S] in 0 .. 1 as [S, 1] in low .. high."""
    return (low + (high - low) * unit)[:, None]


def _skin(rings: np.ndarray, closed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The surface through rings [S, M, K, 3], each joined to the next (closed: the last to the first).

    A ring of K times the same point closes an end; its triangles without area are never drawn.
    """
    S, M, K, _ = rings.shape
    here = np.arange((M if closed else M - 1) * K).reshape(-1, K)
    around, next_ring = np.roll(here, -1, axis=1), (here + K) % (M * K)
    across = (around + K) % (M * K)
    quads = np.stack([here, around, across, next_ring], axis=-1).reshape(-1, 4)
    return rings.reshape(S, M * K, 3), np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _rings(radius: np.ndarray, height: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """[S, M, K, 3]: an outline [K, 2] or [S, K, 2] scaled by radius [S or 1, M], at height [S or 1, M]."""
    outline = outline if outline.ndim == 3 else outline[None]
    flat = radius[..., None, None] * outline[:, None]
    level = height[..., None, None]
    shape = np.broadcast_shapes(flat.shape[:-1], level.shape[:-1])
    return np.concatenate([np.broadcast_to(flat, (*shape, 2)), np.broadcast_to(level, (*shape, 1))], axis=-1)


def _circle(count: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # [count, 2]


_ROUND = _circle(_AROUND)
_SQUARE = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
_PRISM = np.array([[0.0, 1.0, 1.0, 0.0]]), np.array([[-1.0, -1.0, 1.0, 1.0]])  # radius and height of its rings
_SPIKE = np.array([[0.0, 1.0, 0.0]]), np.array([[-1.0, -1.0, 1.0]])


def _scaled(
    profile: tuple[np.ndarray, np.ndarray], outline: np.ndarray, *sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The skin over one profile and outline, stretched by sizes [S, 1] along x, y and z."""
    return _skin(_rings(*profile, outline) * np.stack(sizes, axis=-1)[:, None])


def _ellipsoid(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    polar = np.linspace(0, np.pi, _AROUND // 2 + 1)[None]
    return _scaled((np.sin(polar), np.cos(polar)), _ROUND, *(_between(u[:, k], 0.5, 1.0) for k in range(3)))


def _box(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _scaled(_PRISM, _SQUARE, *(_between(u[:, k], 0.4, 1.0) for k in range(3)))


def _cylinder(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    radius = _between(u[:, 0], 0.4, 1.0)
    return _scaled(_PRISM, _ROUND, radius, radius, _between(u[:, 1], 0.6, 1.2))


def _cone(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    radius = _between(u[:, 0], 0.5, 1.0)
    return _scaled(_SPIKE, _ROUND, radius, radius, _between(u[:, 1], 0.7, 1.2))


def _pyramid(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _scaled(_SPIKE, _SQUARE, *(_between(u[:, k], 0.5, 0.9) for k in range(2)), _between(u[:, 2], 0.7, 1.2))


def _capsule(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = np.linspace(0, np.pi / 2, _AROUND // 4 + 1)
    polar = np.concatenate([half, half + np.pi / 2])[None]
    middle = np.where(np.arange(polar.shape[1]) < len(half), 1.0, -1.0)[None] * _between(u[:, 0], 1.0, 2.5)
    return _skin(_rings(np.sin(polar), np.cos(polar) + middle, _ROUND))


def _torus(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tube = _between(u[:, 0], 0.15, 0.45)[:, None]
    section = tube * _circle(_AROUND // 2)  # [S, K, 2]: away from the axis and up
    return _skin(_along(_ROUND[None], np.zeros((1, _AROUND)), section), closed=True)


def _helix(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turns, pitch, tube = _between(u[:, 0], 2.0, 4.0), _between(u[:, 1], 0.4, 0.7), _between(u[:, 2], 0.08, 0.14)
    way = np.linspace(0, 1, 2 * _AROUND + 1)
    way = np.concatenate([[0.0], way, [1.0]])[None] * turns  # [S, M], its ends twice
    direction = np.stack([np.cos(2 * np.pi * way), np.sin(2 * np.pi * way)], axis=-1)
    section = tube[:, None] * _circle(_AROUND // 4)
    rings = _along(direction, pitch * way, section)
    for end in (0, -1):
        rings[:, end] = rings[:, end].mean(axis=1, keepdims=True)
    return _skin(rings)


def _along(direction: np.ndarray, height: np.ndarray, section: np.ndarray) -> np.ndarray:
    """[S, M, K, 3]: sections [S, K, 2] standing upright, centred on the unit circle at direction [S or 1, M, 2]."""
    away, up = section[:, None, :, 0], section[:, None, :, 1]
    flat = (1 + away)[..., None] * direction[:, :, None]
    level = height[..., None] + up
    shape = np.broadcast_shapes(flat.shape[:-1], level.shape)
    return np.concatenate([np.broadcast_to(flat, (*shape, 2)), np.broadcast_to(level, shape)[..., None]], axis=-1)


def _bracket(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    long, high, thick = (_between(u[:, k], *ends) for k, ends in enumerate(((0.7, 1.0), (0.7, 1.0), (0.15, 0.35))))
    o = np.zeros_like(long)
    x, y = np.hstack([o, long, long, thick, thick, o]), np.hstack([o, o, thick, thick, high, high])
    # About the middle of the corner, from where all of the outline is seen.
    return _upright(np.stack([x, y], axis=-1) - thick[..., None] / 2, _between(u[:, 3], 0.15, 0.5))


def _cross(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    long, high, thick = (_between(u[:, k], *ends) for k, ends in enumerate(((0.6, 1.0), (0.6, 1.0), (0.15, 0.3))))
    x = np.hstack([long, thick, thick, -thick, -thick, -long, -long, -thick, -thick, thick, thick, long])
    y = np.hstack([thick, thick, high, high, thick, thick, -thick, -thick, -high, -high, -thick, -thick])
    return _upright(np.stack([x, y], axis=-1), _between(u[:, 3], 0.15, 0.4))


def _upright(outline: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A prism over an outline [S, K, 2] in x and z, star-shaped about 0, from -depth to depth along y."""
    radius, side = _PRISM
    vertices, faces = _skin(_rings(radius, side * depth, outline))
    return vertices[..., [0, 2, 1]], faces


SOLIDS = {
    "box": _box,
    "bracket": _bracket,
    "capsule": _capsule,
    "cone": _cone,
    "cross": _cross,
    "cylinder": _cylinder,
    "ellipsoid": _ellipsoid,
    "helix": _helix,
    "pyramid": _pyramid,
    "torus": _torus,
}
