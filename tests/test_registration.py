"""What torch.library promises for a registered operator: opcheck, gradcheck, full-graph compile, clear limits."""

import importlib

import pytest
import torch

from ace_fast.backend import available
from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import cast, generator

SMALL = [
    (backend, case)
    for room in ROOMS
    for backend, reason in available("cpu")[room].items()
    if not reason
    for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL
    if case.name in ("tiny", "odd", "empty")
]
TINY = [(backend, case) for backend, case in SMALL if case.name == "tiny"]
DIFFERENTIABLE = [(backend, case) for backend, case in TINY if case.differentiable]


def name(value):
    return repr(value) if hasattr(value, "op") else value


@pytest.mark.parametrize(("backend", "case"), SMALL, ids=name)
def test_opcheck(backend, case):
    inputs = cast(case.inputs(generator()), case, torch.float32)
    torch.library.opcheck(case.op, (*inputs.values(), backend))


@pytest.mark.parametrize(("backend", "case"), DIFFERENTIABLE, ids=name)
def test_gradcheck(backend, case):
    inputs = cast(case.inputs(generator()), case, torch.float64)
    names = [n for n in case.differentiable if inputs[n] is not None]

    def function(*leaves):
        out = case.op(*(inputs | dict(zip(names, leaves, strict=True))).values(), backend)
        return out if isinstance(out, torch.Tensor) else tuple(o for o in out if o.requires_grad)

    leaves = [inputs[n] for n in names]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


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
    # PyTorch itself lacks double backward of compiled functions: the day it works, this test says so.
    with torch._functorch.config.patch(donated_buffer=False), pytest.raises(RuntimeError, match="double backward"):
        torch._dynamo.reset()
        gradients = torch.autograd.grad(compiled(), leaves, create_graph=True, allow_unused=True)
        sum(g.square().sum() for g in gradients if g is not None).backward()


@pytest.mark.parametrize(("backend", "case"), TINY, ids=name)
def test_vmap_and_autocast(backend, case):
    inputs = cast(case.inputs(generator()), case, torch.float32)
    first = (case.differentiable or list(inputs))[0]
    stack = torch.stack([inputs[first].detach(), 2 * inputs[first].detach()])
    with torch.no_grad():
        one = lambda x: case.op(*(inputs | {first: x}).values(), backend)  # noqa: E731
        mapped = torch.vmap(one)(stack)
        looped = [one(x) for x in stack]
        with torch.autocast("cpu", torch.bfloat16):
            cast_back = case.op(*inputs.values(), backend)
    as_list = lambda y: [y] if isinstance(y, torch.Tensor) else list(y)  # noqa: E731
    for i, column in enumerate(zip(*map(as_list, looped), strict=True)):
        torch.testing.assert_close(as_list(mapped)[i], torch.stack(column))
    assert all(y.dtype != torch.bfloat16 for y in as_list(cast_back))
