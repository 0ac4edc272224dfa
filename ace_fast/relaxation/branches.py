"""The branches of a model as the deciders see them: which linear maps, from which irreps to which."""

from typing import NamedTuple

import torch
from e3nn import o3
from torch import nn
from torch.nn.utils import parametrize

from ..nn.gates import gated_layers
from .gate_networks import find_networks


class Branch(NamedTuple):
    """One gated branch: linear maps with pointwise functions, or norms of single channels, between."""

    layer: nn.Module
    gate: int  # place in the layer's get_gammas()
    maps: tuple[nn.Module, ...]  # with weight [O, I] and bias [O] or None, first to last
    irreps: tuple[o3.Irreps, o3.Irreps] | None  # of its input and output; None where nobody said

    def steps(self) -> list[tuple[nn.Module, o3.Irreps, o3.Irreps]]:
        """Each map with the irreps that it leads from and to.

        What lies between two maps are scalars: the only features that pointwise functions leave equivariant. So a
        branch all of whose maps commute with a group does so itself.
        """
        inner = [o3.Irreps(f"{m.weight.shape[0]}x0e") for m in self.maps[:-1]]
        ends = [self.irreps[0], *inner, self.irreps[1]]
        return list(zip(self.maps, ends[:-1], ends[1:], strict=True))


def check_numbers(model: nn.Module, owner: str) -> None:
    """Raises ValueError where networks compute the gates."""
    if find_networks(model):
        raise ValueError(f"{owner}: model must have gates that are numbers, got gates that networks compute; only ACE "
                         "constrains those (relaxation 'ace')")


def find_branches(model: nn.Module, owner: str, irreps: bool = False) -> list[Branch]:
    """The branches of all gated layers, in the order of the gammas.

    Args:
        owner: who asks, for its messages.
        irreps: whether the branches must have irreps.

    Raises:
        ValueError: no gated layers, gates that networks compute, maps with parametrizations, or a branch without irreps
            where they are needed.
    """
    check_numbers(model, owner)
    names = {module: name for name, module in model.named_modules()}
    found = []
    for layer in gated_layers(model):
        what = f"{owner}: model must have branches"
        got = f"got {type(layer).__name__} {names[layer]!r}"
        if not hasattr(layer, "gate_maps"):
            raise ValueError(f"{what} that say what they are made of (gate_maps), {got} without; take relaxation 'ace' "
                             "or 'remul'")
        for gate in range(len(layer.snapped)):
            maps = tuple(layer.gate_maps(gate))
            if any(parametrize.is_parametrized(m) for m in maps):
                raise ValueError(f"{what} of free weights, {got}, whose norms are fixed by a parametrization; take "
                                 "relaxation 'ace' or 'remul'")
            known = layer.gate_irreps(gate) if hasattr(layer, "gate_irreps") else None
            if irreps and known is None:
                raise ValueError(f"{what} with irreps, {got}, which has none; give ace_fast.relax its irreps, or take "
                                 "relaxation 'ace', 'rpp' or 'remul'")
            found.append(Branch(layer, gate, maps, known))
    if not found:
        raise ValueError(f"{owner}: model must have gated branches, got {type(model).__name__} without; build it with "
                         "relaxed=True, or add them with ace_fast.relax")
    return found


@torch.no_grad()
def shrink(branches: list[Branch], factor: float) -> None:
    """Multiplies the last map of every branch, once each."""
    for linear in {id(b.maps[-1]): b.maps[-1] for b in branches}.values():
        linear.weight.mul_(factor)
        if linear.bias is not None:
            linear.bias.mul_(factor)
