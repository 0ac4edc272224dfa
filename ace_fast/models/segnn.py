"""SEGNN with the unconstrained branches of ACE: steerable messages on a graph, strict or relaxed."""

from types import SimpleNamespace

import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from ..graph import Graph, Segments
from ..nn import (
    BatchNorm,
    InstanceNorm,
    O3GauntProduct,
    O3GauntProductSwishGate,
    O3TensorProduct,
    O3TensorProductSwishGate,
)
from ..nn.gates import Seen, add_gates
from ..nn.norm import graph_segments
from .branches import Branched

PRODUCTS = {"clebsch_gordan": (O3TensorProduct, O3TensorProductSwishGate),
            "gaunt": (O3GauntProduct, O3GauntProductSwishGate)}


def _width(name: str, value: Tensor, rows: int, width: int) -> None:
    if value.dim() != 2 or value.shape[1] != width or value.shape[0] != rows:
        raise ValueError(f"SEGNN: {name} must be [{rows}, {width}], got {list(value.shape)}; "
                         "build the graph and the model for the same irreps")


class SEGNNLayer(nn.Module):
    r"""One message passing layer; relaxed, its two update maps have an unconstrained branch each.

    .. math::
        m_i = \sum_{j \to i} M_2(M_1(h_i, h_j, e_{ij}; a_{ij}); a_{ij}), \quad
        u = U_1(h_i, m_i; a_i) + \gamma_0 n_1(h_i, m_i), \quad
        h_i' = h_i + U_2(u; a_i) + \gamma_1 n_2(u)

    Args:
        input_irreps, hidden_irreps, output_irreps: of the features; SEGNN uses the same for all three.
        edge_attr_irreps, node_attr_irreps: of the attributes that steer the products.
        norm: None (or "none"), "batch" or "instance".
        additional_message_irreps: of e_ij, or None.
        relaxed: has the branches `lin_noneq1`, `lin_noneq2` and the `gammas`.
        product: as in `SEGNN`.
        backend: which implementation of the operators runs.

    Attributes:
        disable_equivariance: True adds the branches (the original's name); a Python flag, gamma is never read.
    """

    def __init__(self, input_irreps, hidden_irreps, output_irreps, edge_attr_irreps, node_attr_irreps, norm=None,
                 additional_message_irreps=None, *, relaxed=False, product="clebsch_gordan", backend="auto"):
        super().__init__()
        inputs, hidden, output = (o3.Irreps(i) for i in (input_irreps, hidden_irreps, output_irreps))
        if not inputs == hidden == output:
            raise ValueError("SEGNNLayer: input, hidden and output irreps must be equal (residual connection), "
                             f"got {inputs}, {hidden} and {output}")
        self.hidden_irreps, self.backend, self.relaxed = hidden, backend, relaxed
        self.edge_attr_irreps, self.node_attr_irreps = o3.Irreps(edge_attr_irreps), o3.Irreps(node_attr_irreps)
        self.additional_irreps = o3.Irreps(additional_message_irreps or "")
        message = (2 * hidden + self.additional_irreps).simplify()
        update = (2 * hidden).simplify()
        options = {"backend": backend}
        plain, gated = PRODUCTS[product]
        self.product = product
        self.message_layer_1 = gated(message, hidden, self.edge_attr_irreps, **options)
        self.message_layer_2 = gated(hidden, hidden, self.edge_attr_irreps, **options)
        self.update_layer_1 = gated(update, hidden, self.node_attr_irreps, **options)
        self.update_layer_2 = plain(hidden, hidden, self.node_attr_irreps, **options)
        if relaxed:
            d = hidden.dim
            self.lin_noneq1 = _branch_of(2 * d, d)
            self.lin_noneq2 = _branch_of(d, d)
            self.gammas = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(2)])
        else:
            self.gammas = []
        self.disable_equivariance = relaxed
        self.norm = None if norm == "none" else norm
        if self.norm not in (None, "batch", "instance"):
            raise ValueError(f"SEGNN: norm must be None, 'batch' or 'instance', got {norm!r}")
        self.feature_norm = self.message_norm = None
        if self.norm == "batch":
            self.feature_norm, self.message_norm = BatchNorm(hidden), BatchNorm(hidden)
        elif self.norm == "instance":
            self.feature_norm = InstanceNorm(hidden, backend=backend)
        add_gates(self, len(self.gammas))

    def get_gammas(self) -> list[nn.Parameter]:
        return list(self.gammas)

    def gate_irreps(self, gate: int) -> tuple[o3.Irreps, o3.Irreps]:
        """What the branch of a gate reads and returns."""
        return (2 if gate == 0 else 1) * self.hidden_irreps, self.hidden_irreps

    def gate_maps(self, gate: int) -> list[nn.Module]:
        """The linear maps of a gate's branch, first to last."""
        return list((self.lin_noneq1, self.lin_noneq2)[gate][::2])

    def forward(self, x: Tensor, edge_index: Tensor | Graph, edge_attr: Tensor, node_attr: Tensor,
                batch: Tensor | Segments | None, additional_message_features: Tensor | None = None) -> Tensor:
        """x [N, D], edge_attr [E, A], node_attr [N, B], batch [N], additional features [E, F] -> [N, D]."""
        graph = edge_index if isinstance(edge_index, Graph) else Graph(edge_index, x.shape[0])
        x = self.update(self.message(x, graph, edge_attr, additional_message_features), x, node_attr)
        if self.norm == "batch":
            x = self.feature_norm(x)
        elif self.norm == "instance":
            x = self.feature_norm(x, batch)
        return x

    def message(self, x: Tensor, graph: Graph, edge_attr: Tensor, additional: Tensor | None) -> Tensor:
        """The sum of the messages that arrive at each node, [N, D]."""
        one, two = self.message_layer_1, self.message_layer_2
        if self.message_norm is None and self.product == "clebsch_gordan":
            return functional.steerable_message(
                x, edge_attr, graph, one.tp.weight, one.table, two.tp.weight, two.table, extra=additional,
                bias1=one.biases, bias2=two.biases, gate1=one.gate_table, gate2=two.gate_table, backend=self.backend)
        # batch norm takes its statistics from the messages of all edges, so they must exist; Gaunt products make them
        ends = [functional.gather(x, s, backend=self.backend) for s in (graph.targets, graph.sources)]
        message = torch.cat(ends if additional is None else [*ends, additional], 1)  # [E, 2 D + F]
        message = two(one(message, edge_attr), edge_attr)
        message = message if self.message_norm is None else self.message_norm(message)
        return functional.segment_sum(message, graph.targets, backend=self.backend)

    def update(self, message: Tensor, x: Tensor, node_attr: Tensor) -> Tensor:
        """The new features [N, D] from the summed messages [N, D]."""
        both = torch.cat([x, message], 1)  # [N, 2 D]
        update = self.update_layer_1(both, node_attr)
        if self.disable_equivariance and not self.snapped[0]:
            update = self._relax(0, both, update, None)
        base = self.update_layer_2(update, node_attr)
        return self._relax(1, update, base, x) if self.disable_equivariance and not self.snapped[1] else x + base

    def _relax(self, gate: int, x: Tensor, base: Tensor, residual: Tensor | None) -> Tensor:
        """base + gamma branch(x) + residual; the last product, gamma and both sums in one call."""
        branch, gamma, linear = (self.lin_noneq1, self.lin_noneq2)[gate], self.gammas[gate], functional.relaxed_linear
        h = linear(x, branch[0].weight, branch[0].bias, backend=self.backend)
        h = linear(h, branch[2].weight, branch[2].bias, activation="gelu", backend=self.backend)
        weight, bias = branch[4].weight, branch[4].bias
        if self._record is not None:
            self._record(Seen(gate, gamma, x, base,
                              lambda: linear(h, weight, bias, activation="gelu", backend=self.backend), branch))
        return linear(h, weight, bias, gamma, base, residual, activation="gelu", backend=self.backend)


