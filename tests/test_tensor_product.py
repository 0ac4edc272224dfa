"""The tensor product against e3nn, its symmetry, its tables, its messages and its limits."""

import copy
import pickle

import pytest
import torch
from e3nn import nn, o3

from ace_fast.backend import available
from ace_fast.kernels.tensor_product import (
    GateTable,
    NormTable,
    ProductTable,
    epilogue,
    gate,
    norm_activation,
    tensor_product,
)
from ace_fast.kernels.tensor_product.cases import MODE_IRREPS, gate_input, gate_table, mode_table, table
from ace_fast.kernels.tensor_product.epilogue import gate_bwd
from ace_fast.kernels.tensor_product.op import (
    gated_tensor_product_bwd,
    gated_tensor_product_op,
    tensor_product_bwd,
    tensor_product_bwd_bwd,
    tensor_product_op,
)
from ace_fast.kernels.tensor_product.table import ACTIVATIONS, LAYOUTS, MODES, unpack

NBODY = ("32x0e+32x1o+32x0e+32x1o+2x0e", "1x0e+1x1o", "64x0e+32x1o")
QM9 = ("18x0e+18x1o+18x2e+18x0e+18x1o+18x2e+1x0e", "1x0e+1x1o+1x2e+1x3o", "54x0e+18x1o+18x2e")
MIXED = ("3x1e+2x0o+2x2o", "1x0e+1x1o+2x2e+1x0o", "2x0e+1x0o+2x1o+1x2e+1x3o")
HIGH = ("2x6e+1x5o+1x4e", "1x6e+1x3o", "2x0e+1x6e+1x4o+1x3e")
BACKENDS = [name for name, reason in available("cpu").get("tensor_product", {"reference": ""}).items() if not reason]
FAST = [name for name in BACKENDS if name != "triton"]  # interpreted, wide irreps take minutes
ANY_MODE = FAST  # every mode, weights of every row, both layouts


def from_e3nn(product) -> ProductTable:
    irreps = product.irreps_in1, product.irreps_in2, product.irreps_out
    return ProductTable(*irreps, [(*i[:5], i.path_weight) for i in product.instructions])


MODE_CASES = [(mode, shared, layout) for mode in MODES for shared in (True, False) for layout in LAYOUTS]


def transposed(x: torch.Tensor, irreps: o3.Irreps, inverse: bool = False) -> torch.Tensor:
    """Columns from mul_ir to ir_mul, or back."""
    parts = []
    for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True):
        shape = (ir.dim, mul) if inverse else (mul, ir.dim)
        parts.append(x[:, s].reshape(-1, *shape).mT.flatten(1))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("backend", ANY_MODE)
@pytest.mark.parametrize(("mode", "shared", "layout"), MODE_CASES)
def test_modes_equal_e3nn(mode, shared, layout, backend, double):
    t = mode_table((mode,), layout=layout)
    in1, in2, out = (o3.Irreps(i) for i in MODE_IRREPS[mode])
    instructions = [(p.o1, p.o2, p.o3) for p in unpack(t.paths)]
    starts = [[s.start for s in i.slices()] for i in (in1, in2, out)]
    indices = [tuple(s.index(o) for s, o in zip(starts, offsets, strict=True)) for offsets in instructions]
    theirs = o3.TensorProduct(in1, in2, out, [(*i, mode, True, out[i[2]].ir.dim) for i in indices],
                              irrep_normalization="none", path_normalization="none", shared_weights=shared,
                              internal_weights=False)
    assert t.weight_numel == theirs.weight_numel
    x1, x2 = normal(5, in1.dim), normal(5, in2.dim)
    weight = normal(t.weight_numel) if shared else normal(5, t.weight_numel)
    expected = theirs(x1, x2, weight)
    if layout == "ir_mul":
        mine = tensor_product(transposed(x1, in1), transposed(x2, in2), weight, t, backend=backend)
        mine = transposed(mine, out, inverse=True)
    else:
        mine = tensor_product(x1, x2, weight, t, backend=backend)
    close([mine], [expected])
    g = torch.randn_like(expected)
    close(torch.autograd.grad(mine, (x1, x2, weight), g), torch.autograd.grad(expected, (x1, x2, weight), g))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def close(mine, theirs) -> None:
    for x, y in zip(mine, theirs, strict=True):
        assert (x - y).abs().max() <= 1e-12 * max(y.abs().max(), 1)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("irreps", [NBODY, QM9, MIXED, HIGH], ids=["nbody", "qm9", "mixed", "high"])
