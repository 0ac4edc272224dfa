"""Residual pathway priors: the branch is kept small by a Gaussian prior, not by a constraint."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .branches import find_branches, shrink
from .decider import Decider
from .gammas import in_range


class ResidualPrior(Decider):
    r"""Gaussian priors on the weights of the equivariant maps (wide) and of the branches (narrow).

    .. math:: \mathrm{penalty} = \mathrm{branch}\, \sum \|W_b\|^2 + \mathrm{equivariant}\, \sum \|W_e\|^2

    The branches belong to the trained model; the gammas stay at `gamma`.

    Args:
        model: relaxed.
        branch: precision of the prior on the branches' weights W_b, per unit of the loss (the published code has 1e-2
            on UCI and CIFAR).
        equivariant: that of all other weights W_e (there 1e-4). Biases, norms and other parameters of one number a
            channel are left out.
        initial: factor on the last map of every branch, which then begins close to zero. Applied here: load a
            checkpoint afterwards.
        gamma: value of all gates.

    Attributes:
        kept: True, the branches are part of the trained model.

    Raises:
        ValueError: no gammas or branches, gates that networks compute, maps whose norm is fixed, numbers out of range.

    Source: Finzi et al. 2021 (RPP).
    """

    kept = True

    def __init__(self, model: nn.Module, *, branch: float = 1e-4, equivariant: float = 1e-6, initial: float = 1e-3,
                 gamma: float = 1.0):
        for name, value in (("branch", branch), ("equivariant", equivariant), ("initial", initial)):
            if not in_range(value, 0):
                raise ValueError(f"ResidualPrior: {name} must be at least 0 and finite, got {value!r}")
        branches = find_branches(model, "ResidualPrior")
        super().__init__(model, gamma)
        self.branch, self.equivariant = branch, equivariant
        maps = {id(m): m for b in branches for m in b.maps}.values()
        self._branches = [m.weight for m in maps]
        inside = {id(p) for m in maps for p in m.parameters()}
        self._others = [p for name, p in model.named_parameters()
                        if name.rsplit(".")[-1].startswith("weight") and p.requires_grad and id(p) not in inside]
        shrink(branches, initial)

    def penalty(self, loss: Tensor | None = None, turned: Callable[[], Tensor] | None = None) -> Tensor:
        """The negative logarithm of the priors, up to a constant."""
        sums = [torch.stack(torch._foreach_norm(weights)).square().sum() if weights else 0.0
                for weights in (self._branches, self._others)]
        return self.branch * sums[0] + self.equivariant * sums[1]

    def metrics(self) -> dict[str, Tensor]:
        """gammas [n] and norms: of the branches' and of the other weights."""
        with torch.no_grad():
            norms = [torch.stack(torch._foreach_norm(weights)).norm() if weights else self.gammas.new_zeros(())
                     for weights in (self._branches, self._others)]
        return super().metrics() | {"norms": torch.stack(norms)}
