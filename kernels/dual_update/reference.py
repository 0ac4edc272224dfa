"""One step of ACE's descent-ascent on all gammas, slacks and multipliers, in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor

# Rows of `moments`: Adam's averages of the gradients of gamma, slack and multiplier and of their squares, the same
# averages of the constant 1 (which are Adam's corrections 1 - beta^t), and how many updates were left out.
ROWS = ("m_gamma", "v_gamma", "m_slack", "v_slack", "m_multiplier", "v_multiplier", "correction1", "correction2",
        "skipped")


class Rule(NamedTuple):
    """How `dual_update` steps. Defaults: the paper's Algorithm 1 with its N-body step sizes."""

    resilient: bool = False  # Algorithm 2: |gamma| <= epsilon + u instead of gamma = 0
    adam: bool = False  # Adam instead of plain descent for gamma and u
    dual_adam: bool = False  # Adam instead of plain ascent for lambda (docs/differences.md, 1)
    repo_resilient: bool = False  # the SEGNN code's resilient gradients (5)
    repo_scale: bool = False  # lambda divided by the number of gammas in the primal gradient only (3)
    repo_clamp: bool = False  # equality with lambda >= 0, what the EGNO code's resilient option does (6)
    lr: float = 9e-4  # eta_p, of gamma
    dual_lr: float = 8e-4  # eta_d, of lambda
    slack_lr: float = 9e-4  # eta_u, of u
    rho: float = 1.0  # weight of |u|^2 / 2
    epsilon: float = 0.0  # half width of the band |gamma| <= epsilon; 0: gamma = 0
    augmentation: float = 0.0  # c, weight of the squared violation (8)
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8  # Adam's, for gamma and u
    dual_eps: float = 1e-8  # Adam's, for lambda (the EGNO code takes 1e-4)


def forward(gamma: Tensor, grad: Tensor, multiplier: Tensor, slack: Tensor, moments: Tensor,
            *values, **fields) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gamma, grad, multiplier, slack [n], moments [9, n] -> gamma, multiplier, slack [n], moments [9, n]."""
    rule = Rule(*values, **fields)
    g_gamma, g_slack, ascent = gradients(gamma, grad, multiplier, slack, rule)
    m1, v1, m2, v2, m3, v3, c1, c2, skipped = moments
    c1, c2 = rule.beta1 * c1 + (1 - rule.beta1), rule.beta2 * c2 + (1 - rule.beta2)

    def averages(m, v, g):
        return rule.beta1 * m + (1 - rule.beta1) * g, rule.beta2 * v + (1 - rule.beta2) * g * g

    def direction(adam, g, m, v, eps):
        return m / c1 / ((v / c2).sqrt() + eps) if adam else g

    (m1, v1), (m2, v2), (m3, v3) = averages(m1, v1, g_gamma), averages(m2, v2, g_slack), averages(m3, v3, -ascent)
    new_gamma = gamma - rule.lr * direction(rule.adam, g_gamma, m1, v1, rule.eps)
    new_slack = slack - rule.slack_lr * direction(rule.adam, g_slack, m2, v2, rule.eps) if rule.resilient else slack
    new_multiplier = multiplier - rule.dual_lr * direction(rule.dual_adam, -ascent, m3, v3, rule.dual_eps)
    if rule.resilient or rule.epsilon > 0 or rule.repo_clamp:
        new_multiplier = new_multiplier.clamp(min=0)

    # A gradient that is not finite, or whose square is not, would stay in the moments: that gamma sits this step out.
    sound = grad * grad < torch.inf
    new_moments = torch.stack([m1, v1, m2, v2, m3, v3, c1, c2, skipped])
    kept = torch.cat([moments[:-1], moments[-1:] + 1])
    return (torch.where(sound, new_gamma, gamma), torch.where(sound, new_multiplier, multiplier),
            torch.where(sound, new_slack, slack), torch.where(sound, new_moments, kept))


def gradients(gamma: Tensor, grad: Tensor, multiplier: Tensor, slack: Tensor, rule: Rule):
    """Descent gradients of gamma and slack, ascent gradient of the multiplier, all at the values before the step."""
    banded = rule.resilient or rule.epsilon > 0
    violation = gamma.abs() - rule.epsilon - (slack if rule.resilient else 0) if banded else gamma
    sign = gamma.sign() if banded else torch.ones_like(gamma)
    scale = 1 / gamma.shape[0] if rule.repo_scale and gamma.shape[0] else 1.0
    push = scale * multiplier + 2 * rule.augmentation * violation
    if rule.repo_resilient:
        pull = rule.rho * slack - push - violation + slack
        return grad + (push - slack) * sign, pull, violation - slack
    if banded:
        push = push.clamp(min=0)
    pull = rule.rho * slack - push if rule.resilient else torch.zeros_like(slack)
    return grad + push * sign, pull, violation
