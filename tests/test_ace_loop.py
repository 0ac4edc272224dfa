"""ACE in a training loop: whose gammas they are, missing gradients, resume, bounds on the branches, every error."""

import copy
import math

import pytest
import torch
from ace_toys import Net, Toy, run, train
from torch import nn

from ace_fast.kernels.dual_update import Rule
from ace_fast.relaxation import ACE, PRESETS, Bound, branch_weights


def test_training_loop_drives_gamma_to_zero_and_keeps_the_bound():
    model = Net()
    with torch.no_grad():
        model.lin_noneq1[0].weight.mul_(5)
    ace = ACE(model, **PRESETS["damped"] | {"lr": 0.05, "dual_lr": 0.05})
    optimizer = torch.optim.Adam(ace.primal_parameters(), lr=1e-3)
    train(model, ace, optimizer, 300)
    assert ace.names == ["block.gamma"] and model.block.gamma.grad is None
    assert abs(ace.gammas.item()) < 0.05
    for w in branch_weights(model):
        assert torch.linalg.matrix_norm(w, 2) <= 1 + 1e-3  # one power iteration a step follows moving weights


def test_presets_and_defaults():
    default, paper = ACE(Net()), ACE(Net(), **PRESETS["paper"])
    assert default.rule == paper.rule == Rule()
    assert default.bound is None and default.mode == "equality"
    damped = ACE(Net(), **PRESETS["damped"])
    assert damped.rule.augmentation == 1 and damped.bound.kind == "spectral"


def test_primal_parameters_are_all_but_the_gammas():
    model = Net()
    ace = ACE(model)
    assert len(ace.primal_parameters()) == len(list(model.parameters())) - 1
    assert all(p is not model.block.gamma for p in ace.primal_parameters())


def test_gammas_are_found():
    model = Net()
    model.norm = nn.Module()
    model.norm.gamma = nn.Parameter(torch.ones(4))  # the scale of somebody's norm: no scalar, no gate
    assert ACE(model).names == ["block.gamma"]
    assert ACE(Toy(3)).names == ["gammas.0", "gammas.1", "gammas.2"]
    vector = Toy(0)
    ace = ACE(vector, gammas=[vector.weight])
    vector.weight.grad = torch.arange(3.0, dtype=torch.float64)
    ace.step()
    assert torch.allclose(vector.weight, 1 - 9e-4 * torch.arange(3.0, dtype=torch.float64), rtol=1e-15)
    model.get_gammas = lambda: [model.block.gamma]
    assert ACE(model).names == ["block.gamma"]


def test_gammas_without_gradient_sit_out():
    model = Toy(2)
    ace = ACE(model, lr=0.1, dual_lr=0.1)
    ace.step()  # no branch took part: nothing happens, nothing is counted
    assert ace.steps == 0 and not ace.multipliers.any() and not ace.metrics()["skipped"].any()
    model.gammas[0].grad = torch.ones((), dtype=torch.float64)
    ace.step()
    metrics = ace.metrics()
    assert metrics["gammas"].tolist() == [0.9, 1.0]
    assert metrics["multipliers"].tolist() == [0.1, 0.0]
    assert metrics["skipped"].tolist() == [0.0, 1.0]
    assert model.gammas[0].grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_bad_gradients_do_not_enter_the_state(bad):
    model, twin = Toy(2), Toy(1)
    make = lambda m: ACE(m, lr=0.1, dual_lr=0.1, gamma_optimizer="adam", dual_optimizer="adam")  # noqa: E731
    ace, clean = make(model), make(twin)
    run(ace, model, lambda g: g, 3)
    run(ace, model, lambda g: torch.stack([g[0], torch.full_like(g[1], bad)]), 1)
    run(ace, model, lambda g: g, 3)
    run(clean, twin, lambda g: g, 6)
    assert ace.metrics()["skipped"].tolist() == [0, 1]
    assert torch.equal(ace.gammas[1:], clean.gammas) and torch.equal(ace.multipliers[1:], clean.multipliers)


