"""Which implementation of an operator runs: `pick` chooses, `available` and `which` explain."""

import functools
import importlib
import warnings

import torch
from torch import Tensor

from . import native
from .kernels import ROOMS, triton_common

ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}


def _why_not(name: str, device: torch.device) -> str:
    """Why backend `name` cannot take tensors on `device`; empty when it can."""
    if name == "reference":
        return ""
    if name == "cpu":
        return native.load() if device.type == "cpu" else f"it takes CPU tensors, not {device.type}"
    if name == "triton":
        return triton_common.available(device) or ""
    if name == "cuda":
        return native.why_not_cuda(device)
    return f"there is no backend of this name for {device.type} tensors"


@functools.cache
def _warn_reference(op: str, device: str, reason: str) -> None:
    warnings.warn(f"{op}: only the reference backend is left on {device}: {reason}", stacklevel=4)


def _refusal(implementation, arguments: tuple) -> str:
    """Why the implementation does not take these arguments; empty when it does."""
    refuses = getattr(implementation, "refuses", None)
    return refuses(*arguments) if refuses and arguments else ""


def pick(op: str, backends: dict, backend: str, x: Tensor, arguments: tuple = ()):
    """The implementation of `op` for tensor `x`: `backends[backend]`, or the best present for "auto".

    An implementation that does not take everything has `refuses(*arguments) -> reason`, empty where it does.

    Raises:
        ValueError: the backend is unknown or cannot run here; the message says why.
    """
    if backend != "auto":
        if backend not in backends:
            raise ValueError(f"{op}: backend must be one of {['auto', *backends]}, got {backend!r}")
        reason = _why_not(backend, x.device)
        if reason:
            raise ValueError(f"{op}: backend {backend!r} is not available: {reason}")
        reason = _refusal(backends[backend], arguments)
        if reason:
            raise ValueError(f"{op}: backend {backend!r} does not take this: {reason}; use backend='auto'")
        return backends[backend]
    device, reasons = x.device, []
    for name in ORDER.get(device.type, ("reference",)):
        if name not in backends:
            continue
        reason = _why_not(name, device) or _refusal(backends[name], arguments)
        if not reason:
            if name == "reference" and reasons:
                _warn_reference(op, device.type, "; ".join(reasons))
            return backends[name]
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"{op}: no backend for {device.type} tensors ({'; '.join(reasons)})")


def _room(op: str):
    if op not in ROOMS:
        raise ValueError(f"which: op must be one of {ROOMS}, got {op!r}")
    return importlib.import_module(f"{__package__}.kernels.{op}.op")


def which(op: str, x: Tensor) -> str:
    """The name of the backend that `backend="auto"` takes for operator `op` and tensor `x`."""
    backends = _room(op).BACKENDS
    chosen = pick(op, backends, "auto", x)
    return next(name for name, value in backends.items() if value is chosen)


def available(device: str | torch.device = "cpu") -> dict[str, dict[str, str]]:
    """{operator: {backend: reason}} for `device`; an empty reason means that the backend runs there."""
    device = torch.device(device)
    return {op: {name: _why_not(name, device) for name in _room(op).BACKENDS} for op in ROOMS}
