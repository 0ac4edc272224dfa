"""vn_linear, vn_norm_stats, vn_leaky_relu: folds, slices, edge maps and groups, threads, NaN rows, errors, limits."""

import pytest
import torch

from ace_fast.backend import available
from ace_fast.kernels.vn_linear import op as room
from ace_fast.kernels.vn_linear import vn_leaky_relu, vn_linear, vn_norm_stats

BACKENDS = [name for name, reason in available("cpu")["vn_linear"].items() if not reason]
F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=F64)


def maps(c=7, o=5, edge=False):
    """weight, dense, bias, gamma."""
    inner = 2 * c if edge else c
    return [randn(o, inner), randn(3 * o, 3 * inner), randn(3 * o), torch.tensor(0.7, dtype=F64)]


def plain(x, weight, dense, bias, gamma):
    """W x + gamma (D vec(x) + b) as an nn.Linear on the channels' xyz and a VNLinear."""
    free = torch.nn.functional.linear(x.transpose(-1, -2).flatten(-2), dense, bias)
    return x @ weight.t() + gamma * free.unflatten(-1, (-1, 3)).transpose(-1, -2)


def close(mine, gold):
    assert mine.shape == gold.shape
    assert (mine - gold).abs().max() <= 1e-12 * gold.abs().max()


def same_with_gradients(mine, gold, leaves):
    """`mine` and `gold`: functions of the leaves."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    x, y = mine(*leaves), gold(*leaves)
    close(x, y)
    c = randn(*y.shape, seed=1)
    pairs = zip(torch.autograd.grad(x, leaves, c), torch.autograd.grad(y, leaves, c), strict=True)
    for a, b in pairs:
        close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fold_equals_the_plain_form(backend):
    same_with_gradients(lambda *t: vn_linear(*t, backend=backend), plain, [randn(2, 5, 3, 7), *maps()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_edge_map_equals_the_map_of_edge_features(backend):
    """Part 1 of j plus part 2 of i is the map of [x_j - x_i ; x_i]."""
    neighbours = torch.tensor([[1, 0], [3, 3], [2, 4], [0, 1], [4, 2]])

    def mine(x, *parameters):
        near, centre = vn_linear(x, *parameters, edge=True, backend=backend).chunk(2, -1)
        return near[neighbours] + centre[:, None]

    def gold(x, *parameters):
        centre = x[:, None].expand(-1, 2, -1, -1)
        return plain(torch.cat([x[neighbours] - centre, centre], -1), *parameters)

    same_with_gradients(mine, gold, [randn(5, 3, 7), *maps(edge=True)])


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_concat_split(backend, relaxed):
    """The columns that act on each cloud's mean act on it once, through slices of the parameters, as an offset."""
    c = 7

    def mine(x, weight, *rest):
        dense, bias, gamma = rest or (None, None, None)
        left, right = (None, None) if dense is None else (dense[:, : 3 * c], dense[:, 3 * c:])
        offset = vn_linear(x.mean(1), weight[:, c:], right, None, gamma, backend=backend)
        return vn_linear(x, weight[:, :c], left, bias, gamma, offset, backend=backend)

    def gold(x, weight, *rest):
        both = torch.cat([x, x.mean(1, keepdim=True).expand_as(x)], -1)
        return plain(both, weight, *rest) if rest else both @ weight.t()

    same_with_gradients(mine, gold, [randn(3, 11, 3, c), *maps(2 * c)[: 4 if relaxed else 1]])


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_column_slices_equal_their_copies(backend, edge):
    x, (weight, dense, bias, gamma) = randn(9, 3, 7), maps(edge=edge)
    wide_w, wide_d = torch.cat([randn(5, 3), weight, randn(5, 2)], 1), torch.cat([randn(15, 4), dense], 1)
    slices = (wide_w[:, 3:-2], wide_d[:, 4:])
    assert not any(t.is_contiguous() for t in slices)
    for copies, views in (((weight, dense, bias, gamma), (*slices, bias, gamma)), ((weight,), slices[:1])):
        assert torch.equal(vn_linear(x, *copies, edge=edge, backend=backend),
                           vn_linear(x, *views, edge=edge, backend=backend))
        g = randn(9, 3, 10 if edge else 5)
        full = [True, True, *[len(copies) > 1] * 3]
        found = [room.vn_linear_bwd(g, x, *t, *[None] * (4 - len(t)), edge, full, backend) for t in (copies, views)]
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gamma_zero_is_the_strict_map(backend):
    x, (weight, dense, bias, _) = randn(9, 3, 7), maps()
    zero = torch.tensor(0.0, dtype=F64)
    assert torch.equal(vn_linear(x, weight, dense, bias, zero, backend=backend) + 0,
                       vn_linear(x, weight, 0 * dense, backend=backend) + 0)
    close(vn_linear(x, weight, dense, bias, zero, backend=backend), vn_linear(x, weight, backend=backend))


