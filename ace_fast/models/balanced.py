"""Hidden irreps of SEGNN: as many weights in a product as a linear layer of a given width has."""

from __future__ import annotations

from e3nn import o3


def weight_balanced_irreps(features: int, attr_irreps: o3.Irreps | str, lmax: int) -> o3.Irreps:
    """n x (0e + 1o + 2e + ... up to lmax) with the least n whose product has features^2 weights or more.

    The product is the fully connected one of the hidden irreps with the attributes, back to the hidden irreps: n^2
    weights for each triple of degrees and parities that it can couple.

    Args:
        features: width of the linear layer.
        attr_irreps: irreps of the attributes, each with multiplicity one.
        lmax: largest degree of the hidden irreps.

    Raises:
        ValueError: features or lmax out of range, or attributes that couple nothing.

    Source: WeightBalancedIrreps of the SEGNN code (Brandstetter et al., ICLR 2022).

    Example:
        >>> weight_balanced_irreps(64, o3.Irreps.spherical_harmonics(3), 2)
        18x0e+18x1o+18x2e
    """
    if features < 1 or lmax < 0:
        raise ValueError(f"weight_balanced_irreps: features must be positive and lmax not negative, got {features} "
                         f"and {lmax}")
    kinds = [ir for _, ir in o3.Irreps.spherical_harmonics(lmax)]
    attributes = [ir for mul, ir in o3.Irreps(attr_irreps) for _ in range(mul)]
    triples = sum(out in first * second for first in kinds for second in attributes for out in kinds)
    if triples == 0:
        raise ValueError(f"weight_balanced_irreps: attr_irreps must couple with 0e to lmax = {lmax}, got {attr_irreps}")
    n = 1
    while n * n * triples < features * features:
        n += 1
    return o3.Irreps([(n, ir) for ir in kinds])
