"""TensorProduct has the properties that e3nn's own tests ask of e3nn's, and equals it, in every connection mode."""

import pytest
import torch
from dropin import assert_close, assert_same, copies, relaid, rows, tolerance
from e3nn import o3
from e3nn.util.test import assert_equivariant

from ace_fast.nn import FullyConnectedTensorProduct, TensorProduct

# degrees and parities of in1, in2 and out, connection mode, whether it has weights; every mode, every kind of degree
CASES = [
    ("0e", "0e", "0e", "uvw", True), ("1o", "1o", "2e", "uvw", True), ("2e", "1o", "1o", "uvu", True),
    ("1e", "1e", "1e", "uvu", False), ("0o", "2e", "2o", "uvv", True), ("1o", "1e", "0o", "uvv", False),
    ("2e", "0e", "2e", "uuw", True), ("1e", "1o", "1o", "uuu", True), ("2o", "2o", "2e", "uuu", False),
    ("1o", "0o", "1e", "uvuv", True), ("1o", "2e", "1o", "uvuv", False),
]
PAIRS = [("1o", "1o", "1e", "uvu<v", False), ("1e", "1e", "2e", "uvu<v", True), ("2e", "2e", "1e", "u<vw", True)]


@pytest.fixture(params=[torch.float32, torch.float64], ids=str, autouse=True)
def dtype(request):
    torch.set_default_dtype(request.param)


def arguments(a, b, c, mode, weight):
    """Two slices each way, the mode within them and "uvw" across, as in e3nn's test."""
    u, v = 12, 9
    out = (u * u, v * v) if mode == "uvuv" else (u, v)
    return ([(u, a), (v, a)], [(u, b), (v, b)], [(out[0], c), (out[1], c)],
            [(0, 0, 0, mode, weight), (1, 1, 1, mode, weight), (0, 0, 1, "uvw", True, 0.5),
             (0, 1, 1, "uvw", True, 0.2)])


def pairs(a, b, c, mode, weight):
    return [(5, a)], [(5, b)], [(10 if mode == "uvu<v" else 7, c)], [(0, 0, 0, mode, weight)]


@pytest.fixture(params=CASES + PAIRS, ids=lambda case: "-".join(map(str, case)))
def product(request):
    make = pairs if "<" in request.param[3] else arguments
    return make(*request.param)


def test_bilinear_and_right(product):
    tp = TensorProduct(*product)
    x1, x2, y1, y2 = (torch.randn(2, i.dim) for i in (tp.irreps_in1,) * 2 + (tp.irreps_in2,) * 2)
    both = tp(x1 + x2, y1 + y2)
    assert (both - tp(x1, y1 + y2) - tp(x2, y1 + y2)).abs().max() < tolerance()
    assert (both - tp(x1 + x2, y1) - tp(x1 + x2, y2)).abs().max() < tolerance()
    assert_close(torch.einsum("zi,zij->zj", x1, tp.right(y1)), tp(x1, y1), 4)
    assert tp.right(y1).shape == (2, tp.irreps_in1.dim, tp.irreps_out.dim)


def test_variance_and_equivariance(product):
    tp = TensorProduct(*product)
    out = tp(torch.randn(1000, tp.irreps_in1.dim), torch.randn(1000, tp.irreps_in2.dim))
    assert 1 / 3 < out.var(0).mean() < 3
    assert_equivariant(tp)


def test_linear_in_the_weights(product):
    tp = TensorProduct(*product, internal_weights=False)
    x, y = torch.randn(3, tp.irreps_in1.dim), torch.randn(3, tp.irreps_in2.dim)
    u, v = torch.randn(2, tp.weight_numel)
    constant = tp(x, y, torch.zeros_like(u))  # of the paths without weights
    assert_close(tp(x, y, u + 2 * v) - constant, tp(x, y, u) - constant + 2 * (tp(x, y, v) - constant), 8)


@pytest.mark.parametrize("shared", [True, False])
def test_equals_e3nn(product, shared):
    theirs = o3.TensorProduct(*product, internal_weights=False, shared_weights=shared)
    mine = TensorProduct(*product, internal_weights=False, shared_weights=shared)
    assert mine.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(mine.state_dict())
    lead = () if shared else (4,)
    weight = torch.randn(*lead, mine.weight_numel, requires_grad=True)
    inputs = [rows(mine.irreps_in1, 4), rows(mine.irreps_in2, 4)]
    assert_same(mine, theirs, [*inputs, weight] if mine.weight_numel else inputs)


