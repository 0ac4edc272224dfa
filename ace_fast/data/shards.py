"""Graphs on disk for data sets larger than memory: flat arrays and offsets in shards, with checksums."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batching import FlatDataset
from .checks import as_integer

FORMAT = 1
MANIFEST = "shards.json"
STRUCTURE = ("node_offsets", "edge_index", "edge_offsets")  # files of every shard, beside the arrays
PARTS = ("node", "edge", "graph")


def concatenate(parts: Sequence[FlatDataset]) -> FlatDataset:
    """The graphs of all parts, one after another.

    Raises:
        ValueError: no parts, or parts whose arrays differ in name, dtype or the shape of a row.
    """
    if not parts:
        raise ValueError("concatenate: parts must be data sets, got none")
    first = layout(parts[0])
    for k, part in enumerate(parts):
        if layout(part) != first:
            raise ValueError(f"concatenate: part {k} must have the arrays of part 0, {_words(first)}, got "
                             f"{_words(layout(part))}")
    arrays = {kind: {name: torch.cat([getattr(p, kind)[name] for p in parts]) for name in getattr(parts[0], kind)}
              for kind in PARTS}
    return FlatDataset(arrays["node"], _joined([p.node_offsets for p in parts]),
                       torch.cat([p.edge_index for p in parts], 1), _joined([p.edge_offsets for p in parts]),
                       arrays["edge"], arrays["graph"], False, all(p.symmetric for p in parts))


def layout(data: FlatDataset) -> dict[str, tuple[str, str, list[int]]]:
    """name -> (part, dtype, shape of a row) of every array, and of edge_index."""
    found = {name: (kind, _dtype(x), list(x.shape[1:])) for kind in PARTS for name, x in getattr(data, kind).items()}
    return found | {"edge_index": ("edge", _dtype(data.edge_index), [2])}


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _words(arrays: Mapping[str, tuple]) -> str:
    return ", ".join(f"{name} {dtype} {row}" for name, (_, dtype, row) in arrays.items())


def _joined(offsets: Sequence[Tensor]) -> Tensor:
    """Offsets [G + 1] of segments one after another, from those of each part."""
    return torch.cat([offsets[0].new_zeros(1), *(x.diff() for x in offsets)]).cumsum(0)


def write_shards(folder: str | os.PathLike[str], graphs: FlatDataset | Iterable[FlatDataset], *,
                 shard_size: int = 16_384, about: Mapping[str, Any] | None = None) -> ShardedDataset:
    """Writes graphs as shards, from a data set or a stream of them, and opens what was written.

    A shard is one file of raw numbers an array (little-endian, rows one after another); `shards.json`, written last and
    atomically, says what is in them. A folder without it is not a data set, and is written over.

    Args:
        folder: made if it is missing; one that holds shards is refused.
        graphs: all arrays alike; of a stream no more than two shards and one of its parts are in memory.
        shard_size: graphs a shard; the last has the rest.
        about: what the graphs are, as JSON; kept with them.

    Raises:
        FileExistsError: the folder holds shards.
        ValueError: no graphs, or parts of the stream with different arrays.
        OSError: the disk is full, or the folder cannot be written.

    Example:
        >>> data = FlatDataset({"x": torch.arange(6.0)}, torch.arange(7))
        >>> write_shards(tmp_path, data, shard_size=4)  # doctest: +SKIP
        ShardedDataset(6 graphs in 2 shards: x)
    """
    folder, shard_size = Path(folder), as_integer("write_shards", "shard_size", shard_size, 1)
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"write_shards: {folder} must not hold shards, got {MANIFEST}; remove it or name another")
    folder.mkdir(parents=True, exist_ok=True)
    shards, first = [], None
    for shard in _of_size([graphs] if isinstance(graphs, FlatDataset) else graphs, shard_size):
        if first is None:
            first = layout(shard), shard.symmetric
            _check_dtypes(first[0])
        if (layout(shard), shard.symmetric) != first:
            raise ValueError(f"write_shards: all graphs must have the arrays {_words(first[0])}, symmetric={first[1]}, "
                             f"got {_words(layout(shard))}, symmetric={shard.symmetric} in shard {len(shards)}")
        shards.append(_write_shard(folder, len(shards), shard))
    if first is None:
        raise ValueError("write_shards: graphs must hold at least one graph, got none")
    arrays = {name: {"part": part, "dtype": dtype, "row": row} for name, (part, dtype, row) in first[0].items()}
    _write(folder / MANIFEST, [json.dumps({"format": FORMAT, "symmetric": first[1], "arrays": arrays,
                                           "shards": shards, "about": dict(about or {})}).encode()])
    return ShardedDataset(folder)


def _check_dtypes(arrays: Mapping[str, tuple]) -> None:
    for name, (_, dtype, _) in arrays.items():
        if dtype not in np.sctypeDict:
            raise ValueError(f"write_shards: {name} must have a dtype of numpy's, got {dtype}; cast it")


def _of_size(parts: Iterable[FlatDataset], size: int) -> Iterator[FlatDataset]:
    """The graphs of a stream in data sets of `size` graphs, the last with the rest."""
    held: list[FlatDataset] = []
    for part in parts:
        held.append(part)
        while sum(map(len, held)) >= size:
            data = held[0] if len(held) == 1 else concatenate(held)
            yield data if len(data) == size else data.subset(torch.arange(size))
            held = [data.subset(torch.arange(size, len(data)))] if len(data) > size else []
    if sum(map(len, held)):
        yield concatenate(held)


def _write_shard(folder: Path, number: int, data: FlatDataset) -> dict[str, Any]:
    """Its files, and what the manifest says of it."""
    tensors = {name: x for kind in PARTS for name, x in getattr(data, kind).items()}
    tensors |= {name: getattr(data, name) for name in STRUCTURE}
    files = {}
    for name, tensor in tensors.items():
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        _write(folder / file_name(number, name), [raw])
        files[name] = {"bytes": raw.nbytes, "crc32": zlib.crc32(raw)}
    return {"graphs": len(data), "nodes": data.num_nodes, "edges": data.edge_index.shape[1], "files": files}


def file_name(number: int, name: str) -> str:
    """Of one array of one shard."""
    return f"{number:06d}-{name}.bin"


def _write(path: Path, chunks: Iterable[Any]) -> None:
    """A file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class ShardedDataset:
    """Graphs that `write_shards` wrote: opened in no time, mapped or read shard by shard.

    Args:
        folder: that of `write_shards`.

    Attributes:
        counts: [S], graphs of each shard.
        names: of the arrays.
        about: what `write_shards` was told of them.
        symmetric: what is known of the edges, see `FlatDataset`.

    Raises:
        FileNotFoundError: no shards there, or a file is missing.
        ValueError: shards of another version, a damaged manifest, a file that is too short or too long.

    Opening looks at the sizes of all files; `read` compares their checksums too.

    Example:
        >>> data = ShardedDataset("qm9-shards")  # doctest: +SKIP
        >>> data.shard(0).batch([0, 5, 3])  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        found = _manifest(self.folder)
        try:
            self.symmetric, self.about = bool(found["symmetric"]), dict(found.get("about", {}))
            self._arrays = {name: (a["part"], np.dtype(a["dtype"]), tuple(a["row"]))
                            for name, a in found["arrays"].items()}
            self._shards = [{**s, "files": dict(s["files"])} for s in found["shards"]]
            self.counts = [int(s["graphs"]) for s in self._shards]
            self._check_sizes()
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"ShardedDataset: {self.folder / MANIFEST} is damaged ({type(error).__name__}: {error}); "
                             "write the shards anew") from error

    def _check_sizes(self) -> None:
        for number in range(len(self._shards)):
            for name, (dtype, shape) in self._files(number).items():
                path, expected = self.folder / file_name(number, name), dtype.itemsize * math.prod(shape)
                if expected != self._shards[number]["files"][name]["bytes"]:
                    raise KeyError(f"bytes of {name} in shard {number}")
                if not path.exists():
                    raise FileNotFoundError(f"ShardedDataset: {path} is missing; write the shards anew")
                if path.stat().st_size != expected:
                    raise ValueError(f"ShardedDataset: {path} must have {expected} bytes, got {path.stat().st_size}; "
                                     "it is truncated or of other shards: write them anew")

    def _files(self, number: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """name -> (dtype, shape) of every file of a shard."""
        shard, long = self._shards[number], np.dtype(np.int64)
        rows = {"node": shard["nodes"], "edge": shard["edges"], "graph": shard["graphs"]}
        found = {name: (dtype, (rows[part], *row)) for name, (part, dtype, row) in self._arrays.items()}
        found["edge_index"] = found["edge_index"][0], (2, shard["edges"])
        return found | dict.fromkeys(("node_offsets", "edge_offsets"), (long, (shard["graphs"] + 1,)))

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def num_shards(self) -> int:
        return len(self.counts)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in self._arrays if name != "edge_index")

    def __repr__(self) -> str:
        return f"ShardedDataset({len(self)} graphs in {self.num_shards} shards: {', '.join(self.names)})"

    def shard(self, number: int) -> FlatDataset:
        """Shard `number`, memory-mapped (copy on write): pages come from the file as they are touched."""
        def mapped(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Tensor:
            if not math.prod(shape):
                return torch.from_numpy(np.zeros(shape, dtype))
            return torch.from_numpy(np.memmap(self.folder / file_name(number, name), dtype, "c", shape=shape))

        return self._dataset({name: mapped(name, *x) for name, x in self._files(self._number(number)).items()})

    def read(self, numbers: Sequence[int]) -> FlatDataset:
        """The graphs of some shards in memory, one shard after another; each file is compared with its checksum.

        Raises:
            ValueError: a checksum is wrong; the message names the file.
        """
        files = [self._files(self._number(number)) for number in numbers]
        found = {}
        for name, (dtype, shape) in files[0].items():
            across = int(name == "edge_index")  # the dimension along which shards follow each other
            ends = np.cumsum([0, *(f[name][1][across] for f in files)])
            whole = np.empty((*shape[:across], ends[-1], *shape[across + 1:]), dtype)
            for number, start, stop in zip(numbers, ends[:-1], ends[1:], strict=True):
                self._fill([row[start:stop] for row in (whole if across else [whole])], number, name)
            found[name] = torch.from_numpy(whole)
        for name in ("node_offsets", "edge_offsets"):
            found[name] = _joined(found[name].split([f[name][1][0] for f in files]))
        return self._dataset(found)

    def _fill(self, parts: list[np.ndarray], number: int, name: str) -> None:
        """Contiguous arrays from a file, one after another."""
        path, crc, complete = self.folder / file_name(number, name), 0, True
        with open(path, "rb", buffering=0) as file:
            for part in parts:
                raw, done = part.reshape(-1).view(np.uint8), 0
                while done < len(raw) and (got := file.readinto(raw[done:])):
                    done += got
                complete &= done == len(raw)
                crc = zlib.crc32(raw, crc)
        if not complete or crc != self._shards[number]["files"][name]["crc32"]:
            raise ValueError(f"ShardedDataset: {path} must have the checksum it was written with, got another; the "
                             "file is damaged: write the shards anew")

    def _dataset(self, found: dict[str, Tensor]) -> FlatDataset:
        parts = {kind: {n: found[n] for n, (part, *_) in self._arrays.items() if part == kind and n != "edge_index"}
                 for kind in PARTS}
        return FlatDataset(parts["node"], found["node_offsets"], found["edge_index"], found["edge_offsets"],
                           parts["edge"], parts["graph"], False, self.symmetric)

    def _number(self, number: int) -> int:
        if not 0 <= number < self.num_shards:
            raise ValueError(f"ShardedDataset: the shard must be 0 .. {self.num_shards - 1}, got {number}")
        return number

    def verify(self) -> None:
        """Compares every file with its checksum, one shard in memory at a time.

        Raises:
            ValueError: a checksum is wrong.
        """
        for number in range(self.num_shards):
            self.read([number])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"ShardedDataset: {folder} must hold {MANIFEST}, got none; write_shards writes it "
                                "last: its writing was interrupted, or it is another folder") from None
    except ValueError as error:
        raise ValueError(f"ShardedDataset: {path} is damaged ({error}); write the shards anew") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"ShardedDataset: {path} must be of version {FORMAT}, got {version}; write the shards anew")
    return found
