"""e3nn's Gate: activated scalars beside tensors that activated gates scale."""

from itertools import accumulate, pairwise

import e3nn.nn
import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..kernels.tensor_product import GateTable
from . import peers
from .products import ElementwiseTensorProduct
from .tensor_product import check_columns, check_options

KINDS = {  # the functions and modules that are a nonlinearity of ours
    "silu": (nn.functional.silu, nn.SiLU),
    "sigmoid": (torch.sigmoid, nn.functional.sigmoid, nn.Sigmoid),
    "tanh": (torch.tanh, nn.functional.tanh, nn.Tanh),
    "relu": (torch.relu, nn.functional.relu, nn.ReLU),
}


class Gate(nn.Module):
    r"""Gate activation, a drop-in for `e3nn.nn.Gate`.

    .. math:: \bigl(\bigoplus_i \phi_i(x_i)\bigr) \oplus \bigl(\bigoplus_j \phi_j(g_j)\, y_j\bigr)

    Constructor, attributes, order of the input (sorted) and state_dict are e3nn's; e3nn's own Activation modules hold
    the activations with their second-moment constants. SiLU scalars with sigmoid gates, in the order scalars, gates,
    tensors, run as one operator; any other activations in plain torch, with the fused elementwise product.

    Args:
        irreps_scalars, act_scalars: scalars x and an activation (or None) for each of their slices.
        irreps_gates, act_gates: scalars g and an activation (or None) for each of their slices.
        irreps_gated: tensors y, one gate for each channel.
        layout: of features and result, "mul_ir" (e3nn's) or "ir_mul".
        backend: which implementation of the operators runs.

    Raises:
        ValueError: scalars or gates that are none, other numbers of gates than of gated channels, of activations than
            of slices, or an activation that breaks the parity.

    Derivatives of any order that the activations have.

    Example:
        >>> gate = ace_fast.nn.Gate("16x0o", [torch.tanh], "32x0o", [torch.tanh], "16x1e+16x1o")
        >>> gate.irreps_out
        16x0o+16x1o+16x1e
    """

    def __init__(self, irreps_scalars, act_scalars, irreps_gates, act_gates, irreps_gated, *, layout="mul_ir",
                 backend="auto"):
        super().__init__()
        check_options(type(self).__name__, layout=layout)
        self._adopt(e3nn.nn.Gate(irreps_scalars, act_scalars, irreps_gates, act_gates, irreps_gated), layout, backend)

    def _adopt(self, like: e3nn.nn.Gate, layout: str, backend: str) -> None:
        """Takes over irreps and activations (the same modules) of an e3nn module."""
        for key in ("irreps_scalars", "irreps_gates", "irreps_gated", "irreps_in", "irreps_out", "act_scalars",
                    "act_gates"):
            setattr(self, key, getattr(like, key))
        self.layout, self.backend, self._dim = layout, backend, like.irreps_in.dim
        self.mul = ElementwiseTensorProduct.from_e3nn(like.mul, backend, layout)
        # where scalars, gates and gated tensors lie in the sorted input
        pieces = like.sc.cut.irreps_in
        self._ranges = [_joined([pieces.slices()[i] for i in part]) for part in like.sc.cut.instructions]
        # slices of which parts are taken, so that in ir_mul what belongs together does not lie together
        self._cuts = [_cut(whole, parts) if layout == "ir_mul" else [] for whole, parts in (
            (self.irreps_in, pieces), (self.irreps_gated, self.mul.irreps_in1))]
        self.gate_table = self._fused()

    def _fused(self) -> GateTable | None:
        """What the fused operator needs to be this gate; None where it cannot be."""
        gains = _gain(self.act_scalars.acts, "silu"), _gain(self.act_gates.acts, "sigmoid")
        dims = [self.irreps_scalars.dim, self.irreps_gates.dim, self.irreps_gated.dim]
        ends = list(accumulate(dims))
        in_order = [[(end - dim, end)] if dim else [] for dim, end in zip(dims, ends, strict=True)]
        if None in gains or self._ranges != in_order or any(self._cuts) or self.backend in peers.NAMES:
            return None
        return GateTable((*dims[:2], *(v for mul, ir in self.irreps_gated for v in (mul, ir.dim))), *gains)

    @classmethod
    def from_e3nn(cls, module: e3nn.nn.Gate, backend: str = "auto", layout: str = "mul_ir"):
        """This layer with the very activations of an e3nn module."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._adopt(module, layout, backend)
        return new.train(module.training)

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.irreps_in} -> {self.irreps_out})"

    def forward(self, features: Tensor) -> Tensor:
        """features [..., irreps_in.dim] -> [..., irreps_out.dim]."""
        check_columns(type(self).__name__, features=(features, self._dim))
        if self.gate_table is not None:
            return functional.gate(features, self.gate_table, layout=self.layout, backend=self.backend)
        features = _apart(features, self._cuts[0])
        scalars, gates, gated = (_taken(features, ranges) for ranges in self._ranges)
        scalars = self.act_scalars(scalars)
        if not gates.shape[-1]:
            return scalars
        gated = _apart(gated, self._cuts[1])
        return torch.cat([scalars, self.mul(gated, self.act_gates(gates))], -1)


def kind(activation) -> str | None:
    """Which nonlinearity of ours (KINDS) a function or module is, if any."""
    return next((name for name, kinds in KINDS.items() if activation in kinds or type(activation) in kinds), None)


def _gain(acts: nn.ModuleList, name: str) -> float | None:
    """e3nn's constant of the activations where all are this one, else None."""
    gain = 1.0
    for act in acts:
        if act is None or kind(act.f) != name:
            return None
        gain = 1.0 if act._is_id else act.cst
    return gain


def _joined(slices: list[slice]) -> list[tuple[int, int]]:
    """The slices as (start, stop), neighbours joined and empty ones left out."""
    ranges: list[tuple[int, int]] = []
    for s in slices:
        if ranges and ranges[-1][1] == s.start:
            ranges[-1] = (ranges[-1][0], s.stop)
        elif s.stop > s.start:
            ranges.append((s.start, s.stop))
    return ranges


def _taken(x: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    parts = [x[..., start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1) if parts else x[..., :0]


def _cut(irreps: o3.Irreps, pieces: o3.Irreps) -> list[tuple[int, int, list[int]]]:
    """(start, 2l+1, multiplicities of its pieces) of every slice of `irreps` that `pieces` cut."""
    ends = list(accumulate(mul for mul, _ in pieces))
    found, channel = [], 0
    for (mul, ir), s in zip(irreps, irreps.slices(), strict=True):
        inner = [channel, *(e for e in ends if channel < e < channel + mul), channel + mul]
        if len(inner) > 2 and ir.dim > 1:
            found.append((s.start, ir.dim, [b - a for a, b in pairwise(inner)]))
        channel += mul
    return found


def _apart(x: Tensor, cuts: list[tuple[int, int, list[int]]]) -> Tensor:
    """x [..., dim] in ir_mul, where the channels of each piece of a slice lie together."""
    parts, start = [], 0
    for at, d, widths in cuts:
        block = x[..., at:at + d * sum(widths)].unflatten(-1, (d, sum(widths)))
        parts += [x[..., start:at], *(piece.flatten(-2) for piece in block.split(widths, -1))]
        start = at + d * sum(widths)
    return torch.cat([*parts, x[..., start:]], -1) if cuts else x
