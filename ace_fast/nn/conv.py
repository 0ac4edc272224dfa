"""Tensor product of every edge with its source node, summed at the target nodes."""

from torch import Tensor

from .. import functional
from ..graph import Graph
from . import peers
from .tensor_product import TensorProduct


class TensorProductConv(TensorProduct):
    r"""Convolution by a tensor product: gather, product and sum in one operator that stores no edge tensor.

    .. math:: z_n = \sum_{e:\, target(e) = n} w_e\, x_{source(e)} \otimes y_e

    Equals `TensorProduct` on the rows `x[source]`, followed by a sum over the edges of each target, as NequIP, MACE and
    tensor field networks do; openequivariance's TensorProductConv. Attributes, weights and state_dict are
    `TensorProduct`'s.

    Args:
        irreps_node, irreps_edge, irreps_out: e3nn irreps of x, y and the result.
        instructions: (i_node, i_edge, i_out, mode, has_weight[, path_weight]) each.
        shared_weights: False (the default) takes weights of every edge.
        atomic: sums at the nodes in any order on a GPU; refused under torch.use_deterministic_algorithms(True).
        **kwargs: `TensorProduct`'s, layout and backend among them.

    Raises:
        ValueError: as `TensorProduct`.

    Derivatives of any order in x, y and the weights.

    Example:
        >>> conv = ace_fast.nn.TensorProductConv("8x0e", "1x0e+1x1o", "8x0e+8x1o",
        ...                                      [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 1, 0]])
        >>> conv(torch.randn(3, 8), torch.randn(3, 4), torch.randn(3, conv.weight_numel), edge_index).shape
        torch.Size([3, 32])
    """

    def __init__(self, irreps_node, irreps_edge, irreps_out, instructions, *, shared_weights=False, atomic=False,
                 **kwargs):
        super().__init__(irreps_node, irreps_edge, irreps_out, instructions, shared_weights=shared_weights, **kwargs)
        self.atomic = atomic

    def _adopt(self, *args) -> None:
        super()._adopt(*args)
        self.atomic = False

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | list[Tensor] | None, graph: Graph | Tensor) -> Tensor:
        """Messages from sources to targets, summed.

        Args:
            x: [N, irreps_node.dim], features of the (source) nodes; y: [E, irreps_edge.dim], of the edges.
            weight: [E, n], of every edge; [n] with shared_weights; None with internal weights.
            graph: a Graph, built once for all layers, or edge_index [2, E] int64 with sources in row 0 and targets in
                row 1, of which a Graph of N nodes is built at every call.

        Returns:
            [N, irreps_out.dim], a row for each target node.
        """
        name = type(self).__name__
        if x.dim() != 2:
            raise ValueError(f"{name}: x must be [N, {self.table.dims[0]}], got {list(x.shape)}")
        if not isinstance(graph, Graph):
            graph = Graph(graph, x.shape[0])
        for argument, value, rows, dim in (("x", x, graph.num_sources, self.table.dims[0]),
                                           ("y", y, graph.num_edges, self.table.dims[1])):
            if value.shape != (rows, dim):
                raise ValueError(f"{name}: {argument} must be [{rows}, {dim}], got {list(value.shape)}")
        weight = self._weight(weight) if self.weight_numel else x.new_empty(0)
        if weight.dim() > 1 and weight.shape[:-1] != (graph.num_edges,):
            raise ValueError(f"{name}: weight must be [{graph.num_edges}, {self.weight_numel}], a row for each edge, "
                             f"got {list(weight.shape)}")
        if self.backend in peers.NAMES:
            return peers.run(self.backend, self.table, x, y, weight, graph=graph)
        return functional.tensor_product_conv(x, y, weight, graph, self.table, atomic=self.atomic, backend=self.backend)
