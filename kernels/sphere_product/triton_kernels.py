"""Products at points in Triton: a program takes a block of columns (a row and channel each) to a block of points at a
time, multiplies there, and adds what returns to its accumulators. One launch a result; matrices in the dense form.
"""

import torch
from torch import Tensor

from ..triton_common import (
    AotCase,
    accumulator,
    allow_tf32,
    cdiv,
    dot,
    launch,
    next_power_of_2,
    tl,
    triton,
)
from .reference import channels_of, matrix, reduce
from .tables import MOST, Points, Slot, unpack

BITS = 8  # of a degree or power in the integers that hold them for all factors


@triton.jit
def _places(o_i, o_c, channels, IR_MUL: tl.constexpr):
    """Where component i of channel c lies in a row of `channels` channels."""
    if IR_MUL:
        return o_i[:, None] * channels + o_c[None, :]
    o_l = tl.sqrt(o_i.to(tl.float32) + 0.5).to(tl.int32)  # l^2 <= i < (l + 1)^2, and the root may be approximate
    o_m = o_i - o_l * o_l
    return (o_l * o_l * channels + o_m)[:, None] + o_c[None, :] * (2 * o_l + 1)[:, None]


@triton.jit
def _at_points(
    x, table, o_s, m_s, o_z, o_c, m_n, C, N: tl.constexpr, DEGREES: tl.constexpr, POWERS: tl.constexpr,
    SHARED_ROWS: tl.constexpr, SHARED_CHANNELS: tl.constexpr, IR_MUL: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
    ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """Factor N at the points [BS, BN], to its power."""
    D: tl.constexpr = ((DEGREES >> 8 * N) % 256 + 1) * ((DEGREES >> 8 * N) % 256 + 1)
    o_i = tl.arange(0, BD)
    m_i = o_i < D
    channels = C
    if (SHARED_CHANNELS >> N) % 2:
        channels = 1
        o_c = o_c * 0
    if (SHARED_ROWS >> N) % 2:
        o_z = o_z * 0
    o_x = o_z[None, :] * channels * D + _places(o_i, o_c, channels, IR_MUL)
    b_x = tl.load(x + o_x, mask=m_i[:, None] & m_n[None, :], other=0.0).to(ACC)
    b_m = tl.load(table + o_s[:, None] * D + o_i[None, :], mask=m_s[:, None] & m_i[None, :], other=0.0)
    b_v = dot(b_m, b_x, tl.zeros([o_s.shape[0], o_z.shape[0]], dtype=ACC), ALLOW_TF32)
    b_y = b_v
    for _ in tl.static_range(1, (POWERS >> 8 * N) % 256):
        b_y *= b_v
    return b_y


@triton.jit
def point_product_kernel(
    out, x0, x1, x2, x3, x4, x5, table, o_out, o0, o1, o2, o3, o4, o5, columns, S, C, scale,
    COUNT: tl.constexpr, DEGREES: tl.constexpr, POWERS: tl.constexpr, SHARED_ROWS: tl.constexpr,
    SHARED_CHANNELS: tl.constexpr, IN_PARTS: tl.constexpr, PARTS: tl.constexpr, OUT_PARTS: tl.constexpr,
    IR_MUL: tl.constexpr, D: tl.constexpr, BO: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr,
    ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """out [Z, C D] = scale M^T (product of COUNT factors at the points); one program per BN columns.

    Of factor n (a byte of DEGREES and POWERS, a bit of the others) the matrix begins at table + o<n>.
    """
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    m_n = o_n < columns
    o_z, o_c = o_n // C, (o_n % C).to(tl.int32)
    o_k = tl.arange(0, BO)
    m_k = o_k < D
    b_acc = tl.zeros([BO, BN], dtype=ACC)
    for i_p in range(PARTS):
        for i_s in range(0, S, BS):
            o_s = i_s + tl.arange(0, BS)
            m_s, o_r = o_s < S, o_s + i_p * S  # o_r: rows of a matrix that has every part
            b_v = _at_points(x0, table + o0, o_r if IN_PARTS % 2 else o_s, m_s, o_z, o_c, m_n, C, 0, DEGREES,
                             POWERS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, BD, ACC, ALLOW_TF32)
            if COUNT > 1:
                b_v *= _at_points(x1, table + o1, o_r if (IN_PARTS >> 1) % 2 else o_s, m_s, o_z, o_c, m_n, C, 1,
                                  DEGREES, POWERS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, BD, ACC, ALLOW_TF32)
            if COUNT > 2:
                b_v *= _at_points(x2, table + o2, o_r if (IN_PARTS >> 2) % 2 else o_s, m_s, o_z, o_c, m_n, C, 2,
                                  DEGREES, POWERS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, BD, ACC, ALLOW_TF32)
            if COUNT > 3:
                b_v *= _at_points(x3, table + o3, o_r if (IN_PARTS >> 3) % 2 else o_s, m_s, o_z, o_c, m_n, C, 3,
                                  DEGREES, POWERS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, BD, ACC, ALLOW_TF32)
            if COUNT > 4:
                b_v *= _at_points(x4, table + o4, o_r if (IN_PARTS >> 4) % 2 else o_s, m_s, o_z, o_c, m_n, C, 4,
                                  DEGREES, POWERS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, BD, ACC, ALLOW_TF32)
            if COUNT > 5:
                b_v *= _at_points(x5, table + o5, o_r if (IN_PARTS >> 5) % 2 else o_s, m_s, o_z, o_c, m_n, C, 5,
                                  DEGREES, POWERS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, BD, ACC, ALLOW_TF32)
            o_m = o_r if OUT_PARTS > 1 else o_s
            b_m = tl.load(table + o_out + o_m[None, :] * D + o_k[:, None], mask=m_k[:, None] & m_s[None, :], other=0.0)
            b_acc = dot(b_m, b_v, b_acc, ALLOW_TF32)
    o_y = o_z[None, :] * C * D + _places(o_k, o_c, C, IR_MUL)
    tl.store(out + o_y, (b_acc * scale).to(out.dtype.element_ty), mask=m_k[:, None] & m_n[None, :])


def _blocks(dims: list[int], dtype: torch.dtype) -> dict:
    """Components in whole blocks; points and columns of a block."""
    out, most = (max(16, next_power_of_2(d)) for d in (dims[0], max(dims[1:])))
    columns = max(16, min(64, 2048 // max(out, most)) // (2 if dtype == torch.float64 else 1))
    return {"BO": out, "BD": most, "BS": 16 if dtype == torch.float64 else 32, "BN": columns}


def _packed(values) -> int:
    """A byte for each value."""
    return sum(value << BITS * n for n, value in enumerate(values))


def _bits(values) -> int:
    return sum(bool(value) << n for n, value in enumerate(values))


def _factors(k: int, tensors, slots: list[Slot]) -> list[tuple[Tensor, Slot]]:
    """What is multiplied at the points for slot k: every tensor that is given, slot k once less."""
    kept = [(x.contiguous(), slot._replace(power=slot.power - (n == k)))
            for n, (x, slot) in enumerate(zip(tensors, slots, strict=True)) if x is not None]
    return [(x, slot) for x, slot in kept if slot.power]


def contract(k: int, tensors, rows: int, channels: int, table: Tensor, points: Points, slots: list[Slot],
             ir_mul: bool) -> Tensor:
    """As `reference.contract`, for a table in the dense form."""
    factors, own = _factors(k, tensors, slots), slots[k]
    like, dims = factors[0][0], [own.dim, *(slot.dim for _, slot in factors)]
    acc = torch.float64 if like.dtype == torch.float64 else torch.float32
    y, columns = like.new_empty(rows, channels * own.dim), rows * channels
    blocks, missing = _blocks(dims, like.dtype), MOST - len(factors)
    launch(point_product_kernel, (cdiv(columns, blocks["BN"]),), y, *(x for x, _ in factors), *[y] * missing,
           table.to(acc), own.offset, *(slot.offset for _, slot in factors), *[0] * missing, columns, points.size,
           channels, own.power, COUNT=len(factors), DEGREES=_packed(slot.degree for _, slot in factors),
           POWERS=_packed(slot.power for _, slot in factors), SHARED_ROWS=_bits(x.shape[0] != rows for x, _ in factors),
           SHARED_CHANNELS=_bits(x.shape[1] != channels * slot.dim for x, slot in factors),
           IN_PARTS=_bits(slot.parts > 1 for _, slot in factors), PARTS=points.parts, OUT_PARTS=own.parts,
           IR_MUL=ir_mul, D=own.dim, ACC=accumulator(like.dtype), ALLOW_TF32=allow_tf32(like), **blocks,
           num_warps=8, device=like.device)
    return y


def _dense(table: Tensor, grid, slots) -> tuple[Tensor, Points, list[Slot]]:
    """The table in the dense form; layers have it so on a GPU, the tests interpret other forms too."""
    points, slots = Points(*grid), unpack(slots)
    if points.form == 0:
        return table, points, slots
    matrices, offset, found = [], 0, []
    for slot in slots:
        matrices.append(matrix(table, points, slot).flatten())
        found.append(slot._replace(offset=offset, twist=0))
        offset += matrices[-1].numel()
    return torch.cat(matrices), Points(0, points.size * points.images, 1, points.parts), found


def forward(*args) -> Tensor:
    """As in the reference."""
    xs, (table, grid, slots, ir_mul) = [x for x in args[:MOST] if x is not None], args[MOST:]
    table, points, slots = _dense(table, grid, slots)
    return contract(0, [None, *xs], xs[0].shape[0], channels_of(xs, slots[1:]), table, points, slots, ir_mul)


def backward(g: Tensor, *args) -> tuple[Tensor, ...]:
    """As in the reference."""
    *args, needs = args
    xs, (table, grid, slots, ir_mul) = [x for x in args[:MOST] if x is not None], args[MOST:]
    table, points, slots = _dense(table, grid, slots)
    found = [g.new_empty(0) for _ in range(MOST)]
    for n, x in enumerate(xs):
        if needs[n]:
            y = contract(n + 1, [g, *xs], g.shape[0], g.shape[1] // slots[0].dim, table, points, slots, ir_mul)
            found[n] = reduce(y, x.shape, slots[n + 1].dim, ir_mul).contiguous()
    return tuple(found)


def aot(kind: str, degree: int, out_degree: int, count: int = 2, powers: int = 0x0101, parts: int = 1) -> AotCase:
    """A product of `count` fields of a degree, from and to float32 ("fp32"), float64 or bfloat16."""
    dtype = torch.float64 if kind == "fp64" else torch.float32
    own = "fp64" if kind == "fp64" else "fp32"
    d, out = (degree + 1) ** 2, (out_degree + 1) ** 2
    signature = dict.fromkeys(["out", *(f"x{n}" for n in range(MOST))], f"*{kind}") | {"table": f"*{own}"}
    signature |= dict.fromkeys(["o_out", *(f"o{n}" for n in range(MOST)), "columns", "S", "C", "scale"], "i32")
    constexprs = {"COUNT": count, "DEGREES": _packed([degree] * count), "POWERS": powers, "SHARED_ROWS": 0,
                  "SHARED_CHANNELS": 0, "IN_PARTS": (1 << count) - 1 if parts > 1 else 0, "PARTS": parts,
                  "OUT_PARTS": 1, "IR_MUL": False, "D": out, "ACC": accumulator(dtype), "ALLOW_TF32": False,
                  **_blocks([out, d], dtype)}
    return AotCase(point_product_kernel, signature, constexprs, num_warps=8)


AOT = [aot("fp32", 6, 6), aot("fp64", 3, 4, parts=2), aot("bf16", 2, 2, 1, 3)]
