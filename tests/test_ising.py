"""Group convolutions over p4 and p4m, and the experiment on ground states of Ising models."""

import itertools

import pytest
import torch

from ace_fast.symmetry import GroupConv2d, act, group, image
from ace_fast.symmetry.experiments import ising
from ace_fast.symmetry.experiments.cli import run_experiment
from ace_fast.train.cli import main

CONFIG = {name: option.default for name, option in ising.OPTIONS.items()} | {"side": 4, "channels": 2, "hidden": 8}
TINY = {"side": 4, "num_train": 12, "num_valid": 6, "num_test": 6, "channels": 2, "hidden": 8, "epochs": 2,
        "batch_size": 6}


@pytest.mark.parametrize("name", ["p4", "p4m"])
def test_group_convolutions_are_equivariant(name):
    g, own = group(name), image(regular=2)
    net, x = GroupConv2d(name, 2, 3).double(), torch.randn(4, 2, len(group(name).table), 6, 6, dtype=torch.float64)
    element = g.sample(4, torch.Generator().manual_seed(1), side=6)
    torch.testing.assert_close(net(act(g, element, x, own)), act(g, element, net(x), own))
    relaxed = GroupConv2d(name, 2, 3, banks=2, side=6).double()
    assert (relaxed(act(g, element, x, own)) - act(g, element, relaxed(x), own)).abs().max() > 1e-2
    assert "banks=2" in repr(relaxed)


def test_errors_of_group_convolutions():
    for match, call in {
        "name must be 'p4' or 'p4m', got 'C_4'": lambda: GroupConv2d("C_4", 1, 1),
        "kernel must be odd, got 2": lambda: GroupConv2d("p4", 1, 1, 2),
        "side must be the images' pixels": lambda: GroupConv2d("p4", 1, 1, banks=2),
        r"x must be \[B, 2, 4, H, H\], square as quarter turns have it, got \[3, 2, 8, 5, 5\]":
            lambda: GroupConv2d("p4", 2, 1)(torch.ones(3, 2, 8, 5, 5)),
        r"x must be \[B, 2, 4, H, H\], square as quarter turns have it, got \[3, 2, 4, 5, 6\]":
            lambda: GroupConv2d("p4", 2, 1)(torch.ones(3, 2, 4, 5, 6)),
        r"x must be \[B, 2, 4, 6, 6\], square as quarter turns have it, got \[3, 2, 4, 5, 5\]":
            lambda: GroupConv2d("p4", 2, 1, banks=2, side=6)(torch.ones(3, 2, 4, 5, 5)),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()


def test_ground_energies_are_the_least_of_all_spins():
    of = ising.hamiltonians(12, torch.Generator().manual_seed(0))
    of[0], of[1] = torch.tensor([1.0, -3, 2]), torch.tensor([-1.0, 2, 0])
    spins = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=16))).view(-1, 4, 4)
    least = torch.stack([ising.energy(spins, one.expand(len(spins), 3)).min() for one in of])
    found = ising.ground_energies(of, 4)
    torch.testing.assert_close(found, least.double(), rtol=0, atol=1e-6)
    assert found[0] == -4 and found[1] == -3  # alternating along rows or columns
    torch.testing.assert_close(ising.ground_energies(ising.turned(of), 4), found)
    assert ising.ground_energies(of[:0], 4).shape == (0,)


def test_energy_is_that_of_the_lattice():
    spins = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, -1]]])
    of = torch.tensor([[2.0, 3, 0.5]])
    # four of 32 bonds are broken, two of each kind; 14 of 16 spins are left over
    torch.testing.assert_close(ising.energy(spins, of), torch.tensor([2 * 12 / 16 + 3 * 12 / 16 - 0.5 * 14 / 16]))


@pytest.mark.parametrize("method", ising.METHODS[2:])
def test_what_each_network_can_break(method):
    """The Hamiltonian is the same at every site: so are a G-CNN's spins; the others tell sites apart."""
    torch.manual_seed(0)
    model = ising.Gcnn(method, CONFIG, torch.Generator().manual_seed(0))
    of = ising.hamiltonians(3, torch.Generator().manual_seed(0))
    spread = model(of).std((1, 2)).min()
    assert spread < 1e-6 if method == "gcnn" else spread > 1e-4
    if method == "gcnn":
        torch.testing.assert_close(model(ising.turned(of)), model(of))


def test_runs_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "ising.json"
    argv = [x for name, value in TINY.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["symmetry", "ising", "--out", str(out), "--quiet", *argv]) == 0
    shown = capsys.readouterr().out
    assert "| method | energy | energy, lattice turned | ground state |" in shown
    assert all(f"| {method} |" in shown for method in ising.METHODS)
    rows = [run_experiment("ising", ["sympe", "noise"], 1, tmp_path / f"{n}.json", **TINY) for n in range(2)]
    assert [row["energy"] for row in rows[0]] == [row["energy"] for row in rows[1]]
    assert all(row["energy"] > row["ground"] for row in rows[0])
    with pytest.raises(ValueError, match="--side must be even, got 5"):
        run_experiment("ising", ["gcnn"], 1, tmp_path / "odd.json", side=5)
    with pytest.raises(ValueError, match="symmetry: --side must be at least 4, got 2"):
        run_experiment("ising", ["mlp"], 1, tmp_path / "two.json", side=2)
