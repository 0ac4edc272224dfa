"""Projections: occupancy by hand, the model on made-up devices, and that what is committed is up to date."""

import json

import pytest

from ace_fast.kernels import ROOMS, nvcc
from bench import case_counts, devices, projection, projection_docs, resources, results
from bench.case_counts import Call
from bench.devices import DEVICES, resident_warps
from bench.projection import Measured

# occupancy


def test_warps_on_a_multiprocessor():
    # 64 registers a thread are 2048 a warp: 8 warps in each part of 16384, 32 in all, of 48
    assert resident_warps(86, 64, 128, 0) == 32
    # 65 registers round to 2304 a warp: 7 in each part, 28 in all
    assert resident_warps(86, 65, 128, 0) == 28
    # two blocks of 40 KiB and the system's 1 in 100 KiB
    assert resident_warps(86, 64, 128, 40 << 10) == 8
    # 255 registers: 2 warps in each part, one block of 8
    assert resident_warps(90, 255, 256, 0) == 8
    # small blocks: 16 of one warp on sm_86, 24 on sm_89, 32 on sm_80
    assert [resident_warps(sm, 16, 32, 0) for sm in (86, 89, 80)] == [16, 24, 32]
    # nothing but the number of warps
    assert [resident_warps(sm, 16, 256, 0) for sm in (80, 86, 89, 90)] == [64, 48, 48, 64]
    # more registers than there are: no block fits
    assert resident_warps(80, 255, 1024, 0) == 0


@pytest.mark.parametrize(("name", "found"), [
    ("NVIDIA H200", "H200"), ("NVIDIA RTX A5000", "A5000"), ("NVIDIA GeForce RTX 4090", "4090"),
    ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A10", None),
    ("Intel(R) Xeon(R)", None), (None, None),
])
def test_devices_by_name(name, found):
    assert devices.key(name) == found


def test_data_sheets_agree_with_themselves():
    """The float32 rate is lanes times clock times two: 128 lanes a multiprocessor, 64 on an A100."""
    for name, device in DEVICES.items():
        lanes = 64 if name == "A100" else 128
        assert device.float32_gflops == pytest.approx(2 * lanes * device.multiprocessors * device.clock_ghz, rel=2e-3)


# the model

ROOMS_HERE = ("knn", "cfconv", "vn_linear", "egnn_message")
RESIDENT = {(room, language, direction, sm): 16.0 if sm == 90 else 8.0 for room in ROOMS_HERE
            for language in ("triton", "cuda") for direction in ("forward", "forward+backward")
            for sm in (80, 86, 89, 90)}


def call(size, room="knn", direction="forward", mode=""):
    return Call(room, room, f"case{size}", direction, mode, 0, size)


def measured(size, launch, need, device="H200", language="triton", **kind):
    """A time by the law itself."""
    rate = projection.issued(DEVICES[device], 16.0 if device[0] == "H" else 8.0)
    return Measured(device, language, call(size, **kind), launch + 1e3 * need * size / rate)


TIMES = [measured(n, 0.05, 20.0) for n in (1, 10**9, 10**10)]


def test_the_two_numbers_are_found_again():
    model = projection.calibrate(TIMES, RESIDENT)
    assert model.launch["knn", "triton", "forward"] == pytest.approx(0.05)
    assert model.need["room", "knn", "triton", "", "forward"] == pytest.approx(20)
    ms, basis = projection.predict(model, RESIDENT, DEVICES["H200"], "triton", call(10**9))
    assert ms == pytest.approx(TIMES[1].ms) and basis == "room"
    said = projection.validation([*TIMES, measured(2, 0.05, 20.0)], RESIDENT)["case"]
    assert said["n"] == 4 and said["worst"] < 1.001


def test_another_device_issues_in_proportion():
    model = projection.calibrate(TIMES, RESIDENT)
    ms, _ = projection.predict(model, RESIDENT, DEVICES["A5000"], "triton", call(10**9))
    # half the warps that hide latency, 64 multiprocessors at 1.695 GHz beside 132 at 1.98
    assert ms - 0.05 == pytest.approx(2 * (TIMES[1].ms - 0.05) * 132 * 1.98 / (64 * 1.695))


def test_nothing_is_faster_than_memory_and_arithmetic():
    model = projection.calibrate([measured(n, 0.05, 1e-6) for n in (1, 10**9)], RESIDENT)
    ms, _ = projection.predict(model, RESIDENT, DEVICES["A5000"], "triton", call(10**9))
    assert ms == pytest.approx(0.05 + 1e3 / (0.85 * 768), rel=1e-3)
    compute = call(10**6)._replace(flops=10**12)
    ms, _ = projection.predict(model, RESIDENT, DEVICES["A100"], "triton", compute)
    assert ms == pytest.approx(0.05 + 1e3 / (0.76 * 19.49), rel=1e-3)


