"""What a model is called with, as named arrays that a group's elements move."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from ..graph import Graph, Segments
from .groups import Element, Group
from .known import declared, parameters_of
from .layouts import Layout, act, check, layout

# what arrays of these names are, whatever the model; other integers only take part in permutations
_NAMED = {"pos": "position", "edge_index": "index"}
_FIXED = ("batch", "ptr")  # the same after a permutation within graphs


class Rows:
    """Which of G elements each row of an array takes, known by the number of rows.

    Attributes:
        count: G, elements that a draw has: one a graph or one a sample, else 1.
        sizes: nodes of each of the G graphs.
        nodes, edges: N and E; None where they are not known.
    """

    def __init__(self, owner: Tensor | None, edge_index: Tensor | None, first: Tensor, samples: bool,
                 graphs: int = 0) -> None:
        self._owner, self.samples = owner, samples
        self.nodes = len(first) if owner is None else len(owner)
        self.edges = None if edge_index is None else edge_index.shape[1]
        if owner is not None:
            self.count = max(int(owner.max()) + 1 if owner.numel() else 0, graphs)  # the last graphs may be empty
            self.sizes = torch.bincount(owner, minlength=self.count).tolist()
            self._of_edges = None if edge_index is None else owner[edge_index[0]]
        else:
            self.count, self.sizes = (len(first), None) if samples else (1, [self.nodes])

    def owner(self, name: str, x: Tensor) -> Tensor | None:
        """[rows of x] which element each takes; None: the only one, or row g the g-th.

        Raises:
            ValueError: x has rows of neither nodes, edges nor graphs.
        """
        if self._owner is None or self.count == 1:
            return None
        if self.of_edges(name, x):
            return self._of_edges
        if len(x) == self.nodes:
            return self._owner
        if len(x) == self.count:
            return None
        if self.nodes and len(x) % self.nodes == 0:  # steps of time, each with all nodes
            return self._owner.repeat(len(x) // self.nodes)
        raise ValueError(f"measure: {name} must have a row for each of {self.nodes} nodes, {self.edges or 0} edges or "
                         f"{self.count} graphs, got {list(x.shape)}")

    def of_edges(self, name: str, x: Tensor) -> bool:
        return self.edges is not None and len(x) == self.edges and (self.edges != self.nodes or "edge" in name)

    def placed(self, name: str, x: Tensor, own: Layout) -> Layout:
        """The layout with axis 0 over the nodes, where x has a row for each and the layout says nothing of them."""
        if own.nodes or own.kind == "index" or self.samples or self.of_edges(name, x) or len(x) != self.nodes:
            return own
        return own.over(0)


class Inputs:
    """The arguments of a call, and what of them moves.

    Args:
        model: that is called with them.
        batch: a tensor, the only argument; a tuple or list of arguments; a mapping of arguments by name; or an object
            whose attributes the model reads, the only argument.
        group: what moves them.
        layouts: of the arguments or attributes, by name or in order; None: as they are known of the model.
        graphs: [N] the graph of each node; "samples": axis 0 runs over samples, each with an element of its own; None:
            an argument or attribute `batch` says so, else one element moves everything.

    Raises:
        ValueError: layouts that are missing, that no array has, or that the group cannot act on.
    """

    def __init__(self, model: Any, batch: Any, group: Group, layouts: Any = None,
                 graphs: Tensor | str | None = None) -> None:
        self.group, self._batch = group, batch
        known = declared(model)
        names = parameters_of(model)
        if isinstance(batch, Tensor):
            batch = (batch,)
        kinds = (("values", tuple | list), ("names", Mapping), ("object", object))
        self._call = next(kind for kind, of in kinds if isinstance(batch, of))
        if self._call == "values":
            values = {names[i] if i < len(names) else str(i): value for i, value in enumerate(batch)}
        elif self._call == "names":
            values = dict(batch)
        else:
            values = _attributes(batch)
        self._values = values
        self.arrays = {name: x for name, x in values.items() if isinstance(x, Tensor | Graph)}
        if not any(isinstance(x, Tensor) for x in self.arrays.values()):
            raise ValueError(f"measure: batch must hold tensors, got {type(self._batch).__name__} with none; pass what "
                             "the model is called with")
        self.layouts = self._layouts(layouts, known.inputs if known and layouts is None else None)
        self.rows = self._rows(graphs, known is not None and known.rows and layouts is None)
        for name, own in self.layouts.items():
            check(group, own, f"measure: the layout of {name}")

    def _layouts(self, given: Any, known: Mapping[str, Layout] | None) -> dict[str, Layout]:
        if given is None:
            found = dict(known or {})
        elif isinstance(given, Mapping):
            found = {name: layout(own) for name, own in given.items()}
            if wrong := [name for name in found if name not in self.arrays]:
                raise ValueError(f"measure: layouts must name arrays among {', '.join(self.arrays)}, got "
                                 f"{', '.join(wrong)}")
        else:
            one = isinstance(given, str | Layout | o3.Irreps) or not isinstance(given, Sequence)
            several = [layout(own) for own in ([given] if one else given)]
            if len(several) > len(self.arrays):
                raise ValueError(f"measure: layouts must be at most {len(self.arrays)}, of {', '.join(self.arrays)}, "
                                 f"got {len(several)}")
            found = dict(zip(self.arrays, several, strict=False))
        for name, x in self.arrays.items():
            if name in found:
                continue
            if isinstance(x, Graph) or name in _NAMED:
                found[name] = layout("index" if isinstance(x, Graph) else _NAMED[name])
            elif self._call == "object" and (found or known is not None) or not x.is_floating_point():
                found[name] = layout("scalar")
            else:
                raise ValueError(f"measure: the layout of {name} {list(x.shape)} must be given, got none; pass "
                                 f'layouts={{"{name}": "vector"}}, or "scalar", "position" or irreps')
        return {name: own for name, own in found.items() if name in self.arrays}

    def _rows(self, graphs: Tensor | str | None, samples: bool) -> Rows:
        if isinstance(graphs, str) and graphs != "samples":
            raise ValueError(f"measure: graphs must be 'samples' or the graph of each node, got {graphs!r}")
        owner = graphs if isinstance(graphs, Tensor) else self._values.get("batch") if graphs is None else None
        ptr = owner.ptr if isinstance(owner, Segments) else self._values.get("ptr")
        owner = owner.index if isinstance(owner, Segments) else owner
        index = next((x.edge_index if isinstance(x, Graph) else x for name, x in self.arrays.items()
                      if self.layouts[name].kind == "index"), None)
        tensors = [(name, x) for name, x in self.arrays.items() if isinstance(x, Tensor)]
        first = next((x for name, x in tensors if x.is_floating_point()), tensors[0][1])
        if isinstance(owner, Tensor) and owner.dim() == 1:
            return Rows(owner, index, first, False, len(ptr) - 1 if isinstance(ptr, Tensor) else 0)
        return Rows(None, index, first, graphs == "samples" or samples)

    @property
    def side(self) -> int | None:
        """Pixels of the images in a row."""
        return next((x.shape[-1] for name, x in self.arrays.items() if self.layouts[name].kind == "image"), None)

    @property
    def sizes(self) -> list[int] | None:
        """Nodes of each graph."""
        for name, own in self.layouts.items():
            if dense := [axis for axis in own.nodes if axis != 0]:
                return [self.arrays[name].shape[dense[0]]] * self.rows.count
        return self.rows.sizes

    @property
    def reach(self) -> float:
        """The spread of the positions, by about which translations move them."""
        found = [float(x.detach().double().std()) for name, x in self.arrays.items()
                 if self.layouts[name].kind == "position" and x.numel() > 1]
        return max([x for x in found if x > 0], default=1.0)

    def floats(self) -> dict[str, Tensor]:
        """Copies of the arrays that a derivative can be taken of, by name."""
        return {name: x.detach().clone() for name, x in self.arrays.items()
                if isinstance(x, Tensor) and x.is_floating_point()}

    def moved(self, element: Element) -> dict[str, Any]:
        """The arrays under an element of each graph."""
        found = {}
        for name, x in self.arrays.items():
            own = self.layouts[name]
            if isinstance(x, Graph):
                found[name] = x if element.permutation is None else moved_graph(self.group, element, x)
            elif name not in _FIXED:
                placed = self.rows.placed(name, x, own)
                found[name] = act(self.group, element, x, placed, self.owner(element, name, x, own))
        return found

    def owner(self, element: Element, name: str, x: Tensor, own: Layout) -> Tensor | None:
        """As `Rows.owner`, for an array that an element acts on."""
        alone = any(part is not None and len(part) == 1 for part in (element.matrix, element.shift, element.number))
        return None if alone or own.kind == "index" else self.rows.owner(name, x)

    def call(self, model: Any, arrays: Mapping[str, Any]) -> Any:
        """The model's answer to the batch with other arrays."""
        if self._call == "object":
            other = copy.copy(self._batch)
            if "structure_key" in vars(other) and arrays.get("edge_index", other.edge_index) is not other.edge_index:
                other.structure_key, other.symmetric = None, False
            for name, x in arrays.items():
                setattr(other, name, x)
            return model(other)
        values = {name: arrays.get(name, x) for name, x in self._values.items()}
        return model(**values) if self._call == "names" else model(*values.values())


def moved_graph(group: Group, element: Element, graph: Graph) -> Graph:
    """The graph with its nodes renumbered, edges in their order."""
    return Graph(act(group, element, graph.edge_index, layout("index")), graph.num_nodes)


def _attributes(batch: Any) -> dict[str, Any]:
    """Name -> tensor or Graph of an object: torch_geometric's Data, a Batch, a namespace."""
    if hasattr(batch, "to_dict") and callable(batch.to_dict):
        return dict(batch.to_dict())
    if not hasattr(batch, "__dict__"):
        raise ValueError(f"measure: batch must be a tensor, a tuple, a mapping or an object with tensors, got "
                         f"{type(batch).__name__}")
    return dict(vars(batch))
