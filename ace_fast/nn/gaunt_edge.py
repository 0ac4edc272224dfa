"""The Gaunt product of a node's features with the spherical harmonics of an edge, in the frame of the edge.

Seen along the edge its harmonics have m = 0 alone: a function of theta, which multiplies the features' waves of every
order m by themselves. What is left of the product are Legendre transforms, no Fourier ones, and channels with their own
filters cost no more than one filter for all.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels.sphere_product import grids
from .fields import KINDS, Constant, Fields, degree_scales, highest, paths, terms, variances
from .gaunt import check_reachable
from .tensor_product import check_columns, no_script

_NEAR = 0.8  # cosine to the y axis from which the frame is found by way of another axis


class GauntEdgeProduct(nn.Module):
    r"""Gaunt product with the spherical harmonics of edge vectors: x in, vectors in, no harmonics formed.

    .. math:: z = \mathrm{GauntTensorProduct}(x, Y(\hat r))

    with Y of degrees 0..lmax_filter, normalization "component", and weights for every degree and channel; equal to
    `GauntTensorProduct` with these harmonics in every channel. Plain torch, O(L^3) a channel and edge.

    Args:
        irreps_in, irreps_out: of one multiplicity C, the same; each irrep once.
        lmax_filter: the highest degree of the harmonics.
        odd_paths: adds the antisymmetric paths.
        internal_weights: the layer has `weight`, [weight_numel], from 1; False: the call takes [weight_numel] or
            [E, weight_numel].
        layout: of features and result, "mul_ir" or "ir_mul".

    Attributes:
        weight_numel: C (slots of in + lmax_filter + 1 + slots of out), for each of product and bracket.

    Raises:
        ValueError: multiplicities that differ, an output that no path reaches (odd_paths named where it would).

    Derivatives of any order, in every direction of the edges, the axes among them; a vector of length 0 has none.
    Source: Luo, Chen, Krishnapriyan 2024, section 3.3; Passaro and Zitnick 2023 (eSCN).

    Example:
        >>> conv = ace_fast.nn.GauntEdgeProduct("16x0e+16x1o", 2, "16x0e+16x1o+16x2e")
        >>> conv(torch.randn(20, 64), torch.randn(20, 3)).shape
        torch.Size([20, 144])
    """

    def __init__(self, irreps_in, lmax_filter, irreps_out, odd_paths=False, *, internal_weights=True, layout="mul_ir"):
        super().__init__()
        name = type(self).__name__
        if lmax_filter < 0:
            raise ValueError(f"{name}: lmax_filter must be at least 0, got {lmax_filter}")
        one, out = Fields(name, "irreps_in", irreps_in, layout), Fields(name, "irreps_out", irreps_out, layout)
        if out.irs and out.channels != one.channels:
            raise ValueError(f"{name}: irreps_out must have the {one.channels} channels of irreps_in, got {out.irreps}; "
                             "put an ace_fast.nn.Linear behind")
        harmonics = [(one.channels, (n, (-1) ** n)) for n in range(lmax_filter + 1)]
        self._fields = one, Fields(name, "harmonics", harmonics, layout), out
        check_reachable(name, self._fields, odd_paths)
        self.irreps_in, self.irreps_out, self.lmax_filter = one.irreps, out.irreps, lmax_filter
        self.odd_paths, self.layout, self.internal_weights = odd_paths, layout, internal_weights
        kinds = [kind for kind in KINDS[:1 + odd_paths] if paths(self._fields, kind)]
        self._counts = [f.channels * len(f.irs) for f in self._fields]
        self.weight_numel = len(kinds) * sum(self._counts)
        self.weight = nn.Parameter(torch.ones(self.weight_numel)) if internal_weights else None
        gains = sum(variances(self._fields, kind) for kind in KINDS[:1 + odd_paths]).clamp(min=1e-30).rsqrt()
        self._plans = [self._plan(kind, gains) for kind in kinds]
        self._turns = _turns(max(one.lmax, out.lmax))

    @torch.inference_mode(False)
    def _plan(self, kind: str, gains: Tensor) -> list[tuple]:
        """(factors of the slots of in, of out; degrees; the tables) of every term of a kind."""
        scales = torch.tensor(degree_scales(self._fields[0], kind), dtype=torch.float64, device="cpu")
        found = []
        for term in terms(self._fields, kind):
            degrees = highest(self._fields, term)
            found.append((term.signs[0], term.signs[2], degrees, _zonal(degrees, kind == "bracket")))
        return [Constant(scales.repeat_interleave(self._counts[0] // max(1, len(scales)))),
                Constant(gains.repeat_interleave(self._counts[2] // max(1, len(gains)))), found]
