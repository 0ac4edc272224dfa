"""What every room's Triton file shares: the import, the launch and a few device functions.

A room writes `from ..triton_common import AotCase, launch, tl, triton`. Where Triton is missing, the room still
imports, and its kernels raise when used.
"""

import functools
from typing import Any, NamedTuple

import torch

MISSING = "Triton is not installed; `pip install triton` (Linux), or take another backend"


class _Absent:
    """Stands where triton or one of its names would: it can be named and used as a decorator, not run."""

    def __init__(self, name: str):
        self.__name__ = name

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __call__(self, *args, **kwargs):
        raise ImportError(f"{self.__name__}: {MISSING}")

    __getitem__ = __call__


def _absent_triton() -> _Absent:
    """A stand-in for the module: decorators give kernels that raise, constants keep their value."""

    def jit(fn=None, **options):
        return jit if fn is None else _Absent(fn.__name__)

    absent = _Absent("triton")
    absent.jit = jit
    absent.heuristics = absent.autotune = lambda *args, **kwargs: jit
    absent.Config = lambda *args, **kwargs: None
    absent.language = _Absent("triton.language")
    absent.language.constexpr = lambda value: value
    return absent


try:
    import triton
    import triton.language as tl

    # Triton's own library was decorated when it was imported, so it tells which mode this process is in.
    INTERPRETED = not isinstance(tl.cdiv, triton.JITFunction)
    PRESENT = True
except ImportError:
    triton = _absent_triton()
    tl = triton.language
    INTERPRETED = PRESENT = False


def cdiv(a: int, b: int) -> int:
    """`a / b` rounded up, on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n` (1 for n <= 1), on the host."""
    return 1 << max(n - 1, 0).bit_length()


def accumulator(dtype: torch.dtype):
    """The Triton type in which sums over `dtype` are kept: float64 for float64, otherwise float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def allow_tf32(x: torch.Tensor) -> bool:
    """Whether torch's own switch lets products of `x` run in TF32; pass it to `dot` as ALLOW_TF32."""
    # fp32_precision is the one name that can be read after either of torch's two ways to set the switch.
    return x.is_cuda and x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def matmul_precision(x: torch.Tensor) -> int:
    """torch.get_float32_matmul_precision() for products of `x` in CUDA kernels: highest 0, high 1, medium 2.

    torch's switch for TF32 alone, `torch.backends.cuda.matmul`, counts as high.
    """
    if x.dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision != "tf32":
        return 0
    try:
        return 1 + (torch.get_float32_matmul_precision() == "medium")
    except RuntimeError:  # the switch was set by its newer names, which have no "medium" on CUDA
        return 1


@functools.cache
def _cuda_reason(index: int | None) -> str | None:
    if INTERPRETED:
        return "TRITON_INTERPRET=1 interprets the kernels on CPU tensors; unset it to run on the GPU"
    if torch.version.hip is not None:
        return "the Triton kernels are written for NVIDIA GPUs, this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return f"Triton needs compute capability 8.0 or newer, this GPU has {capability[0]}.{capability[1]}"
    try:
        # Builds Triton's launcher on first use, which needs a C compiler.
        _ = triton.runtime.driver.active.utils
    except Exception as error:
        return f"Triton's CUDA driver does not start: {error}"
    return None


def available(device: str | torch.device) -> str | None:
    """None when the Triton kernels take tensors on `device`, otherwise the reason why not."""
    device = torch.device(device)
    if not PRESENT:
        return MISSING
    if triton.knobs.runtime.interpret != INTERPRETED:
        return "TRITON_INTERPRET changed after Triton was imported; set it before Python starts"
    if device.type == "cuda":
        return _cuda_reason(device.index)
    if device.type != "cpu":
        return f"Triton takes CUDA tensors, not {device.type}"
    return None if INTERPRETED else "Triton takes CPU tensors only when Python starts with TRITON_INTERPRET=1"


def _is_constexpr(kernel, name: str) -> bool:
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    return "constexpr" in str(kernel.__annotations__.get(name))


