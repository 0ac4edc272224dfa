"""radius_graph in Triton: count, one synchronisation, the same search again to fill in, then each key to its place.

A program has BT targets, each lane of them with its own runs of candidates, so that graphs and bins of any size share
a program. No atomics: the edges of a target are in its own part of the buffer.
"""

import torch
from torch import Tensor

from ..triton_common import INTERPRETED, AotCase, cdiv, launch, tl, triton
from . import problems
from .bins import bins

# Targets and candidates of a tile of the search: a warp for each target. Interpreted, an operation takes equally long
# whatever its size.
BT, BC = 32 if INTERPRETED else 8, 32
BE = 32  # edges of a tile of the ordering, either way
STILL = tl.constexpr((1 << 32) + (1 << 21) + (1 << 10))  # the key of source 0 without an image


@triton.jit
def _floor_div(a, b):
    """For b > 0; the hardware rounds to zero."""
    return tl.where(a >= 0, a // b, -((b - 1 - a) // b))


@triton.jit
def _visits(table, o_p, m_p, N):
    """What a target's search goes over: rows of bins in the first two directions, times images along the third."""
    b_1 = tl.load(table + N + o_p, mask=m_p, other=0)
    b_high1 = tl.load(table + 4 * N + o_p, mask=m_p, other=-1)
    b_0 = tl.load(table + o_p, mask=m_p, other=0)
    b_high0 = tl.load(table + 3 * N + o_p, mask=m_p, other=-1)
    b_2 = tl.load(table + 2 * N + o_p, mask=m_p, other=0)
    b_high2 = tl.load(table + 5 * N + o_p, mask=m_p, other=0)
    b_n2 = tl.load(table + 8 * N + o_p, mask=m_p, other=1)
    b_q = _floor_div(b_2, b_n2)
    b_images = _floor_div(b_high2, b_n2) - b_q + 1
    b_rows = b_high1 - b_1 + 1
    return b_0, b_1, b_2, b_high2, b_n2, b_q, b_rows, b_images, (b_high0 - b_0 + 1) * b_rows * b_images


@triton.jit
def _run(i, table, starts, b_first, o_p, m, N, b_0, b_1, b_2, b_high2, b_n2, b_q, b_rows, b_images):
    """Visit i of each target: its candidates, and the images of the three directions."""
    b_n0 = tl.load(table + 6 * N + o_p, mask=m, other=1)
    b_n1 = tl.load(table + 7 * N + o_p, mask=m, other=1)
    b_images, b_rows = tl.maximum(b_images, 1), tl.maximum(b_rows, 1)
    b_a, b_b = b_0 + i // b_images // b_rows, b_1 + i // b_images % b_rows
    b_q2 = b_q + i % b_images
    b_q0, b_q1 = _floor_div(b_a, b_n0), _floor_div(b_b, b_n1)
    b_line = b_first + ((b_a - b_q0 * b_n0) * b_n1 + (b_b - b_q1 * b_n1)) * b_n2
    b_left = tl.maximum(b_2 - b_q2 * b_n2, 0)
    b_right = tl.minimum(b_high2 - b_q2 * b_n2, b_n2 - 1)
    b_start = tl.load(starts + b_line + b_left, mask=m, other=0)
    b_stop = tl.load(starts + b_line + b_right + 1, mask=m, other=0)
    return b_start, b_stop, b_q0, b_q1, b_q2


@triton.jit
def _moved(lattice, b_graph, m, b_q0, b_q1, b_q2, D: tl.constexpr):
    """Component D of an image's translation; by explicit fma, so that both searches agree to the bit."""
    p = lattice + b_graph * 9 + D
    b_s = b_q2.to(tl.float64) * tl.load(p + 6, mask=m, other=0.0)
    b_s = tl.fma(b_q1.to(tl.float64), tl.load(p + 3, mask=m, other=0.0), b_s)
    return tl.fma(b_q0.to(tl.float64), tl.load(p, mask=m, other=0.0), b_s)


@triton.jit
def _within(x, o_p, o_c, m_p, m_c, N, b_s0, b_s1, b_s2):
    """Squared distances [BT, BC] of the candidates o_c, moved by b_s, from the targets o_p."""
    b_d0 = (tl.load(x + o_c, mask=m_c, other=0.0) - tl.load(x + o_p, mask=m_p, other=0.0)[:, None]) + b_s0[:, None]
    b_d1 = (tl.load(x + N + o_c, mask=m_c, other=0.0)
            - tl.load(x + N + o_p, mask=m_p, other=0.0)[:, None]) + b_s1[:, None]
    b_d2 = (tl.load(x + 2 * N + o_c, mask=m_c, other=0.0)
            - tl.load(x + 2 * N + o_p, mask=m_p, other=0.0)[:, None]) + b_s2[:, None]
    return tl.fma(b_d2, b_d2, tl.fma(b_d1, b_d1, b_d0 * b_d0))


@triton.jit
def radius_graph_search_kernel(
    x, order, starts, first, table, lattice, graph, limit, count, ptr, key, square, N,
    LOOP: tl.constexpr, FILL: tl.constexpr, MEASURE: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """count [N] neighbours of each atom; with FILL key (and with MEASURE square) from ptr [N] on.

    x [3, N] candidates; order, first, graph [N] and table [9, N] of the candidates: lowest and highest bins, bins of
    the graph; lattice [B, 3, 3]; limit [1], the square of r.
    """
    o_p = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    m_p = o_p < N
    N64 = tl.full([], 1, tl.int64) * N
    b_limit = tl.load(limit)
    b_target = tl.load(order + o_p, mask=m_p, other=0)
    b_first, b_graph = tl.load(first + o_p, mask=m_p, other=0), tl.load(graph + o_p, mask=m_p, other=0)
    b_0, b_1, b_2, b_high2, b_n2, b_q, b_rows, b_images, b_visits = _visits(table, o_p, m_p, N64)
    b_n = tl.zeros([BT], dtype=tl.int64)
    if FILL:
        b_place = tl.load(ptr + b_target, mask=m_p, other=0)
    for i in range(0, tl.max(tl.where(m_p, b_visits, 0), 0)):
        m = m_p & (i < b_visits)
        b_start, b_stop, b_q0, b_q1, b_q2 = _run(i, table, starts, b_first, o_p, m, N64, b_0, b_1, b_2, b_high2, b_n2,
                                                 b_q, b_rows, b_images)
        b_s0 = _moved(lattice, b_graph, m, b_q0, b_q1, b_q2, 0)
        b_s1 = _moved(lattice, b_graph, m, b_q0, b_q1, b_q2, 1)
        b_s2 = _moved(lattice, b_graph, m, b_q0, b_q1, b_q2, 2)
        b_home = (b_q0 == 0) & (b_q1 == 0) & (b_q2 == 0)
        for i_c in range(0, tl.max(b_stop - b_start, 0), BC):
            o_c = b_start[:, None] + i_c + tl.arange(0, BC)[None, :]
            m_c = m[:, None] & (o_c < b_stop[:, None])
            b_d = _within(x, o_p, o_c, m_p, m_c, N64, b_s0, b_s1, b_s2)
            m_c &= b_d < b_limit
            if not LOOP:
                m_c &= (o_c != o_p[:, None]) | (b_home == 0)[:, None]
            if FILL:
                o_e = b_place[:, None] + b_n[:, None] + tl.cumsum(m_c.to(tl.int64), 1) - 1
                b_source = tl.load(order + o_c, mask=m_c, other=0) - b_first[:, None]
                b_code = (b_q0.to(tl.int64) << 22) + (b_q1.to(tl.int64) << 11) + b_q2.to(tl.int64) + STILL
                tl.store(key + o_e, (b_source << 33) + b_code[:, None], mask=m_c)
                if MEASURE:
                    tl.store(square + o_e, b_d, mask=m_c)
            b_n += tl.sum(m_c.to(tl.int64), 1)
    if not FILL:
        tl.store(count + b_target, b_n, mask=m_p)


@triton.jit
def radius_graph_nearest_kernel(key, square, owner, ptr, near, E, K, BE: tl.constexpr):
    """near [E] int8: whether fewer than K edges of the same target are nearer, equal distances by key."""
    o_e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    m_e = o_e < E
    b_owner = tl.load(owner + o_e, mask=m_e, other=0)
    b_start = tl.load(ptr + b_owner, mask=m_e, other=0)
    b_stop = tl.load(ptr + b_owner + 1, mask=m_e, other=0)
    b_key, b_d = tl.load(key + o_e, mask=m_e, other=0), tl.load(square + o_e, mask=m_e, other=0.0)
    b_rank = tl.zeros([BE], dtype=tl.int64)
    for i in range(0, tl.max(b_stop - b_start, 0), BE):
        o_f = b_start[:, None] + i + tl.arange(0, BE)[None, :]
        m_f = m_e[:, None] & (o_f < b_stop[:, None])
        b_other = tl.load(key + o_f, mask=m_f, other=0)
        b_far = tl.load(square + o_f, mask=m_f, other=0.0)
        m_f &= (b_far < b_d[:, None]) | ((b_far == b_d[:, None]) & (b_other < b_key[:, None]))
        b_rank += tl.sum(m_f.to(tl.int64), 1)
    tl.store(near + o_e, (b_rank < K).to(tl.int8), mask=m_e)


@triton.jit
def radius_graph_order_kernel(
    key, near, owner, ptr, place, first, wraps, edge_index, shifts, E, kept,
    CAPPED: tl.constexpr, PERIODIC: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """edge_index [2, kept] and shifts [kept, 3]: each key goes to place[target] plus the number of smaller ones."""
    o_e = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    m_e = o_e < E
    b_owner = tl.load(owner + o_e, mask=m_e, other=0)
    b_start = tl.load(ptr + b_owner, mask=m_e, other=0)
    b_stop = tl.load(ptr + b_owner + 1, mask=m_e, other=0)
    b_key = tl.load(key + o_e, mask=m_e, other=0)
    o_y = tl.load(place + b_owner, mask=m_e, other=0)
    for i in range(0, tl.max(b_stop - b_start, 0), BE):
        o_f = b_start[:, None] + i + tl.arange(0, BE)[None, :]
        m_f = m_e[:, None] & (o_f < b_stop[:, None])
        m_f &= tl.load(key + o_f, mask=m_f, other=0) < b_key[:, None]
        if CAPPED:
            m_f &= tl.load(near + o_f, mask=m_f, other=0) != 0
        o_y += tl.sum(m_f.to(tl.int64), 1)
    if CAPPED:
        m_e &= tl.load(near + o_e, mask=m_e, other=0) != 0
    b_source = tl.load(first + b_owner, mask=m_e, other=0) + (b_key >> 33)
    tl.store(edge_index + o_y, b_source, mask=m_e)
    tl.store(edge_index + kept + o_y, b_owner, mask=m_e)
    if PERIODIC:
        for k in tl.static_range(3):
            b_image = ((b_key >> (22 - 11 * k)) & 2047) - 1024
            b_from = tl.load(wraps + 3 * b_source + k, mask=m_e, other=0)
            b_to = tl.load(wraps + 3 * b_owner + k, mask=m_e, other=0)
            tl.store(shifts + 3 * o_y + k, (b_image - b_from + b_to).to(tl.int32), mask=m_e)


def _from_zero(counts: Tensor) -> Tensor:
    """[N + 1] where each row begins."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def forward(
    pos: Tensor, batch: Tensor, cell: Tensor | None, pbc: Tensor | None, r: float, loop: bool,
    max_num_neighbors: int | None,
) -> tuple[Tensor, Tensor]:
    """pos [N, 3], batch [N], cell [B, 3, 3], pbc [B, 3] -> edge_index [2, E], shifts [E or 0, 3]."""
    n, found = pos.shape[0], bins(pos, batch, cell, pbc, r)
    integers = {"dtype": torch.int64, "device": pos.device}
    count, capped = torch.empty(n, **integers), max_num_neighbors is not None
    table = torch.cat([found.low, found.high, found.count], 1)[found.order].t().to(torch.int32).contiguous()
    limit = torch.full((1,), r * r, dtype=torch.float64, device=pos.device)
    sorted_by_bin = (found.x, found.order, found.starts, found.first[found.order], table,
                     found.lattice.contiguous(), found.graph[found.order], limit)

    def search(ptr: Tensor, key: Tensor, square: Tensor, fill: bool) -> None:
        launch(radius_graph_search_kernel, (cdiv(n, BT),), *sorted_by_bin, count, ptr, key, square, n, LOOP=loop,
               FILL=fill, MEASURE=fill and capped, BT=BT, BC=BC, num_warps=BT, device=pos.device)

    search(count, count, limit, False)
    kept = count.clamp(max=max_num_neighbors) if capped else count
    edges, out, *wrong = torch.cat([count.sum()[None], kept.sum()[None], found.problems]).tolist()
    problems.report(wrong, pos, batch, cell, r)
    ptr, owner = _from_zero(count), torch.repeat_interleave(count, output_size=edges)
    key = torch.empty(edges, **integers)
    square = torch.empty(edges if capped else 1, dtype=torch.float64, device=pos.device)
    search(ptr, key, square, True)
    near = torch.empty(edges if capped else 1, dtype=torch.int8, device=pos.device)
    if capped:
        launch(radius_graph_nearest_kernel, (cdiv(edges, BE),), key, square, owner, ptr, near, edges, max_num_neighbors,
               BE=BE, num_warps=4, device=pos.device)
    edge_index = torch.empty(2, out, **integers)
    shifts = torch.empty(0 if cell is None else out, 3, dtype=torch.int32, device=pos.device)
    launch(radius_graph_order_kernel, (cdiv(edges, BE),), key, near, owner, ptr, _from_zero(kept), found.first,
           found.wraps, edge_index, shifts, edges, out, CAPPED=capped, PERIODIC=cell is not None, BE=BE, num_warps=4,
           device=pos.device)
    return edge_index, shifts


_SEARCH = {"x": "*fp64", "order": "*i64", "starts": "*i64", "first": "*i64", "table": "*i32", "lattice": "*fp64",
           "graph": "*i64", "limit": "*fp64", "count": "*i64", "ptr": "*i64", "key": "*i64", "square": "*fp64",
           "N": "i32"}
_ROWS = {"owner": "*i64", "ptr": "*i64"}

AOT = [
    *(AotCase(radius_graph_search_kernel, _SEARCH,
              {"LOOP": loop, "FILL": fill, "MEASURE": measure, "BT": BT, "BC": BC}, num_warps=BT)
      for loop, fill, measure in ((False, False, False), (True, True, True))),
    AotCase(radius_graph_nearest_kernel,
            {"key": "*i64", "square": "*fp64", **_ROWS, "near": "*i8", "E": "i64", "K": "i32"}, {"BE": BE}),
    *(AotCase(radius_graph_order_kernel,
              {"key": "*i64", "near": "*i8", **_ROWS, "place": "*i64", "first": "*i64", "wraps": "*i64",
               "edge_index": "*i64", "shifts": "*i32", "E": "i64", "kept": "i64"},
              {"CAPPED": capped, "PERIODIC": periodic, "BE": BE})
      for capped, periodic in ((False, False), (True, True))),
]
