"""EGNN's layer and network with EGNO's constructors and parameter names, on the fused message."""

import torch
from torch import Tensor, nn

from .. import functional
from ..graph import Graph


class _MLP(nn.Module):
    """Linear, SiLU, Linear under the original's name `mlp`."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))

    def parts(self) -> tuple[Tensor, ...]:
        """weight, bias, weight, bias"""
        first, _, last = self.mlp
        return first.weight, first.bias, last.weight, last.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class _ScalarNet(nn.Module):
    """The edge network under the original's name `scalar_net`; its last activation is the operator's."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.scalar_net = _MLP(inputs, hidden, hidden)


def _check_options(name: str, activation, flat: bool, norm: bool) -> None:
    if not isinstance(activation, nn.SiLU):
        raise ValueError(f"{name}: activation must be nn.SiLU(), got {activation!r}; the fused message has no other")
    for option, value in (("flat", flat), ("norm", norm)):
        if value:
            raise ValueError(f"{name}: {option} must be False, got {value}; the fused message has no such option")


class EGNN_Layer(nn.Module):  # noqa: N801, the original's name
    r"""One layer of EGNN as EGNO has it, a drop-in for its `EGNN_Layer`.

    .. math:: x_i' = x_i + \phi_v(h_i) v_i + X_i, \qquad h_i' = \phi_h([h_i, M_i])

    X (mean over the edges, clamped to +-100) and M (sum) are those of `functional.egnn_message`. The features are
    replaced, not added to; v is returned as it came.

    Args:
        in_edge_nf: features of an edge.
        hidden_nf: features of a node, and the width of all networks.
        activation: nn.SiLU(), the only one.
        with_v: has a network for the velocity's part.
        flat, norm: the original's; only False.
        recompute: True keeps nothing of edge size for the gradient, see `functional.egnn_message`.
        backend: which implementation of the operator runs.

    Raises:
        ValueError: another activation, flat or norm, and what `functional.egnn_message` raises.

    State dictionaries load both ways between this class and the original's. Source: EGNN (Satorras et al. 2021), EGNO
    (Xu et al. 2024).

    Example:
        >>> layer = ace_fast.nn.EGNN_Layer(in_edge_nf=2, hidden_nf=16, with_v=True)
        >>> edge_index = torch.tensor([[0, 1, 1], [1, 0, 2]])
        >>> x, v, h = layer(torch.randn(3, 3), torch.randn(3, 16), edge_index, torch.randn(3, 2), torch.randn(3, 3))
        >>> x.shape, h.shape
        (torch.Size([3, 3]), torch.Size([3, 16]))
    """

    def __init__(self, in_edge_nf, hidden_nf, activation=nn.SiLU(), with_v=False, flat=False,  # noqa: B008
                 norm=False, *, recompute=False, backend="auto"):
        super().__init__()
        _check_options(type(self).__name__, activation, flat, norm)
        self.with_v, self.recompute, self.backend = with_v, recompute, backend
        self.edge_message_net = _ScalarNet(1 + 2 * hidden_nf + in_edge_nf, hidden_nf)
        self.coord_net = _MLP(hidden_nf, hidden_nf, 1)
        self.node_net = _MLP(2 * hidden_nf, hidden_nf, hidden_nf)
        self.node_v_net = _MLP(hidden_nf, hidden_nf, 1) if with_v else None

    def forward(self, x: Tensor, h: Tensor, edge_index: Tensor | Graph, edge_fea: Tensor | None = None,
                v: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """x', v, h'.

        Args:
            x: [N, 3], positions; h: [N, hidden_nf]; edge_fea: [E, in_edge_nf], or None where that is 0.
            edge_index: [2, E] int64 in the original's order, sums at the nodes of row 0; or an `ace_fast.Graph`, whose
                targets these are: `Graph(edge_index.flip(0), N)`.
            v: [N, 3], velocities, or None.
        """
        if v is not None and self.node_v_net is None:
            raise ValueError(f"{type(self).__name__}: v must be None where with_v is False, got a tensor")
        graph = edge_index if isinstance(edge_index, Graph) else Graph(edge_index.flip(0), x.shape[0])
        edge = edge_fea if edge_fea is None or edge_fea.shape[1] else None
        shift, message = functional.egnn_message(
            x, h, graph, *self.edge_message_net.scalar_net.parts(), *self.coord_net.parts(), edge=edge,
            recompute=self.recompute, backend=self.backend)
        x = x + shift if v is None else x + self.node_v_net(h) * v + shift
        return x, v, self.node_net(torch.cat((h, message), -1))


class EGNN(nn.Module):
    """EGNN as EGNO's code has it: an embedding and `n_layers` of `EGNN_Layer`.

    Args:
        n_layers: layers.
        in_node_nf, in_edge_nf: features of a node and of an edge.
        hidden_nf: width of all networks.
        activation, with_v, flat, norm, recompute, backend: `EGNN_Layer`'s.
        device: where the parameters are made.

    Raises:
        ValueError: as `EGNN_Layer`.

    State dictionaries load both ways between this class and the original's.

    Example:
        >>> model = ace_fast.nn.EGNN(n_layers=2, in_node_nf=4, in_edge_nf=2, hidden_nf=16)
        >>> x, h = model(torch.randn(3, 3), torch.randn(3, 4), torch.tensor([[0, 1], [1, 0]]), torch.randn(2, 2))
        >>> x.shape, h.shape
        (torch.Size([3, 3]), torch.Size([3, 16]))
    """

    def __init__(self, n_layers, in_node_nf, in_edge_nf, hidden_nf, activation=nn.SiLU(), device="cpu",  # noqa: B008
                 with_v=False, flat=False, norm=False, *, recompute=False, backend="auto"):
        super().__init__()
        _check_options(type(self).__name__, activation, flat, norm)
        self.n_layers, self.with_v = n_layers, with_v
        self.embedding = nn.Linear(in_node_nf, hidden_nf)
        self.layers = nn.ModuleList(
            EGNN_Layer(in_edge_nf, hidden_nf, activation, with_v, recompute=recompute, backend=backend)
            for _ in range(n_layers))
        self.to(device)

    def forward(self, x: Tensor, h: Tensor, edge_index: Tensor | Graph, edge_fea: Tensor | None = None,
                v: Tensor | None = None) -> tuple[Tensor, ...]:
        """(x', v, h'), or (x', h') without v; arguments as `EGNN_Layer`'s, with h [N, in_node_nf]."""
        graph = edge_index if isinstance(edge_index, Graph) else Graph(edge_index.flip(0), x.shape[0])
        h = self.embedding(h)
        for layer in self.layers:
            x, v, h = layer(x, h, graph, edge_fea, v=v)
        return (x, h) if v is None else (x, v, h)