def test_who_was_not_measured_borrows():
    """The mode in the same language, then the language, then anything; the smallest calls of others are its launch."""
    others = [measured(n, 0.1, 5.0, room="cfconv", mode="uvu") for n in (1, 10**9)]
    others += [measured(n, 0.1, 7.0, room="cfconv", language="cuda") for n in (1, 10**9)]
    model = projection.calibrate([*TIMES, *others], RESIDENT)
    basis = lambda language, **kind: projection.predict(  # noqa: E731
        model, RESIDENT, DEVICES["H100"], language, call(10**9, room="egnn_message", **kind))[1]
    assert basis("triton", mode="uvu") == "mode" and basis("triton", mode="uvw") == "language"
    assert basis("cuda", mode="uvw") == "language"
    only = projection.calibrate(TIMES, RESIDENT)
    assert projection.predict(only, RESIDENT, DEVICES["H100"], "cuda", call(10**9, room="cfconv"))[1] == "all"


def test_calls_as_short_as_a_launch_bound_the_need_from_above():
    """All take 0.05 ms: the kernel needs no more than the largest of them would allow, nor more than others do."""
    model = projection.calibrate([m._replace(ms=0.05) for m in TIMES], RESIDENT)
    most = 0.05e-3 * projection.issued(DEVICES["H200"], 16) / 10**10
    assert not model.need and model.at_most["room", "knn", "triton", "", "forward"] == pytest.approx(most)
    large = projection.predict(model, RESIDENT, DEVICES["H200"], "triton", call(10**11))
    assert large == (pytest.approx(0.05 + max(0.5, 1e5 / (0.85 * 4800))), "room")
    others = [measured(n, 0.05, 20.0, room="cfconv") for n in (1, 10**9)]
    small = projection.calibrate([measured(1, 0.05, 20.0), *others], RESIDENT)
    ms, basis = projection.predict(small, RESIDENT, DEVICES["H200"], "triton", call(10**9))
    assert ms == pytest.approx(TIMES[1].ms) and basis == "room"


def test_products_of_a_library_need_what_it_needs():
    model = projection.calibrate(TIMES, RESIDENT)
    product = call(10**6, room="vn_linear")._replace(flops=10**12)
    ms, basis = projection.predict(model, RESIDENT, DEVICES["4090"], "triton", product)
    assert ms == pytest.approx(0.05 + 1e3 / (0.76 * 82.58), rel=1e-3) and basis == "library"


def test_a_second_device_is_validated():
    """Its own times by the same law: leaving it out, the other predicts them."""
    said = projection.validation([*TIMES, *(measured(n, 0.05, 20.0, device="A5000") for n in (1, 10**9))], RESIDENT)
    assert said["device"]["n"] == 5 and said["device"]["worst"] == pytest.approx(1, rel=1e-3)


# rows

H200 = {"device": "cuda", "device_name": "NVIDIA H200", "dtype": "float32", "flops": 10, "bytes": 100}


def test_what_counts_as_measured():
    op = H200 | {"op": "knn", "backend": "triton", "case": "scan_1x16384_3", "direction": "forward", "ms": 0.5}
    product = H200 | {"protocol": "O1", "case": "mace-large@50000", "mode": "uvu", "shared_weights": False,
                      "direction": "forward+backward", "fast_ms": 9.0}
    rows = [op, product, product | {"protocol": "F1", "shared_weights": True}]
    others = [op | {"dtype": "float64"}, op | {"device_name": "NVIDIA T4"}, op | {"ms": None}, op | {"projected": True},
              op | {"device": "cpu"}, op | {"suite": "scaling"}, op | {"backend": "reference"},
              product | {"direction": "double_backward"}, {"workload": "nbody_segnn"} | H200]
    found = projection.measurements([*rows, *others])
    assert [(m.language, m.call.room, m.call.mode, m.ms) for m in found] == [
        ("triton", "knn", "", 0.5), ("cuda", "tensor_product", "uvu", 9.0),
        ("cuda", "tensor_product_conv", "uvu shared", 9.0)]


@pytest.fixture(scope="module")
def committed():
    rows = projection.load_results()
    return rows, projection.project(rows)


