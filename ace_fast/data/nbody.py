"""Charged bodies in empty space: the simulator of the N-body data set, its cache on disk and its samples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import cache
from .batching import FlatDataset
from .checks import as_integer

FORMAT = 1  # of the cache file; it is written into the file, so that a file of another format is found and replaced
_CHUNK = 4096  # trajectories per working set: half as many lose a fifth to the cost of calls (two threads)
_SPLITS = ("train", "valid", "test")

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class NBodySettings:
    """What the data depend on; all quantities are dimensionless, times in units of the simulation.

    Args:
        bodies: n, per trajectory.
        num_train, num_valid, num_test: trajectories generated per split; fewer give the first ones of more.
        seed: of all splits, which are independent of each other.
        steps, dt, sample_every: the integration, and after how many steps a frame is recorded.
        max_force: bound on each component of the force on a body.
        speed: norm of every initial velocity.
    """

    bodies: int = 5
    num_train: int = 10_000
    num_valid: int = 2_000
    num_test: int = 2_000
    seed: int = 43
    steps: int = 5_000
    dt: float = 1e-3
    sample_every: int = 100
    max_force: float = 100.0
    speed: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("bodies", 2), ("num_train", 1), ("num_valid", 1), ("num_test", 1), ("seed", 0)):
            as_integer("NBodySettings", name, getattr(self, name), least)
        if not _real(self.speed) or not self.speed >= 0:
            raise ValueError(f"NBodySettings: speed must be a number >= 0, got {self.speed!r}")
        _check_integration("NBodySettings", self.steps, self.dt, self.sample_every, self.max_force)

    @property
    def frames(self) -> int:
        """Frames recorded per trajectory; frame f is the state at time (f + 1) sample_every dt."""
        return (self.steps - 1) // self.sample_every

    def count(self, split: str) -> int:
        """Trajectories generated for a split."""
        return getattr(self, f"num_{split}")

    def describe(self, split: str) -> dict[str, str | int | float]:
        """All that the data of one split depend on; the sizes of the other splits do not matter to it."""
        values = dataclasses.asdict(self)
        return {"split": split, "count": self.count(split)} | {
            k: v for k, v in values.items() if not k.startswith("num_")
        }


def simulate(
    position: Tensor,  # [B, n, 3]
    velocity: Tensor,  # [B, n, 3]
    charge: Tensor,  # [B, n, 1] or [B, n]
    steps: int = 5_000,
    dt: float = 1e-3,
    sample_every: int = 100,
    max_force: float = 100.0,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Trajectories of charged bodies of unit mass, in float64 on the CPU.

    F_i = sum_j q_i q_j (x_i - x_j) / |x_i - x_j|^3, each component clamped to +-max_force; v += dt F once, then for
    step 1 .. steps - 1: x += dt v; every `sample_every` steps a frame; v += dt F.

    The unordered pairs are computed once each, in place, over chunks of trajectories, on as many threads as torch has;
    the result does not depend on the chunks. 14 000 trajectories of 5 bodies and 5000 steps took 6 s on two threads and
    7 s on one (Zen 5).

    Args:
        position, velocity: [B, n, 3] initial state.
        charge: [B, n, 1] or [B, n].
        steps, dt, sample_every, max_force: as above.
        progress: called with (trajectories done, B) from the calling thread.

    Returns:
        position, velocity: [B, T, n, 3] with T = (steps - 1) // sample_every; frame f is step (f + 1) sample_every. The
        velocity is half a step (dt / 2) behind the position, as the scheme is a leapfrog.

    Raises:
        ValueError: wrong shapes, values that are not finite, or bodies at one place (their force is not defined).

    No derivatives. Source: charged particles of Kipf et al. 2018 (arXiv 1802.04687) in three dimensions, as in Satorras
    et al. 2021 (arXiv 2102.09844).

    Example:
        >>> x = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
        >>> simulate(x, torch.zeros(1, 2, 3), torch.ones(1, 2), steps=201)[0].shape
        torch.Size([1, 2, 2, 3])
    """
    _check_integration("simulate", steps, dt, sample_every, max_force)
    x, v, q = _initial_arrays(position, velocity, charge)
    B, T, n = x.shape[0], (steps - 1) // sample_every, x.shape[1]
    out_x, out_v = np.empty((B, T, n, 3)), np.empty((B, T, n, 3))
    if B == 0:
        return torch.from_numpy(out_x), torch.from_numpy(out_v)

    def run(part: slice) -> None:
        _integrate(x[part], v[part], q[part], (T, dt, sample_every, max_force), out_x[part], out_v[part])

    _in_chunks(run, B, progress)
    bad = ~np.isfinite(out_v).all(axis=(1, 2, 3))
    if bad.any():
        raise ValueError(
            f"simulate: bodies must be at different positions, got a state that is not finite in trajectory "
            f"{int(bad.argmax())}; move its bodies apart or leave it out"
        )
    return torch.from_numpy(out_x), torch.from_numpy(out_v)


