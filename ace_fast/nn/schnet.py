"""SchNet's layers with PyTorch Geometric's names, arguments and parameters; the convolution is one operator."""

import math

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..kernels.cfconv import RadialBasis, cfconv
from ..kernels.define import fail
from ..kernels.segment_sum import gather, segment_sum


class ShiftedSoftplus(nn.Module):
    """log(1 + e^x) - log 2."""

    def __init__(self):
        super().__init__()
        self.shift = math.log(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x) - self.shift


class GaussianSmearing(nn.Module):
    """exp(-(d - mu_k)^2 / (2 w^2)) with centres mu_k at equal steps w.

    Args:
        start, stop: first and last centre in Å. num_gaussians: G, at least 2.

    The buffer `offset` [G] holds the centres. `basis()` gives them to `cfconv`, which needs no smeared distances.
    """

    def __init__(self, start: float = 0.0, stop: float = 5.0, num_gaussians: int = 50):
        super().__init__()
        if num_gaussians < 2:
            fail("GaussianSmearing", "num_gaussians", "at least 2", num_gaussians)
        offset = torch.linspace(start, stop, num_gaussians)
        self.coeff = -0.5 / (offset[1] - offset[0]).item() ** 2
        self.register_buffer("offset", offset)

    @classmethod
    def from_pyg(cls, smearing: nn.Module) -> "GaussianSmearing":
        """Ours with the buffer of torch_geometric's."""
        new = cls(num_gaussians=2)
        new.coeff, new.offset, new.training = smearing.coeff, smearing.offset, smearing.training
        return new

    def basis(self) -> RadialBasis:
        return RadialBasis("gaussian", self.offset, torch.full_like(self.offset, self.coeff))

    def forward(self, dist: Tensor) -> Tensor:
        """dist [E] -> [E, G]."""
        return torch.exp(self.coeff * (dist.view(-1, 1) - self.offset.view(1, -1)).square())


class CFConv(nn.Module):
    """lin2 of the sum over edges of W(d) * lin1(x_j), W = nn(smeared d) (cos(pi d / cutoff) + 1) / 2.

    Args:
        in_channels, out_channels, num_filters: sizes H, O and F.
        nn: the filter network, Sequential(Linear(G, H'), ShiftedSoftplus or SiLU, Linear(H', F)).
        cutoff: in Å.
        filter: "exact" or "table", see `functional.cfconv`; knots: of the table.
        backend: which implementation of the operators runs.

    Call it as the original, `conv(x, edge_index, edge_weight, edge_attr)` with distances [E] and smeared distances
    [E, G], which keeps edge tensors; or as `conv(x, graph, pos, basis)` with positions [N, 3] and a `RadialBasis`,
    which keeps none and is the fast way.
    """

    def __init__(self, in_channels: int, out_channels: int, num_filters: int, nn: nn.Sequential, cutoff: float,
                 filter: str = "exact", knots: int = 1024, *, backend: str = "auto"):
        super().__init__()
        self.lin1 = torch.nn.Linear(in_channels, num_filters, bias=False)
        self.lin2 = torch.nn.Linear(num_filters, out_channels)
        self.nn = nn
        self.cutoff = cutoff
        self.filter = filter
        self.knots = knots
        self.backend = backend
        self.reset_parameters()

    @classmethod
    def from_pyg(cls, conv: torch.nn.Module, filter: str = "exact", knots: int = 1024, *,
                 backend: str = "auto") -> "CFConv":
        """Ours on the very modules that torch_geometric's holds."""
        with torch.device("meta"):  # no memory, no random numbers
            new = cls(1, 1, 1, conv.nn, conv.cutoff, filter, knots, backend=backend)
        new.lin1, new.lin2, new.training = conv.lin1, conv.lin2, conv.training
        return new

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.lin1.weight)
        nn.init.xavier_uniform_(self.lin2.weight)
        self.lin2.bias.data.fill_(0)

    def forward(self, x: Tensor, edge_index: Tensor | Graph, edge_weight: Tensor,
                edge_attr: Tensor | RadialBasis) -> Tensor:
        """x [N, H] -> [N, O]; a Graph comes with positions and a basis."""
        graph = edge_index if isinstance(edge_index, Graph) else Graph(edge_index, x.shape[0])
        x = self.lin1(x)
        if isinstance(edge_attr, RadialBasis):
            first, act, last = self.nn
            x = cfconv(x, edge_weight, graph, self.cutoff, edge_attr, first.weight, first.bias, last.weight, last.bias,
                       activation=_activation(act), filter=self.filter, knots=self.knots, backend=self.backend)
            return self.lin2(x)
        cut = 0.5 * (torch.cos(edge_weight * (math.pi / self.cutoff)) + 1.0)
        messages = self.nn(edge_attr) * cut.view(-1, 1) * gather(x, graph.sources, backend=self.backend)
        return self.lin2(segment_sum(messages, graph.targets, backend=self.backend))


def _activation(act: nn.Module) -> str:
    # by name, so that PyTorch Geometric's own class is known too
    name = {"ShiftedSoftplus": "shifted_softplus", "SiLU": "silu"}.get(type(act).__name__)
    if name is None:
        fail("CFConv", "nn[1]", "ShiftedSoftplus or SiLU", type(act).__name__, "call it with smeared distances")
    return name


class InteractionBlock(nn.Module):
    """A convolution, shifted softplus and a linear map; the filter network stands as `mlp` and as `conv.nn`.

    Args:
        hidden_channels: H. num_gaussians: G. num_filters: F. cutoff: in Å.
        filter, knots, backend: of `CFConv`.
    """

    def __init__(self, hidden_channels: int, num_gaussians: int, num_filters: int, cutoff: float,
                 filter: str = "exact", knots: int = 1024, *, backend: str = "auto"):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(num_gaussians, num_filters), ShiftedSoftplus(),
                                 nn.Linear(num_filters, num_filters))
        self.conv = CFConv(hidden_channels, hidden_channels, num_filters, self.mlp, cutoff, filter, knots,
                           backend=backend)
        self.act = ShiftedSoftplus()
        self.lin = nn.Linear(hidden_channels, hidden_channels)
        self.reset_parameters()

    @classmethod
    def from_pyg(cls, block: nn.Module, filter: str = "exact", knots: int = 1024, *,
                 backend: str = "auto") -> "InteractionBlock":
        """Ours on the very modules that torch_geometric's holds."""
        with torch.device("meta"):
            new = cls(1, 1, 1, block.conv.cutoff)
        new.mlp, new.act, new.lin, new.training = block.mlp, block.act, block.lin, block.training
        new.conv = CFConv.from_pyg(block.conv, filter, knots, backend=backend)
        return new

    def reset_parameters(self) -> None:
        for layer in (self.mlp[0], self.mlp[2], self.conv, self.lin):  # in this order a seed gives the original's
            if layer is self.conv:
                layer.reset_parameters()
            else:
                nn.init.xavier_uniform_(layer.weight)
                layer.bias.data.fill_(0)

    def forward(self, x: Tensor, edge_index: Tensor | Graph, edge_weight: Tensor,
                edge_attr: Tensor | RadialBasis) -> Tensor:
        """x [N, H] -> [N, H]; arguments as for `CFConv`."""
        return self.lin(self.act(self.conv(x, edge_index, edge_weight, edge_attr)))
