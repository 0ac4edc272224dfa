"""Hidden irreps against the counts of e3nn's own fully connected products."""

import pytest
from e3nn import o3

from ace_fast.models import weight_balanced_irreps


@pytest.mark.parametrize(("features", "lmax", "lmax_attr", "wanted"), [
    (64, 2, 3, "18x0e+18x1o+18x2e"), (64, 1, 1, "32x0e+32x1o"), (64, 0, 3, "64x0e"), (1, 2, 3, "1x0e+1x1o+1x2e"),
    (33, 1, 0, "24x0e+24x1o"), (128, 3, 3, None),
])
def test_counts_are_e3nns(features, lmax, lmax_attr, wanted):
    attributes = o3.Irreps.spherical_harmonics(lmax_attr)
    found = weight_balanced_irreps(features, attributes, lmax)
    assert wanted is None or str(found) == wanted

    def weights(n):
        irreps = (o3.Irreps.spherical_harmonics(lmax) * n).sort().irreps.simplify()
        return irreps, o3.FullyConnectedTensorProduct(irreps, attributes, irreps).weight_numel

    n = found[0].mul
    assert weights(n)[0] == found and weights(n)[1] >= features**2
    assert n == 1 or weights(n - 1)[1] < features**2


@pytest.mark.parametrize(("arguments", "message"), [
    ((0, "0e", 1), "features must be positive and lmax not negative, got 0 and 1"),
    ((8, "0e", -1), "features must be positive and lmax not negative, got 8 and -1"),
    ((8, "1x0o", 1), "attr_irreps must couple with 0e to lmax = 1, got 1x0o"),
])
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"weight_balanced_irreps: {message}"):
        weight_balanced_irreps(*arguments)
