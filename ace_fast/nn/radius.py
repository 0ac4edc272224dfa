"""torch_geometric's radius_graph, without pyg-lib or torch-cluster."""

import torch
from torch import Tensor

from ..functional import radius_graph as _radius_graph
from ..kernels.define import fail

FLOWS = ("source_to_target", "target_to_source")


def radius_graph(
    x: Tensor, r: float, batch: Tensor | None = None, loop: bool = False, max_num_neighbors: int = 32,
    flow: str = "source_to_target", num_workers: int = 1, batch_size: int | None = None,
) -> Tensor:
    """Edges between the points of each graph that are closer than `r`: torch_geometric.nn.radius_graph.

    Args:
        x: [N, F] or [N] float32 or float64, F from 1 to 3.
        r: positive, in the unit of x.
        batch: [N] int64 ascending, the graph of each point; None for one graph.
        loop: whether a point is its own neighbour (and one of max_num_neighbors then).
        max_num_neighbors: of each point; the nearest, ties by index. (torch-cluster takes the first that it finds.)
        flow: "source_to_target": neighbours in row 0, sorted by row 1; "target_to_source": the rows exchanged.
        num_workers, batch_size: of no effect.

    Returns:
        edge_index [2, E] int64. See ace_fast.functional.radius_graph for periodic systems, errors and no cap.

    Source: torch_geometric.nn.radius_graph.

    Example:
        >>> radius_graph(torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]), 2.5)
        tensor([[1, 2, 0, 3, 0, 3, 1, 2],
                [0, 0, 1, 1, 2, 2, 3, 3]])
    """
    if flow not in FLOWS:
        fail("radius_graph", "flow", f"one of {', '.join(FLOWS)}", repr(flow))
    if not isinstance(x, Tensor) or x.dim() not in (1, 2) or x.dim() == 2 and not 1 <= x.shape[1] <= 3:
        fail("radius_graph", "x", "[N] or [N, 1 to 3]", list(x.shape) if isinstance(x, Tensor) else type(x).__name__,
             "knn finds neighbours in features of any number")
    x = x.detach()
    x = x[:, None] if x.dim() == 1 else x
    pos = torch.nn.functional.pad(x, (0, 3 - x.shape[1]))
    edges = _radius_graph(pos, r, batch=batch, loop=loop, max_num_neighbors=max_num_neighbors)
    return edges if flow == FLOWS[0] else edges.flip(0)
