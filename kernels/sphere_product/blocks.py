"""The matrices of a table as Triton reads them: the dense form in whole blocks, padded with zeros.

A table for GPUs has them behind its own values, in float64 and then in float32 (two in the place of a float64), so that
no call converts them. Where they lie follows from the integers `grid` and `slots` alone.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton_common import cdiv, next_power_of_2
from .reference import matrix
from .tables import Points, Slot, unpack


class Blocks(NamedTuple):
    """Where padded matrices [parts, points, width] lie.

    Attributes:
        start: where the table's own values end.
        length: of all padded matrices, in values.
        points: S in whole blocks.
        offsets, widths: of each slot; components in whole blocks.
    """

    start: int
    length: int
    points: int
    offsets: tuple[int, ...]
    widths: tuple[int, ...]


def width(dim: int) -> int:
    """Components in whole blocks."""
    return max(16, next_power_of_2(dim))


@cache
def blocks(grid: tuple[int, ...], slots: tuple[int, ...]) -> Blocks:
    """The places of padded matrices; a matrix that several slots read is kept once."""
    points, read = Points(*grid), unpack(slots)
    size = points.size * points.images
    rows = 16 if size <= 16 else 32 * cdiv(size, 32)
    offsets, length = {}, 0
    for slot in _different(read):
        offsets[slot.offset, slot.twist] = length
        length += slot.parts * rows * width(slot.dim)
    return Blocks(max(slot.offset + points.numel(slot) for slot in read), length, rows,
                  tuple(offsets[slot.offset, slot.twist] for slot in read), tuple(width(slot.dim) for slot in read))


def _different(slots: tuple[Slot, ...]) -> list[Slot]:
    """One slot for each matrix, in the order in which they are kept."""
    found = {(slot.offset, slot.twist): slot for slot in slots}
    return [found[key] for key in sorted(found)]


def padded(table: Tensor, grid: tuple[int, ...], slots: tuple[int, ...]) -> Tensor:
    """The matrices of a table in any form, padded, flat float64 [length]."""
    points, found = Points(*grid), []
    for slot in _different(unpack(slots)):
        m = matrix(table, points, slot)
        more = blocks(grid, slots).points - m.shape[1]
        found.append(torch.nn.functional.pad(m, (0, width(slot.dim) - slot.dim, 0, more)).flatten())
    return torch.cat(found)


def with_blocks(table: Tensor, grid: tuple[int, ...], slots: tuple[int, ...]) -> Tensor:
    """The table with its padded matrices behind it, float64 and float32."""
    more = padded(table, grid, slots)
    return torch.cat([table[:blocks(grid, slots).start], more, more.float().view(torch.float64)])


def read(table: Tensor, grid: tuple[int, ...], slots: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The padded matrices in float32 or float64, flat: a view of a table that has them, else made here."""
    place = blocks(grid, slots)
    end = place.start + place.length
    if table.numel() != end + place.length // 2:
        return padded(table, grid, slots).to(dtype)
    return table[place.start:end] if dtype == torch.float64 else table[end:].view(torch.float32)
