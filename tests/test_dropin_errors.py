"""What users get wrong: a message that says what to do, or the right result."""

import pytest
import torch
from dropin import assert_close, rows
from e3nn import o3

from ace_fast import nn
from ace_fast.nn import FullyConnectedTensorProduct, TensorProduct

IRREPS = ("2x0e+1x1o", "1x0e+1x1o", "3x0e+1x1o")


def product(**options):
    return FullyConnectedTensorProduct(*IRREPS, **options)


def one(in1, in2, out, mode, weight=True, **options):
    return TensorProduct(in1, in2, out, [(0, 0, 0, mode, weight)], **options)


@pytest.mark.parametrize("make, message", [
    (lambda: TensorProduct("2x0e", "1x0e", "2x0e", [(0, 0, 0)]),
     r"instruction 0 must be \(i_in1, i_in2, i_out, mode, has_weight\[, path_weight\]\), got \(0, 0, 0\)"),
    (lambda: one("2x0e", "1x0e", "2x0e", "vuw"), r"mode of instruction 0 must be one of \('uvw', .*\), got 'vuw'"),
    (lambda: TensorProduct("2x0e", "1x0e", "2x0e", [(0, 2, 0, "uvw", True)]),
     "i_in2 of instruction 0 must be in 0..0, got 2; irreps_in2 is 1x0e"),
    (lambda: TensorProduct("2x0e", "1x0e", "2x0e", [(0, 0, -1, "uvw", True)]),
     "i_out of instruction 0 must be in 0..0, got -1; irreps_out is 2x0e"),
    (lambda: TensorProduct("2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvw", True, -1.0)]),
     "path_weight of instruction 0 must be 0 or more, got -1.0; the product is multiplied by its root"),
    # degrees and parities that do not meet
    (lambda: one("2x0e", "1x1o", "2x0e", "uvw"), r"must be one of \['1o'\], got 0e; 0e x 1o holds no 0e"),
    (lambda: one("2x1o", "1x1o", "2x1o", "uvw"), r"must be one of \['0e', '1e', '2e'\], got 1o; 1o x 1o holds no 1o"),
    (lambda: one("2x1o", "1x1o", "2x3e", "uvw"), "1o x 1o holds no 3e"),
    # multiplicities that do not fit the mode
    (lambda: one("2x0e", "3x0e", "3x0e", "uvu"),
     r"output multiplicity of instruction 0 must be 2 \(mode 'uvu'\), got 3"),
    (lambda: one("2x0e", "3x0e", "2x0e", "uvv"), r"output multiplicity of instruction 0 must be 3 \(mode 'uvv'\)"),
    (lambda: one("2x0e", "3x0e", "2x0e", "uuu"),
     r"multiplicities of instruction 0 must be equal in in1 and in2 \(mode 'uuu'\), got 2 and 3"),
    (lambda: one("2x0e", "3x0e", "5x0e", "uvuv"), r"output multiplicity of instruction 0 must be 6 \(mode 'uvuv'\)"),
    (lambda: one("3x0e", "3x0e", "2x0e", "uuw", False), r"output multiplicity of instruction 0 must be 1 \(mode 'uuw"),
    (lambda: one("3x0e", "3x0e", "2x0e", "uvw", False), r"has_weight of instruction 0 must be True \(mode 'uvw'\)"),
    (lambda: one("3x0e", "3x0e", "4x0e", "uvu<v"), r"output multiplicity of instruction 0 must be 3 \(mode 'uvu<v'\)"),
    # options
    (lambda: product(irrep_normalization="integral"), r"irrep_normalization must be one of \(None, 'comp.*'integ"),
    (lambda: product(path_normalization="all"), r"path_normalization must be one of \(None, 'element', .* got 'all'"),
    (lambda: product(layout="mulir"), r"layout must be one of \('mul_ir', 'ir_mul'\), got 'mulir'"),
    (lambda: product(internal_weights=True, shared_weights=False),
     "internal_weights must be False where shared_weights is False, got True; pass the weights of every sample"),
    (lambda: product(in1_var=[1.0]), r"in1_var must hold 2 numbers, one for each of 2x0e\+1x1o, got 1"),
    (lambda: product(out_var=[1.0] * 5), r"out_var must hold 2 numbers, one for each of 3x0e\+1x1o, got 5"),
])
def test_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shapes, message", [
    (((4, 6), (4, 4)), r"FullyConnectedTensorProduct: x must be \[..., 5\], got \[4, 6\]; its last dimension is"),
    (((4, 5), (4, 3)), r"FullyConnectedTensorProduct: y must be \[..., 4\], got \[4, 3\]"),
    (((), (4,)), r"x must be \[..., 5\], got \[\]"),
    (((4, 5), (3, 4)), r"the leading dimensions of x and y must broadcast, got \[4, 5\] and \[3, 4\]"),
])
def test_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        product()(*(torch.zeros(s) for s in shapes))
    with pytest.raises(ValueError, match=r"FullyConnectedTensorProduct.right: y must be \[..., 4\], got"):
        product().right(torch.zeros(2, 5))


