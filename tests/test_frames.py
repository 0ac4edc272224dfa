"""frames and frame_concat: hard spectra, what is left open is drawn uniformly, bad input, errors."""

import functools

import numpy as np
import pytest
import torch
from e3nn import o3

from ace_fast.backend import available
from ace_fast.functional import frame_channels, frame_concat, frames
from ace_fast.kernels import philox
from ace_fast.kernels.frames.op import frame_concat_op, frames_op
from ace_fast.symmetry import random_o3, wigner

BACKENDS = [name for name, reason in available("cpu")["frames"].items() if not reason]
COMPILED = [name for name in BACKENDS if name != "triton"]
ONE = torch.eye(3, dtype=torch.float64)


@functools.cache
def spectra() -> torch.Tensor:
    """[B, 3, 3] float64 second moments: random, nearly the same, graded, of lower rank, tiny and huge."""
    g = torch.Generator().manual_seed(0)
    values = torch.rand(40, 3, generator=g, dtype=torch.float64)
    values[:10] = 1 + values[:10] * 10.0 ** -torch.arange(5.0, 15.0)[:, None]
    values[10:20, 0] = values[10:20, 1] * 10.0 ** -torch.arange(1.0, 11.0)
    values[20:24, 0] = 0
    values[24:26, :2] = 0
    values[26] = 0
    values[27:29] *= torch.tensor([[1e-30], [1e30]])
    axes = random_o3(40, g)
    axes[30:34] = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]).double()
    return axes * values[:, None].sqrt()


