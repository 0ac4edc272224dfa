"""What the vector-neuron models say about their branches: parameters, the switch, the probe."""

import contextlib

from torch import Tensor, nn


def parameters(layers: list[nn.Module]) -> list[nn.Parameter]:
    """Weights and biases of the unconstrained maps."""
    return [p for layer in layers for linear in layer.get_nonequi_linear_layers() for p in linear.parameters()]


def switch(name: str, layers: list[nn.Module], relaxed: bool, on: bool) -> None:
    """Sets `relaxed` of all layers; a strict model has nothing to switch on."""
    if on and not relaxed:
        raise ValueError(f"{name}: set_equivariance must be False for a strict model, got True; build it with "
                         "relaxed=True")
    for layer in layers:
        layer.relaxed = bool(on)


@contextlib.contextmanager
def probe(name: str, layers: list[nn.Module], relaxed: bool):
    """Yields the list into which the layers put the relative size of each branch."""
    if not relaxed:
        raise ValueError(f"{name}: probe must be used on a relaxed model, got a strict one; build it with relaxed=True")
    ratios: list[Tensor] = []
    before = [layer._ratios for layer in layers]
    for layer in layers:
        layer._ratios = ratios
    try:
        yield ratios
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer._ratios = old
