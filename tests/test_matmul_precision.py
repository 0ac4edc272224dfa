"""torch's switch for the precision of float32 matrix products in the CUDA kernels: the error bounds that they state."""

import importlib

import pytest
import torch

from ace_fast.backend import available
from ace_fast.kernels.cases import cast, generator
from ace_fast.kernels.triton_common import matmul_precision

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # emulated
UNIT = {"high": 2**-11, "medium": 2**-8}  # of TF32 and of bfloat16
ROUNDING = 1024 * 2**-24  # float32's own, for that many terms
# room -> matrix products one after the other, cases whose results are products alone
PRODUCTS = {
    "tensor_product": (1, ("both_branches", "many_channels", "high_degree", "mode_uvw", "x2_wide", "ir_mul")),
    "tensor_product_conv": (1, ("mode_uvw",)),
    "steerable_message": (2, ("both_branches", "high_degree")),
}
CASES = [
    (count, case)
    for room, (count, names) in PRODUCTS.items()
    if available(DEVICE)[room].get("cuda") == ""
    for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL
    if case.name in names and case.op.name in (room, f"{room}_bwd")
]


@pytest.fixture
def switch():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.backends.cuda.matmul.allow_tf32 = False  # which forgets what its newer name was set to
    torch.set_float32_matmul_precision(before)


def inputs_of(case, dtype=torch.float32) -> dict:
    inputs = cast(case.inputs(generator()), case, dtype, DEVICE)
    inputs = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    if "steerable_message" in case.op.name and "needs" in inputs:
        inputs["needs"][2] = False  # the attributes' gradient alone is left to other kernels
    return inputs


def outputs(found) -> list[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else list(found)


def run(case, inputs) -> list[torch.Tensor]:
    return outputs(case.op(*inputs.values(), "cuda"))


def gold(case, absolute: bool) -> list[torch.Tensor]:
    """In float64 from the same float32 inputs; absolute: the sums of the absolute values of all terms."""
    wide = {}
    for name, x in inputs_of(case).items():
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            x = x.double().abs() if absolute else x.double()
        wide[name] = x
    return outputs(case.reference(**wide))


@pytest.mark.parametrize("precision", UNIT)
@pytest.mark.parametrize(("count", "case"), CASES, ids=lambda v: repr(v) if hasattr(v, "op") else "")
def test_error_bound(count, case, precision, switch):
    """|error| <= (2 u + u^2) sum |terms|, and more than another precision's: it is really in use."""
    expected, sizes, u = gold(case, False), gold(case, True), UNIT[precision]
    bound = (1 + 2 * u + u**2) ** count - 1 + ROUNDING
    switch(precision)
    mine = run(case, inputs_of(case))
    switch("highest")
    exact = run(case, inputs_of(case))
    for x, best, y, size in zip(mine, exact, expected, sizes, strict=True):
        there = size > 0
        if not there.any():
            continue
        error, least = ((v.double() - y).abs()[there] / size[there] for v in (x, best))
        assert error.max() <= bound
        assert least.max() <= ROUNDING
        assert error.max() > u / 64 or x.dim() == 1 and torch.equal(x, best)  # biases have no product


@pytest.mark.parametrize("precision", UNIT)
def test_float64_and_the_cpu_ignore_the_switch(precision, switch):
    count, case = next(c for c in CASES if c[1].name == "both_branches")
    double = run(case, inputs_of(case, torch.float64))
    single = case.op(*inputs_of(case).values(), "cpu") if DEVICE == "cpu" else None
    switch(precision)
    assert all(torch.equal(x, y) for x, y in zip(double, run(case, inputs_of(case, torch.float64)), strict=True))
    assert single is None or torch.equal(single, case.op(*inputs_of(case).values(), "cpu"))


def test_reads_the_switch(switch):
    x = torch.zeros(1)
    for n, name in enumerate(("highest", "high", "medium")):
        switch(name)
        assert matmul_precision(x) == n
        assert matmul_precision(x.double()) == 0
    switch("highest")
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # torch's own getter refuses this mixture
    assert matmul_precision(x) == 1
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert matmul_precision(x) == 0
    switch("highest")
    torch.backends.cuda.matmul.allow_tf32 = True
    assert matmul_precision(x) == 1
