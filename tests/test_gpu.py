"""What only a GPU shows: Triton in CUDA graphs, layers under torch.compile, bfloat16, products timed as graphs."""

import importlib

import pytest
import torch
import torch._inductor.config

from ace_fast import functional
from ace_fast.backend import available
from ace_fast.kernels import ROOMS
from ace_fast.kernels.cases import cast, generator
from ace_fast.nn import GauntTensorProduct, TDNTensorProduct, TensorProduct
from bench import products, products_cases

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

IRREPS = "4x0e+4x1e+4x2e"
FIRST = {}  # the second case of every operator that Triton runs; the first is tiny
for room in ROOMS:
    if available("cuda")[room].get("triton") == "":
        for case in importlib.import_module(f"ace_fast.kernels.{room}.cases").SMALL:
            if "triton" not in case.refused_by and len(FIRST.setdefault(case.op.name, [])) < 2:
                FIRST[case.op.name].append(case)


@pytest.fixture
def alone():
    """torch.compile in this process, outside of which it would start one for every core."""
    with torch._inductor.config.patch(compile_threads=1):
        yield


@pytest.mark.parametrize("case", ["grid_L2_C3@64", "grid_L3_C64@33", "cp_L2_C2@64", "L2_C2@64"])
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_products_are_timed_as_graphs(case, own_cache, alone, monkeypatch):
    monkeypatch.setattr(products, "ranks", lambda lmax: ())
    torch.use_deterministic_algorithms(False)  # as the suite runs
    row = products.run(products_cases.parse(case), "cuda", torch.float32, 2, quick=True, compiled=True)
    assert "error" not in row and "uncaptured" not in row, row.get("error") or row["uncaptured"]
    reasons = {key: row[key] for key in row if key.endswith("compiled_reason")}
    assert not reasons and row["speedup"] > 0
    assert all(row[f"{version}_call"] > 0 and row[f"{version}_mb"] > 0 for version in products.timed(row))
    assert "eager_compiled" in products.timed(row)


@pytest.mark.parametrize("case", [
    case for *_, case in FIRST.values() if torch.Tag.dynamic_output_shape not in case.op.registered.tags], ids=repr)
def test_triton_in_a_graph(case):
    """Captured once and replayed: nothing waits for the device, and what is launched depends on shapes alone."""
    inputs = {name: x.detach() if isinstance(x, torch.Tensor) else x
              for name, x in cast(case.inputs(generator()), case, torch.float32, "cuda").items()}
    run = lambda: case.op(*inputs.values(), "triton")  # noqa: E731
    expected = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    graph.replay()
    torch.cuda.synchronize()
    single = isinstance(found, torch.Tensor)
    for x, y in zip([found] if single else found, [expected] if single else expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("layer", [TensorProduct, GauntTensorProduct, TDNTensorProduct])
@pytest.mark.filterwarnings("ignore")
def test_layers_under_torch_compile(layer, own_cache, alone):
    torch.use_deterministic_algorithms(False)
    more = {TDNTensorProduct: ("exact",), TensorProduct: ([(0, 0, 0, "uuu", True), (1, 1, 2, "uuu", True)],)}
    tp = layer(IRREPS, IRREPS, IRREPS, *more.get(layer, ())).cuda()
    x, y = (torch.randn(33, 36, device="cuda", requires_grad=True) for _ in range(2))
    wanted = [x, y, *tp.parameters()]
    plain = torch.autograd.grad(tp(x, y).square().sum(), wanted)
    found = torch.autograd.grad(torch.compile(tp, dynamic=False)(x, y).square().sum(), wanted)
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("lmax", [1, 3, 5])
def test_products_on_the_sphere_in_bfloat16(lmax, layout):
    table = functional.sphere_table((lmax, lmax), lmax)
    x, y = (torch.randn(50, 8 * (lmax + 1) ** 2, device="cuda").bfloat16().requires_grad_() for _ in range(2))
    z = functional.sphere_product(x, y, table=table, layout=layout)
    wide = functional.sphere_product(x.float(), y.float(), table=table, layout=layout, backend="reference")
    assert z.dtype == torch.bfloat16
    for one, two in zip((z, *torch.autograd.grad(z.float().square().sum(), [x, y])),
                        (wide, *torch.autograd.grad(wide.square().sum(), [x, y])), strict=True):
        assert ((one.float() - two.float()).norm() / two.float().norm()).item() < 3e-2
