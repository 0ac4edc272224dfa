"""Workload `modelnet_vndgcnn`: one optimiser step of ACE-VN-DGCNN, cases cloudsBxN (B clouds of N points).

20 neighbours, 40 classes, relaxed, mean pooling; forward in training mode, label-smoothing cross entropy, backward, SGD
without momentum, dual step. Clouds are solids that the package generates (10 of the 40 classes occur), turned at
random. Dropout is 0 in all versions, so that their numbers can be compared.

eager     the original's structure: N x N distances and topk, edge tensors, unconstrained maps on copies of them, SGD
          on all parameters, the original's loop over gammas and SGD on the multipliers
compiled  the same under torch.compile
fast      ace_fast.models.VNDGCNN, ace_fast.ACE with the paper's ascent, SGD(fused=True)
strict    the same model built without branches, without ACE
branches_off      the relaxed model with its branches switched off by the Python flag, without ACE; it makes as many
          operator calls as strict (`*_calls`)

The gate compares eager and fast on the same neighbours (those that fast chooses in float64), and what fast chooses in
this dtype with the nearest in its own features. Gradients follow the rule for kinks (bench/gate.py). Eager's rounding
is the worst of DRAWS runs whose inputs and weights differ by rounding: batch norms of few clouds make that of one run a
matter of luck. For the same reason a version whose gradients fail is judged on those inputs too: one sign or one
maximum in the head that rounding decides does not repeat, a wrong kernel does. Where eager in float64 would not fit in
memory, all are compared on the first `gate_clouds` clouds. The compiled version cannot be given neighbours without
changing its graph: it must agree with eager to 1 % on outputs and loss and to 10 % on each gradient, each with its own
neighbours, on all clouds.
"""

import re
import time
from typing import NamedTuple

import torch
from torch import Tensor

from ace_fast.data import generated_shapes, rotate
from ace_fast.models import VNDGCNN
from ace_fast.relaxation import ACE

from . import gate, steps
from .eager_vn import EagerVNDGCNN, smoothed_loss
from .gate import Numbers
from .neighbours import Neighbours, excess
from .steps import Variant

CASES = ("clouds8x300", "clouds4x1024")
GPU_CASES = ("clouds32x300", "clouds32x1024")
QUICK = "clouds2x64"
EXTRAS, GPU_EXTRAS = ("strict", "branches_off"), ()
TIMING = {"burst": 2, "warmup": 1, "budget_s": 120.0}
K, CLASSES = 20, 40
DRAWS = 3
LR, DUAL_LR = 0.1, 1e-4
EDGE_LAYERS = {"conv1": 21, "conv2": 21, "conv3": 42, "conv4": 85}
VALUES, GRADIENTS = 0.01, 0.1  # how near the compiled version must be, with neighbours of its own


class Data(NamedTuple):
    """One batch and the weights that all models start from."""

    x: Tensor  # [B, 3, N]
    target: Tensor  # [B]
    state: dict[str, Tensor]  # float32 parameters by the original's names
    chosen: dict[bool, list[Tensor]]  # relaxed -> the gate's neighbours, once they are known
    prepare_ms: float
    sizes: dict[str, int]