@pytest.mark.parametrize("mode", ["equality", "resilient"])
def test_resume_gives_the_same_numbers(mode, tmp_path):
    def make():
        torch.manual_seed(3)
        model = Net()
        ace = ACE(model, mode, lr=0.02, dual_lr=0.03, gamma_optimizer="adam", dual_optimizer="adam", bound="spectral",
                  bound_every=2)
        return model, ace, torch.optim.Adam(ace.primal_parameters(), lr=1e-2)

    whole = make()
    train(*whole, 7)
    ace = whole[1]
    ace.rule = ace.rule._replace(lr=0.01)
    torch.save([x.state_dict() for x in whole], tmp_path / "state.pt")
    train(*whole, 9, seed=1)
    resumed = make()
    for thing, state in zip(resumed, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        thing.load_state_dict(state)
    train(*resumed, 9, seed=1)
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    for key, value in whole[1].metrics().items():
        assert torch.equal(value, resumed[1].metrics()[key])
    assert torch.equal(whole[1].bound.vectors, resumed[1].bound.vectors) and resumed[1].steps == 16


def test_the_state_follows_the_model_to_another_dtype():
    model = Net(torch.float32)
    ace = ACE(model, bound="spectral")
    optimizer = torch.optim.SGD(ace.primal_parameters(), lr=0.1)
    train(model, ace, optimizer, 2)
    before = ace.multipliers.double()
    model.double()
    assert torch.equal(ace.multipliers.double(), before)
    train(model, ace, optimizer, 1)
    assert ace.multipliers.dtype == ace.bound.vectors.dtype == torch.float64
    assert ace.multipliers != before


def test_copies_of_model_and_ace_go_separate_ways():
    model = Net()
    ace = ACE(model, bound="spectral")
    twin, twin_ace = copy.deepcopy((model, ace))
    train(twin, twin_ace, torch.optim.SGD(twin_ace.primal_parameters(), lr=0.1), 1)
    assert ace.gammas.item() == 1 and twin_ace.gammas.item() != 1


def test_metrics_are_snapshots():
    model = Toy()
    ace = ACE(model)
    run(ace, model, torch.ones_like, 1)
    before = ace.metrics()
    kept = {k: v.clone() for k, v in before.items()}
    run(ace, model, torch.ones_like, 1)
    assert all(torch.equal(before[k], kept[k]) for k in kept)
    assert list(kept) == ["gammas", "multipliers", "slacks", "skipped"]


# ---- bounds


@pytest.mark.parametrize("kind", ["spectral", "frobenius"])
@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_projection_reaches_the_ball_and_spares_its_inside(kind, limit):
    big, small = torch.randn(7, 5, dtype=torch.float64), 1e-3 * torch.randn(7, 5, dtype=torch.float64)
    zero, wide = torch.zeros(3, 4, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
    kept = big.clone(), small.clone()
    bound = Bound([big, small, zero, wide], kind, limit)
    order = 2 if kind == "spectral" else "fro"
    for _ in range(300):
        norms = bound.project()
    for w in (big, wide):
        assert abs(torch.linalg.matrix_norm(w, order).item() - limit) < 1e-9 * limit
    assert torch.equal(small, kept[1]) and not zero.any()
    assert torch.allclose(big / big.norm(), kept[0] / kept[0].norm(), rtol=1e-12)  # only scaled
    assert abs(norms[0].item() - limit) < 1e-9 and norms[2] == 0
    zero[0, 0] = 9.0  # a matrix that was zero is bounded when it grows
    for _ in range(300):
        bound.project()
    assert abs(zero[0, 0].item() - limit) < 1e-9


def test_the_first_projection_of_fresh_weights_is_close():
    weights = [nn.Linear(i, o).weight.detach() for o, i in ((128, 128), (128, 64), (64, 128))]
    assert all(torch.linalg.matrix_norm(w, 2) > 0.9 for w in weights)
    norms = Bound(weights).project()
    for w, norm in zip(weights, norms, strict=True):
        assert torch.linalg.matrix_norm(w, 2) < 1.02
        assert norm > 0.9


def test_bound_recovers_from_nan_weights():
    w = torch.randn(4, 4, dtype=torch.float64)
    good = w.clone()
    bound = Bound([w])
    w.fill_(math.nan)
    bound.project()
    w.copy_(3 * good)
    for _ in range(300):
        bound.project()
    assert torch.linalg.matrix_norm(w, 2) <= 1 + 1e-9


def test_bound_every_k_steps():
    model = Net()
    ace = ACE(model, lr=0.0, dual_lr=0.0, bound="frobenius", bound_every=2, branches=[model.base.weight])
    norms = []
    for _ in range(4):
        with torch.no_grad():
            model.base.weight.fill_(1.0)
        model.block.gamma.grad = torch.zeros((), dtype=torch.float64)
        ace.step()
        norms.append(model.base.weight.norm().item())
    assert norms[0] == norms[2] > 3 and norms[1] == norms[3] and abs(norms[1] - 1) < 1e-12


def test_bounding_leaves_the_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    Bound([torch.ones(3, 3)])
    assert torch.rand(1) == expected


def test_branch_weights_are_found():
    class RelaxedLinear(nn.Linear):
        pass

    model = Net()
    model.extra = RelaxedLinear(3, 3)
    found = branch_weights(model)
    expected = [model.lin_noneq1[0].weight, model.lin_noneq1[2].weight, model.extra.weight]
    assert [id(w) for w in found] == [id(w) for w in expected]
    model.branch_parameters = lambda: list(model.lin_noneq1.parameters())
    assert [id(w) for w in branch_weights(model)] == [id(w) for w in expected[:2]]


# ---- errors


def test_an_optimizer_that_holds_a_gamma_is_refused():
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    message = r"gamma 'block.gamma' must be stepped by ACE alone, got an optimiser \(Adam\).*primal_parameters"
    with pytest.raises(ValueError, match=message):
        ACE(model, optimizer=optimizer)
    ace = ACE(model)
    with pytest.raises(ValueError, match=message):
        ace.check(optimizer)
    ace.check(torch.optim.Adam(ace.primal_parameters()))


def test_a_gamma_added_later_is_found_at_the_first_step():
    model = Net()
    ace = ACE(model)
    optimizer = torch.optim.SGD(ace.primal_parameters(), lr=0.1)
    ace.release()
    ace = ACE(model, optimizer=optimizer)
    optimizer.add_param_group({"params": [model.block.gamma]})
    with pytest.raises(ValueError, match="must be stepped by ACE alone, got an optimiser"):
        train(model, ace, optimizer, 1)


def test_an_optimizer_nobody_named_is_found_by_its_step():
    model = Net()
    ace = ACE(model)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="must be stepped by ACE alone, got an optimiser"):
        train(model, ace, optimizer, 1)


def test_gammas_may_be_written_by_hand():
    model = Net()
    ace = ACE(model)
    optimizer = torch.optim.SGD(ace.primal_parameters(), lr=0.1)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    train(model, ace, optimizer, 1)
    with torch.no_grad():
        model.block.gamma.zero_()
    train(model, ace, optimizer, 1)
    assert ace.steps == 2


def test_a_second_optimizer_is_found_after_innocent_writes():
    """After n innocent writes at the latest at write 2 n, and never more than 64 writes later."""
    for innocent, allowed in ((1, 1), (3, 1), (100, 64)):
        model = Net()
        ace = ACE(model)
        optimizer = torch.optim.SGD(ace.primal_parameters(), lr=0.1)
        for _ in range(innocent):
            with torch.no_grad():
                model.block.gamma.mul_(1.0)
            train(model, ace, optimizer, 1)
        assert ace.steps == innocent
        second = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="must be stepped by ACE alone, got an optimiser"):
            train(model, ace, second, allowed)