def _branch_of(width: int, d: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * d), nn.GELU(), nn.Linear(2 * d, d), nn.GELU(), nn.Linear(d, d))


class SEGNN(Branched):
    """Steerable E(3) equivariant message passing network, with ACE's unconstrained branches where `relaxed`.

    Names, order and initial values of the parameters are those of the original code (SEGNN and ACE): its checkpoints
    load by name.

    Args:
        input_irreps, hidden_irreps, output_irreps: of the node features, beginning to end.
        edge_attr_irreps, node_attr_irreps: of the attributes; both begin with 0e.
        num_layers: message passing layers.
        norm: None (or "none"), "batch" or "instance".
        pool: "avg" or "sum" over the nodes of a graph (graph task).
        task: "graph" (one output a graph) or "node".
        additional_message_irreps: of the additional edge features, or None.
        relaxed: adds two branches and two gammas to every layer.
        product: "clebsch_gordan", or "gaunt": products on the sphere (`O3GauntProduct`) where features meet attributes,
            with antisymmetric paths where the irreps have any.
        backend: which implementation of the operators runs.

    Raises:
        ValueError: an unknown option, irreps that no path reaches, or a graph that does not fit the model.

    Source: Brandstetter et al. 2022 (SEGNN), Manolache et al. 2025 (ACE).

    Example:
        >>> attr = "1x0e+1x1o"
        >>> model = SEGNN("2x1o+1x0e", "8x0e+8x1o", "1x1o", attr, attr, 2, None, "avg", "node", "2x0e")
        >>> model(nbody_graph(batch)).shape  # batch of pos, vel, charges, edge_index
        torch.Size([20, 3])
    """

    def __init__(self, input_irreps, hidden_irreps, output_irreps, edge_attr_irreps, node_attr_irreps, num_layers,
                 norm=None, pool="avg", task="graph", additional_message_irreps=None, *, relaxed=False,
                 product="clebsch_gordan", backend="auto"):
        super().__init__()
        inputs, hidden, output = (o3.Irreps(i) for i in (input_irreps, hidden_irreps, output_irreps))
        edge_attr, node_attr = o3.Irreps(edge_attr_irreps), o3.Irreps(node_attr_irreps)
        for name, value, choices in (("task", task, ("graph", "node")), ("pool", pool, ("avg", "sum")),
                                     ("product", product, tuple(PRODUCTS))):
            if value not in choices:
                raise ValueError(f"SEGNN: {name} must be one of {choices}, got {value!r}")
        for name, value in (("edge_attr_irreps", edge_attr), ("node_attr_irreps", node_attr)):
            if not value or value[0].ir != o3.Irrep("0e"):
                raise ValueError(f"SEGNN: {name} must begin with 0e, got {value}; use Irreps.spherical_harmonics(lmax)")
        self.input_irreps, self.hidden_irreps, self.output_irreps = inputs, hidden, output
        self.edge_attr_irreps, self.node_attr_irreps = edge_attr, node_attr
        self.additional_irreps = o3.Irreps(additional_message_irreps or "")
        # plain integers: torch.compile cannot guard on e3nn's irreps
        self._widths = (inputs.dim, edge_attr.dim, node_attr.dim, self.additional_irreps.dim)
        self.task, self.pool, self.relaxed, self.backend = task, pool, relaxed, backend
        options = {"backend": backend}
        plain, gated = PRODUCTS[product]
        self.embedding_layer = plain(inputs, hidden, node_attr, **options)
        self.layers = nn.ModuleList(
            SEGNNLayer(hidden, hidden, hidden, edge_attr, node_attr, norm, self.additional_irreps, relaxed=relaxed,
                       product=product, **options)
            for _ in range(num_layers)
        )
        self.pre_pool1 = gated(hidden, hidden, node_attr, **options)
        if task == "node":
            self.pre_pool2 = plain(hidden, output, node_attr, **options)
        else:
            pooled = (output * hidden.num_irreps).simplify().sort().irreps
            self.pre_pool2 = plain(hidden, pooled, node_attr, **options)
            self.post_pool1 = O3TensorProductSwishGate(pooled, pooled, **options)
            self.post_pool2 = O3TensorProduct(pooled, output, **options)

    _flag = "disable_equivariance"

    def _layers(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, graph) -> Tensor:
        """[N, output] (node task) or [G, output] (graph task).

        Args:
            graph: any object with the original's attributes x [N, in], edge_index [2, E] (or an `ace_fast.Graph`),
                edge_attr [E, A], node_attr [N, B], batch [N] and additional_message_features [E, F]; it is not
                changed. `graph.graph` (a Graph) and `graph.segments` (Segments of `batch`) are used where present
                and save the only host synchronisations.
        """
        x = graph.x
        edges = getattr(graph, "graph", None)
        if not isinstance(edges, Graph):
            edges = graph.edge_index
            if not isinstance(edges, Graph):
                edges = Graph(edges, x.shape[0])
        additional = getattr(graph, "additional_message_features", None)
        node_attr = _with_trivial(graph.node_attr, x.shape[0])
        self._check(x, edges, graph.edge_attr, node_attr, additional)
        batch = None
        if self.task == "graph" or self.layers and self.layers[0].norm == "instance":
            batch = segments_of(graph, x)
        x = self.embedding_layer(x, node_attr)
        for layer in self.layers:
            x = layer(x, edges, graph.edge_attr, node_attr, batch, additional)
        x = self.pre_pool2(self.pre_pool1(x, node_attr), node_attr)
        if self.task == "node":
            return x
        x = functional.segment_sum(x, batch, backend=self.backend)
        if self.pool == "avg":
            x = x / (batch.ptr[1:] - batch.ptr[:-1]).clamp(min=1).to(x.dtype)[:, None]
        return self.post_pool2(self.post_pool1(x))

    def _check(self, x, edges, edge_attr, node_attr, additional) -> None:
        n, e = x.shape[0], edges.num_edges
        if edges.num_nodes != n:
            raise ValueError(f"SEGNN: the graph must have {n} nodes as x, got {edges.num_nodes}")
        width_in, width_edge, width_node, width_more = self._widths
        _width("x", x, n, width_in)
        _width("edge_attr", edge_attr, e, width_edge)
        _width("node_attr", node_attr, n, width_node)
        if (additional is None) != (width_more == 0):
            got = None if additional is None else list(additional.shape)
            raise ValueError(f"SEGNN: additional_message_features must be [{e}, {width_more}] (None for 0), got {got}; "
                             "see additional_message_irreps")
        if additional is not None:
            _width("additional_message_features", additional, e, width_more)


