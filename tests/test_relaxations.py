"""The deciders beside ACE: formulas by other means in float64, gradients, checkpoints, every error."""

import copy

import pytest
import torch
import torch.distributed as dist
from e3nn import o3
from gated_models import inputs, make, output
from torch import nn

from ace_fast.nn import RelaxedLinear, VNEdgeConv
from ace_fast.nn.gates import Collector, gated_layers, recording
from ace_fast.relaxation import ACE, RELAXATIONS, Remul, ResidualPrior, Schedule, SoftEquivariance, equivariant_part
from ace_fast.relaxation import make as decider_of
from ace_fast.relaxation.branches import find_branches
from ace_fast.relaxation.groups import GROUPS, projector
from ace_fast.relaxation.lie import lie_terms
from ace_fast.symmetry.matrices import generators

IRREPS = [o3.Irrep(i) for i in ("0e", "0o", "1o", "1e", "2e")]
OPTIONS = {"ace": {}, "schedule": {"steps": 6}, "rpp": {}, "per": {"steps": 6, "adjust": 0.5}, "remul": {}}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def step(model, decider, optimizer, arguments, other):
    optimizer.zero_grad()
    loss_of = lambda a: output(model, a).square().mean()  # noqa: E731
    loss = loss_of(arguments)
    (loss + decider.penalty(loss, lambda: loss_of(other))).backward()
    optimizer.step()
    decider.step()


def test_generators_are_those_of_turns():
    for l in range(5):
        assert (generators(l) - o3.so3_generators(l)).abs().max() < 1e-14
    angle = torch.tensor(0.3)
    turn = torch.matrix_exp(angle * generators(1)[2])
    assert (turn - o3.matrix_z(angle)).abs().max() < 1e-14


@pytest.mark.parametrize("group", GROUPS)
def test_projectors_are_orthogonal_and_their_maps_commute(group):
    turn = o3.rand_matrix()
    if "2" in group:
        about = {"x": o3.matrix_x, "y": o3.matrix_y, "z": o3.matrix_z}[group[-1]]
        turn = about(torch.tensor(1.1))
    if group.startswith("O"):
        mirror = torch.ones(3)
        mirror["xyz".index(group[-1]) - 1 if "2" in group else 0] = -1
        turn = turn @ mirror.diag()
    for out in IRREPS:
        for into in IRREPS:
            p = projector(out, into, group)
            assert (p @ p - p).abs().max() < 1e-13 and (p - p.T).abs().max() < 1e-13
            m = (p @ torch.randn(out.dim * into.dim)).view(out.dim, into.dim)
            left, right = (ir.D_from_matrix(turn) for ir in (out, into))
            assert (left @ m - m @ right).abs().max() < 1e-7  # the angles of e3nn's D have eight digits
    assert projector(IRREPS[0], IRREPS[0], group).item() == 1
    if "2" in group:  # the axis is left alone
        fixed = projector(o3.Irrep("1o"), IRREPS[0], group).diagonal()
        assert (fixed - nn.functional.one_hot(torch.tensor("xyz".index(group[-1])), 3)).abs().max() < 1e-13


