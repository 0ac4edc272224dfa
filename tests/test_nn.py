"""Layers against e3nn and against the SEGNN code's formulas: values, gradients, states, errors."""

import copy
import pickle

import pytest
import torch
from e3nn import o3
from e3nn.nn import BatchNorm as E3nnBatchNorm
from torch.utils.checkpoint import checkpoint

from ace_fast import nn, segments
from ace_fast.bench.eager import EagerInstanceNorm, EagerSwishGate, EagerTensorProduct
from ace_fast.testing import assert_equivariant

# the smallest product with every kind of path: scalars, vectors, parities, several multiplicities
FULL = ("3x0e+2x0o+2x1o+1x1e+1x2e", "2x0e+1x1o+1x2e", "2x0e+1x0o+3x1o+2x1e+2x2e")
ATTR = "1x0e+1x1o+1x2e"


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def rows(irreps, n=5):
    return torch.randn(n, o3.Irreps(irreps).dim, requires_grad=True)


def assert_equal(mine, theirs, tolerance=1e-12):
    scale = theirs.detach().abs().max().clamp(min=1e-300)
    assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
    assert (mine - theirs).abs().max() <= tolerance * scale


def compare(mine, theirs, inputs, tolerance=1e-12):
    """Values, input gradients and parameter gradients of two modules that hold the same parameters."""
    a, b = mine(*inputs), theirs(*inputs)
    assert_equal(a, b, tolerance)
    cotangent = torch.randn_like(b)
    leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    theirs_by_name = dict(theirs.named_parameters())
    names = [name for name, p in mine.named_parameters() if p.numel()]
    got = torch.autograd.grad(a, leaves + [dict(mine.named_parameters())[n] for n in names], cotangent)
    want = torch.autograd.grad(b, leaves + [theirs_by_name[n] for n in names], cotangent)
    for x, y in zip(got, want, strict=True):
        assert_equal(x, y, tolerance)


@pytest.mark.parametrize("options", [
    {}, {"irrep_normalization": "norm"}, {"irrep_normalization": "none"}, {"path_normalization": "path"},
    {"path_normalization": "none"}, {"in1_var": [1.0, 2.0, 0.5, 1.0, 3.0], "out_var": [1.0, 2.0, 3.0, 4.0, 5.0]},
    {"in2_var": [0.5, 1.0, 2.0]},
], ids=str)
def test_fully_connected_equals_e3nn(double, options):
    torch.manual_seed(1)
    theirs = o3.FullyConnectedTensorProduct(*FULL, **options)
    torch.manual_seed(1)
    mine = nn.FullyConnectedTensorProduct(*FULL, **options, backend="reference")
    assert torch.equal(mine.weight, theirs.weight)  # the same initial values from the same seed
    compare(mine, theirs, (rows(FULL[0]), rows(FULL[1])))


