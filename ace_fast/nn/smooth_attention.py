"""EquiformerV3's attention over edges whose weights vanish smoothly at the cutoff."""

import torch
from torch import Tensor, nn

from .. import functional
from ..graph import Graph
from ..kernels.define import integer
from .tensor_product import check_floating, no_script, widened

_STEEPEST = 20.0  # largest logit of an edge with c = 0, beyond that of the others: of weight 0, with a finite slope


def polynomial_envelope(distance: Tensor, cutoff: float, p: int = 5) -> Tensor:
    r"""1 at distance 0, 0 from the cutoff on, with two continuous derivatives there.

    .. math:: 1 - \tfrac{(p+1)(p+2)}{2} x^p + p(p+2) x^{p+1} - \tfrac{p(p+1)}{2} x^{p+2}, \quad x = d / r_c

    Args:
        distance: d, any shape, in Å. cutoff: r_c in Å. p: its degree, at least 2.

    Returns:
        Of the same shape. Source: DimeNet (Gasteiger et al. 2020), equation 8.

    Raises:
        ValueError: a cutoff that is not positive, or a p that is no integer from 2 on.
    """
    if not cutoff > 0:
        raise ValueError(f"polynomial_envelope: cutoff must be strictly positive, got {cutoff}")
    p = integer("polynomial_envelope", "p", p, 2)
    x = (distance / cutoff).clamp(max=1.0)
    series = torch.zeros_like(x)  # of 1 / (1 - x)^3, to p terms: no difference of large terms at the cutoff
    for k in range(p, 0, -1):
        series = series * x + k * (k + 1) // 2
    return (1 - x) ** 3 * series


class SmoothCutoffAttention(nn.Module):
    r"""Softmax over the edges that end at a node, with an envelope inside and outside; no parameters.

    .. math:: \alpha_e = c_e \frac{c_e\, e^{z_e - m}}{\sum_{e'} c_{e'}\, e^{z_{e'} - m} + \epsilon}

    m is the largest z + log c of the node, c = env(d). The inner envelope makes the sum smooth where an edge comes or
    goes, the outer one the edge's own weight, also where it is a node's only edge: energies and forces are then
    continuous. EquiformerV3 takes the largest z: there an edge at the cutoff whose z is the largest by 30 or more
    pushes the others below epsilon, and they jump when it leaves.

    Args:
        eps: added to the sum; a node whose edges all lie at the cutoff, or have logits of -inf, gets weights 0.
        backend: which implementation of segment_sum runs.

    Raises:
        ValueError: no Graph, or rows that are not the graph's edges.

    Derivatives of any order in z, c and the values; m is a constant (alpha does not depend on it but for eps). Those in
    c at c = 0 grow as e^(z - m); they are finite, with z - m taken as 20 at most. bfloat16 is computed in float32 and
    rounded once. Source: EquiformerV3 (Liao et al. 2026), GraphSoftmax with exp_rescale.

    Example:
        >>> graph = ace_fast.Graph(torch.tensor([[0, 1, 2], [1, 2, 1]]), 3)
        >>> attention = ace_fast.nn.SmoothCutoffAttention()
        >>> c = ace_fast.nn.polynomial_envelope(torch.tensor([1.0, 2.0, 4.0]), 4.0)
        >>> attention(torch.zeros(3, 2), c, graph)[2]
        tensor([0., 0.])
    """

    def __init__(self, eps: float = 1e-16, *, backend="auto"):
        super().__init__()
        if not eps >= 0:
            raise ValueError(f"SmoothCutoffAttention: eps must be 0 or more, got {eps}")
        self.eps, self.backend = eps, backend

    def extra_repr(self) -> str:
        return f"eps={self.eps}"

    def __prepare_scriptable__(self):
        no_script(self)

    def forward(self, logits: Tensor, envelope: Tensor, graph: Graph, values: Tensor | None = None) -> Tensor:
        """logits z [E, H], envelope c [E], values [E, H, ...] or None -> alpha [E, H], or its sum over edges with the
        values, [num_targets, H, ...]."""
        self._check(logits, envelope, graph, values)
        targets, c, z = graph.targets, widened(envelope)[:, None], widened(logits)
        counts = c > 0
        z = z + torch.where(counts, c, 1).log()
        z = z - _largest(z.detach().masked_fill(~counts, -torch.inf), targets)  # of those that count at most 0
        weight = torch.where(counts, 1, c) * z.clamp(max=_STEEPEST).exp()
        total = functional.segment_sum(weight, targets, backend=self.backend)
        total = torch.where(total < 0.5, 1, total + self.eps)  # at least 1, but where no edge counts
        alpha = c * weight / functional.gather(total, targets, backend=self.backend)
        if values is None:
            return alpha.to(logits.dtype)
        alpha = alpha.reshape(*alpha.shape, *[1] * (values.dim() - 2))
        return functional.segment_sum(alpha * widened(values), targets, backend=self.backend).to(values.dtype)

    def _check(self, logits: Tensor, envelope: Tensor, graph: Graph, values: Tensor | None) -> None:
        name = type(self).__name__
        if not isinstance(graph, Graph):
            raise ValueError(f"{name}: graph must be an ace_fast.Graph, got {type(graph).__name__}")
        edges = graph.num_edges
        for argument, value in (("logits", logits), ("envelope", envelope), ("values", values)):
            if value is not None or argument != "values":
                check_floating(name, argument, value)
        if logits.dim() != 2 or logits.shape[0] != edges:
            raise ValueError(f"{name}: logits must be [{edges}, H], a row for each edge, got {list(logits.shape)}")
        if envelope.shape != (edges,):
            raise ValueError(f"{name}: envelope must be [{edges}], got {list(envelope.shape)}")
        if values is not None and values.shape[:2] != logits.shape:
            raise ValueError(f"{name}: values must be [{edges}, {logits.shape[1]}, ...], got {list(values.shape)}")


def _largest(logits: Tensor, targets) -> Tensor:
    """The largest row of each segment, for its rows, [E, H]; 0 where all are masked by -inf."""
    nodes = targets.ptr.shape[0] - 1
    index = targets.index[:, None].expand_as(logits)
    largest = logits.new_zeros(nodes, logits.shape[1]).scatter_reduce(0, index, logits, "amax", include_self=False)
    return largest.masked_fill(largest == -torch.inf, 0.0).gather(0, index)
