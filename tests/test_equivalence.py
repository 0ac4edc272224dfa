"""Every operator x backend x dtype x case: values, first and second derivatives against the reference in float64."""

import collections
import functools
import importlib
import os
from pathlib import Path

import pytest
import torch

from ace_fast import native
from ace_fast.backend import available
from ace_fast.bench.gate import limits
from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import cast, generator

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
ALL = [
    (device, backend, case)
    for device in DEVICES
    for room in ROOMS
    for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL
    for backend, reason in available(device)[room].items()  # one after the other, as they share what is expected
    if not reason
]
REFUSED = [(*run, dtype) for run in ALL for dtype, by in ((torch.float32, run[2].refused_by),
                                                          (torch.float64, run[2].refused_by + run[2].no_float64))
           if run[1] in by]
# Interpreted Triton runs these cases of operators that are kernels of other rooms, or that take seconds a case.
_CONVOLUTIONS = ("tiny", "odd", "both_branches", "bessel", "coincident", "empty", "empty_graph")
CHOSEN = {"steerable_message": ("tiny", "odd", "odd_factored", "empty"), "cfconv": _CONVOLUTIONS,
          "spline_conv": _CONVOLUTIONS}
# cases in which every gradient is asked for: an operator's own case of this name runs its gradient's
WHOLE = ("tiny", "odd", "both_branches", "long_sum", "empty", "many_channels", "high_degree")


def _interpreted(device: str, backend: str) -> bool:
    return (device, backend) == ("cpu", "triton")


def _interpreted_order(case, n: int) -> int | None:
    """How many derivatives of the n-th case of an operator run in interpreted Triton; None: not even values.

    It takes seconds a case. Second derivatives are calls of the same kernels: three cases and no rows.
    """
    name = case.op.name
    operator = name.removesuffix("_bwd").removesuffix("_bwd")
    if operator in CHOSEN and (name != operator or case.name not in CHOSEN[operator]):
        return None
    if name != operator:
        return None if case.name in WHOLE else 0
    return 2 if n < 3 or case.name == "empty" else 1


def _choose() -> tuple[list, list]:
    """The runs of every case that is not refused, with dtypes and orders, and those that are repeated with strides.

    Interpreted, Triton runs the same Python whatever the dtype: float64, whose bounds are sharpest, and the first case
    of an operator again; with strides the second of every operator, gradients too. The reference in float32 is what its
    bound is made of.
    """
    runs, repeated, before = [], [], collections.Counter()
    for device, backend, case in ALL:
        if backend in case.refused_by:
            continue
        interpreted = _interpreted(device, backend)
        n = before[device, backend, case.op]
        before[device, backend, case.op] += 1
        order = _interpreted_order(case, n) if interpreted else 2
        if order is not None:
            if backend not in case.no_float64:
                runs.append((device, backend, case, torch.float64, order))
            if n == 0 or not (interpreted or (backend == "reference" and n > 2)):
                runs.append((device, backend, case, torch.float32, order))
        if n == 1 if interpreted else n < 3 or backend != "reference":
            repeated.append((device, backend, case))
    return runs, repeated


RUNS, REPEATED = _choose()


def label(value) -> str:
    return repr(value) if hasattr(value, "op") else str(value).removeprefix("torch.")


def derivatives(function, inputs: dict, names: tuple[str, ...], order: int = 2) -> dict[str, torch.Tensor]:
    """Outputs, gradients of <c, outputs>, and gradients of <d, gradients>, for fixed random directions c and d.

    Without names, or of order 0, outputs alone; of order 1 without the last.
    """
    g = generator(1)
    outputs = function(**inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    outputs = [o for o in outputs if o.shape != (0,)]  # gradients that were not asked for
    found = {f"output {i}": o for i, o in enumerate(outputs)}
    if not names or order == 0:
        return {name: o.detach().double().cpu() for name, o in found.items()}
    nothing = sum(inputs[n].sum() for n in names if inputs[n] is not None) * 0  # what depends on no input is constant
    outputs = [o if o.requires_grad else o + nothing for o in outputs]
    cotangents = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o).requires_grad_() for o in outputs]
    leaves = [inputs[n] for n in names if inputs[n] is not None]
    labels = [n for n in names if inputs[n] is not None]
    first = torch.autograd.grad(outputs, leaves, cotangents, create_graph=order == 2, materialize_grads=True)
    found |= {f"gradient of {n}": x for n, x in zip(labels, first, strict=True)}
    directions = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x) for x in first]
    pairs = [(x, d) for x, d in zip(first, directions, strict=True) if x.requires_grad]
    if order == 2 and pairs:
        xs, ds = zip(*pairs, strict=True)
        second = torch.autograd.grad(xs, [*leaves, *cotangents], ds, materialize_grads=True)
        found |= {f"dd {n}": x for n, x in zip(labels, second, strict=False)}
        found |= {f"dd cotangent {i}": x for i, x in enumerate(second[len(leaves):])}
    return {name: x.detach().double().cpu() for name, x in found.items()}


