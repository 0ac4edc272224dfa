"""Gates that networks compute: SchNet and EGNO against plain code, ACE's constraint on their norms, copies, errors."""

import copy

import pytest
import torch
from dropin import copies
from torch import nn

from ace_fast import ACE
from ace_fast.kernels.dual_update import Rule
from ace_fast.kernels.dual_update.reference import gradients
from ace_fast.models import EGNO, SchNet
from ace_fast.relaxation import recalibrate


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


def schnet(**options):
    torch.manual_seed(0)
    return SchNet(**{"hidden_channels": 9, "num_filters": 6, "num_interactions": 2, "num_gaussians": 7, "cutoff": 9.0,
                     "relaxed": True, "gammas": "nn"} | options)


def egno(**options):
    torch.manual_seed(0)
    return EGNO(2, 3, 2, 9, with_v=True, num_timesteps=3, time_emb_dim=4, **{"relaxed": True, "gammas": "nn"} | options)


def atoms():
    torch.manual_seed(1)
    pairs = torch.combinations(torch.arange(4)).T
    edges = torch.cat([pairs, pairs.flip(0)], 1)
    z, pos, batch = torch.randint(1, 9, (8,)), torch.randn(8, 3), torch.tensor([0] * 4 + [1] * 4)
    return z, pos, batch, torch.cat([edges, edges + 4], 1)


def joints():
    torch.manual_seed(1)
    edges = torch.tensor([[0, 1, 1, 2, 3, 0], [1, 0, 2, 1, 0, 3]])
    return torch.randn(4, 3), torch.randn(4, 3), edges, torch.randn(6, 2), torch.randn(4, 3)


def plain_schnet(model, z, pos, batch, edges):
    """As the original: every p_i a tensor on the atoms, gates from cat(h, p) without gradient."""
    h, p, norms = model.embedding(z), model.pos_linear(pos), []
    d = (pos[edges[0]] - pos[edges[1]]).norm(dim=1)
    for interaction, chain, gate in zip(model.interactions, model.pos_interactions, model.gammas, strict=True):
        h = h + interaction(h, edges, d, model.distance_expansion(d))
        p = chain(p)
        gamma = gate(torch.cat((h.detach(), p.detach()), dim=1))
        h = h + gamma * p
        norms.append(gamma.norm())
    h = model.lin2(model.act(model.lin1(h)))
    return h.new_zeros(2, 1).index_add(0, batch, h), norms


def plain_egno(model, x, h, edges, edge_fea, v):
    """The original's forward, and for each gate a network of its kind."""
    steps, nodes, norms_h, norms_x = 3, 4, [], []
    graph = model.frames(edges, nodes)
    from ace_fast.models.egno import time_embedding

    h = torch.cat([h.repeat(steps, 1), time_embedding(steps, 4, x).repeat_interleave(nodes, 0)], 1)
    p, h, x, v = model.pos_linear_h(h), model.embedding(h), x.repeat(steps, 1), v.repeat(steps, 1)
    for i, layer in enumerate(model.layers):
        h = model.time_conv_modules[i](h.view(steps, nodes, -1)).flatten(0, 1)
        pair = model.time_conv_x_modules[i](torch.stack([x.view(steps, nodes, 3), v.view(steps, nodes, 3)], -1))
        x, v = pair[..., 0].flatten(0, 1), pair[..., 1].flatten(0, 1)
        q = model.pos_interactions_x[i](model.pos_linear_x(x))
        x, v, h = layer(x, h, graph, edge_fea.repeat(steps, 1), v=v)
        p = model.pos_interactions_h[i](p)
        gamma_h = model.gammas_h[i](torch.cat([h, p], 1).detach())
        gamma_x = model.gammas_x[i](torch.cat([h, q], 1).detach())
        x, h = x + gamma_x * q, h + gamma_h * p
        norms_h.append(gamma_h.norm()), norms_x.append(gamma_x.norm())
    return torch.cat([x, v, h], 1), norms_h + norms_x


