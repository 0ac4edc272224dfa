"""dual_update and dual_step: schemas, checks and fakes. All are constants: an optimiser's step has no derivative."""

import functools
import math
from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import check_constant, check_tensors, define, fail, no_forward_mode
from . import reference, triton_kernels
from .reference import ROWS, Rule

_native = torch.ops.ace_fast_native
BACKENDS = {
    "reference": reference,
    "cpu": SimpleNamespace(forward=lambda *a: _native.dual_update(*a)),
    "triton": triton_kernels,
}
_OP = "dual_update"


def check_rule(rule: Rule, op: str = _OP) -> None:
    """Every number of `rule` in its range, and no flag without the mode it belongs to."""
    for name in ("lr", "dual_lr", "slack_lr", "rho", "epsilon", "augmentation", "eps", "dual_eps"):
        value = getattr(rule, name)
        if isinstance(value, str) or value is None or not 0 <= value < math.inf:
            fail(op, name, "finite and not negative", repr(value))
    for name in ("beta1", "beta2"):
        value = getattr(rule, name)
        if isinstance(value, str) or value is None or not 0 <= value < 1:
            fail(op, name, "in [0, 1)", repr(value))
    if rule.repo_resilient and not rule.resilient:
        fail(op, "repo_resilient", "False for the equality rule", True, "set resilient")
    if rule.repo_clamp and rule.resilient:
        fail(op, "repo_clamp", "False for the resilient rule", True, "it belongs to the equality rule")


def _check(gamma: Tensor, grad: Tensor, multiplier: Tensor, slack: Tensor, moments: Tensor, *rule) -> None:
    check_rule(Rule(*rule))
    check_tensors(_OP, gamma, grad=grad, multiplier=multiplier, slack=slack, moments=moments)
    check_constant(_OP, gamma=gamma, grad=grad, multiplier=multiplier, slack=slack, moments=moments)
    if gamma.dim() != 1:
        fail(_OP, "gamma", "[n]", list(gamma.shape), "flatten and concatenate the gammas")
    n = gamma.shape[0]
    for name, x in (("grad", grad), ("multiplier", multiplier), ("slack", slack)):
        if x.dim() != 1 or x.shape[0] != n:
            fail(_OP, name, f"[{n}] like gamma", list(x.shape))
    if moments.dim() != 2 or moments.shape[0] != len(ROWS) or moments.shape[1] != n:
        fail(_OP, "moments", f"[{len(ROWS)}, {n}]", list(moments.shape), "start with zeros")


def _forward(*args):
    *inputs, backend = args
    _check(*inputs)
    return pick(_OP, BACKENDS, backend, args[0]).forward


def _fake(*args):
    _check(*args[:-1])
    gamma, moments = args[0], args[4]
    return (*(gamma.new_empty(gamma.shape) for _ in range(3)), moments.new_empty(moments.shape))


_FIELDS = ", ".join(f"{kind.__name__} {name}" for name, kind in Rule.__annotations__.items())
dual_update_op = define(
    f"{_OP}(Tensor gamma, Tensor grad, Tensor multiplier, Tensor slack, Tensor moments, {_FIELDS}, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward, _fake,
)


def _rules(numbers: list[float]) -> list[Rule]:
    """The rules that `dual_step` is given, one after the other."""
    kinds = Rule.__annotations__.values()
    if not numbers or len(numbers) % len(kinds):
        fail("dual_step", "numbers", f"the {len(kinds)} fields of each rule", len(numbers))
    return [Rule(*(kind(x) for kind, x in zip(kinds, numbers[i:i + len(kinds)], strict=True)))
            for i in range(0, len(numbers), len(kinds))]


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


def _step(gammas, grads, multiplier, slack, moments, group, numbers, backend) -> None:
    gamma, grad = _joined(gammas), _joined(grads)
    found = None
    for place, rule in enumerate(_rules(numbers)):
        inputs = gamma, grad, multiplier, slack, moments, *rule
        new = _forward(*inputs, backend)(*inputs)
        found = new if found is None else [torch.where(group == place, *pair) for pair in zip(new, found, strict=True)]
    parts = found[0].split([x.numel() for x in gammas])
    # in place, so that a captured CUDA graph goes on from its own results
    torch._foreach_copy_([*gammas, multiplier, slack, moments],
                         [*(part.view_as(g) for part, g in zip(parts, gammas, strict=True)), *found[1:]])


def _step_fake(gammas, grads, multiplier, slack, moments, group, numbers, backend) -> None:
    for rule in _rules(numbers):
        _check(_joined(gammas), _joined(grads), multiplier, slack, moments, *rule)


# All of ACE's bookkeeping of a step as one call, in place: gammas of any shapes, groups of them with their own rules.
dual_step = define(
    "dual_step(Tensor(a!)[] gammas, Tensor[] grads, Tensor(b!) multiplier, Tensor(c!) slack, Tensor(d!) moments,"
    " Tensor group, float[] numbers, str backend) -> ()",
    lambda *arguments: functools.partial(_step, backend=arguments[-1]), _step_fake,
)


def dual_update(gamma: Tensor, grad: Tensor, multiplier: Tensor, slack: Tensor, moments: Tensor, rule: Rule, *,
                backend: str = "auto") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""One step of ACE's descent-ascent for all gammas, multipliers and slacks, read at the values before the step.

    Equality (Algorithm 1), with violation s = gamma; with epsilon > 0, s = |gamma| - epsilon and lambda >= 0:

    .. math:: \gamma \leftarrow \gamma - \eta_p (\partial J/\partial\gamma + \lambda + 2 c \gamma), \quad
              \lambda \leftarrow \lambda + \eta_d \gamma

    Resilient (Algorithm 2), with s = |gamma| - epsilon - u and p = [lambda + 2 c s]_+:

    .. math:: \gamma \leftarrow \gamma - \eta_p (\partial J/\partial\gamma + p\,\mathrm{sign}\gamma), \quad
              u \leftarrow u - \eta_u (\rho u - p), \quad \lambda \leftarrow [\lambda + \eta_d s]_+

    Args:
        gamma: [n] float32 or float64.
        grad: [n], dJ/dgamma of the task's loss. Where it is not finite, nothing of that gamma is changed but its count
            of skipped updates.
        multiplier: [n] lambda, starts at 0.
        slack: [n] u, starts at 0; unused and returned as it is unless `rule.resilient`.
        moments: [9, n], rows as in `ROWS`; starts at 0. Kept whatever the optimiser, so a rule may change in training.
        rule: a `Rule`: mode, step sizes, optimisers and quirks.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        gamma [n], multiplier [n], slack [n], moments [9, n]; new tensors. No derivatives.

    Raises:
        ValueError: wrong shapes, dtypes, devices or numbers, a tensor that requires grad, a backend that cannot run.

    Source: Manolache, Chamon, Niepert, "Learning (Approximately) Equivariant Networks via Constrained Optimization"
    (NeurIPS 2025), Algorithms 1 and 2.

    Example:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> rule = Rule(lr=0.5, dual_lr=0.25)
        >>> dual_update(one, one, zero, zero, torch.zeros(9, 1), rule)[:2]
        (tensor([0.5000]), tensor([0.2500]))
    """
    no_forward_mode(_OP, gamma, grad, multiplier, slack, moments)
    return dual_update_op(gamma, grad, multiplier, slack, moments, *rule, backend)
