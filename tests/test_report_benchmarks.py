"""The page of benchmark results: what it shows, what its links lead to, wrong input, and the README made from it."""

import json
import re
import shutil
import xml.etree.ElementTree as tree
from pathlib import Path

import pytest
from report_rows import everything, operator, product, step

from ace_fast.bench import results
from ace_fast.report import benchmarks, readme, rows
from ace_fast.train import cli

ROOT = Path(__file__).resolve().parents[1]


def load(tmp_path, found, name="rows.json"):
    results.write(tmp_path / name, found)
    return rows.load([tmp_path / name])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return benchmarks.write(load(tmp_path_factory.mktemp("rows"), everything()))


def test_it_is_one_file_that_loads_nothing(page):
    assert not re.search(r"""(src|href)=["'](https?:)?//|@import|url\(|<img|<script src|<link rel="stylesheet""", page)
    assert "default-src 'none'" in page and page.count("<html") == 1


def test_every_bar_leads_to_its_command(page):
    targets = re.findall(r'href="#(run-[0-9a-f]+)"', page)
    commands = dict(re.findall(r'<div id="(run-[0-9a-f]+)".*?<code>(.*?)</code>', page))
    assert len(targets) > 40 and set(targets) == set(commands)
    assert "python -m bench --workload nbody_segnn --case batch100 --device cpu --no-compile" in commands.values()
    assert "python -m bench --protocol O1 --case mace@5000 --direction forward --device cpu" in commands.values()
    operator = "python -m bench --op segment_sum --case nbody_100 --backend cpu --direction forward --device cpu"
    assert operator in commands.values()
    assert "ace-fast compare nbody --seeds 2" in commands.values()
    assert "python -m bench --scaling edges --op segment_sum --backend cpu --device cpu" in commands.values()
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))


def test_failing_rows_and_missing_peers_stay_with_their_reason(page):
    assert '<section id="failures"' in page and page.count("fast: wrong: output is wrong: 1e-3 &gt; 1e-6") >= 3
    assert 'class="card failed"' in page and "Not timed: RuntimeError: boom" in page
    assert 'class="failed"><th scope="row"><a' in page and "ace_fast: no value; RuntimeError: boom" in page
    assert "torch.compile: no value; not asked for (--no-compile)" in page
    assert "openequivariance, 3 of 3: it takes CUDA tensors" in page and "needs 9 GiB" in page
    assert "wrong&lt;b&gt;@5000" in page and "wrong<b>" not in page  # text of a file is never markup


def test_ratios_come_with_their_noise(page):
    assert "4.0× faster than eager" in page and "within noise of eager" in page
    assert "Noise 2.0 % (the same version timed twice) · 2,500 graphs a second" in page
    assert "20× faster than eager" in page  # by the CUDA graph
    assert "</i>segment_sum cpu forward: exponent 1.01, expected 1.00</li>" in page
    assert "50.0 GB/s" in page and "240 GFLOP/s" in page and "python -m bench --roofline --device cpu<" in page


def test_deciders_and_languages_stand_side_by_side(page):
    assert "per: 0.3000; strict model, ± 0.010 over the seeds" in page and "strict: 1.0 × 10⁻⁶; strict model" in page
    assert "nbody_relaxation batch10" in page and "no eager time" not in page
    row = next(line for line in page.splitlines() if "4.0× faster</td>" in line)
    assert all(text in row for text in ("segment_sum nbody_100", '<td class="l">CUDA</td>', "250 µs", "1.00 ms"))


def test_commands_are_those_of_the_benchmarks():
    from ace_fast.bench.__main__ import arguments

    for row in (step(), step(dtype="float64"), product(), operator()):
        assert rows.command(row).startswith("python -m bench ")
        arguments().parse_args(rows.command(row).split()[3:])


def test_projections_are_marked_and_give_way(page, tmp_path):
    assert "NVIDIA GeForce RTX 4090 (projection)" in page and "None of these cases was measured on this device" in page
    assert "factor 1.5, one in ten 2.8" in page and "python -m bench.projection" in page
    guess = operator(backend="triton", device="cuda", device_name="NVIDIA H200", projected=True, ms=3.0)
    measured = guess | {"projected": False, "ms": 2.0}
    assert [row["ms"] for row in load(tmp_path, [guess, measured])] == [2.0]
    found = load(tmp_path, [guess | {"case": "qm9_1024"}, measured])
    assert [rows.device(row) for row in found] == ["NVIDIA H200 (projection)", "NVIDIA H200"]