MODELS = {
    "schnet": (schnet, atoms, plain_schnet, lambda model, given: model(*given), 1),
    "egno": (egno, joints, plain_egno, lambda model, given: torch.cat(model(*given), 1), 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_of_plain_code(name):
    """Outputs, norms, buffers, and gradients of a loss that has both, in the parameters and the positions."""
    make, inputs, plain, call, place = MODELS[name]
    found = []
    for run in (lambda model, given: (call(model, given), model.gate_norms), lambda m, given: plain(m, *given)):
        model, given = make(), list(inputs())
        given[place] = given[place].requires_grad_()
        out, norms = run(model, given)
        loss = out.square().sum() + sum((i + 1) * norm for i, norm in enumerate(norms))
        leaves = [given[place], *model.parameters()]
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        found.append([out, *norms, *grads, *(b for b in model.buffers() if b.is_floating_point())])
    scale = max(g.abs().max() for g in found[1])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(b.abs().max(), 1e-2 * scale)


def test_training_on_forces():
    """A gate is a constant of the force: the second derivatives are those of plain code, too."""
    found = []
    for run in (lambda m, given: m(*given), lambda m, given: plain_schnet(m, *given)[0]):
        model, given = schnet(), list(atoms())
        given[1] = given[1].requires_grad_()
        (force,) = torch.autograd.grad(run(model, given).sum(), given[1], create_graph=True)
        found.append([force, *torch.autograd.grad(force.square().sum(), model.parameters(), materialize_grads=True)])
    scale = max(g.abs().max() for g in found[1])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(b.abs().max(), scale)


@pytest.mark.parametrize("name", MODELS)
def test_switched_off_is_the_strict_model(name):
    make, inputs, _, call, _ = MODELS[name]
    model, strict, given = make(), make(relaxed=False), inputs()
    call(model, given)
    assert len(model.gate_norms) == len(model.get_gate_networks())
    strict.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(("pos_", "gammas"))})
    model.set_equivariance(False)
    assert torch.equal(call(model, given), call(strict, given))
    assert model.gate_norms is None and strict.get_gate_networks() == []


def test_names_and_shapes_of_the_original():
    """What its checkpoints hold, with the layer that it leaves open (LazyLinear) filled in."""
    gates = {f"gammas.{i}.{j}.{part}": (rows, columns) if part == "weight" else (rows,) for i in range(2)
             for j, (rows, columns) in {0: (9, 18), 2: (4, 9), 4: (3, 4), 6: (1, 3)}.items()
             for part in ("weight", "bias")}
    state = schnet().state_dict()
    assert {k: tuple(v.shape) for k, v in state.items() if k.startswith("gammas")} == gates
    assert schnet(gammas="single").state_dict()["gammas"].shape == ()
    inputs = [gate[0].in_features for gate in egno().get_gate_networks()]
    assert inputs == [18, 18, 12, 12] and egno().get_gammas() == schnet().get_gammas() == []


@pytest.mark.parametrize("name", MODELS)
def test_probe(name):
    make, inputs, _, call, _ = MODELS[name]
    model = make()
    with model.probe() as ratios:
        call(model, inputs())
    assert len(ratios) == len(model.get_gate_networks()) and all(r > 0 and not r.requires_grad for r in ratios)


def test_ace_follows_a_plain_loop():
    """The original's step: loss + sum of lambda |gamma|, Adam on all weights, ascent on lambda."""
    model, given = schnet(), atoms()
    gold = copy.deepcopy(model)
    ace = ACE(model, dual_lr=0.3)
    assert ace.names == ["gammas.0", "gammas.1"] and set(ace.primal_parameters()) == set(model.parameters())
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (model, gold)]
    multipliers = torch.zeros(2)
    for _ in range(4):
        optimizers[0].zero_grad(), optimizers[1].zero_grad()
        (model(*given).square().mean() + ace.penalty()).backward()
        out, norms = plain_schnet(gold, *given)
        norms = torch.stack(norms)
        (out.square().mean() + (multipliers * norms).sum()).backward()
        optimizers[0].step(), optimizers[1].step()
        ace.step()
        multipliers = multipliers + 0.3 * norms.detach()
        torch.testing.assert_close(ace.gammas, norms.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ace.multipliers, multipliers, rtol=1e-9, atol=1e-12)
    for a, b in zip(model.parameters(), gold.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", [{"augmentation": 0.7}, {"mode": "resilient", "rho": 2.0, "augmentation": 0.5},
                                  {"epsilon": 0.1}, {"mode": "resilient", "repo_resilient": True}])
