"""The tables of integers that the Triton kernels read: what each program computes, and how each path is read."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .table import Path, unpack

# A row says how one path is read, in the role that the kernel plays: offset, multiplicity and 2l+1 in the first
# operand; the same in x2; offset of the weight block and its strides over the first operand's, x2's and the output's
# channels; offset of the dense coefficients and their strides over the first operand's and the output's components
# (x2's have stride 1).
ROW, JOB = 13, 8


class Plan(NamedTuple):
    """Tables of one kernel, on the device."""

    jobs: Tensor  # [n_jobs, JOB]
    rows: Tensor
    n_jobs: int
    written: int  # columns of the output that some job writes


def _on_device(table: list[tuple[int, ...]], width: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached tensor outlives the mode in which it was made
        padded = [(*row, *(0,) * (width - len(row))) for row in table] or [(0,) * width]
        return torch.tensor(padded, dtype=torch.int64, device=device)


def live_paths(paths: tuple[int, ...]) -> list[tuple[Path, int]]:
    """The paths that have weights, each with the offset of its dense coefficients [d1, d3, d2]."""
    found, offset = [], 0
    for path in unpack(paths):
        found.append((path, offset))
        offset += path.d1 * path.d2 * path.d3
    return [(path, offset) for path, offset in found if path.U * path.V * path.W]


def split_slots(bias_slots: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(offset in the output, length, offset in the bias) of each slot."""
    lengths = bias_slots[1::2]
    return [(o, n, sum(lengths[:i])) for i, (o, n) in enumerate(zip(bias_slots[::2], lengths, strict=True))]


def _row(path: Path, offset: int, forward: bool) -> tuple[int, ...]:
    p, step_i = path, path.d3 * path.d2
    if forward:
        return p.o1, p.U, p.d1, p.o2, p.V, p.d2, p.weight, p.V * p.W, p.W, 1, offset, step_i, p.d2
    return p.o3, p.W, p.d3, p.o2, p.V, p.d2, p.weight, 1, p.W, p.V * p.W, offset, p.d2, step_i


# The plans depend on these integers only, so they are kept: making one copies it to the device, which waits.
@functools.cache
def product_plan(paths: tuple, bias_slots: tuple, forward: bool, block: int, device: torch.device) -> Plan:
    """Every output slice, channel block and component is one job; its rows are the paths that end in the slice."""
    slices = {}
    for path, offset in live_paths(paths):
        key = (path.o3, path.W, path.d3) if forward else (path.o1, path.U, path.d1)
        slices.setdefault(key, []).append(_row(path, offset, forward))
    bias = {(o, n, 1): start for o, n, start in split_slots(bias_slots)}
    jobs, rows = [], []
    for (offset, mul, d), found in slices.items():
        span = (len(rows), len(rows) + len(found))
        jobs += [(offset, mul, d, k, o, *span, bias.get((offset, mul, d), -1))
                 for o in range(0, mul, block) for k in range(d)]
        rows += found
    written = sum(mul * d for _, mul, d in slices)
    return Plan(_on_device(jobs, JOB, device), _on_device(rows, ROW, device), len(jobs), written)


@functools.cache
def weight_plan(paths: tuple, blocks: tuple[int, int], device: torch.device) -> Plan:
    found = live_paths(paths)
    jobs = [
        (row, v, a, o, path.o3, path.W, path.d3)
        for row, (path, _) in enumerate(found)
        for v in range(path.V)
        for a in range(0, path.U, blocks[0])
        for o in range(0, path.W, blocks[1])
    ]
    rows = [_row(path, offset, True) for path, offset in found]
    written = sum(path.U * path.V * path.W for path, _ in found)
    return Plan(_on_device(jobs, JOB, device), _on_device(rows, ROW, device), len(jobs), written)


@functools.cache
def x2_plan(paths: tuple, device: torch.device) -> Plan:
    slices = {}
    for path, offset in live_paths(paths):
        row = (*_row(path, offset, True), path.o3, path.W, path.d3)
        slices.setdefault((path.o2, path.V, path.d2), []).append(row)
    jobs, rows = [], []
    for (offset, mul, d), found in slices.items():
        jobs += [(offset, d, v, len(rows), len(rows) + len(found)) for v in range(mul)]
        rows += found
    written = sum(mul * d for _, mul, d in slices)
    return Plan(_on_device(jobs, JOB, device), _on_device(rows, ROW + 3, device), len(jobs), written)


@functools.cache
def dense_plan(paths: tuple, block: int, device: torch.device) -> Plan:
    """Blocks of the dense coefficients of all paths."""
    jobs, numel = [], 0
    for p in unpack(paths):
        size = p.d1 * p.d2 * p.d3
        jobs += [(numel, p.start, p.stop, p.d2, p.d3, first, size) for first in range(0, size, block)]
        numel += size
    table = _on_device(jobs, JOB, device)
    return Plan(table, table, len(jobs), numel)


@functools.cache
def gate_plan(layout: tuple, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each output column (its column in pre, its gate's); for each column of pre what gate_bwd_kernel reads."""
    scalars, gates, *gated = layout
    forward = [(c, c) for c in range(scalars)]
    of_gates, of_gated = [], []
    pre, gate = scalars + gates, scalars
    for mul, d in zip(gated[::2], gated[1::2], strict=True):
        for _ in range(mul):
            forward += [(pre + c, gate) for c in range(d)]
            of_gates.append((pre - gates, gate, pre, d))
            of_gated += [(pre + c - gates, gate, pre + c, 0) for c in range(d)]
            pre, gate = pre + d, gate + 1
    backward = [(c, c, c, 1) for c in range(scalars)] + of_gates + of_gated
    return _on_device(forward, 2, device), _on_device(backward, 4, device)