def test_an_optimizer_that_clears_the_gradients_is_found_too():
    model = Net()
    ace = ACE(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="must be stepped by ACE alone, got an optimiser"):
        ace.step()


def test_a_gamma_has_one_ace():
    model = Net()
    first = ACE(model)
    with pytest.raises(ValueError, match="gamma 'block.gamma' must belong to one ACE, got a second one.*release"):
        ACE(model)
    first.release()
    second = ACE(model)
    with pytest.raises(ValueError, match="step must be called on an owner of gammas, got a released ACE"):
        first.step()
    del second
    ACE(model)


def test_replaced_parameters_are_noticed():
    model = Net()
    ace = ACE(model)
    optimizer = torch.optim.SGD(ace.primal_parameters(), lr=0.1)
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(ValueError, match="gamma 'block.gamma' must still be the model's parameter.*assign=True"):
        train(model, ace, optimizer, 1)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"mode": "strict"}, r"mode must be one of \['equality', 'resilient'\], got 'strict'"),
    ({"gamma_optimizer": "lbfgs"}, r"gamma_optimizer must be one of \['sgd', 'adam'\], got 'lbfgs'"),
    ({"dual_optimizer": "rprop"}, r"dual_optimizer must be one of \['sgd', 'adam'\], got 'rprop'"),
    ({"bound": "max"}, r"bound must be one of \['none', 'spectral', 'frobenius'\], got 'max'"),
    ({"bound_every": 0}, "bound_every must be a positive number of steps, got 0"),
    ({"lr": -1.0}, "lr must be finite and not negative, got -1.0"),
    ({"dual_lr": math.nan}, "dual_lr must be finite and not negative, got nan"),
    ({"epsilon": math.inf}, "epsilon must be finite and not negative, got inf"),
    ({"betas": (0.9, 1.0)}, r"beta2 must be in \[0, 1\), got 1.0"),
    ({"lr": "a"}, "lr must be finite and not negative, got 'a'"),
    ({"rho": None}, "rho must be finite and not negative, got None"),
    ({"betas": ("a", 0.9)}, r"beta1 must be in \[0, 1\), got 'a'"),
    ({"tolerance": "a"}, "tolerance must be positive and finite, got 'a'"),
    ({"groups": ["*"]}, r"ACE: groups must be a dict such as \{'layers.0.\*': .*, got a list"),
    ({"bound": "spectral", "bound_limit": "a"}, "Bound: limit must be positive and finite, got 'a'"),
    ({"betas": 0.9}, r"ACE: betas must be two numbers \(beta1, beta2\), got 0.9; the default is"),
    ({"betas": (0.9, 0.99, 0.999)}, r"betas must be two numbers .*, got \(0.9, 0.99, 0.999\)"),
    ({"repo_resilient": True}, "repo_resilient must be False for the equality rule, got True; set resilient"),
    ({"mode": "resilient", "repo_clamp": True}, "repo_clamp must be False for the resilient rule, got True"),
    ({"gammas": []}, r"model must have gammas, got none; build it with relaxed=True, or pass gammas"),
    ({"gammas": [nn.Parameter(torch.ones(()))]}, "gammas must be parameters of the model, got a Parameter.*register"),
    ({"bound": "spectral", "branches": []}, "Bound: weights must be the matrices of the branches, got none; name them"),
    ({"bound": "spectral", "bound_limit": 0.0}, "Bound: limit must be positive and finite, got 0.0"),
])
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ACE(Net(), **arguments)


