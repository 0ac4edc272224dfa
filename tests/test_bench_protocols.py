"""The peers' protocols: the right products, every version judged by e3nn in float64, rows that miss nothing."""

import math
import tomllib
from pathlib import Path

import pytest
import torch

from bench import counts, memory, protocols, results, roofline
from bench import protocol_cases as cases
from bench import protocol_versions as versions
from bench.__main__ import main
from bench.protocol_cases import ALL, BOTH, DOUBLE, FORWARD

ROOT = Path(__file__).parents[1]
ROOF = roofline.Roofline(10.0, 100.0, "float32")
TINY = cases.fully_connected("tiny", "3x0e+2x1o", "0e+1o", "2x0e+3x1o")
OWN = cases.channelwise("own", "4x0e+2x1o", "0e+1o", "0e+1o")
MAKE = versions.make
CONV = cases.channelwise("conv", "4x0e+2x1o", "0e+1o", "0e+1o", convolution=True)


def problem(protocol: str, name: str) -> cases.Problem:
    return cases.find(protocol, name, "cpu")[0]


def weights(p: cases.Problem) -> int:
    return sum(math.prod(ins.path_shape) for ins in versions.module(p, torch.float32).instructions)


# which products


def test_the_rule_gives_the_lists_of_the_sources():
    main_layer = problem("O8", "sevennet-l3i5-main")
    assert len(main_layer.instructions) == len(main_layer.irreps[2]) == 34
    assert str(main_layer.irreps[2][:8]) == "128x0e+64x0e+32x0e+32x0e+128x1e+64x1e+64x1e+64x1e"
    assert len(problem("O8", "nequix-main").instructions) == 23
    assert str(problem("O8", "nequix-first").irreps[2]) == "89x0e+89x1o+89x2e+89x3o"
    assert str(problem("O1", "mace-large").irreps[2].simplify()) == "384x0e+640x1o+640x2e+512x3o"
    assert len(problem("F1", "4_32_3").instructions) == 68
    assert str(problem("F1", "4_32_3").irreps[0]) == "32x0o+32x0e+32x1o+32x1e+32x2o+32x2e+32x3o+32x3e"
    assert weights(problem("O2", "diffdock-l1")) == 6928 and weights(problem("O2", "tetris-poly-2")) == 664
    assert weights(problem("O8", "e3tools-conv")) == 7680


def test_the_square_has_the_weights_of_its_source():
    square = problem("J1", "square-128")
    assert square.shared and len(square.instructions) == 15
    assert 15 * 128**3 == 31_457_280


def test_cases_and_sizes():
    assert cases.cases("O1", "cpu")[0] == "mace-large@5000" and len(cases.cases("O1", "cpu")) == 7
    assert cases.cases("F1", "cuda")[:6][::5] == ["4_32_3@16384", "4_32_3@32768"]
    assert cases.find("O3", "7e_4e_7e", "cuda")[1] == 200_000
    assert cases.find("O3", "7e_4e_7e@12", "cuda")[1] == 12
    with pytest.raises(ValueError, match="bench: protocol must be one of O1, O2, .*, got 'O9'"):
        cases.find("O9", "x", "cpu")
    for wrong in ("mace", "mace-large@0", "mace-large@x"):
        with pytest.raises(ValueError, match=f"O1: the case must be NAME or NAME@ROWS .*mace-large.*got '{wrong}'"):
            cases.find("O1", wrong, "cpu")


def test_neighbours_of_a_convolution():
    x = versions.load(CONV, 256, "cpu", torch.float32)
    assert x.x1.shape[0] == 4 and torch.bincount(x.target).tolist() == [64] * 4
    assert not (x.source == x.target).any() and x.source.unique().tolist() == [0, 1, 2, 3]
    assert x.cotangent.shape == (4, CONV.irreps[2].dim) and x.weight.shape == (256, weights(CONV))


# what is computed


