"""Assertions for tests of equivariant models: pytest shows which layer is to blame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .symmetry.forces import conservativity
from .symmetry.measure import measure
from .symmetry.report import Report

__all__ = ["assert_conservative", "assert_equivariant"]

_ROUNDING = 100  # times the rounding of the input: what a sum of many terms in another order may differ by


def assert_equivariant(model: Callable[..., Any], batch: Any, group: Any = "O(3)", *, tolerance: float | None = None,
                       **options: Any) -> Report:
    """Raises AssertionError where a model does not commute with a group, with the layers that are to blame.

    Args:
        model, batch, group, options: of `ace_fast.symmetry.measure`.
        tolerance: largest mean relative error; None: 100 times the relative change of the output where every number
            of the input changes in its last digit, at least 1000 eps.

    Returns:
        The report.

    Raises:
        AssertionError: the error is larger, or no number.
        ValueError: as `measure`.

    Example:
        >>> def test_my_model():
        ...     assert_equivariant(ace_fast.nn.Linear("4x0e + 2x1o", "2x1o"), torch.randn(8, 10))
    """
    found = measure(model, batch, group, **options)
    return _judged(found, tolerance, f"must commute with {found.group}")


def assert_conservative(forces: Callable[[Tensor], Tensor], pos: Tensor, *, tolerance: float | None = None,
                        **options: Any) -> Report:
    """Raises AssertionError where forces are not the gradient of an energy (`ace_fast.symmetry.conservativity`).

    Args:
        forces, pos, options: of `conservativity`.
        tolerance: largest curl, and work against the energy; None: 100 times the accuracy of the differences.
    """
    return _judged(conservativity(forces, pos, **options), tolerance, "must be the gradient of an energy")


def _judged(found: Report, tolerance: float | None, what: str) -> Report:
    if tolerance is None:
        tolerance = max(_ROUNDING * found.rounding, 1000 * torch.finfo(torch.float64).eps)
    if not all(error.relative <= tolerance for error in found.outputs):
        blamed = [layer.name for layer in found.culprits if layer.own and not layer.own.relative <= tolerance]
        first = f"; {', '.join(blamed)} alone {'does' if len(blamed) == 1 else 'do'} not" if blamed else ""
        raise AssertionError(f"{found.worst.name} {what} to {tolerance:.2g}, got {found.relative:.2g}{first}\n{found}")
    return found
