"""The SEGNN code's layers on Gaunt products: the same signature, a linear map before, between and behind."""

from math import sqrt

import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..kernels.tensor_product import GateTable
from .gaunt import GauntTensorProduct
from .linear import Linear
from .o3_layers import fan_in_of, gate_gains, gated_irreps
from .tensor_product import WIDE, check_columns, check_dtypes

_FEW = 32  # channels up to which those of the input count: the scale of a sum of fewer products is left to chance


class O3GauntProduct(nn.Module):
    r"""Fully connected Gaunt product with a bias on the even scalars, in the place of `O3TensorProduct`.

    .. math:: y = V (A x \cdot B a) + b\, [l = 0, even]

    with linear maps A, B to R channels of every irrep and V back, and the product of `GauntTensorProduct`: the weights
    of all paths of all channels are a sum of R separable terms in place of a free matrix each.

    The order of the arguments is in1, out, in2, as in the SEGNN code.

    Args:
        irreps_in1: of the features. irreps_out: of the result.
        irreps_in2: of the attributes, 1x0e where None.
        channels: R; None for the largest multiplicity of irreps_out, or of irreps_in1 up to 32 where that is larger.
        odd_paths: has the antisymmetric paths too, where the irreps have any (natural ones, 0e+1o+2e, have none):
            then every path of `O3TensorProduct` is there.
        backend: which implementation of the operators runs.

    It starts at the scale of `O3TensorProduct`: a mean square of 1/3 for normal inputs, and biases as there.

    Raises:
        ValueError: an output slice that no path reaches (odd_paths named where it would), channels below 1.

    Derivatives of any order. Source: Luo, Chen, Krishnapriyan 2024; SEGNN (Brandstetter et al. 2022).
    """

    def __init__(self, irreps_in1, irreps_out, irreps_in2=None, channels=None, *, odd_paths=True, backend="auto"):
        super().__init__()
        self.irreps_in1, self.irreps_out = o3.Irreps(irreps_in1), o3.Irreps(irreps_out)
        self.irreps_in2 = o3.Irreps("1x0e" if irreps_in2 is None else irreps_in2)
        if channels is None:
            channels = max(_largest(self.irreps_out), min(_largest(self.irreps_in1), _FEW), 1)
        if channels < 1:
            raise ValueError(f"{type(self).__name__}: channels must be at least 1, got {channels}")
        fan_in = fan_in_of(type(self).__name__, self.irreps_in1, self.irreps_in2, self.irreps_out)
        self.backend, self._widths = backend, (self.irreps_in1.dim, self.irreps_in2.dim)
        inner = [[(channels, ir) for ir in dict.fromkeys(ir for mul, ir in irreps if mul)]
                 for irreps in (self.irreps_in1, self.irreps_in2, self.irreps_out)]
        self.linear_in1 = Linear(self.irreps_in1, o3.Irreps(inner[0]), backend=backend)
        self.linear_in2 = Linear(self.irreps_in2, o3.Irreps(inner[1]), backend=backend)
        # the linear maps hold all weights of degrees and channels
        self.tp = GauntTensorProduct(*inner, odd_paths=odd_paths, internal_weights=None, backend=backend)
        self.linear_out = Linear(o3.Irreps(inner[2]), self.irreps_out, biases=True, backend=backend)
        self._initialise(fan_in)

    @torch.no_grad()
    def _initialise(self, fan_in: list[int]) -> None:
        self.linear_out.weight /= sqrt(3)  # of unit variance so far, as is all before
        scalars = [(mul, n) for (mul, ir), n in zip(self.irreps_out, fan_in, strict=True) if ir == o3.Irrep("0e")]
        for bias, (_, n) in zip(self.linear_out.bias.split([mul for mul, _ in scalars]), scalars, strict=True):
            bias.uniform_(-1 / sqrt(n or 1), 1 / sqrt(n or 1))

    def forward(self, data_in1: Tensor, data_in2: Tensor | None = None) -> Tensor:
        """data_in1 [..., irreps_in1.dim], data_in2 [..., irreps_in2.dim] (None: 1) -> [..., irreps_out.dim]."""
        name, (width, other) = type(self).__name__, self._widths
        if data_in2 is None:
            if other != 1:
                raise ValueError(f"{name}: data_in2 must be [..., {other}], got None; pass the attributes, or build "
                                 "the layer without irreps_in2")
            data_in2 = data_in1.new_ones(*data_in1.shape[:-1], 1)
        check_columns(name, data_in1=(data_in1, width), data_in2=(data_in2, other))
        if data_in1.dtype != data_in2.dtype or data_in1.dtype not in WIDE:
            check_dtypes(name, data_in1[:0], self.backend, data_in1=data_in1, data_in2=data_in2)
        return self.linear_out(self.tp(self.linear_in1(data_in1), self.linear_in2(data_in2)))


class O3GauntProductSwishGate(O3GauntProduct):
    """`O3GauntProduct` followed by e3nn's Gate, in the place of `O3TensorProductSwishGate`.

    Args:
        irreps_in1, irreps_out, irreps_in2, odd_paths, backend: as in `O3GauntProduct`.
        channels: R; None for the largest multiplicity of irreps_out.

    Raises:
        ValueError: as `O3GauntProduct` and `O3TensorProductSwishGate`.
    """

    def __init__(self, irreps_in1, irreps_out, irreps_in2=None, channels=None, *, odd_paths=True, backend="auto"):
        taken, layout = gated_irreps(type(self).__name__, irreps_out)
        if channels is None:
            channels = _largest(o3.Irreps(irreps_out))
        super().__init__(irreps_in1, taken, irreps_in2, channels, odd_paths=odd_paths, backend=backend)
        self.gate_table = GateTable(layout, *gate_gains(layout))

    def forward(self, data_in1: Tensor, data_in2: Tensor | None = None) -> Tensor:
        """data_in1 [..., irreps_in1.dim], data_in2 [..., irreps_in2.dim] (None: 1) -> the gated part."""
        return functional.gate(super().forward(data_in1, data_in2), self.gate_table, backend=self.backend)


def _largest(irreps: o3.Irreps) -> int:
    return max((mul for mul, _ in irreps), default=0)
