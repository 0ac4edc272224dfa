"""Grids on the sphere: exact where they say so, not one point more than needed, and in e3nn's basis."""

from math import pi

import pytest
import torch
from e3nn import o3

from ace_fast.kernels.sphere_product import grids

GRIDS = [grids.exact(9), grids.exact(9, "lebedev")]  # Lebedev's has points at the poles


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def harmonics(lmax: int, points: torch.Tensor) -> torch.Tensor:
    return o3.spherical_harmonics(list(range(lmax + 1)), points, normalize=True, normalization="integral")


def trilinear(grid: grids.Grid, degrees: tuple[int, int, int], bracket: bool = False) -> torch.Tensor:
    """The integrals of Y_1 Y_2 Y_3 (or {Y_1, Y_2} Y_3) over a grid, [d1, d2, d3]."""
    one, two, out = degrees
    if bracket:
        a, b = ([grids.synthesis(grid, n, name) for name in ("theta", "phi")] for n in (one, two))
        values = torch.einsum("si,sj->sij", a[0], b[1]) - torch.einsum("si,sj->sij", a[1], b[0])
    else:
        values = torch.einsum("si,sj->sij", grids.synthesis(grid, one), grids.synthesis(grid, two))
    return torch.einsum("ks,sij->ijk", grids.analysis(grid, out), values)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_the_harmonics_are_e3nns(grid):
    torch.testing.assert_close(grids.synthesis(grid, 8), harmonics(8, grids.points(grid)), rtol=1e-12, atol=1e-12)
    assert abs(float(grids.weights(grid).sum()) - 4 * pi) < 1e-12
    assert abs(grids.points(grid).norm(dim=1) - 1).max() < 1e-14


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_derivatives_are_those_of_e3nns_harmonics(grid):
    x, y, z = points = grids.points(grid).T
    phi = torch.atan2(x, z)
    tangents = {"theta": (y * phi.sin(), -(1 - y * y).clamp(min=0).sqrt(), y * phi.cos()),
                "phi": (phi.cos(), torch.zeros_like(phi), -phi.sin())}
    for name, tangent in tangents.items():
        _, slope = torch.autograd.functional.jvp(lambda p: harmonics(5, p), points.T, torch.stack(tangent, 1))
        torch.testing.assert_close(grids.synthesis(grid, 5, name), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["gauss", "lebedev"])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (1, 1, 1), (2, 1, 3), (2, 3, 1), (0, 2, 2), (4, 4, 4)])
def test_a_product_is_exact_on_its_grid(degrees, kind):
    grid, fine = grids.exact(sum(degrees), kind), grids.exact(2 * sum(degrees) + 5)
    for bracket in (False, True):
        assert (trilinear(grid, degrees, bracket) - trilinear(fine, degrees, bracket)).abs().max() < 1e-12


@pytest.mark.parametrize("lmax", [1, 2, 3, 6])
def test_no_count_can_be_smaller(lmax):
    grid, degrees = grids.exact(3 * lmax), (lmax, lmax, lmax)
    right = trilinear(grid, degrees)
    for fewer in (grids.gauss(grid.rings, grid.ring_size - 1), grids.gauss(grid.rings - 1, grid.ring_size)):
        assert (trilinear(fewer, degrees) - right).abs().max() > 0.01
        with pytest.raises(ValueError, match=f"at least {grid.rings} x {grid.ring_size} points .*, got {fewer.rings} x "
                                             f"{fewer.ring_size}"):
            grids.check(fewer, (lmax, lmax), lmax)
    grids.check(grid, (lmax, lmax), lmax)


