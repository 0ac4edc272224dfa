"""What every model says about its branches: the gates, the switch, the probe."""

import contextlib

from torch import Tensor, nn


class Branched(nn.Module):
    """A model whose layers (`_layers()`) have unconstrained branches where it is `relaxed`.

    A layer has `get_gammas()`, `_ratios` (where `probe` collects) and a Python flag that switches its branches.
    """

    _flag = "relaxed"  # the layers' name of that flag

    def _layers(self) -> list[nn.Module]:
        raise NotImplementedError

    def get_gammas(self) -> list[nn.Parameter]:
        """The gates, two a layer in the order of the forward pass; empty for a strict model."""
        return [gamma for layer in self._layers() for gamma in layer.get_gammas()]

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
            A list that each forward pass extends by one 0-dim tensor a gamma, in the order of `get_gammas()`; nothing
            is read on the host. A pass with the branches off adds nothing.

        Raises:
            ValueError: the model has no branches.
        """
        if not self.relaxed:
            raise ValueError(f"{type(self).__name__}: probe must be used on a relaxed model, got a strict one; build "
                             "it with relaxed=True")
        ratios: list[Tensor] = []
        before = [layer._ratios for layer in self._layers()]
        for layer in self._layers():
            layer._ratios = ratios
        try:
            yield ratios
        finally:
            for layer, old in zip(self._layers(), before, strict=True):
                layer._ratios = old