@pytest.mark.parametrize("needed", range(6))
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_needed_gets_a_gradient(backend, needed):
    inputs = [randn(6, 3, 7), *maps(), randn(2, 3, 5)]
    leaves = [t.requires_grad_(i == needed) for i, t in enumerate(inputs)]
    vn_linear(*leaves, backend=backend).square().sum().backward()
    assert [t.grad is not None for t in leaves] == [i == needed for i in range(6)]
    full = [t.detach().requires_grad_() for t in inputs]
    gold = (plain(*full[:5]) + full[5].repeat_interleave(3, 0)).square().sum()
    close(leaves[needed].grad, torch.autograd.grad(gold, full)[needed])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_products_deeper_than_a_block(dtype):
    """Sums over more than 1024 channels and rows are taken in parts, whose last is shorter."""
    x, weight, g = (t.to(dtype) for t in (randn(703, 3, 1301), randn(17, 1301), randn(703, 3, 17)))
    wide = [t.double() for t in (x, weight, g)]
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    g_x, g_weight, *_ = room.vn_linear_bwd(g, x, weight, None, None, None, False, [True, True, *[False] * 3], "auto")
    for mine, gold in ((vn_linear(x, weight), wide[0] @ wide[1].t()), (g_x, wide[2] @ wide[1]),
                       (g_weight, wide[2].flatten(0, 1).t() @ wide[0].flatten(0, 1))):
        assert (mine - gold).abs().max() <= tolerance * gold.abs().max()


