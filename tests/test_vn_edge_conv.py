"""vn_edge_conv and its companions: errors, symmetries, choice of neighbours, threads, memory."""

import pytest
import torch
from torch.autograd import forward_ad

from ace_fast import native
from ace_fast.bench.memory import MIB, peak_mb
from ace_fast.kernels.vn_edge_conv import vn_edge_conv, vn_edge_select, vn_edge_stats
from ace_fast.kernels.vn_edge_conv.op import vn_edge_conv_bwd, vn_edge_stats_bwd

BACKENDS = ["reference", *([] if native.load() else ["cpu"])]
EPS, SLOPE = 1e-5, 0.2


def make(B=2, N=13, K=5, C=19, shared=False, dtype=torch.float64, seed=0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    return {
        "p": randn(B, N, 3, 2 * C), "d": randn(B, N, 3, 2 if shared else 2 * C),
        "neighbours": torch.rand(B, N, N, generator=g).argsort(-1)[..., :K],  # distinct, so that no scores are equal
        "mean": randn(C), "var": randn(C).abs(), "weight": randn(C), "bias": randn(C),
    }


def cotangent(inputs) -> torch.Tensor:
    shape = inputs["p"].shape
    return torch.randn(*shape[:3], shape[3] // 2, generator=torch.Generator().manual_seed(9)).to(inputs["p"])


def gradients(inputs, selected=None, backend="cpu") -> tuple[torch.Tensor, ...]:
    return vn_edge_conv_bwd(cotangent(inputs), *inputs.values(), selected, EPS, SLOPE, [True] * 6, backend)


# ---- errors ----------------------------------------------------------------------------------------------------------

CONV_ERRORS = {
    "the first argument must be float32 or float64 on the CPU, got torch.bfloat16; cast it with .float":
        lambda x: x | {"p": x["p"].bfloat16()},
    "the first argument must be float32 or float64, got torch.int64": lambda x: x | {"p": x["p"].long()},
    "d must be torch.float64 on cpu, got torch.float32 on cpu": lambda x: x | {"d": x["d"].float()},
    r"the first argument must be \[B, N, 3, C\], got \[26, 3, 38\]": lambda x: x | {"p": x["p"].flatten(0, 1)},
    r"d must be \[B, N, 3, C\], got \[2, 13, 2, 38\]": lambda x: x | {"d": x["d"][:, :, :2]},
    r"p must be \[B, N, 3, 2C\], got \[2, 13, 3, 37\]; make it with vn_linear": lambda x: x | {"p": x["p"][..., 1:]},
    r"neighbours must be int64 \[2, 13, K\] on cpu, got torch.int32 \[2, 13, 5\] on cpu":
        lambda x: x | {"neighbours": x["neighbours"].int()},
    r"neighbours must be int64 \[2, 13, K\] on cpu, got torch.int64 \[2, 12, 5\] on cpu":
        lambda x: x | {"neighbours": x["neighbours"][:, 1:]},
    r"neighbours must be int64 \[2, 13, K\] on cpu, got torch.int64 \[2, 13\] on cpu":
        lambda x: x | {"neighbours": x["neighbours"][..., 0]},
    r"d must be \[2, 13, 3, C\], got \[2, 12, 3, 38\]": lambda x: x | {"d": x["d"][:, 1:]},
    r"d must be \[2, 13, 3, 38 or 2\], got \[2, 13, 3, 19\]": lambda x: x | {"d": x["d"][..., :19]},
    r"mean must be torch.float64 \[19\] on cpu, got torch.float64 \[18\]": lambda x: x | {"mean": x["mean"][1:]},
    r"var must be torch.float64 \[19\] on cpu, got torch.float32 \[19\]": lambda x: x | {"var": x["var"].float()},
    r"weight must be torch.float64 \[19\] on cpu, got torch.float64 \[1, 19\]":
        lambda x: x | {"weight": x["weight"][None]},
    r"bias must be torch.float64 \[19\] on cpu, got torch.float64 \[\]": lambda x: x | {"bias": x["bias"][0]},
}


@pytest.mark.parametrize("message", CONV_ERRORS)
def test_conv_says_what_is_wrong(message):
    with pytest.raises(ValueError, match="^vn_edge_conv: " + message):
        vn_edge_conv(**CONV_ERRORS[message](make()))


def test_other_conv_arguments():
    x = make()
    for options, message in [
        ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ({"eps": float("nan")}, "eps must be at least 0, got nan"),
        ({"slope": float("nan")}, "slope must be a number, got nan"),
        ({"backend": "fast"}, "backend must be one of"),
        ({"selected": torch.zeros(2, 13, 19)}, r"selected must be int64 \[2, 13, 19\] on cpu, got torch.float32"),
        ({"selected": torch.zeros(2, 13, 18, dtype=torch.int64)},
         r"got torch.int64 \[2, 13, 18\] on cpu; make it with vn_edge_select"),
    ]:
        with pytest.raises(ValueError, match="vn_edge_conv: .*" + message):
            vn_edge_conv(**x, **options)


def test_bfloat16_comes_with_bfloat16_rows_and_float32_vectors():
    x = make()
    half = {n: v.bfloat16() if n in ("p", "d") else v.float() if v.is_floating_point() else v for n, v in x.items()}
    assert vn_edge_conv(**half, backend="reference").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="vn_edge_conv: d must be torch.bfloat16 on cpu, got torch.float32 on cpu"):
        vn_edge_conv(**half | {"d": x["d"].float()}, backend="reference")
    with pytest.raises(ValueError, match=r"vn_edge_conv: var must be torch.float32 \[19\] on cpu, got torch.bfloat16"):
        vn_edge_conv(**half | {"var": x["var"].bfloat16()}, backend="reference")


def test_gradient_operator_says_what_is_wrong():
    x, g = make(), cotangent(make())
    call = lambda g, needs: vn_edge_conv_bwd(g, *x.values(), None, EPS, SLOPE, needs, "auto")  # noqa: E731
    with pytest.raises(ValueError, match=r"vn_edge_conv_bwd: needs must be six bools .*, got \[True\]"):
        call(g, [True])
    with pytest.raises(ValueError, match=r"vn_edge_conv_bwd: g must be \[2, 13, 3, 19\], got \[2, 13, 3, 18\]"):
        call(g[..., 1:], [True] * 6)
    with pytest.raises(ValueError, match=r"vn_edge_conv_bwd: g must be \[2, 13, 3, C\], got \[1, 13, 3, 19\]"):
        call(g[:1], [True] * 6)


def test_statistics_say_what_is_wrong():
    x = make()
    with pytest.raises(ValueError, match=r"vn_edge_stats: p must be \[B, N, 3, 2C\], got \[2, 13, 3, 37\]"):
        vn_edge_stats(x["p"][..., 1:], x["neighbours"])
    with pytest.raises(ValueError, match="vn_edge_stats: neighbours must be int64"):
        vn_edge_stats(x["p"], x["neighbours"].float())
    with pytest.raises(ValueError, match=r"vn_edge_stats_bwd: g_var must be torch.float64 \[19\]"):
        vn_edge_stats_bwd(x["mean"], x["var"][1:], x["p"], x["neighbours"], x["mean"], "auto")


def test_choice_says_what_is_wrong():
    x, u = make(), torch.randn(19, 19, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"vn_edge_select: pool_weight must be torch.float64 \[19, 19\] on cpu, got "
                                         r"torch.float64 \[18, 19\] on cpu"):
        vn_edge_select(**x, pool_weight=u[1:])
    with pytest.raises(ValueError, match=r"vn_edge_select: pool_weight must be .* got torch.float32"):
        vn_edge_select(**x, pool_weight=u.float())
    with pytest.raises(ValueError, match=r"vn_edge_select: neighbours must be at least one neighbour a node, got "
                                         r"\[2, 13, 0\]"):
        vn_edge_select(**x | {"neighbours": x["neighbours"][..., :0]}, pool_weight=u)


def test_forward_mode_raises():
    x = make()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x["p"], torch.ones_like(x["p"]))
        with pytest.raises(NotImplementedError, match="vn_edge_stats: forward-mode"):
            vn_edge_stats(dual, x["neighbours"])
        with pytest.raises(NotImplementedError, match="vn_edge_conv: forward-mode"):
            vn_edge_conv(**x | {"p": dual})


