"""Ground states of Ising models on a torus: the Hamiltonian has symmetries that its ground states break."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...train.options import SEED, Option, Options
from ..breaking import SymPE
from ..group_conv import GroupConv2d
from ..groups import group
from .training import train_best

HELP = "ground states of Ising models, by networks with symmetries broken or kept"
DESCRIPTION = ("Trains networks to give the spins of lowest energy from the couplings and the field of an Ising model "
               "on a periodic square lattice: no spins are shown to them, the loss is the energy of expected spins.")
METHODS = ("mlp", "mlp-augmented", "gcnn", "noise", "relaxed", "sympe")
MEASURES = {"energy": ("energy", ".3f"), "rotated": ("energy, lattice turned", ".3f"),
            "ground": ("ground state", ".3f"), "parameters": ("parameters", "d"), "seconds": ("training, s", ".0f")}

OPTIONS: Options = {
    "side": Option("data", 6, "sites in a row of the square lattice; even, so that stripes fit", least=4, most=10),
    "num_train": Option("data", 1_024, "training Hamiltonians", least=1),
    "num_valid": Option("data", 1_024, "validation Hamiltonians, which choose the epoch", least=1),
    "num_test": Option("data", 10_000, "test Hamiltonians", least=1),
    "data_seed": Option("data", 0, "seed of the Hamiltonians", least=0, most=SEED),
    "layers": Option("model", 3, "group convolutions, or layers of the MLP", least=1),
    "channels": Option("model", 8, "fields of a group convolution, of 8 images each", least=1),
    "hidden": Option("model", 256, "width of the MLP", least=1),
    "extra": Option("model", 4, "images of noise or SymPE", least=1),
    "epochs": Option("optimisation", 40, "passes over the training Hamiltonians", least=1),
    "batch_size": Option("optimisation", 64, "Hamiltonians per step", least=1),
    "lr": Option("optimisation", 3e-3, "step size of Adam", above=0),
    "threads": Option("run", 0, "threads of the CPU kernels; 0: as torch chooses", least=0, most=1024),
}


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError where settings do not fit together."""
    if config["side"] % 2:
        raise ValueError(f"symmetry: --side must be even, got {config['side']}; alternating rows do not fit otherwise")


def hamiltonians(count: int, generator: torch.Generator) -> Tensor:
    """[count, 3]: coupling 1 along rows, along columns uniform in (-3, 3), field uniform in (0, 2)."""
    drawn = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    return torch.stack([torch.ones(count, dtype=torch.float64), 6 * drawn[:, 0] - 3, 2 * drawn[:, 1]], 1).float()


def turned(of: Tensor) -> Tensor:
    """The same Hamiltonians with the lattice turned by a quarter: couplings exchanged."""
    return of[:, [1, 0, 2]]


def energy(spins: Tensor, of: Tensor) -> Tensor:
    r"""[B] energies per site of spins [B, L, L] in -1..1, linear in each: that of independent random spins.

    .. math:: E = \frac{1}{L^2} \Big(J_x \sum s_{ij} s_{i,j+1} + J_y \sum s_{ij} s_{i+1,j} - h \sum s_{ij}\Big)

    Neighbours with a positive coupling are apart in the ground state (antiferromagnetic).
    """
    along, across = (spins * spins.roll(-1, axis) for axis in (2, 1))
    means = torch.stack([along.mean((1, 2)), across.mean((1, 2)), -spins.mean((1, 2))], 1)
    return (means * of).sum(1)


@functools.cache
def _floor(config: tuple[int, ...], side: int) -> float:
    """Mean ground state energy of the test Hamiltonians; the same for every method and seed."""
    return float(ground_energies(_splits(*config)[2], side).mean())


def _splits(*config: int) -> list[Tensor]:
    """Training, validation and test Hamiltonians by their numbers and the seed."""
    *counts, seed = config
    draw = torch.Generator().manual_seed(seed)
    return [hamiltonians(count, draw) for count in counts]


def ground_energies(of: Tensor, side: int, chunk: int = 64) -> Tensor:
    """[B] exact ground state energies per site, float64, by the transfer matrix of rows with sums for minima.

    A ring of L rows of 2^L states: the cheapest closed walk from each first row that is no turn or mirror image of an
    earlier one, L products of a [R, 2^L] matrix with a [2^L, 2^L] one.
    """
    states = 2 * ((torch.arange(2**side)[:, None] >> torch.arange(side)) & 1).double() - 1  # [S, L]
    images = torch.cat([way.roll(n, 1) for n in range(side) for way in (states, states.flip(1))])
    number = ((images > 0) * (1 << torch.arange(side))).sum(1).view(2 * side, -1)
    first = (number.amin(0) == torch.arange(2**side)).nonzero()[:, 0]
    within = torch.stack([(states * states.roll(-1, 1)).sum(1), -states.sum(1)], 1)  # [S, 2]
    between = states @ states.T
    found = []
    for part in of.double().split(chunk):
        row = part[:, [0, 2]] @ within.T  # [B, S]
        step = part[:, 1, None, None] * between + row[:, None]  # to a row, with what that row costs itself
        cost = step[:, first]  # [B, R, S]
        for _ in range(side - 1):
            cost = torch.stack([(cost + column[:, None]).amin(2) for column in step.unbind(2)], 2)
        back = cost[:, torch.arange(len(first)), first]
        found.append(back.amin(1) / side**2)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


