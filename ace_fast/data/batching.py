"""Ragged graphs as flat arrays and offsets, and batches of them by index arithmetic alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph, Segments, SymmetricGraph
from .checks import as_integer, as_tensor, check_edges, check_finite, check_names, check_shapes
from .resuming import Shared


class Batch:
    """Several graphs as one, with every array an attribute under its name in the data set.

    Attributes:
        edge_index: [2, E] int64, row 0 source j, row 1 target i, numbered over the whole batch, sorted by target.
        batch: [N] int64, the graph of each node.
        ptr: [G + 1] int64, graph g owns the nodes ptr[g] .. ptr[g + 1] - 1.
        num_graphs, num_nodes: G and N as ints.
        structure_key: a string that two batches share only if edge_index, batch and ptr are equal in them, so that
            whatever was built from these can be reused; None where the graphs of the data set differ.
        symmetric: whether the edges are known to be sorted by target, then source, each with its reverse and none
            twice.
        names: the names of the other arrays: node arrays [N, ...], edge arrays [E, ...], graph arrays [G, ...].

    The tensors edge_index, batch and ptr may be shared between batches: never write into them.
    """

    def __init__(
        self,
        arrays: Mapping[str, Tensor],
        edge_index: Tensor,  # [2, E]
        batch: Tensor,  # [N]
        ptr: Tensor,  # [G + 1]
        structure_key: str | None = None,
        symmetric: bool = False,
    ) -> None:
        self.edge_index, self.batch, self.ptr, self.structure_key = edge_index, batch, ptr, structure_key
        self.symmetric = symmetric
        self.num_graphs, self.num_nodes = ptr.numel() - 1, batch.numel()
        self.names = tuple(arrays)
        for name, array in arrays.items():
            setattr(self, name, array)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> Batch:
        """The same batch on another device; dtype is given to the floating-point arrays only."""
        arrays = {name: _move(getattr(self, name), device, dtype, non_blocking) for name in self.names}
        structure = (_move(x, device, None, non_blocking) for x in (self.edge_index, self.batch, self.ptr))
        return Batch(arrays, *structure, self.structure_key, self.symmetric)

    def graph(self) -> Graph:
        """`ace_fast.Graph` of the edges; made without sorting where they are known to be symmetric."""
        if not self.symmetric:
            return Graph(self.edge_index, self.num_nodes)
        nodes = torch.arange(self.num_nodes + 1, device=self.ptr.device)
        return SymmetricGraph(self.edge_index, torch.searchsorted(self.edge_index[1], nodes))

    def segments(self) -> Segments:
        """`ace_fast.segments` of `batch`, which is sorted already."""
        return Segments(self.batch, torch.arange(self.num_nodes, device=self.ptr.device), self.ptr)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(getattr(self, name).shape)}" for name in (*self.names, "edge_index"))
        return f"Batch(num_graphs={self.num_graphs}, {shapes})"


class FlatDataset:
    """Graphs of any sizes in flat arrays: graph g owns the rows node_offsets[g] .. node_offsets[g + 1] - 1.

    Edges are kept sorted by target within each graph; where they come otherwise they are reordered (stably), and the
    edge arrays with them.

    Args:
        node: name -> [N, ...] tensor or numpy array (as all that follow), the nodes of all graphs one after another.
        node_offsets: [G + 1] int64.
        edge_index: [2, E], row 0 source, row 1 target, numbered from 0 within each graph; int64, or uint8, int16 or
            int32 where the graphs are small (batches have int64); None for no edges.
        edge_offsets: [G + 1] int64, which columns of edge_index are whose.
        edge: name -> [E, ...].
        graph: name -> [G, ...].
        check: False skips the check of values (shapes and offsets are always checked).
        symmetric: what is known of the edges of every graph, see `Batch.symmetric`; `symmetric_edges` finds it out.

    Attributes:
        sizes: [G] int64 on the host, nodes and edges of each graph: what `Batcher` takes for its work.

    Raises:
        ValueError: an array has the wrong number of rows, offsets decrease, an edge leaves its graph, or a value is
            NaN or infinite; the message names the array and the first such graph.

    Example:
        >>> data = FlatDataset({"x": torch.arange(3.0)}, torch.tensor([0, 1, 3]), graph={"y": torch.tensor([0, 1])})
        >>> data.batch([1, 0]).x
        tensor([1., 2., 0.])
    """

    def __init__(
        self,
        node: Mapping[str, Tensor],
        node_offsets: Tensor,
        edge_index: Tensor | None = None,
        edge_offsets: Tensor | None = None,
        edge: Mapping[str, Tensor] | None = None,
        graph: Mapping[str, Tensor] | None = None,
        check: bool = True,
        symmetric: bool = False,
    ) -> None:
        self.symmetric = symmetric
        # Contiguous, so that the view as [G, n, ...] below costs nothing per batch.
        self.node, self.edge, self.graph = (
            {name: as_tensor("FlatDataset", name, x).contiguous() for name, x in (part or {}).items()}
            for part in (node, edge, graph)
        )
        node_offsets = as_tensor("FlatDataset", "node_offsets", node_offsets)
        if edge_index is None:
            edge_index = torch.zeros((2, 0), dtype=torch.int64, device=node_offsets.device)
            edge_offsets = torch.zeros_like(node_offsets)
        elif edge_offsets is None:
            raise ValueError("FlatDataset: edge_offsets must be given together with edge_index, got None")
        self.node_offsets = node_offsets
        self.edge_index = as_tensor("FlatDataset", "edge_index", edge_index)
        self.edge_offsets = as_tensor("FlatDataset", "edge_offsets", edge_offsets)
        check_names(self)
        check_shapes(self)
        # Sizes stay on the host, so that a batch on the GPU is cut out without waiting for the device.
        self._node_counts, self._edge_counts = (x.diff().cpu() for x in (node_offsets, self.edge_offsets))
        self.sizes = self._node_counts + self._edge_counts
        if check:
            check_edges(self)
            check_finite(self)
            self._sort_edges()
        self._template = self._find_template()

    def __len__(self) -> int:
        return self.node_offsets.numel() - 1

    @property
    def num_nodes(self) -> int:
        """N over all graphs."""
        return int(self._node_counts.sum())

    @property
    def uniform(self) -> bool:
        """Whether all graphs have the same number of nodes and the same edges."""
        return self._template is not None

    def __repr__(self) -> str:
        names = ", ".join((*self.node, *self.edge, *self.graph))
        return f"FlatDataset({len(self)} graphs, {self.num_nodes} nodes, {self.edge_index.shape[1]} edges: {names})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FlatDataset:
        """The whole data set on another device, where batches are then formed; dtype is for floating-point arrays."""
        node, edge, graph = (
            {name: _move(x, device, dtype) for name, x in part.items()} for part in (self.node, self.edge, self.graph)
        )
        offsets, index, edge_offsets = (
            _move(x, device, None) for x in (self.node_offsets, self.edge_index, self.edge_offsets)
        )
        return FlatDataset(node, offsets, index, edge_offsets, edge, graph, False, self.symmetric)

    def subset(self, indices: Tensor | np.ndarray | Sequence[int]) -> FlatDataset:
        """The graphs `indices` (in that order, repeats allowed) as a data set of its own."""
        index = self._indices(indices)
        rows, ptr, _ = _segment_rows(self.node_offsets, index, self._node_counts)
        columns, edge_ptr, _ = _segment_rows(self.edge_offsets, index, self._edge_counts)
        index = index.to(self.node_offsets.device)
        node = {name: x.index_select(0, rows) for name, x in self.node.items()}
        edge = {name: x.index_select(0, columns) for name, x in self.edge.items()}
        graph = {name: x.index_select(0, index) for name, x in self.graph.items()}
        edges = self.edge_index.index_select(1, columns)
        return FlatDataset(node, ptr, edges, edge_ptr, edge, graph, False, self.symmetric)

    def batch(self, indices: Tensor | np.ndarray | Sequence[int], like: Batch | None = None) -> Batch:
        """The graphs `indices` as one Batch.

        Args:
            indices: [G'] integers, in the order wanted.
            like: an earlier batch of this data set; where it has the same structure its edge_index, batch and ptr are
                used again, the very same tensors.
        """
        index = self._indices(indices)
        if not self.uniform:
            return self._ragged_batch(index)
        key = self._structure_key(index.numel())
        if like is not None and like.structure_key == key and like.ptr.device == self.node_offsets.device:
            structure = like.edge_index, like.batch, like.ptr
        else:
            structure = self._uniform_structure(index.numel())
        index, G = index.to(self.node_offsets.device), len(self)
        arrays = {name: x.index_select(0, index) for name, x in self.graph.items()}
        for part, rows in ((self.node, self._template[0]), (self.edge, self._template[1].shape[1])):
            for name, x in part.items():
                arrays[name] = x.view(G, rows, *x.shape[1:]).index_select(0, index).flatten(0, 1)
        return Batch(arrays, *structure, key, self.symmetric)

    def _ragged_batch(self, index: Tensor) -> Batch:
        rows, ptr, count = _segment_rows(self.node_offsets, index, self._node_counts)
        columns, _, edges = _segment_rows(self.edge_offsets, index, self._edge_counts)
        first = ptr[:-1].repeat_interleave(edges, output_size=columns.numel())  # node of the graph of each edge
        edge_index = self.edge_index.index_select(1, columns) + first
        index = index.to(self.node_offsets.device)
        owner = torch.arange(index.numel(), device=ptr.device).repeat_interleave(count, output_size=rows.numel())
        arrays = {name: x.index_select(0, rows) for name, x in self.node.items()}
        arrays |= {name: x.index_select(0, columns) for name, x in self.edge.items()}
        arrays |= {name: x.index_select(0, index) for name, x in self.graph.items()}
        return Batch(arrays, edge_index, owner, ptr, symmetric=self.symmetric)

    def _uniform_structure(self, num_graphs: int) -> tuple[Tensor, Tensor, Tensor]:
        n, edges, _ = self._template
        ptr = torch.arange(num_graphs + 1, device=edges.device) * n
        edge_index = (edges[:, None, :] + ptr[:-1, None]).flatten(1)  # [2, G, e] -> [2, G e]
        return edge_index, torch.arange(num_graphs, device=edges.device).repeat_interleave(n), ptr

    def _structure_key(self, num_graphs: int) -> str:
        return f"{num_graphs}x{self._template[2]}"

    def _find_template(self) -> tuple[int, Tensor, str] | None:
        """Nodes and edges of one graph and their hash, where all graphs agree in them."""
        if len(self) == 0 or (self._node_counts != self._node_counts[0]).any():
            return None
        if (self._edge_counts != self._edge_counts[0]).any():
            return None
        n, e = int(self._node_counts[0]), int(self._edge_counts[0])
        edges = self.edge_index.reshape(2, len(self), e)
        if not bool((edges == edges[:, :1]).all()):
            return None
        first = edges[:, 0].contiguous()
        return n, first, f"{n}-{hashlib.sha256(first.cpu().numpy().tobytes()).hexdigest()[:16]}"

    def _indices(self, indices: Tensor | np.ndarray | Sequence[int]) -> Tensor:
        index = torch.as_tensor(indices).cpu()
        if index.numel() == 0:
            index = index.to(torch.int64)
        if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"FlatDataset: indices must be integers [G], got {index.dtype} {list(index.shape)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ValueError(
                f"FlatDataset: indices must be in 0 .. {len(self) - 1}, got {int(index.min())} .. {int(index.max())}"
            )
        return index.to(torch.int64)

    def _sort_edges(self) -> None:
        owner = torch.arange(len(self), device=self.edge_index.device).repeat_interleave(self.edge_offsets.diff())
        key = self.node_offsets[owner] + self.edge_index[1]
        if bool((key.diff() < 0).any()):
            order = key.argsort(stable=True)
            self.edge_index = self.edge_index.index_select(1, order)
            self.edge = {name: x.index_select(0, order) for name, x in self.edge.items()}


class Batcher(Shared):
    """Iterates over a FlatDataset in batches; the order depends on seed and epoch alone, and a run can be resumed.

    One full iteration is one epoch, the next one is shuffled anew. `state_dict()` may be taken at any time between two
    batches; a new Batcher that loads it goes on with the very next batch. Where the graphs are all alike
    (`dataset.uniform`) all batches of one size share one edge_index object and one structure_key.

    Args:
        dataset: the graphs; batches are formed on its device.
        batch_size: graphs per batch, at most len(dataset).
        shuffle: a new order each epoch; otherwise the order of the data set.
        seed: of the order, >= 0.
        drop_last: leave out the last batch where it is not full.

    Raises:
        ValueError: batch_size or seed out of range, or a state of other data or another batch size.

    Example:
        >>> data = FlatDataset({"x": torch.arange(6.0)}, torch.arange(7))
        >>> [batch.num_graphs for batch in Batcher(data, 4)]
        [4, 2]
    """

    def __init__(
        self, dataset: FlatDataset, batch_size: int, shuffle: bool = True, seed: int = 0, drop_last: bool = False
    ) -> None:
        batch_size = as_integer("Batcher", "batch_size", batch_size, 1)
        if batch_size > len(dataset):
            raise ValueError(
                f"Batcher: batch_size must be at most the {len(dataset)} graphs of the data set, got {batch_size}; "
                f"pass a batch_size of {len(dataset)} or less, or more data"
            )
        seed = as_integer("Batcher", "seed", seed, 0)
        self.dataset, self.batch_size, self.shuffle = dataset, batch_size, shuffle
        self.seed, self.drop_last = seed, drop_last
        self._number = 0  # of the present batch in its epoch, from 1
        self._index = torch.zeros(0, dtype=torch.int64)  # what was handed out last
        self._shared: dict[int, Batch] = {}  # batch size -> a batch with the structure tensors to use again

    def order(self) -> Tensor:
        """[len(dataset)] int64, the graphs in the order of the current epoch."""
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        return torch.from_numpy(np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset)))

    def __iter__(self) -> Iterator[Batch]:
        order, start, self._resume = self.order(), self._resume, 0
        for position in range(start, len(self)):
            whole, self._number = order[position * self.batch_size : (position + 1) * self.batch_size], position + 1
            for index, weight, last in self._parts(whole, self.dataset.sizes):
                batch, self._index = self._form(index), index
                self._hand_out(position, weight, last)
                yield batch
        self.epoch, self._position = self.epoch + 1, 0

    def _form(self, index: Tensor) -> Batch:
        batch = self.dataset.batch(index, like=self._shared.get(index.numel()))
        if self.dataset.uniform and index.numel() not in self._shared:
            self._shared[index.numel()] = Batch({}, batch.edge_index, batch.batch, batch.ptr, batch.structure_key)
        return batch

    def split(self, count: int) -> Iterator[tuple[Batch, float]]:
        """What was handed out last once more, in `count` parts or fewer, each with its weight."""
        for part, weight in self._pieces(self._index.numel(), count):
            yield self._form(self._index[part]), weight


def _move(x: Tensor, device: torch.device | str | None, dtype: torch.dtype | None, later: bool = False) -> Tensor:
    return x.to(device=device, dtype=dtype if x.is_floating_point() else None, non_blocking=later)


def _segment_rows(offsets: Tensor, index: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the segments `index`, one after another [total]; their new offsets [G' + 1] and numbers of rows [G']."""
    # Counted on the host, where index and counts are: then nothing below waits for the device.
    total, index = int(counts[index].sum()), index.to(offsets.device)
    start = offsets[index]
    count = offsets[index + 1] - start
    ptr = torch.zeros(index.numel() + 1, dtype=torch.int64, device=offsets.device)
    torch.cumsum(count, 0, out=ptr[1:])
    rows = (start - ptr[:-1]).repeat_interleave(count, output_size=total)
    rows += torch.arange(total, device=offsets.device)
    return rows, ptr, count
