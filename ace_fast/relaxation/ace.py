"""Adaptive constrained equivariance: the owner of a model's gammas, and of the multipliers that drive them to zero."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..kernels.dual_update import ROWS, Rule, dual_step
from ..kernels.dual_update.op import check_rule
from ..kernels.dual_update.reference import gradients
from .bounds import KINDS, Bound, branch_weights
from .decider import undone
from .diagnose import diagnose, evaluating, runner
from .gammas import check_free, find_gammas, flat, in_range, live, one_of, same_keys, shaped
from .gate_networks import find_networks
from .guard import Guard
from .rules import MODES, STEPS, Groups, Rules, check_counts
from .watch import Watch

PRESETS = {
    # the N-body step sizes of the published runs; an undamped oscillator of frequency sqrt(lr * dual_lr) a step
    "paper": {"lr": 9e-4, "dual_lr": 8e-4},
    # gammas settle, branches stay bounded: strict and relaxed error end together
    "damped": {"lr": 5e-3, "dual_lr": 5e-3, "augmentation": 1.0, "bound": "spectral"},
}


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

    With snap=True a branch without effect is switched off, and a step costs what the strict model's costs; what the
    gates say about the data is `diagnose`. docs/relaxation.md explains both, and every option.

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
        groups: {pattern of names: {"mode": ..., "epsilon": ...}}: gammas with their own mode, lr, dual_lr, slack_lr,
            rho, epsilon, augmentation, gamma_optimizer or dual_optimizer; a shell's patterns, the first that fits.
        warmup: steps over which dual_lr and augmentation rise from 0, so that the constraints come in slowly.
        snap: switches a branch off, at gamma = 0, once |gamma| ||f_neq(x)|| / ||f_eq(x)|| has stayed below `tolerance`
            for `patience` steps. Where the constraint is resilient, or a band, it comes back when the loss pulls harder
            at gamma than lambda holds it.
        tolerance, patience: of that, and of the verdicts of `diagnose`.
        look_every: steps from one measurement of the ratios to the next; each waits for the device once.
        gammas, branches: the parameters themselves, where the model's are not found by name. Gammas of any shape.
        optimizer: the optimiser of the other parameters; checked now and at its first step.
        backend: of `dual_update`; a step is one operator call for all gammas. `Bound` adds calls of torch's own.

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
                 groups: Groups | None = None, warmup: int = 0, snap: bool = False, tolerance: float = 1e-2,
                 patience: int = 500, look_every: int = 20, gammas: Iterable[nn.Parameter] | None = None,
                 branches: Iterable[Tensor] | None = None, optimizer: Optimizer | None = None, backend: str = "auto"):
        for name, word, allowed in (("mode", mode, MODES), ("gamma_optimizer", gamma_optimizer, STEPS),
                                    ("dual_optimizer", dual_optimizer, STEPS), ("bound", bound, KINDS)):
            one_of(name, word, allowed)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"ACE: betas must be two numbers (beta1, beta2), got {betas!r}; the default is "
                             "(0.9, 0.999)")
        check_counts(bound_every=bound_every, patience=patience, look_every=look_every, warmup=warmup)
        if not in_range(tolerance, above=0):
            raise ValueError(f"ACE: tolerance must be positive and finite, got {tolerance!r}")
        rule = Rule(mode == "resilient", gamma_optimizer == "adam", dual_optimizer == "adam", repo_resilient,
                    repo_scale, repo_clamp, lr, dual_lr, lr if slack_lr is None else slack_lr, rho, epsilon,
                    augmentation, *betas, eps, dual_eps)
        check_rule(rule, "ACE")
        self.model, self.backend, self.steps, self.bound_every = model, backend, 0, bound_every
        self._networks = find_networks(model) if gammas is None else None
        found = {} if self._networks else find_gammas(model, gammas)
        self.names, self._gammas = self._networks.names if self._networks else list(found), list(found.values())
        check_free(dict(zip(self.names, self._held(), strict=True)))
        n = len(self.names) if self._networks else sum(gamma.numel() for gamma in self._gammas)
        zeros = self._like().detach().new_zeros
        self._multipliers, self._slacks, self._moments = zeros(n), zeros(n), zeros(len(ROWS), n)
        self._guard = Guard(model, found)
        self._nans: dict[int, Tensor] = {}
        self._rules = Rules(rule, groups, self.names, warmup)
        sizes = [1] * n if self._networks else [gamma.numel() for gamma in self._gammas]
        self._group = torch.tensor([p for p, size in zip(self._rules.places, sizes, strict=True) for _ in range(size)])
        weights = branch_weights(model) if branches is None else branches
        self.bound = None if bound == "none" else Bound(weights, bound, bound_limit)
        self._watch = Watch(model, self.names, self._held(), tolerance, patience, look_every, snap,
                            self._rules.may_return)
        self._watch.arm(0)
        if optimizer is not None:
            self._guard.check_at_first_step(optimizer)
        live.add(self)

    # ---- what the loop calls

    def primal_parameters(self) -> list[nn.Parameter]:
        """All parameters of the model but the gammas: what the user's optimiser holds."""
        own = {id(gamma) for gamma in self._gammas}
        return [p for p in self.model.parameters() if id(p) not in own]

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
        push = torch.zeros_like(held)
        for place, rule in enumerate(self._rules.at(self.steps)):
            own, _, _ = gradients(held, torch.zeros_like(held), self._multipliers, self._slacks, rule)
            push = torch.where(self._group == place, own, push) if self._rules.groups else own
        return (push * norms).sum()

    def attempt(self) -> AbstractContextManager[None]:
        """Around passes that may fail and be repeated: ratios and norms of gates that a failed one left are dropped."""
        return undone(self._watch.seen, *([self._networks.passes] if self._networks else []))

    @torch.no_grad()
    def step(self) -> bool:
        """Steps gammas, slacks and multipliers, clears the gammas' gradients, projects the branches.

        Returns:
            Whether branches were switched, which `snapped` lists: a captured graph must then be captured anew. Only
            with snap=True, and every `look_every` steps, is the device waited for.

        Raises:
            ValueError: this ACE was released, another optimiser stepped a gamma, a gamma left the model, a pass with
                gates of networks came without `penalty`.
        """
        if not self.names:
            raise ValueError("ACE: step must be called on an owner of gammas, got a released ACE; make a new one")
        self._guard.look_for_other_optimizers()
        asleep = self._watch.asleep()
        measured = None if asleep else self._measured()
        if measured is None and not asleep:
            self._guard.check_in_model()
            self._guard.count_idle()
            return False
        if measured and not all(self._watch.off):
            self._follow()
            dual_step(*measured, self._multipliers, self._slacks, self._moments, self._group,
                      self._rules.numbers(self.steps), self.backend)
        self.steps += 1
        if self.bound is not None and self.steps % self.bound_every == 0 and not all(self._watch.off):
            self.bound.project()
        changed = self._end_measurement()
        self.zero_grad()
        self._guard.own_write()
        return changed

    @torch.no_grad()
    def look(self, *inputs, steps: int | None = None) -> bool:
        """Measures the ratios in a pass of its own and switches branches, for loops whose steps are graph replays.

        Args:
            inputs: what the model takes, or one function without arguments that runs it.
            steps: taken so far, where `step` did not count them.

        Returns:
            As `step`.
        """
        self.steps = self.steps if steps is None else steps
        prices = self._per_gate(self._multipliers)
        with evaluating(self.model):
            ratios = self._watch.measure(runner(self.model, inputs), prices)
        nothing = torch.full_like(ratios, torch.nan)
        changed = self._apply(self._watch.look(ratios, nothing, prices, self.steps))
        self._guard.own_write()
        return changed

    def diagnose(self, *inputs, error: float | None = None) -> dict:
        """What the gates say about the data, layer by layer; see `relaxation.diagnose.diagnose`, and `draw_diagnosis`.

        Args:
            inputs: what the model takes, or one function without arguments that runs it and returns its output.
            error: measured relative equivariance error, to stand beside the theorem's bound.
        """
        return diagnose(self, runner(self.model, inputs), error)

    @property
    def snapped(self) -> list[bool]:
        """Which branches are switched off, in the order of `names`."""
        return list(self._watch.off)

    def _end_measurement(self) -> bool:
        """Where this step was measured: reads ratios, and gradients of branches that are off, and switches."""
        watch, on_cuda = self._watch, self._multipliers.is_cuda
        if on_cuda and torch.cuda.is_current_stream_capturing():
            return False  # looking would wait
        changed = False
        if watch.armed:
            tried = [gamma.grad if off else None for gamma, off in zip(self._gammas, watch.off, strict=True)]
            pulls = self._with_nans(tried) if any(g is not None for g in tried) else None
            prices = self._per_gate(self._multipliers)
            changed = self._apply(watch.end(None if pulls is None else flat(pulls), prices, self.steps))
        watch.arm(self.steps)
        return changed

    def _per_gate(self, values: Tensor) -> Tensor:
        """[n] to one number a gate: its own, or the largest of a gate of several."""
        if len(values) == self._watch.count:
            return values
        return torch.stack([part.abs().max() for part in values.split([gamma.numel() for gamma in self._gammas])])

    def _apply(self, places: list[int]) -> bool:
        """Gammas of branches that were switched off are 0; those that come back start without a past."""
        for i in places:
            if self._watch.off[i]:
                self._gammas[i].zero_()
            else:
                self._moments[:ROWS.index("skipped"), i] = 0
        return bool(places)

    def _measured(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """Gammas and gradients, NaN for one that has none or is off; of networks |gamma| and 0. None: nothing to do."""
        if self._networks:
            norms = self._networks.measured()
            if norms is None:
                return None
            norms = norms.to(self._multipliers, copy=True)
            return [norms], [0 * norms]  # NaN where the norm is not finite: it sits out
        if all(gamma.grad is None for gamma in self._gammas):
            return None
        off = self._watch.off
        return self._gammas, self._with_nans([None if off[i] else g.grad for i, g in enumerate(self._gammas)])

    def _with_nans(self, grads: list[Tensor | None]) -> list[Tensor]:
        """NaN in place of None, from tensors that are made once."""
        for i, (gamma, grad) in enumerate(zip(self._gammas, grads, strict=True)):
            if grad is None:
                kept = self._nans.get(i)
                if kept is None or kept.dtype != gamma.dtype or kept.device != gamma.device:
                    self._nans[i] = torch.full_like(gamma, torch.nan)
        return [self._nans[i] if grad is None else grad for i, grad in enumerate(grads)]

    def zero_grad(self) -> None:
        """Drops the gammas' gradients; `step` does so by itself."""
        for gamma in self._gammas:
            gamma.grad = None

    def check(self, optimizer: Optimizer) -> None:
        """Raises ValueError if `optimizer` holds a gamma."""
        self._guard.check(optimizer)

    def release(self) -> None:
        """Gives the gammas up, so that another ACE can own them; this one can no longer step."""
        self._watch.disarm()
        self.names, self._gammas, self._networks = [], [], None

    # ---- what the user reads

    @property
    def rule(self) -> Rule:
        """The numbers of the gammas that are in no group; what a group has not of its own follows."""
        return self._rules.rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._rules.rule = rule

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
        return {"names": list(self.names), "rule": self.rule._asdict(), "groups": self._rules.groups,
                "warmup": self._rules.warmup, "steps": self.steps, "watch": self._watch.state_dict(),
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
        for key in ("names", "bound", "groups", "warmup"):
            if state[key] != own[key]:
                raise ValueError(f"ACE: state must have {key} {own[key]}, got {state[key]}; make the ACE alike")
        for key in ("multipliers", "slacks", "moments", "bound_vectors"):
            if own[key] is not None:
                shaped(f"state {key}", state[key], own[key])
        self._watch.load_state_dict(state["watch"])
        self.rule, self.steps = rule, state["steps"]
        self._watch.arm(self.steps)
        self._multipliers.copy_(state["multipliers"])
        self._slacks.copy_(state["slacks"])
        self._moments.copy_(state["moments"])
        if self.bound is not None:
            self.bound.vectors.copy_(state["bound_vectors"])

    def _held(self) -> list:
        """What belongs to this ACE alone: gammas, or the networks that compute them."""
        return self._networks.networks if self._networks else self._gammas

    def _like(self) -> Tensor:
        return self._networks.like if self._networks else self._gammas[0]

    def _follow(self) -> None:
        """The state follows the gammas to another device or dtype."""
        gamma = self._like()
        if self._multipliers.device != gamma.device or self._multipliers.dtype != gamma.dtype:
            self._multipliers, self._slacks, self._moments = (
                x.to(gamma.detach()) for x in (self._multipliers, self._slacks, self._moments))
        if self._rules.groups and self._group.device != gamma.device:
            self._group = self._group.to(gamma.device)
