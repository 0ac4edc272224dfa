"""Every room's Triton kernels, compiled for four GPUs without one: `pytest tests/aot`, without TRITON_INTERPRET."""

import os

import pytest

from ace_fast.kernels import aot
from ace_fast.kernels.triton_common import AotCase, dot, gelu_erf, gelu_erf_grad, silu, silu_grad, softplus, tl, triton

if aot.why_not():
    if "triton" in os.environ.get("ACE_FAST_REQUIRE", ""):
        pytest.fail(aot.why_not(), pytrace=False)
    pytest.skip(aot.why_not(), allow_module_level=True)

DTYPES = ["fp32", "fp64"]


@triton.jit
def activations_kernel(x, y, n, BLOCK: tl.constexpr):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o_x, mask=o_x < n, other=0.0)
    b_y = silu(b_x) + silu_grad(b_x) + gelu_erf(b_x) + gelu_erf_grad(b_x) + softplus(b_x)
    tl.store(y + o_x, b_y, mask=o_x < n)


@triton.jit
def product_kernel(x, w, y, k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ALLOW_TF32: tl.constexpr):
    o_m, o_n, o_k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    b_acc = tl.zeros([BM, BN], dtype=y.dtype.element_ty)
    for i_k in range(0, k, BK):
        b_x = tl.load(x + o_m[:, None] * k + i_k + o_k[None, :])
        b_w = tl.load(w + (i_k + o_k)[:, None] * BN + o_n[None, :])
        b_acc = dot(b_x, b_w, b_acc, ALLOW_TF32)
    tl.store(y + o_m[:, None] * BN + o_n[None, :], b_acc)


@triton.jit
def crowded_kernel(x, y, BLOCK: tl.constexpr):
    # BLOCK values stay alive across the sum: with one warp and BLOCK = 16384 that is 512 registers a thread.
    b_x = tl.load(x + tl.arange(0, BLOCK))
    tl.store(y + tl.arange(0, BLOCK), b_x * tl.sum(b_x))


@triton.jit
def integer_kernel(x, n, k):
    tl.store(x + tl.program_id(0) * n.to(tl.int64), k)


@triton.jit(do_not_specialize=["n"])
def free_integer_kernel(x, n, k):
    tl.store(x + tl.program_id(0) * n.to(tl.int64), k)


@triton.jit
def scale_kernel(x, y, SCALE: tl.constexpr, KIND: tl.constexpr):
    b_x = tl.load(x)
    if KIND == "named":
        b_x, b_scale = b_x + 12345.0, 0.1
        b_x = b_scale * b_x
    elif KIND == "converted":
        b_x = b_x * tl.where(b_x < 0, -0.5, 0.5).to(b_x.dtype)
    else:
        b_x = tl.where(b_x < 0, 0.1, SCALE * b_x)
    tl.store(y, b_x)


@triton.jit
def sine_kernel(x, y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), tl.sin(tl.load(x + tl.arange(0, BLOCK))))


def product(dtype, tile=(64, 64, 32), tf32=False, **options):
    constexprs = {"BM": tile[0], "BN": tile[1], "BK": tile[2], "ALLOW_TF32": tf32}
    signature = {**dict.fromkeys(("x", "w", "y"), f"*{dtype}"), "k": "i32"}
    return AotCase(product_kernel, signature, constexprs, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_functions_compile(dtype):
    case = AotCase(activations_kernel, {"x": f"*{dtype}", "y": f"*{dtype}", "n": "i64"}, {"BLOCK": 256})
    results = aot.compile_case(case)
    assert [result.sm for result in results] == list(aot.CAPABILITIES)
    for result in results:
        assert result.kernel == f"activations_kernel[{dtype}, BLOCK=256, warps=4]"
        assert 16 <= result.registers <= 255
        assert (result.spills, result.shared_bytes) == (0, 0)
        assert not result.over(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [(64, 64, 32), (1, 16, 16), (16, 1, 16)], ids=str)
def test_dot_compiles_and_uses_shared_memory(dtype, tile):
    for result in aot.compile_case(product(dtype, tile, maxnreg=255)):
        assert result.shared_bytes > 0
        assert result.spills == 0


@pytest.mark.parametrize("sm", aot.SAME_PTX)
@pytest.mark.parametrize("dtype, tf32", [("fp32", False), ("fp32", True), ("fp64", True)])
def test_some_architectures_share_their_ptx(dtype, tf32, sm):
    case, like = product(dtype, tf32=tf32), aot.SAME_PTX[sm]
    one, other = (aot.build(case, capability).asm["ptx"] for capability in (like, sm))
    assert one.replace(f".target sm_{like}\n", f".target sm_{sm}\n") == other
    (report,) = aot.compile_case(case, [sm])
    usage = aot._cubin_usage(aot.build(case, sm).asm["cubin"])
    assert (report.sm, report.registers, usage["STACK"]) == (sm, usage["REG"], report.spills)


@pytest.mark.parametrize("dtype, tf32, instruction", [("fp32", False, "FFMA"), ("fp32", True, "HMMA.1688.F32.TF32")])
def test_dot_obeys_the_tf32_switch(dtype, tf32, instruction):
    assert instruction in aot.build(product(dtype, tf32=tf32), 80).asm["sass"]


def test_dot_takes_the_fp64_tensor_cores():
    assert "DMMA" in aot.build(product("fp64", tf32=True), 80).asm["sass"]


def test_float64_constants_are_not_rounded():
    case = AotCase(activations_kernel, {"x": "*fp64", "y": "*fp64", "n": "i64"}, {"BLOCK": 256})
    assert "0d3FE6A09E667F3BCD" in aot.build(case, 80).asm["ptx"]  # 1 / sqrt(2)


def test_spills_are_counted():
    case = AotCase(crowded_kernel, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 16384}, num_warps=1)
    (result,) = aot.compile_case(case, [80])
    assert result.spills > 0
    assert result.over(case)[0].endswith("allowed 0; launch and compile it with maxnreg=255")
    assert not result.over(case._replace(max_spill=result.spills))