@pytest.mark.parametrize("options, weight, message", [
    ({}, (7,), r"weight must be \[12\], got \[7\]"),
    ({}, (4, 12), r"weight must be \[12\], got \[4, 12\]; weights of every sample need shared_weights=False"),
    ({"shared_weights": False}, (12,), r"weight must be \[..., 12\], a row for every sample, got \[12\]; weights that"),
    ({"shared_weights": False}, (4, 13), r"weight must be \[..., 12\], a row for every sample, got \[4, 13\]"),
    ({"shared_weights": False}, (3, 12), r"leading dimensions of x, y and weight must broadcast, got \[4, 5\] and"
                                         r" \[4, 4\] and \[3, 12\]"),
    ({"shared_weights": False}, None, r"weight must be given where internal_weights is False.*a tensor \[..., 12\]"),
    ({"internal_weights": False}, None, r"weight must be given .* pass a tensor \[12\]"),
])
def test_weights(options, weight, message):
    """The right size is in the message."""
    x, y = torch.zeros(4, 5), torch.zeros(4, 4)
    with pytest.raises((ValueError, RuntimeError), match=message):
        product(**options)(x, y, None if weight is None else torch.zeros(*weight))


def test_lists_of_weights():
    tp, x, y = product(internal_weights=False), torch.zeros(4, 5), torch.zeros(4, 4)
    with pytest.raises(ValueError, match="weight must be a list of 4 blocks, one for each instruction .* got 1"):
        tp(x, y, [torch.zeros(2, 1, 3)])
    blocks = [torch.zeros(ins.path_shape) for ins in tp.instructions]
    with pytest.raises(ValueError, match=r"weight block 1 must be \[..., 2, 1, 1\], got \[3, 3\]"):
        tp(x, y, [blocks[0], torch.zeros(3, 3), *blocks[2:]])


def layers_and_inputs():
    return [(product(), (5, 4)), (TensorProduct(*IRREPS, [(0, 0, 0, "uvw", True)], shared_weights=False), (5, 4, 6)),
            (nn.Linear(IRREPS[0], IRREPS[2], biases=True), (5,)), (nn.TensorSquare("2x0e+1x1o"), (5,)),
            (nn.Gate("2x0e", [torch.tanh], "1x0e", [torch.sigmoid], "1x1o"), (6,))]


@pytest.mark.parametrize("number", range(4))
def test_dtypes(number):
    layer, dims = layers_and_inputs()[number]
    whole = [torch.ones(3, d, dtype=torch.int64) for d in dims]
    with pytest.raises(ValueError, match=r"must be float32 or float64, got torch.int64; cast it with .float\(\)"):
        layer(*whole)
    half = [x.to(torch.float16) for x in whole]
    with pytest.raises(ValueError, match="must be float32 or float64, got torch.float16"):
        layer(*half)
    if number < 3:  # weights or another input in single precision
        mixed = [whole[0].double(), *(x.float() for x in whole[1:])]
        with pytest.raises(ValueError, match="must be torch.float64 on cpu, got torch.float32 on cpu"):
            layer(*mixed)


@pytest.mark.parametrize("number", range(3))
def test_devices(number):
    layer, dims = layers_and_inputs()[number]
    inputs = [torch.ones(3, d, device="meta") for d in dims]
    if number == 1:
        inputs[2] = torch.ones(3, dims[2])
    with pytest.raises(ValueError, match=r"must be torch.float32 on meta, got torch.float32 on cpu"):
        layer(*inputs)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripting(number):
    with pytest.raises(NotImplementedError, match="torch.jit.script is not supported; use torch.compile, or"):
        torch.jit.script(torch.nn.Sequential(layers_and_inputs()[number][0]))


