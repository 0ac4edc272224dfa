"""REMUL: the loss on turned copies of the data is the only force towards symmetry."""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .decider import Decider
from .gammas import in_range

BALANCES = ("constant", "gradnorm")


class Remul(Decider):
    r"""Learns symmetry as a second task: the loss of turned inputs against turned targets.

    .. math:: L = \alpha\, \ell(f(x), y) + \beta\, \ell(f(g x), g y), \qquad g \text{ random, one a sample}

    `penalty(loss, turned)` returns (alpha - 1) loss + beta turned(), to be added to the loss. The branches belong to
    the trained model; the gammas stay at `gamma`. With balance "gradnorm" alpha and beta follow GradNorm: both tasks'
    gradients in `shared` are to have norms in proportion to (their loss over its first value)^exponent, and alpha +
    beta keeps its sum.

    Args:
        model: relaxed.
        beta: of the turned copies; alpha begins at 1.
        balance: "constant" or "gradnorm".
        exponent, lr: GradNorm's, and the step size of alpha and beta.
        shared: parameters whose gradients are balanced; default: the last weights of the model, which cost
            next to nothing.
        gamma: value of all gates.

    Attributes:
        kept: True, the branches are part of the trained model.

    Raises:
        ValueError: no gammas, gates that networks compute, numbers out of range, a penalty without loss or `turned`.

    Source: Elhag et al. 2024 (REMUL); Chen et al. 2018 (GradNorm), Algorithm 1.
    """

    kept = True

    def __init__(self, model: nn.Module, *, beta: float = 1.0, balance: str = "constant", exponent: float = 1.5,
                 lr: float = 0.025, shared: Iterable[nn.Parameter] | None = None, gamma: float = 1.0):
        if balance not in BALANCES:
            raise ValueError(f"Remul: balance must be one of {list(BALANCES)}, got {balance!r}")
        for name, value in (("beta", beta), ("lr", lr)):
            if not in_range(value, above=0):
                raise ValueError(f"Remul: {name} must be positive and finite, got {value!r}")
        super().__init__(model, gamma)
        self.balance, self.exponent, self.lr = balance, exponent, lr
        weights = [p for p in self.primal_parameters() if p.requires_grad and p.numel() > 1]
        self._shared = weights[-1:] if shared is None else list(shared)
        like = self._gammas[0].detach()
        self._weights = torch.tensor([1.0, beta], dtype=like.dtype, device=like.device)  # alpha, beta
        self._first = like.new_zeros(2)  # both losses at the first step
        self._latest = like.new_zeros(2)

    def penalty(self, loss: Tensor | None = None, turned: Callable[[], Tensor] | None = None) -> Tensor:
        """(alpha - 1) loss + beta turned().

        Raises:
            ValueError: loss or turned is missing.
        """
        if loss is None or turned is None:
            raise ValueError("Remul: penalty must get the loss and a function for the loss of turned data, got "
                             f"{'no loss' if loss is None else 'no function'}; call penalty(loss, turned)")
        losses = torch.stack([loss, turned().to(loss)])
        self._latest = losses.detach().to(self._weights)
        if self.balance == "gradnorm":
            self._rebalance(losses)
        alpha, beta = self._weights.to(loss)
        return (alpha - 1) * losses[0] + beta * losses[1]

    def _rebalance(self, losses: Tensor) -> None:
        """One step of GradNorm on alpha and beta, on the device."""
        grads = [torch.autograd.grad(x, self._shared, retain_graph=True, allow_unused=True) for x in losses]
        norms = torch.stack([_norm(g, self._weights) for g in grads])
        with torch.no_grad():
            self._latest, norms = _mean_of_all(torch.stack([self._latest, norms]))
            self._first = torch.where(self._first == 0, self._latest, self._first)
            rate = self._latest / self._first
            target = (self._weights * norms).mean() * (rate / rate.mean()) ** self.exponent
            total = self._weights.sum()
            new = self._weights - self.lr * torch.sign(self._weights * norms - target) * norms
            new = new.clamp(min=1e-3 * total)
            self._weights = new * total / new.sum()

    def metrics(self) -> dict[str, Tensor]:
        """gammas [n], weights (alpha, beta) and losses (plain, turned) of the last penalty."""
        return super().metrics() | {"weights": self._weights.clone(), "losses": self._latest.clone()}

    def state_dict(self) -> dict:
        return super().state_dict() | {"balance": self.balance, "weights": self._weights.clone(),
                                       "first": self._first.clone()}


def _mean_of_all(x: Tensor) -> Tensor:
    """The mean over processes, so that all of them weigh alike."""
    if dist.is_available() and dist.is_initialized() and (count := dist.get_world_size()) > 1:
        dist.all_reduce(x)
        x = x / count
    return x


def _norm(grads: tuple[Tensor | None, ...], like: Tensor) -> Tensor:
    """Euclidean norm of the gradients that there are."""
    found = [g.detach().norm() for g in grads if g is not None]
    return torch.stack(found).norm().to(like) if found else like.new_zeros(())