def test_attributes_equal_e3nn(double):
    theirs, mine = o3.FullyConnectedTensorProduct(*FULL), nn.FullyConnectedTensorProduct(*FULL)
    for name in ("irreps_in1", "irreps_in2", "irreps_out", "instructions", "weight_numel", "internal_weights",
                 "shared_weights"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert torch.equal(mine.output_mask, theirs.output_mask)
    assert repr(mine) == repr(theirs)
    mine.load_state_dict(theirs.state_dict())
    for (i, ins, a), (j, other, b) in zip(mine.weight_views(yield_instruction=True),
                                          theirs.weight_views(yield_instruction=True), strict=True):
        assert i == j and ins == other and torch.equal(a, b)
        assert torch.equal(mine.weight_view_for_instruction(i), b)
    assert len(list(mine.weight_views())) == len(mine.instructions)


def test_tensor_product_with_chosen_paths(double):
    """Repeated outputs, path weights, an output without a path (masked), zero multiplicities."""
    irreps = ("2x1o+0x0e+1x0e", "1x1o+1x0e", "3x0e+2x1o+1x2e+4x1e")
    paths = [(0, 0, 0, "uvw", True, 2.0), (0, 1, 1, "uvw", True), (0, 0, 0, "uvw", True, 0.5), (1, 1, 0, "uvw", True),
             (0, 0, 2, "uvw", True, 0.0)]
    theirs = o3.TensorProduct(*irreps, paths)
    mine = nn.TensorProduct(*irreps, paths, backend="reference")
    assert mine.load_state_dict(theirs.state_dict())
    assert torch.equal(mine.output_mask, theirs.output_mask) and not mine.output_mask.all()
    compare(mine, theirs, (rows(irreps[0]), rows(irreps[1])))


@pytest.mark.parametrize("shapes", [((), ()), ((2, 3), (2, 3)), ((4, 1), (3,)), ((0,), (0,)), ((2, 0), (2, 1))],
                         ids=str)
def test_leading_dimensions(double, shapes):
    theirs, mine = o3.FullyConnectedTensorProduct(*FULL), nn.FullyConnectedTensorProduct(*FULL, backend="reference")
    mine.load_state_dict(theirs.state_dict())
    x, y = (torch.randn(*s, o3.Irreps(i).dim) for s, i in zip(shapes, FULL[:2], strict=True))
    want = theirs(x, y)
    got = mine(x, y)
    assert got.shape == want.shape
    assert want.numel() == 0 or (got - want).abs().max() < 1e-12


def test_weights_from_outside(double):
    theirs = o3.FullyConnectedTensorProduct(*FULL, internal_weights=False)
    mine = nn.FullyConnectedTensorProduct(*FULL, internal_weights=False, backend="reference")
    assert not list(mine.parameters())
    weight = torch.randn(mine.weight_numel, requires_grad=True)
    x, y = rows(FULL[0]), rows(FULL[1])
    assert_equal(mine(x, y, weight), theirs(x, y, weight))
    assert_equal(mine(x, y, list(mine.weight_views(weight))), theirs(x, y, weight))
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    with pytest.raises(RuntimeError, match=r"weight must be given where internal_weights is False, got None; pass"):
        mine(x, y)
    with pytest.raises(ValueError, match=r"weight must be \[\d+\], got \[3\]; weights of every sample need"):
        mine(x, y, torch.zeros(3))


@pytest.mark.parametrize("specialized", [True, False])
def test_states_load_both_ways(double, specialized):
    theirs = o3.FullyConnectedTensorProduct(*FULL, _specialized_code=specialized)
    mine = nn.FullyConnectedTensorProduct(*FULL, _specialized_code=specialized)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(mine.weight, theirs.weight)
    state = mine.state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value)
    torch.nn.init.zeros_(theirs.weight)
    theirs.load_state_dict(state, strict=True)
    assert torch.equal(mine.weight, theirs.weight)


def test_wrong_inputs_raise():
    layer = nn.O3TensorProduct("2x0e+1x1o", "2x0e", ATTR, backend="reference")
    with pytest.raises(ValueError, match=r"O3TensorProduct: x must be \[..., 5\], got \[4, 6\]; its last dimension"):
        layer(torch.zeros(4, 6), torch.zeros(4, 9))
    with pytest.raises(ValueError, match=r"O3TensorProduct: y must be \[..., 9\], got \[4, 8\]"):
        layer(torch.zeros(4, 5), torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"leading dimensions of x and y must broadcast, got \[4, 5\] and \[3, 9\]"):
        layer(torch.zeros(4, 5), torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"data_in2 must be \[..., 9\], got None; pass the attributes"):
        layer(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="backend must be one of"):
        nn.O3TensorProduct("2x0e", "2x0e", backend="fast")(torch.zeros(4, 2))


