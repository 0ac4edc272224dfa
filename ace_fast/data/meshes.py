"""Triangle meshes: reading .off files, and points drawn uniformly from their surfaces."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from .checks import as_integer


def read_off(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles of an ASCII .off file; polygons are split into fans, colours after a face are ignored.

    Comments, blank lines and ModelNet's "OFF490 518 0" (a header without its newline) are understood.

    Returns:
        vertices: [V, 3] float64.
        faces: [T, 3] int64.

    Raises:
        ValueError: not such a file, or one whose counts, vertices or faces do not fit; the message names the file and
            the line.
        OSError: it cannot be read.

    Example:
        >>> _ = Path("/tmp/square.off").write_text("OFF\\n4 1 0\\n0 0 0\\n1 0 0\\n1 1 0\\n0 1 0\\n4 0 1 2 3\\n")
        >>> read_off("/tmp/square.off")[1].tolist()
        [[0, 1, 2], [0, 2, 3]]
    """
    path = Path(path)
    rows = _Rows(path, _without_header(path, path.read_bytes()))
    V, F = _counts(rows)
    return _vertices(rows, V), _faces(rows, V, F)


class _Rows:
    """All numbers of a text, and for each line that has any where they begin, how many, and the line's number."""

    def __init__(self, path: Path, text: bytes) -> None:
        self.path = path
        byte = np.frombuffer(text, dtype=np.uint8)
        space = np.ones(len(byte) + 1, dtype=bool)
        space[1:] = (byte == 32) | ((byte >= 9) & (byte <= 13))  # what bytes.split() splits at
        starts = np.flatnonzero(space[:-1] & ~space[1:])
        ends = np.searchsorted(starts, np.flatnonzero(byte == 10))
        bounds = np.concatenate([[0], ends, [len(starts)]])
        filled = np.flatnonzero(np.diff(bounds))
        self.first, self.count, self.line = bounds[filled], np.diff(bounds)[filled], filled + 1
        self.values = self._parse(text.split())

    def _parse(self, tokens: list[bytes]) -> np.ndarray:
        try:
            return np.fromiter(map(float, tokens), dtype=np.float64, count=len(tokens))
        except ValueError:
            for k, token in enumerate(tokens):
                try:
                    float(token)
                except ValueError:
                    row = int(np.searchsorted(self.first, k, side="right")) - 1
                    self.fail(row, f"every word must be a number, got {_shown(token)}")
            raise

    def __len__(self) -> int:
        return len(self.first)

    def fail(self, row: int, text: str) -> NoReturn:
        raise ValueError(
            f"read_off: {self.path}, line {self.line[row]}: {text}; repair the file or leave it out"
        )


def _shown(text: bytes) -> str:
    return repr(text[:20].decode("ascii", "replace"))


def _without_header(path: Path, data: bytes) -> bytes:
    """The text after the word OFF, with comments blanked and the lines where they were."""
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"#" in text:
        text = re.sub(rb"#[^\n]*", b"", text)
    header = re.match(rb"\s*OFF", text)
    binary = header and re.match(rb"\s*BINARY", text[header.end() :])
    if not header or binary:
        found = b"OFF BINARY" if binary else b"".join(text.split(maxsplit=1)[:1])
        raise ValueError(
            f"read_off: {path} must begin with OFF and be ASCII, got {_shown(found)}; convert it to a plain .off file"
        )
    return text[: header.end() - 3] + b"   " + text[header.end() :]


def _counts(rows: _Rows) -> tuple[int, int]:
    """Numbers of vertices and faces, which take a line each after the first."""
    if len(rows) == 0:
        raise ValueError(f"read_off: {rows.path} must have a line with its counts, got nothing after OFF; get it anew")
    given = rows.values[: rows.count[0]]
    if len(given) not in (2, 3) or not ((given >= 0) & (given == np.rint(given)) & (given < 2**53)).all():
        rows.fail(0, f"the counts must be 'vertices faces edges', got {' '.join(f'{x:g}' for x in given)!r}")
    V, F = int(given[0]), int(given[1])
    if len(rows) - 1 != V + F:
        rows.fail(
            0,
            f"{V} vertices and {F} faces must have {V + F} lines, got {len(rows) - 1} (a truncated file or a wrong "
            "count)",
        )
    return V, F


