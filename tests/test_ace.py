"""ACE on problems solved by hand: recurrences, oscillation, rest points, published quirks, loops gone wrong."""

import gc
import math
import warnings

import pytest
import torch
from ace_toys import Net, Toy, run, train
from torch import nn

from ace_fast.backend import available
from ace_fast.kernels.dual_update import ROWS, Rule, dual_update
from ace_fast.relaxation import ACE


def plain_step(gamma, grad, lam, u, rule, state):
    """A step for one gamma as a plain Python loop would take it; `state` is a list of Adam averages."""
    n, band = state["n"], rule.resilient or rule.epsilon > 0
    s = abs(gamma) - rule.epsilon - u * rule.resilient if band else gamma
    push = lam / n if rule.repo_scale else lam
    push = push + 2 * rule.augmentation * s
    push = max(push, 0.0) if band else push
    sign = (gamma > 0) - (gamma < 0) if band else 1
    state["t"] += 1

    def direction(key, g, adam, eps):
        m, v = state.get(key, (0.0, 0.0))
        m, v = rule.beta1 * m + (1 - rule.beta1) * g, rule.beta2 * v + (1 - rule.beta2) * g * g
        state[key] = m, v
        m, v = m / (1 - rule.beta1 ** state["t"]), v / (1 - rule.beta2 ** state["t"])
        return m / (math.sqrt(v) + eps) if adam else g

    new_gamma = gamma - rule.lr * direction("gamma", grad + push * sign, rule.adam, rule.eps)
    new_u = u - rule.slack_lr * direction("u", rule.rho * u - push, rule.adam, rule.eps) if rule.resilient else u
    new_lam = lam - rule.dual_lr * direction("lambda", -s, rule.dual_adam, rule.dual_eps)
    return new_gamma, max(new_lam, 0.0) if band or rule.repo_clamp else new_lam, new_u


RULES = {
    "equality": Rule(lr=0.05, dual_lr=0.02),
    "augmented": Rule(lr=0.05, dual_lr=0.02, augmentation=2.0, repo_scale=True),
    "adam": Rule(adam=True, dual_adam=True, lr=0.05, dual_lr=0.02, dual_eps=1e-4),
    "resilient": Rule(resilient=True, lr=0.05, dual_lr=0.02, slack_lr=0.03, rho=2.0, augmentation=0.5),
    "resilient_adam": Rule(resilient=True, adam=True, lr=0.05, dual_lr=0.02, slack_lr=0.03, epsilon=0.1),
    "epsilon": Rule(epsilon=0.3, dual_adam=True, lr=0.05, dual_lr=0.02),
    "clamp": Rule(repo_clamp=True, lr=0.05, dual_lr=0.02),
}


@pytest.mark.parametrize("name", RULES)
def test_operator_equals_a_plain_python_loop(name):
    rule, n = RULES[name], 5
    target = torch.randn(n, dtype=torch.float64)
    tensors = [torch.linspace(-1, 1.5, n, dtype=torch.float64), *torch.zeros(2, n, dtype=torch.float64)]
    moments = torch.zeros(len(ROWS), n, dtype=torch.float64)
    numbers = [list(x) for x in zip(*(x.tolist() for x in tensors), strict=True)]
    states = [{"t": 0, "n": n} for _ in range(n)]
    for _ in range(60):
        gamma, lam, u = tensors
        *tensors, moments = dual_update(gamma, gamma - target, lam, u, moments, rule)
        numbers = [plain_step(g, g - target[i].item(), la, v, rule, states[i]) for i, (g, la, v) in enumerate(numbers)]
        gold = torch.tensor(numbers, dtype=torch.float64).T
        for mine, column in zip(tensors, gold, strict=True):
            assert (mine - column).abs().max() <= 1e-12 * max(1, column.abs().max())


