"""Many-body products: powers of a function on the sphere, as MACE's symmetric contraction with Gaunt products, and
products of several functions."""

from collections.abc import Callable, Sequence
from itertools import accumulate, product
from math import comb, factorial, pi, prod

import numpy as np
import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..kernels.constant import Constant, plainly
from ..kernels.define import integer
from ..kernels.sphere_product import grids
from ..kernels.sphere_product.tables import MOST
from .field_weights import FieldWeights
from .fields import Fields, Ir
from .tensor_product import WIDE, as_rows, check_columns, check_dtypes, no_script, weight_of_call


class GauntManyBody(nn.Module):
    r"""Sum of the powers 1..nu of a field, each with weights of its degrees before and behind.

    .. math:: z_l = \sum_{n=1}^{\nu} \alpha_{nl} v_{nl} \int_{S^2} Y_l \Big(\sum_k w_{nk} Y_k \cdot x_k\Big)^n

    The features of body order nu + 1 of the atomic cluster expansion and MACE, as nu - 1 multiplications on an exact
    grid in place of a generalised Clebsch-Gordan contraction: no intermediate degree is cut off. Only even couplings.

    Args:
        irreps_in, irreps_out: of one multiplicity C, the same; each irrep once.
        correlation: nu, the highest power, 1 to 6.
        num_types: sets of weights; rows choose by `types` (of elements).
        grid: of the products, as in `GauntTensorProduct`; a grid that is given is that of every power.
        layout: of inputs and result, "mul_ir" or "ir_mul".
        backend: which implementation of the operator runs.

    Attributes:
        weight: [num_types, nu (slots of in + slots of out) C], from 1.

    For normal inputs and weights of 1 every power has a mean square of 1 / nu.

    Raises:
        ValueError: multiplicities that differ, an output that no power reaches, correlation outside 1..6, a
            grid that is too small.

    Derivatives of any order. Source: Luo, Chen, Krishnapriyan 2024, section 3.3; Batatia et al. 2022 (MACE).

    Example:
        >>> many = ace_fast.nn.GauntManyBody("32x0e+32x1o+32x2e", "32x0e+32x1o", 3, num_types=4)
        >>> many(torch.randn(10, 288), torch.zeros(10, dtype=torch.int64)).shape
        torch.Size([10, 128])
    """

    def __init__(self, irreps_in, irreps_out, correlation, *, num_types=1, grid="gauss", layout="mul_ir",
                 backend="auto"):
        super().__init__()
        name = type(self).__name__
        correlation = integer(name, "correlation", correlation, 1, MOST)
        num_types = integer(name, "num_types", num_types, 1)
        one, out = self._fields = (Fields(name, "irreps_in", irreps_in, layout),
                                   Fields(name, "irreps_out", irreps_out, layout))
        if out.irs and one.channels != out.channels:
            raise ValueError(f"{name}: irreps_out must have the {one.channels} channels of irreps_in, got "
                             f"{out.irreps}; put an ace_fast.nn.Linear behind")
        self.irreps_in, self.irreps_out = one.irreps, out.irreps
        self.correlation, self.num_types, self.layout, self.backend = correlation, num_types, layout, backend
        self._check_reachable(name)
        self._counts = [f.channels * len(f.irs) for f in (one, out)]
        self.weight = nn.Parameter(torch.ones(num_types, correlation * sum(self._counts)))
        self._signs = [_signs((one,) * n, out) for n in range(1, correlation + 1)]
        gains = [_gains((one,) * n, out, self._moment(n), correlation) for n in range(1, correlation + 1)]
        self._gains = [_of_rows(out, gain) for gain in gains]
        self._weights = [[FieldWeights((one, out), (signs[0], back), (one.lmax, out.lmax), ([1.0] * len(one.irs), gain))
                          for signs, back in products] for products, gain in zip(self._signs, gains, strict=True)]
        self._fused = all(weights.exist for products in self._weights for weights in products)
        grid = grids.given(name, grid)
        self._tables = [functional.sphere_table((one.lmax,), out.lmax, powers=(n,), grid=grid)
                        for n in range(1, correlation + 1)]

    def _check_reachable(self, name: str) -> None:
        one, out = self._fields
        found = set().union(*_coupled((one,) * self.correlation))
        if missing := [str(ir) for ir in out.irs if ir not in found and out.channels]:
            raise ValueError(f"{name}: every slot of irreps_out must be reachable from powers 1 to {self.correlation} "
                             f"of {self.irreps_in} by even couplings, got {missing[0]}; drop it")

    def _moment(self, n: int) -> Callable[[list[np.ndarray]], np.ndarray]:
        """The mean product of the n-th powers of a normal field at two points from the covariance of the field there:
        by Wick's theorem a polynomial of it."""
        variance = sum(ir.dim / (4 * pi) for ir in self._fields[0].irs)
        pairings = [factorial(n - k) // (2 ** ((n - k) // 2) * factorial((n - k) // 2)) if (n - k) % 2 == 0 else 0
                    for k in range(n + 1)]
        return lambda parts: sum(factorial(k) * (comb(n, k) * pairings[k]) ** 2 * variance ** (n - k) * parts[0]**k
                                 for k in range(n + 1))

    def __repr__(self) -> str:
        return (f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | powers to {self.correlation} | "
                f"{self.weight.numel()} weights)")

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, x: Tensor, types: Tensor | None = None) -> Tensor:
        """x [..., irreps_in.dim], types [...] int64 (None: all of type 0) -> [..., irreps_out.dim]."""
        name = type(self).__name__
        one, out = self._fields
        check_columns(name, x=(x, one.dim))
        lead = x.shape[:-1]
        if types is None and self.num_types > 1:
            raise ValueError(f"{name}: types must be int64 {list(lead)}, got None; there are {self.num_types}")
        if types is not None and (types.shape != lead or types.dtype != torch.int64):
            raise ValueError(f"{name}: types must be int64 {list(lead)}, got {types.dtype} {list(types.shape)}")
        self._check_types(types)
        if x.dtype not in WIDE:
            check_dtypes(name, self.weight, self.backend, x=x)
        x = x.reshape(prod(lead), x.shape[-1])
        if types is None and self._fused:
            return self._at_once(x).reshape(*lead, out.dim)
        weight = self.weight[0] if types is None else self.weight.index_select(0, types.reshape(-1))
        parts = weight.unflatten(-1, (self.correlation, sum(self._counts)))
        z = x.new_zeros(x.shape[0], out.dim)
        for n, (table, gain) in enumerate(zip(self._tables, self._gains, strict=True)):
            before, behind = (f.spread(part) for f, part in
                              zip((one, out), parts[..., n, :].split(self._counts, -1), strict=True))
            scaled = x * before
            found = [(functional.sphere_product(one.field(scaled, signs[0], one.lmax), table=table, layout=self.layout,
                                                backend=self.backend), back) for signs, back in self._signs[n]]
            z = z + out.rows(found, x) * (behind * gain.on(x.device).to(x.dtype))
        return z.reshape(*lead, out.dim)

    def _at_once(self, x: Tensor) -> Tensor:
        """The sum of all powers of rows, with the weights that all rows share in the operator: [Z, irreps_out.dim]."""
        out = self._fields[1]
        x = x.to(torch.promote_types(x.dtype, self.weight.dtype))
        z = x.new_zeros(x.shape[0], out.dim)
        for table, own, products in zip(self._tables, self.weight[0].split(sum(self._counts)), self._weights,
                                        strict=True):
            found = [weights.product((x,), own, table=table, layout=self.layout, backend=self.backend)
                     for weights in products]
            z = z + out.rows(found, x)
        return z

    def _check_types(self, types: Tensor | None) -> None:
        # on a GPU reading them would wait for it; index_select raises there
        if types is None or types.device.type != "cpu" or not types.numel() or torch.compiler.is_compiling():
            return
        low, high = (value.item() for value in types.aminmax())
        if low < 0 or high >= self.num_types:
            raise ValueError(f"{type(self).__name__}: types must be in 0..{self.num_types - 1}, got "
                             f"{low if low < 0 else high}; num_types has their number")


