"""Nothing wrong is timed: values and gradients against the float64 reference, on the very tensors that are timed.

For every tensor: max|mine - gold| <= 2 max|eager - gold| + 16 eps max|gold|, where gold is the reference in float64 and
eager the reference in the dtype; in float64, which has nothing above it, eager's rounding is float32's scaled by the
two epsilons. A scalar gradient is a long sum, so its size is the sum of the absolute values of its terms.
"""

import torch
from torch import Tensor

Numbers = dict[str, Tensor]


def limits(
    gold: Numbers, single: Numbers, dtype: torch.dtype, sizes: dict[str, float] | None = None
) -> dict[str, float]:
    """The largest error that each tensor may have.

    Args:
        gold: float64 results by name.
        single: the reference's results in float32.
        dtype: of the results to be judged.
        sizes: name -> size, where max|gold| says too little.
    """
    eps, eps_single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    found = {}
    for name, x in gold.items():
        own = (single[name].double() - x).abs().max().item() if x.numel() else 0.0
        size = max((sizes or {}).get(name, 0.0), x.abs().max().item() if x.numel() else 0.0)
        found[name] = 2 * own * eps / eps_single + 16 * eps * size
    return found


def verdict(mine: Numbers, gold: Numbers, limit: dict[str, float]) -> tuple[str, float]:
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
        worst = max(worst, error / max(x.abs().max().item(), 1e-300))
    return "", worst


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