def _with_trivial(node_attr: Tensor, num_nodes: int) -> Tensor:
    """node_attr with 1 in its scalar column for every node, isolated ones at the end that have no row included."""
    if node_attr.dim() != 2:
        return node_attr
    missing = num_nodes - node_attr.shape[0]
    rest = node_attr[:, 1:] if missing <= 0 else nn.functional.pad(node_attr[:, 1:], (0, 0, 0, missing))
    return torch.cat([rest.new_ones(rest.shape[0], 1), rest], 1)


def segments_of(graph, x: Tensor) -> Segments:
    """The nodes of each graph; `graph.segments` where it is there, else made from `graph.batch` (reads the device)."""
    found = getattr(graph, "segments", None)
    if isinstance(found, Segments):
        return found
    ptr = getattr(graph, "ptr", None)
    num_graphs = ptr.shape[0] - 1 if isinstance(ptr, Tensor) else getattr(graph, "num_graphs", None)
    return graph_segments(graph.batch, x.shape[0], x.device, num_graphs)


def _incoming_mean(edge_attr: Tensor, graph: Graph, backend: str) -> Tensor:
    """Mean over the edges that end in each node, [N, A]; zero for isolated ones."""
    total = functional.segment_sum(edge_attr, graph.targets, backend=backend)
    return total / graph.degree.clamp(min=1).to(total.dtype)[:, None]


