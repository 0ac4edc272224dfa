"""Choosing a product: what each can express, that what is chosen fits; the suite that measures all, its page."""

import json

import pytest
import torch
from e3nn import o3

from ace_fast import functional
from ace_fast.nn import (
    GauntTensorProduct,
    TDNTensorProduct,
    TensorProduct,
    choice,
    choose_product,
    equivariance_error,
)
from ace_fast.report import rows
from bench import (
    captured,
    products,
    products_cases,
    products_docs,
    products_kernels,
    products_kernels_docs,
    products_warm,
    results,
    steps,
    timing,
)
from bench.__main__ import main

PLAIN, NATURAL = "2x0e+2x1e+2x2e", "2x0e+2x1o+2x2e"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Nothing is timed for long."""
    monkeypatch.setattr(choice, "measure", lambda found, rows, device, dtype, repeats=1, budget_s=0.0: MEASURE(
        found, 2, device, dtype, 1, 0.0))


MEASURE = choice.measure


def test_candidates_say_what_they_can_express(tmp_path):
    found, reasons = choice.candidates(PLAIN, PLAIN, PLAIN)
    assert {c.name: (c.paths, c.maps) for c in found} == {
        "clebsch_gordan": (15, 15), "gaunt_grid": (11, 7), "gaunt_fourier": (11, 7), "gaunt_bracket": (15, 11),
        "tdn_exact": (15, 1)}
    assert reasons == {}
    found, reasons = choice.candidates(NATURAL, "1x0e+1x1o+1x2e", NATURAL)
    assert {c.name: c.paths for c in found} == {"clebsch_gordan": 11, "gaunt_grid": 11, "gaunt_fourier": 11,
                                                "tdn_exact": 11}
    assert reasons == {"gaunt_bracket": "the irreps have no path with l1 + l2 + l3 odd"}
    found, reasons = choice.candidates("1x0e+1x1e", "1x1e", "1x1e")
    assert [c.name for c in found] == ["clebsch_gordan", "gaunt_grid", "gaunt_fourier", "gaunt_bracket"]
    assert reasons["tdn_exact"] == "for degrees of at most 1 the exact product is faster"
    found, _ = choice.candidates("1x0e+1x1e", "1x0e+1x1e", "1x0e+1x1e", [8], cache=tmp_path)  # asked for
    assert found[-1].name == "tdn_8" and equivariance_error(found[-1].make(), "cpu", torch.float32) < 1e-5


@pytest.mark.parametrize("odd", [False, True])
def test_the_number_of_maps_is_the_rank_of_the_derivatives(odd):
    torch.set_default_dtype(torch.float64)
    irreps = o3.Irreps("1x0e+1x1e+1x2e")
    tp = GauntTensorProduct(irreps, irreps, irreps, odd_paths=odd, internal_weights=False)
    x, y = torch.eye(9), torch.eye(9)
    weight = 0.5 + torch.rand(tp.weight_numel)
    slopes = []  # the product is linear in each weight
    for n in range(len(weight)):
        ends = [weight.clone().index_fill_(0, torch.tensor([n]), value) for value in (1.0, 0.0)]
        slopes.append((tp(x[:, None], y[None], ends[0]) - tp(x[:, None], y[None], ends[1])).flatten())
    (wanted,) = (c.maps for c in choice.candidates(irreps, irreps, irreps)[0]
                 if c.name == ("gaunt_bracket" if odd else "gaunt_grid"))
    assert torch.linalg.matrix_rank(torch.stack(slopes), rtol=1e-9) == wanted


@pytest.mark.parametrize("expressivity, allowed", [
    ("full", {"clebsch_gordan"}), (15, {"clebsch_gordan"}), (8, {"clebsch_gordan", "gaunt_bracket"}),
    ("paths", {"clebsch_gordan", "gaunt_bracket", "tdn_exact"}),
    ("any", {"clebsch_gordan", "gaunt_grid", "gaunt_fourier", "gaunt_bracket", "tdn_exact"})])
def test_the_fastest_that_fits_is_chosen(expressivity, allowed):
    found = choose_product(PLAIN, PLAIN, PLAIN, expressivity)
    assert found.name == next(row["name"] for row in found.measured if row["name"] in allowed)
    assert found.layer(torch.randn(3, 18), torch.randn(3, 18)).shape == (3, 18)
    assert {row["name"] for row in found.measured} == {"clebsch_gordan", "gaunt_grid", "gaunt_fourier",
                                                       "gaunt_bracket", "tdn_exact"}
    assert all(row["equivariance_error"] < 1e-5 and row["ms"] > 0 for row in found.measured)
    assert f"chosen: {found.name}" in str(found) and "gaunt_bracket" in str(found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_product_is_chosen_without_gradients(mode):
    with mode():
        found = choose_product("1x0e+1x1o", "1x0e+1x1o", "1x0e+1x1o", rows=2)
    x = torch.randn(3, 4, requires_grad=True)
    found.layer(x, x.detach()).sum().backward()
    assert x.grad.abs().max() > 0 and all(p.grad is not None for p in found.layer.parameters())


def test_inexact_factors_are_chosen_only_where_their_error_is_taken(own_cache, monkeypatch):
    def fast(found, *args):
        measured = MEASURE(found, 2, "cpu", torch.float64, 1, 0.0)
        return sorted(measured, key=lambda row: (row["name"] != "tdn_12", row["ms"]))

    monkeypatch.setattr(choice, "measure", fast)
    assert choose_product(PLAIN, PLAIN, PLAIN, "any", ranks=[12], dtype=torch.float64).name != "tdn_12"
    found = choose_product(PLAIN, PLAIN, PLAIN, "any", ranks=[12], dtype=torch.float64, equivariance=10)
    assert found.name == "tdn_12" and isinstance(found.layer, TDNTensorProduct)
    assert 0.01 < found.measured[0]["equivariance_error"] < 10
    assert next(found.layer.parameters()).dtype == torch.float64


def test_channels_that_only_the_clebsch_gordan_product_can_pair():
    found = choose_product("2x0e+2x1o", "3x0e+3x1o", "2x0e+2x1o")
    assert isinstance(found.layer, TensorProduct) and found.layer.weight_numel == 4 * 6
    assert "irreps_in2 must have the 2 channels of irreps_in1, or 1, got 3" in found.reasons["gaunt_grid"]


@pytest.mark.parametrize("args, message", [
    (("2x0e+1x1o", "1x0e", "2x0e"), "irreps_in1 must have one multiplicity"),
    (("1x0e", "2x0e", "2x0e"), "irreps_out must have the 1 channels of irreps_in1, got 2x0e; exchange the inputs"),
    (("2x0e", "2x0e", "1x0e"), "irreps_out must have the 2 channels of irreps_in1, got 1x0e; put an ace_fast.nn.Lin"),
    ((PLAIN, PLAIN, PLAIN, "most"), "expressivity must be one of .* or a number of maps, got 'most'"),
    (("1x1o", "1x1o", "1x2o"), "irreps_out must be reachable from .*, got 1x1o x 1x1o -> 1x2o; there is no product"),
    (("", "1x1o", ""), "irreps_out must be reachable from .*, got  x 1x1o -> ; there is no product of these"),
    (("0x0e+0x1o", "1x0e", "0x0e"), r"irreps_out must be reachable from channels .*, got 0x0e\+0x1o x 1x0e -> 0x0e"),
    ((PLAIN, PLAIN, PLAIN, 16), "expressivity must be at most the 15 paths of these irreps, got 16"),
])
def test_errors(args, message):
    with pytest.raises(ValueError, match=f"choose_product: {message}"):
        choose_product(*args)


@pytest.mark.parametrize("options, message", [
    ({"rows": 0}, "rows must be an integer of at least 1, got 0"),
    ({"rows": 1.5}, "rows must be an integer of at least 1, got 1.5"),
    ({"ranks": 8}, "ranks must be a sequence of integers, got 8"),
    ({"ranks": [0]}, "ranks must be an integer of at least 1, got 0"),
    ({"expressivity": -3}, "expressivity must be an integer of at least 1, got -3"),
    ({"expressivity": True}, "expressivity must be an integer of at least 1, got True"),
    ({"equivariance": float("nan")}, "equivariance must be a number from 0 on, got nan"),
    ({"device": "cuda"}, "device must be one that is there, got 'cuda'; torch sees no GPU"),
    ({"device": "cuda:3"}, "device must be one that is there, got 'cuda:3'; torch sees no GPU"),
    *(({"device": name}, f"device must be one that is there, got '{name}'; it is 'cpu', 'cuda' or")
      for name in ("mps", "gpu", "meta")),
    ({"device": 1.5}, "device must be one that is there, got '1.5'; it is 'cpu', 'cuda' or"),
    ({"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float64, got torch.bfloat16; a choice for"),
])
def test_errors_of_options(options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"choose_product: {message}"):
        choose_product(PLAIN, PLAIN, PLAIN, **options)


# ---- the suite


@pytest.fixture(scope="module")
def row(own_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "ranks", lambda lmax: (12,))
        return products.run(products_cases.parse("L2_C2@3"), "cpu", torch.float32, 1, quick=True)


@pytest.fixture(scope="module")
def kernel_rows(own_cache):
    """A row of every other group."""
    cases = ("grid_L2_C3@5", "cp_L1_C2@4", "cp_L2_C2@4", "forms_L1_C2@3", "forms_L9_C2@1")
    return {case: products.run(products_cases.parse(case), "cpu", torch.float32, 1, quick=True) for case in cases}


def test_a_row_has_every_product(row):
    assert results.versions(row) == ["fast", "gaunt_grid", "gaunt_fourier", "gaunt_bracket", "tdn_exact", "tdn_12",
                                     "eager", "eager_compiled"]
    assert (row["fast_maps"], row["gaunt_grid_maps"], row["tdn_12_maps"]) == (15, 7, 1)
    assert row["gaunt_bracket_paths"] == row["eager_paths"] == 15 and "error" not in row
    assert row["tdn_12_equivariance_error"] > 0.01 > 1e-5 > row["tdn_exact_equivariance_error"]
    assert rows.command(row) == "python -m bench --suite products --case L2_C2@3"
    wrong = products._wrong({"gaunt_grid": 0.1, "tdn_12": 0.1}, torch.float32)
    assert list(wrong) == ["gaunt_grid: equivariance error 1.0e-01, more than 1e-05"]


def test_kernels_are_beside_what_they_replace(kernel_rows):
    versions = {case: set(products.timed(row)) for case, row in kernel_rows.items()}
    assert versions["grid_L2_C3@5"] == {"fast", "eager", "einsum"}
    assert versions["cp_L1_C2@4"] == {"fast", "eager", "clebsch_gordan"}
    assert versions["cp_L2_C2@4"] == {"fast", "eager", "clebsch_gordan", "tdn_exact"}
    assert versions["forms_L1_C2@3"] == {"fast", "dense", "mirrored", "separable", "sparse"}
    assert versions["forms_L9_C2@1"] == {"fast", "dense", "mirrored", "separable"}
    for case, row in kernel_rows.items():
        assert "error" not in row and row["fast_max_relative_error"] < 1e-5
        assert rows.command(row) == f"python -m bench --suite products --case {case}"
        assert row["speedup"] > 0 if "speedup" in row else case.startswith("forms")
    assert kernel_rows["grid_L2_C3@5"]["points"] == 28 and kernel_rows["cp_L2_C2@4"]["rank"] == 28
    # 2 x 10 terms of two products and a sum, forward; each gradient likewise
    assert kernel_rows["forms_L1_C2@3"]["sparse_flops"] == 3 * 3 * 10


def test_both_plain_ways_are_the_product_on_the_grid():
    to, back = products_kernels.dense_matrices(2)
    x, y = torch.randn(2, 5, 9, 3, dtype=torch.float64)
    table = functional.sphere_table((2, 2), 2)
    fused = functional.sphere_product(x.flatten(1), y.flatten(1), table=table, layout="ir_mul").view(5, 9, 3)
    torch.testing.assert_close(products_kernels.by_einsum(x, y, to, back), fused)
    torch.testing.assert_close(products_kernels.by_products(x.mT, y.mT, to, back).mT, fused)


def test_what_is_wrong_is_said(monkeypatch):
    monkeypatch.setattr(products_kernels, "by_products", lambda x, y, to, back: x * y)
    row = products.run(products_cases.parse("grid_L1_C1@2"), "cpu", torch.float32, 1, quick=True)
    assert row["error"].startswith("output is wrong")


def test_what_fails_is_a_row(monkeypatch):
    monkeypatch.setattr(products_kernels, "by_products", lambda x, y, to, back: x @ y)
    row = products.run(products_cases.parse("grid_L1_C1@2"), "cpu", torch.float32, 1, quick=True)
    assert "fast_ms" not in row and row["error"].startswith("RuntimeError: ") and row["degree"] == 1


def test_plain_versions_are_compiled_too(monkeypatch):
    seen = []
    monkeypatch.setattr(steps, "compiled", lambda call: seen.append(call) or call)
    row = products.run(products_cases.parse("grid_L1_C2@3"), "cpu", torch.float32, 1, quick=True, compiled=True)
    assert set(products.timed(row)) == {"fast", "eager", "einsum", "eager_compiled", "einsum_compiled"}
    assert len(seen) == 2
    assert row["speedup"] == min(row[f"{way}_ms"] for way in products_kernels.GRID_WAYS) / row["fast_ms"]
    row = products.run(products_cases.parse("cp_L1_C2@3"), "cpu", torch.float32, 1, quick=True, compiled=True)
    assert row["speedup"] == min(row["eager_ms"], row["eager_compiled_ms"]) / row["fast_ms"] and "error" not in row
    work = products.layers(products_cases.parse("L1_C2@3"), "cpu", torch.float32, compiled=True)
    products_kernels._same(work.steps["eager_compiled"](), work.steps["eager"]())  # the same weights
    monkeypatch.setattr(products, "COMPILED_MOST", 0)
    work = products.layers(products_cases.parse("L1_C1@1"), "cpu", torch.float32, compiled=True)
    assert work.reasons["eager_compiled_reason"] == "torch.compile takes minutes above L = 0"
    assert products.title("eager_compiled") == "Clebsch-Gordan, e3nn, compiled"


def test_what_is_compiled_wrong_or_not_at_all_has_a_reason(monkeypatch):
    def compiled(call):
        return lambda **given: 2 * call(**given)

    monkeypatch.setattr(steps, "compiled", compiled)
    row = products.run(products_cases.parse("grid_L1_C2@3"), "cpu", torch.float32, 1, quick=True, compiled=True)
    assert row["eager_compiled_reason"].startswith("AssertionError: Tensor-likes are not close")
    assert "error" not in row and set(products.timed(row)) == {"fast", "eager", "einsum"}


def test_steps_of_a_gpu_are_captured_all_or_none(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(captured, "_capture", lambda step, pool: made.append(step) or step.replay)
    monkeypatch.setattr(captured, "_abandon", made.append)
    one, two = lambda: 3, lambda: 4
    one.replay, two.replay = lambda: 1, lambda: 2
    found, why = captured.replays({"fast": one, "eager": two, "again": one}, "cuda")
    assert [step() for step in found.values()] == [1, 2, 1] and made == [one, two] and why == ""
    given = {"fast": one, "eager": lambda: 5}
    found, why = captured.replays(given, "cuda")
    assert found is given and why == "eager: AttributeError: 'function' object has no attribute 'replay'"
    assert made[-1] == (0, 1)
    assert captured.replays(given, "cpu") == (given, "a CPU has no graphs")


def test_cases_are_compiled_beforehand(monkeypatch, capsys):
    monkeypatch.setattr(steps, "compiled", lambda call: call)
    shares = products_warm.shared(list(products_cases.cases(device="cuda")), 16)
    assert sorted(case for share in shares for case in share) == sorted(products_cases.cases(device="cuda"))
    assert max(map(len, shares)) - min(map(len, shares)) == 1
    assert {str(share[-1]).split("_")[0] for share in shares} == {"grid"}
    products_warm.warm(products_cases.parse("grid_L1_C1@2"), "cpu")
    monkeypatch.setattr(products, "prepare", lambda *args, **more: 1 / 0)
    products_warm.warm(products_cases.parse("L1"), "cpu")
    said = capsys.readouterr().out
    assert said.startswith("grid_L1_C1@2: ") and "L1_C16@8192: ZeroDivisionError" in said


def test_slow_versions_take_part_in_few_rounds(monkeypatch):
    calls, ms = [], {"fast": 1.0, "slow": 100.0, "slowest": 4000.0}
    monkeypatch.setattr(timing.Stopwatch, "ms", lambda self, function: (calls.append(function()), ms[function()])[1])
    steps = {name: lambda name=name: name for name in ms}
    found = timing.shared(steps, repeats=12, budget_s=1.8, least=3)
    assert {name: timed.rounds for name, timed in found.items()} == {"fast": 12, "slow": 4, "slowest": 3}
    assert calls[:5] == ["fast", "fast", "slow", "slow", "slowest"]  # these say how long one takes
    assert calls[5:] == [name for i in range(12) for name in ("fast", *["slow"] * (i % 3 == 2), *["slowest"] * (
        i % 4 == 3))]
    assert timing.shared(steps, repeats=2, budget_s=0.0)["slow"].rounds == 2
    assert timing.shared({}) == {}


def test_pages_have_their_tables_and_figures(row, kernel_rows, tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "products.md"
    every = [row, *kernel_rows.values()]
    assert products_docs.pages(tmp_path / "other", every) == {}
    page.write_text("before\n" + "".join(f"{mark}\nold\n{products_docs.END}\nafter\n"
                                         for mark in products_docs.MARKS.values()))
    made = products_docs.pages(tmp_path, every)
    text = made[page]
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("\n| 2, 3 |") == 7 and "| Gaunt and bracket |" in text
    assert "\n| 3 | 2, 5 | 28 |" in text and "\n| 2, 4 | 28 |" in text and "\n| 1, 3 |" in text
    assert text.count("\n- The ") == 4 and "\n- 3 channels: fused is " in text
    assert "- Fastest of all: " in text and "- Factors of rank" not in text  # none of 7 L^2 = 28 here
    assert all(made[tmp_path / figure].startswith("<svg") for figure in products_docs.FIGURES.values())
    assert products_docs.pages(tmp_path, [])[page].count("Nothing is measured yet.") == 4
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must hold one line '<!-- measured: products -->'"):
        products_docs.pages(tmp_path, every)


def test_the_page_says_what_costs_least():
    def of(degree, ours, grid, paths):
        times = {"fast_ms": ours, "gaunt_grid_ms": grid, "eager_ms": 3 * ours, "eager_mb": 8.0, "fast_mb": 2.0}
        counts = {f"{v}_paths": n for v, n in (("fast", 15), ("eager", 15), ("gaunt_grid", paths))}
        return {"degree": degree, "protocol": "products"} | times | counts | {
            f"{v}_{key}": n for v, maps in (("fast", 15), ("eager", 15), ("gaunt_grid", 3))
            for key, n in (("maps", maps), ("equivariance_error", 1e-7))}

    said = products_docs._findings([of(1, 2.0, 3.0, 11), of(2, 3.0, 2.0, 11), of(3, 4.0, 2.0, 15)])
    assert said[0] == "- Fastest of all: Clebsch-Gordan at L = 1; Gaunt, grid at L = 2 to 3."
    assert said[1].endswith("every path: Clebsch-Gordan at L = 1 to 2; Gaunt, grid at L = 3.")
    assert said[2] == "- Cheapest for an independent map: Clebsch-Gordan at L = 1 to 3."
    assert "takes 3.0 to 3.0 times as long as ours and 4.0 to 4.0 times" in said[3] and len(said) == 5


def test_rows_of_a_gpu_are_tables_of_their_own():
    def on_gpu(protocol, degree, versions, **more):
        found = {"protocol": protocol, "device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "threads": 16,
                 "dtype": "float32", "degree": degree, "channels": 64, "rows": 10_000, "noise": 0.01, "rounds": 40}
        for version, ms in versions.items():
            found |= {f"{version}_ms": ms, f"{version}_mb": 8 * ms, f"{version}_rounds": 40, f"{version}_call": ms + 1}
        return found | more

    plain = {"eager": 4.0, "einsum": 5.0, "einsum_compiled": 3.0}
    found = [on_gpu("products_grid", 1, plain | {"fast": 1.0, "eager_compiled": 2.0, "triton": 1.5}, points=8,
                    speedup=2.0),
             on_gpu("products_grid", 2, plain | {"fast": 1.0}, points=28, speedup=3.0, eager_compiled_reason="none",
                    uncaptured="fast: why")]
    text = products_docs.tables(found, "products_grid", products_kernels_docs.grid)
    assert text.startswith("NVIDIA H100 80GB HBM3; float32. Forward and backward, medians of 40 rounds; ours timed")
    assert ". Kernels alone, replayed as CUDA graphs from cold caches (whole calls at L = 2):" in text
    lines = text.splitlines()
    assert lines[2].split(" | ")[2:-1] == [
        "points", "matrix products", "matrix products, compiled", "einsum", "einsum, compiled", "fused",
        "fused, Triton", "faster", "memory, plain", "memory, fused", "less"]
    assert lines[4] == ("| 64 | 1, 10000 | 8 | 4.00 ms | 2.00 ms | 5.00 ms | 3.00 ms | 1.00 ms | 1.50 ms | 2.0× | "
                        "16.0 MiB | 8.00 MiB | 2.0× | 1.5× |")
    assert "| 64 | 2, 10000 | 28 | 4.00 ms | – | 5.00 ms | 3.00 ms | 1.00 ms | – | 3.0× |" in lines[5]
    assert "as fast as the best plain version" in lines[-1]
    found = [on_gpu("products_cp", 1, {"eager": 4.0, "eager_compiled": 3.0, "fast": 1.0}, rank=7, speedup=3.0)]
    text = products_docs.tables(found, "products_cp", products_kernels_docs.factors)
    assert "| L, rows | rank | e3nn, uuu | e3nn, compiled | CP, rank 7 L² | faster |" in text
    assert "| 1, 10000 | 7 | 4.00 ms | 3.00 ms | 1.00 ms | 3.0× |" in text
    assert products_docs._compiled(found) == "; under torch.compile, to L = 1, 3.0 to 3.0 times as long"


def test_where_a_form_overtakes_another():
    found = [{"degree": n, "a_ms": a, "b_ms": b} for n, a, b in ((1, 1, 2), (2, 3, 2), (3, 2, 2), (4, 1, 2))]
    assert products_kernels_docs.crossing(found, "a", "b", "ms") == 3
    assert products_kernels_docs.crossing(found, "b", "a", "ms") is None
    assert products_kernels_docs.crossing([{"degree": 1, "a_ms": 1}], "a", "b", "ms") is None


def test_the_command(row, kernel_rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(products, "run", lambda case, *args: row if case.group == "layers" else kernel_rows[
        "grid_L2_C3@5"])
    assert main(["--suite", "products", "--quick", "--json", str(tmp_path / "run.json")]) == 0
    shown = capsys.readouterr().out
    assert "Gaunt, Fourier" in shown and "CP, rank 12" in shown and "einsum" in shown
    # two degrees of every group, for one and 64 channels on the grid
    assert len(json.loads((tmp_path / "run.json").read_text())["benchmarks"]) == 10


def test_cases():
    assert [str(case) for case in products_cases.cases("grid_L2")] == ["grid_L2_C64@10000"]
    assert [str(case) for case in products_cases.cases("cp")][0] == "cp_L1_C64@10000"
    assert [len(list(products_cases.cases(group))) for group in products_cases.GROUPS] == [10, 12, 4, 16]
    assert str(products_cases.parse("L2")) == f"L2_C16@{2**19 // (16 * 9)}"
    assert str(next(products_cases.cases("grid", quick=True))) == "grid_L1_C1@625"
    on_gpu = [case for case in products_cases.cases(device="cuda")]
    assert [sum(case.group == group for case in on_gpu) for group in products_cases.GROUPS] == [10, 20, 4, 0]


@pytest.mark.parametrize("case", ["L0", "L11", "M1", "L2_C0", "L2@0", "cp_L5", "grid_L11", "forms_L17", "other_L1"])
def test_wrong_cases(case):
    with pytest.raises(ValueError, match=f"products: the case must be layers, .* cp_L1 to L4.*, got '{case}'"):
        products_cases.parse(case)
