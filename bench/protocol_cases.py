"""The peers' protocols: which products, on how many rows, in which directions.

Irreps are those of the publications, as far as they give them. `channelwise` is the rule by which MACE, NequIP,
SevenNet and nequix write their "uvu" products down: every path of in1 x in2 whose output the model keeps, one output
slice a path. Where a source lists the outputs (SevenNet's 34, nequix' 23), the rule gives the same list. NequIP's
4_32_l networks (F1) are reconstructed: 4 layers of 32 channels with both parities to degree l reach, from 32x0e, all
2 (l + 1) irreps by the last layer, whose convolution multiplies them with the harmonics to degree l (68 paths at l 3).
"""

from typing import NamedTuple

from e3nn import o3

FORWARD, BOTH, DOUBLE = "forward", "forward+backward", "double_backward"
ALL = (FORWARD, BOTH, DOUBLE)
NEIGHBOURS = 64  # of each node in F1


class Problem(NamedTuple):
    """One product as e3nn's constructor takes it."""

    name: str
    irreps: tuple[o3.Irreps, o3.Irreps, o3.Irreps]
    instructions: tuple[tuple, ...]
    shared: bool  # one weight for all rows, instead of one a row
    convolution: bool = False  # gather at the sources, multiply, sum at the targets


class Protocol(NamedTuple):
    """Problems of one publication; rows are samples, in a convolution edges."""

    source: str
    problems: tuple[Problem, ...]
    cpu_rows: tuple[int, ...]
    gpu_rows: tuple[int, ...]
    directions: tuple[str, ...] = ALL


def fully_connected(name: str, in1: str, in2: str, out: str, shared: bool = True) -> Problem:
    """All paths, "uvw"."""
    irreps = a, b, c = tuple(o3.Irreps(i) for i in (in1, in2, out))
    instructions = tuple((i, j, k, "uvw", True) for i, (_, x) in enumerate(a) for j, (_, y) in enumerate(b)
                         for k, (_, z) in enumerate(c) if z in x * y)
    return Problem(name, irreps, instructions, shared)


def channelwise(name: str, in1: str, in2: str, out: str, convolution: bool = False) -> Problem:
    """All paths to the irreps in `out`, "uvu" with weights a row, one sorted output slice a path."""
    a, b, kept = (o3.Irreps(i) for i in (in1, in2, out))
    paths = [(i, j, (mul, z)) for i, (mul, x) in enumerate(a) for j, (_, y) in enumerate(b) for z in x * y if z in kept]
    slices, place, _ = o3.Irreps([p[2] for p in paths]).sort()
    instructions = sorted(((i, j, place[n], "uvu", True) for n, (i, j, _) in enumerate(paths)), key=lambda ins: ins[2])
    return Problem(name, (a, b, slices), tuple(instructions), False, convolution)


def single(degrees: tuple[int, int, int], channels: int = 128) -> Problem:
    """One "uvu" path of even irreps."""
    l1, l2, l3 = degrees
    irreps = (o3.Irreps(f"{channels}x{l1}e"), o3.Irreps(f"1x{l2}e"), o3.Irreps(f"{channels}x{l3}e"))
    return Problem(f"{l1}e_{l2}e_{l3}e", irreps, ((0, 0, 0, "uvu", True),), False)


def _both(channels: int, degree: int) -> str:
    return "+".join(f"{channels}x{l}{p}" for l in range(degree + 1) for p in "oe")


def _nequip(name: str, channels: int, degree: int, convolution: bool = False) -> Problem:
    features = _both(channels, degree)
    return channelwise(name, features, str(o3.Irreps.spherical_harmonics(degree)), features, convolution)