def test_equality_follows_the_recurrence_of_a_linear_loss():
    """J = a gamma: gamma' = gamma - eta_p (a + lambda), lambda' = lambda + eta_d gamma; at rest -a and 0."""
    model, a, lr, dual_lr = Toy(), 0.7, 0.05, 0.1
    ace = ACE(model, lr=lr, dual_lr=dual_lr, augmentation=4.0)
    gammas, multipliers, slacks = run(ace, model, lambda g: torch.full_like(g, a), 400)
    # the same as powers of a 2 x 2 matrix about the rest point (0, -a)
    matrix = torch.tensor([[1 - 8 * lr, -lr], [dual_lr, 1]], dtype=torch.float64)
    start = torch.tensor([1.0, a], dtype=torch.float64)
    for t in (0, 1, 2, 10, 399):
        gold = torch.linalg.matrix_power(matrix, t) @ start
        assert abs(gammas[t].item() - gold[0].item()) < 1e-12
        assert abs(multipliers[t].item() + a - gold[1].item()) < 1e-12
    assert abs(ace.gammas.item()) < 0.02 and abs(ace.multipliers.item() + a) < 0.2
    assert not slacks.any()


def test_the_multiplier_sees_gamma_before_the_step():
    model = Toy()
    ace = ACE(model, lr=0.5, dual_lr=0.25)
    run(ace, model, lambda g: torch.ones_like(g), 1)
    assert ace.gammas.item() == 0.5 and ace.multipliers.item() == 0.25


@pytest.mark.parametrize(("lr", "dual_lr"), [(9e-3, 8e-3), (2e-2, 5e-3)])
def test_plain_descent_ascent_oscillates_at_the_root_of_both_rates(lr, dual_lr):
    """gamma'' + eta_p eta_d gamma = 0: period 2 pi / sqrt(eta_p eta_d), from upward zero crossings; nothing damps."""
    model = Toy()
    ace = ACE(model, lr=lr, dual_lr=dual_lr)
    period = 2 * math.pi / math.sqrt(lr * dual_lr)
    gammas = run(ace, model, torch.zeros_like, int(4.2 * period))[0][:, 0]
    up = ((gammas[:-1] < 0) & (gammas[1:] >= 0)).nonzero()[:, 0]
    exact = up + gammas[up] / (gammas[up] - gammas[up + 1])  # linear between the steps
    assert len(exact) == 4
    assert torch.allclose(exact.diff(), torch.full((3,), period, dtype=torch.float64), rtol=1e-4)
    last = int(3.5 * period) + gammas[int(3.5 * period):].argmax().item()
    # explicit steps even grow, by the eigenvalue's modulus
    assert abs(gammas[last].item() - (1 + lr * dual_lr) ** (last / 2)) < 1e-4


def test_augmentation_damps_at_the_rate_lr_c():
    """gamma'' + 2 c eta_p gamma' + eta_p eta_d gamma = 0: the amplitude falls as exp(-c eta_p t)."""
    lr, dual_lr, c = 4e-3, 1e-2, 0.2
    model = Toy()
    gammas = run(ACE(model, lr=lr, dual_lr=dual_lr, augmentation=c), model, torch.zeros_like, 4000)[0][:, 0]
    peaks = ((gammas[1:-1] > gammas[:-2]) & (gammas[1:-1] > gammas[2:])).nonzero()[:, 0] + 1
    assert len(peaks) >= 3
    rate = -(gammas[peaks[-1]] / gammas[peaks[0]]).log() / (peaks[-1] - peaks[0])
    # the explicit steps add growth of half of eta_p eta_d a step
    assert abs(rate - (c * lr - lr * dual_lr / 2)) < 0.01 * c * lr