class GauntMultiProduct(nn.Module):
    r"""Product of several inputs as functions on the sphere, channel by channel, with a weight for every degree.

    .. math:: z_l = \alpha_l w_l \int_{S^2} Y_l \prod_{n=1}^{N} \Big(\sum_k w_{nk} Y_k \cdot x_{nk}\Big)

    `GauntTensorProduct` of one to six inputs at once: N - 1 multiplications at the points of a grid that is exact for
    all of them, so no intermediate degree is cut off and none is stored. Only even couplings; odd ones need a chain of
    `GauntTensorProduct(odd_paths=True)`. Given one input N times it is a power of it with weights of every factor.

    Args:
        irreps_in: a sequence of one to six irreps, of one multiplicity C, or 1, each; in each each irrep once.
        irreps_out: C of each.
        internal_weights: the layer has `weight`, [weight_numel], from 1; False: the call takes [weight_numel] or
            [..., weight_numel]; None: no weights at all.
        grid: of the product, as in `GauntTensorProduct`.
        layout: of inputs and result, "mul_ir" or "ir_mul".
        backend: which implementation of the operator runs.

    Attributes:
        weight_numel: slots of every input x its channels and, last, those of out.

    The result has unit variance for independent normal inputs and weights of 1.

    Raises:
        ValueError: no sequence of one to six irreps, multiplicities that differ, an output that no couplings reach, a
            grid that is too small.

    Derivatives of any order. Source: Luo, Chen, Krishnapriyan 2024, section 3.3; Xie et al. 2025 (on a grid).

    Example:
        >>> tp = ace_fast.nn.GauntMultiProduct(["8x0e+8x1o", "8x0e+8x1o+8x2e", "1x0e+1x1o"], "8x0e+8x1o+8x2e")
        >>> tp(torch.randn(10, 32), torch.randn(10, 72), torch.randn(10, 4)).shape
        torch.Size([10, 72])
    """

    def __init__(self, irreps_in, irreps_out, *, internal_weights=True, grid="gauss", layout="mul_ir",
                 backend="auto"):
        super().__init__()
        name = type(self).__name__
        if isinstance(irreps_in, str | o3.Irreps) or not isinstance(irreps_in, Sequence) or not (
                1 <= len(irreps_in) <= MOST):
            raise ValueError(f"{name}: irreps_in must be a sequence of 1 to {MOST} irreps, got {irreps_in!r}")
        *ins, out = self._fields = tuple(
            Fields(name, argument, irreps, layout) for argument, irreps in
            [*((f"irreps_in[{n}]", irreps) for n, irreps in enumerate(irreps_in)), ("irreps_out", irreps_out)])
        _check_channels(name, ins, out)
        if missing := [str(ir) for ir in out.irs if ir not in _coupled(ins)[-1] and out.channels]:
            raise ValueError(f"{name}: every slot of irreps_out must be reachable from "
                             f"{' x '.join(str(f.irreps) for f in ins)} by even couplings, got {missing[0]}; drop it, "
                             "or chain GauntTensorProduct with odd_paths=True")
        self.irreps_in, self.irreps_out = [f.irreps for f in ins], out.irreps
        self.layout, self.backend, self.internal_weights = layout, backend, internal_weights
        self._counts = [f.channels * len(f.irs) for f in self._fields]
        self.weight_numel = 0 if internal_weights is None else sum(self._counts)
        self.weight = nn.Parameter(torch.ones(self.weight_numel)) if internal_weights else None
        self._signs = _signs(ins, out)
        gain = _gains(ins, out, prod)
        self._gain = _of_rows(out, gain)
        self._weights = [FieldWeights(self._fields, (*signs, back), [f.lmax for f in self._fields],
                                      [*([1.0] * len(f.irs) for f in ins), gain]) for signs, back in self._signs]
        self._fused = all(weights.exist for weights in self._weights)
        self._table = functional.sphere_table([f.lmax for f in ins], out.lmax, grid=grids.given(name, grid))

    def __repr__(self) -> str:
        return (f"{type(self).__name__}({' x '.join(map(str, self.irreps_in))} -> {self.irreps_out} | "
                f"{self.weight_numel} weights)")

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, *inputs: Tensor, weight: Tensor | None = None) -> Tensor:
        """An input [..., irreps_in[n].dim] for each of irreps_in -> [..., irreps_out.dim], leading dimensions
        broadcast; weight [weight_numel] or [..., weight_numel] where internal_weights is False."""
        name, (*ins, out) = type(self).__name__, self._fields
        if len(inputs) != len(ins):
            raise ValueError(f"{name}: inputs must be {len(ins)}, as irreps_in, got {len(inputs)}")
        named = {f"inputs[{n}]": x for n, x in enumerate(inputs)}
        check_columns(name, **{key: (x, f.dim) for (key, x), f in zip(named.items(), ins, strict=True)})
        weight, dtype = weight_of_call(self, inputs[0], weight), inputs[0].dtype
        if dtype not in WIDE or any(x.dtype != dtype for x in inputs):
            check_dtypes(name, weight, self.backend, **named)
        xs, weight, lead = as_rows(name, weight, **named)
        if self._fused and weight.dim() == 1:
            return self._at_once(xs, weight).reshape(*lead, out.dim)
        scales = weight.split(self._counts, -1) if self.weight_numel else [None] * len(self._fields)
        xs = [f.scaled(x, scale) for f, x, scale in zip(ins, xs, scales, strict=False)]
        found = [(functional.sphere_product(*(f.field(x, s, f.lmax) for f, x, s in zip(ins, xs, signs, strict=True)),
                                            table=self._table, layout=self.layout, backend=self.backend), back)
                 for signs, back in self._signs]
        gain = self._gain.on(xs[0].device).to(xs[0].dtype)
        return (out.rows(found, xs[0]) * out.scaled(gain, scales[-1])).reshape(*lead, out.dim)

    def _at_once(self, xs: Sequence[Tensor], weight: Tensor) -> Tensor:
        """The product of rows, with the weights that all rows share in the operator: [Z, irreps_out.dim]."""
        dtype, own = torch.promote_types(xs[0].dtype, weight.dtype), weight if self.weight_numel else None
        xs = [x.to(dtype) for x in xs]
        found = [weights.product(xs, own, table=self._table, layout=self.layout, backend=self.backend)
                 for weights in self._weights]
        return self._fields[-1].rows(found, xs[0])


