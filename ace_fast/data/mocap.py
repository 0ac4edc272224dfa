"""Human motion of the CMU database: from one frame to later ones, as GMN and EGNO set the task."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import mocap_files
from .batching import FlatDataset
from .checks import as_integer
from .mocap_files import CASES, Recordings
from .nbody import Progress

SPLITS = ("train", "valid", "test")
FRAMES = ("last", "uniform")
SEED = 100  # of the field's start frames
HEIGHT = 10.0  # what the authors divide heights by

Chosen = list[tuple[int, np.ndarray]]  # a trial and its start frames


class MotionSamples(FlatDataset):
    """A FlatDataset of moments of a motion; all graphs are alike.

    Node arrays: pos [N, 3]; vel [N, 3], the difference to the next frame; height [N, 1], y / 10; target [N, T, 3], the
    positions `frames` [T] later. Edge array kind [E, 1]: 1 between the joints of a bone, 2 two bones apart. Graph
    arrays trial and start [G]. Lengths are in the files' unit, times in frames; `recordings` says what they are.
    """

    def __init__(self, *arrays: Any, recordings: Recordings, frames: np.ndarray, **more: Any) -> None:
        super().__init__(*arrays, **more)
        self.recordings, self.frames = recordings, frames

    @property
    def source(self) -> str:
        return self.recordings.source

    @property
    def joints(self) -> int:
        """J, of each graph."""
        return len(self.recordings.joints)

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> MotionSamples:
        found = super().subset(indices)
        arrays = found.node, found.node_offsets, found.edge_index, found.edge_offsets, found.edge, found.graph
        return MotionSamples(*arrays, check=False, recordings=self.recordings, frames=self.frames)

    def __repr__(self) -> str:
        trials = self.graph["trial"].unique().numel()
        return (f"MotionSamples({len(self)} moments of {trials} trials, {self.joints} joints, "
                f"{self.edge_index.shape[1] // max(1, len(self))} edges each, frames "
                f"+{', +'.join(map(str, self.frames))}; {self.source})")


def mocap(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    case: str = "walk",
    delta: int = 30,
    steps: int = 5,
    frames: str = "last",
    num_samples: int | None = None,
    seed: int = SEED,
    progress: Progress | None = None,
) -> MotionSamples:
    """Moments of subject 35 walking or subject 9 running, and where the joints are up to `delta` frames later.

    What `root` may be or hold, itself or in folders of the usual names within it, in this order:
      - CMU's 35.asf and 35_01.amc ... (run: 09.asf, 09_01.amc ...), or a .zip archive of them; of the walks the trials
        01 to 16 and 28 to 34 are used, of the runs 01 to 11;
      - mocap_walk.npz, mocap_run.npz, or another .npz file, see mocap_files.read_npz.
    Nothing is downloaded, and no pickles are read.

    The trials of a file with a split are split so, and start at its start frames. All of CMU's trials, in the order of
    their numbers, are split as in the code of GMN and EGNO, which draws 100 start frames (run: 80) of the first 300
    (90) of each trial with numpy's seed 100; which trial is which there depends on the order in which its authors'
    machine listed the files, and is not known. Fewer trials are split at random in the same proportions; in a trial
    that is too short for some of these start frames they are drawn among those that it has.

    Args:
        root: the folder or file; by default mocap in $ACE_FAST_DATA or else in ~/.cache/ace_fast.
        split: "train", "valid" or "test".
        case: "walk" or "run".
        delta: frames from the input to the last target (30: a quarter of a second).
        steps: T, frames that are predicted, at most delta.
        frames: "last", the T frames up to delta, as the published code has it; "uniform", every delta / T-th.
        num_samples: moments at most, equally many of each trial, the first of its start frames; None: 200 for training
            and 600 otherwise as published (walk: 198, run: 200; 240 of the 240 that the runs have); 0: all.
        seed: of start frames, and of the split of fewer trials.
        progress: called with (trials read, all) while reading .amc files.

    Raises:
        ValueError: an argument out of range, files that cannot be used, trials that are too short or too few.
        FileNotFoundError: none of these files is there.

    Source: CMU Graphics Lab Motion Capture Database; Huang et al., GMN (ICLR 2022); Xu et al., EGNO (ICML 2024).

    Example:
        >>> data = mocap("/data/cmu", "test", case="run")  # doctest: +SKIP
    """
    if split not in SPLITS:
        raise ValueError(f"mocap: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if case not in CASES:
        raise ValueError(f"mocap: case must be one of {', '.join(CASES)}, got {case!r}")
    seed, limit = as_integer("mocap", "seed", seed, 0), (200 if split == "train" else 600)
    ahead = target_frames(delta, steps, frames)
    if num_samples is not None:
        limit = as_integer("mocap", "num_samples", num_samples, 0)
    base = Path(os.environ.get("ACE_FAST_DATA") or Path.home() / ".cache" / "ace_fast")
    recordings = mocap_files.read(Path(root or base / "mocap"), case, progress)
    chosen = protocol(recordings, case, delta, seed)[SPLITS.index(split)]
    return motion_samples(recordings, _first(chosen, limit), ahead)


def target_frames(delta: int, steps: int, frames: str) -> np.ndarray:
    """[T] int64, how many frames later the targets are."""
    delta, steps = as_integer("mocap", "delta", delta, 1), as_integer("mocap", "steps", steps, 1)
    if frames not in FRAMES:
        raise ValueError(f"mocap: frames must be one of {', '.join(FRAMES)}, got {frames!r}")
    if steps > delta:
        raise ValueError(f"mocap: steps must be at most delta = {delta}, got {steps}")
    count = np.arange(1, steps + 1)
    return delta - steps + count if frames == "last" else delta * count // steps


def protocol(recordings: Recordings, case: str, delta: int, seed: int = SEED) -> list[Chosen]:
    """Trials and all their start frames, of training, validation and test data; see `mocap`."""
    about, count = CASES[case], len(recordings.trials)
    if recordings.split is not None:
        parts = [np.flatnonzero(recordings.split == part).tolist() for part in range(3)]
    elif count == len(about.trials):
        parts = [list(part) for part in about.parts]
    else:
        parts = _proportional(count, [len(part) for part in about.parts], seed)
    empty = [name for name, part in zip(SPLITS, parts, strict=True) if not part]
    if empty:
        raise ValueError(f"mocap: {recordings.source} must have trials for training, validation and test, got "
                         f"{count} in all and none for {empty[0]}; give three trials or more")
    if recordings.starts is not None:
        return [[(k, recordings.starts[k]) for k in part] for part in parts]
    draw = np.random.RandomState(seed)
    return [[(k, _drawn(recordings, k, case, delta, draw)) for k in part] for part in parts]


def _proportional(count: int, sizes: list[int], seed: int) -> list[list[int]]:
    """0 .. count - 1 in random order, divided like `sizes`, with at least one for each where there are as many."""
    order = np.random.RandomState(seed).permutation(count).tolist()
    later = [max(1, round(count * size / sum(sizes))) for size in sizes[1:]]
    first = max(0, count - sum(later))
    return [order[:first], order[first : first + later[0]], order[first + later[0] :]]


def _drawn(recordings: Recordings, k: int, case: str, delta: int, draw: np.random.RandomState) -> np.ndarray:
    about, frames = CASES[case], len(recordings.pos[k])
    room = min(about.starts, frames - 1 - delta)
    if room < about.per_trial:
        raise ValueError(
            f"mocap: trial {recordings.trials[k]} must have {about.per_trial + delta + 1} frames or more, "
            f"{about.per_trial} to start from and {delta} later ones, got {frames}; leave it out"
        )
    return draw.choice(np.arange(room), size=about.per_trial, replace=False)


def _first(chosen: Chosen, limit: int) -> Chosen:
    """At most `limit` moments (0: all), equally many of each trial."""
    if not limit:
        return chosen
    each = max(1, limit // len(chosen))
    return [(k, starts[:each]) for k, starts in chosen[:limit]]


def motion_samples(recordings: Recordings, chosen: Chosen, frames: np.ndarray) -> MotionSamples:
    """The moments `chosen` as graphs, with targets `frames` [T] later.

    Raises:
        ValueError: a start frame after which the trial is too short.
    """
    need = max(1, int(frames.max()))
    for k, starts in chosen:
        wrong = [int(start) for start in starts if not 0 <= start < len(recordings.pos[k]) - need]
        if wrong:
            raise ValueError(
                f"mocap: start frame {wrong[0]} of trial {recordings.trials[k]} ({recordings.source}) must be in 0 .. "
                f"{len(recordings.pos[k]) - need - 1}, {need} frames before the end of its {len(recordings.pos[k])}; "
                "give the whole trial or other start frames"
            )
    now = np.concatenate([recordings.pos[k][starts] for k, starts in chosen])  # [G, J, 3]
    after = np.concatenate([recordings.pos[k][starts + 1] for k, starts in chosen])
    later = np.concatenate([recordings.pos[k][starts[:, None] + frames] for k, starts in chosen])  # [G, T, J, 3]
    node = {"pos": now, "vel": after - now, "height": now[..., 1:2] / HEIGHT, "target": later.swapaxes(1, 2)}
    sizes = [len(starts) for _, starts in chosen]
    graph = {"trial": np.repeat([k for k, _ in chosen], sizes), "start": np.concatenate([s for _, s in chosen])}
    graph = {name: torch.from_numpy(array.astype(np.int64)) for name, array in graph.items()}
    return skeleton_graphs(recordings, {name: x.reshape(-1, *x.shape[2:]) for name, x in node.items()}, graph, frames)


def skeleton_graphs(
    recordings: Recordings, node: dict[str, np.ndarray], graph: dict[str, Tensor], frames: np.ndarray
) -> MotionSamples:
    """Graphs of nodes [G J, ...] with the edges of the skeleton."""
    J = len(recordings.joints)
    index, kind = skeleton_edges(recordings.bones, J)
    G, E = len(node["pos"]) // J, index.shape[1]
    tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in node.items()}
    offsets = torch.arange(G + 1)
    return MotionSamples(tensors, offsets * J, index.repeat(1, G), offsets * E, {"kind": kind.repeat(G, 1)}, graph,
                         check=False, recordings=recordings, frames=frames)


def skeleton_edges(bones: np.ndarray, joints: int) -> tuple[Tensor, Tensor]:
    """Edges [2, E] (source, target), sorted by target, and their kinds [E, 1] float64.

    Both directions of each bone (kind 1), and of each pair of joints two bones apart (kind 2): 130 of CMU's skeleton.
    """
    near = np.zeros((joints, joints), dtype=np.int64)
    near[bones[:, 0], bones[:, 1]] = near[bones[:, 1], bones[:, 0]] = 1
    hops = np.where(near > 0, 1, 2 * (near @ near > 0))
    np.fill_diagonal(hops, 0)
    target, source = hops.nonzero()
    kind = torch.from_numpy(hops[target, source].astype(np.float64))[:, None]
    return torch.from_numpy(np.stack([source, target])), kind


def egno_inputs(
    pos: Tensor, vel: Tensor, edge_index: Tensor, kind: Tensor, joints: int, height: Tensor | None = None
) -> dict[str, Tensor]:
    """What EGNO takes besides positions and velocities, as in its code.

    Args:
        pos, vel: [N, 3]; edge_index: [2, E]; kind: [E, 1].
        joints: J, nodes of each graph.
        height: [N, 1], further feature of the nodes, scaled; None for none.

    Returns:
        h [N, 2] (or [N, 1]): speed and height; edge_fea [E, 2]: kind and squared distance; loc_mean [N, 3]: the mean
        position of each graph.
    """
    speed = vel.norm(dim=1, keepdim=True)
    square = (pos[edge_index[0]] - pos[edge_index[1]]).square().sum(1, keepdim=True)
    mean = pos.view(-1, joints, 3).mean(1, keepdim=True).expand(-1, joints, -1).flatten(0, 1)
    h = speed if height is None else torch.cat([speed, height], 1)
    return {"h": h, "edge_fea": torch.cat([kind, square], 1), "loc_mean": mean}
