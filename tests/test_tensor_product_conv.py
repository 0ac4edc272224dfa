"""tensor_product_conv: against e3nn on gathered rows, graphs, determinism, memory, errors."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from e3nn import o3

import ace_fast
from ace_fast.backend import available
from ace_fast.bench.memory import MIB, peak_mb
from ace_fast.functional import ProductTable, tensor_product_conv
from ace_fast.kernels.cases import cast, generator
from ace_fast.kernels.tensor_product_conv.cases import LARGE, SMALL, lattice, uvu_instructions, uvu_table
from ace_fast.kernels.tensor_product_conv.op import BACKENDS as BACKENDS_OF
from ace_fast.kernels.tensor_product_conv.op import tensor_product_conv_bwd, tensor_product_conv_op

BACKENDS = [name for name, reason in available("cpu")["tensor_product_conv"].items() if not reason]
W3J = Path(ace_fast.kernels.__file__).parent / "tensor_product_conv/w3j.h"
CASES = {(case.name, case.op): case for case in SMALL}


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


def e3nn_conv(product, x1, x2, weight, graph):
    rows = product(x1[graph.edge_index[0]], x2, weight)
    return rows.new_zeros(graph.num_targets, rows.shape[1]).index_add(0, graph.edge_index[1], rows)


IRREPS = "20x0e+17x1o+3x2e", "1x0e+1x1o+1x2e"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [False, True], ids=["per_edge", "shared"])
@pytest.mark.parametrize("mode", ["uvu", "uvw"])
def test_equals_e3nn(mode, shared, backend, double):
    """Values, first and second derivatives of gather, product and index_add."""
    out, instructions = uvu_instructions(*IRREPS, "0e+1o+1e+2e")
    if mode == "uvw":
        out = o3.Irreps([(3 + i, ir) for i, (_, ir) in enumerate(out)])
        instructions = [(*ins[:3], "uvw", *ins[4:]) for ins in instructions]
    t = ProductTable(*IRREPS, out, instructions)
    squared = [(*ins[:5], ins[5] ** 2) for ins in instructions]
    product = o3.TensorProduct(*IRREPS, out, squared, irrep_normalization="none", path_normalization="none",
                               shared_weights=shared, internal_weights=False)
    graph = ace_fast.Graph(torch.stack([torch.randint(0, 9, (37,)), torch.randint(0, 6, (37,))]), (9, 6))
    leaves = normal(9, t.dims[0]), normal(37, t.dims[1]), normal(*(() if shared else (37,)), t.weight_numel)
    mine = tensor_product_conv(*leaves, graph, t, backend=backend)
    expected = e3nn_conv(product, *leaves, graph)
    close([mine], [expected])
    g, directions = torch.randn_like(expected), [torch.randn_like(x) for x in leaves]
    first = [torch.autograd.grad(y, leaves, g, create_graph=True) for y in (mine, expected)]
    close(*first)
    close(*(torch.autograd.grad(x, leaves, directions) for x in first))


def turned(x: torch.Tensor, irreps: o3.Irreps) -> torch.Tensor:
    """Columns from mul_ir to ir_mul."""
    return torch.cat([x[:, s].reshape(-1, mul, ir.dim).mT.flatten(1)
                      for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True)], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_agree(backend):
    """ir_mul is mul_ir with the channels of a component together."""
    out, instructions = uvu_instructions(*IRREPS, "0e+1o+1e+2e")
    one, other = (ProductTable(*IRREPS, out, instructions, layout=layout) for layout in ("mul_ir", "ir_mul"))
    graph = ace_fast.Graph(torch.randint(0, 5, (2, 23)), 5)
    x1, x2, weight = normal(5, one.dims[0]), normal(23, one.dims[1]), normal(23, one.weight_numel)
    expected = turned(tensor_product_conv(x1, x2, weight, graph, one, backend=backend), out)
    mine = tensor_product_conv(turned(x1, o3.Irreps(IRREPS[0])), x2, weight, graph, other, backend=backend)
    close([mine], [expected])
    g = torch.randn_like(expected)
    close(*(torch.autograd.grad(y, (x1, x2, weight), g) for y in (mine, expected)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equivariance(backend, double):
    """A rotation or reflection of all inputs is that of the output."""
    out, instructions = uvu_instructions(*IRREPS, "0e+1o+1e+2e+2o")
    irreps = [*map(o3.Irreps, IRREPS), out]
    t = ProductTable(*irreps, instructions)
    graph = ace_fast.Graph(torch.randint(0, 6, (2, 31)), 6)
    x1, x2, weight = (torch.randn(*size) for size in ((6, t.dims[0]), (31, t.dims[1]), (31, t.weight_numel)))
    y = tensor_product_conv(x1, x2, weight, graph, t, backend=backend)
    for turn in (o3.rand_matrix(), -o3.rand_matrix()):
        d1, d2, d3 = (i.D_from_matrix(turn) for i in irreps)
        close([tensor_product_conv(x1 @ d1.T, x2 @ d2.T, weight, graph, t, backend=backend)], [y @ d3.T])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [False, True], ids=["per_edge", "shared"])
@pytest.mark.parametrize("first", [False, True], ids=["last_in_order", "first_in_order"])
def test_indices_outside_are_left_out(first, shared, backend):
    """Such edges add nothing and have no gradient; nobody reads elsewhere."""
    t = uvu_table("16x0e+16x1o", "1x0e+1x1o", "1x0e+1x1o")
    graph = ace_fast.Graph(torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]]), 3)  # in the order 2, 0, 1, 3
    far = [2, 1 << 40] if first else [1 << 40, 2]
    source, target = torch.tensor([0, 5, *far]), torch.tensor([1, 1, -1, 2] if first else [1, 1, 0, -1])
    x1, x2, weight = normal(3, 64), normal(4, 4), normal(*(() if shared else (4,)), t.weight_numel)
    tables = (source, *graph.sources[1:], target, *graph.targets[1:], *t.on("cpu"), t.dims, t.paths, False)
    y = tensor_product_conv_op(x1, x2, weight, *tables, backend)
    alone = ace_fast.Graph(torch.tensor([[0], [1]]), (3, 3))
    leaves = x1, x2[:1], weight if shared else weight[:1]
    expected = tensor_product_conv(*leaves, alone, t, backend="reference")
    close([y], [expected])
    g = torch.randn_like(y)
    found = tensor_product_conv_bwd(g, x1, x2, weight, *tables, [True] * 3, backend)
    gold = torch.autograd.grad(expected, leaves, g)
    close([found[0], found[1][:1], found[2] if shared else found[2][:1]], gold)
    assert (found[1][1:] == 0).all() and (shared or (found[2][1:] == 0).all())


@pytest.mark.parametrize("backend", ["cpu"] if "cpu" in BACKENDS else [])
@pytest.mark.parametrize("name", ["nequip_32_2", "segnn_nbody_100", "skewed"])
def test_threads_do_not_change_a_bit(name, backend):
    """At sizes where every loop is shared out, and where one node has most edges."""
    if name == "skewed":
        t = uvu_table("32x0e+32x1o", "1x0e+1x1o", "1x0e+1x1o")
        index = torch.stack([torch.randint(0, 50, (3000,)), (torch.arange(3000) - 2700).clamp(min=0) // 8])
        graph = ace_fast.Graph(index[:, torch.randperm(3000)], 50)
        x = [torch.randn(50, 128), torch.randn(3000, 4), torch.randn(3000, t.weight_numel)]
        calls = [(tensor_product_conv_op, (*x, *graph.sources, *graph.targets, *t.on("cpu"), t.dims, t.paths, False))]
        calls.append((tensor_product_conv_bwd, (torch.randn(50, t.dims[2]), *calls[0][1], [True] * 3)))
    else:
        calls = [(case.op, tuple(cast(case.inputs(generator()), case, torch.float32).values()))
                 for case in LARGE if case.name == name]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append([y for op, inputs in calls for y in _list(op(*inputs, backend))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def _list(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else outputs


@pytest.mark.parametrize("backend", ["cpu"] if "cpu" in BACKENDS else [])
def test_nothing_of_edge_size_is_stored(backend):
    """Forward: the output and node-sized scratch; backward: the gradients asked for, no more."""
    t = uvu_table("64x0e+64x1o", "1x0e+1x1o", "1x0e+1x1o+1x1e")
    graph = ace_fast.Graph(lattice(200, 60), 200)
    x1, x2, weight = torch.randn(200, 256), torch.randn(12000, 4), torch.randn(12000, t.weight_numel)
    tables = (*graph.sources, *graph.targets, *t.on("cpu"), t.dims, t.paths, False)
    g = torch.randn(200, t.dims[2])
    edge_mib = 4 * 12000 * 256 / MIB  # x1 of every edge: 11.7 MiB

    def backward(*needs):
        return tensor_product_conv_bwd(g, x1, x2, weight, *tables, list(needs), backend)

    torch.use_deterministic_algorithms(False)
    backward(True, True, True)
    assert peak_mb(lambda: tensor_product_conv_op(x1, x2, weight, *tables, backend))[0] < 0.25 * edge_mib
    assert peak_mb(lambda: backward(True, True, False))[0] < 0.25 * edge_mib
    weights = weight.numel() * 4 / MIB
    assert peak_mb(lambda: backward(True, True, True))[0] < weights + 0.25 * edge_mib


def test_nothing_is_computed_that_nobody_asks_for(monkeypatch):
    """The calls of a step on forces: no gradient of the constant node features, no first one of the weights."""
    t = uvu_table("4x0e+4x1o", "1x0e+1x1o", "1x0e+1x1o")
    graph = ace_fast.Graph(torch.randint(0, 5, (2, 12)), 5)
    x1, x2, weight = torch.randn(5, 16), torch.randn(12, 4, requires_grad=True), torch.randn(12, t.weight_numel)
    asked = []
    monkeypatch.setitem(BACKENDS_OF, "reference", _Recorder(BACKENDS_OF["reference"], asked))
    for trained, wanted in ((False, ["forward", [False, True, False], "forward", [False, True, False]]),
                            (True, ["forward", [False, True, False], "forward", [False, False, True],
                                    [False, True, True]])):
        asked.clear()
        weight.requires_grad_(trained)
        energy = tensor_product_conv(x1, x2, weight, graph, t, backend="reference").square().sum()
        forces = torch.autograd.grad(energy, x2, create_graph=True)[0]
        forces.square().sum().backward()
        assert asked == wanted


class _Recorder:
    def __init__(self, module, asked):
        self.module, self.asked = module, asked

    def forward(self, *args):
        self.asked.append("forward")
        return self.module.forward(*args)

    def backward(self, *args):
        self.asked.append(list(args[-1]))
        return self.module.backward(*args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_third_derivatives(backend):
    case = CASES["tiny", tensor_product_conv_op]
    inputs = cast(case.inputs(generator()), case, torch.float64)
    leaves = [inputs[n] for n in case.differentiable]

    def second(*leaves):
        y = case.op(*(inputs | dict(zip(case.differentiable, leaves, strict=True))).values(), backend)
        first = torch.autograd.grad(y.sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), leaves, create_graph=True)

    assert torch.autograd.gradcheck(second, leaves)


# ---- determinism by name -------------------------------------------------------------------------------------------

def test_atomic_is_refused_where_torch_asks_for_determinism():
    t, graph = uvu_table("2x0e", "1x0e", "1x0e"), ace_fast.Graph(torch.tensor([[0, 1], [1, 1]]), 2)
    x1, x2, weight = torch.randn(2, 2), torch.randn(2, 1), torch.randn(2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="tensor_product_conv: atomic=True does not have a deterministic implementa"):
        tensor_product_conv(x1, x2, weight, graph, t, atomic=True)
    torch.use_deterministic_algorithms(False)
    y = tensor_product_conv(x1, x2, weight, graph, t, atomic=True)
    torch.testing.assert_close(y, tensor_product_conv(x1, x2, weight, graph, t))
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError, match="tensor_product_conv_bwd: atomic=True does not have a deterministic"):
        y.sum().backward()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.warns(UserWarning, match="atomic=True does not have a deterministic implementation"):
        tensor_product_conv(x1, x2, weight, graph, t, atomic=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [False, True], ids=["per_edge", "shared"])
def test_atomic_sums_are_right(backend, shared):
    """In any order, where one node has most edges, from and to every kind of kernel."""
    torch.use_deterministic_algorithms(False)
    t = uvu_table("32x0e+20x1o", "1x0e+1x1o", "1x0e+1x1o+1x1e")
    graph = ace_fast.Graph(torch.stack([torch.randint(0, 6, (90,)), (torch.arange(90) - 60).clamp(min=0) // 5]), (6, 9))
    leaves = normal(6, t.dims[0]), normal(90, t.dims[1]), normal(*(() if shared else (90,)), t.weight_numel)
    g = torch.randn(9, t.dims[2], dtype=torch.float64)
    mine, expected = (tensor_product_conv(*leaves, graph, t, atomic=a, backend=b)
                      for a, b in ((True, backend), (False, "reference")))
    close([mine], [expected])
    close(*(torch.autograd.grad(y, leaves, g) for y in (mine, expected)))


def _other_value(n, path, index, value):
    value[path[10] + n % (path[11] - path[10])] *= 1.5


def _other_place(n, path, index, value):  # to where the degrees couple nothing
    rows = index[path[10]:path[11]]
    cells = itertools.product(*(range(d) for d in path[[2, 5, 8]]))
    for free in set(cells) - {tuple(row) for row in rows.tolist()}:
        rows[n % len(rows)] = torch.tensor(free)
        return


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [False, True], ids=["per_edge", "shared"])
@pytest.mark.parametrize("change", [_other_value, _other_place], ids=["other_value", "other_place"])
def test_coefficients_need_not_be_clebsch_gordan(change, shared, backend):
    """Kernels that know the coefficients at compile time check them; other tables run too, beside known ones."""
    t = uvu_table("20x0e+17x1o+16x2e", "1x0e+1x1o", "1x0e+1x1o+1x2e")
    index, value = (x.clone() for x in t.on("cpu"))
    for n, path in enumerate(torch.tensor(t.paths).reshape(-1, 13)[::2]):
        change(n, path, index, value)
    graph = ace_fast.Graph(torch.randint(0, 4, (2, 25)), 4)
    x = normal(4, t.dims[0]), normal(25, t.dims[1]), normal(*(() if shared else (25,)), t.weight_numel)
    tables = (*graph.sources, *graph.targets, index, value, t.dims, t.paths, False)
    mine, expected = (tensor_product_conv_op(*x, *tables, b) for b in (backend, "reference"))
    close([mine], [expected])
    g = torch.randn_like(mine)
    close(*(torch.autograd.grad(y, x, g) for y in (mine, expected)))


def test_coefficients_of_the_compiler():
    """w3j.h holds e3nn's wigner_3j up to l = 3; were it to hold others, kernels would read tables: right, but slow."""
    found = {}
    for *numbers, square in re.findall(r"{(\d), (\d), (\d), (\d), (\d), (\d), (-?\d+)}", W3J.read_text()):
        l1, l2, l3, *at = map(int, numbers)
        block = found.setdefault((l1, l2, l3), torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.float64))
        block[tuple(at)] = math.copysign(math.sqrt(abs(int(square)) / 840), int(square))
    for degrees in itertools.product(range(4), repeat=3):
        if abs(degrees[0] - degrees[1]) > degrees[2] or degrees[2] > degrees[0] + degrees[1]:
            continue
        axes = sorted(range(3), key=degrees.__getitem__)  # where the sorted degrees are
        mine = found[tuple(degrees[a] for a in axes)].permute([axes.index(n) for n in range(3)])
        odd = sum(axes[m] > axes[n] for m, n in ((0, 1), (0, 2), (1, 2))) % 2
        close([mine * (-1) ** (odd * sum(degrees))], [o3.wigner_3j(*degrees, dtype=torch.float64)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_paths_beyond_one_launch(backend):
    """More units and paths than a launch takes; paths that share a slice of out; two slices of in2 of one degree."""
    in1, in2 = "+".join(["8x0e+8x1o"] * 12), "1x0e+1x1o+1x1o"
    a, b, out = o3.Irreps(in1), o3.Irreps(in2), o3.Irreps("8x0e+8x1o+8x1e")
    instructions = [(i, j, k, "uvu", True, 0.5) for i, (_, x) in enumerate(a) for j, (_, y) in enumerate(b)
                    for k, (_, z) in enumerate(out) if z in x * y]
    t = ProductTable(a, b, out, instructions)
    graph = ace_fast.Graph(torch.randint(0, 4, (2, 11)), 4)
    leaves = normal(4, t.dims[0]), normal(11, t.dims[1]), normal(11, t.weight_numel)
    mine, expected = (tensor_product_conv(*leaves, graph, t, backend=k) for k in (backend, "reference"))
    close([mine], [expected])
    g = torch.randn_like(mine)
    close(*(torch.autograd.grad(y, leaves, g) for y in (mine, expected)))


# ---- errors --------------------------------------------------------------------------------------------------------

TABLE = uvu_table("4x0e+2x1o", "1x0e+1x1o", "1x0e+1x1o")
GRAPH = ace_fast.Graph(torch.tensor([[0, 1, 4], [1, 1, 0]]), (5, 2))


def _arguments():
    weight = torch.zeros(3, TABLE.weight_numel)
    index, value = TABLE.on("cpu")
    names = ("x1", "x2", "weight", "source", "source_order", "source_ptr", "target", "target_order", "target_ptr",
             "cg_index", "cg_value", "dims", "paths", "atomic", "backend")
    values = (torch.zeros(5, 10), torch.zeros(3, 4), weight, *GRAPH.sources, *GRAPH.targets, index, value,
              list(TABLE.dims), list(TABLE.paths), False, "auto")
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize("change, message", [
    ({"x1": torch.zeros(5, 10, dtype=torch.int64)}, "the first argument must be float32 or float64, got torch.int64"),
    ({"x1": torch.zeros(5, 9)}, r"x1 must be \[5, 10\], a row for each source, got \[5, 9\]"),
    ({"x1": torch.zeros(2, 10)}, r"x1 must be \[5, 10\], a row for each source, got \[2, 10\]"),
    ({"x2": torch.zeros(3, 5)}, r"x2 must be \[E, 4\], got \[3, 5\]"),
    ({"x2": torch.zeros(4, 4)}, r"source must be \[4\] like the rows of x2, got \[3\]"),
    ({"x2": torch.zeros(3, 4, dtype=torch.float64)}, "x2 must be torch.float32 on cpu, got torch.float64 on cpu"),
    ({"weight": torch.zeros(3, 4)}, rf"weight must be \[{TABLE.weight_numel}\] or \[3, {TABLE.weight_numel}\], got"),
    ({"weight": torch.zeros(2, TABLE.weight_numel)}, r"weight must be .* got \[2, "),
    ({"source": GRAPH.sources.index.int()}, r"source must be int64 \[length\] on cpu, got torch.int32 \[3\] on cpu"),
    ({"target_order": GRAPH.targets.order[:2]}, r"target_order must be \[3\] like the rows of x2, got \[2\]"),
    ({"target_ptr": GRAPH.targets.ptr[:0]}, r"target_ptr must be \[N \+ 1\], got \[0\]"),
    ({"target_ptr": GRAPH.targets.ptr.to("meta")}, r"target_ptr must be int64 \[length\] on cpu, got .* on meta"),
    ({"dims": [10, 4]}, "dims must be dim1, dim2, dim_out and the layout, got"),
    ({"paths": [0, 1]}, "paths must be 13 integers a path, got 2"),
    ({"cg_value": torch.zeros(1)}, r"cg_value must be float64 \[nnz\] beside int64 cg_index \[nnz, 3\], got"),
    ({"backend": "fast"}, r"backend must be one of \['auto', .*\], got 'fast'"),
])
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=f"tensor_product_conv: {message}"):
        tensor_product_conv_op(*(_arguments() | change).values())


@pytest.mark.parametrize("change, message", [
    ({"g": torch.zeros(3, TABLE.dims[2])}, rf"g must be \[2, {TABLE.dims[2]}\], a row for each target, got \[3, "),
    ({"g": torch.zeros(2, 3)}, rf"g must be \[2, {TABLE.dims[2]}\], a row for each target, got \[2, 3\]"),
    ({"g": torch.zeros(2, TABLE.dims[2], dtype=torch.float64)}, "x1 must be torch.float64 on cpu, got torch.float32"),
    ({"needs": [True]}, r"needs must be three bools \(x1, x2, weight\), got \[True\]"),
])
def test_wrong_gradient_arguments(change, message):
    *inputs, backend = _arguments().values()
    g, needs = change.get("g", torch.zeros(2, TABLE.dims[2])), change.get("needs", [True] * 3)
    with pytest.raises(ValueError, match=f"tensor_product_conv_bwd: {message}"):
        tensor_product_conv_bwd(g, *inputs, needs, backend)


def test_wrong_graph_and_table():
    a = _arguments()
    x = a["x1"], a["x2"], a["weight"]
    with pytest.raises(ValueError, match="graph must be a Graph, got Tensor; use ace_fast.Graph"):
        tensor_product_conv(*x, GRAPH.edge_index, TABLE)
    biased = ProductTable("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvw", True, 1.0)], bias=True)
    with pytest.raises(ValueError, match="table must be without biases, got 1 biases; add them after the sum"):
        tensor_product_conv(*x, GRAPH, biased)


