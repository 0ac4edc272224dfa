"""segment_sum: one program per segment and channel block walks the segment's rows; no atomics."""

from torch import Tensor

from ..triton_common import AotCase, accumulator, cdiv, launch, next_power_of_2, tl, triton

ROWS_SUM, ROWS_GATHER = 8, 16  # rows in flight per program


@triton.jit
def segment_sum_fwd_kernel(x, order, ptr, y, E, C, blocks_c, BE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):
    """y [N, C]: row n is the sum of the rows order[ptr[n]:ptr[n + 1]] of x [E, C], BE of them at a time, in order."""
    i_n = tl.program_id(0).to(tl.int64) // blocks_c
    o_c = tl.program_id(0).to(tl.int64) % blocks_c * BC + tl.arange(0, BC)
    m_c = o_c < C
    start = tl.maximum(tl.load(ptr + i_n), 0)
    stop = tl.minimum(tl.load(ptr + i_n + 1), E)
    b_sum = tl.zeros([BC], dtype=ACC)
    for i_e in range(start, stop, BE):
        o_e = i_e + tl.arange(0, BE)
        b_row = tl.load(order + o_e, mask=o_e < stop, other=-1)
        m_e = (b_row >= 0) & (b_row < E)
        b_x = tl.load(x + b_row[:, None] * C + o_c[None, :], mask=m_e[:, None] & m_c[None, :], other=0.0)
        b_sum += tl.sum(b_x, 0)
    tl.store(y + i_n * C + o_c, b_sum, mask=m_c)


@triton.jit
def segment_sum_bwd_kernel(g, index, y, E, N, C, blocks_c, BE: tl.constexpr, BC: tl.constexpr):
    """y [E, C]: row e is row index[e] of g [N, C], zero where the index is outside 0..N-1."""
    o_e = tl.program_id(0).to(tl.int64) // blocks_c * BE + tl.arange(0, BE)
    o_c = tl.program_id(0).to(tl.int64) % blocks_c * BC + tl.arange(0, BC)
    m_c = o_c < C
    b_row = tl.load(index + o_e, mask=o_e < E, other=-1)
    m_e = (b_row >= 0) & (b_row < N)
    b_y = tl.load(g + b_row[:, None] * C + o_c[None, :], mask=m_e[:, None] & m_c[None, :], other=0.0)
    tl.store(y + o_e[:, None] * C + o_c[None, :], b_y, mask=(o_e < E)[:, None] & m_c[None, :])


def _block(channels: int) -> tuple[int, int]:
    """Channels per program, and blocks of them in a row."""
    block = min(256, max(32, next_power_of_2(channels)))
    return block, cdiv(channels, block)


def forward(x, index, order, ptr) -> Tensor:
    """x [E, C] -> [N, C], as in the reference."""
    (e, c), n = x.shape, ptr.shape[0] - 1
    y = x.new_empty(n, c)
    block, blocks = _block(c)
    launch(segment_sum_fwd_kernel, (n * blocks,), x.contiguous(), order.contiguous(), ptr.contiguous(), y, e, c,
           blocks, BE=ROWS_SUM, BC=block, ACC=accumulator(x.dtype), num_warps=max(1, block // 64), device=x.device)
    return y


def backward(g, index, order, ptr) -> Tensor:
    """g [N, C] -> [E, C], as in the reference."""
    (n, c), e = g.shape, index.shape[0]
    y = g.new_empty(e, c)
    block, blocks = _block(c)
    launch(segment_sum_bwd_kernel, (cdiv(e, ROWS_GATHER) * blocks,), g.contiguous(), index.contiguous(), y, e, n, c,
           blocks, BE=ROWS_GATHER, BC=block, num_warps=max(1, block // 64), device=g.device)
    return y


AOT = [
    case
    for kind, acc in (("*fp32", tl.float32), ("*fp64", tl.float64))
    for block in (32, 128, 256)
    for case in (
        AotCase(segment_sum_fwd_kernel,
                {"x": kind, "order": "*i64", "ptr": "*i64", "y": kind, "E": "i32", "C": "i32", "blocks_c": "i32"},
                {"BE": ROWS_SUM, "BC": block, "ACC": acc}, num_warps=max(1, block // 64)),
        AotCase(segment_sum_bwd_kernel,
                {"g": kind, "index": "*i64", "y": kind, "E": "i32", "N": "i32", "C": "i32", "blocks_c": "i32"},
                {"BE": ROWS_GATHER, "BC": block}, num_warps=max(1, block // 64)),
    )
]
