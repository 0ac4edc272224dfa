"""SchNet's layers: the original's numbers, parameters and arguments."""

import pytest
import torch
from torch import nn

from ace_fast import Graph
from ace_fast.nn import CFConv, GaussianSmearing, InteractionBlock, ShiftedSoftplus


class Strict(nn.Module):
    """SchNet without branches, from our layers: what golden/schnet.npz has as `strict`."""

    def __init__(self, hidden: int = 16, filters: int = 16, interactions: int = 3, gaussians: int = 50,
                 cutoff: float = 10.0, filter: str = "exact"):
        super().__init__()
        self.embedding = nn.Embedding(100, hidden, padding_idx=0)
        self.distance_expansion = GaussianSmearing(0.0, cutoff, gaussians)
        self.interactions = nn.ModuleList(InteractionBlock(hidden, gaussians, filters, cutoff, filter)
                                          for _ in range(interactions))
        self.lin1, self.act, self.lin2 = nn.Linear(hidden, hidden // 2), ShiftedSoftplus(), nn.Linear(hidden // 2, 1)

    def forward(self, z, pos, batch, edge_index, fused: bool):
        h = self.embedding(z)
        if fused:
            edges = Graph(edge_index, len(z)), pos, self.distance_expansion.basis()
        else:
            d = (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=1)
            edges = edge_index, d, self.distance_expansion(d)
        for interaction in self.interactions:
            h = h + interaction(h, *edges)
        h = self.lin2(self.act(self.lin1(h)))
        return h.new_zeros(int(batch.max()) + 1, 1).index_add(0, batch, h)


def load(golden, **options) -> tuple[Strict, dict, dict]:
    """The model with the original's parameters, its inputs, all numbers."""
    numbers = {k: torch.from_numpy(v) for k, v in golden("schnet").items() if k != "meta"}
    torch.set_default_dtype(torch.float64)
    model = Strict(**options)
    state = {k.removeprefix("state/"): v for k, v in numbers.items() if k.startswith("state/")}
    branches = ("pos_linear", "pos_interactions", "gammas")
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith(branches)})
    return model, {k: numbers[f"input/{k}"] for k in ("z", "pos", "batch", "edge_index")}, numbers


@pytest.mark.parametrize("fused", [True, False])
def test_golden_numbers(golden, fused):
    model, inputs, numbers = load(golden)
    output = model(**inputs, fused=fused)
    torch.testing.assert_close(output.view(-1), numbers["strict_output"].view(-1), rtol=1e-9, atol=1e-9)
    loss = (output.view(-1) - numbers["input/target"].view(-1)).abs().mean()
    torch.testing.assert_close(loss, numbers["strict_loss"].view(()), rtol=1e-9, atol=1e-9)
    loss.backward()
    parameters = dict(model.named_parameters())
    names = [k.removeprefix("strict_grad/") for k in numbers if k.startswith("strict_grad/")]
    assert set(names) == set(parameters)
    for name in names:
        right = numbers[f"strict_grad/{name}"]
        assert (parameters[name].grad - right).abs().max() <= 1e-9 * max(1.0, right.abs().max().item()), name


def test_table_of_the_golden_model(golden):
    model, inputs, numbers = load(golden, filter="table")
    output, right = model(**inputs, fused=True).view(-1), numbers["strict_output"].view(-1)
    assert (output - right).abs().max() <= 1e-5 * right.abs().max()


def test_arguments_and_parameters():
    block = InteractionBlock(hidden_channels=6, num_gaussians=5, num_filters=4, cutoff=3.0)
    assert list(block.state_dict()) == [
        "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "conv.lin1.weight", "conv.lin2.weight",
        "conv.lin2.bias", "conv.nn.0.weight", "conv.nn.0.bias", "conv.nn.2.weight", "conv.nn.2.bias", "lin.weight",
        "lin.bias"]
    assert block.conv.nn is block.mlp
    with pytest.raises(ValueError, match="GaussianSmearing: num_gaussians must be at least 2, got 1"):
        GaussianSmearing(num_gaussians=1)


def test_smearing_and_basis_agree():
    smearing = GaussianSmearing(0.0, 5.0, 11)
    basis, d = smearing.basis(), torch.linspace(0, 5, 7)
    torch.testing.assert_close(smearing(d), torch.exp(basis.scale * (d[:, None] - basis.centre) ** 2))


def test_any_activation_with_smeared_distances():
    conv = CFConv(4, 4, 6, nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6)), 3.0)
    graph, x = Graph(torch.tensor([[0, 1], [1, 0]]), 2), torch.randn(2, 4)
    assert conv(x, graph, torch.ones(2), torch.randn(2, 5)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"CFConv: nn\[1\] must be ShiftedSoftplus or SiLU, got Tanh"):
        conv(x, graph, torch.randn(2, 3), GaussianSmearing(0.0, 3.0, 5).basis())
