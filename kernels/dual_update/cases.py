"""Inputs of dual_update. It has no derivatives and no sums, so there is no case `long_sum`."""

import torch

from ..cases import DECADES, Axis, Case
from . import reference
from .op import dual_update_op
from .reference import ROWS, Rule


def _case(name: str, note: str, n: int, rule: Rule, odd_values: bool = False) -> Case:
    def make(g: torch.Generator) -> dict:
        draw = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
        gamma, grad, multiplier, slack = (draw(n) for _ in range(4))
        if rule.resilient or rule.epsilon or rule.repo_clamp:
            multiplier, slack = multiplier.abs(), slack.abs()
        moments = draw(len(ROWS), n)
        moments[[1, 3, 5]] = moments[[1, 3, 5]].abs()
        moments[6:8] = 0.5 + 0.1 * torch.rand(2, n, generator=g, dtype=torch.float64)
        moments[8] = 0
        if odd_values:
            gamma[0] = 0
            grad[1], grad[2] = torch.inf, -torch.inf
        return dict(gamma=gamma, grad=grad, multiplier=multiplier, slack=slack, moments=moments, **rule._asdict())

    return Case(name, dual_update_op, reference.forward, make, (), note)


_PAPER = Rule(lr=0.1, dual_lr=0.2, slack_lr=0.3)
_ADAM = _PAPER._replace(adam=True, dual_adam=True, augmentation=0.7, dual_eps=1e-4)
_RESILIENT = _PAPER._replace(resilient=True, rho=2.0)
SMALL = [
    _case("tiny", "Algorithm 1 on two gammas", 2, _PAPER),
    _case("odd", "Adam for both, augmented, 13 gammas", 13, _ADAM),
    _case("both_branches", "Algorithm 2, several blocks; lambda clamped or not; gamma 0; infinite gradients",
          301, _RESILIENT._replace(augmentation=0.5), odd_values=True),
    _case("resilient_adam", "Algorithm 2 with Adam and a band", 37, _RESILIENT._replace(adam=True, epsilon=0.1)),
    _case("epsilon", "a band of half width 0.5, dual Adam", 37, _PAPER._replace(epsilon=0.5, dual_adam=True)),
    _case("repo_resilient", "the SEGNN code's resilient gradients", 37,
          _RESILIENT._replace(repo_resilient=True, adam=True, augmentation=0.5)),
    _case("repo_scale", "lambda / n in the primal", 14, _PAPER._replace(repo_scale=True)),
    _case("repo_clamp", "equality with lambda >= 0, plain for gamma, Adam for lambda", 12,
          _PAPER._replace(repo_clamp=True, dual_adam=True)),
    _case("empty", "no gammas", 0, _ADAM._replace(repo_scale=True)),
]
LARGE = [
    _case("segnn_nbody", "8 gammas: the launch is the cost", 8, Rule(lr=5e-3, dual_lr=5e-3, augmentation=1.0)),
    _case("per_channel", "4096 gammas, resilient with Adam", 4096, _RESILIENT._replace(adam=True, dual_adam=True)),
]

SCALING = [Axis("channels", DECADES[:4], lambda n: _case(f"channels_{n}", "a gamma a channel", n, _RESILIENT))]