def test_the_last_measurement_of_a_thing_counts(tmp_path):
    found = load(tmp_path, [step(eager_ms=1.0), step(eager_ms=2.0), step(eager_ms=3.0, dtype="float64")])
    assert [row["eager_ms"] for row in found] == [2.0, 3.0]
    dated = [step(eager_ms=1.0, datetime="2026-02-01T00:00:00"), step(eager_ms=2.0, datetime="2026-01-01T00:00:00")]
    assert [row["eager_ms"] for row in load(tmp_path, dated)] == [1.0]


def test_numbers_that_are_none_count_as_missing(tmp_path):
    (tmp_path / "odd.json").write_text('[{"workload": "w", "case": "c", "device": "cpu", "eager_ms": NaN, '
                                       '"fast_ms": -1, "compiled_ms": "3", "eager_mb": true, "noise": Infinity}]')
    (row,) = found = rows.load([tmp_path / "odd.json"])
    assert set(row) == {"workload", "case", "device", "file"}
    assert "no eager time" in benchmarks.write(found)


@pytest.mark.parametrize(("content", "message"), [
    ("{", "results: .* must be a JSON file of benchmarks, got"),
    ('{"a": 1}', "must hold `benchmarks` or a list of rows, got dict"),
    ("[]", "report: results must hold at least one row, got none in .*; measure some with python -m bench --json FI"),
    ('[{"workload": "w", "device": "cpu"}]', "must hold rows with workload, case and device as text, got one without"),
    ('[{"a": 1}]', "got one without op, case, device; write it with python -m bench --json FILE"),
])
def test_wrong_files_are_named(tmp_path, content, message):
    (tmp_path / "wrong.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        rows.load([tmp_path / "wrong.json"])


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere.json"], "report: results must be files or folders that exist, got nowhere.json"),
    (["."], "report: . must be a run or hold .json files of results, got a folder without"),
    (["rows.json", "--out", "page.txt"], "report: --out must be a file that ends in .html, got page.txt"),
    (["rows.json", "--out", "no/page.html"], "report: --out must be in a folder that exists, got no/page.html; make"),
    (["--readme", "rows.json"], "report: --readme must be used alone, got results or --out with it"),
])
def test_wrong_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if arguments[0] != ".":
        results.write("rows.json", [step()])
    assert cli.main(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ace-fast: {message}")


def test_the_command_writes_a_page_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results.write("a.json", [product()])
    results.write("b.json", [step()])
    assert cli.main(["report", "a.json", "b.json"]) == 0
    assert capsys.readouterr().out.split() == ["report:", str(tmp_path / "ace-fast-report.html"),
                                               "report:", str(tmp_path / "ace-fast-report.png")]
    assert "2 rows from a.json, b.json" in (tmp_path / "ace-fast-report.html").read_text()
    assert (tmp_path / "ace-fast-report.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["report", "a.json", "--out", "products.html"]) == 0 and (tmp_path / "products.png").exists()


def test_the_readme_shows_the_committed_results():
    old = [str(path.relative_to(ROOT)) for path in readme.stale(ROOT)]
    assert old == [], "older than bench/results; run ace-fast report --readme"


def test_table_and_figure_follow_the_results(tmp_path, monkeypatch, capsys):
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    results.write(tmp_path / "bench" / "results" / "a.json", everything())
    (tmp_path / "README.md").write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "bench" / "results")
    assert cli.main(["report", "--readme"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert ("| SEGNN, N-body, `batch100` | Some Processor, 2 threads | 160 ms | – | 40.0 ms | 4.0× | 2.0 % | 115 MiB | "
            "38.0 MiB |") in text
    assert "8.00 ms in a CUDA graph | 20×" in text and "projection" not in text
    tree.parse(tmp_path / "docs" / "speed.svg")
    capsys.readouterr()
    assert cli.main(["report", "--readme"]) == 0 and "up to date" in capsys.readouterr().out
    (tmp_path / "README.md").write_text("no place")
    assert cli.main(["report", "--readme"]) == 2 and "must hold one line '<!-- measured" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "bench")
    assert cli.main(["report", "--readme"]) == 2 and "must be used in a checkout" in capsys.readouterr().err


def test_an_installation_has_no_committed_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "none")
    assert cli.main(["report"]) == 2 and "must be named where there is no checkout" in capsys.readouterr().err


def test_pages_of_operators_or_products_alone_have_their_picture(tmp_path):
    _, charts, _ = benchmarks.picture(load(tmp_path, [operator(), product()]))
    assert [bar.shown for bar in charts[0].bars] == ["2.0×"]
    assert json.dumps(charts[0].title) == '"Times faster than plain PyTorch"'
