"""relaxed_linear: the folded derivatives, agreement with a plain torch chain, errors, limits."""

import pytest
import torch
from torch.nn.functional import gelu, linear

from ace_fast.backend import available
from ace_fast.kernels.relaxed_linear import op as room
from ace_fast.kernels.relaxed_linear import relaxed_linear

BACKENDS = [name for name, reason in available("cpu")["relaxed_linear"].items() if not reason]


def inputs(n=21, i=17, o=34, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    shapes = ((n, i), (o, i), (o,), (), (n, o), (n, o))
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def chain(x, weight, bias, gamma, base, residual, activation):
    return base + gamma * linear(gelu(x) if activation == "gelu" else x, weight, bias) + residual


WIDE = (9, 512, 256)  # rows of weights, inputs and gradients a multiple of 2 KB apart, which the C++ spreads
CHAINS = [(backend, sizes) for backend in BACKENDS for sizes in ((21, 17, 34), WIDE)
          if (backend, sizes) != ("triton", WIDE)]


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize(("backend", "sizes"), CHAINS)
def test_equals_the_plain_chain(backend, sizes, activation):
    leaves = inputs(*sizes)
    c = torch.randn(sizes[0], sizes[2], dtype=torch.float64)
    mine = relaxed_linear(*leaves, activation=activation, backend=backend)
    plain = chain(*leaves, activation)
    pairs = zip((mine, *torch.autograd.grad(mine, leaves, c)), (plain, *torch.autograd.grad(plain, leaves, c)),
                strict=True)
    for x, gold in pairs:
        assert (x - gold).abs().max() <= 1e-12 * gold.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gamma_fold(backend):
    """With M = gamma W: d gamma = <dM, W> + <sum g, b> and dW = gamma dM, dM the gradient of the unscaled product."""
    x, weight, bias, gamma, *_ = (t.detach() for t in inputs())
    g = torch.randn(21, 34, dtype=torch.float64)
    plain, gated = [False, True, True, False], [False, True, True, True]
    _, d_matrix, d_bias, _ = room.relaxed_linear_bwd(g, x, weight, bias, None, "gelu", plain, backend)
    g_x, g_weight, g_bias, g_gamma = room.relaxed_linear_bwd(g, x, weight, bias, gamma, "gelu", gated, backend)
    assert g_x.shape == (0,)
    torch.testing.assert_close(g_weight, gamma * d_matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g_bias, gamma * d_bias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(g_gamma, (d_matrix * weight).sum() + (d_bias * bias).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_branch_of_three_calls(backend):
    """Linear-GELU-Linear-GELU-Linear added to a base with a gate."""
    g = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(i, o).double() for i, o in ((10, 12), (12, 6), (6, 6))]
    x, base = torch.randn(7, 10, generator=g, dtype=torch.float64), torch.randn(7, 6, generator=g, dtype=torch.float64)
    gamma = torch.tensor(0.3, dtype=torch.float64)
    h = relaxed_linear(x, layers[0].weight, layers[0].bias, backend=backend)
    h = relaxed_linear(h, layers[1].weight, layers[1].bias, activation="gelu", backend=backend)
    y = relaxed_linear(h, layers[2].weight, layers[2].bias, gamma, base, activation="gelu", backend=backend)
    gold = base + gamma * layers[2](gelu(layers[1](gelu(layers[0](x)))))
    assert (y - gold).abs().max() <= 1e-12 * gold.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", range(6))
def test_only_what_is_needed_gets_a_gradient(backend, needed):
    leaves = [t.detach().requires_grad_(i == needed) for i, t in enumerate(inputs(5, 3, 4))]
    relaxed_linear(*leaves, activation="gelu", backend=backend).sum().backward()
    assert [t.grad is not None for t in leaves] == [i == needed for i in range(6)]
    full = inputs(5, 3, 4)
    torch.testing.assert_close(leaves[needed].grad, torch.autograd.grad(chain(*full, "gelu").sum(), full)[needed])


def test_gradients_do_not_depend_on_the_threads():
    x, weight, bias, gamma, *_ = (t.detach() for t in inputs(600, 33, 50, torch.float32))
    g = torch.randn(600, 50)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(room.relaxed_linear_bwd(g, x, weight, bias, gamma, "gelu", [True] * 4, "auto"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_on_the_whole_line(backend):
    """Float noise of erf times |x| in the middle, exactly zero and x in the tails, NaN kept."""
    x = torch.cat([torch.linspace(-40, 40, 8001), torch.tensor([-0.0, 1e38, -1e38, torch.nan])])
    y = relaxed_linear(x[:, None], torch.ones(1, 1), activation="gelu", backend=backend)[:, 0]
    error = (y.double() - gelu(x.double())).abs()
    middle = x.abs() < 8
    assert (error[middle] <= 4 * torch.finfo(torch.float32).eps * (1 + x[middle].abs())).all()
    assert (y[x <= -8] == 0).all() and torch.equal(y[x >= 8], x[x >= 8]) and y[-1].isnan()


@pytest.mark.parametrize("change, message", [
    ({"gamma": 0.5}, r"gamma must be a 0-dim tensor, got 0.5; pass torch.tensor\(0.5\)"),
    ({"x": [[1.0]]}, r"x must be a tensor, got \[\[1.0\]\]"),
    ({"weight": None}, "weight must be a tensor, got None"),
    ({"base": 0}, "base must be a tensor, got 0"),
])
def test_numbers_instead_of_tensors(change, message):
    with pytest.raises(ValueError, match=f"relaxed_linear: {message}"):
        relaxed_linear(**{"x": torch.ones(2, 3), "weight": torch.ones(1, 3)} | change)


def test_forward_mode_raises():
    x, weight, *_ = (t.detach() for t in inputs())
    with pytest.raises(NotImplementedError, match="relaxed_linear: forward-mode derivatives .* are not supported"):
        torch.func.jvp(lambda x: relaxed_linear(x, weight), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize(
    "position, value, message",
    [
        (0, torch.zeros(2, 3, 17).double(), r"x must be \[N, I\], got \[2, 3, 17\]; flatten the leading dimensions"),
        (0, torch.zeros(21, 17, dtype=torch.int64), "the first argument must be float32 or float64, got torch.int64"),
        (1, torch.zeros(34, 18).double(), r"weight must be \[O, 17\], got \[34, 18\]"),
        (1, torch.zeros(34, 17), "weight must be torch.float64 on cpu, got torch.float32 on cpu"),
        (1, torch.zeros(34, 17, device="meta").double(), "weight must be torch.float64 on cpu, got .* on meta"),
        (2, torch.zeros(33).double(), r"bias must be \[34\], got \[33\]"),
        (3, torch.zeros(1).double(), r"gamma must be a 0-dim tensor, got \[1\]; pass gamma.reshape\(\(\)\)"),
        (4, torch.zeros(21, 33).double(), r"base must be \[21, 34\], got \[21, 33\]"),
        (5, torch.zeros(20, 34).double(), r"residual must be \[21, 34\], got \[20, 34\]"),
        (6, "relu", "activation must be 'none' or 'gelu', got 'relu'"),
        (7, "fast", r"backend must be one of \['auto', .*\], got 'fast'"),
    ],
)
def test_wrong_arguments(position, value, message):
    arguments = [*(t.detach() for t in inputs()), "gelu", "auto"]
    arguments[position] = value
    with pytest.raises(ValueError, match=f"relaxed_linear: {message}"):
        room.relaxed_linear_op(*arguments)


@pytest.mark.parametrize(
    "position, value, message",
    [
        (0, torch.zeros(21, 33).double(), r"g must be \[21, 34\], got \[21, 33\]"),
        (3, None, r"needs\[bias\] must be False where bias is None, got True"),
        (4, None, r"needs\[gamma\] must be False where gamma is None, got True"),
        (6, [True] * 3, "needs must be four bools: x, weight, bias, gamma, got 3"),
    ],
)
def test_wrong_arguments_of_the_gradient(position, value, message):
    x, weight, bias, gamma, g, _ = (t.detach() for t in inputs())
    arguments = [g, x, weight, bias, gamma, "gelu", [True] * 4, "auto"]
    arguments[position] = value
    with pytest.raises(ValueError, match=f"relaxed_linear_bwd: {message}"):
        room.relaxed_linear_bwd(*arguments)