class Mlp(nn.Module):
    """Spins from the three numbers at every site, without any symmetry."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.side, width = config["side"], config["hidden"]
        widths = [3 * self.side**2] + [width] * (config["layers"] - 1)
        hidden = [m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), nn.GELU())]
        self.net = nn.Sequential(*hidden, nn.Linear(widths[-1], self.side**2))

    def forward(self, of: Tensor) -> Tensor:
        fields = of[:, :, None].expand(-1, -1, self.side**2).flatten(1)
        return torch.tanh(self.net(fields)).unflatten(1, (self.side, self.side))


class Gcnn(nn.Module):
    """Spins [B, L, L] by group convolutions over p4m; with noise, relaxed, or with SymPE.

    Couplings are a field over the group's elements: element g has the coupling along the direction to which it turns
    the rows.
    """

    def __init__(self, method: str, config: Mapping[str, Any], generator: torch.Generator) -> None:
        super().__init__()
        self.method, self.side, self.extra, self.generator = method, config["side"], config["extra"], generator
        rows = group("p4m").matrices[:, 1, 1].round().abs()  # 1 where columns stay columns
        self.register_buffer("along", rows.float(), persistent=False)
        banks = 2 if method == "relaxed" else 1
        extra = self.extra if method in ("noise", "sympe") else 0
        widths = [2 + extra] + [config["channels"]] * (config["layers"] - 1) + [1]
        self.layers = nn.ModuleList(GroupConv2d("p4m", a, b, banks=banks, side=self.side)
                                    for a, b in zip(widths, widths[1:], strict=False))
        self.breaking = None
        if method == "sympe":
            scores = nn.Sequential(GroupConv2d("p4m", 2, 2), nn.GELU(), GroupConv2d("p4m", 2, 1), nn.Flatten(1, 2))
            self.breaking = SymPE("p4m", (self.extra, self.side, self.side), scores, tolerance=1e-4,
                                  generator=generator)

    def forward(self, of: Tensor) -> Tensor:
        coupling = self.along * of[:, :1] + (1 - self.along) * of[:, 1:2]  # [B, 8]
        x = torch.stack([coupling, of[:, 2:].expand_as(coupling)], 1)[..., None, None].repeat(1, 1, 1, *[self.side] * 2)
        if self.method in ("noise", "sympe"):
            nothing = x.new_zeros(len(x), 0, self.side, self.side)
            images = (self.breaking(nothing, inputs=x) if self.breaking is not None else
                      torch.randn(len(x), self.extra, *[self.side] * 2, generator=self.generator))
            x = torch.cat([x, images[:, :, None].expand(-1, -1, len(self.along), -1, -1)], 1)
        for n, layer in enumerate(self.layers):
            x = layer(nn.functional.gelu(x) if n else x)
        return torch.tanh(x[:, 0].mean(1))


@torch.no_grad()
def measure(model: nn.Module, of: Tensor, generator: torch.Generator) -> float:
    """Mean energy of the expected spins; one draw of noise or elements, of a fixed seed."""
    generator.manual_seed(7)
    return float(torch.cat([energy(model(part), part) for part in of.split(1000)]).mean())


def run(method: str, seed: int, config: Mapping[str, Any], progress: Callable[[str], None]) -> dict[str, float]:
    """Trains one network; its measures on the test Hamiltonians, at the epoch that is best on the validation ones."""
    data = tuple(config[name] for name in ("num_train", "num_valid", "num_test", "data_seed"))
    train, valid, test = _splits(*data)
    torch.manual_seed(seed)
    shuffle, own = (torch.Generator().manual_seed(seed + n) for n in (1, 2))
    model = Mlp(config) if method.startswith("mlp") else Gcnn(method, config, own)

    def batches(epoch: int) -> Iterator[Tensor]:
        own.manual_seed(seed + 1000 * epoch)  # `measure` has drawn from it
        for part in torch.randperm(len(train), generator=shuffle).split(config["batch_size"]):
            of = train[part]
            if method == "mlp-augmented":
                of = torch.where(torch.rand(len(of), 1, generator=own) < 0.5, turned(of), of)
            yield of

    def validate() -> tuple[float, str]:
        found = measure(model, valid, own)
        return found, f"validation energy {found:.4f}"

    train_best(model, config, batches, lambda of: energy(model(of), of).mean(), validate, progress)
    return {"energy": measure(model, test, own), "rotated": measure(model, turned(test), own),
            "ground": _floor(data, config["side"]),
            "parameters": sum(p.numel() for p in model.parameters())}