def test_resilient_rest_point_of_a_quadratic_loss():
    """J = (gamma - a)^2 / 2 rests at lambda = a - gamma = rho u with |gamma| = u: gamma = a / (1 + rho)."""
    a, rho = torch.tensor([1.5, -0.8], dtype=torch.float64), 2.0
    model = Toy(2)
    ace = ACE(model, "resilient", lr=0.05, dual_lr=0.05, slack_lr=0.05, rho=rho, augmentation=1.0)
    run(ace, model, lambda g: g - a, 3000)
    assert torch.allclose(ace.gammas, a / (1 + rho), rtol=1e-9)
    assert torch.allclose(ace.slacks, ace.multipliers / rho, rtol=1e-9)
    assert torch.allclose(ace.multipliers, a.abs() * rho / (1 + rho), rtol=1e-9)


def test_a_slack_alone_follows_its_multiplier():
    """u' = u - eta_u (rho u - lambda) with lambda held: u_t = (lambda / rho) (1 - (1 - eta_u rho)^t)."""
    model = Toy(1, 0.0)
    ace = ACE(model, "resilient", lr=0.0, dual_lr=0.0, slack_lr=0.1, rho=2.0)
    ace.multipliers = torch.tensor([3.0], dtype=torch.float64)
    slacks = run(ace, model, torch.zeros_like, 30)[2][:, 0]
    gold = 1.5 * (1 - 0.8 ** torch.arange(30, dtype=torch.float64))
    assert torch.allclose(slacks, gold, rtol=1e-12, atol=1e-14)


def test_the_clamp_holds_multipliers_of_inactive_constraints_at_zero():
    """Inside the band there is no force: gamma goes where the loss wants it, and lambda never turns negative."""
    model = Toy(2, 0.05)
    target = torch.tensor([0.1, 0.9], dtype=torch.float64)
    ace = ACE(model, lr=0.1, dual_lr=0.1, epsilon=0.3, augmentation=1.0)
    _, multipliers, _ = run(ace, model, lambda g: g - target, 800)
    assert (multipliers >= 0).all() and not multipliers[:, 0].any()
    assert torch.allclose(ace.gammas, torch.tensor([0.1, 0.3], dtype=torch.float64), atol=1e-9)
    assert abs(ace.multipliers[1].item() - 0.6) < 1e-9  # lambda = target - epsilon


def test_without_the_clamp_equality_multipliers_take_either_sign():
    model = Toy(2)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    ace = ACE(model, lr=0.05, dual_lr=0.05, augmentation=5.0)
    run(ace, model, lambda g: sign, 2000)
    assert torch.allclose(ace.multipliers, -sign, atol=1e-3)


def test_adam_dual_equals_torch_adam_on_minus_the_violation():
    model = Toy(3)
    with torch.no_grad():
        for gamma, value in zip(model.gammas, (1.0, -0.5, 0.1), strict=True):
            gamma.fill_(value)
    ace = ACE(model, lr=0.03, dual_lr=0.02, dual_optimizer="adam", dual_eps=1e-4, betas=(0.8, 0.99))
    lam, gamma = nn.Parameter(torch.zeros(3, dtype=torch.float64)), ace.gammas
    optimizer = torch.optim.Adam([lam], lr=0.02, eps=1e-4, betas=(0.8, 0.99))
    for _ in range(200):
        lam.grad = -gamma
        gamma = gamma - 0.03 * (0.2 * gamma + lam.detach())
        optimizer.step()
        run(ace, model, lambda g: 0.2 * g, 1)
        assert (ace.multipliers - lam).abs().max() <= 1e-12
        assert (ace.gammas - gamma).abs().max() <= 1e-12


def test_adam_primal_equals_torch_adam():
    model = Toy(2)
    ace = ACE(model, lr=0.01, dual_lr=0.0, gamma_optimizer="adam")
    twin = nn.Parameter(ace.gammas)
    optimizer = torch.optim.Adam([twin], lr=0.01)
    for _ in range(100):
        twin.grad = twin.detach() ** 3
        optimizer.step()
        run(ace, model, lambda g: g**3, 1)
        assert (ace.gammas - twin).abs().max() <= 1e-12


