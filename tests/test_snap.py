"""Branches without effect are switched off: when, for how long, and what a step then costs; groups and the warm-up."""

import copy
import gc

import pytest
import torch
from ace_toys import Toy, run
from e3nn import o3
from gated_models import NAMES, inputs, make, output
from torch import nn

from ace_fast import ACE, relax
from ace_fast.kernels.dual_update import Rule
from ace_fast.nn import RelaxedLinear
from ace_fast.relaxation.rules import Rules, parse_groups
from bench import eager_vn, snapped
from bench.workloads import calls


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


class Pair(nn.Module):
    """Two gated layers of one's own; the second's gate hardly matters."""

    def __init__(self, second=1e-6):
        super().__init__()
        self.base = nn.Linear(4, 3)
        self.one, self.two = RelaxedLinear(4, 3), RelaxedLinear(3, 3, gamma_init=second)

    def forward(self, x):
        y = self.one(x, self.base(x))
        return self.two(y, y)


def loop(model, ace, steps, target=0.0, seed=0, lr=1e-3):
    """Plain descent; what every step of ACE said."""
    optimizer = torch.optim.SGD(ace.primal_parameters(), lr=lr)
    said = []
    for i in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed + i))
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
        said.append(ace.step())
    return said


@pytest.mark.parametrize("name", NAMES)
def test_with_all_branches_off_a_whole_step_makes_the_strict_models_calls(name):
    counts, arguments = [], inputs(name)
    for relaxed in (False, True):
        model = make(name, relaxed)
        bound = "none" if name == "egno" else "spectral"  # its branches have torch's own spectral norms
        ace = ACE(model, bound=bound, snap=True, tolerance=1e9, patience=1, look_every=1) if relaxed else None
        optimizer = torch.optim.Adam(ace.primal_parameters() if ace else model.parameters(), fused=True)

        def step(model=model, optimizer=optimizer, ace=ace):
            optimizer.zero_grad()
            output(model, arguments).square().sum().backward()
            optimizer.step()
            return ace.step() if ace else False

        assert [step() for _ in range(3)] == [False, relaxed, False]
        counts.append(calls(step))
    assert ace.snapped == [True] * len(ace.names) and not ace.gammas.any() and ace.steps == 4
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("fresh", "shape"), [(lambda: o3.Linear("4x0e+4x1o", "4x0e+4x1o"), (5, 16)),
                                              (lambda: eager_vn.VNLinear(4, 5), (2, 4, 3, 6))], ids=["e3nn", "vnn"])
def test_branches_that_relax_added_are_switched_off_too(fresh, shape):
    strict, relaxed = (nn.Sequential(fresh()).double() for _ in range(2))
    relax(relaxed)
    ace, x = ACE(relaxed, snap=True, tolerance=1e9, patience=1, look_every=1), torch.randn(shape)

    def step(model, owner=None):
        model(x).square().sum().backward()
        model.zero_grad()
        return owner.step() if owner else False

    said = []
    for _ in range(3):
        relaxed(x).square().sum().backward()
        said.append(ace.step())
    step(strict)
    assert said == [False, True, False]
    assert calls(lambda: step(strict)) == calls(lambda: step(relaxed, ace))


@pytest.mark.parametrize("options", [{}, {"mode": "resilient", "gamma_optimizer": "adam"}, {"snap": True},
                                     {"groups": {"one.*": {"epsilon": 0.1}}, "warmup": 5}], ids=str)
def test_a_step_is_one_operator_call(options):
    model = Pair()
    ace = ACE(model, **options)
    loop(model, ace, 2)
    for gamma in (model.one.gamma, model.two.gamma):
        gamma.grad = torch.ones(())
    assert calls(ace.step) == 1
    model.one.gamma.grad = torch.ones(())  # one of them has none
    ace.step()
    model.one.gamma.grad = torch.ones(())
    assert calls(ace.step) == 1


@pytest.mark.parametrize(("bound", "count"), [("frobenius", 10), ("spectral", 22 + 2 * 3)])
def test_a_bound_adds_the_calls_of_its_projection(bound, count):
    """As docs/relaxation.md has them, of two matrices."""
    model = Pair()
    ace = ACE(model, bound=bound)
    loop(model, ace, 1)
    model.one.gamma.grad = model.two.gamma.grad = torch.ones(())
    assert calls(ace.step) == count


