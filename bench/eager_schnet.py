"""The eager reference SchNet: PyTorch Geometric's structure with ACE's branch, parameter names as in ace_fast.models.

Smeared distances, filters and messages of all edges are tensors, sums are index_add, the branch is a chain of batch
norms and linear maps of H channels an atom: what a user of the original code runs.
"""

import math

import torch
from torch import Tensor, nn


class EagerShiftedSoftplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x) - math.log(2.0)


class EagerCFConv(nn.Module):
    def __init__(self, hidden: int, filters: int, net: nn.Sequential, cutoff: float):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(hidden, filters, bias=False), nn.Linear(filters, hidden)
        self.nn, self.cutoff = net, cutoff

    def forward(self, x: Tensor, edge_index: Tensor, distance: Tensor, smeared: Tensor) -> Tensor:
        source, target = edge_index
        filters = self.nn(smeared) * (0.5 * (torch.cos(distance * math.pi / self.cutoff) + 1.0))[:, None]
        x = self.lin1(x)
        messages = x[source] * filters
        return self.lin2(x.new_zeros(x.shape).index_add_(0, target, messages))


class EagerInteraction(nn.Module):
    def __init__(self, hidden: int, gaussians: int, filters: int, cutoff: float):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(gaussians, filters), EagerShiftedSoftplus(), nn.Linear(filters, filters))
        self.conv = EagerCFConv(hidden, filters, self.mlp, cutoff)
        self.act = EagerShiftedSoftplus()
        self.lin = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, *edges: Tensor) -> Tensor:
        return self.lin(self.act(self.conv(x, *edges)))


class EagerSchNet(nn.Module):
    """The reference model: arguments, parameter names and numbers of ace_fast.models.SchNet, called with a graph object
    that has z, pos, batch, edge_index and num_graphs."""

    def __init__(self, hidden_channels=128, num_filters=128, num_interactions=6, num_gaussians=50, cutoff=10.0, *,
                 relaxed=False):
        super().__init__()
        self.relaxed = relaxed
        if relaxed:
            self.pos_linear = nn.Linear(3, hidden_channels)
            self.pos_interactions = nn.ModuleList(
                nn.Sequential(nn.BatchNorm1d(hidden_channels), nn.Linear(hidden_channels, hidden_channels))
                for _ in range(num_interactions))
            self.gammas = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(num_interactions)])
        self.embedding = nn.Embedding(100, hidden_channels, padding_idx=0)
        offset = torch.linspace(0.0, cutoff, num_gaussians)
        self.coeff = -0.5 / (offset[1] - offset[0]).item() ** 2
        self.register_buffer("offset", offset, persistent=False)
        self.interactions = nn.ModuleList(
            EagerInteraction(hidden_channels, num_gaussians, num_filters, cutoff) for _ in range(num_interactions))
        self.lin1 = nn.Linear(hidden_channels, hidden_channels // 2)
        self.act = EagerShiftedSoftplus()
        self.lin2 = nn.Linear(hidden_channels // 2, 1)

    def get_gammas(self) -> list[nn.Parameter]:
        return list(self.gammas) if self.relaxed else []

    def forward(self, graph) -> Tensor:
        source, target = graph.edge_index
        distance = (graph.pos[source] - graph.pos[target]).norm(dim=-1)
        smeared = torch.exp(self.coeff * (distance[:, None] - self.offset).square())
        h = self.embedding(graph.z)
        free = graph.pos @ self.pos_linear.weight.t() + self.pos_linear.bias if self.relaxed else None
        for i, interaction in enumerate(self.interactions):
            h = h + interaction(h, graph.edge_index, distance, smeared)
            if self.relaxed:
                free = self.pos_interactions[i](free)
                h = h + self.gammas[i] * free
        h = self.lin2(self.act(self.lin1(h)))
        return h.new_zeros(graph.num_graphs, 1).index_add_(0, graph.batch, h)
