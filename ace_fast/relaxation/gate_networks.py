"""Gates that networks compute: what ACE constrains of them, |gamma_i| over the nodes of a batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GateNetworks:
    """The norms that a model left in `gate_norms`, one list a forward pass, collected from one step to the next.

    Args:
        model: has get_gate_networks() and gate_norms.
        names: of all modules, for those of the gates.
    """

    def __init__(self, model: nn.Module, names: dict[nn.Module, str]):
        self.model, self.networks = model, model.get_gate_networks()
        self.names = [names[network] for network in self.networks]
        self.like = next(self.networks[0].parameters())
        self.values = self.like.detach().new_zeros(len(self.networks))  # [n] of the last step
        self.passes: list[Tensor] = []  # [n] each, since the last step
        self._taken: list[Tensor] | None = None

    def take(self) -> Tensor | None:
        """[n] in the graph, of the last forward pass; None where that had the branches off or was taken before."""
        norms = self.model.gate_norms
        if norms is None or norms is self._taken:
            return None
        self._taken = norms
        stacked = torch.stack(norms)
        self.passes.append(stacked.detach())
        return stacked

    def measured(self) -> Tensor | None:
        """[n], the mean over the passes since the last call and over processes; None where there was no pass."""
        norms = self.model.gate_norms
        if norms is not None and norms is not self._taken:
            raise ValueError("ACE: step must come after penalty() where networks compute the gates, got a forward pass "
                             "without; call (loss + ace.penalty()).backward()")
        if not self.passes:
            return None
        self.values = torch.stack(self.passes).mean(0)
        self.passes = []
        if dist.is_available() and dist.is_initialized() and (count := dist.get_world_size()) > 1:
            dist.all_reduce(self.values)  # the multipliers stay alike
            self.values /= count
        return self.values


def find_networks(model: nn.Module) -> GateNetworks | None:
    """Those of the one part of `model` whose gates are not numbers; None where there is none.

    Raises:
        ValueError: several such parts, or gates that are numbers besides.
    """
    names = {module: name for name, module in model.named_modules()}
    # asked of the class: wrappers, such as torch.compile's, pass on what their model has
    parts = [module for module in names if hasattr(type(module), "get_gate_networks") and module.get_gate_networks()]
    if not parts:
        return None
    numbers = [name for name, p in model.named_parameters() if is_gamma(name, p)]
    if len(parts) > 1 or numbers:
        raise ValueError("ACE: model must have one part whose gates are networks, and no gates that are numbers, got "
                         f"{len(parts)} and {len(numbers)}; make an ACE of each part, or pass gammas=[...]")
    return GateNetworks(parts[0], names)


def is_gamma(name: str, parameter: Tensor) -> bool:
    """A scalar whose name says gamma in its last two parts."""
    return parameter.numel() == 1 and bool({"gamma", "gammas"} & set(name.split(".")[-2:]))
