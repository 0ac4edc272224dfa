"""The factors of a bilinear map by its canonical polyadic decomposition, as tables of a product at R points."""

from math import isqrt

import torch
from torch import Tensor

from ..define import fail
from ..sphere_product.tables import Points, PointTable, Slot


class CPTable:
    """Factors of M_ijk = sum_r in1[i, r] in2[j, r] out[k, r], the map (x, y) -> z of degrees 0..L each.

    Args:
        out: A [(L3+1)^2, R]; in1: B [(L1+1)^2, R]; in2: C [(L2+1)^2, R], of any floating dtype. Where one requires
            grad, products differentiate with respect to it, in plain torch operations.
        trainable: products read the factors at every call, where they lie; False: copies that are made here. None for
            whether one requires grad.

    Raises:
        ValueError: other shapes, no full set of degrees, a rank above (L1+1)^2 (L2+1)^2 with which any map is exact.
    """

    def __init__(self, out: Tensor, in1: Tensor, in2: Tensor, *, trainable: bool | None = None):
        self.factors = {"out": out, "in1": in1, "in2": in2}
        for name, factor in self.factors.items():
            if factor.dim() != 2 or factor.shape[0] != isqrt(factor.shape[0]) ** 2 or not factor.shape[0]:
                fail("CPTable", name, "[(L+1)^2, R], components of degrees 0..L", list(factor.shape))
            if factor.shape[1] != out.shape[1] or not factor.is_floating_point():
                fail("CPTable", name, f"of rank {out.shape[1]} like out, floating",
                     f"{factor.dtype} {list(factor.shape)}")
        most = in1.shape[0] * in2.shape[0]
        if not 1 <= self.rank <= most:
            fail("CPTable", "the rank", f"from 1 to {most}, with which every map is exact", self.rank)
        self.trainable = trainable
        if trainable is None:
            self.trainable = any(factor.requires_grad for factor in self.factors.values())
        self._tables = None if self.trainable else [self._points(weighted) for weighted in (False, True)]

    @property
    def rank(self) -> int:
        return self.factors["out"].shape[1]

    @property
    def degrees(self) -> tuple[int, int, int]:
        """L of the result and of the inputs."""
        return tuple(isqrt(factor.shape[0]) - 1 for factor in self.factors.values())

    def points(self, weighted: bool) -> PointTable:
        """The frozen factors as a product of two inputs, and of a weight of each channel (degree 0)."""
        return self._tables[weighted]

    def _points(self, weighted: bool) -> PointTable:
        found = [(degree, 1, 0, factor.mT.contiguous())
                 for degree, factor in zip(self.degrees, self.factors.values(), strict=True)]
        if weighted:
            found.append((0, 1, 0, torch.ones(self.rank, dtype=torch.float64, device="cpu")))
        return PointTable(Points(0, self.rank, 1, 1), found)

    def flat(self, weighted: bool, device: torch.device) -> tuple[Tensor, Points, list[Slot]]:
        """What `PointTable.on` gives, differentiable with respect to the factors; the integers as tuples with names."""
        kept = [factor.to(device, torch.float64).mT.flatten() for factor in self.factors.values()]
        kept += [torch.ones(self.rank, dtype=torch.float64, device=device)] * weighted
        slots, offset = [], 0
        for degree in (*self.degrees, *[0] * weighted):
            slots.append(Slot(degree, 1, offset, 1, 0))
            offset += self.rank * slots[-1].dim
        return torch.cat(kept), Points(0, self.rank, 1, 1), slots

    def __repr__(self) -> str:
        out, in1, in2 = self.degrees
        return f"CPTable({in1} x {in2} -> {out}, rank {self.rank})"
