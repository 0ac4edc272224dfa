"""Gates that networks compute: what ACE constrains of them, |gamma_i| over the nodes of a batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GateNetworks:
    """The norms that a model left in `gate_norms`, one list a forward pass, collected from one step to the next.

    Args:
        model: has get_gate_networks() and gate_norms.
    """

    def __init__(self, model: nn.Module):
        self.model, self.networks = model, model.get_gate_networks()
        names = {module: name for name, module in model.named_modules()}
        self.names = [names[network] for network in self.networks]
        self.like = next(self.networks[0].parameters())
        self.values = self.like.detach().new_zeros(len(self.networks))  # [n] of the last step
        self._passes: list[Tensor] = []  # [n] each
        self._taken: list[Tensor] | None = None

    def take(self) -> Tensor | None:
        """[n] in the graph, of the last forward pass; None where that had the branches off or was taken before."""
        norms = self.model.gate_norms
        if norms is None or norms is self._taken:
            return None
        self._taken = norms
        stacked = torch.stack(norms)
        self._passes.append(stacked.detach())
        return stacked

    def measured(self) -> Tensor | None:
        """[n], the mean over the passes since the last call and over processes; None where there was no pass."""
        norms = self.model.gate_norms
        if norms is not None and norms is not self._taken:
            raise ValueError("ACE: step must come after penalty() where networks compute the gates, got a forward pass "
                             "without; call (loss + ace.penalty()).backward()")
        if not self._passes:
            return None
        self.values = torch.stack(self._passes).mean(0)
        self._passes = []
        if dist.is_available() and dist.is_initialized() and (count := dist.get_world_size()) > 1:
            dist.all_reduce(self.values)  # the multipliers stay alike
            self.values /= count
        return self.values


def find_networks(model: nn.Module) -> GateNetworks | None:
    """Those of a model whose gates are not numbers."""
    if not hasattr(model, "get_gate_networks") or not model.get_gate_networks():
        return None
    return GateNetworks(model)
