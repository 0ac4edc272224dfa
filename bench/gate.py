"""Nothing wrong is timed: values and gradients against the float64 reference, on the very tensors that are timed.

For every tensor: max|mine - gold| <= 2 max|eager - gold| + 16 eps max|gold|, where gold is the reference in float64 and
eager the reference in the dtype; in float64, which has nothing above it, eager's rounding is float32's scaled by the
two epsilons. A scalar gradient is a long sum, so its size is the sum of the absolute values of its terms.

Where a model has kinks (`kinked`), its gradients jump at a change of sign, and rounding decides the sign of about a
fraction eps of its scalar products, in the reference and in what is judged, but not of the same ones. Where a fraction
eps of all terms is wholly different, that is sqrt(eps) in Euclidean norm, so there gradients are held to
|mine - gold|_2 <= 2 |eager - gold|_2 + 4 sqrt(eps) |gold|_2, a scalar gradient of n terms to the rule above plus
4 sqrt(eps / n) of its size. Values do not jump and keep the rule above.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Numbers = dict[str, Tensor]
Judge = Callable[[str, Numbers], tuple[str, float]]  # (version, its numbers) -> what `verdict` returns


def limits(
    gold: Numbers, single: Numbers | list[Numbers], dtype: torch.dtype, sizes: dict[str, float] | None = None,
    own: torch.dtype = torch.float32,
) -> dict[str, float]:
    """The largest error that each tensor may have.

    Args:
        gold: float64 results by name.
        single: the reference's results in `own`; of several runs that differ in rounding, the worst counts.
        dtype: of the results to be judged.
        sizes: name -> size, where max|gold| says too little.
        own: the precision of `single`.
    """
    eps, eps_single = torch.finfo(dtype).eps, torch.finfo(own).eps
    found = {}
    for name, x in gold.items():
        error = max((run[name].double() - x).abs().max().item() if x.numel() else 0.0 for run in _runs(single))
        size = max((sizes or {}).get(name, 0.0), x.abs().max().item() if x.numel() else 0.0)
        found[name] = 2 * error * eps / eps_single + 16 * eps * size
    return found


def _runs(single: Numbers | list[Numbers]) -> list[Numbers]:
    return [single] if isinstance(single, dict) else single


def verdict(
    mine: Numbers, gold: Numbers, limit: dict[str, float], sizes: dict[str, float] | None = None
) -> tuple[str, float]:
    """(why `mine` is wrong or "", the largest error relative to the size of its tensor)."""
    worst = 0.0
    for name, x in gold.items():
        if name not in mine or mine[name].shape != x.shape:
            return f"{name} must be {list(x.shape)}, got {list(mine[name].shape) if name in mine else None}", worst
        if not x.numel():
            continue
        error = (mine[name].double() - x).abs().max().item()
        # written so that NaN fails
        if not error <= limit[name]:
            return f"{name} is wrong: error {error:.3g} > {limit[name]:.3g}", worst
        worst = max(worst, error / max(x.abs().max().item(), (sizes or {}).get(name, 0.0), 1e-300))
    return "", worst


def judge(
    gold: Numbers, single: Numbers | list[Numbers], dtype: torch.dtype, sizes: dict[str, float] | None = None,
    own: torch.dtype = torch.float32, allowed: dict[str, float] | None = None,
) -> Judge:
    """The rule above for every version alike; `allowed`: beginning of a name -> relative error of an approximation."""
    limit = limits(gold, single, dtype, sizes, own)
    for start, error in (allowed or {}).items():
        for name in (n for n in gold if n.startswith(start)):
            limit[name] += error * gold[name].abs().max().item()
    return lambda name, mine: verdict(mine, gold, limit, sizes)


def kinked(
    gold: Numbers, single: Numbers | list[Numbers], dtype: torch.dtype, sizes: dict[str, float], terms: int,
    own: torch.dtype = torch.float32,
) -> Judge:
    """The rules for models with kinks; gradients in `sizes` are sums of `terms` terms."""
    eps = torch.finfo(dtype).eps
    gradients_ = {name for name in gold if name.startswith("gradient")}
    jumps = sorted(gradients_ - sizes.keys())
    rest = {name: x for name, x in gold.items() if name not in jumps}
    limit = limits(rest, single, dtype, sizes, own)
    for name in gradients_ & sizes.keys():
        limit[name] += 4 * math.sqrt(eps / terms) * sizes[name]
    eager = {n: max(relative(run, gold, n) for run in _runs(single)) for n in jumps}
    most = {n: 2 * x * eps / torch.finfo(own).eps + 4 * math.sqrt(eps) for n, x in eager.items()}

    def of(name: str, mine: Numbers) -> tuple[str, float]:
        error, worst = verdict(mine, rest, limit, sizes)
        found = {n: relative(mine, gold, n) for n in jumps}
        wrong = [n for n in jumps if not found[n] <= most[n]]
        if wrong and not error:
            error = f"{wrong[0]} is wrong: relative error {found[wrong[0]]:.3g} > {most[wrong[0]]:.3g}"
        return error, max(worst, *found.values()) if found else worst

    return of


def relative(mine: Numbers, gold: Numbers, name: str) -> float:
    """|mine - gold|_2 / |gold|_2 of one tensor; NaN where it is missing or misshapen."""
    x = gold[name].double()
    if name not in mine or mine[name].shape != x.shape:
        return math.nan
    return (mine[name].double() - x).norm().item() / max(x.norm().item(), 1e-300)


def gradients(function, inputs: dict, names: tuple[str, ...]) -> Numbers:
    """Outputs of `function(**inputs)` and the gradients of <c, outputs> with respect to `names`; c is fixed."""
    outputs = function(**inputs)
    outputs = [o for o in ([outputs] if isinstance(outputs, Tensor) else outputs) if o.is_floating_point()]
    found = {f"output {i}": o for i, o in enumerate(outputs)}
    leaves = {n: inputs[n] for n in names if isinstance(inputs[n], Tensor)}
    pairs = [(o, c) for o, c in zip(outputs, cotangents(outputs), strict=True) if o.requires_grad]
    if pairs and leaves:
        ys, cs = zip(*pairs, strict=True)
        grads = torch.autograd.grad(ys, list(leaves.values()), cs, materialize_grads=True)
        found |= {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}
    return {name: x.detach() for name, x in found.items()}


def cotangents(outputs: list[Tensor]) -> list[Tensor]:
    """Fixed random tensors like `outputs`, the same numbers in every dtype and on every device."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o) for o in outputs]
