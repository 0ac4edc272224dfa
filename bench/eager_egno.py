"""The eager reference EGNO: the original's structure with ACE's branches, parameter names as in ace_fast.models.

The graph is repeated for every time step, edge tensors are concatenated, convolutions along time are FFTs, sums are
index_add: what a user of the original code runs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class EagerMLP(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class EagerScalarNet(nn.Module):
    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.scalar_net = EagerMLP(inputs, hidden, hidden)


class EagerEGNNLayer(nn.Module):
    def __init__(self, edge: int, hidden: int):
        super().__init__()
        self.edge_message_net = EagerScalarNet(1 + 2 * hidden + edge, hidden)
        self.coord_net = EagerMLP(hidden, hidden, 1)
        self.node_net = EagerMLP(2 * hidden, hidden, hidden)
        self.node_v_net = EagerMLP(hidden, hidden, 1)

    def forward(self, x: Tensor, h: Tensor, row: Tensor, col: Tensor, edge: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        r = x[row] - x[col]
        message = torch.cat([r.square().sum(1, keepdim=True), h[row], h[col], edge], 1)
        message = nn.functional.silu(self.edge_message_net.scalar_net(message))
        force = r * self.coord_net(message)
        count = x.new_zeros(len(x), 1).index_add_(0, row, x.new_ones(len(row), 1)).clamp(min=1)
        force = (x.new_zeros(len(x), 3).index_add_(0, row, force) / count).clamp(-100, 100)
        total = x.new_zeros(len(x), h.shape[1]).index_add_(0, row, message)
        return x + self.node_v_net(h) * v + force, self.node_net(torch.cat([h, total], 1))


class EagerSpectral(nn.Module):
    """irfft of rfft times complex weights, along the first dimension; channels last."""

    def __init__(self, channels: int, modes: int, scale: float):
        super().__init__()
        self.weights1 = nn.Parameter(scale * torch.rand(channels, channels, modes, 2))

    def forward(self, x: Tensor) -> Tensor:
        steps, modes = x.shape[0], self.weights1.shape[2]
        found = torch.fft.rfft(x, dim=0)
        mixed = torch.einsum("t...i,iot->t...o", found[:modes], torch.view_as_complex(self.weights1))
        rest = found.new_zeros(found.shape[0] - modes, *mixed.shape[1:])
        return torch.fft.irfft(torch.cat([mixed, rest]), n=steps, dim=0)


class EagerTimeConv(nn.Module):
    def __init__(self, channels: int, modes: int, scale: float, leaky: bool):
        super().__init__()
        self.t_conv, self.leaky = EagerSpectral(channels, modes, scale), leaky

    def forward(self, x: Tensor) -> Tensor:
        y = self.t_conv(x)
        return x + (nn.functional.leaky_relu(y) if self.leaky else y)


def _spectral(inputs: int, outputs: int) -> nn.Module:
    return spectral_norm(nn.Linear(inputs, outputs), n_power_iterations=5)


class EagerEGNO(nn.Module):
    """The reference model: arguments, parameter names and numbers of ace_fast.models.EGNO, called with a graph object
    that has x, v, h, edge_index, edge_attr and loc_mean."""

    def __init__(self, n_layers, in_node_nf, in_edge_nf, hidden_nf, *, num_modes=2, num_timesteps=8, time_emb_dim=32,
                 relaxed=False):
        super().__init__()
        self.steps, self.emb, self.relaxed = num_timesteps, time_emb_dim, relaxed
        self.embedding = nn.Linear(in_node_nf + time_emb_dim, hidden_nf)
        self.layers = nn.ModuleList(EagerEGNNLayer(in_edge_nf, hidden_nf) for _ in range(n_layers))
        self.time_conv_modules = nn.ModuleList(
            EagerTimeConv(hidden_nf, num_modes, 1 / hidden_nf**2, True) for _ in range(n_layers))
        self.time_conv_x_modules = nn.ModuleList(EagerTimeConv(2, num_modes, 0.1, False) for _ in range(n_layers))
        if relaxed:
            self.pos_linear_h = nn.Linear(in_node_nf + time_emb_dim, hidden_nf)
            self.pos_linear_x = nn.Linear(3, 3)
            self.pos_interactions_h = nn.ModuleList(
                nn.Sequential(nn.BatchNorm1d(hidden_nf), _spectral(hidden_nf, hidden_nf)) for _ in range(n_layers))
            self.pos_interactions_x = nn.ModuleList(
                nn.Sequential(nn.BatchNorm1d(3), _spectral(3, hidden_nf), nn.SiLU(), nn.BatchNorm1d(hidden_nf),
                              _spectral(hidden_nf, 3)) for _ in range(n_layers))
            self.gammas_h = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(n_layers)])
            self.gammas_x = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(n_layers)])

    def get_gammas(self) -> list[nn.Parameter]:
        return [*self.gammas_h, *self.gammas_x] if self.relaxed else []

    def _time(self, x: Tensor) -> Tensor:
        half = self.emb // 2
        rate = torch.exp(torch.arange(half, device=x.device, dtype=x.dtype) * (-math.log(10000) / (half - 1)))
        angle = torch.arange(self.steps, device=x.device, dtype=x.dtype)[:, None] * rate
        return torch.cat([angle.sin(), angle.cos()], 1)

    def forward(self, graph) -> Tensor:
        steps, nodes = self.steps, len(graph.x)
        shift = nodes * torch.arange(steps, device=graph.x.device).repeat_interleave(graph.edge_index.shape[1])
        row, col = graph.edge_index.repeat(1, steps) + shift
        x, v, edge, mean = (t.repeat(steps, 1) for t in (graph.x, graph.v, graph.edge_attr, graph.loc_mean))
        h = torch.cat([graph.h.repeat(steps, 1), self._time(x).repeat_interleave(nodes, 0)], 1)
        free = self.pos_linear_h(h) if self.relaxed else None
        h = self.embedding(h)
        for i, layer in enumerate(self.layers):
            h = self.time_conv_modules[i](h.view(steps, nodes, -1)).flatten(0, 1)
            pair = self.time_conv_x_modules[i](torch.stack([x - mean, v], -1).view(steps, nodes, 3, 2))
            x, v = pair[..., 0].flatten(0, 1) + mean, pair[..., 1].flatten(0, 1)
            before = x
            x, h = layer(x, h, row, col, edge, v)
            if self.relaxed:
                free = self.pos_interactions_h[i](free)
                x = x + self.gammas_x[i] * self.pos_interactions_x[i](self.pos_linear_x(before))
                h = h + self.gammas_h[i] * free
        return x
