"""SchNet with the unconstrained branches of ACE: continuous-filter convolutions on molecules, strict or relaxed."""

import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..graph import Graph, Segments
from ..nn import GaussianSmearing, InteractionBlock, ShiftedSoftplus, affine_chain
from ..nn.gates import Seen, add_gates
from ..nn.norm import graph_segments
from .branches import GAMMAS, Branched, gate_network, network_gate

ELEMENTS = 100  # rows of the embedding, as in PyTorch Geometric
READOUTS = ("add", "sum", "mean")


def _molecules(z: Tensor, pos: Tensor, batch: Tensor | Segments | None, elements: int) -> Segments:
    """Checks what a forward pass is given; the molecule of each atom."""
    if z.dim() != 1 or z.dtype != torch.int64:
        raise ValueError(f"SchNet: z must be [N] int64 atomic numbers, got {z.dtype} {list(z.shape)}")
    if list(pos.shape) != [z.shape[0], 3]:
        raise ValueError(f"SchNet: pos must be [{z.shape[0]}, 3] in Å, got {list(pos.shape)}")
    if z.device.type == "cpu" and z.numel():
        low, high = torch.aminmax(z)
        if low < 0 or high >= elements:
            wrong = int(((z < 0) | (z >= elements)).nonzero()[0])
            raise ValueError(f"SchNet: z must be atomic numbers below {elements}, got {int(z[wrong])} at atom {wrong}")
    return graph_segments(batch, z.shape[0], z.device)


