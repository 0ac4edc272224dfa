"""The Gaunt product of a node's features with the spherical harmonics of an edge, in the frame of the edge.

Seen along the edge its harmonics have m = 0 alone: a function of theta, which multiplies the features' waves of every
order m by themselves. What is left of the product are Legendre transforms, no Fourier ones, and channels with their own
filters cost no more than one filter for all.
"""

from math import isqrt, pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.constant import Constant, plainly
from ..kernels.define import integer
from ..kernels.sphere_product import grids
from ..kernels.sphere_product.reference import components, joined
from .fields import Fields
from .gaunt import GauntTensorProduct
from .tensor_product import as_rows, check_columns, weight_of_call, widened, without_autocast

_NEAR = 0.8  # cosine to the y axis from which an edge is seen along the x axis, where its frame has no singularity


class GauntEdgeProduct(GauntTensorProduct):
    r"""Gaunt product with the spherical harmonics of edge vectors, which are not formed.

    .. math:: z = \mathrm{GauntTensorProduct}(x, Y(\hat r))

    with Y of degrees 0..lmax_filter, normalization "component", the same in every channel, and weights for every degree
    and channel. Plain torch, O(L^3) a channel and edge; a vector of length 0 has the harmonics 1, 0, 0, ...,
    whatever its components, so its derivatives are 0.

    Args:
        irreps_in, irreps_out: of one multiplicity C, the same; each irrep once.
        lmax_filter: the highest degree of the harmonics.
        odd_paths, internal_weights, layout: as in `GauntTensorProduct`.

    Attributes:
        weight_numel: C (slots of in + lmax_filter + 1 + slots of out), for each of product and bracket.

    Raises:
        ValueError: multiplicities that differ, an output that no path reaches (odd_paths named where it would).

    Derivatives of any order, for edges along the axes too. bfloat16 is computed in float32 and rounded once. Source:
    Luo, Chen, Krishnapriyan 2024, section 3.3; Passaro and Zitnick 2023 (eSCN).

    Example:
        >>> conv = ace_fast.nn.GauntEdgeProduct("16x0e+16x1o", 2, "16x0e+16x1o+16x2e")
        >>> conv(torch.randn(20, 64), torch.randn(20, 3)).shape
        torch.Size([20, 144])
    """

    def __init__(self, irreps_in, lmax_filter, irreps_out, odd_paths=False, *, internal_weights=True, layout="mul_ir"):
        name = type(self).__name__
        lmax_filter = integer(name, "lmax_filter", lmax_filter)
        C = Fields(name, "irreps_in", irreps_in, layout).channels
        harmonics = [(C, (n, (-1) ** n)) for n in range(lmax_filter + 1)]
        super().__init__(irreps_in, harmonics, irreps_out, "auto", odd_paths, internal_weights=internal_weights,
                         layout=layout)
        self._frame = _Frame(max(f.lmax for f in self._fields))
        with plainly():
            self._axis = _constant(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device="cpu"))
            self._roots = _constant(torch.tensor([sqrt(ir.dim) for ir in self._fields[1].irs], dtype=torch.float64,
                                                 device="cpu"))

    def _table(self, degrees: tuple[int, int, int], bracket: bool) -> "_Zonal":
        return _Zonal(degrees, bracket)

    def forward(self, x: Tensor, vectors: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [..., irreps_in.dim], vectors [..., 3] -> [..., irreps_out.dim], leading dimensions broadcast; weight
        [weight_numel] or [..., weight_numel] where internal_weights is False."""
        name = type(self).__name__
        check_columns(name, x=(x, self._dims[0]), vectors=(vectors, 3))
        (x, vectors), weight, lead = as_rows(name, weight_of_call(self, x, weight), x=x, vectors=vectors)
        dtype = torch.promote_types(x.dtype, weight.dtype)
        with without_autocast(x):
            z = self._rows(widened(x), widened(vectors), widened(weight)).to(dtype)
        return z if len(lead) == 1 else z.reshape(*lead, self._dims[2])

    def _rows(self, x: Tensor, vectors: Tensor, weight: Tensor) -> Tensor:
        """All kinds of product, [E, irreps_out.dim]."""
        there = vectors.detach().norm(dim=1, keepdim=True) != 0  # NaN is: it has to come out
        vectors = torch.where(there, vectors, self._axis.on(x.device).to(vectors.dtype))
        unit = vectors / vectors.norm(dim=1, keepdim=True)
        waves = self._frame.waves(unit.to(x.dtype))
        found = [self._seen(plan, x, waves, there.to(x.dtype), scales)
                 for plan, scales in zip(self._plans, self._scales(x, weight), strict=True)]
        return sum(found[1:], found[0]) if found else x.new_zeros(x.shape[0], self._dims[2])

    def _seen(self, plan, x: Tensor, waves: "_Waves", there: Tensor, scales: list[Tensor]) -> Tensor:
        """One kind of product in the frames of the edges: [E, irreps_out.dim]."""
        one, two, out = self._fields
        roots = self._roots.on(x.device).to(x.dtype)
        seen = torch.cat([torch.ones_like(there), there.expand(-1, two.lmax)], 1) * roots  # [E, L2 + 1], m = 0
        filters = seen[:, :, None]
        if scales[1] is not None:
            filters = filters * scales[1].unflatten(-1, (two.lmax + 1, two.channels))  # [E, L2 + 1, C]
        x, found, ir_mul = one.scaled(x, scales[0]), [], self.layout == "ir_mul"
        for signs, degrees, zonal, _ in plan.products:
            f = one.field(x, signs[0], degrees[0])
            f = components(f, (degrees[0] + 1) ** 2, ir_mul).transpose(0, 1)  # [d, E, C]
            z = self._frame.back(zonal(self._frame.into(f, waves), filters), waves)
            found.append((joined(z.transpose(0, 1), ir_mul), signs[2]))
        return out.scaled(out.rows(found, x), scales[2])


class _Zonal:
    """The product of a field [d1, E, C] with a function of theta alone, by Legendre transforms of every order."""

    @plainly()
    def __init__(self, degrees: tuple[int, int, int], bracket: bool):
        one, two, out = degrees
        grid = grids.exact(grids.product_degree((one, two), out, bracket))
        # of {F, H} = -(d_phi F / sin theta) d_theta H is left; d_phi turns order m into -m, times -m
        self._filter = _constant(grids.legendre(grid, two, "theta" if bracket else None)[:, _order(0, two)])
        polar = grids.legendre(grid, one, "phi" if bracket else None)
        back = 2 * pi * grids.analysis_factors(grid, out)[0]
        orders = [m for m in range(-one, one + 1) if abs(m) <= out and (m or not bracket)]
        to = [-m if bracket else m for m in orders]
        self._tables = [(_constant((m if bracket else 1) * polar[:, _order(m, one)]), _constant(back[_order(n, out)]))
                        for m, n in zip(orders, to, strict=True)]
        self._sizes = [one + 1 - abs(m) for m in orders]
        sources = [at for m in orders for at in _order(m, one)]
        self._sources = _constant(torch.tensor(sources, dtype=torch.int64, device="cpu"))
        made = [at for m in to for at in _order(m, out)]
        self._places = _constant(torch.tensor([made.index(at) if at in made else len(made)
                                               for at in range((out + 1) ** 2)], device="cpu"))

    def __call__(self, f: Tensor, filters: Tensor) -> Tensor:
        """f [d1, E, C], filters [E, L2 + 1, C or 1] of the degrees at m = 0 -> [d3, E, C]."""
        device, dtype = f.device, f.dtype
        heights = torch.einsum("tl,elc->tec", self._filter.on(device).to(dtype), filters)  # [T, E, C]
        parts = f.index_select(0, self._sources.on(device)).split(self._sizes)
        found = [f.new_zeros(1, *f.shape[1:])]
        for part, tables in zip(parts, self._tables, strict=True):
            into, back = (table.on(device).to(dtype) for table in tables)
            found.insert(-1, torch.tensordot(back, torch.tensordot(into, part, 1) * heights, 1))
        return torch.cat(found).index_select(0, self._places.on(device))


class _Waves(NamedTuple):
    """How edges lie: whether near the y axis, and cos m a, sin m a of their angles by component, [d, E, 1] each."""

    near: Tensor  # [1, E, 1]
    alpha: tuple[Tensor, Tensor]
    beta: tuple[Tensor, Tensor]


class _Frame:
    """Rotates fields [d, E, C] so that the edges point along y, and back.

    A rotation about y mixes the orders m and -m alone; one about x is one about y between two fixed rotations, so no
    matrix of an edge is formed. Edges near the y axis are first turned by that fixed rotation, which takes y to x.
    """

    _TURN = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64, device="cpu")

    @plainly()
    def __init__(self, lmax: int):
        turn = grids.rotation(self._TURN, lmax)
        self._blocks = [_constant(turn[n * n:(n + 1) ** 2, n * n:(n + 1) ** 2]) for n in range(lmax + 1)]
        orders = grids.orders(lmax) - lmax
        self._orders = _constant(orders)
        self._opposite = _constant(torch.arange(len(orders), device="cpu") - 2 * orders)
        self._lmax = lmax

    def waves(self, unit: Tensor) -> _Waves:
        """unit [E, 3]."""
        near = unit[:, 1].abs() > _NEAR
        x, y, z = torch.where(near[:, None], unit.roll(1, 1), unit).unbind(1)  # roll: the inverse of the turn
        sine = (x * x + z * z).sqrt()
        return _Waves(near[None, :, None], self._multiples(z / sine, x / sine), self._multiples(y, sine))

    def _multiples(self, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """cos m a and sin m a of every component's m, from cos a and sin a [E]."""
        c, s = [torch.ones_like(cosine)], [torch.zeros_like(sine)]
        for _ in range(self._lmax):
            c, s = [*c, c[-1] * cosine - s[-1] * sine], [*s, s[-1] * cosine + c[-1] * sine]
        m = self._orders.on(cosine.device)
        return (torch.stack(c).index_select(0, m.abs())[:, :, None],
                (torch.stack(s).index_select(0, m.abs()) * m.sign()[:, None])[:, :, None])

    def into(self, f: Tensor, waves: _Waves) -> Tensor:
        """From the common frame [d, E, C] to those of the edges."""
        f = self._about(torch.where(waves.near, self._turned(f, -1), f), waves.alpha, -1)
        return self._turned(self._about(self._turned(f, -1), waves.beta, -1), 1)

    def back(self, f: Tensor, waves: _Waves) -> Tensor:
        """From the frames of the edges [d, E, C] to the common one."""
        f = self._turned(self._about(self._turned(f, -1), waves.beta, 1), 1)
        f = self._about(f, waves.alpha, 1)
        return torch.where(waves.near, self._turned(f, 1), f)

    def _about(self, f: Tensor, angle: tuple[Tensor, Tensor], sign: int) -> Tensor:
        """Rotates about y by an angle, or back where sign is -1."""
        cosine, sine = (wave[:f.shape[0]] for wave in angle)
        return f * cosine - sign * sine * f.index_select(0, self._opposite.on(f.device)[:f.shape[0]])

    def _turned(self, f: Tensor, sign: int) -> Tensor:
        """The fixed rotation, or back where sign is -1."""
        lmax = isqrt(f.shape[0]) - 1
        blocks = [block.on(f.device).to(f.dtype) for block in self._blocks[:lmax + 1]]
        parts = [f[n * n:(n + 1) ** 2] for n in range(lmax + 1)]
        return torch.cat([torch.tensordot(block if sign == 1 else block.T, part, 1)
                          for block, part in zip(blocks, parts, strict=True)])


def _order(m: int, lmax: int) -> list[int]:
    """The components of order m of degrees 0..lmax."""
    return [n * n + n + m for n in range(abs(m), lmax + 1)]


def _constant(value: Tensor) -> Constant:
    return Constant(value.to("cpu").contiguous())