def load(case: str, device: str, dtype: torch.dtype) -> Data:
    """The case's batch and weights, the same in every process."""
    found = re.fullmatch(r"clouds(\d+)x(\d+)", case)
    b, n = map(int, found.groups()) if found else (0, 0)
    if b < 2 or n < K:
        raise ValueError(f"modelnet_vndgcnn: the case must be cloudsBxN with B >= 2 clouds of N >= {K} points, as in "
                         f"{', '.join(CASES)}, got {case!r}")
    start = time.perf_counter()
    shapes = generated_shapes("train", per_class=-(-b // 10), points=n)
    order = torch.arange(b) % 10 * (len(shapes.points) // 10) + torch.arange(b) // 10  # one of each class in turn
    points = rotate(shapes.points[order], "so3", torch.Generator().manual_seed(0))
    x = points.transpose(1, 2).contiguous().to(device, dtype)
    prepare_ms = 1e3 * (time.perf_counter() - start)
    clouds = max(2, steps.gate_clouds(b, n * K, sum(EDGE_LAYERS.values()), device))
    sizes = {"clouds": b, "points": n, "neighbours": K, "gate_clouds": clouds}
    state = steps.state_of(lambda: _model(VNDGCNN, True))
    return Data(x, shapes.labels[order].to(device), state, {}, prepare_ms, sizes)


def _model(kind: type, relaxed: bool) -> torch.nn.Module:
    return kind(CLASSES, K, dropout=0.0, relaxed=relaxed)


def _build(kind: type, data: Data, relaxed: bool, dtype: torch.dtype | None = None) -> torch.nn.Module:
    state = {n: p for n, p in data.state.items() if relaxed or not ("nonequiv" in n or "gammas" in n)}
    return steps.build(lambda: _model(kind, relaxed), dtype or data.x.dtype, state, str(data.x.device))


def _loss(data: Data, clouds: int | None = None, dtype: torch.dtype | None = None) -> steps.LossOf:
    x, target = data.x[:clouds].to(dtype or data.x.dtype), data.target[:clouds]

    def loss_of(call) -> tuple[Tensor, Tensor]:
        logits = call(x)
        return logits, smoothed_loss(logits, target)

    return loss_of


def chosen(data: Data, relaxed: bool) -> list[Tensor]:
    """The neighbours on which the models are compared: those of the fast model in float64."""
    if relaxed not in data.chosen:
        model, clouds = _build(VNDGCNN, data, relaxed, torch.float64), data.sizes["gate_clouds"]
        with Neighbours(clouds) as seen, torch.no_grad():
            model(data.x[:clouds].double())
        data.chosen[relaxed] = seen.found
    return data.chosen[relaxed]


def _numbers(model: torch.nn.Module, data: Data, relaxed: bool, dtype: torch.dtype | None = None) -> Numbers:
    """On the gate's clouds and neighbours."""
    clouds = data.sizes["gate_clouds"]
    with Neighbours(clouds, chosen(data, relaxed)):
        return steps.numbers(model, model, _loss(data, clouds, dtype))


def variant(name: str, data: Data) -> Variant:
    """"eager", "compiled", "fast" or one of EXTRAS."""
    loss_of, relaxed = _loss(data), name != "strict"
    if name in ("eager", "compiled"):
        model = _build(EagerVNDGCNN, data, True)
        call = steps.compiled(model) if name == "compiled" else model
        step = steps.original_step(model, call, loss_of, torch.optim.SGD, LR, DUAL_LR)
        if name == "compiled":
            return Variant(step, lambda: steps.numbers(model, call, loss_of))
        return Variant(step, lambda: _numbers(model, data, True))
    model = _build(VNDGCNN, data, relaxed)
    if name == "branches_off":
        model.set_equivariance(False)
    ace = ACE(model, lr=LR, dual_lr=DUAL_LR) if name == "fast" else None
    step = steps.fast_step(model, loss_of, lambda p: torch.optim.SGD(p, lr=LR, fused=True), ace)
    return Variant(step, lambda: _fast_numbers(model, data, name == "fast"))


def _fast_numbers(model: torch.nn.Module, data: Data, relaxed: bool) -> Numbers:
    clouds = data.sizes["gate_clouds"]
    with Neighbours(clouds) as seen, torch.no_grad():
        model(data.x[:clouds])
    return _numbers(model, data, relaxed) | excess(seen)


def judge(data: Data, eager: Numbers) -> gate.Judge:
    """Eager in float64 on the same tensors, weights and neighbours; strict versions against the strict eager model."""
    rules = {}

    def of(name: str, mine: Numbers) -> tuple[str, float]:
        if name == "compiled":
            return _near(data, mine)
        relaxed = name in ("eager", "fast")
        if relaxed not in rules:
            rules[relaxed] = _rule(data, relaxed, eager if relaxed else None)
        if name == "eager":
            return rules[relaxed](name, mine | _no_excess())
        found = rules[relaxed](name, mine)
        for seed in range(1, DRAWS):
            if not found[0].startswith("gradient"):
                break
            found = rules[relaxed](name, variant(name, _moved(data, relaxed, seed)).check())
        return found

    return of


def _no_excess() -> dict[str, Tensor]:
    return {f"excess of knn {i}": torch.zeros((), dtype=torch.float64) for i in range(4)}


def _rule(data: Data, relaxed: bool, eager: Numbers | None) -> gate.Judge:
    runs = [eager or _numbers(_build(EagerVNDGCNN, data, relaxed), data, relaxed)]
    for seed in range(1, DRAWS):
        moved = _moved(data, relaxed, seed)
        runs.append(_numbers(_build(EagerVNDGCNN, moved, relaxed), moved, relaxed))
    gold, sizes = _gold(data, relaxed)
    sizes |= dict.fromkeys(_no_excess(), 1.0)
    runs = [run | _no_excess() for run in runs]
    terms = data.sizes["gate_clouds"] * data.x.shape[2]
    return gate.kinked(gold | _no_excess(), runs, data.x.dtype, sizes, terms, data.x.dtype)


def _moved(data: Data, relaxed: bool, seed: int) -> Data:
    """The gate's clouds and the weights moved by less than a unit of the last place, and the points in another order:
    what changes besides rounding is less than rounding."""
    g, eps = torch.Generator().manual_seed(seed), torch.finfo(data.x.dtype).eps

    def move(t: Tensor) -> Tensor:
        noise = 1 + eps * (2 * torch.rand(t.shape, generator=g, dtype=torch.float64) - 1)
        return (t.double() * noise.to(t.device)).to(t.dtype if t.dtype == data.x.dtype else torch.float64)

    x = data.x[:data.sizes["gate_clouds"]]
    order = torch.randperm(x.shape[2], generator=g).to(x.device)
    place = order.argsort()
    near = [place[n[:, order]] for n in chosen(data, relaxed)]
    state = {name: move(p) for name, p in data.state.items()}
    return data._replace(x=move(x)[:, :, order], state=state, chosen={relaxed: near})


def _gold(data: Data, relaxed: bool) -> tuple[Numbers, dict[str, float]]:
    """Eager in float64, and sums of absolute terms where a gradient says too little: of the gammas, by point, and of
    the biases before a batch norm, which takes them off again."""
    model = _build(EagerVNDGCNN, data, relaxed, torch.float64)
    clouds, n, sizes = data.sizes["gate_clouds"], data.x.shape[2], {}

    def keep(name):
        def of(module, inputs, output):
            output.register_hook(lambda g: sizes.update({name: g.abs().sum(0).max().item()}))
        return of

    for layer in ("linear1", "linear2"):
        getattr(model, layer).register_forward_hook(keep(f"gradient of {layer}.bias"))
    gold = _numbers(model, data, relaxed, torch.float64)
    shape = lambda name: (clouds, 1, 1, n, 1)[:5 if name[:5] in EDGE_LAYERS else 4]  # noqa: E731
    with Neighbours(clouds, chosen(data, relaxed)):
        return gold, sizes | (steps.gamma_sizes(model, _loss(data, clouds, torch.float64), shape) if relaxed else {})


def _near(data: Data, mine: Numbers) -> tuple[str, float]:
    """The compiled version against eager in the same dtype, each with its own neighbours."""
    model = _build(EagerVNDGCNN, data, True)
    gold, worst = steps.numbers(model, model, _loss(data)), 0.0
    cancelled = {f"gradient of {layer}.bias" for layer in ("linear1", "linear2")}  # rounding alone: batch norm follows
    for name in gold.keys() - cancelled:
        error, limit = gate.relative(mine, gold, name), GRADIENTS if name.startswith("gradient") else VALUES
        if not error <= limit:
            return f"{name} is wrong: relative error {error:.3g} > {limit}", worst
        worst = max(worst, error)
    return "", worst
