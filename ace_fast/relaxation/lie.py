"""How far a branch is from commuting with infinitesimal rotations: its Lie derivative on the data."""

import torch
from e3nn import o3
from torch import Tensor, nn

from ..kernels.relaxed_linear.reference import act_grad
from ..nn.gates import Seen
from ..symmetry.groups import group
from ..symmetry.layouts import directions, irreps, vectors

_TURNS = group("SO(3)")


def _pushed(branch: nn.Sequential, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """The branch's value at x [N, I] and its derivative along the tangents [3, N, I]."""
    for module in branch:
        if isinstance(module, nn.GELU):
            tangent = act_grad(x, "gelu") * tangent
            x = module(x)
        else:
            x, tangent = module(x), nn.functional.linear(tangent, module.weight)
    return x, tangent


def lie_terms(seen: Seen, of: tuple[o3.Irreps, o3.Irreps]) -> tuple[Tensor, Tensor]:
    r"""Squared norms of a branch n and of its Lie derivative, over the rows that it read in a pass.

    .. math:: \|n(x)\|^2, \qquad \sum_{a} \|J_n(x)\, A^{in}_a x - A^{out}_a n(x)\|^2

    The input counts as given: gradients reach the branch's weights alone.

    Args:
        seen: what the layer recorded.
        of: the irreps of the branch's input and output; rows [R, 3, C] are vectors.

    Returns:
        Two 0-dim tensors, differentiable in the weights; the second is 0 where the branch is equivariant under
        rotations.
    """
    x = seen.x.detach()
    reads, returns = (vectors(1) if x.dim() == 3 else irreps(own) for own in of)
    moved = directions(_TURNS, x, reads)
    if seen.affine is not None:
        offset = seen.affine(torch.zeros_like(x))
        value = seen.affine(x)
        pushed = [seen.affine(v) - offset for v in moved]
    else:
        value, pushed = _pushed(seen.branch, x, moved)
    missing = [p - t for p, t in zip(pushed, directions(_TURNS, value, returns), strict=True)]
    return seen.size(value).square(), sum(seen.size(m).square() for m in missing)
