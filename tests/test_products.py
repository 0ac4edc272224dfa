"""Choosing a product: what each can express, that what is chosen fits; the suite that measures all, its page."""

import json

import pytest
import torch
from e3nn import o3

from ace_fast.nn import GauntTensorProduct, TDNTensorProduct, TensorProduct, choice, choose_product
from ace_fast.report import rows
from bench import products, products_docs, results
from bench.__main__ import main

PLAIN, NATURAL = "2x0e+2x1e+2x2e", "2x0e+2x1o+2x2e"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Nothing is timed for long."""
    monkeypatch.setattr(choice, "measure", lambda found, rows, device, dtype, repeats=1, budget_s=0.0: MEASURE(
        found, 2, device, dtype, 1, 0.0))


MEASURE = choice.measure


def test_candidates_say_what_they_can_express():
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
        return products.run("L2_C2@3", "cpu", torch.float32, 1, quick=True)


def test_a_row_has_every_product(row):
    assert results.versions(row) == ["fast", "gaunt_grid", "gaunt_fourier", "gaunt_bracket", "tdn_exact", "tdn_12",
                                     "eager"]
    assert (row["fast_maps"], row["gaunt_grid_maps"], row["tdn_12_maps"]) == (15, 7, 1)
    assert row["gaunt_bracket_paths"] == row["eager_paths"] == 15 and "error" not in row
    assert row["tdn_12_equivariance_error"] > 0.01 > 1e-5 > row["tdn_exact_equivariance_error"]
    assert rows.command(row) == "python -m bench --suite products --case L2_C2@3"
    wrong = {"gaunt_grid": {"equivariance_error": 0.1}, "tdn_12": {"equivariance_error": 0.1}}
    assert list(products._wrong(wrong, torch.float32)) == ["gaunt_grid: equivariance error 1.0e-01, more than 1e-05"]


def test_the_page_has_its_table_and_figure(row, tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "products.md"
    assert products_docs.pages(tmp_path / "other", [row]) == {}
    page.write_text(f"before\n{products_docs.BEGIN}\nold\n{products_docs.END}\nafter\n")
    made = products_docs.pages(tmp_path, [row])
    assert made[page].startswith("before\n") and made[page].endswith("after\n") and "old" not in made[page]
    assert made[page].count("\n| 2, 3 |") == 7 and "| Gaunt and bracket |" in made[page]
    assert made[tmp_path / products_docs.FIGURE].startswith("<svg")
    assert "Nothing is measured yet." in products_docs.pages(tmp_path, [])[page]
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must hold one line '<!-- measured: products -->'"):
        products_docs.pages(tmp_path, [row])


def test_the_command(row, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(products, "run", lambda *args: row)
    assert main(["--suite", "products", "--quick", "--json", str(tmp_path / "run.json")]) == 0
    shown = capsys.readouterr().out
    assert "Gaunt, Fourier" in shown and "CP, rank 12" in shown
    assert len(json.loads((tmp_path / "run.json").read_text())["benchmarks"]) == 2


@pytest.mark.parametrize("case", ["L0", "L11", "M1", "L2_C0", "L2@0"])
def test_wrong_cases(case):
    with pytest.raises(ValueError, match=f"products: the case must be L1 to L10, or L2_C16@1000 .*, got '{case}'"):
        products.parse(case)


def test_cases_are_one_a_degree():
    assert products.cases()[0] == "L1_C16@4096" and products.cases()[-1] == "L10_C16@135"
    assert [products.parse(case) for case in products.cases(quick=True)] == [(1, 16, 256), (2, 16, 113)]
    assert products.parse("L3") == (3, 16, 1024) and products.ranks(3) == (63, 96) and products.ranks(5) == ()