def quirk_start():
    gamma = torch.tensor([0.9, -0.4, 0.2], dtype=torch.float64)
    grad = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    lam = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    u = torch.tensor([0.2, 0.5, 0.05], dtype=torch.float64)
    return gamma, grad, lam, u, torch.zeros(len(ROWS), 3, dtype=torch.float64)


def test_repo_resilient_is_the_gradient_of_the_published_loss():
    """Difference 5: loss + rho |u|^2 + sum (lambda - u) slack + c slack^2, slack = |gamma| - u, ascent slack - u."""
    gamma, grad, lam, u, moments = quirk_start()
    rho, c = 1.3, 0.4
    g, v = gamma.clone().requires_grad_(), u.clone().requires_grad_()
    slack = g.abs() - v
    ((g * grad).sum() + rho * (v**2).sum() + (lam * slack + c * slack**2 - v * slack).sum()).backward()
    rule = Rule(resilient=True, repo_resilient=True, lr=0.1, slack_lr=0.2, dual_lr=0.3, rho=2 * rho, augmentation=c)
    new_gamma, new_lam, new_u, _ = dual_update(gamma, grad, lam, u, moments, rule)
    assert torch.allclose(new_gamma, gamma - 0.1 * g.grad, rtol=1e-12)
    assert torch.allclose(new_u, u - 0.2 * v.grad, rtol=1e-12)
    assert torch.allclose(new_lam, (lam + 0.3 * (gamma.abs() - 2 * u)).clamp(min=0), rtol=1e-12)
    assert new_lam[1] == 0  # the clamp is reached


def test_repo_scale_divides_the_multiplier_in_the_primal_only():
    gamma, grad, lam, u, moments = quirk_start()
    new_gamma, new_lam, _, _ = dual_update(gamma, grad, lam, u, moments, Rule(repo_scale=True, lr=0.1, dual_lr=0.3))
    assert torch.allclose(new_gamma, gamma - 0.1 * (grad + lam / 3), rtol=1e-12)
    assert torch.allclose(new_lam, lam + 0.3 * gamma, rtol=1e-12)


def test_repo_clamp_is_equality_with_non_negative_multipliers():
    gamma, grad, lam, u, moments = quirk_start()
    new_gamma, new_lam, _, _ = dual_update(gamma, grad, lam, u, moments, Rule(repo_clamp=True, lr=0.1, dual_lr=0.3))
    assert torch.allclose(new_gamma, gamma - 0.1 * (grad + lam), rtol=1e-12)
    assert torch.allclose(new_lam, (lam + 0.3 * gamma).clamp(min=0), rtol=1e-12)
    assert new_lam[1] == 0


def test_stale_slack_of_the_egno_code():
    """Difference 6, epsilon > 0: slack = |gamma| - lambda at the epoch's start, by slack_lr=0 and assigned slacks."""
    model = Toy(2)
    ace = ACE(model, "resilient", lr=0.1, dual_lr=0.2, slack_lr=0.0)
    gamma, lam = ace.gammas, ace.multipliers
    for _ in range(3):
        ace.slacks = ace.multipliers
        stale = lam
        for _ in range(4):
            gamma, lam = gamma - 0.1 * (gamma + lam * gamma.sign()), (lam + 0.2 * (gamma.abs() - stale)).clamp(min=0)
            run(ace, model, lambda g: g, 1)
    assert torch.allclose(ace.gammas, gamma, rtol=1e-12) and torch.allclose(ace.multipliers, lam, rtol=1e-12)
    assert torch.allclose(ace.slacks, stale, rtol=1e-12)


# ---- loops that do more or less than they should