@pytest.mark.parametrize("shared", [True, False])
def test_channels_last(product, shared):
    mine = TensorProduct(*product, internal_weights=False, shared_weights=shared)
    other = TensorProduct(*product, internal_weights=False, shared_weights=shared, layout="ir_mul")
    lead = () if shared else (4,)
    x, y = rows(mine.irreps_in1, 4), rows(mine.irreps_in2, 4)
    weight = torch.randn(*lead, mine.weight_numel, requires_grad=True)
    leaves = [x, y, weight] if mine.weight_numel else [x, y]
    want = mine(x, y, weight)
    got = relaid(other(relaid(x, mine.irreps_in1, "ir_mul"), relaid(y, mine.irreps_in2, "ir_mul"), weight),
                 mine.irreps_out, "mul_ir")
    assert_close(got, want, 4)
    cotangent = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, leaves, cotangent),
                    strict=True):
        assert_close(a, b, 16)
    matrix = other.right(relaid(y, mine.irreps_in2, "ir_mul"), weight)
    assert_close(relaid(torch.einsum("zi,zij->zj", relaid(x, mine.irreps_in1, "ir_mul"), matrix), mine.irreps_out,
                        "mul_ir"), want, 8)


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[4], CASES[6], CASES[7], CASES[9]], ids=lambda c: c[3])
@pytest.mark.parametrize("specialized", [True, False])
def test_states_of_generated_code(case, specialized):
    """e3nn keeps coefficients in its state, depending on options; both directions load strictly."""
    options = {"compile_right": True, "_specialized_code": specialized, "_optimize_einsums": False}
    theirs, mine = o3.TensorProduct(*arguments(*case), **options), TensorProduct(*arguments(*case), **options)
    assert (mine._specialized_code, mine._optimize_einsums) == (specialized, False)
    state, other = mine.state_dict(), theirs.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state if key != "weight")
    mine.load_state_dict(other)
    theirs.load_state_dict(mine.state_dict())
    assert torch.equal(mine.weight, theirs.weight) and repr(mine) == repr(theirs)
    adopted = TensorProduct.from_e3nn(theirs)
    assert adopted.state_dict().keys() == other.keys() and adopted.weight is theirs.weight
    x, y = rows(mine.irreps_in1, 3), rows(mine.irreps_in2, 3)
    assert_same(adopted, theirs, (x, y))
    assert_close(mine.right(y), theirs.right(y), 4)
    a, b = (torch.autograd.grad(m.right(y).square().sum(), [y, m.weight], create_graph=True) for m in (mine, theirs))
    for p, q in zip(a, b, strict=True):
        assert_close(p, q, 16)
    second = [torch.autograd.grad(g[0].square().sum(), y)[0] for g in (a, b)]
    assert_close(*second, 64)


@pytest.mark.parametrize("normalization", ["component", "norm"])
@pytest.mark.parametrize("mode", ["uvw", "uvu", "uvv"])
def test_specialized_and_general_code(normalization, mode):
    """All degrees at once; e3nn's special cases are the general formula."""
    in1, in2 = "4x0e+4x1e+4x2e", "5x0e+5x1e+5x2e"
    out = {"uvw": "6x0e+6x1e+6x2e", "uvu": in1, "uvv": in2}[mode]
    paths = [(i, j, k, mode, True, 1.0) for i, j, k in
             [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1), (0, 2, 2), (2, 0, 2), (2, 2, 0), (2, 1, 1)]]
    mine = TensorProduct(in1, in2, out, paths, irrep_normalization=normalization)
    for specialized in (False, True):
        theirs = o3.TensorProduct(in1, in2, out, paths, irrep_normalization=normalization,
                                  _specialized_code=specialized)
        with torch.no_grad():
            theirs.weight.copy_(mine.weight)
        assert_same(mine, theirs, (rows(in1, 3), rows(in2, 3)))