def test_the_gaps_are_the_distances_to_the_projections():
    model = make("segnn")
    decider = SoftEquivariance(model, 10, groups=("O3", "SO2z"))
    gold = torch.zeros(2)
    angles = torch.arange(7) * (2 * torch.pi / 7)
    for branch in find_branches(model, "test", irreps=True):
        for linear, into, out in branch.steps():
            for matrix, source in ((linear.weight, into), (linear.bias[:, None], o3.Irreps("0e"))):
                gold[0] += 0.5 * (matrix - equivariant_part(matrix, out, source)).square().sum()
                turns = torch.stack([torch.matrix_exp(a * torch.block_diag(*[generators(1)[2]])) for a in angles])
                ends = [torch.stack([torch.block_diag(*[torch.ones(1, 1) if ir.l == 0 else t
                                                        for mul, ir in irreps for _ in range(mul)]) for t in turns])
                        for irreps in (out, source)]
                mean = (ends[0] @ matrix @ ends[1].transpose(1, 2)).mean(0)
                gold[1] += 0.5 * (matrix - mean).square().sum()
    assert torch.allclose(decider.gaps(), gold, rtol=1e-12)
    penalty = decider.penalty()
    assert torch.allclose(penalty, 1e-3 * gold.sum(), rtol=1e-12)
    penalty.backward()
    for branch in find_branches(model, "test", irreps=True):
        (linear, into, out) = branch.steps()[-1]
        away = linear.weight.detach() - equivariant_part(linear.weight.detach(), out, into)
        assert (linear.weight.grad - 1e-3 * away).abs().max() > 0  # SO2z adds its part
        assert (linear.weight.grad * equivariant_part(linear.weight.detach(), out, into)).sum().abs() < 1e-12


def test_a_branch_without_gap_is_equivariant():
    model = make("segnn")
    decider = SoftEquivariance(model, 10, groups=("SO3",))
    with torch.no_grad():
        for branch in find_branches(model, "test", irreps=True):
            for linear, into, out in branch.steps():
                linear.weight.copy_(equivariant_part(linear.weight, out, into, "SO3"))
                linear.bias.copy_(equivariant_part(linear.bias[:, None], out, o3.Irreps("0e"), "SO3")[:, 0])
    assert decider.gaps().item() < 1e-24
    turn = o3.rand_matrix()
    for layer in model.layers:
        for gate, branch in enumerate((layer.lin_noneq1, layer.lin_noneq2)):
            left, right = (irreps.D_from_matrix(turn) for irreps in layer.gate_irreps(gate))
            x = torch.randn(4, left.shape[0])
            assert (branch(x @ left.T) - branch(x) @ right.T).abs().max() < 1e-7 < branch(x).abs().max()


def test_strengths_follow_the_published_rule():
    model = RelaxedVectors()
    decider = SoftEquivariance(model, 8, groups=("SO3", "SO2z"), strength=2.0, adjust=0.5, power=3.0)
    seen = []
    for _ in range(8):
        decider.penalty()
        seen.append(decider.metrics()["gaps"])
        with torch.no_grad():
            model.map_to_feat_nonequiv.weight.mul_(0.9)
        decider.step()
    gaps = seen[3]  # the smallest ones so far, when the strengths were set
    assert torch.allclose(decider.metrics()["strengths"], 2.0 / (gaps / gaps.min()) ** 3, rtol=1e-12)
    assert gaps[0] > gaps[1]  # whoever commutes with all turns commutes with those about z


class RelaxedVectors(VNEdgeConv):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(2, 3, k=3, relaxed=True)


def test_the_lie_derivative_of_edges_is_the_commutator_on_every_edge():
    layer = RelaxedVectors()
    x = torch.randn(2, 2, 3, 5)
    seen = []
    with recording([layer], Collector(seen, lambda s: s)):
        layer(x)
    neighbours = layer._neighbours(x.permute(0, 3, 2, 1), None)
    points = x.permute(0, 3, 2, 1)  # [B, N, 3, C]
    there = points[torch.arange(2)[:, None, None], neighbours]
    edges = torch.cat([there - points[:, :, None], points[:, :, None].expand_as(there)], -1)  # [B, N, K, 3, 2C]
    vec = edges.transpose(-1, -2).flatten(-2).flatten(0, 2)
    for one, linear in zip(seen, (layer.map_to_feat_nonequiv, layer.map_to_dir_nonequiv), strict=True):
        size, lie = lie_terms(one, layer.gate_irreps(one.gate))
        value = linear(vec)
        gold = 0.0
        for a in generators(1):
            moved = torch.block_diag(*[a] * 4)
            back = torch.block_diag(*[a] * 3)
            gold += (vec @ moved.T @ linear.weight.T - value @ back.T).square().sum()
        assert torch.allclose(size, value.square().sum(), rtol=1e-10)
        assert torch.allclose(lie, gold, rtol=1e-10)
        (grad,) = torch.autograd.grad(lie, linear.weight)
        assert grad.isfinite().all() and grad.abs().max() > 0


