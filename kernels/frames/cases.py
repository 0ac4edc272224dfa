"""Inputs of frames, frame_concat and its gradient."""

import torch
from e3nn import o3

from ..cases import DECADES, Axis, Case
from . import reference
from .op import frame_channels, frame_concat_bwd, frame_concat_op, frames_op


def randn(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _ptr(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def _axes(name: str, note: str, sizes: list[int], weighted: bool = False, seeded: bool = False,
          centred: bool = True) -> Case:
    """Clouds three times as wide along each axis as along the one before: their axes do not hang on rounding."""
    def make(g: torch.Generator) -> dict:
        turn = torch.linalg.qr(randn(g, len(sizes), 3, 3))[0]
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        local = randn(g, len(owner), 3) * torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)
        pos = torch.einsum("nij,nj->ni", turn[owner], local) + 5 * randn(g, len(sizes), 3)[owner]
        weight = torch.rand(len(owner), generator=g, dtype=torch.float64) + 0.5 if weighted else None
        seed = torch.tensor([11]) if seeded else None
        return {"pos": pos, "weight": weight, "ptr": _ptr(sizes), "seed": seed, "centred": centred, "tolerance": 1e-5}

    return Case(name, frames_op, reference.forward, make, (), note)


def _vectors(g: torch.Generator, sets: int, count: int, degenerate: bool) -> torch.Tensor:
    """[B, n, 3]; degenerate: by turns of rank 0, 1, 2 and whatever it is."""
    vectors = randn(g, sets, count, 3)
    if degenerate:
        vectors[::4] = 0
        vectors[1::4] = vectors[1::4, :1] * (1 + torch.arange(count, dtype=torch.float64)[:, None])
        vectors[2::4, 2:] = vectors[2::4, :1] - vectors[2::4, 1:2]
    return vectors


def _inputs(sizes, irreps, left, count, draws, improper, degenerate, needs):
    width = o3.Irreps(irreps).dim

    def make(g: torch.Generator) -> dict:
        sets, rows = len(sizes), sum(sizes)
        inputs = {"x": randn(g, rows, left)}
        if needs is not None:
            inputs = {"g": randn(g, draws, rows, width), "g_frames": randn(g, draws, sets, 3, 3)}
        inputs |= {"v": randn(g, sets, width), "vectors": _vectors(g, sets, count, degenerate), "ptr": _ptr(sizes),
                   "channels": frame_channels(irreps), "seed": torch.arange(3, 3 + draws), "improper": improper,
                   "tolerance": 1e-4}
        return inputs if needs is None else inputs | {"needs": needs}

    return make


def _pair(name: str, note: str, sizes: list[int], irreps: str, left: int = 3, count: int = 3, draws: int = 1,
          improper: bool = False, degenerate: bool = False, needs: tuple[bool, bool] = (True, True)) -> list[Case]:
    arguments = sizes, irreps, left, count, draws, improper, degenerate
    return [
        Case(name, frame_concat_op, reference.concat, _inputs(*arguments, None), ("x", "v", "vectors"), note),
        Case(name, frame_concat_bwd, reference.concat_backward, _inputs(*arguments, list(needs)),
             ("g", "g_frames", "v", "vectors"), note),
    ]


SMALL = [
    _axes("tiny", "two sets of four points", [4, 4]),
    _axes("odd", "weights, sets of 4 to 13 points", [13, 5, 7, 4, 11], weighted=True),
    _axes("both_branches", "a seed that nothing asks for; more sets than a block has lanes", [5, 9] * 19, seeded=True),
    _axes("about_origin", "not centred", [6, 4, 9], centred=False),
    _axes("long_sum", "one set of many points", [301]),
    _axes("empty", "no sets", []),
    *_pair("tiny", "a rotation of two vectors, vectors and scalars turned", [2, 1], "1x0e+1x1o", 1, 2),
    *_pair("odd", "elements of O(3), all degrees and parities", [5, 3, 7], "2x0e+1x0o+3x1o+1x1e+1x2e+1x2o+2x3o+1x3e", 5,
           3, 1, True),
    *_pair("both_branches", "ranks 0 to 3, three draws, more sets than a block has lanes", [1, 2, 3, 1] * 9 + [2],
           "1x1o+1x2e", 2, 3, 3, True, True),
    *_pair("degenerate", "ranks 0 to 3, rotations", [1, 2, 3, 1, 1, 2, 2, 1], "1x1o+1x2e", 2, 3, 2, False, True),
    *_pair("v_only", "nothing asks for the vectors", [3, 4], "1x1o+1x3o", 1, 4, needs=(True, False)),
    *_pair("vectors_only", "nothing asks for what is turned", [3, 4], "1x1o+1x3o", 1, 1, improper=True,
           needs=(False, True)),
    *_pair("long_sum", "one set of many rows", [301], "1x1o", 2),
    *_pair("isolated_node", "sets without rows", [0, 2, 0, 3, 0], "1x0e+1x1o"),
    *_pair("empty", "no sets", [], "1x1o"),
]
_QM9 = "8x0e+8x1o+8x2e"
LARGE = [
    _axes("nbody_100", "100 systems of 5 particles", [5] * 100),
    _axes("qm9_1024", "1024 molecules of 18 atoms", [18] * 1024),
    _axes("modelnet_32", "32 clouds of 1024 points", [1024] * 32),
    *_pair("nbody_100", "100 systems of 5 particles, 64 features, two vectors beside them", [5] * 100, "2x1o", 64),
    *_pair("qm9_1024", "1024 molecules of 18 atoms, 64 features, eight channels of degrees 0 to 2", [18] * 1024, _QM9,
           64, 3, 1, True),
    *_pair("qm9_1024_degree3", "1024 molecules, four channels of degree 3", [18] * 1024, "4x3o", 64),
]

SCALING = [
    Axis("points", DECADES, lambda n: _axes(f"points_{n}", "sets of ten points", [10] * (n // 10))),
    Axis("points", DECADES[:-1], lambda n: _pair(
        f"points_{n}", "sets of ten points, four features, two vectors", [10] * (n // 10), "2x1o", 4)[0]),
]
