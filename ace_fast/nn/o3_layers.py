"""The tensor product layers of the SEGNN code: rescaled, with bias, with gate."""

import functools
from math import sqrt

import torch
from e3nn import o3
from e3nn.math import normalize2mom
from torch import Tensor, nn

from ..kernels.tensor_product import GateTable, ProductTable
from .products import FullyConnectedTensorProduct
from .tensor_product import apply_product


def gated_irreps(name: str, irreps_out) -> tuple[o3.Irreps, tuple[int, ...]]:
    """The irreps of a product whose Gate returns irreps_out (scalars, gates, gated tensors), and the Gate's layout."""
    out = o3.Irreps(irreps_out)
    if len(out) == 0 or out[0].ir != o3.Irrep("0e"):
        raise ValueError(f"{name}: irreps_out must begin with even scalars (0e), got {out}; put them first")
    scalars, gated = out[:1], out[1:]
    gates = o3.Irreps([(gated.num_irreps, "0e")])
    taken = (scalars + gates + gated).simplify()
    expected = (scalars + gates + gated.simplify()).sort().irreps.simplify()
    if taken != expected:
        raise ValueError(f"{name}: e3nn's Gate takes {expected}, got {taken}; give the gated part of irreps_out in "
                         "sorted order, each degree odd before even, without scalars")
    inner = (v for mul, ir in gated.simplify() for v in (mul, ir.dim))
    return taken, (scalars.num_irreps, gated.num_irreps, *inner)


def gate_gains(layout: tuple[int, ...]) -> tuple[float, float]:
    """The constants of the Gate's scalars and gates; where nothing is gated a plain SiLU is applied."""
    return _gains() if layout[1] else (1.0, 1.0)


@functools.cache
def _gains() -> tuple[float, float]:
    """e3nn's second-moment constants of SiLU and sigmoid, as its Gate computes them."""
    with torch.device("cpu"):
        return float(normalize2mom(nn.functional.silu).cst), float(normalize2mom(torch.sigmoid).cst)


def fan_in_of(name: str, irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps) -> list[int]:
    """Numbers summed up in each slice of a fully connected product: sum of U V over its paths.

    Raises:
        ValueError: an output slice that no path reaches.
    """
    found = []
    for mul, ir in irreps_out:
        found.append(sum(m * n for m, a in irreps_in1 for n, b in irreps_in2 if ir in a * b))
        if mul and not found[-1]:
            raise ValueError(f"{name}: every slice of irreps_out must be reachable from {irreps_in1} x {irreps_in2}, "
                             f"got {mul}x{ir}; drop it or raise the degrees of irreps_in2")
    return found


