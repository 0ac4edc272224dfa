"""Trees of tensors and plain values as safetensors files with a checksum.

A file is written beside its place, flushed to the disk and renamed, so that a kill or a power failure leaves the old
file or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

_REMEDY = "use the run's other checkpoint (--checkpoint best or last), or train again with another --out"


def write_atomic(path: Path, content: bytes | str, who: str = "train") -> None:
    """Writes a temporary file beside `path`, flushes it and renames it; an error names the command `who`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        # OSError picks its subclass by the number, so the caller still gets a PermissionError.
        raise OSError(error.errno, f"{who}: {path} cannot be written ({error.strerror}); {_remedy(error)}") from error
    finally:
        if os.access(path.parent, os.W_OK):
            temporary.unlink(missing_ok=True)


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "what was there before is whole: make room and go on with --resume"
    return "pass --out a folder you may write to"


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors moved to `tensors` under the path that leads to them."""
    if isinstance(value, Tensor):
        # A copy of its own: safetensors refuses tensors that share memory.
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(part, f"{name}/{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"checkpoint: {name} must be tensors and plain values, got {type(value).__name__}")


def _unpack(packed: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {key: _unpack(part, tensors) for key, part in value}
    if kind in ("tuple", "list"):
        parts = [_unpack(part, tensors) for part in value]
        return tuple(parts) if kind == "tuple" else parts
    return value


def save_tree(path: Path, tree: Mapping[str, Any]) -> None:
    """Writes nested dicts, lists and tuples of tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    packed = _pack(tree, "", tensors)
    _write(path, tensors, "tree", packed)


def load_tree(path: Path) -> dict[str, Any]:
    """What `save_tree` wrote, on the CPU."""
    tensors, kind, packed = _read(path)
    if kind != "tree":
        raise ValueError(f"checkpoint: {path} must hold a training state, got other tensors; use the run's own file")
    return _unpack(packed, tensors)


def save_weights(path: Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    """The state_dict of `model` under its own names; `about` goes into the header as JSON."""
    state = {name: x.detach().cpu().clone().contiguous() for name, x in model.state_dict().items()}
    _write(path, state, "about", dict(about))


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Loads `path` into `model` and returns its header.

    Raises:
        ValueError: the names or shapes are those of another model, a weight is not finite, or the file is damaged.
    """
    tensors, _, about = _read(path)
    load_into(model, tensors, path)
    return about


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads tensors that were read from `path`; a model that they do not fit is left as it was."""
    mine = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    theirs = {name: tuple(x.shape) for name, x in tensors.items()}
    differences = [f"{name} is missing" for name in mine if name not in theirs]
    differences += [f"{name} is not in this model" for name in theirs if name not in mine]
    differences += [
        f"{name} is {list(theirs[name])} and not {list(mine[name])}"
        for name in mine
        if name in theirs and mine[name] != theirs[name]
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"checkpoint: {path} must hold the weights of this model, got those of another: "
            f"{'; '.join(differences[:3])}{more}; build the model with the config.json that lies beside the checkpoint"
        )
    bad = [name for name, x in tensors.items() if not _finite(x)]
    if bad:
        raise ValueError(f"checkpoint: {path} must hold finite weights, got NaN or infinity in {bad[0]}; {_REMEDY}")
    model.load_state_dict(tensors)


def _checksum(tensors: Mapping[str, Tensor], kind: str, header: str) -> str:
    """SHA-256 of all that a file says: names, types, shapes and bytes of its tensors, and its header."""
    digest = hashlib.sha256(json.dumps([kind, header]).encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _write(path: Path, tensors: dict[str, Tensor], kind: str, header: Any) -> None:
    # One entry, as safetensors writes several in no fixed order: equal content gives equal files.
    text = json.dumps(header)
    write_atomic(path, save(tensors, {kind: f"{_checksum(tensors, kind, text)} {text}"}))


def _read(path: Path) -> tuple[dict[str, Tensor], str, Any]:
    """Tensors, kind and header of a file, its checksum verified."""
    if not path.exists():
        raise FileNotFoundError(f"checkpoint: there is no file {path}; name a run folder with a finished evaluation")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"checkpoint: {path} must be a whole safetensors file, got a damaged one ({error}); {_REMEDY}"
        ) from error
    kind, entry = next(iter(metadata.items()), ("", ""))
    stored, _, text = entry.partition(" ")
    found = _checksum(tensors, kind, text)
    if stored != found:
        raise ValueError(
            f"checkpoint: {path} must hold what its checksum says ({stored[:12] or 'none'}), got {found[:12]}: the "
            f"file is damaged, or another program wrote it; {_REMEDY}"
        )
    return tensors, kind, json.loads(text)


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter and buffer is finite; one synchronisation."""
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
    return bool(torch.stack([x.isfinite().all() for x in tensors]).all())


def _finite(x: Tensor) -> bool:
    return not x.is_floating_point() or bool(x.isfinite().all())
