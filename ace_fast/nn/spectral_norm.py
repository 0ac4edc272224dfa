"""Weights with spectral norm 1 of many linear maps at once, as torch's parametrization gives them one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def spectral_weights(linears: Sequence[nn.Linear]) -> list[Tensor]:
    r"""`linear.weight` of each map, W / (u^T W v); the power iterations of maps of one shape are one batch.

    Args:
        linears: maps with `torch.nn.utils.parametrizations.spectral_norm`; the weights of others are read as they are.

    Returns:
        The weights [O, I], differentiable as torch's: u and v are constants. In training the buffers `_u` and `_v` of
        every map move on by its n_power_iterations, as one read of its weight does; in evaluation mode they stay.

    A read of one weight is a dozen small operator calls an iteration, more time than the arithmetic of them all.

    Example:
        >>> maps = [torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 8)) for _ in range(2)]
        >>> [torch.linalg.matrix_norm(w, 2).round(decimals=2).item() for w in ace_fast.nn.spectral_weights(maps)]
        [1.0, 1.0]
    """
    found, groups = {}, {}
    for place, linear in enumerate(linears):
        norm = _only_norm(linear)
        if norm is None:
            found[place] = linear.weight
            continue
        original = linear.parametrizations.weight.original
        key = (original.shape, original.dtype, original.device, norm.n_power_iterations, norm.eps, norm.training)
        groups.setdefault(key, []).append((place, original, norm))
    for group in groups.values():
        places, originals, norms = zip(*group, strict=True)
        found |= zip(places, _normed(originals, norms).unbind(), strict=True)
    return [found[place] for place in range(len(linears))]


def _only_norm(linear: nn.Linear) -> nn.Module | None:
    """The parametrization, where torch's spectral norm of the rows is all that the weight has."""
    chain = getattr(linear, "parametrizations", {})
    norms = list(chain["weight"]) if "weight" in chain else []
    if len(norms) != 1 or type(norms[0]) is not parametrizations._SpectralNorm or norms[0].dim != 0:
        return None
    return norms[0]


def _normed(originals: tuple[Tensor, ...], norms: tuple[nn.Module, ...]) -> Tensor:
    """[B, O, I] from maps of one shape."""
    weight = torch.stack(originals)
    with torch.no_grad():
        u, v = torch.stack([n._u for n in norms])[:, :, None], torch.stack([n._v for n in norms])[:, :, None]
        if norms[0].training:
            for _ in range(norms[0].n_power_iterations):
                u = nn.functional.normalize(weight @ v, dim=1, eps=norms[0].eps)
                v = nn.functional.normalize(weight.mT @ u, dim=1, eps=norms[0].eps)
            torch._foreach_copy_([n._u for n in norms], list(u[:, :, 0].unbind()))
            torch._foreach_copy_([n._v for n in norms], list(v[:, :, 0].unbind()))
    return weight / (u.mT @ (weight @ v))