# ---- symmetries ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rotations(backend, shared):
    """Rotated products give rotated results and gradients, the same statistics, the same gradients of the vectors."""
    x = make(shared=shared)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turn = lambda t: torch.einsum("xy,bnyc->bnxc", rotation, t)  # noqa: E731
    turned = x | {"p": turn(x["p"]), "d": turn(x["d"])}
    torch.testing.assert_close(vn_edge_stats(turned["p"], x["neighbours"], backend=backend),
                               vn_edge_stats(x["p"], x["neighbours"], backend=backend), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vn_edge_conv(**turned, backend=backend), turn(vn_edge_conv(**x, backend=backend)),
                               rtol=1e-12, atol=1e-12)
    args = (None, EPS, SLOPE, [True] * 6, backend)
    found = vn_edge_conv_bwd(turn(cotangent(x)), *turned.values(), *args)
    plain = vn_edge_conv_bwd(cotangent(x), *x.values(), *args)
    torch.testing.assert_close(found, (turn(plain[0]), turn(plain[1]), *plain[2:]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_translations(backend):
    """What is added to all neighbour parts and taken from all centre parts is seen by no edge."""
    x = make()
    shift = torch.randn(3, 19, dtype=torch.float64)
    moved = x | {n: x[n] + torch.cat([shift, -shift], 1) for n in ("p", "d")}
    torch.testing.assert_close(vn_edge_conv(**moved, backend=backend), vn_edge_conv(**x, backend=backend),
                               rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_permutations(backend):
    """Renumbered nodes and shuffled neighbours give renumbered results."""
    x = make()
    order = torch.randperm(13)
    place = torch.argsort(order)  # old number -> new
    neighbours = place[x["neighbours"]][:, order][..., torch.randperm(5)]
    mixed = x | {"p": x["p"][:, order], "d": x["d"][:, order], "neighbours": neighbours}
    torch.testing.assert_close(vn_edge_conv(**mixed, backend=backend), vn_edge_conv(**x, backend=backend)[:, order],
                               rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vn_edge_stats(mixed["p"], neighbours, backend=backend),
                               vn_edge_stats(x["p"], x["neighbours"], backend=backend), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clouds_are_independent(backend):
    """Equal clouds give equal bits; NaN in one cloud stays there."""
    x = make(B=3, N=70, C=35, dtype=torch.float32)
    for name in ("p", "d", "neighbours"):
        x[name] = x[name][:1].repeat(3, *[1] * (x[name].dim() - 1))
    y = vn_edge_conv(**x, backend=backend)
    assert torch.equal(y[0], y[1]) and torch.equal(y[0], y[2])
    broken = x | {"p": x["p"].clone(), "d": x["d"].clone()}
    broken["p"][1], broken["d"][1] = torch.nan, torch.nan
    out = vn_edge_conv(**broken, backend=backend)
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], y[[0, 2]])
    for mine, plain in zip(gradients(broken, backend=backend)[:2], gradients(x, backend=backend)[:2], strict=True):
        assert torch.equal(mine[[0, 2]], plain[[0, 2]])


# ---- neighbours ------------------------------------------------------------------------------------------------------

def edge_values(x, backend) -> torch.Tensor:
    """[B, N, K, 3, C]: each neighbour alone."""
    one = [vn_edge_conv(**x | {"neighbours": x["neighbours"][..., k:k + 1]}, backend=backend)
           for k in range(x["neighbours"].shape[2])]
    return torch.stack(one, 2)


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pooling_against_single_edges(backend, shared):
    x = make(C=37, shared=shared)
    u = torch.randn(37, 37, dtype=torch.float64)
    o = edge_values(x, backend)
    torch.testing.assert_close(vn_edge_conv(**x, backend=backend), o.mean(2), rtol=1e-12, atol=1e-12)
    selected = vn_edge_select(**x, pool_weight=u, backend=backend)
    score = (o * torch.einsum("oc,bnkxc->bnkxo", u, o)).sum(3)  # [B, N, K, C]
    assert torch.equal(selected, score.argmax(2))
    index = selected[:, :, None, None].expand(-1, -1, 1, 3, -1)
    torch.testing.assert_close(vn_edge_conv(**x, selected=selected, backend=backend), o.gather(2, index).squeeze(2),
                               rtol=1e-12, atol=1e-12)
    assert torch.equal(selected, vn_edge_select(**x, pool_weight=u, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_choice_among_equals_and_missing(backend):
    x = make(N=6, K=4, C=3)
    u = torch.randn(3, 3, dtype=torch.float64)
    same = x["neighbours"][..., :1].expand(-1, -1, 4).clone()
    assert (vn_edge_select(**x | {"neighbours": same}, pool_weight=u, backend=backend) == 0).all()
    same[..., 0], same[..., 1] = -1, 6
    choose = lambda **changed: vn_edge_select(**x | changed, pool_weight=-u @ u.t(), backend=backend)  # noqa: E731
    chosen = choose(neighbours=same)
    assert (chosen == 2).all()
    y = vn_edge_conv(**x | {"neighbours": same}, selected=chosen, backend=backend)
    torch.testing.assert_close(y, vn_edge_conv(**x | {"neighbours": same[..., 2:3]}, backend=backend),
                               rtol=1e-12, atol=1e-12)
    none = torch.full_like(same, 1 << 40)
    assert (choose(neighbours=none) == 0).all()


@pytest.mark.parametrize("pooled", ["mean", "max"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nodes_without_neighbours(backend, pooled):
    """No edge at all: zeros, no gradients, statistics of norms that are zero."""
    x = make(N=6, K=4, C=3)
    x["neighbours"] = torch.tensor([-1, 6, 1 << 40, -(1 << 40)]).expand(2, 6, 4)
    selected = torch.randint(0, 4, (2, 6, 3)) if pooled == "max" else None
    assert (vn_edge_conv(**x, selected=selected, backend=backend) == 0).all()
    assert all((grad == 0).all() for grad in gradients(x, selected, backend))
    mean, var = vn_edge_stats(x["p"], x["neighbours"], backend=backend)
    assert (mean == 0).all() and (var == 0).all()
    nothing = x | {"neighbours": x["neighbours"][..., :0]}
    assert (vn_edge_conv(**nothing, backend=backend) == 0).all()
    assert all((s == 0).all() for s in vn_edge_stats(x["p"], nothing["neighbours"], backend=backend))
    assert all((grad == 0).all() for grad in gradients(nothing, None, backend))
    assert (vn_edge_stats_bwd(mean, var, x["p"], nothing["neighbours"], mean, backend) == 0).all()


def test_a_choice_outside_reads_nothing():
    x = make(N=6, K=4, C=3)
    selected = torch.tensor([4, -1, 1 << 40]).expand(2, 6, 3)
    assert (vn_edge_conv(**x, selected=selected, backend="cpu") == 0).all()
    assert all((grad == 0).all() for grad in gradients(x, selected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_points_are_finite(backend):
    """A cloud of identical points has edges of norm zero, and so has its direction."""
    x = make(N=6, K=4, C=3, dtype=torch.float32)
    x["p"], x["d"] = torch.zeros_like(x["p"]), torch.zeros_like(x["d"])
    mean, var = vn_edge_stats(x["p"], x["neighbours"], backend=backend)
    assert (var < 1e-20).all()
    found = [vn_edge_conv(**x | {"mean": mean, "var": var}, backend=backend), *gradients(x, None, backend),
             vn_edge_stats_bwd(mean, mean, x["p"], x["neighbours"], mean, backend)]
    assert all(t.isfinite().all() for t in found)


def test_statistics_far_from_zero():
    """Norms near 1000 with a spread of 0.005: float32 keeps the digits of the variance that the norms have."""
    x = make(N=300, K=20, C=3)
    p = torch.zeros(2, 300, 3, 6, dtype=torch.float64)
    p[:, :, 0, :3] = 1000 + torch.randint(0, 65, (2, 300, 3)) / 4096  # exact in float32
    mean, var = vn_edge_stats(p, x["neighbours"], backend="reference")
    mine = vn_edge_stats(p.float(), x["neighbours"], backend="cpu")
    torch.testing.assert_close(mine[0].double(), mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(mine[1].double(), var, rtol=1e-6, atol=0)


# ---- threads and memory ----------------------------------------------------------------------------------------------

def test_threads_do_not_change_a_bit():
    x, u = make(B=8, N=300, K=20, C=42, dtype=torch.float32), torch.randn(42, 42)
    one_direction = x | {"d": x["d"][..., :2].contiguous()}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            selected = vn_edge_select(**x, pool_weight=u, backend="cpu")
            mean, var = vn_edge_stats(x["p"], x["neighbours"], backend="cpu")
            results.append([
                mean, var, selected, *gradients(x), *gradients(one_direction), *gradients(x, selected),
                *(vn_edge_conv(**a, selected=s, backend="cpu") for a in (x, one_direction) for s in (None, selected)),
                vn_edge_stats_bwd(x["mean"], x["var"], x["p"], x["neighbours"], mean, "cpu"),
            ])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_edge_tensor_is_stored():
    """Forward, backward, statistics and choice stay below one tensor [N, K, C]; such a tensor would be seen."""
    N, K, C = 1024, 512, 64
    x, u = make(B=1, N=N, K=K, C=C, dtype=torch.float32), torch.randn(C, C)

    def step():
        mean, var = vn_edge_stats(x["p"], x["neighbours"], backend="cpu")
        selected = vn_edge_select(**x, pool_weight=u, backend="cpu")
        vn_edge_conv(**x, backend="cpu")
        vn_edge_conv(**x, selected=selected, backend="cpu")
        gradients(x), gradients(x, selected)
        vn_edge_stats_bwd(mean, var, x["p"], x["neighbours"], mean, "cpu")

    edge_tensor, threads = N * K * C * 4 / MIB, torch.get_num_threads()
    torch.set_num_threads(2)  # each has its own scratch
    try:
        assert peak_mb(lambda: torch.ones(N, K, C))[0] > 0.9 * edge_tensor
        assert peak_mb(step)[0] < 0.3 * edge_tensor
    finally:
        torch.set_num_threads(threads)