def _check_channels(who: str, ins: Sequence[Fields], out: Fields) -> None:
    """Raises where inputs have other channels than 1 that differ, or the output others than they."""
    counts = {f.channels for f in ins} - {1} or {1}
    if len(counts) > 1:
        raise ValueError(f"{who}: irreps_in must have one multiplicity, or 1, got "
                         f"{' and '.join(str(f.irreps) for f in ins)}; put an ace_fast.nn.Linear before")
    if out.irs and out.channels not in counts:
        raise ValueError(f"{who}: irreps_out must have {counts.pop()} channels as the inputs, got {out.irreps}; put an "
                         "ace_fast.nn.Linear behind")


def _coupled(ins: Sequence[Fields]) -> list[set[Ir]]:
    """The irreps that even couplings of the first one, two, ... inputs reach."""
    def couple(found: set[Ir], irs: set[Ir]) -> set[Ir]:
        return {Ir(n, a.p * b.p) for a, b in product(found, irs) for n in range(abs(a.l - b.l), a.l + b.l + 1, 2)}

    return list(accumulate((set(f.irs) for f in ins), couple))


def _signs(ins: Sequence[Fields], out: Fields) -> list[tuple[list[tuple[float, ...]], tuple[float, ...]]]:
    """Of every product of the inputs that runs, the factors of the slots of each input and of the output.

    One where no coupling breaks the parity: inputs of true or of pseudo irreps alone, or irreps without parity. Else
    two, of the inputs as they are and mirrored (fields.terms has the reason).
    """
    kinds = [{ir.sign for ir in f.irs} for f in ins]
    alike = all(len(kind) == 1 for kind in kinds) and all(
        ir.sign == prod(sign for kind in kinds for sign in kind) for ir in out.irs)
    every = [*ins, out]
    distinct = all(len({ir.l for ir in f.irs}) == len(f.irs) for f in every)
    plain, ones = [(1.0,) * len(f.irs) for f in ins], len(out.irs)
    if alike or distinct and all(ir.p == 1 for f in every for ir in f.irs):
        return [(plain, (1.0,) * ones)]
    return [(plain, (0.5,) * ones),
            ([tuple(float(ir.sign) for ir in f.irs) for f in ins], tuple(ir.sign / 2 for ir in out.irs))]


