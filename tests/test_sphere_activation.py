"""sphere_activation: what its tables may be, what it refuses, and that the ways over rings and over points agree."""

import copy
import pickle

import pytest
import torch
from rounding import assert_rounded_once
from torch.nn import functional as F

from ace_fast.backend import available
from ace_fast.functional import SphereGrid, sphere_activation
from ace_fast.kernels.sphere_activation import reference
from ace_fast.kernels.sphere_activation.cases import SMALL
from ace_fast.kernels.sphere_activation.op import sphere_activation_bwd, sphere_activation_bwd_bwd, sphere_activation_op
from ace_fast.kernels.sphere_product import grids

GRID = SphereGrid.of(grids.gauss(3, 5), 1)
X, GATE = torch.ones(2, 12, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
TABLES = GRID.on(torch.device("cpu"))


def without_rings(grid: SphereGrid) -> SphereGrid:
    return SphereGrid(*grid.on(torch.device("cpu")))


@pytest.mark.parametrize("rings, azimuths, lmax", [(8, 9, 3), (12, 12, 4), (5, 1, 1), (6, 2, 2), (18, 18, 6)])
def test_rings_are_points(rings, azimuths, lmax):
    """Sums over degrees, then orders, even azimuths and odd, against the tables as they are."""
    grid = SphereGrid.of(grids.gauss(rings, azimuths), lmax)
    torch.manual_seed(0)
    x, x2 = torch.randn(2, 7, (lmax + 1) ** 2 * 2, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(7, 2, dtype=torch.float64)
    found = []
    for table in (grid, without_rings(grid)):
        y = sphere_activation(x, table, x2, gate, act="tanh")
        found.append([y, *torch.autograd.grad(y.pow(2).sum(), (x, x2))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item())


def test_far_arguments_stay_finite():
    grid = SphereGrid.of(grids.gauss(2, 3), 0)
    for act, function in (("silu", F.silu), ("softplus", F.softplus), ("sigmoid", torch.sigmoid), ("tanh", torch.tanh),
                          ("gelu", F.gelu), ("relu", torch.relu)):
        u = torch.tensor([-1e4, -90.0, -20.5, -1e-3, 0.0, 1e-3, 20.5, 90.0, 1e4])
        x = (u * (4 * torch.pi) ** 0.5)[:, None].requires_grad_()
        y = sphere_activation(x, grid, act=act)
        want = function(x.detach() / (4 * torch.pi) ** 0.5) * (4 * torch.pi) ** 0.5
        torch.testing.assert_close(y.detach(), want, rtol=1e-5, atol=1e-5)
        assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()


def test_third_derivatives():
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
    function = lambda x: sphere_activation(x, GRID, act="silu")  # noqa: E731
    first = lambda x: torch.autograd.grad(function(x).pow(2).sum(), x, create_graph=True)[0]  # noqa: E731
    assert torch.autograd.gradgradcheck(first, [x], fast_mode=True)


def test_copies_of_a_grid():
    for other in (copy.deepcopy(GRID), pickle.loads(pickle.dumps(GRID))):
        assert repr(other) == repr(GRID) == "SphereGrid(3 x 5 points, lmax=1, lmax_out=1)"
        assert all(torch.equal(a, b) for a, b in zip(other.on(X.device), TABLES, strict=True))
    assert repr(without_rings(GRID)) == "SphereGrid(15 points, lmax=1, lmax_out=1)"


def op(*fields, tables=TABLES, ring=5, act="silu"):
    return sphere_activation_op(*fields, *tables, ring, False, act, "auto")


def bwd(*needs, x2=None, g=X):
    return sphere_activation_bwd(g, X, x2, None, *TABLES, 5, False, "silu", list(needs), "auto")


def second(c_x2, c_gate, needs):
    return sphere_activation_bwd_bwd(None, c_x2, c_gate, X, X, None, None, *TABLES, 5, False, "silu", needs, "auto")


MESSAGES = {
    "no grid": (lambda: sphere_activation(X, None), r"grid must be a SphereGrid, got NoneType; use SphereGrid\.of"),
    "layout": (lambda: sphere_activation(X, GRID, layout="e3nn"),
               r"layout must be one of \('mul_ir', 'ir_mul'\), got 'e3nn'"),
    "no tensor": (lambda: sphere_activation(X, GRID, 1.0), r"x2 must be a tensor, got 1\.0"),
    "act": (lambda: sphere_activation(X, GRID, act="elu"), r"act must be one of .*, got 'elu'"),
    "unequal": (lambda: sphere_activation(X[:, :7], GRID),
                r"x must be \[Z, 4 C\] for degrees 0\.\.1, got \[2, 7\]; every degree must have the same multiplicity"),
    "x2": (lambda: sphere_activation(X, GRID, X[:1]), r"x2 must be \[2, 12\], got \[1, 12\]"),
    "gate": (lambda: sphere_activation(X, GRID, None, X), r"gate must be \[2, 3\], got \[2, 12\]"),
    "dtype": (lambda: sphere_activation(X, GRID, X.float()), r"x2 must be torch\.float64 on cpu, got torch\.float32"),
    "half": (lambda: sphere_activation(X.half(), GRID), r"must be float32 or float64, got torch\.float16"),
    "bfloat16": (lambda: sphere_activation(X.bfloat16(), GRID),
                 r"x must be float32 or float64 on the CPU, got torch\.bfloat16; cast it with \.float\(\)"),
    "backend": (lambda: sphere_activation(X, GRID, backend="cuda"), r"backend must be one of .*, got 'cuda'"),
    "table's dtype": (lambda: op(X, None, None, tables=[t.float() for t in TABLES]),
                      r"into must be torch\.float64 on cpu"),
    "table": (lambda: op(X, None, None, tables=[TABLES[0][:, :3], TABLES[1]]),
              r"into must be \[S, \(L\+1\)\^2\], got \[15, 3\]"),
    "points": (lambda: op(X, None, None, tables=[TABLES[0], TABLES[1][1:]]),
               r"back must be \[15, \(L\+1\)\^2\] like into"),
    "ring": (lambda: op(X, None, None, ring=4), r"ring must be 0 or a divisor of the 15 points, got 4"),
    "needs": (lambda: bwd(True, True, False), r"needs must be a bool for each of x, x2, gate, False where None"),
    "g": (lambda: bwd(True, False, False, g=X[:, :4]), r"g must be \[2, 12\], got \[2, 4\]"),
    "cotangent": (lambda: second(X, None, [True] * 2 + [False] * 2),
                  r"c_x2 must be None where x2 is None, got a tensor"),
    "gate's": (lambda: second(None, GATE, [True] * 2 + [False] * 2), r"c_gate must be None where gate is None"),
    "second's needs": (lambda: second(None, None, [True]), r"needs must be a bool for each of g, x, x2, gate"),
    "grid's into": (lambda: SphereGrid(torch.zeros(4, 5), torch.zeros(4, 4)),
                    r"SphereGrid: into must be \[S, \(L\+1\)\^2\]"),
    "grid's back": (lambda: SphereGrid(torch.zeros(4, 4), torch.zeros(3, 4)),
                    r"SphereGrid: back must be \[4, \(L\+1\)\^2\]"),
    "grid's ring": (lambda: SphereGrid(torch.zeros(4, 4), torch.zeros(4, 4), 3),
                    r"ring must be 0 or a divisor of the 4"),
}


@pytest.mark.parametrize("call, message", MESSAGES.values(), ids=MESSAGES)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_forward_mode():
    with pytest.raises(NotImplementedError, match="sphere_activation: forward-mode derivatives"):
        torch.func.jvp(lambda x: sphere_activation(x, GRID), (X,), (X,))


def test_no_second_derivative_is_lost():
    """Of a product of two fields, linear in each, in the field whose gradient nobody asked for."""
    x, x2 = ((X * torch.linspace(n, 1, 12, dtype=torch.float64)).requires_grad_() for n in (-1, 2))
    found = []
    for y in (sphere_activation(x, GRID, x2, act="none"),
              reference.forward(x, x2, None, *TABLES, GRID.ring, False, "none")):
        (g,) = torch.autograd.grad(y.sum(), x2, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), x)[0])
    assert found[1].any()
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


TAKE_BFLOAT16 = [n for n, reason in available("cpu")["sphere_activation"].items() if not reason and n != "cpu"]


@pytest.mark.parametrize("case", [case for case in SMALL if case.name in ("tiny", "odd")], ids=repr)
@pytest.mark.parametrize("backend", TAKE_BFLOAT16)
def test_bfloat16_is_computed_in_float32_and_rounded_once(backend, case):
    assert_rounded_once(case, backend)


def test_bfloat16_has_derivatives_of_its_own_dtype():
    """To the third, which is plain torch; beside float32 of the same numbers."""
    x, x2, gate = (torch.linspace(n, 1, width).repeat(2, 1).bfloat16() for n, width in ((-1, 12), (2, 12), (0.5, 3)))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [t.to(dtype).requires_grad_() for t in (x, x2, gate)]
        y = sphere_activation(leaves[0], GRID, *leaves[1:], act="silu", backend="reference")
        found.append([y])
        for _ in range(3):
            gradients = torch.autograd.grad(y.float().sum(), leaves, create_graph=True)
            y = sum(g.float().square().sum() for g in gradients)
            found[-1] += gradients
    for low, high in zip(*found, strict=True):
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), high, rtol=0, atol=3e-2 * high.abs().max().item())
