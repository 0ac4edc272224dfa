"""The Gaunt tensor product: irreps multiplied as functions on the sphere, channel by channel."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import functional
from ..kernels.constant import Constant, plainly
from ..kernels.sphere_product import grids
from .field_weights import FieldWeights
from .fields import KINDS, Fields, couples, degree_scales, highest, paths, terms, variances
from .gaunt_fourier import Torus
from .tensor_product import WIDE, as_rows, check_columns, check_dtypes, no_script, weight_of_call

METHODS = ("auto", "grid", "fourier")


def _channels_of(who: str, one: Fields, two: Fields) -> int:
    """The channels of a product of two inputs.

    Raises:
        ValueError: they differ and none is 1.
    """
    counts = [f.channels for f in (one, two)]
    if counts[0] != counts[1] and 1 not in counts:
        raise ValueError(f"{who}: irreps_in2 must have the {counts[0]} channels of irreps_in1, or 1, got {counts[1]}; "
                         "put an ace_fast.nn.Linear before")
    return counts[0] if counts[1] == 1 else counts[1]


def _check_reachable(who: str, fields: tuple[Fields, Fields, Fields], odd_paths: bool) -> None:
    """Raises where a slot of the output has no path, and says whether odd_paths has one."""
    one, two, out = fields
    for ir in out.irs if out.channels else ():
        found = {kind for kind in KINDS for a in one.irs for b in two.irs
                 if couples(kind, a.l, b.l, ir.l) and a.p * b.p == ir.p}
        if not found:
            raise ValueError(f"{who}: every slot of irreps_out must be reachable from {one.irreps} x {two.irreps}, got "
                             f"{ir}; drop it")
        if not odd_paths and found == {"bracket"}:
            raise ValueError(f"{who}: every slot of irreps_out must be reachable from {one.irreps} x {two.irreps} by "
                             f"paths of even l1 + l2 + l3, which are all that a Gaunt product has, got {ir}; pass "
                             "odd_paths=True, or drop it")


def _check_options(who: str, method: str, odd_paths: bool, grid, backend: str) -> None:
    if method not in METHODS:
        raise ValueError(f"{who}: method must be one of {METHODS}, got {method!r}")
    if not isinstance(odd_paths, bool):
        raise ValueError(f"{who}: odd_paths must be True or False, got {odd_paths!r}")
    for argument, value, default in (("grid", grid, "gauss"), ("backend", backend, "auto")):
        if method == "fourier" and value != default:
            raise ValueError(f"{who}: {argument} must be left out with method 'fourier', got {value!r}; it is plain "
                             "torch on a grid of its own")


class GauntTensorProduct(nn.Module):
    r"""Product of two inputs as functions on the sphere, channel by channel, with a weight for every degree.

    .. math:: z_{l_3} = \alpha_{l_3} w_{l_3} \int_{S^2} Y_{l_3} \Big(\sum_{l_1} w_{l_1} Y_{l_1} \cdot x_{l_1}\Big)
              \Big(\sum_{l_2} w_{l_2} Y_{l_2} \cdot y_{l_2}\Big)

    Every Clebsch-Gordan path with l1 + l2 + l3 even is in it, with a strength that only weights of its three degrees
    change: O(L) free numbers a channel where `TensorProduct` has O(L^3). `odd_paths` adds the paths with l1 + l2 + l3
    odd by the Poisson bracket of the two functions, with weights of their own: then every path exists.
    Of irreps with their natural parity (0e, 1o, 2e, ...) no product can have odd paths to natural ones. Any other
    parities work too.

    Args:
        irreps_in1, irreps_in2: of one multiplicity C, or 1, each; each irrep once.
        irreps_out: C of each.
        method: "grid" (an exact grid on the sphere, one fused call), "fourier" (2D Fourier series on the torus,
            multiplied by FFT; plain torch) or "auto", the grid: it needs fewer operations at every degree, see
            docs/products.md.
        odd_paths: adds the antisymmetric paths.
        internal_weights: the layer has `weight`, [weight_numel], from 1; False: the call takes [weight_numel] or
            [..., weight_numel], as from a network of the distance; None: no weights at all, which loses nothing between
            linear maps of the channels. Weights of every row take more time than the product.
        grid: of the grid method: "gauss" (the fastest), "lebedev", "auto" (fewer points of these two), a `Grid` or
            (rings, points a ring), as in `sphere_table`.
        layout: of inputs and result, "mul_ir" or "ir_mul".
        backend: which implementation of the operator runs, with the grid method.

    Attributes:
        weight_numel: (slots of in1 x its channels + of in2 + of out), for each of product and bracket.

    The result has unit variance for normal inputs and weights of 1. With the Fourier method in float32 errors are some
    1e-6, with the grid 1e-7.

    Raises:
        ValueError: multiplicities that differ, an output that no path reaches (odd_paths named where it would), a grid
            that is too small (with the size that is needed), a grid or backend for the Fourier method, which has
            neither, an unknown option.

    Derivatives of any order. Source: Luo, Chen, Krishnapriyan 2024 (Gaunt tensor product); Xie et al. 2025 (on a grid);
    Bochkarev, Lysogorskiy, Drautz 2026 (antisymmetric paths).

    Example:
        >>> tp = ace_fast.nn.GauntTensorProduct("64x0e+64x1o+64x2e", "1x0e+1x1o+1x2e", "64x0e+64x1o+64x2e")
        >>> tp(torch.randn(10, 576), torch.randn(10, 9)).shape
        torch.Size([10, 576])
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, method="auto", odd_paths=False, *, internal_weights=True,
                 grid="gauss", layout="mul_ir", backend="auto"):
        super().__init__()
        name = type(self).__name__
        _check_options(name, method, odd_paths, grid, backend)
        one, two, out = self._fields = tuple(
            Fields(name, argument, irreps, layout) for argument, irreps in
            (("irreps_in1", irreps_in1), ("irreps_in2", irreps_in2), ("irreps_out", irreps_out)))
        channels = _channels_of(name, one, two)
        if out.irs and out.channels != channels:
            raise ValueError(f"{name}: irreps_out must have {channels} channels as the inputs, got {out.irreps}; put "
                             "an ace_fast.nn.Linear behind")
        _check_reachable(name, self._fields, odd_paths)
        self.irreps_in1, self.irreps_in2, self.irreps_out = one.irreps, two.irreps, out.irreps
        self.method, self.odd_paths, self.layout, self.backend = method, odd_paths, layout, backend
        self._dims = one.dim, two.dim, out.dim
        self._counts = [f.channels * len(f.irs) for f in self._fields]
        kinds = [kind for kind in KINDS[:1 + odd_paths] if paths(self._fields, kind)]
        self.weight_numel = 0 if internal_weights is None else len(kinds) * sum(self._counts)
        self.internal_weights = internal_weights
        self.weight = nn.Parameter(torch.ones(self.weight_numel)) if internal_weights else None
        self._grid = grids.given(name, grid)
        gains = sum((variances(self._fields, kind) for kind in kinds),
                    torch.zeros(len(out.irs), dtype=torch.float64, device="cpu"))
        self._plans = [self._plan(kind, gains.clamp(min=1e-30).rsqrt().tolist()) for kind in kinds]
        self._fused = method != "fourier" and all(term[3].exist for plan in self._plans for term in plan.products)

    @plainly()
    def _plan(self, kind: str, gains: list[float]) -> "_Plan":
        """The constant factors of a kind of product before and behind it, and the tables of its terms."""
        one, two, out = self._fields
        scales = [degree_scales(one, kind), degree_scales(two, kind), gains]
        constants = [None if set(scale) <= {1.0} else
                     Constant(torch.tensor(scale, dtype=torch.float64, device="cpu").repeat_interleave(f.channels))
                     for f, scale in zip(self._fields, scales, strict=True)]
        products = []
        for term in terms(self._fields, kind):
            degrees = highest(self._fields, term)
            products.append((term.signs, degrees, self._table(degrees, kind == "bracket"),
                             FieldWeights(self._fields, term.signs, degrees, scales)))
        return _Plan(constants, products)

    def _table(self, degrees: tuple[int, int, int], bracket: bool):
        """What multiplies two fields of degrees L1, L2 and keeps L3."""
        if self.method == "fourier":
            return Torus(degrees, bracket)
        return functional.sphere_table(degrees[:2], degrees[2], bracket=bracket, grid=self._grid)

    def __repr__(self) -> str:
        count = sum(len(paths(self._fields, kind)) for kind in KINDS[:1 + self.odd_paths])
        return (f"{type(self).__name__}({self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out} | {count} paths | "
                f"{self.weight_numel} weights)")

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [..., irreps_in1.dim], y [..., irreps_in2.dim] -> [..., irreps_out.dim], leading dimensions broadcast;
        weight [weight_numel] or [..., weight_numel] where internal_weights is False."""
        name = type(self).__name__
        check_columns(name, x=(x, self._dims[0]), y=(y, self._dims[1]))
        weight = weight_of_call(self, x, weight)
        if x.dtype != y.dtype or x.dtype not in WIDE:
            check_dtypes(name, weight, "reference" if self.method == "fourier" else self.backend, x=x, y=y)
        (x, y), weight, lead = as_rows(name, weight, x=x, y=y)
        if self._fused and weight.dim() == 1:
            parts = self._at_once(x, y, weight)
        else:
            parts = [self._product(plan, x, y, scales)
                     for plan, scales in zip(self._plans, self._scales(x, weight), strict=True)]
        out = sum(parts[1:], parts[0]) if parts else x.new_zeros(x.shape[0], self._dims[2])
        return out if len(lead) == 1 else out.reshape(*lead, self._dims[2])

    def _at_once(self, x: Tensor, y: Tensor, weight: Tensor) -> list[Tensor]:
        """Every kind of product of rows, with weights that all rows share in the operator: [Z, irreps_out.dim]."""
        given = weight.split(sum(self._counts)) if self.weight_numel else [None] * len(self._plans)
        dtype = torch.promote_types(x.dtype, weight.dtype)
        x, y, parts = x.to(dtype), y.to(dtype), []
        for plan, own in zip(self._plans, given, strict=True):
            found = [weights.product((x, y), own, table=table, layout=self.layout, backend=self.backend)
                     for _, _, table, weights in plan.products]
            parts.append(self._fields[2].rows(found, x))
        return parts

    def _scales(self, like: Tensor, weight: Tensor) -> list[list[Tensor | None]]:
        """For every kind of product the factors of in1, in2 and out, of each slot and channel, [..., slots C]; None for
        ones."""
        found = [[None if constant is None else constant.on(like.device).to(like.dtype) for constant in plan.constants]
                 for plan in self._plans]
        if not weight.shape[-1]:
            return found
        parts = weight.split(self._counts * len(found), -1)
        return [[parts[3 * n + k] if scale is None else parts[3 * n + k] * scale for k, scale in enumerate(scales)]
                for n, scales in enumerate(found)]

    def _product(self, plan: "_Plan", x: Tensor, y: Tensor, scales: list[Tensor | None]) -> Tensor:
        """One kind of product of rows: [Z, irreps_out.dim]."""
        one, two, out = self._fields
        x, y, found = one.scaled(x, scales[0]), two.scaled(y, scales[1]), []
        for signs, degrees, table, _ in plan.products:
            f, g = one.field(x, signs[0], degrees[0]), two.field(y, signs[1], degrees[1])
            if self.method == "fourier":
                z = table(f, g, self.layout == "ir_mul")
            else:
                z = functional.sphere_product(f, g, table=table, layout=self.layout, backend=self.backend)
            found.append((z, signs[2]))
        return out.scaled(out.rows(found, x), scales[2])


class _Plan(NamedTuple):
    """How one kind of product runs."""

    constants: list[Constant | None]  # factors of every slot and channel of in1, in2, out; None for ones
    products: list[tuple]  # (signs, degrees, table, weights) of every term