def points(factors: torch.Tensor) -> torch.Tensor:
    """[6 B, 3]: sets of six points around the origin with the moments F F^T / 3."""
    return torch.cat([factors.mT, -factors.mT], 1).flatten(0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_axes_of_hard_spectra(backend, dtype):
    """Orthonormal to rounding, and the residual is small relative to the largest value, whatever the spectrum."""
    factors = spectra().to(dtype)
    _, values, axes = frames(points(factors), 6 * torch.arange(41), backend=backend)
    values, axes, second = values.double(), axes.double(), factors.double() @ factors.double().mT / 3
    eps = torch.finfo(dtype).eps
    assert (axes.mT @ axes - ONE).abs().max() < 16 * eps
    assert (torch.linalg.det(axes) - 1).abs().max() < 16 * eps
    size = second.flatten(1).abs().amax(1).clamp(min=1e-300)[:, None, None]
    assert ((second @ axes - axes * values[:, None]) / size).abs().max() < 16 * eps
    assert (values.diff(dim=1) >= 0).all()
    exact = torch.linalg.eigvalsh(second)
    assert ((values - exact) / size[..., 0]).abs().max() < 16 * eps


@pytest.mark.parametrize("backend", BACKENDS)
def test_axes_have_one_sign(backend):
    pos = torch.randn(40, 3, dtype=torch.float64)
    _, _, axes = frames(pos, 4 * torch.arange(11), backend=backend)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    assert (largest[:, 0, :2] > 0).all()
    torch.testing.assert_close(torch.linalg.cross(axes[..., 0], axes[..., 1]), axes[..., 2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_sets_that_decide_little(backend):
    """One point, coincident points, no points, a line, a NaN, an infinity: right each, and none feels another."""
    sets = {"point": [[1.0, 2, 3]], "coincident": [[1.0, 2, 3]] * 3, "none": [], "line": [[0.0, 0, 0], [1, 1, 1]],
            "nan": [[torch.nan, 0, 0], [0, 1, 0]], "infinity": [[torch.inf, 0, 0], [0, 1, 0]],
            "triangle": [[0.0, 0, 0], [3, 0, 0], [0, 1, 0]]}
    pos = torch.tensor([p for rows in sets.values() for p in rows])
    ptr = torch.tensor([0, *map(len, sets.values())]).cumsum(0)
    with np.errstate(invalid="ignore"):  # of the interpreter, inf - inf
        found = frames(pos, ptr, seed=1, backend=backend)
    centroid, values, axes = (dict(zip(sets, x, strict=True)) for x in found)
    for name in ("point", "coincident"):
        torch.testing.assert_close(centroid[name], torch.tensor([1.0, 2, 3]))
        assert (values[name].abs() < 1e-6).all()
    assert (centroid["none"] == 0).all() and (values["none"] == 0).all()
    torch.testing.assert_close(values["line"][2], torch.tensor(0.75))
    torch.testing.assert_close(axes["line"][:, 2].abs(), torch.full((3,), 3**-0.5))
    for name in ("point", "coincident", "none", "line", "triangle"):
        torch.testing.assert_close(axes[name].T @ axes[name], torch.eye(3))
        torch.testing.assert_close(torch.linalg.det(axes[name]), torch.tensor(1.0))
    for name in ("nan", "infinity"):
        assert values[name].isnan().all() and axes[name].isnan().all()


@pytest.mark.parametrize("backend", COMPILED)
def test_open_axes_are_drawn_uniformly(backend):
    """A square's axes in its plane turn by any angle, those of a point anyhow."""
    sets = 3000
    square = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    _, _, axes = frames(square.repeat(sets, 1), 4 * torch.arange(sets + 1), seed=5, backend=backend)
    small = 4 * sets**-0.5
    assert (axes[:, :, 0].abs() - torch.tensor([0.0, 0, 1])).abs().max() < 1e-5
    assert axes[:, :2, 1].mean(0).abs().max() < small
    assert (axes[:, :2, 1, None] * axes[:, None, :2, 1]).mean(0).sub(torch.eye(2) / 2).abs().max() < small
    _, _, axes = frames(torch.zeros(sets, 3), torch.arange(sets + 1), seed=5, backend=backend)
    assert axes.mean(0).abs().max() < small
    assert torch.einsum("nia,nib->ab", axes, axes).sub(sets * torch.eye(3)).abs().max() < 1e-2
    assert torch.einsum("nia,nja->aij", axes, axes).div(sets).sub(torch.eye(3) / 3).abs().max() < small
    again = frames(torch.zeros(sets, 3), torch.arange(sets + 1), seed=5, backend=backend)[2]
    other = frames(torch.zeros(sets, 3), torch.arange(sets + 1), seed=6, backend=backend)[2]
    assert torch.equal(axes, again) and not torch.equal(axes, other)


@pytest.mark.parametrize("backend, n", [(b, 7) for b in BACKENDS] + [(b, 300) for b in COMPILED])
def test_what_rounding_leaves_of_coincident_points_is_no_axis(backend, n):
    """Their mean is not where they are: all lie the same way from it, an ulp off. Pairs further apart have one."""
    sets, point = 31, torch.tensor([0.1, 0.2, 0.3])
    pos = torch.cat([point.expand(sets * n, 3), torch.stack([point, point + torch.tensor([1e-4, 0, 0])])])
    centroid, values, axes = frames(pos, torch.tensor([0] + [n] * sets + [2]).cumsum(0), seed=5, backend=backend)
    assert (centroid[:-1] - point).abs().max() < 1e-5 and (values < 1e-8).all()
    assert axes[:-1].mean(0).norm(dim=0).max() < 0.7  # of each axis; 1 where it is always the same
    assert axes[-1, 0, 2].abs() > 0.999


def degenerate() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors [4, 3, 3] of ranks 0 to 3 and their ptr of one row each."""
    vectors = torch.randn(4, 3, 3, dtype=torch.float64)
    vectors[0] = 0
    vectors[1] = vectors[1, :1] * torch.tensor([[0.0], [1], [-2]])
    vectors[2, 2] = vectors[2, 0] - vectors[2, 1]
    return vectors, torch.arange(5)


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("backend", COMPILED)
def test_frames_of_any_rank_are_equivariant_in_distribution(backend, improper):
    """R(g u) and g R(u) have the same first and second moments; where nothing is open they are equal."""
    vectors, ptr = degenerate()
    seed = torch.arange(2000)
    nothing = torch.zeros(4, 0, dtype=torch.float64)
    draw = lambda u: frame_concat(nothing, nothing, u, ptr, frame_channels(""), seed, improper=improper,  # noqa: E731
                                  backend=backend)[1]
    g = random_o3(1, torch.Generator().manual_seed(3))[0]
    g = g if improper else g * torch.linalg.det(g)
    mine, theirs = draw(vectors @ g.T), g @ draw(vectors)
    small = 5 * len(seed) ** -0.5
    assert (mine.mT @ mine - ONE).abs().max() < 1e-12
    assert (mine.mean(0) - theirs.mean(0)).abs().max() < small
    squares = [torch.einsum("kbij,kbpq->bijpq", r, r) / len(seed) for r in (mine, theirs)]
    assert (squares[0] - squares[1]).abs().max() < 1.5 * small
    exact = 3 if improper else 2
    assert (mine[:, exact:] - theirs[:, exact:]).abs().max() < 1e-12
    sides = torch.linalg.det(mine)
    assert sides[:, :3].mean(0).abs().max() < small if improper else (sides - 1).abs().max() < 1e-12
    first = vectors[1, 1] / vectors[1, 1].norm()  # rank 1: the first that is long enough decides axis 1
    torch.testing.assert_close(draw(vectors)[:, 1, :, 0], first.expand(len(seed), 3))


@pytest.mark.parametrize("backend", COMPILED)
def test_turned_irreps_are_e3nns(backend):
    irreps = o3.Irreps("2x0e + 1x0o + 1x1e + 2x1o + 1x2e + 1x2o + 1x3e + 1x3o")
    vectors, v = torch.randn(2, 3, 3, dtype=torch.float64), torch.randn(irreps.dim, dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64)
    z, turn = frame_concat(x, v, vectors, torch.tensor([0, 2, 5]), frame_channels(irreps), 0, improper=True,
                           backend=backend)
    matrices = [torch.block_diag(*(wigner(ir, one) for mul, ir in irreps for _ in range(mul))) for one in turn[0]]
    assert (z[0, :, :2] == x).all()
    for rows, matrix in zip((z[0, :2, 2:], z[0, 2:, 2:]), matrices, strict=True):
        torch.testing.assert_close(rows, (matrix @ v).expand_as(rows))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_that_are_not_finite_stay_visible(backend):
    vectors = torch.randn(3, 2, 3)
    vectors[1, 1, 2] = torch.nan
    z, turn = frame_concat(torch.zeros(3, 1), torch.ones(3), vectors, torch.arange(4), frame_channels("1o"), 0,
                           backend=backend)
    assert turn[0, 1].isnan().all() and z[0, 1, 1:].isnan().all()
    assert turn[0, ::2].isfinite().all() and z[0, ::2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_stay_inside_whatever_ptr_and_channels_hold(backend):
    x, vectors, v = torch.ones(4, 1), torch.randn(2, 2, 3), torch.ones(2, 3)
    z, _ = frame_concat(x, v, vectors, torch.tensor([1, 2, 3]), frame_channels("1o"), 0, validate=False,
                        backend=backend)
    assert z[0, [0, 3], 1:].isnan().all() and z[0, 1:3].isfinite().all()
    centroid, _, _ = frames(torch.ones(4, 3), torch.tensor([-5, 9]), validate=False, backend=backend)
    torch.testing.assert_close(centroid, torch.ones(1, 3))
    wild = torch.tensor([[2, 1, 0], [-1, 0, 0], [0, 4, 0], [0, 0, 0]])
    z, _ = frame_concat_op(x, v, vectors, torch.tensor([0, 2, 4]), wild, torch.tensor([0]), False, 1e-4, backend)
    assert (z[0, :, 1] == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_philox_is_the_same_everywhere(backend):
    """Salmon et al.'s test vector is the first word triple; a frame of nothing is the random axes themselves."""
    words = philox.philox(torch.tensor([0]), 1)
    assert [f"{int(w):08x}" for w in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    seed = torch.tensor([0, -1, 2**62 + 12345])
    nothing = torch.zeros(3, 0, dtype=torch.float64)
    mine, expected = (frame_concat(nothing, nothing, nothing.new_zeros(3, 1, 3), torch.arange(4), frame_channels(""),
                                   seed, improper=True, backend=name)[1] for name in (backend, "reference"))
    torch.testing.assert_close(mine, expected)


def test_errors():
    pos, ptr = torch.randn(4, 3), torch.tensor([0, 4])
    for match, call in {
        "frames: pos must be a tensor, got list": lambda: frames([[0.0, 0, 0]]),
        r"frames: pos must be \[N, 3\], got \[4, 2\]": lambda: frames(pos[:, :2]),
        "frames: the first argument must be float32 or float64": lambda: frames(pos.long()),
        "frames: pos must be a constant, got a tensor that requires grad; detach it":
            lambda: frames(pos.clone().requires_grad_()),
        "frames: weight must be a constant": lambda: frames(pos, weight=torch.ones(4, requires_grad=True)),
        r"frames: weight must be \[4\]": lambda: frames(pos, weight=torch.ones(3)),
        "frames: ptr must be ascending from 0 to 4, the rows, got 0 to 3": lambda: frames(pos, torch.tensor([0, 3])),
        "got a descent": lambda: frames(pos, torch.tensor([0, 5, 4])),
        r"frames: ptr must be \[B \+ 1\]": lambda: frames(pos, ptr[:0]),
        r"frames: ptr must be int64 \[B \+ 1\] on cpu": lambda: frames(pos, ptr.int()),
        r"frames: tolerance must be in \[0, 1\)": lambda: frames(pos, tolerance=1.0),
        "frames: seed must be a whole number of 64 bits": lambda: frames(pos, seed=0.5),
        r"frames: seed must be \[1\]": lambda: frames(pos, seed=torch.tensor([1, 2])),
        "frames: backend must be one of": lambda: frames(pos, backend="none"),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(NotImplementedError, match="frames: forward-mode derivatives"):
        torch.func.jvp(frames, (pos,), (pos,))


def test_errors_of_frame_concat():
    x, v, u, ptr = torch.ones(4, 1), torch.ones(3), torch.randn(1, 2, 3), torch.tensor([0, 4])
    channels = frame_channels("1o")
    for match, call in {
        r"vectors must be \[1, n, 3\] with n at least 1": lambda: frame_concat(x, v, u[:, :0], ptr, channels, 0),
        r"v must be \[1, D\], a row for each set": lambda: frame_concat(x, torch.ones(2, 3), u, ptr, channels, 0),
        r"v must be 3 numbers, those of channels, got 4": lambda: frame_concat(x, torch.ones(4), u, ptr, channels, 0),
        r"x must be \[N, C\]": lambda: frame_concat(x[:, 0], v, u, ptr, channels, 0),
        r"channels must be \[P, 3\]": lambda: frame_concat(x, v, u, ptr, channels[:, :2], 0),
        "vectors must be torch.float32 on cpu": lambda: frame_concat(x, v, u.double(), ptr, channels, 0),
        "ptr must be ascending from 0 to 4": lambda: frame_concat(x, v, u, torch.tensor([0, 5]), channels, 0),
        "irreps must be of degree 3 or less": lambda: frame_channels("1x4e"),
        "channels must be a tensor": lambda: frame_concat(x, v, u, ptr, "1o", 0),
    }.items():
        with pytest.raises(ValueError, match="frame_concat: " + match):
            call()
    with pytest.raises(NotImplementedError, match="frame_concat: forward-mode derivatives"):
        torch.func.jvp(lambda x: frame_concat(x, v, u, ptr, channels, 0)[0], (x,), (x,))
    with pytest.raises(ValueError, match=r"frame_concat_bwd: needs must be a bool for v and one for vectors"):
        torch.ops.ace_fast.frame_concat_bwd(torch.ones(1, 4, 3), torch.ones(1, 1, 3, 3), v[None], u, ptr, channels,
                                            torch.tensor([0]), False, 1e-4, [True], "auto")


def test_examples():
    centroid, moments, axes = frames(torch.tensor([[0.0, 0, 0], [2, 0, 0], [1, 0.5, 0]]))
    torch.testing.assert_close(moments, torch.tensor([[0, 1 / 18, 2 / 3]]))
    torch.testing.assert_close(axes[0, :, 2].abs(), torch.tensor([1.0, 0, 0]))
    assert frame_channels("1x0e + 2x1o + 1x1e").tolist() == [[0, 0, 0], [1, 1, 0], [4, 1, 0], [7, 1, 1]]
    assert frames_op(torch.zeros(0, 3), None, torch.tensor([0]), None, True, 0.0, "auto")[0].shape == (0, 3)