@functools.cache
def expected(case, dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    """What plain PyTorch gives in `dtype` on `device`; one computation for all backends."""
    return derivatives(case.reference, cast(case.inputs(generator()), case, dtype, device), case.differentiable)


def bounds(case, dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    """The one rule of the project, see `bench.gate.limits`, for second derivatives too.

    On a GPU the rounding of plain PyTorch there counts as well: its functions and the order of its sums are others.
    """
    gold, eager = expected(case, torch.float64), expected(case, torch.float32)
    sizes = case.scale(case.inputs(generator()), gold) if case.scale else None
    found = limits(gold, eager, dtype, sizes)
    if device == "cpu":
        return found
    there = limits(gold, expected(case, dtype, device), dtype, sizes, own=dtype)
    return {name: max(limit, there[name]) for name, limit in found.items()}


@pytest.mark.parametrize(("device", "backend", "case", "dtype", "order"), RUNS, ids=label)
def test_matches_reference(device, backend, case, dtype, order):
    gold, limit = expected(case, torch.float64), bounds(case, dtype, device)
    gold = {name: x for name, x in gold.items() if name.startswith(("output", "gradient", "dd")[:order + 1])}
    inputs = cast(case.inputs(generator()), case, dtype, device)
    mine = derivatives(lambda **a: case.op(*a.values(), backend), inputs, case.differentiable, order)
    assert mine.keys() == gold.keys()
    for name, x in gold.items():
        assert mine[name].shape == x.shape, name
        error = (mine[name] - x).abs().max().item() if x.numel() else 0.0
        assert error <= limit[name], f"{name}: error {error:.3g} > {limit[name]:.3g}"


@pytest.mark.parametrize(("device", "backend", "case", "dtype"), REFUSED, ids=label)
def test_refuses(device, backend, case, dtype):
    inputs = cast(case.inputs(generator()), case, dtype, device)
    with pytest.raises(ValueError, match=f"backend '{backend}' does not take this: .*; use backend='auto'"):
        case.op(*inputs.values(), backend)


@pytest.mark.parametrize(("device", "backend", "case"), REPEATED, ids=label)
def test_strides_and_aliasing(device, backend, case):
    """Inputs may have any strides; outputs are contiguous, fresh, and the inputs are left as they were."""
    plain = cast(case.inputs(generator()), case, torch.float32, device)
    strided = {}
    for name, value in plain.items():
        if isinstance(value, torch.Tensor) and value.dim():
            wide = torch.stack([value.detach(), torch.full_like(value.detach(), 7)], -1)
            value = wide[..., 0]
        strided[name] = value.detach() if isinstance(value, torch.Tensor) else value
    before = {k: v.clone() for k, v in strided.items() if isinstance(v, torch.Tensor)}
    with torch.no_grad():
        expected = case.op(*plain.values(), backend)
        got = case.op(*strided.values(), backend)
    single = isinstance(got, torch.Tensor)
    for x, y in zip([expected] if single else expected, [got] if single else got, strict=True):
        # einsum, in the reference alone, orders its sums by the strides
        if backend == "reference":
            size = x.double().abs().max().item() if x.numel() else 0.0
            assert torch.allclose(x, y, rtol=1e-5, atol=1e-6 * max(size, 1))
        else:
            assert torch.equal(x, y)
        assert y.is_contiguous()
        storages = {v.untyped_storage().data_ptr() for v in strided.values() if isinstance(v, torch.Tensor)}
        assert y.numel() == 0 or y.untyped_storage().data_ptr() not in storages
    for name, x in before.items():
        assert torch.equal(x, strided[name]), f"{name} was changed"


THREADED = [
    case
    for room in ROOMS
    if not available("cpu")[room]["cpu"]
    for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").LARGE
    if "100" in case.name.split("_") or case.name == "per_channel"
]


@pytest.mark.parametrize("case", THREADED, ids=repr)
def test_threads_do_not_change_a_bit(case):
    """At sizes where every loop is really shared out."""
    inputs = cast(case.inputs(generator()), case, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = case.op(*inputs.values(), "cpu")
            results.append([out] if isinstance(out, torch.Tensor) else out)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_required_backends_are_present():
    """ACE_FAST_REQUIRE names what must not be missing here; the failure says why it is."""
    for name in filter(None, os.environ.get("ACE_FAST_REQUIRE", "").split(",")):
        if name == "shared":
            shared = Path(__file__).parents[2] / "shared" / "data"
            assert shared.is_dir(), f"ACE_FAST_REQUIRE names shared, but {shared} is not there"
            continue
        if name in ("nvcc", "chromium"):
            continue  # tests/aot; tests of the reports
        if name == "emulate":
            assert native.EMULATED, "ACE_FAST_REQUIRE names emulate, but ACE_FAST_EMULATE is not 1"
            assert native.load_cuda() == ""
            for room, backends in available("cpu").items():
                assert backends.get("cuda", "") == "", f"{room}: cuda is missing: {backends['cuda']}"
            continue
        on_gpu = name == "cuda" or (name == "triton" and torch.cuda.is_available())
        assert name != "cuda" or torch.cuda.is_available(), "ACE_FAST_REQUIRE names cuda, but torch sees no GPU"
        for room, backends in available("cuda" if on_gpu else "cpu").items():
            if name in ("cuda", "triton") and name not in backends:
                continue  # a room has cuda or triton, each where it wins
            assert backends.get(name, "the room has none") == "", f"{room}: {name} is missing: {backends.get(name)}"
