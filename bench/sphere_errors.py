"""`python -m bench.sphere_errors`: how far layers on the sphere are from equivariant, by their grid.

Of degree 6, beside what EquiformerV3 reports (Liao et al. 2026): the error ||f(g x) - g f(x)|| / ||f(x)|| under
rotations, by the root mean square of the values on the sphere. Prints the table and puts it into docs/products.md.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from ace_fast import functional
from ace_fast.kernels.sphere_product import grids
from ace_fast.nn import S2MLP, S2Activation, SwiGLUS2
from ace_fast.report import marked
from ace_fast.symmetry import Group, generated, group, measure

PAGE = Path(__file__).resolve().parents[1] / "docs" / "products.md"
BEGIN, END = "<!-- measured: sphere_errors -->", "<!-- end of measured -->"
DEGREE, ROWS, DRAWS = 6, 40, 4
COLUMNS = ((0.1, torch.float32), (0.1, torch.float64), (0.3, torch.float64), (1.0, torch.float64))  # sizes of values
FIELD = o3.Irreps([(1, (n, (-1) ** n)) for n in range(DEGREE + 1)])
_ORTHONORMAL = math.sqrt(4 * math.pi) / (DEGREE + 1)  # makes values of unit variance of such coefficients
_ALONG = 11  # of turns about the axis of an edge: no multiple of the azimuths


class Orders(nn.Module):
    """The product of SwiGLU-S2 of fields with orders up to 2 alone, as attention has them in the frame of an edge."""

    def __init__(self, rings: int, azimuths: int):
        super().__init__()
        self.grid = functional.SphereGrid.of(grids.gauss(rings, azimuths), DEGREE)
        self.kept = (grids.orders(DEGREE) - DEGREE).abs() <= 2

    def forward(self, x1: Tensor, x2: Tensor, scalars: Tensor) -> Tensor:
        """x1, x2 [Z, d], scalars [Z, 1] -> [Z, d]."""
        gate = torch.sigmoid(scalars)
        return self.kept * functional.sphere_activation(x1 * self.kept, self.grid, x2 * self.kept, gate, act="none")


class Line(NamedTuple):
    """A line of the table."""

    name: str
    grid: str  # rings x azimuths
    published: str
    make: Callable[[], nn.Module]
    layouts: tuple[str | o3.Irreps, ...]
    scale: float = _ORTHONORMAL
    turns: Callable[[], Group] = lambda: group("SO(3)")


def about_the_axis() -> Group:
    """Rotations about the y axis, from which grids count their rings."""
    angle = torch.tensor(2 * math.pi / _ALONG, dtype=torch.float64)
    return generated(o3.matrix_y(angle)[None], f"turns about y by 1/{_ALONG}")


def _silu(rings: int, azimuths: int, published: str) -> Line:
    make = lambda: S2Activation(FIELD, nn.functional.silu, (rings, azimuths))  # noqa: E731
    return Line("`S2Activation`, SiLU", f"{rings} x {azimuths}", published, make, (FIELD,), 1.0)


def _orders(rings: int, azimuths: int, published: str) -> Line:
    return Line("its product, orders to 2, about the axis", f"{rings} x {azimuths}", published,
                lambda: Orders(rings, azimuths), (FIELD, FIELD, "scalar"), turns=about_the_axis)


def lines() -> list[Line]:
    """What is measured: SiLU, then what a grid makes exact."""
    gated = o3.Irreps([(2, ir) for _, ir in FIELD]), "scalar"
    return [
        _silu(14, 14, ""), _silu(18, 18, "3.4e-3"), _silu(32, 32, "2.0e-6"),
        Line("`S2MLP`, SiLU, its own grid", "13 x 25", "", lambda: S2MLP(FIELD, FIELD, 8, bias=False), (FIELD,)),
        Line("`SwiGLUS2`, exact grid", "10 x 19", "", lambda: SwiGLUS2(FIELD, merge=False), gated),
        Line("`SwiGLUS2`", "20 x 20", "1.2e-6", lambda: SwiGLUS2(FIELD, (20, 20), merge=False), gated),
        _orders(20, 8, "1.7e-6"), _orders(20, 6, "9.4e-2"),
    ]


def error(line: Line, size: float, dtype: torch.dtype) -> float:
    """The mean of some draws, each of a rotation for every row; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = line.make().to(dtype)
    shapes = [(1, 1.0) if layout == "scalar" else (layout.dim, size * line.scale) for layout in line.layouts]
    inputs = [(scale * torch.randn(ROWS, dim, generator=generator, dtype=torch.float64)).to(dtype)
              for dim, scale in shapes]
    with torch.no_grad():
        report = measure(layer, tuple(inputs), line.turns(), layouts=list(line.layouts), output=FIELD, draws=DRAWS,
                         graphs="samples")
    return report.relative


def table() -> str:
    """In Markdown, a line for each of `lines`."""
    sizes = [f"values of {size}, {str(dtype).removeprefix('torch.')}" for size, dtype in COLUMNS]
    found = ["| layer, L = 6 | grid | EquiformerV3 | " + " | ".join(sizes) + " |", "|---" * (3 + len(sizes)) + "|"]
    for line in lines():
        errors = [f"{error(line, size, dtype):.1e}" for size, dtype in COLUMNS]
        found.append(f"| {line.name} | {line.grid} | {line.published or '–'} | {' | '.join(errors)} |")
    return "\n".join(found)


def main() -> int:
    """Prints the table and writes it; 2 outside of a checkout."""
    if not PAGE.exists():
        print(f"sphere_errors: must run in a checkout, got an installation without {PAGE.name}; run it in a clone of "
              "the repository", file=sys.stderr)
        return 2
    shown = table()
    print(shown)
    PAGE.write_text(marked.replaced(PAGE.read_text(encoding="utf-8"), BEGIN, END, shown, PAGE), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