@pytest.mark.parametrize("p", [TINY, OWN, CONV], ids=lambda p: p.name)
def test_reference_by_blocks_is_the_derivative_of_e3nn(p):
    x = versions.load(p, 128 if p.convolution else 9, "cpu", torch.float64)
    mine = versions.numbers(versions.make("eager", p, x), p, x, DOUBLE)
    gold = versions.reference(p, x, DOUBLE, torch.float64, 1)
    assert mine.keys() == gold.keys() and len(gold) == 7
    for name, value in gold.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-11, atol=1e-11, msg=name)


def test_second_gradients_start_from_what_positions_move():
    """Shared weights are parameters: their first gradient is not among those that are squared."""
    x = versions.load(TINY, 5, "cpu", torch.float64)
    call = versions.module(TINY, torch.float64)
    g1, g2 = torch.autograd.grad(call(*x.leaves()), [x.x1, x.x2], x.cotangent, create_graph=True)
    by_hand = torch.autograd.grad(g1.square().sum() + g2.square().sum(), x.leaves())
    found = versions.reference(TINY, x, DOUBLE, torch.float64, 2**20)
    for name, value in zip(versions.NAMES, by_hand, strict=True):
        torch.testing.assert_close(found[f"second gradient of {name}"], value)


def test_rows_of_one_step_count_once():
    """3x0e x 0e -> 2x0e and so on by counts.product_row; terms and arguments by hand."""
    assert counts.derivatives(3, FORWARD) == (1, 1, 0, 1) and counts.derivatives(3, BOTH) == (4, 3, 0, 2)
    assert counts.derivatives(3, DOUBLE)[0] == 10 and counts.derivatives(2, DOUBLE)[0] == 7
    x = versions.load(OWN, 9, "cpu", torch.float32)
    one = protocols._count(OWN, x, FORWARD)
    both = protocols._count(OWN, x, BOTH)
    assert both.flops == 4 * one.flops
    leaves, out = counts.nbytes(x.leaves()), counts.nbytes([x.cotangent])
    assert one.bytes == leaves + out and both.bytes == 3 * leaves + 2 * out
    x = versions.load(CONV, 128, "cpu", torch.float32)
    rows = protocols._count(CONV, x, FORWARD).flops - protocols._count(OWN, x._replace(source=None), FORWARD).flops
    assert rows == 128 * CONV.irreps[2].dim


# rows


def case(p: cases.Problem, rows: int, directions=ALL, dtype=torch.float32) -> protocols.Case:
    return protocols.Case("O2", f"{p.name}@{rows}", p, rows, "cpu", dtype, directions, False)


@pytest.fixture
def alone(monkeypatch):
    """No child processes."""
    monkeypatch.setattr(protocols, "_child", lambda c, name: {"mb": dict.fromkeys(ALL, 1.5), "first_ms": 2.5,
                                                             "method": memory.RESET})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_version_is_in_the_row(alone, dtype):
    rows = list(protocols.measure(case(TINY, 7, dtype=dtype), ROOF, 1))
    assert [row["direction"] for row in rows] == list(ALL)
    for row in rows:
        assert "error" not in row, row
        assert all(row[k] > 0 for k in ("eager_ms", "fast_ms", "speedup", "flops", "bytes", "rows_per_s",
                                        "roofline_percent", "fast_q20_ms", "eager_mb", "fast_mb"))
        assert row["fast_first_ms"] == 2.5 and row["noise"] >= 0 and row["threads"] == torch.get_num_threads()
        for name in versions.PRODUCT:
            assert row[f"{name}_ms"] or row[f"{name}_reason"]
        assert row["openequivariance_reason"].endswith("is not available: it takes CUDA tensors, not cpu")
        assert row["compiled_reason"] == "not asked for (--no-compile or --quick)"
        assert row["dtype"] == str(dtype).removeprefix("torch.") and row["paths"] == 4


def changed(name: str, factor: float):
    """make(), with the results of one version off by a factor."""
    def other(version, p, x):
        made = MAKE("eager" if version == name else version, p, x)
        return made._replace(call=lambda *a: factor * made.call(*a)) if version == name else made

    return other