@pytest.mark.parametrize("name", ["segnn", "schnet"])
def test_the_lie_derivative_is_the_derivative_of_turning_the_input(name):
    """n(exp(t A) x) - exp(t A) n(x) = t (J n A x - A n(x)) + O(t^2), by central differences."""
    model = make(name)
    seen = []
    layers = gated_layers(model)
    with recording(layers, *[Collector(seen, lambda s, layer=layer: (layer, s)) for layer in layers]):
        model(*inputs(name))
    assert len(seen) == len(model.get_gammas())
    t = 1e-5
    for layer, one in seen:
        irreps = layer.gate_irreps(one.gate)
        value = one.affine or one.branch
        gold = 0.0
        for a in range(3):
            ends = [torch.block_diag(*[t * generators(ir.l)[a] for mul, ir in i for _ in range(mul)]) for i in irreps]
            shifted = []
            for sign in (1, -1):
                left, right = (torch.matrix_exp(sign * e) for e in ends)
                shifted.append(value(one.x @ left.T) - value(one.x) @ right.T)
            gold = gold + ((shifted[0] - shifted[1]) / (2 * t)).square().sum()
        size, lie = lie_terms(one, irreps)
        assert torch.allclose(size, one.free().square().sum(), rtol=1e-12)
        assert torch.allclose(lie, gold, rtol=1e-7)


def test_the_schedule_is_a_triangle_and_its_penalty_two_roots():
    model = make("segnn")
    decider = Schedule(model, 4, lie=0.5, peak=0.8, initial=0.1)
    optimizer = torch.optim.SGD(decider.primal_parameters(), lr=0.0)
    values = []
    for _ in range(6):
        values.append(decider.gammas.unique().tolist())
        step(model, decider, optimizer, inputs("segnn"), None)
    assert values == [[0.0], [0.4], [0.8], [0.4], [0.0], [0.0]]
    output(model, inputs("segnn"))
    seen = list(decider._seen)
    terms = torch.tensor([[x.item() for x in lie_terms(s, layer.gate_irreps(s.gate))] for layer, s in seen])
    penalty = decider.penalty()
    assert torch.allclose(penalty, 0.5 * terms.sum(0).sqrt().sum(), rtol=1e-12)
    assert decider.penalty() == 0.0  # of each pass once
    assert torch.autograd.grad(penalty, model.layers[0].lin_noneq1[0].weight)[0].abs().max() > 0
    with torch.no_grad():
        output(model, inputs("segnn"))
    assert decider.penalty() == 0.0 and copy.deepcopy(model).layers[0]._record is None


def test_the_priors_are_sums_of_squares():
    model = make("segnn")
    before = model.layers[0].lin_noneq1[4].weight.detach().clone()
    decider = ResidualPrior(model, branch=0.3, equivariant=0.2, initial=0.5)
    assert torch.equal(model.layers[0].lin_noneq1[4].weight, 0.5 * before)
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    inside = [p for name, p in weights.items() if "lin_noneq" in name]
    outside = [p for name, p in weights.items() if "lin_noneq" not in name]
    gold = 0.3 * sum(p.square().sum() for p in inside) + 0.2 * sum(p.square().sum() for p in outside)
    penalty = decider.penalty()
    assert torch.allclose(penalty, gold, rtol=1e-12) and decider.gammas.unique().tolist() == [1.0]
    penalty.backward()
    assert torch.allclose(inside[0].grad, 0.6 * inside[0], rtol=1e-12)
    assert torch.allclose(outside[0].grad, 0.4 * outside[0], rtol=1e-12)


