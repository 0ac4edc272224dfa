"""What Triton reads of a table: its matrices in whole blocks, behind it or made for the call."""

from itertools import product

import pytest
import torch

from ace_fast.functional import CPTable, sphere_table
from ace_fast.kernels.sphere_product import op, triton_kernels
from ace_fast.kernels.sphere_product.blocks import blocks, padded, read, with_blocks
from ace_fast.kernels.sphere_product.reference import matrix
from ace_fast.kernels.sphere_product.tables import Points, unpack
from ace_fast.kernels.triton_common import INTERPRETED

interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs the kernel on the CPU with TRITON_INTERPRET=1")
TABLES = {
    "dense": lambda: sphere_table((2, 3), 4, form="dense"),
    "mirrored": lambda: sphere_table((2, 2), 3, form="mirrored", bracket=True),
    "powers": lambda: sphere_table((1, 2), 2, form="separable", powers=(2, 1)),
    "factors": lambda: CPTable(*torch.randn(3, 9, 28, generator=torch.Generator().manual_seed(0))).points(True),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_hold_every_matrix_and_zeros(name, dtype):
    table, grid, slots = TABLES[name]().on("cpu")
    place, flat = blocks(grid, slots), read(table, grid, slots, dtype)
    assert flat.dtype == dtype and flat.shape == (place.length,)
    seen = torch.zeros(place.length, dtype=torch.bool)
    for slot, offset, width in zip(unpack(slots), place.offsets, place.widths, strict=True):
        one = slice(offset, offset + slot.parts * place.points * width)
        m = matrix(table, Points(*grid), slot)
        found = flat[one].view(slot.parts, place.points, width)
        assert torch.equal(found[:, :m.shape[1], :slot.dim], m.to(dtype))
        assert found.count_nonzero() == m.to(dtype).count_nonzero()
        seen[one] = True
    assert seen.all()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_blocks_is_read_in_place(name):
    table, grid, slots = TABLES[name]().on("cpu")
    more = with_blocks(table, grid, slots)
    assert torch.equal(more[:len(table)], table)
    for dtype in (torch.float32, torch.float64):
        found = read(more, grid, slots, dtype)
        assert torch.equal(found, padded(table, grid, slots).to(dtype))
        assert found.untyped_storage().data_ptr() == more.untyped_storage().data_ptr()
        # a derivative of a power has one more slot, of a matrix that is there
        assert torch.equal(read(more, grid, (*slots, *slots[5:10]), dtype), found)


def test_tables_for_other_devices_have_blocks():
    for name, make in TABLES.items():
        table, grid, slots = make().on(torch.device("meta"))
        assert table.numel() == blocks(grid, slots).start + blocks(grid, slots).length * 3 // 2, name


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_take_either(dtype):
    table, grid, slots = TABLES["dense"]().on("cpu")
    g = torch.Generator().manual_seed(1)
    x, y, dz = (torch.randn(3, 2 * d, generator=g, dtype=torch.float64).to(dtype) for d in (9, 16, 25))
    found = []
    for one in (table, with_blocks(table, grid, slots)):
        inputs = (x, y, None, None, None, None, one, grid, slots, False)
        needs = [True, True, False, False, False, False]
        found.append([op.sphere_product_op(*inputs, "triton"),
                      *op.sphere_product_bwd(dz, *inputs, needs, "triton")[:2]])
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*found, strict=True))


@interpreted
@pytest.mark.parametrize("ir_mul", [False, True])
def test_rows_that_need_wide_offsets(ir_mul, monkeypatch):
    table, grid, slots = TABLES["dense"]().on("cpu")
    g = torch.Generator().manual_seed(2)
    x, y, dz = (torch.randn(3, 2 * d, generator=g) for d in (9, 16, 25))
    inputs = (x, y, None, None, None, None, table, grid, slots, ir_mul)
    needs = [True, True, False, False, False, False]

    def run():
        return [triton_kernels.forward(*inputs), *triton_kernels.backward(dz, *inputs, needs)[:2]]

    narrow = run()
    monkeypatch.setattr(triton_kernels, "WIDE", 0)
    assert all(torch.equal(a, b) for a, b in zip(run(), narrow, strict=True))


def test_warps_have_rows_of_their_own():
    """On Hopper a warp multiplies 16 rows of a tile of 64 or more; with fewer rows, programs stopped."""
    for count, results, widest, points in product(range(1, 7), (1, 2), (16, 32, 64, 128, 256), (16, 32, 96)):
        tile = triton_kernels._tile(count, results, widest, points, torch.float32, True)
        assert tile["BN"] < 64 or tile["BN"] >= 16 * tile["num_warps"]
        assert points % tile["BS"] == 0