def test_equals_e3nn(irreps, backend, double):
    theirs = o3.FullyConnectedTensorProduct(*irreps)
    t = from_e3nn(theirs)
    assert t.weight_numel == theirs.weight_numel
    x1, x2, weight = normal(5, t.dims[0]), normal(5, t.dims[1]), normal(t.weight_numel)
    mine, expected = tensor_product(x1, x2, weight, t, backend=backend), theirs(x1, x2, weight)
    close([mine], [expected])
    g = torch.randn_like(expected)
    close(torch.autograd.grad(mine, (x1, x2, weight), g), torch.autograd.grad(expected, (x1, x2, weight), g))


@pytest.mark.skipif("cuda" not in BACKENDS, reason="the CUDA kernels are not here")
def test_long_sums_over_channels_are_as_exact_as_pytorch():
    """16384 terms in the product, the gradients of in1 and of in2: no single running total (relative L2 errors)."""
    def run(x, dtype, backend):
        leaves = [x.detach().to(dtype).requires_grad_() for x in x[:3]]
        y = tensor_product(*leaves, t, backend=backend)
        return [y, *torch.autograd.grad(y, leaves, x[3].to(dtype))]

    for irreps, which in ((("128x1e", "128x0e", "8x1e"), 0), (("8x1e", "128x0e", "128x1e"), 1),
                          (("128x1e", "8x0e", "128x1e"), 2)):
        t = ProductTable(*irreps, [(0, 0, 0, "uvw", True, 1.0)])
        x = [torch.randn(16, t.dims[0]), torch.randn(16, t.dims[1]), torch.randn(t.weight_numel),
             torch.randn(16, t.dims[2])]
        gold = run(x, torch.float64, "reference")[which]
        mine, plain = ((run(x, torch.float32, b)[which].double() - gold).norm() for b in ("cuda", "reference"))
        assert mine <= 1.5 * plain


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("irreps", ["3x0e+2x1o", "2x0e+1x1e+2x2e", "4x0e"])
def test_gate_equals_e3nn(irreps, backend, double):
    scalars, *gated = o3.Irreps(irreps)
    if gated:
        gates = o3.Irreps([(sum(mul for mul, _ in gated), "0e")])
        silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
        theirs = nn.Gate(o3.Irreps([scalars]), [silu], gates, [sigmoid], o3.Irreps(gated))
    else:
        theirs = torch.nn.functional.silu
    t = table("2x0e+1x1o", "1x0e+1x1o", gate_input(irreps))
    x1, x2, weight, bias = normal(3, t.dims[0]), normal(3, t.dims[1]), normal(t.weight_numel), normal(t.bias_numel)
    leaves = (x1, x2, weight, bias)
    mine = tensor_product(x1, x2, weight, t, bias, gate=gate_table(irreps), backend=backend)
    expected = theirs(tensor_product(x1, x2, weight, t, bias, backend="reference"))
    close([mine], [expected])
    g = torch.randn_like(expected)
    close(torch.autograd.grad(mine, leaves, g), torch.autograd.grad(expected, leaves, g))


