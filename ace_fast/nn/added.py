"""Branches that `ace_fast.relax` hangs on somebody's layers: modules inside them, joined to their output by a hook."""

from math import prod

import torch
from e3nn import o3
from torch import Tensor, nn

from .. import functional
from .gates import Seen, add_gates

NAME = "lin_noneq"  # of the child that a layer gets: what `relaxation.branch_weights` knows branches by


class AddedBranch(nn.Module):
    r"""A gated unconstrained map of a layer's first input, added to its output: y = f(x) + gamma n(x).

    Args:
        sizes: widths of n, from input to output: linear maps with GELU between.
        bias: of the maps.
        gamma: its value at the start.
        source: position and name of the argument that n reads.
        backend: which implementation of the operator runs.

    Attributes:
        relaxed: False switches the branch off; a Python flag, gamma is never read.
    """

    def __init__(self, sizes: tuple[int, ...], bias: bool, gamma: float, source: tuple[int, str], backend: str):
        super().__init__()
        layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.GELU(), nn.Linear(a, b, bias))]
        self.maps = nn.Sequential(*layers[1:])
        self.gamma = nn.Parameter(torch.tensor(float(gamma)))
        self.source, self.backend, self.relaxed = source, backend, True
        add_gates(self, 1)

    def get_gammas(self) -> list[nn.Parameter]:
        return [self.gamma]

    def gate_maps(self, gate: int) -> list[nn.Module]:
        """The linear maps of the branch, first to last."""
        return list(self.maps[::2])

    def join(self, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        """The layer's output with the branch."""
        return self(given(self.source, args, kwargs), output)

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """x [..., I], base [..., O] -> base + gamma n(x); leading dimensions broadcast to base's."""
        if not self.relaxed or self.snapped[0]:
            return base
        lead = base.shape[:-1]
        if x.shape[:-1] != lead:
            if torch.broadcast_shapes(x.shape[:-1], lead) != lead:
                raise ValueError(f"relax: a layer's output must have the leading dimensions of its input, "
                                 f"{list(x.shape[:-1])}, got {list(lead)}; leave this layer out")
            x = x.expand(*lead, x.shape[-1])
        rows = prod(lead)
        h, flat = x.reshape(rows, x.shape[-1]), base.reshape(rows, base.shape[-1])
        return self._rows(h, flat).reshape(base.shape)

    def _rows(self, x: Tensor, base: Tensor) -> Tensor:
        """The last map, gamma and the sum in one call."""
        linear, h = functional.relaxed_linear, x
        for place, one in enumerate(self.gate_maps(0)[:-1]):
            h = linear(h, one.weight, one.bias, activation="gelu" if place else "none", backend=self.backend)
        last = self.maps[-1]
        options = {"activation": "gelu" if len(self.maps) > 1 else "none", "backend": self.backend}
        if self._record is not None:
            self._record(Seen(0, self.gamma, x, base, lambda: linear(h, last.weight, last.bias, **options), self.maps))
        return linear(h, last.weight, last.bias, self.gamma, base, **options)


class SteerableBranch(AddedBranch):
    """An `AddedBranch` whose input and output have irreps."""

    def __init__(self, *args, irreps: tuple[o3.Irreps, o3.Irreps]):
        super().__init__(*args)
        self.irreps = tuple(str(i) for i in irreps)

    def gate_irreps(self, gate: int) -> tuple[o3.Irreps, o3.Irreps]:
        """What the branch reads and returns."""
        return tuple(o3.Irreps(i) for i in self.irreps)


class VectorBranch(SteerableBranch):
    """A `SteerableBranch` of vnn's maps of channels, whose features are [B, 3, C], [B, N, 3, C] or [B, K, 3, N, C]."""

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """x [..., 3, ..., C], base [..., 3, ..., O] -> the shape of base."""
        if not self.relaxed or self.snapped[0]:
            return base
        xyz = min(2, x.dim() - 2)
        vectors = base.movedim(xyz, -1)  # [..., O, 3]
        joined = super().forward(x.movedim(xyz, -1).flatten(-2), vectors.flatten(-2))
        # the layout of the map's own output, so that sums over it have the same order
        return joined.reshape(vectors.shape).movedim(-1, xyz).contiguous()


class AddedBranches(nn.Module):
    """Branches of a layer that returns a tuple: one for each of its numbered outputs, children `h` and `x`."""

    def __init__(self, branches: dict[str, AddedBranch], outputs: dict[str, int]):
        super().__init__()
        self.outputs = outputs
        for name, branch in branches.items():
            self.add_module(name, branch)

    def join(self, args: tuple, kwargs: dict, output: tuple) -> tuple:
        """The layer's outputs with their branches."""
        found = list(output)
        for name, place in self.outputs.items():
            found[place] = getattr(self, name).join(args, kwargs, found[place])
        return tuple(found)


def given(source: tuple[int, str], args: tuple, kwargs: dict) -> Tensor:
    """The argument of a call."""
    place, name = source
    return args[place] if place < len(args) else kwargs[name]


def join(layer: nn.Module, args: tuple, kwargs: dict, output):
    """The forward hook of a layer with added branches; a function of a module, so that copies and pickles have it."""
    return getattr(layer, NAME).join(args, kwargs, output)


def hang(layer: nn.Module, branch: nn.Module) -> None:
    """Adds the branch and the hook."""
    layer.add_module(NAME, branch)
    layer.register_forward_hook(join, with_kwargs=True)


def take_off(layer: nn.Module) -> None:
    """Removes the branch and the hook; the layer is as it was."""
    del layer._modules[NAME]
    for key in [key for key, hook in layer._forward_hooks.items() if hook is join]:
        del layer._forward_hooks[key]
        layer._forward_hooks_with_kwargs.pop(key, None)
