"""What tasks share whose data may lie in shards: writing them, checks before a run, and the batches that stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from ...data import Batcher, FlatDataset, ShardBatcher, ShardedDataset, write_shards
from ...data.shards import MANIFEST
from ..options import Config, Option, flag

SPLITS = ("train", "valid", "test")  # a folder of shards each
SHARDS = Option("data", "", "folder of shards, for data larger than memory: `ace-fast data` writes them, training "
                            "streams from them, evaluations read them; all of them are used (docs/shards.md)")
View = Callable[[FlatDataset], FlatDataset]


class Streamed:
    """Training data that stay on disk: what `load` gives of "train" where the config names shards.

    Args:
        shards: of the split.
        view: graphs as they lie there -> as `load` gives them from memory.
    """

    def __init__(self, shards: ShardedDataset, view: View) -> None:
        self.shards, self.view = shards, view
        self.source = shards.about.get("source", "shards")

    def __len__(self) -> int:
        return len(self.shards)


def load(shards: ShardedDataset, split: str, view: View) -> FlatDataset | Streamed:
    """The data of a split: those for training stay where they are."""
    return Streamed(shards, view) if split == "train" else view(shards.read(range(shards.num_shards)))


def parts(data: FlatDataset | Streamed) -> Iterator[FlatDataset]:
    """All graphs, a shard at a time where they are on disk."""
    if isinstance(data, Streamed):
        yield from (data.view(data.shards.shard(number)) for number in range(data.shards.num_shards))
    else:
        yield data


def batches(data: FlatDataset | Streamed, config: Config, prepare: View) -> Batcher | ShardBatcher:
    """Batches of graphs that `prepare` has given what the model takes: of all at once, or of a window of shards."""
    size, seed = config["batch_size"], config["seed"]
    if not isinstance(data, Streamed):
        return Batcher(prepare(data), size, seed=seed)
    ahead = 0 if config["cuda_graphs"] else 2  # no other thread may work while one captures
    return ShardBatcher(data.shards, size, seed=seed, prefetch=ahead, prepare=lambda graphs: prepare(data.view(graphs)))


def check_options(config: Config, unused: Mapping[str, Sequence[Any]]) -> None:
    """Raises ValueError where shards meet a setting that says where data come from or how many are used.

    `unused` has the values that such a setting has where nobody gave it.
    """
    for name, values in unused.items():
        if config["shards"] and config[name] not in values:
            raise ValueError(f"train: {flag(name)} must be left out with {flag('shards')}, which hold the data and are "
                             f"used whole, got {config[name]}")


def opened(config: Config, split: str, task: str, settings: Mapping[str, Any], names: Sequence[str]) -> ShardedDataset:
    """The shards of a split.

    Args:
        settings: what they and the run must have in common, by the names of options.
        names: arrays that they must have.

    Raises:
        ValueError: they are of another task, were written with other settings, lack an array, or are damaged.
        FileNotFoundError: there are none.
    """
    shards = ShardedDataset(Path(config["shards"]) / split)
    about, where = shards.about, shards.folder
    theirs = about.get("task", task)
    if theirs != task:
        raise ValueError(f"train: {flag('shards')} must hold data of {task}, got some of {theirs} in {where}; train "
                         f"{theirs} on them")
    for name, mine in settings.items():
        was = about.get("settings", {}).get(name, mine)
        if was != mine:
            raise ValueError(f"train: {flag(name)} must be {was} as the shards in {where} were written, got {mine}; "
                             f"pass that, or write others with: ace-fast data {task} {flag(name)} {mine} "
                             f"{flag('shards')} FOLDER")
    if missing := [name for name in names if name not in shards.names]:
        raise ValueError(f"train: the shards in {where} must have the arrays {', '.join(names)}, got none named "
                         f"{', '.join(missing)} among {', '.join(shards.names)}; write them anew")
    return shards


def verify(task: ModuleType, config: Config) -> None:
    """Reads the shards of all splits once, before any time is spent on training.

    Raises:
        ValueError: as `opened`, a checksum is wrong, or a batch is larger than the training data.
        FileNotFoundError: as `opened`.
    """
    found = [task.shards(config, split) for split in SPLITS]
    most, where = len(found[0]), found[0].folder
    if config["batch_size"] > most:
        raise ValueError(f"train: {flag('batch_size')} must be at most the {most} graphs in {where}, got "
                         f"{config['batch_size']}; pass {flag('batch_size')} {most} or less")
    for shards in found:
        shards.verify()


def write(name: str, task: ModuleType, config: Config, folder: Path, shard_size: int) -> Iterator[tuple[str, str]]:
    """Writes all splits; gives each one's name and what it holds once it is there.

    Raises:
        FileExistsError: one of them is there.
        ValueError, OSError: as `write_shards`.
    """
    for split in SPLITS:
        if (folder / split / MANIFEST).exists():
            raise FileExistsError(f"data: {flag('shards')} must be a folder without shards, got {folder / split} with "
                                  f"{MANIFEST}; remove it or name another")
    for split in SPLITS:
        graphs = task.parts(config, split)
        first = next(graphs)
        about = {"task": name, "settings": task.written(config), "source": getattr(first, "source", name)}
        yield split, repr(write_shards(folder / split, chain([first], graphs), shard_size=shard_size, about=about))
