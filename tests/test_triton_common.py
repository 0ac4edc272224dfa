"""The shared Triton helpers: device functions against torch (interpreted), launches, reasons; life without Triton."""

import subprocess
import sys

import pytest
import torch

from ace_fast.kernels import triton_common
from ace_fast.kernels.triton_common import dot, launch, tl, triton

interpreted = pytest.mark.skipif(not triton_common.INTERPRETED, reason="needs Python started with TRITON_INTERPRET=1")


@triton.jit
def apply_kernel(x, y, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    o_x = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + o_x, OP(tl.load(x + o_x, mask=o_x < n, other=0.0)), mask=o_x < n)


@triton.jit
def dot_kernel(x, w, y, SIZE: tl.constexpr, ALLOW_TF32: tl.constexpr):
    o_row = tl.arange(0, SIZE)
    o_x = o_row[:, None] * SIZE + o_row[None, :]
    b_acc = tl.full([SIZE, SIZE], 1.0, dtype=y.dtype.element_ty)
    tl.store(y + o_x, dot(tl.load(x + o_x), tl.load(w + o_x), b_acc, ALLOW_TF32))


def silu_grad(x):
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def gelu_grad(x):
    return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5


FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "silu_grad": silu_grad,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "gelu_erf": torch.nn.functional.gelu,
    "gelu_erf_grad": gelu_grad,
}


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_device_function_agrees_with_torch(name, dtype):
    x = torch.cat([torch.linspace(-12, 12, 241), torch.tensor([-1000.0, -88.0, 0.0, 88.0, 1000.0])]).to(dtype)
    y = torch.full_like(x, torch.nan)
    fn = getattr(triton_common, name)
    launch(apply_kernel, (triton_common.cdiv(len(x), 64),), x, y, len(x), fn, BLOCK=64, device=x.device, num_warps=2)
    gold = FUNCTIONS[name](x.double())
    eps = torch.finfo(dtype).eps
    assert ((y.double() - gold).abs() <= 16 * eps * (1 + gold.abs())).all()


@interpreted
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dot_accumulates_in_the_dtype_of_acc(dtype, tf32):
    x, w = torch.randn(2, 16, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y = torch.full_like(x, torch.nan)
    launch(dot_kernel, (1,), x, w, y, SIZE=16, ALLOW_TF32=tf32, device=x.device, maxnreg=255)
    torch.testing.assert_close(y, 1 + x @ w)


@interpreted
def test_launch_of_an_empty_grid_runs_nothing():
    x = torch.zeros(0)
    launch(apply_kernel, (0,), x, x, 0, triton_common.silu, BLOCK=64, device=x.device)


def test_launch_names_a_grid_that_is_too_large():
    with pytest.raises(ValueError, match=r"apply_kernel: grid\[1:\] must be at most 65535, got \(1, 65536\)"):
        launch(apply_kernel, (1, 65536), device=torch.device("cpu"))


@triton.jit
def scale_kernel(x, y, factor, SCALE: tl.constexpr):
    tl.store(y, tl.load(x) * factor * SCALE)


def test_launch_refuses_floats_that_a_gpu_would_round():
    x, y = torch.full((2, 1), 3.0, dtype=torch.float64)
    with pytest.raises(TypeError, match="scale_kernel: factor must be a tensor or a constexpr, got the float 0.1"):
        launch(scale_kernel, (1,), x, y, 0.1, SCALE=0.1, device=x.device)
    with pytest.raises(TypeError, match="factor must be a tensor"):
        launch(scale_kernel, (1,), x, y, factor=0.1, SCALE=0.1, device=x.device)


@interpreted
def test_launch_takes_float_constexprs():
    x, y = torch.full((2, 1), 3.0, dtype=torch.float64)
    launch(scale_kernel, (1,), x, y, 2, SCALE=0.1, device=x.device)
    torch.testing.assert_close(y, x * 0.2)


@pytest.mark.parametrize("n, power", [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_next_power_of_2(n, power):
    assert triton_common.next_power_of_2(n) == power


def test_cdiv_accumulator_and_tf32():
    assert [triton_common.cdiv(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert triton_common.accumulator(torch.bfloat16) == tl.float32
    assert triton_common.accumulator(torch.float64) == tl.float64
    assert not triton_common.allow_tf32(torch.zeros(1))


def test_available_says_why_not(monkeypatch):
    monkeypatch.setattr(triton_common, "INTERPRETED", False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "starts with TRITON_INTERPRET=1" in triton_common.available("cpu")
    assert triton_common.available("meta") == "Triton takes CUDA tensors, not meta"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "changed after Triton was imported" in triton_common.available("cpu")
    monkeypatch.setattr(triton_common, "INTERPRETED", True)
    assert triton_common.available("cpu") is None
    assert "unset it to run on the GPU" in triton_common._cuda_reason.__wrapped__(0)
    monkeypatch.setattr(triton_common, "PRESENT", False)
    assert "pip install triton" in triton_common.available("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_available_without_a_gpu(monkeypatch):
    monkeypatch.setattr(triton_common, "INTERPRETED", False)
    assert triton_common._cuda_reason.__wrapped__(0) == "torch sees no CUDA device"


def test_available_names_an_old_or_foreign_gpu(monkeypatch):
    monkeypatch.setattr(triton_common, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "needs compute capability 8.0 or newer, this GPU has 7.5" in triton_common._cuda_reason.__wrapped__(0)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "built for ROCm" in triton_common._cuda_reason.__wrapped__(0)


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from ace_fast.kernels import aot
from ace_fast.kernels.triton_common import MISSING, AotCase, available, silu, tl, triton

HALF = tl.constexpr(0.5)

@triton.autotune(configs=[triton.Config({"BLOCK": 64}, num_warps=4)], key=["n"])
@triton.jit(do_not_specialize=["n"])
def f_kernel(x, n, BLOCK: tl.constexpr = 64):
    pass

case = AotCase(f_kernel, {"x": "*fp32", "n": "i64"}, {"BLOCK": 64, "DTYPE": tl.float32})
assert case.label.startswith("f_kernel["), case.label
assert available("cuda") == available("cpu") == aot.why_not() == MISSING
for use, args in ((f_kernel.__getitem__, [(1,)]), (silu, [1.0]), (aot.compile_case, [case, [80]])):
    try:
        use(*args)
    except ImportError as error:
        assert "pip install triton" in str(error), error
    else:
        raise SystemExit("no ImportError")
"""


def test_rooms_import_without_triton_and_raise_when_used():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