def test_a_measurement_replaces_its_projection(committed):
    rows, made = committed
    assert all(row["projected"] is True and row["ms"] > 0 and row["error_factor"] >= 1 for row in made)
    chosen = next(row for row in made if "A5000" in row["device_name"])
    own = {k: v for k, v in chosen.items() if k != "projected"}
    where = lambda r: tuple(r[k] for k in ("device_name", "op", "case", "backend", "direction"))  # noqa: E731
    left = set(map(where, projection.project([*rows, own])))
    assert where(own) not in left and left == set(map(where, made)) - {where(own)}


def test_the_table_has_measurements_in_bold(committed):
    rows, made = committed
    table = projection_docs._table(made, rows)
    line = next(line for line in table if line.startswith("| `relaxed_linear`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[-1].startswith("**") and all(cell.startswith("~") for cell in cells[3:-1])


# what is committed


def test_the_kernels_were_compiled_after_their_last_change():
    assert resources.stale() == [], "run python -m bench.resources, then python -m bench.projection"


def test_the_cases_were_counted_after_their_last_change():
    assert case_counts.stale() == [], "run python -m bench.case_counts, then python -m bench.projection"


def test_projections_are_those_of_the_committed_results(committed):
    rows, made = committed
    assert results.load(projection.FILE) == made, "run python -m bench.projection"
    text = projection_docs.PAGE.read_text()
    assert projection_docs.page(text, made, rows) == text, "run python -m bench.projection"


def test_a_page_without_the_marks():
    with pytest.raises(ValueError, match=r"projection: performance.md must have the lines '<!-- projections"):
        projection_docs.page("# Performance", [], [])


def test_comments_are_not_code(tmp_path):
    for name, one, two in (
        ("a.py", "x = 1  # one\n", "# two\nx  =  1\n"),
        ("a.cuh", '#include "b.cuh"\nint x; // one\n', '/* two */ #include "b.cuh"\nint  x;\n'),
    ):
        read = resources.python_code if name.endswith("py") else lambda path: resources._cpp(path, set())
        (tmp_path / name).write_text(one)
        first = read(tmp_path / name)
        (tmp_path / name).write_text(two)
        assert read(tmp_path / name) == first
    (tmp_path / "b.cuh").write_text("int y;")  # what is included counts
    assert resources._cpp(tmp_path / "a.cuh", set()) != first


def test_every_room_has_its_languages_and_kernels():
    kernels = resources.load()[1]
    for room in ROOMS:
        assert projection.languages(room), room
        assert {k.language for k in kernels if k.room == room} == set(resources.languages(room)), room
    assert all(k.threads and max(k.registers) <= 255 and len(k.registers) == 4 for k in kernels)


@pytest.mark.parametrize("module", [resources, case_counts])
def test_unknown_rooms(module, capsys):
    with pytest.raises(SystemExit):
        module.main(["nothing"])
    assert "rooms must be of segment_sum" in capsys.readouterr().err


def test_what_cannot_be_compiled_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(resources, "FILE", tmp_path / "kernel-resources.json")
    monkeypatch.setattr(nvcc, "why_not", lambda: "nvcc was not found")
    monkeypatch.setattr(resources, "languages", lambda room: ["cuda"])
    assert resources.main(["tensor_product"]) == 1
    assert "tensor_product cuda: nvcc was not found" in capsys.readouterr().out
    assert json.loads(resources.FILE.read_text())["kernels"] == []


def test_the_page_says_which_language_a_room_is_in():
    """The table of docs/performance.md: every room, in the languages that it has."""
    page = projection_docs.PAGE.read_text().split("## Triton or CUDA", 1)[1].split("\n## ", 1)[0]
    said = {cells[0].strip(" `"): cells[1].strip().lower().split(", ")
            for cells in (line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `"))}
    assert said == {room: projection.languages(room) for room in ROOMS}
    assert all(len(line.split("|")) == 6 and "||" not in line for line in page.splitlines() if line.startswith("| `"))


def test_the_command_writes_the_file_and_the_table(committed, monkeypatch, tmp_path, capsys):
    rows, made = committed
    page = tmp_path / "performance.md"
    monkeypatch.setattr(projection, "FILE", tmp_path / "projections.json")
    monkeypatch.setattr(projection, "load_results", lambda: rows)
    monkeypatch.setattr(projection, "project", lambda given: made)
    monkeypatch.setattr(projection_docs, "PAGE", page)
    assert projection.main() == 2 and "must run in a checkout" in capsys.readouterr().err
    page.write_text(f"before\n{projection_docs.START}\nold\n{projection_docs.END}\nafter\n")
    assert projection.main() == 0 and f"{len(made)} projections" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "~" in text
    assert results.load(projection.FILE) == made
