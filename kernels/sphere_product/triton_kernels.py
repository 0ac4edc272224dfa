"""Products at points in Triton: a program takes a block of columns (a row and channel each) to a block of points at a
time, multiplies there, and adds what returns to its accumulators. Matrices in the dense form, in whole blocks.

Columns are the rows of every tile: [BN, components] times [components, points] and back, so that on a Hopper GPU the
matrices are what its matrix units read from shared memory, and neighbouring threads have neighbouring components.
"""

import torch
from torch import Tensor

from ..triton_common import (
    SPLIT,
    AotCase,
    accumulator,
    allow_tf32,
    cdiv,
    dot,
    launch,
    tl,
    triton,
)
from .blocks import blocks, read, width
from .reference import channels_of, reduce
from .tables import MOST, Points, unpack

BITS = 8  # of a degree or power in the integers that hold them for all factors
WIDE = 2**30  # values of a row from which offsets within a block need int64


@triton.jit
def columns_of(columns, C, BN: tl.constexpr, IS_WIDE: tl.constexpr):
    """Of this program's columns: the first one's row, rows after it, channels, and which are there."""
    i_n = tl.program_id(0).to(tl.int64) * BN
    i_z = i_n // C
    o_r = i_n - i_z * C + tl.arange(0, BN)
    if not IS_WIDE:
        o_r = o_r.to(tl.int32)
    return i_z, o_r // C, o_r % C, tl.arange(0, BN) < columns - i_n


@triton.jit
def places(o_i, o_z, o_c, channels, D: tl.constexpr, IR_MUL: tl.constexpr):
    """Where components of columns (row, channel) lie, [BN, components], in rows of `channels` channels."""
    if IR_MUL:
        return (o_z * D * channels + o_c)[:, None] + (o_i * channels)[None, :]
    o_l = tl.sqrt(o_i.to(tl.float32) + 0.5).to(tl.int32)  # l^2 <= i < (l + 1)^2, and the root may be approximate
    o_m = o_i - o_l * o_l
    return (o_z * D * channels)[:, None] + (o_l * o_l * channels + o_m)[None, :] + \
        o_c[:, None] * (2 * o_l + 1)[None, :]