def launch(kernel, grid: tuple[int, ...], *args, device: torch.device, **meta) -> None:
    """Run `kernel[grid](*args, **meta)` on `device`; an empty grid runs nothing.

    Raises:
        ImportError: Triton is missing.
        TypeError: a Python float is given for an argument that is no constexpr.
        ValueError: the second or third grid dimension is above 65535, CUDA's limit.
    """
    if not PRESENT:
        raise ImportError(f"{kernel.__name__}: {MISSING}")
    for name, value in (*zip(kernel.arg_names, args, strict=False), *meta.items()):
        # A GPU launch rounds Python floats to float32, which the interpreter does not show.
        if type(value) is float and not _is_constexpr(kernel, name):
            raise TypeError(f"{kernel.__name__}: {name} must be a tensor or a constexpr, got the float {value}")
    if any(n > 65535 for n in grid[1:]):
        raise ValueError(f"{kernel.__name__}: grid[1:] must be at most 65535, got {grid}; use dimension 0")
    if 0 in grid:
        return
    if device.type != "cuda":
        kernel[grid](*args, **meta)
        return
    # Stated because Triton's default for contracting a*b + c changes between versions.
    meta.setdefault("enable_fp_fusion", True)
    with torch.cuda.device(device):
        kernel[grid](*args, **meta)


class AotCase(NamedTuple):
    """One ahead-of-time compilation of a kernel; each room lists its own as AOT, and aot.py compiles them.

    `signature` has the type of every argument that is no constexpr: "*fp32", "*fp64", "*i64", "i64", "i32".
    """

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any] = {}
    num_warps: int = 4
    num_stages: int = 3
    # Without it ptxas may spill to fit more blocks on a multiprocessor; 255 is every register (up to 8 warps).
    maxnreg: int | None = None
    max_spill: int = 0  # bytes
    # At a launch Triton learns which arguments are divisible by 16; None stands for all pointers.
    divisible: tuple[str, ...] | None = None
    # What a launch on sm_90 and newer takes in their place: constexprs, num_warps, num_stages.
    hopper: dict[str, Any] = {}

    def at(self, capability: int) -> "AotCase":
        """The case as a launch on this GPU has it."""
        if capability < 90 or not self.hopper:
            return self
        options = {name: value for name, value in self.hopper.items() if name in self._fields}
        blocks = {name: value for name, value in self.hopper.items() if name not in self._fields}
        return self._replace(constexprs={**self.constexprs, **blocks}, hopper={}, **options)

    @property
    def label(self) -> str:
        dtypes = dict.fromkeys(t[1:] for t in self.signature.values() if t.startswith(("*fp", "*bf")))
        constants = (f"{name}={value}" for name, value in self.constexprs.items())
        name = getattr(self.kernel, "__name__", None) or self.kernel.fn.__name__  # the latter under triton.heuristics
        return f"{name}[{', '.join([*dtypes, *constants, f'warps={self.num_warps}'])}]"


# Device functions. They keep the dtype of x, which is float32 or float64.


@triton.jit
def sigmoid(x):
    # exp of a negative number only, so that nothing overflows.
    b_e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, b_e) / (1.0 + b_e)


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def silu_grad(x):
    b_s = sigmoid(x)
    return b_s * (1.0 + x * (1.0 - b_s))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def gelu_erf(x):
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def gelu_erf_grad(x):
    b_density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476)) + x * b_density


# How float32 is multiplied where TF32 is not allowed: as it is, or in three TF32 products of parts where rooms ask for
# SPLIT.
FLOAT32, SPLIT = tl.constexpr("ieee"), tl.constexpr("tf32x3")


@triton.jit
def dot(a, b, acc, ALLOW_TF32: tl.constexpr = False, PRECISION: tl.constexpr = FLOAT32):
    """acc [M, N] + a [M, K] b [K, N] in the dtype of acc; K at least 16 (half), 8 (float32) or 4 (float64)."""
    # tl.dot reads float32 as TF32 unless told otherwise; float64 takes the FP64 tensor cores of sm_80 and sm_90.
    if ALLOW_TF32:
        return tl.dot(a, b, acc, input_precision="tf32", out_dtype=acc.dtype)
    elif acc.dtype == tl.float64:
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