class SchNet(Branched):
    r"""SchNet with PyTorch Geometric's constructor and parameter names, and with ACE's branch where `relaxed`.

    .. math:: h \leftarrow h + I_i(h, d) + \gamma_i p_i, \quad p_0 = A_0 r + c_0, \quad p_i = W_i\, BN_i(p_{i-1}) + b_i

    The branch sees the absolute coordinates r alone, and its chain of batch norms and linear maps is affine in them:
    each layer adds one 3 -> H map, gate and sums in one call (docs/algebra.md).

    Args:
        hidden_channels, num_filters, num_interactions, num_gaussians: H, F, number of interactions, of Gaussians.
        cutoff: in Å. interaction_graph: callable (pos, batch) -> (edge_index [2, E], distances [E] in Å), or None for a
            radius graph. Distances of None are those of the positions: the fast way, nothing of size E is kept.
        max_num_neighbors: of the radius graph; the nearest.
        readout: "add" (or "sum") or "mean" over the atoms of a molecule.
        dipole: the norm of the dipole moment is the output; needs the package `ase` for the masses.
        mean, std: of the property, applied to every atom's output before the sum.
        atomref: [100, 1] energies of single atoms, or None.
        relaxed: adds the branch (`pos_linear`, `pos_interactions`) and its gates.
        gammas: "layer", one gate an interaction; "single", one for all; or "nn", a network an interaction that computes
            every atom's gate from its features and its branch. These come without gradient: forces of such a model,
            relaxed, are those at fixed gates. `ACE.penalty` constrains them.
        filter, knots: how filters are evaluated, see `functional.cfconv`.
        backend: which implementation of the operators runs.

    Attributes:
        disable_equivariance: True adds the branches (the original's name); a Python flag, gamma is never read.
        scale: what the output is multiplied by, or None; torch_geometric's published weights have one.

    Raises:
        ValueError: an unknown option, atomic numbers outside 0..99, shapes that do not fit.

    Derivatives of first and second order, in positions too (forces and their training). Source: Schütt et al. 2017
    (SchNet), torch_geometric.nn.models.SchNet, Manolache et al. 2025 (ACE).

    Example:
        >>> model = SchNet(64, 64, relaxed=True)
        >>> z, pos = torch.tensor([8, 1, 1]), torch.randn(3, 3)
        >>> model(z, pos).shape
        torch.Size([1, 1])
    """

    _flag = "disable_equivariance"

    def __init__(self, hidden_channels: int = 128, num_filters: int = 128, num_interactions: int = 6,
                 num_gaussians: int = 50, cutoff: float = 10.0, interaction_graph=None, max_num_neighbors: int = 32,
                 readout: str = "add", dipole: bool = False, mean: float | None = None, std: float | None = None,
                 atomref: Tensor | None = None, *, relaxed: bool = False, gammas: str = "layer",
                 filter: str = "exact", knots: int = 1024, backend: str = "auto"):
        super().__init__()
        for name, value, allowed in (("readout", readout, READOUTS), ("gammas", gammas, GAMMAS)):
            if value not in allowed:
                raise ValueError(f"SchNet: {name} must be one of {', '.join(allowed)}, got {value!r}")
        self.cutoff, self.max_num_neighbors, self.interaction_graph = cutoff, max_num_neighbors, interaction_graph
        self.readout, self.dipole, self.mean, self.std, self.scale = readout, dipole, mean, std, None
        self.relaxed = self.disable_equivariance = relaxed
        self.backend = backend
        if relaxed:  # the original's order: a seed gives its initial values
            self.pos_linear = nn.Linear(3, hidden_channels)
            self.pos_interactions = nn.ModuleList(
                nn.Sequential(nn.BatchNorm1d(hidden_channels), nn.Linear(hidden_channels, hidden_channels))
                for _ in range(num_interactions))
            self.gammas = _gates(gammas, hidden_channels, num_interactions)
        add_gates(self, len(self.get_gammas() or self.get_gate_networks()))
        self.embedding = nn.Embedding(ELEMENTS, hidden_channels, padding_idx=0)
        self.distance_expansion = GaussianSmearing(0.0, cutoff, num_gaussians)
        self.interactions = nn.ModuleList(
            InteractionBlock(hidden_channels, num_gaussians, num_filters, cutoff, filter, knots, backend=backend)
            for _ in range(num_interactions))
        self.lin1 = nn.Linear(hidden_channels, hidden_channels // 2)
        self.act = ShiftedSoftplus()
        self.lin2 = nn.Linear(hidden_channels // 2, 1)
        self.atomref = None
        if atomref is not None:
            self.register_buffer("initial_atomref", atomref)
            self.atomref = nn.Embedding(ELEMENTS, 1)
        if dipole:
            self.register_buffer("atomic_mass", _masses())
        self.reset_parameters()

    @classmethod
    def from_pyg(cls, schnet: nn.Module, *, relaxed: bool = False, gammas: str = "layer", filter: str = "exact",
                 knots: int = 1024, backend: str = "auto") -> "SchNet":
        """Ours on the very modules and buffers of torch_geometric.nn.models.SchNet, its published weights for instance.

        Its radius graph becomes ours; another `interaction_graph` is kept, with its distances. Branches are new.
        """
        found = schnet.interaction_graph
        own = None if type(found).__name__ == "RadiusInteractionGraph" else found
        limits = (schnet.cutoff, 0) if own is not None else (found.cutoff, found.max_num_neighbors)
        new = cls(schnet.hidden_channels, schnet.num_filters, schnet.num_interactions, schnet.num_gaussians, limits[0],
                  own, limits[1], pyg_readout(schnet), relaxed=relaxed, gammas=gammas, backend=backend)
        new.to(schnet.embedding.weight)
        for name in ("embedding", "lin1", "act", "lin2", "atomref", "dipole", "mean", "std", "scale", "training"):
            setattr(new, name, getattr(schnet, name))
        new.distance_expansion = GaussianSmearing.from_pyg(schnet.distance_expansion)
        new.interactions = nn.ModuleList(InteractionBlock.from_pyg(block, filter, knots, backend=backend)
                                         for block in schnet.interactions)
        for name in ("initial_atomref", "atomic_mass"):
            if schnet._buffers.get(name) is not None:
                new.register_buffer(name, schnet._buffers[name])
        return new

    def reset_parameters(self) -> None:
        """PyTorch Geometric's initial values; the branch keeps torch's."""
        self.embedding.reset_parameters()
        for interaction in self.interactions:
            interaction.reset_parameters()
        for layer in (self.lin1, self.lin2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.atomref is not None:
            with torch.no_grad():
                self.atomref.weight.copy_(self.initial_atomref)

    def _layers(self) -> list[nn.Module]:
        return [self]

    def get_gammas(self) -> list[nn.Parameter]:
        """The gates, one an interaction or one for all; empty for a strict model and where networks compute them."""
        if not self.relaxed or self.get_gate_networks():
            return []
        return [self.gammas] if isinstance(self.gammas, nn.Parameter) else list(self.gammas)

    def get_gate_networks(self) -> list[nn.Module]:
        return list(self.gammas) if self.relaxed and isinstance(self.gammas, nn.ModuleList) else []

    def gate_irreps(self, gate: int) -> tuple[o3.Irreps, o3.Irreps]:
        """What the branch of a gate reads and returns: positions, invariant features."""
        return o3.Irreps("1x1o"), o3.Irreps(f"{self.pos_linear.out_features}x0e")

    def gate_maps(self, gate: int) -> list[nn.Module]:
        """The linear maps of a gate's branch, first to last: those of the branches before it are its own."""
        last = len(self.pos_interactions) if isinstance(self.gammas, nn.Parameter) else gate + 1
        return [self.pos_linear, *(block[1] for block in self.pos_interactions[:last])]

    def branch_parameters(self) -> list[nn.Parameter]:
        """What `ACE(bound=...)` keeps within bounds: the maps of the branches."""
        return [*self.pos_linear.parameters(), *self.pos_interactions.parameters()] if self.relaxed else []

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor | Segments | None = None,
                edges: Tensor | Graph | None = None) -> Tensor:
        """The property of every molecule, [G, 1].

        Args:
            z: [N] int64, atomic numbers. pos: [N, 3] in Å. batch: [N] int64 ascending, or Segments; None: one molecule.
            edges: [2, E] (source, target) or a Graph, where they were found before; None: within the cutoff.
        """
        molecules = _molecules(z, pos, batch, self.embedding.weight.shape[0])
        graph, distance = self._graph(pos, molecules, edges)
        h, where = self.embedding(z), pos if distance is None else distance
        basis = self.distance_expansion.basis() if distance is None else self.distance_expansion(distance)
        relaxed = self.disable_equivariance and not all(self.snapped)
        maps = affine_chain(pos, self.pos_linear, self.pos_interactions) if relaxed else None
        if self.get_gate_networks() and torch.is_grad_enabled():
            self.gate_norms = [] if self.disable_equivariance else None
        for i, interaction in enumerate(self.interactions):
            update = interaction(h, graph, where, basis)
            off = maps is None or self.snapped[min(i, len(self.snapped) - 1)]
            h = h + update if off else self._relax(maps, i, update, h)
        return self._read(self.lin2(self.act(self.lin1(h))), z, pos, molecules)

    @torch.compiler.disable  # finding edges reads their number from the device
    def _graph(self, pos: Tensor, molecules: Segments, edges: Tensor | Graph | None) -> tuple[Graph, Tensor | None]:
        """The edges, and distances [E] where an interaction_graph of the user's gives them."""
        distance = None
        if edges is None and self.interaction_graph is not None:
            edges, distance = self.interaction_graph(pos, molecules.index)
        elif edges is None:
            edges = functional.radius_graph(pos.detach(), self.cutoff, batch=molecules.index,
                                            max_num_neighbors=self.max_num_neighbors, backend=self.backend)
        graph = edges if isinstance(edges, Graph) else Graph(edges, pos.shape[0])
        if graph.num_nodes != pos.shape[0]:
            raise ValueError(f"SchNet: edges must be of {pos.shape[0]} atoms as pos, got {graph!r}")
        if distance is not None and list(distance.shape) != [graph.num_edges]:
            raise ValueError(f"SchNet: interaction_graph must return distances [{graph.num_edges}], got "
                             f"{list(distance.shape)}; return None for those of the positions")
        return graph, distance

    def _relax(self, maps, i: int, update: Tensor, h: Tensor) -> Tensor:
        """h + update + gamma_i p_i, in one call where gamma_i is a number."""
        weight, bias, rows = maps.weights[i], maps.biases[i], maps.rows.to(h.dtype)
        if isinstance(self.gammas, nn.ModuleList):
            return self._relax_by_network(i, functional.relaxed_linear(rows, weight, bias, backend=self.backend),
                                          update, h, rows)
        single = isinstance(self.gammas, nn.Parameter)
        gamma = self.gammas if single else self.gammas[i]
        if self._record is not None:
            affine = lambda x: functional.relaxed_linear(x, weight, bias, backend=self.backend)  # noqa: E731
            self._record(Seen(0 if single else i, gamma, rows, update, lambda: affine(rows), affine=affine))
        return functional.relaxed_linear(rows, weight, bias, gamma, update, h, backend=self.backend)

    def _relax_by_network(self, i: int, free: Tensor, update: Tensor, h: Tensor, rows: Tensor) -> Tensor:
        """The gate of every atom needs its branch [N, H] as such, so plain PyTorch does the rest."""
        h = h + update
        gamma, norm = network_gate(self.gammas[i], h, free)
        if torch.is_grad_enabled():
            self.gate_norms.append(norm)
        if self._record is not None:
            self._record(Seen(i, gamma, rows, update, lambda: free))
        return h + gamma * free

    def _read(self, h: Tensor, z: Tensor, pos: Tensor, molecules: Segments) -> Tensor:
        """The atoms' outputs h [N, 1] to the molecules', [G, 1]."""
        total = lambda x: functional.segment_sum(x, molecules, backend=self.backend)  # noqa: E731
        if self.dipole:
            mass = self.atomic_mass[z].to(pos.dtype)[:, None]
            centre = total(mass * pos) / total(mass)
            h = h * (pos - functional.gather(centre, molecules, backend=self.backend))
        else:
            if self.mean is not None and self.std is not None:
                h = h * self.std + self.mean
            if self.atomref is not None:
                h = h + self.atomref(z)
        out = total(h)
        if self.readout == "mean":
            out = out / (molecules.ptr[1:] - molecules.ptr[:-1]).clamp(min=1).to(out.dtype)[:, None]
        out = out.norm(dim=-1, keepdim=True) if self.dipole else out
        return out if self.scale is None else self.scale * out


def _gates(kind: str, hidden: int, interactions: int) -> nn.Parameter | nn.ParameterList | nn.ModuleList:
    """With the original's names: `gammas`, `gammas.0` and so on, or `gammas.0.0.weight` and so on."""
    if kind == "single":
        return nn.Parameter(torch.tensor(1.0))
    if kind == "nn":
        return nn.ModuleList(gate_network(2 * hidden, hidden, "SchNet") for _ in range(interactions))
    return nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(interactions)])


def pyg_readout(schnet: nn.Module) -> str:
    """The readout of torch_geometric's SchNet in our words, or the name of one that we do not have."""
    name = schnet.readout if isinstance(schnet.readout, str) else type(schnet.readout).__name__
    return {"SumAggregation": "add", "MeanAggregation": "mean"}.get(name, name)


def _masses() -> Tensor:
    """[119] in atomic mass units."""
    try:
        from ase.data import atomic_masses
    except ImportError as error:
        raise ValueError("SchNet: dipole must be False where the package ase is missing, which has the masses; pip "
                         "install ase") from error
    return torch.from_numpy(atomic_masses)