def test_empty_irreps_and_inputs():
    tp = FullyConnectedTensorProduct("0e+1e", o3.Irreps([]), "0e+1e")
    out = tp(torch.randn(1, 2, 4), torch.randn(2, 1, 0))
    assert out.shape == (2, 2, 4) and not out.any()
    assert FullyConnectedTensorProduct("", "", "")(torch.zeros(3, 0), torch.zeros(3, 0)).shape == (3, 0)
    tp = FullyConnectedTensorProduct("0e+1e", "0e+1e", "0e+1e")
    out = tp(torch.randn(2, 1, 0, 1, 4), torch.randn(1, 2, 0, 3, 4))
    assert out.shape == (2, 2, 0, 3, 4)
    assert tp.right(torch.randn(1, 2, 0, 3, 4)).shape == (1, 2, 0, 3, 4, 4)
    out.sum().backward()
    assert tp.weight.grad is not None and not tp.weight.grad.any()


def test_single_out():
    """A slice that no path reaches is zero and changes nothing else."""
    one = TensorProduct("5x0e", "5x0e", "5x0e", [(0, 0, 0, "uvw", True, 1.0)])
    two = TensorProduct("5x0e", "5x0e", "5x0e+3x0o", [(0, 0, 0, "uvw", True, 1.0)])
    two.load_state_dict({**two.state_dict(), "weight": one.weight})
    x, y = torch.randn(2, 3, 5)
    assert_close(two(x, y)[:, :5], one(x, y))
    assert two(x, y).shape == (3, 8) and not two(x, y)[:, 5:].any()
    assert two.output_mask.tolist() == 5 * [1] + 3 * [0]


@pytest.mark.parametrize("shared", [True, False])
def test_weights_as_a_list(shared):
    irreps = "1e+2e+3x3o"
    tp = FullyConnectedTensorProduct(irreps, irreps, irreps, internal_weights=False, shared_weights=shared)
    x, y = rows(irreps, 2, 3), rows(irreps, 2, 3)
    lead = () if shared else (2, 3)
    blocks = [torch.randn(*lead, *ins.path_shape) for ins in tp.instructions]
    flat = torch.cat([b.flatten(len(lead)) for b in blocks], -1)
    assert torch.equal(tp(x, y, blocks), tp(x, y, flat))
    assert torch.equal(tp(x, y, [b.flatten(len(lead)) for b in blocks]), tp(x, y, flat))
    assert torch.equal(tp.right(y, blocks), tp.right(y, flat))


def test_weights_that_broadcast():
    """Odd leading dimensions of x, y and the weights give what the expanded ones give."""
    irreps = "1e+2e+3x3o"
    tp = FullyConnectedTensorProduct(irreps, irreps, irreps, internal_weights=False, shared_weights=False)
    with pytest.raises(RuntimeError, match="weight must be given where internal_weights is False"):
        tp(rows(irreps, 2), rows(irreps, 2))
    for lead in ((2, 1, 4), (2, 3, 1), (3, 4)), ((), (5,), (1,)), ((5,), (), (2, 1)), ((0,), (1,), (1,)):
        x, y, w = rows(irreps, *lead[0]), rows(irreps, *lead[1]), torch.randn(*lead[2], tp.weight_numel)
        whole = torch.broadcast_shapes(*lead)
        n = torch.Size(whole).numel()
        expanded = [t.expand(*whole, -1).reshape(n, t.shape[-1]) for t in (x, y, w)]
        assert_close(tp(x, y, w).reshape(n, -1) if n else tp(x, y, w)[:, :0], tp(*expanded) if n else torch.zeros(0, 0))
        assert tp(x, y, w).shape == (*whole, tp.irreps_out.dim)
        if n:
            assert_close(tp.right(y, w).expand(*whole, -1, -1).reshape(n, x.shape[-1], -1), tp.right(*expanded[1:]))
    theirs = o3.FullyConnectedTensorProduct(irreps, irreps, irreps, internal_weights=False, shared_weights=False)
    weight = torch.randn(3, 4, tp.weight_numel, requires_grad=True)
    assert_same(tp, theirs, (rows(irreps, 2, 1, 4), rows(irreps, 2, 3, 1), weight))