def _vertices(rows: _Rows, V: int) -> np.ndarray:
    wrong = rows.count[1 : V + 1] != 3
    if wrong.any():
        row = 1 + int(wrong.argmax())
        rows.fail(row, f"a vertex must be 3 numbers, got {rows.count[row]}")
    start = rows.count[0]
    vertices = rows.values[start : start + 3 * V].reshape(V, 3)
    wrong = ~np.isfinite(vertices).all(axis=1)
    if wrong.any():
        rows.fail(1 + int(wrong.argmax()), "a vertex must be finite, got NaN or infinity")
    return vertices.copy()  # without the rest of the file


def _faces(rows: _Rows, V: int, F: int) -> np.ndarray:
    first, count = rows.first[V + 1 :], rows.count[V + 1 :]  # [F]
    size = rows.values[first]
    wrong = (size != np.rint(size)) | (size < 3)
    if wrong.any():
        face = int(wrong.argmax())
        rows.fail(V + 1 + face, f"a face must have at least 3 vertices, got {size[face]:g}")
    wrong = count < size + 1
    if wrong.any():
        face = int(wrong.argmax())
        rows.fail(V + 1 + face, f"a face of {size[face]:g} vertices must list all, got {count[face] - 1}")
    triangles = size.astype(np.int64) - 2  # of each face's fan
    face = np.repeat(np.arange(F), triangles)
    step = np.arange(len(face)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    anchor = first[face] + 1
    corners = rows.values[np.stack([anchor, anchor + step + 1, anchor + step + 2], axis=1)]  # [T, 3]
    wrong = ~((corners >= 0) & (corners < V) & (corners == np.rint(corners)))
    if wrong.any():
        k, corner = divmod(int(wrong.argmax()), 3)
        rows.fail(
            V + 1 + int(face[k]), f"a face must consist of vertices in 0 .. {V - 1}, got {corners[k, corner]:g}"
        )
    return corners.astype(np.int64)


def sample(
    vertices: np.ndarray,  # [..., V, 3]
    faces: np.ndarray,  # [T, 3]
    n: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """[..., n, 3] points, uniform over the surface: a triangle by its area, then a place in it.

    Args:
        vertices: [..., V, 3]; several meshes may share their faces.
        faces: [T, 3] integers in 0 .. V - 1.
        n: points per mesh.
        generator: of numpy.

    Raises:
        ValueError: no faces, or a surface whose area is zero or not finite.

    Example:
        >>> corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
        >>> sample(corners, np.array([[0, 1, 2]]), 5, np.random.default_rng(0)).shape
        (5, 3)
    """
    as_integer("sample", "n", n, 1)
    lead, V = vertices.shape[:-2], vertices.shape[-2]
    x = np.asarray(vertices, dtype=np.float64).reshape(-1, V, 3)
    if len(faces) == 0:
        raise ValueError("sample: a mesh must have faces, got none; leave it out")
    a, b, c = (x[:, faces[:, corner]] for corner in range(3))  # [S, T, 3]
    # An overflow or a NaN shows in the total, which is refused.
    with np.errstate(over="ignore", invalid="ignore"):
        area = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
        total = np.cumsum(area, axis=-1)
    bad = ~((total[:, -1] > 0) & np.isfinite(total[:, -1]))
    if bad.any():
        which = f" in mesh {int(bad.argmax())}" if lead else ""
        raise ValueError(
            f"sample: the area of the faces must be positive and finite, got {total[bad, -1][0]:g}{which}; repair the "
            "mesh or leave it out"
        )
    total /= total[:, -1:]
    draw = generator.random((len(x), n, 3))
    # To the right, so that a face without area is never taken.
    chosen = torch.searchsorted(torch.from_numpy(total), torch.from_numpy(draw[..., 0].copy()), right=True).numpy()
    corner = x[np.arange(len(x))[:, None, None], faces[chosen]]  # [S, n, 3, xyz]
    weight = draw[..., 1:]
    weight = np.where(weight.sum(-1, keepdims=True) > 1, 1 - weight, weight)  # the parallelogram folded to a triangle
    origin = corner[..., 0, :]
    points = origin + ((corner[..., 1:, :] - origin[..., None, :]) * weight[..., None]).sum(-2)
    return points.reshape(*lead, n, 3)
