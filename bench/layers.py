"""What the layer workloads share: one vector-neuron layer on given neighbours, forward or forward and backward.

eager     the original's layer on edge tensors [B, 2C, 3, N, K] (or [B, C, 3, N]), then the mean over neighbours
compiled  the same under torch.compile
fast      ace_fast.nn's layer

All are relaxed and in training mode. A case is IN_OUT_BxN, with _kK for other than 20 neighbours and _forward for the
forward pass alone. Each version gets the features in the layout that its own layers return.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import gate, steps
from .gate import Numbers
from .steps import Variant

TIMING = {"budget_s": 20.0, "warmup": 2}


class Spec(NamedTuple):
    """What the name of a case says."""

    inner: int
    outer: int
    clouds: int
    points: int
    k: int
    backward: bool


class Data(NamedTuple):
    """One layer's inputs and weights."""

    spec: Spec
    make: Callable[[str, Spec], nn.Module]  # the "eager" or the "fast" layer, called with x and neighbours
    x: Tensor  # [B, N, 3, C]
    neighbours: Tensor  # [B, N, K]
    cotangent: Tensor  # [B, O, 3, N]
    gamma_shape: tuple[int, ...]  # one gamma a point, in the eager layer's layout
    state: dict[str, Tensor]
    sizes: dict[str, int]
    prepare_ms: float = 0.0


def parse(workload: str, case: str, example: str) -> Spec:
    """IN_OUT_BxN[_kK][_forward] -> Spec."""
    found = re.fullmatch(r"(\d+)_(\d+)_(\d+)x(\d+)(?:_k(\d+))?(_forward)?", case)
    numbers = [int(n or 20) for n in found.groups()[:5]] if found else [0]
    if min(numbers) < 1 or numbers[4] > numbers[3]:
        raise ValueError(f"{workload}: the case must be IN_OUT_BxN[_kK][_forward] with K <= N, as in {example}, "
                         f"got {case!r}")
    return Spec(*numbers, backward=not found[6])


def load(spec: Spec, make: Callable, channels: int, on_edges: bool, device: str, dtype: torch.dtype) -> Data:
    """Random features with `channels` channels and random neighbours; `on_edges`: where the eager layer works."""
    g = torch.Generator().manual_seed(0)
    b, n = spec.clouds, spec.points
    x = torch.randn(b, n, 3, channels, generator=g).to(device, dtype)
    neighbours = torch.randint(0, n, (b, n, spec.k), generator=g).to(device)
    cotangent = torch.randn(b, n, 3, spec.outer, generator=g).to(device, dtype).permute(0, 3, 2, 1)
    vectors = n * spec.k if on_edges else n
    clouds = steps.gate_clouds(b, vectors, max(channels, spec.outer), device)
    sizes = {"clouds": b, "points": n, "vectors": b * vectors, "gate_clouds": clouds}
    shape = (clouds, 1, 1, n, 1)[:5 if on_edges else 4]
    return Data(spec, make, x, neighbours, cotangent, shape, steps.state_of(lambda: make("fast", spec)), sizes)


def _build(name: str, data: Data, dtype: torch.dtype | None = None) -> nn.Module:
    kind = "fast" if name == "fast" else "eager"
    return steps.build(lambda: data.make(kind, data.spec), dtype or data.x.dtype, data.state, str(data.x.device))


def _inputs(name: str, data: Data, clouds: int, dtype: torch.dtype | None = None) -> list[Tensor]:
    """x [B, C, 3, N] that requires grad, neighbours, cotangent."""
    x = data.x[:clouds].to(dtype or data.x.dtype).permute(0, 3, 2, 1)
    x = (x if name == "fast" else x.contiguous()).detach().requires_grad_()
    return [x, data.neighbours[:clouds], data.cotangent[:clouds].to(x.dtype)]


def variant(name: str, data: Data) -> Variant:
    """"eager", "compiled" or "fast"."""
    layer = _build(name, data)
    call = steps.compiled(layer) if name == "compiled" else layer
    x, neighbours, cotangent = _inputs(name, data, data.spec.clouds)
    parameters = list(layer.parameters())

    def forward() -> Tensor:
        with torch.no_grad():
            return call(x, neighbours)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(x, neighbours), [x, *parameters], cotangent)

    clouds = data.sizes["gate_clouds"]
    return Variant(both if data.spec.backward else forward,
                   lambda: _numbers(layer, call, *_inputs(name, data, clouds), data.spec.backward))


def _numbers(layer: nn.Module, call: Callable, x: Tensor, neighbours: Tensor, cotangent: Tensor,
             backward: bool) -> Numbers:
    if not backward:
        with torch.no_grad():
            return {"output": call(x, neighbours)}
    output = call(x, neighbours)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    grads = torch.autograd.grad(output, [x, *parameters], cotangent)
    found = {f"gradient of {n}": g for n, g in zip(("x", *names), grads, strict=True)}
    return {"output": output.detach()} | found


def judge(data: Data, eager: Numbers) -> gate.Judge:
    """Eager in float64 on the same tensors, with the rule for kinks on the gradients."""

    def numbers(dtype: torch.dtype) -> Numbers:
        layer = _build("eager", data, dtype)
        inputs = _inputs("eager", data, data.sizes["gate_clouds"], dtype)
        return _numbers(layer, layer, *inputs, data.spec.backward)

    single = eager if data.x.dtype == torch.float32 else numbers(torch.float32)
    terms = data.sizes["gate_clouds"] * data.spec.points
    return gate.kinked(numbers(torch.float64), single, data.x.dtype, _gamma_sizes(data), terms)


def _gamma_sizes(data: Data) -> dict[str, float]:
    """The gammas' gradients are sums over all edges; their terms, summed by point."""
    if not data.spec.backward:
        return {}
    layer = _build("eager", data, torch.float64)
    x, neighbours, cotangent = _inputs("eager", data, data.sizes["gate_clouds"], torch.float64)
    loss_of = lambda call: (x, (call(x, neighbours) * cotangent).sum())  # noqa: E731
    return steps.gamma_sizes(layer, loss_of, lambda name: data.gamma_shape)
