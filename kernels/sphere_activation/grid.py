"""The tables that take coefficients to points of the sphere and back, as sphere_activation uses them."""

from math import isqrt

import torch
from torch import Tensor

from ..constant import Constant, plainly
from ..define import fail
from ..sphere_product import grids


def degree_of(components: int) -> int:
    """L of d = (L + 1)^2 components, -1 where d is no square."""
    root = isqrt(components)
    return root - 1 if root * root == components else -1


class SphereGrid:
    """Points on the sphere with the tables of both transforms.

    Args:
        into: [S, (L+1)^2], values at the points from coefficients of degrees 0..L in e3nn's order.
        back: [S, (L_out+1)^2], coefficients from values, weights of the quadrature and any constant included.
        ring: P where the points are rings of P azimuths 2 pi j / P, ring by ring, and both tables are products of a
            function of the ring and l, |m| with cos(m phi) for m >= 0, sin(|m| phi) for m < 0; 0 for other points.

    Raises:
        ValueError: tables that are no matrices of so many degrees, or rings that do not divide S.

    Tables are float64 and live outside a module's buffers, as those of `ProductTable`; `on(device)` moves them once.
    """

    def __init__(self, into: Tensor, back: Tensor, ring: int = 0):
        for name, table in (("into", into), ("back", back)):
            if table.dim() != 2 or degree_of(table.shape[1]) < 0:
                fail("SphereGrid", name, "[S, (L+1)^2]", list(table.shape))
        if into.shape[0] != back.shape[0]:
            fail("SphereGrid", "back", f"[{into.shape[0]}, (L+1)^2] like into", list(back.shape))
        if ring < 0 or (ring and into.shape[0] % ring):
            fail("SphereGrid", "ring", f"0 or a divisor of the {into.shape[0]} points", ring)
        self.ring, self.points = ring, into.shape[0]
        self.lmax, self.lmax_out = degree_of(into.shape[1]), degree_of(back.shape[1])
        with plainly():
            self._tables = tuple(Constant(t.detach().to("cpu", torch.float64, copy=True)) for t in (into, back))

    @classmethod
    def of(cls, grid: grids.Grid, lmax: int, lmax_out: int | None = None, scale: float = 1.0) -> "SphereGrid":
        """The tables of a quadrature (`grids.gauss`, `grids.exact`) for orthonormal harmonics, `back` times `scale`.

        Raises:
            ValueError: a negative degree.
        """
        back = grids.analysis(grid, lmax if lmax_out is None else lmax_out).T * scale
        return cls(grids.synthesis(grid, lmax), back, grid.ring_size)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(into, back) on `device`, float64."""
        into, back = self._tables
        return into.on(device), back.on(device)

    def __repr__(self) -> str:
        points = f"{self.points // self.ring} x {self.ring}" if self.ring else f"{self.points}"
        return f"SphereGrid({points} points, lmax={self.lmax}, lmax_out={self.lmax_out})"
