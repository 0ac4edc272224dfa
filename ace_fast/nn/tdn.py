"""The product of tensor decomposition networks: all paths by factors of rank R, with weights that the paths share."""

import json
import os
import warnings
from math import prod

import torch
from torch import Tensor, nn

from .. import functional
from ..kernels.cp_product import CPTable
from ..kernels.define import integer
from . import cp
from .fields import Factors, Fields
from .tensor_product import as_rows, check_columns, no_script, weight_of_call

_FORMAT = 1  # of what a checkpoint says of the map
_LENGTH = 1024  # bytes of it, padded: maps of all ranks have the same shape there
_PROBES = 16  # numbers that stand for the map
_SAME = 1e-6  # relative difference up to which two maps are one


class TDNTensorProduct(nn.Module):
    r"""All Clebsch-Gordan paths of two inputs at once by factors of rank R, approximately or exactly equivariant.

    .. math:: z^u_k = \sum_v w_{uv} \sum_r A_{kr} \Big(\sum_i B_{ri} x^u_i\Big) \Big(\sum_j C_{rj} y^v_j\Big)

    One weight for a channel (or pair of channels), which all paths share. The factors are fitted once by
    `ace_fast.nn.cp.fit`. What the fit leaves is an error of equivariance, `fit.equivariance_error`; with rank="exact"
    there is none, and paths have fixed strengths of their own. On a CPU the exact `TensorProduct`, with a weight for
    every path, is faster at every useful rank to L = 2, above rank 71 at L = 3 and above 174 at L = 4, of degrees 0..L
    in as many channels (docs/products.md).

    Args:
        irreps_in1: C channels of each, each degree once. irreps_in2: C channels (channel u with u), or any V (all with
            all). irreps_out: C channels of each, each degree once.
        rank: R; None for 7 L^2; "exact" for exactly equivariant factors.
        trainable: the factors are parameters `A`, `B`, `C`; then in plain torch.
        internal_weights: the layer has `weight`, [weight_numel], normal; False: the call takes [weight_numel] or
            [..., weight_numel].
        seed, cache: of the fit.
        layout: of inputs and result, "mul_ir" or "ir_mul".
        backend: which implementation of the operator runs.

    Attributes:
        fit: a `cp.Fit`: rank, factors and their errors, at the beginning where they are trained;
            `ace_fast.nn.equivariance_error(layer)` measures what they have become.
        weight_numel: C, or C V where V is neither C nor 1.

    A checkpoint says which map its weights belong to (`_extra_state`), and does not load into a layer of another one;
    older ones, which do not say, load.

    Warns:
        UserWarning: a rank at which the exact product is faster (on a CPU).

    Raises:
        ValueError: multiplicities that do not fit, a degree twice, a rank above d1 d2.

    Derivatives of any order. Source: Lin et al. 2025 (TDN), equation 5 and section 3.3.

    Example:
        >>> irreps = "8x0e+8x1o+8x2e+8x3o+8x4e"
        >>> tdn = ace_fast.nn.TDNTensorProduct(irreps, irreps, irreps, rank="exact")
        >>> tdn(torch.randn(10, 200), torch.randn(10, 200)).shape
        torch.Size([10, 200])
    """

    def __init__(self, irreps_in1, irreps_in2, irreps_out, rank: int | str | None = None, *, trainable: bool = False,
                 internal_weights: bool = True, seed: int = 0, cache: str | os.PathLike | None = None, layout="mul_ir",
                 backend="auto"):
        super().__init__()
        name = type(self).__name__
        one, two, out = self._fields = tuple(
            Fields(name, argument, irreps, layout) for argument, irreps in
            (("irreps_in1", irreps_in1), ("irreps_in2", irreps_in2), ("irreps_out", irreps_out)))
        if out.channels != one.channels:
            raise ValueError(f"{name}: irreps_out must have the {one.channels} channels of irreps_in1, got "
                             f"{out.irreps}; put an ace_fast.nn.Linear behind")
        self.irreps_in1, self.irreps_in2, self.irreps_out = one.irreps, two.irreps, out.irreps
        self.layout, self.backend, self.trainable = layout, backend, trainable
        self.mode = "uuu" if two.channels in (1, one.channels) else "uvu"
        self._seed = integer(name, "seed", seed)
        self.fit = cp.fit(*(f.irreps for f in self._fields), rank, seed=seed, cache=cache)
        self._shape = (one.channels,) if self.mode == "uuu" else (one.channels, two.channels)
        self.weight_numel = one.channels * (1 if self.mode == "uuu" else two.channels)
        self._warn(name)
        self.internal_weights = internal_weights
        self.weight = nn.Parameter(torch.randn(self.weight_numel)) if internal_weights else None
        self._scale = two.channels**-0.5 if self.mode == "uvu" and two.channels else 1.0
        if trainable:
            self.A, self.B, self.C = (nn.Parameter(t.to(torch.get_default_device(), torch.get_default_dtype()))
                                      for t in self.fit.factors)
            self.table = None
        else:
            self.table = self._made(self.fit.factors)

    def _warn(self, name: str) -> None:
        if self.weight_numel and self.fit.rank > (most := rank_to(self._fields)):
            warnings.warn(f"{name}: rank {self.fit.rank} is above {most}, to which factors take less time than the "
                          "exact ace_fast.nn.TensorProduct, which has a weight for every path; see docs/products.md",
                          stacklevel=3)

    def _made(self, tables: Factors) -> CPTable:
        """The operator's table of degrees 0..L; what the irreps lack has factors 0."""
        one, two, out = self._fields
        return CPTable(_all_degrees(out, tables.A), _all_degrees(one, tables.B.T), _all_degrees(two, tables.C.T),
                       trainable=self.trainable)

    def get_extra_state(self) -> Tensor:
        """Which map the weights belong to, as JSON in bytes: the degrees, rank and seed of its fit and, of frozen
        factors, numbers that depend on the map alone."""
        about = {"format": _FORMAT, "degrees": ["+".join(map(str, f.irs)) for f in self._fields],
                 "rank": "exact" if self.fit.exact else self.fit.rank, "seed": self._seed, "trainable": self.trainable,
                 "map": [float(f"{value:.9e}") for value in _probed(self.fit.factors)]}
        return torch.tensor(list(json.dumps(about).ljust(_LENGTH).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Raises ValueError where the weights of a checkpoint belong to another map than this layer's.

        Factors that were trained are in the checkpoint; those that are frozen are compared, whatever their rank.
        """
        theirs = json.loads(bytes(state.tolist()))
        mine = json.loads(bytes(self.get_extra_state().tolist()))
        if theirs["format"] != _FORMAT:
            self._refuse(f"format {_FORMAT}", theirs["format"], "update ace_fast")
        for key, remedy in (("degrees", "build the layer with those"), ("trainable", "build it with trainable=True")):
            if theirs[key] != mine[key] and (key == "degrees" or theirs[key]):
                self._refuse(f"{key} {mine[key]}", theirs[key], remedy)
        if not theirs["trainable"]:
            one, two = (torch.tensor(about["map"], dtype=torch.float64, device="cpu") for about in (mine, theirs))
            if not (away := float((one - two).norm() / two.norm())) <= _SAME:
                self._refuse(f"the map of rank {mine['rank']}, seed {mine['seed']}",
                             f"that of rank {theirs['rank']}, seed {theirs['seed']}, {away:.1g} away",
                             "build the layer with that rank and seed, and cache= the folder of its fit where another "
                             "machine made it")

    def _refuse(self, expected: str, got, remedy: str) -> None:
        raise ValueError(f"{type(self).__name__}: the checkpoint must be of {expected}, got {got}; {remedy}")

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *rest):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if (key := f"{prefix}_extra_state") in missing_keys:  # of a checkpoint that does not say
            missing_keys.remove(key)

    def __repr__(self) -> str:
        return (f"{type(self).__name__}({self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out} | rank "
                f"{self.fit.rank} | {self.weight_numel} weights)")

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """x [..., irreps_in1.dim], y [..., irreps_in2.dim] -> [..., irreps_out.dim], leading dimensions broadcast;
        weight [weight_numel] or [..., weight_numel] where internal_weights is False."""
        one, two, out = self._fields
        check_columns(type(self).__name__, x=(x, one.dim), y=(y, two.dim))
        (x, y), weight, lead = as_rows(type(self).__name__, weight_of_call(self, x, weight), x=x, y=y)
        weight = weight.unflatten(-1, self._shape)
        table = self.table if self.table is not None else self._made(Factors(self.A, self.B, self.C))
        f, g = (field.field(value, (1.0,) * len(field.irs), field.lmax) for field, value in ((one, x), (two, y)))
        z = functional.cp_product(f, g, weight * self._scale, table=table, mode=self.mode, layout=self.layout,
                                  backend=self.backend)
        z = out.rows([(z, (1.0,) * len(out.irs))], x)
        return z if len(lead) == 1 else z.reshape(*lead, out.dim)


def rank_to(fields: tuple[Fields, Fields, Fields]) -> int:
    """The largest rank R at which factors take less time than the exact product, on a CPU.

    A column costs R (d1 + d2 + d3) by factors, of degrees 0..L, and (2 l1 + 1) (2 l2 + 1) (2 l3 + 1) for each path
    exactly: what these count takes about the same time, as measured (docs/products.md). Where all channels of x share
    those of y, y meets the coefficients once for all of them: half of it for each channel of y.
    """
    one, two, _ = fields
    exact = sum(prod(field.irs[n].dim for field, n in zip(fields, path, strict=True)) for path in cp.allowed(fields))
    if two.channels != one.channels:
        exact = exact * two.channels // 2
    return exact // sum((field.lmax + 1) ** 2 for field in fields)


def _all_degrees(field: Fields, table: Tensor) -> Tensor:
    """The rows [d, R] of the irreps of a field at the components of degrees 0..L, [(L + 1)^2, R]."""
    blocks = {ir.l: table[at:at + ir.dim] for ir, at in zip(field.irs, field.starts, strict=True)}
    return torch.cat([blocks[n] if n in blocks else table.new_zeros(2 * n + 1, table.shape[1])
                      for n in range(field.lmax + 1)])


def _probed(tables: Factors) -> list[float]:
    """What the bilinear map with these factors gives for a few fixed inputs, the same for any factors of the map."""
    def waves(d: int, shift: float) -> Tensor:
        angles = torch.arange(1, 1 + d * _PROBES, dtype=torch.float64, device="cpu").view(_PROBES, d)
        return torch.cos(angles**2 * 0.7548776662466927 + shift)

    A, B, C = tables
    x, y, z = (waves(d, shift) for d, shift in zip((B.shape[1], C.shape[1], A.shape[0]), (0.0, 1.0, 2.0), strict=True))
    return (((x @ B.T) * (y @ C.T)) @ A.T * z).sum(1).tolist()