@plainly()
def _gains(ins: Sequence[Fields], out: Fields, moment: Callable[[list[np.ndarray]], np.ndarray], share: int = 1
           ) -> list[float]:
    """What makes the mean square of every slot of the output 1 / share for normal inputs; 0 where the product has none.

    The covariance of a field, and with it that of a product, is a function of the angle between two points alone.

    Args:
        moment: of the covariances of the inputs at all angles, that of the product.
    """
    cosine, weights = np.polynomial.legendre.leggauss((sum(f.lmax for f in ins) + out.lmax) // 2 + 1)
    zonal = np.polynomial.legendre.legvander(cosine, max(f.lmax for f in (*ins, out)))
    # of the inputs as they are, and between these and the mirrored ones
    plain, mixed = (moment([sum((sign(ir) * ir.dim / (4 * pi) * zonal[:, ir.l] for ir in f.irs), 0 * cosine)
                            for f in ins]) for sign in (lambda ir: 1, lambda ir: ir.sign))
    found, whole = [], len(_signs(ins, out)) == 1
    for ir in out.irs:
        value = plain if whole else (plain + ir.sign * mixed) / 2
        square = 2 * pi * float((weights * zonal[:, ir.l] * value).sum())
        found.append((square * share) ** -0.5 if square > 1e-9 else 0.0)
    return found


@plainly()
def _of_rows(out: Fields, gains: list[float]) -> Constant:
    """A factor of every slot as factors of a row."""
    return Constant(out.spread(torch.tensor(gains, dtype=torch.float64, device="cpu").repeat_interleave(out.channels)))