def test_autocast_runs_in_single_precision():
    for layer, dims in layers_and_inputs()[:3]:
        inputs = [torch.randn(3, d).to(torch.bfloat16) for d in dims]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(*inputs)
        assert_close(out, layer(*(x.float() for x in inputs)))


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"tensor_product: backend must be one of \['auto', .*\], got 'fast'"):
        product(backend="fast")(torch.zeros(4, 5), torch.zeros(4, 4))


def test_zero_rows_and_empty_irreps():
    for layer, dims in layers_and_inputs():
        out = layer(*(torch.zeros(0, d, requires_grad=True) for d in dims))
        assert out.shape == (0, layer.irreps_out.dim)
        out.sum().backward()
        for p in layer.parameters():
            assert p.grad is None or not p.grad.any()
    nothing = FullyConnectedTensorProduct("", "", "")
    assert nothing(torch.zeros(2, 3, 0), torch.zeros(3, 0)).shape == (2, 3, 0)
    assert nn.Linear("", "2x0e")(torch.zeros(2, 0)).tolist() == [[0, 0], [0, 0]]
    assert nn.Linear("2x0e", "")(torch.zeros(2, 2)).shape == (2, 0)
    assert nn.FullTensorProduct("", "1o")(torch.zeros(2, 0), torch.zeros(2, 3)).shape == (2, 0)
    assert nn.TensorSquare("")(torch.zeros(2, 0)).shape == (2, 0)


def test_zero_multiplicities():
    """Slices without channels take no weights and give nothing; e3nn agrees."""
    args = ("0x0e+2x1o+3x0e", "1x0e+0x1o+1x1o", "0x1o+2x0e+4x1o+0x0e")
    theirs, mine = o3.FullyConnectedTensorProduct(*args), FullyConnectedTensorProduct(*args)
    mine.load_state_dict(theirs.state_dict())
    x, y = rows(args[0], 3), rows(args[1], 3)
    assert_close(mine(x, y), theirs(x, y), 4)
    assert_close(torch.einsum("zi,zij->zj", x, mine.right(y)), theirs(x, y), 4)
    pairs = one("1x1o", "1x1o", "0x0e", "uvu<v", False)  # one channel has no pair
    assert pairs(torch.zeros(2, 3), torch.zeros(2, 3)).shape == (2, 0)


@pytest.mark.parametrize("number", range(5))
def test_strided_and_expanded_inputs(number):
    """Columns, every second row, an expanded row and a transposed tensor give what contiguous copies give."""
    layer, dims = layers_and_inputs()[number]
    ways = [lambda d: torch.randn(6, d + 3)[:, 1:d + 1], lambda d: torch.randn(12, d)[::2],
            lambda d: torch.randn(1, d).expand(6, d), lambda d: torch.randn(d, 6).T,
            lambda d: torch.randn(6, 1).expand(6, d)]
    for way in ways:
        strided = [way(d).detach().requires_grad_() for d in dims]
        dense = [x.detach().contiguous().requires_grad_() for x in strided]
        out, want = layer(*strided), layer(*dense)
        assert out.is_contiguous()
        assert_close(out, want)
        cotangent = torch.randn(want.shape[1], want.shape[0]).T
        for a, b in zip(torch.autograd.grad(out, strided, cotangent), torch.autograd.grad(want, dense, cotangent),
                        strict=True):
            assert_close(a, b, 4)


def test_more_than_two_to_the_31_elements():
    """Sizes are 64-bit throughout: shapes beyond 2^31 elements come out right (no memory is taken on this device)."""
    with torch.device("meta"):
        layers = [product(), nn.Linear(IRREPS[0], IRREPS[2]), nn.FullTensorProduct("2x1o", "3x1o")]
        rows_ = 2**29
        out = layers[0](torch.zeros(rows_, 5), torch.zeros(rows_, 4))
        assert out.shape == (rows_, 6) and out.numel() > 2**31
        assert layers[1](torch.zeros(rows_, 5)).shape == (rows_, 6)
        assert layers[2](torch.zeros(rows_, 6), torch.zeros(1, 9)).shape == (rows_, 54)
        unshared = product(shared_weights=False)
        assert unshared(torch.zeros(rows_, 5), torch.zeros(1, 4), torch.zeros(rows_, 12)).shape == (rows_, 6)
