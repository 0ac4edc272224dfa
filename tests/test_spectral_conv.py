"""spectral_conv and time_conv: torch.fft's numbers, every T and M, the layers of EGNO, errors, limits."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ace_fast.backend import available
from ace_fast.functional import spectral_conv, time_conv
from ace_fast.kernels.spectral_conv import op as room
from ace_fast.kernels.spectral_conv import table
from ace_fast.nn import SpectralConv1d, SpectralConv1d_x, TimeConv, TimeConv_x

BACKENDS = [name for name, reason in available("cpu")["spectral_conv"].items() if not reason]
FAST = [name for name in BACKENDS if name != "triton"]  # interpreted


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_fft(x, weight):
    """EGNO's own: x [T, N, I], weight [I, O, M, 2]."""
    modes = torch.einsum("mni,iom->mno", torch.fft.rfft(x, dim=0)[:weight.shape[2]], torch.view_as_complex(weight))
    return torch.fft.irfft(modes, n=x.shape[0], dim=0)


def close(mine, gold, tolerance=1e-12):
    assert mine.shape == gold.shape
    assert not gold.numel() or (mine - gold).abs().max() <= tolerance * max(gold.abs().max(), 1e-300)


@pytest.mark.parametrize(("backend", "times", "n", "modes", "i", "o"), [
    *((backend, 5, 301, 2, 40, 37) for backend in FAST), *((backend, 8, 21, 5, 17, 20) for backend in FAST),
    *((backend, 7, 5, 4, 3, 2) for backend in BACKENDS),
])
def test_equals_fft(backend, times, n, modes, i, o):
    """Three (several blocks of nodes) and four products a mode, even and odd T, all modes and few; values and both
    orders of derivatives."""
    x, weight = draw(times, n, i).requires_grad_(), draw(i, o, modes, 2, seed=1).requires_grad_()
    c, d = draw(times, n, o, seed=2).requires_grad_(), (draw(times, n, i, seed=3), draw(i, o, modes, 2, seed=4))
    found = []
    for function in (lambda *a: spectral_conv(*a, backend=backend), by_fft):
        y = function(x, weight)
        first = torch.autograd.grad(y, (x, weight), c, create_graph=True)
        second = torch.autograd.grad(first, (x, weight, c), d)
        found.append([y, *first, *second])
    for mine, gold in zip(*found, strict=True):
        close(mine, gold)


@pytest.mark.parametrize("backend", FAST)
def test_every_number_of_steps_and_modes(backend):
    for times in (*range(1, 11), 15, 16, 31, 32, 63, 64):
        most = times // 2 + 1
        for modes in {1, min(2, most), most}:
            for channels in (2, 40 if times in (4, 9, 64) else 3):
                x, weight = draw(times, 5, channels), draw(channels, 3, modes, 2, seed=1)
                close(spectral_conv(x, weight, backend=backend), by_fft(x, weight))


def test_both_algebras_are_the_map():
    """The tables alone, for sizes where the kernels would choose one of them."""
    for times, modes in ((1, 1), (2, 2), (5, 2), (6, 4), (9, 5), (64, 33)):
        x, weight = draw(times, 3, 4), draw(4, 2, modes, 2, seed=1)
        for three in (False, True):
            found = table.algebra(times, modes, three)
            rows = torch.einsum("at,tni->ani", torch.tensor(found.analysis, dtype=torch.float64), x)
            sums = x.new_zeros(len(found.synthesis[0]), 3, 2)
            for t in found.terms:
                sums[t.to] += rows[t.source] @ (t.re * weight[:, :, t.mode, 0] + t.im * weight[:, :, t.mode, 1])
            y = torch.einsum("tb,bno->tno", torch.tensor(found.synthesis, dtype=torch.float64), sums)
            close(y, by_fft(x, weight))
            real = [table.is_real(m, times) for m in range(modes)]
            assert len(found.terms) == sum(1 if r else 3 if three else 4 for r in real)


def test_algebra_is_chosen_by_counted_operations():
    assert table.flops(5, 2, 128, 128, True) == 2 * 5 * 4 * 256 + 2 * 4 * 128 * 128
    assert table.flops(5, 2, 128, 128, False) == 2 * 5 * 3 * 256 + 2 * 5 * 128 * 128
    assert table.three_products(5, 2, 128, 128) and table.three_products(5, 2, 16, 16)
    assert not table.three_products(5, 2, 2, 2) and not table.three_products(64, 33, 64, 64)
    assert table.wave(3, 12) == (0.0, 1.0) and table.wave(6, 12) == (-1.0, 0.0) and table.wave(9, 12) == (0.0, -1.0)


