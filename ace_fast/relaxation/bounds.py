"""Bounds on the weights of the unconstrained branches: assumption 1 of ACE's theorems, kept by projection."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .gammas import in_range

KINDS = ("none", "spectral", "frobenius")
WARM_UP = 64  # power iterations at the start, when the vectors know nothing yet
TINY = 1e-12  # keeps the vector of a zero matrix, and a zero norm from dividing


def branch_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices of `model`'s branches: those among `model.branch_parameters()` where it has that method,
    otherwise the `weight`s below submodules named `lin_noneq*` (SEGNN's) or `*_nonequiv` (the vector neurons') and
    those of `RelaxedLinear` layers."""
    if hasattr(model, "branch_parameters"):
        return [w for w in model.branch_parameters() if w.dim() == 2]
    found = []
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        # by name, because ace_fast.nn imports the layers of every model
        inside = any(part.startswith("lin_noneq") or part.endswith("_nonequiv") for part in name.split("."))
        if weight is not None and weight.dim() == 2 and (inside or type(module).__name__ == "RelaxedLinear"):
            found.append(weight)
    return list({id(w): w for w in found}.values())


class Bound:
    r"""Projects matrices onto a ball after each optimiser step, W <- W min(1, limit / norm(W)).

    A projection, and no parametrization as torch.nn.utils.parametrizations.spectral_norm: the weights keep their names,
    so checkpoints of the original code load; the forward pass and the graph hold nothing new; and a matrix inside the
    ball is left alone, while the parametrization also blows small ones up to norm 1. The spectral norm comes from one
    step of power iteration a call, started from the last vectors. It never exceeds the true norm; it lies below by what
    the weights moved since, and by about 1 % for fresh random matrices, whose leading singular values lie together.
    A projection is 9 calls of torch's operators for Frobenius norms, and 21 and three a matrix for spectral ones; none
    waits for the device.

    Args:
        weights: matrices [O, I]; changed in place.
        kind: "spectral" (largest singular value) or "frobenius".
        limit: radius of the ball, dimensionless.

    Raises:
        ValueError: unknown kind, no weights, weights that are no matrices, a limit that is not positive.

    Source: ACE (Manolache et al. 2025), assumption 1 of Theorems 4.1 and 4.2.
    """

    def __init__(self, weights: Iterable[Tensor], kind: str = "spectral", limit: float = 1.0):
        self.weights = list(weights)
        if kind not in KINDS[1:]:
            raise ValueError(f"Bound: kind must be one of {list(KINDS[1:])}, got {kind!r}")
        if not in_range(limit, above=0):
            raise ValueError(f"Bound: limit must be positive and finite, got {limit!r}")
        if not self.weights:
            raise ValueError("Bound: weights must be the matrices of the branches, got none; name them with branches=, "
                             "or take bound='none'")
        for w in self.weights:
            if w.dim() != 2:
                raise ValueError(f"Bound: weights must be matrices [O, I], got {list(w.shape)}")
        self.kind, self.limit = kind, float(limit)
        self.vectors = self.weights[0].new_empty(0)  # u of every matrix, one after the other [sum of O]
        if kind == "spectral":
            rows = sum(w.shape[0] for w in self.weights)
            # own generator: asking for a bound does not change the user's random numbers
            drawn = torch.randn(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            self.vectors = drawn.to(self.weights[0])
            with torch.no_grad():
                for _ in range(WARM_UP):
                    self._spectral_norms()

    @torch.no_grad()
    def project(self) -> Tensor:
        """Scales down every matrix outside the ball; returns the norms before, [number of matrices], unsynchronised."""
        norms = self._spectral_norms() if self.kind == "spectral" else torch.stack(torch._foreach_norm(self.weights))
        scales = torch.where(norms > self.limit, self.limit / norms, 1.0)
        torch._foreach_mul_(self.weights, list(scales.unbind()))
        return norms

    def _spectral_norms(self) -> Tensor:
        """|W v| for v = W^T u normalised, [number of matrices]; the vectors u move on to W v normalised.

        Matrix by matrix: a batched product of stacked copies is slower, matrix-vector products are bound by reading.
        """
        first = self.weights[0]
        if self.vectors.device != first.device or self.vectors.dtype != first.dtype:
            self.vectors = self.vectors.to(first)
        us = self.vectors.split([w.shape[0] for w in self.weights])
        vs = [torch.mv(w.t(), u) for w, u in zip(self.weights, us, strict=True)]
        torch._foreach_div_(vs, list(torch.stack(torch._foreach_norm(vs)).clamp_(min=TINY).unbind()))
        images = [torch.mv(w, v) for w, v in zip(self.weights, vs, strict=True)]
        norms = torch.stack(torch._foreach_norm(images))
        torch._foreach_add_(images, us, alpha=TINY)
        torch._foreach_div_(images, torch._foreach_norm(images))
        # weights that were NaN once must not leave the bound blind after the user restored them
        self.vectors.copy_(torch.cat(images).nan_to_num_(1, 1, 1))
        return norms