def test_a_branch_is_switched_off_when_its_ratio_stayed_low_for_the_patience():
    model = Pair()
    ace = ACE(model, lr=0.0, dual_lr=1e-3, snap=True, tolerance=1e-3, patience=8, look_every=4)
    said = loop(model, ace, 8)
    assert said == [False] * 8 and ace.snapped == [False, False]  # looked at after the steps 1 and 5
    with torch.no_grad():
        model.two.gamma.fill_(1.0)  # a high ratio in between starts the count anew
    assert not any(loop(model, ace, 4)) and len(ace._watch.history) == 3
    with torch.no_grad():
        model.two.gamma.fill_(1e-6)
    said = loop(model, ace, 9)
    assert said == [False] * 8 + [True] and ace.snapped == [False, True] and ace.gammas.tolist() == [1.0, 0.0]
    price = ace.multipliers[1].item()
    loop(model, ace, 10)
    assert ace.multipliers[1] == price and ace.multipliers[0] > 0  # the other one is stepped as before
    assert ace.metrics()["skipped"].tolist() == [0, 10] and model.two.snapped == (True,)


def test_small_gammas_of_large_branches_stay():
    """The ratio counts, not |gamma|: a branch may grow as its gamma shrinks."""
    model = Pair()
    with torch.no_grad():
        model.two.weight.mul_(1e6)
    ace = ACE(model, lr=0.0, snap=True, tolerance=1e-3, patience=2, look_every=1)
    loop(model, ace, 6)
    assert ace.snapped == [False, False] and abs(ace.gammas[1] - 1e-6) < 1e-12


@pytest.mark.parametrize(("options", "back"), [({"mode": "resilient"}, True), ({"epsilon": 0.5}, True), ({}, False)])
def test_a_branch_comes_back_where_the_loss_wants_it_and_the_constraint_lets_it(options, back):
    model = Pair()
    ace = ACE(model, **options, lr=1e-9, dual_lr=0.0, snap=True, tolerance=1e-3, patience=4, look_every=2)
    assert any(loop(model, ace, 6)) and ace.snapped == [False, True]
    with torch.no_grad():  # from now on the branch would help: its output is what is missing
        model.two.weight.zero_()
        model.two.bias.fill_(1.0)
    ace.rule = ace.rule._replace(lr=1e-3)
    said = loop(model, ace, 10, target=100.0, lr=0.0)
    assert any(said) == back and ace.snapped == [False, not back]
    if back:
        first = said.index(True)
        assert first == 2 and model.two.snapped == (False,) and ace.gammas[1] > 0.1


def test_a_branch_stays_off_while_its_multiplier_holds_it():
    model = Pair()
    ace = ACE(model, "resilient", lr=1e-9, dual_lr=0.0, snap=True, tolerance=1e-3, patience=4, look_every=2)
    loop(model, ace, 6)
    ace.multipliers = torch.tensor([0.0, 1e6])
    assert not any(loop(model, ace, 12, target=100.0, lr=0.0)) and ace.snapped == [False, True]


def test_a_trial_changes_nothing_but_measures():
    """In a trial the branch is on at gamma = 0: outputs and the weights' gradients are those without it."""
    losses = []
    for snap in (True, False):
        torch.manual_seed(0)
        model = Pair(0.0)
        ace = ACE(model, "resilient", lr=0.0, dual_lr=0.0, slack_lr=0.0, snap=snap, patience=1, look_every=1)
        ace.multipliers = torch.tensor([0.0, 1e6])
        loop(model, ace, 5, lr=0.1)
        losses.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert ace.snapped == [False, snap]
    assert torch.equal(*losses)


