"""knn: schema, checks and fake. Indices have no derivative, so nothing is registered for one."""

import operator
from types import SimpleNamespace

import torch
from torch import Tensor

from ...backend import pick
from ..define import define, fail
from . import reference, triton_kernels

MAX_K = 64
_OP = "knn"
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_native = torch.ops.ace_fast_native


def _cpu(x: Tensor, *args) -> Tensor:
    return _native.knn(x.float() if x.dtype == torch.bfloat16 else x, *args)


BACKENDS = {"reference": reference, "cpu": SimpleNamespace(forward=_cpu), "triton": triton_kernels}


def _check_k(k: int, smallest: int, include_self: bool) -> None:
    """1 <= k <= 64, and no more than the candidates in a cloud of `smallest` points."""
    if not 1 <= k <= MAX_K:
        fail(_OP, "k", f"in 1..{MAX_K}", k)
    most = smallest - int(not include_self)  # int: torch 2.11 cannot subtract a bool from a symbolic size
    if k > most:
        whose = "the points of the smallest cloud" + ("" if include_self else " without itself")
        fail(_OP, "k", f"at most {most}, {whose}", k,
             "take a smaller k, or leave out the clouds that are too small")


def _check_inputs(x: Tensor, ptr: Tensor | None, shape: str) -> None:
    """dtype and shape of x [..., F], and ptr int64 [B + 1] beside it."""
    if x.dtype not in _DTYPES:
        fail(_OP, "x", "float32, float64 or bfloat16", x.dtype, "cast it with .float()")
    if x.dim() != shape.count(",") + 1:
        fail(_OP, "x", shape, list(x.shape), "x [B, N, F] needs no ptr, the rows of clouds of several sizes [M, F] do")
    if x.shape[-1] < 1:
        fail(_OP, "x", f"{shape} with at least one feature", list(x.shape))
    if ptr is not None and (ptr.dtype != torch.int64 or ptr.dim() != 1 or ptr.device != x.device):
        fail(_OP, "ptr", f"int64 [B + 1] on {x.device}", f"{ptr.dtype} {list(ptr.shape)} on {ptr.device}")
    if ptr is not None and ptr.shape[0] < 1:
        fail(_OP, "ptr", "[B + 1]", list(ptr.shape), "no clouds are ptr = [0]")


def _check(x: Tensor, ptr: Tensor, longest: int, k: int, include_self: bool) -> None:
    _check_inputs(x, ptr, "[M, F]")
    if not 0 <= longest <= x.shape[0]:
        fail(_OP, "longest", f"in 0..{x.shape[0]}, the rows of x", longest, "it is the size of the largest cloud")
    _check_k(k, longest if x.shape[0] else MAX_K + 1, include_self)


def _forward(x, ptr, longest, k, include_self, backend):
    _check(x, ptr, longest, k, include_self)
    return pick(_OP, BACKENDS, backend, x).forward


def _fake(x, ptr, longest, k, include_self, backend):
    _check(x, ptr, longest, k, include_self)
    return x.new_empty(x.shape[0], k, dtype=torch.int64)


knn_op = define(f"{_OP}(Tensor x, Tensor ptr, int longest, int k, bool include_self, str backend) -> Tensor",
                _forward, _fake)


def _check_ptr(ptr: Tensor, rows: int) -> tuple[int, int]:
    """The smallest and largest sizes of the clouds that have points; reads ptr from the device once."""
    if ptr.shape[0] == 1:
        first, last, least, smallest, largest = ptr[0].item(), ptr[0].item(), 0, rows, 0
    else:
        sizes = ptr.diff()
        inhabited = torch.where(sizes > 0, sizes, rows)
        numbers = torch.stack([ptr[0], ptr[-1], sizes.min(), inhabited.min(), sizes.max()])
        first, last, least, smallest, largest = numbers.tolist()
    if first != 0 or last != rows:
        fail(_OP, "ptr", f"0 at its start and {rows}, the rows of x, at its end", f"{first} and {last}",
             "ptr[b] is the first row of cloud b")
    if least < 0:
        fail(_OP, "ptr", "in ascending order", f"a step of {least}", "sort the rows of x by cloud")
    return smallest, largest


def knn(x: Tensor, k: int, *, ptr: Tensor | None = None, include_self: bool = True, backend: str = "auto") -> Tensor:
    r"""The `k` nearest points of every point, inside its own cloud, nearest first.

    .. math:: d_{ij} = \sum_f (x_{if} - x_{jf})^2

    The distances are sums of squared differences in the dtype of x (bfloat16: in float32), so duplicates are at
    distance zero exactly. Ties go to the lower index. NaN distances count as infinite and come last, by index.

    Args:
        x: [B, N, F] float32, float64 or bfloat16, B clouds of N points with F features; with `ptr` [M, F], the points
            of all clouds one after the other.
        k: 1 to 64, at most the points of the smallest cloud (that has any).
        ptr: [B + 1] int64, cloud b has the rows ptr[b] to ptr[b + 1] - 1. It is checked on the host, the only
            synchronisation (and what torch.compile cannot trace in a full graph).
        include_self: whether a point is a candidate for itself. Where earlier duplicates exist, they come before it.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        int64 [B, N, k], indices 0..N-1 inside the cloud; with `ptr` [M, k], rows of x. No derivatives: x is detached.

    Raises:
        ValueError: wrong shapes or dtypes, k out of range or larger than a cloud, a ptr that does not fit the rows,
            a backend that cannot run here.

    Source: the graph of Wang et al., "Dynamic Graph CNN for Learning on Point Clouds" (2019), section 3.

    Example:
        >>> knn(torch.tensor([[[0.0], [1.0], [3.0]]]), 2)
        tensor([[[0, 1],
                 [1, 0],
                 [2, 1]]])
    """
    if not isinstance(x, Tensor) or not (ptr is None or isinstance(ptr, Tensor)):
        name, value = ("x", x) if not isinstance(x, Tensor) else ("ptr", ptr)
        fail(_OP, name, "a tensor", type(value).__name__, "use torch.as_tensor(...)")
    if isinstance(k, bool) or not hasattr(k, "__index__") and not isinstance(k, torch.SymInt):
        fail(_OP, "k", "a whole number", repr(k), "pass an int")
    k = k if isinstance(k, torch.SymInt) else operator.index(k)
    x = x.detach()
    _check_inputs(x, ptr, "[B, N, F]" if ptr is None else "[M, F]")
    if ptr is None:
        b, n, f = x.shape
        _check_k(k, n if b and n else MAX_K + 1, include_self)
        ptr = torch.arange(b + 1, device=x.device) * n
        return knn_op(x.reshape(b * n, f), ptr, n if b else 0, k, include_self, backend).view(b, n, k)
    smallest, largest = _check_ptr(ptr, x.shape[0])
    _check_k(k, smallest if x.shape[0] else MAX_K + 1, include_self)
    local = knn_op(x, ptr, largest, k, include_self, backend)
    starts = torch.repeat_interleave(ptr[:-1], ptr.diff(), output_size=x.shape[0])
    return local + starts[:, None]
