"""What every model says about its branches: the gates, the switch, the probe."""

import contextlib

import torch
from torch import Tensor, nn

from ..nn.gates import Collector, Seen, recording

GAMMAS = ("layer", "single", "nn")


def gate_network(inputs: int, hidden: int, model: str) -> nn.Sequential:
    """The ACE code's network of a gate: inputs -> hidden, hidden / 2, hidden / 3, 1, GELU between."""
    if hidden < 3:
        raise ValueError(f"{model}: the hidden width must be at least 3 for gammas='nn', got {hidden}")
    sizes = (inputs, hidden, hidden // 2, hidden // 3, 1)
    layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers[:-1])


def network_gate(network: nn.Module, h: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """gamma [N, 1] of every node from its features and its branch, both without gradient, and |gamma|."""
    gamma = network(torch.cat([h, branch], 1).detach())
    return gamma, gamma.norm()


class Branched(nn.Module):
    """A model whose layers (`_layers()`) have unconstrained branches where it is `relaxed`.

    A layer is one of `nn.gates`, and has a Python flag that switches its branches.
    """

    _flag = "relaxed"  # the layers' name of that flag
    # |gamma| of every network's gate in the last pass with gradients: in its graph, for ACE's constraint. A pass with
    # the branches off clears it. None for gates that are numbers.
    gate_norms: list[Tensor] | None = None

    def _layers(self) -> list[nn.Module]:
        raise NotImplementedError

    def get_gammas(self) -> list[nn.Parameter]:
        """The gates, two a layer in the order of the forward pass; empty for a strict model."""
        return [gamma for layer in self._layers() for gamma in layer.get_gammas()]

    def get_gate_networks(self) -> list[nn.Module]:
        """The networks that compute the gates, in the order of `gate_norms`; empty where the gates are numbers."""
        return []

    def __getstate__(self) -> dict:
        """Copies and pickles leave out what belongs to a graph."""
        return {name: value for name, value in vars(self).items() if name != "gate_norms"}

    def set_equivariance(self, disable_equivariance: bool) -> None:
        """True switches the branches on, False off: then a forward pass makes the calls of the strict model.

        Raises:
            ValueError: True for a model without branches.
        """
        if disable_equivariance and not self.relaxed:
            raise ValueError(f"{type(self).__name__}: set_equivariance must be False for a strict model, got True; "
                             "build it with relaxed=True")
        for layer in self._layers():
            setattr(layer, self._flag, bool(disable_equivariance))

    @contextlib.contextmanager
    def probe(self):
        r"""Records :math:`|\gamma|\,\|f_{neq}(x)\| / \|f_{eq}(x)\|` of every branch while the context is open.

        Yields:
            A list that each forward pass extends by one 0-dim tensor a branch, in the order of `get_gammas()`; nothing
            is read on the host. A branch that is switched off adds nothing.

        Raises:
            ValueError: the model has no branches.
        """
        if not self.relaxed:
            raise ValueError(f"{type(self).__name__}: probe must be used on a relaxed model, got a strict one; build "
                             "it with relaxed=True")
        ratios: list[Tensor] = []
        with recording(self._layers(), Collector(ratios, Seen.ratio)):
            yield ratios