@pytest.mark.parametrize(("backend", "times"), [*((b, 4) for b in BACKENDS), *((b, 5) for b in FAST)])
def test_imaginary_parts_of_real_modes_have_no_effect(backend, times):
    """As irfft: mode 0, and T/2 for even T; their gradients are exactly zero."""
    x, weight = draw(times, 6, 3), draw(3, 3, times // 2 + 1, 2, seed=1)
    real = [0, times // 2] if times % 2 == 0 else [0]
    changed = weight.clone()
    changed[:, :, real, 1] += 5
    torch.testing.assert_close(spectral_conv(x, changed, backend=backend), spectral_conv(x, weight, backend=backend),
                               rtol=0, atol=1e-14)
    weight.requires_grad_()
    for function in (spectral_conv, time_conv):
        (g,) = torch.autograd.grad(function(x, weight, backend=backend).square().sum(), weight)
        assert (g[:, :, real, 1] == 0).all() and (g[:, :, real, 0] != 0).any() and (g[:, :, 1, 0] != 0).any()
        assert times == 4 or (g[:, :, 1:, 1] != 0).all()


@pytest.mark.parametrize(("backend", "slope"), [
    *((backend, slope) for backend in FAST for slope in (0.01, 1.0)), *((backend, 0.3) for backend in BACKENDS),
])
def test_time_conv_is_the_chain(backend, slope):
    x, weight = draw(5, 9, 6).requires_grad_(), draw(6, 6, 2, 2, seed=1).requires_grad_()
    c, d = draw(5, 9, 6, seed=2).requires_grad_(), (draw(5, 9, 6, seed=3), draw(6, 6, 2, 2, seed=4))
    found = []
    for y in (time_conv(x, weight, slope, backend=backend), x + nn.functional.leaky_relu(by_fft(x, weight), slope)):
        first = torch.autograd.grad(y, (x, weight), c, create_graph=True)
        second = torch.autograd.grad(first, (x, weight, c), d, create_graph=True)
        third = torch.autograd.grad(second[2].square().sum() + second[0].square().sum(), (x, weight, c))
        found.append([y, *first, *second, *third])
    for mine, gold in zip(*found, strict=True):
        close(mine, gold, 1e-11)


@pytest.mark.parametrize("backend", FAST)
def test_only_what_is_needed_gets_a_gradient(backend):
    x, weight = draw(5, 9, 6), draw(6, 6, 2, 2, seed=1)
    for function in (spectral_conv, time_conv):
        full = torch.autograd.grad(function(x.requires_grad_(), weight.requires_grad_(), backend=backend).sum(),
                                   (x, weight))
        for needed in range(2):
            leaves = [t.detach().requires_grad_(i == needed) for i, t in enumerate((x, weight))]
            function(*leaves, backend=backend).sum().backward()
            assert [t.grad is not None for t in leaves] == [i == needed for i in range(2)]
            close(leaves[needed].grad, full[needed])


def test_gradients_do_not_depend_on_the_threads():
    x, weight = draw(5, 700, 33, dtype=torch.float32), draw(33, 33, 2, 2, seed=1, dtype=torch.float32)
    g, before, found = draw(5, 700, 33, seed=2, dtype=torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, positive = room.time_conv_op(x, weight, 0.01, "auto")
            found.append((y, *room.time_conv_bwd(g, positive, x, weight, 0.01, [True, True], "auto")))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_complex_weights_and_dimensions_between(backend):
    x, weight = draw(5, 4, 3, 2), torch.view_as_complex(draw(2, 6, 2, 2, seed=1)).requires_grad_()
    y = spectral_conv(x, weight, backend=backend)
    pairs = torch.view_as_real(weight)
    close(y, by_fft(x.reshape(5, 12, 2), pairs).reshape(5, 4, 3, 6))
    (g,) = torch.autograd.grad(y.square().sum(), weight)
    assert g.is_complex()
    close(torch.view_as_real(g), torch.autograd.grad(by_fft(x.reshape(5, 12, 2), pairs).square().sum(), pairs)[0])


@pytest.mark.parametrize("backend", FAST)
def test_vectors_turn_with_their_input(backend):
    rotation = torch.linalg.qr(draw(3, 3, seed=5))[0]
    layer = TimeConv_x(2, 2, 2, nn.SiLU(), backend=backend).double()
    x = draw(5, 7, 3, 2)
    turned = torch.einsum("ab,tnbc->tnac", rotation, x)
    close(layer(turned), torch.einsum("ab,tnbc->tnac", rotation, layer(x)))


class FFTConv(nn.Module):
    def __init__(self, weights1):
        super().__init__()
        self.weights1 = nn.Parameter(weights1)

    def forward(self, x):
        shape = x.shape
        return by_fft(x.reshape(shape[0], -1, shape[-1]), self.weights1).reshape(*shape[:-1], -1)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("kind", ["features", "vectors"])
def test_layers_have_the_originals_numbers_and_names(backend, kind):
    x = draw(5, 7, 3, 2) if kind == "vectors" else draw(5, 21, 8)
    channels = x.shape[-1]
    conv_class, time_class = (SpectralConv1d_x, TimeConv_x) if kind == "vectors" else (SpectralConv1d, TimeConv)
    torch.manual_seed(0)
    layer = time_class(channels, channels, 2, nn.SiLU(), with_nin=False, backend=backend).double()
    assert list(layer.state_dict()) == ["t_conv.weights1"] and layer.t_conv.weights1.shape == (channels, channels, 2, 2)
    torch.manual_seed(0)
    scale = 0.1 if kind == "vectors" else 1 / channels**2
    assert torch.equal(layer.t_conv.weights1, (scale * torch.rand(channels, channels, 2, 2)).double())
    state = {"t_conv.weights1": draw(channels, channels, 2, 2, seed=1)}
    layer.load_state_dict(state)
    plain = FFTConv(state["t_conv.weights1"])
    for layer_ in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        h = plain(x)
        gold = x + (h if kind == "vectors" else nn.functional.leaky_relu(h))
        close(layer_(x), gold)
        (g,) = torch.autograd.grad(layer_(x).square().sum(), layer_.t_conv.weights1)
        close(g, torch.autograd.grad(gold.square().sum(), plain.weights1)[0])
    conv = conv_class(channels, 4, 3, backend=backend).double()
    close(conv(x), FFTConv(conv.weights1.detach())(x))
    assert "modes1=3" in repr(conv) and list(conv.state_dict()) == ["weights1"]


def test_full_graph_compile_of_the_layer():
    layer, x = TimeConv(6, 6, 2, nn.SiLU()), draw(5, 9, 6, dtype=torch.float32)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.parametrize("backend", FAST)
def test_nan_stays_in_its_node(backend):
    x = draw(5, 60, 3)
    x[2, 7] = torch.nan
    bad = spectral_conv(x, draw(3, 4, 2, 2, seed=1), backend=backend).isnan().any(2).any(0)
    assert bad.nonzero().flatten().tolist() == [7]


def test_forward_mode_raises():
    weight = draw(3, 3, 2, 2)
    for function, name in ((spectral_conv, "spectral_conv"), (time_conv, "time_conv")):
        with pytest.raises(NotImplementedError, match=f"{name}: forward-mode derivatives .* are not supported"):
            torch.func.jvp(lambda x: function(x, weight), (draw(5, 4, 3),), (draw(5, 4, 3),))  # noqa: B023


X, WEIGHT = draw(5, 4, 3), draw(3, 3, 2, 2)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: spectral_conv(X, draw(3, 3, 4, 2)), "spectral_conv: weight must be of at most 3 modes for T = 5 time "
     "steps, got 4 modes; keep fewer modes or give more time steps"),
    (lambda: time_conv(X, draw(3, 3, 4, 2)), "time_conv: weight must be of at most 3 modes for T = 5 time steps, got"),
    (lambda: TimeConv(3, 3, 3)(torch.randn(3, 4, 3)), "at most 2 modes for T = 3 time steps, got 3 modes"),
    (lambda: spectral_conv(X, draw(4, 3, 2, 2)), r"weight must be \[3, O, M, 2\], .*, got \[4, 3, 2, 2\]"),
    (lambda: spectral_conv(X, draw(3, 3, 0, 2)), "part of at least one mode, got"),
    (lambda: spectral_conv(X, draw(3, 3, 2)), r"weight must be \[3, O, M, 2\], .*, got \[3, 3, 2\]"),
    (lambda: spectral_conv(X, WEIGHT.float()), "weight must be torch.float64 on cpu, got torch.float32 on cpu"),
    (lambda: spectral_conv(X.long(), WEIGHT), "the first argument must be float32 or float64, got torch.int64"),
    (lambda: spectral_conv(draw(5), WEIGHT), r"x must be \[T, ..., I\], got \[5\]"),
    (lambda: spectral_conv(draw(0, 4, 3), WEIGHT), "x must be .* with at least one time step, got"),
    (lambda: spectral_conv([1.0], WEIGHT), "spectral_conv: x must be a tensor, got list"),
    (lambda: spectral_conv(X, WEIGHT, backend="fast"), "backend must be one of"),
    (lambda: time_conv(X, draw(3, 4, 2, 2)), r"weight must be \[3, 3, M, 2\], got \[3, 4, 2, 2\]; x is added"),
    (lambda: time_conv(X, WEIGHT, float("nan")), "time_conv: negative_slope must be finite, got nan"),
    (lambda: room.spectral_conv_bwd(draw(5, 4, 2), X, WEIGHT, [True] * 2, "auto"), r"g must be \[5, 4, 3\], got"),
    (lambda: room.spectral_conv_bwd(X, X, WEIGHT, [True], "auto"), "needs must be two bools: x, weight, got 1"),
    (lambda: room.time_conv_bwd(X, X, X, WEIGHT, 0.01, [True] * 2, "auto"),
     r"time_conv_bwd: positive must be torch.bool \[5, 4, 3\] on cpu, got torch.float64"),
    (lambda: TimeConv(3, 4, 2), "TimeConv: out_ch must be in_ch = 3, got 4"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