@triton.jit
def _factor(
    x, i_z, o_z, o_c, m_n, C, N: tl.constexpr, DEGREES: tl.constexpr, WIDTHS: tl.constexpr, SHARED_ROWS: tl.constexpr,
    SHARED_CHANNELS: tl.constexpr, IR_MUL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Coefficients [BN, width] of factor N."""
    D: tl.constexpr = ((DEGREES >> 8 * N) % 256 + 1) * ((DEGREES >> 8 * N) % 256 + 1)
    o_i = tl.arange(0, 1 << (WIDTHS >> 8 * N) % 256)
    channels = C
    if (SHARED_CHANNELS >> N) % 2:
        channels = 1
        o_c = o_c * 0
    if (SHARED_ROWS >> N) % 2:
        o_z = o_z * 0
        i_z = i_z * 0
    o_x = places(o_i, o_z, o_c, channels, D, IR_MUL)
    return tl.load(x + i_z * channels * D + o_x, mask=m_n[:, None] & (o_i < D)[None, :], other=0.0).to(ACC)


@triton.jit
def _matrix(table, i_p, i_s, S, N: tl.constexpr, WIDTHS: tl.constexpr, PARTS: tl.constexpr, BS: tl.constexpr):
    """Rows [BS, width] of slot N's matrix, of part i_p where it has parts."""
    BD: tl.constexpr = 1 << (WIDTHS >> 8 * N) % 256
    if (PARTS >> N) % 2:
        table += i_p * S * BD
    return tl.load(table + (i_s + tl.arange(0, BS))[:, None] * BD + tl.arange(0, BD)[None, :])


@triton.jit
def _at_points(b_x, b_m, ALLOW_TF32: tl.constexpr):
    """Values [BN, BS] of coefficients at points."""
    return dot(b_x, tl.trans(b_m), tl.zeros([b_x.shape[0], b_m.shape[0]], dtype=b_x.dtype), ALLOW_TF32, SPLIT)


@triton.jit
def _times(b_v, b_x, table, i_p, i_s, S, N: tl.constexpr, POWERS: tl.constexpr, WIDTHS: tl.constexpr,
           PARTS: tl.constexpr, ALLOW_TF32: tl.constexpr):
    """b_v times factor N at the points, to its power."""
    b_f = _at_points(b_x, _matrix(table, i_p, i_s, S, N, WIDTHS, PARTS, b_v.shape[1]), ALLOW_TF32)
    for _ in tl.static_range((POWERS >> 8 * N) % 256):
        b_v *= b_f
    return b_v


@triton.jit
def point_product_kernel(
    out, x0, x1, x2, x3, x4, x5, table, o_out, o0, o1, o2, o3, o4, o5, columns, S, C, scale,
    COUNT: tl.constexpr, DEGREES: tl.constexpr, POWERS: tl.constexpr, WIDTHS: tl.constexpr,
    SHARED_ROWS: tl.constexpr, SHARED_CHANNELS: tl.constexpr, IN_PARTS: tl.constexpr, PARTS: tl.constexpr,
    OUT_PARTS: tl.constexpr, IR_MUL: tl.constexpr, D: tl.constexpr, BO: tl.constexpr, BS: tl.constexpr,
    BN: tl.constexpr, IS_WIDE: tl.constexpr, ACC: tl.constexpr, ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """out [Z, C D] = scale M^T (product of COUNT factors at the points); one program per BN columns.

    Of factor n (a byte of DEGREES, POWERS and WIDTHS, which are powers of 2, a bit of the others) the matrix begins at
    table + o<n>.
    """
    i_z, o_z, o_c, m_n = columns_of(columns, C, BN, IS_WIDE)
    b_0 = _factor(x0, i_z, o_z, o_c, m_n, C, 0, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    if COUNT > 1:
        b_1 = _factor(x1, i_z, o_z, o_c, m_n, C, 1, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    if COUNT > 2:
        b_2 = _factor(x2, i_z, o_z, o_c, m_n, C, 2, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    if COUNT > 3:
        b_3 = _factor(x3, i_z, o_z, o_c, m_n, C, 3, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    if COUNT > 4:
        b_4 = _factor(x4, i_z, o_z, o_c, m_n, C, 4, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    if COUNT > 5:
        b_5 = _factor(x5, i_z, o_z, o_c, m_n, C, 5, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    o_k = tl.arange(0, BO)
    b_acc = tl.zeros([BN, BO], dtype=ACC)
    for i_p in range(PARTS):
        p_m = table + o_out
        if OUT_PARTS > 1:
            p_m += i_p * S * BO
        for i_s in range(0, S, BS):
            b_v = tl.full([BN, BS], 1.0, dtype=ACC)
            b_v = _times(b_v, b_0, table + o0, i_p, i_s, S, 0, POWERS, WIDTHS, IN_PARTS, ALLOW_TF32)
            if COUNT > 1:
                b_v = _times(b_v, b_1, table + o1, i_p, i_s, S, 1, POWERS, WIDTHS, IN_PARTS, ALLOW_TF32)
            if COUNT > 2:
                b_v = _times(b_v, b_2, table + o2, i_p, i_s, S, 2, POWERS, WIDTHS, IN_PARTS, ALLOW_TF32)
            if COUNT > 3:
                b_v = _times(b_v, b_3, table + o3, i_p, i_s, S, 3, POWERS, WIDTHS, IN_PARTS, ALLOW_TF32)
            if COUNT > 4:
                b_v = _times(b_v, b_4, table + o4, i_p, i_s, S, 4, POWERS, WIDTHS, IN_PARTS, ALLOW_TF32)
            if COUNT > 5:
                b_v = _times(b_v, b_5, table + o5, i_p, i_s, S, 5, POWERS, WIDTHS, IN_PARTS, ALLOW_TF32)
            b_m = tl.load(p_m + (i_s + tl.arange(0, BS))[:, None] * BO + o_k[None, :])
            b_acc = dot(b_v, b_m, b_acc, ALLOW_TF32, SPLIT)
    o_y = i_z * C * D + places(o_k, o_z, o_c, C, D, IR_MUL)
    tl.store(out + o_y, (b_acc * scale).to(out.dtype.element_ty), mask=m_n[:, None] & (o_k < D)[None, :])


@triton.jit
def _stored(g_x, b_x, i_z, o_z, o_c, m_n, C, N: tl.constexpr, DEGREES: tl.constexpr, IR_MUL: tl.constexpr):
    """Stores coefficients [BN, width] of factor N's degree, all rows and channels."""
    D: tl.constexpr = ((DEGREES >> 8 * N) % 256 + 1) * ((DEGREES >> 8 * N) % 256 + 1)
    o_i = tl.arange(0, b_x.shape[1])
    o_x = i_z * C * D + places(o_i, o_z, o_c, C, D, IR_MUL)
    tl.store(g_x + o_x, b_x.to(g_x.dtype.element_ty), mask=m_n[:, None] & (o_i < D)[None, :])


@triton.jit
def point_product_bwd_kernel(
    g_x1, g_x2, g, x1, x2, table, o_g, o1, o2, columns, S, C, DEGREES: tl.constexpr, WIDTHS: tl.constexpr,
    SHARED_ROWS: tl.constexpr, SHARED_CHANNELS: tl.constexpr, IN_PARTS: tl.constexpr, PARTS: tl.constexpr,
    IR_MUL: tl.constexpr, BS: tl.constexpr, BN: tl.constexpr, IS_WIDE: tl.constexpr, ACC: tl.constexpr,
    ALLOW_TF32: tl.constexpr,
):  # fmt: skip
    """Both gradients of a product of two, [Z, C d_n] each; factors 0, 1, 2 are g, x1, x2."""
    i_z, o_z, o_c, m_n = columns_of(columns, C, BN, IS_WIDE)
    b_g = _factor(g, i_z, o_z, o_c, m_n, C, 0, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    b_1 = _factor(x1, i_z, o_z, o_c, m_n, C, 1, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    b_2 = _factor(x2, i_z, o_z, o_c, m_n, C, 2, DEGREES, WIDTHS, SHARED_ROWS, SHARED_CHANNELS, IR_MUL, ACC)
    b_g_1, b_g_2 = tl.zeros(b_1.shape, dtype=ACC), tl.zeros(b_2.shape, dtype=ACC)
    for i_p in range(PARTS):
        for i_s in range(0, S, BS):
            b_w = _at_points(b_g, _matrix(table + o_g, i_p, i_s, S, 0, WIDTHS, IN_PARTS, BS), ALLOW_TF32)
            b_m1 = _matrix(table + o1, i_p, i_s, S, 1, WIDTHS, IN_PARTS, BS)
            b_m2 = _matrix(table + o2, i_p, i_s, S, 2, WIDTHS, IN_PARTS, BS)
            b_g_1 = dot(b_w * _at_points(b_2, b_m2, ALLOW_TF32), b_m1, b_g_1, ALLOW_TF32, SPLIT)
            b_g_2 = dot(b_w * _at_points(b_1, b_m1, ALLOW_TF32), b_m2, b_g_2, ALLOW_TF32, SPLIT)
    _stored(g_x1, b_g_1, i_z, o_z, o_c, m_n, C, 1, DEGREES, IR_MUL)
    _stored(g_x2, b_g_2, i_z, o_z, o_c, m_n, C, 2, DEGREES, IR_MUL)


def has_wide_mma(device: torch.device) -> bool:
    """Whether its matrix units take 64 columns or more at once and its shared memory is large (sm_90, sm_100).

    Interpreted kernels take the same blocks.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


def _tile(count: int, results: int, widest: int, points: int, dtype: torch.dtype, is_hopper: bool) -> dict:
    """Columns and points of a block and the launch's options, for so many factors and results, the widest of them.

    A warp group multiplies 64 rows: two of them with fewer than 128 columns do the same work twice.
    """
    if dtype == torch.float64:
        columns, size, warps = 16, 16, 4
    elif is_hopper and widest <= 128 and 8 * count * 64 * widest <= 2**17:  # two parts of coefficients in shared memory
        columns, size, warps = 128 if widest == 16 and count < 5 else 64, 32, 4
    elif widest > 64 or is_hopper:
        columns, size, warps = 16, 16, 8
    else:
        columns, size, warps = {16: (64 * results, 32, 4), 32: (64, 16, 4 * results), 64: (32, 16, 8)}[widest]
        columns //= results
        while columns > 16 and 8 * count * columns * widest > 2**16:
            columns //= 2
    size = 16 if points % size else size
    # copies that wait for their turn would leave room for one program where two fit
    stages = 1 if is_hopper and 8 * count * columns * widest > 2**16 else 2
    return {"BN": columns, "BS": size, "num_warps": warps, "num_stages": stages, "maxnreg": 255}


def _packed(values) -> int:
    """A byte for each value."""
    return sum(value << BITS * n for n, value in enumerate(values))


def _bits(values) -> int:
    return sum(bool(value) << n for n, value in enumerate(values))


def _options(tensors, slots, widths, rows: int, channels: int, points: Points, ir_mul: bool) -> dict:
    """What the kernels know of the factors when they are compiled."""
    like = tensors[0]
    return {
        "DEGREES": _packed(slot.degree for slot in slots), "WIDTHS": _packed(w.bit_length() - 1 for w in widths),
        "SHARED_ROWS": _bits(x.shape[0] != rows for x in tensors),
        "SHARED_CHANNELS": _bits(x.shape[1] != channels * slot.dim for x, slot in zip(tensors, slots, strict=True)),
        "IN_PARTS": _bits(slot.parts > 1 for slot in slots), "PARTS": points.parts, "IR_MUL": ir_mul,
        "IS_WIDE": channels * max(slot.dim for slot in slots) >= WIDE, "ACC": accumulator(like.dtype),
        "ALLOW_TF32": allow_tf32(like), "device": like.device,
    }


class _Call:
    """A table's padded matrices for inputs of a dtype."""

    def __init__(self, table: Tensor, grid, slots, ir_mul: bool, dtype: torch.dtype):
        grid, flat = tuple(grid), tuple(slots)
        self.points, self.slots, self.ir_mul = Points(*grid), unpack(flat), ir_mul
        self.blocks = blocks(grid, flat)
        self.table = read(table, grid, flat, torch.float64 if dtype == torch.float64 else torch.float32)
        # both gradients in one launch; wider ones leave no registers for blocks of 32 points
        self.is_pair = len(self.slots) == 3 and max(s.power for s in self.slots) == 1 and max(self.blocks.widths) <= 32

    def contract(self, k: int, tensors: list[Tensor | None], rows: int, channels: int) -> Tensor:
        """As `reference.contract`."""
        kept = [(x.contiguous(), slot._replace(power=slot.power - (n == k)), self.blocks.offsets[n])
                for n, (x, slot) in enumerate(zip(tensors, self.slots, strict=True)) if x is not None]
        xs, slots, offsets = zip(*(each for each in kept if each[1].power), strict=True)
        own, like, missing = self.slots[k], xs[0], MOST - len(xs)
        y, widths = like.new_empty(rows, channels * own.dim), [width(slot.dim) for slot in slots]
        widest, is_hopper = max(*widths, width(own.dim)), has_wide_mma(like.device)
        tile = _tile(len(xs), 1, widest, self.blocks.points, like.dtype, is_hopper)
        launch(point_product_kernel, (cdiv(rows * channels, tile["BN"]),), y, *xs, *[y] * missing, self.table,
               self.blocks.offsets[k], *offsets, *[0] * missing, rows * channels, self.blocks.points, channels,
               own.power, COUNT=len(xs), POWERS=_packed(slot.power for slot in slots), OUT_PARTS=own.parts, D=own.dim,
               BO=width(own.dim), **_options(xs, slots, widths, rows, channels, self.points, self.ir_mul), **tile)
        return y

    def both(self, g: Tensor, xs: list[Tensor]) -> list[Tensor]:
        """The gradients of a product of two, in one launch, before sums over what is shared."""
        rows, channels = g.shape[0], g.shape[1] // self.slots[0].dim
        tensors = [x.contiguous() for x in (g, *xs)]
        found = [g.new_empty(rows, channels * slot.dim) for slot in self.slots[1:]]
        tile = _tile(3, 2, max(self.blocks.widths), self.blocks.points, g.dtype, has_wide_mma(g.device))
        launch(point_product_bwd_kernel, (cdiv(rows * channels, tile["BN"]),), *found, *tensors, self.table,
               *self.blocks.offsets, rows * channels, self.blocks.points, channels,
               **_options(tensors, self.slots, self.blocks.widths, rows, channels, self.points, self.ir_mul), **tile)
        return found


def forward(*args) -> Tensor:
    """As in the reference."""
    xs, call = [x for x in args[:MOST] if x is not None], _Call(*args[MOST:], args[0].dtype)
    return call.contract(0, [None, *xs], xs[0].shape[0], channels_of(xs, call.slots[1:]))


def backward(g: Tensor, *args) -> tuple[Tensor, ...]:
    """As in the reference."""
    *args, needs = args
    xs, call = [x for x in args[:MOST] if x is not None], _Call(*args[MOST:], args[0].dtype)
    found, channels = [g.new_empty(0) for _ in range(MOST)], g.shape[1] // call.slots[0].dim
    if needs[0] and needs[1] and call.is_pair:
        whole = call.both(g, xs)
    else:
        whole = [call.contract(n + 1, [g, *xs], g.shape[0], channels) if needs[n] else None for n in range(len(xs))]
    for n, (x, y) in enumerate(zip(xs, whole, strict=True)):
        if y is not None:
            found[n] = reduce(y, x.shape, call.slots[n + 1].dim, call.ir_mul).contiguous()
    return tuple(found)


def _types(kind: str, names: str, integers: str) -> dict[str, str]:
    """Tensors of a kind with the table in what it is summed in, and integers."""
    table = {"table": "*fp64" if kind == "fp64" else "*fp32"}
    return dict.fromkeys(names.split(), f"*{kind}") | table | dict.fromkeys(integers.split(), "i32")


def _constants(degrees: list[int], results: int, widest: int, dtype: torch.dtype, parts: int) -> tuple[dict, dict]:
    """Constants and options of a launch with these factors."""
    widths = [width((degree + 1) ** 2) for degree in degrees]
    tile, hopper = (_tile(len(degrees), results, max(*widths, widest), 32, dtype, is_hopper)
                    for is_hopper in (False, True))
    constants = {"DEGREES": _packed(degrees), "WIDTHS": _packed(w.bit_length() - 1 for w in widths), "SHARED_ROWS": 0,
                 "SHARED_CHANNELS": 0, "IN_PARTS": (1 << len(degrees)) - 1 if parts > 1 else 0, "PARTS": parts,
                 "IR_MUL": False, "IS_WIDE": False, "ACC": accumulator(dtype), "ALLOW_TF32": False,
                 **{name: tile.pop(name) for name in ("BN", "BS")}}
    return constants, tile | {"hopper": hopper}


def aot(
    kind: str, degree: int, out_degree: int, count: int = 2, powers: int = 0x0101, parts: int = 1, max_spill: int = 0,
) -> AotCase:  # fmt: skip
    """A product of `count` fields of a degree, from and to float32 ("fp32"), float64 or bfloat16."""
    dtype, d = torch.float64 if kind == "fp64" else torch.float32, (out_degree + 1) ** 2
    names = " ".join(["out", *(f"x{n}" for n in range(MOST))])
    signature = _types(kind, names, " ".join(["o_out", *(f"o{n}" for n in range(MOST)), "columns S C scale"]))
    constants, options = _constants([degree] * count, 1, width(d), dtype, parts)
    constants |= {"COUNT": count, "POWERS": powers, "OUT_PARTS": 1, "D": d, "BO": width(d)}
    return AotCase(point_product_kernel, signature, constants, max_spill=max_spill, **options)


def aot_bwd(kind: str, degree: int, parts: int = 1) -> AotCase:
    """Both gradients of a product of two fields of a degree, kept to it."""
    dtype = torch.float64 if kind == "fp64" else torch.float32
    signature = _types(kind, "g_x1 g_x2 g x1 x2", "o_g o1 o2 columns S C")
    constants, options = _constants([degree] * 3, 2, 16, dtype, parts)
    return AotCase(point_product_bwd_kernel, signature, constants, **options)


AOT = [
    *(aot("fp32", degree, degree) for degree in (2, 4, 6)),
    aot("fp32", 10, 10, max_spill=640),  # before and after the loop, none in it: 64 columns for 16 are worth more
    aot("fp64", 3, 4, parts=2), aot("bf16", 2, 2, 1, 3),
    *(aot_bwd("fp32", degree) for degree in (2, 4)), aot_bwd("fp64", 3, 2), aot_bwd("bf16", 3),
]
