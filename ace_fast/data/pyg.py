"""torch_geometric's data sets as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .batching import FlatDataset

_NODE, _EDGE = ("x", "pos", "z"), ("edge_attr", "edge_weight")  # whose they are where the numbers of rows do not tell


def from_pyg(graphs: Sequence[Any]) -> FlatDataset:
    """A torch_geometric data set, or a list of its Data objects, as a FlatDataset.

    An attribute whose rows are the nodes of every graph is an array of nodes, one with the edges' rows of edges, a
    number or a tensor with one row an array of graphs ([1, 19] becomes [G, 19]). Attributes that are no numbers
    (names, SMILES) are left out. Edges are sorted by target.

    Raises:
        ValueError: no graphs, something else than Data (HeteroData too), one without nodes, graphs with different
            attributes, or one that is neither of nodes, edges nor graphs.

    A data set that does not fit in memory goes to shards in slices:
    `write_shards(folder, (from_pyg(data[i : i + 16384]) for i in range(0, len(data), 16384)))`.

    Example:
        >>> from_pyg(torch_geometric.datasets.QM9("qm9"))  # doctest: +SKIP
        FlatDataset(130831 graphs, 2359210 nodes, 4882792 edges: x, pos, z, edge_attr, y, idx)
    """
    items = [_item(k, graph) for k, graph in enumerate(graphs)]
    if not items:
        raise ValueError("from_pyg: graphs must be at least one Data object, got none")
    nodes = torch.tensor([item.pop("num_nodes") for item in items])
    none = torch.zeros(2, 0, dtype=torch.int64)
    edges = [none if item.get("edge_index") is None else item["edge_index"] for item in items]
    counts = {"node": nodes, "edge": torch.tensor([e.shape[1] for e in edges]), "graph": torch.ones_like(nodes)}
    parts: dict[str, dict[str, Tensor]] = {"node": {}, "edge": {}, "graph": {}}
    for name in _names(items):
        values = [torch.as_tensor(item[name]) for item in items]
        values = [v.reshape(1) if v.ndim == 0 else v for v in values]
        parts[_part(name, torch.tensor([len(v) for v in values]), counts)][name] = torch.cat(values)
    ends = [torch.nn.functional.pad(counts[part].cumsum(0), (1, 0)) for part in ("node", "edge")]
    return FlatDataset(parts["node"], ends[0], torch.cat(edges, 1), ends[1], parts["edge"], parts["graph"])


def _item(k: int, graph: Any) -> dict[str, Any]:
    """The attributes of graph k, and num_nodes."""
    if not hasattr(graph, "to_dict") or not hasattr(graph, "num_nodes") or hasattr(graph, "node_types"):
        remedy = "; make one of it with to_homogeneous()" if hasattr(graph, "node_types") else ""
        raise ValueError(f"from_pyg: graphs must be torch_geometric Data objects, got a {type(graph).__name__} as "
                         f"graph {k}{remedy}")
    if graph.num_nodes is None:
        raise ValueError(f"from_pyg: graph {k} must have nodes, got neither arrays of nodes nor num_nodes; set its "
                         "num_nodes")
    return graph.to_dict() | {"num_nodes": graph.num_nodes}


def _names(items: list[dict[str, Any]]) -> list[str]:
    """The attributes that are numbers, which every graph must have."""
    numbers = [{n for n, v in item.items() if isinstance(v, Tensor | int | float) and n != "edge_index"}
               for item in items]
    for k, found in enumerate(numbers):
        if found != numbers[0]:
            raise ValueError(f"from_pyg: graph {k} must have the attributes of graph 0, {sorted(numbers[0])}, got "
                             f"{sorted(found)}; add or delete what differs")
    return [name for name in items[0] if name in numbers[0]]


def _part(name: str, rows: Tensor, counts: dict[str, Tensor]) -> str:
    """Whose array it is: of what all graphs have as many of as it has rows."""
    fits = [part for part, count in counts.items() if torch.equal(rows, count)]
    if not fits:
        bad = int((rows != counts["node"]).nonzero()[0])
        raise ValueError(f"from_pyg: {name} must have a row for each node, for each edge, or one, got {int(rows[bad])} "
                         f"in graph {bad} with {int(counts['node'][bad])} nodes and {int(counts['edge'][bad])} edges")
    usual = "node" if name in _NODE else "edge" if name in _EDGE else "graph"
    return usual if usual in fits else fits[0]