@pytest.mark.parametrize("in2", [None, ATTR])
@pytest.mark.parametrize("mine, theirs, out", [
    (nn.O3TensorProduct, EagerTensorProduct, "4x0e+3x1o+2x2e+1x0e"),
    (nn.O3TensorProduct, EagerTensorProduct, "3x1o"),
    (nn.O3TensorProductSwishGate, EagerSwishGate, "4x0e+3x1o+1x1e+2x2e"),
    (nn.O3TensorProductSwishGate, EagerSwishGate, "4x0e+3x0e+2x1o+2x1o"),
    (nn.O3TensorProductSwishGate, EagerSwishGate, "5x0e"),
])
def test_o3_layers_equal_the_original(double, mine, theirs, out, in2):
    in1 = "3x0e+2x0o+2x1o+1x1e+1x2e"
    theirs = theirs(o3.Irreps(in1), o3.Irreps(out), None if in2 is None else o3.Irreps(in2))
    mine = mine(in1, out, in2, backend="reference")
    mine.load_state_dict(theirs.state_dict(), strict=True)
    attr = None if in2 is None else rows(in2)
    compare(mine, theirs, (rows(in1), attr))
    theirs.load_state_dict(mine.state_dict(), strict=True)


def test_initialisation_is_that_of_linear():
    torch.manual_seed(0)
    layer = nn.O3TensorProduct("40x0e", "200x0e")
    bound = 40**-0.5
    for values in (layer.tp.weight, layer.biases):
        assert 0.95 * bound < values.abs().max() <= bound
        assert abs(values.std() / (bound / 3**0.5) - 1) < 0.1
    plain = nn.O3TensorProduct("40x0e", "200x0e", tp_rescale=False)
    assert 0.95 < plain.tp.weight.abs().max() <= 1
    x = torch.randn(3, 40)
    want = plain.tp(x, torch.ones(3, 1)) + plain.biases  # without the rescaling it is e3nn's product
    assert (plain(x) - want).abs().max() < 1e-5


def test_only_even_scalars_have_a_bias():
    layer = nn.O3TensorProduct("2x0e+2x0o", "3x0e+2x0o+1x0e")
    assert layer.biases.shape == (4,)
    assert nn.O3TensorProduct("2x1o", "2x1o").biases is None


@pytest.mark.parametrize("make, message", [
    (lambda: nn.O3TensorProduct("2x0e", "2x0e+1x1o"), "every slice of irreps_out must be reachable .* got 1x1o; drop"),
    (lambda: nn.O3TensorProductSwishGate("2x1o", "2x1o"), r"irreps_out must begin with even scalars \(0e\), got 2x1o"),
    (lambda: nn.O3TensorProductSwishGate("2x0e", "2x0o"), "irreps_out must begin with even scalars"),
    (lambda: nn.O3TensorProductSwishGate("2x0e", ""), "irreps_out must begin with even scalars"),
    (lambda: nn.O3TensorProductSwishGate("1x0e+1x1o", "2x0e+1x1e+1x1o", ATTR),
     r"Gate takes 4x0e\+1x1o\+1x1e, got 4x0e\+1x1e\+1x1o; give the gated part of irreps_out in sorted order"),
    (lambda: nn.O3TensorProductSwishGate("1x0e+1x1o", "2x0e+1x1o+1x0e", ATTR), "Gate takes 5x0e"),
    (lambda: nn.O3TensorProductSwishGate("1x0e+1x0o", "2x0e+1x0o", ATTR), "Gate takes 1x0o.* without scalars"),
])
def test_bad_irreps_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_are_equivariant(double):
    in1, n = "3x0e+2x0o+2x1o+1x1e+1x2e", 6
    gated, plain = "4x0e+3x1o+1x1e+2x2e", "4x0e+2x0o+3x1o+1x1e+2x2e"
    layer = nn.O3TensorProductSwishGate(in1, gated, ATTR, backend="reference")
    last = nn.O3TensorProduct(gated, plain, ATTR, backend="reference")
    norm = nn.InstanceNorm(plain, backend="reference")
    torch.nn.init.uniform_(norm.bias)
    x, y = (torch.randn(n, o3.Irreps(i).dim) for i in (in1, ATTR))
    f = lambda x, y, batch: norm(last(layer(x, y), y), batch)  # noqa: E731
    assert_equivariant(f, (x, y, torch.tensor([0, 0, 1, 1, 1, 2])), layouts=(in1, ATTR), output=plain)