def test_wrong_models():
    with pytest.raises(ValueError, match="model must have gammas, got none"):
        ACE(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="gamma 'gammas.0' must be float32 or float64, got torch.bfloat16"):
        ACE(Toy(dtype=torch.bfloat16))
    mixed = Toy(2)
    mixed.gammas[1].data = mixed.gammas[1].data.float()
    with pytest.raises(ValueError, match="gamma 'gammas.1' must be torch.float64 on cpu like the others, got"):
        ACE(mixed)
    with pytest.raises(ValueError, match=r"kind must be one of \['spectral', 'frobenius'\], got 'l1'"):
        Bound([torch.ones(2, 2)], "l1")
    with pytest.raises(ValueError, match=r"weights must be matrices \[O, I\], got \[3\]"):
        Bound([torch.ones(3)])


def test_wrong_states():
    ace = ACE(Net(), bound="spectral")
    state = ace.state_dict()
    for key, value, message in [
        ("rule", ace.rule._replace(resilient=True)._asdict(), "state must be of mode 'equality', got the other one"),
        ("rule", ace.rule._replace(lr=-1.0)._asdict(), "ACE: state rule: lr must be finite and not negative, got -1.0"),
        ("rule", ace.rule._asdict() | {"speed": 1}, r"state rule must have the keys .*, got the unknown \['speed'\]"),
        ("rule", {"lr": 0.1}, r"state rule must have the keys .*, got none of \['resilient'"),
        ("rule", [0.1], r"state rule must be a dict, got list; give what ace.state_dict\(\) returned"),
        ("speed", 1, r"state must have the keys .*, got the unknown \['speed'\]; give what"),
        ("names", ["gamma"], r"state must have names \['block.gamma'\], got \['gamma'\]"),
        ("bound", None, "state must have bound spectral, got None; make the ACE alike"),
        ("multipliers", torch.zeros(2), r"state multipliers must be \[1\], got \[2\]"),
        ("bound_vectors", torch.zeros(2), r"state bound_vectors must be \[8\], got \[2\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            ace.load_state_dict(state | {key: value})
        assert ace.rule == Rule() and ace.steps == 0
    with pytest.raises(ValueError, match=r"state must have the keys .* got none of \['rule'\]"):
        ace.load_state_dict({k: v for k, v in state.items() if k != "rule"})
    with pytest.raises(ValueError, match=r"slacks must be \[1\], got \[3\]"):
        ace.slacks = torch.zeros(3)
    with pytest.raises(ValueError, match=r"multipliers must be \[1\], got \[3\]"):
        ace.multipliers = torch.zeros(3)