class O3TensorProduct(nn.Module):
    r"""Fully connected tensor product, rescaled as `torch.nn.Linear`, with a bias on the even scalars.

    .. math:: y^l = \sqrt{2l+1} \sum_{paths} W\, C(x, a) + b\, [l = 0, even]

    The order of the arguments is in1, out, in2. Parameters `tp.weight` and `biases`, their order and their initial
    values (uniform in +-1/sqrt(fan_in)) are the SEGNN code's; its checkpoints load by name. One difference: the
    original also biases odd scalars (0o), which is not equivariant under reflections; here they have no bias.

    Args:
        irreps_in1: of the features.
        irreps_out: of the result; every slice must be reachable.
        irreps_in2: of the attributes, 1x0e where None.
        tp_rescale: False keeps e3nn's own normalisation of the product.
        backend: which implementation of the operator runs.

    Raises:
        ValueError: an output slice that no path reaches (the original returns NaN there).

    Derivatives of any order. Source: SEGNN (Brandstetter et al. 2022), O3TensorProduct.
    """

    def __init__(self, irreps_in1, irreps_out, irreps_in2=None, tp_rescale=True, *, backend="auto"):
        super().__init__()
        self.irreps_in1, self.irreps_out = o3.Irreps(irreps_in1), o3.Irreps(irreps_out)
        self.irreps_in2_provided = irreps_in2 is not None
        self.irreps_in2 = o3.Irreps("1x0e" if irreps_in2 is None else irreps_in2)
        self.tp_rescale = tp_rescale
        self.backend = backend
        self.tp = FullyConnectedTensorProduct(self.irreps_in1, self.irreps_in2, self.irreps_out, backend=backend)
        fan_in = fan_in_of(type(self).__name__, self.irreps_in1, self.irreps_in2, self.irreps_out)
        # the rescaling is part of the coefficients, not a pass over the output
        paths = [
            (*ins[:5], ins.path_weight * (sqrt(fan_in[ins.i_out]) if tp_rescale else 1.0))
            for ins in self.tp.instructions if 0 not in ins.path_shape
        ]
        self.table = ProductTable(self.irreps_in1, self.irreps_in2, self.irreps_out, paths, bias=True)
        bias = torch.zeros(self.table.bias_numel, dtype=self.tp.weight.dtype, device=self.tp.weight.device)
        self.register_parameter("biases", nn.Parameter(bias) if self.table.bias_numel else None)
        self.gate_table: GateTable | None = None
        self._initialise(fan_in)

    @torch.no_grad()
    def _initialise(self, fan_in: list[int]) -> None:
        for ins, block in zip(self.tp.instructions, self.tp.weight_views(), strict=True):
            bound = 1 / sqrt(fan_in[ins.i_out]) if self.tp_rescale and fan_in[ins.i_out] else 1.0
            block.uniform_(-bound, bound)
        start = 0
        for k, (mul, ir) in enumerate(self.irreps_out):
            if mul and ir == o3.Irrep("0e"):
                bound = 1 / sqrt(fan_in[k])
                self.biases[start:start + mul].uniform_(-bound, bound)
                start += mul

    def forward(self, data_in1: Tensor, data_in2: Tensor | None = None) -> Tensor:
        """data_in1 [..., irreps_in1.dim], data_in2 [..., irreps_in2.dim] (None: 1) -> [..., irreps_out.dim]."""
        name = type(self).__name__
        if data_in2 is None:
            if self.irreps_in2.dim != 1:
                raise ValueError(f"{name}: data_in2 must be [..., {self.irreps_in2.dim}], got None; "
                                 "pass the attributes, or build the layer without irreps_in2")
            data_in2 = torch.ones_like(data_in1[..., :1])
        return apply_product(name, data_in1, data_in2, self.tp.weight, self.table, self.biases, self.gate_table,
                             self.backend)

    def extra_repr(self) -> str:
        return f"bias={self.table.bias_numel}, tp_rescale={self.tp_rescale}"


class O3TensorProductSwishGate(O3TensorProduct):
    """`O3TensorProduct` followed by e3nn's Gate (SiLU on scalars, one sigmoid gate per other irrep), in one kernel.

    The first slice of irreps_out are the scalars, all others are gated; the gates are additional scalars of the
    product. Gains are e3nn's constants; where nothing is gated a plain SiLU is applied, as in the original.

    Args:
        irreps_in1, irreps_out, irreps_in2, backend: as in `O3TensorProduct`.

    Raises:
        ValueError: irreps_out does not begin with even scalars, or its gated part is not in the sorted order that
            e3nn's Gate assumes (the original would gate the wrong numbers; odd scalars cannot be gated therefore).
    """

    def __init__(self, irreps_in1, irreps_out, irreps_in2=None, *, backend="auto"):
        taken, layout = gated_irreps("O3TensorProductSwishGate", irreps_out)
        super().__init__(irreps_in1, taken, irreps_in2, backend=backend)
        self.gate_table = GateTable(layout, *gate_gains(layout))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.gate_table.layout[1]:
            gated = sum(m * d for m, d in zip(*(self.gate_table.layout[i::2] for i in (2, 3)), strict=True))
            destination[prefix + "gate.mul.weight"] = self.tp.weight.detach().new_zeros(0)
            destination[prefix + "gate.mul.output_mask"] = self.tp.output_mask.new_ones(gated)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in [key for key in state_dict if key.startswith(prefix + "gate.")]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)