class Two(nn.Module):
    """y = w + gamma x v, of numbers."""

    def __init__(self):
        super().__init__()
        self.layer = RelaxedLinear(2, 2, bias=False)
        self.head = nn.Parameter(torch.tensor([2.0, 1.0]))


def test_remul_adds_the_loss_on_turned_copies():
    model = Two()
    decider = Remul(model, beta=0.5)
    loss, other = model.head.square().sum(), lambda: model.head.sum() * 3
    assert (loss + decider.penalty(loss, other)).item() == 5 + 0.5 * 9
    assert decider.metrics()["losses"].tolist() == [5.0, 9.0]


def test_gradnorm_moves_the_weights_by_its_rule():
    model = Two()
    decider = Remul(model, beta=0.5, balance="gradnorm", exponent=1.5, lr=0.01, shared=[model.head])
    weights, first = torch.tensor([1.0, 0.5]), None
    for scale in (1.0, 0.6):
        losses = torch.tensor([5.0 * scale, 9.0])
        norms = torch.tensor([scale * 20**0.5, 3 * 2**0.5])
        first = losses if first is None else first
        rate = losses / first
        target = (weights * norms).mean() * (rate / rate.mean()) ** 1.5
        new = weights - 0.01 * (weights * norms - target).sign() * norms
        weights = new * 1.5 / new.sum()
        loss, other = scale * model.head.square().sum(), lambda: model.head.sum() * 3
        penalty = decider.penalty(loss, other)
        assert torch.allclose(decider.metrics()["weights"], weights, rtol=1e-12)
        assert torch.allclose(loss + penalty, (weights * losses).sum(), rtol=1e-12)


