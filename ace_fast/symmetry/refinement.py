"""What permutations leave a graph as it is: scores refined along its edges, and exact draws from its automorphisms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..graph import Graph

_BUDGET = 20_000  # refinements of one graph
_FACTORS = (0x2545F4914F6CDD1D, -0x61C8864680B583EB, 0x3C79AC492BA7B653)  # odd: of a node, of its sources and targets


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int64 that changes every bit with every bit: products wrap around."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ (x >> shift)) * factor
    return x ^ (x >> 31)


def refined_scores(graph: Graph, colors: Tensor | None = None, *, rounds: int = 8) -> Tensor:
    """Scores that are equal where colour refinement (1-WL) cannot tell nodes apart, for `SymPE("S_n", ...)`.

    Every round mixes a node's number with the sums of its neighbours' mixed numbers, sources and targets apart. Sums of
    integers do not depend on their order: equal nodes have the same bits, whatever the device.

    Args:
        graph: of N nodes; of one graph or of a batch.
        colors: [N] int64, what is known of the nodes (elements, degrees); None: nothing.
        rounds: how far a node sees. Nodes apart only by what is farther share a score.

    Returns:
        [N] float64. Different numbers share a score with probability 2^-53.

    Raises:
        ValueError: colors of another shape or dtype, rounds below 0, a graph with other sources than targets.

    Source: Weisfeiler and Leman (1968); ties of these scores contain the orbits of the automorphisms, but ties broken
        independently are no joint draw from them: `GraphSymmetries` is exact.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> s = refined_scores(ace_fast.Graph(path, 3))
        >>> bool(s[0] == s[2]), bool(s[0] == s[1])
        (True, False)
    """
    if graph.num_sources != graph.num_targets:
        raise ValueError("refined_scores: graph must be of one set of nodes, got "
                         f"{graph.num_sources} sources and {graph.num_targets} targets")
    if rounds < 0:
        raise ValueError(f"refined_scores: rounds must be 0 or more, got {rounds}")
    source, target = graph.edge_index
    if colors is None:
        colors = torch.zeros(graph.num_sources, dtype=torch.int64, device=source.device)
    _check_colors("refined_scores", "colors", colors, graph.num_sources)
    state = colors + 1
    for _ in range(rounds):
        mixed = _mixed(state)
        incoming = torch.zeros_like(mixed).index_add_(0, target, mixed[source])
        outgoing = torch.zeros_like(mixed).index_add_(0, source, mixed[target])
        state = mixed * _FACTORS[0] + incoming * _FACTORS[1] + outgoing * _FACTORS[2]
    return (_mixed(state) >> 11).double()


def _check_colors(owner: str, name: str, colors: Tensor, count: int) -> None:
    if not isinstance(colors, Tensor) or colors.dtype != torch.int64 or list(colors.shape) != [count]:
        got = f"{colors.dtype} {list(colors.shape)}" if isinstance(colors, Tensor) else type(colors).__name__
        raise ValueError(f"{owner}: {name} must be int64 [{count}], got {got}; number what may be the same")


def _refine(adjacency: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """colors [n], refined until stable by the numbers of neighbours of each colour; adjacency [labels, n, n]."""
    count = colors.max(initial=-1) + 1
    while True:
        one = np.eye(count, dtype=np.int64)[colors]
        seen = [a @ one for matrix in adjacency for a in (matrix, matrix.T)]
        signature = np.concatenate([colors[:, None], *seen], 1)
        found, new = np.unique(signature, axis=0, return_inverse=True)
        new = new.reshape(-1)
        if len(found) == count:
            return new
        colors, count = new, len(found)


class _Leaf(NamedTuple):
    """A colouring in which every node has its own colour, its place."""

    certificate: bytes  # the graph with its nodes in these places
    place: np.ndarray  # [n]


class _Found(NamedTuple):
    """What a search finds below a colouring."""

    best: _Leaf  # of the least certificate
    first: _Leaf  # the one that taking the first node of each cell leads to
    levels: list[np.ndarray]  # of each cell on the way to `best`: [orbit, n], automorphisms that fix what comes before


class _Search:
    """Individualise and refine, in one graph: its canonical places, and its automorphisms as a chain of orbits."""

    def __init__(self, adjacency: np.ndarray, colors: np.ndarray, budget: int) -> None:
        self.adjacency, self.colors, self.budget, self.left = adjacency, colors, budget, budget
        self.found = self._below(_refine(adjacency, np.unique(colors, return_inverse=True)[1].reshape(-1)))

    def _leaf(self, place: np.ndarray) -> _Leaf:
        order = place.argsort()
        return _Leaf(self.adjacency[:, order][:, :, order].tobytes() + self.colors[order].tobytes(), place)

    @staticmethod
    def _cell(colors: np.ndarray) -> np.ndarray:
        """The nodes of the first colour that several have."""
        shared = np.bincount(colors) > 1
        return (colors == shared.argmax()).nonzero()[0] if shared.any() else np.zeros(0, dtype=np.int64)

    def _single(self, colors: np.ndarray, node: int) -> np.ndarray:
        if not self.left:
            raise ValueError(f"GraphSymmetries: a graph must be settled by budget={self.budget} refinements, got one "
                             f"of {len(colors)} nodes that is not; raise budget, or take refined_scores")
        self.left -= 1
        colors = 2 * colors + 1
        colors[node] -= 1
        return _refine(self.adjacency, np.unique(colors, return_inverse=True)[1].reshape(-1))

    def _below(self, colors: np.ndarray) -> _Found:
        cell = self._cell(colors)
        if not len(cell):
            leaf = self._leaf(colors)
            return _Found(leaf, leaf, [])
        found, orbit, first = None, [], None
        for node in cell:
            below = self._single(colors, node)
            if found is not None:
                leaf = self._descend(below)
                if leaf.certificate == found.first.certificate:  # usually: what colours cannot tell apart is the same
                    orbit.append(leaf.place.argsort()[found.first.place])
                    continue
            here = self._below(below)
            first = here.first if first is None else first
            if found is None or here.best.certificate < found.best.certificate:
                found, orbit = here, [np.arange(len(colors))]
            elif here.best.certificate == found.best.certificate:
                orbit.append(here.best.place.argsort()[found.best.place])
        return _Found(found.best, first, [np.stack(orbit), *found.levels])

    def _descend(self, colors: np.ndarray) -> _Leaf:
        while len(cell := self._cell(colors)):
            colors = self._single(colors, cell[0])
        return self._leaf(colors)


class GraphSymmetries:
    """The automorphisms of each graph of a batch, for exact draws: found once on the host, drawn from on the device.

    A canonical order of the nodes is found by individualising a node of the first colour that several have and
    refining, again and again, and of all orders so found that of the least matrix is taken; nodes that lead to the same
    matrix are in one orbit. `SymPE("S_n", ...)` given these draws canonical orders uniformly: g = h s, with s uniform
    among the automorphisms. For nearly all graphs each node of each cell on the way takes a few refinements; regular
    ones may need exponentially many, which `budget` ends.

    Args:
        edge_index: [2, E] int64, as `Graph`'s.
        ptr: [B + 1] int64, graph b has the nodes ptr[b] to ptr[b + 1] - 1; None for one graph.
        num_nodes: N; needed where ptr is None.
        colors: [N] int64, what automorphisms keep (elements); edge_colors: [E] int64, of the edges. None: nothing.
        budget: refinements of one graph before it is given up.

    Attributes:
        ptr: [B + 1]; place: [N] int64, of each node in the canonical order of its graph.
        log_count: [B] float64, the logarithm of the number of automorphisms.

    Raises:
        ValueError: wrong shapes or dtypes, edges between two graphs, a graph beyond the budget (it is named).

    Source: McKay and Piperno, "Practical graph isomorphism, II" (2014), without pruning by products of automorphisms.

    Example:
        >>> square = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]])
        >>> GraphSymmetries(square, num_nodes=4).log_count.exp().round()
        tensor([8.], dtype=torch.float64)
    """

    def __init__(self, edge_index: Tensor, ptr: Tensor | None = None, *, num_nodes: int | None = None,
                 colors: Tensor | None = None, edge_colors: Tensor | None = None, budget: int = _BUDGET) -> None:
        if (ptr is None) == (num_nodes is None):
            raise ValueError("GraphSymmetries: one of ptr and num_nodes must be given, got "
                             f"{'neither' if ptr is None else 'both'}")
        ptr = torch.tensor([0, num_nodes], device=edge_index.device) if ptr is None else ptr
        count = int(ptr[-1])
        graph = Graph(edge_index, count)
        colors = torch.zeros(count, dtype=torch.int64) if colors is None else colors
        edge_colors = torch.zeros(graph.num_edges, dtype=torch.int64) if edge_colors is None else edge_colors
        _check_colors("GraphSymmetries", "colors", colors, count)
        _check_colors("GraphSymmetries", "edge_colors", edge_colors, graph.num_edges)
        starts = ptr.tolist()
        owner = torch.searchsorted(ptr, edge_index.contiguous(), right=True) - 1
        if (owner[0] != owner[1]).any():
            raise ValueError("GraphSymmetries: edges must stay in their graph, got one from graph "
                             f"{owner[0][owner[0] != owner[1]][0].item()} to another")
        found = []
        label = np.unique(edge_colors.cpu().numpy(), return_inverse=True)[1].reshape(-1)
        ends, owner, shades = edge_index.cpu().numpy(), owner[1].cpu().numpy(), colors.cpu().numpy()
        for b, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            own = owner == b
            adjacency = np.zeros((label.max(initial=0) + 1, stop - start, stop - start), dtype=np.int64)
            np.add.at(adjacency, (label[own], *(ends[:, own] - start)), 1)
            try:
                found.append(_Search(adjacency, shades[start:stop], budget).found)
            except ValueError as error:
                raise ValueError(f"{error} (graph {b})") from None
        self.ptr = ptr
        self._keep(found, starts)

    def _keep(self, found: Sequence[_Found], starts: list[int]) -> None:
        """The chains of all graphs in one tensor a level: moves of graph b begin at `base`, `size` of them."""
        device = self.ptr.device
        place = np.concatenate([f.best.place for f in found]) if found else np.zeros(0, dtype=np.int64)
        self.place = torch.from_numpy(place).to(device)
        self._levels: list[tuple[Tensor, Tensor, Tensor]] = []
        logs = torch.zeros(len(found), dtype=torch.float64)
        for level in range(max((len(f.levels) for f in found), default=0)):
            moves, base, size, at = [], [], [], 0
            for b, f in enumerate(found):
                n = starts[b + 1] - starts[b]
                own = f.levels[level] if level < len(f.levels) else np.arange(n)[None]
                moves.append(own.reshape(-1))
                base.append(at)
                size.append(len(own))
                at += own.size
                logs[b] += math.log(len(own))
            flat = torch.from_numpy(np.concatenate(moves)).to(device)
            self._levels.append((flat, torch.tensor(base, device=device), torch.tensor(size, device=device)))
        self.log_count = logs.to(device)
        counts = self.ptr.diff()
        self._owner = torch.repeat_interleave(counts)
        self._first = self.ptr[:-1][self._owner]  # [N], of the node's graph
        self._count = counts[self._owner]

    def automorphisms(self, draws: int, generator: torch.Generator | None = None) -> Tensor:
        """[draws, N] int64: where independent uniform automorphisms of every graph take its nodes.

        Args:
            draws: how many.
            generator: torch's own of the device without.
        """
        device = self.ptr.device
        node = torch.arange(len(self.place), device=device).expand(draws, -1) - self._first
        own = device if generator is None else generator.device
        for moves, base, size in reversed(self._levels):
            u = torch.rand(draws, len(size), dtype=torch.float64, generator=generator, device=own).to(device)
            pick = (u * size).long()  # [draws, B]
            node = moves[(base + pick * self.ptr.diff())[:, self._owner] + node]
        return node + self._first

    def ranks(self, draws: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """rank and order [draws, N] int64 as `functional.segment_rank`'s: uniform among the canonical orders."""
        rank = self.place[self.automorphisms(draws, generator)]
        place = rank + self._first
        rows = torch.arange(rank.shape[1], device=rank.device).expand_as(rank)
        return rank, torch.empty_like(rank).scatter(1, place, rows)

    def __repr__(self) -> str:
        return f"GraphSymmetries({len(self.ptr) - 1} graphs, {len(self.place)} nodes)"