def test_frequent_writes_are_rarely_scanned(monkeypatch):
    model, scans = Toy(), []
    ace = ACE(model)
    objects = gc.get_objects
    monkeypatch.setattr(gc, "get_objects", lambda: scans.append(ace.steps + 1) or objects())
    run(ace, model, torch.ones_like, 3)
    assert scans == []  # its own writes are expected
    for _ in range(200):
        with torch.no_grad():
            model.gammas[0].clamp_(min=-1)
        run(ace, model, torch.ones_like, 1)
    assert [step - 3 for step in scans] == [1, 2, 4, 8, 16, 32, 64, 128, 192]


def test_gradients_cleared_before_the_step_are_noticed():
    model = Net()
    ace = ACE(model)

    def wrong(steps):
        for _ in range(steps):
            model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
            model.zero_grad()
            ace.step()

    wrong(9)
    train(model, ace, torch.optim.SGD(ace.primal_parameters(), lr=0.1), 1)  # a right step starts the count anew
    wrong(9)
    message = r"got none in 10 calls in a row.*before zero_grad\(\).*switched off"
    with pytest.warns(UserWarning, match=message) as caught:
        wrong(1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong(20)  # once is enough
    assert ace.steps == 1


def test_frozen_gammas_are_no_reason_to_warn():
    model = Net()
    ace = ACE(model)
    model.block.gamma.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            ace.step()
    assert ace.steps == 0


# ---- the operator's own limits


def operator_arguments():
    return {"gamma": torch.ones(3), "grad": torch.ones(3), "multiplier": torch.zeros(3), "slack": torch.zeros(3),
            "moments": torch.zeros(9, 3)}


@pytest.mark.parametrize("backend", [name for name, reason in available()["dual_update"].items() if not reason])
def test_every_backend_leaves_out_nan(backend):
    arguments = operator_arguments() | {"grad": torch.tensor([1.0, math.nan, 2.0])}
    gamma, multiplier, _, moments = dual_update(**arguments, rule=Rule(lr=0.5, dual_lr=0.5), backend=backend)
    assert gamma.tolist() == [0.5, 1.0, 0.0] and multiplier.tolist() == [0.5, 0.0, 0.5]
    assert moments[:, 1].tolist() == [0.0] * 8 + [1.0]


@pytest.mark.parametrize(("change", "message"), [
    ({"gamma": torch.ones(3, 1)}, r"gamma must be \[n\], got \[3, 1\]; flatten"),
    ({"gamma": torch.ones(3, dtype=torch.int64)}, "must be float32 or float64, got torch.int64"),
    ({"grad": torch.ones(2)}, r"grad must be \[3\] like gamma, got \[2\]"),
    ({"multiplier": torch.zeros(3, dtype=torch.float64)}, "multiplier must be .* on cpu, got torch.float64 on cpu"),
    ({"slack": torch.zeros(3, device="meta")}, "slack must be torch.float32 on cpu, got torch.float32 on meta"),
    ({"moments": torch.zeros(3, 3)}, r"moments must be \[9, 3\], got \[3, 3\]; start with zeros"),
    ({"grad": torch.ones(3, requires_grad=True)}, "grad must be a constant, got a tensor that requires grad; detach"),
    ({"gamma": nn.Parameter(torch.ones(3))}, "gamma must be a constant, got a tensor that requires grad; detach"),
])
def test_wrong_operator_arguments(change, message):
    with pytest.raises(ValueError, match=f"dual_update: .*{message}"):
        dual_update(**operator_arguments() | change, rule=Rule())


def test_operator_refuses_wrong_rules_backends_and_forward_mode():
    with pytest.raises(ValueError, match="dual_update: rho must be finite and not negative, got -1.0"):
        dual_update(**operator_arguments(), rule=Rule(rho=-1.0))
    with pytest.raises(ValueError, match="dual_update: backend must be one of"):
        dual_update(**operator_arguments(), rule=Rule(), backend="opencl")
    with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
        torch.func.jvp(lambda g: dual_update(**operator_arguments() | {"grad": g}, rule=Rule())[0],
                       (torch.ones(3),), (torch.ones(3),))