def test_every_mode_pushes_as_on_numbers(mode):
    model, given = schnet(), atoms()
    ace = ACE(model, **mode)
    ace.multipliers, ace.slacks = torch.tensor([0.3, 0.8]), torch.tensor([0.2, 0.1])
    model(*given)
    found = torch.autograd.grad(ace.penalty(), model.gate_norms)
    norms = torch.stack(model.gate_norms).detach()
    rule = ace.rule
    assert isinstance(rule, Rule)
    push, _, ascent = gradients(norms, torch.zeros(2), ace.multipliers, ace.slacks, rule)
    torch.testing.assert_close(torch.stack(found), push)
    before = ace.multipliers
    ace.step()
    torch.testing.assert_close(ace.multipliers, (before + rule.dual_lr * ascent).clamp(min=0))


def test_passes_between_steps_are_averaged_and_others_do_nothing():
    model, given = schnet(), atoms()
    ace, norms = ACE(model, dual_lr=1.0), []
    for scale in (1, 2):
        model(given[0], scale * given[1], *given[2:])
        norms.append(torch.stack(model.gate_norms).detach())
        ace.penalty()
    with pytest.raises(MemoryError), ace.attempt():
        model(*given)
        ace.penalty()
        raise MemoryError
    with torch.no_grad():
        model(*given)  # an evaluation in between
    assert ace.penalty() == 0.0
    ace.step()
    torch.testing.assert_close(ace.multipliers, (norms[0] + norms[1]) / 2)
    before = ace.multipliers
    model.set_equivariance(False)
    model(*given).sum().backward()
    assert ace.penalty() == 0.0
    ace.step()
    assert torch.equal(ace.multipliers, before)
    model.set_equivariance(True)
    model(*given)
    with pytest.raises(ValueError, match=r"ACE: step must come after penalty\(\) where networks compute the gates"):
        ace.step()


def test_a_norm_that_is_not_finite_sits_out():
    model, given = schnet(), atoms()
    ace = ACE(model)
    with torch.no_grad():
        model.gammas[0][6].bias.fill_(torch.nan)
    model(*given)
    model.gate_norms[1] = torch.tensor(2.0)
    ace.penalty()
    ace.step()
    assert ace.multipliers[0] == 0 and ace.multipliers[1] > 0 and ace.metrics()["skipped"].tolist() == [1, 0]


def test_state_copies_and_owners():
    model, given = schnet(), atoms()
    ace = ACE(model, bound="spectral")
    (model(*given).sum() + ace.penalty()).backward()
    ace.step()
    for other in copies(model):  # the norms of the last pass stay out
        assert other.gate_norms is None and torch.equal(other.eval()(*given), copy.deepcopy(model).eval()(*given))
    with pytest.raises(ValueError, match="ACE: gamma 'gammas.0' must belong to one ACE"):
        ACE(model)
    ace.release()
    with pytest.raises(ValueError, match="got a released ACE"):
        ace.step()
    again = ACE(model, bound="spectral")
    again.load_state_dict(ace.state_dict() | {"names": again.names})
    assert torch.equal(again.multipliers, ace.multipliers)
    with pytest.raises(ValueError, match="got SchNet, whose norms are all in its branches"):
        recalibrate(model, [given])


def test_errors():
    with pytest.raises(ValueError, match="SchNet: the hidden width must be at least 3 for gammas='nn', got 2"):
        schnet(hidden_channels=2)
    with pytest.raises(ValueError, match="gammas must be one of layer, single, nn, got 'none'"):
        schnet(gammas="none")
    with pytest.raises(ValueError, match="ACE: model must have gammas, got none"):
        ACE(nn.Sequential(schnet(relaxed=False)))
    for other in (schnet(), schnet(gammas="single")):
        with pytest.raises(ValueError, match="ACE: model must have one part whose gates are networks, and no gates"):
            ACE(nn.Sequential(schnet(), other))


def test_inside_another_model():
    model = nn.ModuleDict({"inner": schnet()})
    ace = ACE(model)
    model["inner"](*atoms())
    assert ace.names == ["inner.gammas.0", "inner.gammas.1"] and ace.penalty() == 0
    ace.step()
    assert (ace.multipliers > 0).all()
    ace.release()
    wrapped = ACE(torch.compile(model["inner"], backend="eager"))  # a wrapper has its model's methods
    assert wrapped.names == ["_orig_mod.gammas.0", "_orig_mod.gammas.1"]