def test_instance_norm_equals_the_original(double):
    irreps = o3.Irreps("4x0e+0x1e+3x1o+2x0e+1x2e")
    mine, theirs = nn.InstanceNorm(irreps, backend="reference"), EagerInstanceNorm(irreps)
    for p in theirs.parameters():
        torch.nn.init.normal_(p)
    mine.load_state_dict(theirs.state_dict())
    batch = torch.tensor([2, 0, 0, 2, 3, 3, 3])  # graph 1 has no nodes, the order is mixed
    x = rows(irreps, 7)
    compare(mine, theirs, (x, batch), 1e-11)
    assert torch.equal(mine(x, segments(batch, 4)), mine(x, batch))
    one = torch.zeros(7, dtype=torch.int64)
    assert torch.equal(mine(x, None), mine(x, one))


@pytest.mark.parametrize("normalization", ["norm", "component"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_instance_norm_by_hand(double, reduce, normalization):
    norm = nn.InstanceNorm("1x0e+1x1o", eps=0.0, affine=False, reduce=reduce, normalization=normalization)
    norm.backend = "reference"
    x = torch.tensor([[1.0, 3.0, 4.0, 0.0], [3.0, 0.0, 0.0, 1.0]])
    out = norm(x, torch.zeros(2, dtype=torch.int64))
    assert_equal(out[:, 0], torch.tensor([-1.0, 1.0]))
    squared = {"mean": 13.0, "max": 25.0}[reduce] / {"norm": 1, "component": 3}[normalization]
    assert_equal(out[:, 1:], x[:, 1:] / squared**0.5)


def test_instance_norm_errors():
    norm = nn.InstanceNorm("2x0e")
    with pytest.raises(ValueError, match=r"InstanceNorm: input must be \[N, 2\] \(2x0e\), got \[4, 3\]"):
        norm(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"batch: must be int64 \[4\], the graph of each node, got torch.int64 \[3\]"):
        norm(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"batch: must be int64 \[4\], the graph of each node, got list; use torch.as"):
        norm(torch.zeros(4, 2), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="batch: the graph of each node must not be negative, got -1; count"):
        norm(torch.zeros(4, 2), torch.tensor([0, 0, -1, 1]))
    with pytest.raises(ValueError, match="batch: Segments must cover 4 nodes, got 3"):
        norm(torch.zeros(4, 2), segments(torch.zeros(3, dtype=torch.int64), 1))
    with pytest.raises(ValueError, match=r"reduce must be one of \('mean', 'max'\), got 'sum'"):
        nn.InstanceNorm("2x0e", reduce="sum")
    with pytest.raises(ValueError, match="normalization must be one of"):
        nn.InstanceNorm("2x0e", normalization="integral")


def test_batch_norm_is_e3nns():
    assert nn.BatchNorm is E3nnBatchNorm


def test_relaxed_linear(double):
    layer = nn.RelaxedLinear(4, 3, gamma_init=0.3, backend="reference")
    x, base, residual = torch.randn(5, 4), torch.randn(5, 3), torch.randn(5, 3)
    linear = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert_equal(layer(x), 0.3 * linear)
    assert_equal(layer(x, base), base + 0.3 * linear)
    assert_equal(layer(x, base, residual), base + 0.3 * linear + residual)
    assert set(layer.state_dict()) == {"weight", "bias", "gamma"}
    plain = nn.RelaxedLinear(4, 3, bias=False, backend="reference")
    assert_equal(plain(x), x @ plain.weight.T)
    layer.relaxed = False
    assert torch.equal(layer(x, base, residual), base + residual)
    assert torch.equal(layer(x, base), base)
    assert torch.equal(layer(x), torch.zeros(5, 3))


LAYERS = {
    "product": (lambda: nn.FullyConnectedTensorProduct(*FULL, backend="reference"), (FULL[0], FULL[1])),
    "o3": (lambda: nn.O3TensorProduct("2x0e+2x1o", "3x0e+1x1o", ATTR, backend="reference"), ("2x0e+2x1o", ATTR)),
    "gate": (lambda: nn.O3TensorProductSwishGate("2x0e+2x1o", "3x0e+1x1o", ATTR, backend="reference"),
             ("2x0e+2x1o", ATTR)),
    "instance": (lambda: nn.InstanceNorm("2x0e+2x1o", backend="reference"), ("2x0e+2x1o", None)),
    "relaxed": (lambda: nn.RelaxedLinear(4, 3, backend="reference"), ("4x0e", "3x0e")),
}


@pytest.fixture(params=LAYERS)
def layer_and_inputs(request):
    make, (first, second) = LAYERS[request.param]
    return make, (rows(first), segments(torch.tensor([0, 0, 1, 1, 1]), 2) if second is None else rows(second))


def test_deepcopy_and_pickle(layer_and_inputs):
    make, inputs = layer_and_inputs
    layer = make()
    want = layer(*inputs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*inputs), want)
        assert all(a is not b for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_meta_device_construction(layer_and_inputs):
    make, inputs = layer_and_inputs
    layer = make()
    with torch.device("meta"):
        empty = make()
    assert all(p.is_meta for p in empty.parameters())
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict(), strict=True)
    assert torch.equal(empty(*inputs), layer(*inputs))


def test_double_after_construction_in_single(layer_and_inputs):
    """Constants are not rounded on the way: a single layer cast to double equals one built in double."""
    make, inputs = layer_and_inputs
    single = make()
    torch.set_default_dtype(torch.float64)
    double = make()
    double.load_state_dict(single.state_dict())
    inputs = [x.double() if isinstance(x, torch.Tensor) else x for x in inputs]
    assert torch.equal(single.to(torch.float64)(*inputs), double(*inputs))


def test_tables_first_used_in_inference_mode_can_train():
    layer = nn.FullyConnectedTensorProduct("2x0e+1x1o", "1x0e+1x1o", "2x0e")
    device = torch.device("meta")
    with torch.inference_mode():
        layer.table.on(device)
    assert all(t.device == device and not t.is_inference() for t in layer.table.on(device))


def test_tables_made_in_inference_mode_can_train():
    with torch.inference_mode():
        layer = nn.TensorProduct("2x0e+1x1o", "1x1o", "2x1o", [(0, 0, 0, "uvw", True)], internal_weights=False)
    assert not any(t.is_inference() for t in layer.table.on("cpu"))
    x, y, weight = torch.randn(3, 5, requires_grad=True), torch.randn(3, 3), torch.randn(4)
    layer(x, y, weight).sum().backward()
    assert x.grad.isfinite().all()


def test_activation_checkpointing(layer_and_inputs):
    make, inputs = layer_and_inputs
    layer = make()
    grads = []
    for run in (layer, lambda *a: checkpoint(layer, *a, use_reentrant=False)):
        layer.zero_grad()
        x = inputs[0].detach().requires_grad_()
        run(x, *inputs[1:]).square().sum().backward()
        grads.append([x.grad] + [p.grad.clone() for p in layer.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_compile_full_graph(layer_and_inputs):
    make, inputs = layer_and_inputs
    layer = make()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    want, got = layer(*inputs), compiled(*inputs)
    assert_equal(got, want, 1e-6)
    for a, b in zip(torch.autograd.grad(got.sum(), layer.parameters()),
                    torch.autograd.grad(want.sum(), layer.parameters()), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1)
