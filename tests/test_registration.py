"""What torch.library promises for a registered operator: opcheck, gradcheck, full-graph compile, clear limits."""

import importlib

import pytest
import torch
from operator_calls import Calls

from ace_fast import native
from ace_fast.backend import available
from ace_fast.functional import relaxed_linear
from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import cast, generator

ALL = [
    (backend, case)
    for room in ROOMS
    for backend, reason in available("cpu")[room].items()
    if not reason
    for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL
    if case.name in ("tiny", "odd", "empty") and backend not in case.refused_by
    # cfconv's gradients take a second a call, interpreted
    and not (backend == "triton" and repr(case).startswith(("cfconv_bwd", "spline_conv_bwd")))
]
# What is promised is the same Python for all backends: most of it is tried on the fastest one.
FASTEST = "reference" if native.load() else "cpu"
SMALL = [(backend, case) for backend, case in ALL if case.name == "tiny" or backend == FASTEST]
TINY = [(backend, case) for backend, case in SMALL if case.name == "tiny" and backend == FASTEST]
# in the words of torch 2.13 and of torch 2.11
NO_DOUBLE = "double backward|does not require grad"
# Number by number, interpreted Triton takes minutes; tests/test_equivalence.py has the values of its derivatives.
DIFFERENTIABLE = [(backend, case) for backend, case in SMALL
                  if case.name == "tiny" and case.differentiable and backend != "triton"]


def name(value):
    return repr(value) if hasattr(value, "op") else value


@pytest.mark.parametrize(("backend", "case"), SMALL, ids=name)
def test_opcheck(backend, case):
    inputs = cast(case.inputs(generator()), case, torch.float32)
    checks = ["test_faketensor"]  # what interpreted Triton returns; the rest is the same Python for all backends
    if backend != "triton":
        checks += ["test_schema", "test_autograd_registration"]
    if (backend, case) in TINY:  # whatever the sizes: they are symbols there
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(case.op.registered, (*inputs.values(), backend), test_utils=checks)


@pytest.mark.parametrize(("backend", "case"), DIFFERENTIABLE, ids=name)
def test_gradcheck(backend, case):
    inputs = cast(case.inputs(generator()), case, torch.float64)
    names = [n for n in case.differentiable if inputs[n] is not None]

    def function(*leaves):
        out = case.op(*(inputs | dict(zip(names, leaves, strict=True))).values(), backend)
        return out if isinstance(out, torch.Tensor) else tuple(o for o in out if o.requires_grad)

    leaves = [inputs[n] for n in names]
    # number by number for an operator's own derivative, along random directions for the higher ones
    assert torch.autograd.gradcheck(function, leaves, fast_mode="_bwd-" in repr(case))
    if backend in ("reference", "cpu") and "_bwd_bwd-" not in repr(case):  # four derivatives are enough
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("asked", [("x",), ("weight",), ("gamma", "x"), ("x", "weight", "bias", "gamma"), None])
def test_gradients_that_nobody_asks_for_are_not_computed(asked):
    leaves = {"x": torch.randn(4, 3), "weight": torch.randn(2, 3), "bias": torch.randn(2), "gamma": torch.tensor(0.5)}
    leaves = {n: t.requires_grad_() for n, t in leaves.items()}
    plain = (leaves["gamma"] * torch.nn.functional.linear(leaves["x"], leaves["weight"], leaves["bias"])).sum()
    expected = dict(zip(leaves, torch.autograd.grad(plain, leaves.values()), strict=True))
    y = relaxed_linear(*leaves.values()).sum()
    for create_graph in (True, False, False):  # a graph that is retained answers each question anew
        with Calls() as calls:
            if asked is None:
                y.backward(retain_graph=True)
                found = {n: t.grad for n, t in leaves.items()}
            else:
                found = dict(zip(asked, torch.autograd.grad(y, [leaves[n] for n in asked], retain_graph=True,
                                                            create_graph=create_graph), strict=True))
        [(_, arguments)] = [call for call in calls.own if call[0] == "relaxed_linear_bwd"]
        assert arguments[6] == [n in (asked or leaves) for n in leaves]
        for n, g in found.items():
            torch.testing.assert_close(g, expected[n])
            leaves[n].grad = None


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)  # of radius_graph, whose size depends on values
@pytest.mark.parametrize(("backend", "case"), TINY, ids=name)
def test_full_graph_compile(backend, case):
    inputs = cast(case.inputs(generator()), case, torch.float32)
    leaves = [inputs[n] for n in case.differentiable if inputs[n] is not None]

    def function():
        out = case.op(*inputs.values(), backend)
        return (out if isinstance(out, torch.Tensor) else out[0]).sin().sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), function())
    if not leaves:
        return
    for mine, eager in zip(torch.autograd.grad(compiled(), leaves, allow_unused=True),
                           torch.autograd.grad(function(), leaves, allow_unused=True), strict=True):
        if eager is not None:
            torch.testing.assert_close(mine, eager)
    if "_bwd-" in repr(case):
        return
    # PyTorch itself lacks double backward of compiled functions: the day it works, this test says so.
    with torch._functorch.config.patch(donated_buffer=False), pytest.raises(RuntimeError, match=NO_DOUBLE):
        torch._dynamo.reset()
        gradients = torch.autograd.grad(compiled(), leaves, create_graph=True, allow_unused=True)
        sum(g.square().sum() for g in gradients if g is not None).backward()


def as_list(outputs) -> list:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@pytest.mark.parametrize(("backend", "case"), TINY, ids=name)
def test_vmap(backend, case):
    inputs = cast(case.inputs(generator()), case, torch.float32)
    first = (case.differentiable or list(inputs))[0]
    stack = torch.stack([inputs[first].detach(), 2 * inputs[first].detach()])
    one = lambda x: case.op(*(inputs | {first: x}).values(), backend)  # noqa: E731
    with torch.no_grad():
        mapped, looped = as_list(torch.vmap(one)(stack)), [as_list(one(x)) for x in stack]
    for mine, column in zip(mapped, zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(mine, torch.stack(column))


@pytest.mark.parametrize(("backend", "case"), TINY, ids=name)
def test_autocast_runs_in_float32(backend, case):
    """bfloat16 inputs, as layers before an operator leave them under autocast, are taken to float32 and no further."""
    rounded = cast(case.inputs(generator()), case, torch.bfloat16)
    exact = {k: v.float() if isinstance(v, torch.Tensor) and v.dtype == torch.bfloat16 else v
             for k, v in rounded.items()}
    with torch.no_grad():
        expected = as_list(case.op(*exact.values(), backend))
        with torch.autocast("cpu", torch.bfloat16):
            mine = as_list(case.op(*rounded.values(), backend))
    for x, y in zip(mine, expected, strict=True):
        assert x.dtype == (torch.float32 if x.is_floating_point() else y.dtype) and torch.equal(x, y)