def _prepare(batch, graph: Graph | None) -> tuple[Graph, Tensor, SimpleNamespace]:
    pos = batch.pos
    if pos.dim() != 2 or pos.shape[1] != 3:
        raise ValueError(f"graph: pos must be [N, 3], got {list(pos.shape)}")
    if graph is None:
        edges = batch.edge_index
        graph = edges if isinstance(edges, Graph) else Graph(edges, pos.shape[0])
    elif graph.num_nodes != pos.shape[0]:
        raise ValueError(f"graph: graph must have {pos.shape[0]} nodes as pos, got {graph.num_nodes}; "
                         "reuse it only for batches of the same structure")
    source, target = graph.edge_index
    named = SimpleNamespace(pos=pos, edge_index=graph.edge_index, graph=graph, batch=getattr(batch, "batch", None))
    ptr = getattr(batch, "ptr", None)
    if isinstance(ptr, Tensor):
        named.ptr = ptr
        named.segments = graph_segments(named.batch, pos.shape[0], pos.device, ptr.shape[0] - 1)
    return graph, pos[source] - pos[target], named


def nbody_graph(batch, lmax_attr: int = 1, *, graph: Graph | None = None, backend: str = "auto") -> SimpleNamespace:
    """The graph that SEGNN takes for charged bodies: the original's O3Transform, once a batch.

    Args:
        batch: has pos [N, 3], vel [N, 3], charges [N, 1], edge_index [2, E] and batch [N] (`ace_fast.data.Batch`);
            it is not changed.
        lmax_attr: highest degree of the attributes.
        graph: a Graph of an earlier batch with the same edges, to be used again.

    Returns:
        x [N, 7] (2x1o+1x0e: pos, vel, |vel|), edge_attr [E, (lmax_attr + 1)^2], node_attr [N, (lmax_attr + 1)^2],
        additional_message_features [E, 2] (distance, product of charges), pos, edge_index, graph, batch, segments.
        Positions are absolute: the model is equivariant under rotations and reflections, not under translations.
    """
    graph, rel_pos, named = _prepare(batch, graph)
    irreps = o3.Irreps.spherical_harmonics(lmax_attr)
    vel, charges = batch.vel, batch.charges
    for name, value, width in (("vel", vel, 3), ("charges", charges, 1)):
        if value.dim() != 2 or value.shape != (graph.num_nodes, width):
            raise ValueError(f"nbody_graph: {name} must be [{graph.num_nodes}, {width}], got {list(value.shape)}")
    source, target = graph.edge_index
    harmonics = {"normalize": True, "normalization": "integral"}
    named.edge_attr = o3.spherical_harmonics(irreps, rel_pos, **harmonics)
    named.node_attr = _incoming_mean(named.edge_attr, graph, backend) + o3.spherical_harmonics(irreps, vel, **harmonics)
    named.x = torch.cat([named.pos, vel, vel.norm(dim=1, keepdim=True)], 1)
    named.additional_message_features = torch.cat(
        [rel_pos.norm(dim=1, keepdim=True), charges[source] * charges[target]], 1)
    return named


def qm9_graph(batch, lmax_attr: int = 3, *, graph: Graph | None = None, backend: str = "auto") -> SimpleNamespace:
    """The graph that SEGNN takes for molecules, with the original's attributes.

    Args:
        batch: has pos [N, 3] (Å), x [N, C] (one-hot atoms), edge_index [2, E] (pairs closer than 2 Å) and batch [N].
        lmax_attr: highest degree of the attributes.
        graph: a Graph of an earlier batch with the same edges, to be used again.

    Returns:
        As `nbody_graph`, with x unchanged, "component" normalisation and the squared distance [E, 1] (Å^2) as
        additional feature.
    """
    graph, rel_pos, named = _prepare(batch, graph)
    irreps = o3.Irreps.spherical_harmonics(lmax_attr)
    named.x = batch.x
    named.edge_attr = o3.spherical_harmonics(irreps, rel_pos, normalize=True, normalization="component")
    named.node_attr = _incoming_mean(named.edge_attr, graph, backend)
    named.additional_message_features = rel_pos.square().sum(1, keepdim=True)
    return named
