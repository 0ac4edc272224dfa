"""A gated unconstrained linear map beside an equivariant one."""

import torch
from torch import Tensor, nn

from .. import functional
from .gates import Seen, add_gates


class RelaxedLinear(nn.Module):
    r"""An unconstrained branch with its gate, added to an equivariant result in one kernel.

    .. math:: y = base + \gamma (x W^T + b) + residual

    Args:
        in_features, out_features, bias: as in `torch.nn.Linear`, same initialisation.
        gamma_init: the gate at the start; the ACE method drives it to zero where the data are symmetric.
        backend: which implementation of the operator runs.

    Attributes:
        relaxed: False switches the branch off (strict evaluation) without looking at gamma.
        snapped: (True,) has ACE switched it off for good.

    Raises:
        ValueError: wrong shapes.

    Derivatives in x, weight, bias, gamma, base and residual. Source: ACE (Manolache et al. 2025), section 4.

    Example:
        >>> layer = ace_fast.nn.RelaxedLinear(4, 3)
        >>> layer(torch.randn(5, 4), base=torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, in_features, out_features, bias=True, gamma_init=1.0, *, backend="auto"):
        super().__init__()
        self.in_features, self.out_features, self.backend = in_features, out_features, backend
        linear = nn.Linear(in_features, out_features, bias)
        self.weight = linear.weight  # [O, I]
        self.register_parameter("bias", linear.bias)  # [O]
        self.gamma = nn.Parameter(torch.tensor(float(gamma_init)))
        self.relaxed = True
        add_gates(self, 1)

    def get_gammas(self) -> list[nn.Parameter]:
        return [self.gamma]

    def gate_maps(self, gate: int) -> list[nn.Module]:
        """The linear maps of the gate's branch: the layer itself."""
        return [self]

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"relaxed={self.relaxed}")

    def forward(self, x: Tensor, base: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x [N, I], base and residual [N, O] -> [N, O]; with `relaxed` False only base + residual."""
        if not self.relaxed or self.snapped[0]:
            present = [t for t in (base, residual) if t is not None]
            return sum(present[1:], present[0]) if present else x.new_zeros(x.shape[0], self.out_features)
        if self._record is not None and base is not None:
            branch = lambda: functional.relaxed_linear(x, self.weight, self.bias, backend=self.backend)  # noqa: E731
            self._record(Seen(0, self.gamma, x, base, branch))
        return functional.relaxed_linear(x, self.weight, self.bias, self.gamma, base, residual, backend=self.backend)