def _in_chunks(run: Callable[[slice], None], count: int, progress: Progress | None) -> None:
    """Calls `run` on slices that cover 0 .. count - 1, on as many threads as torch has."""
    threads = max(1, torch.get_num_threads())
    chunks = -(-count // _CHUNK)
    chunks = min(count, -(-chunks // threads) * threads)  # equal shares for the threads
    bounds = [count * c // chunks for c in range(chunks + 1)]
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        sizes = {pool.submit(run, slice(a, b)): b - a for a, b in zip(bounds, bounds[1:], strict=False)}
        try:
            for future in as_completed(sizes):
                future.result()
                done += sizes[future]
                if progress is not None:
                    progress(done, count)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def initial_conditions(settings: NBodySettings, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Position and velocity [B, n, 3] and charge [B, n, 1] of a split, float64; a smaller split is a prefix."""
    return next(_drawn(settings, split, settings.count(split)))


def _drawn(settings: NBodySettings, split: str, most: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The initial conditions of a split, of `most` trajectories at a time."""
    n, count = settings.bodies, settings.count(split)
    # One stream per quantity: then the draws for one trajectory do not depend on how many follow it.
    streams = np.random.SeedSequence([settings.seed, _SPLITS.index(split)]).spawn(3)
    draw_x, draw_v, draw_q = (np.random.default_rng(s) for s in streams)
    for start in range(0, count, most):
        B = min(most, count - start)
        x = draw_x.standard_normal((B, n, 3)) * (n / 5) ** (1 / 3)
        v = draw_v.standard_normal((B, n, 3))
        v *= settings.speed / np.linalg.norm(v, axis=-1, keepdims=True)
        q = 1.0 - 2.0 * (draw_q.random((B, n, 1)) < 0.5)
        yield torch.from_numpy(x), torch.from_numpy(v), torch.from_numpy(q)


def nbody(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    settings: NBodySettings | None = None,
    frames: tuple[int, int] = (30, 40),
    num_samples: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> FlatDataset:
    """The charged N-body task: from the state in one frame to the positions in a later one.

    Simulated once and kept in a file named after its settings; all frames are kept, so every pair of frames comes from
    the same file. It holds float32: rounding (1e-7) is far below any model's error, and float64 would double 82 MB.

    Args:
        root: the cache folder; by default $ACE_FAST_DATA or else ~/.cache/ace_fast.
        split: "train", "valid" or "test".
        settings: of the simulation; by default NBodySettings().
        frames: input and target frame: (30, 40) "nbody_small", (6, 8) "nbody", (20, 30) "nbody_small_out_dist".
        num_samples: how many, the first ones; by default 3000 for training (all, if there are fewer) and all otherwise.
        dtype: of the floating-point arrays.
        progress: called with (trajectories done, all) while simulating.

    Returns:
        FlatDataset with node arrays position, velocity, target [N, 3] and charge [N, 1], and all n (n - 1) directed
        edges of each graph.

    Raises:
        ValueError: unknown split, frames or num_samples out of range.
        OSError: the folder cannot be written (PermissionError and its like), before anything is simulated.

    Warns:
        UserWarning: a cache file was truncated, damaged or of another format and is rebuilt; or the data could not be
        saved after all (they are returned nevertheless).

    Example:
        >>> data = nbody(root="/tmp/ace_fast", split="valid", settings=NBodySettings(num_valid=4))
        >>> data
        FlatDataset(4 graphs, 20 nodes, 80 edges: position, velocity, target, charge)
    """
    settings = settings or NBodySettings()
    _check_task(split, settings, frames)
    count = settings.count(split)
    if num_samples is None:
        num_samples = min(count, 3_000) if split == "train" else count
    if not 1 <= num_samples <= count:
        raise ValueError(
            f"nbody: num_samples must be in 1 .. {count}, got {num_samples}; for more set a larger num_{split}"
        )
    folder = Path(root or os.environ.get("ACE_FAST_DATA") or Path.home() / ".cache" / "ace_fast")
    return _task(_load_or_build(folder, split, settings, progress), num_samples, frames, dtype)


def stream(split: str, settings: NBodySettings, frames: tuple[int, int] = (30, 40), *, most: int = 16_384,
           progress: Progress | None = None) -> Iterator[FlatDataset]:
    """What `nbody` gives of a split in float32, `most` trajectories at a time and without a file: any number of them.

    Raises:
        ValueError: unknown split, or frames out of range.
    """
    _check_task(split, settings, frames)
    done = 0
    for drawn in _drawn(settings, split, most):
        part = _task(_simulated(settings, drawn, None), len(drawn[0]), frames, torch.float32)
        done += len(part)
        if progress is not None:
            progress(done, settings.count(split))
        yield part


def _check_task(split: str, settings: NBodySettings, frames: tuple[int, int]) -> None:
    if split not in _SPLITS:
        raise ValueError(f"nbody: split must be one of {', '.join(_SPLITS)}, got {split!r}")
    if not 0 <= frames[0] <= frames[1] < settings.frames:
        raise ValueError(f"nbody: frames must be two of 0 .. {settings.frames - 1} in order, got {tuple(frames)}")


def _task(arrays: dict[str, np.ndarray], num_samples: int, frames: tuple[int, int], dtype: torch.dtype) -> FlatDataset:
    """The first `num_samples` trajectories as graphs with all edges."""
    (first, last), G = frames, num_samples
    n = arrays["position"].shape[2]
    position, velocity = arrays["position"], arrays["velocity"]  # [B, T, n, 3]
    chosen = {
        "position": position[:G, first],
        "velocity": velocity[:G, first],
        "target": position[:G, last],
        "charge": arrays["charge"][:G],
    }
    node = {name: torch.from_numpy(x.reshape(G * n, x.shape[-1]).copy()).to(dtype) for name, x in chosen.items()}
    target, source = (~torch.eye(n, dtype=torch.bool)).nonzero().unbind(1)
    edges = torch.stack([source, target]).repeat(1, G)  # [2, G n (n - 1)], by target within a graph
    return FlatDataset(node, torch.arange(G + 1) * n, edges, torch.arange(G + 1) * (n * (n - 1)))


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_integration(who: str, steps: int, dt: float, sample_every: int, max_force: float) -> None:
    as_integer(who, "sample_every", sample_every, 1)
    as_integer(who, "steps", steps, 1)
    if steps <= sample_every:
        raise ValueError(f"{who}: steps must be more than sample_every = {sample_every} to record a frame, got {steps}")
    for name, value in (("dt", dt), ("max_force", max_force)):
        if not _real(value) or not 0 < value < float("inf"):
            raise ValueError(f"{who}: {name} must be positive and finite, got {value!r}")


def _initial_arrays(position: Tensor, velocity: Tensor, charge: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, v, q = (np.asarray(torch.as_tensor(a).detach().cpu(), dtype=np.float64) for a in (position, velocity, charge))
    if x.ndim != 3 or x.shape[2] != 3 or x.shape[1] < 2:
        raise ValueError(f"simulate: position must be [B, n, 3] with n at least 2, got {list(x.shape)}")
    if v.shape != x.shape:
        raise ValueError(f"simulate: velocity must be {list(x.shape)} as position is, got {list(v.shape)}")
    if q.shape not in (x.shape[:2], (*x.shape[:2], 1)):
        raise ValueError(f"simulate: charge must be {[*x.shape[:2], 1]}, got {list(q.shape)}")
    q = q.reshape(x.shape[:2])
    for name, a in (("position", x), ("velocity", v), ("charge", q)):
        bad = ~np.isfinite(a).all(axis=tuple(range(1, a.ndim)))
        if bad.any():
            raise ValueError(f"simulate: {name} must be finite, got NaN or infinity in trajectory {int(bad.argmax())}")
    return x, v, q


def _integrate(
    position: np.ndarray,  # [C, n, 3]
    velocity: np.ndarray,  # [C, n, 3]
    charge: np.ndarray,  # [C, n]
    scheme: tuple[int, float, int, float],
    out_x: np.ndarray,  # [C, T, n, 3]
    out_v: np.ndarray,  # [C, T, n, 3]
) -> None:
    T, dt, every, max_force = scheme
    x, q = position.transpose(1, 2, 0).copy(), charge.T.copy()  # [n, 3, C], [n, C]
    n, _, C = x.shape
    u = velocity.transpose(1, 2, 0) * dt  # the way of one step, which spares a product per step
    bound = max_force * dt * dt
    d, square = np.empty((n * (n - 1) // 2, 3, C)), np.empty((n * (n - 1) // 2, 3, C))
    r2, r, kick, part = np.empty_like(d[:, 0]), np.empty_like(d[:, 0]), np.empty_like(x), np.empty_like(x[0])
    qq = np.concatenate([q[i] * q[i + 1 :] for i in range(n - 1)]) * (dt * dt)  # [pairs, C]
    ends = np.cumsum([0, *range(n - 1, 0, -1)])
    # Body i with all later ones: the pairs are numbered so that these are one slice.
    rows = [(x[i], x[i + 1 :], d[ends[i] : ends[i + 1]], kick[i], kick[i + 1 :]) for i in range(n - 1)]

    def accelerate() -> None:
        for x_i, x_j, d_ij, _, _ in rows:
            np.subtract(x_i, x_j, out=d_ij)
        np.multiply(d, d, out=square)
        np.add(square[:, 0], square[:, 1], out=r2)
        np.add(r2, square[:, 2], out=r2)
        np.sqrt(r2, out=r)
        np.multiply(r, r2, out=r)
        np.divide(qq, r, out=r)
        np.multiply(d, r[:, None], out=d)
        kick.fill(0.0)
        for _, _, d_ij, kick_i, kick_j in rows:
            np.add.reduce(d_ij, axis=0, out=part)
            np.add(kick_i, part, out=kick_i)
            np.subtract(kick_j, d_ij, out=kick_j)
        np.minimum(kick, bound, out=kick)
        np.maximum(kick, -bound, out=kick)
        np.add(u, kick, out=u)

    # Coincident bodies divide by zero; simulate() reports the NaN that follows.
    with np.errstate(all="ignore"):
        accelerate()
        for step in range(1, T * every + 1):
            np.add(x, u, out=x)
            if step % every == 0:
                out_x[:, step // every - 1] = x.transpose(2, 0, 1)
                out_v[:, step // every - 1] = u.transpose(2, 0, 1) / dt
            accelerate()


def _load_or_build(
    folder: Path, split: str, settings: NBodySettings, progress: Progress | None
) -> dict[str, np.ndarray]:
    about = settings.describe(split)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"nbody-{split}-{digest}.npz"
    meta = {"format": FORMAT, "settings": about}
    try:
        return cache.read(path, meta, (settings.count(split), settings.frames, settings.bodies))
    except (FileNotFoundError, NotADirectoryError):
        pass  # not simulated yet: that follows
    except PermissionError as error:
        raise cache.no_access(error, "read", path) from error
    except cache.DAMAGE as error:
        warnings.warn(f"nbody: {path} {cache.reason(error)}; it is simulated anew and replaced", stacklevel=3)
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}"
    try:
        # Opened before the simulation, so that a folder without write permission costs no time.
        folder.mkdir(parents=True, exist_ok=True)
        file = open(temporary, "xb")
    except OSError as error:
        raise cache.no_access(error, "written in", folder) from error
    try:
        with file:
            arrays = _simulated(settings, initial_conditions(settings, split), progress)
            try:
                np.savez(file, meta=np.array(json.dumps(meta, sort_keys=True)), **arrays)
                file.close()
                os.replace(temporary, path)
            except OSError as error:
                warnings.warn(
                    f"nbody: the data could not be saved as {path} ({error}) and will be simulated again next time; "
                    "free some space there, pass root=, or set ACE_FAST_DATA to another folder",
                    stacklevel=3,
                )
    finally:
        temporary.unlink(missing_ok=True)
    return arrays


def _simulated(
    settings: NBodySettings, drawn: tuple[Tensor, Tensor, Tensor], progress: Progress | None
) -> dict[str, np.ndarray]:
    """Position and velocity [B, T, n, 3] and charge [B, n, 1] of initial conditions, float32."""
    x, v, q = drawn
    position, velocity = simulate(
        x, v, q, settings.steps, settings.dt, settings.sample_every, settings.max_force, progress
    )
    arrays = {"position": position, "velocity": velocity, "charge": q}
    return {name: a.numpy().astype(np.float32) for name, a in arrays.items()}