_SH3, _SH3_EVEN = "0e+1o+2e+3o", "0e+1e+2e+3e"
_MACE = (
    channelwise("mace-large", "128x0e+128x1o+128x2e", _SH3, "128x0e+128x1o+128x2e+128x3o"),
    channelwise("mace-medium", "128x0e+128x1o", _SH3, "128x0e+128x1o+128x2e"),
)
_NEQUIP = (
    _nequip("nequip-lips", 32, 2), _nequip("nequip-aspirin", 64, 1), _nequip("nequip-toluene", 64, 2),
    _nequip("nequip-benzene", 64, 3), _nequip("nequip-water", 32, 1),
)
_TETRIS = (
    fully_connected("tetris-poly-1", _SH3, _SH3, "64x0e+24x1e+24x1o+16x2e+16x2o"),
    fully_connected("tetris-poly-2", "64x0e+24x1e+24x1o+16x2e+16x2o", "0e+1o+2e", "0o+6x0e"),
)
_DIFFDOCK = tuple(
    fully_connected(f"diffdock-l{l}", "10x1o+10x1e+48x0e+48x0o", sh, "10x1o+10x1e+48x0e+48x0o", shared=False)
    for l, sh in ((1, "0e+1o"), (2, "0e+1o+2e"))
)
_MAIN, _MAIN_EVEN = "128x0e+64x1o+32x2e+32x3o", "128x0e+64x1e+32x2e+32x3e"
_NEQUIX = (
    channelwise("nequix-first", "89x0e", _SH3, "0e+1o+2e+3o"), channelwise("nequix-main", _MAIN, _SH3, _MAIN),
    channelwise("nequix-last", _MAIN, _SH3, "0e"),
)
_SEVENNET = (
    channelwise("sevennet-l3i5-first", "128x0e", _SH3_EVEN, "0e+1e+2e+3e"),
    channelwise("sevennet-l3i5-main", _MAIN_EVEN, _SH3_EVEN, _MAIN_EVEN),
    channelwise("sevennet-l3i5-last", _MAIN_EVEN, _SH3_EVEN, "0e"),
)
_E3TOOLS = (
    fully_connected("e3tools-conv", "64x0e+16x1o", "0e+1o", "80x0e+16x1o", shared=False),
    fully_connected("e3tools-transformer", "64x0e+16x1o", "0e+1o", "64x0e+16x1o"),
)
_DEGREES = ((1, 1, 1), (2, 1, 2), (3, 3, 3), (5, 5, 3), (5, 3, 5), (6, 3, 6), (7, 4, 7), (7, 7, 7))
_SQUARE = "128x0e+128x1e+128x2e"

PROTOCOLS = {
    "O1": Protocol("OpenEquivariance, channel-wise products", _MACE + _NEQUIP, (5_000,), (50_000,)),
    "O2": Protocol("OpenEquivariance, fully connected products", _TETRIS + _DIFFDOCK, (5_000,), (50_000,)),
    "O3": Protocol("OpenEquivariance, roofline of single paths", tuple(map(single, _DEGREES)), (5_000,), (200_000,),
                   (FORWARD, BOTH)),
    "O5": Protocol("OpenEquivariance, double backward", _DIFFDOCK + _MACE + _NEQUIP, (2_000,), (20_000,), (DOUBLE,)),
    "O8": Protocol("OpenEquivariance, nequix, SevenNet-l3i5 and e3tools", _E3TOOLS + _NEQUIX + _SEVENNET, (5_000,),
                   (50_000,)),
    "F1": Protocol("FlashTP, convolutions of NequIP 4_32_l",
                   tuple(_nequip(f"4_32_{l}", 32, l, True) for l in (3, 1, 2, 4, 5)), (1_024,), (16_384, 32_768)),
    "J1": Protocol("e3nn-jax, fully connected square",
                   (fully_connected("square-128", _SQUARE, _SQUARE, _SQUARE),), (64,), (64,), (FORWARD, BOTH)),
}


def cases(protocol: str, device: str) -> list[str]:
    """NAME@ROWS for every problem and size on `device`, the first size of each problem first."""
    found = PROTOCOLS[protocol]
    sizes = found.gpu_rows if device == "cuda" else found.cpu_rows
    return [f"{problem.name}@{rows}" for rows in sizes for problem in found.problems]


def find(protocol: str, case: str, device: str) -> tuple[Problem, int]:
    """NAME or NAME@ROWS -> problem and rows.

    Raises:
        ValueError: an unknown protocol or problem, or rows that are not a positive number.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"bench: protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    name, _, number = case.partition("@")
    found = PROTOCOLS[protocol]
    problem = next((p for p in found.problems if p.name == name), None)
    rows = number or str((found.gpu_rows if device == "cuda" else found.cpu_rows)[0])
    if problem is None or not rows.isdigit() or int(rows) < 1:
        raise ValueError(f"{protocol}: the case must be NAME or NAME@ROWS with a name of "
                         f"{', '.join(p.name for p in found.problems)}, got {case!r}")
    return problem, int(rows)