def test_one_row_of_weights_is_shared():
    tp = FullyConnectedTensorProduct("2x0e+1o", "0e+1o", "2x0e+1o", shared_weights=False)
    x, y, w = rows(tp.irreps_in1, 6), rows(tp.irreps_in2, 6), torch.randn(1, tp.weight_numel, requires_grad=True)
    assert_close(tp(x, y, w), tp(x, y, w.expand(6, -1)))
    grads = [torch.autograd.grad(tp(x, y, v).square().sum(), w)[0] for v in (w, w.expand(6, -1))]
    assert_close(*grads, 16)


def test_weight_views():
    paths = [(0, 0, 0, "uvu", True), (0, 0, 1, "uvw", True), (1, 1, 0, "uuu", False), (1, 1, 1, "uuw", True)]
    tp = TensorProduct("3x0e+3x1o", "2x0e+3x1o", "3x0e+4x0e", paths, internal_weights=False)
    shapes = [(3, 2), (3, 2, 4), (3, 4)]
    weight = torch.arange(6.0 + 24 + 12)
    assert [v.shape for v in tp.weight_views(weight)] == shapes
    assert [(n, ins) for n, ins, _ in tp.weight_views(weight, yield_instruction=True)] == [
        (n, tp.instructions[n]) for n in (0, 1, 3)]
    # the path without weights takes none of them (e3nn's weight_view_for_instruction counts it)
    assert torch.equal(tp.weight_view_for_instruction(3, weight), weight[30:].view(3, 4))
    with pytest.raises(ValueError, match="instruction 2 must have weights, got has_weight=False"):
        tp.weight_view_for_instruction(2, weight)
    x, y = rows(tp.irreps_in1, 2), rows(tp.irreps_in2, 2)
    tp.weight_view_for_instruction(1, weight).zero_()
    tp.weight_view_for_instruction(3, weight).zero_()
    assert not tp(x, y, weight)[:, 3:].any()
    own = TensorProduct("3x0e+3x1o", "2x0e+3x1o", "3x0e+4x0e", paths, shared_weights=False)
    assert [v.shape for v in own.weight_views(weight.expand(5, -1))] == [(5, *s) for s in shapes]


def test_copies(product):
    tp = TensorProduct(*product)
    x, y = rows(tp.irreps_in1, 2), rows(tp.irreps_in2, 2)
    for other in copies(tp):
        assert torch.equal(other(x, y), tp(x, y)) and repr(other) == repr(tp)


def test_to_dtype(product):
    """Coefficients do not lose digits on the way: cast to double equals built in double."""
    tp = TensorProduct(*product)
    torch.set_default_dtype(torch.float64)
    built = TensorProduct(*product)
    state = {k: v.double() if v.is_floating_point() else v for k, v in tp.state_dict().items()}
    built.load_state_dict(state)
    x, y = rows(tp.irreps_in1, 2), rows(tp.irreps_in2, 2)
    assert torch.equal(tp.double()(x, y), built(x, y))
    assert tp.float()(x.float(), y.float()).dtype == torch.float32


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[8], CASES[9]], ids=lambda c: c[3])
def test_compiles_as_a_full_graph(case):
    """In place of e3nn's TorchScript tests: ours are for torch.compile."""
    tp = TensorProduct(*arguments(*case))
    torch._dynamo.reset()
    compiled = torch.compile(tp, fullgraph=True, backend="aot_eager")
    x, y = rows(tp.irreps_in1, 2), rows(tp.irreps_in2, 2)
    assert_same(compiled, tp, (x, y))
    assert_equivariant(compiled, irreps_in=[tp.irreps_in1, tp.irreps_in2], irreps_out=tp.irreps_out)


def test_compiled_weights_from_outside():
    irreps = "1e+2e+3x3o"
    tp = FullyConnectedTensorProduct(irreps, irreps, irreps, internal_weights=False, shared_weights=False)
    torch._dynamo.reset()
    compiled = torch.compile(tp, fullgraph=True, backend="aot_eager")
    inputs = (rows(irreps, 2, 1, 4), rows(irreps, 2, 3, 1), torch.randn(3, 4, tp.weight_numel, requires_grad=True))
    assert_same(compiled, tp, inputs)


def test_visualize():
    import matplotlib

    matplotlib.use("agg")
    figure, axes = TensorProduct(*arguments(*CASES[2])).visualize()
    assert len(axes.patches) == 5
    matplotlib.pyplot.close(figure)
