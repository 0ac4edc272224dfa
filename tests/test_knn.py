"""knn: against brute force, ties, NaN, clouds of several sizes, limits, errors, compilation, threads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ace_fast.backend import available
from ace_fast.kernels.knn import knn
from ace_fast.kernels.knn.cases import LARGE, SMALL
from ace_fast.kernels.knn.op import knn_op

SHAPES = Path(__file__).parents[2] / "shared" / "data" / "shapes40.npz"
BACKENDS = [name for name, reason in available("cpu")["knn"].items() if not reason]
DTYPES = [torch.float32, torch.float64]


def distances(x: torch.Tensor) -> torch.Tensor:
    """x [N, F] -> [N, N] in float64."""
    x = x.double()
    d = (x[:, None] - x[None]).square().sum(-1)
    return d.masked_fill(d.isnan(), torch.inf)


def brute(x: torch.Tensor, k: int, include_self: bool = True) -> torch.Tensor:
    """x [N, F] -> [N, k]: Python's own stable sort of every row."""
    rows = distances(x).tolist()
    return torch.tensor([[j for j in sorted(range(len(rows)), key=row.__getitem__) if include_self or j != i][:k]
                         for i, row in enumerate(rows)], dtype=torch.int64)


def assert_nearest(x: torch.Tensor, found: torch.Tensor) -> None:
    """Different points, as near as the nearest up to the rounding of the distances in the dtype of x, in this order."""
    d, k = distances(x), found.shape[1]
    assert all(len(set(row)) == k for row in found.tolist())
    eps = torch.finfo(x.dtype).eps * (x.shape[1] + 2)
    torch.testing.assert_close(d.gather(1, found), d.sort(-1).values[:, :k], rtol=2 * eps, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("points, features, k", [(53, 3, 10), (70, 66, 20), (19, 130, 19)])
def test_random_points(backend, dtype, points, features, k):
    x = torch.randn(2, points, features, dtype=dtype)
    found = knn(x, k, backend=backend)
    assert found.shape == (2, points, k) and found.dtype == torch.int64
    for cloud, mine in zip(x, found, strict=True):
        assert torch.equal(mine[:, 0], torch.arange(points))
        assert_nearest(cloud, mine)
        if dtype == torch.float64:
            assert torch.equal(mine, brute(cloud, k))


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_features(backend):
    x = torch.randint(-4, 5, (12, 1000 if backend == "triton" else 4096)).float() / 8
    assert torch.equal(knn(x[None], 5, backend=backend)[0], brute(x, 5))


@pytest.mark.skipif(not SHAPES.exists(), reason="shared/data is not beside this checkout")
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_shapes(backend):
    """Surfaces have ordered points and equal distances, unlike random clouds."""
    with np.load(SHAPES) as archive:
        points = torch.from_numpy(archive["points"][[0, 400]].astype(np.float32))
    points = points[:, : 1024 if backend == "cpu" else 130]
    found = knn(points, 20, backend=backend)
    for cloud, mine in zip(points, found, strict=True):
        assert_nearest(cloud, mine)


@pytest.mark.parametrize("case", [case for case in SMALL if case.name != "empty"], ids=repr)
def test_the_reference_of_every_case(case):
    """The generic tests hold the backends against the reference; here it is held against brute force."""
    inputs = case.inputs(torch.Generator().manual_seed(0))
    x, ptr = inputs["x"], inputs["ptr"].tolist()
    expected = [brute(x[a:b], inputs["k"], inputs["include_self"]) for a, b in zip(ptr, ptr[1:], strict=False) if b > a]
    assert torch.equal(case.reference(**inputs), torch.cat(expected))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("include_self", [True, False])
def test_ties_go_to_the_lower_index(backend, include_self):
    """A square, each corner twice: the duplicate, then both neighbouring corners, in the order of the rows."""
    corners = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    x = torch.cat([corners, corners])[None]
    found = knn(x, 5, include_self=include_self, backend=backend)[0]
    assert torch.equal(found, brute(x[0], 5, include_self))
    assert found[4].tolist() == ([0, 4, 1, 3, 5] if include_self else [0, 1, 3, 5, 7])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_duplicates_of_any_point_are_at_zero(backend, dtype):
    """Whatever the size of the coordinates: distances are sums of squared differences."""
    x = 1e3 + torch.randn(1, 20, 7, dtype=dtype)
    x = torch.cat([x, x], 1)
    found = knn(x, 2, backend=backend)[0]
    assert torch.equal(found, torch.arange(20).repeat(2)[:, None] + torch.tensor([0, 20]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")  # NumPy, interpreting
def test_nan_and_infinite_points_come_last(backend, dtype, include_self):
    x = torch.randint(-9, 9, (40, 2)).to(dtype)
    x[3], x[36] = torch.nan, torch.nan
    x[11, 0], x[38, 1], x[30] = torch.inf, -torch.inf, torch.finfo(dtype).max  # differences of the last overflow
    found = knn(x[None], 38, include_self=include_self, backend=backend)[0]
    lost = {3, 36, 11, 38, 30}
    for i, row in enumerate(found.tolist()):
        others = [j for j in range(40) if include_self or j != i]
        far = [j for j in others if j in lost or i in lost]
        far = [j for j in far if not (i == j == 30)]  # the difference of the largest number and itself is zero
        near = [j for j in others if j not in far]
        near.sort(key=lambda j: (x[i] - x[j]).square().sum().item())
        assert row == (near + far)[:38]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_nan(backend):
    found = knn(torch.full((1, 7, 2), torch.nan), 3, include_self=False, backend=backend)[0]
    assert found.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("include_self", [True, False])
def test_clouds_of_several_sizes(backend, include_self):
    sizes = [7, 0, 30, 6, 0]
    x, ptr = torch.randn(43, 3), torch.tensor([0, *sizes]).cumsum(0)
    found = knn(x, 5, ptr=ptr, include_self=include_self, backend=backend)
    for a, size in zip(ptr.tolist(), sizes, strict=False):
        alone = knn(x[None, a:a + size], 5, include_self=include_self, backend=backend)[0]
        assert torch.equal(found[a:a + size], alone + a)
        assert size == 0 or torch.equal(alone, brute(x[a:a + size], 5, include_self))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_points_are_a_permutation(backend):
    found = knn(torch.randn(1, 40, 3), 40, backend=backend)[0]
    assert torch.equal(found.sort(-1).values, torch.arange(40).expand(40, 40))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (0, 0, 1), (0, 2, 3)], ids=str)
def test_nothing(backend, shape):
    assert knn(torch.zeros(shape), 4, backend=backend).shape == (*shape[:2], 4)
    for ptr in (torch.tensor([0]), torch.tensor([0, 0, 0])):
        assert knn(torch.zeros(0, 3), 4, ptr=ptr, backend=backend).shape == (0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_compared_in_float32(backend):
    x = torch.randn(1, 40, 9).bfloat16()
    assert torch.equal(knn(x, 8, backend=backend), knn(x.float(), 8, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ptr", [[-5, 4, 90], [3, 9, 20], [0, 12, 6], [4, 4, 4], [0]], ids=str)
def test_a_wrong_ptr_reads_and_finds_nothing_outside(backend, ptr):
    """The operator checks no values; rows of no cloud and places without a candidate are zero."""
    found = knn_op(torch.randn(20, 2), torch.tensor(ptr), 20, 7, True, backend)
    assert found.shape == (20, 7)
    assert ((found >= 0) & (found < 20)).all()
    if ptr in ([4, 4, 4], [0]):
        assert not found.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_few_candidates_leave_zeros(backend):
    found = knn_op(torch.arange(8.0)[:, None], torch.tensor([0, 2, 8]), 6, 3, False, backend)
    assert found[:2].tolist() == [[1, 0, 0], [0, 0, 0]]


def test_the_reference_does_not_depend_on_its_chunks(monkeypatch):
    x = torch.randn(1, 60, 3)
    whole = knn(x, 9, backend="reference")
    monkeypatch.setattr("ace_fast.kernels.knn.reference.CHUNK", 7 * 60 * 3)
    assert torch.equal(knn(x, 9, backend="reference"), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [3, 40])
def test_threads_do_not_change_an_index(dtype, features):
    x = torch.randn(3, 333, features, dtype=dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(knn(x, 20, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_in_a_full_graph(backend):
    compiled = torch.compile(lambda x: knn(2 * x, 4, include_self=False, backend=backend), fullgraph=True,
                             backend="aot_eager", dynamic=True)
    for points in (9, 14):
        x = torch.randn(2, points, 3, requires_grad=True)
        assert torch.equal(compiled(x), knn(2 * x, 4, include_self=False, backend=backend))


def test_indices_have_no_derivative():
    x = torch.randn(1, 9, 2, requires_grad=True)
    found = knn(x, 3)
    assert not found.requires_grad
    (g,) = torch.autograd.grad(x[0, found[0]].sum(), x)
    assert g.sum() == found.numel() * 2


def test_forward_mode_takes_indices_as_constants():
    x = torch.randn(1, 9, 2)
    _, tangent = torch.func.jvp(lambda x: x[0, knn(x, 3)[0]], (x,), (torch.ones_like(x),))
    assert torch.equal(tangent, torch.ones(9, 3, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ptr_is_read_once(backend, monkeypatch):
    """The one synchronisation on a GPU."""
    reads, original = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: reads.append(t.shape) or original(t))
    knn(torch.randn(9, 2), 2, ptr=torch.tensor([0, 4, 9]), backend=backend)
    assert len(reads) == 1


X = torch.zeros(2, 6, 3)


@pytest.mark.parametrize("x, k, options, message", [
    ([[0.0]], 1, {}, r"x must be a tensor, got list; use torch.as_tensor"),
    (X, 2, {"ptr": [0, 6]}, r"ptr must be a tensor, got list; use torch.as_tensor"),
    (X.long(), 2, {}, r"x must be float32, float64 or bfloat16, got torch.int64; cast it with .float\(\)"),
    (X[0], 2, {}, r"x must be \[B, N, F\], got \[6, 3\]; x \[B, N, F\] needs no ptr"),
    (X, 2, {"ptr": torch.tensor([0, 6])}, r"x must be \[M, F\], got \[2, 6, 3\]; x \[B, N, F\] needs no ptr"),
    (X[..., :0], 2, {}, r"x must be \[B, N, F\] with at least one feature, got \[2, 6, 0\]"),
    (X, 0, {}, r"k must be in 1..64, got 0"),
    (torch.zeros(1, 99, 1), 65, {}, r"k must be in 1..64, got 65"),
    (X, 2.0, {}, r"k must be a whole number, got 2.0; pass an int"),
    (X, True, {}, r"k must be a whole number, got True; pass an int"),
    (X, 20, {}, r"k must be at most 6, the points of the smallest cloud, got 20; take a smaller k, or leave out"),
    (X, 6, {"include_self": False}, r"k must be at most 5, the points of the smallest cloud without itself, got 6; "),
    (X[0], 3, {"ptr": torch.tensor([0, 0, 4, 6])}, r"k must be at most 2, the points of the smallest cloud, got 3"),
    (X[0], 2, {"ptr": torch.tensor([0, 6.0])}, r"ptr must be int64 \[B \+ 1\] on cpu, got torch.float32 \[2\] on cpu"),
    (X[0], 2, {"ptr": torch.tensor([[0, 6]])}, r"ptr must be int64 \[B \+ 1\] on cpu, got torch.int64 \[1, 2\]"),
    (X[0], 2, {"ptr": torch.tensor([0, 6], device="meta")}, r"ptr must be .* on cpu, got torch.int64 \[2\] on meta"),
    (X[0], 2, {"ptr": torch.zeros(0, dtype=torch.int64)}, r"ptr must be \[B \+ 1\], got \[0\]; no clouds are ptr = "),
    (X[0], 2, {"ptr": torch.tensor([1, 6])}, r"ptr must be 0 at its start and 6, the rows of x, at its end, got 1 and"),
    (X[0], 2, {"ptr": torch.tensor([0, 5])}, r"ptr must be 0 at its start and 6, .*, got 0 and 5; ptr\[b\] is the "),
    (X[0], 2, {"ptr": torch.tensor([0])}, r"ptr must be 0 at its start and 6, .*, got 0 and 0"),
    (X[0], 2, {"ptr": torch.tensor([0, 4, 2, 6])}, r"ptr must be in ascending order, got a step of -2; sort the rows"),
    (X, 2, {"backend": "fast"}, r"backend must be one of \['auto', .*\], got 'fast'"),
])
def test_wrong_arguments(x, k, options, message):
    with pytest.raises(ValueError, match=f"knn: {message}"):
        knn(x, k, **options)


@pytest.mark.parametrize("longest", [-1, 7])
def test_wrong_longest(longest):
    message = f"knn: longest must be in 0..6, the rows of x, got {longest}; it is the size of the largest cloud"
    with pytest.raises(ValueError, match=message):
        knn_op(X[0], torch.tensor([0, 6]), longest, 1, True, "auto")


def test_operator_refuses_k_above_the_largest_cloud():
    with pytest.raises(ValueError, match="knn: k must be at most 3, the points of the smallest cloud, got 4"):
        knn_op(X[0], torch.tensor([0, 3, 6]), 3, 4, True, "auto")


def test_large_cases_are_named_by_their_sizes():
    names = {case.name for case in LARGE}
    assert {"modelnet_8x300_63", "modelnet_8x1024_63", "modelnet_32x1024_255", "scan_1x16384_3"} <= names
    assert {"dgnn_64x1024_3", "dgnn_64x1024_64"} <= names
    small = next(case for case in LARGE if case.name == "modelnet_8x300_3").inputs(torch.Generator().manual_seed(0))
    assert small["x"].shape == (2400, 3) and small["longest"] == 300 and small["k"] == 20