def test_resume_gives_the_same_switches(tmp_path):
    def fresh():
        torch.manual_seed(3)
        model = Pair()
        return model, ACE(model, "resilient", lr=1e-5, dual_lr=1e-3, snap=True, tolerance=1e-3, patience=4,
                          look_every=2, groups={"one.*": {"mode": "equality"}}, warmup=6)

    whole = fresh()
    loop(*whole, 7)
    assert whole[1].snapped == [False, True]
    torch.save([x.state_dict() for x in whole], tmp_path / "state.pt")
    said = loop(*whole, 9, target=9.0, seed=50)
    resumed = fresh()
    for thing, state in zip(resumed, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        thing.load_state_dict(state)
    assert resumed[0].two.snapped == (True,)
    assert loop(*resumed, 9, target=9.0, seed=50) == said
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole[1]._watch.verdict(1) == resumed[1]._watch.verdict(1)


def test_looks_between_replays():
    """A loop of graph replays counts no steps and measures nothing: `look` does both."""
    model = Pair()
    ace = ACE(model, snap=True, tolerance=1e-3, patience=100)
    x = torch.randn(8, 4)
    assert [ace.look(x, steps=steps) for steps in (50, 100, 150)] == [False, False, True]
    assert ace.snapped == [False, True] and ace.steps == 150 and not model.two.gamma.any()
    assert not ace.look(lambda: model(x), steps=200)


def test_a_compiled_model_is_measured_and_switched():
    """In one graph; what is switched compiles anew."""
    model, x = Pair(), torch.randn(8, 4)
    ace = ACE(model, snap=True, tolerance=1e9, patience=2, look_every=2)
    call, said = torch.compile(model, backend="eager", fullgraph=True), []
    for _ in range(4):
        call(x).square().sum().backward()
        said.append(ace.step())
    assert said == [False, False, True, False] and all(ace.snapped)


def test_evaluation_and_failed_passes_are_not_measured():
    model = Pair()
    ace = ACE(model, snap=True)
    with pytest.raises(MemoryError), ace.attempt():
        model(torch.randn(8, 4))
        assert len(ace._watch.seen) == 2
        raise MemoryError
    with torch.no_grad():
        model(torch.randn(8, 4))
    model.eval()
    model(torch.randn(8, 4))
    assert ace._watch.seen == []


def test_copies_and_owners_that_are_gone_leave_the_layers_alone():
    model = Pair()
    ace = ACE(model, snap=True)
    twin, twin_ace = copy.deepcopy((model, ace))
    loop(twin, twin_ace, 3)
    assert twin_ace.steps == 3 and ace.steps == 0 and model.one._record is not None
    ace.release()
    assert model.one._record is None
    ace = ACE(model, snap=True)
    del ace
    gc.collect()
    assert model.one._record is None


@pytest.mark.parametrize(("make_model", "options", "message"), [
    (Toy, {"snap": True}, "snap must be False where a gate cannot be switched off, got True with 'gammas.0'; it must"),
    (lambda: make("schnet", gammas="nn"), {"snap": True}, "snap must be False .* got True with 'gammas.0'"),
    (Pair, {"tolerance": 0.0}, "tolerance must be positive and finite, got 0.0"),
    (Pair, {"patience": 0}, "patience must be a positive number of steps, got 0"),
    (Pair, {"look_every": True}, "look_every must be a positive number of steps, got True"),
    (Pair, {"warmup": -1}, "warmup must be a number of steps, got -1"),
    (Pair, {"groups": {"three": {"lr": 1.0}}}, r"groups\['three'\] must name gammas, got none; there are"),
    (Pair, {"groups": {"*": {"lr": 1.0}, "one*": {"lr": 2.0}}}, "got none that an earlier group does not have"),
    (Pair, {"groups": {"one*": {"speed": 1.0}}}, r"groups\['one\*'\] must have keys of .*, got 'speed'"),
    (Pair, {"groups": {"one*": {"mode": "strict"}}}, r"groups\['one\*'\]\['mode'\] must be one of .*, got 'strict'"),
    (Pair, {"groups": {"one*": {"lr": "fast"}}}, r"groups\['one\*'\]\['lr'\] must be a number, got 'fast'"),
    (Pair, {"groups": {"one*": {"lr": -1.0}}}, "lr must be finite and not negative, got -1.0"),
    (Pair, {"groups": {"one*": 3}}, r"groups\['one\*'\] must be a dict such as .*, got 3"),
])
def test_wrong_arguments(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        ACE(make_model(), **options)


def test_wrong_states():
    ace = ACE(Pair(), groups={"one*": {"lr": 1.0}})
    state = ace.state_dict()
    for key, value, message in [
        ("groups", {}, r"state must have groups \{'one\*': .*, got \{\}; make the ACE alike"),
        ("warmup", 3, "state must have warmup 0, got 3"),
        ("watch", state["watch"] | {"off": [True]}, "state watch must be of 2 gates, got 1; make the ACE alike"),
    ]:
        with pytest.raises(ValueError, match=message):
            ace.load_state_dict(state | {key: value})


def test_the_benchmark_counts_what_it_times(monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(snapped.nbody_segnn, "LAYERS", 1)
    row = snapped.run("batch2", "cpu", 1)
    assert row["snapped_calls"] == row["strict_calls"] < row["relaxed_calls"] < row["measured_calls"]
    assert row["tried_calls"] > row["strict_calls"] and row["noise"] >= 0
    assert all(row[f"{name}_ms"] > 0 for name in (*snapped.VERSIONS, "ace", "ace_bound"))


# ---- groups and warm-up


def test_a_group_is_an_ace_of_its_own():
    """Numbers and modes of each group against owners of the same gammas alone."""
    options = {"lr": 0.05, "dual_lr": 0.04, "augmentation": 0.3}
    own = {"mode": "resilient", "epsilon": 0.1, "rho": 2.0, "dual_optimizer": "adam"}
    model, first, second = Toy(3), Toy(2), Toy(1)
    ace = ACE(model, **options, groups={"gammas.1": own})
    alone = [ACE(first, **options), ACE(second, **options, **own)]
    for target in (0.5, -1.0, 0.2):
        run(ace, model, lambda g, t=target: g - t, 7)
        run(alone[0], first, lambda g, t=target: g - t, 7)
        run(alone[1], second, lambda g, t=target: g - t, 7)
    for key, value in ace.metrics().items():
        parts = [a.metrics()[key] for a in alone]
        assert torch.equal(value, torch.stack([parts[0][0], parts[1][0], parts[0][1]])), key
    assert ace.mode == "equality" and alone[1].slacks.any()


def test_a_schedule_reaches_what_a_group_has_not_of_its_own():
    rules = Rules(Rule(lr=0.1, rho=3.0), {"a*": {"lr": 0.5}, "*": {"mode": "resilient"}}, ["ab", "b", "c"], 0)
    assert rules.places == [1, 2, 2]
    rules.rule = rules.rule._replace(lr=0.2, dual_lr=0.7)
    assert [r.lr for r in rules.all()] == [0.2, 0.5, 0.2] and [r.dual_lr for r in rules.all()] == [0.7] * 3
    assert rules.of(0).slack_lr == 0.5 and rules.may_return(1) and not rules.may_return(0)


def test_the_warm_up_brings_the_constraints_in():
    model = Toy()
    gammas, multipliers, _ = run(ACE(model, lr=0.0, dual_lr=0.5, warmup=4), model, torch.zeros_like, 7)
    assert multipliers[:, 0].tolist() == [0.0, 0.125, 0.375, 0.75, 1.25, 1.75, 2.25]
    assert gammas.unique().tolist() == [1.0]
    model = Toy()
    gammas, *_ = run(ACE(model, lr=0.1, dual_lr=0.0, augmentation=1.0, warmup=2), model, torch.zeros_like, 3)
    assert torch.allclose(gammas[:, 0], torch.tensor([1.0, 0.9, 0.72]), rtol=1e-15)


def test_groups_from_one_line():
    found = parse_groups("layers.0.*: mode=resilient epsilon=0.1; *: rho=2;")
    assert found == {"layers.0.*": {"mode": "resilient", "epsilon": 0.1}, "*": {"rho": 2.0}}
    assert parse_groups("") == {}
    for text in ("layers", "a:", ": lr=1", "a: lr", "a: lr="):
        with pytest.raises(ValueError, match="groups must be like 'layers.0.*: mode=resilient epsilon=0.1; ...', got"):
            parse_groups(text)
    with pytest.raises(ValueError, match="groups must have numbers, got 'x' in 'a: lr=x'"):
        parse_groups("a: lr=x")