def test_gradnorm_weighs_alike_on_all_processes(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    other = torch.tensor([[7.0, 3.0], [1.0, 2.0]])  # losses and norms of the other process
    monkeypatch.setattr(dist, "all_reduce", lambda x: x.add_(other))
    model = Two()
    decider = Remul(model, balance="gradnorm", lr=0.01, shared=[model.head])
    loss = model.head.square().sum()
    decider.penalty(loss, lambda: model.head.sum() * 3)
    assert decider.metrics()["losses"].tolist() == [(5 + 7) / 2, (9 + 3) / 2]
    norms = (torch.tensor([20**0.5, 3 * 2**0.5]) + other[1]) / 2
    new = 1 - 0.01 * (norms - norms.mean()).sign() * norms
    assert torch.allclose(decider.metrics()["weights"], 2 * new / new.sum(), rtol=1e-12)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_a_saved_state_goes_on_with_the_same_numbers(name):
    def begin():
        model = make("segnn")
        decider = decider_of(name, model, **OPTIONS[name])
        return model, decider, torch.optim.Adam(decider.primal_parameters(), lr=1e-2)

    arguments, other = inputs("segnn"), inputs("segnn", 2)
    model, decider, optimizer = begin()
    for _ in range(4):
        step(model, decider, optimizer, arguments, other)
    saved = copy.deepcopy((model.state_dict(), decider.state_dict(), optimizer.state_dict()))
    twin = begin()
    for thing, state in zip(twin, saved, strict=True):
        thing.load_state_dict(state)
    for _ in range(2):
        step(model, decider, optimizer, arguments, other)
        step(*twin, arguments, other)
    for mine, theirs in zip(model.state_dict().values(), twin[0].state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(decider.metrics().values(), twin[1].metrics().values(), strict=True):
        assert torch.equal(mine, theirs)
    assert decider.steps == twin[1].steps == 6
    with pytest.raises(ValueError, match="state must have the keys .*, got none of"):
        decider.load_state_dict({})
    decider.release()
    with pytest.raises(ValueError, match="got a released"):
        decider.step()
    assert all(g.requires_grad for g in model.get_gammas())
    assert decider_of("remul", model).gammas.tolist() == [1.0] * 4


def test_deciders_are_made_alike():
    for name in RELAXATIONS:
        decider = decider_of(name, make("segnn"), steps=6)
        assert decider.state_dict().get("total", 6) == 6
    with pytest.raises(ValueError, match="make: steps must be the number of training steps for 'per', got None; pass"):
        decider_of("per", make("segnn"))


@pytest.mark.parametrize("name", [n for n in RELAXATIONS if n != "ace"])
def test_gates_have_one_decider_and_are_numbers(name):
    model = make("segnn")
    ace = ACE(model)
    with pytest.raises(ValueError, match="must belong to one ACE, got a second.*release"):
        decider_of(name, model, **OPTIONS[name])
    ace.release()
    decider = decider_of(name, model, **OPTIONS[name])
    with pytest.raises(ValueError, match="must belong to one"):
        ACE(model)
    assert decider.names == [n for n, _ in model.named_parameters() if "gamma" in n]
    with pytest.raises(ValueError, match="must have ga"):
        decider_of(name, make("segnn", relaxed=False), **OPTIONS[name])
    if name in ("schedule", "rpp", "per"):
        with pytest.raises(ValueError, match="branches of free weights, got EGNO ''.*'ace' or 'remul'"):
            decider_of(name, make("egno"), **OPTIONS[name])
    with pytest.raises(ValueError, match="gates that networks compute; only ACE"):
        decider_of(name, make("schnet", gammas="nn"), **OPTIONS[name] | ({"lie": 0.0} if name == "schedule" else {}))


@pytest.mark.parametrize(("make_it", "message"), [
    (lambda: Schedule(make("segnn"), 5, lie="a"), "lie must be finite and at least 0, got 'a'"),
    (lambda: decider_of("rpl", make("segnn")), "make: name must be one of ace, schedule, rpp, per, remul, got 'rpl'"),
    (lambda: Schedule(make("segnn"), 0), "Schedule: steps must be the positive number of training steps, got 0"),
    (lambda: Schedule(make("segnn"), 5, lie=-1.0), "Schedule: lie must be finite and at least 0, got -1"),
    (lambda: Schedule(make("vn_dgcnn", legacy_view=True), 5), "lie must be 0 for layers with legacy_view=True"),
    (lambda: Schedule(Two(), 5), "branches with irreps, got RelaxedLinear 'layer', which has none"),
    (lambda: SoftEquivariance(Two(), 5), "branches with irreps, got RelaxedLinear 'layer', which has none"),
    (lambda: SoftEquivariance(make("segnn"), 5, groups=["O4"]), "groups must be different ones of O3, .*, got O4"),
    (lambda: SoftEquivariance(make("segnn"), 5, groups=[]), "groups must be .*, got none"),
    (lambda: SoftEquivariance(make("segnn"), 5, adjust=1.0), "adjust must be a share from 0 to less than 1, got 1.0"),
    (lambda: SoftEquivariance(make("segnn"), -1), "steps must be the positive number"),
    (lambda: SoftEquivariance(make("segnn"), 5, power=-1.0), "power must be at least 0 and finite, got -1"),
    (lambda: ResidualPrior(make("segnn"), branch=float("nan")), "branch must be at least 0 and finite, got nan"),
    (lambda: Remul(make("segnn"), beta=0.0), "beta must be positive and finite, got 0"),
    (lambda: Remul(make("segnn"), balance="auto"), "balance must be one of .*, got 'auto'"),
    (lambda: Remul(make("segnn"), gamma=float("inf")), "gamma must be finite, got inf"),
    (lambda: Remul(make("segnn")).penalty(), "Remul: penalty must get the loss and a function .*, got no loss"),
    (lambda: projector(IRREPS[0], IRREPS[0], "O4"), "projector: group must be one of"),
    (lambda: Schedule(make("segnn"), 5).load_state_dict(Schedule(make("segnn"), 6).state_dict()),
     "Schedule: state must have total 5, got 6; make it alike"),
])
def test_wrong_arguments(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()