def test_forward_mode_raises():
    a = _arguments()
    with pytest.raises(NotImplementedError, match="tensor_product_conv: forward-mode derivatives"):
        torch.func.jvp(lambda x: tensor_product_conv(x, a["x2"], a["weight"], GRAPH, TABLE), (a["x1"],), (a["x1"],))


# ---- many edges ----------------------------------------------------------------------------------------------------

def test_gradients_in_several_parts():
    """On a GPU rows of gradients are kept for a bounded number of edges at a time."""
    if "cuda" not in BACKENDS:
        pytest.skip("no CUDA kernels on this device")
    t = uvu_table("512x0e", "1x0e", "1x0e")
    edges = 13000  # 53 MB of rows in float64
    graph = ace_fast.Graph(torch.randint(0, 40, (2, edges)), 40)
    x1, x2, weight, g = (torch.randn(*s, dtype=torch.float64) for s in ((40, 512), (edges, 1), (edges, 512), (40, 512)))
    tables = (*graph.sources, *graph.targets, *t.on("cpu"), t.dims, t.paths, False, [True] * 3)
    close(*(tensor_product_conv_bwd(g, x1, x2, weight, *tables, b) for b in ("cuda", "reference")))


def test_rows_of_any_product_in_several_parts():
    """And of every other product their operands and results too."""
    if "cuda" not in BACKENDS:
        pytest.skip("no CUDA kernels on this device")
    t = ProductTable("64x0e", "1x0e", "64x0e", [(0, 0, 0, "uvw", True, 1.0)])
    edges = 1100  # 74 MB of rows in float64
    graph = ace_fast.Graph(torch.randint(0, 30, (2, edges)), 30)
    x = [torch.randn(*s, dtype=torch.float64) for s in ((30, 64), (edges, 1), (edges, 4096))]
    tables = (*graph.sources, *graph.targets, *t.on("cpu"), t.dims, t.paths, False)
    close(*([tensor_product_conv_op(*x, *tables, b)] for b in ("cuda", "reference")))
    g = torch.randn(30, 64, dtype=torch.float64)
    close(*(tensor_product_conv_bwd(g, *x, *tables, [True] * 3, b) for b in ("cuda", "reference")))
