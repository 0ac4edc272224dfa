"""Networks for charged bodies that are compared with SEGNN: EGNN, and a plain message-passing network."""

import torch
from torch import Tensor, nn

from .. import functional
from ..graph import Graph
from ..nn import EGNN
from ..symmetry import FrameAveraging, SymPE
from .branches import Branched
from .segnn import segments_of

_EDGE = 2  # distance and product of the charges
_ARGUMENTS = ("position", "vector", "scalar", "index", "edge scalar", "batch")  # of the plain network


class _Strict(Branched):
    """A model without branches, as the training loop knows models."""

    relaxed = False

    def _layers(self) -> list[nn.Module]:
        return []


class NBodyEGNN(_Strict):
    """EGNN for charged bodies: equivariant under rotations, reflections and translations.

    The layers are `ace_fast.nn.EGNN_Layer` with velocities. Nodes begin with their speed, edges carry the distance at
    the start and the product of the charges, as in EGNN's experiment (with the squared distance there).

    Args:
        layers, hidden: message-passing layers and their width.
        places: (most bodies, channels): the learned vectors of the places beside the speed, by which bodies that are
            alike are told apart (`SymPE` on permutations; the speed orders them, ties at random).
        backend: which implementation of the operators runs.

    Source: Satorras et al. 2021 (EGNN), section 5.1; Lawrence et al. 2025 (SymPE).

    Example:
        >>> NBodyEGNN(layers=2, hidden=16)(nbody_graph(batch)).shape  # batch of pos, vel, charges, edge_index
        torch.Size([20, 3])
    """

    def __init__(self, layers: int = 4, hidden: int = 64, *, places: tuple[int, int] | None = None,
                 backend: str = "auto"):
        super().__init__()
        self.breaking = None if places is None else SymPE("S_n", places)
        self.net = EGNN(layers, 1 if places is None else 1 + places[1], _EDGE, hidden, with_v=True, backend=backend)

    def forward(self, graph) -> Tensor:
        """The displacement of every body, [N, 3]; `graph` as `nbody_graph` makes it."""
        pos, vel, h = graph.x.split([3, 3, 1], 1)
        if self.breaking is not None:
            h = self.breaking(h, segments_of(graph, graph.x).ptr, generator=torch.default_generator)
        x, _, _ = self.net(pos, h, graph_of(graph), graph.additional_message_features, vel)
        return x - pos


class NBodyGNN(_Strict):
    r"""A message-passing network that treats coordinates as features: equivariant under permutations alone, or framed.

    .. math:: m_i = \sum_{j \to i} \phi_e(h_i, h_j, e_{ij}), \qquad h_i' = h_i + \phi_h(h_i, m_i)

    The first map of the message is one map of the nodes and one of the edges.

    Args:
        layers, hidden: message-passing layers and their width.
        frames: "E(3)" or another group of `FrameAveraging`, under which the mean over the frames of each graph makes
            it equivariant, for 8 times the work (4 times without reflections); None: as it is.
        backend: which implementation of the operators runs.

    Source: Puny et al. 2022 (frame averaging), its GNN on charged bodies; Gilmer et al. 2017.

    Example:
        >>> NBodyGNN(layers=2, hidden=16, frames="E(3)")(nbody_graph(batch)).shape
        torch.Size([20, 3])
    """

    def __init__(self, layers: int = 4, hidden: int = 64, *, frames: str | None = None, backend: str = "auto"):
        super().__init__()
        self.frames, net = frames, _MessagePassing(layers, hidden, backend)
        self.net = net if frames is None else FrameAveraging(net, frames, _ARGUMENTS, "vector", backend=backend)

    def forward(self, graph) -> Tensor:
        """The displacement of every body, [N, 3]; `graph` as `nbody_graph` makes it."""
        edges, own = graph_of(graph), graph.x.split([3, 3, 1], 1)
        if self.frames is None:
            return self.net(*own, edges, graph.additional_message_features)
        owners = segments_of(graph, graph.x)
        return self.net(*own, edges.edge_index, graph.additional_message_features, owners.index,
                        num_graphs=owners.ptr.shape[0] - 1, generator=torch.default_generator)


class _MessagePassing(nn.Module):
    def __init__(self, layers: int, hidden: int, backend: str):
        super().__init__()
        self.embedding = nn.Linear(7, hidden)  # position, velocity, speed
        self.layers = nn.ModuleList(_MessageLayer(hidden, backend) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 3))

    def forward(self, pos: Tensor, vel: Tensor, speed: Tensor, edge_index: Tensor | Graph, edge: Tensor,
                batch: Tensor | None = None) -> Tensor:
        """pos and vel [N, 3], speed [N, 1], edge [E, 2] -> [N, 3]; `batch` is frame averaging's."""
        graph = edge_index if isinstance(edge_index, Graph) else Graph(edge_index, pos.shape[0])
        h = self.embedding(torch.cat([pos, vel, speed], 1))
        for layer in self.layers:
            h = layer(h, graph, edge)
        return self.head(h)


class _MessageLayer(nn.Module):
    def __init__(self, hidden: int, backend: str):
        super().__init__()
        self.backend = backend
        self.ends = nn.Linear(hidden, 2 * hidden)  # what a node says as target and as source
        self.edge = nn.Linear(_EDGE, hidden, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.node = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, h: Tensor, graph: Graph, edge: Tensor) -> Tensor:
        target, source = self.ends(h).chunk(2, 1)
        gathered = [functional.gather(x.contiguous(), segments, backend=self.backend)
                    for x, segments in ((target, graph.targets), (source, graph.sources))]
        messages = self.message(gathered[0] + gathered[1] + self.edge(edge))  # [E, H]
        return h + self.node(torch.cat([h, functional.segment_sum(messages, graph.targets, backend=self.backend)], 1))


def graph_of(graph) -> Graph:
    """The Graph of what `nbody_graph` made, or of its edge_index."""
    for found in (getattr(graph, "graph", None), graph.edge_index):
        if isinstance(found, Graph):
            return found
    return Graph(graph.edge_index, graph.x.shape[0])