def test_gate_alone(double):
    """Any number of batch dimensions; the slices of ir_mul; what does not fit raises."""
    t, pre = gate_table("3x0e+2x1o"), normal(2, 3, 11)
    expected = tensor_product_gate(pre.flatten(0, 1), t)
    close([gate(pre, t)], [expected.unflatten(0, (2, 3))])
    irreps = o3.Irreps("5x0e+2x1o"), o3.Irreps("3x0e+2x1o")
    mine = gate(transposed(pre.flatten(0, 1), irreps[0]), t, layout="ir_mul")
    close([transposed(mine, irreps[1], inverse=True)], [expected])
    with pytest.raises(ValueError, match="gate: layout must be one of .*, got 'mul'"):
        gate(pre, t, layout="mul")
    with pytest.raises(ValueError, match=r"gate: pre must be \[Z, 11\], got \[1, 5\]"):
        gate(pre[0, 0, :5], t)
    with pytest.raises(ValueError, match=r"gate: pre must be \[..., dim\], got \[\]"):
        gate(pre[0, 0, 0], t)
    with pytest.raises(ValueError, match="gate: layout must be one number with one gate a gated irrep, got 5"):
        gate(pre, GateTable((2, 0, 1, 3), 1.0, 1.0))
    with pytest.raises(ValueError, match=r"gate_bwd: g must be \[6, 9\], got \[6, 11\]"):
        gate_bwd(pre.flatten(0, 1), pre.flatten(0, 1), *t, False, "reference")
    with pytest.raises(NotImplementedError, match="gate: forward-mode derivatives"):
        torch.func.jvp(lambda x: gate(x, t), (pre,), (pre,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_of_many_slices(backend, double):
    """Backend cuda takes 64 gated slices and names this limit, the others take any number."""
    for slices in (64, 65):
        irreps = "2x0e+" + "+".join(["1x1o"] * slices)
        pre, t = normal(2, o3.Irreps(gate_input(irreps)).dim), gate_table(irreps)
        expected = gate(pre, t, backend="reference")
        if slices > 64 and backend == "cuda":
            with pytest.raises(ValueError, match="gate: backend 'cuda' does not take this: more than 64 gated slices"):
                gate(pre, t, backend=backend)
        else:
            close([gate(pre, t, backend=backend)], [expected])


def tensor_product_gate(pre: torch.Tensor, t: GateTable) -> torch.Tensor:
    """e3nn's formula for three scalars and two gated vectors."""
    scalars, gates, gated = pre.split([3, 2, 6], 1)
    gated = gated.unflatten(1, (2, 3)) * torch.sigmoid(gates)[..., None] * t.gate_gain
    return torch.cat([torch.nn.functional.silu(scalars) * t.scalar_gain, gated.flatten(1)], 1)


def norm_table(irreps: str, activation: str, epsilon: float = 1e-8) -> NormTable:
    return NormTable(tuple(v for mul, ir in o3.Irreps(irreps) for v in (mul, ir.dim)), activation, epsilon)


FUNCTIONS = {"silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in epilogue.BACKENDS])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_norm_equals_e3nn(activation, backend, double):
    """With and without biases; zero vectors and norms below epsilon, through which no gradient comes."""
    irreps = o3.Irreps("3x0e+2x1o+4x2e")
    for epsilon, bias in ((1e-8, True), (0.8, True), (1e-8, False)):
        theirs = nn.NormActivation(irreps, FUNCTIONS[activation], epsilon=epsilon, bias=bias)
        if bias:
            torch.nn.init.normal_(theirs.biases)
        x = normal(60, irreps.dim)
        if epsilon > 1e-3 or activation == "tanh":
            x.data[:3] = 0
        leaves = (x, theirs.biases) if bias else (x,)
        mine = norm_activation(x, norm_table(str(irreps), activation, epsilon), theirs.biases if bias else None,
                               backend=backend)
        expected = theirs(x)
        close([mine], [expected])
        g = torch.randn_like(expected)
        close(torch.autograd.grad(mine, leaves, g), torch.autograd.grad(expected, leaves, g))


@pytest.mark.parametrize("backend", BACKENDS)
def test_normed_product(backend, double):
    """Product and activation of norms in one are the two, one after the other, in either layout."""
    for layout in LAYOUTS if backend != "triton" else LAYOUTS[:1]:
        irreps = o3.Irreps("4x0e+3x1o"), o3.Irreps("1x0e+1x1o"), o3.Irreps("3x0e+2x1o")
        t = ProductTable(*irreps, table(*map(str, irreps)).instructions, bias=True, layout=layout)
        norm = norm_table("3x0e+2x1o", "silu")
        x1, x2, weight, bias, shift = normal(9, 13), normal(9, 4), normal(t.weight_numel), normal(3), normal(5)
        leaves = (x1, x2, weight, bias, shift)
        mine = tensor_product(x1, x2, weight, t, bias, norm=norm, norm_bias=shift, backend=backend)
        pre = tensor_product(x1, x2, weight, t, bias, backend="reference")
        expected = norm_activation(pre, norm, shift, layout=layout, backend="reference")
        g = torch.randn_like(expected)
        close([mine, *torch.autograd.grad(mine, leaves, g)], [expected, *torch.autograd.grad(expected, leaves, g)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_of_no_channels(backend):
    """Alone, beside others, and of a product whose output has none."""
    t = ProductTable("2x0e", "1x0e", "0x0e", [])
    x1, x2, weight = normal(3, 2), normal(3, 1), normal(0)
    out = tensor_product(x1, x2, weight, t, norm=norm_table("0x0e", "silu"), backend=backend)
    assert out.shape == (3, 0) and not any(g.any() for g in torch.autograd.grad(out.sum(), (x1, x2)))
    if not hasattr(epilogue.BACKENDS_NORM.get(backend), "norm_activation"):
        return
    x = normal(3, 8)
    assert norm_activation(x[:, :0], norm_table("0x2e+0x0e", "silu"), backend=backend).shape == (3, 0)
    some = [norm_activation(x, norm_table(irreps, "tanh"), backend=backend) for irreps in (
        "0x1o+5x0e+0x2e+1x1o", "+".join(["5x0e+1x1o"] + ["0x0e"] * 70))]
    assert torch.equal(*some)


def test_norm_errors():
    arguments, t, gate = small()
    x1, x2, weight, bias, *_ = arguments.values()
    pre, good = torch.zeros(3, 6), norm_table("3x0e+1x1o", "silu")
    for norm, shift, message in (
        (norm_table("3x0e+1x1o", "elu"), None, "activation must be one of .*, got 'elu'"),
        (norm_table("3x0e+1x1o", "silu", 0.0), None, "epsilon must be positive, got 0.0"),
        (good, torch.zeros(5), r"norm_bias must be \[4\], one per channel, got \[5\]"),
        (good, torch.zeros(4).double(), "norm_bias must be torch.float32 on cpu, got torch.float64 on cpu"),
    ):
        with pytest.raises(ValueError, match=f"^norm_activation: {message}"):
            norm_activation(pre, norm, shift)
        with pytest.raises(ValueError, match=f"^normed_tensor_product: {message}"):
            tensor_product(x1, x2, weight, t, bias, norm=norm, norm_bias=shift)
    with pytest.raises(ValueError, match=r"norm_activation: pre must be \[Z, 6\], got \[3, 5\]"):
        norm_activation(pre[:, :5], good)
    if "triton" in BACKENDS:
        with pytest.raises(ValueError, match="'triton' does not take this: the activation of norms alone; "):
            norm_activation(pre, good, backend="triton")
    with pytest.raises(ValueError, match=r"normed_tensor_product: layout must be \(multiplicity, 2l\+1\) of slices"):
        tensor_product(x1, x2, weight, t, norm=norm_table("1x0e", "silu"))
    with pytest.raises(ValueError, match="tensor_product: norm must be given with norm_bias and without gate, got"):
        tensor_product(x1, x2, weight, t, norm=good, gate=gate)
    with pytest.raises(ValueError, match="tensor_product: norm must be given with norm_bias and without gate, got"):
        tensor_product(x1, x2, weight, t, norm_bias=torch.zeros(4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rotations_and_inversion(backend, double):
    irreps, attributes, out = o3.Irreps("3x0e+2x1o+1x0o"), o3.Irreps("1x0e+1x1o"), "2x0e+2x1o+1x0o"
    t, gate = table(str(irreps), str(attributes), gate_input(out)), gate_table(out)
    x1, x2, weight, bias = normal(4, t.dims[0]), normal(4, t.dims[1]), normal(t.weight_numel), normal(t.bias_numel)
    for q in (o3.rand_matrix(), -torch.eye(3), -o3.rand_matrix()):
        d1, d2, d3 = (o3.Irreps(i).D_from_matrix(q) for i in (irreps, attributes, out))
        turned = tensor_product(x1 @ d1.T, x2 @ d2.T, weight, t, bias, gate=gate, backend=backend)
        close([turned], [tensor_product(x1, x2, weight, t, bias, gate=gate, backend=backend) @ d3.T])


def test_tables_survive():
    t = table("2x0e+1x1o+1x2e", "1x0e+1x1o", "3x0e+2x1o")
    with torch.device("meta"):
        on_meta = table("2x0e+1x1o+1x2e", "1x0e+1x1o", "3x0e+2x1o")
    torch.set_default_dtype(torch.float16)
    halved = table("2x0e+1x1o+1x2e", "1x0e+1x1o", "3x0e+2x1o")
    torch.set_default_dtype(torch.float32)
    for other in (pickle.loads(pickle.dumps(t)), copy.deepcopy(t), on_meta, halved):
        assert (other.dims, other.paths, other.bias_slots) == (t.dims, t.paths, t.bias_slots)
        for x, y in zip(other.on(torch.device("cpu")), t.on(torch.device("cpu")), strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)
    assert t.on(torch.device("cpu"))[1].dtype == torch.float64
    gate = gate_table("3x0e+2x1o")
    assert pickle.loads(pickle.dumps(gate)) == gate


def small() -> tuple[dict, ProductTable, GateTable]:
    t, gate = table("2x0e+1x1o", "1x0e+1x1o", gate_input("2x0e+1x1o")), gate_table("2x0e+1x1o")
    cg_index, cg_value = t.on("cpu")
    arguments = {
        "x1": torch.randn(3, t.dims[0]), "x2": torch.randn(3, t.dims[1]), "weight": torch.randn(t.weight_numel),
        "bias": torch.randn(t.bias_numel), "cg_index": cg_index, "cg_value": cg_value, "dims": list(t.dims),
        "paths": list(t.paths), "bias_slots": list(t.bias_slots),
    }
    return arguments, t, gate


WRONG = [
    ("x1", torch.zeros(3, 4), r"x1 must be \[Z, 5\], got \[3, 4\]"),
    ("x1", torch.zeros(5), r"x1 must be \[Z, 5\], got \[5\]"),
    ("x1", torch.zeros(3, 5, dtype=torch.float16), "first argument must be float32 or float64, .*; cast it with"),
    ("x2", torch.zeros(2, 4), r"x2 must be \[3, 4\], got \[2, 4\]"),
    ("x2", torch.zeros(3, 4, dtype=torch.float64), "x2 must be torch.float32 on cpu, got torch.float64 on cpu"),
    ("x2", torch.zeros(3, 4, device="meta"), "x2 must be torch.float32 on cpu, got torch.float32 on meta"),
    ("weight", torch.zeros(7), r"weight must be \[\d+\] or \[3, \d+\], got \[7\]"),
    ("bias", torch.zeros(7), r"bias must be \[3\], one per even scalar, got \[7\]"),
    ("cg_value", torch.zeros(2, dtype=torch.float64), r"cg_value must be float64 \[nnz\] beside int64 cg_index"),
    ("cg_value", torch.zeros(10), "cg_value must be float64"),
    ("weight", torch.zeros(2, 12), r"weight must be \[\d+\] or \[3, \d+\], got \[2, 12\]"),
    ("dims", [5, 4, 6], "dims must be dim1, dim2, dim_out and the layout, got"),
    ("paths", [1, 2, 3], "paths must be 13 integers a path, got 3"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)])
def test_wrong_arguments(name, value, message):
    arguments, _, gate = small()
    arguments[name] = value
    with pytest.raises(ValueError, match=f"^tensor_product: .*{message}"):
        tensor_product_op(*arguments.values(), "reference")
    with pytest.raises(ValueError, match=f"^gated_tensor_product: .*{message}"):
        gated_tensor_product_op(*arguments.values(), *gate, "reference")


def test_wrong_gradients_layouts_and_backends():
    arguments, t, gate = small()
    bare = [v for k, v in arguments.items() if k != "bias"]
    g, pre, needs = torch.zeros(3, t.dims[2]), torch.zeros(3, t.dims[2]), [True] * 4
    with pytest.raises(ValueError, match=r"tensor_product_bwd: g must be \[3, 6\], got \[2, 6\]"):
        tensor_product_bwd(g[:2], *bare, needs, "reference")
    with pytest.raises(ValueError, match=r"tensor_product_bwd_bwd: gg_x2 must be \[3, 4\], got \[2, 4\]"):
        x1, x2, weight, *tables = bare
        tensor_product_bwd_bwd(g, x1, x2, weight, None, x2[:2], None, *tables, needs, "reference")
    with pytest.raises(ValueError, match=r"gated_tensor_product_bwd: g must be \[3, 5\], got \[3, 6\]"):
        gated_tensor_product_bwd(g, pre, *bare, *gate, needs, "reference")
    with pytest.raises(ValueError, match="layout must be 6 numbers with one gate a gated irrep, got 7 numbers, 1 gat"):
        gated_tensor_product_op(*arguments.values(), [3, 1, 1, 3], 1.0, 1.0, "reference")
    with pytest.raises(ValueError, match="backend must be one of .*, got 'cuda9'"):
        tensor_product_op(*arguments.values(), "cuda9")


@pytest.mark.parametrize(("instruction", "message"), [
    ((0, 0, 0, "uvw", True), r"instruction 0 must be \(i_in1, i_in2, i_out, mode, has_weight, scale\), got"),
    ((0, 2, 0, "uvw", True, 1.0), "i_in2 of instruction 0 must be in 0..1, got 2; irreps_in2 is 1x0e.1x1o"),
    ((-1, 0, 0, "uvw", True, 1.0), "i_in1 of instruction 0 must be in 0..1, got -1"),
    ((0, 1, 0, "uvw", True, 1.0), r"output of instruction 0 must be one of \['1o'\], got 0e; 0e x 1o holds no 0e"),
    ((0, 0, 1, "uvw", True, 1.0), r"output of instruction 0 must be one of \['0e'\], got 0o; 0e x 0e holds no 0o"),
    # the kernels would read past the components
    ((0, 0, 0, "uvw", True, torch.ones(3, 3, 3)), r"coefficients of .* 0 must be \[1, 1, 1\], got \[3, 3, 3\]"),
    ((0, 0, 0, "uvw", True, torch.tensor(2.0)), r"coefficients of instruction 0 must be \[1, 1, 1\], got \[\]"),
])
def test_wrong_instructions(instruction, message):
    with pytest.raises(ValueError, match=f"ProductTable: .*{message}"):
        ProductTable("2x0e+1x1o", "1x0e+1x1o", "3x0e+3x0o", [instruction])


def test_constant_coefficients():
    arguments, t, _ = small()
    x1, x2, weight, *_ = arguments.values()
    t.on("cpu")[1].requires_grad_()
    with pytest.raises(ValueError, match="cg_value must be a constant, got a tensor that requires grad; detach it"):
        tensor_product(x1, x2, weight, t)


def test_forward_mode_raises():
    arguments, t, gate = small()
    x1, x2, weight, *_ = arguments.values()
    for options in ({}, {"gate": gate}):
        def function(x, options=options):
            return tensor_product(x, x2, weight, t, **options)

        with pytest.raises(NotImplementedError, match="forward-mode derivatives .* are not supported; use vjp"):
            torch.func.jvp(function, (x1,), (torch.ones_like(x1),))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend):
    arguments, t, gate = small()
    x1, x2, weight, bias, *_ = arguments.values()
    for options in ({}, {"gate": gate}):
        def function(a, b, w=weight, options=options):
            return tensor_product(a, b, w, t, bias, backend=backend, **options)

        a, b, w = torch.randn(2, *x1.shape), torch.randn(2, *x2.shape), torch.randn(2, *weight.shape)
        looped = [function(*pair) for pair in zip(a, b, strict=True)]
        torch.testing.assert_close(torch.vmap(function)(a, b), torch.stack(looped))
        looped = [function(x, x2, y) for x, y in zip(a, w, strict=True)]
        torch.testing.assert_close(torch.vmap(function, (0, None, 0))(a, x2, w), torch.stack(looped))


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_func_grad_is_not_supported(backend):
    arguments, t, _ = small()
    x1, x2, weight, *_ = arguments.values()

    def function(x):
        return tensor_product(x, x2, weight, t, backend=backend).square().sum()

    # PyTorch itself does not take torch.library operators under torch.func.grad: the day it does, this test says so.
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(function)(x1)