def test_wrong_is_an_error_for_ours_and_a_reason_for_others(alone, monkeypatch):
    monkeypatch.setattr(versions, "make", changed("fast", 1.001))
    row, = protocols.measure(case(TINY, 7, (FORWARD,)), ROOF, 1)
    assert row["error"].startswith("fast: wrong: output is wrong: error") and row["fast_ms"] is None
    assert row["eager_ms"] > 0 and row["speedup"] is None
    monkeypatch.setattr(versions, "make", changed("cuequivariance", 1.001))
    row, = protocols.measure(case(TINY, 7, (FORWARD,)), ROOF, 1)
    assert "error" not in row and row["fast_ms"] > 0
    assert row["cuequivariance_reason"].startswith("wrong: output is wrong") and row["cuequivariance_ms"] is None


def test_a_peer_that_is_less_exact_is_timed_and_says_so(alone, monkeypatch):
    monkeypatch.setattr(versions, "make", changed("cuequivariance", 1 + 2e-5))
    row, = protocols.measure(case(TINY, 7, (FORWARD,)), ROOF, 1)
    assert row["cuequivariance_ms"] > 0 and row["cuequivariance_loose"].startswith("output is wrong: error")
    assert row["speedup_over_cuequivariance"] == row["cuequivariance_ms"] / row["fast_ms"]


def test_what_fails_has_its_reason(alone, monkeypatch):
    make = versions.make

    def refuse(version, p, x):
        if version == "fast":
            raise RuntimeError("no such kernel\nmore")
        return make(version, p, x)

    monkeypatch.setattr(versions, "make", refuse)
    row, = protocols.measure(case(TINY, 7, (FORWARD,)), ROOF, 1)
    assert row["error"] == "fast: RuntimeError: no such kernel" and row["eager_ms"] > 0


def test_what_does_not_fit_is_not_run(alone, monkeypatch):
    monkeypatch.setattr(protocols, "CPU_LIMIT", 1)
    row, = protocols.measure(case(TINY, 7, (FORWARD,)), ROOF, 1)
    assert row["eager_ms"] is None and "not run on the CPU: it needs about" in row["eager_reason"]
    assert row["fast_ms"] > 0 and row["speedup"] is None


def test_a_convolution_has_the_sum_of_torch_scatter_beside_it(alone):
    row, = protocols.measure(case(CONV, 128, (FORWARD,)), ROOF, 1)
    assert row["eager_ms"] > 0 and row["nodes"] == 2
    assert row["torch_scatter_ms"] or row["torch_scatter_reason"]


def test_protocols_take_turns():
    found = [(c.protocol, c.name) for c in protocols.jobs(["O1", "O2"], "cpu", torch.float32)]
    assert found[:3] == [("O1", "mace-large@5000"), ("O2", "tetris-poly-1@5000"), ("O1", "mace-medium@5000")]
    assert len(found) == 11
    only = list(protocols.jobs(["O3", "O5"], "cpu", torch.float32, direction=DOUBLE, quick=True))
    assert [(c.protocol, c.directions) for c in only] == [("O5", (DOUBLE,))]


def test_command(tmp_path, monkeypatch, capsys):
    """A case end to end, with its process for memory and first call."""
    monkeypatch.setattr(roofline, "measure", lambda *a: ROOF)
    before, file = torch.get_num_threads(), tmp_path / "rows.json"
    try:
        assert main(["--protocol", "O2", "--case", "tetris-poly-2@12", "--direction", FORWARD, "--device", "cpu",
                     "--threads", "1", "--repeats", "1", "--no-compile", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(before)
    row, = results.load(file)
    assert row["case"] == "tetris-poly-2@12" and row["memory_method"] == memory.RESET
    assert row["fast_first_ms"] > 0 and row["fast_mb"] >= 0
    assert "O2 tetris-poly-2@12" in capsys.readouterr().out


def test_help_lists_the_protocols(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {name}  {p.source}" in text for name, p in cases.PROTOCOLS.items())


def test_peers_are_an_extra():
    """The names that reasons tell the user to install are in pyproject.toml."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["peers"]
    assert {"cuequivariance-torch", "openequivariance", "torch-scatter"} <= set(extra)