def test_product_and_bracket_are_all_clebsch_gordan_paths():
    lmax = 4
    plain, odd = (trilinear(grids.exact(3 * lmax), (lmax,) * 3, bracket) for bracket in (False, True))
    at = [slice(n * n, (n + 1) ** 2) for n in range(lmax + 1)]
    for one in range(lmax + 1):
        for two in range(lmax + 1):
            for out in range(lmax + 1):
                block = plain[at[one], at[two], at[out]], odd[at[one], at[two], at[out]]
                here, other = block if (one + two + out) % 2 == 0 else block[::-1]
                assert other.abs().max() < 1e-12
                if not abs(one - two) <= out <= one + two:
                    assert here.abs().max() < 1e-12
                    continue
                path = o3.wigner_3j(one, two, out)
                size = (here * path).sum()
                assert abs(size) > 0.05 and (here - size * path).abs().max() < 1e-12
    squares = [float(odd[at[i], at[j], at[k]].square().sum()) for i, j, k in ((1, 1, 1), (2, 2, 3), (3, 3, 3))]
    assert squares == pytest.approx([1.432, 28.65, 93.58], rel=1e-3)


@pytest.mark.parametrize("derivative", [None, "theta", "phi"])
def test_the_separable_factors_are_the_tables(derivative):
    grid, lmax = grids.exact(10), 4
    table = grids.synthesis(grid, lmax, derivative).reshape(grid.rings, grid.ring_size, -1)
    order = grids.orders(lmax)
    polar, around = grids.legendre(grid, lmax, derivative), grids.fourier(grid, lmax, derivative)
    assert torch.equal(torch.einsum("td,ad->tad", polar, around[:, order]), table)
    if derivative is None:
        polar, around = grids.analysis_factors(grid, lmax)
        whole = torch.einsum("dt,da->dta", polar, around[order]).reshape(-1, grid.size)
        torch.testing.assert_close(whole, grids.analysis(grid, lmax), rtol=1e-13, atol=1e-15)


def test_high_degrees_stay_orthonormal():
    grid = grids.exact(80)
    product = grids.analysis(grid, 40)[-81:] @ grids.synthesis(grid, 40)[:, -81:]
    assert (product - torch.eye(81)).abs().max() < 1e-12


def test_rotations_of_coefficients_are_e3nns():
    rotation = -o3.matrix_x(torch.tensor(0.7)) @ o3.matrix_y(torch.tensor(2.1))
    want = o3.Irreps("0e+1o+2e+3o").D_from_matrix(rotation)
    torch.testing.assert_close(grids.rotation(rotation, 3), want, rtol=1e-12, atol=1e-12)


def test_sizes():
    assert [grids.exact(3 * n).size for n in (0, 1, 2, 3, 6)] == [1, 8, 28, 50, 190]
    assert [grids.exact(3 * n, "lebedev").size for n in (0, 1, 2, 3, 6)] == [6, 6, 26, 38, 146]
    assert [grids.exact(n, "auto").kind for n in (0, 3, 12, 132)] == ["gauss", "lebedev", "lebedev", "gauss"]
    assert grids.exact(4) is grids.exact(4)


def test_tables_depend_on_no_mode_of_torch():
    torch.set_default_dtype(torch.float32)
    with torch.inference_mode(), torch.device("meta"):
        table = grids.synthesis(grids.gauss(3, 4), 1)  # of a grid that no other test uses
    assert table.dtype == torch.float64 and table.device.type == "cpu" and not table.is_inference()
    assert table is grids.synthesis(grids.gauss(3, 4), 1)


@pytest.mark.parametrize("call, message", [
    (lambda: grids.exact(3, "uniform"), "kind must be one of .*, got 'uniform'"),
    (lambda: grids.exact(-1), "degree must be at least 0, got -1"),
    (lambda: grids.exact(132, "lebedev"), "degree must be at most 131 for Lebedev's rules, got 132; take"),
    (lambda: grids.gauss(0, 3), "rings must be an integer of at least 1, got 0"),
    (lambda: grids.synthesis(GRIDS[0], -1), "lmax must be at least 0, got -1"),
    (lambda: grids.synthesis(GRIDS[0], 2, "r"), "derivative must be one of .*, got 'r'"),
    (lambda: grids.analysis_factors(GRIDS[1], 2), "kind must be 'gauss' for the separable form, got 'lebedev'"),
    (lambda: grids.check(GRIDS[1], (4, 4), 4), "or a Lebedev rule of degree 12, got Lebedev's of degree 9"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=f"grid: .*{message}"):
        call()
