"""Exponents of time and memory: what is fitted, what is red, and that every axis of every room can be built."""

import importlib
import math

import pytest
import torch

from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import generator
from bench import operators, scaling

ROW = {"suite", "axis", "size", "op", "case", "backend", "direction", "device", "dtype", "ms", "cpu_ms", "q20_ms",
       "q80_ms", "rounds", "peak_mb", "memory_method", "flops", "exponent", "exponent_error", "expected_exponent",
       "memory_exponent", "expected_memory_exponent", "note", "threads", "device_name", "command"}


def rounds(sizes, exponents):
    """A list for each size: a round for each exponent."""
    return [[1e-3 * size**e for e in exponents] for size in sizes]


def test_a_slope_is_that_of_logarithms():
    assert scaling.slope([10, 100, 1000], [3.0, 30.0, 300.0]) == pytest.approx(1)
    assert scaling.slope([2, 4, 8], [1.0, 4.0, 16.0]) == pytest.approx(2)
    assert scaling.slope([2, 4, 8], [0.0, 0.0, 0.0]) == 0.0


def test_only_the_largest_sizes_are_fitted():
    """Constant below, quadratic above; rounds that differ by 0.1 scatter by it."""
    sizes = [1, 10, 100, 1000, 10_000]
    found = scaling.fit(sizes, [[7.0], [7.0], *rounds(sizes[2:], [2.0])])
    assert found.exponent == pytest.approx(2) and found.error == 0.0
    found = scaling.fit(sizes, rounds(sizes, [1.0, 1.1, 1.2]))
    assert found.exponent == pytest.approx(1.1) and found.error == pytest.approx(0.1)


@pytest.mark.parametrize(("changed", "error"), [
    ({}, ""),
    ({"exponent": 1.14}, ""),  # within the margin
    ({"exponent": 1.5, "exponent_error": 0.2}, ""),  # within its scatter
    ({"exponent": 0.3}, ""),  # slower is no fault
    ({"exponent": 1.5}, r"time grows as size\^1.50 \(± 0.02\), its algorithm as size\^1.00"),
    ({"memory_exponent": 2.0}, r"memory grows as size\^2.00, its tensors at most as size\^1.00"),
    ({"memory_exponent": None}, ""),  # too little to be measured
])
def test_what_grows_faster_is_red(changed, error):
    fitted = {"exponent": 1.0, "exponent_error": 0.02, "expected_exponent": 1.0, "memory_exponent": 1.0,
              "expected_memory_exponent": 1.0} | changed
    if error:
        with pytest.raises(AssertionError, match=error):
            raise AssertionError(scaling.too_fast(fitted))
    else:
        assert scaling.too_fast(fitted) == ""


def family(op, axis, sizes):
    found = next(f for f in scaling.families("cpu", torch.float32, [op], [axis], "reference"))
    return found._replace(axis=found.axis._replace(sizes=sizes))


def test_rows_of_a_curve():
    made = scaling.measure(family("segment_sum", "edges", (40, 80, 160)), 2)
    assert [(r["direction"], r["size"]) for r in made] == [
        *(("forward", n) for n in (40, 80, 160)), *(("forward+backward", n) for n in (40, 80, 160))]
    for row in made:
        assert ROW <= row.keys() and row["suite"] == "scaling" and row["axis"] == "edges" and row["rounds"] == 2
        assert row["ms"] > 0 and row["expected_exponent"] == 1.0 and math.isfinite(row["exponent"])
        assert row["expected_memory_exponent"] == pytest.approx(1)  # 4 channels of nodes; of edges
    assert {r["flops"] for r in made} == {160, 320, 640}  # an addition a number; the gather has none


def test_the_degree_grows_as_it_is_counted():
    """No power by hand: the counted operations stand for the algorithm."""
    axis = next(f.axis for f in scaling.families("cpu", torch.float32, ["tensor_product"], ["degree"]))
    flops = [scaling._flops("tensor_product", axis.case(l).inputs(generator()), "forward") for l in (1, 2)]
    curve = [scaling.Point(l, "forward", axis.case(l), None, count, (1,), 0.0, "")
             for l, count in zip((1, 2), flops, strict=True)]
    found = scaling._exponents(axis, curve, [[1.0, 1.0], [4.0, 4.0]])
    assert found["expected_exponent"] == pytest.approx(math.log2(flops[1] / flops[0])) and found["exponent"] == 2
    assert 2 < found["expected_exponent"] < 4 and found["memory_exponent"] is None


def points_without_tensors(of):
    """Points whose time and memory are made up: quadratic."""
    found, ms = [], []
    for point in scaling.points(of):
        found.append(point._replace(peak_mb=float(point.size) ** 2))
        ms.append([float(point.size) ** 2] * 3)
    return found, [[1.0] * 3] * len(ms), ms  # what other processes do to the time does not count


def test_the_largest_size_has_the_error():
    of = family("segment_sum", "edges", (40, 80, 160))
    made = scaling.rows(of, {}, *points_without_tensors(of))
    assert [bool(r.get("error")) for r in made] == [False, False, True] * 2
    assert "time grows as size^2.00" in made[2]["error"] and "memory grows as size^2.00" in made[2]["error"]


def test_a_wrong_operator_is_not_timed(monkeypatch):
    ready = operators.prepare(family("segment_sum", "edges", (40,)).job("forward"))
    monkeypatch.setattr(operators, "prepare", lambda job: ready._replace(error="output 0 is wrong"))
    (row,) = scaling.measure(family("segment_sum", "edges", (40, 80)), 2)
    assert row["error"] == "output 0 is wrong" and row["ms"] is None and row["size"] == 40


def test_every_room_has_axes():
    for room in ROOMS:
        axes = importlib.import_module(f"ace_fast.kernels.{room}.cases").SCALING
        assert axes, room
        for axis in axes:
            assert axis.name in scaling.AXES and len(axis.sizes) >= scaling.FITTED, (room, axis)
            assert list(axis.sizes) == sorted(axis.sizes), (room, axis)
    edges = {f.op for f in scaling.families("cpu", torch.float32, axes=["edges"]) if max(f.axis.sizes) > 9_000_000}
    assert edges >= {"segment_sum", "tensor_product_conv", "steerable_message", "egnn_message", "cfconv", "spline_conv"}


def test_only_what_is_asked_for():
    found = list(scaling.families("cpu", torch.float32, ["cfconv"], ["channels"]))
    assert {f.op for f in found} == {"cfconv", "spline_conv"} and {f.axis.name for f in found} == {"channels"}
    assert not list(scaling.families("cpu", torch.float32, backend="nothing"))