def test_threads_do_not_change_a_bit():
    if available("cpu")["vn_linear"]["cpu"]:
        pytest.fail("the cpu backend is missing")
    x, weight, dense, bias, gamma = (t.float() for t in (randn(1200, 3, 85), *maps(85, 70)))
    g, d, offset = randn(1200, 3, 70).float(), randn(1200, 3, 85).float(), randn(4, 3, 70).float()
    vectors = [t.float().abs() for t in (randn(85), randn(85, seed=1), randn(85, seed=2), randn(85, seed=3))]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([
                vn_linear(x, weight, dense, bias, gamma, offset), *vn_norm_stats(x), vn_leaky_relu(x, d, *vectors),
                *room.vn_linear_bwd(g, x, weight, dense, bias, gamma, False, [True] * 5, "auto"),
                *room.vn_linear_bwd(g, x, weight, None, None, None, False, [True, True, *[False] * 3], "auto"),
                room.vn_norm_stats_bwd(vectors[0], vectors[1], x, vectors[2], "auto"),
                *room.vn_leaky_relu_bwd(d, x, x[:, :, :1], *vectors, 1e-5, 0.2, [True] * 6, "auto"),
            ])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_variance_without_cancellation(backend):
    """Norms near 1000 that spread by 0.1: the squares alone would keep no digit of the variance in float32."""
    p = torch.zeros(100, 3, 5, dtype=F64)
    p[:, 1] = 1000 + 0.1 * randn(100, 5)
    p = p.float()
    mean, var = vn_norm_stats(p, backend=backend)
    norms = p.double().norm(dim=1) + 1e-6
    torch.testing.assert_close(mean.double(), norms.mean(0), rtol=4 * torch.finfo(torch.float32).eps, atol=0)
    torch.testing.assert_close(var.double(), norms.var(0, correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_row(backend, shared):
    p, d = randn(40, 3, 19), randn(40, 3, 1 if shared else 19)
    vectors = [randn(19, seed=i).abs() for i in range(4)]
    broken = p.clone()
    broken[7, 1, 18] = torch.nan
    x, y = (vn_leaky_relu(t, d, *vectors, backend=backend) for t in (p, broken))
    assert y[7, :, 18].isnan().all()
    y[7, :, 18] = x[7, :, 18]
    assert torch.equal(x, y)
    g = randn(40, 3, 19)
    needs = [True, True, *[False] * 4]
    x, y = (room.vn_leaky_relu_bwd(g, t, d, *vectors, 1e-5, 0.2, needs, backend)[:2] for t in (p, broken))
    others = torch.arange(40) != 7
    assert y[0][7, :, 18].isnan().all() and all(torch.equal(a[others], b[others]) for a, b in zip(x, y, strict=True))


def linear_inputs():
    return dict(zip(("x", "weight", "dense", "bias", "gamma", "offset", "edge", "backend"),
                    (randn(6, 3, 7), *maps(), randn(2, 3, 5), False, "auto"), strict=True))


@pytest.mark.parametrize("change, message", [
    ({"x": randn(6, 3, 7).bfloat16(), "backend": "auto"},
     r"the first argument must be float32 or float64 on the CPU, got torch.bfloat16; cast it with .float\(\)"),
    ({"x": randn(6, 3, 7).int()}, "the first argument must be float32 or float64, got torch.int32"),
    ({"x": randn(6, 4, 7)}, r"the first argument must be \[R, 3, C\], got \[6, 4, 7\]"),
    ({"x": randn(3, 7)}, r"the first argument must be \[R, 3, C\], got \[3, 7\]"),
    ({"x": randn(6, 3, 7).bfloat16(), "backend": "reference"},
     "offset must be torch.bfloat16 on cpu, got torch.float64 on cpu"),
    ({"offset": randn(2, 3, 5).float()}, "offset must be torch.float64 on cpu, got torch.float32 on cpu"),
    ({"offset": randn(2, 15)}, r"offset must be \[R, 3, C\], got \[2, 15\]"),
    ({"offset": randn(2, 3, 6)}, r"offset must be \[R, 3, 5\], got \[2, 3, 6\]"),
    ({"offset": randn(4, 3, 5)}, r"offset must be \[G, 3, O\] with G a divisor of the 6 rows, got \[4, 3, 5\]"),
    ({"offset": randn(0, 3, 5)}, r"offset must be \[G, 3, O\] with G a divisor of the 6 rows, got \[0, 3, 5\]"),
    ({"weight": randn(5, 6)}, r"weight must be torch.float64 \[5, 7\] on cpu, got torch.float64 \[5, 6\] on cpu"),
    ({"weight": randn(5, 7), "edge": True}, r"weight must be torch.float64 \[5, 14\] on cpu, got .* \[5, 7\]"),
    ({"weight": randn(5, 7).float()}, r"weight must be torch.float64 \[5, 7\] on cpu, got torch.float32"),
    ({"dense": randn(15, 20)}, r"dense must be torch.float64 \[15, 21\] on cpu, got torch.float64 \[15, 20\] on cpu"),
    ({"bias": randn(5)}, r"bias must be torch.float64 \[15\] on cpu, got torch.float64 \[5\] on cpu"),
    ({"gamma": randn(1)}, r"gamma must be torch.float64 \[\] on cpu, got torch.float64 \[1\] on cpu"),
    ({"dense": None}, "bias and gamma must be None where dense is None, got tensors"),
    ({"backend": "fast"}, r"backend must be one of \['auto', .*\], got 'fast'"),
])
def test_wrong_arguments_of_the_map(change, message):
    with pytest.raises(ValueError, match=f"vn_linear: {message}"):
        room.vn_linear_op(*(linear_inputs() | change).values())


@pytest.mark.parametrize("change, message", [
    ({"g": randn(5, 3, 5)}, r"g must be \[6, 3, O\], got \[5, 3, 5\]"),
    ({"g": randn(6, 3, 4)}, r"g must be \[R, 3, 5\], got \[6, 3, 4\]"),
    ({"needs": [True] * 3}, r"needs must be five bools \(x, weight, dense, bias, gamma\), False where None, got \["),
    ({"bias": None}, r"needs must be five bools \(x, weight, dense, bias, gamma\), False where None, got \["),
])
def test_wrong_arguments_of_the_gradient_of_the_map(change, message):
    inputs = {"g": randn(6, 3, 5)} | linear_inputs()
    del inputs["offset"], inputs["backend"]
    with pytest.raises(ValueError, match=f"vn_linear_bwd: {message}"):
        room.vn_linear_bwd(*(inputs | {"needs": [True] * 5} | change).values(), "auto")


def relu_inputs():
    return {"p": randn(6, 3, 7), "d": randn(6, 3, 7), "mean": randn(7), "var": randn(7).abs(), "weight": randn(7),
            "bias": randn(7), "eps": 1e-5, "slope": 0.2}


@pytest.mark.parametrize("change, message", [
    ({"d": randn(6, 3, 2)}, r"d must be \[6, 3, 7 or 1\], got \[6, 3, 2\]"),
    ({"d": randn(5, 3, 7)}, r"d must be \[6, 3, 7 or 1\], got \[5, 3, 7\]"),
    ({"d": randn(6, 3, 7).float()}, "d must be torch.float64 on cpu, got torch.float32 on cpu"),
    ({"var": None}, "mean, var, weight and bias must be all tensors or all None, got some of each"),
    ({"mean": None}, "mean, var, weight and bias must be all tensors or all None, got some of each"),
    ({"weight": randn(6)}, r"weight must be torch.float64 \[7\] on cpu, got torch.float64 \[6\] on cpu"),
    ({"mean": randn(7).float()}, r"mean must be torch.float64 \[7\] on cpu, got torch.float32 \[7\] on cpu"),
    ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
    ({"slope": float("nan")}, "slope must be a number, got nan"),
])
def test_wrong_arguments_of_the_leaky_relu(change, message):
    with pytest.raises(ValueError, match=f"vn_leaky_relu: {message}"):
        room.vn_leaky_relu_op(*(relu_inputs() | change).values(), "auto")


@pytest.mark.parametrize("change, message", [
    ({"g": randn(5, 3, 7)}, r"g must be \[6, 3, 7\], got \[5, 3, 7\]"),
    ({"d": None}, r"needs must be six bools \(p, d, mean, var, weight, bias\), False where None, got \["),
    ({"needs": [True] * 5}, r"needs must be six bools \(p, d, mean, var, weight, bias\), False where None, got \["),
])
def test_wrong_arguments_of_the_gradient_of_the_leaky_relu(change, message):
    inputs = {"g": randn(6, 3, 7)} | relu_inputs() | {"needs": [True] * 6}
    with pytest.raises(ValueError, match=f"vn_leaky_relu_bwd: {message}"):
        room.vn_leaky_relu_bwd(*(inputs | change).values(), "auto")


def test_wrong_arguments_of_the_statistics():
    with pytest.raises(ValueError, match=r"vn_norm_stats: the first argument must be \[R, 3, C\], got \[6, 2, 7\]"):
        vn_norm_stats(randn(6, 2, 7))
    with pytest.raises(ValueError, match=r"vn_norm_stats_bwd: g_var must be torch.float64 \[7\] on cpu, got .* \[6\]"):
        room.vn_norm_stats_bwd(randn(7), randn(6), randn(6, 3, 7), randn(7), "auto")


@pytest.mark.parametrize("call, name", [
    (lambda x: vn_linear(x, randn(5, 7)), "vn_linear: x"),
    (vn_norm_stats, "vn_norm_stats: p"),
    (lambda x: vn_leaky_relu(x, None), "vn_leaky_relu: p"),
    (lambda x: vn_leaky_relu(randn(6, 3, 7), x), "vn_leaky_relu: d"),
])
def test_no_rows_of_vectors(call, name):
    with pytest.raises(ValueError, match=rf"{name} must be a tensor \[..., 3, C\], got \[7\]"):
        call(randn(7))
    with pytest.raises(ValueError, match=rf"{name} must be a tensor \[..., 3, C\], got 1.5"):
        call(1.5)


@pytest.mark.parametrize("call, name", [
    (lambda x: vn_linear(x, randn(5, 7)), "vn_linear"),
    (lambda x: vn_norm_stats(x)[0], "vn_norm_stats"),
    (lambda x: vn_leaky_relu(x, None), "vn_leaky_relu"),
])
def test_forward_mode_raises(call, name):
    x = randn(6, 3, 7)
    with pytest.raises(NotImplementedError, match=f"{name}: forward-mode derivatives .* are not supported"):
        torch.func.jvp(call, (x,), (torch.ones_like(x),))
