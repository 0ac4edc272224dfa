"""EGNO with the unconstrained branches of ACE: whole trajectories from one frame, strict or relaxed."""

import math

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .. import functional
from ..graph import Graph
from ..nn import EGNN, TimeConv, TimeConv_x, affine_chain, spectral_weights
from ..nn.gates import Seen, add_gates
from .branches import GAMMAS, Branched, gate_network, network_gate


def time_embedding(steps: int, width: int, like: Tensor) -> Tensor:
    """[steps, width]: sines, then cosines of t 10000^(-k / (width/2 - 1)), a zero at the end where width is odd."""
    half = width // 2
    rate = torch.exp(torch.arange(half, device=like.device, dtype=like.dtype) * (-math.log(10000) / max(half - 1, 1)))
    angle = torch.arange(steps, device=like.device, dtype=like.dtype)[:, None] * rate
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width % 2))


def _columns(pairs: list[tuple]) -> list:
    """The firsts of all layers, then the seconds: the order of the gates."""
    return [value for column in zip(*pairs, strict=True) for value in column]


def _spectral(inputs: int, outputs: int) -> nn.Module:
    return spectral_norm(nn.Linear(inputs, outputs), n_power_iterations=5)


class EGNO(Branched, EGNN):
    r"""Equivariant graph neural operator with the original's constructor and parameter names, relaxed by ACE.

    T copies of a graph, one a time step; each layer convolves features, and centred positions with velocities, along
    time, then exchanges messages within each step. Relaxed:

    .. math:: h \leftarrow h + \gamma^h_i p_i, \quad x \leftarrow x + \gamma^x_i q_i(x_0)

    p_i is a chain of batch norms and linear maps of the input features, which is affine in them (docs/algebra.md), and
    q_i an MLP of the positions x_0 that the layer's messages see, both with spectral norms of five power iterations.

    Args:
        n_layers, in_node_nf, in_edge_nf, hidden_nf, activation, device, with_v, flat, norm: `nn.EGNN`'s.
        use_time_conv: has the convolutions along time.
        num_modes, num_timesteps, time_emb_dim: Fourier modes, T, and numbers that encode a step.
        relaxed: adds the branches (`pos_linear_h`, `pos_interactions_h`, `pos_linear_x`, `pos_interactions_x`).
        gammas: "layer", two gates a layer; "single", one for features and one for positions; or "nn", two networks a
            layer that compute the gates of every node from its features and its branch, as in `SchNet`.
        recompute, backend: `nn.EGNN_Layer`'s.

    Attributes:
        disable_equivariance: True adds the branches (the original's name); a Python flag, gamma is never read.

    Raises:
        ValueError: an unknown option, modes that T steps do not have, inputs that do not fit.

    Source: EGNO (Xu et al. 2024), Manolache et al. 2025 (ACE).

    Example:
        >>> model = EGNO(2, 4, 2, 16, with_v=True, num_timesteps=5, relaxed=True)
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> x, v, h = model(torch.randn(3, 3), torch.randn(3, 4), edges, torch.randn(4, 2), torch.randn(3, 3))
        >>> x.shape, h.shape
        (torch.Size([15, 3]), torch.Size([15, 16]))
    """

    _flag = "disable_equivariance"

    def __init__(self, n_layers, in_node_nf, in_edge_nf, hidden_nf, activation=nn.SiLU(), device="cpu",  # noqa: B008
                 with_v=False, flat=False, norm=False, use_time_conv=True, num_modes=2, num_timesteps=8,
                 time_emb_dim=32, *, relaxed=False, gammas="layer", recompute=False, backend="auto"):
        super().__init__(n_layers, in_node_nf + time_emb_dim, in_edge_nf, hidden_nf, activation, "cpu", with_v, flat,
                         norm, recompute=recompute, backend=backend)
        if gammas not in GAMMAS:
            raise ValueError(f"EGNO: gammas must be one of {', '.join(GAMMAS)}, got {gammas!r}")
        if use_time_conv and not 1 <= num_modes <= num_timesteps // 2 + 1:
            raise ValueError(f"EGNO: num_modes must be 1 to {num_timesteps // 2 + 1} for num_timesteps "
                             f"{num_timesteps}, got {num_modes}")
        if time_emb_dim < 2:
            raise ValueError(f"EGNO: time_emb_dim must be at least 2, got {time_emb_dim}")
        self.use_time_conv, self.num_timesteps, self.time_emb_dim = use_time_conv, num_timesteps, time_emb_dim
        self.hidden_nf, self.backend = hidden_nf, backend
        if use_time_conv:
            self.time_conv_modules = nn.ModuleList(
                TimeConv(hidden_nf, hidden_nf, num_modes, activation, backend=backend) for _ in range(n_layers))
            self.time_conv_x_modules = nn.ModuleList(
                TimeConv_x(2, 2, num_modes, activation, backend=backend) for _ in range(n_layers))
        self.relaxed = self.disable_equivariance = relaxed
        if relaxed:
            width, count = in_node_nf + time_emb_dim, 1 if gammas == "single" else n_layers
            self.pos_linear_h = nn.Linear(width, hidden_nf)
            self.pos_linear_x = nn.Linear(3, 3)
            self.pos_interactions_h = nn.ModuleList(
                nn.Sequential(nn.BatchNorm1d(hidden_nf), _spectral(hidden_nf, hidden_nf)) for _ in range(n_layers))
            self.pos_interactions_x = nn.ModuleList(
                nn.Sequential(nn.BatchNorm1d(3), _spectral(3, hidden_nf), nn.SiLU(), nn.BatchNorm1d(hidden_nf),
                              _spectral(hidden_nf, 3)) for _ in range(n_layers))
            if gammas == "nn":
                self.gammas_h, self.gammas_x = (
                    nn.ModuleList(gate_network(hidden_nf + size, hidden_nf, "EGNO") for _ in range(n_layers))
                    for size in (hidden_nf, 3))
            else:
                self.gammas_h, self.gammas_x = (
                    nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(count)]) for _ in range(2))
        add_gates(self, len(self.get_gammas() or self.get_gate_networks()))
        self.to(device)

    def _layers(self) -> list[nn.Module]:
        return [self]

    def get_gammas(self) -> list[nn.Parameter]:
        """The gates of the features, then those of the positions; empty for a strict model, or with networks."""
        return [*self.gammas_h, *self.gammas_x] if self.relaxed and not self.get_gate_networks() else []

    def get_gate_networks(self) -> list[nn.Module]:
        """Those of the features, then those of the positions."""
        if not self.relaxed or not isinstance(self.gammas_h, nn.ModuleList):
            return []
        return [*self.gammas_h, *self.gammas_x]

    def gate_irreps(self, gate: int) -> tuple[o3.Irreps, o3.Irreps]:
        """What the branch of a gate reads and returns: invariant features, or positions."""
        if gate < len(self.snapped) // 2:
            return o3.Irreps(f"{self.pos_linear_h.in_features}x0e"), o3.Irreps(f"{self.pos_linear_h.out_features}x0e")
        return o3.Irreps("1x1o"), o3.Irreps("1x1o")

    def gate_maps(self, gate: int) -> list[nn.Module]:
        """The linear maps of a gate's branch, first to last."""
        count = len(self.snapped) // 2
        if gate < count:
            last = self.n_layers if count == 1 else gate + 1
            return [self.pos_linear_h, *(block[1] for block in self.pos_interactions_h[:last])]
        blocks = self.pos_interactions_x if count == 1 else [self.pos_interactions_x[gate - count]]
        return [self.pos_linear_x, *(block[place] for block in blocks for place in (1, 4))]

    def frames(self, edge_index: Tensor, num_nodes: int) -> Graph:
        """The graph of all T steps for edges [2, E] of one, sums at row 0: make it once for a skeleton."""
        steps = torch.arange(self.num_timesteps, device=edge_index.device)[:, None]
        both = (edge_index[:, None] + steps * num_nodes).flatten(1)  # [2, T E]
        return Graph(both.flip(0), self.num_timesteps * num_nodes)

    def forward(self, x: Tensor, h: Tensor, edge_index: Tensor | Graph, edge_fea: Tensor | None = None,
                v: Tensor | None = None, loc_mean: Tensor | None = None) -> tuple[Tensor, ...]:
        """(x', v', h') of every step [T N, ...], or (x', h') without v.

        Args:
            x: [N, 3] positions; h: [N, in_node_nf]; v: [N, 3] velocities, which convolution along time needs.
            edge_index: [2, E] int64 of one step, sums at the nodes of row 0; or `frames(edge_index, N)`.
            edge_fea: [E, in_edge_nf].
            loc_mean: [N, 3], mean position of each node's graph, which is taken off along time; zero if None.
        """
        steps, nodes = self.num_timesteps, x.shape[0]
        graph = edge_index if isinstance(edge_index, Graph) else self.frames(edge_index, nodes)
        if graph.num_nodes != steps * nodes:
            raise ValueError(f"EGNO: edge_index must be a Graph of {steps} x {nodes} nodes, got {graph!r}; make it "
                             "with frames(edge_index, num_nodes)")
        if self.use_time_conv and v is None:
            raise ValueError("EGNO: v must be a tensor where use_time_conv is True, got None")
        time = time_embedding(steps, self.time_emb_dim, x)
        h = torch.cat([h.repeat(steps, 1), time.repeat_interleave(nodes, 0)], 1)  # [T N, in + emb]
        relaxed = self.disable_equivariance and not all(self.snapped)
        chain = relaxed and not all(self.snapped[:len(self.snapped) // 2])
        weights = self._branch_weights(chain) if relaxed else {}
        maps = affine_chain(h, self.pos_linear_h, self.pos_interactions_h,
                            weights=[weights[last] for _, last in self.pos_interactions_h]) if chain else None
        h, x = self.embedding(h), x.repeat(steps, 1)
        v = None if v is None else v.repeat(steps, 1)
        edge_fea = None if edge_fea is None else edge_fea.repeat(steps, 1)
        norms: list[tuple[Tensor, Tensor]] = []  # of the gates that networks compute; of features and of positions
        seen: list[tuple[Seen | None, Seen | None]] = []
        for i, layer in enumerate(self.layers):
            if self.use_time_conv:
                h = self.time_conv_modules[i](h.view(steps, nodes, -1)).flatten(0, 1)
                x, v = self._along_time(i, x, v, loc_mean)
            before = x
            x, v, h = layer(x, h, graph, edge_fea, v=v)
            if relaxed:
                x, h = self._relax(maps, i, self._shift(i, before, weights), before, x, h, norms, seen)
        if self.get_gate_networks() and torch.is_grad_enabled():
            self.gate_norms = _columns(norms) or None
        for one in _columns(seen):
            if one is not None:
                self._record(one)
        return (x, h) if v is None else (x, v, h)

    def _along_time(self, i: int, x: Tensor, v: Tensor, loc_mean: Tensor | None) -> tuple[Tensor, Tensor]:
        steps = self.num_timesteps
        mean = x.new_zeros(1, 1, 3) if loc_mean is None else loc_mean
        pair = torch.stack([x.view(steps, -1, 3) - mean, v.view(steps, -1, 3)], -1)  # [T, N, 3, 2]
        pair = self.time_conv_x_modules[i](pair)
        return (pair[..., 0] + mean).flatten(0, 1), pair[..., 1].flatten(0, 1)

    def _places(self, i: int) -> tuple[int, int]:
        """Of layer i's gates of features and of positions among all."""
        last = len(self.gammas_h) - 1
        return min(i, last), min(i, last) + last + 1

    def _branch_weights(self, chain: bool) -> dict[nn.Module, Tensor]:
        """Of the maps with spectral norms in the branches that are on; those of features are one chain."""
        linears = [last for _, last in self.pos_interactions_h] if chain else []
        for i, (_, first, _, _, last) in enumerate(self.pos_interactions_x):
            linears += [] if self.snapped[self._places(i)[1]] else [first, last]
        return dict(zip(linears, spectral_weights(linears), strict=True))

    def _shift(self, i: int, x: Tensor, weights: dict[nn.Module, Tensor]) -> Tensor | None:
        """q_i(x), or None where it is switched off."""
        if self.snapped[self._places(i)[1]]:
            return None
        norm, first, act, norm_hidden, last = self.pos_interactions_x[i]
        hidden = act(nn.functional.linear(norm(self.pos_linear_x(x)), weights[first], first.bias))
        return nn.functional.linear(norm_hidden(hidden), weights[last], last.bias)

    def _relax(self, maps, i: int, free: Tensor | None, before: Tensor, x: Tensor, h: Tensor, norms: list,
               seen: list) -> tuple[Tensor, Tensor]:
        """x + gamma_x free, h + gamma_h p, less the branches that are switched off."""
        place_h, place_x = self._places(i)
        gamma_h, gamma_x = self.gammas_h[place_h], self.gammas_x[place_h]
        off_h, off_x = self.snapped[place_h], self.snapped[place_x]
        p = lambda: functional.relaxed_linear(  # noqa: E731
            maps.rows, maps.weights[i], maps.biases[i], backend=self.backend)
        if isinstance(self.gammas_h, nn.ModuleList):
            formed = p()
            p = lambda: formed  # noqa: E731
            (gamma_h, norm_h), (gamma_x, norm_x) = network_gate(gamma_h, h, formed), network_gate(gamma_x, h, free)
            norms.append((norm_h, norm_x))
        if self._record is not None:
            branch = nn.Sequential(self.pos_linear_x, *self.pos_interactions_x[i])
            seen.append((None if off_h else Seen(place_h, gamma_h, maps.rows, h, p),
                         None if off_x else Seen(place_x, gamma_x, before, x, lambda: free, branch)))
        x = x if off_x else x + gamma_x * free
        if off_h:
            return x, h
        if isinstance(self.gammas_h, nn.ModuleList):
            return x, h + gamma_h * formed
        return x, functional.relaxed_linear(maps.rows, maps.weights[i], maps.biases[i], gamma_h, h,
                                            backend=self.backend)
