"""What the two exact forms of the first product cost, and which of them is taken."""

from typing import NamedTuple

from ..tensor_product.table import Path, unpack

FLOPS_A_BYTE = 8  # of the processors this runs on: 460 GFLOP/s beside 58 GB/s, 67 TFLOP/s beside 4.8 TB/s
SMALLEST = 64  # nodes: below, either form is a handful of blocks


class Cost(NamedTuple):
    """Operations and bytes of the first product: of each edge, of each node."""

    edge_flops: int
    edge_bytes: int
    node_flops: int
    node_bytes: int

    def of(self, nodes: int, edges: int) -> int:
        """One number for a graph: operations, and bytes at what they cost in operations."""
        flops = self.edge_flops * edges + self.node_flops * nodes
        return flops + FLOPS_A_BYTE * (self.edge_bytes * edges + self.node_bytes * nodes)


def roles(paths: list[int], d: int) -> list[tuple[Path, ...]] | None:
    """The paths of in1 = (h_i, h_j, extra) for each of the three, offsets in each from 0; None where a boundary
    divides a channel. A slice that spans two of them (equal irreps side by side) is divided between them."""
    found: list[list[Path]] = [[], [], []]
    for p in unpack(paths):
        end = p.o1 + p.U * p.d1
        for role, (low, high) in enumerate(((0, d), (d, 2 * d), (2 * d, max(end, 2 * d)))):
            first, last = max(p.o1, low), min(end, high)
            if first >= last:
                continue
            if (first - p.o1) % p.d1 or (last - p.o1) % p.d1:
                return None
            u = (first - p.o1) // p.d1
            weight = p.weight + u * p.V * p.W
            found[role].append(p._replace(o1=first - low, U=(last - first) // p.d1, weight=weight))
    return [tuple(f) for f in found]


def _pairs(p: Path) -> int:
    """Components (i, k) that a path couples: all of them, or the diagonal where the attribute is a scalar."""
    return p.d1 if p.d2 == 1 else p.d1 * p.d3


def plain(paths: list[int], d: int, itemsize: int = 4) -> Cost:
    """Rows of both ends gathered, every edge multiplied by the weights on the cheaper side of the contraction."""
    all_paths = unpack(paths)
    flops = sum(2 * p.V * (min(p.d1, p.d3) * p.U * p.W + _pairs(p) * (p.W if p.d1 < p.d3 else p.U)) for p in all_paths)
    return Cost(flops, 2 * d * itemsize, 0, 0)


def columns(paths: list[int], d: int) -> list[tuple]:
    """The products W h that a node needs, each once: (2l+1 of in1, V, W, 2l+1 of out, coupled pairs)."""
    target, source, _ = roles(paths, d)
    return list({(p.d1, p.o2, p.V, p.o3, p.W): (p.d1, p.V, p.W, p.d3, _pairs(p)) for p in (*target, *source)}.values())


def factored(paths: list[int], d: int, itemsize: int = 4) -> Cost:
    """P = W h once per node and role; an edge adds P_i and P_j and contracts the sum with its attributes."""
    target, source, extra = roles(paths, d)
    found = columns(paths, d)
    wide = sum(d1 * v * w for d1, v, w, _, _ in found)
    edge = sum(2 * v * w * pairs for _, v, w, _, pairs in found) + wide
    edge += sum(2 * p.V * p.W * min(p.d1, p.d3) * p.U for p in extra)
    node = sum(2 * p.U * p.V * p.W * p.d1 for p in (*target, *source))
    return Cost(edge, wide * itemsize, node, 2 * wide * itemsize)


def factor_pays(paths: list[int], d: int, nodes: int, edges: int) -> bool:
    """Whether the first product is cheaper with the weights applied at the nodes."""
    if nodes < SMALLEST or roles(paths, d) is None:
        return False
    return factored(paths, d).of(nodes, edges) < plain(paths, d).of(nodes, edges)