def test_maxnreg_frees_the_registers():
    case = AotCase(crowded_kernel, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 16384}, num_warps=1, maxnreg=255)
    (result,) = aot.compile_case(case, [80])
    assert result.registers == 255
    assert result.spills < aot.compile_case(case._replace(maxnreg=None), [80])[0].spills
    assert result.over(case)[0].endswith("allowed 0")


def test_a_stack_without_spills_is_not_a_spill():
    case = AotCase(sine_kernel, {"x": "*fp64", "y": "*fp64"}, {"BLOCK": 128})
    assert aot._cubin_usage(aot.build(case, 80).asm["cubin"])["STACK"] > 0
    assert aot.compile_case(case, [80])[0].spills == 0


def test_too_much_shared_memory_is_reported():
    case = product("fp64", (128, 64, 64), num_warps=8)
    small, large = aot.compile_case(case, [86, 90])
    assert not large.over(case)
    assert "shared memory, has 101376" in small.over(case)[0]


def test_pointers_count_as_aligned_unless_said_otherwise():
    case = AotCase(activations_kernel, {"x": "*fp32", "y": "*fp32", "n": "i64"}, {"BLOCK": 1024})
    # Aligned vectors come from the division of n, too: the mask is then the same for four neighbours.
    assert "ld.global.v4" in aot.build(case._replace(divisible=("x", "y", "n")), 80).asm["ptx"]
    assert "ld.global.v4" not in aot.build(case._replace(divisible=()), 80).asm["ptx"]


def test_wrong_signature_and_broken_kernel_are_named():
    with pytest.raises(RuntimeError, match=r"AotCase lacks \['n'\], has unknown \['m'\]"):
        aot.compile_case(AotCase(activations_kernel, {"x": "*fp32", "y": "*fp32", "m": "i64"}, {"BLOCK": 64}), [80])
    with pytest.raises(RuntimeError, match=r"(?s)product_kernel.* does not compile for sm_80: .*K >= "):
        aot.compile_case(product("fp32", (16, 16, 2)), [80])


def test_integers_of_one_are_found_out():
    case = AotCase(integer_kernel, {"x": "*i64", "n": "i32", "k": "i32"})
    aot.build(case, 80)
    with pytest.raises(RuntimeError, match="(?s)integer_kernel.* has no attribute 'to'"):
        aot.read(aot.with_ones(case), 80)
    assert "tt.store" in aot.read(aot.with_ones(case._replace(kernel=free_integer_kernel)), 80)


@pytest.mark.parametrize("kind, found", [("exact", ""), ("named", "arith.constant 0.1000000014"),
                                         ("converted", "arith.extf")])
def test_float32_within_float64_is_found(kind, found):
    case = aot.in_float64(AotCase(scale_kernel, {"x": "*fp32", "y": "*fp32"}, {"SCALE": 1.0, "KIND": kind}))
    lines = aot.rounded(aot.read(case, 80, passes=True))
    assert [found in line for line in lines] == [True] * bool(found)


@pytest.mark.parametrize("room", aot.rooms())
def test_float64_is_float64_throughout(room):
    """Every kernel in float64, those of float32 too, but not where there are narrower types."""
    wide = [case for case in aot.cases(room) if not {"*bf16", "*fp16"} & set(case.signature.values())]
    cases = {case.label: case for case in map(aot.in_float64, wide) if "*fp64" in case.signature.values()}
    assert {label: lines for label, case in cases.items()
            if (lines := aot.rounded(aot.read(case, 80, passes=True)))} == {}


def room_cases():
    for room in aot.rooms():
        try:
            yield from (pytest.param(case, id=f"{room}-{case.label}") for case in aot.cases(room))
        except Exception as error:
            # One broken room fails one test, not the collection of the others.
            yield pytest.param(error, id=room)


REPORTS = []


@pytest.mark.parametrize("case", list(room_cases()))
def test_room_kernels_fit(case):
    if isinstance(case, Exception):
        pytest.fail(f"the list AOT cannot be read: {case!r}", pytrace=False)
    results = aot.compile_case(case)
    REPORTS.extend(results)
    assert [line for result in results for line in result.over(case)] == []
    # Integers of 1 are constants: there `n.to(tl.int64)` fails, because n is a plain 1; `tl.cast(n, tl.int64)` works.
    assert "tt.func" in aot.read(aot.with_ones(case), 80)


@pytest.fixture(scope="module", autouse=True)
def _print_table(pytestconfig):
    yield
    if REPORTS:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{aot.table(REPORTS)}")


def test_command_line_prints_the_table_and_fails_on_spills(monkeypatch, capsys):
    crowded = AotCase(crowded_kernel, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 16384}, num_warps=1)
    monkeypatch.setattr(aot, "cases", {"good": [product("fp64")], "bad": [crowded]}.get)
    assert aot.main(["good", "--sm", "80", "90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kernel", "sm", "registers", "spills", "shared", "seconds"]
    assert [line.split()[-5] for line in lines[1:]] == ["80", "90"]
    assert aot.main(["bad", "--sm", "80"]) == 1
    assert "spills" in capsys.readouterr().err
    assert aot.report(["good"], [80]).startswith("kernel")


def test_limits_cover_every_target():
    assert set(aot.MAX_SHARED) == set(aot.CAPABILITIES)
