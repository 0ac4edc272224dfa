"""Adaptive constrained equivariance: the owner of a model's gammas, and of the multipliers that drive them to zero."""

import gc
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..kernels.dual_update import ROWS, Rule, dual_update
from ..kernels.dual_update.op import check_rule
from ..kernels.dual_update.reference import gradients
from .bounds import KINDS, Bound, branch_weights
from .gammas import check_free, find_gammas, flat, live, one_of, same_keys, shaped
from .gate_networks import find_networks

PRESETS = {
    # the N-body step sizes of the published runs; an undamped oscillator of frequency sqrt(lr * dual_lr) a step
    "paper": {"lr": 9e-4, "dual_lr": 8e-4},
    # gammas settle, branches stay bounded: strict and relaxed error end together
    "damped": {"lr": 5e-3, "dual_lr": 5e-3, "augmentation": 1.0, "bound": "spectral"},
}
IDLE = 10  # steps in a row without any gradient after which `step` asks whether they were cleared too early
SCAN_EVERY = 64  # a scan takes milliseconds: somebody who writes the gammas at each step must not pay for it each time


class ACE:
    r"""Owns and steps the gammas of f(x) = f_eq(x) + gamma f_noneq(x) by descent on gamma and ascent on multipliers.

    .. math:: \min_{\theta,\gamma}\,\max_\lambda\; J(\theta,\gamma) + \sum_i \lambda_i \gamma_i
              \quad\text{(equality)}, \qquad
              \min_{\theta,\gamma,u}\,\max_{\lambda \ge 0}\; J + \tfrac{\rho}{2}\|u\|^2
              + \sum_i \lambda_i (|\gamma_i| - u_i) \quad\text{(resilient)}

    Three lines in a training loop::

        ace = ACE(model, lr=5e-3, dual_lr=5e-3, augmentation=1.0)
        optimizer = torch.optim.Adam(ace.primal_parameters(), lr=1e-3)
        for x, y in batches:
            optimizer.zero_grad()
            loss_of(model(x), y).backward()  # the task's loss alone: the terms in lambda are added here
            optimizer.step()
            ace.step()

    `step` reads the gammas' gradients and clears them. A gamma without a gradient (its branch was off), or with one
    that is NaN or infinite, sits the step out with its multiplier and slack, and `metrics()["skipped"]` counts it, on
    the device; where no gamma has a gradient, `step` does nothing, and warns at the tenth such call in a row: it must
    come before the gradients are cleared. Evaluation must not call `step`. Descent-ascent without augmentation is an
    oscillator of frequency sqrt(lr dual_lr) a step; augmentation c damps it at the rate lr c. Under a GradScaler,
    divide the gammas' gradients by its scale first.

    Where networks compute the gates (gammas="nn" of SchNet and EGNO) their parameters are the optimiser's, and
    |gamma_i| over the nodes of a batch takes gamma's place in the constraints: `(loss + ace.penalty()).backward()`.

    Args:
        model: its gammas are `model.get_gammas()` where that exists, otherwise the scalar parameters named `gamma`,
            `*.gamma`, `gammas.*` and so on.
        mode: "equality" (Algorithm 1: gamma = 0) or "resilient" (Algorithm 2: |gamma| <= u, u paid for by rho).
        lr: eta_p of gamma. dual_lr: eta_d of lambda. slack_lr: step size of u, `lr` by default.
        rho: weight of |u|^2 / 2; at rest u = lambda / rho.
        epsilon: relaxes the constraint to |gamma| <= epsilon (+ u), with lambda >= 0.
        augmentation: c, adds c gamma^2 to the loss; for an inequality s <= 0 the multiplier's force on gamma and u
            becomes [lambda + 2 c s]_+, so that a constraint with room exerts none (the published code: lambda + 2 c s).
        gamma_optimizer: "sgd" or "adam", for gamma and u. dual_optimizer: the same for lambda; the published code
            runs Adam nearly everywhere (docs/differences.md, 1), its Algorithm plain ascent.
        betas, eps, dual_eps: Adam's; the EGNO code has dual_eps=1e-4.
        repo_resilient: the SEGNN code's resilient gradients, (lambda - u) sign(gamma), rho u - lambda - |gamma| + 2u
            and |gamma| - 2u (5); its N-body script, without the half in rho |u|^2 / 2, is rho=2.
        repo_scale: lambda divided by the number of gammas in gamma's gradient only, as in the VN code (3).
        repo_clamp: equality with lambda >= 0, what the EGNO code's resilient option does with epsilon 0 (6). With
            epsilon > 0 it is mode="resilient", slack_lr=0 and `ace.slacks = ace.multipliers` at each epoch's start.
        bound: "none", "spectral" or "frobenius": projects the branches' weight matrices onto norm <= bound_limit after
            every `bound_every`-th step, see `Bound`. Without it the branches grow as gamma shrinks.
        gammas, branches: the parameters themselves, where the model's are not found by name. Gammas of any shape.
        optimizer: the optimiser of the other parameters; checked now and at its first step.
        backend: of `dual_update`, one call for all gammas.

    Attributes:
        names: the gammas' parameter names. rule: the numbers; a schedule assigns `ace.rule._replace(lr=...)`.

    Raises:
        ValueError: no gammas, a gamma that another optimiser or ACE holds, a wrong name or number.

    No derivatives. Source: Manolache, Chamon, Niepert, "Learning (Approximately) Equivariant Networks via Constrained
    Optimization" (NeurIPS 2025), Algorithms 1 and 2; docs/differences.md lists how the published code differs.
    """

    def __init__(self, model: nn.Module, mode: str = "equality", *, lr: float = 9e-4, dual_lr: float = 8e-4,
                 slack_lr: float | None = None, rho: float = 1.0, epsilon: float = 0.0, augmentation: float = 0.0,
                 gamma_optimizer: str = "sgd", dual_optimizer: str = "sgd", betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, dual_eps: float = 1e-8, repo_resilient: bool = False, repo_scale: bool = False,
                 repo_clamp: bool = False, bound: str = "none", bound_limit: float = 1.0, bound_every: int = 1,
                 gammas: Iterable[nn.Parameter] | None = None, branches: Iterable[Tensor] | None = None,
                 optimizer: Optimizer | None = None, backend: str = "auto"):
        one_of("mode", mode, ("equality", "resilient"))
        one_of("gamma_optimizer", gamma_optimizer, ("sgd", "adam"))
        one_of("dual_optimizer", dual_optimizer, ("sgd", "adam"))
        one_of("bound", bound, KINDS)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"ACE: betas must be two numbers (beta1, beta2), got {betas!r}; the default is "
                             "(0.9, 0.999)")
        if not isinstance(bound_every, int) or bound_every < 1:
            raise ValueError(f"ACE: bound_every must be a positive number of steps, got {bound_every!r}")
        self.rule = Rule(mode == "resilient", gamma_optimizer == "adam", dual_optimizer == "adam", repo_resilient,
                         repo_scale, repo_clamp, lr, dual_lr, lr if slack_lr is None else slack_lr, rho, epsilon,
                         augmentation, *betas, eps, dual_eps)
        check_rule(self.rule, "ACE")
        self.backend, self.steps, self.bound_every = backend, 0, bound_every
        self._model = model
        self._networks = find_networks(model) if gammas is None else None
        found = {} if self._networks else find_gammas(model, gammas)
        self.names, self._gammas = self._networks.names if self._networks else list(found), list(found.values())
        check_free(dict(zip(self.names, self._held(), strict=True)))
        n = len(self.names) if self._networks else sum(gamma.numel() for gamma in self._gammas)
        zeros = self._like().detach().new_zeros
        self._multipliers, self._slacks, self._moments = zeros(n), zeros(n), zeros(len(ROWS), n)
        self._versions, self._writes = self._seen(), 0
        self._idle, self._warned = 0, False
        weights = branch_weights(model) if branches is None else branches
        self.bound = None if bound == "none" else Bound(weights, bound, bound_limit)
        if optimizer is not None:
            self.check(optimizer)
            self._check_at_first_step(optimizer)
        live.add(self)

    # ---- what the loop calls

    def primal_parameters(self) -> list[nn.Parameter]:
        """All parameters of the model but the gammas: what the user's optimiser holds."""
        own = {id(gamma) for gamma in self._gammas}
        return [p for p in self._model.parameters() if id(p) not in own]

    def penalty(self, loss: Tensor | None = None, turned: object = None) -> Tensor | float:
        r"""What a loss needs where networks compute the gates: sum_i lambda_i |gamma_i| in Algorithm 1, once a pass.

        Its gradient in |gamma_i| is what `step` adds to that of a gamma that is a number, in every mode; with
        augmentation the value is not that of the Lagrangian. 0.0 for gates that are numbers, and after a pass with the
        branches off.
        """
        norms = self._networks.take() if self._networks else None
        if norms is None:
            return 0.0
        self._follow()
        held = norms.detach().to(self._multipliers)
        push, _, _ = gradients(held, torch.zeros_like(held), self._multipliers, self._slacks, self.rule)
        return (push * norms).sum()

    @torch.no_grad()
    def step(self) -> None:
        """Steps gammas, slacks and multipliers, clears the gammas' gradients, projects the branches. No host sync.

        Raises:
            ValueError: this ACE was released, another optimiser stepped a gamma, a gamma left the model, a pass with
                gates of networks came without `penalty`.
        """
        if not self.names:
            raise ValueError("ACE: step must be called on an owner of gammas, got a released ACE; make a new one")
        self._look_for_other_optimizers()
        measured = self._measured()
        if measured is None:
            self._check_in_model()
            self._count_idle()
            return
        self._idle = 0
        self._follow()
        new, *state = dual_update(*(x.to(self._multipliers) for x in measured), self._multipliers, self._slacks,
                                  self._moments, self.rule, backend=self.backend)
        parts = new.split([gamma.numel() for gamma in self._gammas]) if self._gammas else []
        # in place, so that a captured CUDA graph goes on from its own results
        torch._foreach_copy_([*self._gammas, self._multipliers, self._slacks, self._moments],
                             [*(part.view_as(g) for part, g in zip(parts, self._gammas, strict=True)), *state])
        self.zero_grad()
        self.steps += 1
        if self.bound is not None and self.steps % self.bound_every == 0:
            self.bound.project()
        self._versions = self._seen()

    def _measured(self) -> tuple[Tensor, Tensor] | None:
        """gammas and their gradients [n], NaN for one that has none; of networks |gamma| and 0. None: nothing to do."""
        if self._networks:
            norms = self._networks.measured()
            return None if norms is None else (norms, 0 * norms)  # NaN where the norm is not finite: it sits out
        if all(gamma.grad is None for gamma in self._gammas):
            return None
        grads = [torch.full_like(g, torch.nan) if g.grad is None else g.grad for g in self._gammas]
        return self.gammas, flat(grads)

    def zero_grad(self) -> None:
        """Drops the gammas' gradients; `step` does so by itself."""
        for gamma in self._gammas:
            gamma.grad = None

    def check(self, optimizer: Optimizer) -> None:
        """Raises ValueError if `optimizer` holds a gamma."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, gamma in self._numbers():
            if id(gamma) in held:
                raise ValueError(f"ACE: gamma {name!r} must be stepped by ACE alone, got an optimiser "
                                 f"({type(optimizer).__name__}) that holds it; build it from ace.primal_parameters()")

    def release(self) -> None:
        """Gives the gammas up, so that another ACE can own them; this one can no longer step."""
        self.names, self._gammas, self._networks = [], [], None

    # ---- what the user reads

    @property
    def mode(self) -> str:
        return "resilient" if self.rule.resilient else "equality"

    @property
    def gammas(self) -> Tensor:
        """[n], a copy, in the order of `names`, flattened; of networks |gamma| at the last step, 0 before."""
        return self._networks.values.clone() if self._networks else flat([gamma.detach() for gamma in self._gammas])

    @property
    def multipliers(self) -> Tensor:
        """[n] lambda, a copy; assigning copies in."""
        return self._multipliers.clone()

    @multipliers.setter
    def multipliers(self, value: Tensor) -> None:
        self._multipliers.copy_(shaped("multipliers", value, self._multipliers))

    @property
    def slacks(self) -> Tensor:
        """[n] u, a copy; assigning copies in. Zero in mode "equality"."""
        return self._slacks.clone()

    @slacks.setter
    def slacks(self, value: Tensor) -> None:
        self._slacks.copy_(shaped("slacks", value, self._slacks))

    def metrics(self) -> dict[str, Tensor]:
        """gammas, multipliers, slacks and the number of skipped updates, each [n] on the device; reading them syncs."""
        return {"gammas": self.gammas, "multipliers": self.multipliers, "slacks": self.slacks,
                "skipped": self._moments[ROWS.index("skipped")].clone()}

    def state_dict(self) -> dict:
        """All but the gammas, which the model's state_dict has: with both, training goes on with the same numbers."""
        return {"names": list(self.names), "rule": self.rule._asdict(), "steps": self.steps,
                "multipliers": self.multipliers, "slacks": self.slacks, "moments": self._moments.clone(),
                "bound": None if self.bound is None else self.bound.kind,
                "bound_vectors": None if self.bound is None else self.bound.vectors.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Takes over the state and, as torch's optimisers do, the rule's numbers.

        Raises:
            ValueError: missing or unknown keys, numbers out of range, or a state that belongs to other gammas, another
                mode or another bound; nothing is changed then.
        """
        own = self.state_dict()
        same_keys("state", state, own)
        same_keys("state rule", state["rule"], own["rule"])
        rule = Rule(**state["rule"])
        check_rule(rule, "ACE: state rule")
        if rule.resilient != self.rule.resilient:
            raise ValueError(f"ACE: state must be of mode {self.mode!r}, got the other one; make the ACE with its mode")
        for key in ("names", "bound"):
            if state[key] != own[key]:
                raise ValueError(f"ACE: state must have {key} {own[key]}, got {state[key]}; make the ACE alike")
        for key in ("multipliers", "slacks", "moments", "bound_vectors"):
            if own[key] is not None:
                shaped(f"state {key}", state[key], own[key])
        self.rule, self.steps = rule, state["steps"]
        self._multipliers.copy_(state["multipliers"])
        self._slacks.copy_(state["slacks"])
        self._moments.copy_(state["moments"])
        if self.bound is not None:
            self.bound.vectors.copy_(state["bound_vectors"])

    # ---- whose gammas they are

    def _held(self) -> list:
        """What belongs to this ACE alone: gammas, or the networks that compute them."""
        return self._networks.networks if self._networks else self._gammas

    def _numbers(self) -> list[tuple[str, nn.Parameter]]:
        """Names and gammas, where these are numbers."""
        return [] if self._networks else list(zip(self.names, self._gammas, strict=True))

    def _like(self) -> Tensor:
        """Whose dtype and device the state has."""
        return self._networks.like if self._networks else self._gammas[0]

    def _check_at_first_step(self, optimizer: Optimizer) -> None:
        def check(*_):
            handle.remove()
            self.check(optimizer)

        handle = optimizer.register_step_pre_hook(check)

    def _seen(self) -> list[int]:
        return [gamma._version for gamma in self._gammas]

    def _look_for_other_optimizers(self) -> None:
        """Where a gamma was written between two steps: by load_state_dict, by the user's own hand, or by an optimiser.

        Looks at all optimisers there are, at the writes 1, 2, 4, .., 64, 128, 192 and so on.
        """
        seen = self._seen()
        if seen == self._versions:
            return
        self._writes += 1
        if self._writes % min(SCAN_EVERY, 1 << (self._writes.bit_length() - 1)) == 0:
            for thing in gc.get_objects():
                if issubclass(type(thing), Optimizer):
                    self.check(thing)
        self._versions = seen

    def _count_idle(self) -> None:
        self._idle += bool(self._networks) or any(gamma.requires_grad for gamma in self._gammas)
        if self._idle >= IDLE and not self._warned:
            self._warned = True
            warnings.warn(f"ACE: step must find gradients of the gammas, got none in {self._idle} calls in a row, and "
                          "the gammas stay as they are; call ace.step() after backward() and before zero_grad() or "
                          "model.zero_grad(), or do not call it while the branches are switched off", stacklevel=4)

    def _check_in_model(self) -> None:
        current = {id(p) for p in self._model.parameters()}
        for name, gamma in self._numbers():
            if id(gamma) not in current:
                raise ValueError(f"ACE: gamma {name!r} must still be the model's parameter, got another one there "
                                 "(load_state_dict(assign=True) does that); make a new ACE")

    def _follow(self) -> None:
        """The state follows the gammas to another device or dtype."""
        gamma = self._like()
        if self._multipliers.device != gamma.device or self._multipliers.dtype != gamma.dtype:
            self._multipliers, self._slacks, self._moments = (
                x.to(gamma.detach()) for x in (self._multipliers, self._slacks, self._moments))
